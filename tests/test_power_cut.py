"""Power cuts: the image of a mounted file system is copied as it is on the disk, unsynced, and mounted again.

What was not synced is then empty, zeros or gone, under the right names. What a durable call returned is there.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from stores import OTHER_UUID, ROOT, UUID, in_boot, manifest_of, uuid

from cas.actions.adding import add
from cas.actions.exporting import export
from cas.actions.importing import import_file
from cas.config import Progress, Settings
from cas.errors import CasError
from cas.index import disk
from cas.index.check import check
from cas.index.digest import Digest
from cas.index.records import NewRecord
from cas.index.store import Store
from cas.transfer.fetch import pull
from cas.transfer.folder import FolderRemote

pytestmark = [pytest.mark.root, pytest.mark.slow]

OLD = {"a": b"old " * 5000, "shared": b"both " * 3000, "empty": b""}
NEW = {"b/c": b"new " * 5000, "shared": b"both " * 3000}
LOST = [bytes([number]) * 50_000 for number in range(1, 6)]
EVERY = 2  # of the steps of an operation, this one's disk is looked at


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An empty ext4 file system in a file; skips where it cannot be made or mounted."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("needs root on Linux")
    path = tmp_path / "image"
    path.touch()
    os.truncate(path, 24 << 20)
    (tmp_path / "mount").mkdir()
    try:
        subprocess.run(["mkfs.ext4", "-q", "-F", path], check=True, capture_output=True, text=True)
        inside("pass", path, tmp_path / "mount")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"cannot mount: {error} {getattr(error, 'stderr', '')}")
    return path


def inside(code: str, image: Path, *arguments: object, boot: Path | None = None) -> str:
    """Run code in a process of its own, with the image mounted beside it, in another boot if one is given."""
    script = 'mount -o loop "$0" "$1" && shift && exec "$@"'
    command = ["unshare", "-m", "sh", "-c", script, image, image.parent / "mount", *in_boot(boot and os.fspath(boot))]
    command += [sys.executable, "-c", f"from test_power_cut import *; {code}", image.parent, *arguments]
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    done = subprocess.run(
        list(map(os.fspath, command)), capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}
    )
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, code, done.stdout, done.stderr)
    return done.stdout


@pytest.fixture
def boot(tmp_path: Path) -> Path:
    path = tmp_path / "boot"
    path.write_text("00000000-0000-4000-8000-00000000b007\n")
    return path


def cut(base: Path, name: str = "cut") -> Path:
    """Copy what is on the disk at this moment; called while the file system is mounted."""
    shutil.copyfile(base / "image", base / name)
    return base / name


def home_in(base: Path) -> Path:
    return base / "mount" / "home"


def served(store: Store, digest: Digest) -> bytes | None:
    """Return what a reader gets, which must be right."""
    path = store.blobs.locate(digest)
    if path is None:
        return None
    data = path.read_bytes()
    assert Digest.of(data) == digest, "other bytes were served"
    return data


def is_whole(store: Store, uuid: str, files: dict[str, bytes]) -> bool:
    manifest = store.resolve("local", uuid)
    if manifest is None:
        return False
    found = {entry.path: entry.digest and served(store, entry.digest) for entry in manifest.files}
    return found == files


def serves_no_lie(store: Store) -> None:
    for path in store.home.glob("blobs/??/*"):
        served(store, Digest(path.parent.name + path.name))
    check(store, deep=True)


# --- a durable put and tag -----------------------------------------------------------------------------------


def write_and_cut(base: Path) -> None:
    store = Store(home_in(base))
    for data in LOST[:3]:
        store.put(data)
    store.records.add("local", [NewRecord("checkpoint", uuid(1), {})])
    manifest = manifest_of(OLD, store, durable=True)
    for data in LOST[3:]:
        store.put(data)
    assert store.tag("local", OTHER_UUID, manifest, durable=True) == []
    store.records.add("local", [NewRecord("checkpoint", OTHER_UUID, {"n": 1})], durable=True)
    lost = manifest_of({"lost": LOST[0]}, store)
    store.tag("local", UUID, lost)
    assert all(store.has(Digest.of(data)) for data in LOST)
    cut(base)
    print(disk.boot_id())


def look_after_cut(base: Path) -> None:
    store = Store(home_in(base))
    assert is_whole(store, OTHER_UUID, OLD)
    seen = store.records.get("local", "checkpoint", OTHER_UUID)
    assert seen is not None and seen.data == {"n": 1}
    there = [served(store, Digest.of(data)) is not None for data in LOST]
    names = [store.layout.blob(Digest.of(data)).exists() for data in LOST]
    serves_no_lie(store)
    for data in LOST:
        assert served(store, store.put(data)) == data  # the next call completes
    assert check(store, deep=True).damage == ()
    print(len(there) - sum(there), sum(names), disk.boot_id())


def test_what_a_durable_call_returned_survives_and_the_rest_is_never_served_wrong(image: Path, boot: Path) -> None:
    first = inside("write_and_cut(Path(sys.argv[1]))", image).strip()
    os.replace(image.parent / "cut", image)
    lost, _, second = inside("look_after_cut(Path(sys.argv[1]))", image, boot=boot).split()
    assert int(lost) > 0, "the cut lost nothing: this test shows nothing"
    assert first != second == boot.read_text().strip()


# --- add, cut at many moments --------------------------------------------------------------------------------


def settings(base: Path) -> Settings:
    return Settings(home=home_in(base), progress=Progress.OFF, concurrency=1)


def folder_of(base: Path, files: dict[str, bytes]) -> Path:
    path = base / f"folder {len(files)}"
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def add_and_cut(base: Path) -> None:
    add(folder_of(base, OLD), uuid=OTHER_UUID, experiment=1, trial=1, steps=1, settings=settings(base))
    cut(base, "cut-0")
    count = 0

    def observe(moment: str, step: str) -> None:
        nonlocal count
        if moment == "after":
            count += 1
            if count % EVERY == 0:
                cut(base, f"cut-{count}")

    disk.observe(observe)
    add(folder_of(base, NEW), uuid=UUID, experiment=1, trial=1, steps=2, settings=settings(base))
    disk.observe(None)
    cut(base, "cut-returned")


def look_after_add(base: Path, name: str) -> None:
    store = Store(home_in(base))
    assert is_whole(store, OTHER_UUID, OLD), "add had returned, and it is not there"
    assert store.records.get("local", "checkpoint", OTHER_UUID) is not None
    serves_no_lie(store)
    done = store.records.get("local", "checkpoint", UUID) is not None
    if name == "cut-returned":
        assert done
    if not done:
        try:
            add(folder_of(base, NEW), uuid=UUID, experiment=1, trial=1, steps=2, settings=settings(base))
        except CasError as error:
            raise AssertionError(f"add does not complete: {error}") from error
    assert is_whole(store, UUID, NEW)
    assert check(store, deep=True).damage == ()


def test_power_cuts_in_the_middle_of_add(image: Path, boot: Path) -> None:
    inside("add_and_cut(Path(sys.argv[1]))", image)
    cuts = sorted(image.parent.glob("cut-*"))
    assert len(cuts) > 20
    for path in cuts:
        os.replace(path, image)
        try:
            inside("look_after_add(Path(sys.argv[1]), sys.argv[2])", image, path.name, boot=boot)
        except subprocess.CalledProcessError as error:
            raise AssertionError(f"{path.name}: {error.stderr}") from error


# --- a pull, which syncs nothing -----------------------------------------------------------------------------


def pull_into(base: Path) -> Store:
    store = Store(home_in(base))
    origin = FolderRemote(folder_of(base, OLD))
    pull(store, origin, registry="local", uuid=UUID, settings=settings(base))
    assert is_whole(store, UUID, OLD)
    return store


def pull_and_cut(base: Path) -> None:
    pull_into(base)
    disk.sync_folder(home_in(base))  # the names are on the disk now, but not all of the bytes
    cut(base)


def look_after_pull(base: Path) -> None:
    store = Store(home_in(base))
    serves_no_lie(store)
    missing = [data for data in OLD.values() if served(store, Digest.of(data)) is None]
    pull_into(base)
    assert check(store, deep=True).damage == ()
    print(len(missing))


def test_a_pull_cut_before_its_bytes_were_on_the_disk_is_healed_by_the_next(image: Path, boot: Path) -> None:
    inside("pull_and_cut(Path(sys.argv[1]))", image)
    os.replace(image.parent / "cut", image)
    assert int(inside("look_after_pull(Path(sys.argv[1]))", image, boot=boot)) > 0


# --- an import, cut at many moments ----------------------------------------------------------------------------


def exported(base: Path) -> None:
    there = Settings(home=base / "elsewhere", progress=Progress.OFF)
    add(folder_of(base, NEW), uuid=UUID, settings=there)
    export([UUID], base / "x.tar", settings=there)


def import_and_cut(base: Path) -> None:
    count = 0

    def observe(moment: str, step: str) -> None:
        nonlocal count
        if moment == "after":
            count += 1
            if count % (4 * EVERY) == 0:
                cut(base, f"cut-{count}")

    disk.observe(observe)
    import_file(base / "x.tar", settings=settings(base))
    disk.observe(None)
    cut(base, "cut-returned")


def look_after_import(base: Path, name: str) -> None:
    store = Store(home_in(base))
    serves_no_lie(store)
    known = store.records.registries_with("checkpoint", UUID)
    if name == "cut-returned":
        assert known
    if not known:
        import_file(base / "x.tar", settings=settings(base))
    (registry,) = store.records.registries_with("checkpoint", UUID)
    manifest = store.resolve(registry, UUID)
    assert manifest is not None
    assert {entry.path: entry.digest and served(store, entry.digest) for entry in manifest.files} == NEW
    assert check(store, deep=True).damage == ()


def test_power_cuts_in_the_middle_of_an_import(image: Path, boot: Path) -> None:
    exported(image.parent)
    inside("import_and_cut(Path(sys.argv[1]))", image)
    cuts = sorted(image.parent.glob("cut-*"))
    assert len(cuts) > 5
    for path in cuts:
        os.replace(path, image)
        try:
            inside("look_after_import(Path(sys.argv[1]), sys.argv[2])", image, path.name, boot=boot)
        except subprocess.CalledProcessError as error:
            raise AssertionError(f"{path.name}: {error.stderr}") from error
