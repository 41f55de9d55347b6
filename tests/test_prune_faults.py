"""Prune where things go wrong: kills at every step, full disks, stopped processes, and many processes at once."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from disks import fill, loop, tmpfs
from kills import Operation, complete, each_kill
from stores import OTHER_UUID, ROOT, UUID, lies, tagged, uuid

from cas.actions.adding import add
from cas.checkpoint import Checkpoint
from cas.config import Progress, Settings
from cas.errors import NotFoundError
from cas.index import prune as prune_module
from cas.index import remove as remove_module
from cas.index.aside import held
from cas.index.check import check
from cas.index.prune import Rules, execute, plan_prune
from cas.index.stock import take_stock
from cas.index.store import Store
from cas.load.views import make_view
from cas.registry.records import CheckpointRecord
from cas.removing import pin, prune, unpin

pytestmark = pytest.mark.slow

GOES = {"a": b"a" * 5000, "b/shared": b"s" * 6000, "small": b"x"}
STAYS = {"c": b"c" * 5000, "shared": b"s" * 6000}


def settings(home: Path) -> Settings:
    return Settings(home=home, progress=Progress.OFF, concurrency=2)


def content(path: Path) -> dict[str, bytes]:
    return {str(one.relative_to(path)): one.read_bytes() for one in sorted(path.rglob("*")) if one.is_file()}


def folder_of(path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


# --- kills -------------------------------------------------------------------------------------------------------


def two(home: Path) -> None:
    store = Store(home)
    tagged(store, UUID, GOES)
    tagged(store, OTHER_UUID, STAYS)
    make_view(store, tagged(store, UUID, GOES))
    make_view(store, tagged(store, OTHER_UUID, STAYS))
    store.put(b"nobody's")
    store.close()


def is_sound(home: Path) -> None:
    assert lies(home) == []
    store = Store(home)
    assert [problem for problem in check(store, deep=True).damage if problem.digest is not None] == []
    manifest = store.resolve("local", OTHER_UUID)
    assert manifest is not None
    assert content(make_view(store, manifest).path) == STAYS
    store.close()


def is_clean(home: Path) -> None:
    store = Store(home)
    assert store.resolve("local", UUID) is None
    assert sum(path.stat().st_size for path in home.glob("blobs/??/*")) == 11_000
    assert list(held(store)) == []
    assert len(list(home.glob("manifests/??/*"))) == len([one for one in home.glob("views/*") if one.is_dir()]) == 1
    store.close()


def at_once(home: Path) -> None:
    with contextlib.suppress(NotFoundError):
        prune(UUID, only_copies=True, now=True, settings=settings(home))
    prune(now=True, settings=settings(home))


def by_steps(home: Path) -> None:
    """Both steps of a prune whose grace time is nothing."""
    prune_module.GRACE = remove_module.GRACE = 0.0
    with contextlib.suppress(NotFoundError):
        prune(UUID, only_copies=True, settings=settings(home))
    for _ in range(2):
        prune(settings=settings(home))


@pytest.mark.parametrize("act", [at_once, by_steps])
def test_prune_killed_before_every_step(act: Operation, memory: Path) -> None:
    count = 0
    for kill, home in each_kill(memory, two, act):
        try:
            is_sound(home)
            complete(home, act)
            is_sound(home)
            is_clean(home)
        except BaseException as error:
            error.add_note(str(kill))
            raise
        count += 1
    assert count > 40


def test_killed_pin_and_unpin(memory: Path) -> None:
    def act(home: Path) -> None:
        pin(UUID, settings=settings(home))
        unpin(UUID, settings=settings(home))
        pin(UUID, settings=settings(home))

    for kill, home in each_kill(memory, two, act):
        is_sound(home)
        complete(home, lambda home: pin(UUID, settings=settings(home)))
        prune(UUID, only_copies=True, now=True, settings=settings(home))
        assert Store(home).resolve("local", UUID) is not None, kill


# --- full disks --------------------------------------------------------------------------------------------------


def _prunes_when_full(point: Path) -> None:
    home = point / "home"
    store = Store(home)
    add(folder_of(point / "goes", {"big": random.Random(1).randbytes(2 << 20)}), uuid=UUID, settings=settings(home))
    add(folder_of(point / "stays", STAYS), uuid=OTHER_UUID, settings=settings(home))
    checkpoint = Checkpoint(CheckpointRecord(registry="local", uuid=UUID), settings=settings(home))
    checkpoint.view()
    checkpoint.release()
    store.close()
    subprocess.run(["rm", "-r", point / "goes"], check=True)
    code = (
        "import sys; from pathlib import Path; from cas.config import Settings; from cas.removing import prune, pin\n"
        "settings = Settings(home=Path(sys.argv[1]))\n"
        f"report = prune({UUID!r}, only_copies=True, now=True, settings=settings)\n"
        f"print(report.gone, report.freed)"
    )
    ballast = fill(point)
    with pytest.raises(OSError, match="No space"), open(point / "more", "wb", buffering=0) as more:
        more.write(bytes(1 << 16))
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    done = subprocess.run(
        [sys.executable, "-c", code, home], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"('{UUID}',) {2 << 20}\n"
    (point / "more").write_bytes(bytes(1 << 20))  # there is room again
    ballast.unlink()
    is_sound(home)
    assert list(held(Store(home))) == []


def test_a_full_disk_in_memory_is_pruned(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", "size=8m") as point:
        _release_after(point)


def test_a_full_disk_is_pruned(tmp_path: Path) -> None:
    with loop(tmp_path / "disk", "ext4", 16, "-m", "0") as point:
        _release_after(point)


def _release_after(point: Path) -> None:
    try:
        _prunes_when_full(point)
    finally:
        from cas.index import store

        for opened in list(store._stores.values()):
            if opened.home.is_relative_to(point):
                opened.close()


# --- many processes at once ----------------------------------------------------------------------------------------

WORKER = """
import fcntl, json, os, random, sys, time
from pathlib import Path
if sys.argv[2] == "no locks":
    fcntl.flock = lambda fd, operation: None  # as on network file systems that ignore it
