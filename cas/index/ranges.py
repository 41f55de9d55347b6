"""Sets of byte ranges; pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import NamedTuple


class Range(NamedTuple):
    """The bytes from `start` up to, but not including, `end`."""

    start: int
    end: int

    @property
    def length(self) -> int:
        """How many bytes it has."""
        return self.end - self.start


class Ranges:
    """A set of bytes, kept as sorted ranges that neither touch nor overlap."""

    def __init__(self) -> None:
        self._items: list[Range] = []

    def add(self, start: int, end: int) -> None:
        """Add the bytes from `start` to `end`."""
        if start >= end:
            return
        first = bisect_left(self._items, start, key=lambda item: item.end)
        last = first
        while last < len(self._items) and self._items[last].start <= end:
            last += 1
        if first < last:
            start = min(start, self._items[first].start)
            end = max(end, self._items[last - 1].end)
        self._items[first:last] = [Range(start, end)]

    def discard(self, start: int, end: int) -> None:
        """Take the bytes from `start` to `end` out."""
        items, self._items = self._items, []
        for item in items:
            self.add(item.start, min(item.end, start))
            self.add(max(item.start, end), item.end)

    def overlap(self, start: int, end: int) -> bool:
        """Whether any byte from `start` to `end` is in the set."""
        place = bisect_left(self._items, start + 1, key=lambda item: item.end)
        return start < end and place < len(self._items) and self._items[place].start < end

    @property
    def end(self) -> int:
        """The end of the last range; 0 if the set is empty."""
        return self._items[-1].end if self._items else 0

    def reaches(self, offset: int) -> int:
        """Return the end of the range that holds or touches `offset`; `offset` itself if none does."""
        place = bisect_left(self._items, offset, key=lambda item: item.end)
        if place < len(self._items) and self._items[place].start <= offset:
            if self._items[place].end == offset and place + 1 < len(self._items):
                following = self._items[place + 1]
                return following.end if following.start == offset else offset
            return self._items[place].end
        return offset

    def missing(self, size: int) -> list[Range]:
        """Return the ranges below `size` that are not in the set."""
        return self.gaps(0, size)

    def gaps(self, start: int, end: int) -> list[Range]:
        """Return the ranges from `start` to `end` that are not in the set."""
        found, place = [], bisect_left(self._items, start + 1, key=lambda item: item.end)
        while start < end and place < len(self._items) and self._items[place].start < end:
            item = self._items[place]
            if item.start > start:
                found.append(Range(start, item.start))
            start, place = item.end, place + 1
        if start < end:
            found.append(Range(start, end))
        return found

    @property
    def total(self) -> int:
        """How many bytes are in the set."""
        return sum(item.length for item in self._items)

    def __iter__(self) -> Iterator[Range]:
        return iter(self._items)
