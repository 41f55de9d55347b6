"""A registry made of what lies in a bucket: what each checkpoint's own files say, and which experiment that makes.

Pure: bytes in, records out. Everything that comes from the bucket is hostile until it was read here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from cas.errors import UsageError
from cas.index.digest import Digest
from cas.index.layout import quote_registry
from cas.index.records import NewRecord
from cas.registry import records as said_by
from cas.registry.metric_tables import Row
from cas.registry.records import CheckpointRecord, ExperimentRecord, State, TrialRecord
from cas.registry.values import is_whole, plain, without_credentials

PREFIX = "recovered:"
MAX_DOCUMENT = 4 << 20  # bytes of a metadata.json or load_data.json; real ones have some kB
MAX_FILES = 20_000  # of one checkpoint; the list of more is not kept
DOCUMENTS = ("metadata.json", "load_data.json")
_SHARED = "load_data.json"  # the one that all checkpoints of a trial have alike
_MAX_KEPT = 32 << 10  # bytes of it; larger ones are read anew each time
FIRST_DERIVED = 1 << 40  # ids that are made here have 13 digits: nobody takes one for an id that a master gave
_UNDERSTANDING = 1  # grows when the same files would be understood otherwise: then they are read again


def registry_of(url: str) -> str:
    """Return the name of the registry of what lies at a URL; the end of a very long one is replaced by its digest."""
    name = f"{PREFIX}{url}"
    try:
        quote_registry(name)
    except UsageError:
        return f"{name[:60]}~{Digest.of(name.encode('utf-8', 'replace')).hex[:16]}"
    return name


def storage_of(url: str) -> dict[str, Any]:
    """Return the storage that checkpoints below a URL are fetched from."""
    return {"type": "url", "url": url}


# --- one checkpoint --------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Contents:
    """What lies below `<uuid>/`: names with sizes in bytes (folders end in `/`); when the newest was written (ns)."""

    uuid: str
    files: dict[str, int] = field(default_factory=dict)
    count: int = 0  # of files, also of those whose names are not kept
    size: int = 0
    modified: int | None = None
    odd_names: int = 0  # names that no file on a disk can have
    stamps: dict[str, str] = field(default_factory=dict)  # of DOCUMENTS: which version lies there

    def add(self, name: str, size: int, modified: int | None, *, is_file: bool) -> None:
        """Take one name, relative to the checkpoint."""
        is_folder = name.endswith("/")
        if not is_file and not is_folder:
            self.odd_names += 1
            return
        self.count += is_file
        self.size += size
        if modified is not None and is_file:
            self.modified = max(self.modified or 0, modified)
        if len(self.files) <= MAX_FILES:
            self.files[name] = size

    @property
    def stamp(self) -> str:
        """Tell these contents from any others, as far as their list goes."""
        listed = json.dumps([self.files, self.count, self.size, self.stamps], sort_keys=True).encode()
        return f"{_UNDERSTANDING}:{Digest.of(listed).hex[:32]}"


@dataclass(slots=True)
class Finding:
    """What one checkpoint's own files say; None where they say nothing."""

    uuid: str
    resources: dict[str, int]
    metadata: dict[str, Any]
    report_time: str | None
    steps: int | None = None
    config: dict[str, Any] | None = None
    hparams: dict[str, Any] | None = None
    trial_class: str | None = None
    cluster: str | None = None
    experiment_id: int | None = None
    trial_id: int | None = None
    problems: list[str] = field(default_factory=list)  # what could not be understood


