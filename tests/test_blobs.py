import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from stores import UUID, cannot_reboot, damage, lies, run_python, tagged

from cas.errors import ContentError
from cas.index import disk
from cas.index.digest import Digest
from cas.index.disk import Signature
from cas.index.facts import BlobFact
from cas.index.store import Store

pytestmark = pytest.mark.slow

HELLO = Digest.of(b"hello")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "home")
    store.put(b"hello")
    return store


def fact(store: Store) -> BlobFact:
    (found,) = store.facts.blob(HELLO)
    return found


def path_of(store: Store) -> Path:
    return store.layout.blob(HELLO)


# --- which blobs are believed (F12) --------------------------------------------------------------------------


def test_a_blob_of_this_boot_is_believed_unread(store: Store) -> None:
    fresh = Store(store.home)
    assert fresh.blobs.locate(HELLO) == path_of(store)
    assert fresh.blobs.read(HELLO) == b"hello"
    assert fresh.blobs.hashed == 0
    assert not fact(store).sealed and fact(store).boot == disk.boot_id()


def test_an_absent_blob_is_not_here(store: Store) -> None:
    assert store.blobs.locate(Digest.of(b"other")) is None
    with pytest.raises(ContentError, match="no blob"):
        store.blobs.read(Digest.of(b"other"))
    path_of(store).unlink()
    assert not store.has(HELLO)
    assert not Store(store.home).has(HELLO)


def test_a_blob_without_a_fact_is_hashed_once(store: Store) -> None:
    store.layout.facts.unlink()
    fresh = Store(store.home)
    assert fresh.has(HELLO) and fresh.blobs.hashed == 1
    assert fresh.has(HELLO) and fresh.blobs.hashed == 1
    again = Store(store.home)
    assert again.has(HELLO) and again.blobs.hashed == 0  # the fact was written anew
    assert not fact(again).sealed


@pytest.mark.parametrize("field", ["size", "mtime", "inode"])
def test_a_fact_about_another_signature_is_of_no_use(field: str, store: Store) -> None:
    store.facts.add([fact(store).to_json() | {"sealed": True, field: 1}])
    fresh = Store(store.home)
    assert fresh.has(HELLO) and fresh.blobs.hashed == 1


def touch(path: Path) -> None:
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


def copy_in_place(path: Path) -> None:
    data, stat = path.read_bytes(), path.stat()
    path.rename(path.with_suffix(".old"))
    path.write_bytes(data)
    os.utime(path, ns=(0, stat.st_mtime_ns))
    path.with_suffix(".old").unlink()


@pytest.mark.parametrize("change", [touch, copy_in_place])
def test_a_changed_signature_over_the_same_bytes_is_hashed_and_believed(
    change: Callable[[Path], None], store: Store
) -> None:
    change(path_of(store))
    assert store.has(HELLO) and store.blobs.hashed == 1
    assert Store(store.home).has(HELLO)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a flipped bit": damage,
    "cut short": lambda path: damage(path, b"hell"),
    "grown": lambda path: damage(path, b"hello!"),
    "empty": lambda path: damage(path, b""),
    "zeros": lambda path: damage(path, bytes(5)),
    "another file": lambda path: (path.unlink(), path.write_bytes(b"other")),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a link to nowhere": lambda path: (path.unlink(), path.symlink_to("nowhere")),
}


