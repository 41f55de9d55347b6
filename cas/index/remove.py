"""Removing: the one way in which checkpoints and bytes leave this disk, for `rm` and for `prune`.

Everything is renamed to `aside/` first, and what is held there is judged by refs, pins, leases and views that are read
again after that: who adds a ref or takes a lease in between gets what they need back (F11, F31). Nothing is written, so
that it works on a disk that is full.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cas.errors import NotFoundError, ProtectedError
from cas.index import aside, disk
from cas.index.aside import Held
from cas.index.digest import Digest
from cas.index.doors import door
from cas.index.leases import Lease, is_alive
from cas.index.needs import Watch
from cas.index.store import Store, explained

log = logging.getLogger("cas.index")

GRACE = 600.0  # seconds that things stay in `aside/` before they are judged once more and deleted


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
    """What was removed: blobs, and the bytes that came back; `later`: bytes that do not come back yet."""

    uuid: str
    blobs: int
    size: int
    later: int = 0  # in use, or in `aside/` for the grace time: `prune` deletes them then
    closed: tuple[Path, ...] = ()  # files that stay: they lie in folders that another user closed


def plan_remove(store: Store, uuid: str) -> RemovePlan:
    """Say what removing a checkpoint would do; changes nothing.

    Raises:
        NotFoundError: the store holds no checkpoint of this UUID.
    """
    registries = tuple(store.refs.registries(uuid))
    if not registries:
        below = [layer.home for layer in store.layers if layer.refs.registries(uuid)]
        instead = f"it is in {below[0]} (read_only_stores)" if below else "`cas ls` lists what is"
        raise NotFoundError(f"checkpoint {uuid} is not in the store {store.home}; {instead}")
    mine: set[Digest] = set()
    others: set[Digest] = set()
    watch = Watch(store)
    for _, other, manifests in store.refs.all():
        for manifest in manifests:
            (mine if other == uuid else others).update(watch.tree(manifest) or ())
    sizes = {digest: _size(store.layout.blob(digest)) for digest in mine}
    gone = tuple(sorted(mine - others))
    size = sum(sizes[digest] for digest in gone)
    return RemovePlan(uuid, registries, gone, size, sum(sizes.values()) - size)


def execute_remove(
    store: Store, plan: RemovePlan, *, force: bool = False, is_only_copy: Callable[[str], bool] = lambda uuid: True
) -> RemoveReport:
    """Remove a checkpoint as planned; a blob that somebody else needs by now stays.

    Args:
        store: the store.
        plan: what `plan_remove` said.
        force: also a checkpoint that somebody uses. What they use stays until they have ended; `prune` deletes it then.
        is_only_copy: whether a checkpoint lies nowhere else.

    Raises:
        ProtectedError: it is pinned; or, without `force`, somebody uses it.
        NotAllowedError: its refs are another user's, who alone can remove it.
    """
    with explained(f"cannot remove checkpoint {plan.uuid}"):
        removal = Removal(store, Watch(store, is_only_copy), at_once=grace_of(store) == 0)
        stayed = removal.take_checkpoints([plan.uuid], force=force)
        if plan.uuid in removal.refused:
            raise removal.refused[plan.uuid]
        if plan.uuid in stayed:
            raise ProtectedError(plan.uuid, stayed[plan.uuid])
        removal.forget_refs()
        left = removal.take_bytes(plan.blobs)
        freed = removal.finish()
    return RemoveReport(plan.uuid, freed.blobs, freed.size, left + removal.waiting, removal.closed)


def grace_of(store: Store) -> float:
    """Return how long (seconds) what is removed by name stays in `aside/`: where hosts see names late, GRACE."""
    return GRACE if store.about.on_network else 0.0


class Removal:
    """One removal under way: first `take_checkpoints`, then `take_bytes`, then `finish`.

    Args:
        store: the store.
        watch: what tells what must stay.
        at_once: delete when finished; else what was taken stays in `aside/` for the grace time.
    """

    def __init__(self, store: Store, watch: Watch, *, at_once: bool) -> None:
        self._store = store
        self._watch = watch
        self._at_once = at_once
        self._refs: list[Held] = []
        self._bytes: list[Held] = []
        self._manifests: set[Digest] = set()
        self._closed: list[Path] = []
        self.refused: dict[str, PermissionError] = {}  # of checkpoints whose refs another user closed to us

    @property
    def closed(self) -> tuple[Path, ...]:
        """What stays because it lies in a folder that another user closed to us."""
        return tuple(sorted(self._closed))

    def take_checkpoints(self, uuids: Iterable[str], *, force: bool = False) -> dict[str, str]:
        """Take the refs of checkpoints away, but of those that are protected; return these, with the reasons.

        With `force`, those that somebody uses go too, and only pins protect. What these users need stays on the disk.
        """
        taken: dict[str, list[Held]] = {}
        manifests: dict[str, set[Digest]] = {}
        for uuid in uuids:
            registries = self._store.refs.registries(uuid)
            manifests[uuid] = {digest for name in registries for digest in self._store.refs.of(name, uuid)}
        protected = self._protected(manifests, force=force)
        for uuid in manifests.keys() - protected.keys():
            try:
                taken[uuid] = aside.take_refs(self._store, uuid)
            except PermissionError as error:
                self.refused[uuid] = error
                self._closed.append(Path(error.filename))
                protected[uuid] = f"{error.filename} is another user's, who alone can remove it"
        # Only now can nobody begin to use them unseen: who claims, reads refs after that.
        late = self._protected({uuid: manifests[uuid] for uuid in taken}, force=force)
        for uuid, found in taken.items():
            if uuid in late:
                for one in found:
                    aside.give_refs_back(self._store, one)
            else:
                self._refs += found
                self._manifests |= manifests[uuid]
                self._store.uses.forget(uuid)
        if force:
            in_use = self._protected({uuid: manifests[uuid] for uuid in taken}, force=False)
            self._watch.keep(manifest for uuid in in_use for manifest in manifests[uuid])
        return protected | late

    def _protected(self, manifests: Mapping[str, set[Digest]], *, force: bool) -> dict[str, str]:
        pinned = self._store.pins.all()
        found = {uuid: f"it is pinned; `cas unpin {uuid}` unpins it" for uuid in manifests if uuid in pinned}
        if force:
            return found
        alive = self._watch.living()
        viewed = self._watch.viewed(alive)
        for uuid, digests in manifests.items():
            users = users_of(uuid, digests, alive, viewed)
            if users and uuid not in found:
                found[uuid] = f"it is in use by {users}"
        return found

    def forget_refs(self) -> None:
        """Delete the refs that were taken: whatever happens now, these checkpoints are no more."""
        for one in self._refs:
            disk.remove_tree(one.path)
        self._refs.clear()

    def take_bytes(
        self, blobs: Iterable[Digest], *, may_be_new: Iterable[Digest] = (), manifests: Iterable[Digest] = ()
    ) -> int:
        """Take blobs away that nobody needs, and views and manifests of the checkpoints that were taken.

        Args:
            blobs: of checkpoints that were taken.
            may_be_new: blobs that no checkpoint needed; one that came while somebody brings a checkpoint stays.
            manifests: that no ref named; likewise.

        Returns:
            The bytes of those that stay because somebody uses them, or because nobody knows what needs them.
        """
        needs = self._watch.needs()
        for manifest in self._manifests - needs.manifests:
            self._take_view(manifest)
        needs = self._watch.needs()  # with the views that somebody entered before they could be closed
        left = 0
        for digest in (*blobs, *self._old(may_be_new, self._store.layout.blob)):
            if digest in needs.digests or needs.unknown:
                left += _size(self._store.layout.blob(digest))
            else:
                self._take(aside.take_blob, digest, self._store.layout.blob(digest))
        for manifest in {*self._manifests, *self._old(manifests, self._store.layout.manifest)} - needs.manifests:
            self._take(aside.take_manifest, manifest, self._store.layout.manifest(manifest))
        return left

    def _take(self, take: Callable[[Store, Digest], Held | None], digest: Digest, path: Path) -> None:
        try:
            held = take(self._store, digest)
        except PermissionError as error:
            log.info("%s cannot be removed: %s", path, error)
            self._closed.append(path)
            return
        if held is not None:
            self._bytes.append(held)

    def _take_view(self, manifest: Digest) -> None:
        try:
            remove_view(self._store, manifest)
        except OSError as error:  # another user's
            log.info("the view of %s cannot be removed: %s", manifest, error)

    def _old(self, digests: Iterable[Digest], name: Callable[[Digest], Path]) -> Iterator[Digest]:
        """Leave out what came since somebody alive began to bring a checkpoint: it may be theirs."""
        begun = [since for lease in self._watch.living().values() for since in lease.claims.values()]
        for digest in digests:
            with contextlib.suppress(OSError):
                if not begun or name(digest).stat().st_ctime_ns < min(begun):
                    yield digest

    @property
    def waiting(self) -> int:
        """The bytes that were taken, and that stay in `aside/` for the grace time."""
        return 0 if self._at_once else sum(one.size for one in self._bytes)

    def finish(self) -> aside.Freed:
        """Give back what is needed by now; delete the rest, at once or later."""
        due = disk.clock(self._store.home) if self._at_once else -1
        return aside.judge(self._store, [*self._bytes, *self._refs], self._watch.needs, claimed=(), due=due)


def remove_view(store: Store, manifest: Digest) -> bool:
    """Remove our view of a manifest unless somebody is inside; return whether it is gone."""
    with door(store.layout.view(manifest)) as found:
        if found is None:
            return True
        if not found.close(lambda id: is_alive(store.layout.lease(id), disk.clock(store.home))):
            return False
        found.empty(store.layout.old_view(manifest))
    return True


def users_of(
    uuid: str, manifests: Iterable[Digest], alive: Mapping[str, Lease], viewed: Mapping[Digest, list[Lease]]
) -> str:
    """Say who uses a checkpoint: who claims it, or is inside a view of it; nothing if nobody does."""
    users = {lease.id: lease.who for lease in alive.values() if uuid in lease.claims}
    users |= {lease.id: lease.who for manifest in manifests for lease in viewed.get(manifest, ())}
    names = sorted(dict.fromkeys(users.values()))
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0
