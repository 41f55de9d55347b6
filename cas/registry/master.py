"""A Determined master as a registry: it is asked what it is, and then in its own dialect."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cas.config import DeterminedEnvironment, Settings
from cas.errors import MasterError, NotAllowedError, NotFoundError, UsageError
from cas.registry.auth import Login
from cas.registry.dialect import Dialect, Entrance, Listed
from cas.registry.http import BACKOFF, Body, Http, Parameters, canonical_url
from cas.registry.records import CheckpointRecord, ExperimentRecord, TrialRecord, canonical_uuid
from cas.registry.tls import Tls
from cas.registry.v0 import V0, V0Entrance
from cas.registry.v1 import V1, V1Entrance
from cas.registry.values import is_whole

_FIRST_V1 = (0, 13)  # the first version that answers all questions under /api/v1
_VERSION = re.compile(r"v?(\d+)\.(\d+)", re.ASCII)


@dataclass(frozen=True, slots=True)
class _Kind:
    """What a master is: how to get in, and how to ask."""

    entrance: Entrance
    dialect: Dialect


class Master:
    """The registry of a Determined master, of any age; nothing is sent before the first question.

    Args:
        url: its address, in any form that `canonical_url` takes.
        user: whom to log in as; default as `Identity.choose` says.
        password: the user's password; a wrong one is an error even while a cached token lives.
        settings: for `timeout`.
        environment: default `DeterminedEnvironment.load()`.
        tls: default: as the environment and `certs.json` say.
        backoff: seconds before the second retry of what is transient.
        patience: seconds that one question may take in all; default: see `Http`.

    Raises:
        UsageError: the address is none.
    """

    def __init__(
        self,
        url: str,
        user: str | None = None,
        password: str | None = None,
        *,
        settings: Settings | None = None,
        environment: DeterminedEnvironment | None = None,
        tls: Tls | None = None,
        backoff: float = BACKOFF,
        patience: float | None = None,
    ) -> None:
        environment = environment or DeterminedEnvironment.load()
        canonical = canonical_url(url)
        timeout = (settings or Settings.load()).timeout
        tls = tls or Tls.choose(canonical, environment)
        self._http = Http(canonical, tls=tls, timeout=timeout, backoff=backoff, patience=patience)
        self._lock = threading.Lock()
        self._known: _Kind | None = None
        self.login = Login(
            self._http, lambda: self._kind().entrance, user=user, password=password, environment=environment
        )

    @property
    def name(self) -> str:
        """The canonical URL."""
        return self._http.url

    def __repr__(self) -> str:
        return f"<Master {self.name}>"

    def close(self) -> None:
        """Close the connections; the next question opens new ones."""
        self._http.close()

    def version(self) -> str:
        """Return the master's version; needs no login.

        Raises:
            OfflineError: it does not answer.
            MasterError: what answers is no master.
        """
        answer = self._http.get("/info")
        version = answer.get("version") if isinstance(answer, dict) else None
        if not isinstance(version, str):
            raise MasterError(f"{self.name} does not say its version; is it a Determined master?")
        return version

    @property
    def lists_are_complete(self) -> bool:
        """Whether a checkpoint that a list of an experiment or trial lacks is gone: not so with masters of 0.12."""
        return self._kind().dialect.lists_are_complete

    def experiments(self) -> list[Listed]:
        """Return what the master lists of all experiments that it shows to this user, in order of id.

        Raises:
            UsageError: the master is too old to list them.
            OfflineError: it does not answer.
            AuthenticationError: it refuses the login.
        """
        return self._kind().dialect.experiments()

    def experiment(self, id: int) -> ExperimentRecord:
        """Return an experiment.

        Raises:
            NotFoundError: the master has none of this id, or does not show it to this user.
            OfflineError: it does not answer.
            AuthenticationError: it refuses the login.
        """
        return self._asked(id).experiment(id)

    def trial(self, id: int) -> TrialRecord:
        """Return a trial.

        Raises:
            NotFoundError: the master has none of this id, or does not show it to this user.
            OfflineError: it does not answer.
            AuthenticationError: it refuses the login.
        """
        return self._asked(id).trial(id)

    def checkpoint(self, uuid: str) -> CheckpointRecord:
        """Return a checkpoint.

        Raises:
            UsageError: it is no UUID.
            NotFoundError: the master has none of this UUID, or does not show it to this user.
            OfflineError: it does not answer.
            AuthenticationError: it refuses the login.
        """
        wanted = canonical_uuid(uuid)
        return self._require(wanted, self._kind().dialect.checkpoint(wanted))

    def experiment_trials(self, id: int) -> list[TrialRecord]:
        """Return all trials of an experiment, in order of id.

        Raises:
            NotFoundError: the master has no experiment of this id.
            OfflineError: it does not answer.
            AuthenticationError: it refuses the login.
        """
        return self._asked(id).experiment_trials(id)

    def experiment_checkpoints(self, id: int) -> list[CheckpointRecord]:
        """Return all checkpoints of an experiment, in every state, from all pages.

        Raises:
            NotFoundError: the master has no experiment of this id.
            OfflineError: it does not answer.
            AuthenticationError: it refuses the login.
        """
        return self._asked(id).experiment_checkpoints(id)

    def trial_checkpoints(self, id: int) -> list[CheckpointRecord]:
        """Return all checkpoints of a trial, in every state, from all pages.

        Raises:
            NotFoundError: the master has no trial of this id.
            OfflineError: it does not answer.
            AuthenticationError: it refuses the login.
        """
        return self._asked(id).trial_checkpoints(id)

    def set_metadata(self, uuid: str, metadata: Mapping[str, Any]) -> CheckpointRecord:
        """Replace all metadata of a checkpoint; return it as the master has it then.

        Raises:
            NotFoundError: the master has none of this UUID.
            OfflineError: it does not answer.
            NotAllowedError: the user may not change it.
            UsageError: the master is too old to keep metadata.
        """
        wanted = canonical_uuid(uuid)
        return self._require(wanted, self._kind().dialect.set_metadata(wanted, metadata))

    def _require(self, wanted: str, record: CheckpointRecord) -> CheckpointRecord:
        if record.uuid != wanted:
            raise MasterError(f"{self.name}: asked for checkpoint {wanted}, it answered with {record.uuid}")
        return record

    @contextlib.contextmanager
    def archive(self, uuid: str, accept: str) -> Iterator[Body]:
        """Yield a checkpoint's files as the master sends them: one archive, of type `accept`, read as it comes.

        Raises:
            UnsupportedTypeError: the master does not know this type.
            NotFoundError: the master has no such checkpoint.
            TransientRemoteError: the answer broke off while it was read.
            MasterError: it cannot reach the storage, or hands out no files.
        """
        path = f"/checkpoints/{canonical_uuid(uuid)}"
        with contextlib.ExitStack() as stack:
            yield self._with_token(lambda token: stack.enter_context(self._http.open(path, accept, token=token)))

    # --- what it is ------------------------------------------------------------------------------------------

    def _kind(self) -> _Kind:
        with self._lock:
            if self._known is None:
                old = self._is_old()
                dialect = V0(self.name, self._ask) if old else V1(self.name, self._ask, self._tell)
                self._known = _Kind(V0Entrance() if old else V1Entrance(), dialect)
            return self._known

    def _is_old(self) -> bool:
        """Whether it speaks the dialect of 0.12; asked before anybody logs in, so no password goes to what is none."""
        try:
            found = _VERSION.match(self.version())
        except NotFoundError:  # a gateway that lets nothing but the API through
            found = None
        if found is not None:
            return (int(found[1]), int(found[2])) < _FIRST_V1
        try:
            self._http.get("/api/v1/master")  # needs no token, where there is such a thing
        except (NotAllowedError, NotFoundError):
            return True
        except MasterError as error:
            if error.status != 501:
                raise
            return True
        return False

    def _asked(self, id: int) -> Dialect:
        """Who is asked about an id; what is none is not even the reason to say hello."""
        if not is_whole(id, 1):
            raise UsageError(f"an id is a whole number of 1 or more, not {id!r:.40}")
        return self._kind().dialect

    # --- requests --------------------------------------------------------------------------------------------

    def _ask(self, path: str, parameters: Parameters) -> Any:
        return self._with_token(lambda token: self._http.get(path, parameters, token=token))

    def _tell(self, path: str, body: Mapping[str, Any]) -> Any:
        return self._with_token(lambda token: self._http.post(path, body, token=token))

    def _with_token(self, request: Callable[[str], Any]) -> Any:
        token = self.login.token()
        try:
            return request(token)
        except NotAllowedError as error:
            if not self._kind().entrance.is_stale(error):
                raise
        return request(self.login.renew(token))
