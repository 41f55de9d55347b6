"""Putting a state dict into a module that somebody built, without a second copy of the weights.

`load_state_dict` copies each tensor into the parameter, so every process that loads gets its own copy of what all could
share. Here the parameter takes the tensor's memory instead, which is a private mapping of the blob: the parameter stays
the object that it was, so an optimizer made before still trains it, and tied weights stay tied. Everything else is
`load_state_dict`'s own doing: names, shapes, hooks, what a module has of its own to load.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Collection, Mapping
from typing import Any

from cas.errors import ContentError

_WRAPPERS = ("module.", "_orig_mod.")  # what data-parallel training and torch.compile put before each name


def fill(model: Any, values: Mapping[str, Any], *, adopt: bool, strict: bool, what: str, builder: str) -> Any:
    """Load a state dict into a module, in place, and return it.

    Args:
        model: the module.
        values: name → tensor.
        adopt: the tensors are nobody else's: parameters may take their memory.
        strict: every name must be on both sides.
        what: the file, for messages.
        builder: who built the module, for messages.

    Raises:
        ContentError: the names or shapes do not fit, or it is no module.
    """
    import contextlib

    import torch

    if not isinstance(model, torch.nn.Module):
        raise ContentError(f"{builder} gave a {type(model).__name__}, not a torch module")
    try:
        with _adopting(model) if adopt else contextlib.nullcontext():
            model.load_state_dict(_fit_names(model, values), strict=strict)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ContentError(f"{what} does not fit the model of {builder}: {reason[:500]}") from error
    return model


def _fit_names(model: Any, values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Take off what wrapping a model puts before each name, where the module at hand is not wrapped.

    A tensor that the module has under several names needs one of them (`safetensors` leaves the others out).
    """
    own = model.state_dict().keys()
    tied = _tied(model, own)
    fitted = values = _with_tied(values, tied)
    while fitted and fitted.keys() != own:
        prefix = next(iter(fitted)).partition(".")[0] + "."
        if not all(name.startswith(prefix) for name in fitted) or all(name.startswith(prefix) for name in own):
            break
        fitted = _with_tied({name.removeprefix(prefix): value for name, value in fitted.items()}, tied)
        if prefix in _WRAPPERS:
            values = fitted
    return fitted if fitted.keys() == own else values


def _tied(model: Any, own: Collection[str]) -> list[list[str]]:
    """Return the names of each parameter and buffer that the module has under several of its state's names."""
    names: dict[int, list[str]] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            full = f"{prefix}.{name}" if prefix else name
            if tensor is not None and full in own:
                names.setdefault(id(tensor), []).append(full)
    return [group for group in names.values() if len(group) > 1]


def _with_tied(values: Mapping[str, Any], tied: list[list[str]]) -> Mapping[str, Any]:
    """Give a value that is there under one name of a tensor for its other names, too."""
    again = {
        name: values[there[0]]
        for group in tied
        if (there := [name for name in group if name in values])
        for name in group
        if name not in values
    }
    if not again:
        return values
    whole = copy.copy(values)  # with what torch keeps beside the names (`_metadata`)
    whole.update(again)  # type: ignore[attr-defined]
    return whole


# Where memory begins → the parameter that took it. Files share memory between models that are apart, and a trial's
# models are filled one after the other.
_taken: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


def _is_taken(tensor: Any, *, by: Any) -> bool | None:
    """Whether this one took a tensor's memory, and still has it; None if nobody has."""
    address = tensor.data_ptr()
    found = _taken.get(address)
    return found is by if found is not None and found.data_ptr() == address else None


def _adopting(model: Any) -> Any:
    """Return a context in which copying into a parameter or buffer of the module takes the source's memory."""
    import torch
    from torch.overrides import TorchFunctionMode

    alone = _holders(torch.empty(1))  # how many hold the memory of a tensor that nobody shares
    own = {id(tensor) for tensor in [*model.parameters(), *model.buffers()]}

    def may_take(mine: Any, theirs: Any) -> bool:
        return bool(
            id(mine) in own
            and type(theirs) in (torch.Tensor, torch.nn.Parameter)
            and (mine.shape, mine.dtype, mine.device) == (theirs.shape, theirs.dtype, theirs.device)
            and mine.layout is theirs.layout is torch.strided
            and mine.stride() == theirs.stride()
            and not (mine.is_conj() or mine.is_neg() or theirs.is_conj() or theirs.is_neg())
            and _is_all_of_its_memory(mine)
            and _is_all_of_its_memory(theirs)
            and _is_taken(theirs, by=mine) is not False  # two that are equal here need not stay so
            and (_holders(mine) == alone or _is_taken(mine, by=mine))
        )

    class Adopting(TorchFunctionMode):  # type: ignore[misc]
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is torch.Tensor.copy_ and len(args) == 2 and not kwargs and may_take(*args):
                mine, theirs = args
                mine.data = theirs.detach()
                _taken[theirs.data_ptr()] = mine
                return mine
            return function(*args, **(kwargs or {}))

    return Adopting()


def _is_all_of_its_memory(tensor: Any) -> bool:
    """Whether a tensor has no neighbours in its memory, such as another view of the same."""
    storage = tensor.untyped_storage()
    return bool(
        tensor.numel() and tensor.is_contiguous() and storage.nbytes() == tensor.numel() * tensor.element_size()
    )


def _holders(tensor: Any) -> int:
    """How many hold a tensor's memory; 0 if this torch cannot tell."""
    import torch

    count = getattr(torch._C, "_storage_Use_Count", None)
    return count(tensor.untyped_storage()._cdata) if count is not None else 0


__all__ = ["fill"]
