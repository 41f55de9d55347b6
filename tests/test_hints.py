"""Hints from zip directories: they save bytes, and whatever lies, the file is the origin's or there is an error."""

from __future__ import annotations

import hashlib
import zlib

import pytest
from container_files import directory_changed, noise, torch_file, zip_file
from remotes import CountingRemote, FaultyRemote, MemoryRemote
from stores import OTHER_UUID, UUID, damage, lies, uuid

from cas.config import Progress, Settings, Verify
from cas.errors import ContentError, DigestMismatchError, NotAllowedError
from cas.index.store import Store
from cas.transfer import fetch
from cas.transfer.remote import Checksum

pytestmark = pytest.mark.slow

MIB = 1 << 20
FROZEN, HEAD, TAIL = noise(6 * MIB, 1), noise(3 * MIB, 2), noise(100_000, 3)
FIRST = zip_file({"frozen": FROZEN, "head": HEAD, "tail": TAIL})
SECOND = zip_file({"frozen": FROZEN, "head": noise(3 * MIB, 4), "more": TAIL})


def md5(data: bytes) -> Checksum:
    return Checksum("md5", hashlib.md5(data).digest())


def crc(data: bytes) -> Checksum:
    return Checksum("crc32", zlib.crc32(data).to_bytes(4, "big"))


@pytest.fixture
def store(tmp_path):
    opened = Store(tmp_path / "home")
    yield opened
    opened.close()
    assert lies(tmp_path / "home") == []
    assert not any((tmp_path / "home" / "ingest").glob("*/*"))


@pytest.fixture
def pull(store, tmp_path):
    """`pull(data, *checksums)`: pull a checkpoint of one file, which its origin declares these checksums of."""

    def run(data, *declared, faults="", around=None, **options):
        inner = MemoryRemote({"model.pth": data})
        inner.declared = {"model.pth": declared}
        counting = CountingRemote(around(inner) if around else inner)
        settings = options.pop("settings", Settings(home=tmp_path / "home", progress=Progress.OFF))
        registry, name = options.pop("registry", "m"), options.pop("uuid", OTHER_UUID)
        report = fetch.pull(
            store, FaultyRemote(counting, faults), registry=registry, uuid=name, settings=settings, **options
        )
        assert store.blobs.read(report.manifest.by_path["model.pth"].digest) == data
        return report, counting.total

    return run


def test_what_a_local_blob_has_is_not_read_again(pull):
    pull(FIRST, uuid=UUID)
    report, total = pull(SECOND, md5(SECOND))
    assert total < 3 * MIB + 70_000
    assert report.bytes_fetched == total
    assert report.bytes_reused == len(SECOND) - total
    assert report.proofs == {"model.pth": "origin checksum (md5)"}


def test_a_few_bytes_in_common_are_not_worth_the_md5_of_a_whole_file(pull):
    shared = noise(60_000, 7)
    pull(zip_file({"a": noise(4 * MIB, 1), "b": shared}), uuid=UUID)
    other = zip_file({"a": noise(4 * MIB, 2), "b": shared})
    report, total = pull(other, md5(other))
    assert total == report.bytes_fetched == len(other)
    assert report.bytes_reused == 0


def test_what_was_added_locally_is_a_donor_too(pull, store):
    store.put(FIRST)
    assert pull(SECOND, md5(SECOND))[1] < 3 * MIB + 70_000


def test_an_archive_within_a_store_of_other_things_is_read_whole_once(pull, store):
    store.put(zip_file({"x": noise(2 * MIB, 9)}))
    report, total = pull(SECOND, md5(SECOND))
    assert total == len(SECOND)
    assert report.bytes_reused == 0


def test_a_file_that_is_no_archive_is_read_whole_once(pull, store):
    store.put(FIRST)
    assert pull(noise(9 * MIB), md5(noise(9 * MIB)))[1] == 9 * MIB


def test_an_empty_store_asks_for_no_hints(store, pull):
    _, total = pull(SECOND)
    assert total == len(SECOND)


