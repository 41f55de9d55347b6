"""What a caller may say about loading: arguments of ours, and those of each framework's loader."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cas.errors import UsageError
from cas.load.layouts import Kind

# Arguments of `torch.load`, and of the unpickler that it gives the rest to.
_TORCH = frozenset({"map_location", "weights_only", "mmap", "pickle_module", "encoding", "errors", "fix_imports"})
_STATE = frozenset({"model", "only", "strict"})
_TRIAL = frozenset({"trial_class", "trial_kwargs"})
_WEIGHTS = frozenset({"model", "skip_mismatch", "by_name"})  # of `load_weights` in Keras

_TAKEN: Mapping[Kind, frozenset[str]] = {
    Kind.TORCH_MODULE: _TORCH | _STATE | {"torch_load_kwargs"},
    Kind.TORCH_TRIAL: _TORCH | _STATE | _TRIAL | {"torch_load_kwargs"},
    Kind.TORCH_FILE: _TORCH | _STATE | _TRIAL | {"torch_load_kwargs"},
    Kind.PICKLE: frozenset({"map_location", "weights_only", "encoding", "errors", "fix_imports"}) | _STATE,
    Kind.TORCH_PARTS: _TORCH | _STATE | {"torch_load_kwargs"},
    Kind.SAFETENSORS: frozenset({"map_location", "weights_only", "mmap"}) | _STATE,
    Kind.DISTRIBUTED: frozenset({"map_location", "weights_only"}) | _STATE,
    Kind.SAVED_MODEL: frozenset({"options"}),
    Kind.KERAS_TRIAL: _TRIAL | (_WEIGHTS - {"model"}),
    Kind.KERAS_FILE: frozenset({"custom_objects", "compile", "safe_mode"}) | _WEIGHTS,
    Kind.TF_WEIGHTS: _WEIGHTS,
}


@dataclass(frozen=True, slots=True)
class Options:
    """What a caller said.

    `model` is the caller's own model, to put weights into; `only` is `"model"` or nothing; `loader` goes to the
    framework's loader as it is.
    """

    model: Any = None
    only: str | None = None
    strict: bool = True
    trial_class: Callable[..., Any] | None = None
    trial_kwargs: Mapping[str, Any] = field(default_factory=dict)
    loader: Mapping[str, Any] = field(default_factory=dict)


def parse(kind: Kind, said: Mapping[str, Any]) -> Options:
    """Sort the arguments of a call.

    Raises:
        UsageError: a kind of checkpoint does not take one of them, or a value makes no sense.
    """
    taken = _TAKEN[kind]
    if unknown := sorted(said.keys() - taken):
        listing = ", ".join(sorted(taken))
        raise UsageError(f"load() of {kind} takes no argument {unknown[0]!r}; it takes {listing}")
    rest = dict(said)
    inner = rest.pop("torch_load_kwargs", None) or {}
    if not isinstance(inner, Mapping) or (unknown := sorted(set(inner) - _TORCH)):
        raise UsageError(f"torch_load_kwargs must be arguments of torch.load: {', '.join(sorted(_TORCH))}")
    rest.update(inner)
    only = rest.pop("only", None)
    if only not in (None, "model"):
        raise UsageError(f"only={only!r:.40}: the one part that can be asked for is 'model'")
    kwargs = rest.pop("trial_kwargs", None) or {}
    if not isinstance(kwargs, Mapping):
        raise UsageError(f"trial_kwargs must map names to values, not be {type(kwargs).__name__}")
    trial_class = rest.pop("trial_class", None)
    if trial_class is not None and not callable(trial_class):
        raise UsageError(f"trial_class must be a class, not {trial_class!r:.60}")
    model, strict = rest.pop("model", None), rest.pop("strict", True)
    return Options(model, only, bool(strict), trial_class, kwargs, rest)


__all__ = ["Options", "parse"]
