"""The writer of one range of an ingest, piece by piece."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Self

import xxhash

from cas.errors import ContentError
from cas.index import disk

if TYPE_CHECKING:
    from cas.index.ingest import Ingest

_WINDOW = 1 << 20  # bytes per read of what was copied into a file


class RangeWriter:
    """One range of an ingest, written in order by one thread. It has a descriptor of its own, so that a thread that
    comes too late writes into the abandoned file and nowhere else.
    """

    def __init__(self, ingest: Ingest, fd: int, start: int, end: int) -> None:
        self._ingest = ingest
        self._fd = fd
        self._start = start
        self._at = start
        self._end = end
        self._proof = xxhash.xxh3_64()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write the next bytes.

        Raises:
            ContentError: more than the range holds.
        """
        view = memoryview(data).cast("B")
        if self._at + len(view) > self._end:
            raise ContentError(f"more bytes than the range from {self._start} to {self._end} holds")
        disk.write_at(self._fd, view, self._at)
        self._saw(view)

    def copy_from(self, source: int, length: int) -> None:
        """Copy the next bytes from the same place in another file, sharing its blocks where the disk can.

        Raises:
            EOFError: that file is shorter.
        """
        end = min(self._at + length, self._end)
        disk.copy_range(source, self._fd, self._at, end - self._at)
        buffer = memoryview(bytearray(min(_WINDOW, max(end - self._at, 1))))
        while self._at < end:
            count = os.preadv(self._fd, [buffer[: end - self._at]], self._at)
            if not count:
                raise EOFError("the copy was cut short")
            self._saw(buffer[:count])

    def _saw(self, view: memoryview) -> None:
        self._proof.update(view)
        self._ingest.hash_now(self._at, view)
        self._at += len(view)

    @property
    def left(self) -> int:
        """How many bytes are still to be written."""
        return self._end - self._at

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        os.close(self._fd)
        self._fd = -1
        if kind is not None or self.left:
            self._ingest.keep_part(self._start, self._at, self._end, self._proof.hexdigest())
        else:
            self._ingest.note_range(self._start, self._end, self._proof.hexdigest())
        if kind is None and self.left:
            raise ContentError(f"{self.left} bytes of the range from {self._start} to {self._end} are missing")
