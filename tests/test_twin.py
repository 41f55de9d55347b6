"""Copies that are made while their file is fetched: they begin early, and are the proven bytes or do not appear."""

from __future__ import annotations

import hashlib
import os
import random
import stat
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import remotes
from container_files import directory_changed, noise, zip_file
from disks import fill, loop, tmpfs
from kills import complete, each_kill
from remotes import FaultyRemote, MemoryRemote
from stores import OTHER_UUID, UUID, lies
from web_server import PIECE, serving

from cas.checkpoint import Checkpoint
from cas.config import Link, Progress, Settings
from cas.errors import ChangedError, ForeignContentError, NoSpaceError, NotAllowedError
from cas.index import disk
from cas.index.check import check
from cas.index.digest import Digest
from cas.index.manifest import FileEntry
from cas.index.paths import RelativePath
from cas.index.space import Destination, can_share
from cas.index.store import Store
from cas.index.twin import Twin
from cas.load.links import LinkReport, Materializer
from cas.transfer.fetch import PullReport, pull
from cas.transfer.folder import FolderRemote
from cas.transfer.plan import RANGE
from cas.transfer.remote import Checksum, Piece, Remote, RemoteFile

MIB = 1 << 20
LARGE = random.Random(1).randbytes(9 * MIB)
OTHER = random.Random(2).randbytes(9 * MIB)

pytestmark = pytest.mark.slow


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "home")
    yield made
    made.close()
    assert lies(tmp_path / "home") == []


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "users").mkdir()
    return tmp_path / "users" / "target"


@pytest.fixture
def steps() -> Iterator[list[str]]:
    """What is done to the disk while the test runs: a twin needs no `copy_whole`."""
    seen: list[str] = []
    disk.observe(lambda moment, step: seen.append(step) if moment == "after" else None)
    yield seen
    disk.observe(None)


def download(
    store: Store, remote: Remote, target: Path, *, link: Link = Link.COPY, **settings: object
) -> tuple[LinkReport, PullReport]:
    """What `Checkpoint.download` does with a remote that it is given."""
    chosen = Settings(home=store.home, progress=Progress.OFF, **{"concurrency": 2, **settings})  # type: ignore[arg-type]
    with Materializer(store, target, link=link) as materializer:
        there = Destination(target, link is Link.AUTO, materializer.begin)
        pulled = pull(
            store, remote, registry="r", uuid=UUID, settings=chosen, destination=there, on_file=materializer.add
        )
        return materializer.finish(pulled.manifest), pulled


class Watched(remotes._Around):
    """A remote that tells of each piece before it gives it."""

    def __init__(self, inner: Remote, look: Callable[[int], object]) -> None:
        super().__init__(inner)
        self._look = look

    def read(self, file: RemoteFile, start: int, end: int) -> Iterator[Piece]:
        for piece in self.inner.read(file, start, end):
            self._look(start)
            yield piece
            start += len(piece)


def coming(target: Path) -> int:
    """How many bytes lie in files beside (or in) a target that is being made."""
    folders = [*target.parent.glob(".*.part"), *target.glob(".*.part")]
    return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())


def left_beside(target: Path) -> list[Path]:
    return [*target.parent.glob(".*"), *target.glob(".*")]


def crc(data: bytes) -> Checksum:
    return Checksum("crc32", zlib.crc32(data).to_bytes(4, "big"))


def md5(data: bytes) -> Checksum:
    return Checksum("md5", hashlib.md5(data).digest())


# --- it begins early -------------------------------------------------------------------------------------------


