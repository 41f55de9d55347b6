"""Which checkpoint: best, latest, the best n, and lists in order. Pure functions over complete lists of records."""

from __future__ import annotations

import heapq
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Protocol, TypeVar

from cas.errors import NotFoundError, UsageError
from cas.registry.records import State
from cas.registry.values import is_name, is_whole

_TIME = re.compile(r"(\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d)(?:\.(\d+))?([Zz]|[+-]\d\d:\d\d)?", re.ASCII)

Time = tuple[int, int]  # seconds since 1970, and nanoseconds


class Candidate(Protocol):
    """What a choice is made by: a `CheckpointRecord` has it, and so has what the catalog reads of many at once."""

    @property
    def uuid(self) -> str:
        """The UUID."""

    @property
    def state(self) -> State:
        """The state."""

    @property
    def trial_id(self) -> int | None:
        """The id of the trial, if it has one."""

    @property
    def steps_completed(self) -> int | None:
        """How many batches the trial had trained."""

    @property
    def report_time(self) -> str | None:
        """RFC 3339 text, as it came."""

    @property
    def validation_metrics(self) -> Mapping[str, Any] | None:
        """Name → value, as they came; None if there was no validation."""

    @property
    def searcher_metric(self) -> str | None:
        """The metric that decides which checkpoint of the experiment is best."""

    @property
    def smaller_is_better(self) -> bool:
        """The direction of the searcher metric."""


C = TypeVar("C", bound=Candidate)


Value = Callable[[Candidate], float | str | None]


class CheckpointSortBy(StrEnum):
    """Attributes that a list of checkpoints can be in order of; any other text is the name of a metric."""

    UUID = "UUID"
    TRIAL_ID = "TRIAL_ID"
    BATCH_NUMBER = "BATCH_NUMBER"
    END_TIME = "END_TIME"
    STATE = "STATE"
    SEARCHER_METRIC = "SEARCHER_METRIC"


class OrderBy(StrEnum):
    """The direction of a list."""

    ASC = "ASC"
    DESC = "DESC"


@dataclass(frozen=True, slots=True)
class Better:
    """What *better* means: a metric, and whether its smaller value wins."""

    metric: str
    smaller_is_better: bool

    def value(self, record: Candidate) -> float | None:
        """What the better record has less of, ties apart; None if it is not COMPLETED or has no such finite number."""
        if record.state is not State.COMPLETED:
            return None
        value = metric_value(record, self.metric)
        return value if value is None or self.smaller_is_better else -value


def by_time(record: Candidate) -> tuple[bool, Time, str]:
    """Which of two equally good records comes first: the one with the older report time, then the lesser UUID."""
    time = report_time(record)
    return (time is None, time or (0, 0), record.uuid)


def metric_value(record: Candidate, metric: str) -> float | None:
    """Return a validation metric if it is a finite number, else None: text, "NaN" and booleans are none."""
    value = (record.validation_metrics or {}).get(metric)
    if type(value) is float:  # nearly always
        return value if math.isfinite(value) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return value if math.isfinite(value) else None
    except OverflowError:  # a whole number larger than any float
        return None


def report_time(record: Candidate) -> Time | None:
    """Return when a checkpoint was reported, to the nanosecond; None if that is not known."""
    found = _TIME.fullmatch(record.report_time or "")
    if found is None:
        return None
    whole, fraction, zone = found.groups()
    try:
        moment = datetime.fromisoformat(whole.upper() + ("+00:00" if zone in (None, "Z", "z") else zone))
        return int(moment.timestamp()), int((fraction or "0").ljust(9, "0")[:9])
    except (ValueError, OverflowError):
        return None


# --- what better means ---------------------------------------------------------------------------------------


def better(records: Sequence[Candidate], *, sort_by: str | None, smaller_is_better: bool | None, of: str) -> Better:
    """Return what *better* means: by `sort_by`, else the searcher metric; by the direction given, else configured.

    Raises:
        UsageError: there is no searcher metric to fall back to, or no direction for another metric.
    """
    if smaller_is_better not in (None, True, False):
        raise UsageError(f"smaller_is_better must be True or False, not {smaller_is_better!r:.40}")
    configured = next((record for record in records if record.searcher_metric is not None), None)
    if sort_by is not None and not is_name(sort_by):
        raise UsageError(f"sort_by must be the name of a metric, not {sort_by!r:.40}")
    if configured is None or configured.searcher_metric is None:
        if sort_by is None:
            raise UsageError(f"{of} has no searcher metric: say sort_by=… (--sort-by …); {_known(records)}")
        searcher = None
    else:
        searcher = configured.searcher_metric
    metric = sort_by if sort_by is not None else str(searcher)
    if smaller_is_better is not None:
        return Better(metric, smaller_is_better)
    if configured is None or metric != searcher:
        other = f"the searcher metric of {of} is {searcher!r}" if searcher else f"{of} has no searcher metric"
        raise UsageError(
            f"is a smaller {metric!r} better? ({other}, so nothing says it.) Say smaller_is_better=True or"
            " smaller_is_better=False (--smaller-is-better true or --smaller-is-better false)"
        )
    return Better(metric, configured.smaller_is_better)


