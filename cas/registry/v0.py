"""The dialect of the 0.12 masters (June 2020): `/checkpoints?…`, whole lists, and what it answers read into records.

Such a master tells of a checkpoint neither its trial nor its experiment; what list it was found in does. What only its
commands asked for (`/experiments/{id}/config`, `/experiments/{id}/checkpoints`, `/trials/{id}`) is asked too, and done
without where it is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cas.errors import MasterError, NotAllowedError, NotFoundError, UsageError
from cas.registry.dialect import Ask, Listed
from cas.registry.http import Http
from cas.registry.reading import Reader
from cas.registry.records import CheckpointRecord, ExperimentRecord, State, TrialRecord
from cas.registry.v1 import understood

_UNKNOWN = "record not found"  # what it says, with status 500, of a UUID that it does not know
_UNVALIDATED = "converting NULL to string"  # … and of any list in which one checkpoint has no validation


class V0Entrance:
    """Login at `/login`; 403 is for bad credentials and for tokens that have expired."""

    def log_in(self, http: Http, user: str, password: str) -> Any:
        """Send a user's name and hashed password; see `Entrance`."""
        return http.post("/login", {"username": user, "password": password})

    def whoever(self, http: Http, token: str) -> Any:
        """Ask whose token this is; see `Entrance`."""
        return http.get("/users/me", token=token)

    def log_out(self, http: Http, token: str) -> None:
        """End a token's session; see `Entrance`."""
        http.post("/logout", {}, token=token)

    def is_stale(self, error: NotAllowedError) -> bool:
        """Whether a refusal may mean that the token has expired; see `Entrance`."""
        return True


