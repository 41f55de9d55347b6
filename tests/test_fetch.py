"""Pulls from remotes in memory and in folders: what is fetched, what is not, and what faults do."""

from __future__ import annotations

import os
import random
import threading
import time
import zlib

import pytest
from remotes import CountingRemote, FaultyRemote, MemoryRemote
from stores import OTHER_UUID, UUID, lies

from cas.config import Progress, Settings, Verify
from cas.errors import (
    ChangedError,
    CheckpointNotFoundError,
    ContentError,
    DigestMismatchError,
    NotAllowedError,
    TransientRemoteError,
    UnsafeNameError,
)
from cas.index.digest import Digest
from cas.index.store import Store
from cas.transfer import fetch, plan
from cas.transfer.folder import FolderRemote
from cas.transfer.remote import Checksum, RangesIgnoredError
from cas.transfer.retry import STREAMS

pytestmark = pytest.mark.slow

rng = random.Random(3)
LARGE = rng.randbytes(2 * plan.RANGE + 12345)
MEDIUM = rng.randbytes(plan.SMALL)
FILES = {
    "model.pth": LARGE,
    "half.bin": MEDIUM,
    "code/a.py": b"a = 1\n",
    "code/b.py": b"b = 2\n",
    "empty": b"",
}


@pytest.fixture
def store(tmp_path):
    opened = Store(tmp_path / "home")
    yield opened
    opened.close()
    assert lies(tmp_path / "home") == []


@pytest.fixture
def settings(tmp_path):
    return Settings(home=tmp_path / "home", progress=Progress.OFF)


@pytest.fixture
def pull(store, settings):
    def run(remote, uuid=UUID, **options):
        return fetch.pull(store, remote, registry="local", uuid=uuid, **{"settings": settings, **options})

    return run


def content(store, manifest):
    return {str(entry.path): store.blobs.read(entry.digest) for entry in manifest.files}


def crc(data: bytes) -> Checksum:
    return Checksum("crc32", zlib.crc32(data).to_bytes(4, "big"))


# --- what a pull brings ----------------------------------------------------------------------------------------


def test_everything_is_brought_once_and_known_afterwards(store, pull):
    remote = CountingRemote(MemoryRemote(FILES, directories=("logs",)))
    report = pull(remote)
    assert content(store, report.manifest) == FILES
    assert report.manifest.directories == ("logs",)
    assert remote.bytes == {name: len(data) for name, data in FILES.items() if data}
    assert (report.files_fetched, report.bytes_fetched, report.bytes_here) == (5, sum(map(len, FILES.values())), 0)
    assert store.resolve("local", UUID) == report.manifest


def test_a_second_pull_reads_nothing(pull):
    remote = CountingRemote(MemoryRemote(FILES))
    pull(remote)
    before = remote.total
    report = pull(remote, uuid=OTHER_UUID)
    assert remote.total == before
    assert (report.files_fetched, report.bytes_fetched) == (0, 0)
    assert report.bytes_here == sum(map(len, FILES.values()))


def test_only_what_changed_is_fetched_again(store, pull):
    remote = CountingRemote(MemoryRemote(FILES))
    pull(remote)
    remote.inner.write("code/a.py", b"a = 2\n")
    remote.bytes.clear()
    report = pull(remote)
    assert remote.bytes == {"code/a.py": 6}
    assert content(store, report.manifest)["code/a.py"] == b"a = 2\n"


def test_a_file_with_no_validator_is_read_in_one_stream_and_never_taken_for_known(store, pull):
    inner = MemoryRemote(FILES)
    inner.has_validators = False
    remote = CountingRemote(inner)
    assert content(store, pull(remote).manifest) == FILES
    assert remote.reads == 0
    pull(remote)
    assert remote.bytes["model.pth"] == 2 * len(LARGE)


