"""Whatever happens to the index file, every answer stays the same, no blob is read, and nobody sees an error (F13)."""

import gc
import os
import random
import secrets
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from stores import ROOT, cannot_reboot, run_python, tagged, uuid

from cas.index import sqlconnection, sqlindex
from cas.index.digest import Digest
from cas.index.identity import RemoteIdentity
from cas.index.records import NewRecord, Seen
from cas.index.sqlschema import VERSION
from cas.index.store import Store
from cas.index.usage import presence

pytestmark = pytest.mark.slow

BLOBS = [f"blob {number}".encode() for number in range(40)]
IDENTITIES = [RemoteIdentity(f"s3+https://h/b/{number}", 7, f'"{number}"') for number in range(20)]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "home")
    fill(store)
    return store


def fill(store: Store) -> None:
    with store.staging("fill") as staging:
        for data in BLOBS:
            staging.put(data)
    for number, identity in enumerate(IDENTITIES):
        store.facts.add_origin(identity, Digest.of(BLOBS[number]), "length only")
    for number in range(60):
        parents = (f"trial/{number % 3}", f"experiment/{number % 2}")
        store.records.add("local", [NewRecord("checkpoint", uuid(number), {"n": number, "steps": number}, parents)])
    store.records.add("http://m", [NewRecord("trial", "1", {})])
    for number in range(3):
        tagged(store, uuid(number), {"a": BLOBS[number], "b": BLOBS[-1]})


def answers(store: Store) -> list[object]:
    """Ask everything that an index answers; the time of a record is no part of it."""

    def plain(found: list[Seen]) -> list[object]:
        return [(seen.registry, seen.id, seen.data) for seen in found]

    return [
        [store.has(Digest.of(data)) for data in BLOBS],
        [store.facts.origin(identity) for identity in IDENTITIES],
        plain(store.records.find("checkpoint")),
        plain(store.records.find("checkpoint", registry="local", parent="trial/1")),
        plain(store.records.find("checkpoint", parent="experiment/0")),
        plain(store.records.find("trial")),
        store.records.ids("checkpoint", registry="local", parent="experiment/1"),
        store.records.briefs("checkpoint", registry="local", parent="trial/1"),
        store.records.registries_with("checkpoint", uuid(7)),
        store.records.get("local", "checkpoint", uuid(99)),
        presence(store),
    ]


@pytest.fixture
def expected(store: Store) -> list[object]:
    found = answers(store)
    assert found[0] == [True] * len(BLOBS)
    assert len(found[2]) == 60 and len(found[3]) == 20 and len(found[4]) == 30  # type: ignore[arg-type]
    assert store.blobs.hashed == 0
    return found


