"""Where parts of containers lie: as their own libraries say, and nothing is believed that does not fit."""

from __future__ import annotations

import io
import struct
import zipfile

import pytest
from container_files import directory_changed, noise, npz_file, safetensors_file, torch_file, zip_file
from hypothesis import given
from hypothesis import strategies as st

from cas.errors import ContentError
from cas.index import containers
from cas.index.containers import container_of, content_start, read_directory

RECORDS = {"a": b"hello", "folder/b": noise(5000), "c": b""}


def reader(data: bytes):
    return lambda start, end: data[start : max(start, end)]


def records_of(data: bytes):
    return read_directory(reader(data), len(data))


@given(st.dictionaries(st.text("abc/", min_size=1, max_size=8), st.binary(max_size=300), min_size=1, max_size=8))
def test_records_are_those_that_zipfile_reads(records):
    data = zip_file(records)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        expected = [(i.filename.encode(), i.header_offset, i.compress_size, i.CRC) for i in archive.infolist()]
    found = records_of(data)
    assert [(one.name, one.start, one.length, one.crc) for one in found] == expected
    for one in found:
        start = content_start(reader(data), one)
        assert data[start : start + one.length] == records[one.name.decode()]
        assert one.is_stored
    assert [one.end for one in found] == [one.start for one in found[1:]] + [int.from_bytes(data[-6:-2], "little")]


@pytest.mark.torch
def test_records_of_torch_lie_where_torch_put_them():
    import torch

    weights = torch.arange(3000.0)
    data = torch_file({"w": weights})
    found = {one.name: one for one in records_of(data)}
    record = found[b"model/data/0"]
    start = content_start(reader(data), record)
    assert data[start : start + record.length] == weights.numpy().tobytes()
    assert record.is_stored


def test_compressed_records_are_not_taken_for_stored_ones():
    assert [one.is_stored for one in records_of(zip_file({"a": b"a" * 1000}, compress=True))] == [False]


def test_an_archive_of_more_than_4_gib_is_read_by_its_wide_fields():
    name, far, wide = b"big", 5 << 30, 6 << 30
    extra = struct.pack("<HHQQQ", 1, 24, wide, wide, far)
    entry = struct.pack(
        "<4s6H3I5H2I", b"PK\1\2", 45, 45, 0, 0, 0, 0, 7, *[0xFFFFFFFF] * 2, 3, len(extra), 0, 0, 0, 0, 0xFFFFFFFF
    )
    small = struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 0, 0, 0, 9, 5, 5, 1, 0, 0, 0, 0, 0, 0)
    directory = small + b"s" + entry + name + extra
    start = far + 30 + 3 + 20 + wide
    end64 = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, 2, 2, len(directory), start)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, start + len(directory), 1)
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 2, 2, len(directory), 0xFFFFFFFF, 0)
    tail = directory + end64 + locator + end
    size = start + len(tail)

    def read(begin: int, stop: int) -> bytes:
        assert begin >= start - containers.TAIL
        return (bytes(containers.TAIL) + tail)[begin - (start - containers.TAIL) :][: stop - begin]

    first, second = read_directory(read, size)
    assert (first.name, first.length, first.end) == (b"s", 5, far)
    assert (second.name, second.start, second.length, second.end) == (b"big", far, wide, start)


def test_a_directory_longer_than_the_tail_is_read_whole():
    data = zip_file({f"record-{number:060}": b"x" for number in range(1000)})
    assert len(records_of(data)) == 1000


DATA = zip_file(RECORDS)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK\3\4",
        DATA[:-1],
        DATA + b"\0",
        b"\0" + DATA,
        DATA[:-2] + b"\1\0",
        DATA[:-10] + struct.pack("<I", 2**31) + DATA[-6:],
        DATA[:-14] + struct.pack("<HH", 9, 9) + DATA[-10:],
        DATA[:-14] + struct.pack("<HH", 2, 2) + DATA[-10:],
        directory_changed(DATA, 0, length=2**31),
        directory_changed(DATA, 1, start=0),
        directory_changed(DATA, 1, start=3),
        directory_changed(DATA, 0, start=2**32 - 1),
        zip_file({}),
    ],
    ids=range(14),
)
def test_an_archive_that_lies_is_none(data):
    with pytest.raises(ContentError):
        records_of(data)
    assert container_of(reader(data), len(data)) is None


