"""Records: what a registry knows of a checkpoint. Never a credential, once written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol, Self

from cas.errors import ContentError, UsageError
from cas.registry.values import plain, without_credentials

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.ASCII)
_UUID_HEX = re.compile(r"[0-9a-f]{32}", re.ASCII)


class State(StrEnum):
    """A checkpoint's state, as Determined names it."""

    ACTIVE = "ACTIVE"
    COMPLETED = "COMPLETED"
    ERROR = "ERROR"
    DELETED = "DELETED"
    PARTIALLY_DELETED = "PARTIALLY_DELETED"


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
        if not _UUID.fullmatch(uuid):
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
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentRecord:
    """What a registry knows of one experiment."""

    registry: str
    id: int
    name: str = ""
    state: str = ""
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    trial_ids: tuple[int, ...] = ()

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
        return {"name": self.name, "state": self.state, "config": config, "trials": list(self.trial_ids)}

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
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRecord:
    """What a registry knows of one trial."""

    registry: str
    id: int
    experiment_id: int
    state: str = ""
    hparams: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return what is written of it, with no credential."""
        hparams = without_credentials(plain(self.hparams))
        return {"experiment": self.experiment_id, "state": self.state, "hparams": hparams}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], *, registry: str, id: int) -> Self:
        """Read what `to_json` wrote.

        Raises:
            ContentError: it is not what `to_json` writes.
        """
        read = Reader(data, f"record of trial {id} of {registry}")
        experiment = read.whole("experiment")
        if experiment is None:
            raise read.error("it names no experiment")
        state, hparams = read.text("state") or "", read.mapping("hparams") or {}
        return cls(registry=registry, id=id, experiment_id=experiment, state=state, hparams=hparams)


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


# --- from outside ----------------------------------------------------------------------------------------------


def canonical_uuid(text: object) -> str:
    """Return a UUID in its canonical form (36 characters, lower case), from any form that a master takes.

    Those are 36 characters in any case, 32 hex digits, and 36 in `{…}` or after `urn:uuid:`.

    Raises:
        UsageError: it is none of them.
    """
    lower = str(text).strip().lower()
    if _UUID_HEX.fullmatch(lower):
        return "-".join((lower[:8], lower[8:12], lower[12:16], lower[16:20], lower[20:]))
    if lower.startswith("{") and lower.endswith("}"):
        lower = lower[1:-1]
    lower = lower.removeprefix("urn:uuid:")
    if not _UUID.fullmatch(lower):
        raise UsageError(f"not a checkpoint UUID: {str(text)!r:.80}")
    return lower


class Reader:
    """One JSON object from outside, read strictly: a field has its type, or the whole object is refused.

    Raises:
        ContentError: the value is no object, or a field is not what it must be.
    """

    def __init__(self, value: object, subject: str) -> None:
        self._subject = subject
        if not isinstance(value, Mapping):
            raise self.error("it is no object")
        self._value: Mapping[str, Any] = value

    def error(self, reason: str) -> ContentError:
        """Return the error that says what is wrong with it."""
        return ContentError(f"{self._subject}: {reason}")

    def _wrong(self, name: str) -> ContentError:
        return self.error(f"{name} is {self._value.get(name)!r:.60}")

    def raw(self, name: str) -> Any:
        """Return a field as it is; None if it is absent."""
        return self._value.get(name)

    def inner(self, name: str) -> Reader:
        """Return a field that is an object; an absent one reads as empty."""
        return Reader(self.mapping(name) or {}, f"{self._subject}: {name}")

    def text(self, name: str) -> str | None:
        """Return a field that is text."""
        value = self._value.get(name)
        if value is not None and not isinstance(value, str):
            raise self._wrong(name)
        return plain(value)  # type: ignore[no-any-return]

    def mapping(self, name: str) -> dict[str, Any] | None:
        """Return a field that is an object, as plain JSON."""
        value = self._value.get(name)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self._wrong(name)
        try:
            return plain(value)  # type: ignore[no-any-return]
        except ValueError as error:
            raise self.error(f"{name} is {error}") from error

    def whole(self, name: str) -> int | None:
        """Return a field that is a whole number of 0 or more; masters write some as text, or as doubles."""
        value = self._value.get(name)
        if value is None:
            return None
        found = _whole(value)
        if found is None:
            raise self._wrong(name)
        return found

    def ids(self, name: str) -> tuple[int, ...]:
        """Return a field that is a list of ids."""
        values = self._value.get(name) or []
        found = [_whole(value) for value in values] if isinstance(values, list) else [None]
        if None in found:
            raise self._wrong(name)
        return tuple(one for one in found if one is not None)

    def sizes(self, name: str) -> dict[str, int]:
        """Return a field that maps names to sizes in bytes."""
        values = self._value.get(name)
        if values is None:
            return {}
        if not isinstance(values, Mapping):
            raise self._wrong(name)
        found: dict[str, int] = {}
        for key, value in values.items():
            size = _whole(value)
            if size is None:
                raise self.error(f"{name}: the size of {key!r:.60} is {value!r:.40}")
            found[plain(key)] = size
        return found

    def uuid(self, name: str) -> str:
        """Return a field that is the UUID of a checkpoint, in canonical form."""
        value = self._value.get(name)
        if not isinstance(value, str) or not _UUID.fullmatch(value):
            raise self._wrong(name)
        return value

    def state(self, name: str) -> State:
        """Return a field that is the state of a checkpoint, with or without the master's prefix."""
        value = self.text(name) or ""
        try:
            return State(value.removeprefix("STATE_"))
        except ValueError as error:
            raise self._wrong(name) from error


def _whole(value: object) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        value = int(value) if value.isascii() and value.isdigit() and len(value) < 20 else None
    if isinstance(value, float):
        value = int(value) if value.is_integer() else None
    return value if isinstance(value, int) and 0 <= value < 1 << 63 else None
