"""Files that `torch.load` reads: judged before anything in them runs, then read with what today's torch asks for."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import pickle
import re
import traceback
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from cas.errors import CasError, ContentError, NotFoundError, UnsafeContentError, UsageError
from cas.load.members import names_of
from cas.load.permit import Permit
from cas.load.policy import Policy
from cas.load.scanning import check_torch_file, check_torchscript
from cas.load.sources import Sources
from cas.load.verdicts import Scanned

log = logging.getLogger("cas.load")

_UNPICKLING = ("encoding", "errors", "fix_imports")  # arguments of torch.load that its unpickler gets
_MAX_INDEX = 64 << 20  # bytes of a file that says which file has which tensor
_SAFE = (2, 10)  # since this torch nothing is known that gets out of `weights_only` (CVE-2026-24747, CVE-2025-32434)


@dataclass(frozen=True, slots=True)
class Reading:
    """How files of one checkpoint are read.

    `from_store`: they are blobs, which nobody changes, so their tensors are memory-mapped; a user's own file is not,
    because saving over a mapped file kills the process. `options` are the caller's, for `torch.load`. `scanned` knows
    the verdicts of earlier scans.
    """

    permit: Permit
    sources: Sources | None = None
    from_store: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    scanned: Scanned | None = None

    @property
    def mapped(self) -> bool:
        """Whether tensors are mapped: where the caller does not say, those of blobs."""
        asked = self.options.get("mmap")
        return self.from_store if asked is None else bool(asked)


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


def read_file(path: Path, reading: Reading, *, mapped: bool | None = None) -> Any:
    """Call `torch.load` on a file, after its pickles were judged; `mapped` overrides what the reading says.

    Raises:
        UnsafeContentError: the trust policy does not allow what would run.
        ContentError: it is no file of torch, or damaged.
        NotFoundError: it needs a module that is not installed.
    """
    torch = require_torch()
    options = dict(reading.options)
    options["map_location"] = place_of(torch, reading)
    is_zip = _is_zip(path)
    if is_zip and _is_torchscript(torch, path):
        return _read_torchscript(torch, path, reading, options)
    wanted = reading.mapped if mapped is None else mapped
    if wanted and not is_zip and options.get("mmap"):
        raise UsageError(f"{path}: torch wrote it before 1.6, in a format that cannot be memory-mapped")
    options["mmap"] = wanted and is_zip
    if reading.permit.safe_only:
        _require_safe_torch(torch, path, reading.permit)
        options["weights_only"] = True
    if not options.get("weights_only"):
        try:
            options["pickle_module"] = _pickle_module(path, reading, options)
        except UnsafeContentError:
            # Torch's own reader of weights runs nothing, and knows kinds of tensors that the scan does not.
            if not _has_safe_torch(torch):
                raise
            with contextlib.suppress(Exception), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # they would be about a file that is refused
                return torch.load(path, **options | {"weights_only": True})
            raise
        options["weights_only"] = False
    elif options.pop("pickle_module", None) is not None:
        raise UsageError("weights_only=True has its own unpickler: it takes no pickle_module")
    with explaining(path, reading):
        return torch.load(path, **options)


def _pickle_module(path: Path, reading: Reading, options: Mapping[str, Any]) -> Any:
    """Judge a file's pickles, and return what reads them: it knows the checkpoint's modules, and judges once more."""
    own = options.get("pickle_module")
    if own is not None and reading.permit.scans:
        raise UsageError("a pickle_module of your own cannot be judged: it needs trust='always'")
    policy = Policy(reading.sources)
    if reading.permit.scans:
        # torch's own default, and what the caller says
        how = {"encoding": "utf-8", **{name: options[name] for name in _UNPICKLING if name in options}}
        scan = functools.partial(check_torch_file, path, policy, **how)
        if reading.scanned is None:
            scan()
        else:
            reading.scanned.check(path, policy, how, scan, kind="torch")
    return own or policy.unpickler(str(path), guarded=reading.permit.scans)


def _require_safe_torch(torch: Any, path: Path | str, permit: Permit) -> None:
    if not _has_safe_torch(torch):
        raise permit.refusal(f"{path}: torch {torch.__version__} can be made to run code even by weights (2.10 cannot)")


def _has_safe_torch(torch: Any) -> bool:
    return tuple(int(part) for part in torch.__version__.split(".")[:2]) >= _SAFE


def place_of(torch: Any, reading: Reading) -> Any:
    """Return a `map_location`: the caller's, else where the tensors were, if this machine has such a device.

    Raises:
        UsageError: the caller's is nothing that torch takes for one.
    """
    wanted = reading.options.get("map_location")
    if wanted is not None:
        if not isinstance(wanted, str | torch.device | Mapping) and not callable(wanted):
            raise UsageError(f"map_location={wanted!r:.40}: it is a device, a dict of devices, or a function")
        return wanted
    if not torch.cuda.is_available():
        return "cpu"

    def place(storage: Any, location: str) -> Any:
        device, _, number = location.partition(":")
        absent = device == "cuda" and int(number or 0) >= torch.cuda.device_count()
        return storage if absent else None  # None: as torch does it

    return place


def device_of(reading: Reading, what: str) -> Any:
    """Return the device for tensors of which no file says where they were: the caller's `map_location`, else the CPU.

    Raises:
        UsageError: it is not one device, or none that can be used here.
    """
    torch = require_torch()
    place = reading.options.get("map_location")
    if callable(place) or isinstance(place, Mapping):
        raise UsageError(f"map_location must be a device for {what}, not a {type(place).__name__}")
    try:
        device = torch.device("cpu" if place is None else place)
    except (RuntimeError, TypeError) as error:
        raise UsageError(f"map_location={place!r:.40} is no device: {first_line(error)}") from error
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ImportError) as error:  # of torch without CUDA, without torch_xla
        raise UsageError(f"map_location={place!r:.40} cannot be used here: {first_line(error)}") from error
    return device


@contextlib.contextmanager
def explaining(path: Path, reading: Reading) -> Iterator[None]:
    """Translate what unpickling raises; what the checkpoint's own code raises is left as it is."""
    try:
        yield
    except pickle.UnpicklingError as error:
        raise _explain_unpickling(path, reading, error) from error
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "torch":
            require_torch()
        raise NotFoundError(
            f"{path}: needs the module {error.name}, which is neither in the checkpoint's code/ nor installed"
        ) from error
    except EOFError as error:
        raise ContentError(f"{path}: not whole: {first_line(error)}") from error
    except (CasError, OSError):
        raise
    except Exception as error:  # calls of harmless names with senseless arguments can raise nearly anything
        if is_of_code(error, reading.sources):
            raise
        place = reading.options.get("map_location")
        if isinstance(error, RuntimeError) and "PytorchStreamReader" not in str(error) and place is not None:
            raise UsageError(f"{path}: cannot be loaded to map_location={place!r:.40}: {first_line(error)}") from error
        raise ContentError(f"{path}: what it holds cannot be made: {_named(error)}") from error