@given(st.integers(0, len(DATA) - 1), st.integers(0, 255))
def test_no_damage_makes_more_than_a_refusal(at, value):
    data = DATA[:at] + bytes([value]) + DATA[at + 1 :]
    found = container_of(reader(data), len(data))
    if found is not None:
        assert all(0 <= start <= end <= len(data) for start, end in found.parts)
        assert all(one.end <= two.start for one, two in zip(found.parts, found.parts[1:], strict=False))


def test_a_header_that_is_not_the_records_is_refused():
    record = records_of(DATA)[1]
    broken = DATA[: record.start + 26] + b"\xff\xff" + DATA[record.start + 28 :]
    with pytest.raises(ContentError):
        content_start(reader(broken), record)
    with pytest.raises(ContentError):
        content_start(reader(b"\0" * len(DATA)), record)
    with pytest.raises(ContentError):
        content_start(lambda start, end: b"", record)


def test_a_bomb_of_records_is_bounded():
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    place = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, 2**40, 2**40, 2**46, 0)
    data = place + struct.pack("<4sIQI", b"PK\6\7", 0, 0, 1) + end
    with pytest.raises(ContentError, match="odd directory"):
        records_of(data)


def test_extra_fields_that_were_cut_short_are_refused():
    assert containers.extra_fields(b"FB\2\0ZZ\1\0\0\0") == [(0x4246, b"ZZ"), (1, b"")]
    for extra in (b"F", b"FB\1", b"FB\1\0", b"FB\3\0ZZ"):
        with pytest.raises(ContentError):
            containers.extra_fields(extra)


# --- safetensors, npz --------------------------------------------------------------------------------------------


def test_tensors_lie_where_the_library_reads_them():
    import numpy as np
    from safetensors.numpy import save

    data = save({"b": np.full(7, ord("7"), np.uint8), "a": np.full(3, ord("3"), np.uint8)})
    found = container_of(reader(data), len(data))
    assert found is not None and found.kind == "safetensors"
    assert sorted(data[start:end] for start, end in found.parts) == [b"333", b"7777777"]


def test_arrays_of_npz_are_its_parts():
    import numpy as np

    data = npz_file({"x": np.arange(1000.0), "y": np.zeros(5)})
    found = container_of(reader(data), len(data))
    assert found is not None and found.kind == "zip"
    assert np.arange(1000.0).tobytes() in data[slice(*found.parts[0])]


TENSORS = safetensors_file({"a": b"x" * 10, "b": b"y" * 20})


@pytest.mark.parametrize(
    "change",
    [
        (b"[0, 10]", b"[0, 11]"),
        (b"[0, 10]", b"[-1,10]"),
        (b"[0, 10]", b"[9, 1 ]"),
        (b"[0, 10]", b"[0,1e1]"),
        (b"[0, 10]", b"[0]    "),
        (b"[10, 30]", b"[10, 99]"),
        (b"data_offsets", b"data_offsetz"),
        (b"{", b"["),
        (struct.pack("<Q", 2)[:1], b""),
    ],
)
def test_a_safetensors_file_that_lies_is_none(change):
    data = TENSORS.replace(*change, 1)
    assert data != TENSORS or change[1] == b""
    assert container_of(reader(data), len(data)) is None or change[1] == b""


@pytest.mark.parametrize("length", [0, 1, 1 << 40, (1 << 64) - 1])
def test_a_header_of_an_odd_length_is_no_safetensors(length):
    data = struct.pack("<Q", length) + TENSORS[8:]
    assert container_of(reader(data), len(data)) is None


@given(st.binary(max_size=100))
def test_any_bytes_are_a_container_or_none(data):
    assert container_of(reader(data), len(data)) is None or data
