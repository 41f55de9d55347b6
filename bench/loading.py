"""Loading what is in the store, alone and with other processes, and what importing and pulling take of memory."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.ground import MIB, Ground, Uploaded, random_files, saved, state_dict
from bench.harness import Contender, Goal, Row, job, process
from tests import proxy

KNOWN = Goal(1.1, plus=0.020)
LAYERS = 64  # of 4 MiB each
FILES = 10_000  # of one view


def load(ground: Ground) -> None:
    """Load a known state dict and a pickled module of 256 MiB."""
    layers = ground.size.of(LAYERS, least=2)
    for what, content in {"state dict": state_dict(layers), "pickled module": model(layers)}.items():
        work = ground.upload([("state_dict.pth" if what == "state dict" else "model.pth", saved(content))])
        _known(ground, work)
        (file,) = ground.target.glob("*.pth")
        ours = Contender("cas: load()", _median(job("load", ground.home, ground.storage, work.uuid)))
        plain = Contender("torch.load(mmap=True)", _median(job("torch_load", file, what)), goal=KNOWN)
        ground.report.compare(f"load() of a known {what} of {4 * layers} MiB, in process", [ours, plain])
        ground.clean()


def ranks(ground: Ground) -> None:
    """Eight processes load one new checkpoint of 256 MiB, from a barrier after their imports."""
    layers, count = ground.size.of(LAYERS, least=2), ranks_of(ground)
    work = ground.upload([("state_dict.pth", saved(state_dict(layers)))])

    def measured(processes: int, storage: str) -> Callable[[], float]:
        def work_together() -> float:
            place = _together(ground, processes, "barrier", ground.home, storage, work.uuid)
            moments = [json.loads(path.read_text()) for path in place.glob("done-*")]
            return float(max(end for _, end in moments) - min(start for start, _ in moments))

        return work_together

    title = f"One new checkpoint of {4 * layers} MiB, loaded from a barrier"
    eight = Contender(f"cas: {count} processes", measured(count, ground.storage), ground.clean)
    one = Contender("cas: 1 process", measured(1, ground.storage), ground.clean, Goal(1.5))
    ground.report.compare(title, [eight, one], rounds=3)
    ground.clean()
    with proxy.counting(ground.server) as counted:
        measured(count, json.dumps(counted.server.storage("bench")))()
        sent = counted.bodies() / work.size
    row = ground.report.value(title, f"{count} processes", sent, "times its bytes on the wire", at_most=1.01)
    ground.report.values("The same through a proxy that counts", [row])


def footprint(ground: Ground) -> None:
    """Eight processes that load one model and run it: what they take together."""
    layers, count = ground.size.of(LAYERS, least=2), ranks_of(ground)
    rows: list[Row] = []
    whole = model(layers)
    title = f"{count} processes with one model of {4 * layers} MiB, after a forward pass: memory beyond the idle ones'"
    for what, content in {"module": whole, "state dict": whole.state_dict()}.items():
        work = ground.upload([("model.pth" if what == "module" else "weights.pt", saved(content))])
        _known(ground, work)
        file = next(path for path in ground.target.iterdir() if path.suffix in (".pth", ".pt"))
        contenders: dict[str, list[object]] = {
            "cas": [ground.home, ground.storage, work.uuid],
            "torch.load": [file],
        }
        for who, where in contenders.items():
            place = _together(ground, count, "footprint", f"{who} {what}", layers, at_end=where)
            found = [json.loads(path.read_text()) for path in place.glob("done-*")]
            total, private = (sum(one[name] for one in found) / MIB for name in ("proportional", "private"))
            rows += [
                ground.report.value(title, f"{who}, {what}: proportional set size of all", total, "MiB"),
                ground.report.value(title, f"{who}, {what}: mean private each", private / count, "MiB"),
            ]
        ground.clean()
    ground.report.values(title, rows)


def importing(ground: Ground) -> None:
    """Import the package."""
    ours = Contender("python -c 'import cas'", process([sys.executable, "-c", "import cas"]))
    plain = Contender("python -c pass", process([sys.executable, "-c", "pass"]), goal=Goal(plus=0.060))
    whole = [sys.executable, "-c", "from cas.experimental import Determined"]
    client = Contender("… from cas.experimental import Determined", process(whole))
    ground.report.compare("import cas", [ours, plain, client], rounds=15)


def memory(ground: Ground) -> None:
    """Measure anonymous memory while pulling: one file of 1 GiB, 8 of 256 MiB, 5,000 small ones."""
    size, count = ground.size.gib, ground.size.of(5000)
    works = {
        f"one file of {size // MIB} MiB": {"state_dict.pth": size},
        f"8 files of {size // 4 // MIB} MiB": {f"{number}.bin": size // 4 for number in range(8)},
        f"{count} files of 10 kB": {f"{number}.bin": 10_000 for number in range(count)},
    }
    rows, title = [], "Anonymous memory while pulling, beyond the idle process' (RssAnon, its children's too)"
    for what, sizes in works.items():
        work = ground.upload(random_files(sizes))
        ground.clean()
        found = _output(job("memory", ground.home, ground.storage, work.uuid))
        rows.append(ground.report.value(title, what, found["grown"] / MIB, "MiB at the peak", at_most=256))
    ground.report.values(title, rows, note=f"idle: {found['idle'] / MIB:.0f} MiB")


def views(ground: Ground) -> None:
    """Make the view of a checkpoint of 10,000 files, and take it again."""
    count = ground.size.of(FILES, least=100)
    found = _output(job("views", ground.home, ground.folder / "files", count))
    title = f"The view of a checkpoint of {count} files, in process"
    made, again = (statistics.median(found[name]) for name in ("made", "again"))
    ground.report.values(
        title,
        [
            ground.report.value(title, "made: median", made, "s", at_most=0.5),
            ground.report.value(title, "taken again: median", again * 1000, "ms", at_most=10),
        ],
    )


def ranks_of(ground: Ground) -> int:
    """How many processes of one host there are."""
    return 8 if ground.size.is_full else 2


def model(layers: int) -> Any:
    """Return a module of layers of 4 MiB each."""
    import torch

    return torch.nn.Sequential(*[torch.nn.Linear(1024, 1024, bias=False) for _ in range(layers)])


def _known(ground: Ground, work: Uploaded) -> None:
    """Bring a checkpoint into the store, where it is trusted from then on, and as plain files into the target."""
    subprocess.run(job("download", ground.home, ground.storage, work.uuid, ground.target, "copy"), check=True)


def _together(ground: Ground, count: int, name: str, *arguments: object, at_end: list[object] | None = None) -> Path:
    """Run a job in so many processes at once; return the folder where each left what it found."""
    place = Path(tempfile.mkdtemp(dir=ground.folder))
    commands = [job(name, *arguments, place, count, number, *(at_end or ())) for number in range(count)]
    children = [subprocess.Popen(command) for command in commands]
    codes = [child.wait() for child in children]
    if any(codes):
        raise RuntimeError("a process failed")
    return place


def _median(command: list[str]) -> Callable[[], float]:
    return lambda: float(statistics.median(_output(command)))


def _output(command: list[str]) -> Any:
    return json.loads(subprocess.check_output(command))
