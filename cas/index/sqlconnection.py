"""One process's connection to the SQLite index: to its file, which nobody else may write to, or to one in memory.

Garbage in a database need not be an error: a row whose key was overwritten is a row that is not found. So every
change by us ends with setting the file's modification time to a value that no clock shows, while nobody else can
write; a reader that finds another time after it has read knows that somebody else wrote to the file.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from cas.index import disk
from cas.index.sqlsources import Sources

T = TypeVar("T")

BUSY_SECONDS = 5.0  # then another index is made: the holder may be a stopped process
UNTOUCHED = 1_000_000_000 * 10**9  # nanoseconds since 1970, a day in 2001: the time of an index as we left it


class DamagedIndexError(Exception):
    """The index file is not what we wrote; make another."""


class Connection:
    """One process's connection; its threads take turns."""

    def __init__(self) -> None:
        self.database: sqlite3.Connection | None = None
        self.path: Path | None = None
        self.sources: Sources = {}  # as they were when all of them was in the index
        self.lost = 0
        self._inode = 0

    def open(self, path: Path | None) -> None:
        """Open a file (or one in memory), which may be new."""
        self.path, self.sources = path, {}
        self.database = sqlite3.connect(
            path or ":memory:", timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        # From Python 3.13 on, one that is left open is warned of. At the end of the process a thread may still ask.
        self._closing = weakref.finalize(self, _close, self.database, os.getpid())
        self._closing.atexit = False
        self._inode = 0 if path is None else os.stat(path).st_ino
        # Not synced: after a power cut the boot has changed, and the index is made again. No WAL: its shared
        # memory file kills a process (SIGBUS) when somebody truncates it.
        for pragma in ("synchronous = OFF", "journal_mode = TRUNCATE", "cell_size_check = ON"):
            self.database.execute(f"PRAGMA {pragma}")

    def enlarge(self, cache: int) -> None:
        """Give the connection more memory (KiB)."""
        self._opened().execute(f"PRAGMA cache_size = -{cache}")

    def read(self, question: Callable[[sqlite3.Connection], T]) -> T:
        """Ask, and look whether the file was ours all the while: no other process of ours writes meanwhile."""
        database = self._opened()
        database.execute("BEGIN")
        try:
            answer = question(database)
            self._check_untouched()
            return answer
        finally:
            with contextlib.suppress(sqlite3.Error):
                database.execute("ROLLBACK")

    @contextlib.contextmanager
    def writing(self, *, first: bool = False) -> Iterator[sqlite3.Connection]:
        """Change the index in one transaction; it is locked until the file has its time."""
        database = self._opened()
        try:
            database.execute("BEGIN IMMEDIATE")
            # Only now: before, two writers would wait for each other, each with a shared lock that it keeps.
            database.execute("PRAGMA locking_mode = EXCLUSIVE").fetchall()
            if not first:
                self._check_untouched()
            yield database
            disk.step("sqlite commit")
            database.execute("COMMIT")
            self._mark_untouched()
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                database.execute("ROLLBACK")
            raise
        finally:
            with contextlib.suppress(sqlite3.Error):
                database.execute("PRAGMA locking_mode = NORMAL").fetchall()
                database.execute("SELECT count(*) FROM sqlite_master").fetchall()  # only this lets go of the lock

    def _opened(self) -> sqlite3.Connection:
        if self.database is None:
            raise DamagedIndexError("it is not open")
        return self.database

    def _mark_untouched(self) -> None:
        if self.path is not None:
            try:
                disk.set_time(self.path, UNTOUCHED)
            except OSError as error:
                raise DamagedIndexError(f"it was removed: {error}") from error

    def _check_untouched(self) -> None:
        if self.path is None:
            return
        try:
            stat = os.stat(self.path)
        except OSError as error:
            raise DamagedIndexError(f"it was removed: {error}") from error
        if (stat.st_ino, stat.st_mtime_ns) != (self._inode, UNTOUCHED):
            raise DamagedIndexError("somebody else wrote to it")

    def discard(self) -> None:
        """Close the connection, and remove its file if it is still the one that was opened."""
        path, self.path = self.path, None
        self.lost += 1
        self.close()
        if path is not None:
            with contextlib.suppress(OSError):
                if os.stat(path).st_ino == self._inode:
                    remove_index(path)

    def close(self) -> None:
        """Close the connection; it is opened again when it is needed."""
        if self.database is not None:
            self._closing()
        self.database = None


def _close(database: sqlite3.Connection, owner: int) -> None:
    if os.getpid() == owner:  # not what was inherited through a fork: that would end a transaction of the parent's
        with contextlib.suppress(sqlite3.Error):
            database.close()


def remove_index(path: Path) -> None:
    """Remove an index's file, with those that SQLite puts beside it."""
    for suffix in ("", "-journal", "-wal", "-shm"):
        with contextlib.suppress(OSError):
            disk.unlink(path.with_name(path.name + suffix))


# --- forks ---------------------------------------------------------------------------------------------------
# A child must not inherit SQLite's own locks (of its allocator, of its list of open files) in the middle of another
# thread's work: it would wait for them for ever. So threads use SQLite one at a time, and a fork waits for its turn.

turn = threading.RLock()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=turn.acquire, after_in_parent=turn.release, after_in_child=turn.release)
