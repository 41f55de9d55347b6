"""Plain HTTP against a real server: index pages, named files, versions, servers without ranges, redirects."""

from __future__ import annotations

import random
from typing import ClassVar

import pytest
from proxy import Fault, answer, relaying
from remote_suite import FILES, FOLDERS, RemoteSuite
from stores import UUID, lies
from web_server import serving

from cas.config import Progress, Settings, Verify
from cas.errors import (
    CasError,
    ChangedError,
    CheckpointNotFoundError,
    ContentError,
    NotAllowedError,
    RemoteError,
    TransientRemoteError,
    UnsafeNameError,
    UsageError,
)
from cas.index.paths import RelativePath
from cas.index.store import Store
from cas.transfer import fetch, plan, retry
from cas.transfer.remote import RangesIgnoredError
from cas.transfer.urls import remote_for_url
from cas.transfer.web import WebRemote, public_url

LARGE = random.Random(4).randbytes(plan.SMALL + 12345)


@pytest.fixture
def site(tmp_path):
    place = tmp_path / "site"
    (place / "here").mkdir(parents=True)
    with serving(place) as running:
        yield running


@pytest.fixture
def settings(tmp_path):
    return Settings(home=tmp_path / "home", progress=Progress.OFF, timeout=5)


@pytest.fixture
def store(tmp_path):
    opened = Store(tmp_path / "home")
    yield opened
    opened.close()
    assert lies(tmp_path / "home") == []


def remote_of(site, path="here/", **options):
    return WebRemote(site.url + path, timeout=5, **options)


def whole(remote, name):
    [file] = [file for file in remote.list().files if file.path == name]
    return b"".join(map(bytes, remote.read(file, 0, file.size)))


def pull(store, remote, settings):
    return fetch.pull(store, remote, registry="pulled", uuid=UUID, settings=settings)


class WebSuite(RemoteSuite):
    options: ClassVar[dict[str, object]] = {}

    @pytest.fixture
    def remote(self, site):
        for name, data in FILES.items():
            site.write(f"here/{name}", data)
        for name in FOLDERS:
            (site.folder / "here" / name).mkdir(parents=True)
        site.write("here-other/foreign", b"x")
        for name, value in self.options.items():
            setattr(site, name, value)
        self.site = site
        return remote_of(site)

    def replace(self, remote, name, data):
        self.site.write(f"here/{name}", data, age=1800)

    def empty(self, remote):
        return remote_of(self.site, "nowhere/")


class TestHtmlIndex(WebSuite):
    pass


class TestJsonIndex(WebSuite):
    options: ClassVar = {"index": "json"}


class TestOnlyTimesTellVersions(WebSuite):
    options: ClassVar = {"etag": "none"}


class TestAServerThatIgnoresConditions(WebSuite):
    options: ClassVar = {"conditions": "ignored"}


class TestAServerThatRefusesItsOwnConditions(WebSuite):
    options: ClassVar = {"conditions": "refused"}


class TestNoHead(WebSuite):
    options: ClassVar = {"head": False, "digest": True}


def test_what_is_published_beside_a_folder_is_found(site):
    site.write("here/x", b"x")
    site.write(".cas/here.sidecar", b"chunks")
    assert remote_of(site).read_sidecar(6) == b"chunks"
    with pytest.raises(RemoteError, match="more than"):
        remote_of(site).read_sidecar(5)
    for other in ("here/x", "here/?key=1", "elsewhere/", ""):
        assert remote_of(site, other).read_sidecar(6) is None


# --- listing -------------------------------------------------------------------------------------------------------


def test_files_that_are_named_need_no_index(site):
    site.index = "none"
    site.write("here/a b.bin", b"1")
    site.write("here/code/x", b"22")
    remote = remote_of(site, names=[RelativePath("a b.bin"), RelativePath("code/x")])
    assert [(str(file.path), file.size) for file in remote.list().files] == [("a b.bin", 1), ("code/x", 2)]
    assert whole(remote, "code/x") == b"22"
    with pytest.raises(NotAllowedError, match="--include"):
        remote_of(site).list()