def index_file(store: Store) -> Path:
    (path,) = store.home.glob("index-*.sqlite3")
    return path


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def other_version(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE newer (x)")
    database.execute(f"PRAGMA user_version = {VERSION + 1}")
    database.commit()
    database.close()


def changed_row(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("DELETE FROM fact")
    database.execute("UPDATE tree SET row = (SELECT max(row) FROM tree)")
    database.execute("UPDATE record SET id = id || 'x'")
    database.commit()
    database.close()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "deleted": lambda path: path.unlink(),
    "truncated to nothing": lambda path: os.truncate(path, 0),
    "truncated to half a page": lambda path: os.truncate(path, 2048),
    "truncated to one page": lambda path: os.truncate(path, 4096),
    "truncated in the middle": lambda path: os.truncate(path, path.stat().st_size // 2),
    "grown": lambda path: os.truncate(path, path.stat().st_size + 8192),
    "all garbage": lambda path: path.write_bytes(random.Random(1).randbytes(50_000)),
    "all zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "garbage in its header": lambda path: overwrite(path, 16, random.Random(2).randbytes(84)),
    "garbage in its first page": lambda path: overwrite(path, 100, random.Random(3).randbytes(900)),
    "a newer version": other_version,
    "rows changed by another program": changed_row,
    "text": lambda path: path.write_text("no database\n" * 100),
    "a folder in its place": lambda path: (path.unlink(), path.mkdir()),
    "a link to nowhere": lambda path: (path.unlink(), path.symlink_to("nowhere")),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
@pytest.mark.parametrize("opened", [True, False], ids=["open", "closed"])
def test_damage_changes_no_answer(
    damage: Callable[[Path], object], opened: bool, store: Store, expected: list[object]
) -> None:
    if not opened:
        store.close()
    damage(index_file(store))
    assert answers(store) == expected
    fresh = Store(store.home)
    assert answers(fresh) == expected
    assert fresh.blobs.hashed == store.blobs.hashed == 0


def test_garbage_at_any_offset_changes_no_answer(store: Store, expected: list[object]) -> None:
    rng = random.Random(7)
    for _ in range(60):
        if not list(store.home.glob("index-*.sqlite3")):  # `store` lost so many that it keeps its own in memory
            answers(Store(store.home))
        path = index_file(store)
        length = rng.choice([1, 3, 20, 500, 5000])
        overwrite(path, rng.randrange(path.stat().st_size), rng.randbytes(length))
        assert answers(store if rng.random() < 0.5 else Store(store.home)) == expected
    assert Store(store.home).blobs.hashed == store.blobs.hashed == 0
    assert answers(Store(store.home)) == expected


def test_garbage_that_sqlite_does_not_notice_is_noticed(store: Store, expected: list[object]) -> None:
    path = index_file(store)
    data = path.read_bytes()
    for key in (str(Digest.of(BLOBS[3])).encode(), uuid(7).encode(), b"trial/1"):
        assert key in data
        path.write_bytes(data.replace(key, key[:-1] + b"#"))
        assert answers(Store(store.home)) == expected
        path = index_file(store)
        data = path.read_bytes()


def test_a_damaged_index_is_replaced_by_a_good_one(store: Store, expected: list[object]) -> None:
    overwrite(index_file(store), 0, b"garbage")
    answers(Store(store.home))
    path = index_file(store)
    before = path.stat()
    assert before.st_mtime_ns == sqlconnection.UNTOUCHED
    assert answers(Store(store.home)) == expected
    after = path.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)  # used, not made again


def test_the_index_of_another_store_is_not_used(store: Store, expected: list[object], tmp_path: Path) -> None:
    other = Store(tmp_path / "other")
    other.records.add("local", [NewRecord("checkpoint", uuid(1), {"n": "wrong"})])
    answers(other)
    foreign = index_file(other)
    other.close()
    index_file(store).unlink()
    shutil.copy2(foreign, store.home / foreign.name)  # with its time
    assert answers(Store(store.home)) == expected
    assert answers(store) == expected


def test_the_index_of_another_boot_is_not_used(store: Store, expected: list[object], tmp_path: Path) -> None:
    if reason := cannot_reboot():
        pytest.skip(reason)
    boot = tmp_path / "boot"
    boot.write_text("00000000-0000-4000-8000-00000000b007\n")
    before = index_file(store)
    code = (
        "import sys; from pathlib import Path; from cas.index.store import Store; store = Store(Path(sys.argv[1]))\n"
        "print(len(store.records.find('checkpoint')))"
    )
    assert run_python(code, store.home, boot=os.fspath(boot)) == "60\n"
    assert not before.exists()
    assert answers(store) == expected


def test_lines_appended_by_others_are_seen_at_once(store: Store, expected: list[object]) -> None:
    other = Store(store.home)
    assert answers(other) == expected
    for number in range(5):
        store.records.add("local", [NewRecord("checkpoint", uuid(100 + number), {"n": number})])
        assert other.records.get("local", "checkpoint", uuid(100 + number)) is not None
        digest = store.put(f"new {number}".encode())
        assert other.has(digest)
    assert other.blobs.hashed == 0


def test_a_torn_tail_costs_no_write_at_every_question(store: Store, expected: list[object]) -> None:
    with open(store.layout.facts, "ab") as file:
        file.write(b"0123456789abcdef {torn")
    assert answers(store) == expected
    before = index_file(store).stat().st_ctime_ns
    assert answers(store) == expected
    assert index_file(store).stat().st_ctime_ns == before


# --- other processes -----------------------------------------------------------------------------------------

WORKER = """
import sys, time
from pathlib import Path
from cas.index.records import NewRecord
from cas.index.store import Store
from cas.index.usage import presence
from test_sqlindex import answers, BLOBS, uuid
store = Store(Path(sys.argv[1]))
me, expected, rounds = int(sys.argv[2]), answers(store), 0
print("ready", flush=True)
while not Path(sys.argv[3]).exists():
    digest = store.put(f"{me} {rounds}".encode())
    store.records.add("worker", [NewRecord("other", uuid(me * 10000 + rounds), {"n": rounds}, ("parent/%d" % me,))])
    assert answers(store) == expected
    assert store.has(digest)
    rounds += 1
    assert len(store.records.find("other", parent="parent/%d" % me)) == rounds
assert store.blobs.hashed == 0, store.blobs.hashed
print(rounds)
"""


def start(code: str, *arguments: object) -> "subprocess.Popen[str]":
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    command = [sys.executable, "-c", code, *map(str, arguments)]
    worker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path})
    assert worker.stdout is not None
    assert worker.stdout.readline() == "ready\n"
    return worker


