"""The index of chunks: which blobs have a chunk, or a zip archive's record of some length and CRC-32.

An accelerator over the files in `chunks/`, which can be deleted at any time. What it answers are hints: whoever uses
them hashes the bytes. So a row that is wrong or missing costs bytes on the wire, and never changes what is stored.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

from cas.errors import ContentError
from cas.index import disk
from cas.index.chunks import ChunkList, PartList, chunk_key
from cas.index.digest import Digest
from cas.index.sqlconnection import BUSY_SECONDS, turn

log = logging.getLogger("cas.index")

T = TypeVar("T")

VERSION = 1
LEAST = 4096  # bytes; smaller chunks are not looked for: a row costs some 30 bytes, and a copy a system call
AT_ONCE = 500  # keys in one query: a quarter of the time of one by one
HOLDERS = 4  # of a chunk that many blobs have (zeros, say)
YOUNG = 2_000_000_000  # nanoseconds: a folder this young may change again within one tick of its clock
WORN = 1000  # lists that may be gone, with their rows still in the index, before it is made again
_CACHE = 64 << 10  # KiB of pages in memory while rows are added

_SCHEMA = """\
-- The folders of chunks/ that were read, and their modification time (ns).
CREATE TABLE folder (name TEXT PRIMARY KEY, mtime INTEGER NOT NULL) WITHOUT ROWID;

-- The files that were read: a chunk list ("") or a part list (".parts") of a blob; `digest` is 32 bytes.
CREATE TABLE list (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    digest  BLOB NOT NULL,
    kind    TEXT NOT NULL,
    UNIQUE (digest, kind)
);

