"""Copies of files: the same bytes, whichever way the kernel knows, and an error where they cannot be."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from disks import fill, tmpfs

from cas.index import disk
from cas.index.disk import copying

MIB = 1 << 20
DATA = random.Random(1).randbytes(5 * MIB + 3)


@pytest.fixture
def source(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "source").write_bytes(DATA)
    fd = os.open(tmp_path / "source", os.O_RDONLY)
    yield fd
    os.close(fd)


def copy(source: int, path: Path, length: int, flags: int = 0) -> bytes:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | flags)
    try:
        disk.copy_whole(source, fd, length)
    finally:
        os.close(fd)
    return path.read_bytes()


@pytest.mark.parametrize("length", [0, 1, MIB, len(DATA)])
def test_what_is_copied_is_the_beginning_of_the_source(
    source: int, tmp_path: Path, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "COPY_WINDOW", 2 * MIB)
    assert copy(source, tmp_path / "copy", length) == DATA[:length]


@pytest.mark.root
@pytest.mark.parametrize("length", [1, 4 * MIB, len(DATA)])
def test_a_copy_on_another_disk_is_the_same(
    source: int, tmp_path: Path, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "COPY_WINDOW", 2 * MIB)
    with tmpfs(tmp_path / "disk", "size=16m") as point:
        assert copy(source, point / "copy", length) == DATA[:length]


def test_a_file_that_the_kernel_copies_nothing_into_is_written(source: int, tmp_path: Path) -> None:
    with open(tmp_path / "probe", "ab") as file, pytest.raises(OSError):  # what opens only for appending refuses both
        os.sendfile(file.fileno(), source, 0, 1)
    assert copy(source, tmp_path / "copy", len(DATA), os.O_APPEND) == DATA


@pytest.mark.root
def test_a_source_that_is_shorter_is_said(source: int, tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", "size=16m") as point:
        for number, folder in enumerate((tmp_path, point)):
            with pytest.raises(EOFError, match=str(len(DATA))):
                copy(source, folder / f"copy-{number}", len(DATA) + 1)


@pytest.mark.root
def test_a_full_disk_is_an_error_whichever_way(source: int, tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", "size=8m") as point:
        fill(point, leaving=2 * MIB)
        with pytest.raises(OSError) as caught:
            copy(source, point / "copy", len(DATA))
        assert caught.value.errno == errno.ENOSPC
