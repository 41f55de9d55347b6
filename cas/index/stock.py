"""The stock: everything that a prune has to know of a store, read once. Reads no blob, and changes nothing."""

from __future__ import annotations

import contextlib
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from cas.errors import ContentError
from cas.index import disk
from cas.index.aside import Held, What, held
from cas.index.digest import Digest
from cas.index.garbage import uncollected
from cas.index.leases import Lease, ended
from cas.index.locks import is_abandoned
from cas.index.needs import Needs, Watch, views
from cas.index.remove import users_of
from cas.index.store import Store

log = logging.getLogger("cas.index")

SILENT = 86_400.0  # seconds without a write after which a transfer is taken for a dead one's where locks tell nothing


class Kind(StrEnum):
    """What is left over."""

    TRANSFER = "abandoned transfer"
    ASIDE = "put aside"
    VIEW = "view of nothing"
    LEASE = "ended lease"


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something that takes room and that nobody needs; `since`: when it was last changed (ns, by the disk's clock)."""

    kind: Kind
    path: Path
    size: int
    since: int


class StoredBlob(NamedTuple):
    """One blob on the disk: bytes, when it got its name (ns), and how many names its file has, anywhere."""

    size: int
    since: int = 0
    names: int = 1
    inode: int = 0


@dataclass(frozen=True, slots=True)
class StoredView:
    """One view: how many of its files are links to an inode, the bytes of those that are copies, who is inside."""

    links: Mapping[int, int]
    copied: int
    in_use: bool


@dataclass(frozen=True, slots=True)
class StoredCheckpoint:
    """One checkpoint, as a prune sees it."""

    uuid: str
    registries: tuple[str, ...]
    manifests: frozenset[Digest]
    blobs: frozenset[Digest]
    last_used: int  # ns, by the disk's clock
    only_copy: bool = False  # lies nowhere else
    pinned: bool = False
    users: str = ""  # who uses it now, for people


@dataclass(frozen=True, slots=True)
class Stock:
    """What a store holds at one moment (`now`: ns, by the disk's clock)."""

    now: int
    checkpoints: tuple[StoredCheckpoint, ...]
    blobs: Mapping[Digest, StoredBlob]
    views: Mapping[Digest, StoredView] = field(default_factory=dict)
    leftovers: tuple[Leftover, ...] = ()
    unknown: tuple[str, ...] = ()  # checkpoints with no origin, of which nobody can tell what they need
    needed: frozenset[Digest] = frozenset()  # by views in use whose checkpoint is no more
    orphans: Mapping[Digest, int] = field(default_factory=dict)  # manifests that no ref names, and since when
    bringing_since: int | None = None  # when the first of those who bring a checkpoint now began
    alive: tuple[str, ...] = ()  # who uses the store now


def take_stock(store: Store, is_only_copy: Callable[[str], bool] = lambda uuid: True) -> Stock:
    """Look at everything."""
    with uncollected():
        return _take_stock(store, is_only_copy)


def _take_stock(store: Store, is_only_copy: Callable[[str], bool]) -> Stock:
    watch = Watch(store, is_only_copy, planning=True)
    alive = watch.living()
    viewed = watch.viewed(alive)
    now = disk.clock(store.home)
    needs = watch.needs()
    checkpoints = tuple(_checkpoints(store, watch, alive, viewed, is_only_copy, now))
    named = {manifest for one in checkpoints for manifest in one.manifests}
    begun = [since for lease in alive.values() for since in lease.claims.values()]
    users = {lease.id: lease.who for lease in alive.values() if lease.claims}
    users |= {lease.id: lease.who for leases in viewed.values() for lease in leases}
    users.pop(store.leases.id or "", None)
    return Stock(
        now=now,
        checkpoints=checkpoints,
        blobs=dict(_blobs(store)),
        views=dict(_views(store, viewed.keys())),
        leftovers=tuple(_leftovers(store, needs, now)),
        unknown=needs.unknown,
        orphans=dict(_orphans(store, needs)),
        needed=frozenset(d for manifest in viewed.keys() - named for d in watch.tree(manifest) or ()),
        bringing_since=min(begun, default=None),
        alive=tuple(sorted(users.values())),
    )


def _checkpoints(
    store: Store,
    watch: Watch,
    alive: Mapping[str, Lease],
    viewed: Mapping[Digest, list[Lease]],
    is_only_copy: Callable[[str], bool],
    now: int,
) -> Iterator[StoredCheckpoint]:
    registries: dict[str, list[str]] = defaultdict(list)
    manifests: dict[str, set[Digest]] = defaultdict(set)
    for registry, uuid, digests in store.refs.all():
        if digests:
            registries[uuid].append(registry)
            manifests[uuid].update(digests)
    pinned, used = store.pins.all(), store.uses.all()
    for uuid, digests_of in sorted(manifests.items()):
        users = users_of(uuid, digests_of, alive, viewed)
        yield StoredCheckpoint(
            uuid=uuid,
            registries=tuple(registries[uuid]),
            manifests=frozenset(digests_of),
            blobs=frozenset(digest for manifest in digests_of for digest in watch.tree(manifest) or ()),
            last_used=now if users else used[uuid] if uuid in used else max(store.refs.added(uuid), default=0),
            only_copy=is_only_copy(uuid),
            pinned=uuid in pinned,
            users=users,
        )


def _blobs(store: Store) -> Iterator[tuple[Digest, StoredBlob]]:
    for folder in disk.folders(store.home / "blobs"):
        with os.scandir(folder) as entries:
            for entry in entries:
                with contextlib.suppress(ContentError, FileNotFoundError):
                    stat = entry.stat(follow_symlinks=False)
                    blob = StoredBlob(stat.st_size, stat.st_ctime_ns, stat.st_nlink, stat.st_ino)
                    yield Digest(folder.name + entry.name), blob


def _orphans(store: Store, needs: Needs) -> Iterator[tuple[Digest, int]]:
    for manifest in store.refs.manifests():
        if manifest not in needs.manifests:
            with contextlib.suppress(FileNotFoundError):
                yield manifest, store.layout.manifest(manifest).stat().st_ctime_ns


def _views(store: Store, in_use: Collection[Digest]) -> Iterator[tuple[Digest, StoredView]]:
    for manifest, view in views(store):
        links: Counter[int] = Counter()
        copied = 0
        for stat in _files(view / "tree"):
            if stat.st_nlink > 1:
                links[stat.st_ino] += 1
            else:
                copied += stat.st_size
        yield manifest, StoredView(links, copied, manifest in in_use)


def _leftovers(store: Store, needs: Needs, now: int) -> Iterator[Leftover]:
    for name in disk.names(store.home / "ingest"):
        for inner in disk.names(store.home / "ingest" / name):
            found = abandoned(store.home / "ingest" / name / inner, now)
            if found is not None:
                yield found
    for one in held(store):
        if one.what is not What.LEASE and not _is_missed(store, one, needs):
            yield Leftover(Kind.ASIDE, one.path, one.size if one.names == 1 else 0, one.since)
    for manifest, view in views(store):
        if view.parent == store.layout.views and (manifest not in needs.manifests or not (view / "users").exists()):
            with contextlib.suppress(OSError):
                yield Leftover(Kind.VIEW, view, 0, view.stat().st_mtime_ns)
    for id in ended(store.layout, now):
        yield Leftover(Kind.LEASE, store.layout.lease(id), 0, 0)


def _is_missed(store: Store, one: Held, needs: Needs) -> bool:
    """Whether something in `aside/` is all that is left of what a checkpoint needs; it stays, also if it is damaged."""
    if one.what is What.BLOB and one.digest is not None:
        return one.digest in needs.digests and not store.layout.blob(one.digest).exists()
    return False


def abandoned(folder: Path, now: int) -> Leftover | None:
    """Say what a dead process left in a folder of `ingest/`; None if it may be alive."""
    try:
        files = list(_files(folder))
        last = max(stat.st_mtime_ns for stat in (*files, folder.stat()))
    except FileNotFoundError:
        return None
    if not folder.is_dir() or (not is_abandoned(folder / "claim") and (now - last) / 1e9 < SILENT):
        return None
    return Leftover(Kind.TRANSFER, folder, sum(stat.st_blocks * 512 for stat in files), last)


def _files(folder: Path) -> Iterator[os.stat_result]:
    for above, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                yield os.lstat(f"{above}/{name}")
