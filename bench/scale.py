"""A store at size: 10,000 checkpoints, 200,000 tiny blobs, in memory: how long commands take, and their memory.

`python -m bench scale`, or `python -m bench.scale [CHECKPOINTS] [--quick]`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import uuid as uuids
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from tabulate import tabulate

from bench.ground import Ground
from cas.index import disk, lines
from cas.index.digest import Digest
from cas.index.disk import Signature
from cas.index.facts import BlobFact
from cas.index.manifest import FileEntry, Manifest
from cas.index.paths import RelativePath
from cas.index.store import Store

QUICK = bool(os.environ.get("BENCH_QUICK"))
CHECKPOINTS = 10_000
FEW = 100  # checkpoints of a quick run
OWN = 19  # blobs of each checkpoint that no other has
SHARED = 10_000  # blobs that many have: with 10,000 checkpoints, 200,000 in all
MEMORY = 1024  # MiB that no command may take at its peak, with 10,000 checkpoints
_EACH = 5  # of the shared ones, each checkpoint has so many
_EXPERIMENT = 100  # checkpoints
_PART = 500  # checkpoints that one process makes at a time

COMMANDS = {
    "opening": (),
    "ls, the first time": ("ls",),
    "ls": ("ls",),
    "ls --experiment 7": ("ls", "--experiment", "7"),
    "du": ("du",),
    "check": ("check",),
    "prune --dry-run": ("prune", "--dry-run"),
    "trial download 7 --best (a plan)": ("trial", "download", "7", "--best", "--dry-run"),
}


def make(home: Path, count: int) -> None:
    """Write a home as an add of each checkpoint would have left it, past the doors, because only the result counts."""
    Store(home).close()
    for name in ("blobs", "manifests"):
        for number in range(256):
            (home / name / f"{number:02x}").mkdir(parents=True)
    shared = min(SHARED, count)
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as workers:
        parts = [range(start, min(start + _PART, count)) for start in range(0, count, _PART)]
        for made in [workers.submit(_make_part, home, part, shared) for part in parts]:
            made.result()


def _make_part(home: Path, numbers: Iterable[int], shared: int) -> None:
    """Write some checkpoints; of the shared blobs, those that have their numbers."""
    store = Store(home)
    root = os.fspath(home)
    facts: list[dict[str, object]] = []
    records: list[dict[str, object]] = []

    def write(path: str, data: bytes) -> os.stat_result:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o444)
        try:
            os.write(fd, data)
            return os.fstat(fd)
        finally:
            os.close(fd)

    def blob(data: bytes) -> Digest:
        digest = Digest.of(data)
        found = write(f"{root}/blobs/{digest.hex[:2]}/{digest.hex[2:]}", data)
        facts.append(BlobFact(digest, Signature.of(found), disk.boot_id(), sealed=True).to_json())
        return digest

    for number in numbers:
        own = [b"own %d of %d" % (file, number) for file in range(OWN)]
        common = [_common((number * _EACH + file) % shared) for file in range(_EACH)]
        if number < shared:
            blob(_common(number))
        found = [(data, blob(data)) for data in own] + [(data, Digest.of(data)) for data in common]
        manifest = Manifest.of(
            FileEntry(RelativePath(f"part/{at}.bin"), len(data), digest) for at, (data, digest) in enumerate(found)
        )
        write(f"{root}/manifests/{manifest.digest.hex[:2]}/{manifest.digest.hex[2:]}.json", manifest.encoded)
        uuid = str(uuids.UUID(int=number + (4 << 76) + (8 << 60)))
        store.refs.tag("local", uuid, manifest.digest)
        records += _records(number, uuid, manifest)
    lines.append(store.layout.facts, facts)
    lines.append(store.layout.records("local"), records)
    store.close()


def _common(number: int) -> bytes:
    return b"common %d" % number


def _records(number: int, uuid: str, manifest: Manifest) -> list[dict[str, object]]:
    experiment, trial = number // _EXPERIMENT + 1, number // 10 + 1
    seen, parents = disk.now(), [f"experiment/{experiment}", f"trial/{trial}"]
    found: list[dict[str, object]] = []
    if number % _EXPERIMENT == 0:
        config = {"searcher": {"metric": "loss", "smaller_is_better": True}}
        data: dict[str, object] = {"name": "", "state": "", "config": config, "trials": []}
        found.append({"kind": "experiment", "id": str(experiment), "seen": seen, "parents": [], "data": data})
    if number % 10 == 0:
        data = {"experiment": experiment, "state": "", "hparams": {"lr": 0.1}}
        found.append({"kind": "trial", "id": str(trial), "seen": seen, "parents": parents[:1], "data": data})
    data = {
        "state": "COMPLETED",
        "experiment": experiment,
        "trial": trial,
        "steps": number,
        "report_time": None,
        "resources": {str(entry.path): entry.size for entry in manifest.files},
        "metadata": {},
        "hparams": {"lr": 0.1},
        "validation": {"loss": 1 / (number + 1)},
        "training": None,
    }
    return [*found, {"kind": "checkpoint", "id": uuid, "seen": seen, "parents": parents, "data": data}]


def measure(home: Path, words: tuple[str, ...]) -> tuple[float, float, float, float]:
    """Run a command as a process; return its seconds, those of its own work, its processor's, and its memory at the
    peak in MiB.
    """
    # Not `resource.getrusage`: its peak is at least that of the process that started this one (Linux).
    code = (
        "import sys, time, os; from pathlib import Path; from cas.cli import main;"
        " from cas.index.store import Store; words = sys.argv[2:]; sys.stdout = open(os.devnull, 'w');"
        " begun = time.perf_counter();"
        " main.run([*words, '--home', sys.argv[1]], 'cas') if words else Store(Path(sys.argv[1]));"
        " took = time.perf_counter() - begun;"
        " peak = Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0];"
        " print(took, time.process_time(), peak, file=sys.stderr)"
    )
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, home, *words], capture_output=True, text=True, check=True)
    took, processor, peak = map(float, done.stderr.split()[-3:])
    return time.perf_counter() - begun, took, processor, peak / 1024


def at_size(ground: Ground) -> None:
    """Make a store of 10,000 checkpoints, each with blobs of its own, and ask what asks for all of them."""
    count, value = ground.size.of(CHECKPOINTS, least=FEW), ground.report.value
    measured = main(count)
    for name, (wall, took, cpu, peak) in measured:
        work = f"A store of {count} checkpoints: {name}"
        seconds = {"its process": wall, "its work": took, "its processor": cpu}
        ground.report.rows += [value(work, what, one, "s") for what, one in seconds.items()]
        ground.report.rows.append(value(work, "its memory at the peak", peak, "MiB"))
    most, work = max(peak for _, (*_, peak) in measured), f"A store of {count} checkpoints: every command"
    ground.report.rows.append(value(work, "the most memory at the peak", most, "MiB", at_most=MEMORY))


def main(count: int) -> list[tuple[str, tuple[float, float, float, float]]]:
    """Make the store, measure, and return what `measure` found of each command."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="cas-scale-", dir=shared if shared.is_dir() else None) as name:
        home, begun = Path(name) / "home", time.perf_counter()
        make(home, count)
        blobs = sum(len(files) for _, _, files in os.walk(home / "blobs"))
        manifests = sum(len(files) for _, _, files in os.walk(home / "manifests"))
        print(f"{manifests} checkpoints, {blobs} blobs, made in {time.perf_counter() - begun:.0f} s")
        rows = [("index rebuild, then ls --experiment 1", measure(home, ("ls", "--experiment", "1")))]
        rows += [(title, measure(home, words)) for title, words in COMMANDS.items()]
    shown = [
        (title, f"{wall:.2f}", f"{took:.3f}", f"{cpu:.2f}", f"{peak:.0f}") for title, (wall, took, cpu, peak) in rows
    ]
    headers = ["", "process s", "work s", "processor s", "peak MiB"]
    print(tabulate(shown, headers=headers, disable_numparse=True))
    above = [title for title, (_, _, _, peak) in rows if peak > MEMORY]
    if above:
        sys.exit(f"more than {MEMORY} MiB: {', '.join(above)}")
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoints", type=int, nargs="?")
    parser.add_argument("--quick", action="store_true", default=QUICK, help=f"{FEW} checkpoints")
    arguments = parser.parse_args()
    main(arguments.checkpoints or (FEW if arguments.quick else CHECKPOINTS))
