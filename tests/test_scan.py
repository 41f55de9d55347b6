"""Scanning: every name in order, between two names, in a stream; hostile names are told, not followed."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from remotes import FaultyRemote, MemoryRemote
from s3_server import S3Server

from cas.config import Settings
from cas.errors import CheckpointNotFoundError, TransientRemoteError
from cas.transfer import scan as scanning
from cas.transfer.folder import FolderRemote
from cas.transfer.remote import Remote
from cas.transfer.retry import RetryingRemote
from cas.transfer.scan import LAST, Found, in_order, scan
from cas.transfer.urls import remote_for_url

NAMES = ["A/x", "a-b/x", "a.txt", "a/b/c", "a/d", "a/ü", "b", "ba/1", "c/雪", "c/𝄞", "zz/9"]


def names(remote: Remote, after: str = "", before: str = LAST) -> list[str]:
    return [found.name for found in scan(remote, after=after, before=before) if not found.name.endswith("/")]


def folder(path: Path, files: list[str]) -> FolderRemote:
    for name in files:
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(name.encode())
    return FolderRemote(path)


def check(remote: Remote) -> None:
    """What every remote must do."""
    expected = sorted(NAMES, key=in_order)
    assert names(remote) == expected
    for low in ["", *expected, "a", "a/", "c0", LAST]:
        for high in ("a/d", "b", "c/雪", LAST):
            between = [name for name in expected if in_order(low) < in_order(name) < in_order(high)]
            assert names(remote, low, high) == between, (low, high)
    read(remote)


def read(remote: Remote) -> None:
    for found in scan(remote):
        if found.file is not None:
            assert b"".join(map(bytes, remote.read(found.file, 0, found.size))) == found.name.encode()


def test_a_folder_is_scanned_in_order_of_whole_names(tmp_path: Path) -> None:
    check(folder(tmp_path, NAMES))


def test_a_remote_that_cannot_stream_is_listed(tmp_path: Path) -> None:
    check(MemoryRemote({name: name.encode() for name in NAMES}))


@pytest.mark.s3
def test_a_bucket_is_scanned(s3_server: S3Server, bucket: str, upload: Callable[..., None], monkeypatch: Any) -> None:
    upload({f"deep/er/{name}": name.encode() for name in NAMES} | {"deep/er-other/x": b"x", "deep/es": b"y"})
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.secret_key)
    remote = remote_for_url(f"s3+{s3_server.endpoint}/{bucket}/deep/er", Settings.load())
    listed = names(remote)
    assert sorted(listed) == sorted(NAMES)  # this server's order is folder by folder
    folders = [name.partition("/")[0] for name in listed]
    assert [one for one, _ in itertools.groupby(folders)] == list(dict.fromkeys(folders))
    for at, name in enumerate(listed):
        assert names(remote, name) == listed[at + 1 :]
    for low, high in itertools.combinations(["", "@" + LAST, "`" + LAST, "a" + LAST, "b" + LAST, "y" + LAST, LAST], 2):
        assert names(remote, low, high) == [name for name in listed if in_order(low) < in_order(name) < in_order(high)]
    read(remote)


def test_folders_are_told_with_a_slash(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert list(scan(folder(tmp_path, ["a/b/c"]))) == [
        Found("a/"),
        Found("a/b/"),
        next(found for found in scan(FolderRemote(tmp_path)) if found.file),
        Found("empty/"),
    ]


def test_what_is_no_file_is_told_and_not_followed(tmp_path: Path) -> None:
    remote = folder(tmp_path / "in", ["a/file"])
    (tmp_path / "secret").write_text("secret")
    os.mkfifo(tmp_path / "in" / "pipe")
    links = {"inside": "a/file", "out": "../secret", "nowhere": "no", "loop": "loop", "above": "..", "folder": "a"}
    for name, target in links.items():
        (tmp_path / "in" / name).symlink_to(target)
    (tmp_path / "in" / os.fsdecode(b"odd\xff")).write_text("x")
    (tmp_path / "in" / "back\\slash").write_text("x")
    found = {one.name: one for one in scan(remote)}
    assert set(found) == {"a/", "a/file", "pipe", *links, os.fsdecode(b"odd\xff"), "back\\slash"}
    assert {name for name, one in found.items() if one.file} == {"a/file", "inside"}


def test_a_folder_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError):
        list(scan(FolderRemote(tmp_path / "no")))


class Breaking(MemoryRemote):
    """A remote whose scan breaks off after each few names."""

    def __init__(self, files: dict[str, bytes], each: int) -> None:
        super().__init__(files)
        self.each = each
        self.scans = 0

    def scan(self, *, after: str = "", before: str = LAST):  # type: ignore[no-untyped-def]
        self.scans += 1
        listed = sorted(self._files, key=in_order)
        left = [name for name in listed if in_order(after) < in_order(name) < in_order(before)]
        for name in left[: self.each]:
            yield Found(name)
        if len(left) > self.each:
            raise TransientRemoteError("503")


@settings(deadline=None)
@given(st.sets(st.text("ab/é", min_size=1).filter(scanning.path_of)), st.integers(1, 4))
def test_a_scan_that_breaks_off_goes_on_behind_the_last_name(found: set[str], each: int) -> None:
    remote = Breaking(dict.fromkeys(found, b""), each)
    retrying = RetryingRemote(remote, pause=0.0)
    assert names(retrying) == sorted(found, key=in_order)
    assert remote.scans == max(1, -(-len(found) // each))


def test_faults_of_the_scan_of_a_listed_remote_are_tried_again() -> None:
    remote = RetryingRemote(FaultyRemote(MemoryRemote({"a": b"1"}), ""), pause=0.0)
    assert names(remote) == ["a"]


def test_a_url_is_scanned_like_its_folder(tmp_path: Path) -> None:
    folder(tmp_path, ["a/b"])
    assert names(remote_for_url(tmp_path.as_uri(), Settings.load())) == ["a/b"]
