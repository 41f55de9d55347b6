"""Which tensors of a file of torch belong to its models, read from the pickle alone: nothing in it runs."""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator, Mapping
from typing import Any

from cas.load.members import Look, find_models
from cas.load.nesting import require_shallow


class _Seen:
    """Stands for whatever a pickle makes, and remembers which storages went into it."""

    parts: list[Any]
    items: dict[Any, Any]  # what a class that is like a dict has been given
    names: tuple[str, str] = ("", "")

    def __new__(cls, *arguments: Any, **named: Any) -> _Seen:
        made = object.__new__(cls)  # pickles make values with `__new__` alone
        made.items = {}
        made.parts = [arguments, named, made.items]
        return made

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __call__(self, *arguments: Any, **named: Any) -> _Seen:
        return _Seen(self, *arguments, **named)

    def _take(self, *values: Any) -> None:
        self.parts.append(values)

    append = extend = add = __setstate__ = _take

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value


class _Storage(_Seen):
    """Stands for a tensor's memory: the record of the archive with this key."""

    def __init__(self, key: str) -> None:
        self.key = key


class _Follower(pickle.Unpickler):
    """Runs a pickle in which every name gives `_Seen`."""

    def find_class(self, module: str, name: str) -> Any:
        """Give what stands for it."""
        # A class of its own: `__setstate__` of one class never meets another's.
        return type("_Seen", (_Seen,), {"names": (module, name)})

    def persistent_load(self, pid: Any) -> Any:
        """Give what stands for a storage: `("storage", type, key, location, size)`."""
        if isinstance(pid, tuple) and len(pid) >= 3 and pid[0] == "storage" and isinstance(pid[2], str):
            return _Storage(pid[2])
        raise pickle.UnpicklingError("not a storage of torch")


def model_storages(pickled: bytes) -> frozenset[str] | None:
    """Return the keys of the storages that the models in `data.pkl` need.

    None where there is nothing to choose: the file does not hold models beside other things, or is something else.
    """
    stream = io.BytesIO(pickled)
    try:
        require_shallow(stream)
        value = _Follower(stream).load()
    except Exception:  # hostile bytes can raise nearly anything; whoever loads the file says what is wrong
        return None
    try:
        models = find_models(value, _LOOK)
    except _UnclearError:
        return None
    wanted = frozenset(one.key for one in _storages([one.value for one in models])) if len(models) == 1 else None
    every = frozenset(one.key for one in _storages([value]))
    return wanted if wanted and wanted < every else None


class _UnclearError(Exception):
    """What something would be cannot be told without running the pickle."""


def _is_tensor(value: Any) -> bool:
    return isinstance(value, _Seen) and value.names[0].startswith("torch") and value.names[1].startswith("_rebuild")


def _is_module(value: Any) -> bool:
    states = [part[0] for part in value.parts if isinstance(part, tuple) and len(part) == 1] if _is_seen(value) else []
    return any(isinstance(one, dict) and "_modules" in one and "_parameters" in one for one in states)


def _is_seen(value: Any) -> bool:
    return isinstance(value, _Seen) and not isinstance(value, _Storage)


def _as_mapping(value: Any) -> Mapping[Any, Any] | None:
    if isinstance(value, Mapping):
        return value
    if not _is_seen(value) or _is_tensor(value) or _is_module(value):
        return None
    if not value.items and any(_storages([value])):
        raise _UnclearError
    items: Mapping[Any, Any] = value.items
    return items or None


_LOOK = Look(_is_tensor, _is_module, _as_mapping)


def _storages(values: list[Any]) -> Iterator[_Storage]:
    waiting, seen = list(values), set()
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, _Storage):
            yield one
        if isinstance(one, _Seen):
            waiting += one.parts
        elif isinstance(one, Mapping):
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple | set | frozenset):
            waiting += one


__all__ = ["model_storages"]
