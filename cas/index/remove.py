"""Removing a checkpoint from this disk: its refs, and the blobs that nobody else needs.

Blobs are renamed to `aside/` first; then refs are read again: one that appeared in between links them back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cas.errors import NotFoundError
from cas.index import disk
from cas.index.digest import Digest
from cas.index.store import Store, explained


@dataclass(frozen=True, slots=True)
class RemovePlan:
    """What removing a checkpoint will do."""

    uuid: str
    registries: tuple[str, ...]
    blobs: tuple[Digest, ...]  # that no other checkpoint needs
    size: int  # their bytes
    shared: int  # bytes that stay because other checkpoints need them


@dataclass(frozen=True, slots=True)
class RemoveReport:
    """What was removed: blobs, and their bytes."""

    uuid: str
    blobs: int
    size: int


def plan_remove(store: Store, uuid: str) -> RemovePlan:
    """Say what removing a checkpoint would do; changes nothing.

    Raises:
        NotFoundError: the store holds no checkpoint of this UUID.
    """
    registries = tuple(store.refs.registries(uuid))
    if not registries:
        raise NotFoundError(f"checkpoint {uuid} is not in the store {store.home}; `cas ls` lists what is")
    manifests = {digest for registry in registries for digest in store.refs.of(registry, uuid)}
    mine = _needs(store, manifests)
    others = _needs(store, _manifests_of_others(store, uuid))
    sizes = {digest: _size(store.layout.blob(digest)) for digest in mine}
    gone = tuple(sorted(mine - others))
    size = sum(sizes[digest] for digest in gone)
    return RemovePlan(uuid, registries, gone, size, sum(sizes.values()) - size)


def execute_remove(store: Store, plan: RemovePlan) -> RemoveReport:
    """Remove a checkpoint as planned; a blob that another checkpoint needs by now stays."""
    with explained(f"cannot remove checkpoint {plan.uuid}"):
        manifests = {digest for registry in plan.registries for digest in store.refs.of(registry, plan.uuid)}
        for registry in plan.registries:
            store.refs.untag(registry, plan.uuid)
        held = {digest: path for digest in plan.blobs if (path := _move_aside(store, digest)) is not None}
        remaining = {digest for _, _, digests in store.refs.all() for digest in digests}
        needed = _needs(store, remaining)
        freed = 0
        for digest, path in held.items():
            if digest in needed:
                store.blobs.link_back(path, digest)
            else:
                freed += _size(path)
                disk.unlink(path)
        for digest in manifests - remaining:
            store.drop_view(digest)
            _remove_manifest(store, digest)
    return RemoveReport(plan.uuid, len(held.keys() - needed), freed)


def _manifests_of_others(store: Store, uuid: str) -> set[Digest]:
    return {digest for _, other, digests in store.refs.all() if other != uuid for digest in digests}


def _needs(store: Store, manifests: Iterable[Digest]) -> set[Digest]:
    found: set[Digest] = set()
    for digest in manifests:
        manifest = store.refs.get(digest)
        if manifest is not None:
            found.update(entry.digest for entry in manifest.files if entry.digest is not None)
    return found


def _move_aside(store: Store, digest: Digest) -> Path | None:
    held = store.layout.aside(digest.hex)
    disk.make_folder(held.parent)
    try:
        disk.rename(store.layout.blob(digest), held)
    except FileNotFoundError:
        return None
    store.blobs.forget(digest)
    return held


def _remove_manifest(store: Store, digest: Digest) -> None:
    path, held = store.layout.manifest(digest), store.layout.aside(f"{digest.hex}.json")
    try:
        disk.rename(path, held)
    except FileNotFoundError:
        return
    if any(digest in digests for _, _, digests in store.refs.all()):
        with contextlib.suppress(FileNotFoundError):  # a reader brought it back
            disk.rename(held, path)
    else:
        disk.unlink(held)


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0