def test_a_server_without_ranges_is_read_in_one_stream(store, pull):
    remote = MemoryRemote({"model.pth": LARGE, "half.bin": MEDIUM})
    remote.has_ranges = False
    remote.declared = {"model.pth": (crc(LARGE),)}
    report = pull(remote)
    assert content(store, report.manifest) == {"model.pth": LARGE, "half.bin": MEDIUM}
    assert report.proofs["model.pth"] == "origin checksum (crc32)"


class BreaksOff(MemoryRemote):
    """Knows no ranges, and breaks off in the middle of as many answers as are left."""

    left = 0
    has_ranges = False

    def read(self, file, start, end):
        if (start, end) != (0, file.size):
            raise RangesIgnoredError("no ranges")
        return self._pieces(file, start, end)

    def _pieces(self, file, start, end):
        pieces = super()._pieces(file, start, end)
        if not self.left:
            yield from pieces
            return
        self.left -= 1
        yield memoryview(bytes(next(pieces)))[:3]
        raise TransientRemoteError("connection reset")


@pytest.mark.parametrize("validators", [True, False])
@pytest.mark.parametrize("data", [b"layers = 12\n", LARGE], ids=["small", "large"])
def test_one_stream_that_breaks_off_is_begun_again(store, pull, data, validators):
    remote = BreaksOff({"f": data})
    remote.has_validators, remote.left = validators, STREAMS - 1
    assert content(store, pull(remote).manifest) == {"f": data}
    assert remote.left == 0


@pytest.mark.parametrize("data", [b"layers = 12\n", LARGE], ids=["small", "large"])
def test_streams_that_break_off_again_and_again_come_to_an_end(store, pull, data):
    remote = BreaksOff({"f": data})
    remote.has_validators, remote.left = False, 100
    with pytest.raises(TransientRemoteError, match="connection reset"):
        pull(remote)
    assert remote.left == 100 - STREAMS


def test_each_file_is_told_of_once_as_soon_as_it_is_here(store, pull):
    seen = []

    def told(entry):
        assert store.has(entry.digest)
        seen.append(str(entry.path))

    remote = MemoryRemote(FILES)
    pull(remote, on_file=told)
    assert sorted(seen) == sorted(FILES)
    seen.clear()
    pull(remote, on_file=told)
    assert sorted(seen) == sorted(FILES)


def test_progress_reaches_the_total(pull):
    import contextlib

    totals, counts = [], []

    @contextlib.contextmanager
    def draw(to_fetch, already):
        totals.append((to_fetch, already))
        yield counts.append

    pull(MemoryRemote(FILES), progress=draw)
    assert totals == [(sum(map(len, FILES.values())), 0)]
    assert sum(counts) == totals[0][0]


def test_blobs_that_vanish_are_brought_again(store, pull):
    remote = CountingRemote(MemoryRemote(FILES))
    report = pull(remote)
    lost = store.layout.blob(report.manifest.by_path["code/a.py"].digest)
    lost.unlink()
    remote.bytes.clear()
    assert content(store, pull(remote).manifest) == FILES
    assert remote.bytes == {"code/a.py": 6}


def test_blobs_removed_between_their_commit_and_the_ref_are_brought_again(store, pull):
    gone, told = [], []

    def remove(entry):
        told.append(str(entry.path))
        if entry.path == "code/b.py" and not gone:
            gone.append(entry)
            store.layout.blob(entry.digest).unlink()

    report = pull(MemoryRemote(FILES), on_file=remove)
    assert gone
    assert sorted(told) == sorted(FILES)
    assert report.bytes_here == 0
    assert content(store, report.manifest) == FILES


# --- what the registry says --------------------------------------------------------------------------------------


def test_a_size_other_than_the_records_is_refused_before_anything_is_fetched(pull):
    remote = CountingRemote(MemoryRemote(FILES))
    with pytest.raises(ContentError, match=r"code/a.py has 6 bytes, but its record says 7"):
        pull(remote, expected_sizes={"code/a.py": 7, "code/": 0})
    assert remote.total == 0


