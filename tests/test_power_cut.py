"""Power cuts: the image of a mounted file system is copied as it is on the disk, unsynced, and mounted again.

What was not synced is then empty, zeros or gone, under the right names. What a durable call returned is there.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import blake3
import pytest
from stores import OTHER_UUID, ROOT, UUID, damage, in_boot, lies, manifest_of, uuid

from cas.actions import repairing
from cas.actions.adding import add
from cas.actions.exporting import export
from cas.actions.importing import import_file
from cas.checkpoint import Checkpoint
from cas.config import Progress, Settings
from cas.errors import CasError
from cas.index import disk, leases
from cas.index.check import check
from cas.index.digest import Digest
from cas.index.problems import Kind
from cas.index.records import NewRecord
from cas.index.sealing import seal_store, unseal_store
from cas.index.store import Store
from cas.load.views import make_view
from cas.registry.records import CheckpointRecord
from cas.registry.remembering import remember
from cas.removing import prune
from cas.transfer.fetch import pull
from cas.transfer.folder import FolderRemote

pytestmark = [pytest.mark.root, pytest.mark.slow]

OLD = {"a": b"old " * 5000, "shared": b"both " * 3000, "empty": b""}
NEW = {"b/c": b"new " * 5000, "shared": b"both " * 3000}
REGISTRY = "http://master"
LOST = [bytes([number]) * 50_000 for number in range(1, 6)]
SIZE = 16 << 20  # bytes of the disk
HOLE = 64 << 10
MOUNT = 'mount -o loop "$0" "$1" && shift && exec "$@"'


@pytest.fixture
def image(tmp_path: Path) -> Iterator[Path]:
    """An empty ext4 file system in a file, which lies in memory; skips where it cannot be made or mounted."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("needs root on Linux")
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else tmp_path) as name:
        path = Path(name) / "image"
        path.touch()
        os.truncate(path, SIZE)
        (path.parent / "mount").mkdir()
        try:
            subprocess.run(["mkfs.ext4", "-q", "-F", path], check=True, capture_output=True, text=True)
            inside("pass", path)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"cannot mount: {error} {getattr(error, 'stderr', '')}")
        yield path


def inside(code: str, image: Path, *arguments: object, boot: Path | None = None) -> str:
    """Run code in a process of its own, with the image mounted beside it, in another boot if one is given."""
    return run_apart(code, [MOUNT, image, image.parent / "mount"], image.parent, *arguments, boot=boot)


def run_apart(code: str, first: Sequence[object], *arguments: object, boot: Path | None = None) -> str:
    """Run code in a process with mounts of its own, after a command that makes some."""
    command = ["unshare", "-m", "sh", "-c", *first, *in_boot(boot and os.fspath(boot))]
    command += [sys.executable, "-c", f"from test_power_cut import *; {code}", *arguments]
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}
    )
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, code, done.stdout, done.stderr)
    return done.stdout


@pytest.fixture(params=["as it is", "journal"])
def every_cut(request: pytest.FixtureRequest, image: Path) -> Path:
    """An image of which `cutting` takes copies: as the disk is, or as it is if the journal is committed then."""
    if request.param == "journal":
        (image.parent / "commits").touch()
    return image


@pytest.fixture
def boot(tmp_path: Path) -> Path:
    path = tmp_path / "boot"
    path.write_text("00000000-0000-4000-8000-00000000b007\n")
    return path


def cut(base: Path, name: str = "cut") -> Path:
    """Copy what is on the disk at this moment; called while the file system is mounted."""
    written(base / name, at_rest(base / "image"))
    return base / name


def at_rest(image: Path) -> bytes:
    """Read an image while nothing is written to it: a copy that was half made before a write is no disk's."""
    data = image.read_bytes()
    while (again := image.read_bytes()) != data:
        data = again
    return data


def written(path: Path, data: bytes) -> None:
    """Write a file, whole or not at all, without its zeros: most of an image is nothing else."""
    part = path.with_name(f"part-{path.name}")
    with open(part, "wb") as file:
        for offset in range(0, len(data), HOLE):
            if piece := data[offset : offset + HOLE].rstrip(b"\0"):
                file.seek(offset)
                file.write(piece)
        file.truncate(len(data))
    part.replace(path)


