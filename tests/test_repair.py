"""Check and repair: what is found, what repair would do, and that it does that and nothing else."""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kills import complete, each_kill
from stores import OTHER_UUID, UUID, damage, lies, tagged

from cas.actions import repairing
from cas.actions.adding import add
from cas.checkpoint import Checkpoint
from cas.config import Progress, Settings
from cas.index import deep, disk, lines
from cas.index.check import CheckReport, Kind, check
from cas.index.digest import Digest
from cas.index.problems import REMEDIES, Problem
from cas.index.repair import Remedy, RepairPlan, Step, execute_repair, plan_repair
from cas.index.store import Store
from cas.load.views import make_view
from cas.registry.records import CheckpointRecord
from cas.registry.remembering import remember

FILES = {"model": random.Random(1).randbytes(20_000), "code/a.py": b"a = 1\n", "empty": b""}
REGISTRY = "http://master"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", progress=Progress.OFF)


def origin_of(tmp_path: Path, files: dict[str, bytes] = FILES, uuid: str = UUID) -> Path:
    folder = tmp_path / "origin" / uuid
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
        os.utime(folder / name, (10**9, 10**9))
    return folder


def pulled(store: Store, settings: Settings, tmp_path: Path, uuid: str = UUID) -> Checkpoint:
    """A checkpoint in the store that has an origin."""
    storage = {"type": "shared_fs", "host_path": str(tmp_path / "origin")}
    config = {"checkpoint_storage": storage}
    record = CheckpointRecord(registry=REGISTRY, uuid=uuid, experiment_config=config)
    remember(store, REGISTRY, [record])
    checkpoint = Checkpoint(record, settings=settings)
    checkpoint.view()
    return checkpoint


def blob(store: Store, name: str, files: dict[str, bytes] = FILES) -> Path:
    return store.layout.blob(Digest.of(files[name]))


def repaired(store: Store, settings: Settings, *, deep: bool = True) -> dict[Kind, str]:
    """Check and repair; return what was done about each kind of problem."""
    report = repairing.check(store, deep=deep, anew=True)
    done = repairing.repair(store, report.problems, settings)
    assert lies(store.home) == []
    return {result.step.problem.kind: result.text for result in done.results}


def is_sound(store: Store) -> bool:
    return repairing.check(store, deep=True, anew=True).damage == ()


# --- the plan --------------------------------------------------------------------------------------------------


def test_every_kind_of_problem_says_what_repair_does() -> None:
    assert REMEDIES.keys() == set(Kind)


def plan_of(*problems: Problem, **known: dict) -> RepairPlan:  # type: ignore[type-arg]
    nothing: dict[str, dict] = {name: {} for name in ("copies", "origins", "manifests", "fitting", "mine")}  # type: ignore[type-arg]
    return plan_repair(problems, **(nothing | known))


LOST = Digest.of(b"lost")
MISSING = Problem(Kind.MISSING_BLOB, Path("blobs/x"), "", LOST, 4)
DAMAGED = Problem(Kind.DAMAGED_BLOB, Path("blobs/x"), "", LOST, 4)
MANIFEST = Problem(Kind.MISSING_MANIFEST, Path("manifests/x"), "", LOST, checkpoint=("r", UUID))
TORN = Problem(Kind.TORN_LINE, Path("facts/x.jsonl"), "")


def test_a_copy_on_this_disk_is_used_before_an_origin() -> None:
    assert plan_of(MISSING, copies={LOST: "/c"}, origins={MISSING: "u"}).steps == (Step(Remedy.COPY, MISSING, "/c"),)
    plan = plan_of(MISSING, origins={MISSING: "url"})
    assert plan.steps == (Step(Remedy.FETCH, MISSING, "url"),) and plan.fetched == 4


def test_one_blob_is_brought_back_once() -> None:
    assert len(plan_of(DAMAGED, MISSING, origins={DAMAGED: "u", MISSING: "u"}).steps) == 1


def test_an_only_copy_is_kept_and_named() -> None:
    (step,) = plan_of(DAMAGED).steps
    assert step.remedy is Remedy.KEEP
    assert "it was the only copy" in step.source and "kept in aside/" in step.source