def understand(contents: Contents, documents: Mapping[str, bytes], problems: Iterable[str] = ()) -> Finding:
    """Read what a checkpoint's files say of it.

    Args:
        contents: what lies there.
        documents: the bytes of those of `DOCUMENTS` that could be read.
        problems: why others could not.
    """
    found = list(problems)
    metadata, loading = (_document(documents, name, found) for name in DOCUMENTS)
    config = _first_object(loading, metadata, name="experiment_config")
    hparams = _first_object(loading, metadata, name="hparams")
    if contents.odd_names:
        found.append("names that no file can have")
    if len(contents.files) > MAX_FILES:
        found.append(f"more than {MAX_FILES} files, whose list is not kept")
    spec = next((one for one in (loading.get("trial_cls_spec"), (config or {}).get("entrypoint")) if one), None)
    kept = {name: value for name, value in metadata.items() if name != "experiment_config"}
    kept |= {name: loading[name] for name in ("trial_type", "trial_cls_spec") if isinstance(loading.get(name), str)}
    return Finding(
        uuid=contents.uuid,
        resources=contents.files if len(contents.files) <= MAX_FILES else {},
        metadata=kept,
        report_time=_moment(contents.modified),
        steps=_whole(metadata.get("steps_completed"), 0),
        config=config,
        hparams=hparams,
        trial_class=spec if isinstance(spec, str) else None,
        cluster=metadata["cluster_id"] if isinstance(metadata.get("cluster_id"), str) else None,
        experiment_id=_whole(metadata.get("experiment_id"), 1),
        trial_id=_whole(metadata.get("trial_id"), 1),
        problems=found,
    )


def _document(documents: Mapping[str, bytes], name: str, problems: list[str]) -> dict[str, Any]:
    raw = documents.get(name)
    if raw is None:
        return {}
    found = _parsed_before(raw) if name == _SHARED and len(raw) <= _MAX_KEPT else _parsed(raw)
    if isinstance(found, str):
        problems.append(f"{name} {found}")
        return {}
    return found


def _parsed(raw: bytes) -> dict[str, Any] | str:
    """Return the object that a document holds, with no credential in it; or why it holds none."""
    try:
        value = plain(json.loads(raw))
    except (ValueError, RecursionError):
        return "is no JSON, or is nested too deeply"
    return without_credentials(value) if isinstance(value, dict) else "holds no object"


# All checkpoints of a trial say the same of it, and looking through a configuration takes a hundred times as long as
# finding it here. What is returned is shared: it is never changed.
_parsed_before = lru_cache(maxsize=256)(_parsed)


