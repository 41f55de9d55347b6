"""Limits on a transfer: a remote around a remote, with the same face, that takes no more than its share of the line."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

from cas.transfer.remote import Piece, Remote, RemoteFile

BURST = 0.25  # seconds' worth of bytes that may come at once: pieces are up to a megabyte


class Rate:
    """So many bytes per second for all threads together; setting `stop` ends all waiting."""

    def __init__(self, rate: int, stop: threading.Event) -> None:
        self._rate = rate
        self._stop = stop
        self._lock = threading.Lock()
        self._free = time.monotonic()  # when the line is free again

    def take(self, count: int) -> None:
        """Wait until so many bytes fit, and take them."""
        with self._lock:
            now = time.monotonic()
            wait = self._free - now - BURST
            self._free = max(self._free, now) + count / self._rate
        if wait > 0:
            self._stop.wait(wait)


class LimitedRemote:
    """Reads at most so many bytes per second; all else is the inner remote's."""

    def __init__(self, inner: Remote, rate: Rate) -> None:
        self._inner = inner
        self._rate = rate

    def __getattr__(self, name: str) -> Any:
        """Whatever else the inner remote can do: list, checksums, scan, …"""
        return getattr(self._inner, name)

    def read(self, file: RemoteFile, start: int, end: int) -> Iterator[Piece]:
        """Yield a range; see `Remote`."""
        return self._slowly(self._inner.read(file, start, end))

    def stream(self, file: RemoteFile) -> Iterator[Piece]:
        """Yield all bytes; see `Remote`."""
        return self._slowly(self._inner.stream(file))

    def local_path(self, file: RemoteFile) -> None:
        """None: the kernel's copies know no limit."""

    def _slowly(self, pieces: Iterator[Piece]) -> Iterator[Piece]:
        for piece in pieces:
            self._rate.take(len(piece))
            yield piece
