"""What the store holds, by checkpoint: bytes of each, bytes that only it needs, shared bytes once. Reads no blob."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace

from cas.errors import CasError, ContentError
from cas.index import disk
from cas.index.aside import held
from cas.index.digest import Digest
from cas.index.manifest import Manifest
from cas.index.refs import union
from cas.index.store import Store


@dataclass(frozen=True, slots=True)
class CheckpointUsage:
    """One checkpoint: what it consists of, and how much of that is on this disk (bytes; equal files count once)."""

    uuid: str
    registries: tuple[str, ...]
    files: int
    missing: int  # of the files, how many are not on this disk
    size: int  # of all files, as a download writes them
    here: int
    own: int  # of `here`, what no other checkpoint needs: what removing it frees
    pinned: bool = False
    last_used: float | None = None  # seconds since 1970, by the disk's clock; None where nothing was written down

    @property
    def shared(self) -> int:
        """Of `here`, what other checkpoints need as well."""
        return self.here - self.own


@dataclass(frozen=True, slots=True)
class Usage:
    """The whole store, in bytes: `own`, `shared` and `unreferenced` add up to `total`, what the blobs take."""

    checkpoints: tuple[CheckpointUsage, ...]  # by UUID
    apart: int  # what the files that are here would take in a folder of their own per checkpoint
    own: int
    shared: int
    unreferenced: int
    total: int
    aside: int = 0  # damaged, or on its way out; not in `total`


def usage(store: Store) -> Usage:
    """Say what the store holds."""
    here = blobs_here(store)
    trees = _trees(store)
    needed_by: dict[Digest, int] = defaultdict(int)
    for _, manifest in trees.values():
        for digest in _digests(manifest):
            needed_by[digest] += 1
    pinned, used = store.pins.all(), store.uses.all()
    checkpoints = tuple(
        replace(
            _usage_of(uuid, registries, manifest, here, needed_by),
            pinned=uuid in pinned,
            last_used=used[uuid] / 1e9 if uuid in used else None,
        )
        for uuid, (registries, manifest) in sorted(trees.items())
    )
    return Usage(
        checkpoints=checkpoints,
        apart=sum(here.get(digest, 0) for _, manifest in trees.values() for digest in _every_digest(manifest)),
        own=sum(size for digest, size in here.items() if needed_by[digest] == 1),
        shared=sum(size for digest, size in here.items() if needed_by[digest] > 1),
        unreferenced=sum(size for digest, size in here.items() if needed_by[digest] == 0),
        total=sum(here.values()),
        aside=sum(one.size for one in held(store)),
    )


def blobs_here(store: Store) -> dict[Digest, int]:
    """Return the size of every blob on this disk, believed or not, from the folders alone."""
    found = {}
    for folder in disk.folders(store.home / "blobs"):
        with os.scandir(folder) as entries:
            for entry in entries:
                try:
                    found[Digest(folder.name + entry.name)] = entry.stat(follow_symlinks=False).st_size
                except (ContentError, FileNotFoundError):
                    continue
    return found


def _trees(store: Store) -> dict[str, tuple[tuple[str, ...], Manifest]]:
    """Return registries and files of every checkpoint that has a readable manifest."""
    registries: dict[str, list[str]] = defaultdict(list)
    manifests: dict[str, dict[Digest, None]] = defaultdict(dict)
    for registry, uuid, digests in store.refs.all():
        registries[uuid].append(registry)
        manifests[uuid].update(dict.fromkeys(digests))
    found = {}
    for uuid, wanted in manifests.items():
        tree = union([manifest for digest in wanted if (manifest := _read(store, digest)) is not None])
        if tree is not None:
            found[uuid] = (tuple(registries[uuid]), tree)
    return found


def _read(store: Store, digest: Digest) -> Manifest | None:
    try:
        return store.refs.get(digest)
    except CasError:  # `check` says what is wrong with it
        return None


def _every_digest(manifest: Manifest) -> list[Digest]:
    return [entry.digest for entry in manifest.files if entry.digest is not None]


def _digests(manifest: Manifest) -> set[Digest]:
    return set(_every_digest(manifest))


def _usage_of(
    uuid: str,
    registries: tuple[str, ...],
    manifest: Manifest,
    here: Mapping[Digest, int],
    needed_by: Mapping[Digest, int],
) -> CheckpointUsage:
    mine = [digest for digest in _digests(manifest) if digest in here]
    return CheckpointUsage(
        uuid=uuid,
        registries=registries,
        files=len(manifest.files),
        missing=sum(entry.digest is None or entry.digest not in here for entry in manifest.files),
        size=manifest.size,
        here=sum(here[digest] for digest in mine),
        own=sum(here[digest] for digest in mine if needed_by[digest] == 1),
    )
