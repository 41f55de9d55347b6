import contextlib
import errno
import itertools
import os
import random
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import ROOT, damage, lies, run_python

from cas.errors import ContentError, DigestMismatchError, NoSpaceError
from cas.index import disk, lines
from cas.index.digest import Digest
from cas.index.ingest import Ingest
from cas.index.staging import Staging
from cas.index.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


@pytest.fixture
def staging(store: Store) -> Iterator[Staging]:
    with store.staging("test") as staging:
        yield staging


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "CACHEDIR.TAG")


# --- the door ------------------------------------------------------------------------------------------------


def test_committed_bytes_are_a_read_only_blob(store: Store) -> None:  # F3
    with store.ingest(expected_size=5) as ingest:
        ingest.write(b"he")
        ingest.write(b"llo")
        digest = ingest.commit(Digest.of(b"hello"))
    path = store.layout.blob(digest)
    assert digest == Digest.of(b"hello") and path.read_bytes() == b"hello"
    assert path.stat().st_mode & 0o777 == 0o444
    assert path.stat().st_nlink == 1
    assert files_in(store.home / "ingest") == []


def test_nothing_stays_of_what_is_not_committed(store: Store) -> None:  # F3
    with store.ingest() as ingest:
        ingest.write(b"hello")
    with pytest.raises(ZeroDivisionError), store.ingest() as ingest:
        ingest.write(b"hello")
        raise ZeroDivisionError
    assert files_in(store.home / "ingest") == []
    assert files_in(store.home / "blobs") == []


def test_the_file_of_an_ingest_is_nobody_elses(store: Store, staging: Staging) -> None:  # F3
    with staging.ingest(1) as one, staging.ingest(1) as two:
        assert one.path != two.path
        with pytest.raises(FileExistsError):
            Ingest(one.path, store.blobs, size=1, source=None, followers=())


def test_other_bytes_than_expected_are_not_published(store: Store) -> None:
    with pytest.raises(DigestMismatchError) as caught, store.ingest() as ingest:
        ingest.write(b"hellO")
        ingest.commit(Digest.of(b"hello"))
    assert caught.value.expected == str(Digest.of(b"hello"))
    assert files_in(store.home / "blobs") == []


def test_too_few_and_too_many_bytes_are_refused(store: Store) -> None:
    with pytest.raises(ContentError, match="2 of 5 bytes are missing"), store.ingest(expected_size=5) as ingest:
        ingest.write(b"hel")
        ingest.commit()
    with pytest.raises(ContentError, match="6 bytes, but 5 were expected"), store.ingest(expected_size=5) as ingest:
        ingest.write(b"hello!")
    with pytest.raises(ContentError, match="6 bytes"), store.ingest(expected_size=5) as ingest:
        ingest.range(4, 6)
    assert files_in(store.home / "blobs") == []


def test_bytes_behind_a_gap_are_not_published_without_those_before(store: Store) -> None:
    with pytest.raises(ContentError, match="missing"), store.ingest() as ingest:
        ingest.write_at(3, b"lo")
        ingest.commit()
    assert files_in(store.home / "blobs") == []


def test_a_file_that_grew_behind_our_back_is_not_published(store: Store) -> None:
    with pytest.raises(ContentError, match="6 bytes"), store.ingest() as ingest:
        ingest.write(b"hello")
        with open(ingest.path, "ab") as file:
            file.write(b"!")
        ingest.commit()


def test_no_byte_is_written_twice(store: Store) -> None:
    with store.ingest(expected_size=6) as ingest:
        ingest.write_at(0, b"abc")
        for start, data in ((0, b"x"), (2, b"xy"), (1, b"x")):
            with pytest.raises(ContentError, match="already"):
                ingest.write_at(start, data)
        with ingest.range(3, 6) as out:
            with pytest.raises(ContentError, match="already"):
                ingest.write_at(4, b"x")
            with pytest.raises(ContentError):
                ingest.commit()
            out.write(b"def")
        assert ingest.commit() == Digest.of(b"abcdef")


