"""How a file's bytes come, from donors and the origin: every byte exactly once, with few requests, in any layout."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cas.index.digest import Digest
from cas.index.ranges import Range, Ranges
from cas.transfer.donations import MAX_GAP, SMALL_GAP, WASTE, Copy, Donation, plan_file

BLOB = Digest.of(b"donor")
SIZE = 40 << 20


def spans(size: int, most: int):
    edge = st.one_of(st.integers(0, size), st.integers(0, size // 4096).map(lambda block: block * 4096))
    length = st.one_of(st.integers(1, 3 * SMALL_GAP), st.integers(1, 3 * MAX_GAP), st.integers(1, size))
    return st.lists(st.tuples(edge, length), max_size=most).map(
        lambda found: [(start, min(start + length, size)) for start, length in found if start < size]
    )


def donation(start: int, end: int) -> Donation:
    return Donation(start, end, BLOB, start + 100, crc=1)


@given(spans(SIZE, 30), spans(SIZE, 6))
def test_every_byte_comes_exactly_once(given_spans, written):
    done = Ranges()
    for span in written:
        done.add(*span)
    plan = plan_file(SIZE, [donation(*span) for span in given_spans], done)
    pieces = [*((copy.start, copy.end) for copy in plan.copies), *plan.fetch, *done]
    at = 0
    for start, end in sorted(pieces):
        assert start == at
        assert end > start
        at = end
    assert at == SIZE
    assert plan.bytes_copied + plan.bytes_to_fetch + done.total == SIZE
    for copy in plan.copies:
        assert copy.donation.start <= copy.start < copy.end <= copy.donation.end


@given(spans(SIZE, 30), spans(SIZE, 6))
def test_requests_are_as_few_as_the_policy_allows(given_spans, written):
    done, offered = Ranges(), Ranges()
    for span in written:
        done.add(*span)
    for span in given_spans:
        offered.add(*span)
    both = Ranges()
    for span in (*done, *offered):
        both.add(*span)
    needed = both.missing(SIZE)
    least = sum(span.length for span in needed)
    plan = plan_file(SIZE, [donation(*span) for span in given_spans], done)
    copied = Ranges()
    for copy in plan.copies:
        copied.add(copy.start, copy.end)
    passed = plan.bytes_to_fetch - least
    merged = len(needed) - len(plan.fetch)
    assert merged >= 0
    assert passed <= least // WASTE + SMALL_GAP * merged
    for one, two in zip(plan.fetch, plan.fetch[1:], strict=False):
        gap = two.start - one.end
        assert gap > 0
        if not done.overlap(one.end, two.start):  # a run of donations alone: it is worth a request
            assert gap > SMALL_GAP
    if not plan.copies:
        assert len(plan.fetch) <= len(done.missing(SIZE))


@given(spans(1 << 20, 12))
def test_without_donors_all_that_is_missing_is_fetched(written):
    done = Ranges()
    for span in written:
        done.add(*span)
    plan = plan_file(1 << 20, (), done)
    assert list(plan.fetch) == done.missing(1 << 20)
    assert plan.copies == ()


def test_a_whole_donation_needs_no_request():
    whole = donation(0, SIZE)
    assert plan_file(SIZE, [whole]) == plan_file(SIZE, [whole, donation(5, 10)])
    assert plan_file(SIZE, [whole]).copies == (Copy(whole, 0, SIZE),)
    assert plan_file(0, []).fetch == ()


def test_a_gap_at_an_edge_or_beside_what_is_there_saves_no_request_and_is_copied():
    first, last = donation(0, 10), donation(SIZE - 10, SIZE)
    assert plan_file(SIZE, [first, last]).fetch == (Range(10, SIZE - 10),)
    done = Ranges()
    done.add(0, 100)
    assert plan_file(SIZE, [donation(100, 110)], done).fetch == (Range(110, SIZE),)


def test_short_gaps_are_read_through_and_long_ones_are_not():
    assert plan_file(SIZE, [donation(1000, 1000 + SMALL_GAP)]).fetch == (Range(0, SIZE),)
    assert plan_file(SIZE, [donation(5 << 20, (5 << 20) + MAX_GAP - 1)]).fetch == (Range(0, SIZE),)
    assert len(plan_file(SIZE, [donation(5 << 20, (5 << 20) + MAX_GAP)]).fetch) == 2


def test_little_that_must_be_fetched_allows_little_waste():
    needed = [(1 << 20, (1 << 20) + 64), (2 << 20, (2 << 20) + 64)]
    between = [donation(0, 1 << 20), donation((1 << 20) + 64, 2 << 20), donation((2 << 20) + 64, SIZE)]
    assert list(plan_file(SIZE, between).fetch) == [Range(*span) for span in needed]


def test_many_donations_are_planned_quickly():
    many = [donation(start, start + 4000) for start in range(4000, 399_000_000, 8192)]
    assert plan_file(400_000_000, many).bytes_to_fetch == 400_000_000
