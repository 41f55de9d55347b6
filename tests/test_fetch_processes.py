"""Pulls by real processes from a real S3 server: at once, killed, interrupted, and where locks do nothing."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from stores import ROOT, UUID, lies, run_python

from cas.index.digest import Digest
from cas.transfer import plan

pytestmark = [pytest.mark.s3, pytest.mark.slow]

PROCESSES = 8
MIB = 1 << 20
PULL = """
    import json, sys, time
    from pathlib import Path
    if json.loads(sys.argv[4]).get("no_locks"):
        import fcntl
        fcntl.flock = lambda fd, operation: None  # as on a network file system whose locks do nothing
    from cas.config import Progress, Settings
    from cas.index.store import Store
    from cas.transfer.fetch import pull
    from cas.transfer.urls import remote_for_storage
    storage, uuid, home, options = json.loads(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), json.loads(sys.argv[4])
    settings = Settings(home=home, progress=Progress.OFF, concurrency=options.get("concurrency", 6))
    remote = remote_for_storage(storage, uuid, settings)
    if barrier := options.get("barrier"):
        import obstore, botocore.auth, awscrt.checksums
        Path(barrier, str(__import__("os").getpid())).touch()
        while not Path(barrier, "go").exists():
            time.sleep(0.005)
    began = time.monotonic()
    report = pull(Store(home), remote, registry="local", uuid=uuid, settings=settings)
    files = {str(entry.path): str(entry.digest) for entry in report.manifest.files}
    print(json.dumps({"files": files, "resumed": report.bytes_resumed, "seconds": time.monotonic() - began}))
"""


VIEW = """
    import json, sys, time
    from pathlib import Path
    from cas.checkpoint import Checkpoint
    from cas.config import Progress, Settings
    from cas.registry.records import CheckpointRecord
    storage, uuid, home, options = json.loads(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), json.loads(sys.argv[4])
    settings = Settings(home=home, progress=Progress.OFF, concurrency=2, lock_stall=options.get("stall", 60.0))
    record = CheckpointRecord(registry="local", uuid=uuid, experiment_config={"checkpoint_storage": storage})
    if barrier := options.get("barrier"):
        Path(barrier, str(__import__("os").getpid())).touch()
        while not Path(barrier, "go").exists():
            time.sleep(0.005)
    view = Checkpoint(record, settings=settings).view()
    files = {str(path.relative_to(view)): path.stat().st_size for path in view.rglob("*") if path.is_file()}
    print(json.dumps({"files": files, "asked": "urllib3" in sys.modules}))
