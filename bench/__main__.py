"""`make bench`: every row of the design's table of speeds, beside peers, in one run.

`python -m bench [NAME…]` runs some of them: cold, small, again, load, ranks, footprint, import, memory,
chunks, catalog, recover, scale. `recover --count 100000` recovers so many checkpoints instead of the usual numbers.
Everything lies in memory (`/dev/shm`) unless `BENCH_FOLDER` names another folder.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid as uuids
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tabulate import tabulate

from bench import catalog, chunks, scale
from bench.harness import QUICK, Contender, compare, job, peer
from tests import s3_server

MIB = 1 << 20
LARGE = 16 * MIB if QUICK else 1024 * MIB  # bytes of the one large file
SMALL = 100 if QUICK else 5000  # how many small files
LAYERS = 2 if QUICK else 64  # of 4 MiB each
RANKS = 2 if QUICK else 8
_HASH = "import sys, blake3; print(blake3.blake3(max_threads=blake3.blake3.AUTO).update_mmap(sys.argv[1]).hexdigest())"


class Ground:
    """Where a benchmark lies: a folder, and a real S3 server on the same machine."""

    def __init__(self, folder: Path, server: s3_server.S3Server) -> None:
        self.folder = folder
        self.server = server
        self.home = folder / "home"
        self.target = folder / "target"
        self.client = server.client()
        self.client.create_bucket(Bucket="bench")

    def upload(self, files: dict[str, bytes]) -> str:
        """Upload a checkpoint; return its UUID."""
        uuid = str(uuids.uuid4())
        for name, data in files.items():
            self.client.put_object(Bucket="bench", Key=f"{uuid}/{name}", Body=data)
        return uuid

    @property
    def storage(self) -> str:
        """The storage's configuration, as JSON."""
        return json.dumps(self.server.storage("bench"))

    def clean(self) -> None:
        """Remove the store and the target, so that the next run is cold."""
        for path in (self.home, self.target):
            shutil.rmtree(path, ignore_errors=True)

    def s5cmd(self, uuid: str, *, then: list[str] | None = None) -> Contender | None:
        """Return the peer that copies with s5cmd, and then does something with what it got."""
        program = peer("s5cmd")
        if program is None:
            return None
        copy = [program, "--endpoint-url", self.server.endpoint, "cp", f"s3://bench/{uuid}/*", f"{self.target}/"]

        def work() -> None:
            keys = {"AWS_ACCESS_KEY_ID": self.server.access_key, "AWS_SECRET_ACCESS_KEY": self.server.secret_key}
            environment = {**os.environ, **keys, "AWS_REGION": "us-east-1"}
            subprocess.run(copy, check=True, env=environment, stdout=subprocess.DEVNULL)
            if then:
                subprocess.run(then, check=True, stdout=subprocess.DEVNULL)

        return Contender("s5cmd", work, self.clean)


def cold(ground: Ground) -> None:
    """Pull one file of 1 GiB with a cold store."""
    uuid = ground.upload({"state_dict.pth": os.urandom(LARGE)})
    digest = [sys.executable, "-c", _HASH, str(ground.target / "state_dict.pth")]
    copy = ["cp", "-r", str(ground.target), str(ground.folder / "copy")]
    ours = Contender("cas: pull, hash, commit, view", job("pull", ground.home, ground.storage, uuid), ground.clean)
    peers = [
        named("s5cmd, then BLAKE3 on all cores", ground.s5cmd(uuid, then=digest)),
        named("s5cmd, unchecked", ground.s5cmd(uuid)),
        Contender("boto3 as the Determined client", job("sdk", ground.storage, uuid, ground.target), ground.clean),
    ]
    compare(f"Cold pull from S3, one file of {LARGE // MIB} MiB", [ours, *filter(None, peers)])
    target = ground.folder / "user"

    def clean() -> None:
        ground.clean()
        shutil.rmtree(target, ignore_errors=True)
        shutil.rmtree(ground.folder / "copy", ignore_errors=True)

    download = Contender(
        "cas: download() that is a copy", job("download", ground.home, ground.storage, uuid, target, "copy"), clean
    )
    other = named("s5cmd, then cp", ground.s5cmd(uuid, then=copy))
    if other is not None:
        other.before = clean
        compare(f"Cold download into a folder, one file of {LARGE // MIB} MiB", [download, other])
    clean()


