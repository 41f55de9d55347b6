"""A home on a network file system: recognized by its mount, with leases for locks, synced, and its index elsewhere."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import mounts as disks
import pytest
from stores import ROOT, UUID, lies, tagged

from cas.config import Network, Settings
from cas.index import locks, mounts
from cas.index.digest import Digest
from cas.index.locks import exclusive, is_abandoned
from cas.index.mounts import is_network
from cas.index.store import Store, store_of
from cas.load.views import LinkMode, make_view

LARGE = bytes(range(256)) * 40


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


# --- which ones count ------------------------------------------------------------------------------------------


OTHERS = "nfs nfs4 cifs smb3 lustre gpfs ceph beegfs 9p virtiofs afs wekafs panfs autofs what-comes-next"
FUSE = "fuse fuse.sshfs fuse.s3fs fuseblk fuse.fuse-overlayfs"


@pytest.mark.parametrize("kind", [*OTHERS.split(), *FUSE.split()])
def test_network_and_fuse_and_unknown_file_systems_count(kind: str) -> None:
    assert is_network(kind)


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "squashfs", "apfs"])
def test_disks_of_this_host_do_not_count(kind: str) -> None:
    assert not is_network(kind)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere the system does not tell")
def test_where_the_mounts_cannot_be_read_the_home_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts, "MOUNTS", tmp_path / "nothing")
    assert Store(tmp_path / "home").about.on_network


@pytest.fixture
def nfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that the mount table calls one of another host."""
    table = tmp_path / "mountinfo"
    lines = ["22 1 8:1 / / rw - ext4 /dev/root rw", f"31 22 0:30 / {tmp_path / 'nfs'} rw - nfs4 server:/export rw"]
    table.write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(mounts, "MOUNTS", table)
    (tmp_path / "nfs").mkdir()
    return tmp_path / "nfs"


def test_one_line_says_so_and_the_setting_silences_it(nfs: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "cas"):
        store_of(Settings(home=nfs / "home"))
        store_of(Settings(home=nfs / "home"))
    assert len(caplog.records) == 1
    assert "nfs4" in caplog.text and "CAS_NETWORK" in caplog.text
    caplog.clear()
    assert Store(nfs / "home", network=Network.YES).about.on_network
    assert not Store(nfs / "home", network=Network.NO).about.on_network
    assert caplog.records == []


def test_the_index_is_kept_on_this_hosts_disk(nfs: Path, own_cache: Path) -> None:
    store = Store(nfs / "home")
    tagged(store, UUID, {"a": LARGE})
    assert Store(nfs / "home").facts.blob(Digest.of(LARGE))
    assert not list(nfs.glob("home/index-*"))
    (index,) = own_cache.glob("cas/stores/*/index-*.sqlite3")
    assert index.parent.stat().st_mode & 0o777 == 0o700
    other = Store(nfs / "other")
    tagged(other, UUID, {"b": LARGE})
    assert other.facts.blob(Digest.of(LARGE))
    assert len(list(own_cache.glob("cas/stores/*/index-*.sqlite3"))) == 2  # by store and by path


