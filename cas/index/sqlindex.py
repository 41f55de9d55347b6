"""The SQLite index over facts and records: an accelerator that follows the plain files and may vanish.

Whatever happens to its file (deleted, truncated, garbage, another version, locked by a stopped process), the
answers stay the same: it is made again from the plain files, in memory if it must be.

Garbage in a database need not be an error: a row whose key was overwritten is a row that is not found. So every
change by us ends with setting the file's modification time to a value that no clock shows, while nobody else can
write; a reader that finds another time after it has read knows that somebody else wrote to the file.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from operator import itemgetter
from pathlib import Path
from stat import S_ISREG
from typing import Any, TypeVar

import xxhash

from cas.index import disk, lines
from cas.index.layout import Layout, unquote_registry
from cas.index.owners import Owners
from cas.index.sqlschema import BRIEF, MAX_BRIEF, SCHEMA, VERSION

log = logging.getLogger("cas.index")

T = TypeVar("T")

BUSY_SECONDS = 5.0  # then another index is made: the holder may be a stopped process
UNTOUCHED = 1_000_000_000 * 10**9  # nanoseconds since 1970, a day in 2001: the time of an index as we left it
_ATTEMPTS = 3  # the file that was there, a fresh file, memory
_MAX_LOST = 6  # files that one process loses before it keeps its index in memory
_MOVES = 20  # times in a row that files of records are renamed while they are read
_MAX_COLLEAGUES = 1 << 30  # bytes of a colleague's file of records: a larger one is no honest one, and is not read
_OLD = 86_400  # seconds after which an unfinished index is one of a killed process

Sources = Mapping[str, tuple[str, int]]  # path below the home -> inode, size


class _DamagedIndexError(Exception):
    """The index file is not what we wrote; make another."""


_FOLLOWED = 500  # lines that are added together
_CACHE = 64 << 10  # KiB of memory while an index is made: it is larger than what SQLite takes by itself
_AT_ONCE = 200  # texts that are looked for in one reading of a table, or keys with one query


class SqlIndex:
    """Facts by key, and records by registry, kind, id and parent; safe for threads and after a fork."""

    def __init__(
        self, layout: Layout, store_id: str, owners: Owners, *, folder: Path | None, shared: bool = False
    ) -> None:
        self._layout = layout
        self._root = layout.root
        self._store_id = store_id
        self._owners = owners
        self._folder = folder  # of the index's file; None: it is kept in memory
        self._shared = shared  # the records of all members count
        self._by_pid: dict[int, _Connection] = {}  # one inherited through a fork is kept open, but never used

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
            whole = [_brief_of(self._line(database, registry, kind, id)) for brief, id in rows if brief is None]
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
                    raise _DamagedIndexError("a row in it is damaged")
                found[hex] = row[8:]
            return found

        return self._ask(ask)

    def keep_trees(self, trees: Mapping[str, bytes], *, forget: Iterable[str] = ()) -> None:
        """Keep what manifests say, and forget what others said; where that is not possible, nothing is lost."""
        rows = [(hex, xxhash.xxh3_64_digest(hex.encode() + row) + row) for hex, row in trees.items()]
        with _turn:
            connection = self._connection()
            try:
                with connection.writing() as database:
                    database.executemany("DELETE FROM tree WHERE manifest = ?", [(hex,) for hex in forget])
                    database.executemany("INSERT OR REPLACE INTO tree (manifest, row) VALUES (?, ?)", rows)
            except (sqlite3.Error, _DamagedIndexError) as error:
                log.info("what manifests say is not kept: %s", error)

    # --- the catalog ---------------------------------------------------------------------------------------

    def live_bytes(self, files: Iterable[Path]) -> int:
        """Return how many bytes of some files of records are lines that count."""
        query = "SELECT sum(length(line)) FROM record WHERE source = (SELECT id FROM source WHERE path = ?)"
        wanted = [name for name in map(self._name_of, files) if _is_unicode(name)]
        return self._ask(lambda database: sum(database.execute(query, (one,)).fetchone()[0] or 0 for one in wanted))

    def close(self) -> None:
        """Close this process's connection."""
        with _turn:
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

    def _connection(self) -> _Connection:
        pid = os.getpid()
        return self._by_pid.get(pid) or self._by_pid.setdefault(pid, _Connection())

    def _ask(self, question: Callable[[sqlite3.Connection], T]) -> T:
        with _turn:
            connection = self._connection()
            for attempt in range(_ATTEMPTS):
                last = attempt == _ATTEMPTS - 1
                try:
                    if connection.database is None:
                        self._open(connection, memory=last or connection.lost > _MAX_LOST)
                    self._refresh(connection)
                    return connection.read(question)
                except (sqlite3.Error, _DamagedIndexError) as error:
                    if last:
                        raise
                    log.info("the index is made again: %s", error)
                    connection.discard()
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _open(self, connection: _Connection, *, memory: bool) -> None:
        if not memory and self._folder is not None and disk.boot_id() is not None:
            for path in self._files(self._folder):
                try:
                    self._connect(connection, path)
                    return
                except (OSError, sqlite3.Error, _DamagedIndexError) as error:
                    log.info("%s is not used: %s", path.name, error)
                    connection.discard()
            try:
                self._connect(connection, self._make(self._folder))
                return
            except (OSError, sqlite3.Error, _DamagedIndexError) as error:
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
                    _remove(old)
        new = folder / f"index-{VERSION}-{secrets.token_hex(4)}.new"
        maker = _Connection()
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
        self._follow_all(database, self._sources())

    def _connect(self, connection: _Connection, path: Path) -> None:
        connection.open(path)
        expected = [(VERSION, self._store_id, disk.boot_id())]

        def ask(database: sqlite3.Connection) -> object:
            found = database.execute("PRAGMA user_version").fetchone()[0]
            return [(found, *row) for row in database.execute("SELECT store, boot FROM meta")]

        if connection.read(ask) != expected:
            raise _DamagedIndexError("it is of another version, another store's, or from before a reboot")

    # --- following the files ---------------------------------------------------------------------------------

    def _refresh(self, connection: _Connection) -> None:
        """Read what was appended since the last question.

        A file that is renamed while its folder is listed may be missing in that listing, and one that was written
        anew may be gone when it is to be read: then the names have changed, and everything is looked at again.
        """
        sources = self._sources()
        for _ in range(_MOVES):
            if sources == connection.sources:
                return
            if connection.read(_followed) != sources:
                with connection.writing() as database:
                    self._follow_all(database, sources)
            before, connection.sources = sources, sources
            sources = self._sources()
            if sources.keys() == before.keys():
                return

    def _sources(self) -> Sources:
        """Return the files of facts and records that count, by their path below the home (elsewhere: absolute).

        What another user wrote proves nothing (invariant 4). But in a group's store everybody adds to the catalog.
        """
        found = {}
        for base in dict.fromkeys((self._root, self._layout.notes)):
            for folder in ["facts", *(f"records/{name}" for name in disk.names(base / "records"))]:
                for name in disk.names(base / folder):
                    if name.endswith(".jsonl"):
                        with contextlib.suppress(OSError):
                            path = base / folder / name
                            stat = os.lstat(path)
                            if self._counts(path, stat, is_record=folder != "facts"):
                                found[self._name_of(path)] = (str(stat.st_ino), stat.st_size)
        return found

    def _name_of(self, file: Path) -> str:
        return os.fspath(file.relative_to(self._root) if file.is_relative_to(self._root) else file)

    def _counts(self, path: Path, stat: os.stat_result, *, is_record: bool) -> bool:
        if self._owners.believe(stat):
            return True
        if not (self._shared and is_record and S_ISREG(stat.st_mode) and stat.st_size <= _MAX_COLLEAGUES):
            return False
        return os.access(path, os.R_OK)

    def _follow_all(self, database: sqlite3.Connection, sources: Sources) -> None:
        for name, (_, inode, offset) in _known(database).items():
            if name not in sources or sources[name][0] != inode or sources[name][1] < offset:
                _forget(database, name)
        known = _known(database)
        for name, (inode, size) in sources.items():
            if name not in known:
                database.execute("INSERT INTO source (path, inode, offset) VALUES (?, ?, 0)", (name, inode))
            elif known[name][2] == size:
                continue
            self._follow(database, name)

    def _follow(self, database: sqlite3.Connection, name: str) -> None:
        source, offset = database.execute("SELECT id, offset FROM source WHERE path = ?", (name,)).fetchone()
        path = self._root / name
        registry = _registry_of(name)
        try:
            found = lines.read(path, offset)
            while some := list(islice(found, _FOLLOWED)):
                if registry is None:
                    _add_facts(database, source, some)
                else:
                    for line in some:
                        with _sayable(name):
                            _add_record(database, source, registry, line)
                offset = some[-1].end
        except FileNotFoundError:
            log.info("%s was written anew meanwhile", path)
        except OSError as error:
            log.warning("%s cannot be read, so what it says is not known: %s", path, error)
        database.execute("UPDATE source SET offset = ? WHERE id = ?", (offset, source))


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


