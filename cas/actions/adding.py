"""Adding checkpoints of the user's own to the store."""

from __future__ import annotations

import json
import uuid as uuids
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cas.checkpoint import Checkpoint, users_path
from cas.config import Settings
from cas.errors import UsageError
from cas.index.manifest import Manifest, digests_of
from cas.index.store import Store, store_of
from cas.registry.catalog import Catalog
from cas.registry.local import LOCAL, check_local, record_local
from cas.registry.records import CheckpointRecord, State, canonical_uuid
from cas.transfer.adopt import hash_folder, ingest_folder


def add(
    path: str | Path,
    *,
    experiment: int | None = None,
    trial: int | None = None,
    steps: int | None = None,
    metrics: Mapping[str, float] | None = None,
    searcher_metric: str | None = None,
    smaller_is_better: bool | None = None,
    uuid: str | None = None,
    hparams: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    settings: Settings | None = None,
) -> Checkpoint:
    """Add a folder (or one file) to the store as a checkpoint; when this returns, it survives a power cut.

    The files are copied (reflinked where the file system can); the user's own are neither linked nor changed.

    Args:
        path: the folder with the checkpoint's files.
        experiment: the id of the experiment it belongs to, chosen by the user.
        trial: the id of the trial; unique over all experiments.
        steps: how many batches the trial had trained.
        metrics: name → value of the validation at that step.
        searcher_metric: the metric that decides which checkpoint of the experiment is best; needs saying once.
        smaller_is_better: its direction; needs saying with it.
        uuid: default: a new one. Of a checkpoint that is here, the same files can be added again: nothing happens.
        hparams: the trial's hyperparameters.
        metadata: default: what `metadata.json` in the folder says.
        config: more of the experiment's configuration.
        settings: default: `Settings.load()`.

    Raises:
        NotFoundError: there is no such folder.
        UnsafeNameError: a name in it cannot be kept.
        UsageError: arguments that contradict each other, or what was said before of the experiment; there are no
            files; or other files are in the store under this UUID.
    """
    chosen = settings or Settings.load()
    source, name = users_path(path), canonical_uuid(uuid) if uuid is not None else str(uuids.uuid4())
    store = store_of(chosen)
    said = {
        "uuid": name,
        "experiment": experiment,
        "trial": trial,
        "steps": steps,
        "metrics": metrics,
        "searcher_metric": searcher_metric,
        "smaller_is_better": smaller_is_better,
        "hparams": hparams,
        "metadata": metadata,
        "config": config,
    }
    wanted = check_local(store, **said)
    known = _known(store, name)
    if known is not None:
        _require_same(store, source, known, wanted)
        checkpoint = Checkpoint(known, settings=chosen)
        checkpoint.was_here = True
        return checkpoint
    with store.leases.claim(name):
        while True:
            manifest = ingest_folder(store, source, settings=chosen)
            if not store.tag(LOCAL, name, manifest, durable=True):
                break  # else somebody removed blobs in between
        if metadata is None:
            said["metadata"] = _metadata_in(store, manifest)
        # Last, so that no query ever finds a checkpoint whose files did not get here.
        record = record_local(store, **said, resources=_resources(manifest), durable=True)
        store.uses.note(name)
    return Checkpoint(record, settings=chosen)


def _known(store: Store, uuid: str) -> CheckpointRecord | None:
    """Return the record of a checkpoint that was added before, and whose files are all here."""
    if store.records.get(LOCAL, "checkpoint", uuid) is None:
        return None
    record = Catalog(store, LOCAL).checkpoint(uuid)
    manifest = store.resolve(LOCAL, uuid)
    if record.state is State.DELETED or manifest is None or not manifest.complete:
        return None
    return record if all(store.has(digest) for digest in digests_of(manifest)) else None


def _require_same(store: Store, source: Path, known: CheckpointRecord, wanted: CheckpointRecord) -> None:
    """Refuse to add other files, or other metrics, under the UUID of a checkpoint that is here."""
    said = {
        "experiment": (wanted.experiment_id, known.experiment_id),
        "trial": (wanted.trial_id, known.trial_id),
        "steps": (wanted.steps_completed, known.steps_completed),
        "metrics": (wanted.validation_metrics, known.validation_metrics),
    }
    differ = [name for name, (new, old) in said.items() if new is not None and new != old]
    if not differ and hash_folder(source) != store.resolve(LOCAL, known.uuid):
        differ = ["files"]
    if differ:
        raise UsageError(
            f"checkpoint {known.uuid} is in the store already, with other {' and '.join(differ)};"
            f" `cas rm {known.uuid}` removes it"
        )


def _resources(manifest: Manifest) -> dict[str, int]:
    found = {str(entry.path): entry.size for entry in manifest.files}
    return found | {f"{folder}/": 0 for folder in manifest.directories}


def _metadata_in(store: Store, manifest: Manifest) -> dict[str, Any]:
    entry = manifest.by_path.get("metadata.json")
    if entry is None or entry.digest is None or entry.size > 64 << 20:
        return {}
    try:
        data = json.loads(store.blobs.read(entry.digest))
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}
