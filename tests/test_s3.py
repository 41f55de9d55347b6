"""S3 against a real server: listing, conditional reads, checksums, errors, credentials."""

from __future__ import annotations

import gc
import hashlib
import os
import random
import textwrap
import weakref
import zlib

import pytest
from proxy import Fault, answer, error
from remote_suite import FILES, FOLDERS, RemoteSuite
from s3_server import LATER_KEY, LATER_SECRET, READER_KEY, READER_SECRET
from stores import OTHER_UUID, UUID, run_python

from cas.config import Progress, Settings, Verify
from cas.errors import (
    ChangedError,
    CheckpointNotFoundError,
    DigestMismatchError,
    NotAllowedError,
    RemoteError,
    TransientRemoteError,
    UnsafeNameError,
)
from cas.index.store import Store
from cas.transfer import fetch, plan
from cas.transfer.remote import Checksum, RangesIgnoredError
from cas.transfer.s3 import S3Place, S3Remote
from cas.transfer.urls import remote_for_storage

pytestmark = pytest.mark.s3

MIB = 1 << 20
DATE = "Mon, 02 Mar 2020 10:00:00 GMT"
LARGE = random.Random(9).randbytes(plan.RANGE + 3 * MIB + 77)


@pytest.fixture(autouse=True)
def nothing_of_the_developers(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "aws-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "aws-credentials"))


@pytest.fixture
def settings(tmp_path):
    return Settings(home=tmp_path / "home", progress=Progress.OFF, timeout=5)


@pytest.fixture
def remote(s3_server, bucket, settings):
    """A remote of the bucket's `p/<UUID>`."""
    return remote_for_storage(s3_server.storage(bucket, "p"), UUID, settings)


@pytest.fixture
def proxied(proxy, bucket, settings):
    """The same, through a proxy that counts and spoils."""
    return remote_for_storage(proxy.server.storage(bucket, "p"), UUID, settings)


@pytest.fixture
def store(tmp_path):
    opened = Store(tmp_path / "home")
    yield opened
    opened.close()


def key(name: str) -> str:
    return f"p/{UUID}/{name}"


def whole(remote, name):
    file = next(file for file in remote.list().files if file.path == name)
    return b"".join(map(bytes, remote.read(file, 0, file.size)))


def pull(store, remote, settings):
    return fetch.pull(store, remote, registry="local", uuid=UUID, settings=settings)


class TestS3Remote(RemoteSuite):
    publishes = True

    @pytest.fixture
    def remote(self, s3_server, bucket, upload, settings):
        upload({key(name): data for name, data in FILES.items()})
        upload({key(f"{name}/"): b"" for name in FOLDERS})
        upload({f"p/{UUID}-other/foreign": b"x", f"p/{UUID}": b"no folder", "p/unrelated": b"x"})
        self.upload = upload
        return remote_for_storage(s3_server.storage(bucket, "p"), UUID, settings)

    def replace(self, remote, name, data):
        self.upload({key(name): data})

    def empty(self, remote):
        return S3Remote(S3Place(**{**_fields(remote.place), "prefix": f"p/{OTHER_UUID}"}), timeout=5)


def _fields(place):
    return {name: getattr(place, name) for name in place.__slots__}


# --- listing -----------------------------------------------------------------------------------------------------


def test_an_empty_folder_is_told_from_an_empty_file(remote, upload):
    upload({key("void/"): b"", key("file"): b"", key("code/"): b"", key("code/a.py"): b"1"})
    listing = remote.list()
    assert [str(file.path) for file in listing.files] == ["code/a.py", "file"]
    assert sorted(map(str, listing.directories)) == ["code", "void"]


def test_listings_have_as_many_pages_as_it_takes(remote, upload):
    upload({key(f"part/{number:04}"): b"x" for number in range(1203)})
    files = remote.list().files
    assert [str(file.path) for file in files] == [f"part/{number:04}" for number in range(1203)]


@pytest.mark.parametrize("name", ["a\\b", "a\nb", "a/../b", "./a", "a/./b", "../x", "\u0085"])
def test_hostile_keys_are_one_clear_line(proxied, proxy, name):
    from urllib.parse import quote

    listed = (
        '<?xml version="1.0"?><ListBucketResult><EncodingType>url</EncodingType><IsTruncated>false</IsTruncated>'
        f"<Contents><Key>{quote(key(name))}</Key><Size>1</Size><ETag>&quot;e&quot;</ETag></Contents>"
        "</ListBucketResult>"
    )
    proxy.faults = lambda exchange: Fault(answer=answer("200 OK", listed))
    with pytest.raises(UnsafeNameError) as caught:
        proxied.list()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "body",
    [
        "",
        "<html>",
        "<html></html>",
        "<ListBucketResult><Contents/></ListBucketResult>",
        "<!DOCTYPE a [<!ENTITY b 'c'>]>",
    ],
)
def test_an_answer_that_is_no_listing_is_one_clear_line(proxied, proxy, body):
    proxy.faults = lambda exchange: Fault(answer=answer("200 OK", body))
    with pytest.raises(RemoteError) as caught:
        proxied.list()
    assert "\n" not in str(caught.value)


