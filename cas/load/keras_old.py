"""Descriptions that Keras 2 wrote, in the words of Keras 3.

Keras 3 reads most of them itself. What it does not: modules that have moved, and arguments that are gone. An argument
is taken out only where its value is what Keras 3 does anyway; any other is left for Keras 3 to refuse.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_ANY = object()
_RENORM = {"renorm": (False,), "renorm_clipping": (None,), "renorm_momentum": _ANY}
_GROUPS = {"groups": (1,)}
_TIME_MAJOR = {"time_major": (False,)}

# Class → argument that Keras 3 does not have → values that say what it does anyway.
_GONE: Mapping[str, Mapping[str, Any]] = {
    **dict.fromkeys(("RNN", "SimpleRNN", "GRU", "LSTM"), _TIME_MAJOR),
    **dict.fromkeys(("DepthwiseConv1D", "DepthwiseConv2D", "SeparableConv1D", "SeparableConv2D"), _GROUPS),
    **dict.fromkeys(("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"), _GROUPS),
    "BatchNormalization": {**_RENORM, "fused": _ANY, "virtual_batch_size": (None,), "adjustment": (None,)},
    "MultiHeadAttention": {"query_shape": _ANY, "key_shape": _ANY, "value_shape": _ANY},
}
_HOMES = {"Functional": "keras.src.models.functional", "Sequential": "keras", "Model": "keras"}


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
    return found


def with_home(config: Any) -> Any:
    """Return the description of a whole model with the module of its class, which the oldest leave out."""
    name = config.get("class_name") if isinstance(config, dict) else None
    if name not in _HOMES or "module" in config:
        return config
    return {**config, "module": _HOMES[name], "registered_name": None}


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
    return values is _ANY or value in values


__all__ = ["in_todays_words", "with_home"]
