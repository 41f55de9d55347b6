"""Many hosts, one job: the ranks of a process group agree on a checkpoint, and bring it to all hosts together."""

from __future__ import annotations

import dataclasses
import json
import logging
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cas.config import Settings
from cas.errors import PeerError
from cas.index.store import Store
from cas.load.selecting import model_storages
from cas.pull.models import files_of_models
from cas.pull.origin import Origin
from cas.registry.records import CheckpointRecord, Registry, State
from cas.transfer.fetch import PullReport
from cas.transfer.process_group import TorchGroup
from cas.transfer.remote import RemoteFile
from cas.transfer.selection import EVERYTHING, Selection
from cas.transfer.shared_records import share_records
from cas.transfer.telling import Group, in_a_line
from cas.transfer.together import pull_together

log = logging.getLogger("cas.checkpoint")

PATIENCE = 10  # times the timeout of a request: a rank that reads a share may have to try again


def group_of(process_group: Any, settings: Settings) -> Group:
    """Return the ranks of a `torch.distributed` group; None or True: the job's default one.

    Raises:
        UsageError: torch.distributed is not initialized.
    """
    return TorchGroup(process_group, bound=max(PATIENCE * settings.timeout, 1.0))


@dataclass(frozen=True, slots=True)
class Chosen:
    """What the ranks of a job agree on: a checkpoint, which of its files, and the `storage_options` of its place."""

    record: CheckpointRecord
    selection: Selection = EVERYTHING
    options: Mapping[str, Any] | None = field(default=None, repr=False)
    part: bool = False  # of files that hold more than a model, only its bytes are needed
    registry: Registry | None = field(default=None, repr=False)  # who told it; of the first rank only

    def to_json(self) -> dict[str, Any]:
        """Return it as `from_json` reads it; options that JSON cannot hold (a credential object) stay on this rank."""
        options = self.options
        try:
            json.dumps(options)
        except (TypeError, ValueError):
            log.warning("storage_options hold what cannot be sent to the other ranks: each has to be given its own")
            options = None
        selection = dataclasses.asdict(self.selection)
        record = dataclasses.asdict(self.record)
        return {"record": record, "selection": selection, "options": options, "part": self.part}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Chosen:
        """Read what `to_json` returned."""
        record, selection = data["record"], data["selection"]
        return cls(
            CheckpointRecord(**{**record, "state": State(record["state"])}),
            Selection.of(selection["include"], selection["exclude"]),
            data["options"],
            data["part"],
        )


def is_one_host(group: Group, settings: Settings) -> bool:
    """Whether all ranks say that they are on one host and share a home: then nothing has to be exchanged."""
    return len(set(group.gather(f"{platform.node()} {settings.home}".encode()))) == 1


def fetch_together(opened: Callable[[], Store], origin: Origin, group: Group) -> PullReport | None:
    """Bring a checkpoint's files into the stores of all hosts; on every rank, with the same checkpoint.

    Args:
        opened: returns this rank's store; the others hear of it if it cannot be opened.
        origin: where the files come from that no host has.
        group: the ranks.

    Returns what this host transferred, on the rank that did its work.

    Raises:
        PeerError: another rank failed or does not answer.
        CasError: this rank failed; the others were told.
    """
    record, settings = origin.record, origin.settings
    return pull_together(
        opened,
        origin,
        group,
        registry=record.registry,
        uuid=record.uuid,
        settings=settings,
        expected_sizes=record.resources or None,
        partial=record.state is State.PARTIALLY_DELETED,
        selection=origin.selection,
    )


def fetch_models_together(
    opened: Callable[[], Store], origin: Origin, group: Group, is_here: Callable[[], bool]
) -> Origin | None:
    """Bring to all hosts what the models need of files that hold more than a model; on every rank.

    Where all that is wanted `is_here` on some host, that one sends whole files, and nobody asks the origin.

    Returns where the other files come from, which are to be fetched whole; None if there are no others.

    Raises:
        PeerError: another rank failed or does not answer.
        CasError: this rank failed; the others were told.
    """
    record = origin.record

    def candidates(store: Store, files: Sequence[RemoteFile]) -> Iterator[RemoteFile]:
        return files_of_models(store, files, store.resolve(record.registry, record.uuid))

    rest = share_records(
        opened,
        origin,
        group,
        registry=record.registry,
        uuid=record.uuid,
        settings=origin.settings,
        selection=origin.selection,
        candidates=candidates,
        choose=model_storages,
        is_here=is_here,
    )
    return None if rest is None else dataclasses.replace(origin, selection=rest)


def agree(group: Group, choose: Callable[[], Chosen]) -> Chosen:
    """Return on every rank what the first rank chooses; the others choose nothing.

    It travels with the keys of its storage, over the job's own process group and nowhere else.

    Raises:
        PeerError: the first rank could not choose; the message says why.
        Exception: this is the first rank, and `choose` raised it.
    """
    chosen: Chosen | None = None
    failure: Exception | None = None
    answer = b""
    if group.rank == 0:
        try:
            chosen = choose()
            answer = json.dumps(chosen.to_json()).encode()
        except Exception as error:  # whatever it is: the others wait, and must hear of it
            failure, answer = error, json.dumps({"error": in_a_line(error)}).encode()
    told = json.loads(group.broadcast(answer, 0))
    if failure is not None:
        raise failure
    if "error" in told:
        raise PeerError(f"the first rank of the process group could not choose a checkpoint: {told['error']}")
    return chosen or Chosen.from_json(told)
