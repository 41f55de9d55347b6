"""What hinted pulls and publications do to the disk: shared blocks where it can, and nothing wrong at any kill."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest
from container_files import noise, safetensors_file, zip_file
from disks import loop
from kills import Operation, complete, each_kill
from remotes import MemoryRemote
from stores import OTHER_UUID, UUID
from test_kills import is_sound
from test_sidecars import Shelf

from cas.actions import publishing
from cas.actions.places import Place
from cas.config import Progress, Settings
from cas.index import chunkstore
from cas.index.digest import Digest
from cas.index.store import Store
from cas.transfer import fetch, plan
from cas.transfer.folder import FolderRemote
from cas.transfer.remote import Checksum
from cas.transfer.sidecars import read_sidecar

pytestmark = pytest.mark.slow

MIB = 1 << 20


def pull(store: Store, remote: MemoryRemote, uuid: str) -> fetch.PullReport:
    settings = Settings(home=store.home, progress=Progress.OFF, concurrency=2)
    return fetch.pull(store, remote, registry="local", uuid=uuid, settings=settings)


# --- at rest ---------------------------------------------------------------------------------------------------


def free(folder: Path) -> int:
    os.sync()
    found = os.statvfs(folder)
    return found.f_bfree * found.f_frsize


@pytest.mark.root
@pytest.mark.parametrize("kind", ["zip", "sidecar"])
def test_what_siblings_have_in_common_takes_room_once(tmp_path: Path, kind: str) -> None:
    frozen = noise(24 * MIB, 1)
    if kind == "zip":
        files = [zip_file({"frozen": frozen, "head": noise(4 * MIB, seed)}) for seed in (2, 3)]
    else:
        files = [safetensors_file({"frozen": frozen, "head": noise(4 * MIB, seed)}) for seed in (2, 3)]
    with loop(tmp_path / "disk", "xfs", 400, "-m", "reflink=1") as disk:
        store = Store(disk / "home")
        remotes = [Shelf({"model": data}) for data in files]
        if kind == "sidecar":
            publisher = Store(tmp_path / "publisher")
            for number, remote in enumerate(remotes):
                settings = Settings(home=tmp_path, progress=Progress.OFF)
                place = Place("m", (UUID, OTHER_UUID)[number], remote)
                publishing.publish_place(publisher, place, settings=settings)
            publisher.close()
        pull(store, remotes[0], UUID)
        before = free(disk)
        report = pull(store, remotes[1], OTHER_UUID)
        taken = before - free(disk)
        assert store.blobs.read(Digest.of(files[1])) == files[1]
        store.close()
    assert report.bytes_reused >= 24 * MIB
    assert taken < 4 * MIB + MIB


# --- kills -----------------------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let small files be fetched as large ones are, so that hundreds of kills take seconds."""
    monkeypatch.setattr(plan, "SMALL", 100_000)
    monkeypatch.setattr(chunkstore, "LEAST_ZIP", 100_000)


FROZEN = noise(200_000, 1)
FIRST = zip_file({"frozen": FROZEN, "head": noise(60_000, 2)})
SECOND = zip_file({"frozen": FROZEN, "head": noise(60_000, 3)})


def killed(folder: Path, setup: Operation, act: Operation, afterwards: Operation) -> int:
    """Kill at many steps: what is left is sound, and the same again completes."""
    count = 0
    for kill, home in each_kill(folder, setup, act, at_most=28):
        try:
            is_sound(home)
            complete(home, act)
            is_sound(home, set())
            afterwards(home)
        except BaseException as error:
            error.add_note(str(kill))
            raise
        count += 1
    return count


def remote_of(data: bytes) -> MemoryRemote:
    remote = MemoryRemote({"model.pth": data})
    remote.declared = {"model.pth": (Checksum("md5", hashlib.md5(data).digest()),)}
    return remote


def test_a_hinted_pull_killed_anywhere(memory: Path, small: None) -> None:
    def setup(home: Path) -> None:
        store = Store(home)
        pull(store, remote_of(FIRST), UUID)
        store.close()

    def act(home: Path) -> None:
        pull(Store(home), remote_of(SECOND), OTHER_UUID)

    def afterwards(home: Path) -> None:
        store = Store(home)
        manifest = store.resolve("local", OTHER_UUID)
        assert manifest is not None
        assert [store.blobs.read(one.digest) for one in manifest.files if one.digest] == [SECOND]

    assert killed(memory, setup, act, afterwards) > 10


def test_a_lie_that_is_found_out_killed_anywhere(memory: Path, small: None) -> None:
    """The donor's bytes are wrong for this file: at no kill does the next pull take them over."""
    import zlib

    from container_files import directory_changed

    liar = directory_changed(
        zip_file({"frozen": noise(200_000, 9), "head": noise(60_000, 3)}), 0, crc=zlib.crc32(FROZEN)
    )

    def setup(home: Path) -> None:
        store = Store(home)
        pull(store, remote_of(FIRST), UUID)
        store.close()

    def act(home: Path) -> None:
        pull(Store(home), remote_of(liar), OTHER_UUID)

    def afterwards(home: Path) -> None:
        store = Store(home)
        manifest = store.resolve("local", OTHER_UUID)
        assert manifest is not None
        assert [store.blobs.read(one.digest) for one in manifest.files if one.digest] == [liar]

    assert killed(memory, setup, act, afterwards) > 10


def test_a_publication_killed_anywhere(memory: Path) -> None:
    def remote(home: Path) -> FolderRemote:
        return FolderRemote(home.parent / "share" / UUID)

    def setup(home: Path) -> None:
        shutil.rmtree(home.parent / "share", ignore_errors=True)
        remote(home).path.mkdir(parents=True)
        for name, data in {"model.bin": noise(100_000), "a.py": b"a = 1\n"}.items():
            (remote(home).path / name).write_bytes(data)
            os.utime(remote(home).path / name, ns=(10**18, 10**18))

    def act(home: Path) -> None:
        settings = Settings(home=home, progress=Progress.OFF)
        publishing.publish_place(Store(home), Place("local", UUID, remote(home)), settings=settings)

    count = 0
    for kill, home in each_kill(memory, setup, act, at_most=28):
        published = read_sidecar(remote(home))
        path = home.parent / "share" / ".cas" / f"{UUID}.sidecar"
        assert path.exists() == (published is not None), kill  # whole, or not there at all
        act(home)
        published = read_sidecar(remote(home))
        assert published is not None, kill
        assert [one.path for one in published.files] == ["a.py", "model.bin"], kill
        assert all(
            one.is_of(file.identity) for one, file in zip(published.files, remote(home).list().files, strict=True)
        )
        count += 1
    assert count > 10