def test_a_range_may_be_written_again_if_nothing_of_it_was_hashed(store: Store) -> None:
    with store.ingest(expected_size=6) as ingest:
        with pytest.raises(ZeroDivisionError), ingest.range(3, 6) as out:
            out.write(b"xx")
            raise ZeroDivisionError
        ingest.write_at(3, b"def")
        ingest.write_at(0, b"abc")
        assert ingest.commit() == Digest.of(b"abcdef")


def test_a_range_given_up_after_it_was_hashed_ends_the_ingest(store: Store) -> None:
    with store.ingest(expected_size=3) as ingest:
        with pytest.raises(ZeroDivisionError), ingest.range(0, 3) as out:
            out.write(b"x")
            raise ZeroDivisionError
        ingest.write_at(0, b"abc")
        with pytest.raises(ContentError, match="given up"):
            ingest.commit()
    assert lies(store.home) == []


def test_a_range_that_stays_short_is_an_error(store: Store) -> None:
    with store.ingest(expected_size=6) as ingest:
        with pytest.raises(ContentError, match="2 bytes of the range"), ingest.range(3, 6) as out:
            out.write(b"d")
        with pytest.raises(ContentError, match="more bytes"), ingest.range(3, 6) as out:
            out.write(b"defg")


def test_a_thread_that_comes_too_late_leaves_nothing(store: Store, staging: Staging) -> None:
    ingest = staging.ingest(6, source="s")
    out = ingest.range(0, 6)
    ingest.abort()
    out.write(b"abcdef")
    out.__exit__(None, None, None)
    assert [path.name for path in files_in(store.home / "ingest")] == ["claim"]


@pytest.mark.parametrize("durable", [False, True])
def test_the_same_bytes_again_change_nothing(durable: bool, store: Store) -> None:
    path = store.layout.blob(store.put(b"hello"))
    before = path.stat()
    store.put(b"hello", durable=durable)
    after = path.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert [fact.sealed for fact in store.facts.blob(Digest.of(b"hello"))] == [durable]


def test_a_damaged_blob_is_replaced_and_kept_aside(store: Store) -> None:
    path = store.layout.blob(store.put(b"hello"))
    inode = path.stat().st_ino
    damage(path, b"hellO")
    store.put(b"hello")
    assert path.read_bytes() == b"hello" and path.stat().st_ino != inode
    held = files_in(store.home / "aside")
    assert [one.read_bytes() for one in held] == [b"hellO"]


def test_empty_files_are_blobs_too(store: Store) -> None:
    assert store.put(b"") == Digest.of(b"")
    with store.staging("x") as staging, staging.ingest(0, source="s") as ingest:
        assert ingest.missing == []
        assert ingest.commit() == Digest.of(b"")


def test_a_full_disk_is_one_clear_error(store: Store) -> None:
    with pytest.raises(NoSpaceError, match="disk is full"), store.ingest() as ingest:
        raise OSError(28, "No space left on device", os.fspath(ingest.path))


def test_a_copied_file_is_hashed_from_the_copy(store: Store, staging: Staging, tmp_path: Path) -> None:
    data = random.Random(1).randbytes(3_000_000)
    (tmp_path / "file").write_bytes(data)
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    with staging.ingest(len(data)) as ingest:
        with ingest.range(0, len(data)) as out:
            out.copy_from(fd, len(data))
        assert ingest.commit() == Digest.of(data)
    longer = len(data) + 1
    with pytest.raises(EOFError), staging.ingest(longer) as ingest, ingest.range(0, longer) as out:
        out.copy_from(fd, longer)
    os.close(fd)
    assert lies(store.home) == []


# --- order, threads, followers -------------------------------------------------------------------------------