@pytest.mark.torch
def test_headers_are_made_where_numbers_names_and_places_differ(pull):
    """An insertion before frozen layers shifts offsets, paddings and record numbers; the archive has another name."""
    import torch

    frozen = {f"layer{number}": torch.randn(800, 800) for number in range(5)}
    first = torch_file(frozen, name="epoch-1")
    second = torch_file({"new": torch.randn(33), "step": torch.tensor(7), **frozen}, name="model-of-epoch-10")
    pull(first, uuid=UUID)
    report, total = pull(second, md5(second))
    assert total < 100_000
    assert report.proofs == {"model.pth": "origin checksum (md5)"}


# --- who vouches -------------------------------------------------------------------------------------------------


def test_without_a_checksum_of_the_object_no_hint_is_used(pull):
    pull(FIRST, uuid=UUID)
    assert pull(SECOND)[1] == len(SECOND)


def test_a_crc_vouches_between_objects_of_one_registry_and_storage(pull):
    pull(FIRST, uuid=UUID)
    report, total = pull(SECOND, crc(SECOND))
    assert total < 3 * MIB + 70_000
    assert report.proofs == {"model.pth": "origin checksum (crc32)"}


def test_a_crc_does_not_vouch_for_what_came_from_elsewhere(pull, store):
    pull(FIRST, uuid=UUID, registry="another")
    assert pull(SECOND, crc(SECOND))[1] == len(SECOND)


def test_a_crc_does_not_vouch_for_what_was_added_locally(pull, store):
    store.put(FIRST)
    assert pull(SECOND, crc(SECOND))[1] == len(SECOND)


def test_a_crc_does_not_vouch_between_storages(pull, store):
    class Elsewhere(CountingRemote):
        url = "memory:elsewhere"

    pull(FIRST, uuid=UUID, around=Elsewhere)
    assert pull(SECOND, crc(SECOND))[1] == len(SECOND)


def test_strict_takes_hints_that_md5_vouches_for(pull, tmp_path):
    settings = Settings(home=tmp_path / "home", progress=Progress.OFF, verify=Verify.STRICT)
    pull(FIRST, md5(FIRST), uuid=UUID, settings=settings)
    assert pull(SECOND, md5(SECOND), settings=settings)[1] < 3 * MIB + 70_000


# --- lies --------------------------------------------------------------------------------------------------------


def test_made_up_crcs_cost_what_came_from_donors_once(pull):
    pull(FIRST, uuid=UUID)
    liar = directory_changed(zip_file({"frozen": noise(6 * MIB, 7), "head": HEAD}), 0, crc=zlib.crc32(FROZEN))
    report, total = pull(liar, md5(liar))
    assert total == len(liar)
    assert report.proofs == {"model.pth": "origin checksum (md5)"}


def test_made_up_crcs_are_noticed_by_the_crc_of_the_object(pull):
    pull(FIRST, uuid=UUID)
    liar = directory_changed(zip_file({"frozen": noise(6 * MIB, 7), "head": HEAD}), 0, crc=zlib.crc32(FROZEN))
    assert pull(liar, crc(liar))[1] == len(liar)


def test_after_a_lie_no_more_hints_are_used_in_this_pull(store, tmp_path):
    settings = Settings(home=tmp_path / "home", progress=Progress.OFF, concurrency=1)
    store.put(FIRST)
    liar = directory_changed(zip_file({"frozen": noise(6 * MIB, 7), "head": HEAD}), 0, crc=zlib.crc32(FROZEN))
    remote = MemoryRemote({f"{number}.pth": liar + b"" for number in range(1)} | {"z.pth": SECOND, "zz.pth": SECOND})
    remote.declared = {"0.pth": (md5(liar),), "z.pth": (md5(SECOND),), "zz.pth": (md5(SECOND),)}
    counting = CountingRemote(remote)
    report = fetch.pull(store, counting, registry="m", uuid=UUID, settings=settings)
    assert counting.bytes["0.pth"] == len(liar)
    assert {store.blobs.read(one.digest) == SECOND for one in report.manifest.files[1:]} == {True}


