"""What the benchmarks run as processes of their own: `python -m bench.jobs NAME ARGUMENT…`."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any


def pull(home: str, storage: str, uuid: str) -> None:
    """Pull a checkpoint into a store and make its view: hashed, committed."""
    _checkpoint(home, storage, uuid).view()


def download(home: str, storage: str, uuid: str, target: str, link: str = "auto") -> None:
    """Pull a checkpoint and materialize it in a folder."""
    _checkpoint(home, storage, uuid).download(target, link=link)


def memory(home: str, storage: str, uuid: str) -> None:
    """Pull, and print by how much the anonymous memory grew at its peak (bytes), that of children included."""
    import threading

    checkpoint = _checkpoint(home, storage, uuid)
    idle, peak, done = _rss_anon(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, _rss_anon())

    watcher = threading.Thread(target=watch)
    watcher.start()
    checkpoint.view()
    done.set()
    watcher.join()
    print(json.dumps({"idle": idle, "grown": peak - idle}))


def publish(home: str, storage: str, uuid: str) -> None:
    """Publish a checkpoint's sidecar from a store of its own."""
    from cas.actions.publishing import publish as publish_checkpoint
    from cas.config import Settings

    publish_checkpoint(_checkpoint(home, storage, uuid), settings=Settings.load(home=home))


def views(home: str, folder: str, count: str) -> None:
    """Add a checkpoint of many small files; print the seconds of making its view, and of taking it again."""
    from bench.ground import remove
    from cas.actions.adding import add
    from cas.config import Settings

    files = Path(folder)
    for number in range(int(count)):
        path = files / f"part-{number // 100}" / f"{number}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"%d" % number * 100)
    settings = Settings.load(home=home)
    checkpoint = add(folder, settings=settings)
    found: dict[str, list[float]] = {"made": [], "again": []}
    for _ in range(6):
        remove(Path(home) / "views")
        for what in found:
            started = time.perf_counter()
            checkpoint.view()
            found[what].append(time.perf_counter() - started)
    print(json.dumps({what: seconds[1:] for what, seconds in found.items()}))


def sdk(storage: str, uuid: str, target: str) -> None:
    """Download with boto3 as the Determined client does: one object after the other, unchecked."""
    import boto3

    where = json.loads(storage)
    client = boto3.resource(
        "s3",
        endpoint_url=where["endpoint_url"],
        aws_access_key_id=where["access_key"],
        aws_secret_access_key=where["secret_key"],
        region_name="us-east-1",
    )
    bucket = client.Bucket(where["bucket"])
    for found in bucket.objects.filter(Prefix=f"{uuid}/"):
        path = Path(target) / os.path.relpath(found.key, uuid)
        path.parent.mkdir(parents=True, exist_ok=True)
        bucket.download_file(found.key, str(path))


def load(home: str, storage: str, uuid: str) -> None:
    """Load a checkpoint that is in the store, several times; print the seconds of each."""
    checkpoint = _checkpoint(home, storage, uuid)
    print(json.dumps(_timed(checkpoint.load)))


def torch_load(path: str, what: str) -> None:
    """`torch.load(mmap=True)` of the plain file, several times; print the seconds of each."""
    import torch

    is_weights = what == "state dict"
    print(json.dumps(_timed(lambda: torch.load(path, mmap=True, weights_only=is_weights))))


def again(home: str, storage: str, uuid: str, folder: str, link: str) -> None:
    """Download a checkpoint that is in the store, in process, into new folders; print the seconds of each."""
    import shutil

    checkpoint = _checkpoint(home, storage, uuid)
    seconds = []
    for number in range(4):
        target = Path(folder) / f"copy-{number}"
        shutil.rmtree(target, ignore_errors=True)
        started = time.perf_counter()
        checkpoint.download(target, link=link)
        seconds.append(time.perf_counter() - started)
        shutil.rmtree(target)
    print(json.dumps(seconds[1:]))


def barrier(home: str, storage: str, uuid: str, folder: str, count: str, number: str) -> None:
    """Import everything, wait for the others, load; write the moment of start and end."""
    import torch

    from cas.checkpoint import Checkpoint

    _ = torch, Checkpoint
    checkpoint = _checkpoint(home, storage, uuid)
    place = Path(folder)
    (place / f"ready-{number}").touch()
    while len(list(place.glob("ready-*"))) < int(count):
        time.sleep(0.002)
    started = time.time()
    checkpoint.load()
    (place / f"done-{number}").write_text(json.dumps([started, time.time()]))


def footprint(way: str, layers: str, folder: str, count: str, number: str, *where: str) -> None:
    """Load a model, run it once, wait for the others, and write what it takes (bytes): proportional, and private."""
    import torch

    def build() -> Any:
        return torch.nn.Sequential(*[torch.nn.Linear(1024, 1024, bias=False) for _ in range(int(layers))])

    from cas.checkpoint import Checkpoint

    _ = Checkpoint
    torch.set_num_threads(1)
    torch.nn.Linear(4, 4)(torch.ones(1, 4))
    idle = _memory()
    match way:
        case "cas module":
            model = _checkpoint(*where).load()
        case "cas state dict":
            model = _checkpoint(*where).load(model=build())
        case "torch.load module":
            model = torch.load(where[0], weights_only=False)
        case _:
            model = build()
            model.load_state_dict(torch.load(where[0], weights_only=True))
    with torch.no_grad():
        model(torch.ones(1, 1024))
    place = Path(folder)
    _meet(place, "loaded", count, number)
    now = _memory()
    _meet(place, "measured", count, number)
    (place / f"done-{number}").write_text(json.dumps({name: now[name] - idle[name] for name in now}))


def _meet(place: Path, what: str, count: str, number: str) -> None:
    (place / f"{what}-{number}").touch()
    while len(list(place.glob(f"{what}-*"))) < int(count):
        time.sleep(0.005)


def _memory() -> dict[str, int]:
    """What the kernel says that this process takes (bytes): its share of shared pages, and what is its alone."""
    found = {"proportional": 0, "private": 0}
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "Pss":
            found["proportional"] += int(value.split()[0]) * 1024
        if name in ("Private_Clean", "Private_Dirty"):
            found["private"] += int(value.split()[0]) * 1024
    return found


def _timed(function: Any, count: int = 6) -> list[float]:
    seconds = []
    for _ in range(count):
        started = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - started)
    return seconds[1:]


def _checkpoint(home: str, storage: str, uuid: str) -> Any:
    from cas.checkpoint import Checkpoint
    from cas.config import Settings
    from cas.registry.records import CheckpointRecord

    record = CheckpointRecord(
        registry="bench", uuid=uuid, experiment_config={"checkpoint_storage": json.loads(storage)}
    )
    return Checkpoint(record, settings=Settings.load(home=home))


def _rss_anon(pid: int | None = None) -> int:
    """Return the anonymous memory of a process and of those that it started (bytes)."""
    here, total = Path(f"/proc/{pid or os.getpid()}"), 0
    try:
        for line in (here / "status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                total = int(line.split()[1]) * 1024
        children = [int(child) for path in here.glob("task/*/children") for child in path.read_text().split()]
    except (FileNotFoundError, ProcessLookupError):  # it ended
        return total
    return total + sum(map(_rss_anon, children))


if __name__ == "__main__":
    logging.getLogger("cas").setLevel(logging.ERROR)
    globals()[sys.argv[1]](*sys.argv[2:])
