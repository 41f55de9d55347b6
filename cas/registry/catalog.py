"""The catalog: records of every registry that this store has seen, answered with no network."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Protocol, TypeVar, runtime_checkable

from cas.errors import CasError, ContentError, NotFoundError, OfflineError, UsageError
from cas.index import disk
from cas.index.records import NewRecord, Seen
from cas.index.store import Store
from cas.registry.http import Body, UnsupportedTypeError
from cas.registry.records import (
    CheckpointRecord,
    ExperimentRecord,
    Registry,
    State,
    TrialRecord,
    canonical_uuid,
)

log = logging.getLogger("cas.registry")

LOCAL = "local"  # this store's own registry: what was added here

T = TypeVar("T")
Record = ExperimentRecord | TrialRecord | CheckpointRecord

_HOW_TO_ADD = "`cas add FOLDER --experiment ID --trial ID --steps N --metric NAME=VALUE` adds a checkpoint of your own"
_HOW_TO_ASK = (
    'to ask a Determined master, name it: Determined(master="http://localhost:8080"), -m http://localhost:8080,'
    " or DET_MASTER"
)


class Catalog:
    """A registry over the records in a store: of all registries, or of one.

    An id that several registries have, with none named, is refused, never guessed. A UUID names one checkpoint
    whoever tells of it: what a master says counts first, then what was added here, then what was recovered.
    """

    def __init__(self, store: Store, registry: str | None = None) -> None:
        self._store = store
        self._registry = registry

    @property
    def name(self) -> str:
        """The registry that it is restricted to, or `catalog`."""
        return self._registry or "catalog"

    def __repr__(self) -> str:
        return f"<Catalog of {self._registry or 'all registries'} in {self._store.home}>"

    # --- one thing -------------------------------------------------------------------------------------------

    def experiment(self, id: int) -> ExperimentRecord:
        """Return an experiment, with all of its trials that were ever seen.

        Raises:
            NotFoundError: no registry here has one of this id.
            UsageError: several have, and none was named.
        """
        seen = self._one("experiment", id)
        record = ExperimentRecord.from_json(seen.data, registry=seen.registry, id=id)
        trials = self._store.records.find("trial", registry=seen.registry, parent=f"experiment/{id}")
        ids = {int(trial.id) for trial in trials if trial.id.isdigit()} | set(record.trial_ids)
        return replace(record, trial_ids=tuple(sorted(ids)))

    def trial(self, id: int) -> TrialRecord:
        """Return a trial.

        Raises:
            NotFoundError: no registry here has one of this id.
            UsageError: several have, and none was named.
        """
        seen = self._one("trial", id)
        return TrialRecord.from_json(seen.data, registry=seen.registry, id=id)

    def checkpoint(self, uuid: str) -> CheckpointRecord:
        """Return a checkpoint.

        Raises:
            NotFoundError: nothing here has this UUID.
            UsageError: it is no UUID.
        """
        wanted = canonical_uuid(uuid)
        found = self._read(
            [seen for name in self._registries("checkpoint", wanted) if (seen := self._get(name, wanted))]
        )
        if not found:
            raise self._unknown(f"checkpoint {wanted}")
        return min(found, key=_precedence)

    def _get(self, registry: str, uuid: str) -> Seen | None:
        return self._store.records.get(registry, "checkpoint", uuid)

    def _registries(self, kind: str, id: str) -> list[str]:
        names = self._store.records.registries_with(kind, id)
        return [name for name in names if self._registry in (None, name)]

    def _one(self, kind: str, id: int) -> Seen:
        names = self._registries(kind, str(id))
        if len(names) > 1:
            raise UsageError(
                f"{kind} {id} is known of several registries: {', '.join(names)};"
                f" name one: Determined(registry={names[0]!r}) or --registry {names[0]}"
            )
        seen = self._store.records.get(names[0], kind, str(id)) if names else None
        if seen is None:
            raise self._unknown(f"{kind} {id}")
        return seen

    def _unknown(self, what: str) -> NotFoundError:
        if self._registry not in (None, LOCAL):
            return NotFoundError(f"the catalog has never seen {what} of {self._registry}")
        return NotFoundError(f"the catalog knows no {what}; {_HOW_TO_ADD}; {_HOW_TO_ASK}")

    # --- lists -----------------------------------------------------------------------------------------------

    def experiment_checkpoints(self, id: int) -> list[CheckpointRecord]:
        """Return all checkpoints of an experiment that were ever seen.

        Raises:
            NotFoundError: no registry here has an experiment of this id.
            UsageError: several have, and none was named.
        """
        return self._below(self._one("experiment", id).registry, f"experiment/{id}")

    def trial_checkpoints(self, id: int) -> list[CheckpointRecord]:
        """Return all checkpoints of a trial that were ever seen.

        Raises:
            NotFoundError: no registry here has a trial of this id.
            UsageError: several have, and none was named.
        """
        return self._below(self._one("trial", id).registry, f"trial/{id}")

    def _below(self, registry: str, parent: str) -> list[CheckpointRecord]:
        return self._read(self._store.records.find("checkpoint", registry=registry, parent=parent))

    def checkpoints(self) -> list[CheckpointRecord]:
        """Return every checkpoint, by registry and UUID."""
        return self._read(self._store.records.find("checkpoint", registry=self._registry))

    def experiments(self) -> list[ExperimentRecord]:
        """Return every experiment, by registry and id; `trial_ids` are those of its own record."""
        found = []
        for seen in self._store.records.find("experiment", registry=self._registry):
            try:
                found.append(ExperimentRecord.from_json(seen.data, registry=seen.registry, id=int(seen.id)))
            except (ContentError, ValueError) as error:
                log.warning("skipped a damaged record: %s", error)
        return sorted(found, key=lambda record: (record.registry, record.id))

    def _read(self, found: Iterable[Seen]) -> list[CheckpointRecord]:
        """Join checkpoints with the configurations of their experiments; damaged records are skipped, and said."""
        configs: dict[tuple[str, object], dict[str, Any]] = {}
        records = []
        for seen in found:
            key = (seen.registry, seen.data.get("experiment"))
            if isinstance(key[1], int) and key not in configs:
                configs[key] = self._config(seen.registry, key[1])
            config = configs.get(key) if isinstance(key[1], int) else None
            try:
                record = CheckpointRecord.from_json(seen.data, registry=seen.registry, uuid=seen.id, config=config)
            except ContentError as error:
                log.warning("skipped a damaged record: %s", error)
                continue
            records.append(record)
        return records

    def _config(self, registry: str, experiment: int) -> dict[str, Any]:
        seen = self._store.records.get(registry, "experiment", str(experiment))
        config = seen.data.get("config") if seen is not None else None
        return config if isinstance(config, dict) else {}

    # --- how old ---------------------------------------------------------------------------------------------

    def seen_at(self, thing: str) -> float | None:
        """Return when a thing (`experiment/1`, `trial/2`) was last seen (seconds since 1970), or None.

        For the catalog of one registry. If its checkpoints were listed, that is the time that counts.
        """
        if self._registry is None:
            return None
        records = self._store.records
        kind, _, id = thing.partition("/")
        known = records.get(self._registry, kind, id)
        listings = [records.get(self._registry, "listing", thing)]
        if kind == "trial" and known is not None:
            listings.append(records.get(self._registry, "listing", f"experiment/{known.data.get('experiment')}"))
        moments = [seen.at for seen in listings if seen is not None]
        return max(moments, default=None if known is None else known.at)


def _precedence(record: CheckpointRecord) -> tuple[bool, int, str]:
    kinds = (record.registry.startswith(("http://", "https://")), record.registry == LOCAL, True)
    return record.state is State.DELETED, kinds.index(True), record.registry


def ago(moment: float) -> str:
    """Say how long ago a moment was, in words."""
    seconds = max(disk.now() - moment, 0)
    for name, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {name}{'s' if count > 1 else ''} ago"
    return "less than a minute ago"


# --- what was seen -------------------------------------------------------------------------------------------


def remember(
    store: Store, registry: str, records: Iterable[Record], *, complete: str | None = None, durable: bool = False
) -> None:
    """Write down what was seen of a registry; what is known already is not written again.

    An experiment's configuration is kept once, with the experiment, not with each of its checkpoints. `complete`
    (`experiment/1` or `trial/2`) says that these are all checkpoints of that thing: others that were known of it
    before count as deleted from now on, and the time is noted.
    """
    every = list(records)
    checkpoints = {record.uuid: record for record in every if isinstance(record, CheckpointRecord)}
    lines = [NewRecord("checkpoint", uuid, one.to_json(), one.parents) for uuid, one in checkpoints.items()]
    known = _known(store, registry, "checkpoint", checkpoints.keys(), complete)
    new = [*_experiments(store, registry, every), *_trials(store, registry, every, complete)]
    new += [line for line in lines if known.get(line.id) != line.data]
    if complete is not None:
        new += _gone(registry, {uuid: data for uuid, data in known.items() if uuid not in checkpoints})
        new.append(NewRecord("listing", complete, {"checkpoints": len(checkpoints)}))
    store.records.add(registry, new, durable=durable)


def _known(store: Store, registry: str, kind: str, ids: Iterable[str], parent: str | None) -> dict[str, dict[str, Any]]:
    """What is written down already: of a parent's things all, else of these ids."""
    if parent is not None:
        return {seen.id: seen.data for seen in store.records.find(kind, registry=registry, parent=parent)}
    found = ((id, store.records.get(registry, kind, id)) for id in ids)
    return {id: seen.data for id, seen in found if seen is not None}