class _Connection:
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
            raise _DamagedIndexError("it is not open")
        return self.database

    def _mark_untouched(self) -> None:
        if self.path is not None:
            try:
                disk.set_time(self.path, UNTOUCHED)
            except OSError as error:
                raise _DamagedIndexError(f"it was removed: {error}") from error

    def _check_untouched(self) -> None:
        if self.path is None:
            return
        try:
            stat = os.stat(self.path)
        except OSError as error:
            raise _DamagedIndexError(f"it was removed: {error}") from error
        if (stat.st_ino, stat.st_mtime_ns) != (self._inode, UNTOUCHED):
            raise _DamagedIndexError("somebody else wrote to it")

    def discard(self) -> None:
        """Close the connection, and remove its file if it is still the one that was opened."""
        path, self.path = self.path, None
        self.lost += 1
        self.close()
        if path is not None:
            with contextlib.suppress(OSError):
                if os.stat(path).st_ino == self._inode:
                    _remove(path)

    def close(self) -> None:
        """Close the connection; it is opened again when it is needed."""
        if self.database is not None:
            with contextlib.suppress(sqlite3.Error):
                self.database.close()
        self.database = None


# --- forks ---------------------------------------------------------------------------------------------------
# A child must not inherit SQLite's own locks (of its allocator, of its list of open files) in the middle of another
# thread's work: it would wait for them for ever. So threads use SQLite one at a time, and a fork waits for its turn.

