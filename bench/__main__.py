"""`python -m bench`: every speed that the design asks for, beside peers, in one run."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import cas
from bench import catalog, chunks, loading, peers, scale, siblings, transfers
from bench.ground import GIB, MIB, QUICK, Ground, Size, file_system_of, folder_of, ground_in
from bench.harness import ROUNDS, Report
from cas.config import size_of


@dataclass(frozen=True, slots=True)
class Bench:
    """One benchmark, and where it lies if nobody says otherwise."""

    run: Callable[[Ground], None]
    places: tuple[str, ...] = ("memory",)


BOTH = ("memory", "disk")
BENCHES = {
    "import": Bench(loading.importing),
    "cold": Bench(transfers.cold, BOTH),
    "eight": Bench(transfers.eight, BOTH),
    "small": Bench(transfers.small, BOTH),
    "mixed": Bench(transfers.mixed, BOTH),
    "again": Bench(transfers.again),
    "wire": Bench(siblings.wire),
    "hints": Bench(siblings.hints),
    "load": Bench(loading.load),
    "views": Bench(loading.views),
    "ranks": Bench(loading.ranks),
    "footprint": Bench(loading.footprint),
    "memory": Bench(loading.memory),
    "chunks": Bench(chunks.cutting),
    "index": Bench(chunks.index),
    "catalog": Bench(catalog.questions),
    "recover": Bench(catalog.recovering),
    "scale": Bench(scale.at_size),
}


def main(words: list[str]) -> None:
    """Run the benchmarks that are named, or all; print each table as it comes, and at the end all that has a goal."""
    args = _parse(words)
    # What is installed has its bytecode. Without, each process would compile 20,000 lines first, for 0.2 to 0.3 s.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["CAS_PROGRESS"] = "off"  # tables alone
    catalog.COUNTS = tuple(args.count or ())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # tidily: a server runs, and gigabytes lie about
    size = Size(QUICK if args.quick else args.size)
    report = Report(rounds=args.rounds or (1 if args.quick else ROUNDS), warm=not args.quick, judge=size.is_full)
    about = _about(size)
    print("; ".join(f"{name}: {value}" for name, value in about.items()))
    begun, failed = time.monotonic(), list[str]()
    for name in args.names or BENCHES:
        for place in _places(args.on, BENCHES[name]):
            started = time.monotonic()
            try:
                _run(name, place, size, report)
            except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # the others are worth having
                failed.append(f"{name}, in {place}: {error}")
                print(f"failed: {failed[-1]}", flush=True)
            print(f"({time.monotonic() - started:.0f} s)")
    print(f"\n== What is to be reached\n\n{report.summary()}")
    print(f"({time.monotonic() - begun:.0f} s in all)")
    if args.json:
        rows = [asdict(row) for row in report.rows]
        kept = {"about": about, "seconds": time.monotonic() - begun, "failed": failed, "rows": rows}
        Path(args.json).write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if failed:
        sys.exit("failed: " + "\n".join(failed))


def _run(name: str, place: str, size: Size, report: Report) -> None:
    """Run one benchmark in one place."""
    report.bench = name
    with ground_in(place, size, report) as ground:
        where = f"{ground.folder}, {file_system_of(ground.folder)}"
        print(f"\n== {name}, in {place} ({where})" if place in BOTH else f"\n== {name} ({where})", flush=True)
        BENCHES[name].run(ground)


def _places(asked: str | None, bench: Bench) -> tuple[str, ...]:
    if asked is None:
        return bench.places
    return BOTH if asked == "both" else (asked,)


def _about(size: Size) -> dict[str, str]:
    """Say what the figures belong to: the machine, how busy it is, and the versions."""
    processor = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    memory = next((int(line.split()[1]) >> 20 for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    here = ", ".join(f"{name} {version}" for name, version in peers.versions().items()) or "none"
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cores": f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()}",
        "processor": processor,
        "memory": f"{memory} GiB",
        "system": platform.platform(),
        "load before": f"{os.getloadavg()[0]:.1f}",
        "python": platform.python_version(),
        "cas": cas.__version__,
        "peers": here,
        "disk": file_system_of(folder_of("disk")),
        "size": "full" if size.is_full else f"{size.gib // MIB} MiB stand for 1 GiB",
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def _size(text: str) -> int:
    try:
        found = size_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if not MIB <= found <= 16 * GIB:
        raise argparse.ArgumentTypeError("it takes 1 MiB to 16 GiB")
    return found


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError("it takes a number of 1 or more")
    return int(text)


def _parse(words: list[str]) -> argparse.Namespace:
    known = "\n".join(f"  {name:10} {(bench.run.__doc__ or '').splitlines()[0]}" for name, bench in BENCHES.items())
    parser = argparse.ArgumentParser(
        "python -m bench",
        description="Times this version beside peers on the same machine: runs that take turns, the median of their\n"
        "ratios, the spread, and beside them what is to be reached.\n\n" + known,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", metavar="NAME", nargs="*", help="which of them; default: all")
    parser.add_argument(
        "--on",
        metavar="PLACE",
        help="memory, disk, both, or a folder; default: memory, and cold transfers also on the disk",
    )
    parser.add_argument("--size", type=_size, default=GIB, help="bytes that stand for 1 GiB, like 128MiB")
    parser.add_argument(
        "--rounds", type=_count, metavar="N", help=f"at most; default: {ROUNDS}, or fewer where it is slow"
    )
    parser.add_argument(
        "--count", type=_count, action="append", metavar="N", help="of recover: how many checkpoints; repeatable"
    )
    parser.add_argument("--quick", action="store_true", help="small and once: whether they work, not how fast it is")
    parser.add_argument("--json", metavar="FILE", help="keep all that was found in this file, too")
    args = parser.parse_args(words)
    if unknown := [name for name in args.names if name not in BENCHES]:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(BENCHES)}")
    if args.on not in (None, "both", *BOTH) and not Path(args.on).is_dir():
        parser.error(f"--on takes memory, disk, both, or a folder that there is, not {args.on!r}")
    return args


if __name__ == "__main__":
    main(sys.argv[1:])
