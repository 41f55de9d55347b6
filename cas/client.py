"""`Determined`, `ExperimentReference`, `TrialReference`: which checkpoint, asked of a registry.

    best = Determined().get_experiment(1).top_checkpoint()
    latest = Determined.get_trial(2).select_checkpoint(latest=True)

With a master named (argument, `DET_MASTER`, `cas` settings) the master is asked; with none, the catalog of this store.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Iterable
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from cas.checkpoint import Checkpoint
from cas.config import DeterminedEnvironment, Settings
from cas.errors import NotFoundError, OfflineError, UsageError
from cas.index.store import store_of
from cas.registry import select
from cas.registry.catalog import Catalog, Choice, ago, choose
from cas.registry.http import Tls, canonical_url
from cas.registry.master import Master
from cas.registry.records import (
    CheckpointRecord,
    ExperimentRecord,
    Registry,
    State,
    TrialRecord,
    canonical_uuid,
)
from cas.registry.remembering import Remembering
from cas.registry.select import CheckpointSortBy, OrderBy

log = logging.getLogger("cas.client")

P = ParamSpec("P")
R = TypeVar("R")


class _OnClassToo(Generic[P, R]):
    """A method that can be called on the class as well, as the documentation does: then on a `Determined()`."""

    def __init__(self, function: Callable[Concatenate[Determined, P], R]) -> None:
        self._function = function
        self.__doc__ = function.__doc__
        self.__wrapped__ = function  # for inspect

    def __get__(self, instance: Determined | None, owner: type[Determined]) -> Callable[P, R]:
        @functools.wraps(self._function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            return self._function(owner() if instance is None else instance, *args, **kwargs)

        return call


class Determined:
    """The door to experiments, trials and checkpoints: of a Determined master, or of this store's catalog.

    Nothing is sent before the first question. What a master answers is written into the catalog; with `CAS_OFFLINE`
    the catalog answers in its place. A master that does not answer is an error, never an old answer.

    Args:
        master: its address; default the setting `master`, `DET_MASTER` or `DET_MASTER_ADDR`; none: the catalog.
        user: whom to log in as; default `DET_USER` with `DET_PASS`, else who logged in with `det user login`.
        password: the user's password; default: a token that is kept in `auth.json`, else asked on the terminal.
        cert_path: file of certificates (PEM) to trust besides the usual ones.
        cert_name: the name that the master's certificate is for, if not the host of its address.
        noverify: do not check the certificate.
        registry: answer from the catalog, from this registry only (`local`, a master's address, `recovered:…`).
        settings: default `Settings.load()`.

    Raises:
        UsageError: the address is none, or arguments contradict each other.
    """

    def __init__(
        self,
        master: str | None = None,
        user: str | None = None,
        password: str | None = None,
        *,
        cert_path: str | os.PathLike[str] | None = None,
        cert_name: str | None = None,
        noverify: bool = False,
        registry: str | None = None,
        settings: Settings | None = None,
    ) -> None:
        self._settings = (settings or Settings.load()).but(master=master or None)
        if registry and master:
            raise UsageError("master=… asks a master, registry=… the catalog: give one of them")
        self._url = canonical_url(self._settings.master) if self._settings.master and not registry else None
        self._scope = registry or self._url
        self._store = store_of(self._settings)
        self._registry: Registry = Catalog(self._store, self._scope)
        if self._url is not None and not self._settings.offline:
            environment = DeterminedEnvironment.load()
            tls = Tls.choose(self._url, environment, cert_path=cert_path, cert_name=cert_name, noverify=noverify)
            asked = Master(self._url, user, password, settings=self._settings, environment=environment, tls=tls)
            self._registry = Remembering(asked, self._store)

    def __repr__(self) -> str:
        return f"<Determined: {self._registry!r}>"

    @_OnClassToo
    def get_experiment(self, experiment_id: int) -> ExperimentReference:
        """Return an experiment; also `Determined.get_experiment(1)`, on the class.

        Raises:
            NotFoundError: there is none of this id.
            UsageError: several registries have one, and none was named.
            OfflineError: the master does not answer.
            AuthenticationError: it refuses the login.
        """
        record = self._registry.experiment(_id("experiment", experiment_id))
        self._say_age(record.registry, f"experiment/{record.id}")
        return ExperimentReference(record, self._pinned(record.registry), settings=self._settings)

    @_OnClassToo
    def get_trial(self, trial_id: int) -> TrialReference:
        """Return a trial; also `Determined.get_trial(1)`, on the class.

        Raises:
            NotFoundError: there is none of this id.
            UsageError: several registries have one, and none was named.
            OfflineError: the master does not answer.
            AuthenticationError: it refuses the login.
        """
        record = self._registry.trial(_id("trial", trial_id))
        self._say_age(record.registry, f"trial/{record.id}")
        return TrialReference(record, self._pinned(record.registry), settings=self._settings)

    @_OnClassToo
    def get_checkpoint(self, uuid: str) -> Checkpoint:
        """Return a checkpoint by its UUID, in any form; also `Determined.get_checkpoint(…)`, on the class.

        One whose files are in the store is answered from there: the master is not asked. Where the master does not
        answer, what the catalog knows of it counts: a UUID names one checkpoint for ever.

        Raises:
            UsageError: it is no UUID.
            NotFoundError: nobody knows it.
            OfflineError: the master does not answer, and nothing is known of it here.
        """
        wanted = canonical_uuid(uuid)
        return _checkpoint(self._checkpoint_record(wanted), self._registry, self._settings)

    def _checkpoint_record(self, uuid: str) -> CheckpointRecord:
        known = self._known(uuid)
        if known is not None and (self._is_here(known.registry, uuid) or not isinstance(self._registry, Remembering)):
            return known
        try:
            return self._registry.checkpoint(uuid)
        except OfflineError:
            if known is None:
                raise
            log.warning("%s does not answer; what the catalog knows of checkpoint %s is used", self._url, uuid)
            return known

    def _known(self, uuid: str) -> CheckpointRecord | None:
        """What the store knows: this registry's record, else any other's, else that the files are here.

        Where the user named a registry of the catalog, only that one counts.
        """
        only = self._scope if self._url is None else None
        for scope in dict.fromkeys((self._scope, only)):
            try:
                return Catalog(self._store, scope).checkpoint(uuid)
            except NotFoundError:
                continue
        names = [name for name in self._store.refs.registries(uuid) if only in (None, name)]
        return CheckpointRecord(registry=names[0], uuid=uuid) if names else None

    def _is_here(self, registry: str, uuid: str) -> bool:
        manifest = self._store.resolve(registry, uuid)
        return manifest is not None and manifest.complete and not self._store.absent(manifest)

    def _pinned(self, registry: str) -> Registry:
        """The registry that further questions about what it answered go to."""
        return self._registry if self._scope is not None else Catalog(self._store, registry)

    def _say_age(self, registry: str, thing: str) -> None:
        if self._settings.offline and self._url is not None:
            at = Catalog(self._store, registry).seen_at(thing)
            if at is not None:
                log.warning("offline: %s of %s as it was %s", thing.replace("/", " "), registry, ago(at))


class ExperimentReference:
    """One experiment, and the choice among its checkpoints; `Determined.get_experiment` returns it."""

    def __init__(self, record: ExperimentRecord, registry: Registry, *, settings: Settings) -> None:
        self.record = record
        self._registry = registry
        self._settings = settings

    @property
    def id(self) -> int:
        """Its id, within its registry."""
        return self.record.id

    def __repr__(self) -> str:
        return f"<ExperimentReference {self.id} of {self.record.registry}>"

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
    ) -> list[Checkpoint]:
        """Return the COMPLETED checkpoints; what lacks the value that they are sorted by comes last.

        Args:
            sort_by: a `CheckpointSortBy`, or the name of a metric; default: by trial, then report time.
            order_by: an `OrderBy`; goes together with `sort_by`.
            max_results: how many, at most.

        Raises:
            UsageError: one of `sort_by` and `order_by` without the other.
            OfflineError: the master does not answer.
        """
        records = self._registry.experiment_checkpoints(self.id)
        completed = [record for record in records if record.state is State.COMPLETED]
        chosen = select.in_order(completed, sort_by=sort_by, order_by=order_by, limit=max_results)
        return _checkpoints(chosen, self._registry, self._settings)

    def _choose(self, choice: Choice) -> list[Checkpoint]:
        chosen = choose(self._registry, f"experiment/{self.id}", choice)
        return _checkpoints(chosen, self._registry, self._settings)


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
    def experiment_id(self) -> int:
        """The id of its experiment."""
        return self.record.experiment_id

    def __repr__(self) -> str:
        return f"<TrialReference {self.id} of experiment {self.experiment_id} of {self.record.registry}>"

    def top_checkpoint(self, sort_by: str | None = None, smaller_is_better: bool | None = None) -> Checkpoint:  # noqa: FBT001  # documented so
        """Return the trial's best checkpoint; see `ExperimentReference.top_checkpoint`.

        Raises:
            UsageError: nothing says which metric, or which direction.
            NotFoundError: no checkpoint is left; the message says why.
            OfflineError: the master does not answer.
        """
        return self.select_checkpoint(best=True, sort_by=sort_by, smaller_is_better=smaller_is_better)

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
            uuid: this one, in whatever state it is.
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
            return _checkpoint(self._by_uuid(canonical_uuid(uuid)), self._registry, self._settings)
        if latest:
            return self._choose(lambda records: [select.latest(records, of=self._name)])
        return self._choose(
            lambda records: [select.best(records, sort_by=sort_by, smaller_is_better=smaller_is_better, of=self._name)]
        )

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
        records = self._registry.trial_checkpoints(self.id)
        chosen = select.in_order(records, sort_by=sort_by, order_by=order_by, limit=max_results)
        return _checkpoints(chosen, self._registry, self._settings)

    @property
    def _name(self) -> str:
        return f"trial {self.id}"

    def _by_uuid(self, uuid: str) -> CheckpointRecord:
        record = self._registry.checkpoint(uuid)
        if record.trial_id == self.id:
            return record
        whose = "no trial" if record.trial_id is None else f"trial {record.trial_id}"
        raise NotFoundError(f"checkpoint {uuid} belongs to {whose}, not to {self._name}")

    def _choose(self, choice: Choice) -> Checkpoint:
        (record,) = choose(self._registry, f"trial/{self.id}", choice)
        return _checkpoint(record, self._registry, self._settings)


def _checkpoints(records: Iterable[CheckpointRecord], registry: Registry, settings: Settings) -> list[Checkpoint]:
    return [_checkpoint(record, registry, settings) for record in records]


def _checkpoint(record: CheckpointRecord, registry: Registry, settings: Settings) -> Checkpoint:
    master = registry if isinstance(registry, Remembering) and registry.name == record.registry else None
    return Checkpoint(record, settings=settings, master=master)


def _id(kind: str, id: Any) -> int:
    """Take an id as a number, or as text that is one.

    Raises:
        UsageError: it is none.
    """
    text = str(id)
    if isinstance(id, bool) or not (text.isascii() and text.isdigit()) or not 1 <= int(text) < 1 << 63:
        raise UsageError(f"{kind} ids are whole numbers of 1 or more, not {text!r:.40}")
    return int(text)
