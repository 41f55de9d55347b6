"""The newer API: one `Determined` for the whole process, and its calls as functions.

from cas.experimental import client

best = client.get_experiment(1).list_checkpoints()[0]
"""

from __future__ import annotations

import logging
import os
import threading

from cas.checkpoint import Checkpoint
from cas.client import Determined, User
from cas.config import DownloadMode
from cas.errors import UsageError
from cas.references import ExperimentReference, TrialReference
from cas.registry.records import State
from cas.registry.select import CheckpointSortBy, OrderBy

log = logging.getLogger("cas.client")

CheckpointOrderBy = OrderBy  # its name before 0.26
CheckpointState = State
Experiment = ExperimentReference
Trial = TrialReference

__all__ = [
    "Checkpoint",
    "CheckpointOrderBy",
    "CheckpointSortBy",
    "CheckpointState",
    "Determined",
    "DownloadMode",
    "Experiment",
    "OrderBy",
    "Trial",
    "User",
    "get_checkpoint",
    "get_experiment",
    "get_session_username",
    "get_trial",
    "login",
    "logout",
    "whoami",
]

_lock = threading.Lock()
_determined: Determined | None = None


def login(
    master: str | None = None,
    user: str | None = None,
    password: str | None = None,
    cert_path: str | os.PathLike[str] | None = None,
    cert_name: str | None = None,
    noverify: bool = False,  # noqa: FBT001, FBT002  # documented so
) -> None:
    """Say which master, and as whom, the other functions ask; needed only where the environment does not say it.

    Nothing is sent yet. Arguments as of `Determined`.

    Raises:
        UsageError: it was said before, or another function was called before; or the address is none.
    """
    global _determined
    with _lock:
        if _determined is not None:
            raise UsageError(
                "login() comes once, before any other call; for a second master make a Determined(…) of it"
            )
        _determined = Determined(master, user, password, cert_path, cert_name, noverify)


def logout() -> None:
    """End the session at the master and forget its token; `login` may come again.

    Raises:
        UsageError: no master is named.
        OfflineError: the network is off.
    """
    global _determined
    with _lock:
        current, _determined = _determined, None
    if current is None:
        log.warning("nobody has logged in here; Determined().logout() ends the session that `det user login` began")
    else:
        current.logout()


def get_experiment(experiment_id: int) -> ExperimentReference:
    """Return an experiment; see `Determined.get_experiment`.

    Raises:
        NotFoundError: there is none of this id.
        OfflineError: the master does not answer.
    """
    return _current().get_experiment(experiment_id)


def get_trial(trial_id: int) -> TrialReference:
    """Return a trial; see `Determined.get_trial`.

    Raises:
        NotFoundError: there is none of this id.
        OfflineError: the master does not answer.
    """
    return _current().get_trial(trial_id)


def get_checkpoint(uuid: str) -> Checkpoint:
    """Return a checkpoint by its UUID; see `Determined.get_checkpoint`.

    Raises:
        UsageError: it is no UUID.
        NotFoundError: nobody knows it.
        OfflineError: the master does not answer, and nothing is known of it here.
    """
    return _current().get_checkpoint(uuid)


def whoami() -> User:
    """Return the user that the master takes us for.

    Raises:
        UsageError: no master is named.
        AuthenticationError: it refuses the login.
    """
    return _current().whoami()


def get_session_username() -> str:
    """Return the name of the user that the master takes us for.

    Raises:
        UsageError: no master is named.
        AuthenticationError: it refuses the login.
    """
    return _current().get_session_username()


def _current() -> Determined:
    global _determined
    with _lock:
        if _determined is None:
            _determined = Determined()
        return _determined
