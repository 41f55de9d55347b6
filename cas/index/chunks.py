"""Chunk lists and part lists: how a blob falls into pieces (docs/format.md says the bytes). Hints, never proof.

A list that is damaged, or of something else, is as good as none: its parser refuses, and the blob can be cut again.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import blake3
import xxhash

from cas.errors import ContentError

MAX_CHUNK = 1 << 24  # bytes; what a reader has to hold at once
MAX_SIZE = 1 << 60  # of a blob, in bytes
MAX_ENTRIES = 1 << 26  # 2.3 GiB of list: a blob of 16 TiB in blocks of 256 KiB
ENTRY = 36  # bytes of one entry, of either list
_MAX_HEAD = 1000
_CHECK = 8
_CHUNK = struct.Struct("<I32s")
_PART = struct.Struct("<QQQQI")


class Chunk(NamedTuple):
    """A range of a blob, with the BLAKE3-256 of its bytes."""

    start: int
    length: int
    digest: bytes

    def holds(self, data: bytes | bytearray | memoryview) -> bool:
        """Whether these are the chunk's bytes."""
        return len(data) == self.length and blake3.blake3(data).digest() == self.digest


@dataclass(frozen=True, slots=True)
class ChunkList:
    """How a blob of `size` bytes falls into chunks; `entries` are the bytes that the format says."""

    chunker: str  # what cut it, and the version of that: `zip-1`
    size: int
    entries: bytes

    @classmethod
    def of(cls, chunker: str, pieces: Iterable[tuple[int, bytes]]) -> Self:
        """Make a list of the lengths and digests of all chunks, in order."""
        entries, size = bytearray(), 0
        for length, digest in pieces:
            entries += _CHUNK.pack(length, digest)
            size += length
        return cls(chunker, size, bytes(entries))

    def __len__(self) -> int:
        return len(self.entries) // ENTRY

    def __iter__(self) -> Iterator[Chunk]:
        start = 0
        for length, digest in _CHUNK.iter_unpack(self.entries):
            yield Chunk(start, length, digest)
            start += length

    def encode(self) -> bytes:
        """Return the bytes of the list."""
        return _seal({"cas": "chunks", "chunker": self.chunker, **_counts(self.size, len(self))}, self.entries)

    @classmethod
    def parse(cls, data: bytes | memoryview, size: int) -> Self:
        """Read a list of a blob of `size` bytes.

        Raises:
            ContentError: it is damaged, or not the list of such a blob.
        """
        head, entries = _open("chunks", data, size)
        return cls.checked(head.get("chunker"), size, entries)

    @classmethod
    def checked(cls, chunker: object, size: int, entries: bytes) -> Self:
        """Make a list of entries from outside.

        Raises:
            ContentError: they do not tile the blob exactly.
        """
        if not isinstance(chunker, str) or not 0 < len(chunker) <= 40 or not chunker.isascii():
            raise ContentError(f"not a chunk list: the chunker is {chunker!r:.60}")
        total = 0
        for length, _ in _CHUNK.iter_unpack(entries):
            if not 0 < length <= MAX_CHUNK:
                raise ContentError(f"not a chunk list: a chunk of {length} bytes")
            total += length
        if total != size:
            raise ContentError(f"not a chunk list of {size} bytes: the chunks have {total}")
        return cls(chunker, size, entries)


class Part(NamedTuple):
    """One stored record of a zip archive: where it lies, and the CRC-32 that the directory claims of its content."""

    start: int  # of the local header
    content: int  # where the content starts
    length: int  # of the content
    end: int  # where the next record starts
    crc: int

    @property
    def key(self) -> int:
        """What two parts of the same length and CRC-32 have in common: 64 bits, signed."""
        return _signed(xxhash.xxh3_64_intdigest(struct.pack("<QI", self.length, self.crc)))


@dataclass(frozen=True, slots=True)
class PartList:
    """The stored records of the zip archive that a blob is."""

    size: int
    parts: tuple[Part, ...]

    def encode(self) -> bytes:
        """Return the bytes of the list."""
        entries = b"".join(_PART.pack(*part) for part in self.parts)
        return _seal({"cas": "parts", **_counts(self.size, len(self.parts))}, entries)

    @classmethod
    def parse(cls, data: bytes, size: int) -> Self:
        """Read a list of a blob of `size` bytes.

        Raises:
            ContentError: it is damaged, or not the list of such a blob.
        """
        _, entries = _open("parts", data, size)
        parts = tuple(map(Part._make, _PART.iter_unpack(entries)))
        at = 0
        for part in parts:
            if not at <= part.start < part.content < part.content + part.length <= part.end <= size or not part.crc:
                raise ContentError(f"not a part list: {part}")
            at = part.end
        return cls(size, parts)


def chunk_key(digest: bytes) -> int:
    """Return the first 64 bits of a chunk's digest as SQLite keeps them: signed."""
    return int.from_bytes(digest[:8], "big", signed=True)


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number


def _counts(size: int, count: int) -> dict[str, int]:
    return {"count": count, "format": 1, "size": size}


def _seal(head: Mapping[str, Any], entries: bytes) -> bytes:
    text = json.dumps(head, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    body = text.encode() + b"\n" + entries
    return body + xxhash.xxh3_64_digest(body)


def _open(kind: str, data: bytes | memoryview, size: int) -> tuple[dict[str, Any], bytes]:
    """Return the head and the entries of a list whose length and checksum are right."""
    data = bytes(data)
    end = data.find(b"\n", 0, _MAX_HEAD) + 1
    try:
        head = json.loads(data[:end])
    except (ValueError, RecursionError) as error:
        raise ContentError(f"not a list of {kind}: {error}") from error
    if not isinstance(head, dict) or (head.get("cas"), head.get("format")) != (kind, 1):
        raise ContentError(f"not a list of {kind}, or of another format")
    count = head.get("count")
    if type(count) is not int or not 0 <= count <= MAX_ENTRIES or head.get("size") != size:
        raise ContentError(f"not a list of {kind} of {size} bytes")
    if len(data) != end + count * ENTRY + _CHECK:
        raise ContentError(f"a list of {kind} was cut short, or is too long")
    if xxhash.xxh3_64_digest(data[:-_CHECK]) != data[-_CHECK:]:
        raise ContentError(f"a list of {kind} is damaged")
    return head, data[end:-_CHECK]
