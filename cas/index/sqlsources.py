"""What the SQLite index follows: the plain files of facts and records that count, and their lines as its rows."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from operator import itemgetter
from pathlib import Path
from stat import S_ISREG
from typing import Any

import xxhash

from cas.index import disk, lines
from cas.index.layout import Layout, unquote_registry
from cas.index.owners import Owners
from cas.index.sqlschema import BRIEF, MAX_BRIEF

log = logging.getLogger("cas.index")

_MAX_COLLEAGUES = 1 << 30  # bytes of a colleague's file of records: a larger one is no honest one, and is not read
_FOLLOWED = 500  # lines that are added together

Sources = Mapping[str, tuple[str, int]]  # path below the home -> inode, size


class PlainFiles:
    """The files of facts and records that an index is made of."""

    def __init__(self, layout: Layout, owners: Owners, *, shared: bool) -> None:
        self._layout = layout
        self._root = layout.root
        self._owners = owners
        self._shared = shared  # the records of all members count

    def sources(self) -> Sources:
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
                                found[self.name_of(path)] = (str(stat.st_ino), stat.st_size)
        return found

    def name_of(self, file: Path) -> str:
        """Return what the index knows a file by."""
        return os.fspath(file.relative_to(self._root) if file.is_relative_to(self._root) else file)

    def _counts(self, path: Path, stat: os.stat_result, *, is_record: bool) -> bool:
        if self._owners.believe(stat):
            return True
        if not (self._shared and is_record and S_ISREG(stat.st_mode) and stat.st_size <= _MAX_COLLEAGUES):
            return False
        return os.access(path, os.R_OK)

    def follow(self, database: sqlite3.Connection, sources: Sources) -> None:
        """Read what was appended to the files since they were read last; forget those that count no more."""
        for name, (_, inode, offset) in _known(database).items():
            if name not in sources or sources[name][0] != inode or sources[name][1] < offset:
                _forget(database, name)
        known = _known(database)
        for name, (inode, size) in sources.items():
            if name not in known:
                database.execute("INSERT INTO source (path, inode, offset) VALUES (?, ?, 0)", (name, inode))
            elif known[name][2] == size:
                continue
            self._follow_one(database, name)

    def _follow_one(self, database: sqlite3.Connection, name: str) -> None:
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


# --- rows ----------------------------------------------------------------------------------------------------


def _known(database: sqlite3.Connection) -> dict[str, tuple[int, str, int]]:
    rows = database.execute("SELECT path, id, inode, offset FROM source")
    return {path: (id, inode, offset) for path, id, inode, offset in rows}


def followed(database: sqlite3.Connection) -> Sources:
    """Return which files are in the index, and how far."""
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


def brief_of(payload: dict[str, Any] | None) -> list[Any] | None:
    """Return the id of a record, and the members that `BRIEF` names."""
    if payload is None:
        return None
    data = payload.get("data")
    return [payload["id"], *(data.get(name) if isinstance(data, dict) else None for name in BRIEF)]


def _brief(payload: dict[str, Any]) -> bytes | None:
    """Return what is kept apart of a record, behind its checksum; None if it is too much, or nothing for orjson."""
    import orjson  # imported late: `import cas` must stay fast

    try:
        body = orjson.dumps(brief_of(payload))
    except TypeError:  # a whole number over 64 bits, half of a surrogate pair: reading would spoil or refuse it
        return None
    return xxhash.xxh3_64_digest(body) + body if len(body) <= MAX_BRIEF else None


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