def small(ground: Ground) -> None:
    """Pull 5,000 files of 200 B to 20 kB with a cold store."""
    sizes = [200 + (number * 7919) % 19800 for number in range(SMALL)]
    files = {f"part-{number // 100}/{number}.bin": os.urandom(size) for number, size in enumerate(sizes)}
    uuid = ground.upload(files)
    ours = Contender("cas: pull, hash, commit, view", job("pull", ground.home, ground.storage, uuid), ground.clean)
    sdk = Contender("boto3 as the Determined client", job("sdk", ground.storage, uuid, ground.target), ground.clean)
    peers = [named("s5cmd, unchecked", ground.s5cmd(uuid)), sdk]
    compare(f"Cold pull from S3, {SMALL} files of 200 B to 20 kB", [ours, *filter(None, peers)], rounds=3)


def again(ground: Ground) -> None:
    """Download 1 GiB that is in the store, in process."""
    uuid = ground.upload({"state_dict.pth": os.urandom(LARGE)})
    subprocess.run(job("download", ground.home, ground.storage, uuid, ground.target), check=True)

    def measured(link: str) -> Callable[[], float]:
        command = job("again", ground.home, ground.storage, uuid, ground.folder, link)
        return lambda: statistics.median(_output(command))

    def clean() -> None:
        shutil.rmtree(ground.folder / "copy", ignore_errors=True)

    plain = Contender("cp -r", ["cp", "-r", str(ground.target), str(ground.folder / "copy")], clean)
    compare(
        f"Second download of {LARGE // MIB} MiB, in process: copy", [Contender("cas: copy", measured("copy")), plain]
    )
    plain = Contender("cp -r", plain.work, clean)
    compare("The same: hard link", [Contender("cas: hard link", measured("hardlink")), plain])
    clean()


def load(ground: Ground) -> None:
    """Load a known state dict of 256 MiB."""
    uuid = ground.upload({"state_dict.pth": _state_dict(LAYERS)})
    subprocess.run(job("download", ground.home, ground.storage, uuid, ground.target), check=True)
    ours = Contender("cas: load()", lambda: statistics.median(_output(job("load", ground.home, ground.storage, uuid))))
    file = ground.target / "state_dict.pth"
    plain = Contender("torch.load(mmap=True)", lambda: statistics.median(_output(job("torch_load", file))))
    compare(f"load() of a known state dict of {4 * LAYERS} MiB", [ours, plain])


def ranks(ground: Ground) -> None:
    """Eight processes load one new checkpoint of 256 MiB, from a barrier after their imports."""
    uuid = ground.upload({"state_dict.pth": _state_dict(LAYERS)})

    def measured(count: int) -> Callable[[], float]:
        def work() -> float:
            place = Path(tempfile.mkdtemp(dir=ground.folder))
            command = job("barrier", ground.home, ground.storage, uuid, place, count)
            children = [subprocess.Popen([*command, str(number)]) for number in range(count)]
            if any(child.wait() for child in children):
                raise RuntimeError("a process failed")
            moments = [json.loads(path.read_text()) for path in place.glob("done-*")]
            return float(max(end for _, end in moments) - min(start for start, _ in moments))

        return work

    eight = Contender(f"cas: {RANKS} processes", measured(RANKS), ground.clean)
    one = Contender("cas: 1 process", measured(1), ground.clean)
    compare(f"One new checkpoint of {4 * LAYERS} MiB, loaded from a barrier", [eight, one], rounds=3)