def test_a_missing_file_is_refused_unless_the_checkpoint_was_deleted_in_part(pull):
    expected = {"gone.bin": 5, "code/a.py": 6}
    with pytest.raises(ContentError, match=r"gone.bin is missing, but the checkpoint's record names it"):
        pull(MemoryRemote(FILES), expected_sizes=expected)
    assert pull(MemoryRemote(FILES), expected_sizes=expected, partial=True).files_fetched == 5


def test_no_files_at_all(pull):
    with pytest.raises(CheckpointNotFoundError):
        pull(MemoryRemote())


def test_a_name_that_leads_out_is_refused(store, pull):
    remote = MemoryRemote({"a": b"1", "a/b": b"2"})
    with pytest.raises(UnsafeNameError, match="is a file and also a folder"):
        pull(remote)


# --- faults --------------------------------------------------------------------------------------------------------


def test_transient_faults_are_survived(store, pull):
    remote = FaultyRemote(MemoryRemote(FILES), "503 short reset ok short 503 reset")
    assert content(store, pull(remote).manifest) == FILES


def test_a_server_that_stays_broken_is_an_error_and_what_came_is_resumed(store, settings, pull):
    remote = CountingRemote(MemoryRemote({"model.pth": LARGE}))
    with pytest.raises(TransientRemoteError):
        pull(CountingRemote(FaultyRemote(remote, "ok ok " + "503 " * 100)), settings=settings.but(concurrency=1))
    assert remote.total == 2 * plan.RANGE
    report = pull(remote)
    assert remote.total == len(LARGE)
    assert report.bytes_resumed == 2 * plan.RANGE
    assert content(store, report.manifest) == {"model.pth": LARGE}
    assert not any((store.home / "ingest").glob("*/*"))


def test_a_flipped_bit_is_fetched_again_where_a_checksum_is_declared(store, pull):
    for name in ("model.pth", "code/a.py"):
        remote = MemoryRemote({name: FILES[name]})
        remote.declared = {name: (crc(FILES[name]),)}
        report = pull(FaultyRemote(remote, "flip"))
        assert content(store, report.manifest) == {name: FILES[name]}
        assert report.proofs == {name: "origin checksum (crc32)"}


@pytest.mark.parametrize("name", ["model.pth", "code/a.py"])
def test_bytes_that_stay_wrong_are_not_kept(store, pull, name):
    remote = MemoryRemote({name: FILES[name]})
    remote.declared = {name: (crc(FILES[name] + b"!"),)}
    counting = CountingRemote(remote)
    with pytest.raises(DigestMismatchError, match=name):
        pull(counting)
    assert counting.total == 2 * len(FILES[name])
    assert not any((store.home / "blobs").glob("*/*"))
    assert store.resolve("local", UUID) is None
    with pytest.raises(DigestMismatchError):  # and what lies in ingest/ is not taken for half of the work
        pull(counting)
    assert counting.total == 4 * len(FILES[name])


def test_wrong_bytes_of_a_killed_pull_are_not_resumed_twice(store, settings, pull):
    remote = MemoryRemote({"model.pth": LARGE})
    remote.declared = {"model.pth": (crc(LARGE),)}
    with pytest.raises(NotAllowedError):
        pull(FaultyRemote(remote, "flip ok 403"), settings=settings.but(concurrency=1))
    report = pull(remote)
    assert content(store, report.manifest) == {"model.pth": LARGE}


def test_an_etag_that_is_the_md5_vouches_for_a_small_file_at_no_request(store, pull):
    import hashlib

    remote = MemoryRemote(FILES)
    remote.likely = {"code/a.py": (Checksum("md5", hashlib.md5(b"a = 1\n").digest()),)}
    counting = CountingRemote(remote)
    report = pull(counting)
    assert report.proofs["code/a.py"] == "origin checksum (md5)"
    assert report.proofs["code/b.py"] == "length only"


def test_an_etag_that_is_no_md5_proves_nothing_either_way(store, pull):
    remote = MemoryRemote({"code/a.py": b"a = 1\n"})
    remote.likely = {"code/a.py": (Checksum("md5", b"\0" * 16),)}
    counting = CountingRemote(remote)
    assert pull(counting).proofs["code/a.py"] == "length only"
    assert counting.bytes["code/a.py"] == 12  # two reads gave the same bytes


