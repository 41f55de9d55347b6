"""Credentials that run out: kept until shortly before, asked for again, or when a server refuses them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

EARLY = 60.0  # seconds before they run out that they are renewed
_AGAIN = 60.0  # seconds within which new ones that are refused too are not renewed again


class Renewed(Generic[T]):
    """Credentials from a source that gives them with the time (seconds since 1970) until which they are good.

    Safe for threads: those that were refused with the same old credentials share one renewal.
    """

    def __init__(self, ask: Callable[[], tuple[T, float | None]]) -> None:
        self._ask = ask
        self._lock = threading.Lock()
        self._now: tuple[T, float | None] | None = None
        self._renewed: float | None = None  # when a refusal last led to new ones

    def current(self) -> T:
        """Return what to send now; whatever the source raises."""
        with self._lock:
            if self._now is None or (self._now[1] is not None and self._now[1] - time.time() < EARLY):
                self._now = self._ask()
            return self._now[0]

    def refused(self, sent: T) -> bool:
        """Note that a server refused what was sent; True if something else can be sent now."""
        with self._lock:
            if self._now is None or self._now[0] != sent:
                return True  # another thread was quicker
            if self._renewed is not None and time.monotonic() - self._renewed < _AGAIN:
                return False
            self._renewed = time.monotonic()
            self._now = self._ask()
            return self._now[0] != sent
