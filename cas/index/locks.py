"""Locks between processes. They only prevent double work: nothing here is needed for correctness."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cas.index import disk
from cas.index.mounts import file_system, is_network

if TYPE_CHECKING:
    from filelock import BaseFileLock

log = logging.getLogger("cas.index")

LEASE = 30.0  # seconds without a sign of life after which a lease is another's to take
QUIET = 86_400.0  # seconds without a change after which a transfer is dead, where no lock can tell
UNCLAIMED = 3600.0  # seconds after which a folder without a claim is one of a killed process
POLL = (0.02, 0.05)  # seconds between tries, the first and the longest: 0.1 ms each, so 7 waiters take 1.5 % of a core
POLL_LEASE = 0.25  # seconds between tries of a lease at most: each asks the network
LOOK = 0.5  # seconds between two looks at what the holder gets done: a look may take as long as ten tries


@dataclass(slots=True)
class Hold:
    """Whether a lock is held; true until it is lost, as a lease is by a process that was stopped for too long."""

    held: bool
    lost: bool = False

    def __bool__(self) -> bool:
        return self.held and not self.lost


@contextlib.contextmanager
def exclusive(
    path: Path, *, progress: Callable[[], object], stall: float, lease: float | None = None, mode: int = 0o644
) -> Iterator[Hold]:
    """Hold a lock; yield whether it is held.

    Waits as long as the value of `progress()` (what the holder gets done) changes. After `stall` seconds without
    a change, or where this disk has no locks, goes on without it.

    Args:
        path: the lock file.
        progress: what changes while the holder works.
        stall: seconds.
        lease: take a lease in place of flock, which ends so many seconds after its holder's last sign of life; for
            disks where flock does nothing. All processes must say the same.
        mode: of the lock file, whatever the umask.
    """
    hold = Hold(held=False)
    lock = _lock(path, lease, mode, hold)
    last, since, pause = progress(), disk.monotonic(), POLL[0]
    looked = since
    try:
        while not _acquire(lock, path, hold):
            now = disk.monotonic()
            if now - looked >= min(LOOK, stall / 4):
                current, looked = progress(), now
                if current != last:
                    last, since = current, now
                elif now - since > stall:
                    log.warning("another process holds %s and makes no progress; going on without it", path.name)
                    break
            time.sleep(pause)
            pause = min(pause * 1.5, POLL[1] if lease is None else POLL_LEASE)
        yield hold
    finally:
        if hold.lost:
            log.info("the lock %s was lost: this process was stopped, and another one did the same work", path.name)
        if hold.held:
            with contextlib.suppress(OSError):  # of a lease that is another's by now, or a folder that is gone
                lock.release()


def _lock(path: Path, lease: float | None, mode: int, hold: Hold) -> BaseFileLock:
    with disk.importing:
        from filelock import FileLock, SoftFileLease  # imported late: `import cas` must stay fast

    if lease is None:
        return FileLock(path, timeout=0, is_singleton=False, thread_local=False, mode=mode)

    def lose(_: object) -> None:
        hold.lost = True

    options: dict[str, Any] = {"timeout": 0, "is_singleton": False, "thread_local": False, "mode": mode}
    return SoftFileLease(path, lease_duration=lease, heartbeat_interval=lease / 5, on_compromise=lose, **options)


def _acquire(lock: BaseFileLock, path: Path, hold: Hold) -> bool:
    """Try once; return False if it is another's. Where there are no locks, that is the end of it: it is not held."""
    with disk.importing:
        from filelock import Timeout

    try:
        disk.make_folder(path.parent)
        lock.acquire()
        hold.held = True
    except Timeout:
        return False
    except (OSError, NotImplementedError, ValueError) as error:  # ValueError: the lease of another version of cas
        log.info("no lock %s: %s", path.name, error)
    return True


def work_in(folder: Path) -> bool:
    """Whether flock keeps others out on a folder's disk; on some it fails, on some it does nothing and says nothing."""
    path = folder / f".locks.{secrets.token_hex(4)}"
    first = disk.create(path)
    try:
        import fcntl

        second = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError as error:
            log.info("no locks in %s: %s", folder, error)
        finally:
            os.close(second)
        return False
    except ImportError:
        return False
    finally:
        os.close(first)
        disk.unlink(path)


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


def is_abandoned(path: Path, *, by_age: bool | None = None) -> bool:
    """Whether the claim on this file has ended: its holder is dead.

    Where locks tell nothing of other hosts (`by_age`; default: as the mount says), it has ended when nothing in its
    folder changed for a day. False where it cannot be told: where locks are a silent no-op, a living holder looks dead.
    """
    if by_age is None:
        by_age = is_network(file_system(path.parent))
    if by_age:
        return _is_old(path.parent, QUIET)
    try:
        import fcntl

        first = _open_claim(path)
    except FileNotFoundError:
        return _is_old(path.parent, UNCLAIMED)  # killed before it was claimed; a living process claims at once
    except (OSError, ImportError):
        return False
    try:
        fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        second = _open_claim(path)
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


def _open_claim(path: Path) -> int:
    try:
        return disk.open_file(path, writing=True)
    except PermissionError:  # another user's, or in a home that we may only read
        return disk.open_file(path)


def _is_old(folder: Path, seconds: float) -> bool:
    """Whether nothing in a folder has changed for so long."""
    try:
        with os.scandir(folder) as entries:
            times = [entry.stat(follow_symlinks=False).st_mtime for entry in entries]
        return time.time() - max([folder.stat().st_mtime, *times]) > seconds
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
