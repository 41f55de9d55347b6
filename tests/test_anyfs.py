"""What fsspec opens: memory, local files, HTTP, S3 through s3fs; options, versions, errors."""

from __future__ import annotations

import importlib.util
import os
import time
import uuid

import pytest
from remote_suite import FILES, FOLDERS, RemoteSuite
from stores import UUID, lies, run_python

from cas.config import Client, Progress, Settings
from cas.errors import (
    ChangedError,
    CheckpointNotFoundError,
    NotAllowedError,
    OfflineError,
    RemoteError,
    TransientRemoteError,
    UsageError,
)
from cas.index.store import Store
from cas.transfer import fetch, plan
from cas.transfer.anyfs import FsspecRemote
from cas.transfer.retry import RetryingRemote
from cas.transfer.urls import remote_for_storage, remote_for_url

fsspec = pytest.importorskip("fsspec")

LARGE = os.urandom(plan.SMALL + 321)


@pytest.fixture
def settings(tmp_path):
    return Settings(home=tmp_path / "home", progress=Progress.OFF, timeout=5)


@pytest.fixture
def store(tmp_path):
    opened = Store(tmp_path / "home")
    yield opened
    opened.close()
    assert lies(tmp_path / "home") == []


@pytest.fixture
def place():
    """A folder in fsspec's memory."""
    name = f"/{uuid.uuid4().hex}"
    yield name
    fsspec.filesystem("memory").rm(name, recursive=True) if fsspec.filesystem("memory").exists(name) else None


def put(name: str, data: bytes) -> None:
    fsspec.filesystem("memory").pipe_file(name, data)


def pull(store, remote, settings):
    return fetch.pull(store, remote, registry="pulled", uuid=UUID, settings=settings)


class TestMemory(RemoteSuite):
    publishes = True

    @pytest.fixture
    def remote(self, place, settings):
        self.place, self.settings = place, settings
        for name, data in FILES.items():
            put(f"{place}/{UUID}/{name}", data)
        for name in FOLDERS:
            fsspec.filesystem("memory").makedirs(f"{place}/{UUID}/{name}")
        put(f"{place}/{UUID}-other/foreign", b"x")
        return remote_for_url(f"memory:/{place}/{UUID}", settings)

    def replace(self, remote, name, data):
        put(f"{self.place}/{UUID}/{name}", data)

    def empty(self, remote):
        return remote_for_url(f"memory:/{self.place}/nowhere", self.settings)


class TestLocal(RemoteSuite):
    publishes = True

    @pytest.fixture
    def remote(self, tmp_path, settings):
        self.place, self.settings = tmp_path / UUID, settings
        for name, data in FILES.items():
            self.replace(None, name, data)
        for name in FOLDERS:
            (self.place / name).mkdir(parents=True)
        (tmp_path / f"{UUID}-other").mkdir()
        (tmp_path / f"{UUID}-other" / "foreign").write_bytes(b"x")
        return remote_for_url(f"local://{self.place}", settings)

    def replace(self, remote, name, data):
        path = self.place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        os.utime(path, ns=(time.time_ns(), time.time_ns()))

    def empty(self, remote):
        return remote_for_url(f"local://{self.place}-nowhere", self.settings)


@pytest.mark.s3
@pytest.mark.skipif(importlib.util.find_spec("s3fs") is None, reason="no s3fs here: `make test` runs it beside")
class TestS3fs(RemoteSuite):
    publishes = True

    @pytest.fixture
    def remote(self, s3_server, bucket, upload, settings):
        upload({f"p/{UUID}/{name}": data for name, data in FILES.items()})
        upload({f"p/{UUID}/{name}/": b"" for name in FOLDERS})
        upload({f"p/{UUID}-other/foreign": b"x"})
        self.upload, self.settings = upload, settings.but(client=Client.FSSPEC)
        self.storage = s3_server.storage(bucket, "p")
        found = remote_for_storage(self.storage, UUID, self.settings)
        assert isinstance(found, FsspecRemote)
        return found

    def replace(self, remote, name, data):
        self.upload({f"p/{UUID}/{name}": data})

    def empty(self, remote):
        return remote_for_storage(self.storage, str(uuid.uuid4()), self.settings)


