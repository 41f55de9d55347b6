"""Modules of `code/` in other processes of a job: spawned workers, pools, what goes through their queues.

`multiprocessing` pickles with a pickler of its own, which takes reducers. Others (joblib, Ray, Dask, Spark) send with
`cloudpickle`, each with its own copy of it, some of which come and go after us; those are known by the module whose
function is pickling when the name is asked how it goes. So what a file says by a plain name
(`model_def`) goes to another process as that name and a *parcel*: the scope's key, where its folder is, and its
sources. The other process opens the parcel, and finds the module under a name that no other scope has.
"""

from __future__ import annotations

import os
import pickle
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from cas.load import sources
from cas.load.sources import ScopedName, Sources

_INLINE = 256 << 10  # compressed bytes of sources that go with each message; more go once, when a process starts


class Parcel:
    """The sources of one scope, on their way. One for each scope, so that a pickle holds them once."""

    def __init__(self, scope: Sources) -> None:
        self._scope = scope
        self._packed: bytes | None = None

    def __reduce__(self) -> tuple[Any, tuple[str, str, bytes | None]]:
        from multiprocessing.context import get_spawning_popen

        if self._packed is None:
            self._packed = zlib.compress(pickle.dumps(dict(self._scope.files)), 1)
        needed = (
            len(self._packed) <= _INLINE
            or get_spawning_popen() is not None
            or not self._scope.code.is_dir()
            or sends_to_workers(sys._getframe(1))  # which may be on other hosts
        )
        return open_parcel, (self._scope.key, os.fspath(self._scope.code), self._packed if needed else None)


def open_parcel(key: str, code: str, packed: bytes | None) -> Sources:
    """Return the scope with this key in this process.

    Raises:
        ModuleNotFoundError: its sources were not sent, and are no longer in their folder.
    """
    if (known := sources.scope_of(key)) is not None:
        return known
    if packed is not None:
        files: Mapping[str, bytes] = pickle.loads(zlib.decompress(packed))
        return sources.keep(Sources(Path(code), files, key))
    found = sources.sources_of(Path(code))
    if found.key != key:
        raise ModuleNotFoundError(f"the modules in {code} are no longer those that the other process had")
    return found


def name_in_process(text: str, scope: Sources) -> str:
    """Return the name under which this process finds a module of a scope: that of an unpickled class."""
    alias = f"cas code {scope.key[:16]} {text.replace('.', ' ')}"  # without dots: it has no package
    sys.modules[alias] = scope.load(text)
    return alias


def sends_to_workers(pickling: FrameType) -> bool:
    """Whether the function that is pickling is one of those that send to workers."""
    module = str(pickling.f_globals.get("__name__", ""))
    return "cloudpickle" in module.split(".") or module == "distributed.protocol.pickle"


def reduce_name(name: ScopedName) -> tuple[Any, tuple[Any, ...]]:
    """Return how a name goes to another process: with the sources of its scope."""
    scope = sources.scope_of(name.scope)
    if scope is None:
        return str, (str(name),)
    if scope.parcel is None:
        scope.parcel = Parcel(scope)
    return name_in_process, (str(name), scope.parcel)


def register() -> None:
    """Teach multiprocessing's pickler the names of scopes."""
    from multiprocessing.reduction import ForkingPickler

    ForkingPickler.register(ScopedName, reduce_name)


__all__ = ["Parcel", "name_in_process", "open_parcel", "reduce_name", "register", "sends_to_workers"]
