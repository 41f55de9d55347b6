"""Models of Keras: whole ones from a file, and weights for a model that a trial or the caller builds."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cas.errors import CasError, ContentError, NotFoundError, UnsafeContentError, UsageError
from cas.load.keras_config import Judge, config_of_archive, configs_of_h5, require_h5py, version_of
from cas.load.keras_old import OLD_OBJECTS, in_old_sense, in_todays_words, with_homes
from cas.load.keras_optimizers import old_optimizers
from cas.load.layouts import KERAS_INDEX, Kind, Layout
from cas.load.options import Options
from cas.load.permit import Permit
from cas.load.saved_models import require_tensorflow
from cas.load.sources import Sources
from cas.load.tf_weights import fill_from_tensorflow, read_tensorflow
from cas.load.trials import build_trial, keras_context

log = logging.getLogger("cas.load")

_LOADING = ("custom_objects", "compile", "safe_mode")  # arguments of keras.models.load_model
_FILLING = ("skip_mismatch", "by_name")  # of model.load_weights
_MAX_INDEX = 64 << 20  # bytes of a file that says which file has which weights
_OF_KERAS = (
    ValueError,
    TypeError,
    OSError,
    KeyError,
    AttributeError,
    IndexError,
    RecursionError,
)  # what its loaders raise


def load_keras(
    layout: Layout, sources: Sources | None, options: Options, permit: Permit, *, whole: bool = False
) -> Any:
    """Return a Keras model with its weights, or, where nobody builds one, the weights as arrays by name.

    `whole` asks for the trial, whose `build_model()` then returns the model with its weights.

    Raises:
        UnsafeContentError: the trust policy does not allow what would run.
        ContentError: it is damaged, or the weights do not fit.
        NotFoundError: a trial was asked for, and there is none.
        CasError: TensorFlow is not installed.
    """
    if layout.kind is Kind.KERAS_TRIAL or options.trial_class is not None:
        return _load_trial(layout, sources, options, permit, whole=whole)
    if whole:
        raise NotFoundError(f"{layout.folder}: holds {layout.kind} and no trial class; load() gives what it holds")
    require_tensorflow()
    if layout.kind is Kind.KERAS_FILE and (configs := _configs(layout.file)):
        if options.model is not None and layout.file.suffix != ".keras":
            return _fill(options.model, layout, options, "model=")
        judge = Judge(str(layout.file), permit, sources, _custom(options), OLD_OBJECTS)
        return _load_model(layout.file, configs, judge, options)
    if options.model is not None:
        return _fill(options.model, layout, options, "model=")
    log.warning(
        "%s holds Keras weights of a model that only its own code builds: this returns them as arrays by name;"
        " to fill your model, build it and give it as model=",
        layout.file.name,  # its folder is a view
    )
    return _arrays(layout.file)


def _configs(path: Path) -> list[Any]:
    """Return what a file describes: the model, and what it was trained with. Weights in several files describe none."""
    if path.name.endswith(KERAS_INDEX):
        for part in _parts(path):
            _ = configs_of_h5(part)  # that its data lie in itself
        return []
    if path.suffix != ".keras":
        return configs_of_h5(path)
    config = config_of_archive(path)
    if not isinstance(config, dict) or "compile_config" not in config:
        return [config]
    return [{name: value for name, value in config.items() if name != "compile_config"}, config["compile_config"]]


def _custom(options: Options) -> Mapping[str, Any]:
    custom = options.loader.get("custom_objects") or {}
    if not isinstance(custom, Mapping):
        raise UsageError(f"custom_objects must map names to classes, not be {type(custom).__name__}")
    return custom


# --- whole models ------------------------------------------------------------------------------------------------


def _load_model(path: Path, configs: list[Any], judge: Judge, options: Options) -> Any:
    """Let Keras make the model of a file whose description was judged, and load its weights.

    Raises:
        UsageError: the arguments contradict the file or the trust policy.
        UnsafeContentError: the trust policy does not allow what it is made of.
        ContentError: Keras cannot load it.
    """
    if options.model is not None:
        raise UsageError(f"{path}: holds a whole model; model= is for weights without one")
    said = {name: options.loader[name] for name in _LOADING if name in options.loader}
    said.setdefault("safe_mode", judge.permit.scans)
    if not said["safe_mode"] and judge.permit.scans:
        raise UsageError("safe_mode=False lets a file run code: it needs trust='always'")
    said_old = (version_of(path) or 0) < 3
    todays = _in_todays_words(path, configs, of_keras_2=said_old)
    is_old = said_old and todays != configs
    for described in [todays] if is_old or todays == configs else [configs, todays]:
        _judge(judge, described, with_training=bool(said.get("compile", True)))
    said["custom_objects"] = {**judge.known, **judge.objects, **judge.custom}
    try:
        if is_old:
            return _build(path, todays, said)
        try:
            return _load_as_it_is(path, said)
        except (ValueError, TypeError):  # of a Keras that is newer than the one at hand, it may be
            if todays == configs or said.get("compile"):
                raise
            return _build(path, todays, said)
    except _OF_KERAS as error:
        raise ContentError(f"{path}: Keras cannot load it: {_line(error)}") from error


def _in_todays_words(path: Path, configs: list[Any], *, of_keras_2: bool) -> list[Any]:
    if not _is_keras_3():
        return configs
    try:
        return [in_todays_words(in_old_sense(config) if of_keras_2 else config) for config in configs]
    except _OF_KERAS as error:
        raise ContentError(f"{path}: Keras cannot load it: {_line(error)}") from error


def _judge(judge: Judge, configs: list[Any], *, with_training: bool) -> None:
    judge.check(configs[0])
    try:
        judge.check(configs[1:] if with_training else [])
    except UnsafeContentError as error:
        raise UnsafeContentError(f"{error}; compile=False leaves out what it was trained with") from error


def _is_keras_3() -> bool:
    try:
        import keras
    except ImportError as error:
        raise CasError("this checkpoint is a file of Keras, which is not installed: pip install keras") from error
    return int(keras.__version__.partition(".")[0]) >= 3


def _load_as_it_is(path: Path, said: dict[str, Any]) -> Any:
    """Call Keras' own loader."""
    import keras

    try:
        return keras.models.load_model(str(path), **said)
    except (ValueError, TypeError, AttributeError) as error:
        if said.get("compile") is not None:
            raise
        # What it was trained with (a loss of the user's, an optimizer of Keras 2) matters only to train on.
        model = keras.models.load_model(str(path), **said, compile=False)
        log.warning("%s: loaded without what it was trained with (compile): %s", path.name, _line(error))
        return model


