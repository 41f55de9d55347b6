"""Writing down what a registry answers, so that the catalog has it later."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Protocol, TypeVar, runtime_checkable

from cas.errors import CasError, ContentError, OfflineError
from cas.index import disk
from cas.index.records import NewRecord
from cas.index.store import Store
from cas.registry.catalog import Catalog, Record, ago
from cas.registry.http import Body, UnsupportedTypeError
from cas.registry.records import CheckpointRecord, ExperimentRecord, Registry, State, TrialRecord
from cas.registry.values import same

log = logging.getLogger("cas.registry")

T = TypeVar("T")

AGAIN = 60.0  # seconds after which it is noted that an answer was the same again


def remember(
    store: Store,
    registry: str,
    records: Iterable[Record],
    *,
    complete: str | None = None,
    others_are_gone: bool = True,
    durable: bool = False,
) -> None:
    """Write down what was seen of a registry; what is known already is not written again.

    An experiment's configuration is kept once, with the experiment, not with each of its checkpoints. `complete`
    (`experiment/1` or `trial/2`) says that these are all checkpoints of that thing that it lists: the time is noted,
    and others that were known of it before count as deleted from now on, unless `others_are_gone` is false.
    """
    every = list(records)
    checkpoints = {record.uuid: record for record in every if isinstance(record, CheckpointRecord)}
    lines = [NewRecord("checkpoint", uuid, one.to_json(), one.parents) for uuid, one in checkpoints.items()]
    known = _known(store, registry, "checkpoint", checkpoints.keys(), complete)
    new = [*_experiments(store, registry, every), *_trials(store, registry, every, complete)]
    new += [line for line in lines if not same(known.get(line.id), line.data)]
    if complete is not None:
        if others_are_gone:
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
        if seen is None or not same(seen.data, data):
            yield NewRecord("experiment", str(id), data)


def _trials(store: Store, registry: str, records: Iterable[Record], complete: str | None) -> Iterator[NewRecord]:
    whole: dict[int, TrialRecord] = {}
    told: dict[int, TrialRecord] = {}  # by checkpoints
    for record in records:
        if isinstance(record, TrialRecord):
            whole[record.id] = record
        elif isinstance(record, CheckpointRecord) and record.trial_id is not None:
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
        before = known.get(str(id), {})
        data = record.to_json()
        if record.experiment_id is None and before.get("experiment") is not None:
            continue  # a master of 0.12 tells less of it by itself than in the list of its experiment
        if not before or (id in whole and not same(before, data)) or before.get("experiment") != data["experiment"]:
            yield NewRecord("trial", str(id), data, record.parents)


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
        self._remember([record], seen=f"experiment/{id}")
        return record

    def trial(self, id: int) -> TrialRecord:
        """Return a trial, as the inner registry says now.

        Raises:
            NotFoundError: it has none of this id.
            OfflineError: it does not answer.
        """
        record = self._ask(lambda: self._inner.trial(id), f"trial/{id}")
        self._remember([record], seen=f"trial/{id}")
        return record

    def checkpoint(self, uuid: str) -> CheckpointRecord:
        """Return a checkpoint, as the inner registry says now.

        Raises:
            NotFoundError: it has none of this UUID.
            OfflineError: it does not answer.
        """
        record = self._filled(self._ask(lambda: self._inner.checkpoint(uuid), f"checkpoint/{uuid}"))
        self._remember([record], seen=f"checkpoint/{uuid}")
        return record

    def experiment_trials(self, id: int) -> list[TrialRecord]:
        """Return all trials of an experiment, as the inner registry says now.

        Raises:
            NotFoundError: it has no experiment of this id.
            OfflineError: it does not answer.
        """
        records = self._ask(lambda: self._inner.experiment_trials(id), f"experiment/{id}")
        self._remember(records)
        return records

    def experiment_checkpoints(self, id: int) -> list[CheckpointRecord]:
        """Return all checkpoints of an experiment, as the inner registry says now.

        Raises:
            NotFoundError: it has no experiment of this id.
            OfflineError: it does not answer.
        """
        found = self._ask(lambda: self._inner.experiment_checkpoints(id), f"experiment/{id}")
        records = [self._filled(record) for record in found]
        self._remember(records, complete=f"experiment/{id}")
        return records

    def trial_checkpoints(self, id: int) -> list[CheckpointRecord]:
        """Return all checkpoints of a trial, as the inner registry says now.

        Raises:
            NotFoundError: it has no trial of this id.
            OfflineError: it does not answer.
        """
        found = self._ask(lambda: self._inner.trial_checkpoints(id), f"trial/{id}")
        records = [self._filled(record) for record in found]
        self._remember(records, complete=f"trial/{id}")
        return records

    def set_metadata(self, uuid: str, metadata: Mapping[str, Any]) -> CheckpointRecord:
        """Replace all metadata of a checkpoint at the inner registry; return it as it is then.

        Raises:
            NotFoundError: it has none of this UUID.
            OfflineError: it does not answer; nothing is changed here either.
        """
        inner: Any = self._inner  # a master; others have no metadata to set
        changed: CheckpointRecord = inner.set_metadata(uuid, metadata)
        record = self._filled(changed)
        self._remember([record])
        return record

    def _filled(self, record: CheckpointRecord) -> CheckpointRecord:
        """A record with what a master of 0.12 leaves out of it, where another list of the same master told it."""
        if record.trial_id is not None and record.experiment_id is not None:
            return record
        try:
            known = Catalog(self._store, self.name).checkpoint(record.uuid)
        except (CasError, OSError):
            return record
        return replace(
            record,
            trial_id=record.trial_id if record.trial_id is not None else known.trial_id,
            experiment_id=record.experiment_id if record.experiment_id is not None else known.experiment_id,
            hparams=record.hparams or known.hparams,
            experiment_config={**known.experiment_config, **record.experiment_config},
        )

    def _ask(self, question: Callable[[], T], thing: str) -> T:
        try:
            return question()
        except OfflineError as error:
            raise OfflineError(f"{error}; {self._instead(thing)}") from error

    def _instead(self, thing: str) -> str:
        what = thing.replace("/", " ")
        at = Catalog(self._store, self.name).seen_at(thing)
        if at is None:
            gone = "; is the master gone for good? `cas recover URL` makes a registry of what lies in its bucket"
            return f"the catalog has never seen {what}{self._elsewhere(thing) or gone}"
        how = "set CAS_OFFLINE=1 (or --offline, offline=True) to be answered from it"
        return f"the catalog has {what} as it was {ago(at)}: {how}{self._elsewhere(thing)}"

    def _elsewhere(self, thing: str) -> str:
        """Which other registries know a thing of this name."""
        kind, _, id = thing.partition("/")
        others = [name for name in self._store.records.registries_with(kind, id) if name != self.name]
        return f"; {', '.join(others[:3])} has such a one: --registry {others[0]}" if others else ""

    def _remember(self, records: Iterable[Record], *, complete: str | None = None, seen: str | None = None) -> None:
        try:
            all_there: bool = complete is not None and getattr(self._inner, "lists_are_complete", True)
            remember(self._store, self.name, records, complete=complete, others_are_gone=all_there)
            if seen is not None:
                self._note_again(seen)
        except (OSError, CasError) as error:
            log.warning("cannot write down what %s answered: %s", self.name, error)

    def _note_again(self, thing: str) -> None:
        """Note that a thing was seen unchanged, if what is written of it is not from just now."""
        at = Catalog(self._store, self.name).seen_at(thing)
        if at is not None and disk.now() - at > AGAIN:
            self._store.records.add(self.name, [NewRecord("again", thing, {})])
