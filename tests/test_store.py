import errno
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from stores import OTHER_UUID, ROOT, UUID, damage, lies, manifest_of, run_python, tagged, uuid
from users import as_user

from cas.errors import CasError, ContentError, NoSpaceError, NotAllowedError, NotFoundError, UsageError
from cas.index import disk
from cas.index.check import Kind, check
from cas.index.digest import Digest
from cas.index.identity import RemoteIdentity
from cas.index.manifest import FileEntry, Manifest
from cas.index.paths import RelativePath
from cas.index.remove import execute_remove, plan_remove
from cas.index.store import Store, explained, open_store

FILES = {"a": b"1", "b/c": b"22", "empty": b""}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


def test_a_tagged_checkpoint_resolves(store: Store) -> None:
    manifest = tagged(store, UUID, FILES)
    for one in (store, Store(store.home)):
        assert one.resolve("local", UUID) == manifest
        assert one.resolve("http://a-master", UUID) == manifest  # a UUID names one checkpoint, whoever tells of it
    assert store.resolve("local", OTHER_UUID) is None
    assert check(store, deep=True).problems == ()


def unfetched(name: str, size: int) -> FileEntry:
    return FileEntry(RelativePath(name), size, None, RemoteIdentity(f"file:///{name}", size))


def test_the_registrys_own_ref_counts_first_and_a_complete_one_beats_it(store: Store) -> None:
    mine, local = manifest_of({"a": b"mine"}, store), manifest_of({"a": b"local"}, store)
    store.tag("local", UUID, local)
    store.tag("http://m", UUID, mine)
    assert store.resolve("http://m", UUID) == mine
    assert store.resolve("local", UUID) == local
    partial = Manifest.of([unfetched("a", 4)])
    store.tag("http://n", UUID, partial)
    assert store.resolve("http://n", UUID) == local
    store.tag("http://n", OTHER_UUID, partial)
    assert store.resolve("http://n", OTHER_UUID) == partial


def test_a_single_ref_says_which_manifest_it_is_and_several_do_not(store: Store) -> None:
    manifest = tagged(store, UUID, FILES)
    assert store.sole("local", UUID) == manifest.digest
    assert store.sole("http://m", UUID) is None  # `resolve` looks at other registries; this is for sure or nothing
    store.tag("local", UUID, manifest_of({"a": b"2"}, store))
    assert store.sole("local", UUID) is None


def test_a_new_file_has_its_mode_whatever_the_umask(tmp_path: Path) -> None:
    def make() -> None:
        for name, mode in {"plain": 0o444, "program": 0o555}.items():
            found = disk.write_new(tmp_path / name, b"12345", mode)
            assert (found.st_mode & 0o777, found.st_size) == (mode, 5)
            assert found.st_mtime_ns == (tmp_path / name).stat().st_mtime_ns

    old = os.umask(0o077)
    try:
        make()
    finally:
        os.umask(old)
    with pytest.raises(FileExistsError):
        disk.write_new(tmp_path / "plain", b"", 0o444)
    assert (tmp_path / "plain").read_bytes() == b"12345"


def test_two_partial_pulls_add_up(store: Store) -> None:
    store.tag("http://m", UUID, Manifest.of([*manifest_of({"a": b"1"}, store).files, unfetched("b", 2)]))
    store.tag("http://m", UUID, Manifest.of([*manifest_of({"b": b"22"}, store).files, unfetched("a", 1)]))
    found = store.resolve("http://m", UUID)
    assert found is not None and found.complete


def test_what_is_absent_is_told_by_tag(store: Store) -> None:  # F7, F11
    manifest = manifest_of(FILES, store)
    gone = manifest.by_path["b/c"].digest
    assert gone is not None
    store.layout.blob(gone).unlink()
    store.layout.blob(gone).parent.rmdir()
    assert store.tag("local", UUID, manifest, durable=True) == [gone]
    assert store.resolve("local", UUID) == manifest
    assert store.absent(manifest) == [gone]
    store.put(b"22")
    assert store.absent(manifest) == []


def test_a_blob_that_a_removal_holds_is_brought_back_by_tag(store: Store) -> None:  # F11
    manifest = manifest_of(FILES, store)
    entry = manifest.files[0]
    assert entry.digest is not None
    held = store.layout.aside(entry.digest.hex)
    held.parent.mkdir(exist_ok=True)
    store.layout.blob(entry.digest).rename(held)
    assert store.tag("local", UUID, manifest) == []
    assert store.layout.blob(entry.digest).exists() and not held.exists()


@pytest.mark.parametrize("bad", ["", "..", "x" * 36, UUID.upper(), f"{UUID}/..", f"{UUID}\n"])
def test_what_is_no_uuid_is_refused(bad: str, store: Store) -> None:
    manifest = manifest_of(FILES)
    with pytest.raises(UsageError):
        store.tag("local", bad, manifest)
    with pytest.raises(UsageError):
        store.resolve("local", bad)