_turn = threading.RLock()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_turn.acquire, after_in_parent=_turn.release, after_in_child=_turn.release)


# --- rows ----------------------------------------------------------------------------------------------------


def _known(database: sqlite3.Connection) -> dict[str, tuple[int, str, int]]:
    rows = database.execute("SELECT path, id, inode, offset FROM source")
    return {path: (id, inode, offset) for path, id, inode, offset in rows}


def _followed(database: sqlite3.Connection) -> Sources:
    return {path: (inode, offset) for path, (_, inode, offset) in _known(database).items()}


@contextlib.contextmanager
def _sayable(name: object) -> Iterator[None]:
    """Pass over a line whose words SQLite cannot hold: nobody can ask for it."""
    try:
        yield
    except (UnicodeEncodeError, OverflowError, sqlite3.IntegrityError) as error:
        log.info("a line of %s says nothing that can be asked for: %s", name, error)


def _add_facts(database: sqlite3.Connection, source: int, found: Iterable[lines.Line]) -> None:
    add = "INSERT OR REPLACE INTO fact (kind, key, source, line) VALUES (?, ?, ?, ?)"
    rows = []
    for line in found:
        kind, key = line.payload.get("kind"), line.payload.get("key")
        if isinstance(kind, str) and isinstance(key, str):
            rows.append((kind, key, source, line.raw))
    rows.sort(key=itemgetter(0, 1))  # as they lie in the table; of equal ones the last one stays last
    try:
        database.executemany(add, rows)
    except (UnicodeEncodeError, OverflowError, sqlite3.IntegrityError):
        for row in rows:
            with _sayable(f"source {source}"):
                database.execute(add, row)