def test_damage_while_other_processes_work_changes_no_answer(
    store: Store, expected: list[object], tmp_path: Path
) -> None:
    stop, rng = tmp_path / "stop", random.Random(11)
    workers = [start(WORKER, store.home, me, stop) for me in (1, 2)]
    try:
        damages = list(DAMAGES.values())
        end = time.monotonic() + 5
        while time.monotonic() < end:
            for path in store.home.glob("index-*.sqlite3"):
                try:
                    if rng.random() < 0.5:
                        rng.choice(damages)(path)
                    else:
                        overwrite(path, rng.randrange(path.stat().st_size + 1), rng.randbytes(100))
                except (OSError, sqlite3.Error, ValueError):
                    continue
            assert answers(store) == expected
            time.sleep(rng.random() * 0.02)
    finally:
        stop.touch()
        results = [worker.communicate(timeout=60)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    assert all(int(result) > 3 for result in results)
    assert store.blobs.hashed == 0
    assert answers(Store(store.home)) == expected


HOLDER = """
import sqlite3, sys, time
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("BEGIN EXCLUSIVE")
print("ready", flush=True)
time.sleep(600)
"""


@pytest.mark.slow
@pytest.mark.parametrize("opened", [True, False], ids=["open", "closed"])
def test_a_stopped_process_that_holds_the_index_is_waited_for_a_few_seconds(
    opened: bool, store: Store, expected: list[object]
) -> None:
    holder = start(HOLDER, index_file(store))
    try:
        os.kill(holder.pid, signal.SIGSTOP)
        asked = store if opened else Store(store.home)
        begun = time.monotonic()
        asked.records.add("local", [NewRecord("late", "1", {})])
        assert len(asked.records.find("late")) == 1
        assert answers(asked) == expected
        assert time.monotonic() - begun < 3 * sqlconnection.BUSY_SECONDS
        begun = time.monotonic()
        assert answers(Store(store.home)) == expected
        assert time.monotonic() - begun < sqlconnection.BUSY_SECONDS
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.communicate()


def test_an_index_that_cannot_be_written_is_kept_in_memory(store: Store, expected: list[object]) -> None:
    if os.geteuid() != 0 or cannot_reboot():
        pytest.skip("needs root and mounts for a read-only home")
    store.close()
    for damage in (None, b"garbage"):
        if damage:
            overwrite(index_file(store), 0, damage)
        code = (
            "import os, sys; from pathlib import Path; from cas.index.store import Store; import test_sqlindex\n"
            "store = Store(Path(sys.argv[1])); found = test_sqlindex.answers(store)\n"
            "print(all(found[0]), len(found[2]), store.blobs.hashed)"
        )
        mount = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
        command = ["unshare", "-m", "sh", "-c", mount, store.home, sys.executable, "-c", code, store.home]
        path = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path})
        assert (done.stdout, done.stderr, done.returncode) == ("True 60 0\n", "", 0)