def test_where_the_users_cache_is_on_the_network_too_it_is_kept_in_a_temporary_folder(
    nfs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(nfs / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    store = Store(nfs / "home")
    store.put(LARGE)
    assert Store(nfs / "home").has(Digest.of(LARGE))
    assert list(tmp_path.glob(f"cas-{os.geteuid()}/*/index-*.sqlite3"))


def test_commits_are_synced(nfs: Path) -> None:
    """Another host's boot id tells nothing of what this one lost."""
    store = Store(nfs / "home")
    store.put(LARGE)
    (fact,) = store.facts.blob(Digest.of(LARGE))
    assert fact.sealed


def test_a_store_that_is_made_there_says_that_its_locks_are_leases(nfs: Path) -> None:
    Store(nfs / "home")
    assert json.loads((nfs / "home" / "format.json").read_text())["locks"] == "lease"
    seen_from_the_server = Store(nfs / "home", network=Network.NO)
    assert seen_from_the_server.about.locks_are_leases
    with seen_from_the_server.exclusive("key") as held:
        assert held and "lease" in next((nfs / "home" / "locks").iterdir()).read_text()


def test_where_flock_does_nothing_locks_are_leases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcntl.flock", lambda fd, operation: None)
    store = Store(tmp_path / "home")
    assert not store.about.on_network and store.about.locks_are_leases
    with store.exclusive("key") as held:
        assert held
        with locks.exclusive(store.layout.lock("key"), progress=lambda: 0, stall=0.2, lease=locks.LEASE) as other:
            assert not other


@pytest.mark.root
@pytest.mark.slow
def test_a_store_works_on_a_real_fuse_disk(tmp_path: Path, own_cache: Path) -> None:
    with disks.faulty(tmp_path / "disk") as disk:
        store = Store(disk / "home")
        assert store.about.on_network
        manifest = tagged(store, UUID, {"a": LARGE, "b/c": b"small"}, durable=True)
        view = make_view(store, manifest)
        assert (view.path / "a").read_bytes() == LARGE and view.mode is LinkMode.HARDLINK
        fresh = Store(disk / "home")
        assert fresh.resolve("local", UUID) == manifest and fresh.has(Digest.of(LARGE)) and fresh.blobs.hashed == 0
        assert make_view(fresh, manifest).reused
        assert lies(disk / "home") == []
        for one in (store, fresh):
            one.leases.release()
            one.close()


# --- leases ------------------------------------------------------------------------------------------------------

SECONDS = 1.5

HOLD = """
import logging, sys, time
from pathlib import Path
from cas.index.locks import exclusive
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
with exclusive(Path(sys.argv[1]), progress=lambda: None, stall=600, lease=float(sys.argv[2])) as held:
    print(bool(held), flush=True)
    sys.stdin.readline()
    until = time.monotonic() + 20
    while held and time.monotonic() < until:
        time.sleep(0.05)
    print("lost" if held.lost else "kept", flush=True)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLD, str(tmp_path / "lock"), str(SECONDS)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None and process.stdout.readline() == "True\n"
    yield process
    process.kill()
    process.communicate()


@pytest.mark.slow
def test_a_lease_whose_holder_lives_is_not_taken(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    with exclusive(tmp_path / "lock", progress=lambda: 0, stall=2 * SECONDS, lease=SECONDS) as held:
        assert not held


@pytest.mark.slow
def test_nothing_waits_for_the_lease_of_a_killed_process(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    holder.kill()
    holder.wait()
    with exclusive(tmp_path / "lock", progress=lambda: 0, stall=600, lease=SECONDS) as held:
        assert held


@pytest.mark.slow
def test_a_stopped_holder_that_comes_back_finds_out_and_leaves_the_next_ones_lease_alone(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    assert holder.stdin is not None and holder.stdout is not None
    os.kill(holder.pid, signal.SIGSTOP)
    with exclusive(tmp_path / "lock", progress=lambda: 0, stall=600, lease=SECONDS) as held:
        assert held
        marker = (tmp_path / "lock").read_bytes()
        os.kill(holder.pid, signal.SIGCONT)
        holder.stdin.write("\n")
        holder.stdin.flush()
        assert holder.stdout.readline() == "lost\n"
        assert "was lost: this process was stopped" in holder.stdout.readline()
        holder.wait(20)
        assert (tmp_path / "lock").read_bytes() == marker
        assert held


def test_a_lease_of_other_terms_is_worked_without(tmp_path: Path) -> None:
    with (
        exclusive(tmp_path / "lock", progress=lambda: 0, stall=600, lease=60) as held,
        exclusive(tmp_path / "lock", progress=lambda: 0, stall=600, lease=30) as other,
    ):
        assert held and not other


# --- whose transfer is dead --------------------------------------------------------------------------------------


def test_on_a_network_file_system_only_a_day_of_silence_means_death(nfs: Path) -> None:
    """flock may work among this host's processes only: a living transfer of another host would look abandoned."""
    store = Store(nfs / "home")
    staging = store.staging("key")
    (staging.folder / "0.data").write_bytes(b"x")
    (staging.folder / "0.journal").write_bytes(b"x")
    claim = staging.folder / "claim"
    staging.abandon()
    assert not is_abandoned(claim)
    with store.staging("key"):
        pass
    assert claim.exists()
    old = time.time() - locks.QUIET - 10
    for path in (*staging.folder.iterdir(), staging.folder):
        os.utime(path, (old, old))
    with store.staging("key"):
        pass
    assert not claim.exists()


@pytest.mark.root
@pytest.mark.slow
def test_a_claim_is_seen_from_another_pid_namespace(tmp_path: Path) -> None:
    """Containers of one host share the kernel's locks, and no process numbers."""
    if reason := disks.cannot_mount():
        pytest.skip(reason)
    code = "import sys; from pathlib import Path; from cas.index.locks import Claim;"
    code += " claim = Claim(Path(sys.argv[1])); print('held', flush=True); sys.stdin.readline()"
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", code, str(tmp_path / "claim")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    pod = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    assert pod.stdout is not None
    if pod.stdout.readline() != "held\n":
        pytest.skip("no pid namespaces here")
    assert not is_abandoned(tmp_path / "claim")
    pod.communicate("\n")
    assert is_abandoned(tmp_path / "claim")
