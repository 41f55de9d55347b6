"""Where the parts of known containers lie: zip archives (`torch.save`, npz) and safetensors.

What is read comes from outside, so everything is bounded and checked; what does not fit is no container.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from cas.errors import ContentError
from cas.index.ranges import Range

TAIL = 64 << 10  # bytes read at the end of a file: holds the directory of some 900 records
MAX_DIRECTORY = 64 << 20  # bytes
MAX_RECORDS = 1 << 20
MAX_HEADER = 100 << 20  # bytes of a safetensors header: what its own library allows
LOCAL_HEADER = 30  # bytes of a record's local header before its name
_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR64 = struct.Struct("<4sIQI")
_ENTRY = struct.Struct("<4s6H3I5H2I")

Read = Callable[[int, int], bytes]  # (start, end) -> the bytes, fewer only behind the end of the file


class Record(NamedTuple):
    """One record of a zip archive, as its directory says; `head` are the fields that the local header repeats."""

    name: bytes
    start: int  # of the local header
    end: int  # where the next record starts, or the directory
    length: int  # of the content in the archive
    crc: int
    is_stored: bool
    head: bytes  # version needed, flags, method, time, date


class Place(NamedTuple):
    """Where the directory of a zip archive lies."""

    start: int
    end: int
    records: int


def is_zip(start: bytes) -> bool:
    """Whether these first bytes are those of a zip archive with something in it."""
    return start[:4] == b"PK\3\4"


# --- zip archives ------------------------------------------------------------------------------------------------


def find_directory(tail: bytes, size: int) -> Place:
    """Find the directory of a zip archive of `size` bytes by its last bytes (`TAIL`, or all of it).

    Raises:
        ContentError: it is no zip archive as frameworks write them: with no comment, and nothing before it.
    """
    if len(tail) < _END.size or tail[-_END.size :][:4] != b"PK\5\6" or tail[-2:] != b"\0\0":
        raise ContentError("no zip archive, or one with a comment")
    _, disk, first, here, count, length, start, _ = _END.unpack(tail[-_END.size :])
    end = size - _END.size
    if (
        0xFFFF in (here, count)
        or 0xFFFFFFFF in (length, start)
        or tail[-_END.size - _LOCATOR64.size :][:4] == b"PK\6\7"
    ):
        disk, first, here, count, length, start, end = _find64(tail, size)
    if disk or first or here != count or not 0 < count <= MAX_RECORDS or length > MAX_DIRECTORY:
        raise ContentError("a zip archive with an odd directory")
    if start + length != end or length < count * _ENTRY.size:
        raise ContentError("a zip archive with something before it, or after its directory")
    return Place(start, end, count)


def _find64(tail: bytes, size: int) -> tuple[int, int, int, int, int, int, int]:
    at = len(tail) - _END.size - _LOCATOR64.size
    if at < 0:
        raise ContentError("a zip archive that was cut short")
    signature, disk, place, disks = _LOCATOR64.unpack_from(tail, at)
    inside = place - (size - len(tail))
    if signature != b"PK\6\7" or disk or disks > 1 or not 0 <= inside <= at - _END64.size:
        raise ContentError("a zip archive with an odd end")
    signature, rest, _, _, disk, first, here, count, length, start = _END64.unpack_from(tail, inside)
    if signature != b"PK\6\6" or rest != _END64.size - 12 or inside + _END64.size != at:
        raise ContentError("a zip archive with an odd end")
    return disk, first, here, count, length, start, place


def parse_directory(data: bytes, place: Place) -> list[Record]:
    """Read the directory of a zip archive; records come in the order in which they lie.

    Raises:
        ContentError: it is damaged, or its records overlap, or do not fit between each other.
    """
    found, at = [], 0
    for _ in range(place.records):
        name, start, length, crc, is_stored, head, at = _entry(data, at)
        found.append((start, name, length, crc, is_stored, head))
    if at != len(data):
        raise ContentError("a zip archive's directory is longer than its records")
    found.sort()
    if not found or found[0][0] != 0:
        raise ContentError("a zip archive with something before it")
    ends = [start for start, *_ in found[1:]] + [place.start]
    records = []
    for (start, name, length, crc, is_stored, head), end in zip(found, ends, strict=True):
        if start + LOCAL_HEADER + len(name) + length > end:
            raise ContentError("records of a zip archive overlap")
        records.append(Record(name, start, end, length, crc, is_stored, head))
    return records


def _entry(data: bytes, at: int) -> tuple[bytes, int, int, int, bool, bytes, int]:
    if at + _ENTRY.size > len(data):
        raise ContentError("a zip archive's directory was cut short")
    fields = _ENTRY.unpack_from(data, at)
    signature, _, _, flags, method, _, _, crc, length, size, names, extras, comments, disk, _, _, start = fields
    name_at = at + _ENTRY.size
    end = name_at + names + extras + comments
    if signature != b"PK\1\2" or end > len(data) or disk not in (0, 0xFFFF):
        raise ContentError("a zip archive's directory is damaged")
    if 0xFFFFFFFF in (size, length, start):
        extra = data[name_at + names : name_at + names + extras]
        size, length, start = _wide(extra, size, length, start)
    is_stored = method == 0 and size == length and not flags & 1  # 1: encrypted
    return data[name_at : name_at + names], start, length, crc, is_stored, data[at + 6 : at + 16], end


def _wide(extra: bytes, *values: int) -> list[int]:
    """Return values of 32 bits with those that did not fit replaced by the extra field of 64 bits."""
    for id, body in extra_fields(extra):
        if id == 1:
            wide = [int.from_bytes(body[at : at + 8], "little") for at in range(0, len(body) // 8 * 8, 8)]
            needed = sum(value == 0xFFFFFFFF for value in values)
            if len(wide) >= needed:
                numbers = iter(wide)
                return [next(numbers) if value == 0xFFFFFFFF else value for value in values]
    raise ContentError("a zip archive's directory lacks a field of 64 bits")


def extra_fields(extra: bytes) -> list[tuple[int, bytes]]:
    """Return the fields behind a record's name.

    Raises:
        ContentError: they were cut short.
    """
    found, at = [], 0
    while at < len(extra):
        id, length = struct.unpack_from("<HH", extra.ljust(at + 4, b"\0"), at)
        if at + 4 + length > len(extra):
            raise ContentError("a zip archive's extra fields were cut short")
        found.append((id, extra[at + 4 : at + 4 + length]))
        at += 4 + length
    return found


def read_directory(read: Read, size: int) -> list[Record]:
    """Read the records of a zip archive from its end.

    Raises:
        ContentError: it is none that `find_directory` and `parse_directory` take.
    """
    tail_start = max(0, size - TAIL)
    tail = read(tail_start, size)
    place = find_directory(tail, size)
    inside = place.start - tail_start
    data = tail[inside : place.end - tail_start] if inside >= 0 else read(place.start, place.end)
    return parse_directory(data, place)


def content_start(read: Read, record: Record) -> int:
    """Return where a record's content starts, which only its local header says.

    Raises:
        ContentError: the header is not the record's, or the content does not fit.
    """
    header = read(record.start, record.start + LOCAL_HEADER)
    if len(header) < LOCAL_HEADER or header[:4] != b"PK\3\4":
        raise ContentError("a zip archive's record has no header")
    names, extras = struct.unpack_from("<HH", header, 26)
    start: int = record.start + LOCAL_HEADER + names + extras
    if names != len(record.name) or start + record.length > record.end:
        raise ContentError("a zip archive's record does not fit its header")
    return start


# --- what has which parts ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Container:
    """A file's kind, and where its parts lie: sorted, not overlapping, within the file."""

    kind: str
    parts: tuple[Range, ...]