def test_lines_of_others_are_left_to_them() -> None:
    assert plan_of(TORN, mine={TORN.path: True}).steps[0].remedy is Remedy.REWRITE
    assert plan_of(TORN).steps[0].remedy is Remedy.KEEP


def test_manifests_come_before_blobs_and_what_is_aside_last() -> None:
    aside = Problem(Kind.ASIDE, Path("aside/x"), "", LOST)
    every = [aside, MISSING, MANIFEST]
    for problems in itertools.permutations(every):
        plan = plan_of(*problems, copies={LOST: "c"}, manifests={LOST: "m"})
        assert [step.remedy for step in plan.steps] == [Remedy.REBUILD, Remedy.COPY, Remedy.REMOVE]


@given(st.lists(st.sampled_from(list(Kind)), max_size=10), st.booleans())
def test_every_problem_but_blobs_that_no_checkpoint_needs_gets_a_step(kinds: list[Kind], has_origin: bool) -> None:
    problems = [Problem(kind, Path(f"p{n}"), "", Digest.of(b"%d" % n), n) for n, kind in enumerate(kinds)]
    plan = plan_of(*problems, origins=dict.fromkeys(problems, "url") if has_origin else {})
    assert {step.problem for step in plan.steps} == {one for one in problems if one.kind is not Kind.UNREFERENCED}
    fetched = sum(one.size for one in problems if one.kind in (Kind.DAMAGED_BLOB, Kind.MISSING_BLOB))
    assert plan.fetched == (fetched if has_origin else 0)


# --- blobs -----------------------------------------------------------------------------------------------------


def test_a_damaged_blob_is_fetched_again_from_its_origin(store: Store, settings: Settings, tmp_path: Path) -> None:
    origin_of(tmp_path)
    checkpoint = pulled(store, settings, tmp_path)
    damage(blob(store, "model"))
    done = repaired(store, settings, deep=False)
    assert done[Kind.DAMAGED_BLOB].startswith("fetched from file://")
    assert blob(store, "model").read_bytes() == FILES["model"]
    assert list((store.home / "aside").iterdir()) == []
    assert is_sound(store)
    assert (checkpoint.view() / "model").read_bytes() == FILES["model"]


def test_only_what_is_lost_is_fetched(store: Store, settings: Settings, tmp_path: Path) -> None:
    origin = origin_of(tmp_path)
    pulled(store, settings, tmp_path)
    blob(store, "model").unlink()
    (origin / "code/a.py").write_bytes(b"never read\n")
    repair = repairing.repair(store, repairing.check(store).problems, settings)
    assert repair.left == () and repair.plan.fetched in (0, len(FILES["model"]))


def test_an_origin_with_other_bytes_by_now_does_not_help(store: Store, settings: Settings, tmp_path: Path) -> None:
    origin = origin_of(tmp_path)
    pulled(store, settings, tmp_path)
    damage(blob(store, "model"))
    (origin / "model").write_bytes(b"z" * len(FILES["model"]))
    repair = repairing.repair(store, repairing.check(store).problems, settings)
    assert [problem.kind for problem in repair.left] == [Kind.MISSING_BLOB]
    failed = next(result for result in repair.results if result.step.remedy is Remedy.FETCH)
    assert not failed.solved and "has other bytes by now" in failed.text
    assert len(list((store.home / "aside").iterdir())) == 1  # what is left of it is kept


def test_offline_no_origin_is_asked(store: Store, settings: Settings, tmp_path: Path) -> None:
    manifest = tagged(store, UUID, FILES)
    store.refs.untag("local", UUID)
    store.tag(REGISTRY, UUID, manifest)
    storage = {"type": "s3", "bucket": "b", "endpoint_url": "http://127.0.0.1:1"}
    config = {"checkpoint_storage": storage}
    remember(store, REGISTRY, [CheckpointRecord(registry=REGISTRY, uuid=UUID, experiment_config=config)])
    blob(store, "model").unlink()
    plan = repairing.plan(store, repairing.check(store).problems, settings.but(offline=True))
    assert [step.remedy for step in plan.steps] == [Remedy.KEEP]


