"""Plain pickles: what `pickle.dump` and `cloudpickle.dump` write, with no framework's format around it.

They are judged like the pickles in files of torch. A tensor in one holds its memory as a whole file of torch, which
torch's own function would load with no question; here that file is judged as well, and put where the caller wants it.
"""

from __future__ import annotations

import functools
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cas.errors import UnsafeContentError, UsageError
from cas.load.policy import Policy
from cas.load.scanning import check_torch_file
from cas.load.torch_files import Reading, explaining, place_of, require_torch

_STORAGE = ("torch.storage", "_load_from_bytes")  # how a tensor's memory is named
_HOW = ("encoding", "errors", "fix_imports")  # arguments of an unpickler


def read_pickle(path: Path, reading: Reading) -> Any:
    """Read a plain pickle, which was judged before anything in it runs.

    Raises:
        UnsafeContentError: the trust policy does not allow what would run.
        ContentError: it is damaged.
        NotFoundError: it needs a module that is not installed.
    """
    if reading.permit.safe_only:
        raise reading.permit.refusal(f"{path}: a plain pickle, which calls what it names")
    if reading.options.get("weights_only"):
        raise UnsafeContentError(f"{path}: a plain pickle can hold anything, and weights_only was asked for")
    if reading.options.get("mmap"):
        raise UsageError(f"{path}: a plain pickle, which cannot be memory-mapped")
    how = {name: reading.options[name] for name in _HOW if name in reading.options}
    storage = _judge_storage, functools.partial(_load_storage, reading)
    policy = Policy(reading.sources, inner={_STORAGE: storage})
    unpickler = policy.unpickler(str(path), guarded=reading.permit.scans).Unpickler
    with explaining(path, reading), open(path, "rb") as file:  # opened once: what is read is what was judged
        if reading.permit.scans:
            scan = functools.partial(policy.check_pickle, str(path), file, **how)
            if reading.scanned is None:
                scan()
            else:
                reading.scanned.check(path, policy, how, scan, kind="pickle")
            file.seek(0)
        found = unpickler(file, **how).load()
        if sys.modules.get("torch") is not None:
            _require_sound_tensors()
    return found


def _judge_storage(data: object) -> None:
    """Judge the file of torch that is a tensor's memory: nothing but torch's own names is in one."""
    if not isinstance(data, bytes):
        raise UnsafeContentError(f"it loads a tensor's memory out of a {type(data).__name__}")
    policy = Policy(vouched=False, only=_is_storage)
    check_torch_file(io.BytesIO(data), policy, subject="a tensor's memory in it", encoding="utf-8")


def _is_storage(module: str, name: str) -> bool:
    return module in ("torch", "torch.cuda", "torch.storage") and name.endswith("Storage")


def _load_storage(reading: Reading, data: bytes) -> Any:
    torch = require_torch()
    module = Policy(vouched=False, only=_is_storage).unpickler("a tensor's memory")
    place = place_of(torch, reading)
    return torch.load(io.BytesIO(data), map_location=place, weights_only=False, pickle_module=module)


def _require_sound_tensors() -> None:
    """Let torch look at sparse tensors, as its own loading does at its end where the user has switched that on."""
    look: Callable[[], None] | None = getattr(require_torch()._utils, "_validate_loaded_sparse_tensors", None)
    if look is not None:
        look()


__all__ = ["read_pickle"]
