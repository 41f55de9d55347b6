"""A master's archives: every type is read, what is hostile or not whole is refused, nothing lands outside."""

from __future__ import annotations

import contextlib
import gzip
import io
import tarfile
import zipfile

import pytest
from archives import TYPES, archive, tar
from remote_suite import FILES, FOLDERS, RemoteSuite

from cas.errors import CheckpointNotFoundError, ContentError, TransientRemoteError, UnsafeNameError
from cas.transfer.archive import ArchiveRemote
from cas.transfer.remote import Remote

SIZES = {name: len(data) for name, data in FILES.items()} | {f"{name}/": 0 for name in FOLDERS}
TAR, GZIP, ZIP = TYPES


def remote_of(folder, data: bytes, kind: str = TAR, sizes=None, **options) -> ArchiveRemote:
    @contextlib.contextmanager
    def opened():
        yield kind, io.BytesIO(data)

    return ArchiveRemote("http://master/checkpoints/u", opened, folder, sizes=sizes or {}, **options)


def content(remote: Remote) -> dict[str, bytes]:
    return {str(file.path): b"".join(map(bytes, remote.stream(file))) for file in remote.list().files}


class ArchiveSuite(RemoteSuite):
    kind = ""
    is_snapshot = True

    @pytest.fixture
    def remote(self, tmp_path):
        return remote_of(tmp_path, archive(FILES, self.kind), self.kind, SIZES)

    def replace(self, remote, name, data):
        """What the master has now is of no concern: the archive is here."""

    def empty(self, remote):
        @contextlib.contextmanager
        def refuse():
            raise CheckpointNotFoundError("checkpoint 'u' not found")
            yield

        return ArchiveRemote("http://master/checkpoints/u", refuse, remote._scratch, sizes={})


class TestTar(ArchiveSuite):
    kind = TAR


class TestGzip(ArchiveSuite):
    kind = GZIP


class TestZip(ArchiveSuite):
    kind = ZIP


@pytest.mark.parametrize("kind", TYPES)
def test_an_archive_that_broke_off_is_never_taken_for_whole(tmp_path, kind):
    data = archive({"a": b"x" * 3000, "zeros": bytes(4096)}, kind)
    whole = remote_of(tmp_path, data, kind)
    assert set(content(whole)) == {"a", "zeros"}
    for length in sorted({*range(0, len(data), 97), *range(max(0, len(data) - 2100), len(data) - 512, 512)}):
        with pytest.raises(TransientRemoteError):
            remote_of(tmp_path, data[:length], kind).list()


def test_bytes_behind_the_end_of_a_tar_are_bounded(tmp_path):
    class Endless(io.RawIOBase):
        def __init__(self):
            self.first = tar([("a", b"x", {})])

        def read(self, count=-1):
            data, self.first = (self.first, b"") if self.first else (bytes(count), b"")
            return data[:count] if data[count:] == b"" else (data[:count], setattr(self, "first", data[count:]))[0]

    @contextlib.contextmanager
    def opened():
        yield TAR, Endless()

    assert content(ArchiveRemote("u", opened, tmp_path, sizes={})) == {"a": b"x"}


@pytest.mark.parametrize("kind", TYPES)
def test_a_missing_file_is_refused_unless_the_checkpoint_was_deleted_in_part(tmp_path, kind):
    data = archive({"a": b"x"}, kind)
    with pytest.raises(ContentError, match="b is missing, but the checkpoint's record names it"):
        remote_of(tmp_path, data, kind, {"a": 1, "b": 2}).list()
    assert content(remote_of(tmp_path, data, kind, {"a": 1, "b": 2}, partial=True)) == {"a": b"x"}


@pytest.mark.parametrize("kind", TYPES)
def test_a_size_other_than_the_records_is_refused_before_it_is_unpacked(tmp_path, kind):
    data = archive({"a": bytes(50_000_000)}, kind)
    with pytest.raises(ContentError, match="a has 50000000 bytes, but its record says 5"):
        remote_of(tmp_path, data, kind, {"a": 5}).list()
    assert sum(path.stat().st_size for path in tmp_path.glob("files/*")) == 0


@pytest.mark.parametrize("name", ["../out", "/out", "a/../../out", "a\\b", "a\nb", ".", "x" * 300])
@pytest.mark.parametrize("kind", [TAR, ZIP])
def test_hostile_names_are_refused(tmp_path, name, kind):
    place = tmp_path / "deep" / "scratch"
    place.mkdir(parents=True)
    with pytest.raises((UnsafeNameError, ContentError)):
        remote_of(place, archive({"fine": b"x", name: b"evil"}, kind), kind).list()
    assert [path.name for path in tmp_path.rglob("*") if path.is_file() and path.read_bytes() == b"evil"] == []


@pytest.mark.parametrize(
    "fields",
    [
        {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd", "size": 0},
        {"type": tarfile.LNKTYPE, "linkname": "fine", "size": 0},
        {"type": tarfile.CHRTYPE, "size": 0},
        {"type": tarfile.FIFOTYPE, "size": 0},
    ],
)
def test_links_and_devices_are_refused(tmp_path, fields):
    with pytest.raises(ContentError, match="no plain file"):
        remote_of(tmp_path, tar([("fine", b"x", {}), ("evil", b"", fields)])).list()


def test_a_symlink_in_a_zip_is_refused(tmp_path):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as packed:
        member = zipfile.ZipInfo("evil")
        member.external_attr = 0o120777 << 16
        packed.writestr(member, "/etc/passwd")
    with pytest.raises(ContentError, match="no plain file"):
        remote_of(tmp_path, out.getvalue(), ZIP).list()


@pytest.mark.parametrize("files", [["a", "a"], ["a", "a/b"]])
def test_names_that_clash_are_refused(tmp_path, files):
    with pytest.raises(UnsafeNameError):
        remote_of(tmp_path, tar([(name, b"x", {}) for name in files])).list()


def test_a_header_that_would_fill_the_memory_is_refused(tmp_path):
    member = tarfile.TarInfo("x")
    member.type, member.size = tarfile.XHDTYPE, 8 << 30
    with pytest.raises(ContentError, match="header of"):
        remote_of(tmp_path, member.tobuf(tarfile.GNU_FORMAT) + bytes(4096)).list()


def test_a_flipped_bit_in_a_packed_archive_is_noticed(tmp_path):
    for kind in (GZIP, ZIP):
        data = bytearray(archive({"a": bytes(range(256)) * 40}, kind))
        data[len(data) // 2] ^= 1
        with pytest.raises((TransientRemoteError, ContentError)):
            content(remote_of(tmp_path, bytes(data), kind))


def test_only_a_zip_declares_checksums(tmp_path):
    for kind in TYPES:
        remote = remote_of(tmp_path, archive({"a": b"x"}, kind), kind)
        [file] = remote.list().files
        assert [checksum.kind for checksum in remote.checksums(file)] == (["crc32"] if kind == ZIP else [])


def test_what_is_no_archive_is_one_clear_line(tmp_path):
    for kind in TYPES:
        for data in (b"", b"hello", b"\x1f\x8b" + bytes(100), gzip.compress(b"hello")):
            with pytest.raises(TransientRemoteError) as caught:
                remote_of(tmp_path, data, kind).list()
            assert "\n" not in str(caught.value)
