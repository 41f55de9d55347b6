"""What a checkpoint folder is: which framework wrote it, in which of the layouts that exist, and which file counts."""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from cas.errors import ContentError, NotFoundError

ACCEPTED = (
    "model.pth (a pickled torch.nn.Module), state_dict.pth or another .pth, .pt, .bin, .ckpt or .pth.tar file of torch,"
    " .safetensors (also in parts, with an index), a torch distributed checkpoint (.metadata), saved_model.pb"
    " (TensorFlow), .keras, .h5, TensorFlow weights (.index and .data files), .pkl or .pickle (a plain pickle)"
)
_STATE_DICTS = ("state_dict.pth", "determined/state_dict.pth", "pedl/state_dict.pth", "checkpoint.pt")
_TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".pkl", ".pickle")
_TORCH_ENDS = (*_TORCH_SUFFIXES, ".pth.tar", ".pt.tar")
_PICKLE_SUFFIXES = (".pkl", ".pickle", ".cloudpickle")
# What trainers save beside the weights; none of it is a model, unless it is all there is.
_STATES_BESIDE = re.compile(
    r"trial_state|random_states|rng_state|optim|scheduler|scaler|sampler|training_args|custom_checkpoint|callback"
    r"|\w+_optim_states\."  # DeepSpeed's
)
_MAGIC = b"\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # what files of torch before 1.6 begin with
_KERAS_SUFFIXES = (".keras", ".h5", ".hdf5")
_PART = ".distcp"  # of a torch distributed checkpoint
_SUFFIXES = (*_TORCH_ENDS, *_KERAS_SUFFIXES, ".safetensors", _PART)
_INDEX = ".index.json"  # says which of several files has which tensor
KERAS_INDEX = ".weights.json"  # the same of Keras
_HDF5 = b"\x89HDF\r\n\x1a\n"
_WEIGHTS = ("pytorch_model.bin",)  # what counts where other files of torch (an optimizer's) lie beside it
_ENTRYPOINT = re.compile(r"(?:^|\s)([\w.]+:[\w.]+)$")  # a trial class, also behind a launcher's words
_LATEST = re.compile(rb'^model_checkpoint_path: *"([^"\n]+)"', re.MULTILINE)
_MAX_NOTE = 1 << 20  # bytes of it
_LFS = b"version https://git-lfs.github.com/spec/"
_MAX_JSON = 64 << 20  # bytes; a larger metadata.json is none
_MAX_NAMES = 8  # of what was found, in a message
_MAX_LOOKED_AT = 100_000  # files of a folder that are looked at for a SavedModel
_MAX_FOLDERS = 100  # that are looked at for the sake of a message
_MAX_DEPTH = 3  # of these: lightning_logs/version_0/checkpoints


class Kind(StrEnum):
    """The layouts that are told apart, named by what loading gives."""

    TORCH_MODULE = "a pickled torch module"
    TORCH_TRIAL = "a state dict and the trial class that builds its model"
    TORCH_FILE = "a file of torch without code"
    PICKLE = "a plain pickle"
    TORCH_PARTS = "a state dict of torch in several files"
    SAFETENSORS = "weights in safetensors"
    DISTRIBUTED = "a torch distributed checkpoint"
    SAVED_MODEL = "a TensorFlow SavedModel"
    KERAS_TRIAL = "Keras weights and the trial class that builds their model"
    KERAS_FILE = "a file of Keras"
    TF_WEIGHTS = "TensorFlow weights without code"


@dataclass(frozen=True, slots=True)
class Layout:
    """A recognized checkpoint folder.

    `entrypoint` is `module:Class` of a trial class in `code`; `file` is what the framework's loader is given: a file,
    the folder of a SavedModel or a distributed checkpoint, the index of several files, or the common start of the names
    of TensorFlow weights. `builds` says that the trial may have `build_model()`, as trials had before there was a
    `load_data.json`; later ones may call something of their own so.
    """

    kind: Kind
    folder: Path
    file: Path
    code: Path | None = None
    entrypoint: str | None = None
    hparams: Mapping[str, Any] = field(default_factory=dict)
    experiment_config: Mapping[str, Any] = field(default_factory=dict)
    builds: bool = True

    @property
    def has_trial(self) -> bool:
        """Whether a trial class builds its models."""
        return self.kind in (Kind.TORCH_TRIAL, Kind.KERAS_TRIAL)


