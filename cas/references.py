"""`ExperimentReference` and `TrialReference`: the choice among the checkpoints of one experiment, or of one trial."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from cas.checkpoint import Checkpoint
from cas.config import Settings
from cas.errors import ContentError, NotFoundError, UsageError
from cas.index.store import Store, store_of
from cas.registry import select
from cas.registry.catalog import Catalog, Choice, choose
from cas.registry.names import uuid_of
from cas.registry.records import (
    CheckpointRecord,
    ExperimentRecord,
    Registry,
    State,
    TrialRecord,
)
from cas.registry.select import CheckpointSortBy, OrderBy


class ExperimentReference:
    """One experiment, and the choice among its checkpoints; `Determined.get_experiment` returns it."""

    def __init__(self, record: ExperimentRecord, registry: Registry, *, settings: Settings) -> None:
        self.record = record
        self._registry = registry
        self._settings = settings

    def __repr__(self) -> str:
        return f"<ExperimentReference {self.id} of {self.record.registry}>"

    @property
    def id(self) -> int:
        """Its id, within its registry."""
        return self.record.id

    @property
    def name(self) -> str:
        """Its name."""
        return self.record.name

    @property
    def state(self) -> str:
        """COMPLETED, ERROR, …; empty if nobody told it."""
        return self.record.state

    @property
    def config(self) -> Mapping[str, Any]:
        """Its configuration; from a master, with the keys of its storage."""
        return self.record.config

    @property
    def description(self) -> str | None:
        """What its user wrote of it."""
        return self.record.description

    @property
    def labels(self) -> tuple[str, ...]:
        """Its labels."""
        return self.record.labels

    @property
    def archived(self) -> bool | None:
        """Whether it is archived."""
        return self.record.archived

    def reload(self) -> None:
        """Read again what its registry knows of it.

        Raises:
            OfflineError: the master does not answer.
        """
        self.record = self._registry.experiment(self.id)

    def list_trials(self) -> list[TrialReference]:
        """Return its trials, in order of id.

        Raises:
            OfflineError: the master does not answer.
        """
        records = self._registry.experiment_trials(self.id)
        return [TrialReference(record, self._registry, settings=self._settings) for record in records]

    def iter_trials(self) -> Iterator[TrialReference]:
        """Yield its trials; see `list_trials`."""
        yield from self.list_trials()

    get_trials = list_trials  # its name before 0.26

    def top_checkpoint(self, sort_by: str | None = None, smaller_is_better: bool | None = None) -> Checkpoint:  # noqa: FBT001  # documented so
        """Return the best checkpoint: COMPLETED, with the best finite value of a metric.

        Args:
            sort_by: the metric; default the experiment's searcher metric.
            smaller_is_better: its direction; default what the experiment's configuration says of the searcher
                metric. For another metric it must be given.

        Raises:
            UsageError: nothing says which metric, or which direction.
            NotFoundError: no checkpoint is left; the message says why.
            OfflineError: the master does not answer.
        """
        return self.top_n_checkpoints(1, sort_by, smaller_is_better)[0]

    def top_n_checkpoints(
        self,
        limit: int,
        sort_by: str | None = None,
        smaller_is_better: bool | None = None,  # noqa: FBT001  # documented so
        *,
        one_per_trial: bool = False,
    ) -> list[Checkpoint]:
        """Return the best checkpoints, best first, at most `limit`; see `top_checkpoint`.

        Args:
            limit: how many, at most.
            sort_by: the metric; default the experiment's searcher metric.
            smaller_is_better: its direction; see `top_checkpoint`.
            one_per_trial: only the best one of each trial.

        Raises:
            UsageError: nothing says which metric, or which direction; or the limit is less than 1.
            NotFoundError: no checkpoint is left; the message says why.
            OfflineError: the master does not answer.
        """
        return self._choose(
            lambda records: select.top_n(
                records,
                limit,
                sort_by=sort_by,
                smaller_is_better=smaller_is_better,
                one_per_trial=one_per_trial,
                of=f"experiment {self.id}",
            )
        )

    def list_checkpoints(
        self,
        sort_by: str | CheckpointSortBy | None = None,
        order_by: str | OrderBy | None = None,
        max_results: int | None = None,
        *,
        every_state: bool = False,
    ) -> list[Checkpoint]:
        """Return the COMPLETED checkpoints; what lacks the value that they are sorted by comes last.

        Args:
            sort_by: a `CheckpointSortBy`, or the name of a metric; default: the best by the searcher metric first,
                and with no searcher metric by trial, then report time.
            order_by: an `OrderBy`; goes together with `sort_by`.
            max_results: how many, at most.
            every_state: those in all other states, too.

        Raises:
            UsageError: one of `sort_by` and `order_by` without the other.
            OfflineError: the master does not answer.
        """
        records = self._registry.experiment_checkpoints(self.id)
        wanted = [record for record in records if every_state or record.state is State.COMPLETED]
        chosen = select.in_order(wanted, sort_by=sort_by, order_by=order_by, limit=max_results)
        return self._checkpoints(chosen)

    def _checkpoints(self, records: Iterable[CheckpointRecord]) -> list[Checkpoint]:
        return [Checkpoint(record, settings=self._settings, registry=self._registry) for record in records]

    def _choose(self, choice: Choice) -> list[Checkpoint]:
        return self._checkpoints(choose(self._registry, f"experiment/{self.id}", choice))


class TrialReference:
    """One trial, and the choice among its checkpoints; `Determined.get_trial` returns it."""

    def __init__(self, record: TrialRecord, registry: Registry, *, settings: Settings) -> None:
        self.record = record
        self._registry = registry
        self._settings = settings

    @property
    def id(self) -> int:
        """Its id, within its registry."""
        return self.record.id

    @property
    def experiment_id(self) -> int | None:
        """The id of its experiment; a master of 0.12 may not tell it."""
        return self.record.experiment_id

    @property
    def state(self) -> str:
        """COMPLETED, ERROR, …; empty if nobody told it."""
        return self.record.state

    @property
    def hparams(self) -> Mapping[str, Any]:
        """Its hyperparameters."""
        return self.record.hparams

    @property
    def summary_metrics(self) -> Mapping[str, Any]:
        """Of each metric count, last, max, min and sum; empty if nobody told them."""
        return self.record.summary_metrics

    def __repr__(self) -> str:
        return f"<TrialReference {self.id} of experiment {self.experiment_id} of {self.record.registry}>"

    def reload(self) -> None:
        """Read again what its registry knows of it.

        Raises:
            OfflineError: the master does not answer.
        """
        self.record = self._registry.trial(self.id)

    def top_checkpoint(self, sort_by: str | None = None, smaller_is_better: bool | None = None) -> Checkpoint:  # noqa: FBT001  # documented so
        """Return the trial's best checkpoint; see `ExperimentReference.top_checkpoint`.

        Raises:
            UsageError: nothing says which metric, or which direction.
            NotFoundError: no checkpoint is left; the message says why.
            OfflineError: the master does not answer.
        """
        return self.select_checkpoint(best=True, sort_by=sort_by, smaller_is_better=smaller_is_better)

    def top_n_checkpoints(
        self,
        limit: int,
        sort_by: str | None = None,
        smaller_is_better: bool | None = None,  # noqa: FBT001  # as of experiments
    ) -> list[Checkpoint]:
        """Return the trial's best checkpoints, best first, at most `limit`; see `top_checkpoint`.

        Raises:
            UsageError: nothing says which metric, or which direction; or the limit is less than 1.
            NotFoundError: no checkpoint is left; the message says why.
            OfflineError: the master does not answer.
        """
        return self._choose(
            lambda records: select.top_n(
                records, limit, sort_by=sort_by, smaller_is_better=smaller_is_better, of=self._name
            )
        )

    def select_checkpoint(
        self,
        latest: bool = False,  # noqa: FBT001, FBT002  # documented so
        best: bool = False,  # noqa: FBT001, FBT002
        uuid: str | None = None,
        sort_by: str | None = None,
        smaller_is_better: bool | None = None,  # noqa: FBT001
    ) -> Checkpoint:
        """Return one checkpoint of the trial: exactly one of `latest`, `best` and `uuid` says which.

        Args:
            latest: the COMPLETED one with the most steps; ties: reported later.
            best: see `ExperimentReference.top_checkpoint`.
            uuid: this one, in whatever state it is; also by a name that `cas tag` gave it.
            sort_by: with `best`, the metric.
            smaller_is_better: with `best`, its direction.

        Raises:
            UsageError: none or several of the three; `sort_by` or `smaller_is_better` without `best`.
            NotFoundError: no checkpoint is left; or the UUID is another trial's, and the message says whose.
            OfflineError: the master does not answer.
        """
        if sum((bool(latest), bool(best), uuid is not None)) != 1:
            raise UsageError("say which checkpoint: exactly one of latest=True, best=True and uuid=…")
        if not best and (sort_by is not None or smaller_is_better is not None):
            raise UsageError("sort_by and smaller_is_better belong to best=True")
        if uuid is not None:
            return self._checkpoints([self._by_uuid(uuid_of(store_of(self._settings), uuid))])[0]
        if latest:
            return self._choose(lambda records: [select.latest(records, of=self._name)])[0]
        return self.top_n_checkpoints(1, sort_by, smaller_is_better)[0]

    def list_checkpoints(
        self,
        sort_by: str | CheckpointSortBy | None = None,
        order_by: str | OrderBy | None = None,
        max_results: int | None = None,
    ) -> list[Checkpoint]:
        """Return the trial's checkpoints in every state; see `ExperimentReference.list_checkpoints`.

        Raises:
            UsageError: one of `sort_by` and `order_by` without the other.
            OfflineError: the master does not answer.
        """
        chosen = select.in_order(self._records(), sort_by=sort_by, order_by=order_by, limit=max_results)
        return self._checkpoints(chosen)

    def get_checkpoints(
        self, sort_by: str | CheckpointSortBy | None = None, order_by: str | OrderBy | None = None
    ) -> list[Checkpoint]:
        """Return the trial's checkpoints: the name of `list_checkpoints` before 0.26.

        Raises:
            UsageError: one of `sort_by` and `order_by` without the other.
            OfflineError: the master does not answer.
        """
        return self.list_checkpoints(sort_by, order_by)

    @property
    def _name(self) -> str:
        return f"trial {self.id}"

    def _by_uuid(self, uuid: str) -> CheckpointRecord:
        record = self._here(uuid) or self._registry.checkpoint(uuid)
        if record.trial_id == self.id:
            return record
        if record.trial_id is not None:
            raise NotFoundError(f"checkpoint {uuid} belongs to trial {record.trial_id}, not to {self._name}")
        # A master of 0.12 tells of a trial's checkpoints whose they are, but not of one by its UUID.
        mine = next((one for one in self._records() if one.uuid == uuid), None)
        if mine is None:
            raise NotFoundError(f"checkpoint {uuid} is none of {self._name}'s")
        return mine

    def _here(self, uuid: str) -> CheckpointRecord | None:
        """The record of a checkpoint of this trial whose files are in the store: nobody needs to be asked."""
        store = store_of(self._settings)
        registry = self.record.registry
        if not are_here(store, registry, uuid):
            return None
        try:
            record = Catalog(store, registry).checkpoint(uuid)
        except (NotFoundError, ContentError):
            return None
        return record if record.trial_id == self.id else None

    def _choose(self, choice: Choice) -> list[Checkpoint]:
        return self._checkpoints(choose(self._registry, f"trial/{self.id}", choice))

    def _checkpoints(self, records: Iterable[CheckpointRecord]) -> list[Checkpoint]:
        return [Checkpoint(record, settings=self._settings, registry=self._registry) for record in records]

    def _records(self) -> list[CheckpointRecord]:
        return self._registry.trial_checkpoints(self.id)


def are_here(store: Store, registry: str, uuid: str) -> bool:
    """Whether all files of a checkpoint are in the store."""
    manifest = store.resolve(registry, uuid)
    return manifest is not None and manifest.complete and not store.absent(manifest)
