"""Pull, view, prune, rm, add and repair in thousands of orders: what was brought can be loaded, and nothing is a lie.

`CAS_INTERLEAVINGS=5000` plays so many orders, `CAS_INTERLEAVE_FROM=123` starts with that seed.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from pathlib import Path

import pytest
from interleave import FailedError, Operation, a_folder, play
from stores import lies, uuid

from cas.adding import add
from cas.checkpoint import Checkpoint
from cas.config import Progress, Settings
from cas.errors import NotFoundError, ProtectedError
from cas.index import leases
from cas.index import prune as prune_module
from cas.index import remove as remove_module
from cas.index.aside import held
from cas.index.check import Kind, check
from cas.index.store import Store, store_of
from cas.registry.records import CheckpointRecord
from cas.removing import prune, remove
from cas.repairing import check as check_store
from cas.repairing import repair as repair_store

pytestmark = pytest.mark.slow

LARGE = 6000  # bytes: more than a view copies
POOL = [bytes([65 + number]) * LARGE for number in range(4)]
TREES = [
    {"own": b"first" * 1500, "shared": POOL[0], "code/a.py": b"x = 1"},
    {"own": b"other" * 1500, "shared": POOL[0], "more": POOL[1]},
    {"shared": POOL[0], "more": POOL[1]},
]
LOCAL = {"mine": b"mine" * 2000, "shared": POOL[0]}
ONLY = uuid(99)
SECONDS = 35.0  # of this suite's time, at most


def settings(home: Path) -> Settings:
    return Settings(home=home, progress=Progress.OFF, concurrency=1, lock_stall=0.05, check_space=False)


def origin(home: Path) -> Path:
    return home.parent / "origin"


def checkpoint(home: Path, number: int) -> Checkpoint:
    config = {"checkpoint_storage": {"type": "shared_fs", "host_path": str(origin(home))}}
    record = CheckpointRecord(registry="http://m", uuid=uuid(number), experiment_config=config)
    return Checkpoint(record, settings=settings(home))


def content(path: Path) -> dict[str, bytes]:
    return {str(one.relative_to(path)): one.read_bytes() for one in sorted(path.rglob("*")) if one.is_file()}


# --- what actors do: add to these ------------------------------------------------------------------------------------


def view(home: Path, rng: random.Random) -> None:
    """Bring a checkpoint if it is not here, and read it twice, with others at work in between."""
    number = rng.randrange(len(TREES))
    one = checkpoint(home, number)
    path = one.view()
    assert content(path) == TREES[number]
    os.utime(home / "format.json")  # time passes
    one.store.uses.note(uuid(number))
    assert content(path) == TREES[number]
    one.release()


def download(home: Path, rng: random.Random) -> None:
    number = rng.randrange(len(TREES))
    target = home.parent / "targets" / f"{os.getpid()}-{rng.randrange(1 << 30)}"
    got = content(Path(checkpoint(home, number).download(target)))
    assert {name: data for name, data in got.items() if name != "metadata.json"} == TREES[number]


def prune_in_steps(home: Path, rng: random.Random) -> None:
    prune(max_size=rng.choice([0, 10_000]), settings=settings(home))


def prune_at_once(home: Path, rng: random.Random) -> None:
    with contextlib.suppress(ProtectedError):
        prune(max_size=rng.choice([0, 10_000]), now=True, settings=settings(home))


def rm(home: Path, rng: random.Random) -> None:
    with contextlib.suppress(ProtectedError, NotFoundError):
        remove(uuid(rng.randrange(len(TREES))), force=rng.random() < 0.3, settings=settings(home))


def add_one(home: Path, rng: random.Random) -> None:
    add(home.parent / "local", uuid=ONLY, settings=settings(home))


def repair(home: Path, rng: random.Random) -> None:
    store = store_of(settings(home))
    found = check_store(store, deep=True, anew=True)
    repair_store(store, found.problems, settings(home))


OPERATIONS: dict[str, Operation] = {
    "view": view,
    "view again": view,
    "download": download,
    "prune in steps": prune_in_steps,
    "prune at once": prune_at_once,
    "rm": rm,
    "add": add_one,
    "repair": repair,
}


# --- what must hold --------------------------------------------------------------------------------------------------


def judge(home: Path, order: list[str]) -> None:
    """Nothing is a lie, nothing is missing that cannot be had again, and everything can be loaded."""
    assert lies(home) == []
    store = Store(home)
    wrong = [problem for problem in check(store, deep=True).damage if problem.kind is not Kind.MISSING_BLOB]
    assert wrong == [], wrong
    was_added = "0:<add>" in " ".join(order).replace("1:", "0:").replace("2:", "0:").replace("3:", "0:")
    for number in range(len(TREES)):
        one = checkpoint(home, number)
        assert content(one.view()) == TREES[number]
        one.release()
    if was_added:
        manifest = store.resolve("local", ONLY)
        assert manifest is not None and store.absent(manifest) == []
        assert {entry.path: store.blobs.read(entry.digest) for entry in manifest.files if entry.digest} == LOCAL
    assert check(store, deep=True).damage == ()
    store.close()
    prune(now=True, settings=settings(home))
    prune(now=True, settings=settings(home))
    assert list(held(store)) == []
    assert [path for path in (home / "ingest").glob("*/*") if path.name != "CACHEDIR.TAG"] == []


def one_schedule(seed: int, folder: Path) -> None:
    home = folder / str(seed) / "home"
    for number, files in enumerate(TREES):
        for name, data in files.items():
            path = origin(home) / uuid(number) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    for name, data in LOCAL.items():
        (home.parent / "local").mkdir(exist_ok=True)
        (home.parent / "local" / name).write_bytes(data)
    store = Store(home)
    for number in range(seed % (len(TREES) + 1)):  # some are here already
        one = checkpoint(home, number)
        one.view()
        one.release()
    store.close()
    store_of(settings(home)).close()
    order: list[str] = []
    try:
        order = play(home, seed, OPERATIONS)
        judge(home, order)
    except BaseException as error:
        error.add_note(f"seed {seed}: {' '.join(order)}")
        raise


@pytest.fixture
def no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (prune_module, remove_module):
        monkeypatch.setattr(module, "GRACE", 0.0)


def test_in_every_order_what_was_brought_can_be_loaded(no_grace: None) -> None:
    count = int(os.environ.get("CAS_INTERLEAVINGS", "0"))
    first = int(os.environ.get("CAS_INTERLEAVE_FROM", "0"))
    began, seed = time.monotonic(), first
    with a_folder() as folder:
        while (seed - first < count) if count else (time.monotonic() - began < SECONDS):
            one_schedule(seed, folder)
            seed += 1
    assert seed - first >= (count or 20)


def test_the_scheduler_finds_a_race_and_plays_it_again() -> None:
    """Two that read a number, add one and write it: some order loses one, and always the same one."""
    from cas.index import disk

    def count_up(home: Path, _: random.Random) -> None:
        value = int((home / "n").read_text())
        disk.step("in between")
        (home / "n").write_text(str(value + 1))

    def result(seed: int, folder: Path) -> int:
        (folder / "n").write_text("0")
        play(folder, seed, {"count": count_up}, actors=3, each=2)
        return int((folder / "n").read_text())

    with a_folder() as folder:
        found = [result(seed, folder) for seed in range(12)]
        assert {6} < set(found)
        assert [result(seed, folder) for seed in range(12)] == found


def test_an_actor_that_fails_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    def fail(home: Path, _: random.Random) -> None:
        raise ValueError("no")

    with a_folder() as folder, pytest.raises(FailedError, match="ended with 1"):
        play(folder, 1, {"fail": fail})
    assert "ValueError: no" in capfd.readouterr().err


assert leases.TTL > SECONDS  # else leases would end while actors wait
