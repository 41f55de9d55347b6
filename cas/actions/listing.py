"""Listing what is known here: checkpoints, by conditions and in order, and the registries that tell of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from cas.config import Settings
from cas.errors import UsageError
from cas.index.store import Store, store_of
from cas.index.usage import Presence, presence
from cas.registry.catalog import Catalog, KnownRegistry, known_registries
from cas.registry.filters import MetricFilter, parse_states
from cas.registry.records import CheckpointRecord, State
from cas.registry.select import metric_value, report_time, require_metric
from cas.registry.values import is_whole

SORTS = ("registry", "experiment", "trial", "batch", "uuid", "state", "size", "time")


class Here(StrEnum):
    """How much of a checkpoint is on this disk."""

    YES = "yes"
    PART = "part"
    NO = "no"


@dataclass(frozen=True, slots=True)
class ListedCheckpoint:
    """One line of a list; `record` is None of what only lies here, and no registry tells of."""

    registry: str
    uuid: str
    record: CheckpointRecord | None
    size: int | None  # bytes
    here: Here
    pinned: bool

    @property
    def state(self) -> State | None:
        """The state, if a registry tells of it."""
        return None if self.record is None else self.record.state

    @property
    def numbers(self) -> tuple[int | None, int | None, int | None]:
        """Experiment, trial and batch."""
        if self.record is None:
            return None, None, None
        return self.record.experiment_id, self.record.trial_id, self.record.steps_completed

    def metric(self, name: str | None = None) -> tuple[str, object] | None:
        """Return a metric with its value as it came; default the searcher's."""
        if self.record is None:
            return None
        values = self.record.validation_metrics or {}
        wanted = name or self.record.searcher_metric
        return (wanted, values[wanted]) if wanted is not None and wanted in values else None


def checkpoints(
    *,
    registry: str | None = None,
    experiment: int | None = None,
    trial: int | None = None,
    state: str | Iterable[str] = (),
    metric: str | Iterable[str] = (),
    here: bool | None = None,
    sort: str | None = None,
    descending: bool = False,
    limit: int | None = None,
    deleted_too: bool = False,
    settings: Settings | None = None,
) -> list[ListedCheckpoint]:
    """Return the checkpoints that are known here; no network is used.

    Args:
        registry: only those that this one tells of.
        experiment: only those of this experiment, of any registry.
        trial: only those of this trial.
        state: only those in one of these states.
        metric: conditions that all must be met, like `accuracy>0.9`; see `MetricFilter.parse`.
        here: True: only those that are wholly on this disk; False: only the others.
        sort: one of `SORTS`, or the name of a metric; what lacks it comes last. Default: by registry, experiment, trial
            and batch.
        descending: the largest first.
        limit: how many, at most.
        deleted_too: those that are DELETED and not here, too.
        settings: default `Settings.load()`.

    Raises:
        UsageError: a condition, a state or a limit is none; there is no such registry, or nothing that can be sorted by
            is called so: the message lists what there is.
    """
    conditions = [MetricFilter.parse(text) for text in ([metric] if isinstance(metric, str) else metric)]
    states = parse_states([state] if isinstance(state, str) else state)
    if limit is not None and not is_whole(limit, 1):
        raise UsageError(f"limit must be 1 or more, not {limit!r:.40}")
    store = store_of(settings or Settings.load())
    catalog = Catalog(store, registry)
    if registry is not None:
        catalog.require_known()
    every = list(_every(store, catalog, experiment, trial))
    if sort is not None and sort not in SORTS:
        require_metric(sort, [one.record for one in every if one.record is not None], besides=SORTS)
    found = [
        one
        for one in every
        if (deleted_too or one.state is not State.DELETED or one.here is not Here.NO or State.DELETED in states)
        and (not states or one.state in states)
        and all(one.record is not None and condition.meets(one.record) for condition in conditions)
        and here in (None, one.here is Here.YES)
    ]
    return _in_order(found, sort, descending=descending)[:limit]


def registries(*, settings: Settings | None = None) -> list[KnownRegistry]:
    """Return the registries that are known here, with what they tell of and when they were last heard."""
    return known_registries(store_of(settings or Settings.load()))


def _every(store: Store, catalog: Catalog, experiment: int | None, trial: int | None) -> Iterator[ListedCheckpoint]:
    used = presence(store)
    told = set()
    for record in catalog.checkpoints(experiment=experiment, trial=trial):
        told.add(record.uuid)
        mine = used.get(record.uuid)
        size = mine.size if mine else sum(record.resources.values()) if record.resources else None
        yield ListedCheckpoint(
            record.registry, record.uuid, record, size, _here(mine), mine is not None and mine.pinned
        )
    if experiment is not None or trial is not None:
        return
    for uuid, one in used.items():
        if uuid not in told and catalog.scope in (None, *one.registries):
            yield ListedCheckpoint(one.registries[0], uuid, None, one.size, _here(one), one.pinned)


def _here(used: Presence | None) -> Here:
    if used is None or (used.files and used.missing == used.files):
        return Here.NO
    return Here.PART if used.missing else Here.YES


def _in_order(rows: list[ListedCheckpoint], sort: str | None, *, descending: bool) -> list[ListedCheckpoint]:
    rows.sort(key=_place)
    if sort is None:
        return rows[::-1] if descending else rows
    value = _value_of(sort)
    able = [(value(row), row) for row in rows]
    lacking = [row for key, row in able if key is None]
    has = sorted((pair for pair in able if pair[0] is not None), key=lambda pair: pair[0], reverse=descending)  # type: ignore[arg-type,return-value]  # one kind of value
    return [row for _, row in has] + lacking


def _value_of(sort: str) -> Callable[[ListedCheckpoint], object]:
    attributes: dict[str, Callable[[ListedCheckpoint], object]] = {
        "registry": lambda row: row.registry,
        "experiment": lambda row: row.numbers[0],
        "trial": lambda row: row.numbers[1],
        "batch": lambda row: row.numbers[2],
        "uuid": lambda row: row.uuid,
        "state": lambda row: None if row.state is None else str(row.state),
        "size": lambda row: row.size,
        "time": lambda row: None if row.record is None else report_time(row.record),
    }
    return attributes.get(sort) or (lambda row: None if row.record is None else metric_value(row.record, sort))


def _place(row: ListedCheckpoint) -> tuple[str, Sequence[int], str]:
    """Where a row belongs: by registry, experiment, trial and batch, those that have none first."""
    return row.registry, [-1 if number is None else number for number in row.numbers], row.uuid
