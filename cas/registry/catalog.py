"""The catalog: records of every registry that this store has seen, answered with no network."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cas.errors import ContentError, NotFoundError, UsageError
from cas.index import disk
from cas.index.garbage import uncollected
from cas.index.records import Seen
from cas.index.store import Store
from cas.registry import briefs
from cas.registry.records import (
    CheckpointRecord,
    ExperimentRecord,
    Registry,
    State,
    TrialRecord,
    canonical_uuid,
)
from cas.registry.select import Candidate

log = logging.getLogger("cas.registry")

LOCAL = "local"  # this store's own registry: what was added here

Record = ExperimentRecord | TrialRecord | CheckpointRecord
Choice = Callable[[Sequence[Candidate]], Sequence[Candidate]]  # some of those it is given, in its order

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
        trials = self._store.records.ids("trial", registry=seen.registry, parent=f"experiment/{id}")
        ids = {int(trial) for trial in trials if trial.isdecimal()} | set(record.trial_ids)
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
        every = [self._store.records.get(name, kind, str(id)) for name in self._registries(kind, str(id))]
        found = [seen for seen in every if seen is not None and not seen.data.get("contested")]
        if len(found) > 1:
            names = [seen.registry for seen in found]
            raise UsageError(
                f"{kind} {id} is known of several registries: {', '.join(names)};"
                f" name one: Determined(registry={names[0]!r}) or --registry {names[0]}"
            )
        if not found:
            raise self._unknown(f"{kind} {id}")
        return found[0]

    @property
    def scope(self) -> str | None:
        """The registry that it is restricted to, or None."""
        return self._registry

    def require_known(self) -> None:
        """Refuse a registry that nothing here tells of.

        Raises:
            UsageError: there is no such registry; the message lists those there are.
        """
        if self._registry not in (None, LOCAL) and self._registry not in (names := _names(self._store)):
            known = ", ".join(names) or "none yet"
            raise UsageError(f"no registry is called {self._registry!r:.200} here; there are: {known}")

    def _unknown(self, what: str) -> NotFoundError:
        if self._registry not in (None, LOCAL):
            try:
                self.require_known()
            except UsageError as error:
                return NotFoundError(f"the catalog has never seen {what} of {self._registry}: {error}")
            return NotFoundError(f"the catalog has never seen {what} of {self._registry}")
        return NotFoundError(f"the catalog knows no {what}; {_HOW_TO_ADD}; {_HOW_TO_ASK}")

    # --- lists -----------------------------------------------------------------------------------------------

    def experiment_trials(self, id: int) -> list[TrialRecord]:
        """Return all trials of an experiment that were ever seen, in order of id.

        Raises:
            NotFoundError: no registry here has an experiment of this id.
            UsageError: several have, and none was named.
        """
        registry = self._one("experiment", id).registry
        seen = self._store.records.find("trial", registry=registry, parent=f"experiment/{id}")
        found = [TrialRecord.from_json(one.data, registry=registry, id=int(one.id)) for one in seen if one.id.isdigit()]
        return sorted(found, key=lambda record: record.id)

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

    def choose(self, thing: str, choice: Choice) -> list[CheckpointRecord]:
        """Return what a choice takes of all checkpoints of a thing (`experiment/1`, `trial/2`) that were ever seen.

        What the choice is made by is read of all, the rest only of what was chosen.

        Raises:
            NotFoundError: no registry here has such a thing; or the choice finds nothing that it can take.
            UsageError: several have, and none was named; or the choice raises it.
        """
        kind, _, id = thing.partition("/")
        seen = self._one(kind, int(id))
        experiment = seen.data.get("experiment") if kind == "trial" else int(id)
        config = self._config(seen.registry, experiment) if isinstance(experiment, int) else {}
        try:
            with uncollected():
                rows = self._store.records.briefs("checkpoint", registry=seen.registry, parent=thing)
                picked = choice(list(briefs.read(rows, registry=seen.registry, config=config)))
        except (NotFoundError, UsageError):  # the message says how many there are of which kind
            return _chosen(self._below(seen.registry, thing), choice)
        found = {record.uuid: record for record in self._read(self._each(seen.registry, picked))}
        if all(one.uuid in found and one.is_of(found[one.uuid]) for one in picked if isinstance(one, briefs.Brief)):
            return [found[one.uuid] for one in picked]
        return _chosen(self._below(seen.registry, thing), choice)  # some were damaged, or written again meanwhile

    def _each(self, registry: str, picked: Iterable[Candidate]) -> list[Seen]:
        return [seen for one in picked if (seen := self._get(registry, one.uuid)) is not None]

    def checkpoints(self, *, experiment: int | None = None, trial: int | None = None) -> list[CheckpointRecord]:
        """Return every checkpoint, or those of an experiment or trial of any registry, by registry and UUID."""
        parent = f"trial/{trial}" if trial is not None else None if experiment is None else f"experiment/{experiment}"
        found = self._read(self._store.records.find("checkpoint", registry=self._registry, parent=parent))
        return [record for record in found if experiment in (None, record.experiment_id)]

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
        listings = [records.get(self._registry, note, thing) for note in ("listing", "again")]
        if kind == "trial" and known is not None:
            listings.append(records.get(self._registry, "listing", f"experiment/{known.data.get('experiment')}"))
        moments = [seen.at for seen in listings if seen is not None]
        return max(moments, default=None if known is None else known.at)


@dataclass(frozen=True, slots=True)
class KnownRegistry:
    """A registry of the catalog: how much is known of it, and when it was last heard (seconds since 1970)."""

    name: str
    counts: Mapping[str, int]  # experiments, trials, checkpoints
    seen: float | None


def known_registries(store: Store) -> list[KnownRegistry]:
    """Return every registry that has records or checkpoints here, by name."""
    counted = store.records.counts()
    found = []
    for name in _names(store):
        kinds = counted.get(name, {})
        counts = {f"{kind}s": kinds.get(kind, (0, 0.0))[0] for kind in ("experiment", "trial", "checkpoint")}
        found.append(KnownRegistry(name, counts, max((seen for _, seen in kinds.values()), default=None)))
    return found


def _names(store: Store) -> list[str]:
    return sorted({*store.records.registries(), *store.refs.all_registries()})


def choose(registry: Registry, thing: str, choice: Choice) -> list[CheckpointRecord]:
    """Return what a choice takes of all checkpoints of a thing (`experiment/1`, `trial/2`), whoever has them.

    Raises:
        NotFoundError: the registry has no such thing; or the choice finds nothing that it can take.
        UsageError: as the choice does.
        OfflineError: the registry is a master that does not answer.
    """
    if isinstance(registry, Catalog):
        return registry.choose(thing, choice)
    kind, _, id = thing.partition("/")
    list_all = registry.trial_checkpoints if kind == "trial" else registry.experiment_checkpoints
    return _chosen(list_all(int(id)), choice)


def _chosen(records: list[CheckpointRecord], choice: Choice) -> list[CheckpointRecord]:
    found = {record.uuid: record for record in records}
    return [found[one.uuid] for one in choice(records)]


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
