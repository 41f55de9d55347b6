"""Fault injection: run an operation in a child and kill it before each step that changes the disk, and after the last.

`cas.index.disk` names its steps. A run counts them; then the operation runs once more for every step, each time on a
home of its own, in a child made by fork (so all imports are done), and is killed there. (What is on the disk after a
step is there before the next one too.)
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cas.index import disk

Operation = Callable[[Path], object]


@dataclass(frozen=True)
class Kill:
    """Where a run was killed."""

    number: int
    moment: str
    step: str

    def __str__(self) -> str:
        return f"killed {self.moment} step {self.number}, {self.step}"


def each_kill(
    folder: Path,
    setup: Operation,
    operation: Operation,
    *,
    at_most: int | None = None,
) -> Iterator[tuple[Kill, Path]]:
    """Yield each place where `operation` was killed, and the home that it left; `setup` prepares every home.

    With more than `at_most` steps, only every second (third, …) one is killed; with `CAS_KILLS=all`, every one.
    """
    steps = count_steps(folder / "counted", setup, operation)
    assert steps, "the operation changes nothing"
    wanted = len(steps) if at_most is None or os.environ.get("CAS_KILLS") == "all" else at_most
    stride = -(-len(steps) // wanted)
    last = len(steps) - 1
    for number, moment in [*((number, "before") for number in range(0, len(steps), stride)), (last, "after")]:
        home = folder / "killed"
        killed = _run(home, setup, operation, _Killer(number, moment))
        # With threads, the step of this number may not be reached: then the run ended well.
        if killed is not None:
            yield Kill(number, moment, killed), home
        shutil.rmtree(home, onerror=_force)


def count_steps(home: Path, setup: Operation, operation: Operation) -> list[str]:
    """Return the names of the steps that the operation takes; it must succeed."""
    counter = _Killer(-1, "")
    _run(home, setup, operation, counter)
    return [line for line in (home.parent / "steps").read_text().split("\n") if line]


def complete(home: Path, operation: Operation) -> None:
    """Run an operation to its end in a child, so that no thread of it is left here; it must succeed."""
    _run(home, lambda _: None, operation, _Killer(-1, ""))


class _Killer:
    """An observer that kills its process at one step."""

    def __init__(self, number: int, moment: str) -> None:
        self.number = number
        self.moment = moment
        self.seen: list[str] = []
        self._begun: dict[int, list[int]] = {}
        self._lock = threading.Lock()
        self.out = -1

    def __call__(self, moment: str, step: str) -> None:
        with self._lock:
            mine = self._begun.setdefault(threading.get_ident(), [])
            if moment == "before":
                mine.append(len(self.seen))
                self.seen.append(step)
            number = mine[-1] if moment == "before" else self._ended(mine, step)
            if (number, moment) == (self.number, self.moment):
                os.write(self.out, step.encode())
                os.kill(os.getpid(), signal.SIGKILL)

    def _ended(self, mine: list[int], step: str) -> int:
        while mine and self.seen[mine[-1]] != step:  # a step that failed has no "after"
            mine.pop()
        return mine.pop()


def _run(home: Path, setup: Operation, operation: Operation, observer: _Killer) -> str | None:
    """Run in a child; return the step it was killed at, or None if it ended well."""
    read, observer.out = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(read)
            setup(home)
            disk.observe(observer)
            operation(home)
            disk.observe(None)
            (home.parent / "steps").write_text("\n".join(observer.seen))
            code = 0
        except BaseException:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(code)
    os.close(observer.out)
    with open(read, encoding="ascii") as pipe:
        step = pipe.read()
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code == -signal.SIGKILL and step:
        return step
    assert code == 0, f"the operation failed by itself ({code}): see its traceback"
    return None


def _force(function: Callable[[str], object], path: str, _: object) -> None:
    if os.path.lexists(path):
        os.chmod(os.path.dirname(path), 0o700)
        function(path)