def test_a_blob_comes_back_from_a_folder_that_was_downloaded(store: Store, settings: Settings, tmp_path: Path) -> None:
    add(origin_of(tmp_path), uuid=UUID, settings=settings)
    Checkpoint(CheckpointRecord(registry="local", uuid=UUID), settings=settings).download(tmp_path / "mine")
    damage(blob(store, "model"))
    done = repaired(store, settings)
    assert done[Kind.DAMAGED_BLOB] == f"brought back from {tmp_path}/mine/model"
    assert is_sound(store)


def test_a_folder_that_was_changed_since_gives_nothing(store: Store, settings: Settings, tmp_path: Path) -> None:
    add(origin_of(tmp_path), uuid=UUID, settings=settings)
    Checkpoint(CheckpointRecord(registry="local", uuid=UUID), settings=settings).download(tmp_path / "mine")
    (tmp_path / "mine" / "model").write_bytes(b"y" * len(FILES["model"]))
    damage(blob(store, "model"))
    repair = repairing.repair(store, repairing.check(store).problems, settings)
    assert [problem.kind for problem in repair.left] == [Kind.MISSING_BLOB]
    assert (tmp_path / "mine" / "model").read_bytes() == b"y" * len(FILES["model"])
    (held,) = (store.home / "aside").iterdir()
    assert held.stat().st_size == len(FILES["model"])


def test_a_blob_whose_name_was_deleted_comes_back_from_a_view_with_no_byte_copied(
    store: Store, settings: Settings
) -> None:
    make_view(store, tagged(store, UUID, FILES))
    inode = blob(store, "model").stat().st_ino
    blob(store, "model").unlink()
    done = repaired(store, settings)
    assert "views/" in done[Kind.MISSING_BLOB]
    assert blob(store, "model").stat().st_ino == inode
    assert is_sound(store)


def test_a_pipe_in_a_downloaded_folder_does_not_hang_repair(store: Store, settings: Settings, tmp_path: Path) -> None:
    add(origin_of(tmp_path), uuid=UUID, settings=settings)
    Checkpoint(CheckpointRecord(registry="local", uuid=UUID), settings=settings).download(tmp_path / "mine")
    (tmp_path / "mine" / "model").unlink()
    os.mkfifo(tmp_path / "mine" / "model")
    blob(store, "model").unlink()
    assert repairing.repair(store, repairing.check(store).problems, settings).left != ()


def test_a_copy_in_aside_comes_back_by_itself(store: Store, settings: Settings) -> None:
    tagged(store, UUID, FILES)
    held = store.layout.aside(Digest.of(FILES["model"]).hex)
    disk.make_folder(held.parent)
    blob(store, "model").rename(held)
    repaired(store, settings)
    assert is_sound(store) and not held.exists()


def test_a_writable_blob_is_hashed_and_closed(store: Store, settings: Settings) -> None:
    tagged(store, UUID, FILES)
    blob(store, "model").chmod(0o644)
    assert repaired(store, settings)[Kind.WRITABLE] == "hashed, and read-only now"
    assert blob(store, "model").stat().st_mode & 0o777 == 0o444
    damage(blob(store, "model"))
    blob(store, "model").chmod(0o666)
    report = repairing.check(store)
    assert [problem.kind for problem in report.damage] == [Kind.DAMAGED_BLOB, Kind.MISSING_BLOB]