def _add_record(database: sqlite3.Connection, source: int, registry: str, line: lines.Line) -> None:
    kind, id, seen = (line.payload.get(name) for name in ("kind", "id", "seen"))
    parents = line.payload.get("parents", [])
    if not isinstance(kind, str) or not isinstance(id, str) or not isinstance(seen, int | float):
        return
    # Equal times: the file whose name is later, so that the order of reading decides nothing.
    add = (
        "INSERT INTO record (registry, kind, id, seen, source, line) VALUES (?, ?, ?, ?, ?, ?)"
        " ON CONFLICT DO UPDATE SET seen = excluded.seen, source = excluded.source, line = excluded.line"
        " WHERE excluded.seen > record.seen OR (excluded.seen = record.seen AND"
        " (SELECT path FROM source WHERE id = excluded.source) >= (SELECT path FROM source WHERE id = record.source))"
    )
    if database.execute(add, (registry, kind, id, float(seen), source, line.raw)).rowcount:
        database.execute("DELETE FROM parent WHERE kind = ? AND registry = ? AND id = ?", (kind, registry, id))
        names = [parent for parent in parents if isinstance(parent, str)] if isinstance(parents, list) else []
        brief = _brief(line.payload) if names else None
        rows = [(parent, kind, registry, id, brief) for parent in names]
        database.executemany("INSERT OR IGNORE INTO parent VALUES (?, ?, ?, ?, ?)", rows)


def _brief_of(payload: dict[str, Any] | None) -> list[Any] | None:
    if payload is None:
        return None
    data = payload.get("data")
    return [payload["id"], *(data.get(name) if isinstance(data, dict) else None for name in BRIEF)]


def _brief(payload: dict[str, Any]) -> bytes | None:
    """Return what is kept apart of a record, behind its checksum; None if it is too much, or nothing for orjson."""
    import orjson  # imported late: `import cas` must stay fast

    try:
        body = orjson.dumps(_brief_of(payload))
    except TypeError:  # a whole number over 64 bits, half of a surrogate pair: reading would spoil or refuse it
        return None
    return xxhash.xxh3_64_digest(body) + body if len(body) <= MAX_BRIEF else None


def _members(briefs: list[bytes]) -> list[Any]:
    """Read many briefs; one parse of all of them is several times as fast as one of each."""
    import orjson  # a quarter of the time that `json` takes: this is most of what a choice among 10,000 costs

    digest = xxhash.xxh3_64_digest
    bodies = [brief[8:] for brief in briefs]
    if any(digest(body) != brief[:8] for body, brief in zip(bodies, briefs, strict=True)):
        raise _DamagedIndexError("a line in it is damaged")
    found: list[Any] = orjson.loads(b"[" + b",".join(bodies) + b"]")
    return found


def _registry_of(name: str) -> str | None:
    """Return the registry that a file of records is about; None of a file of facts."""
    folder = Path(name).parent
    return unquote_registry(folder.name) if folder.parent.name == "records" else None


def _forget(database: sqlite3.Connection, name: str) -> None:
    row = database.execute("SELECT id FROM source WHERE path = ?", (name,)).fetchone()
    if _registry_of(name) is not None:
        # An older line of another file may be the last one now: read all files of this registry again.
        registry = _registry_of(name)
        database.execute("DELETE FROM record WHERE registry = ?", (registry,))
        database.execute("DELETE FROM parent WHERE registry = ?", (registry,))
        again = [(one,) for one in _known(database) if _registry_of(one) == registry]
        database.executemany("UPDATE source SET offset = 0 WHERE path = ?", again)
    database.execute("DELETE FROM fact WHERE source = ?", (row[0],))
    database.execute("DELETE FROM source WHERE id = ?", (row[0],))


def _payload(raw: object) -> dict[str, Any] | None:
    """Return what a row's line says; None if that cannot be read."""
    if not isinstance(raw, bytes) or not lines.is_whole(raw):
        raise _DamagedIndexError("a line in it is damaged")
    return lines.decode(raw)


def _payloads(raws: list[Any]) -> list[dict[str, Any] | None]:
    """Return what `_payload` does, of many rows."""
    if not all(isinstance(raw, bytes) and lines.is_whole(raw) for raw in raws):
        raise _DamagedIndexError("a line in it is damaged")
    return lines.decode_whole(raws)


# --- files ---------------------------------------------------------------------------------------------------


def _remove(path: Path) -> None:
    for suffix in ("", "-journal", "-wal", "-shm"):
        with contextlib.suppress(OSError):
            disk.unlink(path.with_name(path.name + suffix))
