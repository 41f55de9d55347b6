"""Models of torch: pickled modules, state dicts, and trials whose class builds the models.

Parameters keep their identity: a state dict is loaded into the modules that the trial's code made, so an optimizer made
before still trains them, and tied weights stay tied.
"""

from __future__ import annotations

import copy
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from cas.errors import ContentError, NotFoundError, UsageError
from cas.load.filling import fill
from cas.load.layouts import Kind, Layout, is_plain_pickle
from cas.load.members import Look, Member, find_models, names_of, untold
from cas.load.mending import mend
from cas.load.options import Options
from cas.load.pickles import read_pickle
from cas.load.tensors import read_distributed, read_safetensors
from cas.load.torch_files import Reading, read_file, read_parts, require_torch
from cas.load.trials import build_trial, torch_context

log = logging.getLogger("cas.load")

_LIGHTNING = "pytorch-lightning_version"  # a member of what Lightning saves, beside `state_dict`
_MAX_LISTED = 10_000  # longer lists hold numbers or samples: nobody lists so many modules


def load_torch(layout: Layout, reading: Reading, options: Options, *, whole: bool = False) -> Any:
    """Return what a checkpoint of torch holds: the module, the trial where it has several, or a bare state dict.

    `whole` asks for the trial, also where it has one module only.

    Raises:
        UnsafeContentError: the trust policy does not allow what would run.
        ContentError: the file is damaged, or does not fit the code.
        NotFoundError: its code needs a module that is not installed, or there is no trial.
        UsageError: the arguments contradict what it is.
        CasError: torch is not installed.
    """
    if layout.kind is not Kind.PICKLE or options.model is not None:  # which can hold anything
        require_torch()
    if options.model is not None and not _is_module(options.model):
        raise UsageError(f"model= must be a torch module, not {options.model!r:.60}")
    if layout.kind is Kind.TORCH_TRIAL or options.trial_class is not None:
        return _load_trial(layout, reading, options, whole=whole)
    if whole:
        raise NotFoundError(f"{layout.folder}: holds {layout.kind} and no trial class; load() gives what it holds")
    found = _read(layout, reading, options)
    modules = _mended(found)
    if options.only and not reading.mapped and (modules or not isinstance(found, Mapping)):
        # Of a user's file, nothing stays mapped; the states in a dict are copied below.
        found = _read(layout, reading, replace(options, only=None))
        modules = _mended(found)
    only_weights = layout.kind in (Kind.SAFETENSORS, Kind.TORCH_PARTS)
    models = [Member((), found)] if only_weights else find_models(found, _LOOK)
    if _is_module(found) or (modules and len(models) == 1 and _is_module(models[0].value)):
        return _whole_module(layout, options, found, models)
    return _weights(layout, reading, options, found, models, modules)


def _is_module(value: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.nn.Module)


