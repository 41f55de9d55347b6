"""Modules that an older torch pickled: what today's classes expect of them, and they do not have.

A pickled module is its attributes and nothing more: its constructor does not run. Where torch has given a class an
attribute since, its `forward` fails with an AttributeError. torch mends a part of that itself (`__setstate__`); this is
the rest: each value is the one with which the class does what it did then. Two things must be right before: the name
under which torch has a class today, and what torch's own `__setstate__` takes for granted.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Mapping
from typing import Any

# Names of classes that torch has renamed; the comment names the releases that had the old one.
_RENAMED: Mapping[tuple[str, str], tuple[str, str]] = {
    ("torch.nn.modules.linear", "_LinearWithBias"): (  # 1.6 to 1.8
        "torch.nn.modules.linear",
        "NonDynamicallyQuantizableLinear",
    ),
}

# Class in torch.nn.modules → attribute → value; the comment names the release that brought it.
_SINCE: Mapping[str, Mapping[str, Any]] = {
    "_ConvNd": {"padding_mode": "zeros"},  # 1.1
    "_NormBase": {"num_batches_tracked": None, "track_running_stats": True},  # 0.4.1, 0.4
    "AvgPool2d": {"divisor_override": None},  # 1.2
    "AvgPool3d": {"divisor_override": None},  # 1.2
    "BCEWithLogitsLoss": {"pos_weight": None},  # 0.4.1
    "CTCLoss": {"zero_infinity": False},  # 1.1
    "CrossEntropyLoss": {"label_smoothing": 0.0},  # 1.10
    "EmbeddingBag": {"include_last_offset": False, "padding_idx": None},  # 1.5, 1.9
    "GELU": {"approximate": "none"},  # 1.12
    "Hardsigmoid": {"inplace": False},  # 1.7
    "Hardswish": {"inplace": False},  # 1.7
    "KLDivLoss": {"log_target": False},  # 1.6
    "MultiheadAttention": {"batch_first": False},  # 1.9
    "SiLU": {"inplace": False},  # 1.8
    "SmoothL1Loss": {"beta": 1.0},  # 1.7
    "Transformer": {"batch_first": False},  # 1.9
    "TransformerDecoderLayer": {"norm_first": False},  # 1.10
    "TransformerEncoder": {"enable_nested_tensor": False, "use_nested_tensor": False, "mask_check": True},  # 1.12, 2.0
    "TransformerEncoderLayer": {"norm_first": False, "activation_relu_or_gelu": 0},  # 1.10, 1.12
}


def name_today(module: str, name: str) -> tuple[str, str]:
    """Return under which name torch has a class today."""
    return _RENAMED.get((module, name), (module, name))


def receptive(found: Any) -> Any:
    """Return what a name of a pickle gave; of a recurrent layer, when it can take a state from before 1.4.

    Until then the list of its weights was made when it was asked for, so it is in no state, and today's `__setstate__`
    reads it. An empty one on the class lets that pass, and `mend` makes the right one; no layer that torch builds
    itself ever sees it.
    """
    base: Any = getattr(sys.modules.get("torch.nn.modules.rnn"), "RNNBase", None)
    recurrent = base is not None and isinstance(found, type) and issubclass(found, base)
    if recurrent and "_flat_weights" not in vars(base):
        base._flat_weights = ()
    return found


def mend(model: Any) -> Any:
    """Give a pickled module, and all modules in it, the attributes that its classes have got since; return it."""
    waiting, seen = [model], set()
    while waiting:
        module = waiting.pop()
        own = getattr(module, "__dict__", None)
        if id(module) in seen or own is None:
            continue
        seen.add(id(module))
        for kind in type(module).__mro__:
            if kind.__module__.startswith(("torch.nn.modules.", "torch.nn.parallel.")):
                _give(own, _SINCE.get(kind.__name__, {}))
                if kind.__name__ in _SPECIAL:
                    _SPECIAL[kind.__name__](own)
        waiting += [child for child in (own.get("_modules") or {}).values() if child is not None]
    return model


def _give(own: dict[str, Any], wanted: Mapping[str, Any]) -> None:
    inside = [own.get(name) or {} for name in ("_parameters", "_buffers", "_modules")]
    for name, value in wanted.items():
        if name not in own and not any(name in one for one in inside):
            own[name] = value


def _mend_padding(own: dict[str, Any]) -> None:
    """Since 1.5 a convolution keeps what it pads with; up to 1.4, circular padding put half on each side."""
    if "_reversed_padding_repeated_twice" in own or own.get("padding_mode", "zeros") == "zeros":
        return
    padding = own.get("padding", ())
    halved = "_padding_repeated_twice" not in own and own["padding_mode"] == "circular"
    sides = [((side + 1) // 2, side // 2) if halved else (side, side) for side in reversed(padding)]
    own["_reversed_padding_repeated_twice"] = [value for pair in sides for value in pair]


def _mend_upsample(own: dict[str, Any]) -> None:
    """Without the attribute (1.11) torch assumes that the factor is computed again, which a size does not allow."""
    if own.get("size") is not None:
        own["recompute_scale_factor"] = None


def _mend_list(own: dict[str, Any]) -> None:
    """Since 1.12 a list of parameters knows its length, because it may hold other values, too."""
    own.setdefault("_size", len(own["_parameters"]))


def _mend_dict(own: dict[str, Any]) -> None:
    """Since 1.12 a dict of parameters knows its keys, because it may hold other values, too."""
    own.setdefault("_keys", dict.fromkeys(own["_parameters"]))


def _mend_recurrent(own: dict[str, Any]) -> None:
    """Since 1.4 a recurrent layer keeps a list of its weights, and their names."""
    if "_flat_weights" in own:
        return
    own["_flat_weights_names"] = [name for names in own["_all_weights"] for name in names]
    own["_flat_weights"] = [own["_parameters"].get(name) for name in own["_flat_weights_names"]]
    own["_flat_weight_refs"] = [None if one is None else weakref.ref(one) for one in own["_flat_weights"]]


def _mend_parallel(own: dict[str, Any]) -> None:
    """Where its GPUs are not there, a parallel model is what it is when built without any: the model within."""
    torch = sys.modules["torch"]
    kind = getattr(own.get("src_device_obj"), "type", "cuda")
    if kind == "cuda" and own.get("device_ids") and max(own["device_ids"]) >= torch.cuda.device_count():
        own["device_ids"] = []
        for name in ("output_device", "src_device_obj"):
            own.pop(name, None)


_SPECIAL = {
    "_ConvNd": _mend_padding,
    "DataParallel": _mend_parallel,
    "ParameterDict": _mend_dict,
    "ParameterList": _mend_list,
    "RNNBase": _mend_recurrent,
    "Upsample": _mend_upsample,
}

__all__ = ["mend", "name_today", "receptive"]
