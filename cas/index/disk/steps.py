"""What a change of the disk is: a step, which an observer sees, and which a sealed store refuses.

Each function that changes something is a *step*: a fault-injection run (tests/kills.py) counts the steps of
an operation and kills the process before and after each of them.
"""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

Observer = Callable[[str, str], None]
_observer: Observer | None = None

_frozen: tuple[str, ...] = ()
_ONLY_LOOK = {"sync_folder"}
_FROM = {"reflink"}  # what only reads its first argument


def observe(observer: Observer | None) -> None:
    """Call `observer(moment, step)` with moment "before" and "after" each step from now on; None ends it."""
    global _observer
    _observer = observer


def is_step(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function that changes the disk be a step: observed, and refused below a frozen home."""
    name = function.__name__

    @functools.wraps(function)
    def observed(*args: P.args, **kwargs: P.kwargs) -> R:
        if _frozen:
            _require_thawed(name, args)
        if _observer is None:
            return function(*args, **kwargs)
        _observer("before", name)
        result = function(*args, **kwargs)
        if _observer is not None:
            _observer("after", name)
        return result

    return observed


def step(name: str) -> None:
    """Mark a step that is not a call of this package (a commit of the SQLite index)."""
    if _observer is not None:
        _observer("before", name)


def freeze(home: Path) -> None:
    """Let nothing below a home be changed by this process, as if its disk were mounted read-only."""
    global _frozen
    _frozen = tuple({*_frozen, f"{os.fspath(home)}/"})


def thaw(home: Path) -> None:
    """Let a home be changed again."""
    global _frozen
    _frozen = tuple(one for one in _frozen if one != f"{os.fspath(home)}/")


def _require_thawed(step: str, args: tuple[object, ...]) -> None:
    if step in _ONLY_LOOK:
        return
    for one in args[1:] if step in _FROM else args:
        if isinstance(one, Path) and os.fspath(one).startswith(_frozen):
            raise OSError(errno.EROFS, "the store is sealed", os.fspath(one))