def test_resolving_needs_neither_index_nor_locks(store: Store) -> None:
    manifest = tagged(store, UUID, FILES)
    code = (
        "import sys; from pathlib import Path; from cas.index.store import Store; store = Store(Path(sys.argv[1]))\n"
        "assert store.resolve('local', sys.argv[2]).digest.hex == sys.argv[3]\n"
        "assert not store.index._by_pid and 'filelock' not in sys.modules; print('ok')"
    )
    assert run_python(code, store.home, UUID, manifest.digest.hex) == "ok\n"


def test_one_process_has_one_store_of_a_home(tmp_path: Path) -> None:
    assert open_store(tmp_path / "a") is open_store(tmp_path / "a")
    assert open_store(tmp_path / "a") is not open_store(tmp_path / "b")


def test_a_home_that_was_deleted_is_made_again(tmp_path: Path) -> None:
    import shutil

    first = open_store(tmp_path / "home")
    shutil.rmtree(tmp_path / "home")
    assert open_store(tmp_path / "home") is not first
    assert open_store(tmp_path / "home").put(b"x") == Digest.of(b"x")


@pytest.mark.parametrize(
    ("number", "kind", "word"),
    [(errno.ENOSPC, NoSpaceError, "disk is full"), (errno.EDQUOT, NoSpaceError, "quota"),
     (errno.EACCES, NotAllowedError, "Permission"), (errno.EROFS, NotAllowedError, "[Rr]ead-only"),
     (errno.EMFILE, CasError, "ulimit")],
)  # fmt: skip
def test_errors_of_the_disk_are_one_clear_line(number: int, kind: type[CasError], word: str) -> None:
    with pytest.raises(kind, match=word) as caught, explained("cannot write into /home/x"):
        raise OSError(number, os.strerror(number), "/home/x/blobs")
    assert str(caught.value).startswith("cannot write into /home/x: ")
    assert "\n" not in str(caught.value)


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(BrokenPipeError), explained("x"):
        raise BrokenPipeError


@pytest.mark.root
def test_check_goes_on_while_blobs_are_removed(store: Store) -> None:
    tagged(store, UUID, {"a": b"1", "b": b"2", "c": b"3"})
    first = []

    def remove_the_rest(done: int, total: int) -> None:
        if not first:
            first.append(done)
            for path in sorted(store.home.glob("blobs/??/*"))[1:]:
                path.unlink()

    report = check(store, deep=True, advance=remove_the_rest)
    assert [problem.kind for problem in report.problems] == [Kind.MISSING_BLOB] * 2
    assert report.blobs == 1


def test_check_goes_on_while_folders_come_and_go(store: Store) -> None:
    stop = threading.Event()

    def make_and_remove() -> None:
        while not stop.is_set():
            for folder in (store.home / "aside" / "view-x", store.home / "ingest" / "key"):
                (folder / "tree" / "deep").mkdir(parents=True)
                (folder / "tree" / "deep" / "claim").touch()
                shutil.rmtree(folder)

    thread = threading.Thread(target=make_and_remove)
    thread.start()
    try:
        for _ in range(300):
            check(store, deep=True)
    finally:
        stop.set()
        thread.join()


def test_a_full_disk_breaks_nothing(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root for a small tmpfs")
    code = (
        "import sys; from pathlib import Path; from cas.errors import NoSpaceError; from cas.index.store import Store\n"
        "from stores import lies, tagged, UUID\n"
        "store = Store(Path(sys.argv[1])); tagged(store, UUID, {'a': b'1' * 1000})\n"
        "try: store.put(b'x' * 2_000_000)\n"
        "except NoSpaceError as error: print(error)\n"
        "assert lies(store.home) == [] and store.resolve('local', UUID) and store.has(store.put(b'y'))\n"
        "assert not list(store.home.glob('ingest/*/*'))"
    )
    mount = 'mount -t tmpfs -o size=1m none "$0" && exec "$@"'
    command = ["unshare", "-m", "sh", "-c", mount, tmp_path, sys.executable, "-c", code, tmp_path / "home"]
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path})
    if "mount" in done.stderr:
        pytest.skip(f"cannot mount: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert "the disk is full; make room" in done.stdout


@pytest.mark.parametrize("number", range(1, 6))  # the refs are in aside/, or the first blob is, …
def test_a_checkpoint_added_while_another_is_removed_keeps_what_both_need(number: int, store: Store) -> None:  # F11
    mine = tagged(store, UUID, {"a": b"shared", "b": b"also"})
    plan = plan_remove(store, UUID)
    added: list[list[Digest]] = []
    renames = 0

    def add_the_other(moment: str, step: str) -> None:
        nonlocal renames
        renames += (moment, step) == ("after", "rename") and not added
        if renames == number and not added:
            added.append([])
            added[0] += store.tag("local", OTHER_UUID, mine)

    disk.observe(add_the_other)
    try:
        report = execute_remove(store, plan)
    finally:
        disk.observe(None)
    if not added:  # there were not so many
        assert number > 4
        return
    assert added == [[]]  # tag brought back what was held, or it was not taken yet
    assert report.blobs == 0
    assert store.resolve("local", OTHER_UUID) == mine and store.absent(mine) == []
    assert store.resolve("local", UUID) is None
    assert check(store, deep=True).problems == ()


# --- adding and removing at once (F11) -----------------------------------------------------------------------

POOL = [f"shared {number}".encode() * 50 for number in range(6)]


def _files_of(number: int) -> dict[str, bytes]:
    rng = random.Random(number)
    return {f"f{index}": data for index, data in enumerate(rng.sample(POOL, 4))} | {"own": str(number).encode()}


def _add_and_remove(home: Path, me: int, rounds: int) -> None:
    store = Store(home)
    rng = random.Random(me)
    for round in range(rounds):
        number = rng.randrange(me * 3, me * 3 + 3)
        files = _files_of(number)
        while True:
            manifest = manifest_of(files, store)
            if not store.tag("local", uuid(number), manifest):
                break
        found = store.resolve("local", uuid(number))
        assert found is not None and found.digest == manifest.digest, "the ref that was just made is gone"
        for entry in manifest.files:
            assert entry.digest is not None
            # While another process holds it in aside/, a blob may be absent for a moment; never for good, never wrong.
            assert any(store.has(entry.digest) for _ in range(200)), f"{entry.path} is gone"
            path = store.blobs.locate(entry.digest)
            if path is not None:
                try:
                    assert path.read_bytes() == files[str(entry.path)]
                except FileNotFoundError:
                    continue
        if round % 2:
            try:
                execute_remove(store, plan_remove(store, uuid(number)))
            except NotFoundError:
                raise AssertionError("only this process removes it") from None
            assert store.resolve("local", uuid(number)) is None


@pytest.mark.slow
def test_processes_that_add_and_remove_checkpoints_with_shared_files_lose_nothing(store: Store) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_add_and_remove, args=(store.home, me, 60)) for me in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert lies(store.home) == []
    for _, _, digests in store.refs.all():
        for digest in digests:
            manifest = store.refs.get(digest)
            assert manifest is not None
            assert store.absent(manifest) == []
    assert check(store, deep=True).damage == ()


