"""The plan of an exchange between hosts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cas.index.ranges import Range, Ranges
from cas.transfer.exchange import Held, plan_exchange

BLOCK = 8


def whole(*sizes: int) -> list[list[Range]]:
    return [[Range(0, size)] for size in sizes]


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[int], list[Held]]:
    sizes = draw(st.lists(st.integers(0, 40), max_size=6))
    held = []
    for _ in range(draw(st.integers(1, 5))):
        has: dict[int, list[Range]] = {}
        for file, size in enumerate(sizes):
            ranges = Ranges()
            for start, length in draw(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 40)), max_size=2)):
                ranges.add(min(start, size), min(start + length, size))
            has[file] = list(ranges)
        held.append(has)
    return sizes, held


@given(cases())
def test_afterwards_every_host_has_every_byte_and_none_came_from_the_origin_twice(case):
    sizes, held = case
    origin = [0] * len(sizes)
    have = [[Ranges() for _ in sizes] for _ in held]
    for host, has in enumerate(held):
        for file, ranges in has.items():
            for one in ranges:
                have[host][file].add(*one)

    for blocks in plan_exchange(whole(*sizes), held, block=BLOCK):
        assert len({one.owner for one in blocks}) == len(blocks)  # one block a host
        for one in blocks:
            assert 0 < one.size <= BLOCK
            for part in one.parts:
                if one.from_origin:
                    origin[part.file] += part.length
                else:
                    spans = list(have[one.owner][part.file])
                    assert any(span.start <= part.start and part.end <= span.end for span in spans)
                for host in one.lacking:
                    have[host][part.file].add(part.start, part.end)

    for files in have:
        for file, ranges in enumerate(files):
            assert ranges.missing(sizes[file]) == []
    assert all(count <= size for count, size in zip(origin, sizes, strict=True))


def test_what_nobody_has_is_read_in_equal_shares():
    rounds = plan_exchange(whole(BLOCK * 40), [{}, {}, {}, {}], block=BLOCK)

    assert len(rounds) == 10
    assert all(len(blocks) == 4 and all(one.from_origin for one in blocks) for blocks in rounds)


def test_a_host_that_has_a_file_sends_it_and_nobody_asks_the_origin():
    rounds = plan_exchange(whole(BLOCK * 4), [{}, {0: [Range(0, BLOCK * 4)]}, {}], block=BLOCK)

    assert [(one.owner, one.lacking) for blocks in rounds for one in blocks] == [(1, (0, 2))] * 4


def test_small_files_share_a_block():
    rounds = plan_exchange(whole(1, 2, 3, 4, 5), [{}, {}], block=BLOCK)

    assert sum(len(blocks) for blocks in rounds) == 3


def test_nothing_is_sent_when_all_have_all():
    held = {0: [Range(0, 20)]}

    assert plan_exchange(whole(20, 0), [held, held], block=BLOCK) == []


def test_of_a_file_that_is_not_wanted_whole_nothing_else_is_sent():
    wanted = [[Range(3, 5), Range(20, 30)], [Range(0, 2)]]
    rounds = plan_exchange(wanted, [{}, {0: [Range(16, 40)]}], block=BLOCK)
    parts = sorted((part.file, part.start, part.end) for blocks in rounds for one in blocks for part in one.parts)
    assert parts == [(0, 3, 5), (0, 20, 24), (0, 24, 30), (1, 0, 2)]
    assert sum(part.length for blocks in rounds for one in blocks if one.from_origin for part in one.parts) == 4
