"""What `/api/v1` of a master (0.13 to 0.38.1) answers, read into records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cas.registry.records import CheckpointRecord, ExperimentRecord, Reader, TrialRecord


def experiment(registry: str, answer: object) -> ExperimentRecord:
    """Read `GET /experiments/{id}`.

    Raises:
        ContentError: it is not what a master answers.
    """
    read = Reader(answer, "answer").inner("experiment")
    id = read.whole("id")
    if id is None:
        raise read.error("it has no id")
    return ExperimentRecord(
        registry=registry,
        id=id,
        name=read.text("name") or "",
        state=(read.text("state") or "").removeprefix("STATE_"),
        config=read.mapping("config") or {},
        trial_ids=read.ids("trialIds"),
    )


def trial(registry: str, answer: object) -> TrialRecord:
    """Read `GET /trials/{id}`.

    Raises:
        ContentError: it is not what a master answers.
    """
    read = Reader(answer, "answer").inner("trial")
    id, experiment_id = read.whole("id"), read.whole("experimentId")
    if id is None or experiment_id is None:
        raise read.error("it has no id, or no experimentId")
    return TrialRecord(
        registry=registry,
        id=id,
        experiment_id=experiment_id,
        state=(read.text("state") or "").removeprefix("STATE_"),
        hparams=read.mapping("hparams") or {},
    )


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list: `end` of `total` checkpoints have been listed after it."""

    checkpoints: tuple[CheckpointRecord, ...]
    end: int
    total: int


class Checkpoints:
    """Reads checkpoints; what many of them have in common (the configuration of their experiment) is kept once."""

    def __init__(self, registry: str) -> None:
        self._registry = registry
        self._configs: dict[int | None, tuple[Any, dict[str, Any]]] = {}

    def page(self, answer: object) -> Page:
        """Read one page of `GET /experiments/{id}/checkpoints` or `GET /trials/{id}/checkpoints`.

        Raises:
            ContentError: it is not what a master answers.
        """
        read = Reader(answer, "answer")
        listed = read.raw("checkpoints")
        pagination = read.inner("pagination")
        end, total = pagination.whole("endIndex"), pagination.whole("total")
        if not isinstance(listed, list) or end is None or total is None:
            raise read.error("it is no page of checkpoints")
        return Page(tuple(self.read(one) for one in listed), end, total)

    def one(self, answer: object) -> CheckpointRecord:
        """Read `GET /checkpoints/{uuid}`.

        Raises:
            ContentError: it is not what a master answers.
        """
        return self.read(Reader(answer, "answer").raw("checkpoint"))

    def read(self, value: object) -> CheckpointRecord:
        """Read one checkpoint object.

        Raises:
            ContentError: it is not what a master answers.
        """
        read = Reader(value, "checkpoint")
        training = read.inner("training")
        experiment_id = training.whole("experimentId")
        metadata = read.mapping("metadata") or {}
        return CheckpointRecord(
            registry=self._registry,
            uuid=read.uuid("uuid"),
            state=read.state("state"),
            experiment_id=experiment_id,
            trial_id=training.whole("trialId"),
            steps_completed=_steps(metadata),
            report_time=read.text("reportTime"),
            resources=read.sizes("resources"),
            metadata=metadata,
            experiment_config=self._config(experiment_id, training),
            hparams=training.mapping("hparams") or {},
            validation_metrics=training.inner("validationMetrics").mapping("avgMetrics"),
            training_metrics=training.inner("trainingMetrics").mapping("avgMetrics"),
        )

    def _config(self, experiment_id: int | None, training: Reader) -> dict[str, Any]:
        raw = training.raw("experimentConfig")
        known = self._configs.get(experiment_id)
        if known is None or known[0] != raw:
            known = (raw, training.mapping("experimentConfig") or {})
            self._configs[experiment_id] = known
        return known[1]


def _steps(metadata: Mapping[str, Any]) -> int | None:
    """The steps that a checkpoint's metadata names; what is no number of steps counts as none."""
    steps = metadata.get("steps_completed")
    if isinstance(steps, bool) or not isinstance(steps, int | float) or not 0 <= steps < 1 << 63:
        return None
    return int(steps)
