"""Folders of checkpoints as trials left them in a bucket, with no master that knows them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

SEARCHER = {"metric": "loss", "smaller_is_better": True}


def uuid(number: int) -> str:
    """Return the UUID of a number; they are spread over all first digits."""
    return f"{number * 0x9E3779B1 % (1 << 32):08x}-0000-4000-8000-{number:012x}"


def lay(
    bucket: Path,
    number: int,
    *,
    steps: int | None = 100,
    config: dict[str, Any] | None = None,
    hparams: dict[str, Any] | None = None,
    metadata: dict[str, Any] | None = None,
    moment: int | None = None,
    files: dict[str, bytes] | None = None,
    name: str | None = None,
) -> str:
    """Write a checkpoint as the newer trials do: `metadata.json`, and `load_data.json` if there is a configuration.

    `moment`: nanoseconds since 1970, the time of its newest file.
    """
    folder = bucket / (name or uuid(number))
    documents: dict[str, Any] = {"metadata.json": {"determined_version": "0.38.1", **(metadata or {})}}
    if steps is not None:
        documents["metadata.json"]["steps_completed"] = steps
    if config is not None or hparams is not None:
        documents["load_data.json"] = {
            "trial_type": "PyTorchTrial",
            "trial_cls_spec": "model_def:Trial",
            "experiment_config": config,
            "hparams": hparams,
        }
    contents = {name: json.dumps(value).encode() for name, value in documents.items()} | {"state_dict.pth": b"s"}
    for name, data in (contents | (files or {})).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        if moment is not None:
            os.utime(path, ns=(moment, moment))
    return folder.name
