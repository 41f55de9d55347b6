"""A store at size: 10,000 checkpoints, 200,000 tiny blobs, in memory: how long commands take, and their memory.

`python -m bench.scale [CHECKPOINTS]`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import uuid as uuids
from pathlib import Path

from tabulate import tabulate

from cas.index import disk, lines
from cas.index.digest import Digest
from cas.index.disk import Signature
from cas.index.facts import BlobFact
from cas.index.manifest import FileEntry, Manifest
from cas.index.paths import RelativePath
from cas.index.store import Store

QUICK = bool(os.environ.get("BENCH_QUICK"))
CHECKPOINTS = 100 if QUICK else 10_000
OWN = 19  # blobs of each checkpoint that no other has
SHARED = 10_000  # blobs that many have: with 10,000 checkpoints, 200,000 in all
_EACH = 5  # of the shared ones, each checkpoint has so many
_EXPERIMENT = 100  # checkpoints

COMMANDS = {
    "opening": (),
    "ls": ("ls",),
    "ls --experiment 7": ("ls", "--experiment", "7"),
    "du": ("du",),
    "check": ("check",),
    "prune --dry-run": ("prune", "--dry-run"),
    "trial download 7 --best (a plan)": ("trial", "download", "7", "--best", "--dry-run"),
}


def make(home: Path, count: int) -> None:
    """Write a home as an add of each checkpoint would have left it, past the doors, because only the result counts."""
    store = Store(home)
    facts: list[dict[str, object]] = []

    def blob(data: bytes) -> FileEntry:
        digest = Digest.of(data)
        path = store.layout.blob(digest)
        try:
            path.write_bytes(data)
        except FileNotFoundError:
            path.parent.mkdir(parents=True)
            path.write_bytes(data)
        path.chmod(0o444)
        facts.append(BlobFact(digest, Signature.of(path.stat()), disk.boot_id(), sealed=True).to_json())
        return FileEntry(RelativePath("x"), len(data), digest)

    common = [blob(b"common %d" % number) for number in range(min(SHARED, count))]
    records: list[dict[str, object]] = []
    for number in range(count):
        entries = [blob(b"own %d of %d" % (file, number)) for file in range(OWN)]
        entries += [common[(number * _EACH + file) % len(common)] for file in range(_EACH)]
        named = [FileEntry(RelativePath(f"part/{at}.bin"), one.size, one.digest) for at, one in enumerate(entries)]
        manifest = Manifest.of(named)
        path = store.layout.manifest(manifest.digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(manifest.encoded)
        path.chmod(0o444)
        uuid = str(uuids.UUID(int=number + (4 << 76) + (8 << 60)))
        store.refs.tag("local", uuid, manifest.digest)
        records += _records(number, uuid, manifest)
    lines.append(store.layout.facts, facts)
    lines.append(store.layout.records("local"), records)
    store.close()


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


def measure(home: Path, words: tuple[str, ...]) -> tuple[float, float, float]:
    """Run a command as a process; return its seconds, those of its own work, and its memory at the peak in MiB."""
    code = (
        "import sys, time, os; from pathlib import Path; from cas.cli import main;"
        " from cas.index.store import Store; words = sys.argv[2:]; sys.stdout = open(os.devnull, 'w');"
        " begun = time.perf_counter();"
        " main.run([*words, '--home', sys.argv[1]], 'cas') if words else Store(Path(sys.argv[1]));"
        " took = time.perf_counter() - begun;"
        " peak = Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0];"
        " print(took, peak, file=sys.stderr)"
    )
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, home, *words], capture_output=True, text=True, check=True)
    took, peak = done.stderr.split()[-2:]
    return time.perf_counter() - begun, float(took), float(peak) / 1024


def main(count: int) -> None:
    """Make the store, and measure."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="cas-scale-", dir=shared if shared.is_dir() else None) as name:
        home, begun = Path(name) / "home", time.perf_counter()
        make(home, count)
        blobs = sum(1 for _ in home.glob("blobs/??/*"))
        print(f"{count} checkpoints, {blobs} blobs, made in {time.perf_counter() - begun:.0f} s")
        for path in home.glob("index-*"):
            path.unlink()
        rows = [("index rebuild, then ls --experiment 1", measure(home, ("ls", "--experiment", "1")))]
        rows += [(title, measure(home, words)) for title, words in COMMANDS.items()]
        shown = [(title, f"{wall:.2f}", f"{took:.3f}", f"{peak:.0f}") for title, (wall, took, peak) in rows]
        headers = ["", "process s", "work s", "peak MiB"]
        print(tabulate(shown, headers=headers, disable_numparse=True))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else CHECKPOINTS)