@contextlib.contextmanager
def cutting(base: Path) -> Iterator[None]:
    """Within, look at the disk before every step and at the end; what differs from the last is kept as `cut-…`.

    Where there is a file `commits`, the journal is committed after each new name: it is on the disk then, and the bytes
    that nobody synced are not.
    """
    count, last, turn = 0, b"", threading.Lock()
    commits = (base / "commits").exists()

    def look(moment: str, step: str) -> None:
        with turn:  # heartbeats are steps of another thread
            see(moment, step)

    def see(moment: str, step: str) -> None:
        nonlocal count, last
        if commits and moment == "after" and step in ("link", "rename", "write_once"):
            (base / "mount" / "other").touch()
            disk_sync(base / "mount" / "other")
        elif moment == "before":
            count += 1
        else:
            return
        data = at_rest(base / "image")
        if (now := blake3.blake3(data).digest()) != last:
            written(base / f"cut-{count:03}-{moment}-{step.replace(' ', '-')}", data)
            last = now

    disk.observe(look)
    try:
        yield
    finally:
        disk.observe(None)
    cut(base, "cut-returned")
    (base / "steps").write_text(str(count))


def disk_sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def after_each_cut(look: Callable[[Path, str], None], image: Path, boot: Path) -> int:
    """Call a function with the disk of every cut mounted, in another boot; return how many cuts there were."""
    code = f"look_at_all({look.__name__}, Path(sys.argv[1]))"
    try:
        run_apart(code, ['exec "$@"', ""], image.parent, boot=boot)
    except subprocess.CalledProcessError as error:
        raise AssertionError(error.stderr) from error
    count = len(list(image.parent.glob("cut-*")))
    print(f"{count} power cuts")
    return count


def look_at_all(look: Callable[[Path, str], None], base: Path) -> None:
    """Each in a child of its own, which has everything imported."""
    for path in sorted(base.glob("cut-*")):
        subprocess.run(["mount", "-o", "loop", path, base / "mount"], check=True)
        pid = os.fork()
        if not pid:
            code = 1
            try:
                look(base, path.name)
                code = 0
            except BaseException:
                traceback.print_exc()
            sys.stderr.flush()
            os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        subprocess.run(["umount", base / "mount"], check=True)
        if code:
            sys.exit(f"{path.name} of {(base / 'steps').read_text()} steps")


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


def needs_nothing_but_lines(base: Path) -> None:
    """What is left of damage is lines that were not synced, over which readers pass; repair ends it."""
    left = repairing.check(Store(home_in(base)), deep=True, anew=True).damage
    assert all(problem.kind is Kind.TORN_LINE for problem in left), left
    mended(base)
    left = repairing.check(Store(home_in(base)), deep=True, anew=True).damage
    assert left == () and lies(home_in(base)) == [], left


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
    with cutting(base):
        add(folder_of(base, NEW), uuid=UUID, experiment=1, trial=1, steps=2, settings=settings(base))


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
    needs_nothing_but_lines(base)


def test_power_cuts_before_every_step_of_add(every_cut: Path, boot: Path) -> None:
    inside("add_and_cut(Path(sys.argv[1]))", every_cut)
    assert after_each_cut(look_after_add, every_cut, boot) >= 3


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
    with cutting(base):
        import_file(base / "x.tar", settings=settings(base))


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
    needs_nothing_but_lines(base)


def test_power_cuts_before_every_step_of_an_import(every_cut: Path, boot: Path) -> None:
    exported(every_cut.parent)
    inside("import_and_cut(Path(sys.argv[1]))", every_cut)
    assert after_each_cut(look_after_import, every_cut, boot) >= 3


# --- a repair, a prune and a seal, cut at every step -------------------------------------------------------------


def origin_of(base: Path) -> CheckpointRecord:
    """A checkpoint that a master knows, and whose files lie in a folder that outlives the disk."""
    for name, data in NEW.items():
        path = base / "origin" / UUID / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        os.utime(path, (10**9, 10**9))
    config = {"checkpoint_storage": {"type": "shared_fs", "host_path": str(base / "origin")}}
    return CheckpointRecord(registry=REGISTRY, uuid=UUID, experiment_config=config)


def two_checkpoints(base: Path) -> Store:
    """One with an origin, and one that lies nowhere else, with a view and a download of it; all on the disk."""
    store, record = Store(home_in(base)), origin_of(base)
    remember(store, REGISTRY, [record])
    checkpoint = Checkpoint(record, settings=settings(base))
    checkpoint.view()
    checkpoint.release()
    add(folder_of(base, OLD), uuid=OTHER_UUID, experiment=1, trial=1, steps=1, settings=settings(base))
    manifest = store.resolve("local", OTHER_UUID)
    assert manifest is not None
    make_view(store, manifest)
    return store