def test_half_of_the_target_is_there_before_the_last_byte_was_sent(tmp_path: Path, target: Path) -> None:
    data, last = LARGE + OTHER + LARGE, threading.Event()

    def hold(at: int) -> None:
        if at + PIECE >= len(data):
            assert last.wait(60)

    with serving(tmp_path / "site") as site:
        site.write("model/weights.bin", data)
        site.hold = hold
        settings = Settings(home=tmp_path / "home", progress=Progress.OFF, concurrency=2)
        checkpoint = Checkpoint.from_url(f"{site.url}model/", settings=settings)
        downloading = threading.Thread(target=checkpoint.download, args=[target], kwargs={"link": "copy"})
        downloading.start()
        try:
            patience = threading.Event()
            while coming(target) < len(data) // 2 and downloading.is_alive():
                patience.wait(0.02)
            assert coming(target) >= len(data) // 2
            assert not target.exists()
        finally:
            last.set()
            downloading.join(60)
    assert (target / "weights.bin").read_bytes() == data
    assert checkpoint.link_report == LinkReport(copied=1, bytes=len(data))
    assert left_beside(target) == []


def test_the_copy_takes_no_second_reading_of_what_came(store: Store, target: Path, steps: list[str]) -> None:
    report, _ = download(store, MemoryRemote({"a/model": LARGE, "small": b"s"}), target)
    assert (target / "a/model").read_bytes() == LARGE and (target / "small").read_bytes() == b"s"
    assert (report.copied, report.bytes) == (2, len(LARGE) + 1)
    assert steps.count("copy_whole") == 1  # the small one's


def test_ranges_that_come_in_another_order_are_right_in_the_copy(store: Store, target: Path, steps: list[str]) -> None:
    data = random.Random(3).randbytes(2 * RANGE)
    later = threading.Event()

    def look(at: int) -> None:
        if at == 0:
            assert later.wait(60)
        if at >= len(data) - remotes.PIECE:
            later.set()

    download(store, Watched(MemoryRemote({"model": data}), look), target)
    assert (target / "model").read_bytes() == data
    assert "copy_whole" not in steps


def test_a_stream_without_ranges_is_followed_too(store: Store, target: Path, steps: list[str]) -> None:
    remote = MemoryRemote({"model": LARGE})
    remote.has_ranges = False
    download(store, remote, target)
    assert (target / "model").read_bytes() == LARGE
    assert "copy_whole" not in steps


def test_what_was_fetched_by_another_is_copied_from_the_store(store: Store, target: Path, steps: list[str]) -> None:
    remote = MemoryRemote({"model": LARGE})
    settings = Settings(home=store.home, progress=Progress.OFF)
    pull(store, remote, registry="r", uuid=OTHER_UUID, settings=settings)
    steps.clear()
    report, pulled = download(store, remote, target)
    assert (report.copied, pulled.bytes_fetched) == (1, 0)
    assert (target / "model").read_bytes() == LARGE
    assert "copy_whole" in steps


# --- where it must not, or need not ----------------------------------------------------------------------------


@pytest.mark.parametrize("link", [Link.HARDLINK, Link.SYMLINK, Link.REFLINK])
def test_links_and_reflinks_have_no_twin(store: Store, target: Path, link: Link) -> None:
    with Materializer(store, target, link=link) as materializer:
        assert materializer.begin(RelativePath("model"), 9 * MIB, executable=False) is None
    assert list(target.parent.iterdir()) == []


@pytest.mark.root
@pytest.mark.parametrize(("kind", "make"), [("xfs", ("-m", "reflink=1")), ("btrfs", ()), ("ext4", ())])
def test_where_bytes_can_be_shared_they_are_and_nothing_is_written_twice(
    tmp_path: Path, kind: str, make: tuple[str]
) -> None:
    with loop(tmp_path / "disk", kind, 320, *make) as point:
        store, target = Store(point / "home"), point / "target"
        shares = can_share(store.home, point)
        with Materializer(store, target, link=Link.AUTO) as materializer:
            twin = materializer.begin(RelativePath("model"), 9 * MIB, executable=False)
            assert (twin is None) == shares
            assert materializer.begin(RelativePath("more"), 9 * MIB, executable=False) is None or not shares
        report, _ = download(store, MemoryRemote({"model": LARGE}), target, link=Link.AUTO)
        assert (report.reflinked, report.copied) == ((1, 0) if shares else (0, 1))
        assert (target / "model").read_bytes() == LARGE
        assert left_beside(target) == []
        store.close()