def test_one_file_is_a_checkpoint_of_one_file(place, settings):
    put(f"{place}/model.pth", b"weights")
    remote = remote_for_url(f"memory:/{place}/model.pth", settings)
    [file] = remote.list().files
    assert (str(file.path), b"".join(map(bytes, remote.read(file, 2, 5)))) == ("model.pth", b"igh")


def test_a_pull_brings_everything_and_a_second_one_nothing(place, settings, store):
    put(f"{place}/model.pth", LARGE)
    put(f"{place}/code/a.py", b"a = 1\n")
    report = pull(store, remote_for_url(f"memory:/{place}", settings), settings)
    found = {str(entry.path): store.blobs.read(entry.digest) for entry in report.manifest.files}
    assert found == {"model.pth": LARGE, "code/a.py": b"a = 1\n"}
    assert pull(store, remote_for_url(f"memory:/{place}", settings), settings).bytes_fetched == 0


def test_a_file_that_is_replaced_while_it_is_streamed_is_not_taken_for_whole(place, settings):
    put(f"{place}/f", b"x" * (3 << 20))
    remote = remote_for_url(f"memory:/{place}", settings)
    [file] = remote.list().files
    pieces = remote.stream(file)
    next(pieces)
    put(f"{place}/f", b"y" * (3 << 20))
    with pytest.raises(ChangedError):
        list(pieces)


def test_a_file_that_vanishes_has_changed(place, settings):
    put(f"{place}/f", b"x" * 100)
    remote = remote_for_url(f"memory:/{place}", settings)
    [file] = remote.list().files
    fsspec.filesystem("memory").rm(f"{place}/f")
    with pytest.raises((ChangedError, CheckpointNotFoundError)):
        list(remote.read(file, 0, 10))


def test_options_reach_the_file_system_and_are_shown_nowhere(place, settings, store):
    from fsspec.implementations.memory import MemoryFileSystem

    class Guarded(MemoryFileSystem):
        protocol = "guarded"

        def __init__(self, password=None, **options):
            super().__init__(**options)
            self.password = password

        @classmethod
        def _strip_protocol(cls, path):
            return "/" + path.removeprefix("guarded://").strip("/")

        def find(self, path, **options):
            if self.password != "hidden-one":
                raise PermissionError(f"not with {self.password}")
            return super().find(path, **options)

    fsspec.register_implementation("guarded", Guarded, clobber=True)
    put(f"{place}/f", b"x" * 100)
    remote = remote_for_url(f"guarded:/{place}", settings, options={"password": "hidden-one"})
    assert pull(store, remote, settings).files_fetched == 1
    with pytest.raises(NotAllowedError) as caught:
        remote_for_url(f"guarded:/{place}", settings, options={"password": "hidden-two"}).list()
    written = "".join(path.read_text("latin-1") for path in store.home.rglob("*") if path.is_file())
    assert "hidden" not in written + remote.url + str(caught.value)


def test_places_with_other_options_are_other_places(settings):
    options = [{}, {"endpoint_url": "http://a"}, {"endpoint_url": "http://b"}, {"endpoint_url": "http://b", "key": "k"}]
    urls = [FsspecRemote("s3://b/p", one, timeout=1).url for one in options]
    assert len(set(urls)) == 3
    assert urls[2] == urls[3]


