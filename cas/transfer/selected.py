"""A few records of a zip archive at its origin: what `load(only="model")` needs of a file of torch, and no more.

What is fetched lies in `ingest/` like any interrupted transfer, and a later pull of the whole file goes on from there.
The records that were left out get a local header, so that a reader finds where they would lie; nobody reads them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import struct
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from cas.errors import ContentError, DigestMismatchError
from cas.index import containers, disk
from cas.index.containers import LOCAL_HEADER, Record
from cas.index.ingest import Ingest
from cas.index.ranges import Range, Ranges
from cas.transfer import checksums
from cas.transfer.plan import split, unit_of
from cas.transfer.remote import RangesIgnoredError, RemoteFile
from cas.transfer.session import Session, unvouched
from cas.transfer.workers import Workers, wait_all

log = logging.getLogger("cas.transfer")

MAX_GAP = 1 << 20  # bytes: fetching this much that nobody needs costs about as much as one more request
_MAX_PICKLE = 256 << 20  # bytes

Choose = Callable[[bytes], Collection[str] | None]  # data.pkl → keys of the storages; None: all


@dataclass(frozen=True, slots=True)
class Selected:
    """A file of which only some records are whole."""

    path: Path
    size: int
    fetched: int  # bytes that came from the origin now
    kept: int  # bytes of it that are here


def wanted_ranges(session: Session, file: RemoteFile, choose: Choose) -> tuple[Range, ...] | None:
    """Return which bytes of a file `selected_records` needs; None where it yields None. What was read for that stays.

    Raises:
        RemoteError: what the origin says.
    """
    with _opened(session, file) as archive:
        wanted = archive.choose(choose) if archive is not None else None
        if archive is None or wanted is None:
            return None
        found = archive.looked
        for span in archive.spans(wanted):
            found.add(*span)
        return tuple(found)


@contextlib.contextmanager
def selected_records(session: Session, file: RemoteFile, choose: Choose) -> Iterator[Selected | None]:
    """Fetch the records of a stock `torch.save` file that `choose` names; yield where they lie.

    Yields None where that cannot be done: the file is no such archive, all of it is needed, its origin reads no ranges
    or declares no version.

    Raises:
        DigestMismatchError: a record does not have the CRC-32 that the archive's directory says.
        ContentError: its directory says no CRC-32, and verification is strict.
        RemoteError: what the origin says.
    """
    before = session.bytes_fetched
    with contextlib.ExitStack() as left:
        with session.store.exclusive(unit_of(file).key):
            archive = left.enter_context(_opened(session, file))
            wanted = archive.choose(choose) if archive is not None else None
            if archive is not None and wanted is not None:
                archive.fetch(wanted)
                archive.verify(wanted)
                archive.outline(wanted)
        if archive is None or wanted is None:
            yield None
        else:
            kept = sum(one.end - one.start for one in wanted)
            yield Selected(archive.path, file.size, session.bytes_fetched - before, kept)


@contextlib.contextmanager
def _opened(session: Session, file: RemoteFile) -> Iterator[_Archive | None]:
    """Yield the archive, and leave what of it is here; None if its origin reads no ranges or declares no version."""
    if not file.identity.has_validator or session.remote.local_path(file) is not None:
        yield None
        return
    with contextlib.ExitStack() as left:
        staging = session.store.staging(unit_of(file).key)
        left.callback(staging.abandon)
        ingest = staging.ingest(file.size, source=file.identity.key)
        left.callback(ingest.leave)
        yield _Archive(session, file, ingest)


class _Archive:
    """One archive at its origin, and what of it is here."""

    def __init__(self, session: Session, file: RemoteFile, ingest: Ingest) -> None:
        self._session = session
        self._file = file
        self._ingest = ingest
        self._records: list[Record] = []
        self.looked = Ranges()  # at what had to be read to choose

    @property
    def path(self) -> Path:
        """Where it lies."""
        return self._ingest.path

    def choose(self, choose: Choose) -> list[Record] | None:
        """Return the records that are wanted; None if all are, or it cannot be said which."""
        try:
            return self._select(choose)
        except (ContentError, RangesIgnoredError) as error:
            log.info("%s: it is fetched whole: %s", self._file.identity.url, error)
            return None

    def _select(self, choose: Choose) -> list[Record] | None:
        """Read the directory and the pickle, and return the records that are wanted.

        Raises:
            ContentError: it is no archive of torch.
        """
        self._records = containers.read_directory(self._read, self._file.size)
        names = {one.name: one for one in self._records}
        pickles = [name for name in names if name.endswith(b"/data.pkl")]
        if len(pickles) != 1 or any(name.endswith(b"/constants.pkl") for name in names):
            raise ContentError("it is no archive of torch.save")
        record = names[pickles[0]]
        if record.length > _MAX_PICKLE or not record.is_stored:
            raise ContentError("its pickle is too large")
        start = containers.content_start(self._read, record)
        keys = choose(self._read(start, start + record.length))
        if keys is None:
            return None
        storages = record.name[: -len(b"data.pkl")] + b"data/"
        inside = {storages + key.encode() for key in keys}
        if missing := inside - names.keys():
            raise ContentError(f"its pickle names a record that is not in it: {min(missing)!r}")
        return [one for one in self._records if one.name in inside or not one.name.startswith(storages)]

    def fetch(self, wanted: list[Record]) -> None:
        """Fetch what is not here yet of the wanted records, and the directory."""
        self._bring(self.spans(wanted))

    def spans(self, wanted: list[Record]) -> list[Range]:
        """Return what is fetched for these records: where they lie, and the directory."""
        spans = Ranges()
        for one in wanted:
            spans.add(one.start, one.end)
        spans.add(self._records[-1].end, self._file.size)
        return _joined(list(spans), MAX_GAP)

    def verify(self, wanted: list[Record]) -> None:
        """Compare every wanted record with the CRC-32 that the directory says."""
        fd = os.open(self._ingest.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for one in wanted:
                self._verify(fd, one)
        finally:
            os.close(fd)

    def _verify(self, fd: int, record: Record) -> None:
        if not record.is_stored or (not record.crc and record.length):
            if self._session.strict:
                raise unvouched(self._file)
            return
        start = containers.content_start(lambda start, end: os.pread(fd, end - start, start), record)
        running, at, end = checksums.start("crc32"), start, start + record.length
        assert running is not None  # zlib has it
        while at < end:
            data = os.pread(fd, min(end - at, 1 << 20), at)
            if not data:
                raise ContentError(f"{self._ingest.path} was cut short while it was read")
            running.update(memoryview(data))
            at += len(data)
        actual = int.from_bytes(running.digest(), "big")
        if actual != record.crc:
            self._ingest.abort()  # whoever resumed these bytes would meet them again
            name = f"{self._file.identity.url}: {record.name.decode(errors='replace')}"
            raise DigestMismatchError(name, expected=f"crc32:{record.crc:08x}", actual=f"crc32:{actual:08x}")

    def outline(self, wanted: list[Record]) -> None:
        """Write a local header where a record that is not here begins: readers look there for where its bytes lie.

        These bytes are in no journal: who resumes the transfer does not take them.
        """
        here, missing = set(wanted), self._ingest.missing
        fd = os.open(self._ingest.path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            for one in self._records:
                if one in here or not _overlaps(missing, one.start, one.start + LOCAL_HEADER + len(one.name)):
                    continue
                sizes = struct.pack("<III", one.crc, min(one.length, 0xFFFFFFFF), min(one.length, 0xFFFFFFFF))
                header = b"PK\3\4" + one.head + sizes + struct.pack("<HH", len(one.name), 0) + one.name
                disk.write_at(fd, header, one.start)
        finally:
            os.close(fd)

    # --- bytes ---------------------------------------------------------------------------------------------------

    def _read(self, start: int, end: int) -> bytes:
        """Return bytes of the file, fetched into their place if they are not there yet."""
        start, end = max(start, 0), min(end, self._file.size)
        self.looked.add(start, end)
        self._bring([Range(start, end)])
        fd = os.open(self._ingest.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.pread(fd, end - start, start)
        finally:
            os.close(fd)

    def _bring(self, spans: list[Range]) -> None:
        wanted = [
            Range(max(gap.start, span.start), min(gap.end, span.end))
            for span in spans
            for gap in self._ingest.missing
            if gap.start < span.end and span.start < gap.end
        ]
        if not wanted:
            return
        with Workers(self._session.settings.concurrency, self._session.stop, "cas-record") as workers:
            wait_all([workers.submit(self._bring_one, span) for span in split(wanted)], self._session.stop)

    def _bring_one(self, span: Range) -> None:
        with self._ingest.range(*span) as out:
            for piece in self._session.remote.read(self._file, *span):
                self._session.proceed()
                out.write(piece)
                self._session.got(len(piece))


def _joined(spans: list[Range], gap: int) -> list[Range]:
    """Join spans that lie close to each other."""
    found: list[Range] = []
    for one in spans:
        if found and one.start - found[-1].end <= gap:
            found[-1] = Range(found[-1].start, one.end)
        else:
            found.append(one)
    return found


def _overlaps(ranges: list[Range], start: int, end: int) -> bool:
    return any(one.start < end and start < one.end for one in ranges)
