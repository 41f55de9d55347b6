"""The registry of what was added to this store itself: `local`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from cas.errors import ContentError, ExperimentConflictError, NotFoundError, UsageError
from cas.index import disk
from cas.index.store import Store
from cas.registry import records as said_by
from cas.registry.catalog import LOCAL, Catalog, Record
from cas.registry.records import (
    CheckpointRecord,
    ExperimentRecord,
    State,
    TrialRecord,
    canonical_uuid,
)
from cas.registry.remembering import remember
from cas.registry.values import as_number, is_name, is_whole, plain

__all__ = ["LOCAL", "check_local", "record_local", "record_removed"]


def check_local(store: Store, **said: Any) -> CheckpointRecord:
    """Check what `record_local` would be given, before gigabytes are copied; return its record, and write nothing.

    Raises:
        UsageError: as `record_local`.
    """
    return _plan(store, **said)[0]


def record_local(store: Store, *, durable: bool = False, **said: Any) -> CheckpointRecord:
    """Write down a checkpoint that was added here, with its trial and experiment; return its record.

    An experiment's configuration, searcher metric and direction are said once; later checkpoints inherit them.
    With `durable`, what is written survives a power cut when this returns. `said` is what `_plan` takes.

    Raises:
        UsageError: an argument is not what it must be, contradicts another, or what was said before.
    """
    with store.exclusive("records of local"):  # so that two adds at once cannot contradict each other
        record, new = _plan(store, **said)
        remember(store, LOCAL, new, durable=durable)
    return record


def _plan(
    store: Store,
    *,
    uuid: str,
    experiment: int | None = None,
    trial: int | None = None,
    steps: int | None = None,
    metrics: Mapping[str, float] | None = None,
    searcher_metric: str | None = None,
    smaller_is_better: bool | None = None,
    hparams: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    resources: Mapping[str, int] | None = None,
) -> tuple[CheckpointRecord, list[Record]]:
    """Return the checkpoint's record, and all records that are new with it."""
    experiment, trial, steps = _whole("experiment", experiment), _whole("trial", trial), _whole("steps", steps, least=0)
    if trial is not None and experiment is None:
        raise UsageError(f"trial {trial} is of no experiment: say which one it belongs to (experiment=…, --experiment)")
    checkpoint = CheckpointRecord(
        registry=LOCAL,
        uuid=canonical_uuid(uuid),
        experiment_id=experiment,
        trial_id=trial,
        steps_completed=steps,
        report_time=_now(),
        resources=dict(resources or {}),
        metadata=_mapping("metadata", metadata),
        hparams=_mapping("hparams", hparams),
        validation_metrics=None if metrics is None else _metrics(metrics),
    )
    searcher = _Searcher(searcher_metric, smaller_is_better)
    given = _mapping("config", config)
    if experiment is not None:
        return _plan_trained(store, checkpoint, searcher, given)
    searcher.require_none()
    record = replace(checkpoint, experiment_config=given)
    return record, [record]


def record_removed(store: Store, uuid: str) -> CheckpointRecord | None:
    """Note that a checkpoint that was added here is no more; return its record, or None if there was none."""
    try:
        record = Catalog(store, LOCAL).checkpoint(uuid)
    except NotFoundError:
        return None
    deleted = replace(record, state=State.DELETED)
    remember(store, LOCAL, [deleted])
    return deleted


def _plan_trained(
    store: Store, checkpoint: CheckpointRecord, searcher: _Searcher, given: dict[str, Any]
) -> tuple[CheckpointRecord, list[Record]]:
    known = _known_experiment(store, checkpoint)
    config = searcher.settle(checkpoint.experiment_id, {} if known is None else known.config, given)
    trial = _trial(store, checkpoint)
    hparams = checkpoint.hparams or ({} if trial is None else trial.hparams)
    record = replace(checkpoint, experiment_config=config, hparams=hparams)
    _refuse_another_place(store, record)
    new: list[Record] = [record]
    if known is None or known.config != config:
        assert checkpoint.experiment_id is not None, "the caller records checkpoints with no experiment itself"
        name = known.name if known is not None else str(config.get("name") or "")
        new.append(ExperimentRecord(registry=LOCAL, id=checkpoint.experiment_id, name=name, config=config))
    if trial is not None and hparams != trial.hparams:
        new.append(replace(trial, hparams=hparams))
    return record, new


def _known_experiment(store: Store, checkpoint: CheckpointRecord) -> ExperimentRecord | None:
    try:
        return Catalog(store, LOCAL).experiment(checkpoint.experiment_id or 0)
    except (NotFoundError, ContentError):
        return None


def _trial(store: Store, checkpoint: CheckpointRecord) -> TrialRecord | None:
    """The trial as it is known, or a new one.

    Raises:
        UsageError: it is another experiment's.
    """
    if checkpoint.trial_id is None or checkpoint.experiment_id is None:
        return None
    try:
        known = Catalog(store, LOCAL).trial(checkpoint.trial_id)
    except (NotFoundError, ContentError):
        return TrialRecord(
            registry=LOCAL,
            id=checkpoint.trial_id,
            experiment_id=checkpoint.experiment_id,
            hparams=checkpoint.hparams,
        )
    if known.experiment_id != checkpoint.experiment_id:
        raise ExperimentConflictError(
            f"trial {known.id} belongs to experiment {known.experiment_id}, not to experiment"
            f" {checkpoint.experiment_id}; ids of trials are unique over all experiments"
        )
    return known


