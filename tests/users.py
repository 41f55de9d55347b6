"""Ordinary users, real ones: a call in a child that gave up being root, after everything it needs was imported."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ANNA, BOB = 12345, 23456  # two users
_OPEN = tempfile.gettempdir()  # as it was before any test set another one
TEAM = 34567  # a group


def as_user(uid: int, call: Callable[[], None], *, groups: tuple[int, ...] = (), umask: int = 0o022) -> None:
    """Run a call in a child that is an ordinary user, with folders of that user's own; it must succeed."""
    assert wait(start_as_user(uid, call, groups=groups, umask=umask)) == 0


def start_as_user(uid: int, call: Callable[[], None], *, groups: tuple[int, ...] = (), umask: int = 0o022) -> int:
    """Start such a child and return its process number."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("needs root, to be somebody else")
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            own = Path(tempfile.gettempdir()) / f"cas-tests-{uid}"
            own.mkdir(mode=0o700, exist_ok=True)
            os.chown(own, uid, uid)
            os.environ |= {"HOME": str(own), "XDG_CACHE_HOME": str(own / "cache")}
            os.setgroups(groups)
            os.setgid(uid)
            os.setuid(uid)
            os.umask(umask)
            call()
            code = 0
        except BaseException:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(code)
    return pid


def wait(pid: int) -> int:
    """Return how a child ended."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@contextmanager
def folder_for_all() -> Iterator[Path]:
    """A folder that every user may pass and write to, as pytest's own are not; temporary folders lie in it too."""
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory(dir=_OPEN) as name:
        Path(name).chmod(0o1777)
        temporary = Path(name) / "tmp"
        temporary.mkdir()
        temporary.chmod(0o1777)
        tempfile.tempdir = str(temporary)
        try:
            yield Path(name)
        finally:
            tempfile.tempdir = before
