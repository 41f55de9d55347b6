"""Locks between processes. They only prevent double work: nothing here is needed for correctness."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

from cas.index import disk

log = logging.getLogger("cas.index")

UNCLAIMED = 3600.0  # seconds after which a folder without a claim is one of a killed process
POLL = (0.02, 0.25)  # seconds between tries: the first, and the longest


@contextlib.contextmanager
def exclusive(path: Path, *, progress: Callable[[], object], stall: float) -> Iterator[bool]:
    """Hold a lock; yield whether it is held.

    Waits as long as the value of `progress()` (what the holder gets done) changes. After `stall` seconds without
    a change, or where this disk has no locks, goes on without it and yields False.
    """
    from filelock import FileLock, Timeout  # imported late: `import cas` must stay fast

    lock = FileLock(path, timeout=0, is_singleton=False, thread_local=False)
    last, since, pause = progress(), disk.monotonic(), POLL[0]
    held = False
    try:
        while True:
            try:
                disk.make_folder(path.parent)
                lock.acquire()
                held = True
                break
            except Timeout:
                pass
            except (OSError, NotImplementedError) as error:
                log.info("no lock %s: %s", path.name, error)
                break
            current = progress()
            if current != last:
                last, since = current, disk.monotonic()
            elif disk.monotonic() - since > stall:
                log.warning("another process holds %s and makes no progress; going on without it", path.name)
                break
            time.sleep(pause)
            pause = min(pause * 1.5, POLL[1])
        yield held
    finally:
        if held:
            lock.release()


class Claim:
    """A lock on a file of ours, held while we live, so that others can tell that its folder is abandoned."""

    def __init__(self, path: Path) -> None:
        # Locked before it has its name: a claim that can be seen without a lock looks abandoned.
        unnamed = path.with_suffix(".new")
        self._fd = disk.create(unnamed)
        with contextlib.suppress(OSError, ImportError):
            import fcntl

            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        disk.rename(unnamed, path)

    def release(self) -> None:
        """End the claim."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def is_abandoned(path: Path) -> bool:
    """Whether the claim on this file has ended: its holder is dead.

    False where it cannot be told: where locks are a silent no-op, a living holder looks dead otherwise.
    """
    try:
        import fcntl

        first = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return _is_old(path.parent)  # killed before it was claimed; a living process claims at once
    except (OSError, ImportError):
        return False
    try:
        fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        second = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True  # locks work here: we hold it, so nobody else does
        finally:
            os.close(second)
        return False
    except OSError:
        return False
    finally:
        os.close(first)


def _is_old(folder: Path) -> bool:
    try:
        return time.time() - folder.stat().st_mtime > UNCLAIMED
    except OSError:
        return False


class ThreadLock:
    """A lock between threads that the child of a fork finds free, whoever held it in the parent."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        _thread_locks.add(self)

    def renew(self) -> None:
        """Be a lock that nobody holds."""
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


_thread_locks: weakref.WeakSet[ThreadLock] = weakref.WeakSet()


def _renew_all() -> None:
    for lock in list(_thread_locks):
        lock.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)