def test_keys_that_lie_elsewhere_are_refused(proxied, proxy):
    listed = "<ListBucketResult><Contents><Key>p/other</Key><Size>1</Size></Contents></ListBucketResult>"
    proxy.faults = lambda exchange: Fault(answer=answer("200 OK", listed))
    with pytest.raises(RemoteError, match="does not lie there"):
        proxied.list()


def test_a_server_that_lists_etags_without_quotes_is_understood(proxied, proxy, upload):
    upload({key("f"): b"0123456789"})
    etag = hashlib.md5(b"0123456789").hexdigest()
    listed = f"<Contents><Key>{key('f')}</Key><Size>10</Size><ETag>{etag}</ETag></Contents>"
    listed = f"<ListBucketResult>{listed}</ListBucketResult>"
    proxy.faults = lambda exchange: Fault(answer=answer("200 OK", listed)) if "list-type" in exchange.path else None
    assert whole(proxied, "f") == b"0123456789"


def test_a_server_that_lists_no_etags_is_read_in_one_stream(proxied, proxy, upload, store, settings):
    upload({key("f"): LARGE})
    listed = f"<Contents><Key>{key('f')}</Key><Size>{len(LARGE)}</Size></Contents>"
    listed = f"<ListBucketResult>{listed}</ListBucketResult>"
    proxy.faults = lambda exchange: Fault(answer=answer("200 OK", listed)) if "list-type" in exchange.path else None
    report = pull(store, proxied, settings)
    assert store.blobs.read(report.manifest.files[0].digest) == LARGE
    assert proxy.count("GET", "/f") == 1
    assert (
        "range" not in next(one for one in proxy.exchanges if one.path.endswith("/f") and one.method == "GET").headers
    )


# --- conditional reads -------------------------------------------------------------------------------------------


def test_reads_are_conditional_on_the_listed_version(proxied, proxy, upload):
    upload({key("model.pth"): LARGE})
    assert whole(proxied, "model.pth") == LARGE
    [read] = [one for one in proxy.exchanges if one.path.endswith("model.pth")]
    assert read.headers["if-match"] == f'"{hashlib.md5(LARGE).hexdigest()}"'


def reading(fault):
    """A fault of every read of an object, and of nothing else."""
    return lambda exchange: fault if exchange.method == "GET" and "?" not in exchange.path else None


def test_a_server_that_ignores_if_match_is_still_found_out(proxied, proxy, upload):
    upload({key("f"): b"old bytes"})
    [file] = proxied.list().files
    new = answer("206 Partial Content", b"new", ETag='"other"', Content_Range="bytes 0-2/9", Last_Modified=DATE)
    proxy.faults = reading(Fault(answer=new))
    with pytest.raises(ChangedError, match="replaced"):
        b"".join(map(bytes, proxied.read(file, 0, 3)))
    proxy.faults = reading(Fault(answer=answer("200 OK", b"new bytes", ETag='"other"', Last_Modified=DATE)))
    for read in (proxied.read(file, 0, 9), proxied.stream(file)):
        with pytest.raises(ChangedError, match="replaced"):
            b"".join(map(bytes, read))