class Collected:
    def __init__(self) -> None:
        self.data = bytearray()

    def update(self, data: memoryview, /) -> None:
        self.data += data


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=8), st.randoms(), st.booleans(), st.booleans())
def test_ranges_in_any_order_give_the_digest_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory,
    data: bytes,
    cuts: list[int],
    rng: random.Random,
    source: bool,
    pieces: bool,
) -> None:
    store = Store(tmp_path_factory.getbasetemp() / "shared")
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    spans = list(pairwise(edges))
    rng.shuffle(spans)
    follower = Collected()
    with store.staging("t") as staging:
        name = f"{rng.random()}" if source else None
        with staging.ingest(len(data), source=name, followers=(follower,)) as ingest:
            for start, end in spans:
                assert sum(gap.length for gap in ingest.missing) == len(data) - ingest.written
                if pieces:
                    with ingest.range(start, end) as out:
                        for at in range(start, end, 7):
                            out.write(data[at : min(at + 7, end)])
                else:
                    ingest.write_at(start, data[start:end])
            assert b"".join(bytes(piece) for piece in ingest.pieces()) == data
            assert ingest.commit() == Digest.of(data)
    assert follower.data == data
    assert store.layout.blob(Digest.of(data)).read_bytes() == data


def test_many_threads_write_one_file(store: Store, staging: Staging) -> None:
    data = random.Random(2).randbytes(8_000_003)
    size, follower = 50_021, Collected()
    spans = [(start, min(start + size, len(data))) for start in range(0, len(data), size)]
    random.Random(3).shuffle(spans)
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                if not spans:
                    return
                start, end = spans.pop()
            if start % 2:
                ingest.write_at(start, data[start:end])
            else:
                with ingest.range(start, end) as out:
                    for at in range(start, end, 9000):
                        out.write(data[at : min(at + 9000, end)])

    with staging.ingest(len(data), source="s", followers=(follower,)) as ingest:
        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert ingest.commit() == Digest.of(data)
    assert follower.data == data
    assert lies(store.home) == []


def test_what_is_fetched_does_not_run_far_ahead_of_what_is_hashed(store: Store, staging: Staging) -> None:
    data, half = bytes(80 << 20), 40 << 20
    begun, go_on = threading.Event(), threading.Event()

    class Slow(Collected):
        def update(self, data: memoryview, /) -> None:
            begun.set()
            assert go_on.wait(60)
            super().update(data)

    follower = Slow()
    with staging.ingest(len(data) + 2, source="s", followers=(follower,)) as ingest:

        def one(at: int) -> None:
            with ingest.range(at, at + 1) as out:
                out.write(b"\0")

        hasher = threading.Thread(target=ingest.put_in, args=(0, data[:half]))
        hasher.start()
        assert begun.wait(60)
        one(len(data))  # waits for nobody: it is not much yet
        ingest.write_at(half, data[half:])
        late = threading.Thread(target=one, args=(len(data) + 1,))
        late.start()
        late.join(0.2)
        assert late.is_alive() and not follower.data
        go_on.set()
        late.join(60)
        hasher.join(60)
        ingest.commit(Digest.of(data + b"\0\0"))
    assert len(follower.data) == len(data) + 2


# --- resuming ------------------------------------------------------------------------------------------------

DATA = random.Random(4).randbytes(100_000)
SPANS = [(start, start + 10_000) for start in range(0, 100_000, 10_000)]

KILLED = """
import os, random, signal, sys
from pathlib import Path
from cas.index.store import Store
data = random.Random(4).randbytes(100_000)
store = Store(Path(sys.argv[1]))
ingest = store.staging("key").ingest(len(data), source="source")
for start in map(int, sys.argv[2:]):
    if not any(gap.start <= start < gap.end for gap in ingest.missing):
        continue  # taken over
    with ingest.range(start, start + 10_000) as out:
        out.write(data[start : start + 10_000])
out = ingest.range(90_000, 100_000)
out.write(data[90_000:95_000])
os.kill(os.getpid(), signal.SIGKILL)
"""