def _experiments(store: Store, registry: str, records: Iterable[Record]) -> Iterator[NewRecord]:
    whole: dict[int, ExperimentRecord] = {}
    configs: dict[int, Mapping[str, Any]] = {}  # what checkpoints tell of their experiments
    for record in records:
        if isinstance(record, ExperimentRecord):
            whole[record.id] = record
        elif isinstance(record, CheckpointRecord) and record.experiment_id is not None:
            configs.setdefault(record.experiment_id, record.experiment_config)
    for id in whole.keys() | configs.keys():
        seen = store.records.get(registry, "experiment", str(id))
        if id in whole:
            data = whole[id].to_json()
        else:
            data = ExperimentRecord(registry=registry, id=id, config=configs[id]).to_json()
            if seen is not None:
                data = {**seen.data, "config": data["config"] or seen.data.get("config", {})}
        if seen is None or seen.data != data:
            yield NewRecord("experiment", str(id), data)


def _trials(store: Store, registry: str, records: Iterable[Record], complete: str | None) -> Iterator[NewRecord]:
    whole: dict[int, TrialRecord] = {}
    told: dict[int, TrialRecord] = {}  # by checkpoints
    for record in records:
        if isinstance(record, TrialRecord):
            whole[record.id] = record
        elif isinstance(record, CheckpointRecord) and record.trial_id is not None and record.experiment_id is not None:
            told.setdefault(
                record.trial_id,
                TrialRecord(
                    registry=registry,
                    id=record.trial_id,
                    experiment_id=record.experiment_id,
                    hparams=record.hparams,
                ),
            )
    parent = complete if complete is not None and complete.startswith("experiment/") else None
    ids = map(str, whole.keys() | told.keys())
    known = _known(store, registry, "trial", ids, parent)
    for id, record in (told | whole).items():
        data = record.to_json()
        if str(id) not in known or (id in whole and known[str(id)] != data):
            yield NewRecord("trial", str(id), data, (f"experiment/{record.experiment_id}",))