def test_a_directory_of_zeros_gives_no_hints(pull):
    zeros = SECOND
    for record in range(3):
        zeros = directory_changed(zeros, record, crc=0)
    pull(FIRST, uuid=UUID)
    report, total = pull(zeros, md5(zeros))
    assert total == len(zeros)
    assert report.bytes_reused == 0


@pytest.mark.torch
def test_torch_without_crcs_gives_no_hints(pull):
    import torch

    weights = {"w": torch.randn(1500, 1500)}
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        first, second = torch_file(weights), torch_file({**weights, "x": torch.randn(10)})
    finally:
        torch.serialization.set_crc32_options(before)
    pull(first, uuid=UUID)
    assert pull(second, md5(second))[1] == len(second)


def test_a_donor_that_lies_about_its_crc_is_not_used(pull, store):
    """The donor's directory claims the CRC of the frozen layers for other bytes: its bytes are looked at."""
    store.put(directory_changed(zip_file({"frozen": noise(6 * MIB, 7)}), 0, crc=zlib.crc32(FROZEN)))
    report, total = pull(SECOND, md5(SECOND))
    assert total + report.bytes_reused == len(SECOND)
    assert report.proofs == {"model.pth": "origin checksum (md5)"}


def test_a_donor_that_was_damaged_is_not_used(pull, store):
    damage(store.layout.blob(store.put(FIRST)))
    _, total = pull(SECOND, md5(SECOND))
    assert total == len(SECOND)


def test_a_donor_that_is_gone_is_not_missed(pull, store):
    blob = store.put(FIRST)
    store.layout.blob(blob).unlink()
    assert pull(SECOND, md5(SECOND))[1] == len(SECOND)


def test_a_part_list_that_lies_is_not_believed(pull, store):
    from cas.index.chunks import PartList

    blob = store.put(FIRST)
    known = store.chunks.parts(blob, len(FIRST))
    moved = PartList(
        known.size,
        (known.parts[0]._replace(content=known.parts[0].content + 1, end=known.parts[0].end), *known.parts[1:]),
    )
    path = store.layout.chunks(blob)
    path.with_name(f"{path.name}.parts").unlink()
    path.with_name(f"{path.name}.parts").write_bytes(moved.encode())
    report, total = pull(SECOND, md5(SECOND))
    assert total + report.bytes_reused == len(SECOND)


@pytest.mark.parametrize(
    "changes",
    [{"length": 5 * MIB}, {"size": 5 * MIB}, {"start": 17}, {"method": 8}, {"length": 2**31}, {"start": 2**31}],
)
def test_sizes_and_places_that_lie_cost_bytes_and_nothing_else(pull, changes):
    pull(FIRST, uuid=UUID)
    liar = directory_changed(SECOND, 1, **changes)
    report, total = pull(liar, md5(liar))
    assert total + report.bytes_reused == len(liar)


def test_headers_of_another_kind_than_the_donors_cost_bytes_once(pull):
    pull(FIRST, uuid=UUID)
    odd = bytearray(SECOND)
    odd[10:14] = b"\1\2\3\4"  # the time in the first record's header, which the directory does not say
    _, total = pull(bytes(odd), md5(bytes(odd)))
    assert total == len(odd)


def test_an_etag_that_is_no_md5_costs_bytes_once_where_a_crc_vouches(pull):
    pull(FIRST, uuid=UUID)
    report, total = pull(SECOND, md5(b"another"), crc(SECOND))
    assert total == len(SECOND)
    assert report.proofs == {"model.pth": "origin checksum (crc32)"}


def test_an_etag_that_is_no_md5_is_found_out_by_a_second_reading_where_nothing_else_vouches(pull):
    pull(FIRST, uuid=UUID)
    report, total = pull(SECOND, md5(b"another"))
    assert total == 2 * len(SECOND)
    assert report.proofs == {"model.pth": "length only"}


