"""Weights in formats of their own: safetensors, and torch's distributed checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Any

from cas.errors import CasError, ContentError, UnsafeContentError
from cas.load.members import Look, find_models, untold
from cas.load.policy import Policy
from cas.load.torch_files import Reading, device_of, first_line, read_index, read_stream, require_all, require_torch

# --- safetensors -----------------------------------------------------------------------------------------------


def read_safetensors(path: Path, reading: Reading) -> dict[str, Any]:
    """Read tensors from a file of safetensors, or from the several files of an index; nothing in them can run.

    Raises:
        ContentError: it is damaged, or a file does not have what the index says.
        NotFoundError: a file that the index names is not there.
        CasError: safetensors is not installed.
    """
    device = device_of(reading, "safetensors")
    if not path.name.endswith(".index.json"):
        return _read_one(path, reading, device)
    where = read_index(path)
    found: dict[str, Any] = {}
    for name in sorted(set(where.values())):
        part = _read_one(path.parent / name, reading, device)
        found.update((key, value) for key, value in part.items() if where.get(key) == name)
    require_all(path, where, found)
    return found


def _read_one(path: Path, reading: Reading, device: Any) -> dict[str, Any]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise CasError(
            "this checkpoint is in safetensors, which is not installed: pip install 'checkpoint-cas[torch]'"
        ) from error
    torch = require_torch()
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except SafetensorError as error:
        raise ContentError(f"{path}: not a whole file of safetensors: {first_line(error)}") from error
    # They are mappings of the file, which is the user's; and some writers begin a tensor anywhere.
    for name, value in found.items():
        if device.type != "cpu":
            found[name] = value.to(device)
        elif not reading.mapped or value.data_ptr() % value.element_size():
            found[name] = value.clone(memory_format=torch.contiguous_format)
    return found


# --- distributed checkpoints -------------------------------------------------------------------------------------


def read_distributed(folder: Path, reading: Reading, *, only: str | None = None) -> dict[str, Any]:
    """Read a checkpoint that the processes of a job wrote together (`torch.distributed.checkpoint`).

    `only="model"` leaves out what is stored beside the model.

    Raises:
        ContentError: it is damaged.
        UnsafeContentError: the trust policy does not allow what is in it, or it is more than weights and only those
            were asked for.
        UsageError: map_location is no device of this machine, or which part is the model cannot be told.
        CasError: this torch cannot read such checkpoints.
    """
    torch = require_torch()
    device = device_of(reading, "a distributed checkpoint")
    if not torch.distributed.is_available():
        raise CasError(f"{folder}: a distributed checkpoint, and this torch was built without torch.distributed")
    from torch.distributed.checkpoint import CheckpointException, FileSystemReader, default_planner
    from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

    metadata = _read_metadata(folder, reading)
    for name in dict.fromkeys(str(info.relative_path) for info in metadata.storage_data.values()):
        if (folder / name).exists() and not (folder / name).is_file():  # to open a pipe waits for its writer
            raise ContentError(f"{folder / name}: neither a file nor a folder")
    keys = _model_keys(folder, metadata) if only else None

    class Reader(FileSystemReader):  # type: ignore[misc]
        def read_metadata(self, *_: Any, **__: Any) -> Any:
            return metadata  # a pickle, which has been judged

    class Planner(default_planner._EmptyStateDictLoadPlanner):  # type: ignore[misc]
        def set_up_planner(self, *arguments: Any, **named: Any) -> None:
            """Make the empty tensors that the files are read into, where the caller wants them."""
            with torch.device("cpu") if device.type == "meta" else device:  # of meta tensors torch makes real ones
                super().set_up_planner(*arguments, **named)

        def load_bytes(self, read_item: Any, value: IO[bytes]) -> None:
            """Take what is no tensor: a file of torch's inside of the others, which is judged."""
            name = read_item.dest_index.fqn
            found = read_stream(value, f"{folder}: {name}", reading, device)
            if self.flatten_state_dict:
                default_planner.set_element(self.original_state_dict, self.mappings[name], found)
            else:
                self.state_dict[name] = found

    state: dict[str, Any] = {}
    try:
        _load_state_dict(state, storage_reader=Reader(str(folder)), planner=Planner(keys), no_dist=True)
    except CasError:
        raise
    except (Exception, CheckpointException) as error:  # torch's own, which is a BaseException, wraps what went wrong
        cause = _cause(error)
        if isinstance(cause, CasError):
            raise cause from error
        raise ContentError(f"{folder}: not a whole distributed checkpoint: {first_line(cause)}") from error
    if device.type == "meta":
        state = torch.utils._pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), state)
    return state


