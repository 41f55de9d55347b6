"""A Determined master as a registry."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from cas.config import DeterminedEnvironment, Settings
from cas.errors import AuthenticationError, ContentError, MasterError, UsageError
from cas.registry import v1
from cas.registry.auth import Login
from cas.registry.http import BACKOFF, Body, Http, Parameters, Tls, canonical_url
from cas.registry.records import CheckpointRecord, ExperimentRecord, State, TrialRecord, canonical_uuid
from cas.registry.values import is_whole

T = TypeVar("T")

PAGE = 1000  # checkpoints per request: each brings its experiment's whole configuration along
_RESTARTS = 3  # of a list that shrinks while its pages are read
_EVERY_STATE = tuple(("states", f"STATE_{state}") for state in State)


class Master:
    """The registry of a Determined master, asked over `/api/v1`; nothing is sent before the first question.

    Args:
        url: its address, in any form that `canonical_url` takes.
        user: whom to log in as; default as `Identity.choose` says.
        password: the user's password; a wrong one is an error even while a cached token lives.
        settings: for `timeout`.
        environment: default `DeterminedEnvironment.load()`.
        tls: default: as the environment and `certs.json` say.
        backoff: seconds before the second retry of what is transient.

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
    ) -> None:
        environment = environment or DeterminedEnvironment.load()
        canonical = canonical_url(url)
        timeout = (settings or Settings.load()).timeout
        tls = tls or Tls.choose(canonical, environment)
        self._http = Http(canonical, tls=tls, timeout=timeout, backoff=backoff)
        self._login = Login(self._http, user=user, password=password, environment=environment)

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

    def experiment(self, id: int) -> ExperimentRecord:
        """Return an experiment.

        Raises:
            NotFoundError: the master has none of this id, or does not show it to this user.
            OfflineError: it does not answer.
            AuthenticationError: it refuses the login.
        """
        return self._read(f"/experiments/{_id(id)}", lambda answer: v1.experiment(self.name, answer))

    def trial(self, id: int) -> TrialRecord:
        """Return a trial.

        Raises:
            NotFoundError: the master has none of this id, or does not show it to this user.
            OfflineError: it does not answer.
            AuthenticationError: it refuses the login.
        """
        return self._read(f"/trials/{_id(id)}", lambda answer: v1.trial(self.name, answer))

    def checkpoint(self, uuid: str) -> CheckpointRecord:
        """Return a checkpoint.

        Raises:
            UsageError: it is no UUID.
            NotFoundError: the master has none of this UUID, or does not show it to this user.
            OfflineError: it does not answer.
            AuthenticationError: it refuses the login.
        """
        wanted = canonical_uuid(uuid)
        record = self._read(f"/checkpoints/{wanted}", v1.Checkpoints(self.name).one)
        if record.uuid != wanted:
            raise MasterError(f"{self.name}: asked for checkpoint {wanted}, it answered with {record.uuid}")
        return record

    def experiment_checkpoints(self, id: int) -> list[CheckpointRecord]:
        """Return all checkpoints of an experiment, in every state, from all pages.

        Raises:
            NotFoundError: the master has no experiment of this id.
            OfflineError: it does not answer.
            AuthenticationError: it refuses the login.
        """
        return self._list(f"/experiments/{_id(id)}/checkpoints")

    def trial_checkpoints(self, id: int) -> list[CheckpointRecord]:
        """Return all checkpoints of a trial, in every state, from all pages.

        Raises:
            NotFoundError: the master has no trial of this id.
            OfflineError: it does not answer.
            AuthenticationError: it refuses the login.
        """
        return self._list(f"/trials/{_id(id)}/checkpoints")

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
            token = self._login.token()
            try:
                body = stack.enter_context(self._http.open(path, accept, token=token))
            except AuthenticationError:
                body = stack.enter_context(self._http.open(path, accept, token=self._login.renew(token)))
            yield body

    # --- requests --------------------------------------------------------------------------------------------

    def _list(self, path: str) -> list[CheckpointRecord]:
        for _ in range(_RESTARTS):
            found = self._all_pages(path)
            if found is not None:
                return found
        raise MasterError(f"{self.name}: the list of checkpoints changes again and again; try again later")

    def _all_pages(self, path: str) -> list[CheckpointRecord] | None:
        """All checkpoints, or None if the list shrank in between, so that some may have been passed over.

        In order of UUID: what is added meanwhile moves others to later pages, where they are seen twice at worst.
        """
        reader = v1.Checkpoints(self.name)
        found: dict[str, CheckpointRecord] = {}
        offset, total = 0, 0
        while True:
            page = self._read(path, reader.page, (*_ALL_IN_ORDER, ("offset", offset), ("limit", PAGE)))
            if page.total < total:
                return None
            total = page.total
            found.update((record.uuid, record) for record in page.checkpoints)
            if page.end >= total:
                return list(found.values())
            if page.end <= offset or not page.checkpoints:
                raise MasterError(f"{self.name}: a page of checkpoints ends where it began")
            offset = page.end

    def _read(self, path: str, parse: Callable[[Any], T], parameters: Parameters = ()) -> T:
        answer = self._get(f"/api/v1{path}", parameters)
        try:
            return parse(answer)
        except (ContentError, UsageError, ValueError) as error:
            raise MasterError(f"{self.name} answered with something that cannot be understood: {error}") from error

    def _get(self, path: str, parameters: Parameters) -> Any:
        token = self._login.token()
        try:
            return self._http.get(path, parameters, token=token)
        except AuthenticationError:
            return self._http.get(path, parameters, token=self._login.renew(token))


_ALL_IN_ORDER: Parameters = (*_EVERY_STATE, ("sortByAttr", "SORT_BY_UUID"), ("orderBy", "ORDER_BY_ASC"))


def _id(id: int) -> int:
    """Check an id before it becomes part of a path.

    Raises:
        UsageError: it is no whole number of 1 or more.
    """
    if not is_whole(id, 1):
        raise UsageError(f"an id is a whole number of 1 or more, not {id!r:.40}")
    return id