def _first_object(*documents: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    return next((value for one in documents if isinstance(value := one.get(name), dict) and value), None)


def _whole(value: object, least: int) -> int | None:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and is_whole(value, least) else None


def _moment(modified: int | None) -> str | None:
    if modified is None:
        return None
    try:
        moment = datetime.fromtimestamp(modified // 10**9, UTC)
    except (ValueError, OverflowError, OSError):
        return None
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{modified % 10**9:09d}Z"


# --- which experiment, which trial -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Claim:
    """What an id stands for, whose id it is if one was named, and that id."""

    key: str
    owner: str  # the cluster that gave the id; ANYONE if that is not known; the key, if no id was named
    said: int | None = None

    def to_json(self) -> dict[str, str]:
        """Return what is written of it."""
        return {"key": self.key, "owner": self.owner}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a checkpoint belongs."""

    experiment: int
    trial: int
    experiment_claim: Claim
    trial_claim: Claim


ANYONE = "?"  # owner of ids from the user's table, and from metadata that name no cluster: they fit any cluster's
_CONTESTED = "!"


class Numbering:
    """Gives ids: those that the user's table or the content names, else ids derived from the content.

    An id that two clusters gave is used for neither. `experiments` and `trials` are the ids of earlier runs with their
    owners; None is the owner of an id that was contested.
    """

    def __init__(
        self,
        registry: str,
        experiments: Mapping[int, str | None] | None = None,
        trials: Mapping[int, str | None] | None = None,
    ) -> None:
        self._registry = registry
        self._experiments = Ids(experiments or {})
        self._trials = Ids(trials or {})

    def place(self, finding: Finding, row: Row | None = None) -> Place:
        """Say where a checkpoint belongs."""
        experiment = self._experiment(finding, row)
        trial = self._trial(finding, row, experiment)
        return Place(self._experiments.give(experiment), self._trials.give(trial), experiment, trial)

    def _experiment(self, finding: Finding, row: Row | None) -> Claim:
        said = row.experiment_id if row is not None and row.experiment_id is not None else finding.experiment_id
        if said is not None:
            owner = finding.cluster or ANYONE
            return Claim(f"experiment {said} of cluster {owner}", owner, said)
        if finding.config is not None:
            return _unnamed(f"configuration {digest_of_config(finding.config)}")
        return _unnamed(f"no experiment is named, in {self._registry}")

    def _trial(self, finding: Finding, row: Row | None, experiment: Claim) -> Claim:
        said = row.trial_id if row is not None and row.trial_id is not None else finding.trial_id
        if said is not None:
            owner = finding.cluster or ANYONE
            return Claim(f"trial {said} of cluster {owner}, {experiment.key}", owner, said)
        if finding.config is not None or (experiment.said is not None and finding.hparams is not None):
            return _unnamed(f"hyperparameters {_digest(finding.hparams)}, {experiment.key}")
        return _unnamed(f"checkpoint {finding.uuid}, {experiment.key}")

    @property
    def contested(self) -> tuple[set[int], set[int]]:
        """The ids of experiments, and of trials, that several clusters gave."""
        return self._experiments.contested, self._trials.contested

    def again(self, place: Place) -> Place:
        """Return where a checkpoint belongs, now that every claim is known."""
        experiment = self._experiments.again(place.experiment, place.experiment_claim)
        trial = self._trials.again(place.trial, place.trial_claim)
        return Place(experiment, trial, place.experiment_claim, place.trial_claim)


def _unnamed(key: str) -> Claim:
    return Claim(key, key)


class Ids:
    """Ids of one kind, and whose they are."""

    def __init__(self, given: Mapping[int, str | None]) -> None:
        self._owners = {id: _CONTESTED if owner is None else owner for id, owner in given.items()}
        self.contested = {id for id, owner in given.items() if owner is None}

    def give(self, claim: Claim) -> int:
        """Return the id of what a claim stands for."""
        if claim.said is None:
            return self._derive(claim.key)
        if claim.said >= FIRST_DERIVED:  # the user's table repeats what an earlier recovery printed
            return claim.said
        owner = self._owners.setdefault(claim.said, claim.owner)
        if owner == ANYONE:
            owner = self._owners[claim.said] = claim.owner
        if owner == claim.owner or (claim.owner == ANYONE and owner != _CONTESTED):
            return claim.said
        self._owners[claim.said] = _CONTESTED
        self.contested.add(claim.said)
        return self._derive(claim.key)

    def again(self, id: int, claim: Claim) -> int:
        """Return the id that counts in the end."""
        return self._derive(claim.key) if id in self.contested else id

    def _derive(self, key: str) -> int:
        id = derived(key)
        while self._owners.setdefault(id, key) != key:  # in one of 200 buckets with 100,000 trials
            id += 1
        return id


def derived(key: str) -> int:
    """Return the id that stands for a key: the same on every machine, whatever else lies in the bucket."""
    return FIRST_DERIVED + int(Digest.of(key.encode("utf-8", "replace")).hex[:10], 16)


def digest_of_config(config: Mapping[str, Any]) -> str:
    """Tell experiments apart by their configurations, wherever their files lie now."""
    return _digest({name: value for name, value in config.items() if name != "checkpoint_storage"})


def _digest(value: object) -> str:
    """Return the digest of a plain value, with numbers as a master sends them: `4.0` is `4`, for each is a double."""
    canonical = json.loads(json.dumps(value), parse_float=_number)  # a walk of our own takes five times as long
    return Digest.of(json.dumps(canonical, sort_keys=True, separators=(",", ":")).encode()).hex[:32]


def _number(text: str) -> int | float:
    value = float(text)
    return int(value) if value.is_integer() else value


# --- records ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Recovered:
    """One checkpoint of a recovered registry: its record, and how it came about."""

    record: CheckpointRecord
    place: Place
    stamp: str
    inputs: str
    problems: list[str]
    trial_class: str | None

    def line(self) -> NewRecord:
        """Return what is written of it."""
        found = {
            "stamp": self.stamp,
            "inputs": self.inputs,
            "experiment": self.place.experiment_claim.to_json(),
            "trial": self.place.trial_claim.to_json(),
            "problems": self.problems,
        }
        return NewRecord("checkpoint", self.record.uuid, {**self.record.to_json(), "found": found}, self.record.parents)


def inputs_of(row: Row | None, known: CheckpointRecord | None) -> str:
    """Tell what else a record is made of: the user's table, and what other registries know of the checkpoint."""
    table = None if row is None else [row.metrics, row.experiment_id, row.trial_id, row.steps_completed]
    other = None if known is None else {**known.to_json(), "config": plain(dict(known.experiment_config))}
    return _digest([table, other])


def record_of(
    finding: Finding,
    place: Place,
    *,
    registry: str,
    storage: Mapping[str, Any],
    row: Row | None,
    known: CheckpointRecord | None,
) -> CheckpointRecord:
    """Return a checkpoint's record: what its files say first, then the user's table, then another registry's record.

    Metrics are the table's, else the other registry's; the report time is the other registry's, else that of the newest
    file.
    """
    sources = [
        known.validation_metrics if known is not None else None,
        row.metrics or None if row is not None else None,
    ]
    told = [metrics for metrics in sources if metrics is not None]
    steps = [finding.steps, row.steps_completed if row else None, known.steps_completed if known else None]
    return CheckpointRecord(
        registry=registry,
        uuid=finding.uuid,
        state=State.PARTIALLY_DELETED if _lacks_files(finding, known) else State.COMPLETED,
        experiment_id=place.experiment,
        trial_id=place.trial,
        steps_completed=next((one for one in steps if one is not None), None),
        report_time=(known.report_time if known is not None else None) or finding.report_time,
        resources=finding.resources,
        metadata=finding.metadata or (dict(known.metadata) if known is not None else {}),
        experiment_config={**(finding.config or {}), "checkpoint_storage": dict(storage)},
        hparams=finding.hparams or {},
        validation_metrics=plain({name: value for metrics in told for name, value in metrics.items()})
        if told
        else None,
        training_metrics=known.training_metrics if known is not None else None,
    )


def _lacks_files(finding: Finding, known: CheckpointRecord | None) -> bool:
    """Whether files are not there that another registry lists."""
    if known is None or not finding.resources:
        return False
    if known.state is State.PARTIALLY_DELETED:
        return True
    return any(not name.endswith("/") and name not in finding.resources for name in known.resources)


def known_config(record: CheckpointRecord) -> str | None:
    """Return the digest of the configuration that a recovered checkpoint tells; None if it tells none."""
    config = record.experiment_config
    return digest_of_config(config) if len(config) > 1 else None  # there is more than where the files lie


def experiment_line(record: CheckpointRecord, place: Place, trial_class: str | None) -> NewRecord:
    """Return what is written of the experiment of a recovered checkpoint."""
    config, digest = record.experiment_config, known_config(record)
    name = next((text for key in ("name", "description") if isinstance(text := config.get(key), str)), "")
    experiment = ExperimentRecord(registry=record.registry, id=place.experiment, name=name, config=config)
    shown = trial_class if digest is not None else None
    found = {**place.experiment_claim.to_json(), "config": digest, "class": shown}
    return NewRecord("experiment", str(place.experiment), {**experiment.to_json(), "found": found})


def trial_line(record: CheckpointRecord, place: Place) -> NewRecord:
    """Return what is written of the trial of a recovered checkpoint."""
    trial = TrialRecord(
        registry=record.registry, id=place.trial, experiment_id=place.experiment, hparams=record.hparams
    )
    data = {**trial.to_json(), "found": place.trial_claim.to_json()}
    return NewRecord("trial", str(place.trial), data, (f"experiment/{place.experiment}",))


def searcher_of(config: Mapping[str, Any]) -> str | None:
    """Return the metric that decides which checkpoint of an experiment is best, with its direction, in words."""
    metric = said_by.searcher_metric(config)
    return None if metric is None else f"{metric}, {_DIRECTIONS[said_by.smaller_is_better(config)]} is better"


_DIRECTIONS = {True: "smaller", False: "larger"}