def _is_tensor(value: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


_LOOK = Look(_is_tensor, _is_module, lambda value: value if isinstance(value, Mapping) else None)


def _mended(found: Any) -> list[Any]:
    """Mend the modules in what a file holds, also in dicts and lists; return them."""
    modules: list[Any] = []
    waiting, seen = [found], set()
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if _is_module(one):
            modules.append(mend(one))
        elif isinstance(one, Mapping):
            waiting += one.values()
        elif isinstance(one, list | tuple) and len(one) <= _MAX_LISTED:
            waiting += one
    return modules


def _whole_module(layout: Layout, options: Options, found: Any, models: Sequence[Member]) -> Any:
    if options.model is not None:
        raise UsageError(f"{layout.file}: holds a whole module; model= is for weights without code")
    if _is_module(found):
        return found
    [member] = models
    if options.only is None:
        rest = names_of(sorted(str(key) for key in found if key != member.path[0]))
        path, name = ".".join(member.path), layout.file.name
        log.warning("%s: this returns the module in it (%s); also in the file: %s", name, path, rest)
    return member.value


def _read(layout: Layout, reading: Reading, options: Options) -> Any:
    if layout.kind is Kind.SAFETENSORS:
        return read_safetensors(layout.file, reading)
    if layout.kind is Kind.DISTRIBUTED:
        return read_distributed(layout.file, reading, only=options.only)
    if layout.kind is Kind.TORCH_PARTS:
        return read_parts(layout.file, reading)
    return _read_state(layout, reading, options)


def _read_state(layout: Layout, reading: Reading, options: Options) -> Any:
    if layout.kind is Kind.PICKLE or is_plain_pickle(layout.file):
        return read_pickle(layout.file, reading)
    # Of a mapped file, only what is used is ever read: the optimizer's state stays on the disk.
    return read_file(layout.file, reading, mapped=options.only is not None or reading.mapped)


def _may_stay(reading: Reading, options: Options) -> bool:
    """Whether tensors as they were read may become the model's: not of a file that is mapped for a moment only."""
    return reading.mapped or options.only is None


# --- weights without code ----------------------------------------------------------------------------------------


def _weights(
    layout: Layout, reading: Reading, options: Options, found: Any, models: Sequence[Member], modules: Sequence[Any]
) -> Any:
    is_folder = layout.kind is Kind.DISTRIBUTED  # a view, of which the user knows nothing
    subject, name = (str(layout.file), str(layout.kind)) if is_folder else (layout.file.name, layout.file.name)
    states = _states(models)
    if options.model is not None:
        if len(models) > 1:
            raise untold(subject, found, models)
        if not states and isinstance(found, Mapping):
            states = [found]
        if len(states) != 1 or not isinstance(states[0], Mapping):
            raise UsageError(f"{subject}: holds the states of {len(states)} models; model= takes one")
        adopt = _may_stay(reading, options)
        return fill(options.model, states[0], adopt=adopt, strict=options.strict, what=subject, builder="model=")
    if options.only and isinstance(found, Mapping):
        if len(models) != 1:
            raise untold(subject, found, models)
        own = states if reading.mapped or modules else copy.deepcopy(states)  # of a user's file, nothing stays mapped
        found = own[0] if len(own) == 1 else own
        modules = _mended(found)  # not those beside it, such as hyperparameters that are modules
    elif isinstance(found, Mapping) and _LIGHTNING in found and states:
        rest = ", ".join(sorted(str(key) for key in found.keys() - {"state_dict"}))
        log.warning("%s: of what Lightning saved, this returns the state dict; also in the file: %s", name, rest)
        return states[0]
    if modules:
        what = f"dict of {names_of(found)}" if isinstance(found, Mapping) else type(found).__name__
        count = f"{len(modules)} torch modules" if len(modules) > 1 else "a torch module"
        log.warning("%s holds %s: this returns what is in it, a %s", name, count, what)
        return found
    if not isinstance(found, Mapping):
        log.warning("%s holds no torch module and no weights by name: this returns the %s", name, type(found).__name__)
        return found
    kind = f"a dict of {len(found)}"
    log.warning("%s holds weights and no code to build a model with: this returns what is in it, %s", name, kind)
    return found


def _states(models: Sequence[Member]) -> list[Any]:
    """Return the state dicts in what a file holds: one for each model."""
    if len(models) != 1:
        return []
    value = models[0].value
    return list(value) if isinstance(value, list) else [value]


# --- a state dict and a trial ------------------------------------------------------------------------------------


def _load_trial(layout: Layout, reading: Reading, options: Options, *, whole: bool) -> Any:
    if options.model is not None:
        raise UsageError(f"{layout.folder}: its trial class builds the model; model= is for weights without code")
    if reading.permit.safe_only:
        raise reading.permit.refusal(f"{layout.folder}: its model is built by code/ ({layout.entrypoint})")
    state = _read_state(layout, reading, options)
    if not isinstance(state, dict):
        raise ContentError(f"{layout.file}: holds a {type(state).__name__}, not the state of a trial")
    context = torch_context(layout)
    trial = build_trial(layout, reading.sources, context, options)
    if layout.builds and ("model_state_dict" in state or callable(getattr(trial, "build_model", None))):
        return _build_model(trial, state, layout, reading, options, whole=whole)
    states = state.get("models_state_dict")
    models = context.models
    if not isinstance(states, list) or len(states) != len(models):
        count = len(states) if isinstance(states, list) else 0
        raise ContentError(
            f"{layout.file}: holds the states of {count} models, and {layout.entrypoint} wraps {len(models)}"
        )
    for model, values in zip(models, states, strict=True):
        _fill(model, values, layout, reading, options)
    return trial if whole or len(models) != 1 else models[0]


def _build_model(
    trial: Any, state: Mapping[str, Any], layout: Layout, reading: Reading, options: Options, *, whole: bool
) -> Any:
    """Load the one model of a trial that has `build_model()`, as trials had before 0.12.13."""
    found = state.get("model_state_dict")
    if found is None:
        found = next(iter(state.get("models_state_dict") or ()), None)
    if not isinstance(found, Mapping):
        raise ContentError(f"{layout.file}: holds no state of a model")
    if not callable(getattr(trial, "build_model", None)):
        raise ContentError(f"{layout.entrypoint} has no build_model(), which {layout.file} was saved with")
    model = _fill(trial.build_model(), found, layout, reading, options)
    if not whole:
        return model
    trial.build_model = lambda: model  # so that the trial has it, too
    return trial


def _fill(model: Any, values: Any, layout: Layout, reading: Reading, options: Options) -> Any:
    if not isinstance(values, Mapping):
        raise ContentError(f"{layout.file}: holds a {type(values).__name__} in place of a model's state")
    what, builder = str(layout.file), str(getattr(options.trial_class, "__name__", None) or layout.entrypoint)
    return fill(model, values, adopt=_may_stay(reading, options), strict=options.strict, what=what, builder=builder)


__all__ = ["load_torch"]
