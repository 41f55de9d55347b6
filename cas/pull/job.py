"""Many hosts, one job: the ranks of a process group agree on a checkpoint, and bring it to all hosts together."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

from cas.config import Settings
from cas.errors import CasError, PeerError
from cas.index.store import Store
from cas.pull.origin import Origin
from cas.registry.records import CheckpointRecord, State
from cas.transfer.fetch import PullReport
from cas.transfer.process_group import TorchGroup
from cas.transfer.together import Group, pull_together

PATIENCE = 10  # times the timeout of a request: a rank that reads a share may have to try again


def group_of(process_group: Any, settings: Settings) -> Group:
    """Return the ranks of a `torch.distributed` group; None or True: the job's default one.

    Raises:
        UsageError: torch.distributed is not initialized.
    """
    return TorchGroup(process_group, bound=max(PATIENCE * settings.timeout, 1.0))


def fetch_together(store: Store, origin: Origin, group: Group) -> PullReport | None:
    """Bring a checkpoint's files into the stores of all hosts; on every rank, with the same checkpoint.

    Returns what this host transferred, on the rank that did its work.

    Raises:
        PeerError: another rank failed or does not answer.
        CasError: this rank failed; the others were told.
    """
    record, settings = origin.record, origin.settings
    stored = bool(record.experiment_config.get("checkpoint_storage"))
    return pull_together(
        store,
        origin.remote() if stored and not settings.offline else None,
        group,
        registry=record.registry,
        uuid=record.uuid,
        settings=settings,
        expected_sizes=record.resources or None,
        partial=record.state is State.PARTIALLY_DELETED,
    )


def agree(group: Group, choose: Callable[[], CheckpointRecord]) -> CheckpointRecord:
    """Return on every rank the record that the first rank chooses; the others choose nothing.

    The record travels with the keys of its storage, over the job's own process group and nowhere else.

    Raises:
        PeerError: the first rank could not choose; the message says why.
        CasError: this is the first rank, and it could not.
    """
    failure: CasError | None = None
    answer: dict[str, Any] = {}
    if group.rank == 0:
        try:
            answer = {"record": dataclasses.asdict(choose())}
        except CasError as error:
            failure, answer = error, {"error": str(error)}
    told = json.loads(group.broadcast(json.dumps(answer).encode(), 0))
    if failure is not None:
        raise failure
    if "error" in told:
        raise PeerError(f"the first rank of the process group could not choose a checkpoint: {told['error']}")
    record: dict[str, Any] = told["record"]
    return CheckpointRecord(**{**record, "state": State(record["state"])})