@pytest.mark.parametrize("change", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_wrong_blob_is_never_served(change: Callable[[Path], object], store: Store) -> None:  # F6
    change(path_of(store))
    for one in (store, Store(store.home)):
        assert one.blobs.locate(HELLO) is None
        with pytest.raises(ContentError):
            one.blobs.read(HELLO)
    store.put(b"hello")
    assert store.blobs.read(HELLO) == b"hello"
    assert Store(store.home).blobs.read(HELLO) == b"hello"
    assert lies(store.home) == []


def test_the_damaged_copy_is_kept_until_the_blob_is_here_again(store: Store) -> None:  # F6
    damage(path_of(store), b"hellO")
    assert not store.has(HELLO)
    store.blobs.drop_healed()
    assert [path.read_bytes() for path in (store.home / "aside").iterdir()] == [b"hellO"]
    store.put(b"hello")
    store.blobs.drop_healed()
    assert list((store.home / "aside").iterdir()) == []
    assert store.blobs.read(HELLO) == b"hello"


def test_a_right_blob_in_aside_comes_back(store: Store) -> None:  # F7
    held = store.layout.aside(HELLO.hex)
    held.parent.mkdir(exist_ok=True)
    path_of(store).rename(held)
    inode = held.stat().st_ino
    assert store.blobs.locate(HELLO) == path_of(store)
    assert path_of(store).stat().st_ino == inode and not held.exists()


def test_a_wrong_one_in_aside_stays_there(store: Store) -> None:
    held = store.layout.aside(HELLO.hex)
    held.parent.mkdir(exist_ok=True)
    path_of(store).rename(held)
    damage(held)
    assert store.blobs.locate(HELLO) is None
    assert held.exists()


def test_putting_a_right_blob_aside_links_it_back(store: Store) -> None:
    assert store.blobs.put_aside(HELLO) is None
    assert store.has(HELLO)
    assert store.blobs.put_aside(Digest.of(b"absent")) is None


def test_the_views_of_a_bad_blob_go_with_it(store: Store) -> None:  # F6
    bad = tagged(store, UUID, {"a": b"hello"})
    good = tagged(store, UUID, {"a": b"other"})
    for manifest in (bad, good):
        view = store.layout.view(manifest.digest)
        view.mkdir()
        entry = manifest.files[0]
        assert entry.digest is not None
        os.link(store.layout.blob(entry.digest), view / "a")
        view.chmod(0o555)
    unknown = store.layout.view(Digest.of(b"a manifest that is not here"))
    unknown.mkdir()
    damage(path_of(store))
    assert not store.has(HELLO)
    assert not store.layout.view(bad.digest).exists()
    assert not unknown.exists()  # nobody can say what it links to
    assert store.layout.view(good.digest).exists()
    assert [path.name.partition(".")[0] for path in (store.home / "aside").iterdir()] == [HELLO.hex]


# --- sealing and reboots -------------------------------------------------------------------------------------


def test_a_durable_blob_is_sealed(store: Store) -> None:
    digest = store.put(b"durable", durable=True)
    assert [one.sealed for one in store.facts.blob(digest)] == [True]
    store.blobs.seal(HELLO)
    assert fact(store).sealed


def test_a_damaged_blob_is_not_sealed(store: Store) -> None:
    damage(path_of(store))
    with pytest.raises(ContentError, match="changed"):
        store.blobs.seal(HELLO)
    with pytest.raises(FileNotFoundError):
        store.blobs.seal(Digest.of(b"absent"))


HAS = """
import sys
from pathlib import Path
from cas.index.digest import Digest
from cas.index.store import Store
store = Store(Path(sys.argv[1]))
digest = Digest.of(b"hello")
print(store.has(digest), store.blobs.hashed, *[fact.sealed for fact in store.facts.blob(digest)])
"""


@pytest.fixture
def boots(tmp_path: Path) -> list[str]:
    """Two files that hold the id of another boot."""
    if reason := cannot_reboot():
        pytest.skip(reason)
    found = []
    for number in (1, 2):
        path = tmp_path / f"boot{number}"
        path.write_text(f"00000000-0000-4000-8000-00000000000{number}\n")
        found.append(os.fspath(path))
    return found


@pytest.mark.root
def test_after_a_reboot_a_blob_is_hashed_once_and_sealed(store: Store, boots: list[str]) -> None:
    assert run_python(HAS, store.home) == "True 0 False\n"
    assert run_python(HAS, store.home, boot=boots[0]) == "True 1 True\n"
    assert run_python(HAS, store.home, boot=boots[0]) == "True 0 True\n"
    assert run_python(HAS, store.home, boot=boots[1]) == "True 0 True\n"


@pytest.mark.root
def test_after_a_reboot_a_sealed_blob_is_believed_unread(store: Store, boots: list[str]) -> None:
    store.blobs.seal(HELLO)
    assert run_python(HAS, store.home, boot=boots[0]) == "True 0 True\n"


@pytest.mark.root
@pytest.mark.parametrize("content", [b"", bytes(5), b"hellO"])
def test_after_a_power_cut_what_it_left_is_not_served(content: bytes, store: Store, boots: list[str]) -> None:
    stat = path_of(store).stat()
    damage(path_of(store), content)
    os.utime(path_of(store), ns=(stat.st_atime_ns, stat.st_mtime_ns))  # the right name, time and inode
    assert run_python(HAS, store.home, boot=boots[0]).startswith("False")
    assert run_python(HAS, store.home, boot=boots[1]).startswith("False")


@pytest.mark.root
def test_a_hash_in_the_same_boot_seals_nothing(store: Store, boots: list[str]) -> None:
    store.layout.facts.unlink()
    assert run_python(HAS, store.home, boot=boots[0]) == "True 1 False\n"
    touch(path_of(store))
    assert run_python(HAS, store.home, boot=boots[0]) == "True 1 False\n"
    assert run_python(HAS, store.home, boot=boots[1]) == "True 1 True\n"


@pytest.mark.root
def test_without_a_boot_id_every_commit_is_synced(tmp_path: Path, boots: list[str]) -> None:
    empty = Path(boots[0])
    empty.write_text("")
    code = (
        "import sys; from pathlib import Path; from cas.index import disk; from cas.index.store import Store\n"
        "assert disk.boot_id() is None\n"
        "store = Store(Path(sys.argv[1])); digest = store.put(b'x'); other = Store(store.home)\n"
        "print(other.has(digest), other.blobs.hashed, *[fact.sealed for fact in store.facts.blob(digest)])"
    )
    assert run_python(code, tmp_path / "home", boot=os.fspath(empty)) == "True 0 True\n"


# --- together ------------------------------------------------------------------------------------------------


def test_threads_that_put_damage_and_read_see_right_bytes_or_none(store: Store) -> None:
    contents = [f"content {number}".encode() * 100 for number in range(5)]
    failures: list[BaseException] = []
    stop = threading.Event()

    def put() -> None:
        while not stop.is_set():
            for content in contents:
                assert store.put(content) == Digest.of(content)

    def read() -> None:
        while not stop.is_set():
            for content in contents:
                path = store.blobs.locate(Digest.of(content))
                if path is not None:
                    try:
                        found = path.read_bytes()
                    except FileNotFoundError:  # put aside since: an absent blob is legal
                        continue
                    assert found == content

    def put_aside() -> None:
        while not stop.is_set():
            for content in contents:
                store.blobs.put_aside(Digest.of(content))
                store.blobs.drop_healed()

    def guarded(call: Callable[[], None]) -> None:
        try:
            call()
        except BaseException as error:
            failures.append(error)
            stop.set()

    threads = [threading.Thread(target=guarded, args=(call,)) for call in (put, put, read, read, put_aside)]
    for thread in threads:
        thread.start()
    stop.wait(2)
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert lies(store.home) == []


def test_signature_is_of_what_stat_says(store: Store) -> None:
    stat = path_of(store).stat()
    assert Signature.of(stat) == Signature(5, stat.st_mtime_ns, stat.st_ino)
    assert sys.maxsize > 2**32


def test_what_another_process_judged_first_raises_no_false_alarm(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    digest = store.put(b"right")
    alarms: list[Digest] = []
    store.blobs.on_bad(alarms.append)

    def other_process(moment: str, step: str) -> None:
        if (moment, step) == ("after", "rename"):
            disk.observe(None)
            for held in (store.home / "aside").iterdir():
                store.blobs.link_back(held, digest)

    disk.observe(other_process)
    try:
        assert store.blobs.put_aside(digest) is None
    finally:
        disk.observe(None)
    assert (alarms, caplog.messages) == ([], [])
    assert store.has(digest)


def test_a_rotten_blob_does_not_come_back_from_aside(tmp_path: Path) -> None:
    """Rot changes bytes, and nothing that a fact could tell by: what was hashed and is wrong stays wrong."""
    store = Store(tmp_path / "home")
    digest = store.put(b"hello")
    path = store.layout.blob(digest)
    before = path.stat()
    damage(path, b"hellO")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    held = store.blobs.put_aside(digest)
    assert held is not None and held.name.startswith(f"{digest.hex}.bad.")
    for again in (store, Store(store.home)):
        assert again.blobs.locate(digest) is None
    assert held.read_bytes() == b"hellO"
    store.put(b"hello")
    store.blobs.drop_healed()
    assert store.blobs.read(digest) == b"hello" and not held.exists()
