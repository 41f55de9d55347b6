"""`Determined`: which experiment, trial or checkpoint, asked of a registry.

    best = Determined().get_experiment(1).top_checkpoint()
    latest = Determined.get_trial(2).select_checkpoint(latest=True)

With a master named (argument, `DET_MASTER`, `cas` settings) the master is asked; with none, the catalog of this store.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from cas.checkpoint import Checkpoint
from cas.config import Settings
from cas.errors import NotFoundError, OfflineError, UsageError
from cas.index.store import store_of
from cas.references import ExperimentReference, TrialReference, are_here
from cas.registry.catalog import LOCAL, Catalog, ago
from cas.registry.http import canonical_url
from cas.registry.master import Master
from cas.registry.names import uuid_of
from cas.registry.opening import open_master
from cas.registry.records import CheckpointRecord, Registry, TrialRecord
from cas.registry.remembering import Remembering

__all__ = ["Determined", "ExperimentReference", "TrialReference", "User"]

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


@dataclass(frozen=True, slots=True)
class User:
    """A user of a master."""

    username: str


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
        offline: ask nobody: the catalog answers in the master's place, and says how old its answer is.
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
        cert_path: str | os.PathLike[str] | None = None,
        cert_name: str | None = None,
        noverify: bool = False,  # noqa: FBT001, FBT002  # documented so
        *,
        offline: bool | None = None,
        registry: str | None = None,
        settings: Settings | None = None,
    ) -> None:
        self._settings = (settings or Settings.load()).but(master=master or None, offline=offline)
        if registry and master:
            raise UsageError("master=… asks a master, registry=… the catalog: give one of them")
        self._url = canonical_url(self._settings.master) if self._settings.master and not registry else None
        self._scope = registry or self._url
        self._store = store_of(self._settings)
        self._registry: Registry = Catalog(self._store, self._scope)
        self._master: Master | None = None
        if self._url is not None and not self._settings.offline:
            self._master = open_master(
                self._url,
                self._settings,
                user=user,
                password=password,
                cert_path=cert_path,
                cert_name=cert_name,
                noverify=noverify,
            )
            self._registry = Remembering(self._master, self._store)

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
        return ExperimentReference(record, self._teller(record.registry), settings=self._settings)

    @_OnClassToo
    def get_trial(self, trial_id: int) -> TrialReference:
        """Return a trial; also `Determined.get_trial(1)`, on the class.

        Where the master does not answer, what the catalog knows of the trial counts, so that its checkpoints that are
        here can be had by UUID. To choose among them, the master is asked again, and then that is an error.

        Raises:
            NotFoundError: there is none of this id.
            UsageError: several registries have one, and none was named.
            OfflineError: the master does not answer, and the catalog has never seen the trial.
            AuthenticationError: it refuses the login.
        """
        record = self._trial_record(_id("trial", trial_id))
        return TrialReference(record, self._teller(record.registry), settings=self._settings)

    @_OnClassToo
    def get_checkpoint(self, uuid: str) -> Checkpoint:
        """Return a checkpoint by its UUID, in any form, or by a name that `cas tag` gave it.

        Also `Determined.get_checkpoint(…)`, on the class.

        One whose files are in the store is answered from there: the master is not asked. Where the master does not
        answer, what the catalog knows of it counts: a UUID names one checkpoint for ever.

        Raises:
            UsageError: it is neither a UUID nor a name.
            NotFoundError: nobody knows it.
            OfflineError: the master does not answer, and nothing is known of it here.
        """
        record = self._checkpoint_record(uuid_of(self._store, uuid))
        return Checkpoint(record, settings=self._settings, registry=self._teller(record.registry))

    # --- who asks --------------------------------------------------------------------------------------------

    def whoami(self) -> User:
        """Return the user that the master takes us for.

        Raises:
            UsageError: no master is named.
            OfflineError: it does not answer, or the network is off.
            AuthenticationError: it refuses the login.
        """
        return User(self._require_master().login.whoami())

    def get_session_username(self) -> str:
        """Return the name of the user that the master takes us for; see `whoami`.

        Raises:
            UsageError: no master is named.
            AuthenticationError: it refuses the login.
        """
        return self.whoami().username

    def login(self) -> str:
        """Log in with the password, whatever tokens are kept, and become the active user; return the user's name.

        Raises:
            UsageError: no master is named.
            OfflineError: it does not answer, or the network is off.
            AuthenticationError: it refuses the login, or there is nobody to ask for the password.
        """
        return self._require_master().login.start_session()

    def logout(self, *, everyone: bool = False) -> tuple[str, ...]:
        """End the user's session at the master (or everyone's who has a token here), and forget the token; say whose.

        Raises:
            UsageError: no master is named.
            OfflineError: the network is off.
        """
        return self._require_master().login.end_session(everyone=everyone)

    @property
    def master_url(self) -> str | None:
        """The address of the master, in canonical form; None where the catalog is asked."""
        return self._url

    def _require_master(self) -> Master:
        if self._url is None:
            raise UsageError("no master is named: say which, by master=…, -m URL or DET_MASTER")
        if self._master is None:
            raise OfflineError(f"the network is off (CAS_OFFLINE): {self._url} cannot be asked")
        return self._master

    # --- who answers -----------------------------------------------------------------------------------------

    def _trial_record(self, id: int) -> TrialRecord:
        try:
            record = self._registry.trial(id)
        except OfflineError:
            at = Catalog(self._store, self._scope).seen_at(f"trial/{id}")
            if at is None:
                raise
            log.info("%s does not answer; trial %s is as it was %s", self._url, id, ago(at))
            return Catalog(self._store, self._scope).trial(id)
        self._say_age(record.registry, f"trial/{record.id}")
        return record

    def _checkpoint_record(self, uuid: str) -> CheckpointRecord:
        known = self._known(uuid)
        if known is not None and (self._master is None or self._is_here(known)):
            if self._master is None:
                self._say_age(known.registry, f"checkpoint/{uuid}")
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

    def _is_here(self, record: CheckpointRecord) -> bool:
        return are_here(self._store, record.registry, record.uuid)

    def _teller(self, registry: str) -> Registry:
        """Who is asked further questions about what a registry told."""
        return self._registry if registry == self._registry.name else Catalog(self._store, registry)

    def _say_age(self, registry: str, thing: str) -> None:
        if not self._settings.offline:
            return
        at = Catalog(self._store, registry).seen_at(thing) if registry != LOCAL else None
        if at is not None:
            log.warning("offline: %s of %s as it was %s", thing.replace("/", " "), registry, ago(at))


def _id(kind: str, id: Any) -> int:
    """Take an id as a number, or as text that is one.

    Raises:
        UsageError: it is none.
    """
    text = str(id)
    if isinstance(id, bool) or not (text.isascii() and text.isdigit()) or not 1 <= int(text) < 1 << 63:
        raise UsageError(f"{kind} ids are whole numbers of 1 or more, not {text!r:.40}")
    return int(text)
