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
from cas.index import disk, locks, refs
from cas.index.blobs import Blobs
from cas.index.chunkstore import Chunks
from cas.index.digest import Digest
from cas.index.doors import door
from cas.index.facts import Facts
from cas.index.home import Home
from cas.index.ingest import Follower, Ingest
from cas.index.layout import GUARDED
from cas.index.layout import check_uuid as check_uuid
from cas.index.leases import Leases, is_alive
from cas.index.manifest import Manifest
from cas.index.marks import Pins, Uses
from cas.index.records import Records
from cas.index.refs import Refs
from cas.index.seal import Sealer
from cas.index.sqlindex import SqlIndex
from cas.index.staging import Staging, activity
from cas.index.stamps import Stamp
from cas.index.trees import Trees

log = logging.getLogger("cas.index")

STALL = 60.0  # seconds without progress after which a lock is no longer waited for


class Store:
    """One home. Opening it is cheap; it may be shared by threads and used after a fork.

    Args:
        home: the folder; made if it does not exist.
        stall: seconds without progress after which a lock is no longer waited for.
        shared: make it a group's store, if it is made now; one that is there is what its mode says.
        network: whether the home is on a network file system; default: as its mount says.
        layer: change nothing in it; it must exist.

    Raises:
        NotAllowedError: the home cannot be made or read.
        ContentError: it is a newer cas' store.
    """

    def __init__(
        self,
        home: Path,
        *,
        stall: float = STALL,
        shared: bool = False,
        network: Network = Network.AUTO,
        layer: bool = False,
    ) -> None:
        path = home.absolute()
        opened = Home.open_layer(path) if layer else Home.open(path, shared=shared, network=network)
        if opened.shared:
            disk.refuse_links(path, GUARDED)
        self.home = path
        self.about = opened
        self.stall = stall
        self.id = opened.format.store
        self.read_only = opened.read_only
        self.owners = opened.owners
        self.layout = opened.layout
        self.layers: tuple[Store, ...] = ()
        self._layers_wanted: tuple[Path, ...] = ()
        self.index = SqlIndex(self.layout, self.id, self.owners, folder=opened.index_folder, shared=opened.shared)
        self.facts = Facts(self.layout, self.index)
        self.records = Records(self.layout, self.index)
        kind = {"network": opened.on_network, "read_only": opened.read_only, "image": opened.is_image}
        self.blobs = Blobs(self.layout, self.facts, self.owners, **kind)
        self.refs = Refs(self.layout, self.owners, read_only=opened.read_only)
        self.trees = Trees(self.layout, self.owners, self.refs, self.index)
        self.chunks = Chunks(self.layout, opened.index_folder)
        self.leases = Leases(self.layout)
        self.pins = Pins(self.layout)
        self.uses = Uses(self.layout)
        self.blobs.on_bad(self._doubt_views_of)
        self.blobs.on_new(self.chunks.note_parts)
        self._sealer = Sealer(self.blobs)

    def use_layers(self, homes: Iterable[Path]) -> None:
        """Use what other homes have where this one has it not; one that cannot be used is said, once."""
        wanted = tuple(home for one in homes if (home := one.absolute()) != self.home)
        if wanted != self._layers_wanted:
            self._layers_wanted = wanted
            self._set_layers(layer for home in wanted if (layer := _open_layer(home)) is not None)

    def _set_layers(self, layers: Iterable[Store]) -> None:
        self.layers = tuple(layers)
        self.blobs.layers = tuple(layer.blobs for layer in self.layers)
        self.facts.layers = tuple(layer.facts for layer in self.layers)
        self.records.layers = tuple(layer.records for layer in self.layers)
        self.chunks.layers = tuple(layer.chunks for layer in self.layers)

    def _drop_lost_layers(self) -> None:
        """Go on without layers that are gone: unmounted, removed."""
        lost = [layer for layer in self.layers if not (layer.home / "format.json").exists()]
        for layer in lost:
            log.warning("the store %s (read_only_stores) is gone; what it had is fetched", layer.home)
        if lost:
            self._set_layers(layer for layer in self.layers if layer not in lost)

    # --- bytes in ------------------------------------------------------------------------------------------

    def staging(self, key: str) -> Staging:
        """Make a folder of our own for the partial files of one piece of work, named by `key`.

        Raises:
            NotAllowedError: this home is only read.
        """
        self.about.require_writable("nothing can be added here")
        return Staging(self.layout.ingest(key), self.blobs, leases=self.about.locks_are_leases)

    def building(self, manifest: Digest) -> Staging:
        """Make a folder of our own in which a view is built."""
        return Staging(self.layout.building(manifest), self.blobs, leases=self.about.locks_are_leases)

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
        What this home does not know wholly is asked of its layers.
        """
        check_uuid(uuid)
        best = self._resolve_here(registry, uuid)
        if best is not None and best.complete:
            return best
        self._drop_lost_layers()
        for layer in self.layers:
            found = layer._resolve_here(registry, uuid)
            if found is not None and found.complete:
                return found
            best = best or found
        return best

    def sole(self, registry: str, uuid: str) -> Digest | None:
        """Return the manifest that `resolve` gives, if that is sure without reading one and if it is complete.

        It is where the registry has a single ref of the checkpoint: then it is that one, or not all is known.
        """
        check_uuid(uuid)
        found = self.refs.of(registry, uuid, ours=self.about.shared)
        return found[0] if len(found) == 1 else None

    def _resolve_here(self, registry: str, uuid: str) -> Manifest | None:
        names = dict.fromkeys([registry, "local", *self.refs.registries(uuid)])
        if registry != refs.PULLED:
            names.pop(refs.PULLED, None)
        if self.about.shared:  # what we brought ourselves, no other member changes
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

    def doubt_view(self, manifest: Digest, wrong: Iterable[str]) -> None:
        """Let nobody begin to use a view, for some files in it are wrong, and take these away.

        All of it goes, unless somebody is inside. They keep the other files, and their folder: whoever wants the view
        next puts right files into it.
        """
        now = 0  # where nothing can be written, no lease counts
        with contextlib.suppress(OSError):
            now = disk.clock(self.layout.root)
        with door(self.layout.view(manifest)) as found:
            if found is not None:
                found.doubt(wrong)
                if found.close(lambda id: now > 0 and is_alive(self.layout.lease(id), now)):
                    found.empty(self.layout.old_view(manifest))

    def _doubt_views_of(self, digest: Digest) -> None:
        """Doubt the views that may link to a bad file (invariant 5)."""
        for name in disk.names(self.layout.views):
            with contextlib.suppress(ContentError):
                manifest = Digest(name)
                if (wrong := self._names_of(manifest, digest)) is not None:
                    self.doubt_view(manifest, wrong)

    def _names_of(self, manifest: Digest, digest: Digest) -> list[str] | None:
        """Return the names under which a view leads to a blob, as its manifest says, else its stamp; None if it does
        not. Where nothing says so, it may, under no known name.
        """
        with contextlib.suppress(ContentError):
            found = self.refs.get(manifest)
            if found is not None:
                return [entry.path for entry in found.files if entry.digest == digest] or None
        stamp = Stamp.read(self.layout.view(manifest))  # of a lost manifest, it may be all that says what was in it
        if stamp is None:
            return []
        files = zip(stamp.files.paths, stamp.files.digests, strict=True)
        return [path for path, hex in files if hex == digest.hex] or None

    def seal_later(self, digests: Iterable[Digest]) -> None:
        """Let a low-priority thread make blobs survive a power cut."""
        self._sealer.add(digests)

    # --- other processes -------------------------------------------------------------------------------------

    def exclusive(self, key: str) -> contextlib.AbstractContextManager[locks.Hold]:
        """Hold the lock of a piece of work, so that nobody else does the same; yield whether it is held.

        Waits while the holder's staging folders for the same key grow, or those that they name as parts; no longer.
        """
        folder = self.layout.ingest(key)
        return locks.exclusive(
            self.layout.lock(key),
            progress=lambda: activity(folder),
            stall=self.stall,
            lease=locks.LEASE if self.about.locks_are_leases else None,
            mode=0o660 if self.about.shared else 0o644,
        )

    def close(self) -> None:
        """Close what is open, and protect nothing any more; the store opens it again when it is needed."""
        self.leases.release()
        self.index.close()


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


def _open_layer(home: Path) -> Store | None:
    try:
        return Store(home, layer=True)
    except (OSError, CasError) as error:
        log.warning("%s (read_only_stores) is not used: %s", home, error)
        return None


_stores_lock = locks.ThreadLock()
_stores: dict[tuple[int, Path], Store] = {}


def open_store(home: Path, *, stall: float = STALL, settings: Settings | None = None) -> Store:
    """Return this process's store of a home; the same object each time."""
    key = (os.getpid(), home.absolute())
    with _stores_lock:
        if key not in _stores or not (home / "format.json").exists():
            _stores[key] = Store(home, **_options(settings))
        _stores[key].stall = stall
        if settings is not None:
            _stores[key].use_layers(settings.read_only_stores)
        return _stores[key]


def forget_store(store: Store) -> None:
    """Open a home anew when it is asked for next: it is no longer what it was."""
    with _stores_lock:
        for key in [key for key, known in _stores.items() if known.home == store.home]:
            del _stores[key]


def _options(settings: Settings | None) -> dict[str, Any]:
    if settings is None:
        return {}
    return {"shared": settings.shared is Shared.GROUP, "network": settings.network}


def store_of(settings: Settings) -> Store:
    """Return this process's store as the settings say: its home, how to wait, what lies below it."""
    return open_store(settings.home, stall=settings.lock_stall, settings=settings)