def test_one_file_is_a_checkpoint_of_one_file(site):
    site.write("here/model.pth", b"weights")
    remote = remote_of(site, "here/model.pth?token=hidden")
    assert [str(file.path) for file in remote.list().files] == ["model.pth"]
    assert whole(remote, "model.pth") == b"weights"
    assert "hidden" not in str(remote.list()) + remote.url


def test_two_queries_are_two_places():
    urls = {public_url(f"http://h/f{query}") for query in ("", "?a=1", "?a=2")}
    assert len(urls) == 3


@pytest.mark.parametrize("name", ["..%2fout", "a%5cb", "a%00b", "a%0ab"])
def test_hostile_links_are_refused(site, name):
    (site.folder / "here" / "index").write_text("x")
    import web_server

    page = web_server._Handler._index

    def hostile(self, path):
        body = f'<a href="{name}">x</a>'.encode()
        self._plain(200, body, {"Content-Type": "text/html"})

    web_server._Handler._index = hostile
    try:
        with pytest.raises(UnsafeNameError):
            remote_of(site).list()
    finally:
        web_server._Handler._index = page


def test_a_loop_of_folders_ends(site):
    (site.folder / "here" / "again").symlink_to(site.folder / "here")
    with pytest.raises(CasError):  # the server's own system stops following, or we do
        remote_of(site).list()


def test_what_is_no_index_is_one_clear_line(site, settings):
    site.index = "json"
    import web_server

    page = web_server._Handler._index
    try:
        for body, kind in ((b"{", "application/json"), (b"{}", "application/json"), (b"PNG", "image/png")):
            web_server._Handler._index = lambda self, path, b=body, k=kind: self._plain(200, b, {"Content-Type": k})
            with pytest.raises(RemoteError) as caught:
                remote_of(site).list()
            assert "\n" not in str(caught.value)
    finally:
        web_server._Handler._index = page


def test_nothing_there_and_nobody_there(site, settings):
    with pytest.raises(CheckpointNotFoundError, match="nothing at"):
        remote_of(site, "missing/").list()
    with pytest.raises(CheckpointNotFoundError, match="no file"):
        remote_of(site, "missing").list()


# --- versions ------------------------------------------------------------------------------------------------------


def test_a_time_that_is_young_tells_no_versions_apart(site):
    site.etag = "none"
    site.write("here/young", b"x", age=1)
    site.write("here/old", b"x")
    found = {str(file.path): file.identity.has_validator for file in remote_of(site).list().files}
    assert found == {"young": False, "old": True}


def test_a_weak_etag_tells_no_versions_apart_but_an_old_time_does(site):
    site.etag = "weak"
    site.write("here/f", b"x" * 100)
    [file] = remote_of(site).list().files
    assert (file.identity.etag, file.identity.has_validator) == (None, True)
    site.modified = False
    [file] = remote_of(site).list().files
    assert not file.identity.has_validator


def test_reads_are_conditional(site):
    site.write("here/f", b"x" * 100)
    remote = remote_of(site)
    assert whole(remote, "f") == b"x" * 100
    [read] = [headers for method, path, headers in site.asked if method == "GET" and path == "/here/f"]
    assert read["if-match"].startswith('"')
    site.etag = "none"
    whole(remote_of(site), "f")
    assert "if-unmodified-since" in site.asked[-1][2]


def test_a_file_that_vanishes_has_changed(site):
    site.write("here/f", b"x" * 100)
    remote = remote_of(site)
    [file] = remote.list().files
    (site.folder / "here" / "f").unlink()
    with pytest.raises(ChangedError):
        list(remote.read(file, 0, 10))


def test_a_server_without_ranges_says_so_and_is_read_in_one_stream(site, store, settings):
    site.ranges = False
    site.write("here/model.pth", LARGE)
    remote = remote_of(site)
    [file] = remote.list().files
    with pytest.raises(RangesIgnoredError):
        list(remote.read(file, 5, 10))
    report = pull(store, remote, settings)
    assert store.blobs.read(report.manifest.files[0].digest) == LARGE