def loaded(base: Path) -> bool:
    """Load both as a user does: right bytes or one clear line; the added one must be there. Whether both are."""
    store = Store(home_in(base))
    manifest = store.resolve("local", OTHER_UUID)
    if manifest is None or store.absent(manifest):
        return False
    assert view_content(make_view(store, manifest).path) == OLD
    checkpoint = Checkpoint(origin_of(base), settings=settings(base))
    assert view_content(checkpoint.view()) == NEW
    checkpoint.release()
    return True


def view_content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def mended(base: Path) -> None:
    store = Store(home_in(base))
    repairing.repair(store, repairing.check(store, deep=True, anew=True).problems, settings(base))


def repair_and_cut(base: Path) -> None:
    store = two_checkpoints(base)
    manifest = store.resolve("local", OTHER_UUID)
    assert manifest is not None
    store.close()
    damage(store.layout.manifest(manifest.digest))  # a view says what was in it
    damage(store.layout.blob(Digest.of(NEW["b/c"])))  # its origin has it
    store.layout.blob(Digest.of(OLD["a"])).unlink()  # the view's link is left
    store.layout.facts.write_bytes(store.layout.facts.read_bytes() + b"torn")
    (home_in(base) / "blobs" / "stray").write_bytes(b"s")
    os.sync()
    with cutting(base):
        mended(base)


def look_after_repair(base: Path, name: str) -> None:
    serves_no_lie(Store(home_in(base)))
    loaded(base)
    mended(base)
    needs_nothing_but_lines(base)
    assert loaded(base)


def test_power_cuts_before_every_step_of_a_repair(every_cut: Path, boot: Path) -> None:
    inside("repair_and_cut(Path(sys.argv[1]))", every_cut)
    assert after_each_cut(look_after_repair, every_cut, boot) >= 3


def prune_and_cut(base: Path) -> None:
    store = two_checkpoints(base)
    store.put(b"nobody's" * 1000, durable=True)
    store.close()
    os.sync()
    with cutting(base):
        prune(UUID, now=True, settings=settings(base))
        os.sync()  # what a prune did may be lost, but not one half of it
        prune(now=True, settings=settings(base))


def look_after_prune(base: Path, name: str) -> None:
    leases.TTL = 0.0  # of the process that ended with the power
    store = Store(home_in(base))
    serves_no_lie(store)
    assert is_whole(store, OTHER_UUID, OLD), "a prune lost what it was not told to take"
    assert loaded(base)  # what was taken comes again
    needs_nothing_but_lines(base)
    prune(UUID, now=True, settings=settings(base))
    needs_nothing_but_lines(base)
    assert is_whole(Store(home_in(base)), OTHER_UUID, OLD)


def test_power_cuts_before_every_step_of_a_prune(every_cut: Path, boot: Path) -> None:
    inside("prune_and_cut(Path(sys.argv[1]))", every_cut)
    assert after_each_cut(look_after_prune, every_cut, boot) >= 3


def seal_and_cut(base: Path) -> None:
    two_checkpoints(base).close()
    with cutting(base):
        seal_store(Store(home_in(base)))


def look_after_seal(base: Path, name: str) -> None:
    leases.TTL = 0.0  # of the process that ended with the power
    store = Store(home_in(base))
    is_sealed = store.about.format.sealed is not None
    assert is_sealed or name != "cut-returned"
    if is_sealed:  # then everything is here, whole, and nothing of it is read to be believed
        assert lies(home_in(base)) == []
        assert all(path.read_bytes() for path in home_in(base).glob("manifests/??/*"))
        assert store.blobs.hashed == 0
    serves_no_lie(store)
    assert is_whole(store, OTHER_UUID, OLD), "add had returned, and it is not there"
    disk.thaw(home_in(base))
    unseal_store(Store(home_in(base)))
    assert loaded(base)
    seal_store(Store(home_in(base)))
    assert lies(home_in(base)) == []


def test_power_cuts_before_every_step_of_a_seal(every_cut: Path, boot: Path) -> None:
    inside("seal_and_cut(Path(sys.argv[1]))", every_cut)
    assert after_each_cut(look_after_seal, every_cut, boot) >= 3
