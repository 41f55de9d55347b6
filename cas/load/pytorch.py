"""Models of torch: pickled modules, state dicts, and trials whose class builds the model.

Parameters keep their identity: a state dict is loaded into the modules that the trial's code made, so an optimizer made
before still trains them, and tied weights stay tied.
"""

from __future__ import annotations

import logging
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cas.config import Trust
from cas.errors import CasError, ContentError, NotFoundError, UnsafeContentError
from cas.load.layouts import Kind, Layout
from cas.load.policy import Policy, check_torch_file, check_torchscript
from cas.load.sources import Sources
from cas.load.trials import build_trial

log = logging.getLogger("cas.load")

_UNPICKLING = ("encoding", "errors", "fix_imports")  # arguments of torch.load that its unpickler gets


@dataclass(frozen=True, slots=True)
class Reading:
    """How files of torch are read.

    `from_store`: they are blobs, which nobody changes, so their tensors are memory-mapped; a user's own file is not,
    because saving over a mapped file kills the process. `options` are the caller's, for `torch.load`.
    """

    trust: Trust
    sources: Sources | None = None
    from_store: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


def load_torch(layout: Layout, reading: Reading) -> Any:
    """Return what a checkpoint of torch holds: the module, the trial where it has several, or a bare state dict.

    Raises:
        UnsafeContentError: the trust policy does not allow what would run.
        ContentError: the file is damaged, or does not fit the code.
        NotFoundError: its code needs a module that is not installed.
        CasError: torch is not installed.
    """
    require_torch()
    if layout.kind is Kind.TORCH_TRIAL:
        return _load_trial(layout, reading)
    found = read_file(layout.file, reading)
    if not _is_module(found):
        log.warning(
            "%s holds weights and no code to build a model with: this returns what torch.load gives, a %s",
            layout.file.name,
            type(found).__name__,
        )
    return found


def require_torch() -> Any:
    """Return the torch package.

    Raises:
        CasError: it is not installed.
    """
    try:
        import torch
    except ImportError as error:
        if error.name != "torch":
            raise
        raise CasError(
            "this checkpoint was made with PyTorch, which is not installed: pip install 'checkpoint-cas[torch]'"
        ) from error
    return torch


def _is_module(value: object) -> bool:
    return isinstance(value, require_torch().nn.Module)


# --- one file --------------------------------------------------------------------------------------------------


def read_file(path: Path, reading: Reading) -> Any:
    """Call `torch.load` on a file, after its pickles were judged."""
    torch = require_torch()
    options = dict(reading.options)
    if options.get("map_location") is None and not torch.cuda.is_available():
        options["map_location"] = "cpu"  # a checkpoint made on a GPU loads where there is none
    is_zip = _is_zip(path)
    if is_zip and _is_torchscript(torch, path):
        return _read_torchscript(torch, path, reading, options)
    if options.get("mmap") is None and reading.from_store and is_zip:
        options["mmap"] = True
    if reading.trust is Trust.NEVER:
        options["weights_only"] = True
    if not options.get("weights_only"):
        options["weights_only"] = False
        policy = Policy(reading.sources)
        if reading.trust is not Trust.ALWAYS:
            check_torch_file(path, policy, **{name: options[name] for name in _UNPICKLING if name in options})
        options.setdefault("pickle_module", policy.unpickler(str(path), guarded=reading.trust is not Trust.ALWAYS))
    try:
        return torch.load(path, **options)
    except pickle.UnpicklingError as error:
        raise _explain_unpickling(path, reading, error) from error
    except ModuleNotFoundError as error:
        raise NotFoundError(
            f"{path}: needs the module {error.name}, which is neither in the checkpoint's code/ nor installed"
        ) from error
    except (EOFError, RuntimeError) as error:
        if isinstance(error, EOFError) or "PytorchStreamReader" in str(error) or "corrupt" in str(error):
            raise ContentError(f"{path}: not a whole file of torch: {_first_line(error)}") from error
        raise


