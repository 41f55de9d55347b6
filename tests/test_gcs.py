"""GCS against an emulator, and against scripted answers of the JSON API: generations, pages, tokens, errors."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import threading
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import gcs_emulator
import pytest
from remote_suite import FILES, FOLDERS, RemoteSuite, require_cheap_sibling, siblings
from stores import OTHER_UUID, UUID, lies

from cas.config import Progress, Settings, Verify
from cas.errors import ChangedError, NotAllowedError, RemoteError, TransientRemoteError
from cas.index.store import Store
from cas.transfer import fetch, plan
from cas.transfer.gcs import GcsPlace, GcsRemote
from cas.transfer.retry import RetryingRemote
from cas.transfer.urls import remote_for_storage, remote_for_url

LARGE = os.urandom(plan.SMALL + 999)


@pytest.fixture(autouse=True)
def nothing_of_the_developers(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith(("GOOGLE_", "STORAGE_", "CLOUDSDK_", "GCE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path / "gcloud"))
    monkeypatch.setenv("NO_GCE_CHECK", "true")


@pytest.fixture
def settings(tmp_path):
    return Settings(home=tmp_path / "home", progress=Progress.OFF, timeout=5)


@pytest.fixture
def store(tmp_path):
    opened = Store(tmp_path / "home")
    yield opened
    opened.close()
    assert lies(tmp_path / "home") == []


def pull(store, remote, settings):
    return fetch.pull(store, remote, registry="local", uuid=UUID, settings=settings)


# --- the emulator --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def emulator():
    with gcs_emulator.running() as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def bucket(emulator):
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    gcs_emulator.make(emulator, name)
    return name


@pytest.fixture
def upload(emulator, bucket):
    return lambda name, data: gcs_emulator.upload(emulator, bucket, name, data)


class TestGcsRemote(RemoteSuite):
    publishes = True

    @pytest.fixture
    def remote(self, emulator, bucket, upload, settings, monkeypatch):
        for name, data in FILES.items():
            upload(f"p/{UUID}/{name}", data)
        for name in FOLDERS:
            upload(f"p/{UUID}/{name}/", b"")
        upload(f"p/{UUID}-other/foreign", b"x")
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", emulator)
        self.upload, self.settings = upload, settings
        self.storage = {"type": "gcs", "bucket": bucket, "prefix": "/p//"}
        return remote_for_storage(self.storage, UUID, settings)

    def replace(self, remote, name, data):
        self.upload(f"p/{UUID}/{name}", data)

    def empty(self, remote):
        return remote_for_storage(self.storage, OTHER_UUID, self.settings)


def test_a_pull_is_checked_by_what_the_listing_declares(emulator, bucket, upload, settings, store):
    upload("p/model.pth", LARGE)
    upload("p/a.py", b"a = 1\n")
    remote = remote_for_url(f"gs+{emulator}/{bucket}/p", settings.but(anonymous=True))
    report = pull(store, remote, settings.but(verify=Verify.STRICT))
    assert set(report.proofs.values()) == {"origin checksum (crc32c)"}
    assert pull(store, remote, settings).bytes_fetched == 0


def test_a_published_sibling_costs_its_changed_chunks(emulator, bucket, upload, settings, tmp_path):
    for name, data in zip(("one", "two"), siblings(), strict=True):
        upload(f"p/{name}/model.bin", data)
    place = f"gs+{emulator}/{bucket}/p"
    require_cheap_sibling(lambda name: remote_for_url(f"{place}/{name}", settings.but(anonymous=True)), tmp_path)


# --- the JSON API, scripted ----------------------------------------------------------------------------------------


class Api:
    """Objects with generations, as the JSON API hands them out; requests with a wrong token are refused."""

    def __init__(self):
        self.objects: dict[str, tuple[bytes, int]] = {}
        self.token: str | None = None
        self.readers: list[str] = []  # what they send may not write
        self.page = 1000
        self.answers: list[tuple[int, dict[str, str], bytes]] = []
        self.asked: list[str] = []
        self.generation = 100

    def write(self, name, data):
        self.generation += 1
        self.objects[name] = (data, self.generation)

    def answer(self, path, query, headers):
        self.asked.append(path + "?" + "&".join(f"{k}={v}" for k, v in sorted(query.items())))
        if self.answers:
            return self.answers.pop(0)
        if path.startswith("/upload/") and headers.get("Authorization") in self.readers:
            return 403, {}, b'{"error": {"message": "does not have storage.objects.create"}}'
        if self.token is not None and headers.get("Authorization") != f"Bearer {self.token}":
            return 401, {}, b'{"error": {"message": "Invalid Credentials"}}'
        if path.startswith("/upload/"):
            return 200, {}, b"{}"
        name = unquote(path.partition("/o/")[2])
        return self.media(name, query, headers) if name else self.listing(query)

    def listing(self, query):
        names = sorted(name for name in self.objects if name.startswith(query.get("prefix", "")))
        at = int(query.get("pageToken", 0))
        items = []
        for name in names[at : at + self.page]:
            data, generation = self.objects[name]
            md5 = base64.b64encode(hashlib.md5(data).digest()).decode()
            items.append({"name": name, "size": str(len(data)), "generation": str(generation), "md5Hash": md5})
        more = {"nextPageToken": str(at + self.page)} if at + self.page < len(names) else {}
        return 200, {}, json.dumps({"items": items, **more}).encode()

    def media(self, name, query, headers):
        data, generation = self.objects.get(name, (b"", 0))
        if str(generation) != query["generation"]:
            return 404, {}, b"No such object"
        first, _, last = headers.get("Range", f"bytes=0-{len(data) - 1}")[6:].partition("-")
        part = data[int(first) : int(last) + 1]
        more = {"x-goog-generation": str(generation)}
        if "Range" in headers:
            more["Content-Range"] = f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"
        return 206 if "Range" in headers else 200, more, part


@pytest.fixture
def api():
    api = Api()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, format, *args):
            pass

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def do_GET(self):
            parts = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
            status, headers, body = api.answer(parts.path, query, self.headers)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    api.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield api
    server.shutdown()
    server.server_close()
    thread.join(5)


def remote_of(api, **options):
    return GcsRemote(GcsPlace(bucket="b", prefix="p", endpoint=api.url, **{"anonymous": True, **options}), timeout=5)


def test_listings_have_as_many_pages_as_it_takes(api):
    api.page = 7
    for number in range(50):
        api.write(f"p/{number:03}", b"x")
    assert [str(file.path) for file in remote_of(api).list().files] == [f"{number:03}" for number in range(50)]


def test_reads_name_the_generation_that_was_listed(api):
    api.write("p/f", b"0123456789")
    remote = remote_of(api)
    [file] = remote.list().files
    assert file.identity.version == "101"
    assert b"".join(map(bytes, remote.read(file, 2, 5))) == b"234"
    assert "generation=101" in api.asked[-1]
    api.write("p/f", b"0123456789")
    with pytest.raises(ChangedError):
        list(remote.read(file, 2, 5))


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (503, b"", TransientRemoteError),
        (429, b"", TransientRemoteError),
        (403, b'{"error": {"errors": [{"reason": "rateLimitExceeded"}], "message": "slow"}}', TransientRemoteError),
        (403, b'{"error": {"message": "does not have storage.objects.get"}}', NotAllowedError),
        (401, b"", NotAllowedError),
        (400, b"{}", RemoteError),
        (200, b"{", TransientRemoteError),
        (200, b"[]", RemoteError),
        (200, b'{"items": [{"name": "p/f"}]}', RemoteError),
    ],
)
def test_refusals_are_one_clear_line(api, status, body, expected):
    api.answers = [(status, {"Retry-After": "7"}, body)]
    with pytest.raises(expected) as caught:
        remote_of(api).list()
    assert "\n" not in str(caught.value)
    if status in (429, 503):
        assert caught.value.retry_after == 7


def test_a_bucket_that_is_not_there_is_said(api):
    api.answers = [(404, {}, b'{"error": {"message": "The specified bucket does not exist."}}')]
    with pytest.raises(RemoteError, match="is the bucket's name right"):
        remote_of(api).list()


def test_no_credentials_is_one_clear_line_that_says_what_to_do(api):
    with pytest.raises(NotAllowedError, match="gcloud auth application-default login") as caught:
        remote_of(api, anonymous=False).list()
    assert "\n" not in str(caught.value)


# --- tokens --------------------------------------------------------------------------------------------------------


@pytest.fixture
def token_service(api, monkeypatch, tmp_path):
    """A real token endpoint, and credentials of an authorized user that are renewed there."""
    given: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format, *args):
            pass

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            given.append(f"secret-token-{len(given)}")
            api.token = given[-1]
            body = json.dumps({"access_token": given[-1], "expires_in": 3600, "token_type": "Bearer"}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    known = {
        "type": "authorized_user",
        "client_id": "c",
        "client_secret": "s",
        "refresh_token": "r",
        "token_uri": f"http://127.0.0.1:{server.server_address[1]}/token",
    }
    (tmp_path / "user.json").write_text(json.dumps(known))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "user.json"))
    monkeypatch.setattr("google.oauth2.credentials._GOOGLE_OAUTH2_TOKEN_ENDPOINT", known["token_uri"])
    yield given
    server.shutdown()
    server.server_close()


def test_a_token_that_a_server_refuses_in_the_middle_is_renewed(api, token_service, store, settings):
    api.write("p/model.pth", LARGE)
    remote = remote_of(api, anonymous=False)
    [file] = remote.list().files
    assert len(token_service) == 1
    api.token = "another"  # what was given is no longer good
    retrying = RetryingRemote(remote, pause=0.001)
    assert b"".join(map(bytes, retrying.read(file, 0, file.size))) == LARGE
    assert len(token_service) == 2
    api.token = "yet another"
    with pytest.raises(NotAllowedError) as caught:  # renewed a moment ago, and refused again
        list(retrying.read(file, 0, 5))
    assert "secret-token" not in str(caught.value)


def test_only_who_publishes_asks_for_a_token_that_writes(api, token_service):
    api.write("p/model.pth", b"x")
    remote = remote_of(api, anonymous=False)
    remote.list()
    api.readers = [f"Bearer {token}" for token in token_service]
    remote.write_sidecar(b"chunks")
    assert len(token_service) == 2
    api.readers = [f"Bearer {token}" for token in token_service]
    with pytest.raises(NotAllowedError, match=r"storage\.objects\.create") as caught:
        remote.write_sidecar(b"chunks")
    assert "secret-token" not in str(caught.value)
