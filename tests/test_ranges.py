from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from cas.index.ranges import Range, Ranges

pairs = st.tuples(st.integers(0, 30), st.integers(0, 30))


def build(added: list[tuple[int, int]]) -> tuple[Ranges, set[int]]:
    ranges, model = Ranges(), set()
    for start, end in added:
        ranges.add(start, end)
        model.update(range(start, end))
    return ranges, model


@given(st.lists(pairs, max_size=12))
def test_ranges_are_a_set_of_bytes(added: list[tuple[int, int]]) -> None:
    ranges, model = build(added)
    items = list(ranges)
    assert {byte for item in items for byte in range(item.start, item.end)} == model
    assert all(one.end < two.start for one, two in pairwise(items))  # sorted, not even touching
    assert ranges.total == len(model)
    assert ranges.end == max(model, default=-1) + 1


@given(st.lists(pairs, max_size=12), st.integers(0, 35))
def test_reaches_is_the_first_byte_from_there_that_is_not_in_the_set(added: list[tuple[int, int]], at: int) -> None:
    ranges, model = build(added)
    expected = at
    while expected in model:
        expected += 1
    assert ranges.reaches(at) == expected


@given(st.lists(pairs, max_size=12), st.integers(0, 35))
def test_missing_is_what_is_not_in_the_set(added: list[tuple[int, int]], size: int) -> None:
    ranges, model = build(added)
    missing = ranges.missing(size)
    assert {byte for item in missing for byte in range(item.start, item.end)} == set(range(size)) - model
    assert all(item.length > 0 for item in missing)


@given(st.lists(pairs, max_size=12), pairs)
def test_discarded_bytes_are_gone_and_no_others(added: list[tuple[int, int]], gone: tuple[int, int]) -> None:
    ranges, model = build(added)
    ranges.discard(*gone)
    assert {byte for item in ranges for byte in range(item.start, item.end)} == model - set(range(*gone))


@given(st.lists(pairs, max_size=12), pairs)
def test_overlap_is_a_byte_in_common(added: list[tuple[int, int]], asked: tuple[int, int]) -> None:
    ranges, model = build(added)
    assert ranges.overlap(*asked) == bool(model & set(range(*asked)))


def test_range_has_a_length() -> None:
    assert Range(3, 10).length == 7