def test_a_server_that_says_412_for_no_reason_is_read_without_the_condition(proxied, proxy, upload):
    upload({key("f"): LARGE})
    [file] = proxied.list().files
    refuse = Fault(answer=error("412 Precondition Failed", "PreconditionFailed"))
    proxy.faults = lambda exchange: refuse if "if-match" in exchange.headers else None
    assert b"".join(map(bytes, proxied.read(file, 5, 5 * MIB))) == LARGE[5 : 5 * MIB]
    assert proxy.count("HEAD") == 1
    upload({key("f"): LARGE[::-1]})
    with pytest.raises(ChangedError):
        b"".join(map(bytes, proxied.read(file, 5, 5 * MIB)))


def test_ranges_that_the_server_ignores_are_noticed(proxied, proxy, upload, store, settings):
    upload({key("f"): LARGE})
    [file] = proxied.list().files
    proxy.faults = reading(Fault(answer=answer("200 OK", LARGE, ETag=file.identity.etag, Last_Modified=DATE)))
    with pytest.raises(RangesIgnoredError):
        b"".join(map(bytes, proxied.read(file, 5, 10)))
    report = pull(store, proxied, settings)
    assert store.blobs.read(report.manifest.files[0].digest) == LARGE


def test_a_server_that_sends_another_range_is_not_believed(proxied, proxy, upload):
    upload({key("f"): LARGE})
    [file] = proxied.list().files
    proxy.faults = lambda exchange: Fault(headers={"Content-Range": f"bytes 6-10/{len(LARGE)}"})
    with pytest.raises(TransientRemoteError):
        b"".join(map(bytes, proxied.read(file, 5, 10)))


def test_an_object_of_another_length_is_not_the_listed_one(proxied, proxy, upload):
    upload({key("f"): LARGE})
    [file] = proxied.list().files
    proxy.faults = lambda exchange: Fault(headers={"Content-Range": f"bytes 5-9/{len(LARGE) + 1}"})
    with pytest.raises(ChangedError):
        b"".join(map(bytes, proxied.read(file, 5, 10)))


# --- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spoiled", "expected", "said"),
    [
        (error("503 Slow Down", "SlowDown"), TransientRemoteError, "SlowDown"),
        (error("500 Internal Server Error", "InternalError"), TransientRemoteError, "InternalError"),
        (answer("502 Bad Gateway", "<html>"), TransientRemoteError, "502"),
        (b"", TransientRemoteError, ""),
        (error("403 Forbidden", "AccessDenied"), NotAllowedError, "AccessDenied"),
        (error("403 Forbidden", "SignatureDoesNotMatch"), NotAllowedError, "set AWS_PROFILE"),
        (error("400 Bad Request", "ExpiredToken"), NotAllowedError, "log in again"),
        (error("400 Bad Request", "InvalidRequest"), RemoteError, "InvalidRequest"),
    ],
)
def test_errors_are_translated_for_listings_and_for_reads(proxied, proxy, upload, spoiled, expected, said):
    upload({key("f"): b"0123456789"})
    [file] = proxied.list().files
    proxy.faults = lambda exchange: Fault(answer=spoiled)
    for attempt in (proxied.list, lambda: b"".join(map(bytes, proxied.read(file, 2, 9)))):
        with pytest.raises(RemoteError if expected is not NotAllowedError else NotAllowedError) as caught:
            attempt()
        assert type(caught.value) in (expected, ChangedError), caught.value
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)


def test_retry_after_is_read(proxied, proxy):
    proxy.faults = lambda exchange: Fault(answer=answer("503 Slow Down", Retry_After="7"))
    with pytest.raises(TransientRemoteError) as caught:
        proxied.list()
    assert caught.value.retry_after == 7.0


def test_a_server_that_is_not_there_is_transient(bucket, settings, s3_server):
    from s3_server import free_ports

    [port] = free_ports(1)
    storage = s3_server.storage(bucket, "p", endpoint_url=f"http://127.0.0.1:{port}")
    with pytest.raises(TransientRemoteError, match=r"127\.0\.0\.1"):
        remote_for_storage(storage, UUID, settings).list()