def test_a_server_that_keeps_silent_is_given_up(settings):
    from fsspec.implementations.memory import MemoryFileSystem

    class Silent(MemoryFileSystem):
        protocol = "silent"

        def find(self, path, **options):
            time.sleep(30)

    fsspec.register_implementation("silent", Silent, clobber=True)
    began = time.monotonic()
    with pytest.raises(TransientRemoteError, match="no answer in time"):
        FsspecRemote("silent://x", timeout=0.02).list()
    assert time.monotonic() - began < 15


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (PermissionError("no secret-word here"), NotAllowedError),
        (FileNotFoundError("x"), CheckpointNotFoundError),
        (ConnectionResetError("cut"), TransientRemoteError),
        (TypeError("what"), RemoteError),
        (ImportError("Install paramiko"), UsageError),
        (RuntimeError("first\nsecond"), TransientRemoteError),
    ],
)
def test_whatever_a_file_system_raises_is_one_of_our_errors(raised, expected):
    from fsspec.implementations.memory import MemoryFileSystem

    class Failing(MemoryFileSystem):
        protocol = "failing"

        def find(self, path, **options):
            raise raised

    fsspec.register_implementation("failing", Failing, clobber=True)
    with pytest.raises(expected) as caught:
        FsspecRemote("failing://x", {"password": "secret-word"}, timeout=5).list()
    assert "\n" not in str(caught.value) and "secret-word" not in str(caught.value)


@pytest.mark.parametrize("url", ["nonsense://x", "made-up+s3://x", "sftp://user:password@h/x", "://x", "no scheme"])
def test_urls_that_nobody_knows_are_refused(settings, url):
    with pytest.raises(UsageError) as caught:
        remote_for_url(url, settings)
    assert "\n" not in str(caught.value) and "password" not in str(caught.value)


@pytest.mark.parametrize("url", ["ftp://127.0.0.1:9/x", "ftp://nowhere.invalid/x", "http://nowhere.invalid/x/"])
def test_a_place_that_nobody_answers_for_is_out_of_reach_whatever_opens_it(settings, url):
    remote = RetryingRemote(FsspecRemote(url, timeout=5) if url.startswith("ftp") else remote_for_url(url, settings))
    with pytest.raises(OfflineError, match="nobody answers there") as failed:
        remote.list()
    assert "Errno" not in str(failed.value).replace("([Errno -2] ", "(")
    assert "Paced" not in str(failed.value)


def test_options_that_a_file_system_does_not_take_are_refused(settings):
    with pytest.raises((UsageError, RemoteError)):
        FsspecRemote("github://x/y", {"no_such_option": 1}, timeout=5).list()


@pytest.mark.slow
def test_a_forked_child_opens_a_file_system_of_its_own(tmp_path):
    code = """
        import os, sys
        from pathlib import Path
        from cas.transfer.anyfs import FsspecRemote
        place = Path(sys.argv[1]) / "place"
        place.mkdir()
        (place / "f").write_bytes(b"x" * 1000)
        remote = FsspecRemote(f"local://{place}", timeout=10)
        [file] = remote.list().files
        if (child := os.fork()) == 0:
            os._exit(0 if b"".join(map(bytes, remote.read(file, 0, 1000))) == b"x" * 1000 else 1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    import textwrap

    assert run_python(textwrap.dedent(code), tmp_path).strip() == "0"


def test_a_slow_line_is_no_silent_server(settings):
    from fsspec.implementations.memory import MemoryFileSystem

    class Slow(MemoryFileSystem):
        @classmethod
        def _strip_protocol(cls, path):
            return super()._strip_protocol(path.replace("slow://", "memory://"))

        def cat_file(self, path, start=None, end=None, **options):
            time.sleep((end - start) / 20_000)  # bytes a second
            return super().cat_file(path, start, end, **options)

    fsspec.register_implementation("slow", Slow, clobber=True)
    Slow().pipe("/a-slow-place/f", b"x" * 10_000)
    remote = FsspecRemote("slow://a-slow-place", timeout=0.2)
    [file] = remote.list().files
    assert b"".join(remote.read(file, 0, file.size)) == b"x" * 10_000
    Slow().rm("/a-slow-place", recursive=True)