def recognize(folder: Path, metadata: Mapping[str, Any] | None = None) -> Layout:
    """Say what a checkpoint folder is; `metadata` is what a registry knows beyond the folder's `metadata.json`.

    Raises:
        NotFoundError: it is nothing that can be loaded; says what was found, and what would have been accepted.
        ContentError: it is several things, or a file was not fetched by Git LFS.
    """
    if not folder.is_dir():
        raise NotFoundError(f"{folder}: no such folder")
    known = {**(metadata or {}), **_read_json(folder / "metadata.json")}
    loaded = _read_json(folder / "load_data.json")
    code = folder / "code" if (folder / "code").is_dir() else None
    find = _Finder(folder, code, known, loaded)
    for rule in (*find.rules(), *find.last_rules()):
        if (found := rule()) is not None:
            _require_fetched(found.file)
            return found
    listing = _listing(folder)
    raise UnrecognizedError(f"no model in {folder}: it holds {listing}; cas loads {ACCEPTED}", listing)


class UnrecognizedError(NotFoundError):
    """A folder has nothing in it that can be loaded; `found` is what it has, in words."""

    def __init__(self, message: str, found: str = "") -> None:
        self.found = found
        super().__init__(message)


class _Finder:
    """The rules: what Determined wrote first, then what people have without it."""

    def __init__(self, folder: Path, code: Path | None, metadata: Mapping[str, Any], loaded: Mapping[str, Any]) -> None:
        self._folder = folder
        self._code = code
        self._builds = not loaded
        self._config = _mapping(loaded.get("experiment_config") or metadata.get("experiment_config"))
        self._hparams = _mapping(loaded.get("hparams") or metadata.get("hparams"))
        self._entrypoint = _trial_class(loaded.get("trial_cls_spec")) or _trial_class(self._config.get("entrypoint"))

    def rules(self) -> Iterator[Callable[[], Layout | None]]:
        """The rules, in the order in which they are tried."""
        yield from (self.torch_module, self.torch_state_dict, self.keras_trial, self.keras_callback, self.saved_model)
        yield from (self.safetensors, self.torch_parts, self.distributed, self.torch_file, self.keras_file)
        yield from (self.tensorflow_weights, self.plain_pickle)

    def last_rules(self) -> Iterator[Callable[[], Layout | None]]:
        """What is tried where no name tells a model."""
        yield from (self.lone_file, self.models_below, self.torch_states)

    def _layout(self, kind: Kind, file: Path) -> Layout:
        layout = Layout(kind, self._folder, file, self._code, self._entrypoint, self._hparams, self._config)
        return replace(layout, builds=self._builds)

    # --- Determined's ----------------------------------------------------------------------------------------

    def torch_module(self) -> Layout | None:
        """A pickled module, in Determined's and in MLflow's place."""
        if (self._folder / "model.pth").is_file():
            return self._layout(Kind.TORCH_MODULE, self._folder / "model.pth")
        if (self._folder / "data" / "model.pth").is_file():  # with an MLmodel file: MLflow's layout
            return self._layout(Kind.TORCH_MODULE, self._folder / "data" / "model.pth")
        return None

    def torch_state_dict(self) -> Layout | None:
        """The state of a PyTorchTrial, in its places over the years."""
        for name in _STATE_DICTS:
            path = self._folder / name
            if path.is_file():
                kind = Kind.TORCH_TRIAL if self._code and self._entrypoint else Kind.TORCH_FILE
                return self._layout(kind, path)
        return None

    def keras_trial(self) -> Layout | None:
        """The weights of a TFKerasTrial."""
        path = self._folder / "determined-keras-model.h5"
        kind = Kind.KERAS_TRIAL if self._code and self._entrypoint else None
        if path.is_file():
            return self._layout(kind or Kind.KERAS_FILE, path)
        found = _weights(self._folder, "determined-keras-model-weights")
        if found is None:
            return None
        return self._layout(kind or (Kind.KERAS_FILE if found.suffix in _KERAS_SUFFIXES else Kind.TF_WEIGHTS), found)

    def keras_callback(self) -> Layout | None:
        """The weights that the callback of 0.38 saved."""
        found = _weights(self._folder, "model_checkpoint")
        if found is None:
            return None
        return self._layout(Kind.KERAS_FILE if found.suffix in _KERAS_SUFFIXES else Kind.TF_WEIGHTS, found)

    def saved_model(self) -> Layout | None:
        """What estimators exported, or anybody."""
        graphs = (Path(path) for path in _walk(self._folder) if os.path.basename(path) in _GRAPHS)  # noqa: PTH119
        found = {path.parent for path in graphs if path.is_file()}
        layout = self._one(Kind.SAVED_MODEL, found, "SavedModels", "load one of these folders")
        if layout is not None:
            _require_plain(map(Path, _walk(layout.file)))
        return layout

    # --- without Determined ----------------------------------------------------------------------------------

    def safetensors(self) -> Layout | None:
        """Weights in safetensors, in one file or with an index."""
        indexes = [path for path in self._folder.glob("*.safetensors.index.json") if path.is_file()]
        found = indexes or [path for path in self._folder.glob("*.safetensors") if path.is_file()]
        return self._one(Kind.SAFETENSORS, found, f"{'indexes' if indexes else 'files'} of safetensors")

    def torch_parts(self) -> Layout | None:
        """A state dict in several files, with an index."""
        found = [path for path in self._folder.glob("*.bin.index.json") if path.is_file()]
        return self._one(Kind.TORCH_PARTS, found, "indexes of weights")

    def torch_file(self) -> Layout | None:
        """Some file of torch."""
        found = [path for path in self._folder.iterdir() if path.name.endswith(_TORCH_ENDS) and _is_torch(path)]
        named = [path for path in found if path.name in _WEIGHTS]
        models = [path for path in found if not _STATES_BESIDE.match(path.name)]
        return self._one(Kind.TORCH_FILE, named or models, "files of torch")

    def distributed(self) -> Layout | None:
        """What `torch.distributed.checkpoint` wrote."""
        found = (self._folder / ".metadata").is_file()
        return self._layout(Kind.DISTRIBUTED, self._folder) if found else None

    def keras_file(self) -> Layout | None:
        """A model or weights of Keras in one file."""
        found = [path for path in self._folder.iterdir() if path.suffix in _KERAS_SUFFIXES and path.is_file()]
        whole = [path for path in found if path.suffix == ".keras"]
        indexes = [path for path in self._folder.glob(f"*{KERAS_INDEX}") if path.is_file()]
        return self._one(Kind.KERAS_FILE, whole or indexes or found, "files of Keras")

    def tensorflow_weights(self) -> Layout | None:
        """Weights in TensorFlow's own format."""
        found = [path for path in self._folder.glob("*.index") if path.is_file()]
        starts = [path.with_suffix("") for path in found if _shards(path)]
        if len(starts) > 1 and (latest := _latest(self._folder / "checkpoint")):
            starts = [path for path in starts if path.name == latest] or starts
        layout = self._one(Kind.TF_WEIGHTS, starts, "TensorFlow checkpoints")
        if layout is not None:
            _require_plain(_shards(layout.file.with_name(f"{layout.file.name}.index")))
        return layout

    def plain_pickle(self) -> Layout | None:
        """What `pickle.dump` or `cloudpickle.dump` wrote: by its suffix, or where that is torch's, by how it begins."""
        files = [path for path in self._folder.iterdir() if path.is_file() and not _STATES_BESIDE.match(path.name)]
        found = [
            path
            for path in files
            if path.suffix in _PICKLE_SUFFIXES or (path.name.endswith(_TORCH_ENDS) and is_plain_pickle(path))
        ]
        named = [path for path in found if path.stem == "model"]
        return self._one(Kind.PICKLE, named or found, "plain pickles")

    def lone_file(self) -> Layout | None:
        """The one file there is, whatever it is called."""
        found = [path for path in self._folder.iterdir() if path.name not in ("metadata.json", "code")]
        if len(found) != 1 or not found[0].is_file() or found[0].suffix == _PART:
            return None
        if _is_torch(found[0]):
            return self._layout(Kind.TORCH_FILE, found[0])
        if is_plain_pickle(found[0]):
            return self._layout(Kind.PICKLE, found[0])
        return self._layout(Kind.KERAS_FILE, found[0]) if _start(found[0])[:8] == _HDF5 else None

    def models_below(self) -> None:
        """Name the folders with models, where this one has none: what is beside them is no model either.

        Raises:
            UnrecognizedError: there are such folders.
        """
        if names := _folders_with_models(self._folder):
            more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
            listing, inside = _listing(self._folder), ", ".join(names[:_MAX_NAMES]) + more
            remedy = f"load_from_path() takes a folder in it (of a stored checkpoint, in view()): {inside}"
            raise UnrecognizedError(f"no model in {self._folder} itself: it holds {listing}; {remedy}", listing)

    def torch_states(self) -> Layout | None:
        """What usually lies beside a model, where nothing else does."""
        found = [path for path in self._folder.iterdir() if path.name.endswith(_TORCH_ENDS) and _is_torch(path)]
        return self._one(Kind.TORCH_FILE, found, "files of torch")

    def _one(
        self, kind: Kind, found: Collection[Path], what: str, remedy: str = "load one by its path"
    ) -> Layout | None:
        """Return the layout of what was found, if anything was; names of one file are one.

        Raises:
            ContentError: it is more than one thing.
        """
        if len(found) > 1:
            found = list({_identity(path): path for path in sorted(found, reverse=True)}.values())
        if len(found) > 1:
            names = [str(path.relative_to(self._folder)) for path in sorted(found)]
            more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
            listing = ", ".join(names[:_MAX_NAMES]) + more
            pattern = {Kind.SAVED_MODEL: f"{names[0]}/", Kind.TF_WEIGHTS: f"{names[0]}.*"}.get(kind, names[0])
            alone = (
                ""
                if names[0] == "." or names[0].endswith((_INDEX, KERAS_INDEX))
                else f'; or only(include="{pattern}").load()'
            )
            raise ContentError(f"{self._folder} holds {len(names)} {what} ({listing}); {remedy}{alone}")
        return self._layout(kind, next(iter(found))) if found else None