@pytest.mark.root
def test_a_target_on_another_disk_has_twins_by_default(store: Store, tmp_path: Path, steps: list[str]) -> None:
    with tmpfs(tmp_path / "disk", "size=40m") as point:
        report, _ = download(store, MemoryRemote({"model": LARGE}), point / "target", link=Link.AUTO)
        assert (point / "target" / "model").read_bytes() == LARGE
    assert report.copied == 1
    assert "copy_whole" not in steps


def test_permissions_are_those_of_any_copy(store: Store, tmp_path: Path, target: Path) -> None:
    origin = tmp_path / "origin"
    origin.mkdir()
    (origin / "run").write_bytes(LARGE)
    (origin / "run").chmod(0o755)
    (origin / "plain").write_bytes(OTHER)
    modes = []
    before = os.umask(0o027)
    try:
        for name in ("twins", "copies"):  # the second time all is in the store
            download(store, FolderRemote(origin), target / name)
            modes.append([stat.S_IMODE((target / name / file).stat().st_mode) for file in ("run", "plain", ".")])
    finally:
        os.umask(before)
    assert modes == [[0o750, 0o640, 0o750]] * 2
    assert [(target / "twins" / name).stat().st_nlink for name in ("run", "plain")] == [1, 1]


# --- a target that exists --------------------------------------------------------------------------------------


def test_what_an_existing_target_misses_is_made_while_it_comes(store: Store, target: Path, steps: list[str]) -> None:
    (target / "a").mkdir(parents=True)
    (target / "a" / "here").write_bytes(OTHER)
    (target / "notes").write_text("mine")
    report, _ = download(store, MemoryRemote({"a/here": OTHER, "a/model": LARGE}), target)
    assert (report.copied, report.kept, report.extra) == (1, 1, 1)
    assert (target / "a" / "model").read_bytes() == LARGE and (target / "notes").read_text() == "mine"
    assert "copy_whole" not in steps
    assert left_beside(target) == []


def test_foreign_content_is_refused_and_no_twin_stays(store: Store, target: Path) -> None:
    target.mkdir()
    (target / "mine").write_bytes(b"something else")
    with pytest.raises(ForeignContentError):
        download(store, MemoryRemote({"mine": OTHER, "model": LARGE}), target)
    assert [path.name for path in target.iterdir()] == ["mine"]
    assert left_beside(target) == []


def test_a_target_that_appears_meanwhile_is_completed(store: Store, target: Path) -> None:
    def look(at: int) -> None:
        target.mkdir(exist_ok=True)
        (target / "notes").write_text("mine")

    download(store, Watched(MemoryRemote({"model": LARGE}), look), target)
    assert (target / "model").read_bytes() == LARGE and (target / "notes").read_text() == "mine"
    assert left_beside(target) == []


# --- what is fetched again is written again --------------------------------------------------------------------


def test_a_flipped_bit_is_in_neither_store_nor_copy(store: Store, target: Path, steps: list[str]) -> None:
    remote = MemoryRemote({"model": LARGE})
    remote.declared = {"model": (crc(LARGE),)}
    report, pulled = download(store, FaultyRemote(remote, "flip"), target)
    assert pulled.bytes_fetched == 2 * len(LARGE)
    assert (target / "model").read_bytes() == LARGE
    assert report.copied == 1 and "copy_whole" not in steps
    assert left_beside(target) == []


@pytest.mark.parametrize("word", ["short", "reset", "503"])
def test_a_range_that_is_asked_for_again_is_right_in_the_copy(
    store: Store, target: Path, steps: list[str], word: str
) -> None:
    download(store, FaultyRemote(MemoryRemote({"model": LARGE}), word), target)
    assert (target / "model").read_bytes() == LARGE
    assert "copy_whole" not in steps


FROZEN = noise(6 * MIB, 1)
FIRST = zip_file({"frozen": FROZEN, "head": noise(3 * MIB, 2)})
SECOND = zip_file({"frozen": FROZEN, "head": noise(3 * MIB, 4)})


