"""Which parts of `determined` are our stand-in's: all where the package is not installed, else those that do not work.

The package's last release does not go with Keras 3: its `determined.keras` imports modules that are gone, while
`determined.pytorch` is as good as ever. So it is asked part by part, when code of a checkpoint wants one.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import sys
from types import ModuleType
from typing import Any

log = logging.getLogger("cas.load")

_PARTS = frozenset({"determined.keras", "determined.pytorch"})  # they lean on a framework of another age


def is_installed(name: str) -> bool:
    """Whether a package of this name can be imported by everybody."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return name in sys.modules
    return spec is not None and spec.origin is not None  # a mere folder of this name on sys.path is no package


def stands_in(name: str) -> bool:
    """Whether a module of `determined` is the stand-in's; to know that of a part, the real one's is imported."""
    if not is_installed("determined"):
        return True
    part = ".".join(name.split(".")[:2])
    return part in _PARTS and not _works(part)


@functools.cache
def _works(part: str) -> bool:
    try:
        importlib.import_module(part)
    except Exception as error:  # of a package that was written for other versions, anything
        why = next(iter(str(error).splitlines()), type(error).__name__)
        log.warning(
            "%s of the determined package cannot be imported here (%s): cas' stand-in takes its place", part, why
        )
        return False
    return True


def stand_in(name: str) -> ModuleType:
    """Return the stand-in's module for one of `determined`.

    Raises:
        ModuleNotFoundError: it has none.
    """
    if name == "determined" and is_installed(name):
        return _Both(name)
    ours = "cas.load.standin" + name.removeprefix("determined")
    try:
        return importlib.import_module(ours)
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("cas.load.standin"):
            raise
        message = f"the stand-in for determined has no module {name}; install determined to load this checkpoint"
        raise ModuleNotFoundError(message, name=name) from error


class _Both(ModuleType):
    """The real package with parts of the stand-in in it, which are set as attributes."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module("determined"), name)


__all__ = ["is_installed", "stand_in", "stands_in"]
