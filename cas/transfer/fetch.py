"""A pull: list the remote, plan, fetch what is not here, checked, and say what the checkpoint consists of."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from cas.config import Settings
from cas.errors import ChangedError, CheckpointNotFoundError, ContentError
from cas.index.digest import Digest
from cas.index.facts import OriginFact
from cas.index.identity import RemoteIdentity
from cas.index.manifest import FileEntry, Manifest
from cas.index.space import Destination, Need, left_over, require_room
from cas.index.store import Store, explained
from cas.transfer import forks
from cas.transfer.hints import Hints, domain_of
from cas.transfer.large import LargeFiles
from cas.transfer.plan import PullPlan, Unit, plan_pull, pull_key, unit_of
from cas.transfer.progress import Drawer, drawer
from cas.transfer.remote import Listing, Remote, RemoteFile
from cas.transfer.selection import EVERYTHING, Selection
from cas.transfer.session import OnFile, Session
from cas.transfer.sidecars import without_sidecars
from cas.transfer.small import SMALL_AT_ONCE, SmallFiles
from cas.transfer.watched import Watch
from cas.transfer.workers import Workers, wait_all

log = logging.getLogger("cas.transfer")

UNITS_AT_ONCE = 2  # while one unit is hashed to its end and committed, the next one keeps the line busy
LEAVING = 1.0  # seconds that an interrupted pull gives its threads to leave tidily
_ROUNDS = 3  # how often blobs that somebody removes meanwhile are brought again


@dataclass(frozen=True, slots=True)
class PullReport:
    """What a pull did."""

    manifest: Manifest
    proofs: Mapping[str, str]  # path -> what vouched for its bytes: `origin checksum (kind)`, `length only`
    files_fetched: int
    bytes_fetched: int  # read from the remote, again where it had to be
    bytes_resumed: int  # taken over from an interrupted pull
    bytes_here: int
    seconds: float
    bytes_reused: int = 0  # of files that were fetched: copied from other files of the store


def pull(
    store: Store,
    remote: Remote,
    *,
    registry: str,
    uuid: str,
    settings: Settings,
    expected_sizes: Mapping[str, int] | None = None,
    partial: bool = False,
    selection: Selection = EVERYTHING,
    destination: Destination | None = None,
    progress: Drawer | None = None,
    on_file: OnFile | None = None,
    watch: Watch | None = None,
) -> PullReport:
    """Bring a checkpoint's files into the store and say what it consists of.

    Args:
        store: where to.
        remote: where from: everything below it is the checkpoint.
        registry: who knows the checkpoint.
        uuid: its UUID.
        settings: `concurrency`, `verify`, `check_space` and `progress` count here.
        expected_sizes: path -> bytes as the registry has it; names that end in `/` are folders.
        partial: files that the registry names may be missing: the checkpoint was deleted in part.
        selection: which files to bring; of the others the manifest says what they are and where.
        destination: where the caller will place the files besides: whether they fit there is looked at too.
        progress: what draws; default: as the settings say.
        on_file: called once for each file as soon as it is in the store, from any thread, possibly several at once.
        watch: sees whether the pull gets on, and can end it.

    Raises:
        CheckpointNotFoundError: there are no files.
        NotFoundError: none of them is selected.
        ContentError: sizes differ from the registry's, or a file is missing.
        DigestMismatchError: bytes differ twice from the checksum that the origin declares; they were not kept.
        ChangedError: a file was replaced while it was read, and once more while it was read again.
        TransientRemoteError: the remote failed too often; what was fetched is resumed by the next pull.
        NotAllowedError: credentials or permissions are missing.
        NoSpaceError: what is to be fetched will not fit, and nothing was written; or the disk became full, and what
            was fetched is resumed by the next pull.
    """
    draw = progress or drawer(settings.progress, uuid[:8])
    if watch is not None:
        draw = watch.drawer(draw)
    if forks.must_spawn() and (recipe := remote.recipe()) is not None:
        from cas.transfer.spawned import pull_elsewhere

        return pull_elsewhere(
            store,
            recipe,
            registry=registry,
            uuid=uuid,
            settings=settings,
            expected_sizes=expected_sizes,
            partial=partial,
            selection=selection,
            destination=destination,
            draw=draw,
            on_file=on_file,
        )
    with explained(f"cannot write into {store.home}"), store.leases.claim(uuid):
        expected = _Expected(expected_sizes or {}, partial)
        session = Session(store, remote, settings, on_file, watch)
        report = _Pull(session, expected, draw, destination, selection).run(registry, uuid)
        store.uses.note(uuid)
        return report


def fetch_files(
    store: Store, remote: Remote, files: Sequence[RemoteFile], *, settings: Settings, progress: Drawer | None = None
) -> dict[str, Digest]:
    """Bring some files of a remote into the store, and say of no checkpoint that it consists of them.

    Returns:
        The digest of each, by path.

    Raises:
        CasError: as `pull`.
    """
    with explained(f"cannot write into {store.home}"):
        session = Session(store, remote, settings, None)
        work = _Pull(session, _Expected({}, partial=True), progress or drawer(settings.progress, "files"))
        work.fetch(files)
        return {path: entry.digest for path, entry in session.entries.items() if entry.digest is not None}


@dataclass(frozen=True, slots=True)
class _Expected:
    """What a registry says of the files: path → bytes, and whether some may be missing."""

    sizes: Mapping[str, int]
    partial: bool


class _Pull:
    """One pull: the listing, the plan, and the units of work."""

    def __init__(
        self,
        session: Session,
        expected: _Expected,
        draw: Drawer,
        destination: Destination | None = None,
        selection: Selection = EVERYTHING,
    ) -> None:
        self._session = session
        self._selection = selection
        self._expected = expected
        self._destination = destination
        session.begin_twin = destination.begin if destination is not None else None
        self._draw = draw
        self._relisting = threading.Lock()
        self._second_listing: Listing | None = None
        self._facts: Mapping[RemoteIdentity, OriginFact] = {}
        self._hints = Hints(session, None)

    def run(self, registry: str, uuid: str) -> PullReport:
        """Pull."""
        began, session = time.monotonic(), self._session
        self._hints = Hints(session, domain_of(registry, uuid, session.remote))
        self._hints.begin()
        listing, absent = self._selected(self._list())
        first = plan = self._plan(listing)
        if session.settings.check_space:
            self._require_room(plan, listing)
        with self._shown(plan, pull_key(registry, uuid, self._selection)):
            for _ in range(_ROUNDS):
                log.info("%s: %s", session.remote.url, plan)
                self._execute(plan)
                manifest = Manifest.of([*session.entries.values(), *absent], listing.directories)
                if not session.store.tag(registry, uuid, manifest):
                    break
                self._second_listing, plan = None, self._plan(listing)
        session.store.seal_later(entry.digest for entry in manifest.files if entry.digest is not None)
        return PullReport(
            manifest=manifest,
            proofs=session.proofs,
            files_fetched=session.files_fetched,
            bytes_fetched=session.bytes_fetched,
            bytes_resumed=session.bytes_resumed,
            bytes_reused=session.bytes_reused,
            bytes_here=first.bytes_here,
            seconds=time.monotonic() - began,
        )

    def fetch(self, files: Sequence[RemoteFile]) -> None:
        """Bring files that were listed."""
        self._execute(self._plan(Listing(tuple(files))))

    def _list(self) -> Listing:
        return list_files(self._session.remote, self._expected.sizes, partial=self._expected.partial)

    def _selected(self, listing: Listing) -> tuple[Listing, list[FileEntry]]:
        """Return what to bring, and what a manifest says of the other files: their digest, if they are here."""
        if self._selection.is_everything:
            return listing, []
        wanted = self._selection.of_listing(listing)
        rest = [file for file in listing.files if not self._selection.takes(file.path)]
        store = self._session.store
        facts = store.facts.origins(file.identity for file in rest)

        def entry(file: RemoteFile) -> FileEntry:
            fact = facts.get(file.identity)
            digest = fact.digest if fact is not None and store.has(fact.digest) else None
            return FileEntry(file.path, file.size, digest, file.identity, executable=file.executable)

        return wanted, list(map(entry, rest))

    def _plan(self, listing: Listing) -> PullPlan:
        store = self._session.store
        store.facts.settle()
        facts = self._facts = store.facts.origins(file.identity for file in listing.files)

        def known(identity: RemoteIdentity) -> Digest | None:
            return facts[identity].digest if identity in facts else None

        return plan_pull(listing, known, store.has)

    def _require_room(self, plan: PullPlan, listing: Listing) -> None:
        """Refuse what will not fit; the room that an interrupted transfer of a large file takes is used again."""
        store, there = self._session.store, self._destination
        size = sum(
            max(unit.size - (left_over(store.layout, unit.key) if unit.is_large else 0), 0) for unit in plan.units
        )
        incoming = Need(store.home, size, plan.files_to_fetch)
        placed = None if there is None else there.need((file.path, file.size) for file in listing.files)
        require_room(store, incoming, f"cannot fetch {self._session.remote.url}", destination=there, placed=placed)

    @contextlib.contextmanager
    def _shown(self, plan: PullPlan, key: str) -> Iterator[None]:
        """Let processes that wait for this pull see that its units make progress."""
        store = self._session.store
        if not plan.units:
            yield
            return
        staging = store.staging(key)
        try:
            staging.name_parts(store.layout.ingest(unit.key) for unit in plan.units)
            yield
        finally:
            staging.close()

    def _execute(self, plan: PullPlan) -> None:
        session = self._session
        for file, digest in plan.here:
            session.take(file, digest, self._facts[file.identity].proof)
        if plan.units:
            session.store.facts.make_file()
        count, stop = session.settings.concurrency, session.stop
        units = Workers(UNITS_AT_ONCE, stop, "cas-unit")
        ranges = Workers(count, stop, "cas-fetch")
        wholes = Workers(count * SMALL_AT_ONCE, stop, "cas-small")
        large, small = LargeFiles(session, ranges, self._hints), SmallFiles(session, wholes, self._hints)
        with self._draw(plan.bytes_to_fetch, plan.bytes_here) as advance, session.store.facts.grouped():
            session.advance = advance
            try:
                with units, ranges, wholes:
                    wait_all([units.submit(self._unit, unit, large, small) for unit in plan.units], stop)
            except BaseException:
                stop.set()
                units.join(LEAVING)
                raise

    def _unit(self, unit: Unit, large: LargeFiles, small: SmallFiles, *, again: bool = False) -> None:
        store = self._session.store
        with store.exclusive(unit.key):
            self._session.proceed()
            wanted = self._look_again(unit)
            if not wanted:
                return
            changed = large.fetch(unit.key, wanted[0]) if unit.is_large else small.fetch(unit.key, wanted)
            store.facts.flush()  # before others get the lock, and look
        for file in changed:
            if again:
                raise ChangedError(f"{file.identity.url} was replaced twice while it was read; try again later")
            self._unit(unit_of(self._now(file)), large, small, again=True)

    def _look_again(self, unit: Unit) -> list[RemoteFile]:
        """Return what is still to be fetched: another process may have done the work while we waited."""
        session = self._session
        facts = session.store.facts.origins(file.identity for file in unit.files)
        wanted = []
        for file in unit.files:
            fact = facts.get(file.identity)
            if fact is not None and session.store.has(fact.digest):
                session.take(file, fact.digest, fact.proof)
                session.advance(file.size)
            else:
                wanted.append(file)
        return wanted

    def _now(self, file: RemoteFile) -> RemoteFile:
        """Return a file that was replaced as it is listed now; the remote is listed a second time at most."""
        with self._relisting:
            if self._second_listing is None:
                log.info("%s was replaced while it was read; listing again", file.identity.url)
                self._second_listing = self._list()
            for found in self._second_listing.files:
                if found.path == file.path:
                    return found
        raise ChangedError(f"{file.identity.url} was removed while it was read")


def list_files(remote: Remote, expected: Mapping[str, int], *, partial: bool) -> Listing:
    """Return what a remote holds of a checkpoint, compared with what a registry knows of it.

    Raises:
        CheckpointNotFoundError: there are no files.
        ContentError: a size differs, or a file is missing and may not be.
    """
    listing = without_sidecars(remote.list())
    if not listing.files and not listing.directories:
        raise CheckpointNotFoundError(f"there are no files at {remote.url}")
    check_sizes(listing, expected, url=remote.url, partial=partial)
    return listing


def check_sizes(listing: Listing, expected: Mapping[str, int], *, url: str, partial: bool) -> None:
    """Compare a listing with what a registry knows of the checkpoint's files.

    Raises:
        ContentError: a size differs, or a file is missing and may not be.
    """
    found = {str(file.path): file.size for file in listing.files}
    for name, size in expected.items():
        if name.endswith("/"):
            continue
        if name in found and found[name] != size:
            raise ContentError(f"{url}: {name} has {found[name]} bytes, but its record says {size}")
        if name not in found and not partial:
            raise ContentError(
                f"{url}: {name} is missing, but the checkpoint's record names it{_more(expected, found)}"
            )


def _more(expected: Mapping[str, int], found: Iterable[str]) -> str:
    count = len({name for name in expected if not name.endswith("/")} - set(found)) - 1
    return f" ({count} more are missing too)" if count else ""