def footprint(ground: Ground) -> None:
    """Eight processes that load one model and run it: what they take together."""
    model = _model(LAYERS)
    size = f"{4 * LAYERS} MiB"
    for what, content in {"module": model, "state dict": model.state_dict()}.items():
        uuid = ground.upload({"model.pth" if what == "module" else "weights.pt": _saved(content)})
        subprocess.run(job("download", ground.home, ground.storage, uuid, ground.target), check=True)
        file = next(path for path in ground.target.iterdir() if path.suffix in (".pth", ".pt"))
        rows = []
        contenders: dict[str, list[object]] = {"cas": [ground.home, ground.storage, uuid], "torch": [file]}
        for who, where in contenders.items():
            place = Path(tempfile.mkdtemp(dir=ground.folder))
            commands = [job("footprint", f"{who} {what}", LAYERS, place, RANKS, n, *where) for n in range(RANKS)]
            children = [subprocess.Popen(command) for command in commands]
            if any(child.wait() for child in children):
                raise RuntimeError("a process failed")
            found = [json.loads(path.read_text()) for path in place.glob("done-*")]
            total, private = (sum(one[name] for one in found) / MIB for name in ("proportional", "private"))
            rows.append([who, f"{total:.0f}", f"{private / RANKS:.1f}"])
        print(f"\n{RANKS} processes with one {what} of {size}, after a forward pass: memory beyond the idle processes'")
        print(tabulate(rows, headers=["", "proportional set size of all, MiB", "mean private each, MiB"]))
        ground.clean()


def importing(ground: Ground) -> None:
    """Import the package."""
    ours = Contender("python -c 'import cas'", [sys.executable, "-c", "import cas"])
    client = Contender("… from cas.experimental import Determined", [sys.executable, "-c", "import cas.experimental"])
    plain = Contender("python -c pass", [sys.executable, "-c", "pass"])
    compare("import cas", [ours, plain, client], rounds=15)


def memory(ground: Ground) -> None:
    """Measure anonymous memory while pulling 1 GiB."""
    uuid = ground.upload({"state_dict.pth": os.urandom(LARGE)})
    ground.clean()
    found = json.loads(subprocess.check_output(job("memory", ground.home, ground.storage, uuid)))
    print(f"\nAnonymous memory while pulling {LARGE // MIB} MiB: idle {found['idle'] / MIB:.0f} MiB, grown by", end=" ")
    print(f"{found['grown'] / MIB:.0f} MiB at the peak")


def cutting(ground: Ground) -> None:
    """Cut files into chunks, and look chunks up."""
    chunks.cutting(ground.folder)
    chunks.index(ground.folder)


def questions(ground: Ground) -> None:
    """Ask for the best of 10,000 checkpoints: the catalog, and a master (simulated, in Python, on the same machine)."""
    from tests.master_simulator import Data, Simulator

    count = catalog.CHECKPOINTS
    subprocess.run(_part(catalog, "fill", ground.home, count), check=True)
    offline = _output(_part(catalog, "offline", ground.home))
    listing = [sys.executable, "-m", "cas.cli.main", "--home", str(ground.home), "ls", "--sort", "loss", "--limit", "1"]
    started = time.perf_counter()
    subprocess.run(listing, check=True, stdout=subprocess.DEVNULL)
    listed = (time.perf_counter() - started) * 1000
    data = Data()
    data.experiment(1, **catalog.CONFIG)
    for trial in range(1, 101):
        data.trial(trial, 1, lr=trial)
    for number in range(count):
        uuid, resources = catalog.uuid_of(number), {name: str(size) for name, size in catalog.RESOURCES.items()}
        metrics = {"loss": number * 37 % 9973, "accuracy": number / count}
        data.checkpoint(uuid, trial=1 + number % 100, steps=number, metrics=metrics, resources=resources)
    with Simulator(data) as master:
        online = _output(_part(catalog, "online", ground.folder / "fresh", master.url))
        requests = [one for one in master.requests() if "checkpoints" in one["path"]]
    rows = [
        ["top_checkpoint(), catalog, warm", f"{offline['top']:.0f}", f"{offline['cpu']:.0f} of the processor"],
        ["… the first question of a process", f"{offline['first']:.0f}", ""],
        ["list_checkpoints(): every record read whole", f"{offline['list']:.0f}", ""],
        ["`cas ls --sort loss --limit 1`, a process", f"{listed:.0f}", ""],
        ["top_checkpoint(), master, and remembered", f"{online['top']:.0f}", f"{len(requests)} requests"],
    ]
    print(f"\nThe best of {count} checkpoints of one experiment")
    print(tabulate(rows, headers=["", "median ms", ""], disable_numparse=True))
    print(f"the process that asked the master grew by {online['grown']:.0f} MiB at the peak")