def _gone(registry: str, known: Mapping[str, Mapping[str, Any]]) -> Iterator[NewRecord]:
    """What a complete listing does not have any more."""
    for uuid, data in known.items():
        try:
            record = CheckpointRecord.from_json(data, registry=registry, uuid=uuid)
        except ContentError:
            continue
        if record.state is not State.DELETED:
            deleted = replace(record, state=State.DELETED)
            yield NewRecord("checkpoint", uuid, deleted.to_json(), deleted.parents)


@runtime_checkable
class HandsOutFiles(Protocol):
    """A registry through which files can be had as well: a master."""

    def archive(self, uuid: str, accept: str) -> AbstractContextManager[Body]:
        """Open a checkpoint's files, as one archive of a type."""


class Remembering:
    """A registry that writes down every answer of another one, so that it can be had with no network later.

    Where the other does not answer, the error says how old the catalog's answer would be, and how to ask for it.
    Nothing is answered from the catalog here: ranks of one job would take different models.
    """

    def __init__(self, inner: Registry, store: Store) -> None:
        self._inner = inner
        self._store = store

    @property
    def name(self) -> str:
        """The inner registry's name."""
        return self._inner.name

    def __repr__(self) -> str:
        return repr(self._inner)

    def archive(self, uuid: str, accept: str) -> AbstractContextManager[Body]:
        """Open a checkpoint's files as the inner registry, a master, sends them; see `Master.archive`.

        Raises:
            UnsupportedTypeError: it does not know this type, or hands out no files at all.
        """
        if not isinstance(self._inner, HandsOutFiles):
            raise UnsupportedTypeError(f"{self.name} hands out no files")
        return self._inner.archive(uuid, accept)

    def experiment(self, id: int) -> ExperimentRecord:
        """Return an experiment, as the inner registry says now.

        Raises:
            NotFoundError: it has none of this id.
            OfflineError: it does not answer.
        """
        record = self._ask(lambda: self._inner.experiment(id), f"experiment/{id}")
        self._remember([record])
        return record

    def trial(self, id: int) -> TrialRecord:
        """Return a trial, as the inner registry says now.

        Raises:
            NotFoundError: it has none of this id.
            OfflineError: it does not answer.
        """
        record = self._ask(lambda: self._inner.trial(id), f"trial/{id}")
        self._remember([record])
        return record

    def checkpoint(self, uuid: str) -> CheckpointRecord:
        """Return a checkpoint, as the inner registry says now.

        Raises:
            NotFoundError: it has none of this UUID.
            OfflineError: it does not answer.
        """
        record = self._ask(lambda: self._inner.checkpoint(uuid), f"checkpoint/{uuid}")
        self._remember([record])
        return record

    def experiment_checkpoints(self, id: int) -> list[CheckpointRecord]:
        """Return all checkpoints of an experiment, as the inner registry says now.

        Raises:
            NotFoundError: it has no experiment of this id.
            OfflineError: it does not answer.
        """
        records = self._ask(lambda: self._inner.experiment_checkpoints(id), f"experiment/{id}")
        self._remember(records, complete=f"experiment/{id}")
        return records

    def trial_checkpoints(self, id: int) -> list[CheckpointRecord]:
        """Return all checkpoints of a trial, as the inner registry says now.

        Raises:
            NotFoundError: it has no trial of this id.
            OfflineError: it does not answer.
        """
        records = self._ask(lambda: self._inner.trial_checkpoints(id), f"trial/{id}")
        self._remember(records, complete=f"trial/{id}")
        return records

    def _ask(self, question: Callable[[], T], thing: str) -> T:
        try:
            return question()
        except OfflineError as error:
            raise OfflineError(f"{error}; {self._instead(thing)}") from error

    def _instead(self, thing: str) -> str:
        what = thing.replace("/", " ")
        at = Catalog(self._store, self.name).seen_at(thing)
        if at is None:
            return f"the catalog has never seen {what}"
        return f"the catalog has {what} as it was {ago(at)}: set CAS_OFFLINE=1 to be answered from it"

    def _remember(self, records: Iterable[Record], *, complete: str | None = None) -> None:
        try:
            remember(self._store, self.name, records, complete=complete)
        except (OSError, CasError) as error:
            log.warning("cannot write down what %s answered: %s", self.name, error)