def is_of_code(error: BaseException, sources: Sources | None) -> bool:
    """Whether code of the checkpoint raised it, or called what did."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return sources is not None and any(sources.is_code_of(frame) for frame in frames)


def _named(error: BaseException) -> str:
    """Return an error's message with its type, without which `'a'` of a KeyError says little."""
    return f"{type(error).__name__}: {first_line(error)}"


def _explain_unpickling(path: Path, reading: Reading, error: Exception) -> CasError:
    if reading.permit.safe_only:
        return reading.permit.refusal(f"{path}: holds more than weights")
    if reading.options.get("weights_only"):
        return UnsafeContentError(
            f"{path}: holds more than weights, and weights_only was asked for: {_weights_reason(error)}"
        )
    return ContentError(f"{path}: not a pickle that can be read to its end: {first_line(error)}")


def _weights_reason(error: BaseException) -> str:
    """What torch found in the file, out of a page of advice with colours that it puts around that."""
    found = re.search(r"WeightsUnpickler error: (.+?)(?: Please use|\.?\s*$)", str(error), re.MULTILINE)
    return found[1].rstrip(".") if found else first_line(error)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, cut to what a line can take."""
    return next(iter(str(error).splitlines()), type(error).__name__)[:300]


def _is_zip(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _is_torchscript(torch: Any, path: Path) -> bool:
    records, reason = [], "it has no data.pkl"
    try:
        records = torch._C.PyTorchFileReader(str(path)).get_all_records()
    except RuntimeError as error:
        reason = first_line(error)
    if "model.json" in records:  # how TorchScript was written before torch 1.4
        return True
    if "data.pkl" not in records:
        what = _other_archive(path)
        raise ContentError(f"{path}: {what or f'not a whole file of torch: {reason}'}")
    return "constants.pkl" in records


def _other_archive(path: Path) -> str | None:
    """Say what a zip archive is that torch did not save; None if it is one of torch's, or not whole."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError):
        return None
    if any(name.endswith("data.pkl") for name in names):
        return None
    if any(name.endswith(("archive_format", "serialized_exported_program.json")) for name in names):
        return "a program that torch.export saved, which cas does not load (torch.export.load does)"
    if names and all(name.endswith(".npy") for name in names):
        return "arrays of numpy, which cas does not load (numpy.load does)"
    return f"a zip archive of other things: {names_of(names) or 'nothing'}"