def test_a_view_in_use_survives_the_repair_of_its_blob(store: Store, settings: Settings, tmp_path: Path) -> None:
    origin_of(tmp_path)
    pulled(store, settings, tmp_path)
    manifest = store.resolve(REGISTRY, UUID)
    assert manifest is not None
    code = f"""
import sys
from pathlib import Path
from cas.index.digest import Digest
from cas.index.store import Store
from cas.load.views import make_view
store = Store(Path(sys.argv[1]))
view = make_view(store, store.refs.get(Digest({manifest.digest.hex!r}))).path
model = open(view / "model", "rb")
print(view, flush=True)
while line := sys.stdin.readline().strip():
    found = {{path.name: path.read_bytes().hex() for path in view.rglob("*") if path.is_file()}}
    print(found, len(model.read()), flush=True)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code, str(store.home)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as user:
        assert user.stdin is not None and user.stdout is not None
        view = Path(user.stdout.readline().strip())
        damage(blob(store, "model"))
        os.utime(blob(store, "model"), ns=(0, 0))
        report = repairing.check(store, deep=True, anew=True)
        assert sorted(path.name for path in view.rglob("*") if path.is_file()) == ["a.py", "empty"]
        user.stdin.write("look\n")
        user.stdin.flush()
        assert "a.py" in user.stdout.readline()  # the others are there, and so is what was open
        assert repairing.repair(store, report.problems, settings).left == ()
        user.stdin.write("look\n")
        user.stdin.flush()
        found = user.stdout.readline()
        assert all(data.hex() in found for data in FILES.values())
        assert make_view(store, manifest).path == view
        assert is_sound(store)
        user.stdin.write("\n")
        user.stdin.flush()


# --- manifests and refs ----------------------------------------------------------------------------------------


def test_a_lost_manifest_is_made_again_from_its_view(store: Store, settings: Settings) -> None:
    manifest = tagged(store, UUID, FILES)
    make_view(store, manifest)
    store.layout.manifest(manifest.digest).unlink()
    done = repaired(store, settings)
    assert "made again from" in done[Kind.MISSING_MANIFEST]
    assert store.resolve("local", UUID) == manifest and is_sound(store)


@pytest.mark.root
def test_a_view_that_links_to_a_colleagues_blob_says_as_much_as_any_other(store: Store, settings: Settings) -> None:
    manifest = tagged(store, UUID, FILES)
    os.chown(blob(store, "model"), 12345, -1)
    tree = make_view(store, manifest).path
    damage(tree / "code/a.py")
    assert Kind.DAMAGED_VIEW in [problem.kind for problem in repairing.check(store, deep=True).problems]
    make_view(store, manifest)
    store.layout.manifest(manifest.digest).unlink()
    assert "made again from" in repaired(store, settings)[Kind.MISSING_MANIFEST]


def test_a_damaged_manifest_is_made_again_from_a_downloaded_folder(
    store: Store, settings: Settings, tmp_path: Path
) -> None:
    folder = origin_of(tmp_path, {**FILES, "run.sh": b"#!/bin/sh\n"})
    (folder / "run.sh").chmod(0o755)
    (folder / "void" / "deep").mkdir(parents=True)
    checkpoint = add(folder, uuid=UUID, settings=settings, metadata={"a": 1})
    checkpoint.download(tmp_path / "mine")
    manifest = store.resolve("local", UUID)
    assert manifest is not None and [str(name) for name in manifest.directories] == ["void/deep"]
    damage(store.layout.manifest(manifest.digest))
    assert "made again from" in repaired(store, settings)[Kind.DAMAGED_MANIFEST]
    assert store.resolve("local", UUID) == manifest and is_sound(store)


def test_a_lost_manifest_is_made_again_from_the_origin(store: Store, settings: Settings, tmp_path: Path) -> None:
    origin_of(tmp_path)
    checkpoint = pulled(store, settings, tmp_path)
    manifest = store.resolve(REGISTRY, UUID)
    assert manifest is not None
    store.layout.manifest(manifest.digest).unlink()
    store.drop_view(manifest.digest)
    done = repaired(store, settings)
    assert done[Kind.MISSING_MANIFEST].startswith("made again from file://")
    assert is_sound(store) and (checkpoint.view() / "model").read_bytes() == FILES["model"]


def test_a_manifest_that_nothing_says_is_named(store: Store, settings: Settings) -> None:
    manifest = tagged(store, UUID, FILES)
    store.layout.manifest(manifest.digest).unlink()
    repair = repairing.repair(store, repairing.check(store).problems, settings)
    assert [problem.kind for problem in repair.left] == [Kind.MISSING_MANIFEST]
    assert "nothing here says what was in it" in repair.results[0].text


def test_blobs_that_a_manifest_made_again_needs_come_back_too(store: Store, settings: Settings, tmp_path: Path) -> None:
    add(origin_of(tmp_path), uuid=UUID, settings=settings)
    Checkpoint(CheckpointRecord(registry="local", uuid=UUID), settings=settings).download(tmp_path / "mine")
    manifest = store.resolve("local", UUID)
    assert manifest is not None
    store.layout.manifest(manifest.digest).unlink()
    blob(store, "model").unlink()
    assert repairing.repair(store, repairing.check(store).problems, settings).left == ()
    assert is_sound(store)


def test_lost_refs_of_what_was_added_here_are_made_again(store: Store, settings: Settings, tmp_path: Path) -> None:
    add(origin_of(tmp_path), uuid=UUID, settings=settings)
    add(origin_of(tmp_path, {"x": b"other"}, OTHER_UUID), uuid=OTHER_UUID, settings=settings)
    manifest = store.resolve("local", UUID)
    store.refs.untag("local", UUID)
    report = repairing.check(store)
    assert [problem.kind for problem in report.damage] == [Kind.MISSING_REF]
    assert repairing.repair(store, report.problems, settings).left == ()
    assert store.resolve("local", UUID) == manifest and is_sound(store)


def test_a_removed_checkpoint_is_not_brought_back(store: Store, settings: Settings, tmp_path: Path) -> None:
    from cas.removing import remove

    add(origin_of(tmp_path), uuid=UUID, settings=settings)
    remove(UUID, settings=settings)
    assert is_sound(store)


# --- the rest --------------------------------------------------------------------------------------------------


def torn(path: Path) -> None:
    data = path.read_bytes()
    first = data.index(b"\n")
    path.write_bytes(data[: first - 3] + b"XYZ" + data[first:])


def test_torn_lines_of_ours_are_written_anew_without_a_change_of_what_counts(
    store: Store, settings: Settings, tmp_path: Path
) -> None:
    add(origin_of(tmp_path), uuid=UUID, settings=settings)
    for number in range(3):
        store.put(b"%d" % number)
    facts, records = store.layout.facts, store.layout.records("local")
    torn(facts)
    with open(records, "ab") as file:
        file.write(b"half a line\n")
    done = repaired(store, settings)
    assert "written anew without them" in done[Kind.TORN_LINE]
    assert is_sound(store)
    assert store.records.get("local", "checkpoint", UUID) is not None
    kept = b"".join(path.read_bytes() for path in (store.home / "aside").glob("torn.*"))
    assert b"half a line\n" in kept and b"XYZ" in kept
    store.put(b"more")  # goes on in a file of the old name
    assert is_sound(Store(store.home))


def test_lines_appended_while_they_are_written_anew_are_not_lost(store: Store, settings: Settings) -> None:
    done = threading.Event()
    count = 0

    def write() -> None:
        nonlocal count
        while not done.is_set() and count < 500:
            store.facts.add_target(Path(f"/t{count}"), {"n": count})
            count += 1

    writer = threading.Thread(target=write)
    writer.start()
    for _ in range(10):
        store.facts.add([{"kind": "x", "key": "y"}])
        with open(store.layout.facts, "ab") as file:
            file.write(b"garbage\n")
        repaired(store, settings, deep=False)
    done.set()
    writer.join()
    assert [store.facts.target(Path(f"/t{number}")) is not None for number in range(count)] == [True] * count


def test_another_writers_torn_lines_are_named_and_left(store: Store, settings: Settings) -> None:
    path = store.home / "facts" / "elsewhere.7.jsonl"
    disk.make_folder(path.parent)
    path.write_bytes(b"garbage\n")
    repair = repairing.repair(store, repairing.check(store).problems, settings)
    assert [problem.kind for problem in repair.left] == [Kind.TORN_LINE]
    assert "another user's or another host's" in repair.results[0].text
    assert path.read_bytes() == b"garbage\n"


def test_strays_go_aside_and_abandoned_transfers_go(store: Store, settings: Settings) -> None:
    tagged(store, UUID, FILES)
    for name in ("blobs/stray", "blobs/ab/short", "manifests/ab/x.json", "blobs/ab/.tmp"):
        (store.home / name).parent.mkdir(parents=True, exist_ok=True)
        (store.home / name).write_bytes(b"stray " + name.encode())
    staging = store.staging("work")
    with pytest.raises(ZeroDivisionError), staging, staging.ingest(9, source="s") as ingest:
        ingest.write_at(0, b"123")
        raise ZeroDivisionError
    assert len(list(store.home.glob("ingest/*/*"))) == 1
    repaired(store, settings)
    assert list(store.home.glob("ingest/*/*")) == [] and is_sound(store)
    kept = sorted(path.read_bytes() for path in (store.home / "aside").glob("stray.*"))
    assert kept == sorted(
        b"stray " + name for name in (b"blobs/stray", b"blobs/ab/short", b"manifests/ab/x.json", b"blobs/ab/.tmp")
    )


def test_a_living_transfer_is_left_alone(store: Store, settings: Settings) -> None:
    with store.staging("work") as staging, staging.ingest(9, source="s") as ingest:
        ingest.write_at(0, b"123")
        repaired(store, settings)
        ingest.write_at(3, b"456789")
        ingest.commit(Digest.of(b"123456789"))


def test_a_plan_changes_nothing(store: Store, settings: Settings, tmp_path: Path) -> None:
    origin_of(tmp_path)
    pulled(store, settings, tmp_path)
    damage(blob(store, "model"))
    blob(store, "code/a.py").unlink()
    (store.home / "blobs" / "stray").write_bytes(b"s")
    torn(store.layout.facts)
    before = {path: path.lstat().st_mtime_ns for path in store.home.rglob("*") if "index" not in path.name}
    report = repairing.check(store, put_aside=False)
    plan = repairing.plan(store, report.problems, settings)
    assert {step.remedy for step in plan.steps} >= {Remedy.MOVE, Remedy.FETCH, Remedy.REWRITE}
    after = {path: path.lstat().st_mtime_ns for path in store.home.rglob("*") if "index" not in path.name}
    assert {path: time for path, time in after.items() if before.get(path) != time} == {}


def test_repair_of_a_sound_store_does_nothing(store: Store, settings: Settings) -> None:
    tagged(store, UUID, FILES)
    assert repaired(store, settings) == {}


# --- deep, slowly, and on where it stopped ---------------------------------------------------------------------


def many(store: Store, count: int = 30) -> None:
    tagged(store, UUID, {f"{number}": b"%d" % number * 100 for number in range(count)})


def stopped_after(store: Store, blobs: int) -> None:
    """Check deeply, and be interrupted after some blobs."""
    seen: set[int] = set()

    def advance(done: int, total: int) -> None:
        seen.add(done)
        if len(seen) > blobs:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check(store, deep=True, advance=advance)


def test_a_deep_check_goes_on_where_it_was_interrupted(store: Store) -> None:
    many(store)
    stopped_after(store, 10)
    report = check(Store(store.home), deep=True)
    assert report.read_before >= 9 and report.read + report.read_before == 30
    assert report.damage == ()
    again = check(store, deep=True)
    assert (again.read, again.read_before) == (30, 0)


def test_what_was_damaged_after_it_was_read_is_still_found(store: Store) -> None:
    many(store)
    stopped_after(store, 20)
    first = min(store.home.glob("blobs/??/*"))
    damage(first)
    report = check(store, deep=True)
    assert [problem.path for problem in report.damage if problem.kind is Kind.DAMAGED_BLOB] == [first]


def test_anew_begins_at_the_beginning(store: Store) -> None:
    many(store)
    stopped_after(store, 10)
    assert check(store, deep=True, anew=True).read == 30


def test_what_was_read_long_ago_or_in_another_boot_is_read_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    many(store)
    stopped_after(store, 10)
    monkeypatch.setattr(deep, "RESUME_WITHIN", 0)
    assert check(store, deep=True).read == 30
    monkeypatch.undo()
    cursor = deep.Cursor.anew(store)
    said = {"kind": "check", "key": f"deep {disk.writer_name()}", "after": "f" * 64, "begun": disk.now(), "boot": "x"}
    store.facts.add([{**said, "at": disk.now() + 1}])
    assert cursor.after == "" and check(store, deep=True).read == 30


def test_deep_check_is_no_faster_than_asked(store: Store) -> None:
    tagged(store, UUID, {f"{number}": os.urandom(1 << 16) for number in range(8)})
    began = disk.monotonic()
    check(store, deep=True, rate=1 << 20)
    assert disk.monotonic() - began >= 0.4
    began = disk.monotonic()
    pace = deep.Pace(None)
    pace(1 << 40)
    assert disk.monotonic() - began < 10


def test_what_was_read_and_is_right_is_believed_afterwards(store: Store) -> None:
    many(store, 5)
    for path in store.home.glob("facts/*"):
        path.unlink()
    fresh = Store(store.home)
    assert check(fresh).unproven == 5
    assert check(fresh, deep=True).read == 5
    assert check(fresh).unproven == 0
    size = store.layout.facts.stat().st_size
    check(fresh, deep=True)
    assert store.layout.facts.stat().st_size - size < 1000  # nothing is noted twice


Report = Callable[[], CheckReport]


def test_progress_reaches_the_total(store: Store) -> None:
    many(store)
    seen: list[tuple[int, int]] = []
    check(store, deep=True, advance=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] == sum(path.stat().st_size for path in store.home.glob("blobs/??/*"))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_a_plan_that_no_longer_fits_does_no_harm(store: Store, settings: Settings, tmp_path: Path) -> None:
    """What was planned is looked at again when it is done: somebody else may have repaired, or used, it."""
    origin_of(tmp_path)
    pulled(store, settings, tmp_path)
    blob(store, "model").unlink()
    report = repairing.check(store)
    sources = repairing._Sources(store, settings)
    plan = repairing._plan(store, list(report.problems), sources)
    store.put(FILES["model"])
    (result,) = execute_repair(store, plan, sources)
    assert (result.solved, result.text) == (True, "it is here again")
    assert lines.Torn().kept is None


# --- killed in the middle --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_repairs_killed_anywhere_leave_no_lie_and_go_on(memory: Path) -> None:
    origin_of(memory)
    local = origin_of(memory / "more", {"weights": b"w" * 9000, "b": b"b"}, OTHER_UUID)

    def setup(home: Path) -> None:
        settings = Settings(home=home, progress=Progress.OFF, concurrency=1)
        store = Store(home)
        pulled(store, settings, memory)
        add(local, uuid=OTHER_UUID, settings=settings)
        make_view(store, store.resolve("local", OTHER_UUID) or pytest.fail("it was added"))
        damage(blob(store, "model"))
        blob(store, "code/a.py").unlink()
        manifest = store.resolve("local", OTHER_UUID)
        assert manifest is not None
        damage(store.layout.manifest(manifest.digest))
        torn(store.layout.facts)
        (home / "blobs" / "stray").write_bytes(b"s")

    def act(home: Path) -> None:
        store = Store(home)
        problems = repairing.check(store, deep=True, anew=True).problems
        repairing.repair(store, problems, Settings(home=home, progress=Progress.OFF, concurrency=1))

    count = 0
    for kill, home in each_kill(memory / "homes", setup, act, at_most=60):
        store = Store(home)
        for path in home.glob("blobs/??/*"):  # a reader is never given what is wrong
            found = store.blobs.locate(Digest(path.parent.name + path.name))
            assert found is None or Digest.of_file(found).hex == path.parent.name + path.name, kill
        store.close()
        complete(home, act)
        store = Store(home)
        assert lies(home) == [] and repairing.check(store, deep=True, anew=True).damage == (), kill
        for name, uuid, files in ((REGISTRY, UUID, FILES), ("local", OTHER_UUID, {"weights": b"w" * 9000, "b": b"b"})):
            manifest = store.resolve(name, uuid)
            assert manifest is not None, kill
            there = {str(entry.path): store.blobs.read(entry.digest) for entry in manifest.files if entry.digest}
            assert there == files, kill
        store.close()
        count += 1
    assert count > 30
