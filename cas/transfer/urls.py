"""Which remote a storage or a URL means: the only place that knows the schemes."""

from __future__ import annotations

import importlib.util
import posixpath
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from cas.config import Settings
from cas.errors import UsageError
from cas.index.store import check_uuid
from cas.transfer.folder import FolderRemote
from cas.transfer.remote import Remote
from cas.transfer.s3 import S3Place, S3Remote
from cas.transfer.sigv4 import Credentials

IN_CLUSTER = Path("/determined_shared_fs")  # where a cluster's containers see the host path of a shared file system


def remote_for_storage(storage: object, uuid: str, settings: Settings) -> Remote:
    """Return where a checkpoint's files lie, of an experiment's `checkpoint_storage`.

    Raises:
        UsageError: the storage is of a type that is not supported, or is not complete.
    """
    check_uuid(uuid)
    if not isinstance(storage, Mapping):  # a master may say anything
        raise UsageError(f"the checkpoint's storage is {storage!r:.80}, not an object")
    kind = storage.get("type")
    if kind == "shared_fs":
        return _shared_folder(storage, uuid)
    if kind == "directory":
        return FolderRemote(_folder(_text(storage, "container_path", needed=True), "container_path") / uuid)
    if kind == "s3":
        return _bucket(storage, uuid, settings)
    if kind == "url":  # of a recovered registry: whatever URLs can name
        return remote_for_url(f"{_text(storage, 'url', needed=True).rstrip('/')}/{uuid}", settings)
    raise UsageError(
        f"storage type {kind!r:.40} is not supported by this version of cas; it reads shared_fs, directory, s3"
    )


def remote_for_url(url: str, settings: Settings) -> Remote:
    """Return what lies below a URL: `file:///…`, `s3://bucket/prefix`, `s3+https://host/bucket/prefix`.

    Raises:
        UsageError: the URL is of another scheme, or names nothing.
    """
    try:
        parts = urlsplit(url)
        host, has_secret = parts.netloc, parts.username is not None
    except ValueError as error:
        raise UsageError(f"not a URL: {url!r:.200}: {error}") from error
    if has_secret:
        raise UsageError("credentials do not belong into a URL; set AWS_PROFILE, or AWS_ACCESS_KEY_ID and its secret")
    if parts.scheme == "file":
        return FolderRemote(_folder(unquote(parts.path), "the URL's path"))
    if parts.scheme == "s3":
        return _s3(host, unquote(parts.path), None, settings)
    if parts.scheme in ("s3+http", "s3+https"):
        bucket, _, prefix = unquote(parts.path).lstrip("/").partition("/")
        return _s3(bucket, prefix, f"{parts.scheme[3:]}://{host}", settings)
    raise UsageError(
        f"{url!r:.200}: the scheme {parts.scheme!r} is not supported by this version of cas; it reads file, s3"
    )


def remote_for_recipe(recipe: Mapping[str, Any], settings: Settings) -> Remote:
    """Return the remote that another process described with `recipe()`."""
    return S3Remote(S3Place.from_json(recipe), timeout=settings.timeout)


def _shared_folder(storage: Mapping[str, Any], uuid: str) -> FolderRemote:
    host = _folder(_text(storage, "host_path", needed=True), "host_path")
    named = _text(storage, "storage_path") or _text(storage, "tensorboard_path") or _text(storage, "checkpoint_path")
    below = _below(host, named)
    places = (host / below / uuid, IN_CLUSTER / below / uuid)
    found = next((place for place in places if place.is_dir()), places[0])
    return FolderRemote(found, also=tuple(place for place in places if place != found))


def _below(host: Path, named: str) -> Path:
    """Return a storage path relative to the host path that it must lie below."""
    wanted = PurePosixPath(posixpath.normpath(posixpath.join(host, named))) if named else PurePosixPath(host)
    try:
        return Path(wanted.relative_to(posixpath.normpath(host)))
    except ValueError as error:
        raise UsageError(f"storage_path {named!r:.200} does not lie below host_path {str(host)!r:.200}") from error


def _bucket(storage: Mapping[str, Any], uuid: str, settings: Settings) -> S3Remote:
    access, secret = _text(storage, "access_key"), _text(storage, "secret_key")
    if bool(access) != bool(secret):
        raise UsageError("the storage has only one of access_key and secret_key")
    keys = Credentials(access, secret, _text(storage, "session_token") or None) if access else None
    prefix = _prefix(_text(storage, "prefix"))
    place = f"{prefix}/{uuid}" if prefix else uuid
    endpoint = _endpoint(_text(storage, "endpoint_url"))
    return _s3(_text(storage, "bucket", needed=True), place, endpoint, settings, keys)


def _s3(
    bucket: str, prefix: str, endpoint: str | None, settings: Settings, keys: Credentials | None = None
) -> S3Remote:
    if missing := [name for name in ("obstore", "botocore") if importlib.util.find_spec(name) is None]:
        raise UsageError(f"S3 needs {' and '.join(missing)}; `pip install 'checkpoint-cas[s3]'` brings what is missing")
    if not bucket or "/" in bucket or bucket in (".", ".."):
        raise UsageError(f"not the name of a bucket: {bucket!r:.100}")
    place = S3Place(bucket=bucket, prefix=_prefix(prefix), endpoint=endpoint, region=settings.region, keys=keys)
    return S3Remote(place, timeout=settings.timeout)


def _prefix(text: str) -> str:
    """Return a prefix as the cluster's uploads use it: normalized, with no slash at its ends."""
    if ".." in text.split("/"):
        raise UsageError(f"the prefix {text!r:.200} has a part '..'")
    return posixpath.normpath(text).strip("/") if text.strip("/") not in ("", ".") else ""


def _endpoint(text: str) -> str | None:
    if not text:
        return None
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.username is None and not parts.query
    except ValueError:
        usable = False
    if not usable:
        raise UsageError(f"endpoint_url {text!r:.200} is not of the form http(s)://host[:port]")
    return text.rstrip("/")


def _folder(text: str, name: str) -> Path:
    if not text.startswith("/") or "\0" in text:
        raise UsageError(f"{name} must be an absolute path, not {text!r:.200}")
    return Path(text)


def _text(storage: Mapping[str, Any], name: str, *, needed: bool = False) -> str:
    value = storage.get(name)
    if value is None or value == "":
        if needed:
            raise UsageError(f"the checkpoint's storage ({storage.get('type')}) has no {name}")
        return ""
    if not isinstance(value, str):
        raise UsageError(f"{name} of the checkpoint's storage is {value!r:.80}, not text")
    return value
