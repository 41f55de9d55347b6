"""Records of archives that the hosts of a job bring together: what `load(only="model")` needs of files of torch.

One host reads which records these are. Each reads its share of their bytes from the origin, and the group exchanges the
rest; they lie in `ingest/` of every host, as they do where one host brings them by itself, and are checked there.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from cas.config import Settings
from cas.errors import CasError
from cas.index.digest import Digest
from cas.index.manifest import FileEntry
from cas.index.ranges import Range
from cas.index.store import Store, explained
from cas.transfer.host_files import HostFiles
from cas.transfer.plan import pull_key
from cas.transfer.progress import drawer
from cas.transfer.remote import Remote, RemoteFile
from cas.transfer.rounds import Hosts
from cas.transfer.selected import Choose, selected_records, wanted_ranges
from cas.transfer.selection import Selection, literal
from cas.transfer.session import Session
from cas.transfer.shared_files import SharedFiles, remote_file
from cas.transfer.sidecars import without_sidecars
from cas.transfer.telling import AloneError, Group, Rank
from cas.transfer.together import Source, open_as_told

log = logging.getLogger("cas.transfer")

Candidates = Callable[[Store, Sequence[RemoteFile]], Iterable[RemoteFile]]


def share_records(
    store: Callable[[], Store],
    source: Source,
    group: Group,
    *,
    registry: str,
    uuid: str,
    settings: Settings,
    selection: Selection,
    candidates: Candidates,
    choose: Choose,
    is_here: Callable[[], bool],
) -> Selection | None:
    """Bring what is wanted of some files to all hosts of a group; each byte leaves the origin once.

    Args:
        store: see `pull_together`, as for `source`, `group`, `registry`, `uuid` and `settings`.
        source: where the files come from.
        group: the ranks.
        registry: who knows the checkpoint.
        uuid: its UUID.
        settings: `concurrency`, `verify`, `check_space` and `progress` count here.
        selection: which files of the checkpoint are wanted.
        candidates: says which files to look into.
        choose: see `selected_records`.
        is_here: whether this host has all files already, whole: then nothing is chosen.

    Returns what of the checkpoint is still to be brought, whole; None if that is nothing.

    Raises:
        PeerError: another rank failed, or does not answer.
        CasError: this rank failed, as `selected_records` does; the others were told.
    """
    rank = Rank(group, settings.home)
    work = _Records(source, group, rank, settings, selection, candidates, choose)
    with explained(f"cannot write into {settings.home}"), contextlib.closing(rank):
        return work.run(store, registry, uuid, is_here)


class _Records:
    """One rank's part of the work."""

    _store: Store

    def __init__(
        self,
        source: Source,
        group: Group,
        rank: Rank,
        settings: Settings,
        selection: Selection,
        candidates: Candidates,
        choose: Choose,
    ) -> None:
        self._source = source
        self._group = group
        self._rank = rank
        self._settings = settings
        self._selection = selection
        self._candidates = candidates
        self._choose = choose
        self._hosts = Hosts(group, rank, settings)
        self._remote: Remote | None = None
        self._has_more = True  # whether other files are wanted too; of the first rank

    def run(
        self, opened: Callable[[], Store], registry: str, uuid: str, is_here: Callable[[], bool]
    ) -> Selection | None:
        """Do it."""
        self._store = self._rank.together(opened)
        if any(self._group.gather(b"here" if self._rank.together(is_here) else b"")):
            return self._selection
        with contextlib.ExitStack() as locked:
            self._hosts.lock(self._store, pull_key(registry, uuid, f"{self._selection} in part"), locked)
            self._hosts.find(self._store)
            looks = self._group.rank == 0
            found = self._rank.together(lambda: self._look().encode() if looks else None)
            shared = SharedFiles.decode(self._group.broadcast(found, 0))
            has_more = self._group.broadcast(b"more" if self._has_more else b"", 0)
            if not shared.files:
                return self._selection
            self._bring(shared, uuid)
        names = tuple(literal(entry.path) for entry in shared.files)
        return replace(self._selection, exclude=(*self._selection.exclude, *names)) if has_more else None

    def _look(self) -> SharedFiles:
        """Find the files of which only some bytes are wanted, and which bytes these are."""
        nothing = SharedFiles((), (), ())
        try:
            self._remote = self._source.open_remote()
            if self._remote is None:
                return nothing
            session = self._session(self._remote)
            listing = self._selection.of_listing(without_sidecars(session.remote.list()))
        except CasError as error:  # the ordinary way says what is wrong, or finds another way round
            log.info("nothing is chosen from the origin: %s", error)
            return nothing
        found: dict[FileEntry, tuple[Range, ...]] = {}
        for file in self._candidates(self._store, listing.files):
            spans = wanted_ranges(session, file, self._choose)
            if spans is not None:
                found[FileEntry(file.path, file.size, None, file.identity, executable=file.executable)] = spans
        self._has_more = len(found) < len(listing.files)
        return SharedFiles(tuple(found), (), (None,) * len(found), parts=dict(enumerate(found.values())))

    def _bring(self, shared: SharedFiles, uuid: str) -> None:
        known = self._rank.together(lambda: self._prepare(shared) if self._hosts.leads else {})
        files = None
        if self._hosts.leads:
            assert self._remote is not None  # `_prepare` opened it
            files = HostFiles(self._session(self._remote), shared, known, self._rank.watch)
        self._rank.may_part = True
        try:
            self._hosts.make_ready(files, uuid)
            self._hosts.exchange(files, shared, drawer(self._settings.progress, uuid[:8]))
        except AloneError as error:
            log.warning("%s; each host fetches by itself what is left", error)
        finally:
            self._rank.may_part = False
            if files is not None:
                files.close()
        self._rank.together(lambda: self._complete(shared, known) if self._hosts.leads else None)

    def _prepare(self, shared: SharedFiles) -> dict[int, Digest]:
        """Open the remote, and return which files are here already, whole, by their place in the list."""
        self._remote = self._remote or open_as_told(self._source)
        return shared.here(self._store)

    def _complete(self, shared: SharedFiles, known: dict[int, Digest]) -> None:
        """Check the records that came, as a host does that brings them by itself, and fetch what is missing."""
        assert self._remote is not None  # it was read from
        session = self._session(self._remote)
        for number, entry in enumerate(shared.files):
            if number not in known:
                with selected_records(session, remote_file(entry), self._choose):
                    pass

    def _session(self, remote: Remote) -> Session:
        return Session(self._store, remote, self._settings, None, self._rank.watch)
