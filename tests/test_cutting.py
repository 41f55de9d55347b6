"""Cutting files: the chunks are the file, what is unchanged has the same chunks, wherever it lies."""

from __future__ import annotations

import blake3
import pytest
from container_files import noise, safetensors_file, torch_file, zip_file
from hypothesis import given, settings
from hypothesis import strategies as st

from cas.errors import ContentError
from cas.index import cutting
from cas.index.cutting import BLOCK, LEAST, MOST, cut_file


@pytest.fixture
def cut(tmp_path):
    def run(data: bytes):
        path = tmp_path / "file"
        path.write_bytes(data)
        chunks = cut_file(path)
        for chunk in chunks:
            assert chunk.holds(data[chunk.start : chunk.start + chunk.length])
        assert chunks.size == len(data)
        assert sum(chunk.length for chunk in chunks) == len(data)
        return chunks

    return run


def shared(one, other) -> int:
    """How many bytes of `other` have a chunk that `one` has."""
    known = {chunk.digest for chunk in one}
    return sum(chunk.length for chunk in other if chunk.digest in known)


def test_chunks_of_any_file_are_its_bytes(cut):
    for size in (0, 1, LEAST, LEAST + 1, BLOCK, 5 << 20):
        chunks = cut(noise(size))
        assert chunks.chunker == "fastcdc-1"
        assert all(chunk.length <= MOST for chunk in chunks)
        assert all(chunk.length >= LEAST for chunk in list(chunks)[:-1])


def test_reading_in_windows_cuts_as_reading_at_once_does(cut, monkeypatch):
    data = noise(6 << 20)
    chunks = cut(data)
    monkeypatch.setattr(cutting, "_WINDOW", 8 << 20)
    assert cut(data) == chunks


def test_cuts_are_pinned():
    """Lists of one chunker's version must agree for ever: siblings cut by two versions of cas share their chunks."""
    import tempfile

    with tempfile.NamedTemporaryFile() as file:
        file.write(noise(1 << 20, seed=1))
        file.flush()
        entries = cut_file(file.name).entries
    assert blake3.blake3(entries).hexdigest()[:16] == "eb2d2c4a58731f67"


def test_insertions_and_deletions_change_few_chunks(cut):
    data = noise(8 << 20)
    first = cut(data)
    changed = data[: 1 << 20] + b"inserted" + data[1 << 20 : 3 << 20] + data[(3 << 20) + 5000 :]
    assert len(changed) - shared(first, cut(changed)) < 4 * MOST


def test_a_tensor_has_the_same_chunks_wherever_it_lies(cut):
    tensor, other = noise(3 * BLOCK + 777, seed=1), noise(BLOCK, seed=2)
    first = cut(safetensors_file({"t": tensor}))
    assert first.chunker == "safetensors-1"
    moved = cut(safetensors_file({"longer name": other, "t": tensor}))
    assert shared(first, moved) == len(tensor)
    archive = cut(zip_file({"x": b"abc", "y": tensor}))
    assert archive.chunker == "zip-1"
    assert shared(first, archive) == len(tensor)


@pytest.mark.torch
def test_a_checkpoint_of_torch_is_cut_where_its_tensors_begin(cut):
    import torch

    frozen = torch.randn(300, 1000)
    first = cut(torch_file({"frozen": frozen, "head": torch.randn(100, 1000)}))
    second = cut(torch_file({"new": torch.randn(77), "frozen": frozen, "head": torch.randn(100, 1000)}, name="other"))
    assert shared(first, second) >= 1_200_000
    assert len(first) < 20


@settings(max_examples=30)
@given(st.lists(st.integers(0, 3 * cutting.SMALL_PART), max_size=12))
def test_small_parts_are_glue_and_every_byte_is_in_one_chunk(sizes):
    import tempfile

    data = zip_file({f"r{number}": noise(size, seed=number) for number, size in enumerate(sizes)})
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        chunks = cut_file(file.name)
    assert all(chunk.holds(data[chunk.start : chunk.start + chunk.length]) for chunk in chunks)
    assert chunks.size == len(data)
    assert len(chunks) <= 2 * sum(size >= cutting.SMALL_PART for size in sizes) + 3


def test_a_file_that_becomes_shorter_is_an_error_and_no_crash(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(noise(1 << 20))
    real = cutting.container_of

    def shorten(read, size):
        with open(path, "r+b") as file:
            file.truncate(1000)
        return real(read, size)

    monkeypatch.setattr(cutting, "container_of", shorten)
    with pytest.raises(ContentError, match="shorter"):
        cut_file(path)
