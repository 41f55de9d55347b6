"""Runs contenders in turn, round by round, and keeps what was found beside what is to be reached."""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tabulate import tabulate

ROUNDS = 5
PATIENCE = 900  # seconds that one run of a peer may take


@dataclass(frozen=True, slots=True)
class Goal:
    """How long ours may take beside a peer: so many times its seconds, and some more."""

    factor: float = 1.0
    plus: float = 0.0  # seconds

    def __str__(self) -> str:
        more = f"+ {self.plus * 1000:g} ms" if self.plus else ""
        return f"≤ {more}" if self.factor == 1 and more else f"≤ {self.factor:g} x {more}".rstrip()

    def is_reached(self, ours: Sequence[float], theirs: Sequence[float]) -> bool:
        """Say whether the median round reaches it."""
        pairs = zip(ours, theirs, strict=False)  # a slow peer ran fewer rounds
        return statistics.median(mine - self.factor * other for mine, other in pairs) <= self.plus


@dataclass
class Contender:
    """One way of doing the work: what to do before each run, and the call that is timed."""

    name: str
    work: Callable[[], float | None]  # may return the seconds itself
    before: Callable[[], None] = lambda: None
    goal: Goal | None = None  # of ours beside this one
    rounds: int | None = None  # at most, for what is slow; then it is not warmed up either
    after_first: Callable[[], None] = lambda: None  # looks whether the work was done; not timed
    missing: str = ""  # why there is nothing to time
    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Row:
    """What was found of one contender, or one value; seconds unless `unit` says otherwise."""

    bench: str
    place: str  # memory, disk, or a folder
    work: str
    name: str
    median: float | None = None
    least: float | None = None
    most: float | None = None
    unit: str = "s"
    cpu: float | None = None  # seconds of the processes that it started
    ratio: float | None = None  # ours to this one's: the median of the rounds
    ratio_least: float | None = None
    ratio_most: float | None = None
    rounds: int = 0
    goal: str = ""
    reached: bool | None = None
    missing: str = ""

    @property
    def shown_ratio(self) -> str:
        """The ratio with its spread."""
        if self.ratio is None:
            return ""
        return f"{self.ratio:.2f} ({self.ratio_least:.2f} to {self.ratio_most:.2f})"

    @property
    def verdict(self) -> str:
        """Whether the goal is reached, in a word."""
        return {True: "reached", False: "missed", None: ""}[self.reached]