_GRAPHS = ("saved_model.pb", "saved_model.pbtxt")


def _trial_class(entrypoint: object) -> str | None:
    """Return the `module:Class` in an entrypoint: newer ones can be a command, a list of words, or nothing of ours."""
    if isinstance(entrypoint, list):
        entrypoint = " ".join(map(str, entrypoint))
    found = _ENTRYPOINT.search(entrypoint) if isinstance(entrypoint, str) else None
    return found[1] if found else None


def _weights(folder: Path, stem: str) -> Path | None:
    """Return what `load_weights` is given for weights of this name: a file, or how names of TensorFlow's begin."""
    if (folder / f"{stem}.index").is_file():
        _require_plain(_shards(folder / f"{stem}.index"))
        return folder / stem
    for suffix in (".h5", ".weights.h5", ".hdf5", ".keras"):
        if (folder / f"{stem}{suffix}").is_file():
            return folder / f"{stem}{suffix}"
    return None


def _identity(path: Path) -> object:
    """Tell two names of one file (`latest.pth`, a link to `epoch_12.pth`) from two files."""
    try:
        found = path.stat()
    except OSError:  # how names of TensorFlow's weights begin, and no file
        return path
    return found.st_dev, found.st_ino


def _latest(path: Path) -> str | None:
    """Return how the names of the latest weights begin, of which TensorFlow keeps a note beside them."""
    try:
        if not path.is_file():
            return None
        with open(path, "rb") as file:
            found = _LATEST.search(file.read(_MAX_NOTE))
    except OSError:
        return None
    return found[1].decode("utf-8", "replace").rpartition("/")[2] if found else None


