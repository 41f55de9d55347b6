"""What a folder's disk can do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cas.index.mounts import file_system, mounted_type
from cas.index.probe import probe

TABLE = r"""22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/root rw
30 22 0:25 / /proc rw - proc proc rw
31 22 0:30 / /data rw shared:7 master:1 - nfs4 server:/export rw
32 31 8:2 / /data/local\040disk rw - xfs /dev/sdb rw
33 22 0:40 / /tmp rw - tmpfs tmpfs rw
34 22 0:41 / /tmp rw - overlay overlay rw
garbage
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "ext4"),
        ("/database", "ext4"),
        ("/data", "nfs4"),
        ("/data/x/y", "nfs4"),
        ("/data/local disk/store", "xfs"),
        ("/tmp/a", "overlay"),
    ],
)
def test_the_mount_that_holds_a_path_is_found(path, kind):
    assert mounted_type(TABLE, path) == kind


def test_an_empty_table_tells_nothing():
    assert mounted_type("", "/") is None


def test_a_folder_is_probed_and_left_as_it_was(tmp_path):
    found = probe(tmp_path)

    assert found.folder == tmp_path
    assert found.writable and found.locks and found.hard_links
    assert isinstance(found.reflinks, bool)
    assert 0 < found.free <= found.total
    assert os.listdir(tmp_path) == []


def test_of_a_folder_that_does_not_exist_the_one_above_is_probed(tmp_path):
    found = probe(tmp_path / "not" / "yet")

    assert found.folder == tmp_path
    assert not (tmp_path / "not").exists()


@pytest.mark.skipif(not Path("/proc/self/mountinfo").exists(), reason="this system has no /proc/self/mountinfo")
def test_proc_is_recognized():
    assert file_system(Path("/proc")) == "proc"


@pytest.mark.root
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root to mount")
def test_a_read_only_folder_is_not_writable_and_a_tmpfs_is_named(tmp_path):
    code = f"from cas.index.probe import probe; from pathlib import Path; print(probe(Path({str(tmp_path)!r})))"
    script = f"mount -t tmpfs none {tmp_path} && mount -o remount,ro {tmp_path} && {sys.executable} -c '{code}'"
    script = script.replace(f"Path('{tmp_path}')", f'Path("{tmp_path}")')
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, cwd=Path.cwd())

    assert done.returncode == 0, done.stderr
    assert "file_system='tmpfs'" in done.stdout
    assert "writable=False, locks=None, hard_links=None, reflinks=None" in done.stdout


@pytest.mark.root
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root to mount")
def test_a_full_disk_is_looked_at_too(tmp_path):
    code = f'from cas.index.probe import probe; from pathlib import Path; print(probe(Path("{tmp_path}")))'
    # Room for the scratch folder, and for nothing in it.
    script = f"mount -t tmpfs -o nr_inodes=2 none {tmp_path} && {sys.executable} -c '{code}'"
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, cwd=Path.cwd())

    assert done.returncode == 0, done.stderr
    assert "writable=True, locks=None, hard_links=None, reflinks=None" in done.stdout
