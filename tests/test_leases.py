"""Leases: what they protect, when they end, and what a process finds that comes back too late."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from disks import need_root
from kills import each_kill
from stores import OTHER_UUID, ROOT, UUID, lies, tagged

from cas.index import disk, leases
from cas.index.doors import door
from cas.index.leases import TTL, Leases, bury, ended, living
from cas.index.store import Store
from cas.load.views import make_view, use_view

pytestmark = pytest.mark.slow

FILES = {"a": b"a" * 5000, "b/c": b"small"}
LATER = int(TTL * 1e9) + 10**9  # ns: a lease that was silent for so long has ended
FAST = "from cas.index import leases; leases.BEAT, leases.TTL = 0.1, 3.0; "


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "home")
    yield made
    made.close()


def now(store: Store) -> int:
    return disk.clock(store.home)


def in_use(store: Store, uuid: str = UUID) -> bool:
    return any(uuid in lease.claims for lease in living(store.layout, now(store)).values())


def child(home: Path, code: str) -> subprocess.Popen[str]:
    """Start a process that has the store open, and leases that are short."""
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    start = f"{FAST}import os, sys, time; from pathlib import Path; from cas.index.store import Store;"
    start += "from cas.load.views import make_view; from test_leases import FILES, UUID;"
    start += f"store = Store(Path({str(home)!r}))\n"
    return subprocess.Popen(
        [sys.executable, "-c", start + code],
        env=os.environ | {"PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@contextlib.contextmanager
def running(home: Path, code: str) -> Iterator[subprocess.Popen[str]]:
    """A child that has said its first line."""
    process = child(home, code)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line == "ready\n", (line, process.communicate()[1] if process.poll() is not None else "")
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGCONT)
        process.kill()
        process.communicate()


def until(true: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.02)


def beats(store: Store, id: str) -> None:
    """Wait until a lease has beaten three times."""
    beat = store.layout.lease(id) / "beat"
    for _ in range(3):
        before = beat.stat().st_mtime_ns
        until(lambda before=before: beat.stat().st_mtime_ns != before)  # type: ignore[misc]


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "TTL", 3.0)


# --- claims ----------------------------------------------------------------------------------------------------


def test_a_claim_protects_while_it_is_open_and_leaves_nothing(store: Store) -> None:
    with store.leases.claim(UUID):
        assert in_use(store)
        with store.leases.claim(UUID), store.leases.claim(OTHER_UUID):
            assert in_use(store, OTHER_UUID)
        assert in_use(store)
        assert not in_use(store, OTHER_UUID)
    assert list((store.home / "leases").iterdir()) == []


def test_a_lease_says_who_it_is_and_no_argument_of_the_command(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/opt/bin/train", "--password=secret"])
    with store.leases.claim(UUID):
        (lease,) = living(store.layout, now(store)).values()
        assert f"process {os.getpid()} on " in lease.who
        said = (store.layout.lease(lease.id) / "beat").read_text()
        assert '"command": "train"' in said
        assert "secret" not in said


def test_a_lease_ends_by_the_clock_of_the_disk(store: Store) -> None:
    with store.leases.claim(UUID):
        beat = store.layout.lease(store.leases.id or "") / "beat"
        then = beat.stat().st_mtime_ns
        assert living(store.layout, then + LATER - 2 * 10**9)
        assert not living(store.layout, then + LATER)
        assert ended(store.layout, then + LATER) == [store.leases.id]
        os.utime(beat, (0, 0))
        assert not in_use(store)


def test_a_folder_without_a_heartbeat_is_judged_by_its_own_time(store: Store) -> None:
    folder = store.layout.lease("0" * 16)
    folder.mkdir(parents=True)
    (folder / UUID).touch()
    assert in_use(store)  # its maker has not come further
    os.utime(folder, (0, 0))
    assert not in_use(store)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"pid": 1}', b"\xff" * 40])
def test_a_torn_heartbeat_still_beats(store: Store, text: bytes) -> None:
    with store.leases.claim(UUID):
        (store.layout.lease(store.leases.id or "") / "beat").write_bytes(text)
        (lease,) = living(store.layout, now(store)).values()
        assert lease.claims.keys() == {UUID}
        assert lease.who == "a process that does not say who it is"


def test_an_ended_lease_is_buried_and_a_living_one_is_not(store: Store) -> None:
    with store.leases.claim(UUID):
        id = store.leases.id or ""
        bury(store.layout, id, now(store))
        assert in_use(store)
        os.utime(store.layout.lease(id) / "beat", (0, 0))
        bury(store.layout, id, now(store))
        assert not store.layout.lease(id).exists()
        assert list((store.home / "aside").iterdir()) == []
        assert store.leases.beat()
        assert in_use(store)  # under another lease
        assert store.leases.id != id
        assert store.leases.lost == 1


def test_foreign_names_in_leases_are_no_leases(store: Store) -> None:
    (store.home / "leases").mkdir(exist_ok=True)
    (store.home / "leases" / "file").touch()
    os.utime(store.home / "leases" / "file", (0, 0))
    assert ended(store.layout, now(store)) == []
    assert living(store.layout, now(store)) == {}


# --- views -----------------------------------------------------------------------------------------------------


def stays(store: Store) -> Callable[[str], bool]:
    alive = living(store.layout, now(store))
    return lambda id: id in alive


def test_a_view_cannot_be_closed_while_somebody_is_inside(store: Store) -> None:
    manifest = tagged(store, UUID, FILES)
    view = make_view(store, manifest).path
    with door(view.parent) as found:
        assert found is not None
        assert found.inside() == [store.leases.id]
        assert not found.close(stays(store))
        store.leases.leave(manifest.digest)
        assert found.inside() == []
        assert found.close(stays(store))
        assert found.inside() is None
        assert use_view(store, manifest.digest) is None  # closed
        found.empty(store.layout.aside("view-x"))
    assert not view.parent.exists()
    assert make_view(store, manifest).path == view


def test_who_has_ended_is_put_out(store: Store) -> None:
    manifest = tagged(store, UUID, FILES)
    view = make_view(store, manifest).path
    os.utime(store.layout.lease(store.leases.id or "") / "beat", (0, 0))
    with door(view.parent) as found:
        assert found is not None and found.close(stays(store))
    assert make_view(store, manifest).path == view  # a closed one is replaced
    assert (view / "a").read_bytes() == FILES["a"]


def test_each_entering_needs_its_leaving(store: Store) -> None:
    manifest = tagged(store, UUID, FILES)
    for _ in range(3):
        make_view(store, manifest)
    users = store.layout.users(manifest.digest)
    for _ in range(2):
        store.leases.leave(manifest.digest)
        assert len(list(users.iterdir())) == 1
    store.leases.leave(manifest.digest)
    store.leases.leave(manifest.digest)  # once too often
    assert list(users.iterdir()) == []


def test_removing_what_was_closed_does_not_touch_what_has_its_name_now(store: Store) -> None:
    """A process that was stopped between closing a view and taking it away."""
    manifest = tagged(store, UUID, FILES)
    view = make_view(store, manifest).path
    store.leases.leave(manifest.digest)
    with door(view.parent) as slow:
        assert slow is not None and slow.close(stays(store))
        assert make_view(store, manifest).path == view
        slow.empty(store.layout.aside("view-x"))
        assert (view / "a").read_bytes() == FILES["a"]
        assert use_view(store, manifest.digest) is not None


def test_a_home_that_may_only_be_read_gives_no_lease_and_no_error(store: Store, tmp_path: Path) -> None:
    need_root()
    manifest = tagged(store, UUID, FILES)
    store.close()
    point = tmp_path / "mounted"
    point.mkdir()
    subprocess.run(["mount", "--bind", store.home, point], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", point], check=True)
        read_only = Store(point)
        for _ in range(2):  # made, and found again
            view = make_view(read_only, manifest).path
            assert {name: (view / name).read_bytes() for name in FILES} == FILES
        with read_only.leases.claim(UUID):
            read_only.uses.note(UUID)
        assert read_only.leases.id is None
        read_only.close()
    finally:
        subprocess.run(["umount", point], check=True)


def test_a_home_that_was_deleted_is_not_made_again(store: Store) -> None:
    make_view(store, tagged(store, UUID, FILES))
    shutil.rmtree(store.home)
    store.leases.beat()
    with store.leases.claim(UUID):
        assert not store.home.exists()


# --- processes -------------------------------------------------------------------------------------------------

HOLDS = "path = make_view(store, store.resolve('local', UUID)).path; print('ready', flush=True)\n"


def test_a_process_that_ends_takes_its_lease_with_it(store: Store) -> None:
    manifest = tagged(store, UUID, FILES)
    process = child(store.home, HOLDS)
    assert process.communicate(timeout=60) == ("ready\n", "")
    assert list((store.home / "leases").iterdir()) == []
    assert list(store.layout.users(manifest.digest).iterdir()) == []


def test_a_lease_lives_as_long_as_its_process(store: Store, fast: None) -> None:
    tagged(store, UUID, FILES)
    with running(store.home, HOLDS + "input()") as process:
        (id,) = living(store.layout, now(store))
        beats(store, id)
        process.kill()
        until(lambda: not living(store.layout, now(store)))


def test_a_stopped_process_finds_out_that_its_lease_ended(store: Store, fast: None) -> None:
    manifest = tagged(store, UUID, FILES)
    code = HOLDS + "input(); print(store.leases.lost, (path / 'a').exists()); print(make_view("
    code += "store, store.resolve('local', UUID)).reused); print((path / 'a').read_bytes() == FILES['a'], flush=True)"
    code += "; input()"
    with running(store.home, code) as process:
        os.kill(process.pid, signal.SIGSTOP)
        until(lambda: not living(store.layout, now(store)))
        with door(store.layout.view(manifest.digest)) as found:
            assert found is not None and found.close(stays(store))
            found.empty(store.layout.aside("view-x"))
        for id in ended(store.layout, now(store)):
            bury(store.layout, id, now(store))
        os.kill(process.pid, signal.SIGCONT)
        assert process.stdin is not None and process.stdout is not None
        until(lambda: bool(living(store.layout, now(store))) or process.poll() is not None or not _idle(store))
        time.sleep(0.5)
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "1 False\n"
        assert process.stdout.readline() == "False\n"
        assert process.stdout.readline() == "True\n"
        assert len(living(store.layout, now(store))) == 1
        process.stdin.write("\n")
        process.stdin.flush()
        _, err = process.communicate(timeout=30)
        assert "was removed while nothing protected it: make the view again" in err
    assert lies(store.home) == []


def _idle(store: Store) -> bool:
    return not list((store.home / "leases").iterdir())


FORKED = (
    HOLDS
    + """
