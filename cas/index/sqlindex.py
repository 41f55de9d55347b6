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
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import xxhash

from cas.index import disk, lines
from cas.index.layout import Layout
from cas.index.owners import Owners
from cas.index.sqlconnection import Connection, DamagedIndexError, remove_index, turn
from cas.index.sqlschema import SCHEMA, VERSION
from cas.index.sqlsources import PlainFiles, brief_of, followed

log = logging.getLogger("cas.index")

T = TypeVar("T")

_ATTEMPTS = 3  # the file that was there, a fresh file, memory
_MAX_LOST = 6  # files that one process loses before it keeps its index in memory
_MOVES = 20  # times in a row that files of records are renamed while they are read
_OLD = 86_400  # seconds after which an unfinished index is one of a killed process
_CACHE = 64 << 10  # KiB of memory while an index is made: it is larger than what SQLite takes by itself
_AT_ONCE = 200  # texts that are looked for in one reading of a table, or keys with one query


class SqlIndex:
    """Facts by key, and records by registry, kind, id and parent; safe for threads and after a fork."""

    def __init__(
        self, layout: Layout, store_id: str, owners: Owners, *, folder: Path | None, shared: bool = False
    ) -> None:
        self._root = layout.root
        self._store_id = store_id
        self._plain = PlainFiles(layout, owners, shared=shared)
        self._folder = folder  # of the index's file; None: it is kept in memory
        self._by_pid: dict[int, Connection] = {}  # one inherited through a fork is kept open, but never used

    # --- questions -----------------------------------------------------------------------------------------

    def facts(self, kind: str, key: str) -> list[dict[str, Any]]:
        """Return the last fact of each host about one thing, by the hosts' names."""
        query = "SELECT line FROM fact JOIN source ON source = id WHERE kind = ? AND key = ? ORDER BY path"
        return [payload for (payload,) in self._rows(query, kind, key)]

    def facts_of(self, kind: str, keys: Iterable[str]) -> dict[str, list[dict[str, Any]]]:
        """Return what `facts` does, of many things, by their keys; the files are looked at once."""
        wanted = sorted(key for key in {*keys} if _is_unicode(key))  # as they lie in the table

        def ask(database: sqlite3.Connection) -> dict[str, list[dict[str, Any]]]:
            found: dict[str, list[dict[str, Any]]] = {}
            for at in range(0, len(wanted), _AT_ONCE):
                some = wanted[at : at + _AT_ONCE]
                query = (
                    "SELECT key, line FROM fact JOIN source ON source = id"
                    f" WHERE kind = ? AND key IN ({','.join('?' * len(some))}) ORDER BY path"
                )
                rows = database.execute(query, (kind, *some)).fetchall()
                for (key, _), payload in zip(rows, _payloads([line for _, line in rows]), strict=True):
                    if payload is not None:
                        found.setdefault(key, []).append(payload)
            return found

        return self._ask(ask)

    def facts_with(self, kind: str, texts: Iterable[str]) -> list[dict[str, Any]]:
        """Return the facts of a kind whose lines hold one of some texts, wherever: reads all of them."""
        wanted = list(dict.fromkeys(texts))

        def ask(database: sqlite3.Connection) -> list[dict[str, Any]]:
            found: list[dict[str, Any] | None] = []
            for at in range(0, len(wanted), _AT_ONCE):
                some = wanted[at : at + _AT_ONCE]
                holds = " OR ".join(["instr(line, CAST(? AS BLOB))"] * len(some))
                query = f"SELECT line FROM fact WHERE kind = ? AND ({holds})"
                found += [_payload(line) for (line,) in database.execute(query, (kind, *some))]
            return [payload for payload in found if payload is not None]

        return self._ask(ask)

    def record(self, registry: str, kind: str, id: str) -> dict[str, Any] | None:
        """Return the line last seen of one thing of a registry."""
        found = self._rows("SELECT line FROM record WHERE registry = ? AND kind = ? AND id = ?", registry, kind, id)
        return found[0][0] if found else None

    def registries_with(self, kind: str, id: str) -> list[str]:
        """Return the registries that know a thing, in order of name."""
        # The few registries first, each found behind the one before: their records are many.
        query = (
            "WITH RECURSIVE every (registry) AS (SELECT min(registry) FROM record UNION ALL"
            " SELECT (SELECT min(record.registry) FROM record WHERE record.registry > every.registry) FROM every"
            " WHERE every.registry IS NOT NULL) SELECT line, registry FROM every CROSS JOIN record USING (registry)"
            " WHERE kind = ? AND id = ? ORDER BY registry"
        )
        return [registry for _, registry in self._rows(query, kind, id)]

    def records(
        self, kind: str, *, registry: str | None = None, parent: str | None = None
    ) -> list[tuple[str, dict[str, Any]]]:
        """Return `(registry, line)` of all things of a kind, of one registry and below one parent if given."""
        query = "SELECT line, registry FROM record"
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
        return [(name, payload) for payload, name in self._rows(query, *values)]

    def page(self, kind: str, *, registry: str, after: str, limit: int) -> list[dict[str, Any]]:
        """Return the lines of a registry's things of a kind, in order of id: the first ones behind an id."""
        query = "SELECT line FROM record WHERE registry = ? AND kind = ? AND id > ? ORDER BY id LIMIT ?"

        def ask(database: sqlite3.Connection) -> list[dict[str, Any]]:
            rows = database.execute(query, (registry, kind, after, limit)).fetchall()
            return [payload for (line,) in rows if (payload := _payload(line)) is not None]

        return self._ask(ask)

    def counts(self) -> dict[str, dict[str, tuple[int, float]]]:
        """Return of each registry and kind how many things there are, and when the last was seen."""
        query = "SELECT registry, kind, count(*), max(seen) FROM record GROUP BY registry, kind"

        def ask(database: sqlite3.Connection) -> dict[str, dict[str, tuple[int, float]]]:
            found: dict[str, dict[str, tuple[int, float]]] = {}
            for registry, kind, count, seen in database.execute(query):
                found.setdefault(registry, {})[kind] = (count, seen)
            return found

        return self._ask(ask)

    def ids(self, kind: str, *, registry: str, parent: str) -> list[str]:
        """Return the ids of a registry's things of a kind below a parent, in order; no line is read."""
        query = "SELECT id FROM parent WHERE parent = ? AND kind = ? AND registry = ? ORDER BY id"
        if not all(map(_is_unicode, (kind, registry, parent))):
            return []
        return self._ask(lambda database: [id for (id,) in database.execute(query, (parent, kind, registry))])

    def briefs(self, kind: str, *, registry: str, parent: str) -> list[list[Any]]:
        """Return `[id, member…]` of a registry's things below a parent, by id: the members that `BRIEF` names."""
        query = "SELECT brief, id FROM parent WHERE parent = ? AND kind = ? AND registry = ? ORDER BY id"
        if not all(map(_is_unicode, (kind, registry, parent))):
            return []

        def ask(database: sqlite3.Connection) -> list[list[Any]]:
            rows = database.execute(query, (parent, kind, registry)).fetchall()
            found: list[list[Any]] = _members([brief for brief, _ in rows if brief is not None])
            if len(found) == len(rows):
                return found
            whole = [brief_of(self._line(database, registry, kind, id)) for brief, id in rows if brief is None]
            return sorted(found + [one for one in whole if one is not None], key=lambda one: str(one[0]))

        return self._ask(ask)

    @staticmethod
    def _line(database: sqlite3.Connection, registry: str, kind: str, id: str) -> dict[str, Any] | None:
        query = "SELECT line FROM record WHERE registry = ? AND kind = ? AND id = ?"
        row = database.execute(query, (registry, kind, id)).fetchone()
        return None if row is None else _payload(row[0])

    # --- what manifests say --------------------------------------------------------------------------------

    def trees(self) -> dict[str, bytes]:
        """Return what was kept of manifests, by the hex of their digests."""
        check = xxhash.xxh3_64_digest

        def ask(database: sqlite3.Connection) -> dict[str, bytes]:
            found = {}
            for hex, row in database.execute("SELECT manifest, row FROM tree"):
                if not isinstance(row, bytes) or check(f"{hex}".encode() + row[8:]) != row[:8]:
                    raise DamagedIndexError("a row in it is damaged")
                found[hex] = row[8:]
            return found

        return self._ask(ask)

    def keep_trees(self, trees: Mapping[str, bytes], *, forget: Iterable[str] = ()) -> None:
        """Keep what manifests say, and forget what others said; where that is not possible, nothing is lost."""
        rows = [(hex, xxhash.xxh3_64_digest(hex.encode() + row) + row) for hex, row in trees.items()]
        with turn:
            connection = self._connection()
            try:
                with connection.writing() as database:
                    database.executemany("DELETE FROM tree WHERE manifest = ?", [(hex,) for hex in forget])
                    database.executemany("INSERT OR REPLACE INTO tree (manifest, row) VALUES (?, ?)", rows)
            except (sqlite3.Error, DamagedIndexError) as error:
                log.info("what manifests say is not kept: %s", error)

    # --- the catalog ---------------------------------------------------------------------------------------

    def live_bytes(self, files: Iterable[Path]) -> int:
        """Return how many bytes of some files of records are lines that count."""
        query = "SELECT sum(length(line)) FROM record WHERE source = (SELECT id FROM source WHERE path = ?)"
        wanted = [name for name in map(self._plain.name_of, files) if _is_unicode(name)]
        return self._ask(lambda database: sum(database.execute(query, (one,)).fetchone()[0] or 0 for one in wanted))

    def close(self) -> None:
        """Close this process's connection."""
        with turn:
            self._connection().close()

    def _rows(self, query: str, *values: str) -> list[tuple[Any, ...]]:
        """Return the rows of a query, whose first column is a line, with the line's payload."""
        if not all(map(_is_unicode, values)):  # nothing of the kind was ever written
            return []

        def ask(database: sqlite3.Connection) -> list[tuple[Any, ...]]:
            rows = [(_payload(row[0]), *row[1:]) for row in database.execute(query, values)]
            return [row for row in rows if row[0] is not None]

        return self._ask(ask)

    # --- the file ------------------------------------------------------------------------------------------

    def _connection(self) -> Connection:
        pid = os.getpid()
        return self._by_pid.get(pid) or self._by_pid.setdefault(pid, Connection())

    def _ask(self, question: Callable[[sqlite3.Connection], T]) -> T:
        with turn:
            connection = self._connection()
            for attempt in range(_ATTEMPTS):
                last = attempt == _ATTEMPTS - 1
                try:
                    if connection.database is None:
                        self._open(connection, memory=last or connection.lost > _MAX_LOST)
                    self._refresh(connection)
                    return connection.read(question)
                except (sqlite3.Error, DamagedIndexError) as error:
                    if last:
                        raise
                    log.info("the index is made again: %s", error)
                    connection.discard()
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _open(self, connection: Connection, *, memory: bool) -> None:
        if not memory and self._folder is not None and disk.boot_id() is not None:
            for path in self._files(self._folder):
                try:
                    self._connect(connection, path)
                    return
                except (OSError, sqlite3.Error, DamagedIndexError) as error:
                    log.info("%s is not used: %s", path.name, error)
                    connection.discard()
            try:
                self._connect(connection, self._make(self._folder))
                return
            except (OSError, sqlite3.Error, DamagedIndexError) as error:
                log.info("the index is kept in memory: %s", error)
                connection.discard()
        connection.open(None)
        with connection.writing() as database:
            self._create(database)

    def _files(self, folder: Path) -> list[Path]:
        """Return the index files that are ours; what another user made is left to that user."""
        found = []
        for path in sorted(folder.glob(f"index-{VERSION}-*.sqlite3")):
            with contextlib.suppress(OSError):
                if disk.is_ours(path.stat()):
                    found.append(path)
        return found

    def _make(self, folder: Path) -> Path:
        """Make an index of everything in the plain files; it gets its name when it is complete."""
        if folder != self._root:
            disk.make_folder(folder, 0o700)
        for old in folder.glob(f"index-{VERSION}-*.new"):
            with contextlib.suppress(OSError):
                if time.time() - old.stat().st_mtime > _OLD:
                    remove_index(old)
        new = folder / f"index-{VERSION}-{secrets.token_hex(4)}.new"
        maker = Connection()
        try:
            maker.open(new)
            maker.enlarge(_CACHE)
            with maker.writing(first=True) as database:
                self._create(database)
            path = new.with_suffix(".sqlite3")
            maker.close()
            disk.unlink(new.with_name(f"{new.name}-journal"))
            disk.rename(new, path)
        except BaseException:
            maker.discard()
            raise
        return path

    def _create(self, database: sqlite3.Connection) -> None:
        for statement in SCHEMA.split("\n\n"):
            database.execute(statement)
        database.execute("INSERT INTO meta VALUES (?, ?)", (self._store_id, disk.boot_id()))
        database.execute(f"PRAGMA user_version = {VERSION}")
        self._plain.follow(database, self._plain.sources())

    def _connect(self, connection: Connection, path: Path) -> None:
        connection.open(path)
        expected = [(VERSION, self._store_id, disk.boot_id())]

        def ask(database: sqlite3.Connection) -> object:
            found = database.execute("PRAGMA user_version").fetchone()[0]
            return [(found, *row) for row in database.execute("SELECT store, boot FROM meta")]

        if connection.read(ask) != expected:
            raise DamagedIndexError("it is of another version, another store's, or from before a reboot")

    # --- following the files ---------------------------------------------------------------------------------

    def _refresh(self, connection: Connection) -> None:
        """Read what was appended since the last question.

        A file that is renamed while its folder is listed may be missing in that listing, and one that was written
        anew may be gone when it is to be read: then the names have changed, and everything is looked at again.
        """
        sources = self._plain.sources()
        for _ in range(_MOVES):
            if sources == connection.sources:
                return
            if connection.read(followed) != sources:
                with connection.writing() as database:
                    self._plain.follow(database, sources)
            before, connection.sources = sources, sources
            sources = self._plain.sources()
            if sources.keys() == before.keys():
                return


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


# --- rows ----------------------------------------------------------------------------------------------------


def _members(briefs: list[bytes]) -> list[Any]:
    """Read many briefs; one parse of all of them is several times as fast as one of each."""
    import orjson  # a quarter of the time that `json` takes: this is most of what a choice among 10,000 costs

    digest = xxhash.xxh3_64_digest
    bodies = [brief[8:] for brief in briefs]
    if any(digest(body) != brief[:8] for body, brief in zip(bodies, briefs, strict=True)):
        raise DamagedIndexError("a line in it is damaged")
    found: list[Any] = orjson.loads(b"[" + b",".join(bodies) + b"]")
    return found


def _payload(raw: object) -> dict[str, Any] | None:
    """Return what a row's line says; None if that cannot be read."""
    if not isinstance(raw, bytes) or not lines.is_whole(raw):
        raise DamagedIndexError("a line in it is damaged")
    return lines.decode(raw)


def _payloads(raws: list[Any]) -> list[dict[str, Any] | None]:
    """Return what `_payload` does, of many rows."""
    if not all(isinstance(raw, bytes) and lines.is_whole(raw) for raw in raws):
        raise DamagedIndexError("a line in it is damaged")
    return lines.decode_whole(raws)