def _explain_unpickling(path: Path, reading: Reading, error: Exception) -> CasError:
    if reading.trust is Trust.NEVER:
        return UnsafeContentError(f"{path}: holds more than weights, and CAS_TRUST=never lets nothing else load")
    if reading.options.get("weights_only"):
        return UnsafeContentError(
            f"{path}: holds more than weights, and weights_only was asked for: {_weights_reason(error)}"
        )
    return ContentError(f"{path}: not a file that torch.load reads: {_first_line(error)}")


def _weights_reason(error: BaseException) -> str:
    """What torch found in the file, out of a page of advice with colours that it puts around that."""
    found = re.search(r"WeightsUnpickler error: (.+?)(?: Please use|\.?\s*$)", str(error), re.MULTILINE)
    return found[1].rstrip(".") if found else _first_line(error)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:300]


def _is_zip(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _is_torchscript(torch: Any, path: Path) -> bool:
    try:
        return "constants.pkl" in torch._C.PyTorchFileReader(str(path)).get_all_records()
    except RuntimeError as error:
        raise ContentError(f"{path}: not a whole file of torch: {_first_line(error)}") from error


def _read_torchscript(torch: Any, path: Path, reading: Reading, options: Mapping[str, Any]) -> Any:
    if reading.trust is Trust.NEVER:
        raise UnsafeContentError(f"{path}: holds a TorchScript program, and CAS_TRUST=never lets nothing run")
    if reading.trust is not Trust.ALWAYS:
        check_torchscript(path)
    return torch.jit.load(str(path), map_location=options.get("map_location"))


# --- a state dict and a trial ------------------------------------------------------------------------------------


def _load_trial(layout: Layout, reading: Reading) -> Any:
    if reading.trust is Trust.NEVER:
        raise UnsafeContentError(
            f"{layout.folder}: its model is built by code/ ({layout.entrypoint}), and CAS_TRUST=never lets no code run"
        )
    from cas.load.standin.pytorch import PyTorchTrialContext

    state = read_file(layout.file, reading)
    if not isinstance(state, dict):
        raise ContentError(f"{layout.file}: holds a {type(state).__name__}, not the state of a trial")
    context = PyTorchTrialContext(layout.hparams, layout.experiment_config)
    trial = build_trial(layout, reading.sources, context)
    if "model_state_dict" in state or callable(getattr(trial, "build_model", None)):
        return _fill(trial.build_model(), _first_state(state, layout), layout)
    states = state.get("models_state_dict")
    if not isinstance(states, list) or len(states) != len(context.models):
        count = len(states) if isinstance(states, list) else 0
        raise ContentError(
            f"{layout.file}: holds the states of {count} models, and {layout.entrypoint} wraps {len(context.models)}"
        )
    for model, values in zip(context.models, states, strict=True):
        _fill(model, values, layout)
    return context.models[0] if len(context.models) == 1 else trial


def _first_state(state: Mapping[str, Any], layout: Layout) -> Mapping[str, Any]:
    found = state.get("model_state_dict")
    if found is None:
        found = next(iter(state.get("models_state_dict") or ()), None)
    if not isinstance(found, Mapping):
        raise ContentError(f"{layout.file}: holds no state of a model")
    return found


def _fill(model: Any, values: Mapping[str, Any], layout: Layout) -> Any:
    """Load a state dict into a module, in place."""
    if not _is_module(model):
        raise ContentError(f"{layout.entrypoint} built a {type(model).__name__}, not a torch module")
    prefix = "module."  # what data-parallel training puts before each name
    if values and all(name.startswith(prefix) for name in values):
        own = model.state_dict()
        if not all(name.startswith(prefix) for name in own):
            values = {name.removeprefix(prefix): value for name, value in values.items()}
    try:
        model.load_state_dict(values)
    except RuntimeError as error:
        raise ContentError(f"{layout.file} does not fit the model of {layout.entrypoint}: {error}") from error
    return model
