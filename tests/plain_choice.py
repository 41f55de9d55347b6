"""Best, latest and top n once more: the plain definition, written without looking at the code, and records for it.

Tests of every way to an answer (pure functions, the catalog, a recovered registry, a master) compare with this one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import strategies as st

from cas.registry.records import CheckpointRecord, State

START = datetime(2024, 3, 1, tzinfo=UTC)
QUESTIONS: list[tuple[str | None, bool | None]] = [
    (None, None),
    (None, True),
    ("loss", None),
    ("acc", True),
    ("acc", False),
    ("loss", False),
]  # sort_by, smaller_is_better


def uuid(number: int) -> str:
    """Return the UUID of a number."""
    return f"00000000-0000-4000-8000-{number:012x}"


# --- the definition ----------------------------------------------------------------------------------------------


def moment(text: str | None) -> float:
    """Microseconds since START: the tests' times have no more digits than that."""
    assert text is not None
    padded = text if "." in text else text.replace("Z", ".0Z")
    return round(
        (datetime.strptime(padded, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC) - START) / timedelta(microseconds=1)
    )


def beats(a: CheckpointRecord, b: CheckpointRecord, metric: str, smaller: bool) -> bool:
    """Whether `a` is better than `b`: by the metric, then the older report time, then the UUID."""
    x, y = a.validation_metrics[metric], b.validation_metrics[metric]  # type: ignore[index]
    if x != y:
        return (x < y) if smaller else (x > y)
    if moment(a.report_time) != moment(b.report_time):
        return moment(a.report_time) < moment(b.report_time)
    return a.uuid < b.uuid


def able(record: CheckpointRecord, metric: str) -> bool:
    """Whether a record can be chosen by the metric: COMPLETED, with a finite number that is no boolean."""
    metrics: Mapping[str, Any] = record.validation_metrics or {}
    value = metrics.get(metric)
    return record.state == "COMPLETED" and type(value) in (int, float) and abs(value) < math.inf


def best_first(
    records: Sequence[CheckpointRecord], sort_by: str | None, smaller: bool | None, *, one_per_trial: bool = False
) -> list[str]:
    """UUIDs of all that can be chosen, best first: each after all that beat it. Empty: nothing can be chosen."""
    metric = sort_by or "loss"
    if smaller is None and records:
        smaller = records[0].experiment_config["searcher"].get("smaller_is_better", True)
    candidates = [record for record in records if able(record, metric)]
    ranks = {a.uuid: sum(beats(b, a, metric, bool(smaller)) for b in candidates) for a in candidates}
    if one_per_trial:
        trials = {a.trial_id: [b for b in candidates if b.trial_id == a.trial_id] for a in candidates}
        candidates = [min(some, key=lambda a: ranks[a.uuid]) for some in trials.values()]
    return sorted((a.uuid for a in candidates), key=ranks.__getitem__)


def latest(records: Sequence[CheckpointRecord]) -> str | None:
    """UUID of the COMPLETED one with the most steps; ties: the later report time, then the UUID."""
    completed = [record for record in records if record.state == "COMPLETED"]
    if not completed:
        return None
    most = max(-1 if one.steps_completed is None else one.steps_completed for one in completed)
    among = [one for one in completed if (-1 if one.steps_completed is None else one.steps_completed) == most]
    last = max(moment(one.report_time) for one in among)
    return min(one.uuid for one in among if moment(one.report_time) == last)


# --- records to try it on ----------------------------------------------------------------------------------------

times = st.sampled_from(
    ["2024-03-01T13:00:37.250Z", "2024-03-01T13:00:37Z", "2024-03-01T13:00:37.250001Z", "2024-03-01T14:00:20Z"]
)
values = st.one_of(
    st.integers(-2, 2),
    st.floats(),
    st.sampled_from(["NaN", "Infinity", "-Infinity", "1.0", "", True, False, None, [1], {"a": 1}, 10**20]),
)
_some = st.dictionaries(st.sampled_from(["loss", "acc"]), values)
_usual = st.fixed_dictionaries({"loss": st.integers(-3, 3)}, optional={"acc": values})
metrics = st.one_of(_usual, _usual, _usual, _some, st.none())  # most can be chosen, or the order of many is never seen


@st.composite
def lists(draw: st.DrawFn, registry: str = "r") -> list[CheckpointRecord]:
    """Draw up to twelve checkpoints of one experiment and three trials, with ties, odd metrics and every state."""
    smaller = draw(st.sampled_from([True, False, None]))
    searcher: dict[str, Any] = {"metric": "loss"} | ({} if smaller is None else {"smaller_is_better": smaller})
    ids = draw(st.lists(st.integers(0, 60), unique=True, max_size=12))
    return [
        CheckpointRecord(
            registry=registry,
            uuid=uuid(id),
            experiment_id=1,
            state=draw(st.sampled_from([State.COMPLETED] * 10 + [*State])),
            trial_id=draw(st.integers(1, 3)),
            steps_completed=draw(st.none() | st.integers(0, 3)),
            report_time=draw(times),
            validation_metrics=draw(metrics),
            experiment_config={"searcher": searcher},
        )
        for id in ids
    ]