class V0:
    """The questions of a registry, asked of a 0.12 master."""

    lists_are_complete = False  # that of an experiment has only what was validated

    def __init__(self, registry: str, ask: Ask) -> None:
        self._registry = registry
        self._ask = ask
        self._trials: dict[int, TrialRecord] = {}
        self._configs: dict[int, dict[str, Any]] = {}

    def experiments(self) -> list[Listed]:
        """Such a master is not asked for a list of everything; see `Dialect`."""
        raise UsageError(f"{self._registry} is too old to list its experiments: name them (--experiment ID …)")

    def experiment(self, id: int) -> ExperimentRecord:
        """Return an experiment. Whether there is one, only its list of checkpoints can tell."""
        config = self._config(id)
        description = config.get("description")
        name = description if isinstance(description, str) else ""
        return ExperimentRecord(registry=self._registry, id=id, name=name, config=config)

    def trial(self, id: int) -> TrialRecord:
        """Return a trial. Whether there is one, only its list of checkpoints can tell."""
        if id not in self._trials:
            answer = self._maybe(f"/trials/{id}")
            read = Reader(answer if isinstance(answer, Mapping) else {}, "trial")
            found = understood(self._registry, _trial, (self._registry, id, read))
            if answer is None:
                return found
            self._trials[id] = found
        return self._trials[id]

    def checkpoint(self, uuid: str) -> CheckpointRecord:
        """Return a checkpoint; of which trial and experiment it is, is not told."""
        try:
            answer = self._ask(f"/checkpoints/{uuid}", ())
        except MasterError as error:
            if _UNKNOWN in str(error):
                raise NotFoundError(f"{self._registry}: checkpoint {uuid} not found") from error
            if _UNVALIDATED in str(error):
                raise _unvalidated(self._registry, f"checkpoint {uuid}", "its trial's list may") from error
            raise
        return understood(self._registry, lambda value: checkpoint(self._registry, value), answer)

    def experiment_trials(self, id: int) -> list[TrialRecord]:
        """Return the trials of an experiment that have checkpoints, in order of id."""
        ids = {one.trial_id for one in self._listed_by_commands(id) if one.trial_id is not None}
        return [self.trial(one) for one in sorted(ids)]

    def experiment_checkpoints(self, id: int) -> list[CheckpointRecord]:
        """Return the checkpoints of an experiment: those with a validation, and others where the master lists them."""
        listed = self._list("/checkpoints", ("experiment_id", id))
        other = {one.uuid: one for one in self._listed_by_commands(id)}
        config = _joined(self._config(id), listed)
        found = {}
        for one in listed:
            trial = other[one.uuid].trial_id if one.uuid in other else None
            found[one.uuid] = replace(
                one, state=State.COMPLETED, experiment_id=id, trial_id=trial, experiment_config=config
            )
        rest = [replace(one, experiment_config=config) for uuid, one in other.items() if uuid not in found]
        return [*found.values(), *rest]

    def trial_checkpoints(self, id: int) -> list[CheckpointRecord]:
        """Return the checkpoints of a trial, in every state."""
        trial = self.trial(id)
        other = [] if trial.experiment_id is None else self._listed_by_commands(trial.experiment_id)
        of_trial = {one.uuid: replace(one, hparams=trial.hparams) for one in other if one.trial_id == id}
        try:
            listed = self._list("/checkpoints", ("trial_id", id))
        except MasterError as error:
            if _UNVALIDATED not in str(error):
                raise
            if not of_trial:
                raise _unvalidated(self._registry, f"trial {id}", "nor does its experiment's list") from error
            return list(of_trial.values())
        config = _joined({} if trial.experiment_id is None else self._config(trial.experiment_id), listed)
        return [
            replace(
                one,
                state=of_trial[one.uuid].state if one.uuid in of_trial else one.state,
                trial_id=id,
                experiment_id=trial.experiment_id,
                hparams=trial.hparams,
                experiment_config=config,
            )
            for one in listed
        ]

    def set_metadata(self, uuid: str, metadata: Mapping[str, Any]) -> CheckpointRecord:
        """Refuse: checkpoints had no metadata yet.

        Raises:
            UsageError: always.
        """
        raise UsageError(f"{self._registry} is a master of 0.12: it keeps no metadata of checkpoints")

    # --- requests --------------------------------------------------------------------------------------------

    def _list(self, path: str, *parameters: tuple[str, int]) -> list[CheckpointRecord]:
        def read(answer: object) -> list[CheckpointRecord]:
            if not isinstance(answer, list):
                raise ValueError("it is no list of checkpoints")
            return [checkpoint(self._registry, one) for one in answer]

        return understood(self._registry, read, self._ask(path, parameters))

    def _listed_by_commands(self, experiment: int) -> list[CheckpointRecord]:
        """What `det experiment list-checkpoints` showed: every checkpoint, with its trial; nothing if it is refused."""
        answer = self._maybe(f"/experiments/{experiment}/checkpoints")
        listed = answer.get("checkpoints") if isinstance(answer, Mapping) else None
        if not isinstance(listed, list):
            return []
        config = self._config(experiment, metric=answer.get("metric_name"))

        def read(values: object) -> list[CheckpointRecord]:
            assert isinstance(values, list), "the caller looked"
            return [_listed(self._registry, experiment, config, one) for one in values]

        return understood(self._registry, read, listed)

    def _config(self, experiment: int, *, metric: object = None) -> dict[str, Any]:
        """The configuration of an experiment, as far as the master tells it."""
        if experiment not in self._configs:
            answer = self._maybe(f"/experiments/{experiment}/config")
            found = {"config": answer} if isinstance(answer, Mapping) else {}
            config = understood(self._registry, lambda one: Reader(one, "configuration").mapping("config"), found)
            self._configs[experiment] = config or {}
        known = self._configs[experiment]
        if known.get("searcher") or not isinstance(metric, str):
            return known
        return {**known, "searcher": {"metric": metric}}

    def _maybe(self, path: str) -> Any:
        try:
            return self._ask(path, ())
        except (NotFoundError, MasterError):
            return None