def test_a_silent_server_is_not_waited_for_longer_than_the_timeout(proxied, proxy, upload, settings, bucket):
    upload({key("f"): b"0123456789"})
    quick = remote_for_storage(proxy.server.storage(bucket, "p"), UUID, settings.but(timeout=0.3))
    [file] = quick.list().files
    proxy.delay = 5
    with pytest.raises(TransientRemoteError):
        quick.list()
    with pytest.raises(TransientRemoteError):
        b"".join(map(bytes, quick.read(file, 2, 9)))


def test_no_such_bucket(s3_server, settings):
    with pytest.raises(RemoteError, match="NoSuchBucket"):
        remote_for_storage(s3_server.storage("no-such-bucket"), UUID, settings).list()


def test_no_files(remote):
    with pytest.raises(CheckpointNotFoundError, match=UUID):
        remote.list()


def test_access_denied_says_what_to_set(s3_server, bucket, settings):
    storage = s3_server.storage(bucket, "p", access_key=READER_KEY, secret_key=READER_SECRET)
    with pytest.raises(NotAllowedError, match=r"AccessDenied.*set AWS_PROFILE"):
        remote_for_storage(storage, UUID, settings).list()


def test_wrong_keys_say_what_to_set(s3_server, bucket, settings):
    for changes in ({"secret_key": "wrong"}, {"access_key": "nobody"}):
        with pytest.raises(NotAllowedError, match="set AWS_PROFILE"):
            remote_for_storage(s3_server.storage(bucket, "p", **changes), UUID, settings).list()


def test_pulls_one_after_the_other_leave_no_connection_open(s3_server, bucket, upload, store, settings):
    """What obstore keeps alive must not keep the remote alive: a notebook pulls hundreds of checkpoints."""
    upload({f"p/{UUID}/large": LARGE, f"p/{UUID}/small": b"x"})
    remote = remote_for_storage(s3_server.storage(bucket, "p"), UUID, settings)
    fetch.pull(store, remote, registry="r", uuid=UUID, settings=settings)
    alive = weakref.ref(remote)
    del remote
    gc.collect()
    assert alive() is None


# --- credentials, region, endpoint ---------------------------------------------------------------------------------


def keyless(server, bucket, settings, **changes):
    return remote_for_storage(server.storage(bucket, "p", access_key=None, secret_key=None, **changes), UUID, settings)


def test_no_credentials_at_all_is_said_quickly(s3_server, bucket, settings):
    with pytest.raises(NotAllowedError, match="no S3 credentials were found; set AWS_PROFILE"):
        keyless(s3_server, bucket, settings).list()


def test_credentials_of_the_environment(s3_server, bucket, settings, upload, monkeypatch):
    upload({key("f"): b"x"})
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.secret_key)
    assert whole(keyless(s3_server, bucket, settings), "f") == b"x"


