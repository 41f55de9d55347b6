"""The ranks of a job tell each other how their work stands.

What a rank does, it does in a thread, and tells the others meanwhile that it is at it: they wait as long as it gets on.
What it cannot do it tells too, so that all fail together, and soon.
"""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any, Protocol, TypeVar

from cas.errors import CasError, ChangedError, DigestMismatchError, PeerError
from cas.index.store import explained
from cas.transfer.remote import RangesIgnoredError
from cas.transfer.watched import Watch
from cas.transfer.workers import Workers

log = logging.getLogger("cas.transfer")

T = TypeVar("T")

ALONE = (ChangedError, DigestMismatchError, RangesIgnoredError)  # then each host pulls by itself what is left
TELL = 1.0  # seconds after which a rank that is still at work says so
LEAVING = 1.0  # seconds that work which was ended gets to leave tidily
_WORKING = b"."


class Group(Protocol):
    """The ranks of one job; every one makes the same calls in the same order."""

    rank: int
    size: int
    bound: float  # seconds after which a rank that does not answer, or gets nothing done, is given up

    def gather(self, data: bytes) -> list[bytes]:
        """Return what every rank gave, in order of rank."""

    def broadcast(self, data: bytes | None, source: int) -> bytes:
        """Return what the rank `source` gave."""

    def swap(
        self, sends: Sequence[tuple[int, bytearray | memoryview]], receives: Sequence[tuple[int, memoryview]]
    ) -> None:
        """Send to some ranks while receiving from others."""


class AloneError(Exception):
    """The exchange ends here; each host goes on by itself."""


class Rank:
    """One rank's work, of which the others are told."""

    def __init__(self, group: Group, home: Path) -> None:
        self.watch = Watch()
        self.may_part = False  # whether each host may go on by itself, and no rank has to fail
        self._group = group
        self._home = home
        self._worker = Workers(1, self.watch.ended, "cas-rank")

    def close(self) -> None:
        """End what is still being done, if anything is: somebody failed, or was interrupted."""
        self.watch.ended.set()
        self._worker.__exit__(None)
        self._worker.join(LEAVING)

    def together(self, doing: Callable[..., T], *arguments: Any) -> T:
        """Do something on every rank; if it fails on one, it fails on all. Whoever is done waits for those at work."""
        work: Future[T] = self._worker.submit(self.watch.doing, self._explained, doing, *arguments)
        sign, since = self.watch.sign(), time.monotonic()
        try:
            while True:
                wait([work], min(TELL, self._group.bound / 4))
                current, now = self.watch.sign(), time.monotonic()
                if current != sign:
                    sign, since = current, now
                if not self._is_going_on(work, now - since):
                    return work.result()
        except AloneError:
            raise
        except BaseException:
            self.close()
            raise

    def _explained(self, doing: Callable[..., T], *arguments: Any) -> T:
        """Do it; of a disk that is full, say to the others too which one that is."""
        with explained(f"cannot write into {self._home}"):
            return doing(*arguments)

    def _is_going_on(self, work: Future[T], idle: float) -> bool:
        """Tell how it stands here, hear how it stands elsewhere, and return whether anybody is still at work."""
        done = work.done()
        failure = work.exception() if done else self._standstill(idle)
        parts = self.may_part and isinstance(failure, ALONE)
        word = _said(failure, parts=parts) if failure is not None else b"" if done else _WORKING
        answers = self._group.gather(word)
        if failure is not None and not parts:
            raise failure
        found = [
            (rank, answer.decode("utf-8", "replace"))
            for rank, answer in enumerate(answers)
            if answer not in (b"", _WORKING)
        ]
        for rank, text in found:
            if text[0] == "!":
                host, _, reason = text[1:].partition("\n")
                raise PeerError(f"rank {rank} of the process group (on {host}) failed: {reason}")
        if _WORKING in answers:
            return True
        if found:
            raise AloneError(found[0][1].partition("\n")[2])
        return False

    def _standstill(self, idle: float) -> CasError | None:
        """Return what is wrong with work that has got nothing done for so many seconds."""
        if idle <= self._group.bound:
            return None
        error = CasError(f"nothing was read or written for {idle:.0f} s: does a disk hang ({self._home})?")
        log.error("%s", error)  # now: what cleans up may hang as well
        return error


def in_a_line(error: BaseException) -> str:
    """Return what other ranks are told of an error: one line, whoever raised it."""
    text = str(error) if isinstance(error, CasError) else f"{type(error).__name__}: {error}"
    return "; ".join(line.strip() for line in text.splitlines() if line.strip())[:2000]


def _said(error: BaseException, *, parts: bool) -> bytes:
    return f"{'~' if parts else '!'}{platform.node()}\n{in_a_line(error)}".encode("utf-8", "replace")
