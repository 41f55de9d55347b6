"""Cutting a file into chunks: containers where their parts begin, everything else by its content."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import blake3

from cas.errors import ContentError
from cas.index.chunks import ChunkList
from cas.index.containers import container_of
from cas.index.once import once
from cas.index.ranges import Range

if TYPE_CHECKING:
    from pyfastcdc import FastCDC  # Cython: 3 GB/s; the older `fastcdc` has 0.8

BLOCK = 256 << 10  # bytes of a tensor in one chunk: 98 % of BLAKE3's speed; 64 KiB has 95 % (bench/: chunks)
SMALL_PART = 4096  # bytes; smaller parts are glue: an entry of 36 bytes for each would be a percent
LEAST, AIM, MOST = 8 << 10, 32 << 10, 128 << 10  # bytes of a chunk that is cut by content: some 39 KiB on average
_WINDOW = 4 << 20  # bytes read at once


def cut_file(path: str | os.PathLike[str] | int) -> ChunkList:
    """Cut a file (a path or an open descriptor).

    Raises:
        ContentError: it became shorter meanwhile.
    """
    fd = path if isinstance(path, int) else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _Cutter(fd).cut()
    finally:
        if fd is not path:
            os.close(fd)


class _Cutter:
    """Cuts one open file, from one thread. It is read, not mapped: a file that shrinks while it is mapped kills the
    process with SIGBUS.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._buffer = memoryview(bytearray(_WINDOW))

    def cut(self) -> ChunkList:
        size = os.fstat(self._fd).st_size
        container = container_of(lambda start, end: os.pread(self._fd, max(end - start, 0), start), size)
        if container is None:
            return ChunkList.of("fastcdc-1", self._by_content(Range(0, size)))
        return ChunkList.of(f"{container.kind}-1", self._by_parts(size, container.parts))

    def _by_parts(self, size: int, parts: tuple[Range, ...]) -> Iterator[tuple[int, bytes]]:
        at = 0
        for part in parts:
            if part.length >= SMALL_PART:
                yield from self._by_content(Range(at, part.start))
                yield from self._in_blocks(part)
                at = part.end
        yield from self._by_content(Range(at, size))

    def _in_blocks(self, part: Range) -> Iterator[tuple[int, bytes]]:
        for start in range(part.start, part.end, _WINDOW):
            data = self._read(start, part.end)
            for at in range(0, len(data), BLOCK):
                block = data[at : at + BLOCK]
                yield len(block), blake3.blake3(block).digest()

    def _by_content(self, span: Range) -> Iterator[tuple[int, bytes]]:
        start = span.start
        while start < span.end:
            data = self._read(start, span.end)
            is_last, at = start + len(data) == span.end, 0
            for length in self._lengths(data):
                if not is_last and len(data) - at < MOST:  # its end may be the buffer's: it is read again from here
                    break
                yield length, blake3.blake3(data[at : at + length]).digest()
                at += length
            start += at

    def _lengths(self, data: memoryview) -> Iterable[int]:
        if len(data) <= LEAST:
            return (len(data),)
        return (chunk.length for chunk in self._chunker.cut_buf(data))

    @once
    def _chunker(self) -> FastCDC:
        from pyfastcdc import FastCDC  # late: only what is no container needs it

        return FastCDC(AIM, min_size=LEAST, max_size=MOST, normalized_chunking=1, seed=0)

    def _read(self, start: int, end: int) -> memoryview:
        """Return the bytes from `start` on, as many as the buffer holds; they are valid until the next call."""
        data = self._buffer[: end - start]
        done = 0
        while done < len(data):
            count = os.preadv(self._fd, [data[done:]], start + done)
            if not count:
                raise ContentError("a file became shorter while it was cut")
            done += count
        return data
