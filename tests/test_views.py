"""Views: what they look like, when they are used again, and what they are made of where links are refused."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from stores import cannot_reboot, damage, run_python

from cas.errors import UnsafeNameError
from cas.index import disk
from cas.index.digest import Digest
from cas.index.manifest import FileEntry, Manifest
from cas.index.paths import RelativePath
from cas.index.store import Store
from cas.load.names import probe
from cas.load.views import SMALL, AbsentBlobsError, LinkMode, find_view, make_view

pytestmark = pytest.mark.slow

LARGE = bytes(range(256)) * (SMALL // 256 + 1)
FILES = {
    "model.bin": LARGE,
    "code/model_def.py": b"x = 1\n",
    "code/__init__.py": b"",
    "a/b/c/deep.bin": LARGE + b"deep",
    "with space and ünïcode.txt": b"text",
    "-rf": b"dash",
    "new\u2028line.bin": LARGE + b"line",
}
NO_REBOOT = cannot_reboot()


def views(store: Store) -> list[Digest]:
    """The manifests that have a view."""
    return [
        Digest(path.name) for path in sorted((store.home / "views").iterdir()) if path.is_dir() and len(path.name) == 64
    ]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "home")
    yield made
    made.close()


def manifest_of(
    store: Store, files: dict[str, bytes], *, executable: tuple[str, ...] = (), folders: tuple[str, ...] = ()
) -> Manifest:
    entries = [
        FileEntry(RelativePath(name), len(data), store.put(data), executable=name in executable)
        for name, data in files.items()
    ]
    return Manifest.of(entries, map(RelativePath, folders))


def content(folder: Path) -> dict[str, bytes | None]:
    """Every file below a folder with its bytes, and every empty folder."""
    found: dict[str, bytes | None] = {}
    for root, folders, names in os.walk(folder):
        if not folders and not names:
            found[os.path.relpath(root, folder)] = None
        for name in names:
            path = Path(root, name)
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found


# --- what they look like ---------------------------------------------------------------------------------------


def test_view_looks_like_the_checkpoint(store: Store) -> None:
    report = make_view(store, manifest_of(store, FILES, folders=("a/empty_dir", "other")))
    assert content(report.path) == {**FILES, "a/empty_dir": None, "other": None}
    assert (report.mode, report.linked, report.copied, report.reused) == (LinkMode.HARDLINK, 3, 4, False)


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_view_is_read_only_and_keeps_the_executable_bit(store: Store, umask: int) -> None:
    files = {"big.sh": LARGE, "small.sh": b"#!/bin/sh\n", "plain": LARGE + b"x", "d/plain": b"x"}
    old = os.umask(umask)
    try:
        path = make_view(store, manifest_of(store, files, executable=("big.sh", "small.sh"))).path
    finally:
        os.umask(old)
    modes = {name: stat.S_IMODE((path / name).stat().st_mode) for name in (*files, "d", ".")}
    assert modes == {"big.sh": 0o555, "small.sh": 0o555, "plain": 0o444, "d/plain": 0o444, "d": 0o555, ".": 0o555}


def test_large_files_are_the_blobs_themselves_and_small_ones_are_not(store: Store) -> None:
    manifest = manifest_of(store, {"large": LARGE, "small": b"x" * SMALL, "run": LARGE + b"r"}, executable=("run",))
    path = make_view(store, manifest).path
    same = {
        entry.path: os.path.samefile(path / entry.path, store.layout.blob(entry.digest))
        for entry in manifest.files
        if entry.digest
    }
    assert same == {"large": True, "small": False, "run": False}


def test_view_of_no_files_is_an_empty_folder(store: Store) -> None:
    assert content(make_view(store, Manifest.of([])).path) == {".": None}


def test_name_that_is_too_long_below_the_home_is_one_clear_error(store: Store) -> None:
    name = "/".join(["x" * 249] * 16)
    with pytest.raises(UnsafeNameError, match="shorter CAS_HOME") as caught:
        make_view(store, manifest_of(store, {name: LARGE}))
    assert "\n" not in str(caught.value)


# --- using them again ------------------------------------------------------------------------------------------


def test_view_is_used_again_by_stat_alone(store: Store, tmp_path: Path) -> None:
    manifest = manifest_of(store, FILES)
    made = make_view(store, manifest)
    for index in store.home.glob("index-*"):
        index.unlink()
    shutil.rmtree(store.home / "facts")
    fresh = Store(store.home)
    again = find_view(fresh, manifest.digest)
    assert again is not None
    assert (again.path, again.linked, again.copied, again.reused) == (made.path, made.linked, made.copied, True)
    assert fresh.blobs.hashed == 0
    assert not list(store.home.glob("index-*"))  # SQLite was not touched
    fresh.close()


def test_view_is_made_again_when_a_copy_in_it_was_changed(store: Store) -> None:
    manifest = manifest_of(store, FILES)
    path = make_view(store, manifest).path
    damage(path / "code/model_def.py", b"evil\n")
    report = make_view(store, manifest)
    assert not report.reused
    assert content(report.path) == FILES


def test_view_is_made_again_when_something_was_added_to_it(store: Store) -> None:
    manifest = manifest_of(store, FILES)
    path = make_view(store, manifest).path
    (path / "code").chmod(0o755)
    (path / "code" / "sitecustomize.py").write_text("evil")
    report = make_view(store, manifest)
    assert not report.reused
    assert content(report.path) == FILES


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\0" * 300, b'{"format": 1}'], ids=repr)
def test_torn_stamp_counts_as_none(store: Store, text: bytes) -> None:
    manifest = manifest_of(store, FILES)
    path = make_view(store, manifest).path
    (path.parent / "stamp.json").write_bytes(text)
    assert find_view(store, manifest.digest) is None
    assert content(make_view(store, manifest).path) == FILES


def test_damaged_blob_is_not_served_through_a_view(store: Store) -> None:
    manifest = manifest_of(store, FILES)
    make_view(store, manifest)
    bad = manifest.by_path["model.bin"].digest
    assert bad is not None
    damage(store.layout.blob(bad))
    with pytest.raises(AbsentBlobsError) as caught:
        make_view(store, manifest)
    assert caught.value.digests == (bad,)
    assert "model.bin" in str(caught.value)
    assert store.put(LARGE) == bad
    assert content(make_view(store, manifest).path) == FILES


def test_view_follows_a_blob_that_was_repaired_unseen(store: Store) -> None:
    """Damage that no stat shows was found by hashing: the blob is a new inode, the view still links the bad one."""
    manifest = manifest_of(store, {"model.bin": LARGE})
    path = make_view(store, manifest).path
    (entry,) = manifest.files
    assert entry.digest is not None
    blob = store.layout.blob(entry.digest)
    repaired = blob.with_name("repaired")
    repaired.write_bytes(LARGE)
    before = blob.stat()
    damage(blob)
    os.utime(path / "model.bin", ns=(before.st_mtime_ns, before.st_mtime_ns))
    repaired.chmod(0o444)
    repaired.rename(blob)
    report = make_view(Store(store.home), manifest)
    assert not report.reused
    assert content(report.path) == {"model.bin": LARGE}


def test_absent_blobs_are_all_named(store: Store) -> None:
    manifest = manifest_of(store, FILES)
    for entry in manifest.files[:3]:
        assert entry.digest is not None
        store.layout.blob(entry.digest).unlink()
    with pytest.raises(AbsentBlobsError, match="and 2 more") as caught:
        make_view(store, manifest)
    assert set(caught.value.digests) == {entry.digest for entry in manifest.files[:3]}
    assert not (store.home / "views" / manifest.digest.hex).exists()


def test_removed_view_leaves_nothing_and_no_blob_is_lost(store: Store) -> None:
    manifest = manifest_of(store, FILES)
    make_view(store, manifest)
    assert list(views(store)) == [manifest.digest]
    with open(make_view(store, manifest).path / "model.bin", "rb") as used:
        store.drop_view(manifest.digest)
        store.drop_view(manifest.digest)
        assert used.read() == LARGE
    assert list(views(store)) == []
    assert store.absent(manifest) == []
    assert list((store.home / "aside").iterdir()) == []


BOOT = """
import sys
from pathlib import Path
from cas.index.digest import Digest
from cas.index.store import Store
from cas.load.views import find_view, make_view
store = Store(Path(sys.argv[1]))
digest = Digest(sys.argv[2])
found = find_view(store, digest)
report = make_view(store, store.refs.get(digest))
print(found is not None, report.reused, store.blobs.hashed)
"""


@pytest.mark.root
@pytest.mark.skipif(NO_REBOOT is not None, reason=NO_REBOOT or "")
def test_view_of_an_earlier_boot_is_looked_at_once(store: Store, tmp_path: Path) -> None:
    from stores import tagged

    manifest = tagged(store, "00000000-0000-4000-8000-000000000001", FILES)
    make_view(store, manifest)
    boot = tmp_path / "boot"
    boot.write_text("11111111-1111-4111-8111-111111111111\n")
    arguments = (store.home, manifest.digest.hex)
    count = len({entry.digest for entry in manifest.files if entry.size > SMALL})
    # Nothing was sealed: in the next boot every blob that is linked is hashed, as are the copies; the view is right,
    # and its stamp is renewed.
    assert run_python(BOOT, *arguments, boot=str(boot)).split() == ["False", "True", str(count)]
    assert run_python(BOOT, *arguments, boot=str(boot)).split() == ["True", "True", "0"]


@pytest.mark.root
@pytest.mark.skipif(NO_REBOOT is not None, reason=NO_REBOOT or "")
def test_view_of_sealed_blobs_is_used_in_every_boot(store: Store, tmp_path: Path) -> None:
    from stores import tagged

    manifest = tagged(store, "00000000-0000-4000-8000-000000000001", FILES, durable=True)
    path = make_view(store, manifest).path
    boot = tmp_path / "boot"
    boot.write_text("11111111-1111-4111-8111-111111111111\n")
    arguments = (store.home, manifest.digest.hex)
    assert run_python(BOOT, *arguments, boot=str(boot)).split() == ["True", "True", "0"]
    # A power cut leaves zeros in what was never synced, with the right size and time: the copies are read.
    torn = path / "code/model_def.py"
    times = (torn.stat().st_atime_ns, torn.stat().st_mtime_ns)
    torn.chmod(0o644)
    with open(torn, "r+b") as file:
        file.write(bytes(torn.stat().st_size))
    torn.chmod(0o444)
    os.utime(torn, ns=times)
    boot.write_text("22222222-2222-4222-8222-222222222222\n")
    assert run_python(BOOT, *arguments, boot=str(boot)).split()[:2] == ["False", "False"]
    assert content(path) == FILES


# --- where links are refused -----------------------------------------------------------------------------------


def other_disk() -> Path | None:
    shared = Path("/dev/shm")
    return shared if shared.is_dir() and shared.stat().st_dev != Path(tempfile.gettempdir()).stat().st_dev else None


@pytest.mark.skipif(other_disk() is None, reason="no second file system at /dev/shm")
def test_blobs_on_another_disk_are_symlinked(tmp_path: Path) -> None:
    shared = other_disk()
    assert shared is not None
    store = Store(tmp_path / "home")
    with tempfile.TemporaryDirectory(dir=shared) as blobs:
        manifest = manifest_of(store, FILES, folders=("empty",))
        shutil.move(store.home / "blobs", f"{blobs}/blobs")  # as somebody does whose disk is full
        (store.home / "blobs").symlink_to(f"{blobs}/blobs")
        report = make_view(store, manifest)
        assert (report.mode, report.linked, report.copied) == (LinkMode.SYMLINK, 3, 4)
        assert content(report.path) == {**FILES, "empty": None}
        target = os.readlink(report.path / "a/b/c/deep.bin")
        assert target.startswith("../../../../../../blobs/")
        assert make_view(store, manifest).reused
        moved = store.home.rename(tmp_path / "moved")  # relative, so the home can be moved
        assert content(moved / "views" / manifest.digest.hex / "tree") == {**FILES, "empty": None}
    store.close()


@pytest.mark.slow
def test_blob_that_has_all_the_names_it_can_have_is_symlinked(store: Store) -> None:
    manifest = manifest_of(store, {"full": LARGE, "other": LARGE + b"x"})
    full = manifest.by_path["full"].digest
    assert full is not None
    names = store.home / "names"
    names.mkdir()
    try:
        for number in range(70_000):
            os.link(store.layout.blob(full), names / str(number))
    except OSError as error:
        assert error.errno == errno.EMLINK
    else:
        pytest.skip("this file system allows more than 70,000 names of a file")
    report = make_view(store, manifest)
    assert content(report.path) == {"full": LARGE, "other": LARGE + b"x"}
    assert (report.path / "full").is_symlink()
    assert not (report.path / "other").is_symlink()


def mounted(*command: str) -> str | None:
    """Mount, or say why not."""
    if os.geteuid() != 0:
        return "needs root"
    done = subprocess.run(["mount", *command], capture_output=True, text=True)
    return None if done.returncode == 0 else done.stderr.strip()


@pytest.mark.root
def test_on_overlayfs_blobs_of_a_lower_layer_are_symlinked(tmp_path: Path) -> None:
    """A hard link would copy the blob up."""
    lower, merged = tmp_path / "lower", tmp_path / "merged"
    base = Store(lower / "home")
    manifest = manifest_of(base, FILES)
    base.close()
    layers = tmp_path / "layers"
    layers.mkdir()
    if reason := mounted("-t", "tmpfs", "none", str(layers)):
        pytest.skip(reason)
    try:
        for name in ("upper", "work"):
            (layers / name).mkdir()
        merged.mkdir()
        options = f"lowerdir={lower},upperdir={layers}/upper,workdir={layers}/work"
        if reason := mounted("-t", "overlay", "overlay", "-o", options, str(merged)):
            pytest.skip(reason)
        try:
            store = Store(merged / "home")
            report = make_view(store, manifest)
            assert report.mode is LinkMode.SYMLINK
            assert content(report.path) == FILES
            assert not (layers / "upper" / "home" / "blobs").exists()
            store.close()
        finally:
            subprocess.run(["umount", merged], check=True)
    finally:
        subprocess.run(["umount", layers], check=True)


def test_names_that_differ_by_case_are_kept_where_the_disk_can(store: Store) -> None:
    folding = probe(store.home / "ingest")
    files = {"Model.bin": LARGE, "model.bin": LARGE + b"x", "code/\u00e9.py": b"1", "code/e\u0301.py": b"2"}
    if folding.case or folding.normalization:
        pytest.skip(f"this disk folds names: {folding}")
    assert content(make_view(store, manifest_of(store, files)).path) == files


@pytest.mark.root
def test_names_that_differ_by_case_are_refused_where_the_disk_cannot(tmp_path: Path) -> None:
    image, folder = tmp_path / "image", tmp_path / "mount"
    folder.mkdir()
    with open(image, "wb") as file:
        file.truncate(64 << 20)
    made = subprocess.run(["mkfs.ext4", "-q", "-O", "casefold", str(image)], capture_output=True, text=True)
    if made.returncode != 0:
        pytest.skip(made.stderr)
    if reason := mounted("-o", "loop", str(image), str(folder)):
        pytest.skip(reason)
    try:
        home = folder / "home"
        home.mkdir()
        if subprocess.run(["chattr", "+F", str(home)], capture_output=True).returncode != 0:
            pytest.skip("this kernel has no case folding")
        store = Store(home)
        assert probe(store.home / "ingest").case
        for names in (("Model.bin", "model.bin"), ("A/x", "a/y")):
            with pytest.raises(UnsafeNameError, match="cannot tell"):
                make_view(store, manifest_of(store, {name: LARGE + name.encode() for name in names}))
        assert list(views(store)) == []
        store.close()
    finally:
        subprocess.run(["umount", folder], check=True)


# --- together, and killed ----------------------------------------------------------------------------------------


def _make(home: Path, digest: Digest, barrier: object, results: object) -> None:
    store = Store(home)
    manifest = store.refs.get(digest)
    assert manifest is not None
    barrier.wait()  # type: ignore[attr-defined]
    report = make_view(store, manifest)
    results.put(content(report.path) == FILES)  # type: ignore[attr-defined]
    store.close()


def test_processes_that_make_one_view_at_once_all_get_it(store: Store) -> None:
    from stores import tagged

    manifest = tagged(store, "00000000-0000-4000-8000-000000000001", FILES)
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(6), context.Queue()
    workers = [context.Process(target=_make, args=(store.home, manifest.digest, barrier, results)) for _ in range(6)]
    for worker in workers:
        worker.start()
    assert [results.get(timeout=60) for _ in workers] == [True] * 6
    for worker in workers:
        worker.join()
    assert list(views(store)) == [manifest.digest]
    left = [path for path in (store.home / "ingest").rglob("*") if path.name != "CACHEDIR.TAG"]
    assert left == []
    assert not (store.home / "aside").exists() or list((store.home / "aside").iterdir()) == []


def _killed_at(store: Store, manifest: Manifest, number: int) -> bool:
    """Make a view in a child that dies before its nth step; whether it came that far."""
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
            make_view(Store(store.home), manifest)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == 9


def test_killed_before_and_after_every_step_the_next_call_makes_the_view(store: Store) -> None:
    manifest = manifest_of(store, FILES, executable=("-rf",), folders=("empty",))
    number = 0
    while True:
        number += 1
        store.drop_view(manifest.digest)
        if not _killed_at(store, manifest, number):
            break
        assert content(make_view(Store(store.home), manifest).path) == {**FILES, "empty": None}
    assert number > 40
    # A kill before a staging folder is claimed leaves it, and nothing in it; everything else was swept.
    left = [path.name for path in (store.home / "ingest").rglob("*") if path.is_file()]
    assert set(left) <= {"CACHEDIR.TAG", "claim.new"}


def test_view_of_many_files_takes_no_step_twice(store: Store) -> None:
    """The time is `bench views`; what it depends on is how often the disk is asked for something."""
    data = {f"d{number % 10}/f{number}": (LARGE if number % 2 else b"") + b"%d" % number for number in range(1000)}
    manifest = manifest_of(store, data)
    steps = 0

    def observer(moment: str, _: str) -> None:
        nonlocal steps
        steps += moment == "before"

    disk.observe(observer)
    try:
        make_view(store, manifest)
        made = steps
        assert make_view(store, manifest).reused
    finally:
        disk.observe(None)
    assert len(data) * 1.5 <= made < len(data) * 1.5 + 80  # a link; a file and its bytes; and the folders
    assert steps - made <= 2  # into the door