def recovering(ground: Ground) -> None:
    """Recover buckets of two sizes: the time and the memory per checkpoint stay."""
    rows = []
    for count in catalog.RECOVERED:
        bucket, home = ground.folder / f"bucket-{count}", ground.folder / f"home-{count}"
        catalog.lay(bucket, count)
        found = _output(_part(catalog, "recovered", home, bucket))
        rate, again = count / found["first"], count / found["again"]
        rows.append([count, f"{found['first']:.1f}", f"{rate:.0f}", f"{again:.0f}", f"{found['grown']:.0f}"])
        shutil.rmtree(bucket)
    print("\nRecovering a folder of checkpoints (metadata and configuration read, weights left out)")
    headers = ["checkpoints", "seconds", "per second", "per second, again", "grown by MiB at the peak"]
    print(tabulate(rows, headers=headers, disable_numparse=True))


def _part(module: Any, name: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", module.__name__, name, *map(str, arguments)]


def named(name: str, contender: Contender | None) -> Contender | None:
    """Name a contender, if it is there."""
    if contender is not None:
        contender.name = name
    return contender


def _output(command: list[str]) -> Any:
    return json.loads(subprocess.check_output(command))


def _state_dict(count: int) -> bytes:
    import torch

    return _saved({f"layer{number}.weight": torch.randn(1024, 1024) for number in range(count)})


def _model(count: int) -> Any:
    import torch

    return torch.nn.Sequential(*[torch.nn.Linear(1024, 1024, bias=False) for _ in range(count)])


def at_size(ground: Ground) -> None:
    """Ask a store of 10,000 checkpoints, each with blobs of its own, what asks for all of them."""
    scale.main(scale.FEW if QUICK else scale.CHECKPOINTS)


def _saved(content: Any) -> bytes:
    import io

    import torch

    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@contextlib.contextmanager
def _ground() -> Iterator[Ground]:
    shm = Path("/dev/shm")
    parent = os.environ.get("BENCH_FOLDER") or (str(shm) if shm.is_dir() else None)
    with tempfile.TemporaryDirectory(prefix="cas-bench-", dir=parent) as folder:
        print(f"in {folder}")
        with s3_server.running(Path(folder)) as server:
            yield Ground(Path(folder), server)


BENCHES: dict[str, Callable[[Ground], None]] = {
    "import": importing,
    "cold": cold,
    "small": small,
    "again": again,
    "load": load,
    "ranks": ranks,
    "footprint": footprint,
    "memory": memory,
    "chunks": cutting,
    "catalog": questions,
    "recover": recovering,
    "scale": at_size,
}


def main(words: list[str]) -> None:
    """Run the benchmarks of these names, or all."""
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("names", metavar="NAME", nargs="*", help=", ".join(BENCHES))
    parser.add_argument("--count", type=int, action="append", help="of recover: how many checkpoints; repeatable")
    args = parser.parse_args(words)
    names, catalog.RECOVERED = args.names, tuple(args.count or catalog.RECOVERED)
    # What is installed has its bytecode. Without, each process would compile 20,000 lines first, for 0.2 to 0.3 s.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    if unknown := set(names) - BENCHES.keys():
        sys.exit(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(BENCHES)}")
    for name in names or BENCHES:
        with _ground() as ground:
            BENCHES[name](ground)


if __name__ == "__main__":
    main(sys.argv[1:])
