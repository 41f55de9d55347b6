"""Runs contenders in turn, several rounds, each as a process of its own, and prints medians, spread and ratios."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tabulate import tabulate

QUICK = bool(os.environ.get("BENCH_QUICK"))  # small and once: whether the benchmarks work, not how fast anything is
ROUNDS = 1 if QUICK else 5


@dataclass
class Contender:
    """One way of doing the work: what to do before each run, and the command or call that is timed."""

    name: str
    work: Sequence[str] | Callable[[], float | None]  # a call may return the seconds itself
    before: Callable[[], None] = lambda: None
    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def compare(title: str, contenders: Sequence[Contender], *, rounds: int = ROUNDS, note: str = "") -> None:
    """Time the contenders in turn; the first is ours, and the ratios are ours to each other's, round by round."""
    print(f"\n{title}", flush=True)
    for contender in contenders if not QUICK else ():  # warm up: not counted
        _once(contender)
    for _ in range(1 if QUICK else rounds):
        for contender in contenders:
            seconds, cpu = _once(contender)
            contender.seconds.append(seconds)
            contender.cpu.append(cpu)
    ours = contenders[0]
    rows = []
    for contender in contenders:
        low, middle, high = min(contender.seconds), statistics.median(contender.seconds), max(contender.seconds)
        ratios = [mine / theirs for mine, theirs in zip(ours.seconds, contender.seconds, strict=True)]
        ratio = "" if contender is ours else f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        rows.append([contender.name, f"{middle:.3f}", f"{low:.3f} to {high:.3f}", _median(contender.cpu), ratio])
    print(tabulate(rows, headers=["", "median s", "spread s", "cpu s", "ours / this"], disable_numparse=True))
    if note:
        print(note)


def _median(values: list[float]) -> str:
    return f"{statistics.median(values):.2f}" if any(values) else ""


def _once(contender: Contender) -> tuple[float, float]:
    contender.before()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    if callable(contender.work):
        seconds = contender.work()
    else:
        seconds = None
        subprocess.run(contender.work, check=True, stdout=subprocess.DEVNULL)
    took = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return (took if seconds is None else seconds), cpu


def job(name: str, *arguments: object) -> list[str]:
    """Return the command that does one of `bench/jobs.py` in a process of its own."""
    return [sys.executable, "-m", "bench.jobs", name, *map(str, arguments)]


def peer(name: str) -> str | None:
    """Return the path of a peer's command in the peers' environment, or None with a line that says so."""
    path = Path(".venv-peers/bin") / name
    if path.exists():
        return str(path.absolute())
    print(f"(no {name}: `make bench` installs the peers into .venv-peers)")
    return None
