"""Append-only files of JSON lines, each with its own checksum: facts, records and journals.

A line is `<16 hex of XXH3-64 of the rest> <JSON>\\n`. A line that a crash tore is skipped by every reader, and
the next writer starts on a fresh line, so what was written before and after stays readable.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from cas.index import disk

MAX_LINE = 256 << 20  # bytes; longer runs without a newline are damage


def encode(payload: dict[str, Any]) -> bytes:
    """Return one line, with its newline."""
    body = json.dumps(payload, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode("utf-8")
    return b"%s %s\n" % (xxhash.xxh3_64_hexdigest(body).encode(), body)


def decode(line: bytes) -> dict[str, Any] | None:
    """Return the payload of one line, or None if it is torn or damaged."""
    check, _, body = line.rstrip(b"\n").partition(b" ")
    if not body or xxhash.xxh3_64_hexdigest(body).encode() != check:
        return None
    payload = json.loads(body)
    return payload if isinstance(payload, dict) else None


@dataclass(frozen=True, slots=True)
class Line:
    """One whole line: its bytes, and the offset in the file where the next one starts."""

    raw: bytes
    payload: dict[str, Any]
    end: int


@dataclass(slots=True)
class Torn:
    """How many lines a reader skipped because they were torn or damaged."""

    count: int = 0


def read(path: Path, start: int = 0, torn: Torn | None = None) -> Iterator[Line]:
    """Yield the whole lines from an offset on; a last line with no newline is not read yet.

    Raises:
        FileNotFoundError: there is no such file.
    """
    with open(path, "rb") as file:
        file.seek(start)
        offset = start
        while raw := file.readline(MAX_LINE):
            offset += len(raw)
            if not raw.endswith(b"\n"):
                break
            if raw == b"\n":
                continue
            payload = decode(raw)
            if payload is not None:
                yield Line(raw, payload, offset)
            elif torn is not None:
                torn.count += 1


def append(path: Path, payloads: Iterable[dict[str, Any]], *, durable: bool = False) -> None:
    """Append lines with one write; with `durable`, return only when they will survive a power cut."""
    data = b"".join(map(encode, payloads))
    if not data:
        return
    fd = disk.open_append(path)
    try:
        size = os.fstat(fd).st_size
        if size and os.pread(fd, 1, size - 1) != b"\n":
            data = b"\n" + data
        disk.write(fd, data)
        if durable:
            disk.sync(fd)
            if not size:
                disk.sync_folder(path.parent)
    finally:
        os.close(fd)
