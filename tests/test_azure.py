"""Azure against a real blob server (Azurite): listing, conditional reads, keys, signatures, errors."""

from __future__ import annotations

import os
import uuid

import azurite
import pytest
from proxy import Fault, answer, relaying
from remote_suite import FILES, FOLDERS, RemoteSuite, require_cheap_sibling, siblings
from stores import OTHER_UUID, UUID, lies

from cas.config import Progress, Settings, Verify
from cas.errors import (
    ChangedError,
    ContentError,
    NotAllowedError,
    RemoteError,
    TransientRemoteError,
    UsageError,
)
from cas.index.store import Store
from cas.transfer import fetch, plan
from cas.transfer.azure import AzureAccount, AzureRemote
from cas.transfer.urls import remote_for_storage, remote_for_url

needs_azurite = pytest.mark.skipif(
    azurite.command() is None, reason="no azurite: `npm install --prefix .venv-azurite azurite` brings it"
)
LARGE = os.urandom(plan.SMALL + 4321)


@pytest.fixture(autouse=True)
def nothing_of_the_developers(monkeypatch):
    for name in [name for name in os.environ if name.startswith("AZURE_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def blob_server():
    with azurite.running() as server:
        yield server


@pytest.fixture
def settings(tmp_path):
    return Settings(home=tmp_path / "home", progress=Progress.OFF, timeout=10)


@pytest.fixture
def container(blob_server):
    name = f"container-{uuid.uuid4().hex[:12]}"
    blob_server.make(name)
    return name


@pytest.fixture
def storage(blob_server, container):
    return {"type": "azure", "container": f"{container}/sub", "connection_string": blob_server.connection_string}


@pytest.fixture
def put(blob_server, container):
    def one(name: str, data: bytes, **headers: str) -> None:
        blob_server.put(container, f"sub/{UUID}/{name}", data, **headers)

    return one


@pytest.fixture
def store(tmp_path):
    opened = Store(tmp_path / "home")
    yield opened
    opened.close()
    assert lies(tmp_path / "home") == []


def pull(store, remote, settings):
    return fetch.pull(store, remote, registry="local", uuid=UUID, settings=settings)


@needs_azurite
@pytest.mark.slow
class TestAzureRemote(RemoteSuite):
    publishes = True

    @pytest.fixture
    def remote(self, blob_server, container, put, storage, settings):
        for name, data in FILES.items():
            put(name, data)
        for name in FOLDERS:
            put(f"{name}/", b"")
        blob_server.put(container, f"sub/{UUID}-other/foreign", b"x")
        self.put, self.storage, self.settings = put, storage, settings
        return remote_for_storage(storage, UUID, settings)

    def replace(self, remote, name, data):
        self.put(name, data)

    def empty(self, remote):
        return remote_for_storage(self.storage, OTHER_UUID, self.settings)


@needs_azurite
@pytest.mark.slow
def test_a_pull_is_checked_by_the_declared_md5_in_strict_mode(store, put, storage, settings):
    put("model.pth", LARGE)
    put("code/a.py", b"a = 1\n")
    remote = remote_for_storage(storage, UUID, settings.but(verify=Verify.STRICT))
    report = pull(store, remote, settings.but(verify=Verify.STRICT))
    assert set(report.proofs.values()) == {"origin checksum (md5)"}
    assert pull(store, remote, settings).bytes_fetched == 0


@needs_azurite
@pytest.mark.slow
def test_bits_that_stay_flipped_are_not_kept_in_strict_mode(blob_server, container, put, settings, store):
    put("model.pth", LARGE)
    with relaying(blob_server.port) as proxy:
        url = blob_server.url.replace(str(blob_server.port), str(proxy.port))
        account = AzureAccount(url=url, key=blob_server.key)
        remote = AzureRemote(account, container, f"sub/{UUID}", timeout=5)
        proxy.faults = lambda one: Fault(flip=True) if one.path.endswith("model.pth") else None
        with pytest.raises(ContentError, match="expected md5:"):
            pull(store, remote, settings.but(verify=Verify.STRICT))
        assert not any((store.home / "blobs").glob("*/*"))


@needs_azurite
@pytest.mark.slow
def test_ways_to_say_who_one_is(blob_server, container, put, settings, monkeypatch):
    put("f", b"x")
    place = f"{blob_server.url.replace('http://', 'az+http://')}/{container}/sub/{UUID}"
    with pytest.raises(NotAllowedError, match="AZURE_STORAGE_CONNECTION_STRING"):
        remote_for_url(place, settings).list()
    wrong = remote_for_storage(
        {"type": "azure", "container": container, "account_url": blob_server.url, "credential": "d3Jvbmcta2V5LWhlcmU="},
        UUID,
        settings,
    )
    with pytest.raises(NotAllowedError) as caught:
        wrong.list()
    assert "d3Jvbmct" not in str(caught.value) + repr(wrong.account) and "\n" not in str(caught.value)
    monkeypatch.setenv("AZURE_STORAGE_KEY", blob_server.key)
    assert len(remote_for_url(place, settings).list().files) == 1
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", blob_server.connection_string)
    remote = remote_for_url(f"az://{container}/sub/{UUID}", settings)
    assert [str(file.path) for file in remote.list().files] == ["f"]
    with pytest.raises(RemoteError, match="ContainerNotFound; is the container's name right"):
        remote_for_url("az://no-such-container/x", settings).list()


@needs_azurite
@pytest.mark.slow
def test_a_shared_access_signature_is_sent_and_shown_nowhere(blob_server, container, put, settings, store):
    put("model.pth", LARGE)
    sas = "?" + signature_of(blob_server, container)
    storage = {"type": "azure", "container": f"{container}/sub", "account_url": blob_server.url, "credential": sas}
    remote = remote_for_storage(storage, UUID, settings)
    assert pull(store, remote, settings).files_fetched == 1
    written = "".join(path.read_text("latin-1") for path in store.home.rglob("*.jsonl"))
    assert "sig=" not in written + repr(remote.account) + remote.url


def signature_of(server, container) -> str:
    """A container's signature, made as the documentation says."""
    import base64
    import hmac
    import time
    from urllib.parse import urlencode

    end = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3600))
    lines = ["rl", "", end, f"/blob/{azurite.EMULATED}/{container}", "", "", "", "2020-12-06", "c", "", "", *[""] * 5]
    text = "\n".join(lines)
    value = hmac.digest(base64.b64decode(server.key), text.encode(), "sha256")
    named = {"sp": "rl", "se": end, "sv": "2020-12-06", "sr": "c", "sig": base64.b64encode(value).decode()}
    return urlencode(named)