def metric_names(records: Iterable[Candidate]) -> list[str]:
    """Return the names of all validation metrics, in order."""
    return sorted({name for record in records for name in record.validation_metrics or {}})


def _known(records: Iterable[Candidate]) -> str:
    names = _listed(metric_names(records))
    return f"its metrics are: {names}" if names else "it has no metrics at all"


def _listed(names: Sequence[str]) -> str:
    more = f", and {len(names) - 20} more" if len(names) > 20 else ""
    return f"{', '.join(names[:20])}{more}"


def require_metric(name: str, records: Sequence[Candidate], *, besides: Sequence[str] = ()) -> None:
    """Refuse to sort by what none of some records has (unless there are none); `besides`: what else can be named.

    Raises:
        UsageError: no record has such a metric.
    """
    known = metric_names(records)
    if not records or name in known:
        return
    metrics = f"the metrics are: {_listed(known)}" if known else "no metrics are known"
    others = f"; else there are {', '.join(besides)}" if besides else ""
    raise UsageError(f"nothing can be sorted by {name!r:.80}: {metrics}{others}")


# --- the choice ------------------------------------------------------------------------------------------------


def best(
    records: Iterable[C],
    *,
    sort_by: str | None = None,
    smaller_is_better: bool | None = None,
    of: str = "this list",
) -> C:
    """Return the COMPLETED checkpoint with the best finite value of a metric; `of` names the list in errors.

    Ties: the older report time, then the UUID.

    Raises:
        UsageError: nothing says which metric, or which direction.
        NotFoundError: no checkpoint is left; the message says why.
    """
    return top_n(records, 1, sort_by=sort_by, smaller_is_better=smaller_is_better, of=of)[0]


def top_n(
    records: Iterable[C],
    limit: int,
    *,
    sort_by: str | None = None,
    smaller_is_better: bool | None = None,
    one_per_trial: bool = False,
    of: str = "this list",
) -> list[C]:
    """Return the best checkpoints, best first, at most `limit`; with `one_per_trial` the best of each trial.

    Raises:
        UsageError: nothing says which metric, or which direction; or the limit is less than 1.
        NotFoundError: no checkpoint is left; the message says why.
    """
    if not is_whole(limit, 1):
        raise UsageError(f"the number of checkpoints must be 1 or more, not {limit!r:.40}")
    every = list(records)
    if not every:
        raise NotFoundError(f"{of} has no checkpoints")
    wanted = better(every, sort_by=sort_by, smaller_is_better=smaller_is_better, of=of)
    able = [(value, one) for one in every if (value := wanted.value(one)) is not None]
    if not able:
        raise NotFoundError(_why_none(every, wanted.metric, of))
    among = _best_of_each_trial(able) if one_per_trial else able
    if limit < len(among):  # what is worse than the last one cannot be among them: its time need not be read
        last = heapq.nsmallest(limit, [value for value, _ in among])[-1]
        among = [(value, one) for value, one in among if value <= last]
    return [one for _, one in sorted(among, key=_place)][:limit]


def _place(able: tuple[float, Candidate]) -> tuple[float, tuple[bool, Time, str]]:
    return able[0], by_time(able[1])


def _best_of_each_trial(able: Iterable[tuple[float, C]]) -> list[tuple[float, C]]:
    """The best one of each trial; what has no trial stands for itself."""
    best: dict[int | str, tuple[float, C]] = {}
    for value, record in able:
        trial = record.uuid if record.trial_id is None else record.trial_id
        known = best.get(trial)
        if known is None or value < known[0] or (value == known[0] and by_time(record) < by_time(known[1])):
            best[trial] = (value, record)
    return list(best.values())


def latest(records: Iterable[C], *, of: str = "this list") -> C:
    """Return the COMPLETED checkpoint with the most steps; ties: the later report time, then the UUID.

    Raises:
        NotFoundError: no checkpoint is COMPLETED.
    """
    every = list(records)
    completed = [record for record in every if record.state is State.COMPLETED]
    if not completed:
        raise NotFoundError(_why_none(every, None, of) if every else f"{of} has no checkpoints")

    most = max(map(_steps, completed))
    among = sorted((record for record in completed if _steps(record) == most), key=lambda record: record.uuid)
    return max(among, key=lambda record: report_time(record) or (-1 << 62, 0))


