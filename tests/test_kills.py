"""Kills at every step of every operation: no lie is left, the next call completes, what was there is there."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from kills import Operation, complete, each_kill
from stores import OTHER_UUID, UUID, damage, lies, manifest_of, tagged, uuid

from cas.actions.adding import add
from cas.config import Progress, Settings
from cas.errors import NotFoundError
from cas.index import lines
from cas.index.check import Kind, check
from cas.index.digest import Digest
from cas.index.records import NewRecord
from cas.index.store import Store
from cas.removing import remove
from cas.transfer import plan
from cas.transfer.fetch import pull
from cas.transfer.folder import FolderRemote

pytestmark = pytest.mark.slow

OLD = {"old": b"what was there before", "shared": b"in both"}
NEW = {"new": b"what comes", "a/shared": b"in both", "empty": b""}
MISSING = {Kind.MISSING_BLOB}


def nothing(home: Path) -> None:
    """Leave the home unmade."""


def an_old_checkpoint(home: Path) -> None:
    store = Store(home)
    tagged(store, OTHER_UUID, OLD)
    store.close()


def holds(home: Path, uuid: str, files: dict[str, bytes]) -> bool:
    """Whether a checkpoint is in the store, whole, with these files."""
    store = Store(home)
    manifest = store.resolve("local", uuid)
    if manifest is None or not all(entry.digest is not None and store.has(entry.digest) for entry in manifest.files):
        return False
    found = {str(entry.path): store.blobs.read(entry.digest) for entry in manifest.files if entry.digest is not None}
    assert found == files
    return True


def is_sound(home: Path, allowed: set[Kind] = MISSING) -> None:
    """No name that is a lie, and no problem but those allowed."""
    assert lies(home) == []
    problems = check(Store(home), deep=True).damage
    assert [problem for problem in problems if problem.kind not in allowed] == []


def every_kill(
    folder: Path,
    setup: Operation,
    act: Operation,
    afterwards: Callable[[Path], object],
    *,
    allowed: set[Kind] = MISSING,
) -> int:
    count = 0
    for kill, home in each_kill(folder, setup, act):
        try:
            if home.exists():
                is_sound(home, allowed)
            complete(home, act)
            is_sound(home, set())
            afterwards(home)
        except BaseException as error:
            error.add_note(str(kill))
            raise
        count += 1
    return count


# --- the core ------------------------------------------------------------------------------------------------


def test_killed_put(memory: Path) -> None:
    def act(home: Path) -> None:
        Store(home).put(b"hello", durable=True)

    def afterwards(home: Path) -> None:
        assert Store(home).blobs.read(Digest.of(b"hello")) == b"hello"

    assert every_kill(memory, nothing, act, afterwards) > 20


def test_killed_put_over_a_damaged_blob(memory: Path) -> None:
    def setup(home: Path) -> None:
        store = Store(home)
        damage(store.layout.blob(store.put(b"hello")), b"hellO")

    count = 0
    for kill, home in each_kill(memory, setup, lambda home: Store(home).put(b"hello")):
        store = Store(home)
        found = store.blobs.locate(Digest.of(b"hello"))  # never the damaged one
        assert found is None or found.read_bytes() == b"hello", kill
        Store(home).put(b"hello")
        assert store.blobs.read(Digest.of(b"hello")) == b"hello", kill
        is_sound(home, set())
        count += 1
    assert count > 10


def test_killed_tag(memory: Path) -> None:
    def act(home: Path) -> None:
        tagged(Store(home), UUID, NEW, durable=True)

    def afterwards(home: Path) -> None:
        assert holds(home, UUID, NEW)
        assert holds(home, OTHER_UUID, OLD)

    assert every_kill(memory, an_old_checkpoint, act, afterwards) > 50


DATA = random.Random(1).randbytes(60_000)


def ranged(home: Path) -> int:
    """Ingest in ranges, resuming; return how many bytes had to be written."""
    store, written = Store(home), 0
    with store.staging("key") as staging, staging.ingest(len(DATA), source="source") as ingest:
        for gap in ingest.missing:
            for start in range(gap.start, gap.end, 10_000):
                end = min(start + 10_000, gap.end)
                with ingest.range(start, end) as out:
                    out.write(DATA[start : start + 4_000])
                    out.write(DATA[start + 4_000 : end])
                written += end - start
        ingest.commit(Digest.of(DATA))
    return written


def test_killed_ranged_ingest_refetches_only_what_was_in_flight(memory: Path) -> None:
    saved = 0
    for kill, home in each_kill(memory, an_old_checkpoint, ranged):
        is_sound(home)
        journals = list(home.glob("ingest/*/*/*.journal"))
        whole = sum(
            entry.payload["end"] - entry.payload["start"]
            for journal in journals
            for entry in lines.read(journal)
            if "end" in entry.payload
        )
        if Store(home).has(Digest.of(DATA)):
            continue
        assert ranged(home) == len(DATA) - whole, kill
        saved += whole
        is_sound(home, set())
        assert Store(home).has(Digest.of(DATA)), kill
        assert [path for path in home.glob("ingest/*/*/*") if not path.name.startswith("claim")] == [], kill
    assert saved > len(DATA)


def test_a_folder_killed_before_it_was_claimed_is_removed_later(memory: Path) -> None:
    for kill, home in each_kill(memory, nothing, ranged):
        left = list(home.glob("ingest/*/*"))
        if left and not (left[0] / "claim").exists():
            ranged(home)
            assert left[0].exists(), kill  # it may be one that begins just now
            os.utime(left[0], (0, 0))
            Store(home).staging("key").close()
            assert not left[0].exists(), kill
            break
    else:
        raise AssertionError("no kill left such a memory")


def test_killed_putting_aside_and_linking_back(memory: Path) -> None:
    digest = Digest.of(OLD["old"])

    def act(home: Path) -> None:
        assert Store(home).blobs.put_aside(digest) is None

    count = 0
    for kill, home in each_kill(memory, an_old_checkpoint, act):
        assert holds(home, OTHER_UUID, OLD), kill  # the next reader brings it back
        is_sound(home, set())
        complete(home, act)
        is_sound(home, set())
        Store(home).blobs.drop_healed()
        assert list(home.glob("aside/*")) == [], kill
        count += 1
    assert count > 4


def indexed(home: Path) -> None:
    store = Store(home)
    tagged(store, OTHER_UUID, OLD)
    for number in range(20):
        store.records.add("local", [NewRecord("checkpoint", uuid(number), {"n": number}, ("trial/1",))])
    assert len(store.records.find("checkpoint")) == 20
    store.close()


def asked(home: Path) -> None:
    store = Store(home)
    store.records.add("local", [NewRecord("checkpoint", uuid(1), {"n": 1}, ("trial/1",))])
    assert [seen.data["n"] for seen in store.records.find("checkpoint", parent="trial/1")] == list(range(20))
    assert all(store.has(Digest.of(data)) for data in OLD.values())
    assert store.blobs.hashed == 0


def asked_without_index(home: Path) -> None:
    for path in home.glob("index-*"):
        path.unlink()
    asked(home)


@pytest.mark.parametrize("act", [asked, asked_without_index])
def test_killed_index_rebuild(act: Operation, memory: Path) -> None:
    assert every_kill(memory, indexed, act, lambda home: None) > 3


# --- a whole checkpoint --------------------------------------------------------------------------------------


def settings(home: Path) -> Settings:
    return Settings(home=home, progress=Progress.OFF, concurrency=2)


def folder_of(path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def test_killed_add(memory: Path) -> None:
    old, new = folder_of(memory / "old", OLD), folder_of(memory / "new", NEW)

    def setup(home: Path) -> None:
        add(old, uuid=OTHER_UUID, experiment=1, trial=1, steps=1, settings=settings(home))

    def act(home: Path) -> None:
        add(new, uuid=UUID, experiment=1, trial=1, steps=2, settings=settings(home))

    count = 0
    for kill, home in each_kill(memory / "homes", setup, act):
        is_sound(home)
        assert holds(home, OTHER_UUID, OLD), kill  # what add returned earlier is there
        assert Store(home).records.get("local", "checkpoint", OTHER_UUID) is not None
        if Store(home).records.get("local", "checkpoint", UUID) is not None:
            assert holds(home, UUID, NEW), kill  # no query finds files that did not arrive
        else:
            complete(home, act)
        is_sound(home, set())
        assert holds(home, UUID, NEW), kill
        assert Store(home).records.get("local", "checkpoint", UUID) is not None
        count += 1
    assert count > 50


def test_killed_remove(memory: Path) -> None:
    old, new = folder_of(memory / "old", OLD), folder_of(memory / "new", NEW)

    def setup(home: Path) -> None:
        add(old, uuid=OTHER_UUID, experiment=1, trial=1, steps=1, settings=settings(home))
        add(new, uuid=UUID, experiment=1, trial=1, steps=2, settings=settings(home))

    count = 0
    for kill, home in each_kill(memory / "homes", setup, lambda home: remove(UUID, settings=settings(home))):
        is_sound(home)
        assert holds(home, OTHER_UUID, OLD), kill
        try:
            remove(UUID, settings=settings(home))
        except NotFoundError:
            assert Store(home).resolve("local", UUID) is None, kill
        assert not holds(home, UUID, NEW), kill
        assert holds(home, OTHER_UUID, OLD), kill
        is_sound(home, set())
        add(new, uuid=UUID, experiment=1, trial=1, steps=2, settings=settings(home))
        assert holds(home, UUID, NEW), kill
        count += 1
    assert count > 10


PULLED = {"big": random.Random(2).randbytes(300_000), "b/small": b"x", "empty": b"", "shared": b"in both"}


def test_killed_pull(memory: Path) -> None:
    origin = folder_of(memory / "origin", PULLED)

    def act(home: Path) -> None:
        store = Store(home)
        report = pull(store, FolderRemote(origin), registry="local", uuid=UUID, settings=settings(home))
        assert len(report.manifest.files) == len(PULLED)

    def afterwards(home: Path) -> None:
        assert holds(home, UUID, PULLED)
        assert holds(home, OTHER_UUID, OLD)

    assert every_kill(memory / "homes", an_old_checkpoint, act, afterwards) > 30


def test_the_harness_would_see_a_lie(memory: Path) -> None:
    """A commit that gave a name before the bytes were written would be caught."""
    from cas.index import disk

    def careless(home: Path) -> None:
        path = Store(home).layout.blob(Digest.of(b"hello"))
        disk.make_folder(path.parent)
        fd = disk.create(path)
        disk.write(fd, b"hello")
        os.close(fd)

    seen = [str(kill) for kill, home in each_kill(memory, an_old_checkpoint, careless) if lies(home)]
    assert seen == ["killed before step 2, write"]
    assert manifest_of({}).files == ()


@pytest.mark.parametrize(("validators", "kills"), [(True, 20), (False, 8)])
def test_killed_pull_of_an_object_that_changes_in_between(
    memory: Path, validators: bool, kills: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from remotes import MemoryRemote

    monkeypatch.setattr(plan, "SMALL", 64 << 10)
    monkeypatch.setattr(plan.split, "__defaults__", (64 << 10,))  # so that ranges are journaled one after the other
    old = random.Random(5).randbytes((256 << 10) + 999)
    new = old[:70_000] + random.Random(6).randbytes(len(old) - 70_000)
    remote = MemoryRemote({"model": old})
    remote.has_validators = validators
    resumed = memory / "resumed"

    def act(home: Path) -> None:
        quiet = Settings(home=home, progress=Progress.OFF, concurrency=1)
        report = pull(Store(home), remote, registry="local", uuid=UUID, settings=quiet)
        resumed.write_text(str(report.bytes_resumed))
        assert report.manifest.files[0].digest == Digest.of(old)

    def act_later(home: Path) -> None:
        remote.write("model", new)  # another version under the same name, of the same size
        quiet = Settings(home=home, progress=Progress.OFF, concurrency=1)
        report = pull(Store(home), remote, registry="local", uuid=UUID, settings=quiet)
        assert report.bytes_resumed == 0
        assert report.manifest.files[0].digest == Digest.of(new)

    count = taken_over = 0
    for kill, home in each_kill(memory / "homes", nothing, act, at_most=kills):
        try:
            if home.exists():
                same = memory / f"same-{count}"
                shutil.copytree(home, same, symlinks=True)
                complete(same, act)
                taken_over += int(resumed.read_text())
            complete(home, act_later)
            is_sound(home, set())
        except BaseException as error:
            error.add_note(str(kill))
            raise
        count += 1
    assert count > kills // 2
    assert (taken_over > len(old)) is validators  # of the same version there is much to go on with
