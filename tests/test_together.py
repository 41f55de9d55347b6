"""Eight processes load the same new checkpoint at once, from a real S3 server behind a proxy that counts bytes."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from proxy import Proxy, counting
from s3_server import S3Server
from stores import ROOT, UUID, lies

from cas.index.check import check
from cas.index.store import open_store

pytestmark = [pytest.mark.s3, pytest.mark.torch, pytest.mark.slow]

PROCESSES = 8

RANK = """
import json, sys, time
from pathlib import Path

if sys.argv[3] == "no locks":
    import fcntl
    fcntl.flock = lambda fd, operation: None  # as on network file systems that ignore it

import torch
from cas.checkpoint import Checkpoint
from cas.config import Settings
from cas.registry.records import CheckpointRecord

home, barrier, _, number, storage, uuid, stall = sys.argv[1:]
settings = Settings.load(home=home, lock_stall=stall)
record = CheckpointRecord(registry="http://m", uuid=uuid, experiment_config={"checkpoint_storage": json.loads(storage)})
checkpoint = Checkpoint(record, settings=settings)
Path(barrier, "ready-" + number).touch()
while not Path(barrier, "go").exists():
    time.sleep(0.005)
state = checkpoint.load()
print(json.dumps([float(state["a"].sum()), float(state["b"].sum())]))
"""


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[Proxy]:
    with counting(s3_server) as proxy:
        yield proxy


class Ranks:
    """The processes of one host that share a store."""

    def __init__(self, tmp_path: Path, storage: dict[str, Any], *, locks: bool, stall: float = 60) -> None:
        self.home = tmp_path / "home"
        self.barrier = tmp_path / "barrier"
        self.barrier.mkdir()
        arguments = [str(self.home), str(self.barrier), "locks" if locks else "no locks"]
        rest = [json.dumps(storage), UUID, str(stall)]
        path = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
        self.children = [
            subprocess.Popen(
                [sys.executable, "-c", RANK, *arguments, str(number), *rest],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | {"PYTHONPATH": path},
            )
            for number in range(PROCESSES)
        ]
        while len(list(self.barrier.glob("ready-*"))) < PROCESSES:
            assert all(child.poll() is None for child in self.children), self.children[0].communicate()[1]
            time.sleep(0.02)

    def end(self) -> None:
        """Kill those that are left, by their own pids."""
        for child in self.children:
            if child.poll() is None:
                child.kill()
            child.communicate()

    def go(self) -> None:
        (self.barrier / "go").touch()

    def results(self, *, without: int | None = None) -> list[list[float]]:
        found = []
        for number, child in enumerate(self.children):
            out, err = child.communicate(timeout=120)
            if number != without:
                assert child.returncode == 0, err
                found.append(json.loads(out))
        return found


Start = Callable[..., Ranks]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Ranks] = []

    def run(storage: dict[str, Any], *, locks: bool = True, stall: float = 60) -> Ranks:
        started.append(Ranks(tmp_path, storage, locks=locks, stall=stall))
        return started[-1]

    yield run
    for ranks in started:
        ranks.end()


@pytest.fixture
def uploaded(s3_server: S3Server, bucket: str, proxy: Proxy) -> tuple[dict[str, Any], int, list[float]]:
    """A checkpoint of 48 MiB in the bucket: its storage by way of the proxy, its size, and what must be loaded."""
    import torch

    torch.manual_seed(1)
    state = {"a": torch.randn(2048, 3072), "b": torch.randn(2048, 3072)}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    files = {"state_dict.pth": buffer.getvalue(), "notes.txt": b"hello", "log/train.log": os.urandom(100_000)}
    client = s3_server.client()
    for name, data in files.items():
        client.put_object(Bucket=bucket, Key=f"{UUID}/{name}", Body=data)
        client.put_object(Bucket=bucket, Key=f"{UUID}-other/{name}", Body=data)
    client.close()
    storage = proxy.server.storage(bucket)
    return storage, sum(map(len, files.values())), [float(state["a"].sum()), float(state["b"].sum())]


def test_each_byte_crosses_the_wire_once(
    start: Start, uploaded: tuple[dict[str, Any], int, list[float]], proxy: Proxy
) -> None:
    storage, size, expected = uploaded
    ranks = start(storage)
    ranks.go()
    assert ranks.results() == [expected] * PROCESSES
    assert proxy.bodies() == size
    assert not check(open_store(ranks.home), deep=True).damage


def test_without_working_locks_all_is_right_with_more_work(
    start: Start, uploaded: tuple[dict[str, Any], int, list[float]], proxy: Proxy
) -> None:
    storage, size, expected = uploaded
    ranks = start(storage, locks=False)
    ranks.go()
    assert ranks.results() == [expected] * PROCESSES
    assert size <= proxy.bodies() <= size * PROCESSES
    assert not lies(ranks.home)
    assert not check(open_store(ranks.home), deep=True).damage


def test_nobody_waits_for_a_dead_process_and_its_ranges_are_kept(
    start: Start, uploaded: tuple[dict[str, Any], int, list[float]], proxy: Proxy
) -> None:
    storage, size, expected = uploaded
    proxy.pause = 0.1
    ranks = start(storage)
    ranks.go()
    holder = _holder(ranks)
    os.kill(ranks.children[holder].pid, signal.SIGKILL)
    proxy.pause = 0
    started = time.monotonic()
    assert ranks.results(without=holder) == [expected] * (PROCESSES - 1)
    assert time.monotonic() - started < 30
    assert proxy.bodies() < 2 * size


def test_nobody_waits_for_a_stopped_process_for_longer_than_the_setting(
    start: Start, uploaded: tuple[dict[str, Any], int, list[float]], proxy: Proxy
) -> None:
    storage, _, expected = uploaded
    proxy.pause = 0.1
    ranks = start(storage, stall=2)
    ranks.go()
    holder = _holder(ranks)
    os.kill(ranks.children[holder].pid, signal.SIGSTOP)
    proxy.pause = 0
    try:
        for number, child in enumerate(ranks.children):
            if number != holder:
                out, err = child.communicate(timeout=60)
                assert json.loads(out) == expected, err
    finally:
        os.kill(ranks.children[holder].pid, signal.SIGCONT)
    out, err = ranks.children[holder].communicate(timeout=60)  # it comes back, finds out, and does no harm
    assert json.loads(out) == expected, err
    assert not check(open_store(ranks.home), deep=True).damage


def _holder(ranks: Ranks) -> int:
    """Return which process is transferring the large file, once it has written some of it."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        for path in ranks.home.glob("ingest/*/*/*.data"):
            with contextlib.suppress(FileNotFoundError):  # a small file that was committed meanwhile
                if path.stat().st_blocks * 512 >= 4 << 20:
                    return next(number for number, child in enumerate(ranks.children) if _has_open(child.pid, path))
        time.sleep(0.005)
    raise AssertionError("nobody transfers anything")


def _has_open(pid: int, path: Path) -> bool:
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(fd) == str(path):
                return True
    return False