def kill_a_transfer(home: Path, *starts: int) -> Path:
    """Let a process write some ranges and half of another, and kill it; return its folder."""
    before = set(home.glob("ingest/*/*"))
    done = subprocess.run(
        [sys.executable, "-c", KILLED, home, *map(str, starts)], env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == -signal.SIGKILL
    (folder,) = set(home.glob("ingest/*/*")) - before
    return folder


def resume(store: Store, source: str = "source", size: int = len(DATA)) -> tuple[list[tuple[int, int]], Digest | None]:
    """Resume the transfer and finish it; return what was missing, and the digest."""
    with store.staging("key") as staging, staging.ingest(size, source=source) as ingest:
        missing = [tuple(gap) for gap in ingest.missing]
        if size != len(DATA):
            return missing, None
        for start, end in missing:
            ingest.write_at(start, DATA[start:end])
        return missing, ingest.commit(Digest.of(DATA))


def test_a_killed_transfer_resumes_with_exactly_the_whole_ranges(store: Store) -> None:  # F5
    dead = kill_a_transfer(store.home, 0, 50_000, 30_000)
    inode = next(dead.glob("*.data")).stat().st_ino
    missing, digest = resume(store)
    assert missing == [(10_000, 30_000), (40_000, 50_000), (60_000, 100_000)]
    assert digest is not None
    assert store.layout.blob(digest).stat().st_ino != inode  # F5: nobody else ever had it open for writing
    assert files_in(store.home / "ingest") == []  # the dead one's folder as well


def test_ranges_of_several_dead_transfers_are_joined(store: Store) -> None:
    kill_a_transfer(store.home, 0, 50_000)
    kill_a_transfer(store.home, 0, 20_000)
    assert resume(store)[0] == [(10_000, 20_000), (30_000, 50_000), (60_000, 100_000)]


def test_a_resumed_transfer_that_is_killed_keeps_what_it_took_over(store: Store) -> None:
    kill_a_transfer(store.home, 0, 50_000)
    second = kill_a_transfer(store.home, 20_000)
    for folder in store.home.glob("ingest/*/*"):
        if folder != second:
            for path in folder.iterdir():
                path.unlink()
    assert resume(store)[0] == [(10_000, 20_000), (30_000, 50_000), (60_000, 100_000)]


@pytest.mark.parametrize("changed", [("other source", len(DATA)), ("source", len(DATA) - 10_000)])
def test_a_journal_of_something_else_is_not_used(changed: tuple[str, int], store: Store) -> None:  # F5
    kill_a_transfer(store.home, 0)
    assert resume(store, *changed)[0] == [(0, changed[1])]


def test_damaged_ranges_are_not_taken_over(store: Store) -> None:  # F5
    folder = kill_a_transfer(store.home, 0, 50_000, 30_000)
    path = next(folder.glob("*.data"))
    with open(path, "r+b") as file:
        file.seek(55_000)
        file.write(b"x")
    assert resume(store)[0] == [(10_000, 30_000), (40_000, 100_000)]
    assert lies(store.home) == []


@pytest.mark.parametrize("length", [0, 5_000, 10_000, 35_000])
def test_a_data_file_cut_short_gives_what_it_still_has(length: int, store: Store) -> None:
    folder = kill_a_transfer(store.home, 0, 50_000, 30_000)
    os.truncate(next(folder.glob("*.data")), length)
    missing, digest = resume(store)
    assert digest is not None
    assert missing[0][0] == (10_000 if length >= 10_000 else 0)


def test_no_damage_to_a_journal_gives_other_bytes(store: Store) -> None:
    rng = random.Random(5)
    for _ in range(15):
        folder = kill_a_transfer(store.home, 0, 50_000, 30_000)
        journal = next(folder.glob("*.journal"))
        data = bytearray(journal.read_bytes())
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        journal.write_bytes(data[: rng.randrange(len(data) // 2, len(data) + 1)])
        with store.staging("key") as staging, staging.ingest(len(DATA), source="source") as ingest:
            have = set(SPANS) - {span for span in SPANS for gap in ingest.missing if gap.start <= span[0] < gap.end}
            for start, end in have:
                assert os.pread(ingest._fd, end - start, start) == DATA[start:end]
    assert lies(store.home) == []


@pytest.mark.parametrize(
    "entry",
    [{}, {"start": 0}, {"start": "0", "end": 9}, {"start": -5, "end": 9}, {"start": 9, "end": 0},
     {"start": 0, "end": 10**30},
     {"start": 0, "end": 100_001, "xxh3": "x"}, {"start": None, "end": None}, {"start": 0, "end": 9, "xxh3": 7}],
)  # fmt: skip
def test_odd_journal_entries_are_passed_over(entry: dict[str, object], store: Store) -> None:
    folder = kill_a_transfer(store.home, 50_000)
    journal = next(folder.glob("*.journal"))
    rest = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(rest[0] + lines.encode(entry) + b"".join(rest[1:]))
    assert resume(store)[0] == [(0, 50_000), (60_000, 100_000)]


def begin_ranges_with_no_file_to_spare(home: Path) -> None:
    """Begin ranges while not one file more may be opened, and again when they may; for a process of its own.

    In one that others use, a thread or the garbage collector closes a file meanwhile, and its number is free.
    """
    donor = home.with_name("donor")
    donor.write_bytes(DATA)
    with (
        Store(home).staging("test") as staging,
        donor.open("rb") as source,
        staging.ingest(len(DATA), source="source") as ingest,
    ):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        free = os.open(os.devnull, os.O_RDONLY)  # the lowest number that is not used
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
        for begin in (
            lambda: ingest.range(0, 10_000),
            lambda: ingest.copy_in(10_000, 20_000, source.fileno(), 10_000),
            lambda: ingest.put_in(20_000, DATA[20_000:30_000]),
        ):
            with pytest.raises(OSError, match="Too many open files"):
                begin()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert ingest.missing == [(0, len(DATA))]
        with ingest.range(0, 10_000) as out:
            out.write(DATA[:10_000])
        ingest.copy_in(10_000, 20_000, source.fileno(), 10_000)
        ingest.put_in(20_000, DATA[20_000:30_000])
        ingest.write_at(30_000, DATA[30_000:])
        assert ingest.commit() == Digest.of(DATA)


def test_a_range_for_which_no_file_could_be_opened_can_be_begun_again(tmp_path: Path) -> None:
    code = "import sys, pathlib, test_ingest; test_ingest.begin_ranges_with_no_file_to_spare(pathlib.Path(sys.argv[1]))"
    run_python(code, tmp_path / "home")


def test_what_is_taken_over_counts_though_the_journal_cannot_say_so(store: Store) -> None:
    kill_a_transfer(store.home, 0, 50_000)
    with store.staging("key") as staging:
        opened = itertools.count()

        def refuse(moment: str, step: str) -> None:
            if (moment, step) == ("before", "open_append") and next(opened):  # all but the first line
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        disk.observe(refuse)
        try:
            ingest = staging.ingest(len(DATA), source="source")
        finally:
            disk.observe(None)
        with ingest:
            assert ingest.missing == [(10_000, 50_000), (60_000, 100_000)]
            for start, end in ingest.missing:
                ingest.write_at(start, DATA[start:end])
            assert ingest.commit() == Digest.of(DATA)


def test_a_folder_of_a_living_transfer_is_left_alone(store: Store) -> None:
    with contextlib.ExitStack() as stack:
        living = stack.enter_context(store.staging("key"))
        ingest = stack.enter_context(living.ingest(len(DATA), source="source"))
        ingest.write_at(0, DATA[:10_000])
        missing, _ = resume(store)  # takes its ranges all the same
        assert missing == [(10_000, 100_000)]
        assert living.folder.is_dir()
        ingest.write_at(10_000, DATA[10_000:])
        assert ingest.commit() == Digest.of(DATA)
    assert not living.folder.exists()


def test_a_failed_transfer_with_a_source_is_left_for_the_next(store: Store) -> None:
    with (
        pytest.raises(ConnectionError),
        store.staging("key") as staging,
        staging.ingest(len(DATA), source="source") as ingest,
    ):
        ingest.write_at(20_000, DATA[20_000:40_000])
        raise ConnectionError
    assert resume(store)[0] == [(0, 20_000), (40_000, 100_000)]


def test_nothing_is_taken_over_without_resume(store: Store) -> None:
    kill_a_transfer(store.home, 0)
    with store.staging("key") as staging, staging.ingest(len(DATA), source="source", resume=False) as ingest:
        assert ingest.written == 0