def test_what_donors_give_is_in_the_copy(store: Store, target: Path) -> None:
    store.put(FIRST)
    remote = MemoryRemote({"model.pth": SECOND})
    remote.declared = {"model.pth": (md5(SECOND),)}
    _, pulled = download(store, remote, target)
    assert pulled.bytes_reused > 5 * MIB
    assert (target / "model.pth").read_bytes() == SECOND


def test_what_donors_gave_wrongly_is_replaced_in_the_copy(store: Store, target: Path) -> None:
    other = zip_file({"frozen": noise(6 * MIB, 7), "head": noise(3 * MIB, 4)})
    lying = directory_changed(other, 0, crc=zlib.crc32(FROZEN))  # says that it holds what the donor has
    store.put(FIRST)
    remote = MemoryRemote({"model.pth": lying})
    remote.declared = {"model.pth": (md5(lying),)}
    _, pulled = download(store, remote, target)
    assert pulled.bytes_fetched > 6 * MIB
    assert (target / "model.pth").read_bytes() == lying
    assert left_beside(target) == []


def test_an_object_that_is_replaced_in_the_middle_is_never_a_mix(store: Store, target: Path) -> None:
    remote = MemoryRemote({"model": LARGE})
    replaced = threading.Event()

    def look(at: int) -> None:
        if at >= 4 * MIB and not replaced.is_set():
            replaced.set()
            remote.write("model", OTHER)

    download(store, Watched(remote, look), target)
    assert (target / "model").read_bytes() == OTHER
    assert left_beside(target) == []


def test_an_object_that_is_replaced_again_and_again_leaves_no_target(store: Store, target: Path) -> None:
    remote = MemoryRemote({"model": LARGE})
    with pytest.raises(ChangedError):
        download(store, Watched(remote, lambda at: at >= 4 * MIB and remote.write("model", OTHER[at:])), target)
    assert list(target.parent.iterdir()) == []


def test_an_interrupted_download_goes_on_and_its_copy_is_whole(store: Store, target: Path) -> None:
    data = random.Random(4).randbytes(RANGE + MIB)
    with pytest.raises(NotAllowedError):
        download(store, FaultyRemote(MemoryRemote({"model": data}), "ok 403"), target, concurrency=1)
    assert list(target.parent.iterdir()) == []
    _, pulled = download(store, MemoryRemote({"model": data}), target)
    assert pulled.bytes_resumed == RANGE
    assert (target / "model").read_bytes() == data


# --- disks that fail -------------------------------------------------------------------------------------------


@pytest.mark.root
def test_a_target_that_becomes_full_ends_with_one_line_and_the_store_keeps_the_file(
    store: Store, tmp_path: Path
) -> None:
    remote = MemoryRemote({"model": LARGE})
    with tmpfs(tmp_path / "disk", "size=16m") as point:
        ballast = fill(point, leaving=5 * MIB)
        with pytest.raises(NoSpaceError) as caught:
            download(store, remote, point / "target", check_space=False)
        assert f"cannot write into {point / 'target'}: the disk is full" in str(caught.value)
        assert "\n" not in str(caught.value) and caught.value.exit_code == 7
        assert [path.name for path in point.iterdir()] == ["ballast"]
        assert store.has(Digest.of(LARGE))
        ballast.unlink()
        _, pulled = download(store, remote, point / "target")
        assert pulled.bytes_fetched == 0
        assert (point / "target" / "model").read_bytes() == LARGE
    assert check(store, deep=True).damage == ()