def _steps(record: Candidate) -> int:
    return -1 if record.steps_completed is None else record.steps_completed


def _why_none(records: Sequence[Candidate], metric: str | None, of: str) -> str:
    completed = [record for record in records if record.state is State.COMPLETED]
    states = Counter(str(record.state) for record in records if record.state is not State.COMPLETED)
    parts = [f"{count} {'is' if count == 1 else 'are'} {state}" for state, count in sorted(states.items())]
    if metric is None:
        return f"none of the {len(records)} checkpoints of {of} is COMPLETED: {', '.join(parts)}"
    lacking = sum(metric not in (record.validation_metrics or {}) for record in completed)
    odd = len(completed) - lacking
    if lacking:
        parts.append(f"{lacking} {'lacks' if lacking == 1 else 'lack'} the metric")
    if odd:
        parts.append(f"{odd} {'has' if odd == 1 else 'have'} it as no finite number")
    known = f"; {_known(completed)}" if lacking else ""
    return (
        f"none of the {len(records)} checkpoints of {of} is COMPLETED with a finite {metric!r}:"
        f" {', '.join(parts)}{known}"
    )


# --- lists -----------------------------------------------------------------------------------------------------


def in_order(
    records: Iterable[C],
    *,
    sort_by: str | CheckpointSortBy | None = None,
    order_by: str | OrderBy | None = None,
    limit: int | None = None,
) -> list[C]:
    """Return records in order of an attribute or of a metric.

    Default: the best by the searcher metric first, as `best` has it, what is not COMPLETED last; with no searcher
    metric by trial. What lacks the value comes last in both directions. Ties: the older report time, then the UUID.

    Raises:
        UsageError: one of `sort_by` and `order_by` without the other, an unknown direction, a limit below 1.
    """
    if (sort_by is None) != (order_by is None):
        raise UsageError("sort_by and order_by go together: give both, or neither")
    if sort_by is not None and not is_name(sort_by):
        raise UsageError(f"sort_by must be a CheckpointSortBy or the name of a metric, not {sort_by!r:.40}")
    if limit is not None and not is_whole(limit, 1):
        raise UsageError(f"max_results must be 1 or more, not {limit!r:.40}")
    settled = sorted(records, key=lambda record: (report_time(record) or (1 << 62, 0), record.uuid))
    if sort_by is None:
        value, descending = _best_first(settled)
    else:
        value, descending = _value_of(sort_by), _direction(order_by) is OrderBy.DESC
    able = [record for record in settled if value(record) is not None]
    lacking = [record for record in settled if value(record) is None]
    able.sort(key=value, reverse=descending)  # type: ignore[arg-type]  # none of these values is None
    return (able + lacking)[:limit]


def _best_first(records: Sequence[Candidate]) -> tuple[Value, bool]:
    """What a list is in order of where nothing is said, and whether the largest comes first."""
    configured = next((record for record in records if record.searcher_metric is not None), None)
    if configured is None or configured.searcher_metric is None:
        return _value_of(CheckpointSortBy.TRIAL_ID), False
    metric = configured.searcher_metric

    def value(record: Candidate) -> float | None:
        return metric_value(record, metric) if record.state is State.COMPLETED else None

    return value, not configured.smaller_is_better


def _direction(order_by: str | OrderBy | None) -> OrderBy:
    if order_by is None:
        return OrderBy.ASC
    name = str(getattr(order_by, "name", order_by)).upper().removeprefix("ORDER_BY_")
    if name not in OrderBy.__members__:
        raise UsageError(f"order_by must be ASC or DESC, not {order_by!r:.40}")
    return OrderBy[name]


def _value_of(sort_by: str | CheckpointSortBy) -> Value:
    attributes: dict[CheckpointSortBy, Value] = {
        CheckpointSortBy.UUID: lambda record: record.uuid,
        CheckpointSortBy.TRIAL_ID: lambda record: record.trial_id,
        CheckpointSortBy.BATCH_NUMBER: lambda record: record.steps_completed,
        CheckpointSortBy.END_TIME: _end_time,
        CheckpointSortBy.STATE: lambda record: list(State).index(record.state),
        CheckpointSortBy.SEARCHER_METRIC: lambda record: metric_value(record, record.searcher_metric or ""),
    }
    if isinstance(sort_by, CheckpointSortBy):
        return attributes[sort_by]
    name = str(sort_by)
    return lambda record: metric_value(record, name)


def _end_time(record: Candidate) -> float | None:
    time = report_time(record)
    return None if time is None else time[0] * 10**9 + time[1]