def test_reading_an_absent_blob_is_one_clear_error(store: Store) -> None:
    with pytest.raises(ContentError, match=r"no blob blake3:[0-9a-f]{64} in the store"):
        store.blobs.read(Digest.of(b"nothing"))


# --- ordinary users ------------------------------------------------------------------------------------------


@pytest.mark.root
def test_an_ordinary_user_adds_damages_heals_and_removes(open_folder: Path) -> None:
    def work() -> None:
        store = Store(open_folder / "home")
        manifest = tagged(store, UUID, FILES, durable=True)
        (store.layout.view(manifest.digest) / "folder").mkdir(parents=True)
        entry = manifest.by_path["a"]
        assert entry.digest is not None
        path = store.layout.blob(entry.digest)
        with pytest.raises(PermissionError), open(path, "r+b"):
            pass
        damage(path)
        assert not store.has(entry.digest)
        assert not store.layout.view(manifest.digest).exists()
        assert tagged(store, UUID, FILES) == manifest
        damage(store.layout.manifest(manifest.digest))
        assert Store(store.home).resolve("local", UUID) is None
        tagged(store, UUID, FILES)
        assert check(store, deep=True).problems == ()
        execute_remove(store, plan_remove(store, UUID))
        assert check(store, deep=True).problems == ()
        assert not list(store.home.glob("blobs/??/*"))

    as_user(12345, work)


@pytest.mark.root
def test_a_user_who_may_only_read_a_home_is_served_what_is_right(open_folder: Path) -> None:
    def own() -> None:
        os.umask(0o022)
        store = Store(open_folder / "home")
        manifest = tagged(store, UUID, FILES)
        tagged(store, OTHER_UUID, {"bad": b"will be damaged", "good": b"right"})
        damage(store.layout.blob(Digest.of(b"will be damaged")))
        store.tag("local", uuid(3), manifest_of({"x": b"right"}, store))
        damage(store.layout.manifest(manifest_of({"x": b"right"}).digest))
        assert manifest.complete
        for folder in (store.home, *store.home.glob("*/")):
            folder.chmod(0o755)

    def read() -> None:
        before = sorted(os.fspath(path) for path in (open_folder / "home").glob("**/*"))
        store = Store(open_folder / "home")
        manifest = store.resolve("local", UUID)
        assert manifest is not None and store.absent(manifest) == []
        assert all(entry.digest is not None and store.has(entry.digest) for entry in manifest.files)
        assert store.blobs.hashed == 0  # the owner, whom nobody else can have written for, is believed
        assert store.blobs.locate(Digest.of(b"will be damaged")) is None
        assert store.blobs.read(Digest.of(b"right")) == b"right"
        assert store.resolve("local", uuid(3)) is None
        with pytest.raises(NotAllowedError, match="CAS_HOME to a folder of yours, and CAS_READ_ONLY_STORES"):
            store.put(b"new")
        with pytest.raises(NotAllowedError):
            execute_remove(store, plan_remove(store, UUID))
        assert store.resolve("local", UUID) == manifest
        assert sorted(os.fspath(path) for path in (open_folder / "home").glob("**/*")) == before

    as_user(12345, own)
    as_user(23456, read)