@pytest.mark.root
def test_a_target_that_was_full_for_a_while_is_copied_at_the_end(store: Store, tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", "size=16m") as point:
        ballast = fill(point, leaving=3 * MIB)
        seen = []

        def look(at: int) -> None:
            seen.append(coming(point / "target"))
            if at >= 8 * MIB:
                os.truncate(ballast, 0)

        report, _ = download(store, Watched(MemoryRemote({"model": LARGE}), look), point / "target", check_space=False)
        assert max(seen) > 2 * MIB and seen[-1] == 0  # its room was given back at once
        assert report.copied == 1
        assert (point / "target" / "model").read_bytes() == LARGE


@pytest.mark.root
def test_a_target_needs_room_for_each_file_once_also_after_a_mismatch(store: Store, tmp_path: Path) -> None:
    remote = MemoryRemote({"model": LARGE, "other": OTHER})
    remote.declared = {"model": (crc(LARGE),), "other": (crc(OTHER),)}
    with tmpfs(tmp_path / "disk", "size=19m") as point:
        download(store, FaultyRemote(remote, "flip"), point / "target")  # of either; two could both be of one
        assert (point / "target" / "model").read_bytes() == LARGE
        assert (point / "target" / "other").read_bytes() == OTHER


# --- kills -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exists", [False, True], ids=["new", "existing"])
def test_killed_anywhere_the_target_is_whole_or_absent_and_the_next_call_completes_it(
    memory: Path, monkeypatch: pytest.MonkeyPatch, exists: bool
) -> None:
    monkeypatch.setattr(remotes, "PIECE", 4 * MIB)  # fewer steps of one kind
    files = {"a/model": LARGE, "small": b"s"}

    def setup(home: Path) -> None:
        if exists:
            (home / "target").mkdir(parents=True)
            (home / "target" / "notes").write_text("mine")

    def act(home: Path) -> None:
        download(Store(home / "store"), MemoryRemote(files), home / "target", concurrency=1)

    def found(target: Path) -> dict[str, bytes]:
        names = [path for path in target.rglob("*") if path.is_file() and ".part" not in str(path.relative_to(target))]
        return {str(path.relative_to(target)): path.read_bytes() for path in names}

    whole = {**files, **({"notes": b"mine"} if exists else {})}
    count = 0
    for kill, home in each_kill(memory / "killed", setup, act, at_most=40):
        target = home / "target"
        if exists:
            assert all(whole[name] == data for name, data in found(target).items()), kill
        else:
            assert not target.exists() or found(target) == whole, kill
        complete(home, act)
        assert found(target) == whole, kill
        parts = [path for path in home.rglob("*.part/**/*") if path.is_file()]
        assert {path.name for path in parts} <= {"claim.new"}, kill
        assert lies(home / "store") == [], kill
        count += 1
    assert count > 20


# --- one twin --------------------------------------------------------------------------------------------------


def entry(data: bytes, *, executable: bool = False) -> FileEntry:
    return FileEntry(RelativePath("model"), len(data), Digest.of(data), executable=executable)


def test_a_thread_that_comes_too_late_writes_into_no_other_file(tmp_path: Path) -> None:
    with Twin(tmp_path / "twin", 3, executable=False) as twin:
        twin.update(memoryview(b"a"))
    others = [open(tmp_path / f"{number}", "wb") for number in range(8)]  # noqa: SIM115 - one has the twin's number
    twin.update(memoryview(b"late"))
    for file in others:
        file.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(map(str, range(8)))
    assert all((tmp_path / f"{number}").read_bytes() == b"" for number in range(8))


@pytest.mark.parametrize("wrong", ["not kept", "short", "another digest", "executable"])
def test_what_is_not_proven_becomes_nothing(tmp_path: Path, wrong: str) -> None:
    wanted = entry(b"abc", executable=wrong == "executable")
    with Twin(tmp_path / "twin", 3, executable=False) as twin:
        twin.update(memoryview(b"ab" if wrong == "short" else b"abc"))
        if wrong != "not kept":
            twin.keep(Digest.of(b"abd") if wrong == "another digest" else wanted.digest)
    assert not twin.becomes(tmp_path / "file", wanted)
    assert not (tmp_path / "file").exists()


def test_what_is_proven_becomes_the_file_once(tmp_path: Path) -> None:
    with Twin(tmp_path / "twin", 3, executable=False) as twin:
        for piece in (b"a", b"bc"):
            twin.update(memoryview(piece))
        twin.keep(Digest.of(b"abc"))
    assert twin.becomes(tmp_path / "file", entry(b"abc"))
    assert (tmp_path / "file").read_bytes() == b"abc"
    assert not twin.becomes(tmp_path / "again", entry(b"abc"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