class Report:
    """All that one run of the benchmarks finds; prints each table as soon as it is there."""

    def __init__(self, *, rounds: int = ROUNDS, warm: bool = True, judge: bool = True) -> None:
        self._rounds = rounds
        self._warm = warm
        self._judge = judge  # whether a goal is reached: of smaller work nobody can say that
        self.rows: list[Row] = []
        self.bench = self.place = ""

    def compare(self, work: str, contenders: Sequence[Contender], *, rounds: int = ROUNDS, note: str = "") -> None:
        """Time the contenders in turn; the first is ours, and the ratios are ours to each other's, round by round."""
        print(f"\n{work}", flush=True)
        rounds = min(rounds, self._rounds)
        for contender in contenders if self._warm else ():
            if contender.rounds is None or contender is contenders[0]:
                _run(contender, contenders[0], count=False)
        for number in range(rounds):
            for contender in contenders:
                if contender.rounds is None or number < contender.rounds:
                    _run(contender, contenders[0], count=True)
        rows = [self._row(work, contender, contenders[0]) for contender in contenders]
        self.rows += rows
        headers = ["", "median s", "spread s", "cpu s", "ours / this", "goal", ""]
        print(tabulate([_shown(row) for row in rows], headers=headers, disable_numparse=True))
        if note:
            print(note)

    def _row(self, work: str, contender: Contender, ours: Contender) -> Row:
        if contender.missing:
            return Row(self.bench, self.place, work, contender.name, missing=contender.missing)
        found = contender.seconds
        ratios = [mine / theirs for mine, theirs in zip(ours.seconds, found, strict=False)]
        is_ours = contender is ours
        goal = None if is_ours else contender.goal
        return Row(
            self.bench,
            self.place,
            work,
            contender.name,
            statistics.median(found),
            min(found),
            max(found),
            cpu=statistics.median(contender.cpu) if any(contender.cpu) else None,
            ratio=None if is_ours else statistics.median(ratios),
            ratio_least=None if is_ours else min(ratios),
            ratio_most=None if is_ours else max(ratios),
            rounds=len(found),
            goal=str(goal) if goal is not None else "",
            reached=goal.is_reached(ours.seconds, found) if goal is not None and self._judge else None,
        )

    def values(self, work: str, rows: Sequence[Row], *, note: str = "") -> None:
        """Keep and print values that are no race."""
        print(f"\n{work}")
        self.rows += rows
        shown = [[row.name, _number(row), row.unit, row.goal, row.verdict] for row in rows]
        print(tabulate(shown, headers=["", "", "", "goal", ""], disable_numparse=True))
        if note:
            print(note)

    def value(
        self,
        work: str,
        name: str,
        value: float,
        unit: str,
        *,
        at_most: float | None = None,
        at_least: float | None = None,
    ) -> Row:
        """Return a row for `values`, with what is to be reached."""
        goal, is_reached = "", None
        if at_most is not None:
            goal, is_reached = f"≤ {at_most:g}", value <= at_most
        if at_least is not None:
            goal, is_reached = f"≥ {at_least:g}", value >= at_least
        reached = is_reached if self._judge else None
        return Row(self.bench, self.place, work, name, value, unit=unit, rounds=1, goal=goal, reached=reached)

    def summary(self) -> str:
        """Return the table of all that has a goal, or that there is none."""
        rows = [
            [row.place, row.work, row.name, row.shown_ratio or f"{_number(row)} {row.unit}", row.goal, row.verdict]
            for row in self.rows
            if row.goal
        ]
        if not rows:
            return "nothing of this has a goal"
        headers = ["in", "work", "against", "ours / this, or the value", "goal", ""]
        return tabulate(rows, headers=headers, disable_numparse=True)


def _shown(row: Row) -> list[str]:
    if row.missing:
        return [row.name, row.missing, "", "", "", "", ""]
    cpu = f"{row.cpu:.2f}" if row.cpu is not None else ""
    spread = f"{row.least:.3f} to {row.most:.3f}"
    return [row.name, f"{row.median:.3f}", spread, cpu, row.shown_ratio, row.goal, row.verdict]


def _number(row: Row) -> str:
    assert row.median is not None
    return f"{row.median:.0f}" if abs(row.median) >= 100 else f"{row.median:.3g}"


def _run(contender: Contender, ours: Contender, *, count: bool) -> None:
    """Run it once. A peer that fails is out of the race, and its row says why; of ours it is an error."""
    if contender.missing:
        return
    try:
        seconds, cpu = _once(contender)
        contender.after_first()
    except (subprocess.SubprocessError, OSError, RuntimeError) as error:
        if contender is ours:
            raise
        said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        contender.missing = f"failed: {said[-1][:100] if said else type(error).__name__}"
        return
    contender.after_first = lambda: None
    if count:
        contender.seconds.append(seconds)
        contender.cpu.append(cpu)


def _once(contender: Contender) -> tuple[float, float]:
    contender.before()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    seconds = contender.work()
    took = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return (took, cpu) if seconds is None else (seconds, 0.0)  # what says its seconds itself did more besides


def process(*commands: Sequence[str], environment: Mapping[str, str] | None = None) -> Callable[[], None]:
    """Return what runs commands, one after the other; what they print is thrown away unless they fail."""

    def work() -> None:
        for command in commands:
            subprocess.run(
                command,
                check=True,
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                timeout=PATIENCE,
            )

    return work


def job(name: str, *arguments: object, module: str = "bench.jobs") -> list[str]:
    """Return the command that does one of `bench/jobs.py` in a process of its own."""
    return [sys.executable, "-m", module, name, *map(str, arguments)]