pid = os.fork()
if pid:
    os._exit(0)  # as a daemon's parent does
input()
"""
)


def test_a_child_protects_what_its_parent_was_inside_of(store: Store, fast: None) -> None:
    manifest = tagged(store, UUID, FILES)
    with running(store.home, FORKED) as process:
        process.wait(30)
        users = store.layout.users(manifest.digest)
        (parents,) = os.listdir(users)
        until(lambda: len(set(os.listdir(users)) & living(store.layout, now(store)).keys()) == 2)  # its own as well
        until(lambda: parents not in living(store.layout, now(store)))
        (childs,) = set(os.listdir(users)) & living(store.layout, now(store)).keys()
        beats(store, childs)
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        until(lambda: not living(store.layout, now(store)))


def test_a_fork_within_a_claim_leaves_the_claim_to_the_parent(store: Store) -> None:
    with store.leases.claim(UUID):
        pid = os.fork()
        if pid == 0:
            code = 1
            with contextlib.suppress(BaseException), store.leases.claim(OTHER_UUID):
                code = 0 if in_use(store, OTHER_UUID) and in_use(store) else 2
            os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert in_use(store)
        assert not in_use(store, OTHER_UUID)


def test_a_lease_can_outlast_its_process_for_a_while(store: Store, fast: None) -> None:
    manifest = tagged(store, UUID, FILES)
    code = HOLDS + "store.leases.linger(600)"
    process = child(store.home, code)
    assert process.communicate(timeout=60) == ("ready\n", "")
    (id,) = os.listdir(store.layout.users(manifest.digest))
    assert living(store.layout, now(store) + 590 * 10**9).keys() == {id}
    assert not living(store.layout, now(store) + 610 * 10**9)


# --- kills -----------------------------------------------------------------------------------------------------


def test_killed_at_each_step_of_a_lease_all_works_and_it_ends() -> None:
    def setup(home: Path) -> None:
        store = Store(home)
        tagged(store, UUID, FILES)
        store.close()

    def act(home: Path) -> None:
        store = Store(home)
        manifest = store.resolve("local", UUID)
        assert manifest is not None
        with store.leases.claim(UUID):
            make_view(store, manifest)
            store.uses.note(UUID)
        store.close()

    count = 0
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name:
        for kill, home in each_kill(Path(name), setup, act):
            store = Store(home)
            assert not living(store.layout, now(store) + LATER), kill
            for id in ended(store.layout, now(store) + LATER):
                bury(store.layout, id, now(store) + LATER)
            manifest = store.resolve("local", UUID)
            assert manifest is not None
            path = make_view(store, manifest).path
            assert {name: (path / name).read_bytes() for name in FILES} == FILES, kill
            store.close()
            assert list((home / "leases").glob("*")) == [], kill
            count += 1
    assert count > 20


def test_leases_of_one_process_are_told_apart_by_home(tmp_path: Path) -> None:
    first, second = Leases(Store(tmp_path / "1").layout), Leases(Store(tmp_path / "2").layout)
    with first.claim(UUID), second.claim(UUID):
        assert first.id != second.id
    assert (first.id, second.id) == (None, None)


def test_stores_that_are_opened_meanwhile_do_not_stop_the_heart(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by a thousand pulls in one process: the set of leases grew while the heart went through it."""
    import gc
    import threading

    before = sys.getswitchinterval()
    kept = [Leases(store.layout) for _ in range(3000)]  # many: going through them takes long enough to be interrupted
    monkeypatch.setattr(leases, "BEAT", 0.0)
    try:
        sys.setswitchinterval(1e-6)
        with store.leases.claim(UUID):
            end = time.monotonic() + 1.0
            while time.monotonic() < end:
                kept.append(Leases(store.layout))
            assert any(thread.name == "cas-lease" for thread in threading.enumerate())
    finally:
        sys.setswitchinterval(before)
        kept.clear()
        gc.collect()