def _model_keys(folder: Path, metadata: Any) -> set[str] | None:
    """Return how the names of the model's tensors begin; None if it is all there is.

    Raises:
        UsageError: which part is the model cannot be told.
    """
    torch = require_torch()
    paths = metadata.planner_data or {}
    stored: dict[Any, Any] = {}
    for name, one in metadata.state_dict_metadata.items():
        *outer, last = paths.get(name, (name,))
        place = stored
        for part in outer:
            place = place.setdefault(part, {})
        place[last] = one
    kind = torch.distributed.checkpoint.metadata.TensorStorageMetadata
    look = Look(
        is_tensor=lambda value: isinstance(value, kind),
        is_module=lambda _: False,
        as_mapping=lambda value: value if isinstance(value, Mapping) else None,
    )
    models = find_models(stored, look)
    if len(models) != 1:
        raise untold(str(folder), stored, models)
    return {".".join(models[0].path)} if models[0].path else None


def _cause(error: BaseException) -> BaseException:
    """Return what a failure of torch's collectives is about."""
    failures = getattr(error, "failures", None)
    if isinstance(failures, Mapping) and failures:
        first = next(iter(failures.values()))
        cause = first[0] if isinstance(first, tuple) else first  # with its traceback
        return cause if isinstance(cause, BaseException) else error
    return error


def _read_metadata(folder: Path, reading: Reading) -> Any:
    """Read what describes the files: a pickle, which makes values of torch's own classes and of nothing else.

    It is read whatever the policy says, so it names a few classes, and neither operations nor arrays.
    """
    path = folder / ".metadata"
    policy = Policy(vouched=False, only=_describes)
    with open(path, "rb") as file:
        try:
            policy.check_pickle(str(path), file)
            file.seek(0)
            metadata = policy.unpickler(str(path)).load(file)
        except UnsafeContentError:
            raise
        except Exception as error:  # hostile bytes can raise nearly anything
            raise ContentError(f"{path}: not of a distributed checkpoint: {first_line(error)}") from error
    try:
        names = [PurePosixPath(info.relative_path) for info in metadata.storage_data.values()]
        _ = metadata.state_dict_metadata, metadata.planner_data
    except (AttributeError, TypeError) as error:
        raise ContentError(f"{path}: not of a distributed checkpoint: {first_line(error)}") from error
    for name in names:
        if name.is_absolute() or ".." in name.parts:
            raise ContentError(f"{path}: names a file elsewhere: {str(name)!r:.100}")
    return metadata


def _describes(module: str, name: str) -> bool:
    """Whether torch writes such a name into `.metadata`."""
    torch = require_torch()
    if module == "torch":
        return name == "Size" or isinstance(getattr(torch, name, None), torch.dtype | torch.memory_format)
    return module in _DESCRIPTIONS or (module, name) in (
        ("collections", "OrderedDict"),
        ("pathlib", "PosixPath"),  # where it was written
        ("pathlib", "WindowsPath"),
        ("torch.serialization", "_get_layout"),
    )


_DESCRIPTIONS = (
    "torch.distributed._shard.sharded_tensor.metadata",
    "torch.distributed.checkpoint.filesystem",
    "torch.distributed.checkpoint.metadata",
)

__all__ = ["read_distributed", "read_safetensors"]
