"""Hints from the directory of a zip archive: which of its records a local blob may have, by length and CRC-32.

What lies between the contents of records is made from the donor's: its header, with this record's name, and its
descriptor. All of it is a hint. A wrong one is found by the checksum of the whole file, and costs fetching what came
from donors.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

from cas.errors import ContentError
from cas.index.chunks import Part, PartList
from cas.index.containers import LOCAL_HEADER, Record, extra_fields
from cas.index.digest import Digest
from cas.index.store import Store
from cas.transfer.donations import Donation

_WIDE = 0xFFFFFFFF  # offsets and lengths from here on are kept in 64 bits
_PADDING = 0x4246  # "FB": the field that torch fills up with, so that contents are aligned
_ALIGNED = 64  # bytes: to this
_DESCRIBED = 8  # the flag of a record whose length and CRC-32 stand behind its content

Allowed = Callable[[Digest], bool]


class DonorFiles:
    """Blobs that are read from, opened once; for one thread at a time."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._open: dict[Digest, int | None] = {}

    def open(self, blob: Digest) -> int | None:
        """Return the descriptor of a blob that can be believed; None if there is none."""
        if blob not in self._open:
            path = self._store.blobs.locate(blob)
            try:
                self._open[blob] = None if path is None else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:  # removed in between
                self._open[blob] = None
        return self._open[blob]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for fd in self._open.values():
            if fd is not None:
                os.close(fd)
        self._open.clear()


def zip_donations(store: Store, files: DonorFiles, records: list[Record], allowed: Allowed) -> Iterator[Donation]:
    """Yield what local blobs may give of an archive with these records; `allowed` says which blobs may give at all."""
    wanted = {record.start: _key(record) for record in records if record.is_stored and record.crc and record.length}
    holders = store.chunks.part_holders(wanted.values())
    lists: dict[Digest, PartList | None] = {}
    for record in records:
        for blob, number in holders.get(wanted.get(record.start, 0), ()):
            fd = files.open(blob) if allowed(blob) else None
            if fd is None:
                continue
            if blob not in lists:
                lists[blob] = store.chunks.parts(blob, os.fstat(fd).st_size)
            known = lists[blob]
            if known is None or number >= len(known.parts):
                continue
            part = known.parts[number]
            if (part.length, part.crc) == (record.length, record.crc):
                yield from _of_record(record, part, blob, fd)
                break


def _key(record: Record) -> int:
    return Part(record.start, record.start, record.length, record.end, record.crc).key


def _of_record(record: Record, part: Part, blob: Digest, fd: int) -> Iterator[Donation]:
    """Yield a record's header, content and descriptor, as far as the donor's tell how they look here."""
    alike = (record.start >= _WIDE) == (part.start >= _WIDE)
    behind = part.end - part.content - part.length
    if not alike and record.head[2] & _DESCRIBED:  # a descriptor has its lengths in 32 bits, or in 64
        behind += 8 if record.start >= _WIDE else -8
    content = record.end - behind - record.length
    if content < record.start + LOCAL_HEADER + len(record.name):
        return
    if part.content % _ALIGNED == 0 and content % _ALIGNED:  # then it lies elsewhere
        return
    head = os.pread(fd, part.content - part.start, part.start)
    made = _header(record, content - record.start, head, part.start) if alike else None
    if made is not None:
        yield Donation(record.start, content, data=made)
    yield Donation(content, content + record.length, blob, part.content, crc=record.crc)
    described = os.pread(fd, behind, part.end - behind) if alike else b""
    if described[:4] == b"PK\7\x08" and described[4:8] == record.crc.to_bytes(4, "little"):
        yield Donation(record.end - behind, record.end, data=described)


def _header(record: Record, length: int, donor: bytes, donor_start: int) -> bytes | None:
    """Return a record's local header made from the donor's; None if it cannot be told."""
    crc = b"\0" * 4 if record.head[2] & _DESCRIBED else record.crc.to_bytes(4, "little")
    if donor[:4] != b"PK\3\4" or donor[4:14] != record.head or donor[14:18] != crc:
        return None
    names = int.from_bytes(donor[26:28], "little")
    try:
        fields = extra_fields(donor[LOCAL_HEADER + names :])
    except ContentError:
        return None
    left = length - LOCAL_HEADER - len(record.name)  # for the extra fields
    extra = b""
    for id, body in fields:
        if id == 1 and body == donor_start.to_bytes(8, "little"):
            body = record.start.to_bytes(8, "little")
        if id == _PADDING:
            body = body[:1] * (left - len(extra) - 4) if body else b"Z" * (left - len(extra) - 4)
        extra += struct.pack("<HH", id, len(body) & 0xFFFF) + body
    if len(extra) != left:
        return None
    return donor[:26] + struct.pack("<HH", len(record.name), left) + record.name + extra
