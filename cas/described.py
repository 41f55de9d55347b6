"""What is known of a checkpoint: its attributes, its metadata, and how it shows itself."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from cas.config import Settings
from cas.errors import UsageError
from cas.index.store import Store, store_of
from cas.registry.records import CheckpointRecord, Registry, State
from cas.registry.values import plain


@dataclass(frozen=True, slots=True)
class TrainingMetadata:
    """How a checkpoint was trained: `Checkpoint.training`."""

    experiment_config: Mapping[str, Any] = field(repr=False)  # may hold storage keys
    experiment_id: int | None
    trial_id: int
    hparams: Mapping[str, Any]
    validation_metrics: Mapping[
        str, Any
    ]  # {"avgMetrics": {name: value, …}, "batchMetrics": []}; avgMetrics may be None


class Described:
    """What a registry knows of one checkpoint, as attributes: those of the clients of 0.12 and of 0.38.

    `registry` is who told it: it is asked again by `reload`, and told by `add_metadata`.
    """

    _registry: Registry | None = None

    def __init__(self, record: CheckpointRecord, *, settings: Settings, registry: Registry | None) -> None:
        self.record = record
        self.settings = settings
        self._registry = registry

    # --- which one -------------------------------------------------------------------------------------------

    @property
    def uuid(self) -> str:
        """The UUID: 36 characters, lower case."""
        return self.record.uuid

    @property
    def state(self) -> State:
        """COMPLETED, DELETED, …"""
        return self.record.state

    @property
    def experiment_id(self) -> int | None:
        """The id of its experiment, within its registry."""
        return self.record.experiment_id

    @property
    def trial_id(self) -> int | None:
        """The id of its trial, within its registry."""
        return self.record.trial_id

    @property
    def task_id(self) -> str | None:
        """The id of the task that saved it, as masters since 0.18 tell it."""
        return self.record.task_id

    @property
    def allocation_id(self) -> str | None:
        """The id of the allocation that saved it, as masters since 0.18 tell it."""
        return self.record.allocation_id

    # --- what it is ------------------------------------------------------------------------------------------

    @property
    def batch_number(self) -> int | None:
        """How many batches the trial had trained when it was saved."""
        return self.record.steps_completed

    @property
    def report_time(self) -> str | None:
        """When it was reported to the master: RFC 3339 text, as the master gave it."""
        return self.record.report_time

    @property
    def end_time(self) -> str | None:
        """When it was saved: the name that clients of 0.12 have for `report_time`."""
        return self.record.report_time

    @property
    def start_time(self) -> str | None:
        """When saving it began; newer masters do not tell, so then it is `report_time`."""
        return self.record.start_time or self.record.report_time

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What was reported with it; `metadata.json` among its files holds the same."""
        return self.record.metadata

    @property
    def resources(self) -> Mapping[str, int]:
        """Relative path → size in bytes; names that end in `/` are folders."""
        return self.record.resources

    @property
    def hparams(self) -> Mapping[str, Any]:
        """The hyperparameters of its trial."""
        return self.record.hparams

    @property
    def experiment_config(self) -> Mapping[str, Any]:
        """The configuration of its experiment; from a master, with the keys of its storage."""
        return self.record.experiment_config

    @property
    def storage_config(self) -> Mapping[str, Any]:
        """Where its files lie: `checkpoint_storage` of the experiment's configuration, empty if nothing says it."""
        storage = self.record.experiment_config.get("checkpoint_storage")
        return storage if isinstance(storage, Mapping) else {}

    @property
    def training(self) -> TrainingMetadata | None:
        """How it was trained: configuration, hyperparameters, metrics; None if no trial saved it."""
        record = self.record
        if record.trial_id is None:
            return None
        metrics: dict[str, Any] = {"avgMetrics": record.validation_metrics, "batchMetrics": []}
        return TrainingMetadata(
            record.experiment_config, record.experiment_id, record.trial_id, record.hparams, metrics
        )

    @property
    def validation(self) -> Mapping[str, Any]:
        """`{"metrics": {"num_inputs": …, "validation_metrics": {…}}, "state": "COMPLETED"}`, or metrics None."""
        metrics = self.record.validation_metrics
        if metrics is None:
            return {"metrics": None, "state": ""}
        if "validation_metrics" in metrics:
            return {"metrics": dict(metrics), "state": "COMPLETED"}
        return {"metrics": {"num_inputs": 0, "validation_metrics": dict(metrics)}, "state": "COMPLETED"}

    # --- its metadata ----------------------------------------------------------------------------------------

    def add_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Add members to its metadata, at its master and in the catalog; those of the same name are replaced.

        What else is there stays, also what others have added since this was read. The files are not touched.

        Raises:
            UsageError: it is no mapping of names to what JSON can hold.
            OfflineError: the master does not answer, or the network is off; nothing is changed.
            NotAllowedError: the user may not change it.
        """
        given: Any = metadata  # whatever it is
        if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
            raise UsageError(f"metadata must map names to values, not be {given!r:.40}")
        try:
            new = plain(metadata)
        except ValueError as error:
            raise UsageError(f"metadata cannot be written as JSON: {error}") from error
        from cas.registry import opening

        self.record = opening.add_metadata(self.store, self._keeper(), self.record, new)

    def remove_metadata(self, keys: Iterable[str]) -> None:
        """Remove members from its metadata, at its master and in the catalog; names that are not there do not matter.

        Raises:
            UsageError: these are no names.
            OfflineError: the master does not answer, or the network is off; nothing is changed.
            NotAllowedError: the user may not change it.
        """
        given: Any = keys  # whatever it is
        if isinstance(given, str | bytes) or not isinstance(given, Iterable):
            raise UsageError(f"say which names to remove as a list, not as {given!r:.40}")
        names = {str(name) for name in given}
        from cas.registry import opening

        self.record = opening.remove_metadata(self.store, self._keeper(), self.record, names)

    def write_metadata_file(self, path: str | Path) -> None:
        """Write its metadata into a file, as JSON."""
        Path(path).write_text(json.dumps(dict(self.metadata), indent=2, ensure_ascii=False), encoding="utf-8")

    def reload(self) -> None:
        """Read again what its registry knows of it.

        Raises:
            NotFoundError: it is known no more.
            OfflineError: the master does not answer.
        """
        from cas.registry import opening

        registry = self._registry or opening.open_registry(self.store, self.record.registry, self.settings)
        self.record = registry.checkpoint(self.uuid)

    def _keeper(self) -> Registry:
        """Who keeps its metadata: a master, however it was found here."""
        from cas.registry import opening
        from cas.registry.remembering import Remembering

        if isinstance(self._registry, Remembering):
            return self._registry
        return opening.open_registry(self.store, self.record.registry, self.settings)

    # --- in this process, and in others ----------------------------------------------------------------------

    @cached_property
    def store(self) -> Store:
        """The store that its files are kept in."""
        return store_of(self.settings)

    def __getstate__(self) -> dict[str, Any]:
        """All but the store and the login, so that it can be sent to another process, which opens them for itself."""
        return {name: value for name, value in self.__dict__.items() if name not in ("store", "_registry")}

    def __repr__(self) -> str:
        where = f"trial {self.trial_id} of experiment {self.experiment_id}" if self.trial_id is not None else "no trial"
        return f"<Checkpoint {self.uuid}: {where}, batch {self.batch_number}, {self.state}, {self.record.registry}>"

    def _repr_html_(self) -> str:
        """What a notebook shows: no credential, and nothing that a name from outside could run."""
        files = [name for name in self.resources if not name.endswith("/")]
        size = sum(self.resources.values())
        rows = {
            "checkpoint": self.uuid,
            "state": self.state,
            "registry": self.record.registry,
            "experiment": self.experiment_id,
            "trial": self.trial_id,
            "batches": self.batch_number,
            "reported": self.report_time,
            "files": f"{len(files)}, {size:,} bytes" if self.resources else None,
            **{str(name): value for name, value in sorted((self.record.validation_metrics or {}).items())[:_SHOWN]},
        }
        import html

        cells = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name[:_WIDTH])}</th>"
            f"<td style='text-align:left'>{html.escape(str(value)[:_WIDTH])}</td></tr>"
            for name, value in rows.items()
            if value is not None
        )
        return f"<table>{cells}</table>"


_SHOWN = 20  # metrics in a notebook
_WIDTH = 120  # characters of one cell