"""


@pytest.fixture
def objects(upload):
    """A checkpoint of two large files and a hundred small ones, and what must come of it."""
    rng = random.Random(11)
    large = {"model.pth": rng.randbytes(3 * plan.RANGE + 5), "optimizer.pth": rng.randbytes(plan.RANGE + 7)}
    small = {f"code/{number:03}.py": rng.randbytes(rng.randint(1, 20_000)) for number in range(100)}
    upload({f"p/{UUID}/{name}": data for name, data in large.items()}, part_size=8 * MIB)
    upload({f"p/{UUID}/{name}": data for name, data in small.items()})
    return large | small


def start(storage, home, code=PULL, **options):
    command = [sys.executable, "-c", textwrap.dedent(code), json.dumps(storage), UUID, str(home), json.dumps(options)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def finish(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return json.loads(out)


def digests(objects):
    return {name: str(Digest.of(data)) for name, data in objects.items()}


def all_at_once(storage, home, folder, count=PROCESSES, **options):
    folder.mkdir()
    running = [start(storage, home, barrier=str(folder), **options) for _ in range(count)]
    while len(list(folder.iterdir())) < count:
        assert all(process.poll() is None for process in running), running[0].communicate()
        time.sleep(0.01)
    (folder / "go").touch()
    return [finish(process) for process in running]


def test_eight_processes_fetch_each_byte_once(proxy, bucket, objects, tmp_path):
    reports = all_at_once(proxy.server.storage(bucket, "p"), tmp_path / "home", tmp_path / "barrier")
    assert all(report["files"] == digests(objects) for report in reports)
    for name, data in objects.items():
        assert proxy.bodies(f"/{name}") == len(data), name
    assert lies(tmp_path / "home") == []
    assert not any((tmp_path / "home" / "ingest").glob("*/*"))


def sizes(objects):
    return {name: len(data) for name, data in objects.items()}


def listings(proxy):
    return sum("list-type" in one.path for one in proxy.exchanges)


def test_of_processes_that_want_one_checkpoint_one_asks_its_origin(proxy, bucket, objects, tmp_path):
    storage, home = proxy.server.storage(bucket, "p"), tmp_path / "home"
    reports = all_at_once(storage, home, tmp_path / "barrier", count=4, code=VIEW)
    assert all(report["files"] == sizes(objects) for report in reports)
    assert [report["asked"] for report in reports].count(True) == 1
    assert listings(proxy) == 1
    assert proxy.bodies() == sum(map(len, objects.values()))
    assert lies(home) == []
    assert not any((home / "ingest").glob("*/*"))


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP])
def test_a_waiter_goes_on_where_the_one_that_fetches_is_killed_or_stopped(proxy, bucket, objects, tmp_path, end):
    storage, home = proxy.server.storage(bucket, "p"), tmp_path / "home"
    proxy.delay = 0.2
    first = start(storage, home, code=VIEW)
    while proxy.bodies() < 1:
        time.sleep(0.002)
    first.send_signal(end)
    proxy.delay = 0
    try:
        assert finish(start(storage, home, code=VIEW, stall=1.0))["files"] == sizes(objects)
    finally:
        first.kill()
        first.communicate()
    assert lies(home) == []


def test_eight_processes_without_locks_do_more_work_and_nothing_wrong(proxy, bucket, objects, tmp_path):
    reports = all_at_once(proxy.server.storage(bucket, "p"), tmp_path / "home", tmp_path / "barrier", no_locks=True)
    assert all(report["files"] == digests(objects) for report in reports)
    assert proxy.bodies() >= sum(map(len, objects.values()))
    assert lies(tmp_path / "home") == []


def test_killed_pulls_resume_without_refetching_more_than_was_in_flight(proxy, bucket, objects, tmp_path):
    storage, home = proxy.server.storage(bucket, "p"), tmp_path / "home"
    total, kills = sum(map(len, objects.values())), 0
    proxy.delay = 0.05
    for reached in (20 * MIB, 45 * MIB, 60 * MIB):
        process = start(storage, home, concurrency=2)
        while proxy.bodies() < reached and process.poll() is None:
            time.sleep(0.002)
        kills += process.poll() is None
        process.kill()
        process.communicate()
    assert kills == 3
    report = finish(start(storage, home, concurrency=2))
    assert report["files"] == digests(objects)
    assert proxy.bodies() <= total + kills * 2 * plan.RANGE
    large = [one for one in proxy.exchanges if one.path.endswith("model.pth") and one.method == "GET"]
    assert len(large) <= 4 + kills * 2
    assert lies(home) == []
    assert not any((home / "ingest").glob("*/*"))


def test_an_interrupted_pull_ends_before_a_silent_server_answers(proxy, bucket, objects, tmp_path):
    storage, home = proxy.server.storage(bucket, "p"), tmp_path / "home"
    proxy.delay = 0.3
    process = start(storage, home, concurrency=2)
    while proxy.bodies() < 20 * MIB:
        time.sleep(0.002)
    proxy.delay = 20  # the server keeps silent from now on
    time.sleep(0.5)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert time.monotonic() - began < 10  # on a busy machine: the server keeps silent for twice as long
    assert "KeyboardInterrupt" in err
    assert process.returncode in (-signal.SIGINT, 1, 130)
    proxy.delay = 0
    report = finish(start(storage, home))
    assert report["files"] == digests(objects)
    assert report["resumed"] >= plan.RANGE


def test_waiting_for_a_process_that_died_ends_at_once(proxy, bucket, objects, tmp_path):
    storage, home = proxy.server.storage(bucket, "p"), tmp_path / "home"
    proxy.delay = 0.2
    first = start(storage, home)
    while proxy.bodies() < 1:
        time.sleep(0.002)
    second = start(storage, home)
    time.sleep(1.5)
    first.kill()
    first.communicate()
    proxy.delay = 0
    assert finish(second)["files"] == digests(objects)


@pytest.mark.parametrize(("count", "size"), [(1, 384), (60, 7)])
def test_memory_does_not_grow_with_the_files(s3_server, bucket, upload, tmp_path, count, size):
    block = random.Random(1).randbytes(MIB)
    upload({f"p/{UUID}/{n}.pth": n.to_bytes(2, "big") + block * size for n in range(count)}, part_size=64 * MIB)
    code = """
        import json, sys, threading, time
        from pathlib import Path
        from cas.config import Progress, Settings
        from cas.index.store import Store
        from cas.transfer.fetch import pull
        from cas.transfer.urls import remote_for_storage
        def anonymous():
            text = Path("/proc/self/status").read_text()
            return int(text.partition("RssAnon:")[2].split()[0]) // 1024
        home = Path(sys.argv[3])
        settings = Settings(home=home, progress=Progress.OFF)
        remote = remote_for_storage(json.loads(sys.argv[1]), sys.argv[2], settings)
        before, most, done = anonymous(), 0, False
        def watch():
            global most
            while not done:
                most = max(most, anonymous())
                time.sleep(0.01)
        watching = threading.Thread(target=watch)
        watching.start()
        pull(Store(home), remote, registry="local", uuid=sys.argv[2], settings=settings)
        done = True
        watching.join()
        print(most - before)
    """
    if not os.path.exists("/proc/self/status"):
        pytest.skip("needs /proc to read RssAnon")
    grown = int(run_python(textwrap.dedent(code), json.dumps(s3_server.storage(bucket, "p")), UUID, tmp_path / "home"))
    assert grown <= 256
