"""Pull, view, prune, rm, add and repair in thousands of orders: what was brought can be loaded, and nothing is a lie.

`CAS_INTERLEAVINGS=5000` plays so many orders, `CAS_INTERLEAVE_FROM=123` starts with that seed.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from interleave import FailedError, Operation, a_folder, play
from stores import lies, manifest_of, tagged, uuid

from cas.actions.adding import add
from cas.actions.repairing import check as check_store
from cas.actions.repairing import repair as repair_store
from cas.checkpoint import Checkpoint
from cas.config import Progress, Settings
from cas.errors import CasError, NotFoundError, ProtectedError
from cas.index import disk, leases
from cas.index import prune as prune_module
from cas.index import remove as remove_module
from cas.index.aside import held
from cas.index.check import check
from cas.index.digest import Digest
from cas.index.prune import Rules, execute, plan_prune
from cas.index.remove import execute_remove, plan_remove
from cas.index.stock import take_stock
from cas.index.store import Store, store_of
from cas.load.views import AbsentBlobsError, make_view, use_view
from cas.registry.records import CheckpointRecord
from cas.removing import prune, remove

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
TTL = leases.TTL
SECONDS = 20.0  # of this suite's time, at most; CAS_INTERLEAVINGS=1000 plays as many

played = list(range(len(TREES)))  # the checkpoints of this schedule: the fewer, the more they meet


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


@contextlib.contextmanager
def unless_leases_ended() -> Iterator[None]:
    """Where leases end at once, what one reads may be taken away: that is a clear error, and no wrong bytes."""
    try:
        yield
    except (CasError, FileNotFoundError):
        if leases.TTL >= 0:
            raise


def view(home: Path, rng: random.Random) -> None:
    """Bring a checkpoint if it is not here, and read it twice, with others at work in between."""
    number = rng.choice(played)
    one = checkpoint(home, number)
    with unless_leases_ended():
        path = one.view()
        for _ in range(2):
            for name, data in TREES[number].items():
                assert (path / name).read_bytes() == data
                disk.step("read")
    one.release()


def download(home: Path, rng: random.Random) -> None:
    number = rng.choice(played)
    target = home.parent / "targets" / f"{os.getpid()}-{rng.randrange(1 << 30)}"
    with unless_leases_ended():
        got = content(Path(checkpoint(home, number).download(target)))
        assert {name: data for name, data in got.items() if name != "metadata.json"} == TREES[number]


def prune_in_steps(home: Path, rng: random.Random) -> None:
    prune(max_size=rng.choice([0, 10_000]), settings=settings(home))


def prune_at_once(home: Path, rng: random.Random) -> None:
    with contextlib.suppress(ProtectedError):
        prune(max_size=rng.choice([0, 10_000]), now=True, settings=settings(home))


def rm(home: Path, rng: random.Random) -> None:
    with contextlib.suppress(ProtectedError, NotFoundError):
        remove(uuid(rng.choice(played)), force=rng.random() < 0.3, settings=settings(home))


def add_one(home: Path, rng: random.Random) -> None:
    add(home.parent / "local", uuid=ONLY, settings=settings(home))


def repair(home: Path, rng: random.Random) -> None:
    store = store_of(settings(home))
    found = check_store(store, deep=True, anew=True)
    repair_store(store, found.problems, settings(home))


BRING: dict[str, Operation] = {"view": view, "download": download, "add": add_one}
TAKE: dict[str, Operation] = {"prune in steps": prune_in_steps, "prune at once": prune_at_once, "rm": rm}
TIDY: dict[str, Operation] = {"repair": repair}


def cast_for(rng: random.Random) -> list[list[tuple[str, Operation]]]:
    """Two to four actors, of which one brings and one takes."""
    everything = [*BRING.items(), ("view", view), *TAKE.items(), *TIDY.items()]
    cast = [[rng.choice(list(BRING.items()))], [rng.choice(list(TAKE.items()))]]
    cast += [[rng.choice(everything)] for _ in range(rng.choice([0, 0, 0, 1, 1, 2]))]
    for todo in cast:
        todo += [rng.choice(everything) for _ in range(rng.choice([0, 0, 1]))]
    rng.shuffle(cast)
    return cast


# --- what must hold --------------------------------------------------------------------------------------------------


def judge(home: Path, order: list[str]) -> None:
    """Nothing is a lie, nothing is missing that cannot be had again, and everything can be loaded."""
    assert lies(home) == []
    store = Store(home)
    assert check(store, deep=True).damage == ()  # nor is a blob missing whose ref is here (F11)
    was_added = any(step.endswith(":<add>") for step in order)
    for number in played:
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


def warm_up(home: Path) -> None:
    """Import in this process what actors would import, each for itself."""
    make_origin(home)
    for operation in (*BRING.values(), *TAKE.values(), *TIDY.values()):
        operation(home, random.Random(0))
    store_of(settings(home)).close()


def make_origin(home: Path) -> None:
    for number, files in enumerate(TREES):
        for name, data in files.items():
            path = origin(home) / uuid(number) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    for name, data in LOCAL.items():
        (home.parent / "local").mkdir(exist_ok=True)
        (home.parent / "local" / name).write_bytes(data)


def one_schedule(seed: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, home = random.Random(~seed), folder / str(seed) / "home"
    played[:] = rng.sample(range(len(TREES)), rng.choice([1, 1, 2]))
    make_origin(home)
    store = Store(home)
    for number in [number for number in played if rng.random() < 0.7]:  # some are here already
        one = checkpoint(home, number)
        one.view()
        one.release()
    store.close()
    store_of(settings(home)).close()
    order: list[str] = []
    monkeypatch.setattr(leases, "TTL", -1e9 if seed % 5 == 4 else TTL)  # a fifth: all are stopped for longer than that
    try:
        order = play(home, seed, cast_for(rng))
        monkeypatch.setattr(leases, "TTL", TTL)
        judge(home, order)
    except BaseException as error:
        error.add_note(f"seed {seed}: {' '.join(order)}")
        raise
    finally:
        store_of(settings(home)).close()
        shutil.rmtree(folder / str(seed), ignore_errors=True)


@pytest.fixture
def no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (prune_module, remove_module):
        monkeypatch.setattr(module, "GRACE", 0.0)


def play_all(one: Callable[[int, Path, pytest.MonkeyPatch], None], patch: pytest.MonkeyPatch, seconds: float) -> None:
    count = int(os.environ.get("CAS_INTERLEAVINGS", "0"))
    first = int(os.environ.get("CAS_INTERLEAVE_FROM", "0"))
    began, seed = time.monotonic(), first
    with a_folder() as folder:
        warm_up(folder / "warm" / "home")
        while seed - first < (count or 10) or (not count and time.monotonic() - began < seconds):
            one(seed, folder, patch)
            seed += 1


def test_in_every_order_what_was_brought_can_be_loaded(no_grace: None, monkeypatch: pytest.MonkeyPatch) -> None:
    play_all(one_schedule, monkeypatch, SECONDS / 2)


# --- the same with the index alone: few steps, so that nearly every order is played ----------------------------------


def bring_short(home: Path, rng: random.Random) -> None:
    """What a pull does when it has fetched."""
    store, files = Store(home), TREES[rng.choice(played)]
    name = uuid(TREES.index(files))
    with store.leases.claim(name):
        for _ in range(3):
            for data in files.values():
                if not store.has(Digest.of(data)):
                    store.put(data)
            if not store.tag("local", name, manifest_of(files)):
                break
    store.close()


def read_short(home: Path, rng: random.Random) -> None:
    """What a load does."""
    store, files = Store(home), TREES[rng.choice(played)]
    manifest = store.resolve("local", uuid(TREES.index(files)))
    found = None if manifest is None else use_view(store, manifest.digest)
    if manifest is not None and found is None:
        with store.leases.claim(uuid(TREES.index(files))), contextlib.suppress(AbsentBlobsError):
            found = make_view(store, manifest)
    if found is not None:
        with unless_leases_ended():
            for name, data in files.items():
                disk.step("read")
                assert (found.path / name).read_bytes() == data
    store.close()


def rm_short(home: Path, rng: random.Random) -> None:
    store = Store(home)
    with contextlib.suppress(ProtectedError, NotFoundError):
        execute_remove(store, plan_remove(store, uuid(rng.choice(played))), force=rng.random() < 0.3)


def prune_short(home: Path, rng: random.Random) -> None:
    store, rules = Store(home), Rules(max_size=0, at_once=rng.random() < 0.5)
    with contextlib.suppress(ProtectedError):
        execute(store, plan_prune(take_stock(store, lambda uuid: False), rules), lambda uuid: False)


BRING_SHORT: list[tuple[str, Operation]] = [("bring", bring_short), ("read", read_short)]
TAKE_SHORT: list[tuple[str, Operation]] = [("rm", rm_short), ("prune", prune_short)]


def one_short_schedule(seed: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, home = random.Random(~seed), folder / str(seed) / "home"
    played[:] = rng.sample(range(len(TREES)), rng.choice([1, 1, 2]))
    store = Store(home)
    for number in played:
        make_view(store, tagged(store, uuid(number), TREES[number]))
    store.close()
    cast = [[rng.choice(BRING_SHORT)], [rng.choice(TAKE_SHORT)]]
    cast += [[rng.choice(BRING_SHORT + TAKE_SHORT)] for _ in range(rng.choice([0, 0, 0, 1]))]
    monkeypatch.setattr(leases, "TTL", -1e9 if seed % 10 == 9 else TTL)
    order: list[str] = []
    try:
        order = play(home, seed, cast, steps=20)
        monkeypatch.setattr(leases, "TTL", TTL)
        assert lies(home) == []
        assert check(store, deep=True).damage == ()
        for number in played:
            manifest = store.resolve("local", uuid(number))
            if manifest is not None:
                assert content(make_view(store, manifest).path) == TREES[number]
    except BaseException as error:
        error.add_note(f"seed {seed}: {' '.join(order)}")
        raise
    finally:
        store.close()
        shutil.rmtree(folder / str(seed), ignore_errors=True)


def test_in_nearly_every_order_of_few_steps_nothing_is_lost(no_grace: None, monkeypatch: pytest.MonkeyPatch) -> None:
    play_all(one_short_schedule, monkeypatch, SECONDS / 2)


def test_the_scheduler_finds_a_race_and_plays_it_again() -> None:
    """Some that read a number, add one and write it: some order loses one, and always the same one."""

    def count_up(home: Path, _: random.Random) -> None:
        value = int((home / "n").read_text())
        disk.step("in between")
        (home / "n").write_text(str(value + 1))

    def result(seed: int, folder: Path) -> int:
        (folder / "n").write_text("0")
        play(folder, seed, [[("count", count_up)] * 2] * 3, steps=4)
        return int((folder / "n").read_text())

    with a_folder() as folder:
        found = [result(seed, folder) for seed in range(12)]
        assert {6} < set(found)
        assert [result(seed, folder) for seed in range(12)] == found


def test_an_actor_that_fails_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    def fail(home: Path, _: random.Random) -> None:
        raise ValueError("no")

    with a_folder() as folder, pytest.raises(FailedError, match="ended with 1"):
        play(folder, 1, [[("fail", fail)]])
    assert "ValueError: no" in capfd.readouterr().err
