"""The disks that other tests mount do what they promise; on a machine that cannot mount them, this says why."""

import errno
import os
from pathlib import Path

import mounts
import pytest

pytestmark = [pytest.mark.root, pytest.mark.slow]


def refusal(call, *args, **options) -> int | None:
    try:
        call(*args, **options)
    except OSError as error:
        return error.errno
    return None


@pytest.mark.parametrize(("kind", "size"), [("ext4", 16 << 20), ("xfs", 300 << 20), ("btrfs", 110 << 20)])
def test_a_loop_disk_is_there_and_goes(kind: str, size: int, tmp_path: Path) -> None:
    with mounts.loop(tmp_path / "disk", kind, size=size) as disk:
        (disk / "file").write_bytes(b"x")
        assert os.stat(disk).st_dev != os.stat(tmp_path).st_dev
    assert list((tmp_path / "disk").iterdir()) == []


def test_tmpfs_is_full_at_its_size_and_at_its_inodes(tmp_path: Path) -> None:
    with mounts.tmpfs(tmp_path / "small", size="64k") as disk:
        assert refusal((disk / "file").write_bytes, bytes(1 << 20)) == errno.ENOSPC
    with mounts.tmpfs(tmp_path / "few", inodes=3) as disk:
        (disk / "file").touch()
        (disk / "other").touch()
        assert refusal((disk / "one more").touch) == errno.ENOSPC


def test_a_read_only_disk_refuses_root(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with mounts.read_only(tmp_path):
        assert refusal((tmp_path / "new").touch) == errno.EROFS
    (tmp_path / "new").touch()


def test_an_overlay_leaves_the_lower_layer_alone(tmp_path: Path) -> None:
    lower = tmp_path / "lower"
    lower.mkdir()
    (lower / "file").write_bytes(b"old")
    with mounts.overlay(tmp_path / "disk", lower) as disk:
        (disk / "file").write_bytes(b"new")
        assert (disk / "file").read_bytes() == b"new"
    assert (lower / "file").read_bytes() == b"old"


def test_a_case_folding_disk_folds(tmp_path: Path) -> None:
    with mounts.case_folding(tmp_path / "disk") as folder:
        (folder / "Model").write_bytes(b"x")
        assert (folder / "model").read_bytes() == b"x"


def test_a_faulty_disk_has_the_faults_and_no_others(tmp_path: Path) -> None:
    with mounts.faulty(tmp_path / "disk", "no-links", "quota=100", "fold") as disk:
        (disk / "File").write_bytes(b"x" * 60)
        assert (disk / "file").read_bytes() == b"x" * 60
        assert refusal(os.link, disk / "File", disk / "link") == errno.EPERM
        assert refusal((disk / "other").write_bytes, b"x" * 60) == errno.EDQUOT
        assert sorted(os.listdir(disk)) == ["File", "other"]
        os.symlink("File", disk / "symlink")
        assert (disk / "symlink").read_bytes() == b"x" * 60
        os.utime(disk / "File", ns=(1, 2))
        assert os.stat(disk / "File").st_mtime_ns == 2
    with mounts.faulty(tmp_path / "other", "few-links=2") as disk:
        (disk / "file").touch()
        os.link(disk / "file", disk / "second")
        assert refusal(os.link, disk / "file", disk / "third") == errno.EMLINK
