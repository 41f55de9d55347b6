"""What every remote must do; an adapter's test class says how to make one (`make`), and this does the rest."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from stores import OTHER_UUID, UUID

from cas.actions.places import Place
from cas.actions.publishing import publish_place
from cas.config import Progress, Settings
from cas.errors import CasError, ChangedError, CheckpointNotFoundError
from cas.index.store import Store
from cas.transfer.fetch import pull
from cas.transfer.remote import Remote, RemoteFile
from cas.transfer.retry import RetryingRemote
from cas.transfer.sidecars import KeepsSidecars

LARGE = random.Random(1).randbytes((3 << 20) + 17)
FILES: dict[str, bytes] = {
    "model.pth": LARGE,
    "metadata.json": b"{}",
    "empty": b"",
    "code/model_def.py": b"class Trial: ...",
    "code/a b+c%20d#e&f~g.py": b"odd",
    "code/ünïcode/雪.txt": "雪".encode(),
    "deep/er/still/x": b"x",
}
FOLDERS = ("code/empty", "nested/deep/empty")


class RemoteSuite:
    """Tests of one adapter; subclasses give `make`, which may use fixtures through `self.setup`."""

    publishes = False  # sidecars can be written beside it
    is_snapshot = False  # the remote was copied when it was listed: what is replaced later is read as it was

    @pytest.fixture
    def remote(self) -> Remote:
        """A remote that has FILES and FOLDERS, and a neighbour `<place>-other` with a file in it."""
        raise AssertionError("each adapter makes its own")

    def replace(self, remote: Any, name: str, data: bytes) -> None:
        """Write another version of a file."""
        raise AssertionError("each adapter has its own way")

    def empty(self, remote: Any) -> Remote:
        """A remote of a place where nothing is."""
        raise AssertionError("each adapter makes its own")

    def file(self, remote: Remote, name: str) -> RemoteFile:
        return next(file for file in remote.list().files if file.path == name)

    def test_lists_every_file_with_its_size_and_nothing_else(self, remote):
        assert {str(file.path): file.size for file in remote.list().files} == {n: len(d) for n, d in FILES.items()}

    def test_lists_empty_folders(self, remote):
        assert set(FOLDERS) <= {str(folder) for folder in remote.list().directories}

    def test_reads_whole_files(self, remote):
        for file in remote.list().files:
            if file.size:
                assert b"".join(map(bytes, remote.read(file, 0, file.size))) == FILES[file.path]

    @pytest.mark.parametrize(
        ("start", "end"), [(0, 1), (1, 2), (0, 1 << 20), (777, (2 << 20) + 5), (len(LARGE) - 1, len(LARGE))]
    )
    def test_reads_exactly_the_range_asked_for(self, remote, start, end):
        file = self.file(remote, "model.pth")
        assert b"".join(map(bytes, remote.read(file, start, end))) == LARGE[start:end]

    def test_streams_a_whole_file(self, remote):
        file = self.file(remote, "model.pth")
        assert b"".join(map(bytes, remote.stream(file))) == LARGE

    def test_reads_from_many_threads_at_once(self, remote):
        file = self.file(remote, "model.pth")
        spans = [(at, min(at + 200_000, len(LARGE))) for at in range(0, len(LARGE), 200_000)]
        with ThreadPoolExecutor(8) as pool:
            found = pool.map(lambda span: b"".join(map(bytes, remote.read(file, *span))), spans)
        assert b"".join(found) == LARGE

    def test_two_listings_of_unchanged_files_give_equal_identities(self, remote):
        assert [file.identity for file in remote.list().files] == [file.identity for file in remote.list().files]

    def test_identities_name_each_file_once_and_no_credentials(self, remote):
        keys = [file.identity.key for file in remote.list().files]
        assert len(set(keys)) == len(keys)
        assert not any("secret" in key for key in keys)
        assert "secret" not in remote.url

    def test_a_replaced_file_is_never_read_as_the_one_that_was_listed(self, remote):
        file = self.file(remote, "model.pth")
        self.replace(remote, "model.pth", b"y" * len(LARGE))
        if self.is_snapshot:
            assert b"".join(map(bytes, remote.read(file, 100, 200))) == LARGE[100:200]
            return
        with pytest.raises(ChangedError):
            b"".join(map(bytes, remote.read(file, 100, 200)))
        assert self.file(remote, "model.pth").identity != file.identity

    def test_a_replaced_file_of_another_size_is_noticed(self, remote):
        file = self.file(remote, "model.pth")
        self.replace(remote, "model.pth", b"y" * (len(LARGE) + 5))
        if self.is_snapshot:
            assert b"".join(map(bytes, remote.read(file, 100, 200))) == LARGE[100:200]
            return
        with pytest.raises(ChangedError):
            b"".join(map(bytes, remote.read(file, 100, 200)))

    def test_a_place_with_nothing_in_it_is_not_found(self, remote):
        with pytest.raises(CheckpointNotFoundError):
            self.empty(remote).list()

    def test_what_is_published_beside_it_is_read_back_and_no_part_of_it(self, remote):
        assert isinstance(remote, KeepsSidecars) == self.publishes or isinstance(remote, RetryingRemote)
        if not self.publishes:
            return
        before = remote.list()
        assert remote.read_sidecar(1000) is None
        assert remote.write_sidecar(b"first" * 100).endswith(".sidecar")
        url = remote.write_sidecar(b"second")
        assert remote.read_sidecar(6) == b"second"
        assert remote.list() == before
        assert "/.cas/" in url
        with pytest.raises(CasError):
            remote.read_sidecar(5)

    def test_declared_checksums_are_right(self, remote):
        from cas.transfer import checksums

        for file in remote.list().files:
            for checksum in (*remote.checksums(file), *remote.likely_checksums(file)):
                assert checksums.matches(checksum, FILES[file.path]), f"{file.path}: {checksum}"


def siblings() -> tuple[bytes, bytes]:
    """Two files of 9 MiB that differ in 300 kB in their middle."""
    first = random.Random(5).randbytes(9 << 20)
    return first, first[: 4 << 20] + random.Random(6).randbytes(300_000) + first[(4 << 20) + 300_000 :]


def require_cheap_sibling(remote_of: Callable[[str], Remote], folder: Path) -> None:
    """Publish the second of two siblings that lie at `one` and `two`; who has the first fetches the changed chunks."""
    settings = Settings(home=folder / "unused", progress=Progress.OFF)
    publisher, mine = Store(folder / "publisher"), Store(folder / "mine")
    try:
        publish_place(publisher, Place("m", OTHER_UUID, remote_of("two")), settings=settings)
        pull(mine, remote_of("one"), registry="m", uuid=UUID, settings=settings)
        report = pull(mine, remote_of("two"), registry="m", uuid=OTHER_UUID, settings=settings)
        assert mine.blobs.read(report.manifest.files[0].digest) == siblings()[1]
        assert 300_000 <= report.bytes_fetched < 2 << 20
    finally:
        publisher.close()
        mine.close()
