"""Whatever fsspec opens, as a remote: hubs, FTP, SFTP, GitHub, archives; S3 and GCS a second way.

fsspec has no conditional reads, so what a file is (size, ETag, checksum, time) is looked at again after each range:
only what was read while it was still the version that was listed counts.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import errno
import json
import os
import threading
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any
from urllib.parse import quote

from cas.errors import (
    ChangedError,
    CheckpointNotFoundError,
    NotAllowedError,
    RemoteError,
    TransientRemoteError,
    UsageError,
)
from cas.index.digest import Digest
from cas.index.identity import RemoteIdentity
from cas.index.paths import RelativePath, check_tree
from cas.transfer.remote import Checksum, Listing, Piece, RemoteFile
from cas.transfer.sidecars import sidecar_key
from cas.transfer.web import public_url
from cas.transfer.workers import Workers

Files = list[RemoteFile]
Folders = list[RelativePath]

MAX_FILES = 1_000_000
_AT_ONCE = 64  # calls that may wait for a server; each is given up some time
_PIECE = 1 << 20
_AHEAD = 5 << 20  # bytes that fsspec's files read at once, whatever is asked for
# Bytes per second: half of what each of 8 connections has on a line of 1 Mbit/s. A call shows no progress, so it gets
# the timeout and the time that its bytes take at this pace.
_SLOW = 8 << 10
# What tells one version of a file from another, in the words of the file systems that fsspec knows.
_VERSIONS = ("ETag", "etag", "generation", "version_id", "VersionId", "blob_id", "oid", "sha", "md5", "md5Hash", "lfs")
_TIMES = (
    "LastModified",
    "Last-Modified",
    "last_modified",
    "mtime",
    "updated",
    "modified",
    "modify",
    "last_commit",
    "created",
)
_SECRET = ("key", "secret", "token", "password", "pass", "credential", "sas", "auth", "cookie", "header", "connection")


class FsspecRemote:
    """Everything below a URL that fsspec opens; `options` are its `storage_options`, and never written anywhere."""

    def __init__(self, url: str, options: Mapping[str, Any] | None = None, *, timeout: float) -> None:
        self._opened_url = url
        self._options = dict(options or {})
        self._timeout = timeout
        self._lock = threading.Lock()
        self._system: tuple[int, Any, str] | None = None
        self._calls: tuple[int, Workers] | None = None
        self._is_file = False  # the URL means one file, not a folder
        self._declared: dict[str, tuple[Checksum, ...]] = {}

    @property
    def url(self) -> str:
        """The URL, and a digest of those options that say where it is and are no secret."""
        where = {name: value for name, value in sorted(self._options.items()) if not _is_secret(name)}
        plain = json.dumps(where, default=lambda value: type(value).__name__, sort_keys=True)
        mark = f"#{Digest.of(plain.encode()).hex[:12]}" if where else ""
        return public_url(self._opened_url).rstrip("/") + mark

    def _url(self, name: str) -> str:
        base, mark, digest = self.url.partition("#")
        return f"{base}/{quote(name, safe='/-_.~')}{mark}{digest}"

    # --- listing -----------------------------------------------------------------------------------------------

    def list(self) -> Listing:
        """List everything below the URL; if that is a file, that one.

        Raises:
            CheckpointNotFoundError: there is nothing.
            UnsafeNameError: a name that no relative path can be made of.
            UsageError: fsspec, or what it needs for this URL, is not installed; or the options are wrong.
        """
        system, root = self._open()

        def find() -> tuple[bool, dict[str, Any]]:
            system.invalidate_cache()
            if not self._opened_url.endswith("/") and system.isfile(root):
                return True, {root: system.info(root)}
            return False, dict(system.find(root, withdirs=True, detail=True))

        self._is_file, found = self._call(find, "list", many=True)
        if len(found) > MAX_FILES:
            raise RemoteError(f"{self.url}: more than {MAX_FILES} files")
        files, directories = self._tree(found, root)
        if not files and not directories:
            raise CheckpointNotFoundError(f"there are no files at {self.url}")
        check_tree((file.path for file in files), directories)
        return Listing(tuple(files), tuple(directories))

    def _tree(self, found: Mapping[str, Any], root: str) -> tuple[Files, Folders]:
        files: Files = []
        directories: Folders = []
        base = root.rstrip("/")
        for path, data in found.items():
            if not self._is_file and path.rstrip("/") == base:
                continue  # some list the folder itself, as a file even
            name = path.rpartition("/")[2] if self._is_file else path.removeprefix(f"{base}/")
            if not self._is_file and not path.startswith(f"{base}/" if base else ""):
                raise RemoteError(f"{self.url}: the file system listed {path!r:.200}, which does not lie there")
            if data.get("type") == "directory" or (name.endswith("/") and not data.get("size")):
                directories.append(RelativePath(name.strip("/")))
            else:
                files.append(self._file(RelativePath(name), data))
        return files, directories

    def _file(self, name: RelativePath, data: Mapping[str, Any]) -> RemoteFile:
        size = data.get("size")
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise RemoteError(f"{self.url}: {name} has no size that is known before it is read")
        self._declared[name] = tuple(_declared(data))
        return RemoteFile(name, size, RemoteIdentity(self._url(name), size, version=_version(data)))

    # --- bytes -------------------------------------------------------------------------------------------------

    def read(self, file: RemoteFile, start: int, end: int) -> Iterator[Piece]:
        """Yield a range, once it is known that the file is still the one that was listed; see `Remote`."""
        system, _ = self._open()
        path = self._path(file)
        data = self._call(lambda: system.cat_file(path, start=start, end=end), f"read {file.path} of", size=end - start)
        self._require_same(file)
        if len(data) != end - start:
            raise TransientRemoteError(f"{file.identity.url}: {len(data)} of {end - start} bytes came")
        view = memoryview(data)
        for at in range(0, len(view), _PIECE):
            yield view[at : at + _PIECE]

    def stream(self, file: RemoteFile) -> Iterator[Piece]:
        """Yield all bytes in order; that the file was not replaced meanwhile is looked at in the end."""
        system, _ = self._open()
        path, left = self._path(file), file.size
        with self._call(lambda: system.open(path, "rb"), f"open {file.path} of") as source:
            while left:
                data = self._call(partial(source.read, min(_PIECE, left)), f"read {file.path} of", size=_AHEAD)
                if not data:
                    raise TransientRemoteError(f"{file.identity.url}: ended {left} bytes too early")
                left -= len(data)
                yield data
        self._require_same(file)

    def _require_same(self, file: RemoteFile) -> None:
        system, _ = self._open()
        path = self._path(file)

        def look() -> Any:
            system.invalidate_cache(system._parent(path))
            return system.info(path)

        try:
            now = self._file(file.path, self._call(look, f"look at {file.path} of"))
        except CheckpointNotFoundError as error:
            raise ChangedError(f"{file.identity.url} is gone since it was listed") from error
        if now.size != file.size or not _same(now.identity.version, file.identity.version):
            raise ChangedError(f"{file.identity.url} was replaced since it was listed")

    def _path(self, file: RemoteFile) -> str:
        _, root = self._open()
        if self._is_file:
            return root
        return f"{root.rstrip('/')}/{file.path}" if root else str(file.path)

    # --- the file system ---------------------------------------------------------------------------------------

    def _open(self) -> tuple[Any, str]:
        """Return this process's file system, and where the URL is in it: after a fork each opens its own."""
        with self._lock:
            if self._system is None or self._system[0] != os.getpid():
                self._system = (os.getpid(), *self._connect())
            return self._system[1], self._system[2]

    def _connect(self) -> tuple[Any, str]:
        try:
            from fsspec.core import url_to_fs
        except ImportError as error:
            raise UsageError(f"{self.url}: needs fsspec; `pip install 'checkpoint-cas[fsspec]'` brings it") from error
        try:
            system, root = url_to_fs(self._opened_url, **self._options)
        except ImportError as error:
            raise UsageError(f"{self.url}: {self._said(error)}") from error
        except OSError as error:  # some reach for their server at once
            raise self._translate(error, "open") from error
        except Exception as error:  # whatever a file system's constructor says of its options
            raise UsageError(f"{self.url}: fsspec cannot open it: {self._said(error)}") from error
        return system, str(root)

    def _call(self, function: Any, doing: str, *, many: bool = False, size: int = 0) -> Any:
        """Call fsspec in a thread, so that a server which keeps silent is not waited for for ever; `size` in bytes."""
        with self._lock:
            if self._calls is None or self._calls[0] != os.getpid():
                self._calls = (os.getpid(), Workers(_AT_ONCE, threading.Event(), "cas-fsspec"))
            calls = self._calls[1]
        try:
            return calls.submit(function).result(self._timeout * (20 if many else 1) + size / _SLOW)
        except TimeoutError as error:
            raise TransientRemoteError(f"cannot {doing} {self.url}: no answer in time") from error
        except Exception as error:
            raise self._translate(error, doing) from error

    def _translate(self, error: Exception, doing: str) -> Exception:
        """Turn what any file system raises into one of our errors."""
        line = f"cannot {doing} {self.url}: {self._said(error)}"
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            return CheckpointNotFoundError(f"there are no files at {self.url}")
        status = getattr(error, "status", None) or getattr(error, "code", None)
        if isinstance(error, PermissionError) or status in (401, 403, "401", "403"):
            return NotAllowedError(f"{line}; storage_options may hold what allows it")
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if kinds & {"NoCredentialsError", "DefaultCredentialsError", "CredentialRetrievalError"}:
            return NotAllowedError(f"{line}; storage_options may hold them")
        if isinstance(error, ImportError | TypeError | ValueError | NotImplementedError):
            return UsageError(line) if isinstance(error, ImportError) else RemoteError(line)
        unreachable = bool(kinds & {"ClientConnectorError", "ConnectError", "ConnectionRefusedError", "gaierror"})
        if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM):
            return NotAllowedError(line)
        return TransientRemoteError(line, unreachable=unreachable)

    def _said(self, error: BaseException) -> str:
        """The first line of an error, with no option that may be a secret in it."""
        said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        text = next(iter(said.splitlines()), "") or type(error).__name__
        for name, value in _flat(self._options):
            if _is_secret(name) and isinstance(value, str) and len(value) > 3:
                text = text.replace(value, "…")
        return text[:300]

    # --- what is published beside it -----------------------------------------------------------------------------

    def read_sidecar(self, limit: int) -> bytes | None:
        """Return what was published of the place; see `KeepsSidecars`."""
        system, root = self._open()
        path = sidecar_key(root)

        def read() -> bytes:
            size = system.info(path)["size"]
            if not isinstance(size, int) or size > limit:
                raise ValueError(f"{path} has {size} bytes, more than {limit}")
            return bytes(system.cat_file(path))

        try:
            return bytes(self._call(read, "read what is published of"))
        except CheckpointNotFoundError:
            return None

    def write_sidecar(self, data: bytes) -> str:
        """Publish the place's sidecar; see `KeepsSidecars`."""
        system, root = self._open()
        path = sidecar_key(root)

        def write() -> None:
            system.makedirs(system._parent(path), exist_ok=True)
            system.pipe_file(path, data)

        self._call(write, "publish beside")
        return str(system.unstrip_protocol(path))

    # --- the rest ----------------------------------------------------------------------------------------------

    def likely_checksums(self, file: RemoteFile) -> tuple[Checksum, ...]:
        """None: each file system has words of its own for them."""
        return ()

    def checksums(self, file: RemoteFile, *, thorough: bool = False) -> tuple[Checksum, ...]:
        """Return what the listing declared: SHA-256 of hubs, MD5 and CRC-32C of GCS."""
        return self._declared.get(file.path, ())

    def local_path(self, file: RemoteFile) -> None:
        """None, even if the file system is a folder of this host: `file://` is for those."""

    def recipe(self) -> None:
        """None: this remote opens its file system anew in a forked child."""