def test_bytes_that_differ_each_time_from_the_md5_are_not_kept(pull, store):
    pull(FIRST, uuid=UUID)

    class Decaying(CountingRemote):
        def read(self, file, start, end):
            for piece in super().read(file, start, end):
                yield bytes([(piece[0] + self.reads) % 256]) + bytes(piece[1:])

    with pytest.raises((DigestMismatchError, ContentError)):
        pull(SECOND, md5(SECOND), around=Decaying)
    assert store.resolve("m", OTHER_UUID) is None


def test_a_sha_that_does_not_fit_is_an_error(pull, store):
    store.put(FIRST)
    with pytest.raises(DigestMismatchError):
        pull(SECOND, Checksum("sha256", b"\0" * 32))
    assert store.resolve("m", OTHER_UUID) is None


# --- faults ------------------------------------------------------------------------------------------------------


def test_a_bit_that_flips_on_the_way_is_found_and_read_again(pull, store):
    store.put(FIRST)
    report, _ = pull(SECOND, md5(SECOND), faults="ok flip")
    assert report.proofs == {"model.pth": "origin checksum (md5)"}


def test_a_flip_in_the_directory_costs_bytes_only(pull, store):
    store.put(FIRST)
    assert pull(SECOND, md5(SECOND), faults="flip")[0].proofs == {"model.pth": "origin checksum (md5)"}


def test_transient_faults_while_looking_are_survived(pull, store):
    store.put(FIRST)
    assert pull(SECOND, md5(SECOND), faults="503 reset short 503")[1] < 3.2 * MIB


def test_what_came_before_an_interrupt_is_not_read_again_with_donors_besides(pull, store, tmp_path):
    """Ranges of the origin are resumed, donors copy the rest again: together every byte crosses the wire once."""
    settings = Settings(home=tmp_path / "home", progress=Progress.OFF, concurrency=1)
    store.put(zip_file({"frozen": FROZEN}))
    heads = {f"head{number}": noise(20 * MIB, 20 + number) for number in range(2)}
    data = zip_file({"frozen": FROZEN, **heads})
    total = 0
    counted = []

    def around(inner):
        counted.append(CountingRemote(inner))
        return counted[-1]

    with pytest.raises(NotAllowedError):
        pull(data, md5(data), faults="ok ok" + " 403" * 20, settings=settings, around=around)
    report, total = pull(data, md5(data), settings=settings)
    assert report.bytes_resumed > 0
    assert counted[0].total + total <= 40 * MIB + 3 * 70_000
    assert report.proofs == {"model.pth": "origin checksum (md5)"}


def test_an_object_that_is_replaced_while_it_is_fetched_is_never_a_mix(store, tmp_path):
    store.put(FIRST)
    remote = MemoryRemote({"model.pth": SECOND})
    new = zip_file({"frozen": FROZEN, "head": noise(3 * MIB, 8)})
    remote.declared = {"model.pth": (md5(SECOND),)}

    class Replaced(CountingRemote):
        def read(self, file, start, end):
            yield from super().read(file, start, end)
            if self.reads == 2:
                self.inner.write("model.pth", new)
                self.inner.declared = {"model.pth": (md5(new),)}

    settings = Settings(home=tmp_path / "home", progress=Progress.OFF, concurrency=1)
    report = fetch.pull(store, Replaced(remote), registry="m", uuid=uuid(3), settings=settings)
    assert store.blobs.read(report.manifest.by_path["model.pth"].digest) in (SECOND, new)
    if store.blobs.read(report.manifest.by_path["model.pth"].digest) == SECOND:
        assert report.bytes_reused > 0


def test_a_server_that_ignores_ranges_gives_whole_files(store, tmp_path):
    store.put(FIRST)
    remote = MemoryRemote({"model.pth": SECOND})
    remote.has_ranges = False
    remote.declared = {"model.pth": (md5(SECOND),)}
    settings = Settings(home=tmp_path / "home", progress=Progress.OFF)
    report = fetch.pull(store, remote, registry="m", uuid=UUID, settings=settings)
    assert store.blobs.read(report.manifest.by_path["model.pth"].digest) == SECOND
