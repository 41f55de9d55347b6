"""Trying again: a remote around a remote, with the same face."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from cas.errors import OfflineError, TransientRemoteError, UsageError
from cas.transfer.remote import Checksum, Listing, Piece, Remote, RemoteFile
from cas.transfer.scan import LAST, Found, scan
from cas.transfer.sidecars import KeepsSidecars

log = logging.getLogger("cas.transfer")

T = TypeVar("T")

ATTEMPTS = 6  # in a row without progress
PROGRESS = 32 << 10  # bytes that an attempt must bring to count: with one byte each time there would be no end
STREAMS = 3  # how often a file is begun again that must be read in one stream, where that breaks off
FIRST_PAUSE = 0.2  # seconds; doubled each time, with jitter
LONGEST_PAUSE = 20.0  # seconds, of our own choice
LONGEST_ASKED = 120.0  # seconds; a server that asks for more is not waited for longer


class BrokenOffError(TransientRemoteError):
    """One stream broke off in its middle: whoever has its bytes must forget them, and begin it again."""


class RetryingRemote:
    """Tries again what is transient: only `TransientRemoteError` is.

    A read goes on at the byte where it broke off. Setting `stop` ends all pauses and all trying.
    """

    def __init__(self, inner: Remote, *, stop: threading.Event | None = None, pause: float = FIRST_PAUSE) -> None:
        self._inner = inner
        self._stop = stop or threading.Event()
        self._pause = pause
        self._not_before = 0.0  # of time.monotonic(): a server that is busy is left alone by all threads

    @property
    def url(self) -> str:
        """The inner remote's."""
        return self._inner.url

    def list(self) -> Listing:
        """List; see `Remote`."""
        return self._try(self._inner.list)

    def scan(self, *, after: str = "", before: str = LAST) -> Iterator[Found]:
        """Yield every name between two; goes on behind the last one that came."""
        failures = 0
        while True:
            try:
                for found in scan(self._inner, after=after, before=before):
                    after, failures = found.name, 0
                    yield found
                return
            except TransientRemoteError as error:
                failures += 1
                self._wait(error, failures)

    def read(self, file: RemoteFile, start: int, end: int) -> Iterator[Piece]:
        """Yield a range; see `Remote`."""
        failures = 0
        while True:
            self._wait_for_turn()
            began = start
            try:
                for piece in self._inner.read(file, start, end):
                    start += len(piece)
                    yield piece
                return
            except TransientRemoteError as error:
                failures = 1 if start - began >= PROGRESS else failures + 1
                self._wait(error, failures)

    def stream(self, file: RemoteFile) -> Iterator[Piece]:
        """Yield all bytes; tried again only as long as none was yielded: the next read may see other bytes.

        Raises:
            BrokenOffError: it broke off later.
        """
        failures = 0
        while True:
            started = False
            self._wait_for_turn()
            try:
                for piece in self._inner.stream(file):
                    started = True
                    yield piece
                return
            except TransientRemoteError as error:
                failures += 1
                if started:
                    raise BrokenOffError(str(error)) from error
                self._wait(error, failures)

    def likely_checksums(self, file: RemoteFile) -> tuple[Checksum, ...]:
        """The inner remote's: costs no request."""
        return self._inner.likely_checksums(file)

    def checksums(self, file: RemoteFile, *, thorough: bool = False) -> tuple[Checksum, ...]:
        """Return declared checksums; see `Remote`."""
        return self._try(lambda: self._inner.checksums(file, thorough=thorough))

    def write_sidecar(self, data: bytes) -> str:
        """Publish beside it.

        Raises:
            UsageError: nothing can be published there.
        """
        inner = self._inner
        if not isinstance(inner, KeepsSidecars):
            raise UsageError(f"nothing can be published beside {self.url}: only buckets, folders and fsspec have room")
        return self._try(lambda: inner.write_sidecar(data))

    def local_path(self, file: RemoteFile) -> str | None:
        """The inner remote's."""
        return self._inner.local_path(file)

    def recipe(self) -> Mapping[str, Any] | None:
        """The inner remote's."""
        return self._inner.recipe()

    def _try(self, request: Callable[[], T]) -> T:
        failures = 0
        while True:
            self._wait_for_turn()
            try:
                return request()
            except TransientRemoteError as error:
                failures += 1
                self._wait(error, failures)

    def _wait_for_turn(self) -> None:
        """Wait as long as the server asked any of the threads to wait."""
        while (left := self._not_before - time.monotonic()) > 0 and not self._stop.wait(left):
            pass

    def _wait(self, error: TransientRemoteError, failures: int) -> None:
        """Pause before the next attempt, or raise the error if there is to be none."""
        if failures >= ATTEMPTS and error.unreachable:
            raise OfflineError(f"{error}; nobody answers there: is the network up, and the address right?") from error
        if failures >= ATTEMPTS or self._stop.is_set():
            raise error
        pause = _pause(self._pause, failures, error.retry_after)
        if error.retry_after is not None:
            self._not_before = max(self._not_before, time.monotonic() + pause)
        log.info("trying again in %.1f s: %s", pause, error)
        if self._stop.wait(pause):
            raise error


def _pause(first: float, failures: int, asked: float | None) -> float:
    wanted = min(first * 2.0 ** (failures - 1) * random.uniform(0.5, 1.5), LONGEST_PAUSE)
    return max(wanted, min(asked or 0.0, LONGEST_ASKED))