def _shards(index: Path) -> list[Path]:
    """Return the files with the values of TensorFlow weights that have this `.index`."""
    return list(index.parent.glob(f"{glob.escape(index.stem)}.data-*"))


def _require_plain(paths: Iterable[Path]) -> None:
    """Refuse what a framework would open and never get to the end of: pipes, devices.

    Raises:
        ContentError: one of them is such a thing.
    """
    for path in paths:
        if path.exists() and not path.is_file():
            raise ContentError(f"{path}: neither a file nor a folder")


def companions(path: Path) -> list[Path] | None:
    """Return the files that belong to one which the user named: parts with their index, or of one checkpoint.

    None if there is no such file.

    Raises:
        ContentError: it is a pipe or a device.
    """
    if not path.exists() and path.with_name(f"{path.name}.index").is_file():  # how TensorFlow names weights
        path = path.with_name(f"{path.name}.index")
    if not path.is_file():
        if path.exists() and not path.is_dir():
            _require_plain([path])
        return [] if path.exists() else None
    if path.name == ".metadata" or path.suffix == _PART:  # the parts of one checkpoint, of which none is one
        metadata = path.with_name(".metadata")
        return [*([metadata] if metadata.is_file() else []), *path.parent.glob(f"*{_PART}")]
    if path.suffix == ".index":
        return [path, *_shards(path)]
    if path.name.endswith(KERAS_INDEX):
        return [path, *path.parent.glob(f"{glob.escape(path.name.removesuffix(KERAS_INDEX))}_*.weights.h5")]
    if path.name.endswith(_INDEX):
        suffix = Path(path.name.removesuffix(_INDEX)).suffix
        return [path, *(other for other in path.parent.iterdir() if other.suffix == suffix)]
    return [path]


