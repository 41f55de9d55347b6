"""The SQLite index over facts and records: an accelerator that follows the plain files and may vanish.

Whatever happens to its file (deleted, truncated, garbage, another version, locked by a stopped process), the
answers stay the same: it is made again from the plain files, in memory if it must be.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from cas.index import disk, lines
from cas.index.layout import unquote_registry
from cas.index.sqlschema import SCHEMA, VERSION

log = logging.getLogger("cas.index")

T = TypeVar("T")

BUSY_SECONDS = 5.0  # then a private index in memory is used: the holder may be a stopped process
_ATTEMPTS = 3  # the file that was there, a fresh file, memory


class _DamagedIndexError(Exception):
    """The index file is not what we wrote; make another."""


class SqlIndex:
    """Facts by key, and records by registry, kind, id and parent; safe for threads and after a fork."""

    def __init__(self, root: Path, store_id: str) -> None:
        self._root = root
        self._store_id = store_id
        self._state = _State()

    # --- questions -----------------------------------------------------------------------------------------

    def facts(self, kind: str, key: str, *, refresh: bool = True) -> list[dict[str, Any]]:
        """Return the last fact of each host about one thing."""
        query = "SELECT line FROM fact WHERE kind = ? AND key = ?"
        return self._ask(lambda database: _payloads(database, query, (kind, key)), refresh=refresh)

    def record(self, registry: str, kind: str, id: str) -> dict[str, Any] | None:
        """Return the line last seen of one thing of a registry."""
        query = "SELECT line FROM record WHERE registry = ? AND kind = ? AND id = ?"
        found = self._ask(lambda database: _payloads(database, query, (registry, kind, id)))
        return found[0] if found else None

    def registries_with(self, kind: str, id: str) -> list[str]:
        """Return the registries that know a thing, in order of name."""
        query = "SELECT registry FROM record WHERE kind = ? AND id = ? ORDER BY registry"
        return self._ask(lambda database: [row[0] for row in database.execute(query, (kind, id))])

    def records(
        self, kind: str, *, registry: str | None = None, parent: str | None = None
    ) -> list[tuple[str, dict[str, Any]]]:
        """Return `(registry, line)` of all things of a kind, of one registry and below one parent if given."""
        query = "SELECT registry, line FROM record"
        terms: list[str] = ["kind = ?"]
        values: list[str] = [kind]
        if parent is not None:
            query += " JOIN parent USING (kind, registry, id)"
            terms.append("parent = ?")
            values.append(parent)
        if registry is not None:
            terms.append("registry = ?")
            values.append(registry)
        query += " WHERE " + " AND ".join(terms) + " ORDER BY registry, id"

        def ask(database: sqlite3.Connection) -> list[tuple[str, dict[str, Any]]]:
            return [(name, _payload(line)) for name, line in database.execute(query, values)]

        return self._ask(ask)

    def close(self) -> None:
        """Close this process's connection."""
        self._state.here().close()

    # --- following the files ---------------------------------------------------------------------------------

    def _ask(self, question: Callable[[sqlite3.Connection], T], *, refresh: bool = True) -> T:
        connection = self._state.here()
        with connection.lock:
            for attempt in range(_ATTEMPTS):
                try:
                    if connection.database is None:
                        last = attempt == _ATTEMPTS - 1
                        connection.database, connection.path = self._open(memory=last)
                        refresh = True
                    if refresh:
                        self._refresh(connection.database)
                    return question(connection.database)
                except (sqlite3.Error, _DamagedIndexError, ValueError) as error:
                    log.info("the index is made again: %s", error)
                    if attempt == _ATTEMPTS - 1:
                        raise
                    locked = isinstance(error, sqlite3.OperationalError) and "locked" in str(error)
                    connection.discard(remove=not locked)
                    if locked:
                        connection.database, connection.path = self._open(memory=True)
                        refresh = True
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _open(self, *, memory: bool) -> tuple[sqlite3.Connection, Path | None]:
        if not memory and disk.boot_id() is not None:
            for path in sorted(self._root.glob(f"index-{VERSION}-*.sqlite3")):
                with contextlib.suppress(sqlite3.Error, _DamagedIndexError):
                    return self._connect(path), path
                _remove(path)
            path = self._root / f"index-{VERSION}-{secrets.token_hex(4)}.sqlite3"
            if os.access(self._root, os.W_OK):
                with contextlib.suppress(sqlite3.Error):
                    return self._connect(path), path
        return self._connect(None), None

    def _connect(self, path: Path | None) -> sqlite3.Connection:
        if path is not None and path.exists() and not os.access(path, os.W_OK):
            raise _DamagedIndexError("cannot be written")
        database = sqlite3.connect(
            path or ":memory:", timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            # Not synced: after a power cut the boot has changed, and the index is made again. No WAL: its shared
            # memory file kills a process (SIGBUS) when somebody truncates it.
            database.execute("PRAGMA synchronous = OFF")
            database.execute("PRAGMA journal_mode = TRUNCATE")
            database.execute("PRAGMA cell_size_check = ON")
            with _transaction(database):
                found = database.execute("PRAGMA user_version").fetchone()[0]
                empty = not database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
                if found == 0 and empty:
                    for statement in SCHEMA.split("\n\n"):
                        database.execute(statement)
                    database.execute("INSERT INTO meta VALUES (?, ?)", (self._store_id, disk.boot_id()))
                    database.execute(f"PRAGMA user_version = {VERSION}")
                elif found != VERSION:
                    raise _DamagedIndexError(f"its version is {found}")
                elif database.execute("SELECT store, boot FROM meta").fetchall() != [(self._store_id, disk.boot_id())]:
                    raise _DamagedIndexError("it is another store's, or from before a reboot")
        except BaseException:
            database.close()
            raise
        return database

    def _refresh(self, database: sqlite3.Connection) -> None:
        known = {path: (id, inode, offset) for id, path, inode, offset in database.execute("SELECT * FROM source")}
        changed = []
        for path in self._sources():
            name = path.relative_to(self._root).as_posix()
            try:
                stat = path.stat()
            except FileNotFoundError:
                continue
            row = known.get(name)
            if row is None or row[1:] != (stat.st_ino, stat.st_size):
                changed.append(name)
        gone = [name for name in known if not (self._root / name).exists()]
        if not changed and not gone:
            return
        with _transaction(database):
            for name in changed:
                self._follow(database, name)
            for name in gone:
                _forget(database, name)

    def _sources(self) -> Iterator[Path]:
        mine = {os.geteuid(), 0} if hasattr(os, "geteuid") else None
        for folder in ("facts", "records/*"):
            for path in sorted(self._root.glob(f"{folder}/*.jsonl")):
                # What another user wrote is no proof of anything (invariant 4).
                if mine is None or path.stat().st_uid in mine:
                    yield path

    def _follow(self, database: sqlite3.Connection, name: str) -> None:
        path = self._root / name
        stat = path.stat()
        row = database.execute("SELECT id, inode, offset FROM source WHERE path = ?", (name,)).fetchone()
        if row is not None and (row[1] != stat.st_ino or row[2] > stat.st_size):
            _forget(database, name)
            row = None
        if row is None:
            add = "INSERT INTO source (path, inode, offset) VALUES (?, ?, 0)"
            source, offset = database.execute(add, (name, stat.st_ino)).lastrowid, 0
        else:
            source, offset = row[0], row[2]
        registry = unquote_registry(path.parent.name) if name.startswith("records/") else None
        end = offset
        for line in lines.read(path, offset):
            end = line.end
            if registry is None:
                _add_fact(database, source, line)
            else:
                _add_record(database, source, registry, line)
        database.execute("UPDATE source SET offset = ? WHERE id = ?", (end, source))


class _Connection:
    """One process's connection, and the lock that its threads take turns by."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.database: sqlite3.Connection | None = None
        self.path: Path | None = None

    def discard(self, *, remove: bool) -> None:
        self.close()
        if remove and self.path is not None:
            _remove(self.path)
        self.path = None

    def close(self) -> None:
        if self.database is not None:
            with contextlib.suppress(sqlite3.Error):
                self.database.close()
        self.database = None


class _State:
    """The connection of this process; one inherited through a fork is kept open, but never used."""

    def __init__(self) -> None:
        self._by_pid: dict[int, _Connection] = {}

    def here(self) -> _Connection:
        return self._by_pid.setdefault(os.getpid(), _Connection())


@contextlib.contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        disk.step("sqlite commit")
        database.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            database.execute("ROLLBACK")
        raise


def _add_fact(database: sqlite3.Connection, source: int | None, line: lines.Line) -> None:
    kind, key = line.payload.get("kind"), line.payload.get("key")
    if isinstance(kind, str) and isinstance(key, str):
        add = "INSERT OR REPLACE INTO fact (kind, key, source, line) VALUES (?, ?, ?, ?)"
        database.execute(add, (kind, key, source, line.raw))


def _add_record(database: sqlite3.Connection, source: int | None, registry: str, line: lines.Line) -> None:
    kind, id, seen = (line.payload.get(name) for name in ("kind", "id", "seen"))
    parents = line.payload.get("parents", [])
    if not isinstance(kind, str) or not isinstance(id, str) or not isinstance(seen, int | float):
        return
    add = (
        "INSERT INTO record (registry, kind, id, seen, source, line) VALUES (?, ?, ?, ?, ?, ?)"
        " ON CONFLICT DO UPDATE SET seen = excluded.seen, source = excluded.source, line = excluded.line"
        " WHERE excluded.seen >= record.seen"
    )
    if database.execute(add, (registry, kind, id, float(seen), source, line.raw)).rowcount:
        database.execute("DELETE FROM parent WHERE kind = ? AND registry = ? AND id = ?", (kind, registry, id))
        rows = [(parent, kind, registry, id) for parent in parents if isinstance(parent, str)]
        database.executemany("INSERT OR IGNORE INTO parent VALUES (?, ?, ?, ?)", rows)


def _forget(database: sqlite3.Connection, name: str) -> None:
    row = database.execute("SELECT id FROM source WHERE path = ?", (name,)).fetchone()
    if row is None:
        return
    if name.startswith("records/"):
        # An older line of another file may be the last one now: read all files of records again.
        database.execute("DELETE FROM record")
        database.execute("DELETE FROM parent")
        database.execute("UPDATE source SET offset = 0 WHERE path LIKE 'records/%'")
    database.execute("DELETE FROM fact WHERE source = ?", (row[0],))
    database.execute("DELETE FROM source WHERE id = ?", (row[0],))


def _payloads(database: sqlite3.Connection, query: str, values: tuple[str, ...]) -> list[dict[str, Any]]:
    return [_payload(row[0]) for row in database.execute(query, values)]


def _payload(raw: object) -> dict[str, Any]:
    payload = lines.decode(raw) if isinstance(raw, bytes) else None
    if payload is None:
        raise _DamagedIndexError("a line in it is damaged")
    return payload


def _remove(path: Path) -> None:
    for suffix in ("", "-journal", "-wal", "-shm"):
        with contextlib.suppress(OSError):
            disk.unlink(path.with_name(path.name + suffix))
