"""Ingests: the one door through which bytes come into the store.

::

    with store.ingest(expected_size=size) as ingest:      # a file of our own; removed unless committed
        ingest.write(data)
        digest = ingest.commit(expected_digest)           # length, digest, read-only, published

A large transfer writes ranges in any order (`write_at`) and names its `source`: each range is journaled with its
XXH3, and another process that ingests the same source takes over the whole ranges of one that was killed.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import blake3
import xxhash

from cas.errors import ContentError, DigestMismatchError
from cas.index import disk, lines
from cas.index.digest import Digest
from cas.index.range_writer import RangeWriter
from cas.index.ranges import Range, Ranges

log = logging.getLogger("cas.index")

# Bytes per read while hashing what was written before its turn. Reading back takes 0.3 s per GiB more than hashing what
# is in the processor's cache; mapping the file instead (16 MiB at a time, populated or not) takes as long. So
# does keeping pieces in memory until their turn: what reading saves, fresh memory costs in page faults.
_WINDOW = 1 << 20
# Bytes that may wait to be hashed while more are fetched. Without a bound up to a third of 1 GiB waited, and one thread
# hashed it when nothing else was left to do: 0.2 to 0.35 s at the end of a pull, and 0.05 with it.
_BEHIND = 64 << 20
_MOVED = 4 << 20  # bytes in memory while a range is moved on a full disk


class Follower(Protocol):
    """Something that wants all bytes of an ingest in order: a checksum."""

    def update(self, data: memoryview, /) -> object:
        """Take the next bytes."""


class Publisher(Protocol):
    """Who takes a finished file into the store."""

    def publish(self, path: Path, fd: int, digest: Digest, *, durable: bool) -> None:
        """Give a finished, hashed file its name in the store."""


class Left(NamedTuple):
    """A folder in which interrupted transfers may have left ranges."""

    folder: Path
    is_dead: bool  # its process has ended: what is taken from there may be removed


class Ingest:
    """One process's uncommitted write of one blob; safe to call from several threads."""

    def __init__(
        self,
        path: Path,
        publisher: Publisher,
        *,
        size: int | None,
        source: str | None,
        followers: tuple[Follower, ...],
        left: Iterable[Left] = (),
    ) -> None:
        if source is not None and size is None:
            raise ValueError("an ingest with a source needs a size")
        self.path = path
        self.size = size
        self._publisher = publisher
        self._followers = followers
        self._written = Ranges()
        self._begun = Ranges()  # written, or being written: no byte is written twice, so what is hashed stays
        self._lock = threading.Lock()
        self._hashing = threading.Lock()
        self._hasher = blake3.blake3()
        self._hashed = 0
        self._spoiled = False
        self._journal: Path | None = None
        self._fd = disk.create(path)
        if source is not None and size is not None:
            try:
                self._start_journal(source, size, left)
            except BaseException:
                self._close()
                raise

    def _start_journal(self, source: str, size: int, left: Iterable[Left]) -> None:
        disk.truncate(self._fd, size)
        self._journal = self.path.with_suffix(".journal")
        lines.append(self._journal, [{"source": source, "size": size}])
        self._take_over(source, size, left)

    # --- writing -------------------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append bytes behind those written so far."""
        self.write_at(self._end, data)

    def write_at(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write a range; the bytes count as written once they are on the disk and in the journal.

        Raises:
            ContentError: the range reaches behind the expected size, or holds bytes that are written already.
        """
        view = memoryview(data).cast("B")
        end = offset + len(view)
        with self._beginning(offset, end):
            disk.write_at(self._fd, view, offset)
        self._note(offset, end, view)

    def range(self, start: int, end: int) -> RangeWriter:
        """Write one range piece by piece, from one thread: `with ingest.range(0, 100) as out: out.write(data)`.

        It begins when not much is written that is not hashed yet, and counts as written when all of it is there. Given
        up after a part of it was hashed, nothing can be committed any more.

        Raises:
            ContentError: it reaches behind the expected size, or holds bytes that are written already.
        """
        self._catch_up()
        with self._beginning(start, end):
            return RangeWriter(self, self._own_descriptor(), start, end)

    def _own_descriptor(self) -> int:
        """Return a descriptor that a thread which comes too late writes through into the abandoned file."""
        with self._lock:  # so that no other file gets the number of ours in between
            return os.dup(self._fd)

    def copy_in(self, start: int, end: int, source: int, offset: int) -> None:
        """Copy a range from another place in another file; it is not journaled: whoever resumes copies it again.

        Raises:
            ContentError: it reaches behind the expected size, or holds bytes that are written already.
            EOFError: that file is shorter.
        """
        with self._beginning(start, end):
            fd = self._own_descriptor()
            try:
                disk.copy_range(source, fd, offset, end - start, to=start)
            finally:
                os.close(fd)
        self.note_range(start, end, None)

    def put_in(self, start: int, data: bytes) -> None:
        """Write bytes that did not come from the source; they are not journaled either.

        Raises:
            ContentError: they reach behind the expected size, or there are bytes already.
        """
        with self._beginning(start, start + len(data)):
            fd = self._own_descriptor()
            try:
                disk.write_at(fd, data, start)
            finally:
                os.close(fd)
        self.note_range(start, start + len(data), None)

    def _begin(self, start: int, end: int) -> None:
        if self.size is not None and end > self.size:
            raise ContentError(f"{end} bytes, but {self.size} were expected")
        with self._lock:
            if self._begun.overlap(start, end):
                raise ContentError(f"bytes {start} to {end} are written already, or another thread writes them")
            self._begun.add(start, end)

    @contextlib.contextmanager
    def _beginning(self, start: int, end: int) -> Iterator[None]:
        """Begin a range; one that fails in here counts as never begun, so that it can be begun again."""
        self._begin(start, end)
        try:
            yield
        except BaseException:
            self.give_up_range(start, end)
            raise

    @property
    def missing(self) -> list[Range]:
        """The ranges that are not written yet."""
        with self._lock:
            return self._written.missing(self.size or 0)

    @property
    def written(self) -> int:
        """How many bytes are written, resumed ones included."""
        with self._lock:
            return self._written.total

    @property
    def written_ranges(self) -> list[Range]:
        """The ranges that are written."""
        with self._lock:
            return list(self._written)

    def pieces(self) -> Iterator[memoryview]:
        """Yield all bytes in order, once all are written; a piece is valid until the next one is asked for."""
        buffer, offset = memoryview(bytearray(_WINDOW)), 0
        while count := os.preadv(self._fd, [buffer], offset):
            yield buffer[:count]
            offset += count

    @property
    def _end(self) -> int:
        with self._lock:
            return self._written.reaches(0)

    def _note(self, start: int, end: int, data: memoryview | None) -> None:
        if data is not None:
            self.hash_now(start, data)
        proof = xxhash.xxh3_64_hexdigest(data) if self._journal is not None and data is not None else None
        self.note_range(start, end, proof)

    def note_range(self, start: int, end: int, proof: str | None) -> None:
        """Count a range as written; with a proof (its XXH3), also in the journal."""
        if self._fd < 0:  # this thread comes too late: the ingest has ended
            return
        if self._journal is not None and proof is not None:
            lines.append(self._journal, [{"start": start, "end": end, "xxh3": proof}])
        with self._lock:
            self._written.add(start, end)
        if self._hashing.acquire(blocking=False):  # else another thread is hashing, and commit does the rest
            try:
                self._hash_written()
            finally:
                self._hashing.release()

    def _catch_up(self) -> None:
        """Hash what is written, if much of it waits for that: no more is to come before what is here is done."""
        with self._lock:
            waiting = self._written.reaches(self._hashed) - self._hashed
        if waiting > _BEHIND:
            with self._hashing:
                self._hash_written()

    def hash_now(self, offset: int, data: memoryview) -> None:
        """Hash bytes that were just written, if they are the next ones: they are in the processor's cache."""
        if self._hashed == offset and self._hashing.acquire(blocking=False):
            try:
                if self._hashed == offset:
                    self._hash(data)
            finally:
                self._hashing.release()

    def give_up_range(self, start: int, end: int) -> None:
        """Forget that a range was begun."""
        with self._hashing, self._lock:
            self._begun.discard(start, end)
            if self._hashed > max(start, self._written.reaches(start)):
                self._spoiled = True

    def keep_part(self, start: int, reached: int, end: int, proof: str) -> None:
        """Give up a range, but for what was written of it: with a journal, whoever resumes the transfer has that."""
        if self._journal is not None and reached > start:
            try:
                self.note_range(start, reached, proof)
                start = reached
            except OSError as error:  # a full disk, most likely: then all of it comes again
                log.info("%s: cannot note what was written: %s", self.path, error)
        self.give_up_range(start, end)

    # --- hashing -------------------------------------------------------------------------------------------

    def _hash(self, data: memoryview) -> None:
        self._hasher.update(data)
        for follower in self._followers:
            follower.update(data)
        self._hashed += len(data)

    def _hash_written(self) -> None:
        with self._lock:
            end = self._written.reaches(self._hashed)
        if end <= self._hashed:
            return
        buffer = memoryview(bytearray(min(_WINDOW, end - self._hashed)))
        while self._hashed < end:
            count = os.preadv(self._fd, [buffer[: end - self._hashed]], self._hashed)
            if not count:
                raise ContentError(f"{self.path} was cut short while it was written")
            self._hash(buffer[:count])

    def digest(self) -> Digest:
        """Return the digest of the whole file, which must be written completely.

        Raises:
            ContentError: bytes are missing.
        """
        with self._lock:
            size = self._begun.end if self.size is None else self.size
            missing = self._written.missing(size)
        if missing:
            count = sum(gap.length for gap in missing)
            raise ContentError(f"{count} of {size} bytes are missing")
        if self._spoiled:
            raise ContentError("a range was given up after a part of it had been hashed")
        with self._hashing:
            self._hash_written()
            return Digest(self._hasher.hexdigest())

    # --- the end -------------------------------------------------------------------------------------------

    def commit(self, expected: Digest | None = None, *, durable: bool = False) -> Digest:
        """Publish the bytes as a blob and return its digest; `durable`: they survive a power cut.

        Raises:
            ContentError: bytes are missing, or are too many; nothing was published.
            DigestMismatchError: the bytes have another digest; nothing was published.
        """
        digest = self.digest()
        if (size := os.fstat(self._fd).st_size) != self._hashed:
            raise ContentError(f"{self.path} has {size} bytes, and {self._hashed} were written to it")
        if expected is not None and digest != expected:
            raise DigestMismatchError(str(self.path), expected=str(expected), actual=str(digest))
        self._publisher.publish(self.path, self._fd, digest, durable=durable)
        self._close()
        return digest

    def abort(self) -> None:
        """Remove what was written; nothing was published."""
        if self._fd >= 0:
            self._close()

    def _close(self) -> None:
        self.leave()
        disk.unlink(self.path)
        if self._journal is not None:
            disk.unlink(self._journal)

    def leave(self) -> None:
        """Close the file and leave it, with its journal, for whoever resumes the transfer."""
        with self._lock:
            fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and self._journal is not None:
            self.leave()
        else:
            self.abort()

    # --- resuming ------------------------------------------------------------------------------------------

    def _take_over(self, source: str, size: int, left: Iterable[Left]) -> None:
        """Copy the whole, proven ranges of other transfers of the same source into our own file."""
        for folder, is_dead in left:
            for name in disk.names(folder):
                if name.endswith(".journal") and folder / name != self._journal:
                    with contextlib.suppress(OSError):
                        self._take_ranges(folder / name, source, size, giving_back=is_dead)

    def _take_ranges(self, journal: Path, source: str, size: int, *, giving_back: bool) -> None:
        """Take what one journal proves. `giving_back`: a dead process's file is cut as its bytes come over, the last
        range first, and removed then, so that on a full disk a resumed transfer needs room for what is missing only.
        """
        entries = [line.payload for line in lines.read(journal)]
        if not entries or entries[0] != {"source": source, "size": size}:
            return
        spans = [span for entry in entries[1:] if (span := _span(entry, size)) is not None]
        other = disk.open_file(journal.with_suffix(".data"), writing=giving_back)
        try:
            for start, end, proof in sorted(spans, reverse=giving_back):
                if not self._written.overlap(start, end):
                    self._take(other, start, end, proof, giving_back=giving_back)
                if giving_back and self._written.reaches(start) >= end:
                    disk.truncate(other, start)
        finally:
            os.close(other)
        if giving_back:
            disk.unlink(journal.with_suffix(".data"))
            disk.unlink(journal)

    def _take(self, other: int, start: int, end: int, proof: str, *, giving_back: bool) -> None:
        try:
            if giving_back and _is_nearly_full(self._fd, end - start):
                self._move(other, start, end)
            else:
                disk.copy_range(other, self._fd, start, end - start)
        except EOFError:  # it was taken before, by a process that was killed in the middle of it
            return
        except OSError as error:
            if not giving_back or error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self._move(other, start, end)
        data = memoryview(os.pread(self._fd, end - start, start))
        if len(data) == end - start and xxhash.xxh3_64_hexdigest(data) == proof:
            self._begin(start, end)
            self.hash_now(start, data)
            try:
                self.note_range(start, end, proof)
            except OSError as error:  # no room, or no file can be opened: it is here all the same, for this process
                log.info("%s: cannot note what was taken over: %s", self.path, error)
                self.note_range(start, end, None)

    def _move(self, other: int, start: int, end: int) -> None:
        """Take a range where there is no room for it twice: piece by piece, cut off there before it is written here.

        A kill in the middle loses this one range.
        """
        for at in reversed(range(start, end, _MOVED)):
            data = os.pread(other, min(_MOVED, end - at), at)
            disk.truncate(other, at)
            disk.write_at(self._fd, data, at)


def _is_nearly_full(fd: int, size: int) -> bool:
    """Whether little room is left on a disk that gets so many bytes more: too little for what is written meanwhile."""
    found = os.fstatvfs(fd)
    return found.f_blocks > 0 and found.f_bavail * found.f_frsize < 2 * size


def _span(entry: Mapping[str, Any], size: int) -> tuple[int, int, str] | None:
    """Return what a line of a journal says: start, end and XXH3 of a range."""
    start, end, proof = entry.get("start"), entry.get("end"), entry.get("xxh3")
    if isinstance(start, int) and isinstance(end, int) and isinstance(proof, str) and 0 <= start < end <= size:
        return start, end, proof
    return None
