"""Sidecars: read back as written, and refused when anything about them is odd."""

from __future__ import annotations

import json
import struct
from dataclasses import replace

import pytest
import zstandard
from container_files import noise
from hypothesis import given
from hypothesis import strategies as st

from cas.errors import ContentError
from cas.index import sidecar
from cas.index.cutting import cut_file
from cas.index.digest import Digest
from cas.index.identity import RemoteIdentity
from cas.index.paths import RelativePath
from cas.index.sidecar import Sidecar, describe, version_of


def identity(size: int, **changes: object) -> RemoteIdentity:
    return RemoteIdentity("memory:x", size, **{"etag": '"1"', **changes})


@pytest.fixture
def described(tmp_path):
    def make(name: str, data: bytes):
        path = tmp_path / "file"
        path.write_bytes(data)
        with open(path, "rb") as file:
            return describe(file.fileno(), RelativePath(name), Digest.of(data), cut_file(path), identity(len(data)))

    return make


FILES = {"b/large": noise(3 << 20), "a.py": b"a = 1\n", "empty": b"", "c": noise(5000)}


@pytest.fixture
def made(described):
    return Sidecar.of(described(name, data) for name, data in FILES.items())


def test_it_is_read_back_as_it_was_written(made):
    assert Sidecar.parse(made.encode()) == made
    assert [one.path for one in made.files] == sorted(FILES)
    for one in made.files:
        assert one.size == len(FILES[one.path])
        assert sum(chunk.length for chunk, _ in one.pieces()) == one.size


def test_short_chunks_are_carried_in_it(made):
    by_path = {one.path: one for one in made.files}
    assert by_path["a.py"].whole == b"a = 1\n"
    assert by_path["empty"].whole == b""
    assert by_path["b/large"].whole is None
    for one in made.files:
        for chunk, data in one.pieces():
            assert bool(data) == (chunk.length < sidecar.INLINE)
            assert not data or chunk.holds(data)


def test_it_has_the_bytes_that_the_format_says(described):
    made = Sidecar.of([described("a", b"abc")])
    content = zstandard.ZstdDecompressor().decompress(made.encode())
    digest = Digest.of(b"abc")
    head = (
        b'{"cas":"sidecar","files":[{"chunker":"fastcdc-1","count":1,"digest":"%s","path":"a","size":3,'
        b'"version":{"etag":"\\"1\\""}}],"format":1}\n' % str(digest).encode()
    )
    assert content == head + struct.pack("<I", 3) + bytes.fromhex(digest.hex) + b"abc"


@given(st.integers(0, 400), st.integers(1, 255))
def test_no_touched_byte_is_read(at, value):
    data = bytearray(SMALL)
    data[at % len(data)] ^= value
    try:
        assert Sidecar.parse(bytes(data)) == Sidecar.parse(SMALL)
    except ContentError:
        return


def packed(content: bytes, **options: bool) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True, **options).compress(content)


def content_of(files: object, rest: bytes = b"", **changes: object) -> bytes:
    return json.dumps({"cas": "sidecar", "files": files, "format": 1, **changes}).encode() + b"\n" + rest


ENTRY = struct.pack("<I", 3) + bytes.fromhex(Digest.of(b"abc").hex)
FILE = {
    "path": "a",
    "size": 3,
    "digest": str(Digest.of(b"abc")),
    "chunker": "x-1",
    "count": 1,
    "version": {"etag": "1"},
}
SMALL = packed(content_of([FILE], ENTRY + b"abc"))


def test_the_small_one_is_right():
    assert Sidecar.parse(SMALL).files[0].whole == b"abc"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        content_of([FILE], ENTRY + b"ab"),
        content_of([FILE], ENTRY + b"abcd"),
        content_of([FILE], ENTRY[:-1]),
        content_of([FILE], ENTRY + b"abc", format=2),
        content_of([FILE], ENTRY + b"abc", cas="chunks"),
        content_of({}, b""),
        content_of([3]),
        content_of([FILE, FILE], ENTRY * 2 + b"abcabc"),
        content_of([{**FILE, "path": "../a"}], ENTRY + b"abc"),
        content_of([{**FILE, "path": 3}], ENTRY + b"abc"),
        content_of([{**FILE, "size": 4}], ENTRY + b"abc"),
        content_of([{**FILE, "size": -3}], ENTRY + b"abc"),
        content_of([{**FILE, "size": "3"}], ENTRY + b"abc"),
        content_of([{**FILE, "count": 2}], ENTRY + b"abc"),
        content_of([{**FILE, "count": 1 << 60}], ENTRY + b"abc"),
        content_of([{**FILE, "count": True}], ENTRY + b"abc"),
        content_of([{**FILE, "digest": "blake3:1"}], ENTRY + b"abc"),
        content_of([{**FILE, "digest": None}], ENTRY + b"abc"),
        content_of([{**FILE, "version": None}], ENTRY + b"abc"),
        content_of([{**FILE, "version": {"url": "x"}}], ENTRY + b"abc"),
        content_of([{**FILE, "chunker": None}], ENTRY + b"abc"),
        b"[" * 100_000 + b"\n",
    ],
    ids=range(24),
)
def test_what_lies_is_refused(content):
    with pytest.raises(ContentError):
        Sidecar.parse(packed(content))


def test_a_bomb_is_not_unpacked():
    bomb = zstandard.ZstdCompressor(write_checksum=True).compress(bytes(sidecar.MAX_BYTES + 1))
    assert len(bomb) < 100_000
    with pytest.raises(ContentError, match="odd"):
        Sidecar.parse(bomb)
    streamed = zstandard.ZstdCompressor(write_checksum=True).compressobj()  # says no size
    with pytest.raises(ContentError):
        Sidecar.parse(streamed.compress(bytes(1 << 20)) + streamed.flush())
    with pytest.raises(ContentError):
        Sidecar.parse(zstandard.ZstdCompressor().compress(content_of([])))  # has no checksum
    for data in (b"", b"x", SMALL[:-1], SMALL + b"\0", SMALL + SMALL):
        with pytest.raises(ContentError):
            Sidecar.parse(data)


def test_an_entry_is_of_one_version_only(made):
    one = made.files[0]
    assert one.is_of(identity(one.size))
    assert one.is_of(replace(identity(one.size), url="memory:y", modified=7))
    for other in (identity(one.size, etag='"2"'), identity(one.size + 1), identity(one.size, etag='W/"1"')):
        assert not one.is_of(other)
    nameless = replace(one, version=())
    assert not nameless.is_of(RemoteIdentity("memory:x", one.size))


def test_a_version_is_an_etag_or_else_what_a_disk_says():
    assert version_of(identity(3, modified=9)) == (("etag", '"1"'),)
    assert version_of(RemoteIdentity("file:///x", 3, version="7", modified=9)) == (("modified", 9), ("version", "7"))
    assert version_of(RemoteIdentity("gs://b/x", 3, version="7")) == (("version", "7"),)
    assert version_of(identity(3, etag='W/"1"')) == ()
    assert version_of(RemoteIdentity("http://x", 3, modified=9)) == ()
