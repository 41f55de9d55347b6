"""Which tensors of a file of torch belong to its models, read from the pickle alone: nothing in it runs."""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator, Mapping
from typing import Any

from cas.load.nesting import require_shallow
from cas.load.tensors import MODEL_KEYS


class _Seen:
    """Stands for whatever a pickle makes, and remembers which storages went into it."""

    parts: list[Any]

    def __new__(cls, *arguments: Any, **named: Any) -> _Seen:
        made = object.__new__(cls)  # pickles make values with `__new__` alone
        made.parts = [arguments, named]
        return made

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __call__(self, *arguments: Any, **named: Any) -> _Seen:
        return _Seen(self, *arguments, **named)

    def _take(self, *values: Any) -> None:
        self.parts.append(values)

    append = extend = add = __setitem__ = __setstate__ = _take


class _Storage(_Seen):
    """Stands for a tensor's memory: the record of the archive with this key."""

    def __init__(self, key: str) -> None:
        self.key = key


class _Follower(pickle.Unpickler):
    """Runs a pickle in which every name gives `_Seen`."""

    def find_class(self, module: str, name: str) -> Any:
        """Give what stands for it."""
        return type("_Seen", (_Seen,), {})  # a class of its own: `__setstate__` of one class never meets another's

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
    if not isinstance(value, Mapping):
        return None
    models = [value[key] for key in sorted(MODEL_KEYS & value.keys())]
    wanted = frozenset(one.key for one in _storages(models[:1]))
    every = frozenset(one.key for one in _storages([value]))
    return wanted if wanted and wanted < every else None


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
