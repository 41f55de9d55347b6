"""Forked workers, threads and spawned processes at one store: nothing inherited is used, and nobody waits for ever."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from stores import UUID, lies, manifest_of, run_python, tagged, uuid

from cas.config import Network, Settings
from cas.index.check import check
from cas.index.digest import Digest
from cas.index.records import NewRecord
from cas.index.store import Store, open_store, store_of
from cas.load.views import make_view

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")]

LARGE = bytes(range(256)) * 40
FILES = {"model": LARGE, "a/small": b"small"}
PATIENCE = 60  # seconds that a child may take on a machine that has other things to do


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def private(folder: Path) -> Store:
    return Store(folder / "home")


def of_a_group(folder: Path) -> Store:
    return Store(folder / "home", shared=True)


def on_a_network(folder: Path) -> Store:
    return Store(folder / "home", network=Network.YES)


def with_a_layer(folder: Path) -> Store:
    below = Store(folder / "below")
    tagged(below, UUID, FILES)
    below.records.add("local", [NewRecord("checkpoint", UUID, {"a": 1})])
    below.close()
    return store_of(Settings(home=folder / "home", read_only_stores=(folder / "below",)))


KINDS = [private, of_a_group, on_a_network, with_a_layer]


def forked(call: Callable[[], None]) -> int:
    """Run a call in a forked child; a child that hangs says where, and ends."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        signal.signal(signal.SIGALRM, _say_where)
        signal.alarm(PATIENCE)
        call()
        code = 0
    except BaseException:
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(code)


def _say_where(*_: object) -> None:
    faulthandler.dump_traceback()
    os._exit(2)


def ended_well(pids: list[int]) -> None:
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    assert codes == [0] * len(pids)


@contextmanager
def busy(store: Store, count: int = 3) -> Iterator[None]:
    """Threads that add, look up, record, view and lock without a pause."""
    stop = threading.Event()
    failed: list[BaseException] = []

    def work(number: int) -> None:
        turn = 0
        try:
            while not stop.is_set():
                turn += 1
                data = b"%d %d" % (number, turn) * 1000
                with store.exclusive(f"{number}"):
                    store.put(data)
                store.records.add(
                    "local", [NewRecord("checkpoint", uuid(1_000_000 + number * 1000 + turn), {"turn": turn})]
                )
                assert store.has(Digest.of(data))
                assert store.records.find("checkpoint", registry="local")
                make_view(store, manifest_of(FILES))
        except BaseException as error:
            failed.append(error)
            stop.set()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(PATIENCE)
    assert not failed, failed
    assert not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize("kind", KINDS)
def test_workers_that_are_forked_while_threads_are_busy_use_the_store(
    kind: Callable[[Path], Store], tmp_path: Path
) -> None:
    store = kind(tmp_path)
    manifest = store.resolve("local", UUID) or tagged(store, UUID, FILES)
    with store.exclusive("first"):  # imports filelock, whose own hooks would complain of a fork in the middle of that
        store.facts.blob(Digest.of(LARGE))
    inherited = store.index._by_pid[os.getpid()]

    def work(number: int) -> None:
        found = store.resolve("local", UUID)
        assert found == manifest and store.absent(manifest) == []
        view = make_view(store, manifest)
        assert (view.path / "model").read_bytes() == LARGE
        digest = store.put(b"child %d" % number * 1000)
        assert store.has(digest) and store.facts.blob(digest)
        store.records.add("local", [NewRecord("checkpoint", uuid(number), {"child": number})])
        with store.exclusive(f"{number % 2}"), store.exclusive("child"):
            pass
        assert store.index._by_pid[os.getpid()] is not inherited  # F16
        store.close()

    pids = []
    with busy(store):
        for number in range(1, 7):
            pids.append(forked(lambda number=number: work(number)))
            time.sleep(0.03)
        ended_well(pids)
    assert {seen.data.get("child") for seen in store.records.find("checkpoint")} >= set(range(1, 7))
    assert all(store.has(Digest.of(b"child %d" % number * 1000)) for number in range(1, 7))
    assert check(store, deep=True).damage == () and lies(store.home) == []
    store.close()


def test_a_fork_while_a_thread_encodes_a_manifest_keeps_no_child_waiting() -> None:
    slow, begun = manifest_of({"a": b"a"}), threading.Event()

    class Slow(tuple):  # type: ignore[type-arg]
        def __iter__(self) -> Iterator[object]:
            begun.set()
            time.sleep(1)
            return super().__iter__()

    object.__setattr__(slow, "files", Slow(slow.files))
    thread = threading.Thread(target=lambda: slow.encoded)
    thread.start()
    begun.wait()
    ended_well([forked(lambda: manifest_of({"b": b"b"}).digest and None)])
    thread.join()
    assert slow.encoded == manifest_of({"a": b"a"}).encoded


