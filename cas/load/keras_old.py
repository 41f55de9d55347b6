"""Descriptions that Keras 2 wrote, in the words of Keras 3.

Keras 3 reads most of them itself. What it does not: modules that have moved, arguments that are gone, and the graphs of
functional models (cas/load/keras_graphs.py). An argument is taken out only where its value is what Keras 3 does anyway;
any other is left for Keras 3 to refuse, and so is one that the Keras at hand has after all.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Collection, Mapping
from typing import Any

from cas.load.keras_graphs import in_todays_graph

_ANY = object()
_RENORM = {"renorm": (False,), "renorm_clipping": (None,), "renorm_momentum": _ANY}
_GROUPS = {"groups": (1,)}
_TIME_MAJOR = {"time_major": (False,)}
_SHAPES = {"query_shape": _ANY, "key_shape": _ANY, "value_shape": _ANY}
_OF_A_KERNEL = {"kernel_initializer": _ANY, "kernel_regularizer": _ANY, "kernel_constraint": _ANY}

# Class → argument that Keras 3 does not have → values that say what it does anyway.
_GONE: Mapping[str, Mapping[str, Any]] = {
    **dict.fromkeys(("RNN", "SimpleRNN", "GRU", "LSTM", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D"), _TIME_MAJOR),
    **dict.fromkeys(("DepthwiseConv1D", "DepthwiseConv2D"), _GROUPS),
    "SeparableConv1D": {**_GROUPS, **_OF_A_KERNEL},  # which has two kernels, and arguments for each
    "SeparableConv2D": {**_GROUPS, **_OF_A_KERNEL},
    **dict.fromkeys(("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"), _GROUPS),
    "BatchNormalization": {**_RENORM, "fused": _ANY, "virtual_batch_size": (None,), "adjustment": (None,)},
    "MultiHeadAttention": {**_SHAPES, "softmax_robust_masking": (False,)},
}
_HOMES = {"Functional": "keras.src.models.functional", "Sequential": "keras", "Model": "keras"}
_NO_LAYERS = ("_initializer", "_regularizer", "_constraint")


def hard_sigmoid_of_keras_2(x: Any) -> Any:
    """Return what `hard_sigmoid` was: its slope was a fifth, and is a sixth in Keras 3."""
    import keras

    return keras.ops.clip(0.2 * x + 0.5, 0.0, 1.0)


# What Keras must know to make a model of these descriptions, by name.
OLD_OBJECTS: Mapping[str, Any] = {hard_sigmoid_of_keras_2.__name__: hard_sigmoid_of_keras_2}


def in_old_sense(config: Any) -> Any:
    """Return a description of Keras 2 with the words that mean something else today replaced."""
    if isinstance(config, list):
        return [in_old_sense(one) for one in config]
    if not isinstance(config, dict):
        return config
    found = {name: in_old_sense(value) for name, value in config.items()}
    for name in ("activation", "recurrent_activation"):
        if found.get(name) == "hard_sigmoid":
            title = hard_sigmoid_of_keras_2.__name__
            function = {"module": "builtins", "class_name": "function", "config": title, "registered_name": title}
            found[name] = function
    return found


def in_todays_words(config: Any) -> Any:
    """Return a description with what Keras 3 has no word for replaced; equal to the old one where that is nothing."""
    if isinstance(config, list):
        return [in_todays_words(one) for one in config]
    if not isinstance(config, dict):
        return config
    found = {name: in_todays_words(value) for name, value in _with_input(config).items()}
    name, module = found.get("class_name"), found.get("module")
    if not isinstance(name, str):
        return found
    if isinstance(module, str):
        found["module"] = _module(module, name)
    if name == "Policy":  # of dtypes
        found["class_name"] = "DTypePolicy"
    inner = found.get("config")
    if isinstance(inner, dict):
        found["config"] = {key: value for key, value in inner.items() if not _is_gone(name, key, value)}
        # What a layer was first called with is not told again; of an input, it is called otherwise.
        shape = found["config"].pop("batch_input_shape", None)
        if name == "InputLayer" and shape is not None:
            found["config"]["batch_shape"] = shape
        axis = found["config"].get("axis")
        if name == "BatchNormalization" and isinstance(axis, list) and len(axis) == 1:
            found["config"]["axis"] = axis[0]
        if isinstance(inner.get("layers"), list) and "output_layers" in inner:
            found["config"] = in_todays_graph(found["config"])
    return found


def with_homes(config: Any, custom: Collection[str]) -> Any:
    """Return a description with the module of every layer of Keras, which h5 files leave out.

    Without it Keras 3 falls back on how it read the oldest files, and forgets the caller's `custom` objects in them.
    """
    if isinstance(config, list):
        return [with_homes(one, custom) for one in config]
    if not isinstance(config, dict):
        return config
    found = {key: value if key.endswith(_NO_LAYERS) else with_homes(value, custom) for key, value in config.items()}
    name = found.get("class_name")
    if isinstance(name, str) and name not in custom and "module" not in found and "config" in found:
        home = _HOMES.get(name) or _home_of_layer(name)
        if home is not None:
            return {**found, "module": home, "registered_name": None}
    return found


def _home_of_layer(name: str) -> str | None:
    import keras

    return "keras.layers" if isinstance(getattr(keras.layers, name, None), type) else None


def _with_input(config: dict[str, Any]) -> dict[str, Any]:
    """Give a sequential model an input, where the shape of that is told in the first layer only."""
    inner = config.get("config")
    layers = inner.get("layers") if config.get("class_name") == "Sequential" and isinstance(inner, dict) else None
    first = layers[0] if isinstance(layers, list) and layers else None
    told = first.get("config") if isinstance(first, dict) and first.get("class_name") != "InputLayer" else None
    if not isinstance(told, dict) or told.get("batch_input_shape") is None:
        return config
    start = {"batch_shape": told["batch_input_shape"], "dtype": "float32", "name": f"{told.get('name')}_input"}
    made = {"module": "keras.layers", "class_name": "InputLayer", "config": start, "registered_name": None}
    return {**config, "config": {**config["config"], "layers": [made, *config["config"]["layers"]]}}


def _module(module: str, name: str) -> str:
    if module == "tf_keras" or module.startswith("tf_keras."):  # Keras 2 under its later name
        module = module.removeprefix("tf_")
    if module.startswith(("keras.src.engine", "keras.engine")) and name in _HOMES:
        return _HOMES[name]
    if name == "Policy" and module.startswith("keras.mixed_precision"):
        return "keras"
    return module


def _is_gone(name: str, argument: str, value: Any) -> bool:
    values = _GONE.get(name, {}).get(argument, ())
    return (values is _ANY or value in values) and not _takes(name, argument)


@functools.cache
def _takes(name: str, argument: str) -> bool:
    """Say whether a layer of the Keras at hand has an argument: some that were gone have come back."""
    import keras

    kind = getattr(keras.layers, name, None)
    return kind is not None and argument in inspect.signature(kind.__init__).parameters


__all__ = ["OLD_OBJECTS", "in_old_sense", "in_todays_words", "with_homes"]