def test_a_flipped_bit_that_only_the_etag_shows_is_not_kept(store, pull):
    import hashlib

    remote = MemoryRemote({"code/a.py": b"a = 1\n"})
    remote.likely = {"code/a.py": (Checksum("md5", hashlib.md5(b"a = 1\n").digest()),)}
    report = pull(FaultyRemote(remote, "flip"))
    assert content(store, report.manifest) == {"code/a.py": b"a = 1\n"}
    assert report.proofs["code/a.py"] == "origin checksum (md5)"


def test_composite_checksums_of_unequal_parts_are_understood(store, pull):
    sizes = (plan.RANGE - 5, 7, len(LARGE) - plan.RANGE - 2)
    parts, at = [], 0
    for size in sizes:
        parts.append(zlib.crc32(LARGE[at : at + size]).to_bytes(4, "big"))
        at += size
    value = zlib.crc32(b"".join(parts)).to_bytes(4, "big")
    assumed = (sizes[0], sizes[0], len(LARGE) - 2 * sizes[0])

    class Parts(MemoryRemote):
        def checksums(self, file, *, thorough=False):
            return (Checksum("crc32", value, sizes if thorough else assumed),)

    remote = CountingRemote(Parts({"model.pth": LARGE}))
    assert pull(remote).proofs["model.pth"] == "origin checksum (crc32)"
    assert remote.total == len(LARGE)


def test_strict_keeps_nothing_that_no_checksum_vouches_for(store, settings, pull):
    for name in ("model.pth", "code/a.py"):
        with pytest.raises(ContentError, match="no checksum vouches"):
            pull(MemoryRemote({name: FILES[name]}), settings=settings.but(verify=Verify.STRICT))
    assert not any((store.home / "blobs").glob("*/*"))


# --- objects that change -------------------------------------------------------------------------------------------


class ReplacedOnRead(CountingRemote):
    """Another process replaces each version of a file as soon as a piece of it was read, some times."""

    def __init__(self, inner, name, versions):
        super().__init__(inner)
        self.name, self.versions = name, list(versions)
        self.writing = threading.Lock()

    def read(self, file, start, end):
        for piece in super().read(file, start, end):
            yield piece
            with self.writing:
                if file.path == self.name and self.versions and file in self.inner.list().files:
                    self.inner.write(self.name, self.versions.pop(0))
            list(self.inner.read(file, start, start + 1))  # a version that was replaced can no longer be read


@pytest.mark.parametrize("name", ["model.pth", "code/a.py"])
def test_a_file_that_is_replaced_meanwhile_is_read_again_as_it_is_now(store, pull, name):
    new = FILES[name][::-1]
    remote = ReplacedOnRead(MemoryRemote(FILES), name, [new])
    report = pull(remote)
    assert content(store, report.manifest) == {**FILES, name: new}
    assert remote.lists == 2


@pytest.mark.parametrize("name", ["model.pth", "code/a.py"])
def test_a_file_that_is_replaced_again_and_again_is_one_clear_error(store, pull, name):
    remote = ReplacedOnRead(MemoryRemote(FILES), name, [FILES[name][::-1], FILES[name], FILES[name][::-1]])
    with pytest.raises(ChangedError, match="replaced twice"):
        pull(remote)
    assert remote.lists == 2
    assert store.resolve("local", UUID) is None


def test_a_small_file_that_became_large(store, pull):
    remote = ReplacedOnRead(MemoryRemote(FILES), "code/a.py", [LARGE])
    assert content(store, pull(remote).manifest)["code/a.py"] == LARGE


def test_a_file_that_is_removed_meanwhile(pull):
    remote = MemoryRemote(FILES)

    class Removing(CountingRemote):
        def read(self, file, start, end):
            if file.path == "code/a.py" and "code/a.py" in self.inner._files:
                self.inner.remove("code/a.py")
            return super().read(file, start, end)

    with pytest.raises(ChangedError, match="removed"):
        pull(Removing(remote))


