"""The store: one home on this disk, and the door to everything in it."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from cas.config import Network, Settings, Shared
from cas.errors import CasError, ContentError
from cas.index import blobs as blobs_module
from cas.index import disk, locks, place, refs
from cas.index.blobs import Blobs
from cas.index.chunkstore import Chunks
from cas.index.digest import Digest
from cas.index.doors import door
from cas.index.facts import Facts
from cas.index.ingest import Follower, Ingest, Staging
from cas.index.layout import Layout, is_groups, prepare
from cas.index.layout import check_uuid as check_uuid
from cas.index.leases import Leases
from cas.index.manifest import Manifest
from cas.index.marks import Pins, Uses
from cas.index.mounts import file_system, is_network
from cas.index.owners import Owners
from cas.index.records import Records
from cas.index.refs import Refs
from cas.index.seal import Sealer
from cas.index.sqlindex import SqlIndex

log = logging.getLogger("cas.index")

STALL = 60.0  # seconds without progress after which a lock is no longer waited for


class Store:
    """One home. Opening it is cheap; it may be shared by threads and used after a fork.

    Args:
        home: the folder; made if it does not exist.
        stall: seconds without progress after which a lock is no longer waited for.
        shared: make it a group's store, if it is made now; one that is there is what its mode says.
        network: whether the home is on a network file system; default: as its mount says.

    Raises:
        NotAllowedError: the home cannot be made or read.
        ContentError: it is a newer cas' store.
    """

    def __init__(
        self, home: Path, *, stall: float = STALL, shared: bool = False, network: Network = Network.AUTO
    ) -> None:
        self.home = home.absolute()
        self.stall = stall
        self.on_network = _is_on_network(self.home, network)
        self.format = prepare(self.home, shared=shared, network=self.on_network)
        self.id = self.format.store
        self.read_only = not disk.is_writable(self.home)
        self.shared = is_groups(self.home)
        self.locks_are_leases = self.on_network or self.format.locks == "lease"
        if self.shared:
            disk.share(self.home)
        self.owners = Owners.of(self.home)
        self.layout = self._lay_out()
        self.index = SqlIndex(
            self.layout, self.id, self.owners, folder=self._index_folder(), shared=self.shared and not self.read_only
        )
        self.facts = Facts(self.layout, self.index)
        self.records = Records(self.layout, self.index)
        safety = {"network": self.on_network, "read_only": self.read_only}
        self.blobs = Blobs(self.layout, self.facts, self.owners, **safety)
        self.refs = Refs(self.layout, self.owners, read_only=self.read_only)
        self.chunks = Chunks(self.layout, self._index_folder())
        self.leases = Leases(self.layout)
        self.pins = Pins(self.layout)
        self.uses = Uses(self.layout)
        self.blobs.on_bad(self._drop_views_of)
        self.blobs.on_new(self.chunks.note_parts)
        self._sealer = Sealer(self.blobs)

    def _lay_out(self) -> Layout:
        if self.read_only:
            kept, temporary = place.kept(self.id, self.home), place.temporary(self.id, self.home)
            views = temporary / "views" if temporary is not None else self.home / "views"
            return Layout(self.home, kept or self.home, views)
        if self.shared:  # what another member made proves nothing: everybody has views of their own
            return Layout(self.home, views=self._own_views())
        return Layout(self.home)

    def _own_views(self) -> Path:
        views = self.home / "views" / str(os.geteuid())
        with contextlib.suppress(OSError):
            if place.is_private(views, make=True, mode=0o755):
                return views
        temporary = place.temporary(self.id, self.home)
        log.warning("%s is another user's, or others may write there: views are made in %s", views, temporary)
        return temporary / "views" if temporary is not None else views

    def _index_folder(self) -> Path | None:
        """Return where the index lies: never where another user could touch it, or another host."""
        if self.read_only or self.shared or self.on_network:
            return place.kept(self.id, self.home)
        return self.home

    # --- bytes in ------------------------------------------------------------------------------------------

    def staging(self, key: str) -> Staging:
        """Make a folder of our own for the partial files of one piece of work, named by `key`."""
        return Staging(self.layout.ingest(key), self.blobs, leases=self.locks_are_leases)

    def building(self, manifest: Digest) -> Staging:
        """Make a folder of our own in which a view is built."""
        return Staging(self.layout.building(manifest), self.blobs, leases=self.locks_are_leases)

    @contextlib.contextmanager
    def ingest(self, *, expected_size: int | None = None, followers: tuple[Follower, ...] = ()) -> Iterator[Ingest]:
        """Write one blob: removed unless committed."""
        with explained(f"cannot write into {self.home}"):
            staging = self.staging("one file")
            try:
                with staging.ingest(expected_size, followers=followers) as ingest:
                    yield ingest
            finally:
                staging.close()

    def put(self, data: bytes, *, durable: bool = False) -> Digest:
        """Store some bytes in memory as a blob."""
        with self.ingest(expected_size=len(data)) as ingest:
            ingest.write(data)
            return ingest.commit(durable=durable)

    # --- checkpoints -----------------------------------------------------------------------------------------

    def tag(self, registry: str, uuid: str, manifest: Manifest, *, durable: bool = False) -> list[Digest]:
        """Say that a checkpoint consists of a manifest's files, then look again for every blob.

        Returns:
            The digests whose blobs are absent: somebody removed them in between. The caller brings them again.
        """
        check_uuid(uuid)
        with explained(f"cannot write into {self.home}"):
            staging = self.staging("manifest")
            try:
                digest = self.refs.put(manifest, staging.folder, durable=durable)
            finally:
                staging.close()
            path = self.refs.tag(registry, uuid, digest, durable=durable)
            while self.refs.get(digest) is None:  # somebody removed another checkpoint of the same files
                with self.staging("manifest") as again:
                    self.refs.put(manifest, again.folder, durable=durable)
            if durable:
                self._sync_names(manifest, [path.parent, path.parent.parent, path.parent.parent.parent])
        self.blobs.drop_healed()
        return self.absent(manifest)

    def _sync_names(self, manifest: Manifest, folders: list[Path]) -> None:
        wanted = dict.fromkeys(folders)
        for entry in manifest.files:
            if entry.digest is not None:
                wanted.update(dict.fromkeys(self.blobs.folders(entry.digest)))
        path = self.layout.manifest(manifest.digest)
        wanted.update(dict.fromkeys([path.parent, path.parent.parent, self.home]))
        for folder in wanted:
            with contextlib.suppress(FileNotFoundError):  # of a blob that somebody removed in between
                disk.sync_folder(folder)

    def resolve(self, registry: str, uuid: str) -> Manifest | None:
        """Return what a checkpoint consists of, as far as this store knows; None if it knows nothing.

        The registry's own refs count first, then what was added locally, then any other registry's: a UUID
        names one checkpoint, whoever tells of it. Not so what came from a bare URL, where anybody chooses the UUID.
        """
        check_uuid(uuid)
        names = dict.fromkeys([registry, "local", *self.refs.registries(uuid)])
        if registry != refs.PULLED:
            names.pop(refs.PULLED, None)
        if self.shared:  # what we brought ourselves, no other member changes
            ours = self._join(names, uuid, ours=True)
            if ours is not None and ours.complete:
                return ours
        return self._join(names, uuid)

    def _join(self, names: Iterable[str], uuid: str, *, ours: bool = False) -> Manifest | None:
        best: Manifest | None = None
        for name in names:
            found = [manifest for digest in self.refs.of(name, uuid, ours=ours) if (manifest := self.refs.get(digest))]
            joined = refs.union(found)
            if joined is not None and joined.complete:
                return joined
            best = best or joined
        return best

    def absent(self, manifest: Manifest) -> list[Digest]:
        """Return the digests of a manifest whose blobs are not here."""
        wanted = {entry.digest: entry.size for entry in manifest.files if entry.digest is not None}
        return [
            digest
            for digest, size in wanted.items()
            if not self.layout.blob(digest).exists() and not self.has(digest, size)
        ]

    def has(self, digest: Digest, size: int | None = None) -> bool:
        """Whether a blob (of this size) is here and can be believed; it is hashed if no usable fact says so."""
        return self.blobs.locate(digest, size) is not None

    def drop_view(self, manifest: Digest) -> None:
        """Take the view of a manifest away, also from who is inside: it is wrong. Whoever wants one makes it again."""
        with door(self.layout.view(manifest)) as found:
            if found is not None and found.close():
                found.empty(self.layout.old_view(manifest))

    def _drop_views_of(self, digest: Digest) -> None:
        """Take the views away that may link to a bad file (invariant 5)."""
        for name in disk.names(self.layout.views):
            with contextlib.suppress(ContentError):
                manifest = Digest(name)
                if self._needs(manifest, digest):
                    self.drop_view(manifest)

    def _needs(self, manifest: Digest, digest: Digest) -> bool:
        try:
            found = self.refs.get(manifest)
        except ContentError:
            return True
        return found is None or any(entry.digest == digest for entry in found.files)

    def seal_later(self, digests: Iterable[Digest]) -> None:
        """Let a low-priority thread make blobs survive a power cut."""
        self._sealer.add(digests)

    # --- other processes -------------------------------------------------------------------------------------

    def exclusive(self, key: str) -> contextlib.AbstractContextManager[locks.Hold]:
        """Hold the lock of a piece of work, so that nobody else does the same; yield whether it is held.

        Waits while the holder's staging folders for the same key grow, and no longer.
        """
        folder = self.layout.ingest(key)
        return locks.exclusive(
            self.layout.lock(key),
            progress=lambda: _activity(folder),
            stall=self.stall,
            lease=locks.LEASE if self.locks_are_leases else None,
            mode=0o660 if self.shared else 0o644,
        )

    def close(self) -> None:
        """Close what is open, and protect nothing any more; the store opens it again when it is needed."""
        self.leases.release()
        self.index.close()


def _activity(folder: Path) -> object:
    """What changes while somebody works in a staging folder."""
    found = []
    with contextlib.suppress(OSError):
        for path in sorted(folder.glob("*/*")):
            with contextlib.suppress(OSError):
                stat = path.stat()
                found.append((path.name, stat.st_size, stat.st_mtime_ns))
    return found


@contextlib.contextmanager
def explained(doing: str) -> Iterator[None]:
    """Turn errors of the disk into one clear line."""
    try:
        yield
    except OSError as error:
        known = blobs_module.explain(error, doing)
        if isinstance(known, CasError):
            raise known from error
        raise


def _is_on_network(home: Path, network: Network) -> bool:
    if network is not Network.AUTO:
        return network is Network.YES
    kind = file_system(home)
    if is_network(kind):
        known = kind or "an unknown file system"
        advice = "put CAS_HOME on a local disk, or say CAS_NETWORK=yes (so it is meant), or no (only this host uses it)"
        log.warning("the store %s is on %s, which counts as a network file system: %s", home, known, advice)
    return is_network(kind)


_stores_lock = locks.ThreadLock()
_stores: dict[tuple[int, Path], Store] = {}


def open_store(home: Path, *, stall: float = STALL, settings: Settings | None = None) -> Store:
    """Return this process's store of a home; the same object each time."""
    key = (os.getpid(), home.absolute())
    with _stores_lock:
        if key not in _stores or not (home / "format.json").exists():
            _stores[key] = Store(home, **_options(settings))
        _stores[key].stall = stall
        return _stores[key]


def _options(settings: Settings | None) -> dict[str, Any]:
    if settings is None:
        return {}
    return {"shared": settings.shared is Shared.GROUP, "network": settings.network}


def store_of(settings: Settings) -> Store:
    """Return this process's store as the settings say: its home, how to wait, what lies below it."""
    return open_store(settings.home, stall=settings.lock_stall, settings=settings)
