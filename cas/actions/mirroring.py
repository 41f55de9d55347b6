"""Mirroring: everything that a master knows of its experiments, kept here while it still lives."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field

from cas.config import Progress, Settings
from cas.errors import AuthenticationError, CasError, NoSpaceError, OfflineError, UsageError
from cas.index.records import NewRecord
from cas.index.store import Store, store_of
from cas.pull.origin import Origin
from cas.registry.catalog import Catalog, Record
from cas.registry.dialect import Listed
from cas.registry.http import canonical_url
from cas.registry.master import Master
from cas.registry.opening import open_master
from cas.registry.records import CheckpointRecord, State
from cas.registry.remembering import Remembering, remember
from cas.registry.values import same
from cas.transfer.progress import counter
from cas.transfer.workers import Workers

log = logging.getLogger("cas.mirror")

ASKING = 4  # experiments asked for at a time: a master has other users
_FETCHABLE = (State.COMPLETED, State.PARTIALLY_DELETED)


@dataclass(frozen=True, slots=True)
class Missing:
    """What could not be got, and why."""

    what: str  # `experiment 7`, `trial 5`, `checkpoint …`
    why: str


@dataclass(slots=True)
class MirrorReport:
    """What a mirror has now, and what it could not get. With `dry_run`, what it would fetch."""

    registry: str
    dry_run: bool
    asked: int = 0  # experiments and trials that the master was asked about
    unchanged: int = 0  # experiments that have ended and are as they were mirrored
    checkpoints: int = 0
    new: int = 0  # checkpoints that the catalog did not know, or knew otherwise
    here: int = 0  # checkpoints whose files were in the store already
    fetched: int = 0  # checkpoints whose files were fetched, or would be
    bytes_fetched: int = 0  # … and how much came; with dry_run, how large they are
    without_files: int = 0  # checkpoints in a state in which there is nothing to fetch
    missing: list[Missing] = field(default_factory=list)


def mirror(
    master: str | None = None,
    *,
    experiments: Iterable[int] = (),
    trials: Iterable[int] = (),
    everything: bool = False,
    files: bool = False,
    again: bool = False,
    dry_run: bool = False,
    user: str | None = None,
    password: str | None = None,
    settings: Settings | None = None,
) -> MirrorReport:
    """Keep what a master knows: records with metrics in the catalog, and the checkpoints themselves if asked for.

    The same call later brings what is new. What fails does not stop the rest; the report names it. A killed call is
    gone on with by the next.

    Args:
        master: its address; default the setting.
        experiments: the ids of those to mirror, with their trials and checkpoints.
        trials: the ids of single trials to mirror, with their checkpoints.
        everything: all experiments that the master shows to this user.
        files: fetch the files of each checkpoint into the store, too.
        again: with `everything`, ask again about experiments that have ended and have not changed since.
        dry_run: write nothing and fetch nothing; say what would be.
        user: whom to log in as; see `Determined`.
        password: the user's password.
        settings: default `Settings.load()`.

    Raises:
        UsageError: no master is named, or not what to mirror; or the master cannot list its experiments.
        OfflineError: the master does not answer at all, or the network is off.
        AuthenticationError: it refuses the login.
        NoSpaceError: the disk is full; what was written stays.
    """
    chosen = (settings or Settings.load()).but(master=master or None)
    wanted, single = tuple(dict.fromkeys(experiments)), tuple(dict.fromkeys(trials))
    if not (wanted or single or everything):
        raise UsageError(
            "say what to mirror: experiments=…, trials=…, or everything=True (--experiment, --trial, --all)"
        )
    if everything and (wanted or single):
        raise UsageError("everything includes all experiments and trials: name none besides (--all goes alone)")
    if not chosen.master:
        raise UsageError("say which master: mirror(master=…), -m URL, or DET_MASTER")
    if chosen.offline:
        raise OfflineError(f"{chosen.master} cannot be mirrored: CAS_OFFLINE is set")
    asked = open_master(canonical_url(chosen.master), chosen, user=user, password=password)
    run = _Mirror(store_of(chosen), asked, chosen, files=files, dry_run=dry_run)
    return run.run(wanted, single, everything=everything, again=again)


class _Mirror:
    """One run."""

    def __init__(self, store: Store, master: Master, settings: Settings, *, files: bool, dry_run: bool) -> None:
        self._store = store
        self._master = master
        self._settings = settings
        self._files = files
        self._report = MirrorReport(master.name, dry_run)
        self._catalog = Catalog(store, master.name)
        self._remembering = Remembering(master, store)

    def run(
        self, experiments: tuple[int, ...], trials: tuple[int, ...], *, everything: bool, again: bool
    ) -> MirrorReport:
        """Ask about everything that is wanted, then fetch the files."""
        listed = self._master.experiments() if everything else [Listed(id, False, "") for id in experiments]
        if not everything:
            self._master.login.token()  # a master that does not answer, or refuses, is said at once
        todo = [one for one in listed if again or not self._is_mirrored(one)]
        self._report.unchanged = len(listed) - len(todo)
        found: dict[str, CheckpointRecord] = {}
        things: list[Listed | int] = [*todo, *trials]
        with counter(self._settings.progress, "mirror", "experiments", len(things)) as advance:
            for records in self._ask_all(things):
                found.update((record.uuid, record) for record in records)
                advance(1)
        self._report.checkpoints = len(found)
        self._report.missing.sort(key=lambda one: one.what)
        if self._files:
            self._fetch_all(list(found.values()))
        return self._report

    # --- records -----------------------------------------------------------------------------------------------

    def _is_mirrored(self, one: Listed) -> bool:
        """Whether an experiment that has ended was mirrored as it is; with its files, if they are wanted."""
        seen = self._store.records.get(self._master.name, "mirror", f"experiment/{one.id}")
        if not one.has_ended or seen is None or seen.data.get("version") != one.version:
            return False
        return not self._files or all(self._is_here(record) for record in self._known(one.id))

    def _known(self, experiment: int) -> list[CheckpointRecord]:
        try:
            records = self._catalog.experiment_checkpoints(experiment)
        except CasError:
            return []
        return [record for record in records if record.state in _FETCHABLE]

    def _ask_all(self, things: list[Listed | int]) -> Iterator[list[CheckpointRecord]]:
        """Ask about experiments and trials (by their ids), a few at a time; what fails is noted.

        Raises:
            AuthenticationError, NoSpaceError: nothing else would succeed either.
            OfflineError: the master has not answered one question.
        """
        stop = threading.Event()
        waiting = iter(things)
        running: dict[Future[list[CheckpointRecord]], Listed | int] = {}
        try:
            with Workers(min(ASKING, self._settings.concurrency), stop, "cas-mirror") as workers:
                while True:
                    while len(running) < ASKING and (thing := next(waiting, None)) is not None:
                        running[workers.submit(self._ask, thing)] = thing
                    if not running:
                        return
                    for future in wait(running, timeout=0.2, return_when=FIRST_COMPLETED).done:
                        yield self._answer(running.pop(future), future)
        finally:
            stop.set()

    def _answer(self, thing: Listed | int, future: Future[list[CheckpointRecord]]) -> list[CheckpointRecord]:
        try:
            records = future.result()
        except (AuthenticationError, NoSpaceError):
            raise
        except (CasError, OSError) as error:
            if isinstance(error, OfflineError) and not self._report.asked:
                raise
            self._report.missing.append(Missing(_name(thing), str(error)))
            return []
        self._report.asked += 1
        return records

    def _ask(self, thing: Listed | int) -> list[CheckpointRecord]:
        """Ask about one experiment or trial, and write down the answer."""
        master = self._master
        first: list[Record]
        if isinstance(thing, Listed):
            first = [master.experiment(thing.id), *master.experiment_trials(thing.id)]
            checkpoints, complete = master.experiment_checkpoints(thing.id), f"experiment/{thing.id}"
        else:
            first, complete = [master.trial(thing)], f"trial/{thing}"
            checkpoints = master.trial_checkpoints(thing)
        with _lock:
            self._report.new += sum(self._is_new(record) for record in checkpoints)
            if self._report.dry_run:
                return checkpoints
            gone = master.lists_are_complete
            remember(self._store, master.name, [*first, *checkpoints], complete=complete, others_are_gone=gone)
            if isinstance(thing, Listed) and thing.version:
                self._store.records.add(master.name, [NewRecord("mirror", complete, {"version": thing.version})])
        return checkpoints

    def _is_new(self, record: CheckpointRecord) -> bool:
        seen = self._store.records.get(record.registry, "checkpoint", record.uuid)
        return seen is None or not same(seen.data, record.to_json())

    # --- files -------------------------------------------------------------------------------------------------

    def _fetch_all(self, records: list[CheckpointRecord]) -> None:
        """Fetch the files of each checkpoint, one after the other: each of them in parallel ranges already."""
        report = self._report
        fetchable = [record for record in records if record.state in _FETCHABLE]
        report.without_files = len(records) - len(fetchable)
        quiet = self._settings.but(progress=Progress.OFF)
        with counter(self._settings.progress, "files", "checkpoints", len(fetchable)) as advance:
            for record in sorted(fetchable, key=lambda record: (record.experiment_id or 0, record.uuid)):
                if self._is_here(record):
                    report.here += 1
                elif report.dry_run:
                    report.fetched += 1
                    report.bytes_fetched += sum(record.resources.values())
                else:
                    self._fetch(record, quiet)
                advance(1)

    def _is_here(self, record: CheckpointRecord) -> bool:
        manifest = self._store.resolve(record.registry, record.uuid)
        return manifest is not None and manifest.complete and not self._store.absent(manifest)

    def _fetch(self, record: CheckpointRecord, settings: Settings) -> None:
        try:
            with self._store.leases.claim(record.uuid):
                pulled = Origin(record, settings, self._remembering).fetch(self._store)
        except NoSpaceError:
            raise
        except (CasError, OSError) as error:
            log.info("checkpoint %s: %s", record.uuid, error)
            self._report.missing.append(Missing(f"checkpoint {record.uuid}", str(error)))
            return
        self._report.fetched += 1
        self._report.bytes_fetched += pulled.bytes_fetched


_lock = threading.Lock()  # one writer of records at a time: what is known is read, then what is new is written


def _name(thing: Listed | int) -> str:
    return f"experiment {thing.id}" if isinstance(thing, Listed) else f"trial {thing}"