def _unvalidated(registry: str, what: str, instead: str) -> MasterError:
    return MasterError(
        f"{registry} is a master of 0.12, which cannot tell of {what} while a checkpoint there has no validation;"
        f" {instead}"
    )


# --- answers ---------------------------------------------------------------------------------------------------


def checkpoint(registry: str, value: object) -> CheckpointRecord:
    """Read one checkpoint object; one with no validation has no metrics, and an empty state of its validation.

    Raises:
        ContentError: it is not what a master answers.
    """
    read = Reader(value, "checkpoint")
    config: dict[str, Any] = {}
    if (metric := read.text("metric")) is not None:
        smaller = read.truth("smaller_is_better")
        config["searcher"] = {"metric": metric, **({} if smaller is None else {"smaller_is_better": smaller})}
    if (storage := read.mapping("checkpoint_storage")) is not None:
        config["checkpoint_storage"] = storage
    validated = (read.text("validation_state") or "") in ("", "COMPLETED")
    metrics = read.mapping("metrics") if validated else None
    return CheckpointRecord(
        registry=registry,
        uuid=read.uuid("uuid"),
        state=_state(read),
        steps_completed=read.whole("batch_number"),
        report_time=read.text("end_time") or read.text("start_time"),
        start_time=read.text("start_time"),
        resources=read.sizes("resources"),
        experiment_config=config,
        validation_metrics=None if metrics is None else Reader(metrics, "metrics").mapping("validation_metrics"),
    )


def _state(read: Reader) -> State:
    """The state of a checkpoint, if it is told; else what has an end was completed."""
    if read.raw("state") is not None:
        return read.state("state")
    return State.ACTIVE if read.raw("end_time") is None else State.COMPLETED


def _joined(config: Mapping[str, Any], listed: list[CheckpointRecord]) -> dict[str, Any]:
    """The configuration of an experiment, with what its checkpoints tell of it."""
    joined = dict(config)
    for one in listed[:1]:  # all tell the same
        for name, value in one.experiment_config.items():
            before = config.get(name)
            joined[name] = {**before, **value} if isinstance(before, Mapping) else value
    return joined


def _listed(registry: str, experiment: int, config: dict[str, Any], value: object) -> CheckpointRecord:
    """Read one of what the commands list: it has a trial and a step, but no number of batches of its own."""
    read = Reader(value, "checkpoint")
    step = read.inner("step")
    validation = step.inner("validation")
    metrics = validation.mapping("metrics") if (validation.text("state") or "COMPLETED") == "COMPLETED" else None
    return CheckpointRecord(
        registry=registry,
        uuid=read.uuid("uuid"),
        state=read.state("state"),
        experiment_id=experiment,
        trial_id=read.whole("trial_id"),
        steps_completed=_batches(step, read.whole("step_id"), config),
        report_time=read.text("end_time") or read.text("start_time"),
        start_time=read.text("start_time"),
        resources=read.sizes("resources"),
        experiment_config=config,
        validation_metrics=None if metrics is None else Reader(metrics, "metrics").mapping("validation_metrics"),
    )


def _batches(step: Reader, step_id: int | None, config: Mapping[str, Any]) -> int | None:
    """The batches trained after a step: what it says, else that many times what the configuration calls a step."""
    before, own = step.whole("prior_batches_processed"), step.whole("num_batches")
    if before is not None and own is not None:
        return before + own
    per_step = config.get("batches_per_step", 100)  # 100: the default of those days
    return step_id * per_step if step_id is not None and isinstance(per_step, int) else None


def _trial(told: tuple[str, int, Reader]) -> TrialRecord:
    registry, id, read = told
    return TrialRecord(
        registry=registry,
        id=id,
        experiment_id=read.whole("experiment_id"),
        state=read.text("state") or "",
        hparams=read.mapping("hparams") or {},
        start_time=read.text("start_time"),
        end_time=read.text("end_time"),
    )
