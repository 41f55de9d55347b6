"""Records: what a registry knows of a checkpoint. Never a credential, once written."""

from __future__ import annotations

import uuid as uuids
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

from cas.index.refs import PULLED
from cas.registry.reading import Reader, State, canonical_uuid, is_uuid
from cas.registry.values import plain, without_credentials

__all__ = [
    "PULLED",
    "CheckpointRecord",
    "ExperimentRecord",
    "Registry",
    "State",
    "TrialRecord",
    "canonical_uuid",
    "searcher_metric",
    "smaller_is_better",
    "uuid_of_url",
]


def uuid_of_url(url: str) -> str:
    """Return the UUID of the checkpoint at a URL: the last part of its path, if that is one, else made of the URL."""
    last = url.rstrip("/").rpartition("/")[2]
    return canonical_uuid(last) if is_uuid(last) else str(uuids.uuid5(uuids.NAMESPACE_URL, url))


def searcher_metric(config: Mapping[str, Any]) -> str | None:
    """Return the name of the metric that decides which checkpoint is best, if a configuration names one."""
    searcher = config.get("searcher")
    metric = searcher.get("metric") if isinstance(searcher, Mapping) else None
    return metric if isinstance(metric, str) and metric else None


def smaller_is_better(config: Mapping[str, Any]) -> bool:
    """Return the direction of the searcher metric that a configuration gives; absent counts as true."""
    searcher = config.get("searcher")
    return not (isinstance(searcher, Mapping) and searcher.get("smaller_is_better") is False)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointRecord:
    """What a registry knows of one checkpoint.

    `experiment_config["searcher"]` holds the searcher metric and its direction, `experiment_config
    ["checkpoint_storage"]` where the files lie (with storage keys only in memory, hidden from repr, and taken out by
    `to_json`). Times are RFC 3339 text as the master gave it; only masters of 0.12 to 0.17 tell `start_time`.
    `validation_metrics` is None if there was no validation; odd values ("NaN", strings, booleans) are kept as they
    came.
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
    start_time: str | None = None
    task_id: str | None = None
    allocation_id: str | None = None

    @property
    def searcher_metric(self) -> str | None:
        """The metric that decides which checkpoint of the experiment is best."""
        return searcher_metric(self.experiment_config)

    @property
    def smaller_is_better(self) -> bool:
        """The direction of the searcher metric; true where the configuration does not say."""
        return smaller_is_better(self.experiment_config)

    @property
    def parents(self) -> tuple[str, ...]:
        """What the catalog finds it by."""
        experiment = () if self.experiment_id is None else (f"experiment/{self.experiment_id}",)
        trial = () if self.trial_id is None else (f"trial/{self.trial_id}",)
        return experiment + trial

    def to_json(self) -> dict[str, Any]:
        """Return what is written of it: no credential, and no configuration if it has an experiment.

        The experiment's own record holds that, once for all of its checkpoints.
        """
        data: dict[str, Any] = {
            "state": str(self.state),
            "experiment": self.experiment_id,
            "trial": self.trial_id,
            "steps": self.steps_completed,
            "report_time": self.report_time,
            "resources": dict(self.resources),
            "metadata": without_credentials(plain(self.metadata)),
            "hparams": without_credentials(plain(self.hparams)),
            "validation": plain(self.validation_metrics),
            "training": plain(self.training_metrics),
            **_told(start_time=self.start_time, task=self.task_id, allocation=self.allocation_id),
        }
        if self.experiment_id is None and self.experiment_config:
            data["config"] = without_credentials(plain(self.experiment_config))
        return data

    @classmethod
    def from_json(
        cls, data: Mapping[str, Any], *, registry: str, uuid: str, config: Mapping[str, Any] | None = None
    ) -> Self:
        """Read what `to_json` wrote; `config` is that of the experiment's record.

        Raises:
            ContentError: it is not what `to_json` writes.
        """
        read = Reader(data, f"record of checkpoint {uuid!r:.60} of {registry}")
        if not is_uuid(uuid):
            raise read.error("its id is no UUID")
        return cls(
            registry=registry,
            uuid=uuid,
            state=read.state("state"),
            experiment_id=read.whole("experiment"),
            trial_id=read.whole("trial"),
            steps_completed=read.whole("steps"),
            report_time=read.text("report_time"),
            resources=read.sizes("resources"),
            metadata=read.mapping("metadata") or {},
            experiment_config=read.mapping("config") or (config if config is not None else {}),
            hparams=read.mapping("hparams") or {},
            validation_metrics=read.mapping("validation"),
            training_metrics=read.mapping("training"),
            start_time=read.text("start_time"),
            task_id=read.text("task"),
            allocation_id=read.text("allocation"),
        )


def _told(**values: Any) -> dict[str, Any]:
    """Those members that a registry told anything of: most tell little, and a record is written often."""
    return {name: value for name, value in values.items() if value is not None and value != () and value != {}}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentRecord:
    """What a registry knows of one experiment; what it did not tell is None, or empty."""

    registry: str
    id: int
    name: str = ""
    state: str = ""
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    trial_ids: tuple[int, ...] = ()
    start_time: str | None = None
    end_time: str | None = None
    description: str | None = None
    labels: tuple[str, ...] = ()
    archived: bool | None = None

    @property
    def searcher_metric(self) -> str | None:
        """The metric that decides which checkpoint is best."""
        return searcher_metric(self.config)

    @property
    def smaller_is_better(self) -> bool:
        """The direction of the searcher metric; true where the configuration does not say."""
        return smaller_is_better(self.config)

    def to_json(self) -> dict[str, Any]:
        """Return what is written of it, with no credential."""
        config = without_credentials(plain(self.config))
        return {
            "name": self.name,
            "state": self.state,
            "config": config,
            "trials": list(self.trial_ids),
            **_told(start_time=self.start_time, end_time=self.end_time, description=self.description),
            **_told(labels=list(self.labels) or None, archived=self.archived),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], *, registry: str, id: int) -> Self:
        """Read what `to_json` wrote.

        Raises:
            ContentError: it is not what `to_json` writes.
        """
        read = Reader(data, f"record of experiment {id} of {registry}")
        return cls(
            registry=registry,
            id=id,
            name=read.text("name") or "",
            state=read.text("state") or "",
            config=read.mapping("config") or {},
            trial_ids=read.ids("trials"),
            start_time=read.text("start_time"),
            end_time=read.text("end_time"),
            description=read.text("description"),
            labels=read.names("labels"),
            archived=read.truth("archived"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRecord:
    """What a registry knows of one trial. Masters of 0.12 need not tell its experiment."""

    registry: str
    id: int
    experiment_id: int | None
    state: str = ""
    hparams: Mapping[str, Any] = field(default_factory=dict)
    start_time: str | None = None
    end_time: str | None = None
    steps_completed: int | None = None
    summary_metrics: Mapping[str, Any] = field(default_factory=dict)

    @property
    def parents(self) -> tuple[str, ...]:
        """What the catalog finds it by."""
        return () if self.experiment_id is None else (f"experiment/{self.experiment_id}",)

    def to_json(self) -> dict[str, Any]:
        """Return what is written of it, with no credential."""
        hparams = without_credentials(plain(self.hparams))
        return {
            "experiment": self.experiment_id,
            "state": self.state,
            "hparams": hparams,
            **_told(start_time=self.start_time, end_time=self.end_time, steps=self.steps_completed),
            **_told(summary=plain(self.summary_metrics)),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], *, registry: str, id: int) -> Self:
        """Read what `to_json` wrote.

        Raises:
            ContentError: it is not what `to_json` writes.
        """
        read = Reader(data, f"record of trial {id} of {registry}")
        return cls(
            registry=registry,
            id=id,
            experiment_id=read.whole("experiment"),
            state=read.text("state") or "",
            hparams=read.mapping("hparams") or {},
            start_time=read.text("start_time"),
            end_time=read.text("end_time"),
            steps_completed=read.whole("steps"),
            summary_metrics=read.mapping("summary") or {},
        )


def place_of(thing: CheckpointRecord | TrialRecord | ExperimentRecord) -> tuple[str, str, tuple[str, ...]]:
    """Return under which kind and id a record is written down, and what it is found by."""
    if isinstance(thing, CheckpointRecord):
        return "checkpoint", thing.uuid, thing.parents
    if isinstance(thing, TrialRecord):
        return "trial", str(thing.id), (f"experiment/{thing.experiment_id}",)
    return "experiment", str(thing.id), ()


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

    def experiment_trials(self, id: int) -> list[TrialRecord]:
        """Return all trials of an experiment, in order of id."""

    def experiment_checkpoints(self, id: int) -> list[CheckpointRecord]:
        """Return all checkpoints of an experiment."""

    def trial_checkpoints(self, id: int) -> list[CheckpointRecord]:
        """Return all checkpoints of a trial."""
