"""What masters of every age have in common: how a client gets in, and what it may ask once it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from cas.errors import NotAllowedError
from cas.registry.http import Http, Parameters
from cas.registry.records import CheckpointRecord, ExperimentRecord, TrialRecord

Ask = Callable[[str, Parameters], Any]  # GET with a token: path and parameters to the JSON of the answer
Tell = Callable[[str, Mapping[str, Any]], Any]  # POST with a token: path and body to the JSON of the answer


class Entrance(Protocol):
    """How one logs in to a master."""

    def log_in(self, http: Http, user: str, password: str) -> Any:
        """Send a user's name and hashed password, once; return the answer, which holds a token.

        Raises:
            NotAllowedError: the master refuses them.
        """

    def whoever(self, http: Http, token: str) -> Any:
        """Return the answer to the question whose token this is.

        Raises:
            NotAllowedError: it is nobody's, or it has expired.
        """

    def log_out(self, http: Http, token: str) -> None:
        """End a token's session."""

    def is_stale(self, error: NotAllowedError) -> bool:
        """Whether a refusal may mean that the token has expired."""


@dataclass(frozen=True, slots=True)
class Listed:
    """One experiment of a master's list: whether it has ended, and what differs once anything of it has changed."""

    id: int
    has_ended: bool
    version: str


class Dialect(Protocol):
    """The questions of a registry in the words of one kind of master."""

    lists_are_complete: bool  # whether a checkpoint that a list lacks is gone

    def experiments(self) -> list[Listed]:
        """Return what the master lists of all experiments that it shows to this user, in order of id.

        Raises:
            UsageError: it cannot list them.
        """

    def experiment(self, id: int) -> ExperimentRecord:
        """Return an experiment."""

    def trial(self, id: int) -> TrialRecord:
        """Return a trial."""

    def checkpoint(self, uuid: str) -> CheckpointRecord:
        """Return a checkpoint."""

    def experiment_trials(self, id: int) -> list[TrialRecord]:
        """Return all trials of an experiment, in order of id."""

    def experiment_checkpoints(self, id: int) -> list[CheckpointRecord]:
        """Return all checkpoints of an experiment."""

    def trial_checkpoints(self, id: int) -> list[CheckpointRecord]:
        """Return all checkpoints of a trial."""

    def set_metadata(self, uuid: str, metadata: Mapping[str, Any]) -> CheckpointRecord:
        """Replace all metadata of a checkpoint; return it as the master has it then."""
