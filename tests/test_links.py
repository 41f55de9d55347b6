"""Files in a user's folder: whole or not at all, and nothing of the user's is ever lost."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import stat
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from stores import damage

from cas.config import Link
from cas.errors import CasError, CheckpointNotFoundError, ContentError, ForeignContentError, NoSpaceError
from cas.index import disk
from cas.index.manifest import FileEntry, Manifest
from cas.index.paths import RelativePath
from cas.index.store import Store
from cas.load.links import LinkReport, Materializer, is_complete

pytestmark = pytest.mark.slow

BIG = bytes(range(256)) * 400
FILES = {
    "model.bin": BIG,
    "code/model_def.py": b"x = 1\n",
    "code/__init__.py": b"",
    "a/b/c/deep.bin": BIG + b"deep",
    "with space and ünïcode.txt": b"text",
    "metadata.json": b'{"steps_completed": 7}',
}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "home")
    yield made
    made.close()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints" / "46985143-af68-4d48-ab91-a6447052ca49"


def manifest_of(
    store: Store, files: dict[str, bytes], *, executable: tuple[str, ...] = (), folders: tuple[str, ...] = ()
) -> Manifest:
    entries = [
        FileEntry(RelativePath(name), len(data), store.put(data), executable=name in executable)
        for name, data in files.items()
    ]
    return Manifest.of(entries, map(RelativePath, folders))


def put(store: Store, target: Path, manifest: Manifest, *, extra: bytes | None = None, **options: Any) -> LinkReport:
    with Materializer(store, target, **options) as materializer:
        for entry in manifest.files:
            materializer.add(entry)
        return materializer.finish(manifest, extra=extra)


def content(folder: Path) -> dict[str, bytes | None]:
    found: dict[str, bytes | None] = {}
    for root, folders, names in os.walk(folder):
        if not folders and not names:
            found[os.path.relpath(root, folder)] = None
        for name in names:
            path = Path(root, name)
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found


def leftovers(target: Path) -> list[Path]:
    return [path for folder in (target.parent, target) for path in folder.glob(".*.part")]


# --- a target that is not there --------------------------------------------------------------------------------


def test_target_is_the_checkpoint(store: Store, target: Path) -> None:
    manifest = manifest_of(store, FILES, folders=("a/empty_dir", "other"))
    report = put(store, target, manifest)
    assert content(target) == {**FILES, "a/empty_dir": None, "other": None}
    assert report.reflinked + report.copied == len(FILES)
    assert leftovers(target) == []


def test_files_get_the_permissions_that_a_user_expects(store: Store, target: Path) -> None:
    old = os.umask(0o027)
    try:
        put(store, target, manifest_of(store, {"run.sh": BIG, "d/plain": b"x"}, executable=("run.sh",)))
    finally:
        os.umask(old)
    modes = {name: stat.S_IMODE((target / name).stat().st_mode) for name in ("run.sh", "d/plain", "d", ".")}
    assert modes == {"run.sh": 0o750, "d/plain": 0o640, "d": 0o750, ".": 0o750}


def test_copies_are_the_users_own(store: Store, target: Path) -> None:
    manifest = manifest_of(store, FILES)
    put(store, target, manifest, link=Link.COPY)
    (target / "model.bin").write_bytes(b"changed")
    assert store.absent(manifest) == []
    assert store.blobs.read(manifest.by_path["model.bin"].digest) == BIG  # type: ignore[arg-type]


def test_metadata_of_the_record_is_written_where_the_checkpoint_has_none(store: Store, target: Path) -> None:
    files = {"model.bin": BIG}
    put(store, target, manifest_of(store, files), extra=b'{"a": 1}')
    assert content(target) == {**files, "metadata.json": b'{"a": 1}'}


def test_metadata_of_the_checkpoint_counts_more_than_the_records(store: Store, target: Path) -> None:
    put(store, target, manifest_of(store, FILES), extra=b'{"a": 1}')
    assert (target / "metadata.json").read_bytes() == FILES["metadata.json"]


def test_files_may_be_added_by_many_threads_while_they_arrive(store: Store, target: Path) -> None:
    files = {f"d{number % 7}/f{number}": b"%d" % number * 1000 for number in range(200)}
    manifest = manifest_of(store, files)
    with Materializer(store, target) as materializer:
        parts = [manifest.files[number::8] for number in range(8)]
        threads = [threading.Thread(target=lambda part=part: list(map(materializer.add, part))) for part in parts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not target.exists()
        report = materializer.finish(manifest)
    assert content(target) == files
    assert report.reflinked + report.copied == 200
    assert report.bytes in (0, sum(map(len, files.values())))


def test_files_that_were_not_added_are_added_at_the_end(store: Store, target: Path) -> None:
    manifest = manifest_of(store, FILES)
    with Materializer(store, target) as materializer:
        materializer.add(manifest.files[0])
        materializer.finish(manifest)
    assert content(target) == FILES


def test_file_whose_origin_changed_meanwhile_is_replaced(store: Store, target: Path) -> None:
    old, new = manifest_of(store, {"f": b"old", "gone": b"x"}), manifest_of(store, {"f": b"new!"})
    with Materializer(store, target) as materializer:
        for entry in (*old.files, *new.files):
            materializer.add(entry)
        materializer.finish(new)
    assert content(target) == {"f": b"new!"}


def test_interrupted_download_leaves_no_target(store: Store, target: Path) -> None:
    manifest = manifest_of(store, FILES)
    with pytest.raises(KeyboardInterrupt), Materializer(store, target) as materializer:
        materializer.add(manifest.files[0])
        raise KeyboardInterrupt
    assert not target.exists()
    assert leftovers(target) == []


def test_absent_blob_is_said(store: Store, target: Path) -> None:
    manifest = manifest_of(store, FILES)
    digest = manifest.by_path["model.bin"].digest
    assert digest is not None
    store.layout.blob(digest).unlink()
    with pytest.raises(CheckpointNotFoundError, match=r"model\.bin"):
        put(store, target, manifest)
    assert not target.exists()


def test_damaged_blob_is_not_copied(store: Store, target: Path) -> None:
    manifest = manifest_of(store, FILES)
    digest = manifest.by_path["model.bin"].digest
    assert digest is not None
    damage(store.layout.blob(digest))
    with pytest.raises(CheckpointNotFoundError):
        put(store, target, manifest)
    assert not target.exists()


def test_long_and_odd_names_of_the_target_work(store: Store, tmp_path: Path) -> None:
    manifest = manifest_of(store, FILES)
    for name in ("ü" * 127, "x" * 255, ".hidden", "-rf", "a\nb", "*[?]"):
        put(store, tmp_path / name, manifest)
        assert content(tmp_path / name) == FILES
        assert is_complete(store, tmp_path / name, manifest)


def test_name_that_is_too_long_below_the_target_is_one_clear_error(store: Store, target: Path) -> None:
    with pytest.raises(CasError, match="too long") as caught:
        put(store, target, manifest_of(store, {"/".join(["x" * 249] * 16): BIG}))
    assert "\n" not in str(caught.value)
    assert not target.exists()
    assert leftovers(target) == []


def test_folder_that_cannot_be_written_is_said(store: Store) -> None:
    with pytest.raises(CasError, match="cannot write into /proc/checkpoints/here") as caught:
        put(store, Path("/proc/checkpoints/here"), manifest_of(store, FILES))
    assert "\n" not in str(caught.value)
    with pytest.raises(CasError, match=r"cannot write into /proc/here: [^/]*$"):  # and names none of our own files
        put(store, Path("/proc/here"), manifest_of(store, FILES))


# --- how -------------------------------------------------------------------------------------------------------


def test_hard_links_are_made_when_asked_for(store: Store, target: Path) -> None:
    manifest = manifest_of(store, {"a": BIG, "run": b"#!/bin/sh\n"}, executable=("run",))
    report = put(store, target, manifest, link=Link.HARDLINK)
    assert os.path.samefile(target / "a", store.layout.blob(manifest.by_path["a"].digest))  # type: ignore[arg-type]
    assert os.access(target / "run", os.X_OK)  # a blob is not executable, so this one is a copy
    assert (report.hardlinked, report.hardlinked + report.copied + report.reflinked) == (1, 2)
    assert is_complete(store, target, manifest)


def test_only_copies_are_never_hard_linked(store: Store, target: Path) -> None:
    manifest = manifest_of(store, {"mine": BIG, "fetched": BIG + b"x"})
    mine = manifest.by_path["mine"].digest
    report = put(store, target, manifest, link=Link.HARDLINK, is_only_copy=lambda digest: digest == mine)
    assert (report.hardlinked, report.only_copies) == (1, 1)
    assert not os.path.samefile(target / "mine", store.layout.blob(mine))  # type: ignore[arg-type]


def test_symlinks_are_absolute_and_counted(store: Store, target: Path) -> None:
    manifest = manifest_of(store, FILES)
    report = put(store, target, manifest, link=Link.SYMLINK)
    assert report.symlinked == len(FILES)
    assert content(target) == FILES
    digest = manifest.by_path["model.bin"].digest
    assert os.readlink(target / "model.bin") == str(store.layout.blob(digest))  # type: ignore[arg-type]
    assert is_complete(store, target, manifest)
    store.layout.blob(digest).unlink()  # type: ignore[arg-type]
    assert not is_complete(store, target, manifest)


def can_reflink(folder: Path) -> bool:
    (folder / "reflink-a").write_bytes(b"x")
    return disk.reflink(folder / "reflink-a", folder / "reflink-b")


def test_impossible_reflink_is_one_clear_error(store: Store, target: Path, tmp_path: Path) -> None:
    if can_reflink(tmp_path):
        pytest.skip("this file system has reflinks")
    with pytest.raises(CasError, match="link=copy") as caught:
        put(store, target, manifest_of(store, FILES), link=Link.REFLINK)
    assert "\n" not in str(caught.value)
    assert not target.exists()


def test_impossible_hard_link_is_one_clear_error(store: Store) -> None:
    shared = Path("/dev/shm")
    if not shared.is_dir() or shared.stat().st_dev == store.home.stat().st_dev:
        pytest.skip("no second file system at /dev/shm")
    with tempfile.TemporaryDirectory(dir=shared) as folder:
        with pytest.raises(CasError, match="link=copy"):
            put(store, Path(folder, "t"), manifest_of(store, FILES), link=Link.HARDLINK)
        assert os.listdir(folder) == []
        put(store, Path(folder, "t"), manifest_of(store, FILES))
        assert content(Path(folder, "t")) == FILES


@pytest.mark.root
@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_files_are_reflinked_where_the_file_system_can(tmp_path: Path, kind: str) -> None:
    image, folder = tmp_path / "image", tmp_path / "mount"
    folder.mkdir()
    with open(image, "wb") as file:
        file.truncate(512 << 20)
    try:
        made = subprocess.run([f"mkfs.{kind}", "-q", str(image)], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip(f"mkfs.{kind} is not installed")
    mounted = made.returncode == 0 and subprocess.run(
        ["mount", "-o", "loop", str(image), str(folder)], capture_output=True, text=True
    )
    if not mounted or mounted.returncode != 0:
        pytest.skip(f"cannot mount {kind}: {made.stderr} {mounted and mounted.stderr}")
    try:
        store = Store(folder / "home")
        manifest = manifest_of(store, FILES, executable=("model.bin",))
        for link in (Link.AUTO, Link.REFLINK):
            report = put(store, folder / link, manifest, link=link)
            empty = sum(1 for data in FILES.values() if not data)
            assert (report.reflinked, report.copied) == (len(FILES) - empty, empty)
            assert content(folder / link) == FILES
            assert stat.S_IMODE((folder / link / "model.bin").stat().st_mode) & 0o700 == 0o700
            assert stat.S_IMODE((folder / link / "a/b/c/deep.bin").stat().st_mode) & 0o700 == 0o600
        store.close()
    finally:
        subprocess.run(["umount", folder], check=True)


# --- a second call ---------------------------------------------------------------------------------------------


def test_complete_target_is_found_without_hashing(store: Store, target: Path) -> None:
    manifest = manifest_of(store, FILES, folders=("empty",))
    assert not is_complete(store, target, manifest)
    put(store, target, manifest)
    before = disk.Signature.of((target / "model.bin").stat())
    fresh = Store(store.home)
    assert is_complete(fresh, target, manifest)
    assert is_complete(fresh, target.parent / "." / target.name, manifest)
    report = put(fresh, target, manifest)
    assert (report.kept, report.mode) == (len(FILES), None)
    assert disk.Signature.of((target / "model.bin").stat()) == before
    fresh.close()


@pytest.mark.parametrize("link", [Link.COPY, Link.HARDLINK, Link.SYMLINK])
def test_anything_that_changed_makes_a_target_incomplete(store: Store, tmp_path: Path, link: Link) -> None:
    manifest = manifest_of(store, FILES, folders=("empty",))

    def fresh(number: int) -> Path:
        put(store, tmp_path / f"t{number}", manifest, link=link)
        assert is_complete(store, tmp_path / f"t{number}", manifest)
        return tmp_path / f"t{number}"

    (fresh(1) / "model.bin").unlink()
    changed = fresh(2) / "model.bin"
    changed.unlink()
    changed.write_bytes(BIG)
    (fresh(3) / "empty").rmdir()
    (fresh(4) / "metadata.json").unlink()
    assert [is_complete(store, tmp_path / f"t{number}", manifest) for number in (1, 2, 3, 4)] == [False] * 4
    for number in (1, 2, 3, 4):
        put(store, tmp_path / f"t{number}", manifest, link=link)
        assert content(tmp_path / f"t{number}") == {**FILES, "empty": None}
        assert is_complete(store, tmp_path / f"t{number}", manifest)


def test_change_that_keeps_size_and_time_is_seen(store: Store, target: Path) -> None:
    manifest = manifest_of(store, FILES)
    put(store, target, manifest, link=Link.COPY)
    path = target / "model.bin"
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    path.write_bytes(b"X" + BIG[1:])
    os.utime(path, ns=times)
    assert not is_complete(store, target, manifest)
    with pytest.raises(ForeignContentError, match=r"model\.bin"):
        put(store, target, manifest)
    assert path.read_bytes() == b"X" + BIG[1:]


def test_other_hard_links_to_a_blob_do_not_make_a_target_incomplete(store: Store, target: Path) -> None:
    manifest = manifest_of(store, FILES)
    put(store, target, manifest, link=Link.HARDLINK)
    put(store, target.with_name("other"), manifest, link=Link.HARDLINK)
    assert is_complete(store, target, manifest)
    hashed = store.blobs.hashed
    assert put(store, target, manifest, link=Link.HARDLINK).kept == len(FILES)
    assert store.blobs.hashed == hashed


def test_another_checkpoint_is_not_found_in_the_target(store: Store, target: Path) -> None:
    put(store, target, manifest_of(store, FILES))
    other = manifest_of(store, {**FILES, "model.bin": BIG + b"other"})
    assert not is_complete(store, target, other)
    with pytest.raises(ForeignContentError, match=r"model\.bin"):
        put(store, target, other)
    assert content(target) == FILES


def test_metadata_that_the_registry_changed_is_written_anew(store: Store, target: Path) -> None:
    manifest = manifest_of(store, {"model.bin": BIG})
    put(store, target, manifest, extra=b'{"a": 1}')
    assert is_complete(store, target, manifest, b'{"a": 1}')
    assert not is_complete(store, target, manifest, b'{"a": 2}')
    put(store, target, manifest, extra=b'{"a": 2}')
    assert (target / "metadata.json").read_bytes() == b'{"a": 2}'


def test_metadata_that_the_user_wrote_stays(store: Store, target: Path) -> None:
    manifest = manifest_of(store, {"model.bin": BIG})
    target.mkdir(parents=True)
    (target / "metadata.json").write_bytes(b'{"mine": true}')
    put(store, target, manifest, extra=b'{"a": 1}')
    assert content(target) == {"model.bin": BIG, "metadata.json": b'{"mine": true}'}
    (target / "metadata.json").write_bytes(b"notes")
    with pytest.raises(ForeignContentError, match=r"metadata\.json"):
        put(store, target, manifest, extra=b'{"a": 1}')
    assert (target / "metadata.json").read_bytes() == b"notes"


# --- a target that is there --------------------------------------------------------------------------------------


def test_half_finished_download_of_another_client_is_completed(store: Store, target: Path) -> None:
    manifest = manifest_of(store, FILES)
    (target / "code").mkdir(parents=True)
    (target / "metadata.json").write_bytes(FILES["metadata.json"])  # what the old client takes for completeness
    (target / "model.bin").write_bytes(BIG[:1000])
    (target / "code/model_def.py").write_bytes(b"")
    kept = disk.Signature.of((target / "metadata.json").stat())
    report = put(store, target, manifest)
    assert content(target) == FILES
    assert report.kept == 1
    assert disk.Signature.of((target / "metadata.json").stat()) == kept
    assert is_complete(store, target, manifest)


def test_files_of_the_users_are_left_alone_and_counted(
    store: Store, target: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (target / "code").mkdir(parents=True)
    (target / "notes.txt").write_text("mine")
    (target / "code" / "scratch.py").write_text("mine")
    report = put(store, target, manifest_of(store, FILES))
    assert content(target) == {**FILES, "notes.txt": b"mine", "code/scratch.py": b"mine"}
    assert report.extra == 2
    assert "2 files" in caplog.text


@pytest.mark.parametrize("data", [b"other", b"Y" + BIG[1:], BIG + b"more", b"Y" * 10])
def test_foreign_content_is_refused_and_nothing_is_touched(store: Store, target: Path, data: bytes) -> None:
    target.mkdir(parents=True)
    (target / "model.bin").write_bytes(data)
    with pytest.raises(ForeignContentError, match="choose another folder") as caught:
        put(store, target, manifest_of(store, FILES))
    assert caught.value.path == target / "model.bin"
    assert content(target) == {"model.bin": data}
    assert leftovers(target) == []


def test_nothing_is_written_through_a_symlink(store: Store, target: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "model_def.py").write_bytes(b"")
    for name, place in (("code", outside), ("model.bin", outside / "made.bin"), ("metadata.json", outside)):
        target.mkdir(parents=True)
        (target / name).symlink_to(place)
        with pytest.raises(ForeignContentError):
            put(store, target, manifest_of(store, FILES))
        (target / name).unlink()
        target.rmdir()
    assert content(outside) == {"model_def.py": b""}


def test_nothing_is_written_through_a_symlink_that_appears_at_the_last_moment(
    store: Store, target: Path, tmp_path: Path
) -> None:
    """Whoever may write in the target swaps a folder for a link after it was looked at: at each step once."""
    manifest = manifest_of(store, {"sub/model.bin": BIG, "sub/code/x.py": b"x"}, folders=("sub/empty",))
    outside = tmp_path / "outside"
    number, done = 0, False
    while not done:
        number, done = number + 1, True
        target = tmp_path / "targets" / f"t{number}"
        target.mkdir(parents=True)
        outside.mkdir()
        seen = 0

        def swap(moment: str, step: str, target: Path = target, number: int = number) -> None:
            nonlocal seen, done
            seen += 1
            if seen == number:
                done = False
                if (target / "sub").exists():
                    (target / "sub").rename(target / "hidden")
                (target / "sub").symlink_to(outside)

        disk.observe(swap)
        try:
            with contextlib.suppress(CasError):
                put(store, target, manifest, extra=b"{}")
        finally:
            disk.observe(None)
        assert list(outside.iterdir()) == []
        outside.rmdir()
    assert number > 10


def test_what_is_no_plain_file_or_folder_is_refused(store: Store, target: Path) -> None:
    manifest = manifest_of(store, FILES, folders=("empty/dir",))
    target.mkdir(parents=True)
    os.mkfifo(target / "model.bin")
    with pytest.raises(ForeignContentError):
        put(store, target, manifest)
    (target / "model.bin").unlink()
    (target / "model.bin").mkdir()
    with pytest.raises(ForeignContentError):
        put(store, target, manifest)
    (target / "model.bin").rmdir()
    (target / "empty").write_bytes(b"file")
    with pytest.raises(ForeignContentError, match="empty"):
        put(store, target, manifest)
    assert content(target) == {"empty": b"file"}


def test_target_that_is_a_file_is_refused(store: Store, target: Path) -> None:
    target.parent.mkdir(parents=True)
    target.write_bytes(b"file")
    with pytest.raises(ForeignContentError, match="not a folder"):
        Materializer(store, target)
    target.unlink()
    target.symlink_to("nowhere")
    with pytest.raises(ForeignContentError, match="not a folder"):
        Materializer(store, target)


def test_target_that_is_a_symlink_to_a_folder_is_that_folder(store: Store, target: Path, tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir()
    target.parent.mkdir(parents=True)
    target.symlink_to(real)
    manifest = manifest_of(store, FILES)
    put(store, target, manifest)
    assert target.is_symlink()
    assert content(real) == FILES
    assert is_complete(store, target, manifest)
    assert is_complete(store, real, manifest)


def test_current_folder_can_be_the_target(store: Store, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target.mkdir(parents=True)
    monkeypatch.chdir(target)
    put(store, Path("."), manifest_of(store, FILES))
    assert content(target) == FILES


def test_metadata_is_the_last_file_that_appears(store: Store, target: Path) -> None:
    manifest = manifest_of(store, {**FILES, "zz": b"z"})
    target.mkdir(parents=True)
    seen: list[set[str]] = []

    def observer(moment: str, step: str) -> None:
        if (moment, step) == ("after", "rename"):
            seen.append(set(content(target)))

    disk.observe(observer)
    try:
        put(store, target, manifest)
    finally:
        disk.observe(None)
    assert all("metadata.json" not in names for names in seen if "zz" not in names or "model.bin" not in names)


# --- together, and killed ----------------------------------------------------------------------------------------


def _download(home: Path, target: Path, digest: Any, barrier: Any, results: Any) -> None:
    store = Store(home)
    manifest = store.refs.get(digest)
    assert manifest is not None
    barrier.wait()
    put(store, target, manifest)
    results.put(content(target) == FILES)
    store.close()


def test_processes_that_download_into_one_target_at_once_all_find_it_whole(store: Store, target: Path) -> None:
    from stores import tagged

    manifest = tagged(store, "00000000-0000-4000-8000-000000000001", FILES)
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(4), context.Queue()
    arguments = (store.home, target, manifest.digest, barrier, results)
    workers = [context.Process(target=_download, args=arguments) for _ in range(4)]
    for worker in workers:
        worker.start()
    assert [results.get(timeout=60) for _ in workers] == [True] * 4
    for worker in workers:
        worker.join()
    assert leftovers(target) == []
    assert is_complete(store, target, manifest)


def _killed_at(store: Store, target: Path, manifest: Manifest, number: int) -> bool:
    child = os.fork()
    if child == 0:
        seen = 0

        def observer(moment: str, step: str) -> None:
            nonlocal seen
            seen += 1
            if seen == number:
                os._exit(9)

        disk.observe(observer)
        try:
            put(Store(store.home), target, manifest, extra=b"{}")
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == 9


@pytest.mark.parametrize("exists", [False, True], ids=["new", "existing"])
def test_killed_at_every_step_a_target_is_whole_or_absent_and_completed_next(
    store: Store, tmp_path: Path, exists: bool
) -> None:
    files = {"model.bin": BIG, "code/x.py": b"x"}
    whole = {**files, "metadata.json": b"{}"}
    manifest = manifest_of(store, files, folders=("empty",))
    number = 0
    while True:
        number += 1
        target = tmp_path / "targets" / f"t{number}"
        if exists:
            target.mkdir(parents=True)
            (target / "model.bin").write_bytes(BIG[:100])
        killed = _killed_at(store, target, manifest, number)
        if exists:
            found = {name: data for name, data in content(target).items() if not name.startswith(".t")}
            assert "metadata.json" not in found or found == {**whole, "empty": None}
            assert all(data is None or whole[name].startswith(data) for name, data in found.items())
        else:
            assert not target.exists() or content(target) == {**whole, "empty": None}
        put(Store(store.home), target, manifest, extra=b"{}")
        assert {name: data for name, data in content(target).items() if ".part" not in name} == {**whole, "empty": None}
        if not killed:
            break
    assert number > 20
    left = [path for path in (tmp_path / "targets").rglob("*") if path.is_file() and ".part" in str(path)]
    assert {path.name for path in left} <= {"claim.new"}


def test_only_what_a_dead_download_left_is_swept(store: Store, target: Path) -> None:
    dead = target.parent / f".{target.name}.0123456789abcdef.part"
    users = [target.parent / f".{target.name}{end}" for end in (".my notes.part", ".part", ".x.0123456789abcdef.part")]
    for folder in (dead, *users):
        folder.mkdir(parents=True)
        (folder / "thesis.txt").write_text("years of work")
        os.utime(folder, (1, 1))
    put(store, target, manifest_of(store, FILES))
    assert not dead.exists()
    assert all((folder / "thesis.txt").exists() for folder in users)


@pytest.mark.parametrize("step", [1, 2, 4, 5])
def test_nothing_is_left_beside_the_target_where_the_disk_is_full(store: Store, target: Path, step: int) -> None:
    manifest = manifest_of(store, FILES)
    target.parent.mkdir(parents=True)
    seen = 0

    def full(moment: str, name: str) -> None:
        nonlocal seen
        seen += moment == "before"
        if seen == step and name in ("make_folder", "create"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    disk.observe(full)
    try:
        with pytest.raises(NoSpaceError):
            put(store, target, manifest)
    finally:
        disk.observe(None)
    assert list(target.parent.iterdir()) == []


def test_report_says_what_was_done(store: Store, target: Path) -> None:
    manifest = manifest_of(store, FILES)
    report = put(store, target, manifest, link=Link.COPY)
    assert str(report) == "6 copied"
    assert report.mode is Link.COPY
    assert report.bytes == manifest.size
    assert str(LinkReport.unchanged(manifest)) == "6 kept"


def test_content_error_is_what_a_cut_blob_gives(store: Store, target: Path) -> None:
    """A blob that shrinks between the look at it and the copy."""
    manifest = manifest_of(store, {"model.bin": BIG})
    (entry,) = manifest.files
    assert entry.digest is not None
    longer = FileEntry(entry.path, entry.size + 1, entry.digest)
    with pytest.raises(ContentError, match="changed while it was copied"), Materializer(store, target) as materializer:
        materializer.add(longer)