def _require_fetched(path: Path) -> None:
    for file in companions(path) or ():
        if _start(file).startswith(_LFS):
            raise ContentError(f"{file}: {_POINTER}")


_POINTER = "a Git LFS pointer in place of the file: fetch it with git lfs pull"


def _is_torch(path: Path) -> bool:
    """Whether a file begins as torch.save writes: a zip archive, or (before 1.6) the pickle of a known number."""
    start = _start(path)
    return start.startswith(b"PK\x03\x04") or (start[:1] == b"\x80" and _MAGIC in start)


def is_plain_pickle(path: Path) -> bool:
    """Whether a file begins as pickles of protocol 2 and later do, and not as torch.save writes.

    Older protocols begin with anything.
    """
    start = _start(path)
    return start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05") and _MAGIC not in start


def _start(path: Path) -> bytes:
    try:
        if not path.is_file():  # to open a pipe waits for its writer
            return b""
        with open(path, "rb") as file:
            return file.read(64)
    except OSError:
        return b""


def _walk(folder: Path) -> Iterator[str]:
    count = 0
    for root, folders, files in os.walk(folder):
        if Path(root) == folder and "code" in folders:
            folders.remove("code")  # what the user's sources came with is not what was trained
        for name in files:
            count += 1
            if count > _MAX_LOOKED_AT:
                return
            yield f"{root}/{name}"


def _folders_with_models(folder: Path) -> list[str]:
    """Return the paths, within a folder, of those in it that have a model or several."""
    found: list[str] = []
    waiting = [(folder, 0)]
    for inner, depth in waiting:  # which grows meanwhile
        if depth and _has_model(inner):
            found.append(str(inner.relative_to(folder)))
        elif depth < _MAX_DEPTH:
            folders = sorted(path for path in inner.iterdir() if path.is_dir() and path.name != "code")
            waiting += [(path, depth + 1) for path in folders[: _MAX_FOLDERS - len(waiting)]]
    models = [name for name in found if not _STATES_BESIDE.match(os.path.basename(name))]  # noqa: PTH119
    return models or found


def _has_model(folder: Path) -> bool:
    try:
        return any(rule() is not None for rule in _Finder(folder, None, {}, {}).rules())
    except ContentError:  # several
        return True


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


def _why_not(path: Path) -> str:
    """Say what is wrong with something that has the name of a file that would be loaded."""
    if not path.is_file():
        return "neither a file nor a folder" if path.exists() else "a link that leads nowhere"
    if path.name.endswith(_TORCH_ENDS) and _is_torch(path):
        return "what trainers keep beside a model"
    if path.suffix == _PART:
        return "a part of a distributed checkpoint, whose .metadata is not here"
    start = _start(path)
    if start.startswith(_LFS):
        return _POINTER
    if not start:
        return "empty" if path.stat().st_size == 0 else "not readable"
    return "text" if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in start) else "begins like no such file"


def _listing(folder: Path) -> str:
    names = sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in os.scandir(folder))
    if not names:
        return "nothing"
    why = {name: _why_not(folder / name) for name in names if name.endswith(_SUFFIXES)}
    names = [*(f"{name} ({why[name]})" for name in why), *(name for name in names if name not in why)]
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more