def _build(path: Path, configs: list[Any], said: Mapping[str, Any]) -> Any:
    """Make the model of a description in today's words, and load the weights out of the file that Keras 2 wrote."""
    import keras

    if said.get("compile"):
        raise ValueError("Keras 2 wrote it, and what it was trained with cannot be read: leave compile out")
    with keras.saving.custom_object_scope(said["custom_objects"]):
        described = with_homes(configs[0], said["custom_objects"])
        model = keras.saving.deserialize_keras_object(described, safe_mode=said["safe_mode"])
        if path.suffix != ".keras":
            model.load_weights(str(path))
            return model
        with tempfile.TemporaryDirectory(prefix="cas-keras-") as folder, zipfile.ZipFile(path) as archive:
            model.load_weights(archive.extract("model.weights.h5", folder))
        if "compile" not in said and configs[1:] and configs[1]:
            try:
                model.compile_from_config(configs[1])
            except _OF_KERAS as error:
                log.warning("%s: loaded without what it was trained with (compile): %s", path.name, _line(error))
        return model


def _line(error: BaseException) -> str:
    """Return what went wrong, out of what Keras says: of errors within errors, the innermost."""
    return " ".join(str(error).rpartition("Exception encountered: ")[2].split())[:300]


# --- weights -----------------------------------------------------------------------------------------------------


def _load_trial(layout: Layout, sources: Sources | None, options: Options, permit: Permit, *, whole: bool) -> Any:
    if permit.safe_only:
        raise permit.refusal(f"{layout.folder}: its model is built by code/ ({layout.entrypoint})")
    require_tensorflow()
    with old_optimizers():
        trial = build_trial(layout, sources, keras_context(layout), options)
        model = trial.build_model()
    model = _fill(model, layout, options, layout.entrypoint or "trial_class=", may_wait=True)
    if not whole:
        return model
    trial.build_model = lambda: model
    return trial


def _fill(model: Any, layout: Layout, options: Options, builder: str, *, may_wait: bool = False) -> Any:
    said = {name: options.loader[name] for name in _FILLING if name in options.loader}
    is_index = layout.file.name.endswith(KERAS_INDEX)
    if layout.file.suffix not in (".h5", ".hdf5", ".keras") and not is_index:
        return fill_from_tensorflow(model, layout.file, builder, said, may_wait=may_wait)
    _ = _configs(layout.file) if is_index else configs_of_h5(layout.file)  # that its data lie in itself
    try:
        model.load_weights(str(layout.file), **said)
    except (ValueError, OSError, TypeError, KeyError) as error:
        raise ContentError(f"{layout.file} does not fit the model of {builder}: {_line(error)}") from error
    except AttributeError as error:
        if hasattr(model, "load_weights"):
            raise
        raise CasError(f"{builder} gave a {type(model).__name__}, not a Keras model") from error
    return model


def _parts(index: Path) -> list[Path]:
    """Return the files that an index of Keras weights names, each looked for.

    Raises:
        ContentError: it is no such index, or names a file elsewhere.
        NotFoundError: a file that it names is not there.
    """
    try:
        with open(index, "rb") as file:
            where = json.loads(file.read(_MAX_INDEX))["weight_map"].values()
        names = {name for one in where for name in ([one] if isinstance(one, str) else one)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ContentError(f"{index}: no index of Keras weights: {_line(error)}") from error
    for name in names:
        if not isinstance(name, str) or os.path.basename(name) != name or not name.endswith(".weights.h5"):  # noqa: PTH119
            raise ContentError(f"{index}: names a file elsewhere: {name!r:.100}")
        if not (index.parent / name).is_file():
            raise NotFoundError(f"{index}: {name}, which it names, is not there")
    return [index.parent / name for name in sorted(names)]


def _arrays(path: Path) -> dict[str, Any]:
    """Return the weights in a file, in several, or in TensorFlow's files, as arrays of numpy by name."""
    if path.name.endswith(KERAS_INDEX):
        return {name: value for part in _parts(path) for name, value in _arrays(part).items()}
    if path.suffix not in (".h5", ".hdf5"):
        return read_tensorflow(path)
    h5py = require_h5py()
    found: dict[str, Any] = {}

    def take(name: str, value: Any) -> None:
        if isinstance(value, h5py.Dataset):
            found[name] = value[()]

    with h5py.File(path, "r") as file:
        file.visititems(take)
    return found


__all__ = ["load_keras"]
