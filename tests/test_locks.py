import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from stores import ROOT

from cas.index.locks import Claim, ThreadLock, exclusive, is_abandoned
from cas.index.store import Store

pytestmark = pytest.mark.slow

HOLD = """
import sys, time
from pathlib import Path
from cas.index.locks import exclusive
with exclusive(Path(sys.argv[1]), progress=lambda: None, stall=5) as held:
    print(bool(held), flush=True)
    time.sleep(600)
"""


@contextlib.contextmanager
def holder(path: Path) -> "Iterator[subprocess.Popen[str]]":
    command = [sys.executable, "-c", HOLD, os.fspath(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert process.stdout is not None and process.stdout.readline() == "True\n"
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_free_lock_is_held_at_once(tmp_path: Path) -> None:
    with exclusive(tmp_path / "locks" / "a", progress=lambda: None, stall=0.1) as held:
        assert held
        with exclusive(tmp_path / "locks" / "b", progress=lambda: None, stall=0.1) as other:
            assert other
    with exclusive(tmp_path / "locks" / "a", progress=lambda: None, stall=0.1) as held:
        assert held


def test_threads_of_one_process_take_turns(tmp_path: Path) -> None:
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        with exclusive(tmp_path / "a", progress=time.monotonic, stall=60) as held:
            assert held
            inside += 1
            most = max(most, inside)
            time.sleep(0.02)
            inside -= 1

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_a_holder_without_progress_is_not_waited_for(tmp_path: Path) -> None:  # F14
    with holder(tmp_path / "a"):
        begun = time.monotonic()
        with exclusive(tmp_path / "a", progress=lambda: None, stall=0.3) as held:
            assert not held
        assert 0.3 <= time.monotonic() - begun < 20


def test_a_holder_that_makes_progress_is_waited_for(tmp_path: Path) -> None:
    with holder(tmp_path / "a") as process:
        threading.Timer(1.2, process.kill).start()
        begun = time.monotonic()
        with exclusive(tmp_path / "a", progress=time.monotonic, stall=0.2) as held:
            assert held
        assert time.monotonic() - begun > 1


def test_a_killed_holder_is_not_waited_for(tmp_path: Path) -> None:
    with holder(tmp_path / "a") as process:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        with exclusive(tmp_path / "a", progress=lambda: None, stall=60) as held:
            assert held


def test_where_no_lock_can_be_made_work_goes_on_without(tmp_path: Path) -> None:  # F14
    (tmp_path / "file").write_text("")
    with exclusive(tmp_path / "file" / "a", progress=lambda: None, stall=60) as held:
        assert not held


def test_an_error_inside_leaves_the_lock_free(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), exclusive(tmp_path / "a", progress=lambda: None, stall=1):
        raise ZeroDivisionError
    with exclusive(tmp_path / "a", progress=lambda: None, stall=0.1) as held:
        assert held


def test_a_store_waits_while_the_holder_writes(tmp_path: Path) -> None:
    store = Store(tmp_path / "home", stall=0.4)
    released = threading.Event()

    def work() -> None:
        with store.exclusive("key") as held, store.staging("key") as staging, staging.ingest() as ingest:
            assert held
            begun.set()
            for _ in range(10):
                ingest.write(b"x")
                time.sleep(0.1)
            released.set()

    begun = threading.Event()
    thread = threading.Thread(target=work)
    thread.start()
    begun.wait()
    with store.exclusive("key") as held:
        assert held and released.is_set()
    thread.join()


def test_a_store_waits_while_what_the_holder_names_as_parts_changes(tmp_path: Path) -> None:
    store = Store(tmp_path / "home", stall=0.8)
    released, begun = threading.Event(), threading.Event()

    def work() -> None:
        with store.exclusive("whole") as held, store.staging("whole") as whole, store.staging("part") as part:
            assert held
            whole.name_parts([store.layout.ingest("part"), store.layout.ingest("not begun")])
            begun.set()
            for number in range(20):  # each is gone before anybody looks
                part.put(str(number).encode())
                time.sleep(0.1)
            released.set()

    thread = threading.Thread(target=work)
    thread.start()
    begun.wait()
    with store.exclusive("whole") as held:
        assert held and released.is_set()
    thread.join()


def test_a_part_that_is_no_name_is_nobodys_progress(tmp_path: Path) -> None:
    store = Store(tmp_path / "home", stall=0.2)
    with store.exclusive("whole"), store.staging("whole") as whole:
        (whole.folder / "parts").write_bytes(b"../../\n\xff\x00")
        begun = time.monotonic()
        with store.exclusive("whole") as held:
            assert not held and time.monotonic() - begun < 20


def test_a_claim_is_held_until_its_owner_lets_go_or_dies(tmp_path: Path) -> None:
    claim = Claim(tmp_path / "claim")
    assert not is_abandoned(tmp_path / "claim")
    claim.release()
    claim.release()
    assert is_abandoned(tmp_path / "claim")
    code = "import os, sys; from pathlib import Path; from cas.index.locks import Claim; Claim(Path(sys.argv[1])); "
    command = [sys.executable, "-c", code + "os.kill(os.getpid(), 9)", os.fspath(tmp_path / "dead")]
    subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert is_abandoned(tmp_path / "dead")


def test_a_folder_without_a_claim_is_abandoned_when_it_is_old(tmp_path: Path) -> None:
    assert not is_abandoned(tmp_path / "claim")
    os.utime(tmp_path, (0, 0))
    assert is_abandoned(tmp_path / "claim")
    assert not is_abandoned(tmp_path / "nowhere" / "claim")


def test_a_child_finds_every_thread_lock_free() -> None:  # F16
    lock = ThreadLock()
    inside, leave = threading.Event(), threading.Event()

    def work() -> None:
        with lock:
            inside.set()
            leave.wait()

    thread = threading.Thread(target=work)
    thread.start()
    inside.wait()
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(10)
        with lock:
            os._exit(0)
    leave.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
