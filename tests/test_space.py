"""Room on disks: what will not fit is refused before it is begun, and a disk that becomes full breaks nothing."""

from __future__ import annotations

import os
import random
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from disks import fill, loop, run, tmpfs
from hypothesis import given
from hypothesis import strategies as st
from remotes import CountingRemote, MemoryRemote
from stores import OTHER_UUID, UUID, lies, run_python, tagged

from cas.actions.adding import add
from cas.checkpoint import Checkpoint
from cas.config import Progress, Settings
from cas.errors import CasError, NoSpaceError, NotAllowedError
from cas.index import disk, lines
from cas.index.check import check
from cas.index.space import Destination, Need, Room, can_share, left_over, reclaimable, require_room, room, shortages
from cas.index.store import Store
from cas.registry.records import CheckpointRecord
from cas.transfer.fetch import pull
from cas.transfer.plan import RANGE, unit_of
from cas.transfer.small import SMALL_AT_ONCE

MIB = 1 << 20
DATA = random.Random(5).randbytes(8 * MIB)
CONCURRENCY = 2
FETCHING = CONCURRENCY * SMALL_AT_ONCE  # small files that are on their way when something fails


def settings_of(home: Path, **changes: object) -> Settings:
    return Settings(home=home, progress=Progress.OFF, **{"concurrency": CONCURRENCY, **changes})  # type: ignore[arg-type]


# --- the sums --------------------------------------------------------------------------------------------------


def two_disks(free: dict[str, tuple[int, int | None, int | None]]):
    return lambda folder: Room(*free[folder.name])


def test_what_fits_is_no_shortage() -> None:
    look = two_disks({"home": (1, 100, 10), "target": (2, 50, None)})
    assert shortages([Need(Path("home"), 100, 10), Need(Path("target"), 50, 1000)], look) == []


def test_needs_of_one_disk_are_added_up() -> None:
    look = two_disks({"home": (1, 100, 10), "target": (1, 100, 10)})
    (short,) = shortages([Need(Path("home"), 60, 5), Need(Path("target"), 60, 6)], look)
    assert (short.missing, short.names_missing) == (20, 1)
    assert short.folders == (Path("home"), Path("target"))


def test_each_disk_is_judged_by_itself() -> None:
    look = two_disks({"home": (1, 100, 10), "target": (2, 10, 10)})
    (short,) = shortages([Need(Path("home"), 60), Need(Path("target"), 60)], look)
    assert short.folders == (Path("target"),) and short.missing == 50


def test_a_disk_that_does_not_tell_is_not_short() -> None:
    assert shortages([Need(Path("home"), 1 << 60, 1 << 40)], two_disks({"home": (1, None, None)})) == []


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 100), st.integers(0, 100)), max_size=8))
def test_a_shortage_is_what_the_sum_of_needs_is_over_what_is_free(wanted: list[tuple[int, int, int]]) -> None:
    needs = [Need(Path(str(device)), size, names) for device, size, names in wanted]
    found = shortages(needs, lambda folder: Room(int(folder.name), 120, 150))
    missing = {short.folders[0].name: (short.missing, short.names_missing) for short in found}
    for device in range(4):
        size = sum(size for number, size, _ in wanted if number == device)
        names = sum(names for number, _, names in wanted if number == device)
        assert missing.get(str(device), (0, 0)) == (max(size - 120, 0), max(names - 150, 0))


def test_files_that_look_as_if_they_were_there_take_no_room(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"123")
    (tmp_path / "b").write_bytes(b"1")
    need = Destination(tmp_path, may_share=False).need([("a", 3), ("b", 3), ("c/d", 3), ("x\0", 3)])
    assert (need.size, need.names) == (9, 3)


def test_the_room_of_a_folder_that_is_not_there_is_that_of_the_one_above(tmp_path: Path) -> None:
    assert room(tmp_path / "no" / "such").device == room(tmp_path).device
    found = room(tmp_path)
    assert found.size is not None and found.size > 0


