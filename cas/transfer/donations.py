"""What donors may give of one file, and which of it is worth taking: pure, so that it is tested as properties."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cas.index.digest import Digest
from cas.index.ranges import Range, Ranges

MAX_GAP = 1 << 20  # bytes; what a request costs: a shorter gap between two requests is read through, within limits
SMALL_GAP = 4 << 10  # bytes; what a request costs in headers and logs even where only bytes count: always read through
WASTE = 32  # all that is read through is at most this fraction of what must be fetched


@dataclass(frozen=True, slots=True)
class Donation:
    """A range of a file that a donor may have, or bytes that are known: a hint, and no proof.

    Of a donor's range, `crc` or `digest` (BLAKE3) says what it must have to be used at all.
    """

    start: int
    end: int
    donor: Digest | None = None
    offset: int = 0  # in the donor
    crc: int | None = None
    digest: bytes = b""
    data: bytes = b""

    @property
    def length(self) -> int:
        """How many bytes it has."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Copy:
    """A donation, and the part of it that is used."""

    donation: Donation
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class FilePlan:
    """How the missing bytes of one file come: every byte exactly once."""

    copies: tuple[Copy, ...]
    fetch: tuple[Range, ...]  # neither touching nor overlapping; what is not written and not copied

    @property
    def bytes_to_fetch(self) -> int:
        """What is read from the origin."""
        return sum(span.length for span in self.fetch)

    @property
    def bytes_copied(self) -> int:
        """What is taken from donors."""
        return sum(copy.end - copy.start for copy in self.copies)


def plan_file(size: int, donations: Iterable[Donation], written: Iterable[Range] = ()) -> FilePlan:
    """Decide what of a file is copied from donors, and what is fetched.

    Args:
        size: of the file, in bytes.
        donations: what there is, within the file; of two that overlap, the one that starts first is used.
        written: what is there already.

    A donation between two ranges that must be fetched costs a request. If it is short it is not used: the requests
    become one that reads through it.
    """
    taken = Ranges()
    for span in written:
        taken.add(*span)
    copies: list[Copy] = []
    available = Ranges()
    for donation in sorted(donations, key=lambda one: (one.start, -one.end)):
        for start, end in taken.gaps(donation.start, donation.end):
            copies.append(Copy(donation, start, end))
            available.add(start, end)
            taken.add(start, end)
    needed = taken.missing(size)
    passed = _read_through(available, needed)
    kept = [copy for copy in copies if not passed.overlap(copy.start, copy.end)]
    for span in needed:
        passed.add(*span)
    return FilePlan(tuple(kept), tuple(passed))


def _read_through(available: Ranges, needed: list[Range]) -> Ranges:
    """Return the runs of donations that are cheaper read than copied around."""
    ends, starts = {span.end for span in needed}, {span.start for span in needed}
    between = [run for run in available if run.start in ends and run.end in starts and run.length < MAX_GAP]
    budget = sum(span.length for span in needed) // WASTE
    found = Ranges()
    for run in sorted(between, key=lambda run: (run.length, run.start)):
        if run.length > SMALL_GAP and run.length > budget:
            break
        budget -= run.length if run.length > SMALL_GAP else 0
        found.add(*run)
    return found
