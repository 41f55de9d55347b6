"""Whether this process may use obstore: its threads do not survive a fork, and a child that uses it hangs."""

from __future__ import annotations

import os

_used = False
_inherited = False


def mark_used() -> None:
    """Note that obstore's threads run in this process."""
    global _used
    if not _used:
        _used = True
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_in_child)


def _in_child() -> None:
    global _inherited
    _inherited = True


def must_spawn() -> bool:
    """Whether obstore was used before a fork that made this process: another process has to fetch."""
    return _inherited
