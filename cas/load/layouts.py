"""What a checkpoint folder is: which framework wrote it, in which of the layouts that exist, and which file counts."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from cas.errors import ContentError, NotFoundError

ACCEPTED = (
    "model.pth (a pickled torch.nn.Module), state_dict.pth or another .pth, .pt or .bin file of torch,"
    " saved_model.pb (TensorFlow), determined-keras-model.h5"
)
_STATE_DICTS = ("state_dict.pth", "determined/state_dict.pth", "pedl/state_dict.pth", "checkpoint.pt")
_TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")
_MAX_JSON = 64 << 20  # bytes; a larger metadata.json is none
_MAX_NAMES = 8  # of what was found, in a message
_MAX_LOOKED_AT = 100_000  # files of a folder that are looked at for a SavedModel


class Kind(StrEnum):
    """The layouts that are told apart, named by what loading gives."""

    TORCH_MODULE = "a pickled torch module"
    TORCH_TRIAL = "a state dict and the trial class that builds its model"
    TORCH_FILE = "a torch file without code"
    SAVED_MODEL = "a TensorFlow SavedModel"
    KERAS_TRIAL = "Keras weights and the trial class that builds their model"
    KERAS_CALLBACK = "Keras weights of a model that the user builds"


@dataclass(frozen=True, slots=True)
class Layout:
    """A recognized checkpoint folder.

    `entrypoint` is `module:Class` of a trial class in `code`; `file` is what the framework's loader is given: a file,
    the folder of a SavedModel, or the common start of the names of a TensorFlow checkpoint.
    """

    kind: Kind
    folder: Path
    file: Path
    code: Path | None = None
    entrypoint: str | None = None
    hparams: Mapping[str, Any] = field(default_factory=dict)
    experiment_config: Mapping[str, Any] = field(default_factory=dict)


def recognize(folder: Path, metadata: Mapping[str, Any] | None = None) -> Layout:
    """Say what a checkpoint folder is; `metadata` is what a registry knows beyond the folder's `metadata.json`.

    Raises:
        NotFoundError: it is nothing that can be loaded; says what was found, and what would have been accepted.
        ContentError: it is several things.
    """
    if not folder.is_dir():
        raise NotFoundError(f"{folder}: no such folder")
    known = {**(metadata or {}), **_read_json(folder / "metadata.json")}
    loaded = _read_json(folder / "load_data.json")
    code = folder / "code" if (folder / "code").is_dir() else None
    find = _Finder(folder, code, known, loaded)
    for rule in (find.torch_module, find.torch_state_dict, find.keras, find.saved_model, find.torch_file):
        if (found := rule()) is not None:
            return found
    raise NotFoundError(f"no model in {folder}: it holds {_listing(folder)}; cas loads {ACCEPTED}")


class _Finder:
    """The rules, in the order in which they are tried."""

    def __init__(self, folder: Path, code: Path | None, metadata: Mapping[str, Any], loaded: Mapping[str, Any]) -> None:
        self._folder = folder
        self._code = code
        self._config = _mapping(loaded.get("experiment_config") or metadata.get("experiment_config"))
        self._hparams = _mapping(loaded.get("hparams") or metadata.get("hparams"))
        entrypoint = loaded.get("trial_cls_spec") or self._config.get("entrypoint")
        self._entrypoint = entrypoint if isinstance(entrypoint, str) and ":" in entrypoint else None

    def _layout(self, kind: Kind, file: Path) -> Layout:
        return Layout(kind, self._folder, file, self._code, self._entrypoint, self._hparams, self._config)

    def torch_module(self) -> Layout | None:
        if (self._folder / "model.pth").is_file():
            return self._layout(Kind.TORCH_MODULE, self._folder / "model.pth")
        if (self._folder / "data" / "model.pth").is_file():  # with an MLmodel file: MLflow's layout
            return self._layout(Kind.TORCH_MODULE, self._folder / "data" / "model.pth")
        return None

    def torch_state_dict(self) -> Layout | None:
        for name in _STATE_DICTS:
            path = self._folder / name
            if path.is_file():
                kind = Kind.TORCH_TRIAL if self._code and self._entrypoint else Kind.TORCH_FILE
                return self._layout(kind, path)
        return None

    def keras(self) -> Layout | None:
        path = self._folder / "determined-keras-model.h5"
        if path.is_file():
            return self._layout(Kind.KERAS_TRIAL, path)
        for path in sorted(self._folder.glob("determined-keras-model-weights*")):
            stem = path.name.removesuffix(".index").partition(".data-")[0]
            return self._layout(Kind.KERAS_TRIAL, path.with_name(stem))
        if (self._folder / "model_checkpoint.index").is_file():
            return self._layout(Kind.KERAS_CALLBACK, self._folder / "model_checkpoint")
        return None

    def saved_model(self) -> Layout | None:
        found = [Path(path).parent for path in _walk(self._folder) if os.path.basename(path) == "saved_model.pb"]  # noqa: PTH119
        if len(found) > 1:
            names = ", ".join(str(path.relative_to(self._folder)) for path in sorted(found)[:_MAX_NAMES])
            raise ContentError(f"{self._folder} holds {len(found)} SavedModels ({names}); load one of these folders")
        return self._layout(Kind.SAVED_MODEL, found[0]) if found else None

    def torch_file(self) -> Layout | None:
        paths = [path for path in self._folder.iterdir() if path.suffix in _TORCH_SUFFIXES and _is_torch(path)]
        if len(paths) > 1:
            names = ", ".join(sorted(path.name for path in paths)[:_MAX_NAMES])
            raise ContentError(
                f"{self._folder} holds {len(paths)} files of torch ({names}); load one of them by its path"
            )
        return self._layout(Kind.TORCH_FILE, paths[0]) if paths else None


def _is_torch(path: Path) -> bool:
    """Whether a file begins as torch.save writes: a zip archive, or (before 1.6) the pickle of a known number."""
    try:
        with open(path, "rb") as file:
            start = file.read(32)
    except OSError:
        return False
    return start.startswith(b"PK\x03\x04") or (
        start[:1] == b"\x80" and b"\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19" in start
    )


def _walk(folder: Path) -> Iterator[str]:
    count = 0
    for root, _, files in os.walk(folder):
        for name in files:
            count += 1
            if count > _MAX_LOOKED_AT:
                return
            yield f"{root}/{name}"


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        if not path.is_file():  # a pipe would never end
            return {}
        with open(path, "rb") as file:
            text = file.read(_MAX_JSON + 1)
        data = json.loads(text) if len(text) <= _MAX_JSON else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _listing(folder: Path) -> str:
    names = sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in os.scandir(folder))
    if not names:
        return "nothing"
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more