def container_of(read: Read, size: int) -> Container | None:
    """Find out what a file of `size` bytes is; None if it is no container that is known."""
    start = read(0, min(size, 8))
    try:
        if is_zip(start):
            return Container("zip", tuple(_zip_parts(read, size)))
        if len(start) == 8:
            return Container("safetensors", tuple(_tensors(read, size, int.from_bytes(start, "little"))))
    except ContentError:
        pass
    return None


def _zip_parts(read: Read, size: int) -> list[Range]:
    found = []
    for record in read_directory(read, size):
        start = content_start(read, record)
        found.append(Range(start, start + record.length))
    return found


def _tensors(read: Read, size: int, length: int) -> list[Range]:
    """Return where the tensors of a safetensors file lie (https://huggingface.co/docs/safetensors)."""
    if not 2 <= length <= min(size - 8, MAX_HEADER) or read(8, 9) != b"{":
        raise ContentError("no safetensors file")
    try:
        header = json.loads(read(8, 8 + length))
        offsets = [one["data_offsets"] for name, one in header.items() if name != "__metadata__"]
        found = sorted(Range(8 + length + start, 8 + length + end) for start, end in offsets)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ContentError("no safetensors file") from error
    at = 8 + length
    for start, end in found:
        if type(start) is not int or type(end) is not int or not at <= start <= end <= size:
            raise ContentError("tensors of a safetensors file overlap, or do not lie in it")
        at = end
    return found