from cas.checkpoint import Checkpoint
from cas.config import Progress, Settings
from cas.errors import CasError, NotFoundError, ProtectedError
from cas.index import prune as p, remove as r, store as s
from cas.registry.records import CheckpointRecord
from cas.removing import prune, remove
from stores import uuid
from test_prune_faults import content

home, _, role, seed, origin, seconds = sys.argv[1:]
p.GRACE = r.GRACE = 0.0
rng, end = random.Random(int(seed)), time.monotonic() + float(seconds)
settings = Settings(home=Path(home), progress=Progress.OFF, concurrency=2, lock_stall=1.0)
storage = {"type": "shared_fs", "host_path": origin}
rounds = 0

def read(number):
    record = CheckpointRecord(registry="http://m", uuid=uuid(number), experiment_config={"checkpoint_storage": storage})
    checkpoint = Checkpoint(record, settings=settings)
    expected = content(Path(origin, uuid(number)))
    if rng.random() < 0.3:
        target = Path(home).parent / f"target-{os.getpid()}-{rounds}"
        assert content(Path(checkpoint.download(target))) == {**expected, "metadata.json": b"{}"}
        return
    path = checkpoint.view()
    for _ in range(3):
        assert content(path) == expected, number
        time.sleep(rng.random() / 50)
    checkpoint.release()

while time.monotonic() < end:
    rounds += 1
    if role == "read":
        read(rng.randrange(4))
    elif role == "prune":
        prune(max_size=rng.choice([0, 20_000]), settings=settings)
    else:
        try:
            remove(uuid(rng.randrange(4)), settings=settings)
        except (NotFoundError, ProtectedError):
            pass
    time.sleep(rng.random() / 100)
print(rounds)
"""


@pytest.mark.parametrize("locks", ["locks", "no locks"])
def test_pull_prune_view_and_rm_at_once(locks: str, tmp_path: Path, memory: Path) -> None:
    home, origin = memory / "home", memory / "origin"
    for number in range(4):
        own = random.Random(number).randbytes(20_000)
        folder_of(origin / uuid(number), {"own": own, "shared": b"s" * 30_000, "code/small.py": b"x = 1"})
    Store(home).close()
    roles = ["read"] * 3 + ["prune", "remove"]
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    children = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, home, locks, role, str(seed), origin, "4"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": path},
        )
        for seed, role in enumerate(roles)
    ]
    ends = [child.communicate(timeout=120) for child in children]
    for child, (out, err) in zip(children, ends, strict=True):
        assert child.returncode == 0, err
        assert int(out) > 3
    assert lies(home) == []
    assert not check(Store(home), deep=True).damage
    prune(now=True, settings=settings(home))
    assert list(held(Store(home))) == []


# --- stopped processes ---------------------------------------------------------------------------------------------

STOPPED = """
import os, signal, sys
from pathlib import Path
from cas.index import disk, leases, prune as p, remove as r
from cas.config import Progress, Settings
from cas.removing import prune
from stores import UUID

number = 0
p.GRACE = r.GRACE = 0.0

def stop(moment, step):
    global number
    if step in ("rename", "unlink", "remove_tree", "remove_folder"):
        number += 1
        if number == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGSTOP)

disk.observe(stop)
report = prune(UUID, only_copies=True, now=True, settings=Settings(home=Path(sys.argv[1]), progress=Progress.OFF))
print("gone" if report.gone else "stayed", flush=True)
"""


@pytest.mark.parametrize("number", [1, 2, 5, 6, 9, 12, 15, 18])
def test_a_prune_that_was_stopped_takes_nothing_that_came_since(number: int, memory: Path) -> None:
    two(memory / "home")
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    child = subprocess.Popen(
        [sys.executable, "-c", STOPPED, memory / "home", str(number)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    _, status = os.waitpid(child.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    store = Store(memory / "home")
    manifest = tagged(store, UUID, GOES)  # somebody brings it again, and reads it
    view = make_view(store, manifest).path
    child.send_signal(signal.SIGCONT)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 0, err
    assert content(view) == GOES
    assert store.absent(manifest) == []
    assert store.resolve("local", UUID) in (manifest, None)  # None: the refs were added before they were taken
    store.leases.leave(manifest.digest)
    store.close()
    is_sound(memory / "home")
    execute(store, plan_prune(take_stock(store), Rules(at_once=True)))