# --- stopping --------------------------------------------------------------------------------------------------------


def test_an_interrupt_ends_a_pull_even_if_the_server_is_silent(store, settings):
    import signal

    remote = FaultyRemote(MemoryRemote({"model.pth": LARGE}), "ok " + "silent " * 20)
    main = threading.main_thread().ident
    threading.Timer(0.5, lambda: signal.pthread_kill(main, signal.SIGINT)).start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        fetch.pull(store, remote, registry="local", uuid=UUID, settings=settings.but(concurrency=2))
    assert time.monotonic() - began < 10  # on a busy machine; it takes 0.7 s, and the server keeps silent for ever
    remote.wake.set()
    counting = CountingRemote(MemoryRemote({"model.pth": LARGE}))
    report = fetch.pull(store, counting, registry="local", uuid=UUID, settings=settings)
    assert report.bytes_resumed == plan.RANGE
    assert counting.total == len(LARGE) - plan.RANGE


def test_threads_that_come_too_late_spoil_nothing(store, settings, pull):
    remote = FaultyRemote(MemoryRemote({"model.pth": LARGE}), "late 403")
    with pytest.raises(NotAllowedError):
        pull(remote, settings=settings.but(concurrency=2))
    first = pull(MemoryRemote({"model.pth": LARGE}))
    remote.wake.set()
    time.sleep(0.1)
    assert content(store, first.manifest) == {"model.pth": LARGE}


# --- folders ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """A folder that nobody has written to for years."""
    place = tmp_path / "place"
    for name, data in FILES.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)
    (place / "code" / "a.py").chmod(0o755)
    (place / "void").mkdir()
    for path in place.rglob("*"):
        os.utime(path, ns=(10**18, 10**18))
    return place


def test_a_folder_is_pulled_with_its_empty_folders_and_executables(store, pull, folder):
    report = pull(FolderRemote(folder))
    assert content(store, report.manifest) == FILES
    assert report.manifest.directories == ("void",)
    assert [str(entry.path) for entry in report.manifest.files if entry.executable] == ["code/a.py"]


def test_the_users_own_file_never_becomes_a_blob(store, pull, folder):
    report = pull(FolderRemote(folder))
    inodes = {path.stat().st_ino for path in folder.rglob("*")}
    for entry in report.manifest.files:
        assert store.layout.blob(entry.digest).stat().st_ino not in inodes
    assert (folder / "model.pth").stat().st_nlink == 1


def test_a_known_folder_is_not_read_again_until_it_changes(store, pull, folder):
    pull(FolderRemote(folder))
    assert pull(FolderRemote(folder)).bytes_fetched == 0
    (folder / "code" / "b.py").write_bytes(b"b = 3\n")
    report = pull(FolderRemote(folder))
    assert report.bytes_fetched == 6
    assert content(store, report.manifest)["code/b.py"] == b"b = 3\n"


def test_a_file_so_young_that_it_may_change_within_a_tick_is_not_taken_for_known(store, pull, folder):
    (folder / "code" / "b.py").write_bytes(b"b = 3\n")
    pull(FolderRemote(folder))
    assert pull(FolderRemote(folder)).bytes_fetched == 6


def test_a_file_that_is_written_to_while_it_is_copied_is_not_kept_half_new(store, pull, folder):
    class Writing(FolderRemote):
        def local_path(self, file):
            if file.path == "model.pth" and file.size == len(LARGE):
                with open(self.path / "model.pth", "ab") as out:
                    out.write(b"more")
            return super().local_path(file)

    report = pull(Writing(folder))
    assert content(store, report.manifest)["model.pth"] == LARGE + b"more"


def test_digests_are_those_of_the_bytes(store, pull):
    report = pull(MemoryRemote(FILES))
    assert {str(entry.path): entry.digest for entry in report.manifest.files} == {
        name: Digest.of(data) for name, data in FILES.items()
    }
