"""Which checkpoints of a list: by state, and by expressions over their validation metrics."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cas.errors import UsageError
from cas.registry.records import CheckpointRecord, State
from cas.registry.select import metric_value

_EXPRESSION = re.compile(r"\s*(.*?)\s*(<=|>=|==|!=|=|<|>)\s*(.*?)\s*", re.DOTALL)
_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
}


@dataclass(frozen=True, slots=True)
class MetricFilter:
    """A condition on one validation metric: what has no finite number of that name never meets it."""

    metric: str
    sign: str | None = None
    value: float = 0.0

    @classmethod
    def parse(cls, text: str) -> MetricFilter:
        """Read `accuracy>0.9` (also `<`, `<=`, `>=`, `=`, `!=`), or a name alone: has such a metric.

        Raises:
            UsageError: it is neither.
        """
        found = _EXPRESSION.fullmatch(text)
        name, sign, number = found.groups() if found else (text.strip(), None, "0")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not name or math.isnan(value):
            raise UsageError(
                f"not a condition on a metric: {text!r:.80}; say for example 'accuracy>0.9' or 'loss<=1e-3'"
            )
        return cls(name, sign, value)

    def meets(self, record: CheckpointRecord) -> bool:
        """Whether a checkpoint meets the condition."""
        value = metric_value(record, self.metric)
        return value is not None and (self.sign is None or _OPERATORS[self.sign](value, self.value))


def parse_states(names: Iterable[str]) -> frozenset[State]:
    """Read names of states, in any case.

    Raises:
        UsageError: there is no such state.
    """
    found = set()
    for name in names:
        known = name.strip().upper().removeprefix("STATE_")
        if known not in State.__members__:
            raise UsageError(f"no state is called {name!r:.40}; there are {', '.join(State)}")
        found.add(State[known])
    return frozenset(found)
