"""What a saved Keras model says that it is made of, judged before Keras makes it.

A `.keras` or `.h5` file describes its layers in JSON: each with the name of a class, newer ones with the module to
import it from. A `Lambda` layer holds Python bytecode. So the description is walked as Keras will walk it, and every
class is judged like a name in a pickle (cas/load/allowlist.py); those of the checkpoint's own `code/` are looked up
there.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cas.errors import CasError, ContentError, UnsafeContentError
from cas.load.allowlist import Verdict, judge
from cas.load.permit import Permit
from cas.load.policy import refusal
from cas.load.sources import Sources

_MAX_CONFIG = 256 << 20  # bytes
_MAX_METADATA = 1 << 20
# Of Keras itself: they hold code, or load it from somewhere else.
_HOLDING_CODE = frozenset({"Lambda", "__lambda__", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer"})
# Rooms of Keras whose classes are parts of models: nothing else of it may be named (`keras.utils` downloads files).
_ROOMS = frozenset(
    {"activations", "backend", "constraints", "dtype_policies", "initializers", "layers", "losses", "metrics", "models"}
    | {"ops", "optimizers", "quantizers", "random", "regularizers"}
)
_SPECIAL = ("__tensor__", "__numpy__", "__bytes__", "__ellipsis__", "__tuple__", "__slice__", "__keras_tensor__")


@dataclass(frozen=True, slots=True)
class Judge:
    """Judges the description of one model; `objects` are the classes of `code/` that it needs, by name."""

    subject: str
    permit: Permit
    sources: Sources | None = None
    custom: Mapping[str, Any] = field(default_factory=dict)  # the caller's own
    known: Mapping[str, Any] = field(default_factory=dict)  # functions of ours, which Keras is given as well
    objects: dict[str, Any] = field(default_factory=dict, init=False)

    def check(self, config: object) -> None:
        """Judge a description, and everything in it.

        Raises:
            UnsafeContentError: it would run code, or reads files.
        """
        for one in _objects(config):
            self._check_one(one)

    def _check_one(self, one: Mapping[str, Any]) -> None:
        name, module = one.get("class_name"), one.get("module")
        if not isinstance(name, str) or not isinstance(module, str | None):
            raise ContentError(f"{self.subject}: names a class by {name!r:.60}")
        registered = one.get("registered_name")
        if name != "function" and self._is_callers(name, registered):
            return
        if name in _HOLDING_CODE or name.rpartition(">")[2] in _HOLDING_CODE:
            if self.permit.scans:
                raise UnsafeContentError(refusal(self.subject, name, "it holds code that cannot be judged"))
            return
        config = one.get("config")
        words = config.get("vocabulary") if isinstance(config, dict) else None
        if isinstance(words, str) and not self._is_of_code(module):
            self._refuse(f"{name} of {words!r:.100}", "it reads a file of this machine")
        if name == "function" or module == "builtins":
            self._check_function(one)
        elif module is not None and not _is_of_keras(module):
            self._check_foreign(module, name, registered)
        elif module is not None and not _is_part_of_models(module, name):
            self._refuse(f"{module}.{name}", "it is no part of a model")

    def _is_callers(self, *names: object) -> bool:
        return any(isinstance(name, str) and name in self.custom for name in names)

    def _is_of_code(self, module: str | None) -> bool:
        return module is not None and self.sources is not None and self.sources.owns(module)

    def _check_function(self, one: Mapping[str, Any]) -> None:
        name, module = one.get("config"), one.get("module")
        if one.get("class_name") != "function":
            self._refuse(f"{module}.{one.get('class_name')}", "it is no part of a model")
            return
        if not isinstance(name, str) or name in self.known or self._is_callers(name):
            return
        registered = one.get("registered_name")  # Keras asks for it by its name alone, or by the end of this
        if self._is_callers(registered) and str(registered).rpartition(">")[2] == name:
            return
        if isinstance(module, str) and module != "builtins" and not _is_of_keras(module):
            self._check_foreign(module, name, name)
        elif not _is_function_of_keras(name):
            self._refuse(f"the function {name}", "it is none of Keras; give it as custom_objects=")

    def _check_foreign(self, module: str, name: str, registered: object) -> None:
        """Judge a class of `code/` or of an installed package."""
        if self.permit.safe_only:
            raise self.permit.refusal(f"{self.subject}: has {module}.{name}, which is no part of Keras")
        if self.sources is not None and self.sources.owns(module):
            value: Any = self.sources.load(module)
            for part in name.split("."):
                value = getattr(value, part, None)
            if value is None:
                raise ContentError(f"{self.subject}: needs {module}.{name}, which code/ does not have")
            self.objects[name] = value
            if isinstance(registered, str):
                self.objects[registered] = value
        elif judge(module, name) is Verdict.DANGEROUS or not name[:1].isupper():
            self._refuse(f"{module}.{name}", "that can do anything")

    def _refuse(self, what: str, why: str) -> None:
        if self.permit.scans:
            raise UnsafeContentError(refusal(self.subject, what, why))


def _objects(config: object) -> Iterator[Mapping[str, Any]]:
    """Yield every object that a description names a class for, at any depth."""
    waiting = [config]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            if "class_name" in one and one["class_name"] not in _SPECIAL:
                yield one
            waiting.extend(one.values())
        elif isinstance(one, list):
            waiting.extend(one)


def _is_of_keras(module: str) -> bool:
    return module.partition(".")[0] in ("keras", "tf_keras", "keras_core")


def _is_part_of_models(module: str, name: str) -> bool:
    parts = [part for part in module.split(".")[1:] if part not in ("src", "api", "_tf_keras", "keras", "_v2")]
    return bool(name[:1].isupper() and name.isidentifier() and (not parts or parts[0] in _ROOMS))


def _is_function_of_keras(name: str) -> bool:
    import keras

    rooms = (keras.activations, keras.losses, keras.metrics, keras.initializers, keras.regularizers, keras.constraints)
    return name.isidentifier() and any(callable(getattr(room, name, None)) for room in rooms)


# --- where descriptions lie --------------------------------------------------------------------------------------


def config_of_archive(path: Path) -> object:
    """Return the description in a `.keras` file, as Keras will read it, after its weights were looked at.

    Raises:
        ContentError: it is no such file, or damaged.
        UnsafeContentError: its weights lie in other files of this machine.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if len(names) != len(set(names)):
                raise ContentError(f"{path}: has two files of one name in it")
            if archive.getinfo("config.json").file_size > _MAX_CONFIG:
                raise ContentError(f"{path}: its config.json is too large")
            config = json.loads(archive.read("config.json"))
            if "model.weights.npz" in names:  # which older Keras reads with allow_pickle
                raise UnsafeContentError(
                    refusal(str(path), "numpy.load", "its weights are in a form that can hold code")
                )
            if "model.weights.h5" in names:
                with archive.open("model.weights.h5") as file:
                    require_own_data(file, str(path))
            return config
    except (zipfile.BadZipFile, KeyError, ValueError, RecursionError, EOFError, NotImplementedError) as error:
        raise ContentError(f"{path}: not a whole .keras file: {error}") from error