# --- threads, forks and ends ---------------------------------------------------------------------------------


def test_a_connection_that_is_forgotten_is_closed_but_not_by_a_child_that_inherited_it(tmp_path: Path) -> None:
    connection = sqlconnection.Connection()
    connection.open(tmp_path / "index")
    database = connection.database
    assert database is not None
    child = os.fork()
    if not child:
        del connection
        gc.collect()
        try:
            os._exit(database.total_changes)  # 0, as long as it is open
        except sqlite3.ProgrammingError:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    del connection
    gc.collect()
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        database.execute("SELECT 1")


ENDING = """
import sys, threading, time
from pathlib import Path
import test_sqlindex
from cas.index.store import Store

store, asked = Store(Path(sys.argv[1])), threading.Event()

def ask():
    while True:
        test_sqlindex.answers(store)
        asked.set()

threading.Thread(target=ask, daemon=True).start()
asked.wait()
"""


@pytest.mark.slow
def test_a_process_that_ends_while_a_thread_asks_leaves_the_index(store: Store, expected: list[object]) -> None:
    before = index_file(store).stat().st_ino
    for _ in range(5):
        run_python(ENDING, store.home)
    assert index_file(store).stat().st_ino == before
    assert answers(Store(store.home)) == expected


def test_many_threads_ask_and_add(store: Store, expected: list[object]) -> None:
    failures: list[BaseException] = []

    def work(me: int) -> None:
        try:
            for number in range(20):
                store.records.add("local", [NewRecord("other", f"{me} {number}", {}, (f"parent/{me}",))])
                assert len(store.records.find("other", parent=f"parent/{me}")) == number + 1
                assert store.has(Digest.of(BLOBS[number]))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(me,)) for me in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert answers(store) == expected


def fork_and(call: Callable[[], None], timeout: float = 20) -> None:
    """Run a call in a child made by fork; fail if it fails or hangs."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            call()
            code = 0
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
        os._exit(code)
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0
            return
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError("the child hangs")


def test_a_child_uses_a_store_that_its_parent_used(store: Store, expected: list[object]) -> None:  # F16
    def child() -> None:
        assert answers(store) == expected
        store.records.add("local", [NewRecord("late", str(os.getpid()), {})])
        assert store.has(store.put(b"from a child"))
        fork_and(lambda: answers(store) == expected or sys.exit(1))

    for _ in range(3):
        fork_and(child)
        assert answers(store) == expected
    assert len(store.records.find("late")) == 3


def test_forks_while_other_threads_make_indexes(store: Store, expected: list[object]) -> None:  # F16
    """A thread in the middle of SQLite's own work holds locks that a child would find held for ever."""
    store.facts.add([{"kind": "target", "key": f"/{number}", "at": 0} for number in range(2000)])
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            index = sqlindex.SqlIndex(
                store.layout, secrets.token_hex(4), store.owners, folder=store.home
            )  # another store's: made anew each time
            assert index.record("local", "checkpoint", uuid(7)) is not None
            index.close()

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(30):
            fork_and(lambda: store.records.get("local", "checkpoint", uuid(7)) or sys.exit(1))
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_forks_while_other_threads_work(store: Store, expected: list[object]) -> None:  # F16
    stop = threading.Event()

    def work(me: int) -> None:
        number = 0
        while not stop.is_set():
            store.records.add("local", [NewRecord("busy", f"{me} {number}", {})])
            store.has(store.put(f"{me} {number % 50}".encode()))
            number += 1

    threads = [threading.Thread(target=work, args=(me,)) for me in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(25):
            fork_and(lambda: answers(store) == expected or sys.exit(1))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert answers(store) == expected
    assert store.blobs.hashed == 0
