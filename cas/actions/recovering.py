"""Recovering: a registry of what lies in a bucket, after the master is gone."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cas.actions.surveying import RANGES, UNREADABLE, Earlier, Fresh, Other, Survey, Unchanged
from cas.config import Settings
from cas.errors import NotFoundError, OfflineError, UsageError
from cas.index.records import NewRecord, Seen
from cas.index.store import Store, store_of
from cas.registry import metric_tables, recovery
from cas.registry.metric_tables import Row
from cas.registry.records import CheckpointRecord, State
from cas.registry.recovery import ANYONE, FIRST_DERIVED, Claim, Numbering, Place, Recovered
from cas.transfer.folder import FolderRemote
from cas.transfer.progress import counter
from cas.transfer.remote import Remote
from cas.transfer.urls import remote_for_url

BATCH = 500  # lines written at once; what a kill loses is read again
EXAMPLES = 20  # of what could not be understood, kept for the report


@dataclass(frozen=True, slots=True)
class RecoveredExperiment:
    """One experiment of a recovered registry; `key` says what its id stands for."""

    id: int
    key: str
    name: str
    trial_class: str | None
    searcher: str | None
    checkpoints: int
    trials: int
    also: tuple[str, ...]  # what other registries call it


@dataclass(slots=True)
class RecoveryReport:
    """What was found below a URL, and what could not be understood."""

    registry: str
    url: str
    checkpoints: int = 0
    size: int = 0  # bytes
    new: int = 0
    changed: int = 0
    gone: int = 0  # known from an earlier recovery, and not there any more
    with_metrics: int = 0
    unused_rows: int = 0  # of the user's table: checkpoints that do not lie there
    experiments: tuple[RecoveredExperiment, ...] = ()
    others: Counter[str] = field(default_factory=Counter)  # names that are no UUIDs, and how much lies below
    others_left_out: int = 0  # such names that are not in `others`
    problems: Counter[str] = field(default_factory=Counter)  # what could not be understood, how often
    examples: dict[str, list[str]] = field(default_factory=dict)  # of each problem, some UUIDs

    @property
    def unreadable(self) -> int:
        """How many files could not be read, so that another try may know more."""
        return sum(count for text, count in self.problems.items() if text.endswith(UNREADABLE))


def recover(url: str | Path, *, metrics: str | Path | None = None, settings: Settings | None = None) -> RecoveryReport:
    """Build the registry `recovered:<url>` from the checkpoints that lie below a URL or in a folder.

    A killed call is gone on with by the next: what was understood is not read again. The same call later finds what is
    new, changed and gone.

    Args:
        url: of the place that holds `<uuid>/…`: `s3://bucket/prefix`, any other URL that a remote has, or a folder.
        metrics: a CSV or JSON file with metrics by UUID; see `cas.registry.metric_tables`.
        settings: default `Settings.load()`.

    Raises:
        NotFoundError: no checkpoint lies there; or there is no such file of metrics.
        ContentError: the file of metrics has something else in it; the message names line and column.
        UsageError: the URL is of an unknown scheme.
        OfflineError: the network is needed and is off, or does not answer.
        NotAllowedError: the place may not be listed.
    """
    chosen = settings or Settings.load()
    table = {} if metrics is None else metric_tables.read(metrics)
    remote = _remote(url, chosen)
    if chosen.offline and not isinstance(remote, FolderRemote):
        raise OfflineError(f"{remote.url} is not on this host, and CAS_OFFLINE is set")
    store = store_of(chosen)
    return _Recovery(store, remote, table, chosen).run()


def _remote(url: str | Path, settings: Settings) -> Remote:
    text = str(url)
    if not text:
        raise UsageError("say which URL or folder holds the checkpoints")
    if isinstance(url, Path) or "://" not in text:
        return FolderRemote(Path(text).expanduser())
    return remote_for_url(text.rstrip("/"), settings)


@dataclass(frozen=True, slots=True)
class _Written:
    """What is written of an experiment or trial: whose id it is, and which configuration (its digest)."""

    key: str
    owner: str
    config: str | None

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> _Written:
        config = found.get("config")
        return cls(str(found.get("key")), str(found.get("owner")), config if isinstance(config, str) else None)

    def is_less_than(self, new: _Written) -> bool:
        """Whether the other says more: which cluster it is, or a configuration; or one that goes first."""
        if (self.owner == ANYONE) != (new.owner == ANYONE):
            return self.owner == ANYONE
        return new.config is not None and (self.config is None or new.config < self.config)


def _owners(given: Mapping[int, _Written | None]) -> dict[int, str | None]:
    found: dict[int, str | None] = {}
    for id, known in given.items():
        found[id] = None if known is None else known.key if id >= FIRST_DERIVED else known.owner
    return found


class _Recovery:
    """One run: takes what the survey finds, gives ids, writes records, and counts."""

    def __init__(self, store: Store, remote: Remote, table: Mapping[str, Row], settings: Settings) -> None:
        self._store = store
        self._remote = remote
        self._table = table
        self._settings = settings
        self._storage = recovery.storage_of(remote.url)
        self.registry = recovery.registry_of(remote.url)
        self._report = RecoveryReport(self.registry, remote.url)
        experiments, trials = self._given("experiment"), self._given("trial")
        self._numbering = Numbering(self.registry, _owners(experiments), _owners(trials))
        self._experiments = {id: known for id, known in experiments.items() if known is not None}
        self._trials = {id for id, known in trials.items() if known is not None}
        every = store.records.each("checkpoint", registry=self.registry)
        self._earlier = {seen.id: Earlier.of(seen) for seen in every}
        self._seen: set[str] = set()
        self._lines: list[NewRecord] = []
        self._also: dict[str, set[str]] = defaultdict(set)  # key of an experiment → what other registries call it

    def _given(self, kind: str) -> dict[int, _Written | None]:
        """The ids that earlier runs gave, and what is written of them; None: contested."""
        found: dict[int, _Written | None] = {}
        for seen in self._store.records.each(kind, registry=self.registry):
            if seen.id.isdecimal():
                found[int(seen.id)] = None if seen.data.get("contested") else _Written.of(_found(seen))
        return found

    def run(self) -> RecoveryReport:
        """Survey the place and write down what is there."""
        report = self._report
        threads = min(4 * self._settings.concurrency, RANGES)
        survey = Survey(self._store, self._remote, self.registry, table=self._table, earlier=self._earlier)
        try:
            with counter(self._settings.progress, "recover", "checkpoints") as advance:
                for item in survey.run(threads):
                    if isinstance(item, Other):
                        self._count_other(item)
                        continue
                    self._take(item)
                    advance(1)
        finally:
            self._flush()  # also what a run that was stopped has understood
        if (
            not report.checkpoints
            and next(self._store.records.each("checkpoint", registry=self.registry), None) is None
        ):
            raise NotFoundError(_nothing(report))
        self._settle()
        report.experiments = tuple(self._describe())
        report.unused_rows = len(self._table.keys() - self._seen)
        self._add(NewRecord("listing", "registry", {"checkpoints": report.checkpoints}))
        self._flush()
        return report

    # --- one checkpoint ----------------------------------------------------------------------------------------

    def _take(self, item: Fresh | Unchanged) -> None:
        report = self._report
        if isinstance(item, Unchanged):
            uuid, size, key = item.uuid, item.size, item.earlier.key
            problems, has_metrics = list(item.earlier.problems), item.earlier.has_metrics
        else:
            one = self._recovered(item)
            uuid, size, key, problems = (
                one.record.uuid,
                item.contents.size,
                one.place.experiment_claim.key,
                one.problems,
            )
            has_metrics = one.record.validation_metrics is not None
            self._write(one)
        report.checkpoints += 1
        report.size += size
        report.with_metrics += has_metrics
        self._seen.add(uuid)
        for text in problems:
            report.problems[text] += 1
            if len(some := report.examples.setdefault(text, [])) < EXAMPLES:
                some.append(uuid)
        if item.known is not None and item.known.experiment_id is not None:
            self._also[key].add(f"experiment {item.known.experiment_id} of {item.known.registry}")

    def _recovered(self, item: Fresh) -> Recovered:
        finding = item.finding
        place = self._numbering.place(finding, item.row)
        record = recovery.record_of(
            finding, place, registry=self.registry, storage=self._storage, row=item.row, known=item.known
        )
        return Recovered(record, place, item.contents.stamp, item.inputs, finding.problems, finding.trial_class)

    def _write(self, one: Recovered) -> None:
        is_new = one.record.uuid not in self._earlier
        self._report.new += is_new
        self._report.changed += not is_new
        self._write_place(one.record, one.place, one.trial_class)
        self._add(one.line())

    def _write_place(self, record: CheckpointRecord, place: Place, trial_class: str | None) -> None:
        """Write down the experiment and the trial of a checkpoint, where nothing says as much of them yet.

        Of several configurations of one experiment (labels were changed meanwhile, say) the one with the least digest
        stays, so that the order in which checkpoints come decides nothing.
        """
        claim = place.experiment_claim
        new = _Written(claim.key, claim.owner, recovery.known_config(record))
        known = self._experiments.get(place.experiment)
        if known is None or known.is_less_than(new):
            self._experiments[place.experiment] = new
            self._add(recovery.experiment_line(record, place, trial_class))
        if place.trial not in self._trials:
            self._trials.add(place.trial)
            self._add(recovery.trial_line(record, place))

    def _add(self, line: NewRecord) -> None:
        self._lines.append(line)
        if len(self._lines) >= BATCH:
            self._flush()

    def _flush(self) -> None:
        lines, self._lines = self._lines, []
        self._store.records.add(self.registry, lines)

    def _count_other(self, item: Other) -> None:
        others = self._report.others
        if item.name in others or len(others) < EXAMPLES:
            others[item.name] += item.count
        else:
            self._report.others_left_out += 1

    # --- all of them -------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Give other ids to what has one that another cluster gave as well."""
        self._flush()
        for kind, ids in zip(("experiment", "trial"), self._numbering.contested, strict=True):
            for id in sorted(ids):
                for uuid in self._store.records.ids("checkpoint", registry=self.registry, parent=f"{kind}/{id}"):
                    self._move(uuid)
                seen = self._store.records.get(self.registry, kind, str(id))
                if seen is not None and not seen.data.get("contested"):
                    self._experiments.pop(id, None)
                    self._add(NewRecord(kind, str(id), {"contested": True, "experiment": 0}))
            self._flush()

    def _move(self, uuid: str) -> None:
        seen = self._store.records.get(self.registry, "checkpoint", uuid)
        if seen is None:
            return
        found, data = _found(seen), seen.data
        claims = _claim(found.get("experiment")), _claim(found.get("trial"))
        place = Place(int(data["experiment"]), int(data["trial"]), *claims)
        now = self._numbering.again(place)
        if now == place:
            return
        whose = self._store.records.get(self.registry, "experiment", str(place.experiment))
        config = whose.data.get("config") if whose is not None else None
        moved = {**data, "experiment": now.experiment, "trial": now.trial}
        record = CheckpointRecord.from_json(moved, registry=self.registry, uuid=uuid, config=config)
        self._write_place(record, now, None if whose is None else _found(whose).get("class"))
        self._add(NewRecord("checkpoint", uuid, moved, record.parents))

    def _describe(self) -> Iterator[RecoveredExperiment]:
        """Yield what experiments there are; what is not there any more counts as deleted from now on."""
        for seen in self._store.records.each("experiment", registry=self.registry):
            rows = self._store.records.briefs("checkpoint", registry=self.registry, parent=f"experiment/{seen.id}")
            here = [row for row in rows if row[0] in self._seen]
            for uuid, state, *_ in rows:
                if uuid not in self._seen and state != State.DELETED:
                    self._mark_gone(str(uuid))
            if not here or seen.data.get("contested"):
                continue
            found, config = _found(seen), seen.data.get("config", {})
            yield RecoveredExperiment(
                id=int(seen.id),
                key=str(found.get("key")),
                name=str(seen.data.get("name", "")),
                trial_class=found.get("class"),
                searcher=recovery.searcher_of(config),
                checkpoints=len(here),
                trials=len({row[2] for row in here}),
                also=tuple(sorted(self._also[str(found.get("key"))])),
            )

    def _mark_gone(self, uuid: str) -> None:
        seen = self._store.records.get(self.registry, "checkpoint", uuid)
        if seen is not None:
            parents = (f"experiment/{seen.data.get('experiment')}", f"trial/{seen.data.get('trial')}")
            self._add(NewRecord("checkpoint", uuid, {**seen.data, "state": str(State.DELETED)}, parents))
            self._report.gone += 1


def _found(seen: Seen) -> dict[str, Any]:
    """How a record of a recovered registry came about."""
    found = seen.data.get("found")
    return found if isinstance(found, dict) else {}


def _claim(value: object) -> Claim:
    known = value if isinstance(value, dict) else {}
    return Claim(str(known.get("key")), str(known.get("owner")))


def _nothing(report: RecoveryReport) -> str:
    if not report.others:
        return f"there is nothing at {report.url}"
    names = ", ".join(list(report.others)[:5])
    more = len(report.others) + report.others_left_out - 5
    return (
        f"no checkpoint lies at {report.url}: of what is there ({names}{f' and {more} more' if more > 0 else ''}),"
        " nothing is called by a UUID; name the place right above the UUIDs"
    )
