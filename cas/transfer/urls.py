"""Which remote a storage or a URL means: the only place that knows the schemes.

Each adapter is imported when something of its kind is asked for: all together cost more than a small pull.
"""

from __future__ import annotations

import importlib.util
import posixpath
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

from cas.config import Client, Settings
from cas.errors import UsageError
from cas.index.paths import RelativePath
from cas.index.store import check_uuid
from cas.transfer.folder import FolderRemote
from cas.transfer.remote import Remote
from cas.transfer.sigv4 import Credentials

if TYPE_CHECKING:
    from cas.transfer.azure import AzureAccount, AzureRemote

IN_CLUSTER = Path("/determined_shared_fs")  # where a cluster's containers see the host path of a shared file system
PLACE = "place"  # the type of a storage that is the very place a URL names, as `cas pull` leaves it
_KNOWN = "file, s3, gs, az, http, https, and what fsspec opens"
_S3_OPTIONS = {"key", "secret", "token", "anon", "endpoint_url", "requester_pays"}  # those of s3fs that we know too


def remote_for_storage(
    storage: object, uuid: str, settings: Settings, *, options: Mapping[str, Any] | None = None
) -> Remote:
    """Return where a checkpoint's files lie, of an experiment's `checkpoint_storage`; `options` as `remote_for_url`.

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
    if kind == "gcs":
        return _gcs(_text(storage, "bucket", needed=True), _below_prefix(storage, uuid), None, settings)
    if kind == "azure":
        return _container(storage, uuid, settings)
    if kind == PLACE:
        return remote_for_url(_text(storage, "url", needed=True), settings, options=options, names=_names(storage))
    raise UsageError(
        f"storage type {kind!r:.40} is not supported by this version of cas; it reads shared_fs, directory, s3, gcs,"
        " azure"
    )


def remote_for_url(
    url: str,
    settings: Settings,
    *,
    options: Mapping[str, Any] | None = None,
    names: Iterable[RelativePath] = (),
) -> Remote:
    """Return what lies below a URL.

    ::

        file:///folder                    a folder of this host
        s3://bucket/prefix                S3; s3+https://host/bucket/prefix what speaks like it
        gs://bucket/prefix                GCS
        az://container/prefix             Azure, of the account that the environment names;
                                          az+https://account.blob.core.windows.net/container/prefix,
                                          abfss://container@account.dfs.core.windows.net/prefix
        https://host/folder/              an index page; https://host/file one file
        anything://…                      what fsspec opens: hf://, ftp://, sftp://, github://, …

    Args:
        url: the URL.
        settings: `client`, `anonymous`, `requester_pays`, `ca_bundle`, `region` and `timeout` count here.
        options: `storage_options` for fsspec; of HTTP, `headers` are sent as they are. Never written anywhere.
        names: files below the URL that are meant, for HTTP servers with no index.

    Raises:
        UsageError: the URL is of an unknown scheme, names nothing, or has credentials in it.
    """
    try:
        parts = urlsplit(url)
        host, user = parts.netloc, parts.username
    except ValueError as error:
        raise UsageError(f"not a URL: {url!r:.200}: {error}") from error
    if "\0" in url or not parts.scheme:
        from cas.transfer.web import public_url

        raise UsageError(f"not a URL: {public_url(url)!r:.200}; it begins with one of {_KNOWN}")
    is_abfs = parts.scheme in ("abfs", "abfss", "wasb", "wasbs")
    if user is not None and not (is_abfs and parts.password is None):
        raise UsageError(
            "credentials do not belong into a URL; the environment may hold them (AWS_PROFILE, or AWS_ACCESS_KEY_ID and"
            " its secret), or storage_options"
        )
    if parts.scheme == "file":
        return FolderRemote(_folder(unquote(parts.path), "the URL's path"))
    if names and parts.scheme not in ("http", "https"):
        raise UsageError("files are named one by one for HTTP only; --include picks some of those that are listed")
    if parts.scheme in ("http", "https"):
        return _web(parts, settings, options or {}, names)
    if parts.scheme in ("s3", "s3a", "s3+http", "s3+https"):
        return _s3_url(parts, settings, options or {})
    if parts.scheme in ("gs", "gcs", "gs+http", "gs+https"):
        return _gcs_url(parts, settings, options or {})
    if (is_abfs or parts.scheme in ("az", "azure", "az+http", "az+https")) and not options:
        return _azure_url(parts, host, settings)
    return _fsspec(url, options, settings)


def _names(storage: Mapping[str, Any]) -> tuple[RelativePath, ...]:
    found = storage.get("files") or []
    if not isinstance(found, list):
        raise UsageError(f"files of the checkpoint's storage is {found!r:.80}, not a list")
    return tuple(RelativePath(name) for name in found)


def bare_path(parts: SplitResult) -> str:
    """Return the path of a URL, with nothing encoded."""
    return unquote(parts.path)


def _web(parts: SplitResult, settings: Settings, options: Mapping[str, Any], names: Iterable[RelativePath]) -> Remote:
    from cas.transfer.web import WebRemote, public_url

    headers = options.get("headers")
    if unknown := sorted(set(options) - {"headers"}):
        raise UsageError(f"storage_options {unknown[0]!r}: over HTTP there is only 'headers'")
    if headers is not None and not _are_texts(headers):
        raise UsageError("storage_options 'headers' must map names to text")
    if not parts.hostname:
        raise UsageError(f"not a URL: {public_url(urlunsplit(parts))!r:.200} names no host")
    place = urlunsplit(parts._replace(path=parts.path or "/", fragment=""))
    return WebRemote(place, timeout=settings.timeout, names=names, headers=headers, ca_bundle=settings.ca_bundle)


def _are_texts(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(name, str) and isinstance(one, str) and "\n" not in f"{name}{one}" for name, one in value.items()
    )


def _fsspec(url: str, options: Mapping[str, Any] | None, settings: Settings) -> Remote:
    from cas.transfer.anyfs import FsspecRemote
    from cas.transfer.web import public_url

    scheme = url.partition("://")[0].rpartition("::")[2]
    if importlib.util.find_spec("fsspec") is None:
        raise UsageError(f"the scheme {scheme!r:.40} needs fsspec; `pip install 'checkpoint-cas[fsspec]'` brings it")
    from fsspec.registry import known_implementations, registry

    if scheme not in known_implementations and scheme not in registry:
        raise UsageError(f"{public_url(url)!r:.200}: the scheme {scheme!r:.40} is not supported; there are {_KNOWN}")
    return FsspecRemote(url, options, timeout=settings.timeout)


def _s3_url(parts: SplitResult, settings: Settings, options: Mapping[str, Any]) -> Remote:
    endpoint = None
    bucket, prefix = parts.netloc, bare_path(parts).lstrip("/")
    if parts.scheme.startswith("s3+"):
        bucket, _, prefix = prefix.partition("/")
        endpoint = f"{parts.scheme[3:]}://{parts.netloc}"
    beyond = set(options) - _S3_OPTIONS
    lacking = any(importlib.util.find_spec(name) is None for name in ("obstore", "botocore"))
    if settings.client is Client.FSSPEC or (
        settings.client is Client.AUTO and (beyond or (lacking and importlib.util.find_spec("s3fs") is not None))
    ):
        more = {"endpoint_url": endpoint} if endpoint else {}
        return _fsspec(f"s3://{bucket}/{prefix}", {**_for_s3fs(settings), **more, **options}, settings)
    if beyond:
        raise UsageError(f"storage_options {min(beyond)!r} is one of s3fs: set CAS_CLIENT=fsspec (or auto)")
    keys = None
    if options.get("key"):
        keys = Credentials(str(options["key"]), str(options.get("secret") or ""), options.get("token"))
    chosen = settings.but(
        anonymous=True if options.get("anon") else None, requester_pays=True if options.get("requester_pays") else None
    )
    return _s3(bucket, prefix, _endpoint(str(options.get("endpoint_url") or "")) or endpoint, chosen, keys)


def _for_s3fs(settings: Settings) -> dict[str, Any]:
    region = {"client_kwargs": {"region_name": settings.region}} if settings.region else {}
    return {"anon": settings.anonymous, "requester_pays": settings.requester_pays, **region}


def _gcs_url(parts: SplitResult, settings: Settings, options: Mapping[str, Any]) -> Remote:
    bucket, prefix = parts.netloc, bare_path(parts).lstrip("/")
    endpoint = None
    if parts.scheme.startswith("gs+"):
        bucket, _, prefix = prefix.partition("/")
        endpoint = f"{parts.scheme[3:]}://{parts.netloc}"
    if settings.client is Client.FSSPEC or options:
        if settings.client is Client.OWN:
            raise UsageError("storage_options of GCS are those of gcsfs: set CAS_CLIENT=fsspec (or auto)")
        known: dict[str, Any] = {"token": "anon"} if settings.anonymous else {}
        more = {"endpoint_url": endpoint} if endpoint else {}
        payer = {"requester_pays": True} if settings.requester_pays else {}
        return _fsspec(f"gs://{bucket}/{prefix}", {**known, **more, **payer, **options}, settings)
    return _gcs(bucket, prefix, endpoint, settings)


def _gcs(bucket: str, prefix: str, endpoint: str | None, settings: Settings) -> Remote:
    if settings.client is Client.FSSPEC:
        return _fsspec(f"gs://{_bucket_name(bucket)}/{_prefix(prefix)}", {}, settings)
    from cas.transfer.gcs import GcsPlace, GcsRemote

    place = GcsPlace(
        bucket=_bucket_name(bucket),
        prefix=_prefix(prefix),
        endpoint=endpoint,
        anonymous=settings.anonymous,
        requester_pays=settings.requester_pays,
    )
    return GcsRemote(place, timeout=settings.timeout, ca_bundle=settings.ca_bundle)


def _azure_url(parts: SplitResult, host: str, settings: Settings) -> AzureRemote:
    from cas.transfer.azure import AzureAccount, is_address

    path = bare_path(parts).strip("/")
    if parts.scheme.startswith("az+"):
        account_path = ""
        if is_address(parts.hostname or ""):
            account_path, _, path = path.partition("/")
        container, _, prefix = path.partition("/")
        url = f"{parts.scheme[3:]}://{host}" + (f"/{account_path}" if account_path else "")
        account = AzureAccount.of(account_url=url, anonymous=settings.anonymous)
    elif "@" in host:
        container, _, name = host.partition("@")
        url = f"https://{name.replace('.dfs.', '.blob.')}"
        account, prefix = AzureAccount.of(account_url=url, anonymous=settings.anonymous), path
    else:
        container, prefix, account = host, path, AzureAccount.of(anonymous=settings.anonymous)
    return _azure(account, container, prefix, settings)


def _container(storage: Mapping[str, Any], uuid: str, settings: Settings) -> AzureRemote:
    """The place of a checkpoint in Azure: `container` may be a folder in one."""
    from cas.transfer.azure import AzureAccount

    account = AzureAccount.of(
        connection_string=_text(storage, "connection_string") or None,
        account_url=_text(storage, "account_url") or None,
        credential=_text(storage, "credential") or None,
        anonymous=settings.anonymous,
    )
    container, _, folder = _text(storage, "container", needed=True).strip("/").partition("/")
    return _azure(account, container, f"{folder}/{uuid}" if folder else uuid, settings)


def _azure(account: AzureAccount, container: str, prefix: str, settings: Settings) -> AzureRemote:
    from cas.transfer.azure import AzureRemote

    if not container or container in (".", ".."):
        raise UsageError(f"not the name of a container: {container!r:.100}")
    return AzureRemote(account, container, _prefix(prefix), timeout=settings.timeout, ca_bundle=settings.ca_bundle)


def _below_prefix(storage: Mapping[str, Any], uuid: str) -> str:
    prefix = _prefix(_text(storage, "prefix"))
    return f"{prefix}/{uuid}" if prefix else uuid


def remote_for_recipe(recipe: Mapping[str, Any], settings: Settings) -> Remote:
    """Return the remote that another process described with `recipe()`."""
    from cas.transfer.s3 import S3Place, S3Remote

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


def _bucket(storage: Mapping[str, Any], uuid: str, settings: Settings) -> Remote:
    access, secret = _text(storage, "access_key"), _text(storage, "secret_key")
    if bool(access) != bool(secret):
        raise UsageError("the storage has only one of access_key and secret_key")
    keys = Credentials(access, secret, _text(storage, "session_token") or None) if access else None
    bucket, place = _bucket_name(_text(storage, "bucket", needed=True)), _below_prefix(storage, uuid)
    endpoint = _endpoint(_text(storage, "endpoint_url"))
    if settings.client is Client.FSSPEC:
        given = {"key": keys.access_key, "secret": keys.secret_key, "token": keys.token} if keys else {}
        where = {"endpoint_url": endpoint} if endpoint else {}
        return _fsspec(f"s3://{bucket}/{place}", {**_for_s3fs(settings), **given, **where}, settings)
    return _s3(bucket, place, endpoint, settings, keys)


def _s3(bucket: str, prefix: str, endpoint: str | None, settings: Settings, keys: Credentials | None = None) -> Remote:
    from cas.transfer.s3 import S3Place, S3Remote

    if missing := [name for name in ("obstore", "botocore") if importlib.util.find_spec(name) is None]:
        raise UsageError(f"S3 needs {' and '.join(missing)}; `pip install 'checkpoint-cas[s3]'` brings what is missing")
    place = S3Place(
        bucket=_bucket_name(bucket),
        prefix=_prefix(prefix),
        endpoint=endpoint,
        region=settings.region,
        keys=keys,
        anonymous=settings.anonymous and keys is None,
        requester_pays=settings.requester_pays,
        ca_bundle=settings.ca_bundle,
    )
    return S3Remote(place, timeout=settings.timeout)


def _bucket_name(text: str) -> str:
    if not text or "/" in text or text in (".", ".."):
        raise UsageError(f"not the name of a bucket: {text!r:.100}")
    return text


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
