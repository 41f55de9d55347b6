"""Storages and URLs: which remote they mean, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from stores import UUID

from cas.config import Settings
from cas.errors import UsageError
from cas.transfer.anyfs import FsspecRemote
from cas.transfer.folder import FolderRemote
from cas.transfer.s3 import S3Remote
from cas.transfer.sigv4 import Credentials
from cas.transfer.urls import remote_for_recipe, remote_for_storage, remote_for_url


@pytest.fixture
def settings(tmp_path):
    return Settings(home=tmp_path / "home", region="eu-west-1")


def s3(settings, **storage):
    return remote_for_storage({"type": "s3", "bucket": "b", **storage}, UUID, settings)


def test_shared_fs_lies_below_host_path_and_storage_path(tmp_path, settings):
    (tmp_path / "ckpt" / UUID).mkdir(parents=True)
    for named in ("ckpt", str(tmp_path / "ckpt"), "ckpt/", "./ckpt"):
        storage = {"type": "shared_fs", "host_path": str(tmp_path), "storage_path": named, "propagation": None}
        assert remote_for_storage(storage, UUID, settings).path == tmp_path / "ckpt" / UUID


@pytest.mark.parametrize("name", ["tensorboard_path", "checkpoint_path"])
def test_shared_fs_knows_the_legacy_names(tmp_path, settings, name):
    storage = {"type": "shared_fs", "host_path": str(tmp_path), name: "old", "storage_path": None}
    assert remote_for_storage(storage, UUID, settings).path == tmp_path / "old" / UUID


def test_shared_fs_without_storage_path(tmp_path, settings):
    remote = remote_for_storage({"type": "shared_fs", "host_path": str(tmp_path)}, UUID, settings)
    assert remote.path == tmp_path / UUID


def test_shared_fs_is_also_looked_for_where_containers_see_it(tmp_path, settings):
    storage = {"type": "shared_fs", "host_path": "/no/such/host/path", "storage_path": "ckpt"}
    with pytest.raises(LookupError, match=f"/no/such/host/path/ckpt/{UUID} nor /determined_shared_fs/ckpt/{UUID}"):
        remote_for_storage(storage, UUID, settings).list()


@pytest.mark.parametrize("named", ["../out", "/elsewhere", "a/../../out"])
def test_shared_fs_does_not_leave_the_host_path(settings, named):
    with pytest.raises(UsageError, match="does not lie below"):
        remote_for_storage({"type": "shared_fs", "host_path": "/data", "storage_path": named}, UUID, settings)


def test_directory(settings):
    remote = remote_for_storage({"type": "directory", "container_path": "/mnt/x"}, UUID, settings)
    assert isinstance(remote, FolderRemote)
    assert remote.path == Path("/mnt/x") / UUID


@pytest.mark.parametrize(
    ("prefix", "place"),
    [(None, UUID), ("", UUID), ("/", UUID), (".", UUID), ("a/b", f"a/b/{UUID}"), ("/x//y/", f"x/y/{UUID}")],
)
def test_s3_prefixes_are_normalized_as_the_cluster_did(settings, prefix, place):
    remote = s3(settings, prefix=prefix, access_key="AK", secret_key="SK", endpoint_url="http://127.0.0.1:1/")
    assert isinstance(remote, S3Remote)
    assert remote.place.prefix == place
    assert remote.url == f"s3+http://127.0.0.1:1/b/{place}"


def test_s3_takes_the_region_from_the_settings(settings):
    assert s3(settings, access_key="AK", secret_key="SK").place.region == "eu-west-1"


@pytest.mark.parametrize(
    "storage",
    [
        {"type": "s3", "bucket": "b", "prefix": "a/../b"},
        {"type": "s3", "bucket": ""},
        {"type": "s3", "bucket": "a/b"},
        {"type": "s3", "bucket": "b", "access_key": "AK"},
        {"type": "s3", "bucket": "b", "endpoint_url": "ftp://host"},
        {"type": "s3", "bucket": "b", "endpoint_url": "http://user:password@host"},
        {"type": "s3", "bucket": "b", "endpoint_url": "nonsense"},
        {"type": "s3", "bucket": 5},
        {"type": "shared_fs"},
        {"type": "shared_fs", "host_path": "relative"},
        {"type": "directory"},
        {"type": "gcs", "bucket": "a/b"},
        {"type": "gcs"},
        {"type": "azure", "container": "c"},
        {"type": "azure", "container": "/", "account_url": "https://a.blob.core.windows.net"},
        {"type": "azure", "container": "c", "account_url": "a.blob.core.windows.net"},
        {"type": "url"},
        {"type": "place"},
        {"type": "place", "url": "nonsense"},
        {"type": None},
        {},
    ],
)
def test_what_is_wrong_is_one_clear_line(settings, storage):
    with pytest.raises(UsageError) as caught:
        remote_for_storage(storage, UUID, settings)
    assert "\n" not in str(caught.value)


def test_an_unsupported_type_is_named(settings):
    with pytest.raises(UsageError, match="storage type 'hdfs' is not supported by this version"):
        remote_for_storage({"type": "hdfs", "bucket": "b"}, UUID, settings)
    with pytest.raises(UsageError, match="storage is 's3', not an object"):
        remote_for_storage("s3", UUID, settings)


@pytest.mark.parametrize("uuid", ["../etc", UUID.upper(), UUID + "-other", ""])
def test_only_uuids_name_a_place(settings, uuid):
    with pytest.raises(UsageError, match="not a checkpoint UUID"):
        remote_for_storage({"type": "directory", "container_path": "/mnt"}, uuid, settings)


def test_urls(settings, tmp_path):
    assert remote_for_url(f"file://{tmp_path}/a%20b", settings).path == tmp_path / "a b"
    remote = remote_for_url("s3+https://minio.example:9000/bucket/some/prefix/", settings)
    assert remote.url == "s3+https://minio.example:9000/bucket/some/prefix"


@pytest.mark.parametrize(
    "url",
    ["gs://", "", "s3://", "s3+http://host", "s3://AK:SK@b/x", "file:relative", "http://[", "http:///x", "/x", "az://"],
)
def test_urls_that_mean_nothing_here(settings, url):
    with pytest.raises(UsageError):
        remote_for_url(url, settings)


def test_each_scheme_has_its_remote(settings, monkeypatch):
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT", "acc")
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    names = {
        "https://h/x/": "https://h/x/",
        "https://h": "https://h/",
        "gs://b/p/": "gs://b/p",
        "gcs://b": "gs://b/",
        "gs+http://127.0.0.1:1/b/p": "gs+http://127.0.0.1:1/b/p",
        "az://c/p": "az+https://acc.blob.core.windows.net/c/p",
        "memory://x/y": "memory://x/y",
        "s3a://b/p": "s3://b/p",
    }
    assert {url: remote_for_url(url, settings).url for url in names} == names


def test_options_of_s3_are_ours_where_we_know_them_and_else_those_of_s3fs(settings):
    remote = remote_for_url("s3://b/p", settings, options={"key": "AK", "secret": "SK", "endpoint_url": "http://h:1"})
    assert isinstance(remote, S3Remote)
    assert (remote.url, remote.place.keys) == ("s3+http://h:1/b/p", Credentials("AK", "SK"))
    assert remote_for_url("s3://b/p", settings, options={"anon": True}).place.anonymous
    assert isinstance(remote_for_url("s3://b/p", settings, options={"profile": "p"}), FsspecRemote)
    with pytest.raises(UsageError, match="'profile' is one of s3fs: set CAS_CLIENT=fsspec"):
        remote_for_url("s3://b/p", settings.but(client="own"), options={"profile": "p"})
    assert isinstance(remote_for_url("s3://b/p", settings.but(client="fsspec")), FsspecRemote)
    assert isinstance(remote_for_url("gs://b/p", settings.but(client="fsspec")), FsspecRemote)
    assert isinstance(remote_for_url("gs://b/p", settings, options={"token": "anon"}), FsspecRemote)
    assert isinstance(s3(settings.but(client="fsspec"), access_key="AK", secret_key="SK"), FsspecRemote)


def test_settings_reach_the_remotes(settings):
    chosen = settings.but(anonymous=True, requester_pays=True, ca_bundle="/etc/ca.pem")
    place = remote_for_url("s3://b/p", chosen).place
    assert (place.anonymous, place.requester_pays, place.ca_bundle) == (True, True, "/etc/ca.pem")
    assert not s3(chosen, access_key="AK", secret_key="SK").place.anonymous  # the storage has keys of its own
    gcs = remote_for_url("gs://b/p", chosen).place
    assert (gcs.anonymous, gcs.requester_pays) == (True, True)


def test_a_recipe_makes_the_same_remote_and_repr_hides_its_keys(settings):
    remote = s3(settings, prefix="p", access_key="AK", secret_key="hidden", endpoint_url="http://127.0.0.1:1")
    again = remote_for_recipe(json.loads(json.dumps(remote.recipe())), settings)
    assert again.place == remote.place
    assert "hidden" not in repr(remote.place)
    assert "hidden" not in repr(remote.place.keys)