def _version(data: Mapping[str, Any]) -> str | None:
    """Return what tells this version of a file from others; None if nothing does."""
    found = {name: _plain(data[name]) for name in (*_VERSIONS, *_TIMES) if data.get(name) not in (None, "")}
    return json.dumps(found, sort_keys=True) if found else None


def _same(now: str | None, listed: str | None) -> bool:
    """Whether two looks tell of one version; looks of different kinds tell more or less."""
    if now is None or listed is None:
        return now == listed
    one, other = json.loads(now), json.loads(listed)
    both = one.keys() & other.keys()
    return bool(both) and all(one[name] == other[name] for name in both)


def _declared(data: Mapping[str, Any]) -> Iterator[Checksum]:
    lfs = data.get("lfs")
    sha = lfs.get("sha256") if isinstance(lfs, Mapping) else getattr(lfs, "sha256", None)
    if isinstance(sha, str):
        with contextlib.suppress(ValueError):
            yield Checksum("sha256", bytes.fromhex(sha))
    for kind, name in (("crc32c", "crc32c"), ("md5", "md5Hash")):
        if isinstance(text := data.get(name), str):
            with contextlib.suppress(ValueError, binascii.Error):
                yield Checksum(kind, base64.b64decode(text, validate=True))


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):  # in one list a moment, in another seconds
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    return value if isinstance(value, str | int | float) else str(value)


def _is_secret(name: str) -> bool:
    return any(word in name.lower() for word in _SECRET)


def _flat(options: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{inner}", one) for inner, one in _flat(value))
        else:
            yield name, value
