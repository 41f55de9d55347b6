"""Append-only files of JSON lines, each with its own checksum: facts, records and journals.

A line is `<16 hex of XXH3-64 of the JSON> <JSON>\\n`. A line that a crash tore is skipped by every reader, and
the next writer starts on a fresh line, so what was written before and after stays readable.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from cas.errors import ContentError
from cas.index import disk

MAX_LINE = 256 << 20  # bytes; longer runs without a newline are damage
_AT_ONCE = 1 << 18  # bytes of lines that are parsed together
MAX_DEPTH = 100  # of lists and objects within each other: far below where any JSON reader gives up


_AS_THEY_ARE = {str, int, bool, type(None)}
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def encode(payload: Mapping[str, Any]) -> bytes:
    """Return one line, with its newline. Numbers that JSON does not have become "NaN", "Infinity", "-Infinity".

    Raises:
        ContentError: the payload is nested too deeply, or is no JSON.
    """
    try:
        text = _ENCODER.encode(_plain(payload, MAX_DEPTH))
    except (TypeError, ValueError) as error:
        raise ContentError(f"cannot be written as JSON: {error}") from error
    try:
        body = text.encode("utf-8")
    except UnicodeEncodeError:  # half of a surrogate pair: only an escape can say it
        body = json.dumps(json.loads(text), separators=(",", ":")).encode("ascii")
    return b"%s %s\n" % (xxhash.xxh3_64_hexdigest(body).encode(), body)


def _plain(value: Any, depth: int) -> Any:
    """Return the value with numbers that JSON does not have as text (as protocol buffers' JSON says them)."""
    if type(value) in _AS_THEY_ARE:  # nearly all; asking whether they are mappings takes longer than all else
        return value
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if not isinstance(value, Mapping | list | tuple):
        return value
    if not depth:
        raise ContentError(f"JSON with more than {MAX_DEPTH} lists and objects within each other")
    if isinstance(value, Mapping):
        return {name: _plain(one, depth - 1) for name, one in value.items()}
    return [_plain(one, depth - 1) for one in value]


def decode(line: bytes) -> dict[str, Any] | None:
    """Return the payload of one line, or None if it is torn, damaged, or nothing that `encode` writes."""
    if not is_whole(line):
        return None
    try:
        payload = _DECODER.decode(str(line[_HEAD:], "utf-8"))
    except (ValueError, RecursionError):
        return None
    return payload if isinstance(payload, dict) else None


def decode_whole(found: list[bytes]) -> list[dict[str, Any] | None]:
    """Return what `decode` does of lines that are whole; one parse of all is several times as fast as one of each."""
    try:
        payloads = _DECODER.decode(str(b"[%s]" % b",".join([line[_HEAD:] for line in found]), "utf-8"))
    except (ValueError, RecursionError):
        payloads = []
    if len(payloads) == len(found) and all(type(one) is dict for one in payloads):
        return payloads  # type: ignore[no-any-return]  # the line above has looked
    return [decode(line) for line in found]


def is_whole(line: bytes) -> bool:
    """Whether a line's checksum is right."""
    check, space, body = line[: _HEAD - 1], line[_HEAD - 1 : _HEAD], line[_HEAD:].removesuffix(b"\n")
    return space == b" " and xxhash.xxh3_64_hexdigest(body).encode() == check


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse)  # one for all: making it costs as much as a line
_HEAD = 17  # bytes of a line before its JSON: the checksum and a space


@dataclass(frozen=True, slots=True)
class Line:
    """One whole line: its bytes, and the offset in the file where the next one starts."""

    raw: bytes
    payload: dict[str, Any]
    end: int


@dataclass(slots=True)
class Torn:
    """How many lines a reader skipped because they were torn or damaged; `kept`: their bytes, if those are wanted."""

    count: int = 0
    kept: list[bytes] | None = None


def read(path: Path, start: int = 0, torn: Torn | None = None) -> Iterator[Line]:
    """Yield the whole lines from an offset on; a last line with no newline is not read yet.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it is no plain file, or cannot be read.
    """
    with open(disk.open_file(path), "rb") as file:
        file.seek(start)
        offset, size = start, 0
        waiting: list[tuple[bytes, int]] = []
        while raw := file.readline(MAX_LINE):
            offset += len(raw)
            if not raw.endswith(b"\n"):
                if len(raw) < MAX_LINE:
                    break
                continue
            waiting.append((raw, offset))
            size += len(raw)
            if size >= _AT_ONCE:
                yield from _whole(waiting, torn)
                waiting, size = [], 0
        yield from _whole(waiting, torn)


def _whole(found: list[tuple[bytes, int]], torn: Torn | None) -> Iterator[Line]:
    """Yield those lines that are whole, each with its end."""
    flags = [is_whole(raw) for raw, _ in found]
    payloads = iter(decode_whole([raw for (raw, _), is_good in zip(found, flags, strict=True) if is_good]))
    for (raw, end), is_good in zip(found, flags, strict=True):
        payload = next(payloads) if is_good else None
        if payload is not None:
            yield Line(raw, payload, end)
        elif torn is not None and raw != b"\n":
            torn.count += 1
            if torn.kept is not None:
                torn.kept.append(raw)


def append(path: Path, payloads: Iterable[Mapping[str, Any]], *, durable: bool = False, may_move: bool = False) -> None:
    """Append lines with one write; with `durable`, return only when they will survive a power cut.

    The folders' own names are the caller's to sync. With `may_move`, the file may be renamed meanwhile by who writes
    it anew (compaction.py): then the lines are appended once more, to the file that has the name now.

    Raises:
        ContentError: a payload is nested too deeply, or is no JSON; nothing was written.
    """
    data = b"".join(map(encode, payloads))
    if not data:
        return
    while not _append(path, data, durable=durable) and may_move:
        pass


def make(path: Path) -> None:
    """Make the file, with no line in it, if it is not there."""
    os.close(disk.open_append(path))


def _append(path: Path, data: bytes, *, durable: bool) -> bool:
    """Append to the file of a name; return whether it still has that name."""
    fd = disk.open_append(path)
    try:
        while data:
            data = _append_once(fd, data)
        if durable:
            disk.sync(fd)
        try:
            return os.path.samestat(os.fstat(fd), os.stat(path))
        except FileNotFoundError:
            return False
    finally:
        os.close(fd)


def _append_once(fd: int, data: bytes) -> bytes:
    """Append lines with one write; return those that are not whole in the file, to be written again.

    What is there of one that is not whole becomes empty lines, which no reader counts: that needs no room.

    Another process may be killed in the middle of its own write, between our look at the end and our write: then our
    first line stands behind the half of one, and would be lost.
    """
    size = os.fstat(fd).st_size
    if size and os.pread(fd, 1, size - 1) != b"\n":
        data = b"\n" + data
    count = disk.write_once(fd, data)
    start = os.lseek(fd, 0, os.SEEK_CUR) - count
    whole = data.rfind(b"\n", 0, count) + 1
    if whole < count:  # the disk is full
        disk.overwrite(fd, b"\n" * (count - whole), start + whole)
    if start > 0 and not data.startswith(b"\n") and os.pread(fd, 1, start - 1) != b"\n":
        return data
    return data[whole:]
