"""Questions to the catalog and to a master over 10,000 checkpoints of one experiment, and the recovery of a bucket.

`python -m bench.catalog JOB ARGUMENT…` does one of the jobs, in a process of its own.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.ground import Ground, remove
from bench.harness import job

CHECKPOINTS = 10_000
RECOVERED = (5_000, 20_000)
COUNTS: tuple[int, ...] = ()  # recovered instead of these, if the user names any
REGISTRY = "http://bench:8080"
CONFIG = {
    "searcher": {"metric": "loss", "smaller_is_better": True},
    "hyperparameters": {f"h{number}": {"type": "double", "minval": 0, "maxval": 1} for number in range(40)},
}
RESOURCES = {"metadata.json": 62, "code/": 0, "code/model_def.py": 4000, "state_dict.pth": 400_000, "load_data.json": 9}


def questions(ground: Ground) -> None:
    """Ask for the best of 10,000 checkpoints: the catalog, and a master (simulated, in Python, on the same machine)."""
    count = ground.size.of(CHECKPOINTS)
    subprocess.run(_job("fill", ground.home, count), check=True)
    offline = json.loads(subprocess.check_output(_job("offline", ground.home)))
    listing = [sys.executable, "-m", "cas", "--home", str(ground.home), "ls", "--sort", "loss", "--limit", "1"]
    listed = _milliseconds(lambda: subprocess.run(listing, check=True, stdout=subprocess.DEVNULL))
    online, requests = _ask_master(ground.folder / "fresh", count)
    title, value = f"The best of {count} checkpoints of one experiment", ground.report.value
    ground.report.values(
        title,
        [
            value(title, "top_checkpoint(), catalog, warm: median", offline["top"], "ms"),
            value(title, "… of it the processor's", offline["cpu"], "ms"),
            value(title, "… the first question of a process", offline["first"], "ms"),
            value(title, "list_checkpoints(): every record read whole", offline["list"], "ms"),
            value(title, "`cas ls --sort loss --limit 1`, a process", listed, "ms"),
            value(title, "top_checkpoint(), master, and remembered", online["top"], "ms"),
            value(title, "… requests to the master", requests, ""),
            value(title, "… the process grew by, at the peak", online["grown"], "MiB"),
        ],
    )


def _ask_master(home: Path, count: int) -> tuple[dict[str, float], int]:
    """Ask a simulated master; return what `online` prints, and how many requests for checkpoints it took."""
    from tests.master_simulator import Data, Simulator

    data = Data()
    data.experiment(1, **CONFIG)
    for trial in range(1, 101):
        data.trial(trial, 1, lr=trial)
    for number in range(count):
        resources = {name: str(size) for name, size in RESOURCES.items()}
        metrics = {"loss": number * 37 % 9973, "accuracy": number / count}
        data.checkpoint(uuid_of(number), trial=1 + number % 100, steps=number, metrics=metrics, resources=resources)
    with Simulator(data) as master:
        found = json.loads(subprocess.check_output(_job("online", home, master.url)))
        return found, len([one for one in master.requests() if "checkpoints" in one["path"]])


def recovering(ground: Ground) -> None:
    """Recover buckets of two sizes: the time and the memory per checkpoint stay."""
    rows, title = [], "Recovering a folder of checkpoints (metadata and configuration read, weights left out)"
    for count in COUNTS or [ground.size.of(number, least=50) for number in RECOVERED]:
        bucket, home = ground.folder / f"bucket-{count}", ground.folder / f"home-{count}"
        lay(bucket, count)
        found = json.loads(subprocess.check_output(_job("recovered", home, bucket)))
        value = ground.report.value
        rows += [
            value(title, f"{count}", count / found["first"], "checkpoints a second"),
            value(title, f"{count}, again", count / found["again"], "checkpoints a second"),
            value(title, f"{count}: the process grew by, at the peak", found["grown"], "MiB"),
        ]
        remove(bucket)
    ground.report.values(title, rows)


def _job(name: str, *arguments: object) -> list[str]:
    return job(name, *arguments, module="bench.catalog")


def fill(home: str, count: str) -> None:
    """Write the records of one experiment of 100 trials into the catalog."""
    from cas.index.store import open_store
    from cas.registry.records import CheckpointRecord, ExperimentRecord
    from cas.registry.remembering import remember

    numbers = random.Random(1)
    records = [
        CheckpointRecord(
            registry=REGISTRY,
            uuid=uuid_of(number),
            experiment_id=1,
            trial_id=1 + number % 100,
            steps_completed=number,
            report_time=f"2024-03-01T{number // 3600 % 24:02}:{number // 60 % 60:02}:{number % 60:02}.250Z",
            resources=RESOURCES,
            metadata={"steps_completed": number, "determined_version": "0.38.1", "format": "pickle"},
            experiment_config=CONFIG,
            hparams={"lr": 0.1, "batch_size": 32, "layers": [1, 2, 3]},
            validation_metrics={"loss": numbers.random(), "accuracy": numbers.random(), "f1": numbers.random()},
        )
        for number in range(int(count))
    ]
    experiment = ExperimentRecord(registry=REGISTRY, id=1, config=CONFIG)
    remember(open_store(Path(home)), REGISTRY, [experiment, *records], complete="experiment/1")


def offline(home: str) -> None:
    """Print how long the first question of a process took, and the median of the next ones (milliseconds; cpu too)."""
    from cas.client import Determined
    from cas.config import Settings

    determined = Determined(registry=REGISTRY, settings=Settings.load(home=home))
    first = _milliseconds(lambda: determined.get_experiment(1).top_checkpoint())
    experiment = determined.get_experiment(1)
    top = statistics.median(_milliseconds(experiment.top_checkpoint) for _ in range(9))
    cpu = statistics.median(_milliseconds(experiment.top_checkpoint, time.process_time) for _ in range(9))
    listed = statistics.median(_milliseconds(experiment.list_checkpoints) for _ in range(3))
    print(json.dumps({"first": first, "top": top, "cpu": cpu, "list": listed}))


def online(home: str, url: str) -> None:
    """Print how long `top_checkpoint` takes of a master (milliseconds), and by how much the process grew (MiB)."""
    from cas.client import Determined
    from cas.config import Settings

    experiment = Determined(master=url, settings=Settings.load(home=home)).get_experiment(1)
    _peak()
    before = _peak()
    took = _milliseconds(experiment.top_checkpoint)
    print(json.dumps({"top": took, "grown": _peak() - before}))


def recovered(home: str, bucket: str) -> None:
    """Print how long a recovery and the same again take (seconds), and by how much the process grew (MiB)."""
    from cas.actions.recovering import recover
    from cas.config import Progress, Settings

    settings = Settings.load(home=home, progress=Progress.OFF)
    _peak()
    before = _peak()
    first = _milliseconds(lambda: recover(bucket, settings=settings)) / 1000
    grown = _peak() - before
    again = _milliseconds(lambda: recover(bucket, settings=settings)) / 1000
    print(json.dumps({"first": first, "again": again, "grown": grown}))


def lay(bucket: Path, count: int) -> None:
    """Write a bucket of checkpoints of 10 experiments with 10 trials each; the weights are left out.

    What says the same is one file with many names: 100,000 checkpoints take as many folders, and next to no disk.
    """
    documents = bucket.with_name(f"{bucket.name}-documents")
    documents.mkdir()
    for number in range(count):
        folder = bucket / uuid_of(number)
        folder.mkdir(parents=True)
        said = {"steps_completed": number // 100, "determined_version": "0.38.1"}
        _link(documents / f"metadata-{number // 100}", said, folder / "metadata.json")
        loading = {"experiment_config": {**CONFIG, "seed": number % 10}, "hparams": {"lr": number % 100}}
        said = {"trial_cls_spec": "model_def:Trial", **loading}
        _link(documents / f"load_data-{number % 100}", said, folder / "load_data.json")


def _link(document: Path, said: dict[str, Any], name: Path) -> None:
    if not document.exists():
        document.write_text(json.dumps(said))
    name.hardlink_to(document)


def uuid_of(number: int) -> str:
    """Return the UUID of a number; they are spread over all first digits."""
    return f"{number * 0x9E3779B1 % (1 << 32):08x}-0000-4000-8000-{number:012x}"


def _milliseconds(work: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> float:
    started = clock()
    work()
    return (clock() - started) * 1000


def _peak() -> float:
    """Return the peak of resident memory since the last time (MiB), and begin anew: a child has its parent's."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


if __name__ == "__main__":
    os.environ.setdefault("CAS_LOG_LEVEL", "ERROR")
    globals()[sys.argv[1]](*sys.argv[2:])
