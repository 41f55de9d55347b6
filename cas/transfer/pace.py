"""The pace that a server must keep: an answer that comes too slowly is given up, and asked for again.

A timeout of a socket starts anew with every byte: a server that sends one now and then would be waited for for ever.
"""

from __future__ import annotations

# Bytes per second. 15 KiB in the 30 s of the default setting is what a connection that works brings in its first round
# trip (ten packets). Where 8 connections share a line of 1 Mbit/s, each has 30 times as much; of 64 kbit/s, twice.
SLOWEST = 512


class TooSlowError(OSError):
    """A server keeps the connection open and sends next to nothing."""


class Pace:
    """Follows one answer: in each window of so many seconds, `SLOWEST` bytes a second must come.

    Only time spent waiting for the server counts: who takes the bytes slowly, to keep to a bandwidth say, has no
    reason to complain.
    """

    def __init__(self, seconds: float) -> None:
        self._window = seconds
        self._waited = 0.0
        self._came = 0

    def note(self, count: int, seconds: float) -> None:
        """So many bytes came after so many seconds.

        Raises:
            TooSlowError: that was too slow.
        """
        self._waited += seconds
        self._came += count
        if self._waited < self._window:
            return
        if self._came < SLOWEST * self._waited:
            raise TooSlowError(f"{self._came} bytes came in {self._waited:.0f} s; the server is too slow, or stuck")
        self.begin()

    def begin(self) -> None:
        """Begin a new window."""
        self._waited, self._came = 0.0, 0