def test_a_grandchild_uses_the_store_too(tmp_path: Path) -> None:
    store = Store(tmp_path / "home")
    manifest = tagged(store, UUID, FILES)

    def child() -> None:
        store.put(b"child" * 1000)
        ended_well([forked(grandchild)])
        assert store.has(Digest.of(b"grandchild" * 1000))

    def grandchild() -> None:
        assert (make_view(store, manifest).path / "model").read_bytes() == LARGE
        store.put(b"grandchild" * 1000)

    ended_well([forked(child)])
    assert store.has(Digest.of(b"child" * 1000)) and store.has(Digest.of(b"grandchild" * 1000))


def test_facts_that_wait_in_the_parent_are_written_by_the_parent_alone(tmp_path: Path) -> None:
    store = Store(tmp_path / "home")
    with store.facts.grouped():
        digest = store.put(b"parent" * 1000)
        ended_well([forked(lambda: store.facts.flush())])
        assert Store(store.home).facts.blob(digest) == []
    assert len(Store(store.home).facts.blob(digest)) == 1


def test_a_forked_child_opens_a_store_of_its_own_and_the_parents_lease_stays(tmp_path: Path) -> None:
    store = open_store(tmp_path / "home")
    manifest = tagged(store, UUID, FILES)
    make_view(store, manifest)
    before = store.leases.id

    def child() -> None:
        assert open_store(tmp_path / "home") is not store
        make_view(open_store(tmp_path / "home"), manifest)
        open_store(tmp_path / "home").close()

    ended_well([forked(child)])
    assert before is not None and store.leases.id == before
    assert (store.layout.lease(before) / "beat").exists()
    store.close()


SPAWNED = """
import sys
from pathlib import Path
from stores import manifest_of
from cas.index.store import Store
from cas.load.views import make_view
store = Store(Path(sys.argv[1]))
view = make_view(store, store.resolve("local", sys.argv[2]))
print((view.path / "a/small").read_text(), store.blobs.hashed, store.put(b"spawned" * 1000).hex)
store.close()
"""


def test_a_spawned_process_shares_what_is_on_the_disk_and_nothing_else(tmp_path: Path) -> None:
    store = Store(tmp_path / "home")
    tagged(store, UUID, FILES)
    with busy(store):
        said = run_python(SPAWNED, store.home, UUID).split()
    assert said == ["small", "0", Digest.of(b"spawned" * 1000).hex]
    assert store.has(Digest.of(b"spawned" * 1000))
    store.close()


def _load(home: str, number: int, results: object) -> None:
    store = open_store(Path(home))
    manifest = store.resolve("local", UUID)
    assert manifest is not None
    with open(make_view(store, manifest).path / "model", "rb") as file:
        file.seek(number)
        results.put(file.read(1)[0])  # type: ignore[attr-defined]


@pytest.mark.parametrize("way", ["fork", "spawn", "forkserver"])
def test_a_pool_of_data_loaders_reads_one_view(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parent.parent)]))
    store = open_store(tmp_path / "home")
    tagged(store, UUID, FILES)
    context = multiprocessing.get_context(way)
    results = context.Queue()
    workers = [context.Process(target=_load, args=(str(store.home), number, results)) for number in range(4)]
    for worker in workers:
        worker.start()
    assert sorted(results.get(timeout=PATIENCE) for _ in workers) == [0, 1, 2, 3]
    for worker in workers:
        worker.join(PATIENCE)
        assert worker.exitcode == 0
    store.close()


def test_a_fork_waits_for_a_thread_that_imports_what_is_imported_late(tmp_path: Path) -> None:
    """Else the child would find the module's lock held, by a thread that it has not got."""
    run_python(FORK_WHILE_IMPORTING, tmp_path, timeout=PATIENCE)


FORK_WHILE_IMPORTING = """
import os, signal, sys, threading, time
from importlib.abc import MetaPathFinder
from pathlib import Path
from cas.index.locks import exclusive

class Slow(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "filelock":
            begun.set()
            time.sleep(0.5)

def lock(name):
    with exclusive(Path(sys.argv[1]) / name, progress=lambda: 0, stall=5) as held:
        assert held

begun = threading.Event()
sys.meta_path.insert(0, Slow())
thread = threading.Thread(target=lock, args=("a",))
thread.start()
begun.wait()
pid = os.fork()
if pid == 0:
    signal.alarm(20)
    lock("b")
    os._exit(0)
thread.join()
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
"""