-- What they name: 64 bits of a chunk's digest, and where it starts; or of a record's length and CRC-32, and its number.
CREATE TABLE piece (key INTEGER, list INTEGER, place INTEGER NOT NULL, PRIMARY KEY (key, list)) WITHOUT ROWID;
"""


class Holder(NamedTuple):
    """A blob that may have a piece: a chunk at this offset, or the record of this number in its part list."""

    blob: Digest
    place: int


class ChunkIndex:
    """The pieces of all lists in one home's `chunks/`; each question opens the file and closes it again."""

    def __init__(self, lists: Path, folder: Path | None) -> None:
        self._lists = lists
        self._folder = folder

    @property
    def path(self) -> Path | None:
        """The file; each user of each host has one. None if there is no place for it: then there are no hints."""
        return None if self._folder is None else self._folder / f"chunks-{VERSION}.{disk.writer_name()}.sqlite3"

    def chunks(self, digests: Iterable[bytes]) -> dict[bytes, list[Holder]]:
        """Return the blobs that may have chunks of these digests; only what has any is named."""
        wanted = {chunk_key(digest): digest for digest in digests}
        return {wanted[key]: holders for key, holders in self._holders(wanted, "").items()}

    def parts(self, keys: Iterable[int]) -> dict[int, list[Holder]]:
        """Return the blobs that may have records of these keys (`Part.key`)."""
        return self._holders(keys, ".parts")

    def has_parts(self) -> bool:
        """Whether any blob is known to have a record."""
        query = "SELECT 1 FROM list WHERE kind = '.parts' LIMIT 1"
        return self._ask(lambda database: bool(database.execute(query).fetchall()), False)

    def _holders(self, keys: Iterable[int], kind: str) -> dict[int, list[Holder]]:
        wanted = sorted(set(keys))  # neighbours share pages

        def ask(database: sqlite3.Connection) -> dict[int, list[Holder]]:
            found: dict[int, list[tuple[int, bytes, int]]] = {}
            for at in range(0, len(wanted), AT_ONCE):
                some = wanted[at : at + AT_ONCE]
                query = (
                    "SELECT key, id, digest, place FROM piece JOIN list ON list = id"
                    f" WHERE kind = ? AND key IN ({','.join('?' * len(some))})"
                )
                for key, *row in database.execute(query, (kind, *some)):
                    found.setdefault(key, []).append(tuple(row))
            return {key: _latest(rows) for key, rows in found.items()}

        return self._ask(ask, {})

    def _ask(self, question: Callable[[sqlite3.Connection], T], nothing: T) -> T:
        """Ask what is up to date; a file that cannot be used is made again, and else there are no hints."""
        if self._folder is None or not self._lists.is_dir():
            return nothing
        with turn:
            for attempt in range(2):
                try:
                    with self._opened() as database:
                        self._refresh(database)
                        return question(database)
                except (sqlite3.Error, OSError, ContentError, ValueError, TypeError) as error:
                    log.info("the index of chunks is %s: %s", "not used" if attempt else "made again", error)
                    if not attempt:
                        self._remove()
        return nothing

    def _remove(self) -> None:
        for suffix in ("", "-journal"):
            with contextlib.suppress(OSError):
                if self.path is not None:
                    disk.unlink(self.path.with_name(self.path.name + suffix))

    @contextlib.contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        assert self.path is not None, "only who has a place for it asks"
        disk.make_folder(self.path.parent)
        database = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None)
        try:
            # Not synced: what a power cut leaves is discarded when it makes no sense, and else it is only hints.
            for pragma in ("synchronous = OFF", f"cache_size = -{_CACHE}"):
                database.execute(f"PRAGMA {pragma}")
            if database.execute("PRAGMA user_version").fetchone()[0] != VERSION:
                self._create(database)
            yield database
        finally:
            database.close()

    def _create(self, database: sqlite3.Connection) -> None:
        with _writing(database):
            if database.execute("PRAGMA user_version").fetchone()[0] == VERSION:  # another process was first
                return
            for statement in _SCHEMA.split("\n\n"):
                database.execute(statement)
            database.execute(f"PRAGMA user_version = {VERSION}")

    # --- following the files ---------------------------------------------------------------------------------

    def _refresh(self, database: sqlite3.Connection) -> None:
        known, now = dict(database.execute("SELECT name, mtime FROM folder")), self._folders()
        changed = [name for name in sorted(known.keys() | now.keys()) if known.get(name) != now.get(name)]
        if not changed:
            return
        with _writing(database):
            for name in changed:
                self._read_folder(database, name, now.get(name))
            left, made = database.execute("SELECT count(*), max(id) FROM list").fetchone()
            if made is not None and made - left > left + WORN:
                raise ContentError("most of its rows are of lists that are gone")

    def _folders(self) -> Mapping[str, int]:
        """Return the folders of lists, and their times."""
        found = {}
        with contextlib.suppress(FileNotFoundError), os.scandir(self._lists) as entries:
            for entry in entries:
                if len(entry.name) == 2 and entry.is_dir():
                    found[entry.name] = entry.stat().st_mtime_ns
        return found

    def _read_folder(self, database: sqlite3.Connection, name: str, mtime: int | None) -> None:
        here = set()
        for file in disk.names(self._lists / name):
            hex, dot, kind = file.partition(".")
            with contextlib.suppress(ContentError):
                here.add((bytes.fromhex(Digest(name + hex).hex), dot + kind))
        first = bytes.fromhex(name)
        query = "SELECT digest, kind FROM list WHERE digest >= ? AND digest < ?"
        above = bytes([first[0] + 1]) if first[0] < 255 else b"\xff" * 33
        known = {(bytes(digest), kind) for digest, kind in database.execute(query, (first, above))}
        for digest, kind in known - here:
            _forget(database, digest, kind)
        for digest, kind in sorted(here - known):
            if kind in ("", ".parts"):
                self._add(database, digest, kind)
        if mtime is None:
            database.execute("DELETE FROM folder WHERE name = ?", (name,))
            return
        settled = mtime if disk.now() * 1e9 - mtime > YOUNG else -1  # such a time may not show the next change
        database.execute("INSERT OR REPLACE INTO folder VALUES (?, ?)", (name, settled))

    def _add(self, database: sqlite3.Connection, digest: bytes, kind: str) -> None:
        path = self._lists / digest.hex()[:2] / f"{digest.hex()[2:]}{kind}"
        rows: list[tuple[int, int]] = []
        try:
            data = path.read_bytes()
            size = size_in(data)
            if kind:
                rows = [(part.key, number) for number, part in enumerate(PartList.parse(data, size).parts)]
            else:
                chunks = ChunkList.parse(data, size)
                rows = [(chunk_key(chunk.digest), chunk.start) for chunk in chunks if chunk.length >= LEAST]
        except (OSError, ContentError) as error:
            log.info("%s is not used: %s", path, error)
        id = database.execute("INSERT INTO list (digest, kind) VALUES (?, ?)", (digest, kind)).lastrowid
        rows.sort()
        add = f"INSERT OR IGNORE INTO piece VALUES (?, {id}, ?)"
        database.executemany(add, rows)


def _latest(rows: list[tuple[int, bytes, int]]) -> list[Holder]:
    """Return a few holders, those that came last first: they are likely siblings."""
    rows.sort(reverse=True)
    return [Holder(Digest(blob.hex()), place) for _, blob, place in rows[:HOLDERS]]


def size_in(data: bytes) -> int:
    """Return the size that a list says its blob has.

    Raises:
        ContentError: it is no list.
    """
    try:
        size = json.loads(data[: data.find(b"\n", 0, 1000) + 1])["size"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ContentError(f"not a list of chunks or parts: {error}") from error
    if type(size) is not int:
        raise ContentError("not a list of chunks or parts")
    return size


def _forget(database: sqlite3.Connection, digest: bytes, kind: str) -> None:
    row = database.execute("SELECT id FROM list WHERE digest = ? AND kind = ?", (digest, kind)).fetchone()
    # Its rows stay until the index is made again: finding them would read the whole table. They name no list.
    database.execute("DELETE FROM list WHERE id = ?", row)


@contextlib.contextmanager
def _writing(database: sqlite3.Connection) -> Iterator[None]:
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        disk.step("sqlite commit")
        database.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            database.execute("ROLLBACK")
        raise
