"""Folders as remotes."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path

import pytest
from remote_suite import FILES, FOLDERS, RemoteSuite

from cas.errors import ChangedError, CheckpointNotFoundError, ContentError, NotAllowedError, UnsafeNameError
from cas.transfer.folder import FolderRemote


class TestFolderRemote(RemoteSuite):
    publishes = True

    @pytest.fixture
    def remote(self, tmp_path):
        place = tmp_path / "uuid"
        for name, data in FILES.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(data)
        for name in FOLDERS:
            (place / name).mkdir(parents=True)
        (tmp_path / "uuid-other").mkdir()
        (tmp_path / "uuid-other" / "foreign").write_bytes(b"x")
        return FolderRemote(place)

    def replace(self, remote, name, data):
        (remote.path / name).write_bytes(data)

    def empty(self, remote):
        return FolderRemote(remote.path.parent / "nothing")


@pytest.fixture
def place(tmp_path):
    folder = tmp_path / "place"
    folder.mkdir()
    (folder / "file").write_bytes(b"content")
    return folder


def names(folder):
    return [str(file.path) for file in FolderRemote(folder).list().files]


def test_the_message_names_every_path_that_was_tried(tmp_path):
    with pytest.raises(CheckpointNotFoundError, match=r"there is no folder .*/a nor /b/c on this host"):
        FolderRemote(tmp_path / "a", also=(Path("/b/c"),)).list()


def test_executables_are_told_apart(place):
    (place / "run.sh").write_bytes(b"#!/bin/sh\n")
    (place / "run.sh").chmod(0o755)
    assert {str(file.path): file.executable for file in FolderRemote(place).list().files} == {
        "file": False,
        "run.sh": True,
    }


def test_a_link_within_the_folder_is_followed(place):
    (place / "latest").symlink_to("file")
    (place / "sub").mkdir()
    (place / "sub" / "up").symlink_to("../file")
    remote = FolderRemote(place)
    assert names(place) == ["file", "latest", "sub/up"]
    for file in remote.list().files:
        assert b"".join(map(bytes, remote.read(file, 0, file.size))) == b"content"


@pytest.mark.parametrize("target", ["/etc/passwd", "../outside", "sub/../../outside"])
def test_a_link_that_leads_out_is_refused(place, target):
    (place.parent / "outside").write_bytes(b"secret")
    (place / "sub").mkdir()
    (place / "link").symlink_to(target)
    with pytest.raises(UnsafeNameError, match=r"'link': a symbolic link that leads out of"):
        FolderRemote(place).list()


def test_a_folder_link_that_leads_out_is_refused(place):
    (place.parent / "outside").mkdir()
    (place / "link").symlink_to("../outside")
    with pytest.raises(UnsafeNameError, match="leads out"):
        FolderRemote(place).list()


def test_a_link_to_a_folder_above_ends_nowhere(place):
    (place / "sub").mkdir()
    (place / "sub" / "loop").symlink_to("..")
    with pytest.raises(UnsafeNameError, match="a folder above it"):
        FolderRemote(place).list()


def test_a_dangling_link_and_a_link_to_itself_are_one_clear_line(place):
    (place / "gone").symlink_to("nothing")
    with pytest.raises(ContentError, match="a symbolic link to nothing"):
        FolderRemote(place).list()
    (place / "gone").unlink()
    (place / "self").symlink_to("self")
    with pytest.raises(ContentError, match="a symbolic link"):
        FolderRemote(place).list()


def test_the_folder_itself_may_be_a_link(place):
    (place.parent / "alias").symlink_to("place")
    assert names(place.parent / "alias") == ["file"]


def test_sockets_and_pipes_are_refused_with_their_kind(place):
    os.mkfifo(place / "pipe")
    with pytest.raises(ContentError, match=r"pipe is neither a file nor a folder \(a pipe\)"):
        FolderRemote(place).list()
    (place / "pipe").unlink()
    with socket.socket(socket.AF_UNIX) as listening:
        here = os.getcwd()
        os.chdir(place)  # a socket's path must be short
        try:
            listening.bind("socket")
        finally:
            os.chdir(here)
        with pytest.raises(ContentError, match="a socket"):
            FolderRemote(place).list()


@pytest.mark.parametrize("name", ["a\\b", "a\nb", "\x7f"])
def test_hostile_names_are_refused(place, name):
    (place / name).write_bytes(b"")
    with pytest.raises(UnsafeNameError):
        FolderRemote(place).list()


def test_names_that_are_not_unicode_are_refused(place):
    with open(os.fsencode(place) + b"/\xff\xfe", "wb"):
        pass
    with pytest.raises(UnsafeNameError, match="not valid Unicode"):
        FolderRemote(place).list()


def test_a_file_that_is_gone_has_changed(place):
    remote = FolderRemote(place)
    [file] = remote.list().files
    (place / "file").unlink()
    with pytest.raises(ChangedError, match="gone"):
        b"".join(map(bytes, remote.read(file, 0, 7)))


def test_a_file_that_may_not_be_read_is_named(tmp_path):
    with tempfile.TemporaryDirectory() as place:  # pytest's own folders are closed to other users
        os.chmod(place, 0o755)
        path = Path(place, "secret.pth")
        path.write_bytes(b"x")
        path.chmod(0)
        remote = FolderRemote(Path(place))
        [file] = remote.list().files

        def read():
            with pytest.raises(NotAllowedError, match=r"cannot read .*secret\.pth: Permission denied"):
                b"".join(map(bytes, remote.read(file, 0, 1)))

        if os.geteuid() != 0:
            read()
            return
        if (child := os.fork()) == 0:
            try:
                os.setuid(65534)
                read()
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