def test_the_advice_is_what_can_be_had_again(tmp_path: Path) -> None:
    store = Store(tmp_path / "home")
    tagged(store, OTHER_UUID, {"mine": b"x" * 1000, "both": b"y" * 500})
    assert reclaimable(store) == 0
    manifest = tagged(store, UUID, {"theirs": b"z" * 3000, "both": b"y" * 500})
    store.refs.untag("local", UUID)
    store.tag("http://master", UUID, manifest)
    store.put(b"nobody's" * 100)
    assert reclaimable(store) == 3800


def test_a_refusal_says_how_much_is_missing_and_what_prune_could_free(tmp_path: Path) -> None:
    store = Store(tmp_path / "home")
    store.put(b"nobody's" * 1000)
    free = room(store.home).size
    assert free is not None
    with pytest.raises(NoSpaceError) as caught:
        require_room(store, Need(store.home, free * 2, 1), "cannot fetch x")
    assert "are missing; `cas prune` could free up to 7.8 KiB" in str(caught.value)
    assert caught.value.exit_code == 7


# --- before anything is written --------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk of 24 MiB."""
    with tmpfs(tmp_path / "small", "size=24m,nr_inodes=2000") as point:
        yield point


def local_files(path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
        os.utime(path / name, (10**9, 10**9))  # a file that is very young may change once more: no fact is written
    return path


def checkpoint_at(origin: Path, home: Path, **changes: object) -> Checkpoint:
    storage = {"type": "shared_fs", "host_path": str(origin)}
    record = CheckpointRecord(registry="http://m", uuid=UUID, experiment_config={"checkpoint_storage": storage})
    return Checkpoint(record, settings=settings_of(home, **changes))


@pytest.mark.root
@pytest.mark.parametrize("check_space", [True, False])
def test_a_pull_that_will_not_fit_is_refused_before_it_is_begun(small: Path, check_space: bool) -> None:
    remote = CountingRemote(MemoryRemote({f"{n}.bin": DATA[n:] for n in range(4)}))
    store = Store(small / "home")
    settings = settings_of(store.home, check_space=check_space)
    with pytest.raises(NoSpaceError) as caught:
        pull(store, remote, registry="r", uuid=UUID, settings=settings)
    assert (remote.reads == 0) == check_space
    assert ("are missing" in str(caught.value)) == check_space
    assert "\n" not in str(caught.value)
    assert lies(store.home) == []


@pytest.mark.root
def test_too_few_inodes_are_seen_before_anything_is_fetched(tmp_path: Path) -> None:
    remote = CountingRemote(MemoryRemote({f"{n}": b"x%d" % n for n in range(300)}))
    with tmpfs(tmp_path / "few", "size=24m,nr_inodes=200") as point:
        store = Store(point / "home")
        with pytest.raises(NoSpaceError, match=r"300 files will be made in .* the disk has inodes for"):
            pull(store, remote, registry="r", uuid=UUID, settings=settings_of(store.home))
    assert remote.reads == 0


@pytest.mark.root
def test_a_download_counts_the_target_and_the_store_where_they_share_a_disk(small: Path, tmp_path: Path) -> None:
    origin = tmp_path / "origin"
    local_files(origin / UUID, {"model": DATA, "more": DATA[: 6 * MIB]})
    with pytest.raises(NoSpaceError, match=r"28.0 MiB will be written to .* and .* are free: "):
        checkpoint_at(origin, small / "home").download(small / "target")
    assert not list((small / "home" / "blobs").glob("*")) and not (small / "target").exists()
    checkpoint_at(origin, small / "home").download(small / "linked", link="hardlink")  # the same bytes, once
    with pytest.raises(NoSpaceError, match=r"cannot write into .*target: 14.0 MiB will be written"):
        checkpoint_at(origin, small / "home").download(small / "target")
    checkpoint_at(origin, small / "home").download(tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere" / "model").read_bytes() == DATA


@pytest.mark.root
def test_what_is_in_the_target_already_needs_no_room(small: Path, tmp_path: Path) -> None:
    origin = tmp_path / "origin"
    local_files(origin / UUID, {"model": DATA, "more": b"m"})
    local_files(small / "target", {"model": DATA})
    assert checkpoint_at(origin, small / "home").download(small / "target") == str(small / "target")
    assert (small / "target" / "more").read_bytes() == b"m"


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.parametrize(("kind", "make"), [("xfs", ("-m", "reflink=1")), ("btrfs", ())])
def test_where_bytes_can_be_shared_a_download_needs_no_second_room(tmp_path: Path, kind: str, make: tuple[str]) -> None:
    origin = tmp_path / "origin"
    local_files(origin / UUID, {"model": DATA * 20})  # 160 MiB
    with loop(tmp_path / "disk", kind, 320, *make) as point:
        if not can_share(Store(point / "home").home, point):
            pytest.skip(f"this {kind} has no reflinks")
        fill(point, leaving=220 * MIB)
        with pytest.raises(NoSpaceError, match="are missing"):
            checkpoint_at(origin, point / "home").download(point / "copy", link="copy")
        checkpoint = checkpoint_at(origin, point / "home")
        checkpoint.download(point / "target")
        assert checkpoint.link_report is not None and checkpoint.link_report.reflinked == 1


def test_looking_whether_bytes_can_be_shared_leaves_nothing(tmp_path: Path) -> None:
    home, target = Store(tmp_path / "home").home, tmp_path / "target"
    target.mkdir()
    can_share(home, target)
    assert list(target.iterdir()) == [] and [path.name for path in (home / "ingest").iterdir()] == ["CACHEDIR.TAG"]


# --- in the middle ---------------------------------------------------------------------------------------------


FILES = {"big.bin": random.Random(6).randbytes(2 * RANGE + 1000), **{f"s/{n}": b"%d" % n * 3000 for n in range(40)}}


def until_it_fits(store: Store, remote: CountingRemote, ballast: Path, step: int) -> int:
    """Pull, and give up some ballast each time that there is no room; return how often there was none."""
    settings, failed = settings_of(store.home, check_space=False), 0
    while True:
        try:
            pull(store, remote, registry="r", uuid=UUID, settings=settings)
            return failed
        except NoSpaceError as error:
            assert "\n" not in str(error) and error.exit_code == 7
            failed += 1
        assert lies(store.home) == []
        left = ballast.stat().st_size
        assert left > 0, "it needs more room than it should"
        os.truncate(ballast, max(left - step, 0))


@pytest.mark.root
@pytest.mark.slow
def test_a_disk_that_becomes_full_breaks_nothing_and_the_pull_goes_on(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", "size=36m") as point:
        store = Store(point / "home")
        remote = CountingRemote(MemoryRemote(FILES))
        ballast = fill(point, leaving=MIB)
        assert until_it_fits(store, remote, ballast, 6 * MIB) >= 3
        assert check(store, deep=True).damage == ()


@pytest.mark.root
def test_what_a_transfer_left_is_taken_over_with_no_moment_at_which_others_find_a_full_disk(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", f"size={RANGE + 4 * MIB}") as point:
        store = Store(point / "home")
        staging = store.staging("key")
        ingest = staging.ingest(2 * RANGE, source="source")
        with ingest.range(0, RANGE) as out:
            out.write(os.urandom(RANGE))
        ingest.leave()
        staging.abandon()
        before, seen = shutil.disk_usage(point).free, []
        disk.observe(lambda moment, step: seen.append(shutil.disk_usage(point).free))
        try:
            with store.staging("key") as again, again.ingest(2 * RANGE, source="source") as resumed:
                assert [tuple(gap) for gap in resumed.missing] == [(RANGE, 2 * RANGE)]
        finally:
            disk.observe(None)
        assert min(seen) >= before - MIB


@pytest.mark.root
@pytest.mark.slow
def test_a_resumed_pull_needs_no_more_room_than_what_is_missing(tmp_path: Path) -> None:
    size = len(FILES["big.bin"])
    remote = CountingRemote(MemoryRemote({"big.bin": FILES["big.bin"]}))
    with tmpfs(tmp_path / "disk", f"size={size + 2 * MIB}") as point:
        store = Store(point / "home")
        ballast = fill(point, leaving=RANGE + 4 * MIB)
        with pytest.raises(NoSpaceError):
            pull(
                store,
                remote,
                registry="r",
                uuid=UUID,
                settings=settings_of(store.home, check_space=False, concurrency=1),
            )
        file = remote.list().files[0]
        assert left_over(store.layout, unit_of(file).key) >= RANGE
        ballast.unlink()
        before = remote.total
        # With the preflight: it knows that the room of what is here is used again.
        report = pull(store, remote, registry="r", uuid=UUID, settings=settings_of(store.home))
        assert report.bytes_resumed >= RANGE
        assert remote.total - before == size - report.bytes_resumed
        assert check(store, deep=True).damage == ()


@pytest.mark.root
@pytest.mark.slow
def test_no_inodes_in_the_middle(tmp_path: Path) -> None:
    remote = CountingRemote(MemoryRemote({f"{n}": b"x%d" % n * 100 for n in range(300)}))
    with tmpfs(tmp_path / "disk", "nr_inodes=260,size=24m") as point:
        store = Store(point / "home")
        with pytest.raises(NoSpaceError, match="the disk is full"):
            pull(store, remote, registry="r", uuid=UUID, settings=settings_of(store.home, check_space=False))
        here = len(list(store.home.glob("blobs/??/*")))
        assert here > 20 and lies(store.home) == []
        run("mount", "-o", "remount,nr_inodes=5000", point)
        before = remote.reads
        pull(store, remote, registry="r", uuid=UUID, settings=settings_of(store.home))
        assert remote.reads - before <= 300 - here + FETCHING
        assert check(store, deep=True).damage == ()


@pytest.mark.root
def test_a_full_disk_tears_no_line(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", "size=64k") as point:
        path, count, torn = point / "x.jsonl", 0, lines.Torn()
        with pytest.raises(OSError, match="No space left"):
            for count in range(1000):
                lines.append(path, [{"n": count, "text": "x" * 777}])
        assert path.stat().st_size == 64 << 10  # as much of the last one as there was room for
        assert [line.payload["n"] for line in lines.read(path, torn=torn)] == list(range(count))
        run("mount", "-o", "remount,size=128k", point)
        lines.append(path, [{"n": count}])
        assert [line.payload["n"] for line in lines.read(path, torn=torn)] == list(range(count + 1))
        assert torn.count == 0


@pytest.mark.root
def test_facts_that_find_no_room_are_not_lost(tmp_path: Path) -> None:
    """The disk is full for them alone: what the blobs are is known all the same, once there is room again."""
    remote = CountingRemote(MemoryRemote({f"{n}": b"x%d" % n * 100 for n in range(300)}))
    store = Store(tmp_path / "home")
    with tmpfs(store.layout.facts.parent, "nr_inodes=1,size=4k") as point:
        with pytest.raises(NoSpaceError, match="the disk is full"):
            pull(store, remote, registry="r", uuid=UUID, settings=settings_of(store.home))
        assert remote.reads == 0
        run("mount", "-o", "remount,nr_inodes=100", point)
        with pytest.raises(NoSpaceError, match="the disk is full"):
            pull(store, remote, registry="r", uuid=UUID, settings=settings_of(store.home))
        before, here = remote.reads, len(list(store.home.glob("blobs/??/*")))
        assert here > 100
        run("mount", "-o", "remount,size=10m", point)
        pull(store, remote, registry="r", uuid=UUID, settings=settings_of(store.home))
        assert remote.reads - before <= 300 - here + FETCHING
        assert check(store, deep=True).damage == ()  # no line is torn


@pytest.mark.root
@pytest.mark.slow
def test_a_quota_that_is_used_up_is_one_clear_line_and_the_pull_goes_on(tmp_path: Path) -> None:
    with loop(tmp_path / "disk", "btrfs", 300) as point:
        run("btrfs", "quota", "enable", point)
        run("btrfs", "subvolume", "create", point / "mine")
        run("btrfs", "qgroup", "limit", "20M", point / "mine")
        store = Store(point / "mine" / "home")
        remote = CountingRemote(MemoryRemote({"big.bin": FILES["big.bin"], "small": b"s"}))
        settings = settings_of(store.home)
        with pytest.raises(NoSpaceError, match="your quota is used up") as caught:
            pull(store, remote, registry="r", uuid=UUID, settings=settings)
        assert "\n" not in str(caught.value)
        assert lies(store.home) == []
        run("btrfs", "qgroup", "limit", "100M", point / "mine")
        pull(store, remote, registry="r", uuid=UUID, settings=settings)
        assert check(store, deep=True).damage == ()


@pytest.mark.root
@pytest.mark.slow
def test_a_full_target_disk_is_one_clear_line_and_leaves_nothing(small: Path, tmp_path: Path) -> None:
    origin, home = tmp_path / "origin", tmp_path / "home"
    local_files(origin / UUID, {"a": DATA, "b": DATA[::-1]})
    fill(small, leaving=10 * MIB)
    with pytest.raises(NoSpaceError) as caught:
        checkpoint_at(origin, home, check_space=False).download(small / "target")
    assert str(small / "target") in str(caught.value)
    assert sorted(path.name for path in small.iterdir()) == ["ballast"]
    (small / "ballast").unlink()
    checkpoint = checkpoint_at(origin, home)
    checkpoint.download(small / "target")
    assert checkpoint.pull_report is not None and checkpoint.pull_report.files_fetched <= 1  # the store kept the rest


@pytest.mark.root
@pytest.mark.slow
def test_add_on_a_full_disk_adds_nothing_and_goes_on(small: Path, tmp_path: Path) -> None:
    folder = local_files(tmp_path / "model", {"a": DATA, "b": DATA[::-1]})
    settings = settings_of(small / "home", check_space=False, concurrency=1)
    Store(small / "home").close()
    ballast = fill(small, leaving=12 * MIB)
    with pytest.raises(NoSpaceError):
        add(folder, uuid=UUID, settings=settings)
    store = Store(small / "home")
    assert store.resolve("local", UUID) is None and store.records.get("local", "checkpoint", UUID) is None
    assert lies(store.home) == []
    ballast.unlink()
    add(folder, uuid=UUID, settings=settings)
    assert check(store, deep=True).damage == ()


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_a_full_disk_of_each_kind(tmp_path: Path, kind: str) -> None:
    megabytes = {"ext4": 48, "xfs": 300, "btrfs": 128}[kind]
    with loop(tmp_path / "disk", kind, megabytes) as point:
        store = Store(point / "home")
        ballast = fill(point, leaving=12 * MIB)
        remote = CountingRemote(MemoryRemote({"big.bin": FILES["big.bin"], "s": b"s"}))
        with pytest.raises(NoSpaceError):
            pull(store, remote, registry="r", uuid=UUID, settings=settings_of(store.home, check_space=False))
        assert lies(store.home) == []
        ballast.unlink()
        pull(store, remote, registry="r", uuid=UUID, settings=settings_of(store.home, check_space=False))
        assert check(store, deep=True).damage == ()


@pytest.mark.root
@pytest.mark.slow
def test_a_disk_that_turned_read_only_is_one_clear_line(small: Path) -> None:
    store = Store(small / "home")
    digest = store.put(b"hello")
    run("mount", "-o", "remount,ro", small)
    remote = MemoryRemote({"a": b"x"})
    with pytest.raises(NotAllowedError, match="Read-only file system"):
        pull(store, remote, registry="r", uuid=UUID, settings=settings_of(store.home))
    assert store.blobs.read(digest) == b"hello"


def pull_with_few_open_files(home: Path) -> None:
    """Pull again and again, each time with some more files that may be open."""
    store = Store(home)
    store.refs.registries(UUID)  # what Python opens when it first does anything
    settings, failed = settings_of(home), 0
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limit in range(len(os.listdir("/proc/self/fd")), 60, 3):
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        try:
            pull(store, MemoryRemote(FILES), registry="r", uuid=UUID, settings=settings)
            break
        except CasError as error:
            assert "too many open files" in str(error) and "\n" not in str(error)
            failed += 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    assert lies(home) == []
    assert check(store, deep=True).damage == ()
    print(failed)


@pytest.mark.slow
def test_too_many_open_files_are_one_clear_line_and_the_pull_goes_on(tmp_path: Path) -> None:
    code = "import sys, pathlib, test_space; test_space.pull_with_few_open_files(pathlib.Path(sys.argv[1]))"
    assert int(run_python(code, tmp_path / "home")) > 1
