"""Jobs of real torch.distributed ranks, with homes of their own: what the tests of many hosts share."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from proxy import Proxy, relaying
from s3_server import free_ports
from stores import ROOT, UUID
from web_server import Site, serving

MIB = 1 << 20
REGISTRY = "http://m"
RANK = """
import json, os, sys, time
from datetime import timedelta
from pathlib import Path
rank, size, port, home, storage, scenario, folder, timeout = sys.argv[1:]
rank, size, folder = int(rank), int(size), Path(folder)
import torch.distributed as dist
from cas.checkpoint import Checkpoint
from cas.config import Settings
from cas.errors import CasError
from cas.registry.records import CheckpointRecord
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
settings = Settings.load(home=home, timeout=timeout, progress="off")

def checkpoint(uuid, stored=True, **more):
    if isinstance(json.loads(storage), str):
        return Checkpoint.from_url(json.loads(storage), settings=settings, **more)
    config = {"checkpoint_storage": json.loads(storage)} if stored else {}
    record = CheckpointRecord(registry="http://m", uuid=uuid, experiment_config=config)
    return Checkpoint(record, settings=settings, **more)

def say(**told):
    print(json.dumps(told), flush=True)

began = time.monotonic()
try:
    exec(scenario)
except CasError as error:
    say(error=type(error).__name__, text=str(error), seconds=time.monotonic() - began)
os._exit(0)  # without waiting for peers that are gone
"""

# The bound is the group's own timeout, which is less than what follows of the settings.
IN_THREE_SECONDS = f"""
group = dist.new_group(timeout=timedelta(seconds=3))
checkpoint("{UUID}").share(group)
say(done=True)
"""


class Job:
    """The ranks of one job; `homes` gives each rank's."""

    def __init__(
        self, homes: list[Path], storage: dict[str, Any] | str, scenario: str, folder: Path, timeout: int
    ) -> None:
        port = free_ports(1)[0]
        path = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
        self.children = []
        for rank, home in enumerate(homes):
            words = [rank, len(homes), port, home, json.dumps(storage), scenario, folder, timeout]
            self.children.append(
                subprocess.Popen(
                    [sys.executable, "-c", RANK, *map(str, words)],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
                )
            )

    def told(self, rank: int, *, timeout: float = 120) -> list[dict[str, Any]]:
        """What a rank said, once it has ended."""
        out, err = self.children[rank].communicate(timeout=timeout)
        assert self.children[rank].returncode == 0, err
        return [json.loads(line) for line in out.splitlines() if line.startswith("{")]

    def end(self) -> None:
        for child in self.children:
            if child.poll() is None:
                child.kill()
            child.communicate()


Start = Callable[..., Job]


@contextlib.contextmanager
def starting(folder: Path) -> Iterator[Start]:
    """Yield what starts a job; whichever still run are killed at the end."""
    jobs: list[Job] = []

    def run(homes: list[Path], storage: dict[str, Any] | str, scenario: str, *, timeout: int = 2) -> Job:
        jobs.append(Job(homes, storage, scenario, folder, timeout))
        return jobs[-1]

    try:
        yield run
    finally:
        for job in jobs:
            job.end()


@contextlib.contextmanager
def site_and_proxy(folder: Path) -> Iterator[tuple[Site, Proxy]]:
    """Run a web site, and what relays its bytes."""
    folder.mkdir()
    with serving(folder) as site, relaying(site.port) as proxy:
        yield site, proxy


def content() -> dict[str, bytes]:
    """Return the files of a checkpoint: two that are sent in several blocks, and many small ones."""
    rng = random.Random(3)
    small = {f"code/{number}.py": rng.randbytes(number * 37) for number in range(20)}
    return {"model.pth": rng.randbytes(50 * MIB + 11), "optimizer.pth": rng.randbytes(17 * MIB + 5), **small}