def test_a_server_that_refuses_a_range_of_what_was_no_range_is_no_endless_loop(site, store, settings, monkeypatch):
    monkeypatch.setattr(retry.RetryingRemote.__init__, "__kwdefaults__", {"stop": None, "pause": 0.001})
    site.etag, site.modified = "none", False
    site.write("here/model.pth", LARGE)
    with relaying(site.port) as proxy:
        remote = WebRemote(f"http://127.0.0.1:{proxy.port}/here/", timeout=5)
        refuse = Fault(answer=answer("416 Range Not Satisfiable"))
        proxy.faults = lambda one: refuse if one.method == "GET" and one.path.endswith("model.pth") else None
        with pytest.raises(TransientRemoteError, match="HTTP 416"):
            pull(store, remote, settings)


# --- pulls -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("etag", ["strong", "none"])
def test_a_pull_brings_each_byte_once_and_a_second_one_none(site, store, settings, etag):
    site.etag = etag
    for name, data in {"model.pth": LARGE, "code/a.py": b"a = 1\n", "empty": b""}.items():
        site.write(f"here/{name}", data)
    report = pull(store, remote_of(site), settings)
    found = {str(entry.path): store.blobs.read(entry.digest) for entry in report.manifest.files}
    assert found == {"model.pth": LARGE, "code/a.py": b"a = 1\n", "empty": b""}
    before = site.count("GET", "model.pth")
    assert pull(store, remote_of(site), settings).bytes_fetched == 0
    assert site.count("GET", "model.pth") == before


def test_a_digest_that_the_server_declares_vouches_and_strict_asks_for_one(site, store, settings):
    strict = settings.but(verify=Verify.STRICT)
    site.write("here/model.pth", LARGE)
    with pytest.raises(ContentError, match="no checksum vouches"):
        pull(store, remote_of(site), strict)
    site.digest = True
    assert pull(store, remote_of(site), strict).proofs == {"model.pth": "origin checksum (sha256)"}


def test_a_redirect_to_another_host_is_followed_without_what_was_meant_for_the_first(site, store, settings, tmp_path):
    (tmp_path / "other").mkdir()
    with serving(tmp_path / "other") as other:
        site.write("here/model.pth", LARGE)
        other.write("here/model.pth", LARGE)
        site.password, site.moved = "Bearer hidden", other.url.rstrip("/").replace("127.0.0.1", "localhost")
        remote = remote_for_url(site.url + "here/", settings, options={"headers": {"Authorization": "Bearer hidden"}})
        report = pull(store, remote, settings)
        assert store.blobs.read(report.manifest.files[0].digest) == LARGE
        assert other.asked and not any("authorization" in headers for _, _, headers in other.asked)
    assert "hidden" not in "".join(path.read_text("latin-1") for path in store.home.rglob("*.jsonl"))


def test_redirects_in_a_circle_end(site):
    site.write("here/f", b"x")
    site.moved = site.url.rstrip("/")
    with pytest.raises(RemoteError, match="redirected more than"):
        remote_of(site, names=[RelativePath("f")]).list()


def test_a_password_that_is_missing_is_one_clear_line_without_the_wrong_one(site, settings):
    site.password = "Bearer right"
    remote = remote_for_url(site.url, settings, options={"headers": {"Authorization": "Bearer wrong-one"}})
    with pytest.raises(NotAllowedError, match="HTTP 401") as caught:
        remote.list()
    assert "wrong-one" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{"headers": "x"}, {"headers": {"a": 1}}, {"headers": {"a": "b\nc"}}, {"key": "x"}])
def test_options_that_mean_nothing_are_refused(settings, options):
    with pytest.raises(UsageError, match="storage_options"):
        remote_for_url("http://127.0.0.1:9/x/", settings, options=options)
