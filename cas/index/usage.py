"""What the store holds, by checkpoint: bytes of each, bytes that only it needs, shared bytes once. Reads no blob."""

from __future__ import annotations

import contextlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from cas.errors import CasError
from cas.index import disk
from cas.index.aside import held
from cas.index.digest import Digest, is_hex
from cas.index.garbage import uncollected
from cas.index.manifest import Manifest
from cas.index.refs import union
from cas.index.store import Store
from cas.index.trees import Tree


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


@dataclass(frozen=True, slots=True)
class Presence:
    """What a list says of a checkpoint: how many files it has, how many of them are not on this disk, its bytes."""

    registries: tuple[str, ...]
    files: int
    missing: int
    size: int
    pinned: bool


def usage(store: Store) -> Usage:
    """Say what the store holds."""
    with uncollected():
        return _usage(store)


def _usage(store: Store) -> Usage:
    here = _sizes(store)
    trees = _trees(store)
    needed_by: Counter[str] = Counter()
    for _, tree in trees.values():
        needed_by.update({*tree.blobs})
    pinned, used = store.pins.all(), store.uses.all()
    checkpoints = []
    apart = 0
    for uuid, (registries, tree) in sorted(trees.items()):
        mine = [blob for blob in tree.blobs if blob in here]
        apart += sum([here[blob] for blob in mine])
        once = {*mine}
        checkpoints.append(
            CheckpointUsage(
                uuid=uuid,
                registries=registries,
                files=tree.files,
                missing=tree.files - len(mine),
                size=tree.size,
                here=sum([here[blob] for blob in once]),
                own=sum([here[blob] for blob in once if needed_by[blob] == 1]),
                pinned=uuid in pinned,
                last_used=used[uuid] / 1e9 if uuid in used else None,
            )
        )
    total = sum(here.values())
    own = sum(size for blob, size in here.items() if needed_by[blob] == 1)
    shared = sum(size for blob, size in here.items() if needed_by[blob] > 1)
    return Usage(
        checkpoints=tuple(checkpoints),
        apart=apart,
        own=own,
        shared=shared,
        unreferenced=total - own - shared,
        total=total,
        aside=sum(one.size for one in held(store)),
    )


def presence(store: Store) -> dict[str, Presence]:
    """Say of each checkpoint how much of it is on this disk, by the names of blobs alone."""
    found = {}
    with uncollected():
        here = {*_names(store)}
        pinned = store.pins.all()
        for uuid, (registries, tree) in _trees(store).items():
            missing = tree.files - len([blob for blob in tree.blobs if blob in here])
            found[uuid] = Presence(registries, tree.files, missing, tree.size, uuid in pinned)
    return found


def blobs_here(store: Store) -> dict[Digest, int]:
    """Return the size of every blob on this disk, believed or not, from the folders alone."""
    return {Digest(hex): size for hex, size in _sizes(store).items()}


def _sizes(store: Store) -> dict[str, int]:
    found = {}
    for folder in disk.folders(store.home / "blobs"):
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_hex(hex := folder.name + entry.name):
                    with contextlib.suppress(FileNotFoundError):
                        found[hex] = entry.stat(follow_symlinks=False).st_size
    return found


def _names(store: Store) -> Iterator[str]:
    for folder in disk.folders(store.home / "blobs"):
        above = folder.name
        yield from [above + name for name in disk.names(folder)]


def _trees(store: Store) -> dict[str, tuple[tuple[str, ...], Tree]]:
    """Return registries and tree of every checkpoint that has a readable manifest."""
    registries: dict[str, list[str]] = defaultdict(list)
    manifests: dict[str, dict[Digest, None]] = defaultdict(dict)
    for registry, uuid, digests in store.refs.all():
        registries[uuid].append(registry)
        manifests[uuid].update(dict.fromkeys(digests))
    trees = store.trees.read(digest for wanted in manifests.values() for digest in wanted)
    found = {}
    for uuid, wanted in manifests.items():
        readable = [digest for digest in wanted if digest in trees]
        tree = trees[readable[0]] if len(readable) == 1 else _joined(store, readable)
        if tree is not None:
            found[uuid] = (tuple(registries[uuid]), tree)
    return found


def _joined(store: Store, digests: list[Digest]) -> Tree | None:
    """Return the tree of a checkpoint with several refs, or with none that can be read."""
    joined = union([manifest for digest in digests if (manifest := _read(store, digest)) is not None])
    return None if joined is None else Tree.of(joined)


def _read(store: Store, digest: Digest) -> Manifest | None:
    try:
        return store.refs.get(digest)
    except CasError:  # `check` says what is wrong with it
        return None