def require_h5py() -> Any:
    """Return the h5py package.

    Raises:
        CasError: it is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise CasError(
            "this checkpoint has its weights in HDF5, which h5py reads, and that is not installed:"
            " pip install 'checkpoint-cas[tensorflow]'"
        ) from error
    return h5py


def configs_of_h5(path: Path) -> list[object]:
    """Return the descriptions in a `.h5` file: none if it holds weights only.

    Raises:
        ContentError: it is no such file, or damaged.
        UnsafeContentError: its data lie in other files of this machine.
    """
    h5py = require_h5py()
    found: list[object] = []
    try:
        with h5py.File(path, "r") as file:
            require_own_data(file, str(path))
            for name in ("model_config", "training_config"):
                text = file.attrs.get(name)
                if text is not None:
                    found.append(json.loads(text.decode("utf-8") if isinstance(text, bytes) else text))
    except (OSError, ValueError, RecursionError, AttributeError) as error:
        raise ContentError(f"{path}: not a whole h5 file: {error}") from error
    return found


def version_of(path: Path) -> int | None:
    """Return the first number of the version of the Keras that wrote a file, or None where that is not told."""
    try:
        if path.suffix == ".keras":
            with zipfile.ZipFile(path) as archive, archive.open("metadata.json") as file:
                said = json.loads(file.read(_MAX_METADATA))["keras_version"]
        else:
            with require_h5py().File(path, "r") as file:
                said = file.attrs["keras_version"]
        text = said.decode("utf-8") if isinstance(said, bytes) else str(said)
        return int(text.partition(".")[0])
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError, OSError, EOFError, NotImplementedError):
        return None


def require_own_data(source: Any, subject: str) -> None:
    """Check that an HDF5 file has its data in itself: the format can also name other files of this machine.

    Raises:
        UnsafeContentError: it names one.
    """
    h5py = require_h5py()
    file = source if isinstance(source, h5py.File) else h5py.File(source, "r")
    waiting, seen = [file["/"]], set()
    while waiting:
        group = waiting.pop()
        if group.id.__hash__() in seen:
            continue
        seen.add(group.id.__hash__())
        for name in group:
            link = group.get(name, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                raise UnsafeContentError(refusal(subject, f"{link.filename}", "its data lie in another file"))
            if isinstance(link, h5py.SoftLink):
                continue
            value = group[name]
            if isinstance(value, h5py.Group):
                waiting.append(value)
            elif isinstance(value, h5py.Dataset) and (value.external or value.is_virtual):
                raise UnsafeContentError(refusal(subject, str(value.name), "its data lie in another file"))


__all__ = ["Judge", "config_of_archive", "configs_of_h5", "require_h5py", "require_own_data", "version_of"]