def test_explicit_keys_go_before_the_environment(s3_server, bucket, settings, upload, monkeypatch):
    upload({key("f"): b"x"})
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "wrong")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    monkeypatch.setenv("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "true")
    assert whole(remote_for_storage(s3_server.storage(bucket, "p"), UUID, settings), "f") == b"x"


def test_a_profile_gives_keys_region_and_endpoint(s3_server, bucket, settings, upload, monkeypatch, tmp_path):
    upload({key("f"): b"x"})
    (tmp_path / "aws-config").write_text(
        textwrap.dedent(f"""
            [profile lab]
            region = eu-central-1
            aws_access_key_id = {s3_server.access_key}
            aws_secret_access_key = {s3_server.secret_key}
            services = lab-services
            [services lab-services]
            s3 =
                endpoint_url = {s3_server.endpoint}
        """)
    )
    monkeypatch.setenv("AWS_PROFILE", "lab")
    remote = keyless(s3_server, bucket, settings, endpoint_url=None)
    assert whole(remote, "f") == b"x"
    assert remote._found_region() == "eu-central-1"
    monkeypatch.setenv("AWS_REGION", "ap-south-1")
    assert keyless(s3_server, bucket, settings)._found_region() == "ap-south-1"
    assert keyless(s3_server, bucket, settings.but(region="sa-east-1"))._found_region() == "sa-east-1"


def test_a_profile_that_does_not_exist_is_one_clear_line(s3_server, bucket, settings, monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(NotAllowedError, match="nobody"):
        keyless(s3_server, bucket, settings).list()


def test_credentials_that_a_command_gives_are_renewed(s3_server, bucket, settings, upload, monkeypatch, tmp_path):
    upload({key("f"): b"x"})
    script = tmp_path / "keys.py"
    script.write_text(
        textwrap.dedent(f"""
            import datetime, json
            soon = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=1)
            keys = {{"AccessKeyId": "{s3_server.access_key}", "SecretAccessKey": "{s3_server.secret_key}"}}
            print(json.dumps({{"Version": 1, **keys, "Expiration": soon.isoformat()}}))
            open({str(tmp_path / "calls")!r}, "a").write("x")
        """)
    )
    import sys

    (tmp_path / "aws-config").write_text(f"[default]\ncredential_process = {sys.executable} {script}\n")
    remote = keyless(s3_server, bucket, settings)
    assert whole(remote, "f") == b"x"
    before = len((tmp_path / "calls").read_text())
    remote.list()
    assert len((tmp_path / "calls").read_text()) > before


def test_the_metadata_service_is_not_waited_for(s3_server, bucket, settings, monkeypatch):
    import time

    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://192.0.2.1")  # an address that nobody has
    began = time.monotonic()
    with pytest.raises(NotAllowedError, match="no S3 credentials"):
        keyless(s3_server, bucket, settings).list()
    assert time.monotonic() - began < 4


def test_a_bucket_of_another_region_is_found(proxied, proxy, upload):
    upload({key("f"): b"x"})
    wrong = error("400 Bad Request", "AuthorizationHeaderMalformed", Region="eu-north-1")
    proxy.faults = lambda one: None if "/eu-north-1/" in one.headers["authorization"] else Fault(answer=wrong)
    assert whole(proxied, "f") == b"x"


def process_keys(tmp_path, monkeypatch, *pairs):
    """Let a credential process give these keys, one pair after another; the last again and again."""
    import sys

    script = tmp_path / "keys.py"
    script.write_text(
        textwrap.dedent(f"""
            import json, os
            calls = {str(tmp_path / "calls")!r}
            open(calls, "a").write("x")
            key, secret = {list(pairs)!r}[min(os.path.getsize(calls), {len(pairs)}) - 1]
            print(json.dumps({{"Version": 1, "AccessKeyId": key, "SecretAccessKey": secret,
                               "Expiration": "2099-01-01T00:00:00Z"}}))
        """)
    )
    (tmp_path / "aws-config").write_text(f"[default]\ncredential_process = {sys.executable} {script}\n")


def refusing(key):
    """A fault of every request that is signed with a key."""
    expired = error("400 Bad Request", "ExpiredToken")
    return lambda one: Fault(answer=expired) if f"Credential={key}/" in one.headers.get("authorization", "") else None


def test_keys_that_run_out_in_the_middle_of_a_transfer_are_renewed(
    proxied, proxy, upload, store, settings, tmp_path, monkeypatch, s3_server, bucket
):
    upload({key("model.pth"): LARGE})
    process_keys(tmp_path, monkeypatch, (s3_server.access_key, s3_server.secret_key), (LATER_KEY, LATER_SECRET))
    remote = keyless(proxy.server, bucket, settings)
    assert len(remote.list().files) == 1
    reads = iter([None])
    refuse = refusing(s3_server.access_key)
    proxy.faults = lambda one: (
        next(reads, refuse(one)) if one.path.endswith("model.pth") and one.method == "GET" else refuse(one)
    )
    report = pull(store, remote, settings)
    assert store.blobs.read(report.manifest.files[0].digest) == LARGE
    assert (tmp_path / "calls").read_text() == "xx"


def test_keys_that_run_out_with_no_others_are_one_clear_line(proxied, proxy, upload, tmp_path, monkeypatch, settings):
    upload({key("f"): b"0123456789"})
    pair = (proxy.server.access_key, proxy.server.secret_key)
    process_keys(tmp_path, monkeypatch, pair)
    remote = keyless(proxy.server, proxied.place.bucket, settings)
    [file] = remote.list().files
    proxy.faults = refusing(pair[0])
    for attempt in (remote.list, lambda: list(remote.read(file, 2, 9))):
        with pytest.raises(NotAllowedError, match="log in again") as caught:
            attempt()
        assert "\n" not in str(caught.value) and pair[1] not in str(caught.value)
        remote._account._renewed = -100.0


def test_anonymous_requests_are_not_signed(proxy, bucket, settings, upload, s3_server):
    upload({key("f"): b"0123456789"})
    listed = f"<ListBucketResult><Contents><Key>{key('f')}</Key><Size>10</Size></Contents></ListBucketResult>"
    proxy.faults = lambda one: Fault(answer=answer("200 OK", listed if "list-type" in one.path else b"0123456789"))
    remote = keyless(proxy.server, bucket, settings.but(anonymous=True))
    assert whole(remote, "f") == b"0123456789"
    assert len(proxy.exchanges) == 2
    assert not any("authorization" in one.headers for one in proxy.exchanges)


def test_who_pays_for_requests_says_so_with_each(proxy, bucket, settings, upload):
    upload({key("f"): b"0123456789"})
    remote = remote_for_storage(proxy.server.storage(bucket, "p"), UUID, settings.but(requester_pays=True))
    assert whole(remote, "f") == b"0123456789"
    [file] = remote.list().files
    remote.checksums(file)
    assert all(one.headers.get("x-amz-request-payer") == "requester" for one in proxy.exchanges)


def test_a_busy_server_is_left_alone_for_as_long_as_it_asks(proxied, proxy, upload):
    upload({key("f"): b"0123456789"})
    [file] = proxied.list().files
    for busy in (answer("429 Too Many Requests", Retry_After="7"), answer("503 Slow Down", Retry_After="7")):
        proxy.faults = lambda one, busy=busy: Fault(answer=busy)
        with pytest.raises(TransientRemoteError) as caught:
            list(proxied.read(file, 2, 9))
        assert caught.value.retry_after == 7


def test_a_server_whose_certificate_nobody_knows_needs_the_setting(s3_server, bucket, upload, settings, tmp_path):
    upload({key("f"): b"0123456789"})
    certificate, port = tls_in_front(s3_server.port, tmp_path)
    storage = s3_server.storage(bucket, "p", endpoint_url=f"https://localhost:{port}")
    with pytest.raises(RemoteError, match=r"certificate is refused.*CAS_CA_BUNDLE") as caught:
        remote_for_storage(storage, UUID, settings).list()
    assert not isinstance(caught.value, TransientRemoteError)  # no try again changes it
    remote = remote_for_storage(storage, UUID, settings.but(ca_bundle=str(certificate)))
    assert whole(remote, "f") == b"0123456789"


def tls_in_front(port, folder):
    """Let TLS end before a server, with a certificate of our own; return that, and the port."""
    import socket
    import ssl
    import subprocess
    import threading

    def openssl(*words):
        subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True, cwd=folder)

    fresh = ("-newkey", "rsa:2048", "-nodes")
    ours = ("-subj", "/CN=nobody knows", "-addext", "keyUsage=critical,keyCertSign")
    openssl("req", "-x509", *fresh, "-days", 2, *ours, "-keyout", "ca.key", "-out", "ca.pem")
    openssl("req", *fresh, "-subj", "/CN=localhost", "-keyout", "own.key", "-out", "own.csr")
    said = ("subjectAltName=DNS:localhost", "basicConstraints=CA:FALSE", "authorityKeyIdentifier=keyid")
    (folder / "names").write_text("\n".join(said))
    signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", 2, "-extfile", "names")
    openssl("x509", "-req", "-in", "own.csr", "-out", "own.pem", *signed)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "own.pem", folder / "own.key")
    listening = socket.create_server(("127.0.0.1", 0))

    def pump(source, target):
        try:
            while data := source.recv(65536):
                target.sendall(data)
        except OSError:
            pass
        finally:
            target.close()

    def accept():
        while True:
            client, _ = listening.accept()
            try:
                secure = context.wrap_socket(client, server_side=True)
            except OSError:
                client.close()
                continue
            server = socket.create_connection(("127.0.0.1", port))
            for pair in ((secure, server), (server, secure)):
                threading.Thread(target=pump, args=pair, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return folder / "ca.pem", listening.getsockname()[1]


# --- checksums -----------------------------------------------------------------------------------------------------


def kinds(remote, **options):
    [file] = remote.list().files
    return {checksum.kind: checksum for checksum in remote.checksums(file, **options)}


def test_checksums_of_an_object_put_whole(remote, upload):
    upload({key("f"): LARGE})
    found = kinds(remote)
    assert found["crc32"] == Checksum("crc32", zlib.crc32(LARGE).to_bytes(4, "big"))
    assert found["md5"] == Checksum("md5", hashlib.md5(LARGE).digest())


@pytest.mark.parametrize("algorithm", ["SHA256", "SHA1", "CRC32C", "CRC64NVME"])
def test_checksums_that_the_uploader_chose(remote, upload, algorithm):
    upload({key("f"): b"0123456789"}, ChecksumAlgorithm=algorithm)
    from cas.transfer import checksums

    chosen = kinds(remote)[algorithm.lower()]
    assert checksums.matches(chosen, b"0123456789")


def test_checksums_of_an_object_put_in_parts(remote, upload):
    upload({key("f"): LARGE}, part_size=5 * MIB)
    found = kinds(remote)
    assert found["crc32"].parts == (5 * MIB,) * (len(LARGE) // (5 * MIB)) + (len(LARGE) % (5 * MIB),)
    from cas.transfer import checksums

    assert checksums.matches(found["crc32"], LARGE)
    assert checksums.matches(found["md5"], LARGE)
    assert kinds(remote, thorough=True) == found


def test_part_sizes_are_believed_only_if_the_etag_and_the_answer_agree(proxied, proxy, upload):
    upload({key("f"): LARGE}, part_size=5 * MIB)
    for lie in ({"x-amz-mp-parts-count": "3"}, {"Content-Length": str(len(LARGE) + 1)}, {"Content-Length": "0"}):
        proxy.faults = lambda one, lie=lie: Fault(headers=lie) if "partNumber" in one.path else None
        assert kinds(proxied) == {}


def test_an_etag_of_an_encrypted_object_is_no_md5(proxied, proxy, upload):
    upload({key("f"): b"x"})
    for header in ("x-amz-server-side-encryption", "x-amz-server-side-encryption-customer-algorithm"):
        proxy.faults = lambda one, header=header: Fault(headers={header: "aws:kms"})
        assert "md5" not in kinds(proxied)


# --- pulls -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("says_so", "reads"), [(True, 1), (False, 2)], ids=["KMS", "a gateway"])
def test_a_small_file_whose_etag_is_no_md5_is_read_again_unless_a_key_explains_it(
    store, proxied, proxy, upload, settings, says_so, reads
):
    upload({key("notes.txt"): b"hello"})
    etag, other = hashlib.md5(b"hello").hexdigest(), hashlib.md5(b"encrypted").hexdigest()

    def fault(asking):
        if "list-type" in asking.path:
            return Fault(rewrite=lambda body: body.replace(etag.encode(), other.encode()))
        told = {"ETag": f'"{other}"'} | ({"x-amz-server-side-encryption": "aws:kms"} if says_so else {})
        return Fault(headers=told, drop=("if-match",), without=("x-amz-checksum-crc32",))

    proxy.faults = fault
    report = pull(store, proxied, settings)
    assert report.proofs == {"notes.txt": "length only"}
    assert proxy.bodies() == 5 * reads
    assert proxy.count("HEAD", "notes.txt") == 1


def test_a_pull_reads_each_byte_once_in_parallel_and_checked(store, proxied, proxy, upload, settings):
    upload({key("model.pth"): LARGE}, part_size=8 * MIB)
    upload({key("code/a.py"): b"a = 1\n", key("zero"): b"", key("logs/"): b""})
    report = pull(store, proxied, settings)
    assert {str(e.path): store.blobs.read(e.digest) for e in report.manifest.files} == {
        "model.pth": LARGE,
        "code/a.py": b"a = 1\n",
        "zero": b"",
    }
    assert report.manifest.directories == ("logs",)
    assert proxy.bodies() == len(LARGE) + 6
    assert proxy.count("GET", "model.pth") == 2
    assert proxy.count("HEAD", "a.py") == 0
    assert report.proofs["model.pth"] == "origin checksum (crc32)"
    assert report.proofs["code/a.py"] == "origin checksum (md5)"
    before = len(proxy.exchanges)
    assert pull(store, proxied, settings).bytes_fetched == 0
    assert len(proxy.exchanges) == before + 2  # the listing, and whether a sidecar was published


def test_faults_on_the_wire_are_survived(store, proxied, proxy, upload, settings):
    upload({key("model.pth"): LARGE})
    faults = iter([Fault(answer=b""), Fault(cut=MIB), Fault(answer=error("503 Slow Down", "SlowDown")), Fault(cut=77)])
    proxy.faults = lambda one: next(faults, None) if one.method == "GET" and "?" not in one.path else None
    report = pull(store, proxied, settings)
    assert store.blobs.read(report.manifest.files[0].digest) == LARGE


@pytest.mark.parametrize("part_size", [None, 5 * MIB])
def test_a_flipped_bit_on_the_wire_is_found_and_fetched_again(store, proxied, proxy, upload, settings, part_size):
    upload({key("model.pth"): LARGE}, part_size=part_size)
    upload({key("small"): b"0123456789"})
    faults = {"model.pth": iter([Fault(flip=True)]), "small": iter([Fault(flip=True)])}
    proxy.faults = lambda one: (
        next(faults.get(one.path.rpartition("/")[2], iter(())), None) if one.method == "GET" else None
    )
    report = pull(store, proxied, settings)
    assert {store.blobs.read(entry.digest) for entry in report.manifest.files} == {LARGE, b"0123456789"}


def test_bits_that_stay_flipped_are_an_error_that_names_the_object(store, proxied, proxy, upload, settings):
    upload({key("model.pth"): LARGE})
    proxy.faults = lambda one: Fault(flip=True) if one.method == "GET" and "?" not in one.path else None
    with pytest.raises(DigestMismatchError, match=r"model\.pth: expected crc32:"):
        pull(store, proxied, settings)
    assert not any((store.home / "blobs").glob("*/*"))


def test_a_server_that_knows_no_head_can_be_read(store, proxied, proxy, upload, settings):
    upload({key("model.pth"): LARGE})
    proxy.faults = lambda one: Fault(answer=answer("405 Method Not Allowed")) if one.method == "HEAD" else None
    assert pull(store, proxied, settings).proofs == {"model.pth": "length only"}


def test_strict_verifies_md5_where_nothing_else_is_declared(store, proxied, proxy, upload, settings):
    upload({key("model.pth"): LARGE}, part_size=8 * MIB)
    hide = {"x-amz-checksum-crc32": "", "x-amz-checksum-type": ""}
    proxy.faults = lambda one: Fault(headers=hide) if one.method == "HEAD" else None
    assert pull(store, proxied, settings).proofs == {"model.pth": "length only"}
    other = Store(store.home.parent / "strict")
    assert pull(other, proxied, settings.but(verify=Verify.STRICT)).proofs == {"model.pth": "origin checksum (md5)"}
    other.close()


def test_a_forked_child_of_a_process_that_used_obstore_can_pull(s3_server, bucket, upload, tmp_path):
    upload({key("model.pth"): LARGE, key("code/a.py"): b"a = 1\n"})
    code = """
        import json, os, sys
        from pathlib import Path
        from cas.config import Progress, Settings
        from cas.index.store import Store
        from cas.transfer.fetch import pull
        from cas.transfer.urls import remote_for_storage
        storage, uuid, home = json.loads(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
        def run(name):
            settings = Settings(home=home / name, progress=Progress.OFF)
            seen = []
            report = pull(Store(home / name), remote_for_storage(storage, uuid, settings), registry="local", uuid=uuid,
                          settings=settings, on_file=lambda entry: seen.append(str(entry.path)))
            return report.files_fetched, report.bytes_fetched, sorted(seen), sorted(report.proofs.items())
        parent = run("parent")
        if (child := os.fork()) == 0:
            try:
                assert run("child") == parent, run("child")
                os._exit(0)
            finally:
                os._exit(1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), parent[0])
    """
    import json

    storage = json.dumps(s3_server.storage(bucket, "p"))
    assert run_python(textwrap.dedent(code), storage, UUID, tmp_path).split() == ["0", "2"]
