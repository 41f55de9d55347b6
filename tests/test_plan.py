"""Plans of a pull: pure, so they are tested as properties."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cas.index.digest import Digest
from cas.index.identity import RemoteIdentity
from cas.index.paths import RelativePath
from cas.index.ranges import Range, Ranges
from cas.transfer import plan as plans
from cas.transfer.plan import plan_pull, split
from cas.transfer.remote import Listing, RemoteFile


def file_of(number: int, size: int) -> RemoteFile:
    return RemoteFile(RelativePath(f"f{number:05}"), size, RemoteIdentity(f"m:{number}", size, etag=f'"{number}"'))


sizes = st.lists(st.one_of(st.integers(0, 100), st.integers(0, 40 << 20)), max_size=40)


@given(sizes, st.sets(st.integers(0, 39)), st.sets(st.integers(0, 39)))
def test_every_file_is_here_or_in_one_unit(sizes, known, lost):
    files = tuple(file_of(number, size) for number, size in enumerate(sizes))
    digests = {file.identity.key: Digest.of(file.path.encode()) for n, file in enumerate(files) if n in known}
    gone = {Digest.of(file.path.encode()) for n, file in enumerate(files) if n in lost}
    plan = plan_pull(Listing(files), lambda identity: digests.get(identity.key), lambda digest: digest not in gone)
    here = [file for file, _ in plan.here]
    fetched = [file for unit in plan.units for file in unit.files]
    assert sorted([*here, *fetched], key=lambda file: file.path) == list(files)
    assert here == [file for n, file in enumerate(files) if n in known and n not in lost]
    assert plan.bytes_here == sum(file.size for file in here)
    assert plan.bytes_to_fetch == sum(file.size for file in fetched)
    assert plan.files_to_fetch == len(fetched)
    for unit in plan.units:
        assert unit.is_large == (unit.files[0].size >= plans.SMALL)
        assert len({file.size >= plans.SMALL for file in unit.files}) == 1
        assert len(unit.files) <= plans.BATCH_FILES
        assert len(unit.files) == 1 or unit.size <= plans.BATCH_BYTES
    assert len({unit.key for unit in plan.units}) == len(plan.units)


@given(sizes, st.sets(st.integers(0, 39)))
def test_processes_that_know_different_files_name_the_same_batches(sizes, known):
    files = tuple(file_of(number, size) for number, size in enumerate(sizes))
    all_keys = {unit.key for unit in plan_pull(Listing(files), lambda _: None, lambda _: False).units}
    digests = {file.identity.key: Digest.of(b"") for n, file in enumerate(files) if n in known}
    some = plan_pull(Listing(files), lambda identity: digests.get(identity.key), lambda _: True)
    assert {unit.key for unit in some.units} <= all_keys


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500)), max_size=20), st.integers(1, 100))
def test_split_covers_every_missing_byte_exactly_once(written, size):
    ranges = Ranges()
    for start, end in written:
        ranges.add(start, end)
    gaps = ranges.missing(400)
    cut = split(gaps, size)
    covered = [byte for start, end in cut for byte in range(start, end)]
    assert covered == [byte for start, end in gaps for byte in range(start, end)]
    assert all(start // size == (end - 1) // size for start, end in cut)


def test_a_plan_is_printed_with_totals():
    plan = plan_pull(Listing((file_of(1, 5), file_of(2, 40 << 20))), lambda _: None, lambda _: False)
    assert str(plan) == "2 files (41943045 bytes) to fetch with 4 requests, 0 files (0 bytes) already here"


def test_ranges_are_cut_at_multiples():
    assert split([Range(3, 25)], 10) == [Range(3, 10), Range(10, 20), Range(20, 25)]
