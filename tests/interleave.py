"""Plays processes of one store against each other, in an order that a seed decides.

Each actor is a process made by fork, which stops before every step that changes the disk (`cas.index.disk` names them),
and, in half of the schedules, before it lists a folder of the store. A controller lets one at a time go on. `flock`
does nothing, as on network file systems that ignore it. An actor that is not chosen for long is a stopped process.

::

    for seed in range(1000):
        play(home, seed, [[("pull", pull)], [("prune", prune), ("rm", rm)]])    # then look at what they left
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import select
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cas.index import disk

Operation = Callable[[Path, random.Random], object]

BLOCKED = 0.5  # seconds after which an actor that was let go is taken to wait for another one
STEPS = 20_000  # of one schedule; more are a livelock
_LOCKED = {"sqlite commit", "set_time"}  # steps in which SQLite holds its lock: who stopped there would stop everybody
_WATCHED = ("refs", "aside", "views", "leases", "blobs", "ingest", "pins")


@dataclass
class Actor:
    """One process: what it does, and the pipes by which it asks to go on."""

    name: str
    pid: int
    asks: int
    goes: int
    ready: bool = False
    ended: bool = False
    trace: list[str] = field(default_factory=list)


class FailedError(AssertionError):
    """An actor failed, or they all wait for each other."""


def play(home: Path, seed: int, cast: Sequence[Sequence[tuple[str, Operation]]], *, steps: int = 80) -> list[str]:
    """Let actors do their operations on a home, in the order of a seed; return the order of the steps.

    Args:
        home: the store.
        seed: decides everything: who goes on, and what operations choose by the generator that they are given.
        cast: of each actor, what it does, one after the other: names and operations.
        steps: about how many each of them takes.

    Raises:
        FailedError: an operation raised, or they all wait for each other.
    """
    rng = random.Random(seed)
    running = [_start(f"{at}", home, todo, rng.random(), seed % 2 == 0) for at, todo in enumerate(cast)]
    try:
        return _conduct(running, rng, seed, steps * len(cast))
    finally:
        for actor in running:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                if not actor.ended:
                    os.kill(actor.pid, signal.SIGKILL)
                    os.waitpid(actor.pid, 0)
            os.close(actor.asks)
            os.close(actor.goes)


# --- the controller ------------------------------------------------------------------------------------------------


def _conduct(actors: Sequence[Actor], rng: random.Random, seed: int, length: int) -> list[str]:
    """Choose who goes on, until all have ended: at random, or by ranks that change a few times."""
    order: list[str] = []
    ranks = {actor.name: rng.random() for actor in actors}
    by_rank, again = rng.random() < 0.7, rng.random()
    changes = {rng.randrange(1, length if rng.random() < 0.6 else 6) for _ in range(rng.randrange(1, 6))}
    last: Actor | None = None
    while not all(actor.ready or actor.ended for actor in actors):
        _listen(actors, 10)
    for number in range(STEPS):
        ready = _ready(actors)
        if not ready:
            return order
        if by_rank:
            if number in changes:
                ranks[max(ready, key=lambda actor: ranks[actor.name]).name] = -number  # now it is the last
            chosen = max(ready, key=lambda actor: ranks[actor.name])
        else:
            chosen = last if last in ready and rng.random() < again else rng.choice(ready)
        assert chosen is not None
        last = chosen
        order.append(f"{chosen.name}:{chosen.trace[-1]}")
        chosen.ready = False
        os.write(chosen.goes, b"g")
        _listen(actors, BLOCKED, until=chosen)
    raise FailedError(f"seed {seed}: no end after {STEPS} steps: {' '.join(order[-60:])}")


def _ready(actors: Sequence[Actor]) -> list[Actor]:
    """Return who waits to go on; none when all have ended."""
    for _ in range(600):
        ready = [actor for actor in actors if actor.ready]
        if ready or all(actor.ended for actor in actors):
            return ready
        _listen(actors, 0.1)
    raise FailedError(f"they wait for each other: {[(actor.name, actor.trace[-3:]) for actor in actors]}")


def _listen(actors: Sequence[Actor], timeout: float, until: Actor | None = None) -> None:
    """Take what actors say, until the one that was let go stops again, ends, or is blocked."""
    while True:
        open_ones = {actor.asks: actor for actor in actors if not actor.ended and not actor.ready}
        if not open_ones or (until is not None and (until.ready or until.ended)):
            return
        waiting = select.poll()  # not select(): that ends at 1,024 files, and a test's process may have more open
        for fd in open_ones:
            waiting.register(fd, select.POLLIN)
        found = waiting.poll(timeout * 1000)
        if not found:
            return
        for fd, _ in found:
            _hear(open_ones[fd])
        if until is None:
            return


def _hear(actor: Actor) -> None:
    said = os.read(actor.asks, 1 << 16)
    if said:
        actor.trace += said.decode().split()
        actor.ready = True
        return
    actor.ended = True
    _, status = os.waitpid(actor.pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code != 0:
        raise FailedError(f"actor {actor.name} ended with {code}: {' '.join(actor.trace[-40:])}")


# --- an actor ------------------------------------------------------------------------------------------------------


def _start(name: str, home: Path, todo: Sequence[tuple[str, Operation]], seed: float, listing: bool) -> Actor:
    asks, ask = os.pipe()
    go, goes = os.pipe()
    pid = os.fork()
    if pid:
        os.close(ask)
        os.close(go)
        return Actor(name, pid, asks, goes)
    code = 1
    try:
        os.close(asks)
        os.close(goes)
        _act(home, todo, random.Random(seed), _Stops(ask, go, home, listing=listing))
        code = 0
    except BaseException:
        sys.stderr.write(f"actor {name}, {[name for name, _ in todo]}:\n{traceback.format_exc()}")
    finally:
        sys.stderr.flush()
        os._exit(code)
    raise AssertionError("unreachable")


def _act(home: Path, todo: Sequence[tuple[str, Operation]], rng: random.Random, stops: _Stops) -> None:
    import fcntl

    fcntl.flock = lambda fd, operation: None  # type: ignore[assignment]
    disk.observe(stops)
    sys.addaudithook(stops.audit)
    for name, operation in todo:
        stops.stop(f"<{name}>")
        operation(home, rng)


class _Stops:
    """Stops an actor before its steps until the controller lets it go on."""

    def __init__(self, ask: int, go: int, home: Path, *, listing: bool) -> None:
        import threading

        self._ask, self._go, self._listing = ask, go, listing
        self._lock = threading.Lock()
        self._watched = tuple(f"{home}/{name}" for name in _WATCHED)

    def __call__(self, moment: str, step: str) -> None:
        if moment == "before" and step not in _LOCKED:
            self.stop(step.replace(" ", "_"))

    def audit(self, event: str, args: tuple[object, ...]) -> None:
        if self._listing and event in ("os.listdir", "os.scandir") and isinstance(args[0], str | os.PathLike):
            path = os.fspath(args[0])
            if isinstance(path, str) and path.startswith(self._watched):
                self.stop(f"list:{path.split('/')[-1][:8]}")

    def stop(self, step: str) -> None:
        with self._lock:  # one thread of this process at a time
            try:
                os.write(self._ask, f"{step} ".encode())
                while not os.read(self._go, 1):
                    os._exit(2)  # the controller is gone
            except OSError as error:
                if error.errno != errno.EPIPE:
                    raise
                os._exit(2)


@contextlib.contextmanager
def a_folder() -> Iterator[Path]:
    """A folder in memory."""
    memory = Path("/dev/shm")
    where = memory if memory.is_dir() else None
    with tempfile.TemporaryDirectory(dir=where, ignore_cleanup_errors=True) as name:  # a thread may still seal there
        yield Path(name)