def _refuse_another_place(store: Store, record: CheckpointRecord) -> None:
    """Refuse to move a checkpoint that is here to another trial or experiment."""
    try:
        known = Catalog(store, LOCAL).checkpoint(record.uuid)
    except (NotFoundError, ContentError):
        return
    before, now = (known.experiment_id, known.trial_id), (record.experiment_id, record.trial_id)
    if known.state is not State.DELETED and known.experiment_id is not None and before != now:
        raise UsageError(
            f"checkpoint {record.uuid} was added before, to trial {known.trial_id} of experiment"
            f" {known.experiment_id}; `cas rm {record.uuid}` removes it"
        )


@dataclass(frozen=True, slots=True)
class _Searcher:
    """What a call says of the searcher metric."""

    metric: str | None
    smaller_is_better: bool | None

    def require_none(self) -> None:
        """Refuse a searcher metric where there is no experiment that could have one."""
        if self.metric is not None or self.smaller_is_better is not None:
            raise UsageError("searcher_metric and smaller_is_better are an experiment's: name that too (experiment=…)")

    def settle(self, experiment: int | None, known: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the experiment's configuration after this call.

        Raises:
            UsageError: a metric with no direction, a direction with no metric, or a contradiction.
        """
        if self.smaller_is_better not in (None, True, False):
            raise UsageError(f"smaller_is_better must be True or False, not {self.smaller_is_better!r:.40}")
        if self.metric is not None and not is_name(self.metric):
            raise UsageError(f"searcher_metric must be the name of a metric, not {self.metric!r:.40}")
        config = {**known, **given}
        sources = [source for source in (known, given) if said_by.searcher_metric(source) is not None]
        said = {(said_by.searcher_metric(source), said_by.smaller_is_better(source)) for source in sources}
        if len(said) > 1:
            raise self._contradiction(
                experiment, known, str(said_by.searcher_metric(given)), smaller=said_by.smaller_is_better(given)
            )
        metric, direction = said.pop() if said else (None, True)
        if metric is None:
            if self.metric is not None or self.smaller_is_better is not None:
                config["searcher"] = self._fresh(experiment, config)
            return config
        ours = self.metric if self.metric is not None else metric
        way = self.smaller_is_better if self.smaller_is_better is not None else direction
        if (ours, way) != (metric, direction):
            raise self._contradiction(experiment, sources[0], ours, smaller=self.smaller_is_better)
        if "searcher" not in given or said_by.searcher_metric(given) is None:
            config["searcher"] = known["searcher"]
        return config

    def _fresh(self, experiment: int | None, config: Mapping[str, Any]) -> dict[str, Any]:
        """The searcher of an experiment that had none."""
        if self.metric is None:
            raise UsageError("smaller_is_better is the direction of searcher_metric: say which metric that is, too")
        if self.smaller_is_better is None:
            raise UsageError(
                f"is a smaller {self.metric!r} better? Nothing says it of experiment {experiment} yet: say"
                " smaller_is_better=True or smaller_is_better=False (--smaller-is-better true or"
                " --smaller-is-better false)"
            )
        before = config.get("searcher")
        rest = before if isinstance(before, Mapping) else {}
        return {**rest, "metric": self.metric, "smaller_is_better": self.smaller_is_better}

    @staticmethod
    def _contradiction(
        experiment: int | None, known: Mapping[str, Any], metric: str, *, smaller: bool | None
    ) -> ExperimentConflictError:
        direction = "" if smaller is None else f" with smaller_is_better={smaller}"
        return ExperimentConflictError(
            f"the searcher metric of experiment {experiment} is {said_by.searcher_metric(known)!r} with"
            f" smaller_is_better={said_by.smaller_is_better(known)}, not {metric!r}{direction}"
        )


def _whole(name: str, value: Any, *, least: int = 1) -> int | None:
    number = as_number(value)
    if number is None:
        return None
    if not isinstance(number, int) or not is_whole(number, least):
        raise UsageError(f"{name} must be a whole number of {least} or more, not {value!r:.40}")
    return number


def _mapping(name: str, value: Mapping[str, Any] | None) -> dict[str, Any]:
    if value is None:
        return {}
    try:
        found = plain(value)
    except ValueError as error:
        raise UsageError(f"{name} cannot be written as JSON: {error}") from error
    if not isinstance(found, dict):
        raise UsageError(f"{name} must map names to values, not be {value!r:.40}")
    return found


def _metrics(metrics: Mapping[str, float]) -> dict[str, Any]:
    """Metrics as masters give them: numbers, and "NaN", "Infinity" or "-Infinity" where JSON has no number."""
    if isinstance(metrics, Mapping):
        for name, value in metrics.items():
            number = as_number(value)
            if not isinstance(number, int | float) or isinstance(number, bool):
                raise UsageError(f"metric {name!r} must be a number, not {value!r:.40}")
    return _mapping("metrics", metrics)


def _now() -> str:
    moment = datetime.fromtimestamp(disk.now(), UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