@needs_azurite
@pytest.mark.slow
def test_public_containers_are_read_without_credentials(blob_server, settings):
    name = f"public-{uuid.uuid4().hex[:12]}"
    blob_server.make(name, public=True)
    blob_server.put(name, "a/b", b"xyz")
    place = f"{blob_server.url.replace('http://', 'az+http://')}/{name}"
    remote = remote_for_url(place, settings.but(anonymous=True))
    [file] = remote.list().files
    assert b"".join(map(bytes, remote.read(file, 1, 3))) == b"yz"


@needs_azurite
@pytest.mark.slow
def test_faults_on_the_wire(blob_server, container, put, settings, store):
    put("model.pth", LARGE)
    with relaying(blob_server.port) as proxy:
        url = blob_server.url.replace(str(blob_server.port), str(proxy.port))
        account = AzureAccount(url=url, key=blob_server.key)
        remote = AzureRemote(account, container, f"sub/{UUID}", timeout=5)
        busy = answer("503 Busy", Retry_After="0", x_ms_error_code="ServerBusy")
        faults = iter([Fault(answer=busy), Fault(cut=1000), Fault(answer=b"")])
        proxy.faults = lambda one: next(faults, None) if one.path.endswith("model.pth") else None
        assert pull(store, remote, settings).files_fetched == 1
        [file] = remote.list().files
        proxy.faults = lambda one: Fault(answer=answer("412 No")) if "if-match" in one.headers else None
        assert b"".join(map(bytes, remote.read(file, 5, 9))) == LARGE[5:9]
        proxy.faults = lambda one: Fault(headers={"ETag": '"other"'}) if one.method == "GET" else None
        with pytest.raises(ChangedError):
            list(remote.read(file, 5, 9))
        proxy.faults = lambda one: Fault(headers={"Content-Range": "bytes 0-3/4"}) if one.method == "GET" else None
        with pytest.raises(TransientRemoteError, match="asked for 5 to 9"):
            list(remote.read(file, 5, 9))


# --- accounts, with no server ----------------------------------------------------------------------------------


def test_connection_strings():
    account = AzureAccount.of(connection_string="DefaultEndpointsProtocol=https;AccountName=acc;AccountKey=a2V5PT0=;")
    assert (account.url, account.key, account.name) == ("https://acc.blob.core.windows.net", "a2V5PT0=", "acc")
    account = AzureAccount.of(
        connection_string="BlobEndpoint=https://acc.blob.core.windows.net/;SharedAccessSignature=sv=1&sig=x"
    )
    assert (account.url, account.sas) == ("https://acc.blob.core.windows.net", "sv=1&sig=x")
    assert AzureAccount.of(connection_string="UseDevelopmentStorage=true").name == azurite.EMULATED


@pytest.mark.parametrize("text", ["nonsense", "AccountKey=x", "BlobEndpoint=ftp://x", "BlobEndpoint=https://u:p@x"])
def test_connection_strings_that_mean_nothing(text):
    with pytest.raises(UsageError) as caught:
        AzureAccount.of(connection_string=text)
    assert "\n" not in str(caught.value)


def test_urls_of_azure(settings, monkeypatch):
    monkeypatch.setenv("AZURE_STORAGE_KEY", "a2V5")
    for url in (
        "abfss://box@acc.dfs.core.windows.net/p/q",
        "wasbs://box@acc.blob.core.windows.net/p/q",
        "az+https://acc.blob.core.windows.net/box/p/q",
    ):
        remote = remote_for_url(url, settings)
        assert remote.url == "az+https://acc.blob.core.windows.net/box/p/q"
        assert (remote.account.name, remote.account.key) == ("acc", "a2V5")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT", "acc")
    assert remote_for_url("az://box/p/q", settings).url == "az+https://acc.blob.core.windows.net/box/p/q"
    for url in ("az://", "abfss://box:secret@acc.dfs.core.windows.net/p", "az+https://acc.blob.core.windows.net/"):
        with pytest.raises(UsageError):
            remote_for_url(url, settings)


def test_a_key_that_is_none_is_said(settings):
    storage = {"type": "azure", "container": "c", "account_url": "https://a.blob.core.windows.net", "credential": "!"}
    with pytest.raises(UsageError, match="no Base64"):
        remote_for_storage(storage, UUID, settings).list()


@needs_azurite
def test_a_published_sibling_costs_its_changed_chunks(blob_server, container, storage, settings, tmp_path):
    for name, data in zip((UUID, OTHER_UUID), siblings(), strict=True):
        blob_server.put(container, f"sub/{name}/model.bin", data)
    require_cheap_sibling(
        lambda name: remote_for_storage(storage, {"one": UUID, "two": OTHER_UUID}[name], settings), tmp_path
    )
