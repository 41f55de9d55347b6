"""Chunk lists and part lists: what is written is read back, and nothing else is read."""

from __future__ import annotations

import json
import struct

import blake3
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from cas.errors import ContentError
from cas.index.chunks import MAX_CHUNK, Chunk, ChunkList, Part, PartList, chunk_key

PIECES = [(5, b"a" * 32), (7, b"b" * 32), (1, b"c" * 32)]
PARTS = PartList(100, (Part(0, 10, 20, 40, 7), Part(40, 50, 50, 100, 2**32 - 1)))


@given(st.lists(st.tuples(st.integers(1, MAX_CHUNK), st.binary(min_size=32, max_size=32)), max_size=20))
def test_a_chunk_list_is_read_back_as_it_was_written(pieces):
    chunks = ChunkList.of("zip-1", pieces)
    again = ChunkList.parse(chunks.encode(), chunks.size)
    assert again == chunks
    assert [(chunk.length, chunk.digest) for chunk in again] == pieces
    assert [chunk.start for chunk in again] == [sum(size for size, _ in pieces[:at]) for at in range(len(pieces))]
    assert len(again) == len(pieces)


def test_a_chunk_list_has_the_bytes_that_the_format_says():
    chunks = ChunkList.of("zip-1", [(5, bytes(range(32)))])
    body = b'{"cas":"chunks","chunker":"zip-1","count":1,"format":1,"size":5}\n' + b"\5\0\0\0" + bytes(range(32))
    assert chunks.encode() == body + bytes.fromhex(xxhash.xxh3_64_hexdigest(body))


def test_a_part_list_has_the_bytes_that_the_format_says():
    body = b'{"cas":"parts","count":1,"format":1,"size":100}\n' + struct.pack("<4QI", 0, 10, 20, 40, 7)
    written = PartList(100, PARTS.parts[:1]).encode()
    assert written == body + bytes.fromhex(xxhash.xxh3_64_hexdigest(body))


def test_a_part_list_is_read_back_as_it_was_written():
    assert PartList.parse(PARTS.encode(), 100) == PARTS


@pytest.mark.parametrize("kind", ["chunks", "parts"])
def test_a_list_that_was_touched_anywhere_is_refused(kind):
    data = ChunkList.of("zip-1", PIECES).encode() if kind == "chunks" else PARTS.encode()
    parse, size = (ChunkList.parse, 13) if kind == "chunks" else (PartList.parse, 100)
    for at in range(len(data)):
        with pytest.raises(ContentError):
            parse(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], size)
        with pytest.raises(ContentError):
            parse(data[:at], size)
    with pytest.raises(ContentError):
        parse(data + b"\0", size)
    with pytest.raises(ContentError):
        parse(data, size + 1)


def sealed(head: object, entries: bytes) -> bytes:
    body = json.dumps(head).encode() + b"\n" + entries
    return body + xxhash.xxh3_64_digest(body)


def head(**changes: object) -> dict[str, object]:
    return {"cas": "chunks", "chunker": "zip-1", "count": 1, "format": 1, "size": 5, **changes}


ENTRY = struct.pack("<I32s", 5, b"a" * 32)


@pytest.mark.parametrize(
    ("changes", "entries"),
    [
        ({"cas": "parts"}, ENTRY),
        ({"format": 2}, ENTRY),
        ({"count": 2}, ENTRY),
        ({"count": -1}, ENTRY),
        ({"count": True}, ENTRY),
        ({"count": 1 << 40}, ENTRY),
        ({"chunker": ""}, ENTRY),
        ({"chunker": 3}, ENTRY),
        ({"chunker": "x" * 41}, ENTRY),
        ({"size": "5"}, ENTRY),
        ({}, struct.pack("<I32s", 4, b"a" * 32)),
        ({}, struct.pack("<I32s", 6, b"a" * 32)),
        ({"count": 2}, struct.pack("<I32s", 0, b"a" * 32) + ENTRY),
        ({"size": MAX_CHUNK + 1}, struct.pack("<I32s", MAX_CHUNK + 1, b"a" * 32)),
        ({"x" * 1000: 1}, ENTRY),
    ],
)
def test_a_chunk_list_that_lies_is_refused(changes, entries):
    with pytest.raises(ContentError):
        ChunkList.parse(sealed(head(**changes), entries), MAX_CHUNK + 1 if "size" in changes else 5)


@pytest.mark.parametrize("data", [b"", b"\n", b"[]\n", b"null\n" + b"0" * 8, b"{" * 2000, b"[" * 900 + b"\n"])
def test_what_is_no_list_at_all_is_refused(data):
    with pytest.raises(ContentError):
        ChunkList.parse(data, 0)
    with pytest.raises(ContentError):
        PartList.parse(data, 0)


@pytest.mark.parametrize(
    "part", [(5, 4, 1, 9, 1), (0, 0, 1, 9, 1), (0, 4, 6, 9, 1), (0, 4, 1, 101, 1), (0, 4, 1, 9, 0), (0, 4, 2**63, 9, 1)]
)
def test_parts_that_do_not_fit_are_refused(part):
    entries = struct.pack("<4QI", *part)
    with pytest.raises(ContentError):
        PartList.parse(sealed({"cas": "parts", "count": 1, "format": 1, "size": 100}, entries), 100)


def test_parts_that_overlap_are_refused():
    entries = struct.pack("<4QI", 0, 10, 20, 40, 7) + struct.pack("<4QI", 39, 50, 10, 60, 7)
    with pytest.raises(ContentError):
        PartList.parse(sealed({"cas": "parts", "count": 2, "format": 1, "size": 100}, entries), 100)


def test_a_chunk_knows_its_bytes():
    chunk = Chunk(0, 3, blake3.blake3(b"abc").digest())
    assert chunk.holds(b"abc")
    assert not chunk.holds(b"abd")
    assert not chunk.holds(b"ab")


@given(st.binary(min_size=32, max_size=32))
def test_keys_fit_into_what_sqlite_keeps(digest):
    assert -(1 << 63) <= chunk_key(digest) < 1 << 63
    part = Part(0, 1, 2, 3, int.from_bytes(digest[:4], "big") | 1)
    assert -(1 << 63) <= part.key < 1 << 63
    assert part.key == part._replace(start=9, content=10, end=90).key
    assert part.key != part._replace(length=3).key
