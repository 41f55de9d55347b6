"""Sidecars beside checkpoints in a folder and on a real S3 server."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace

import pytest
from container_files import noise, npz_file, safetensors_file
from proxy import counting
from remotes import CountingRemote, MemoryRemote
from s3_server import READER_KEY, READER_SECRET
from stores import OTHER_UUID, UUID, damage, lies, uuid

from cas.actions import publishing
from cas.actions.places import Place
from cas.config import Progress, Settings
from cas.errors import ChangedError, NotAllowedError, RemoteError, UsageError
from cas.index.digest import Digest
from cas.index.sidecar import Sidecar
from cas.index.store import Store
from cas.transfer import fetch
from cas.transfer.folder import FolderRemote
from cas.transfer.remote import Checksum, Listing
from cas.transfer.sidecars import read_sidecar, sidecar_key, without_sidecars
from cas.transfer.urls import remote_for_storage

pytestmark = pytest.mark.slow

MIB = 1 << 20


class Shelf(MemoryRemote):
    """A remote in memory that a sidecar can lie beside, and whose ETags are MD5s."""

    sidecar: bytes | None = None

    def read_sidecar(self, limit: int) -> bytes | None:
        return self.sidecar

    def write_sidecar(self, data: bytes) -> str:
        self.sidecar = data
        return "memory:.cas/x.sidecar"

    def write(self, name: str, data: bytes) -> None:
        super().write(name, data)
        checksum = Checksum("md5", hashlib.md5(data).digest())
        self.declared[name] = self.likely[name] = (checksum,)


class CountingShelf(CountingRemote):
    def read_sidecar(self, limit: int) -> bytes | None:
        return self.inner.read_sidecar(limit)

    def write_sidecar(self, data: bytes) -> str:
        return self.inner.write_sidecar(data)


@pytest.fixture
def stores(tmp_path):
    """Stores by name: a publisher's, and others'."""
    opened: dict[str, Store] = {}

    def get(name: str) -> Store:
        if name not in opened:
            opened[name] = Store(tmp_path / name)
        return opened[name]

    yield get
    for name, store in opened.items():
        store.close()
        assert lies(tmp_path / name) == []


@pytest.fixture
def settings(tmp_path):
    return Settings(home=tmp_path / "unused", progress=Progress.OFF)


@pytest.fixture
def publish(stores, settings):
    def run(remote, name=UUID):
        place = Place("m", name, remote)
        return publishing.publish_place(stores("publisher"), place, settings=settings)

    return run


@pytest.fixture
def pull(stores, settings):
    def run(remote, name=OTHER_UUID, store="mine"):
        counted = CountingShelf(remote)
        report = fetch.pull(stores(store), counted, registry="m", uuid=name, settings=settings)
        found = {str(one.path): stores(store).blobs.read(one.digest) for one in report.manifest.files}
        assert found == {name: data for name, (data, _) in remote._files.items()}
        return report, counted.total

    return run


PLAIN = noise(12 * MIB, 1)


def changed(data: bytes) -> bytes:
    """With something inserted, something deleted and something replaced."""
    return (
        data[:MIB]
        + noise(300_000, 9)
        + data[MIB : 5 * MIB]
        + data[5 * MIB + 70_000 : 9 * MIB]
        + noise(200_000, 8)
        + data[9 * MIB + 200_000 :]
    )


def test_insertions_and_deletions_cost_what_they_are_and_little_more(publish, pull, stores):
    first, second = Shelf({"x.bin": PLAIN}), Shelf({"x.bin": changed(PLAIN)})
    publish(first)
    publish(second, uuid(2))
    pull(first, UUID)
    report, total = pull(second)
    assert total < 500_000 + 4 * 2 * 256 * 1024
    assert report.bytes_reused == len(changed(PLAIN)) - total
    assert report.proofs == {"x.bin": "origin checksum (md5)"}


def test_blobs_that_came_with_no_sidecar_are_cut_when_one_is_to_match(publish, pull, stores):
    first, second = Shelf({"x.bin": PLAIN}), Shelf({"x.bin": changed(PLAIN)})
    publish(second, uuid(2))
    pull(first, UUID)
    assert pull(second)[1] < 500_000 + 4 * 2 * 256 * 1024


def test_a_file_that_is_here_under_another_name_is_not_fetched_at_all(publish, pull, stores):
    data = {"a/model.bin": PLAIN, "code.py": b"print()\n" * 10, "medium.bin": noise(100_000)}
    publish(Shelf(data))
    remote = Shelf({f"other/{name}": content for name, content in data.items()})
    publish(remote, uuid(2))
    pull(Shelf(data), UUID)
    report, total = pull(remote)
    assert total == 0
    assert report.bytes_reused == sum(map(len, data.values()))


def test_small_files_come_with_the_sidecar_itself(publish, pull):
    files = {f"{number}.py": noise(number * 10, number) for number in range(50)}
    remote = Shelf(files)
    publish(remote)
    assert pull(remote)[1] == 0


def test_what_was_pulled_with_a_sidecar_can_give_to_the_next(publish, pull, stores):
    remote = Shelf({"x.bin": PLAIN})
    publish(remote)
    report, _ = pull(remote)
    digest = report.manifest.files[0].digest
    assert stores("mine").chunks.get(digest, len(PLAIN)) == stores("publisher").chunks.get(digest, len(PLAIN))


def test_a_second_publication_replaces_the_first(publish, pull):
    remote = Shelf({"a": b"1"})
    publish(remote)
    remote.write("a", b"2")
    report = publish(remote)
    assert report.files == 1
    assert Sidecar.parse(remote.sidecar).files[0].whole == b"2"


def test_files_that_change_while_they_are_published_are_refused(stores, settings):
    class Restless(Shelf):
        def list(self):
            found = super().list()
            self.write("a", noise(10, len(self._files) + self._versions))
            return found

    with pytest.raises(ChangedError):
        publishing.publish_place(stores("publisher"), Place("m", UUID, Restless({"a": b"1"})), settings=settings)


def test_nothing_is_published_of_objects_with_no_version(publish):
    remote = Shelf({"a": b"1"})
    remote.has_validators = False
    with pytest.raises(UsageError, match="no version"):
        publish(remote)
    assert remote.sidecar is None


def test_nothing_is_published_where_nothing_can_lie_beside(publish):
    with pytest.raises(UsageError, match="nothing can be published beside memory:"):
        publish(MemoryRemote({"a": b"1"}))


# --- hostile and stale ones ------------------------------------------------------------------------------------


def test_a_stale_sidecar_is_passed_over(publish, pull):
    remote = Shelf({"x.bin": PLAIN, "a.py": b"old"})
    publish(remote)
    pull(Shelf({"x.bin": PLAIN}), UUID)
    remote.write("x.bin", noise(12 * MIB, 5))
    remote.write("a.py", b"new")
    assert pull(remote)[1] == 12 * MIB + 3


def forged(remote: Shelf, **changes: object) -> None:
    """Change what the sidecar says of its first file."""
    files = Sidecar.parse(remote.sidecar).files
    remote.sidecar = Sidecar((replace(files[0], **changes), *files[1:])).encode()


def test_a_sidecar_that_names_a_blob_we_hold_never_replaces_the_objects_bytes(publish, pull, stores):
    """The object has other bytes than the sidecar says: of a blob that is here, whole, and of its chunks."""
    remote = Shelf({"x.bin": noise(12 * MIB, 6)})
    publish(remote)
    pull(Shelf({"x.bin": PLAIN}), UUID)
    held = stores("mine").put(PLAIN)
    honest = publish(Shelf({"x.bin": PLAIN}), uuid(3))
    assert honest.files == 1
    chunks = stores("publisher").chunks.get(held, len(PLAIN))
    forged(remote, digest=held, chunks=chunks)
    report, total = pull(remote)
    assert total == 12 * MIB
    assert report.proofs == {"x.bin": "origin checksum (md5)"}
    forged(remote, digest=Digest.of(b"unknown"))
    report, total = pull(remote, uuid(4), "another")
    assert total == 12 * MIB


def test_a_sidecar_that_names_small_files_we_hold_never_replaces_them(publish, pull, stores):
    remote = Shelf({"a.bin": noise(9000, 6)})
    publish(remote)
    held = stores("mine").put(noise(9000, 7))
    forged(remote, digest=held)
    assert pull(remote)[1] == 9000
    forged(remote, digest=Digest.of(b"unknown"), inline=b"")
    assert pull(remote, uuid(4), "another")[1] == 9000


def test_bytes_in_a_sidecar_that_are_not_those_of_their_chunks_are_not_used(publish, pull):
    remote = Shelf({"a.py": b"print(1)\n"})
    publish(remote)
    forged(remote, inline=b"print(2)\n")
    assert pull(remote)[1] == 9


def test_without_a_checksum_of_the_object_no_sidecar_is_used(publish, pull):
    remote = Shelf({"x.bin": PLAIN, "a.py": b"a"})
    publish(remote)
    remote.declared.clear()
    remote.likely.clear()
    pull(Shelf({"other.bin": PLAIN}), UUID)
    assert pull(remote)[1] == len(PLAIN) + 1


@pytest.mark.parametrize("data", [b"", b"garbage", b"\x28\xb5\x2f\xfd" + noise(1000)])
def test_a_sidecar_that_is_none_is_as_good_as_none(pull, data):
    remote = Shelf({"x.bin": noise(100)})
    remote.sidecar = data
    assert pull(remote)[1] == 100


def test_a_sidecar_that_may_not_be_read_is_as_good_as_none(pull):
    class Closed(Shelf):
        def read_sidecar(self, limit):
            raise NotAllowedError("403")

    assert pull(Closed({"x.bin": noise(100)}))[1] == 100


def test_a_sidecar_that_never_comes_is_not_waited_for_long(pull, monkeypatch):
    import threading

    from cas.transfer import hints

    monkeypatch.setattr(hints, "SIDECAR_WAIT", 0.05)
    never = threading.Event()

    class Silent(Shelf):
        def read_sidecar(self, limit):
            never.wait(20)

    assert pull(Silent({"x.bin": noise(100)}))[1] == 100
    never.set()


def test_a_donor_that_is_damaged_gives_nothing_wrong(publish, pull, stores):
    first, second = Shelf({"x.bin": PLAIN}), Shelf({"x.bin": changed(PLAIN)})
    publish(first)
    publish(second, uuid(2))
    report, _ = pull(first, UUID)
    damage(stores("mine").layout.blob(report.manifest.files[0].digest))
    assert pull(second)[1] == len(changed(PLAIN))


def test_a_chunk_list_that_lies_costs_bytes_only(publish, pull, stores):
    from cas.index.chunks import ChunkList

    first, second = Shelf({"x.bin": PLAIN}), Shelf({"x.bin": changed(PLAIN)})
    publish(first)
    publish(second, uuid(2))
    report, _ = pull(first, UUID)
    digest = report.manifest.files[0].digest
    known = list(stores("mine").chunks.get(digest, len(PLAIN)))
    turned = ChunkList.of(
        "fastcdc-1", [(one.length, other.digest) for one, other in zip(known, known[::-1], strict=True)]
    )
    with stores("mine").staging("lie") as staging:
        stores("mine").chunks.put(digest, turned, staging.folder)
    report, total = pull(second)
    assert total <= len(changed(PLAIN)) + MIB
    assert report.proofs == {"x.bin": "origin checksum (md5)"}


# --- places --------------------------------------------------------------------------------------------------------


def test_a_sidecar_lies_beside_the_checkpoint_and_not_in_it(tmp_path, stores, settings):
    folder = tmp_path / "share" / UUID
    folder.mkdir(parents=True)
    (folder / "model.bin").write_bytes(noise(1000))
    os.utime(folder / "model.bin", ns=(10**18, 10**18))
    remote = FolderRemote(folder)
    assert read_sidecar(remote) is None
    report = publishing.publish_place(stores("publisher"), Place("m", UUID, remote), settings=settings)
    path = tmp_path / "share" / ".cas" / f"{UUID}.sidecar"
    assert report.url == f"file://{path}"
    assert sorted(os.listdir(tmp_path / "share")) == [".cas", UUID]
    assert os.listdir(path.parent) == [path.name]
    assert os.listdir(folder) == ["model.bin"]
    assert read_sidecar(remote).files[0].is_of(remote.list().files[0].identity)


def test_a_folder_whose_sidecar_is_no_file_has_none(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / ".cas" / "x.sidecar").mkdir(parents=True)
    assert read_sidecar(FolderRemote(tmp_path / "x")) is None
    (tmp_path / ".cas" / "x.sidecar").rmdir()
    os.mkfifo(tmp_path / ".cas" / "x.sidecar")
    assert read_sidecar(FolderRemote(tmp_path / "x")) is None


def test_where_sidecars_lie():
    assert sidecar_key("models/x") == "models/.cas/x.sidecar"
    assert sidecar_key("x") == ".cas/x.sidecar"
    assert sidecar_key("") == ".cas/.sidecar"
    assert sidecar_key("/srv/x/") == "/srv/.cas/x.sidecar"


def test_sidecars_are_no_part_of_a_checkpoint_above_them():
    remote = MemoryRemote(
        {"a": b"", ".cas/x.sidecar": b"", ".cas/.sidecar": b"", ".cas/notes": b"", "x/.cas/y.sidecar": b""},
        directories=(".cas",),
    )
    assert [str(one.path) for one in without_sidecars(remote.list()).files] == [".cas/notes", "a", "x/.cas/y.sidecar"]
    only = MemoryRemote({"a": b"", ".cas/x.sidecar": b""}, directories=(".cas", "b"))
    assert without_sidecars(only.list()) == Listing(tuple(one for one in only.list().files if one.path == "a"), ("b",))


# --- on a real server ----------------------------------------------------------------------------------------------


@pytest.mark.s3
def test_a_sidecar_in_a_bucket_is_written_read_and_bounded(s3_server, bucket, settings):
    for prefix in ("models", ""):
        remote = remote_for_storage(s3_server.storage(bucket, prefix=prefix), UUID, settings)
        assert remote.read_sidecar(10) is None
        assert (
            remote.write_sidecar(b"0123456789")
            == f"s3+{s3_server.endpoint}/{bucket}/{prefix and 'models/'}.cas/{UUID}.sidecar"
        )
        assert remote.read_sidecar(10) == b"0123456789"
        with pytest.raises(RemoteError, match="more than 9 bytes"):
            remote.read_sidecar(9)


@pytest.mark.s3
def test_a_sidecar_that_may_not_be_written_is_one_clear_error(s3_server, bucket, settings):
    storage = s3_server.storage(bucket, access_key=READER_KEY, secret_key=READER_SECRET)
    with pytest.raises(NotAllowedError, match="AccessDenied"):
        remote_for_storage(storage, UUID, settings).write_sidecar(b"x")


def tar_file(files: dict[str, bytes]) -> bytes:
    import io
    import tarfile

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def h5_file(arrays: dict[str, bytes]) -> bytes:
    import io

    import h5py
    import numpy as np

    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for name, data in arrays.items():
            file.create_dataset(name, data=np.frombuffer(data, np.uint8))
    return buffer.getvalue()


def arrays(seed: int) -> dict[str, bytes]:
    """Two thirds of them are frozen."""
    frozen = {f"layer{number}": noise(4 * MIB + 12345, number) for number in range(2)}
    return {"added": noise(seed * 1000, 50 + seed), **frozen, "head": noise(4 * MIB, 100 + seed)}


def array_of(data: bytes):
    import numpy as np

    return np.frombuffer(data, np.uint8)


FORMATS = {
    "model.safetensors": lambda seed: safetensors_file(arrays(seed)),
    "model.npz": lambda seed: npz_file({name: array_of(data) for name, data in arrays(seed).items()}),
    "model.h5": lambda seed: h5_file(arrays(seed)),
    "variables.data-00000-of-00001": lambda seed: b"".join(arrays(seed).values()),
    "model.tar": lambda seed: tar_file(arrays(seed)),
    "random.bin": lambda seed: PLAIN if seed == 1 else PLAIN[: 5 * MIB] + noise(4 * MIB, 2) + PLAIN[6 * MIB :],
}


@pytest.mark.s3
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("part_size", [None, 8 * MIB], ids=["whole", "parts"])
def test_a_sibling_of_any_format_transfers_what_was_changed(
    name, part_size, stores, settings, s3_server, bucket, upload
):
    first, second = FORMATS[name](1), FORMATS[name](2)
    upload({f"models/{UUID}/{name}": first, f"models/{OTHER_UUID}/{name}": second}, part_size)
    storage = s3_server.storage(bucket, prefix="models")
    for one in (UUID, OTHER_UUID):
        place = Place("m", one, remote_for_storage(storage, one, settings))
        report = publishing.publish_place(stores("publisher"), place, settings=settings)
        assert report.url.endswith(f"/models/.cas/{one}.sidecar")
    with counting(s3_server) as proxy:
        there = proxy.server.storage(bucket, prefix="models")
        for one, data in ((UUID, first), (OTHER_UUID, second)):
            proxy.exchanges.clear()
            remote = remote_for_storage(there, one, settings)
            report = fetch.pull(stores("mine"), remote, registry="m", uuid=one, settings=settings)
            assert stores("mine").blobs.read(report.manifest.files[0].digest) == data
        assert report.bytes_fetched == proxy.bodies(name)
        assert proxy.bodies(name) <= 1.05 * 4 * MIB
        assert proxy.bodies(".sidecar") < 20_000
        assert report.proofs[name] == "origin checksum (md5)"
