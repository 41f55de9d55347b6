"""What choices among many checkpoints are made by, read many at a time: a small part of each record."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from cas.errors import ContentError
from cas.registry import records
from cas.registry.records import CheckpointRecord, State

log = logging.getLogger("cas.registry")

_STATES = {str(state): state for state in State}
_TOP = 1 << 63


class Brief:
    """What `select.Candidate` asks for; 10,000 of them are made in the time of 300 whole records."""

    __slots__ = ("config", "report_time", "state", "steps_completed", "trial_id", "uuid", "validation_metrics")

    def __init__(
        self,
        uuid: str,
        state: State,
        trial_id: int | None,
        steps_completed: int | None,
        report_time: str | None,
        validation_metrics: Mapping[str, Any] | None,
        config: Mapping[str, Any],
    ) -> None:
        self.uuid = uuid
        self.state = state
        self.trial_id = trial_id
        self.steps_completed = steps_completed
        self.report_time = report_time
        self.validation_metrics = validation_metrics
        self.config = config

    @property
    def searcher_metric(self) -> str | None:
        """The metric that decides which checkpoint of the experiment is best."""
        return records.searcher_metric(self.config)

    @property
    def smaller_is_better(self) -> bool:
        """The direction of the searcher metric; true where the configuration does not say."""
        return records.smaller_is_better(self.config)

    def is_of(self, record: CheckpointRecord) -> bool:
        """Whether a whole record still says the same."""
        mine = (self.uuid, self.state, self.trial_id, self.steps_completed, self.report_time)
        theirs = (record.uuid, record.state, record.trial_id, record.steps_completed, record.report_time)
        return mine == theirs and self.validation_metrics == record.validation_metrics


def read(rows: Iterable[list[Any]], *, registry: str, config: Mapping[str, Any]) -> Iterator[Brief]:
    """Read `[id, state, trial, steps, report_time, validation]` of the checkpoints of one experiment.

    Rows that are not as `CheckpointRecord.to_json` writes them are read as `from_json` would; damaged ones are
    skipped, and said.
    """
    for uuid, state, trial, steps, time, validation in rows:
        if (
            type(state) is str
            and (known := _STATES.get(state)) is not None
            and (trial is None or (type(trial) is int and 0 <= trial < _TOP))
            and (steps is None or (type(steps) is int and 0 <= steps < _TOP))
            and (time is None or type(time) is str)
            and (validation is None or type(validation) is dict)
        ):
            yield Brief(uuid, known, trial, steps, time, validation, config)
            continue
        data = {"state": state, "trial": trial, "steps": steps, "report_time": time, "validation": validation}
        try:
            one = CheckpointRecord.from_json(data, registry=registry, uuid=str(uuid))
        except ContentError as error:
            log.warning("skipped a damaged record: %s", error)
            continue
        yield Brief(
            one.uuid, one.state, one.trial_id, one.steps_completed, one.report_time, one.validation_metrics, config
        )
