"""A pull by many hosts of one job: each reads its share from the origin, and the job's group exchanges the rest.

Every rank of the group takes part. Ranks that share a home are one host; the first of them does the host's work, the
others only listen.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from cas.config import Settings
from cas.errors import CasError, ContentError, UsageError
from cas.index.digest import Digest
from cas.index.manifest import FileEntry, Manifest
from cas.index.store import Store, explained
from cas.transfer import checksums
from cas.transfer.fetch import PullReport, list_files, pull
from cas.transfer.host_files import HostFiles
from cas.transfer.plan import pull_key
from cas.transfer.preview import preview
from cas.transfer.progress import drawer
from cas.transfer.remote import Checksum, Remote, RemoteFile
from cas.transfer.rounds import Hosts
from cas.transfer.selection import EVERYTHING, Selection
from cas.transfer.session import Session
from cas.transfer.settling import Word
from cas.transfer.shared_files import SharedFiles
from cas.transfer.small import SMALL_AT_ONCE
from cas.transfer.telling import AloneError, Group, Rank
from cas.transfer.watched import Watch
from cas.transfer.workers import Workers, wait_all

log = logging.getLogger("cas.transfer")


class Source(Protocol):
    """Where the files come from that no host has."""

    def open_remote(self) -> Remote | None:
        """Return what every host reads its share of; None: one host gets them by `get_all`, for all."""

    def get_all(self, store: Store, closed: CasError | None, watch: Watch) -> PullReport:
        """Bring all files into one host's store, in another way; `closed` is why the remote cannot be read.

        Raises:
            CasError: there is no other way, or it is closed too.
        """


def open_as_told(source: Source) -> Remote:
    """Return what this rank reads its share of, where the rank that looked found something.

    Raises:
        UsageError: here, another way is to be taken.
    """
    remote = source.open_remote()
    if remote is None:
        raise UsageError("the setting mode is 'master' on this rank, and another on the rank that looked")
    return remote


def pull_together(
    store: Callable[[], Store],
    source: Source,
    group: Group,
    *,
    registry: str,
    uuid: str,
    settings: Settings,
    expected_sizes: Mapping[str, int] | None = None,
    partial: bool = False,
    selection: Selection = EVERYTHING,
) -> PullReport | None:
    """Bring a checkpoint into the stores of all hosts of a group; each byte leaves the origin once.

    Returns on every rank when every host has committed the same files. See `pull` for the arguments; the store is
    opened, and the source asked, when all ranks hear of it if that fails. Returns what this host brought, on the rank
    that did its work.

    Raises:
        PeerError: another rank failed (the message says which, and how), or does not answer.
        CasError: this rank failed, as `pull` does, or got nothing done for the group's bound; the others were told.
    """
    rank = Rank(group, settings.home)
    together = _Together(source, group, rank, settings, selection)
    with explained(f"cannot write into {settings.home}"), contextlib.closing(rank):
        return together.run(store, registry, uuid, dict(expected_sizes or {}), partial=partial)


class _Together:
    """One rank's part of the work."""

    _store: Store

    def __init__(self, source: Source, group: Group, rank: Rank, settings: Settings, selection: Selection) -> None:
        self._source = source
        self._remote: Remote | None = None
        self._group = group
        self._rank = rank
        self._settings = settings
        self._selection = selection
        self._report: PullReport | None = None  # of what this host brought for all
        self._hosts = Hosts(group, rank, settings)
        self._teller = 0  # the rank that told what the files are

    def run(
        self, opened: Callable[[], Store], registry: str, uuid: str, sizes: dict[str, int], *, partial: bool
    ) -> PullReport | None:
        """Do it."""
        began = time.monotonic()
        self._store = self._rank.together(opened)
        with contextlib.ExitStack() as locked:
            key = pull_key(registry, uuid, self._selection)
            self._hosts.lock(self._store, key, locked)
            return self._run(registry, uuid, sizes, began, partial=partial)

    def _run(
        self, registry: str, uuid: str, sizes: dict[str, int], began: float, *, partial: bool
    ) -> PullReport | None:
        self._hosts.find(self._store)
        leads = self._hosts.leads
        shared = self._tell(registry, uuid, sizes, leads=leads, partial=partial)
        known = self._rank.together(lambda: self._prepare(shared) if leads else {})
        here = set(known)
        session = Session(self._store, self._remote or _NoRemote(), self._settings, None, self._rank.watch)
        files = HostFiles(session, shared, known, self._rank.watch) if leads else None
        first: PullReport | None = None  # of a host that brought all by itself before the others
        self._rank.may_part = True
        try:
            self._hosts.make_ready(files, uuid)
            alone = self._who_pulls_alone(registry, uuid, shared, known, leads=leads)
            if alone != self._hosts.leaders:
                if alone:
                    pulls = self._group.rank in alone
                    first = self._rank.together(
                        lambda: self._pull(registry, uuid, sizes, partial=partial) if pulls else None
                    )
                    known.update(self._rank.together(lambda: self._prepare(shared) if pulls else {}))
                self._hosts.exchange(files, shared, drawer(self._settings.progress, uuid[:8]))
                self._settle(files, shared)
        except AloneError as error:
            log.warning("%s; each host fetches by itself what is left", error)
        finally:
            self._rank.may_part = False
            if files is not None:
                files.close()
        report = None
        if leads:
            report = self._rank.together(lambda: self._conclude(registry, uuid, sizes, shared, known, partial=partial))
        else:
            self._rank.together(lambda: None)
        self._compare(registry, uuid, shared, leads=leads)
        if report is None or self._report is not None:
            return self._report
        return replace(
            report,
            files_fetched=report.files_fetched + len(known) - len(here),
            bytes_fetched=report.bytes_fetched + session.bytes_fetched + (first.bytes_fetched if first else 0),
            bytes_reused=report.bytes_reused + (first.bytes_reused if first else 0),
            bytes_here=sum(shared.files[number].size for number in here),
            seconds=time.monotonic() - began,
        )

    def _tell(self, registry: str, uuid: str, sizes: dict[str, int], *, leads: bool, partial: bool) -> SharedFiles:
        """Let the first rank whose host has the checkpoint tell of it; if none has, the first one looks for it."""
        manifest = self._rank.together(lambda: self._whole(registry, uuid) if leads else None)
        told = self._group.gather(b"" if manifest is None else b"whole")
        self._teller = next((rank for rank, one in enumerate(told) if one), 0)
        tells = self._group.rank == self._teller
        found = self._rank.together(
            lambda: self._look(registry, uuid, sizes, partial=partial).encode() if tells else None
        )
        return SharedFiles.decode(self._group.broadcast(found, self._teller))

    def _whole(self, registry: str, uuid: str) -> Manifest | None:
        """Return what our store knows of the checkpoint, if all that is wanted of it is here."""
        manifest = self._store.resolve(registry, uuid)
        if manifest is None:
            return None
        wanted = self._selection.part_of(manifest)
        sizes = {entry.digest: entry.size for entry in wanted.files if entry.digest is not None}
        here = self._store.blobs.locate_all(sizes)  # a damaged blob is not here
        return manifest if wanted.complete and here.keys() == sizes.keys() else None

    def _look(self, registry: str, uuid: str, sizes: dict[str, int], *, partial: bool) -> SharedFiles:
        manifest = self._whole(registry, uuid)
        if manifest is None or self._has_more(manifest):
            closed: CasError | None = None
            try:
                self._remote = self._source.open_remote()
                if self._remote is not None:
                    return self._list(self._remote, sizes, partial=partial)
            except CasError as error:
                closed = error
            if manifest is None:
                self._report = self._source.get_all(self._store, closed, self._rank.watch)
                manifest = self._report.manifest
            elif closed is not None and self._store.absent(manifest):
                raise closed
            self._remote = None
        known = tuple(entry for entry in manifest.files if entry.digest is not None)
        others = tuple(entry for entry in manifest.files if entry.digest is None)
        return SharedFiles(known, manifest.directories, (None,) * len(known), others=others)

    def _has_more(self, manifest: Manifest) -> bool:
        """Whether files that are not wanted have digests: a host without them has to know where they lie."""
        return any(entry.digest is not None and not self._selection.takes(entry.path) for entry in manifest.files)

    def _list(self, remote: Remote, sizes: dict[str, int], *, partial: bool) -> SharedFiles:
        session = Session(self._store, remote, self._settings, None, self._rank.watch)
        listing = self._selection.of_listing(list_files(session.remote, sizes, partial=partial))
        files = tuple(
            FileEntry(one.path, one.size, None, one.identity, executable=one.executable) for one in listing.files
        )
        likely = [self._likely(session, file) for file in listing.files]
        others = [file for file, one in zip(listing.files, likely, strict=True) if one is None]
        declared = iter(self._declared(session, others))
        return SharedFiles(
            files,
            listing.directories,
            tuple(one if one is not None else next(declared) for one in likely),
            frozenset(number for number, one in enumerate(likely) if one is not None),
        )

    def _likely(self, session: Session, file: RemoteFile) -> Checksum | None:
        """Return the checksum that the listing suggests of a file that is sent at once: it costs no request."""
        if file.size > self._hosts.block:
            return None
        return checksums.choose(session.remote.likely_checksums(file), md5=True)

    def _declared(self, session: Session, files: Sequence[RemoteFile]) -> list[Checksum | None]:
        """Ask for the checksums to verify the files by: all ranks wait, so many requests at once."""
        count = min(len(files), self._settings.concurrency * SMALL_AT_ONCE)
        with Workers(count, session.stop, "cas-declared") as workers:
            return wait_all([workers.submit(session.declared, file) for file in files], session.stop)

    def _prepare(self, shared: SharedFiles) -> dict[int, Digest]:
        """Return which files this host has already, by their place in the list; open the remote if it is needed."""
        if not shared.is_known and self._remote is None:
            self._remote = open_as_told(self._source)
        return shared.here(self._store)

    def _who_pulls_alone(
        self, registry: str, uuid: str, shared: SharedFiles, known: Mapping[int, Digest], *, leads: bool
    ) -> list[int]:
        """Return which ranks pull for their hosts by themselves, before anything is exchanged: only that finds donors.

        All of them do where the origin is asked for no more bytes then: so it is with a single host, and where all
        have a checkpoint that is much like this one (hints.py). One does that is asked for no more than its share.
        """
        leaders = self._hosts.leaders
        if shared.is_known:
            return []
        if len(leaders) == 1:
            return leaders
        cost = self._rank.together(lambda: self._cost_alone(registry, uuid) if leads else None)
        told = self._group.gather(json.dumps([cost, sorted(known)]).encode())
        costs: dict[int, int] = {}
        somewhere: set[int] = set()
        for rank in leaders:
            cost, held = json.loads(told[rank])
            somewhere.update(held)
            if cost is not None:
                costs[rank] = cost
        missing = sum(entry.size for number, entry in enumerate(shared.files) if number not in somewhere)
        if len(costs) == len(leaders) and sum(costs.values()) <= missing:
            return leaders
        return [rank for rank in sorted(costs, key=costs.__getitem__)[:1] if costs[rank] * len(leaders) < missing]

    def _cost_alone(self, registry: str, uuid: str) -> int | None:
        """Return how many bytes this host would fetch by itself; None if it has no donors."""
        if not self._store.chunks.has_parts():
            return None
        assert self._remote is not None  # what has no digests was listed there
        found = preview(
            self._store,
            self._remote,
            registry=registry,
            uuid=uuid,
            settings=self._settings,
            selection=self._selection,
            watch=self._rank.watch,
        )
        return found.fetch

    def _settle(self, files: HostFiles | None, shared: SharedFiles) -> None:
        """Find out what the bytes are that have another checksum than the listing suggests: on one host, for all."""
        if not shared.likely:
            return
        unclear = set().union(*self._hosts.hear(files.unclear.numbers if files is not None else None))
        if not unclear:
            return
        told = self._hosts.hear((lambda: files.known_of(unclear)) if files is not None else None)
        words: list[Word] = [word for one in told for word in one]
        left = sorted(unclear - {number for number, _, _ in words})
        listed = self._group.rank == self._teller
        judged = self._rank.together(lambda: files.unclear.judge(left) if files is not None and listed else [])
        words += json.loads(self._group.broadcast(json.dumps(judged).encode(), self._teller))
        self._rank.together(lambda: files.settle(words) if files is not None else None)

    # --- the end -------------------------------------------------------------------------------------------------

    def _conclude(
        self,
        registry: str,
        uuid: str,
        sizes: dict[str, int],
        shared: SharedFiles,
        known: Mapping[int, Digest],
        *,
        partial: bool,
    ) -> PullReport:
        """Say what the checkpoint consists of; fetch what the exchange left out."""
        if shared.is_known or (len(known) == len(shared.files) and self._selection.is_everything):
            files = [
                FileEntry(one.path, one.size, known.get(number, one.digest), executable=one.executable)
                for number, one in enumerate(shared.files)
            ]
            manifest = Manifest.of((*files, *shared.others), shared.directories)
            absent = self._store.tag(registry, uuid, manifest)
            if not absent:
                self._store.seal_later(known.values())
                facts = self._store.facts.origins(entry.identity for entry in shared.files if entry.identity)
                proofs = {str(one.path): facts[one.identity].proof for one in shared.files if one.identity in facts}
                return PullReport(manifest, proofs, 0, 0, 0, manifest.size, 0.0)
            if shared.is_known:
                raise ContentError(f"{len(absent)} files of checkpoint {uuid} were removed while they arrived")
        return self._pull(registry, uuid, sizes, partial=partial)

    def _pull(self, registry: str, uuid: str, sizes: dict[str, int], *, partial: bool) -> PullReport:
        """Bring what is missing here as a host does that is alone."""
        assert self._remote is not None  # what has no digests was listed there
        return pull(
            self._store,
            self._remote,
            registry=registry,
            uuid=uuid,
            settings=self._settings,
            expected_sizes=sizes,
            partial=partial,
            selection=self._selection,
            watch=self._rank.watch,
        )

    def _compare(self, registry: str, uuid: str, shared: SharedFiles, *, leads: bool) -> None:
        """See that all hosts have the same.

        Raises:
            ContentError: they do not: the checkpoint was replaced at its origin meanwhile, or bytes were wrong.
        """

        def mine() -> bytes:
            manifest = self._store.resolve(registry, uuid) if leads else None
            if manifest is None:
                return b"{}"
            entries = self._selection.part_of(manifest).files
            return json.dumps({entry.path: str(entry.digest or entry.size) for entry in entries}).encode()

        told = self._group.gather(self._rank.together(mine))
        found: list[dict[str, str]] = [json.loads(told[rank]) for rank in self._hosts.leaders]
        differ = {path for path in set().union(*found) if len({one.get(path) for one in found}) > 1}
        if not differ:
            return
        self._rank.together(lambda: self._forget(registry, uuid, shared, differ) if leads else None)
        name = min(differ)
        more = f" and {len(differ) - 1} more" if len(differ) > 1 else ""
        raise ContentError(f"{name}{more} of checkpoint {uuid} is not the same on all hosts of the job; load it again")

    def _forget(self, registry: str, uuid: str, shared: SharedFiles, differ: Collection[str]) -> None:
        """Know nothing of files that hosts have read differently: the next job reads them from their origin again."""
        if shared.is_known:
            return  # and they may lie nowhere else
        self._store.facts.withdraw_origins(
            entry.identity for entry in shared.files if entry.path in differ and entry.identity is not None
        )
        self._store.refs.untag(registry, uuid)


class _NoRemote:
    """The remote of a checkpoint that has no origin: nothing is ever asked of it."""

    url = "no origin"

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)