def _read_torchscript(torch: Any, path: Path, reading: Reading, options: Mapping[str, Any]) -> Any:
    if reading.permit.safe_only:
        raise reading.permit.refusal(f"{path}: holds a TorchScript program")
    if options.get("weights_only"):
        raise UnsafeContentError(f"{path}: holds a TorchScript program, and weights_only was asked for")
    place = (
        options["map_location"] if reading.options.get("map_location") is None else device_of(reading, "TorchScript")
    )
    if reading.permit.scans:
        check_torchscript(path)
    with explaining(path, reading):
        return torch.jit.load(str(path), map_location=None if callable(place) else place)


# --- weights in several files -----------------------------------------------------------------------------------


def read_parts(index: Path, reading: Reading) -> dict[str, Any]:
    """Read a state dict whose tensors lie in several files of torch, as an index says.

    Raises:
        ContentError: the index is damaged, or a file does not have what it says.
        NotFoundError: a file that it names is not there.
    """
    where = read_index(index)
    found: dict[str, Any] = {}
    for name in sorted(set(where.values())):
        part = read_file(index.parent / name, reading)
        if not isinstance(part, dict):
            raise ContentError(f"{index.parent / name}: holds a {type(part).__name__}, not weights")
        found.update((key, value) for key, value in part.items() if where.get(key) == name)
    require_all(index, where, found)
    return found


def read_index(path: Path) -> Mapping[str, str]:
    """Return which tensor lies in which file beside an index, each looked for.

    Raises:
        ContentError: it is no index, or names a file elsewhere.
        NotFoundError: a file that it names is not there.
    """
    try:
        with open(path, "rb") as file:
            where = json.loads(file.read(_MAX_INDEX))["weight_map"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ContentError(f"{path}: no index of weights: {first_line(error)}") from error
    if not isinstance(where, dict) or not all(isinstance(name, str) for name in where.values()):
        raise ContentError(f"{path}: no index of weights: weight_map must map names to files")
    for name in dict.fromkeys(where.values()):
        if os.path.basename(name) != name or name in ("", ".", ".."):  # noqa: PTH119
            raise ContentError(f"{path}: names a file elsewhere: {name!r:.100}")
        if not (path.parent / name).is_file():
            raise NotFoundError(f"{path}: {name}, which it names, is not there")
    return where


def require_all(index: Path, where: Mapping[str, str], found: Mapping[str, Any]) -> None:
    """Check that every tensor of an index was found.

    Raises:
        ContentError: one was not.
    """
    if absent := sorted(where.keys() - found.keys()):
        raise ContentError(f"{index}: {where[absent[0]]} does not have {absent[0]}, which it names")


# --- for readers of containers -----------------------------------------------------------------------------------


def read_stream(stream: IO[bytes], subject: str, reading: Reading, device: Any) -> Any:
    """Call `torch.load` on a file inside of another, judged like a file of its own."""
    torch = require_torch()
    if reading.permit.safe_only:
        _require_safe_torch(torch, subject, reading.permit)
    if reading.permit.safe_only or reading.options.get("weights_only"):
        with explaining(Path(subject), reading):
            return torch.load(stream, map_location=device, weights_only=True)
    policy = Policy(reading.sources)
    if reading.permit.scans:
        check_torch_file(stream, policy, subject=subject, encoding="utf-8")
    stream.seek(0)
    module = policy.unpickler(subject, guarded=reading.permit.scans)
    with explaining(Path(subject), reading):
        return torch.load(stream, map_location=device, weights_only=False, pickle_module=module)


__all__ = [
    "Reading", "device_of", "explaining", "first_line", "is_of_code", "place_of", "read_file", "read_index",
    "read_parts", "read_stream", "require_all", "require_torch",
]  # fmt: skip
