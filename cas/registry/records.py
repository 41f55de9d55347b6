"""Records: what a registry knows of a checkpoint. Never a credential, once written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol


class State(StrEnum):
    """A checkpoint's state, as Determined names it."""

    ACTIVE = "ACTIVE"
    COMPLETED = "COMPLETED"
    ERROR = "ERROR"
    DELETED = "DELETED"
    PARTIALLY_DELETED = "PARTIALLY_DELETED"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointRecord:
    """What a registry knows of one checkpoint.

    `experiment_config["searcher"]` holds the searcher metric and its direction, `experiment_config
    ["checkpoint_storage"]` where the files lie (with storage keys only in memory, hidden from repr, and taken out by
    `to_json`). `report_time` is RFC 3339 text as the master gave it. `validation_metrics` is None if there was no
    validation; odd values ("NaN", strings, booleans) are kept as they came.
    """

    registry: str
    uuid: str
    state: State = State.COMPLETED
    experiment_id: int | None = None
    trial_id: int | None = None
    steps_completed: int | None = None
    report_time: str | None = None
    resources: Mapping[str, int] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    experiment_config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    hparams: Mapping[str, Any] = field(default_factory=dict)
    validation_metrics: Mapping[str, Any] | None = None
    training_metrics: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentRecord:
    """What a registry knows of one experiment."""

    registry: str
    id: int
    name: str = ""
    state: str = ""
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    trial_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRecord:
    """What a registry knows of one trial."""

    registry: str
    id: int
    experiment_id: int
    state: str = ""
    hparams: Mapping[str, Any] = field(default_factory=dict)


class Registry(Protocol):
    """Who answers queries with records. Lists are complete: all pages, all states, in no particular order."""

    @property
    def name(self) -> str:
        """The scope of its ids: a master's canonical URL, `local`, or `recovered:<url>`."""

    def experiment(self, id: int) -> ExperimentRecord:
        """Return an experiment.

        Raises:
            NotFoundError: it has none of this id.
        """

    def trial(self, id: int) -> TrialRecord:
        """Return a trial.

        Raises:
            NotFoundError: it has none of this id.
        """

    def checkpoint(self, uuid: str) -> CheckpointRecord:
        """Return a checkpoint.

        Raises:
            NotFoundError: it has none of this UUID.
        """

    def experiment_checkpoints(self, id: int) -> list[CheckpointRecord]:
        """Return all checkpoints of an experiment."""

    def trial_checkpoints(self, id: int) -> list[CheckpointRecord]:
        """Return all checkpoints of a trial."""
