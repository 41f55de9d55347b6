"""S3 and what speaks like it, as a remote: obstore reads the bytes, signed requests do the rest (s3http)."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cas.errors import ChangedError, NotAllowedError, RemoteError, TransientRemoteError
from cas.index.identity import RemoteIdentity
from cas.transfer import forks
from cas.transfer.credentials import Account
from cas.transfer.http import Connections
from cas.transfer.keys import Key, listing_of, prefix_of
from cas.transfer.pace import Pace
from cas.transfer.remote import Checksum, Listing, Piece, RangesIgnoredError, RemoteFile
from cas.transfer.s3http import (
    Entry,
    ExpiredError,
    Head,
    S3Http,
    WrongRegionError,
    by_code,
    parse_checksum,
    quoted,
)
from cas.transfer.scan import LAST, Found, in_order, path_of
from cas.transfer.sidecars import sidecar_key
from cas.transfer.sigv4 import Credentials

AS_IT_COMES = (
    1  # byte: obstore hands over what is there, up to 400 KiB at once from a fast server; 256 KiB is no faster
)
_MD5 = re.compile(r'"([0-9a-f]{32})"', re.ASCII)
_OF_PARTS = re.compile(r'"([0-9a-f]{32})-([1-9][0-9]{0,4})"', re.ASCII)
_loading = threading.Lock()
_STATUS = re.compile(r"non-2xx status code: (\d{3})")
_CODE = re.compile(r"<Code>([A-Za-z0-9]+)</Code>")
_MESSAGE = re.compile(r"<Message>([^<]*)</Message>")


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Place:
    """A place in a bucket: everything below `prefix` (all of the bucket if it is empty)."""

    bucket: str
    prefix: str = ""
    endpoint: str | None = None  # of a server that is not AWS
    region: str | None = None
    keys: Credentials | None = field(default=None, repr=False)
    anonymous: bool = False  # sign nothing: the bucket is public
    requester_pays: bool = False
    ca_bundle: str | None = None  # a file of certificates to trust

    def to_json(self) -> dict[str, Any]:
        """Return everything, the keys too: for a pipe to a process of ours, and nowhere else."""
        keys = [self.keys.access_key, self.keys.secret_key, self.keys.token] if self.keys else None
        place = {name: getattr(self, name) for name in self.__slots__}
        return {"s3": {**place, "keys": keys}}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> S3Place:
        """Read what `to_json` wrote."""
        place = dict(data["s3"])
        keys = place.pop("keys")
        return cls(**place, keys=Credentials(*keys) if keys else None)


class S3Remote:
    """Everything below a place in a bucket."""

    def __init__(self, place: S3Place, *, timeout: float) -> None:
        self.place = place
        self._timeout = timeout
        self._account = Account(place.keys)
        self._lock = threading.Lock()
        self._region = place.region
        self._store: Any = None
        self._unconditional = False  # a server that answers 412 though nothing has changed
        self._no_md5: set[str] = set()  # paths of objects of which a HEAD said that a key encrypts them

    @property
    def url(self) -> str:
        """`s3://bucket/prefix`, or `s3+http://host:port/bucket/prefix` of a server that is not AWS."""
        return self._url(self.place.prefix)

    def _url(self, key: str) -> str:
        path = quote(f"{self.place.bucket}/{key}", safe="/-_.~")
        if self._endpoint is None:
            return f"s3://{path}"
        return f"s3+{self._endpoint}/{path}"

    # --- where it is -------------------------------------------------------------------------------------------

    @cached_property
    def _endpoint(self) -> str | None:
        found = self.place.endpoint or self._account.endpoint()
        return found.rstrip("/") if found else None

    @cached_property
    def _verify(self) -> str | None:
        if not (self._endpoint or "https:").startswith("https:"):
            return None
        return self.place.ca_bundle or self._account.ca_bundle()

    @cached_property
    def _connections(self) -> Connections:
        return Connections(name=self._url(""), timeout=self._timeout, verify=self._verify)

    def _found_region(self) -> str:
        if self._region is None:
            self._region = self._account.region() or ("us-east-1" if self._endpoint else self._probed_region())
        return self._region

    def _probed_region(self) -> str:
        """Ask any of AWS' servers where a bucket lies; it says so even where it allows nothing else."""
        answer = self._connections.send("HEAD", _base(self.place.bucket, "us-east-1", None), {})
        return str(answer.headers.get("x-amz-bucket-region") or "us-east-1")

    def _base(self) -> str:
        return _base(self.place.bucket, self._found_region(), self._endpoint)

    def _http(self) -> S3Http:
        with self._lock:
            if self._http_now is None or self._http_now.region != self._found_region():
                self._http_now = S3Http(
                    self._base(),
                    name=self._url(""),
                    region=self._found_region(),
                    credentials=None if self.place.anonymous else self._account.credentials,
                    connections=self._connections,
                    payer=self.place.requester_pays,
                )
            return self._http_now

    _http_now: S3Http | None = None

    # --- listing -----------------------------------------------------------------------------------------------

    def list(self) -> Listing:
        """List everything below the place; empty objects whose key ends in `/` are folders.

        Raises:
            CheckpointNotFoundError: there is nothing.
            UnsafeNameError: a key that no relative path can be made of.
            NotAllowedError: no credentials, or they may not list.
        """
        try:
            keys = tuple(self._listed())
        except WrongRegionError as error:
            self._region = error.region
            keys = tuple(self._listed())
        return listing_of(keys, self.place.prefix, url=self.url)

    def _listed(self) -> Iterator[Key]:
        for entry in self._entries():
            yield Key(entry.key, entry.size, self._identity(entry))

    def _entries(self, after: str | None = None) -> Iterator[Entry]:
        try:
            yield from self._http().list(prefix_of(self.place.prefix), after=after)
        except ExpiredError as error:
            raise self._renewed(error) from error

    def scan(self, *, after: str = "", before: str = LAST) -> Iterator[Found]:
        """Yield every name between two, page by page; see `Scannable`."""
        prefix, end = prefix_of(self.place.prefix), in_order(before)
        try:
            for entry in self._entries(f"{prefix}{after}" if after else None):
                name = entry.key.removeprefix(prefix)
                if in_order(name) >= end:
                    return
                if not name or not entry.key.startswith(prefix):
                    continue
                path = None if name.endswith("/") else path_of(name)
                file = RemoteFile(path, entry.size, self._identity(entry)) if path else None
                yield Found(name, entry.size, entry.modified, file)
        except WrongRegionError as error:  # the answer to the first request
            self._region = error.region
            yield from self.scan(after=after, before=before)

    def _identity(self, entry: Entry) -> RemoteIdentity:
        return RemoteIdentity(self._url(entry.key), entry.size, etag=quoted(entry.etag), modified=entry.modified)

    # --- bytes -------------------------------------------------------------------------------------------------

    def read(self, file: RemoteFile, start: int, end: int) -> Iterator[Piece]:
        """Yield a range of the version that was listed; see `Remote`."""
        options: dict[str, Any] = {}
        if (start, end) != (0, file.size):
            options["range"] = (start, end)
        if file.identity.has_validator and not self._unconditional:
            options["if_match"] = file.identity.etag
        return self._pieces(file, self._get(file, options), start, end)

    def stream(self, file: RemoteFile) -> Iterator[Piece]:
        """Yield all bytes from one unconditional read."""
        return self._pieces(file, self._get(file, {}), 0, file.size)

    def _get(self, file: RemoteFile, options: dict[str, Any]) -> Any:
        store = self._opened()
        from obstore.exceptions import BaseError, PreconditionError

        try:
            return store.get(self._key(file), options=options)
        except PreconditionError as error:
            self._require_same(file, self._head(file))
            if "if_match" not in options:
                raise TransientRemoteError(f"{file.identity.url}: {_first_line(error)}") from error
            self._unconditional = True
            return self._get(file, {name: value for name, value in options.items() if name != "if_match"})
        except FileNotFoundError as error:
            raise ChangedError(f"{file.identity.url} is gone since it was listed") from error
        except (BaseError, OSError) as error:
            known = self._renewed(_translate(error, file.identity.url, ranged="range" in options))
            if isinstance(known, TransientRemoteError) and _STATUS.search(str(error)):
                known.retry_after = self._asked_pause(file)
            raise known from error

    def _asked_pause(self, file: RemoteFile) -> float | None:
        """Return how long a busy server wants to be left alone: obstore shows no Retry-After, so it is asked once."""
        try:
            self._head(file)
        except TransientRemoteError as error:
            return error.retry_after
        except RemoteError:
            return None
        return None

    def _renewed(self, error: Exception) -> Exception:
        """Return an error worth another try in place of one that says that keys ran out, if there are others now."""
        if not isinstance(error, ExpiredError):
            return error
        if not self._account.renew():
            return NotAllowedError(str(error))
        with _loading:
            self._store = None
        return TransientRemoteError(f"{error}; there are new ones")

    def _pieces(self, file: RemoteFile, result: Any, start: int, end: int) -> Iterator[Piece]:
        from obstore.exceptions import BaseError

        meta = result.meta
        self._require_listed(file, meta["size"], meta["e_tag"])
        if tuple(result.range) != (start, end):
            raise TransientRemoteError(f"{file.identity.url}: asked for {start} to {end}, got {result.range}")
        at = start
        try:
            for piece in self._at_pace(result.stream(min_chunk_size=AS_IT_COMES)):
                at += len(piece)
                if at > end:
                    break
                yield memoryview(piece)
                if at == end:  # to ask whether there is more takes a tenth of a small file's time
                    return
        except (BaseError, OSError) as error:
            raise self._renewed(_translate(error, file.identity.url, ranged=False)) from error
        if at != end:
            raise TransientRemoteError(f"{file.identity.url}: {at - start} of {end - start} bytes came")

    def _at_pace(self, pieces: Iterator[Piece]) -> Iterator[Piece]:
        """Yield what comes as it comes; obstore has a limit for silence only, which one byte now and then outwits."""
        pace, began = Pace(self._timeout), time.monotonic()
        for piece in pieces:
            pace.note(len(piece), time.monotonic() - began)
            yield piece
            began = time.monotonic()

    def _opened(self) -> Any:
        """Return obstore's store; it is loaded by one thread alone, because its modules import each other."""
        if (store := self._store) is not None:  # without the lock: every request of every thread comes by here
            return store
        with _loading:
            if self._store is None:
                self._store = self._open()
            return self._store

    def _open(self) -> Any:
        from obstore.store import S3Store

        forks.mark_used()
        region, base = self._found_region(), self._base()
        virtual = not base.endswith(f"/{self.place.bucket}")
        endpoint = base if virtual else base[: -len(self.place.bucket) - 1]
        options: dict[str, Any] = {
            "allow_http": endpoint.startswith("http:"),
            "connect_timeout": timedelta(seconds=min(self._timeout, 10.0)),
            "read_timeout": timedelta(seconds=self._timeout),  # of silence
            "timeout": timedelta(days=1),  # of a whole answer: a slow line is no error
        }
        if self._verify is not None:
            options["root_certificate"] = Path(self._verify).read_bytes()
        return S3Store(
            self.place.bucket,
            # Said explicitly, both names of the endpoint too: obstore reads AWS_* from the environment otherwise.
            config={
                "endpoint": endpoint,
                "aws_endpoint_url_s3": endpoint,
                "region": region,
                "virtual_hosted_style_request": virtual,
                "skip_signature": self.place.anonymous,
                "request_payer": self.place.requester_pays,
            },
            client_options=options,
            retry_config={"max_retries": 0},  # retry.py decides
            credential_provider=None if self.place.anonymous else self._account.provide,
        )

    def _key(self, file: RemoteFile) -> str:
        return prefix_of(self.place.prefix) + file.path

    # --- checksums ---------------------------------------------------------------------------------------------

    def likely_checksums(self, file: RemoteFile) -> tuple[Checksum, ...]:
        """An ETag of 32 hex digits is the MD5 of the bytes, unless the object is encrypted with certain keys.

        Which are so, no listing says: after `checksums` nothing is suggested of those.
        """
        found = _MD5.fullmatch(file.identity.etag or "")
        return (Checksum("md5", bytes.fromhex(found[1])),) if found and file.path not in self._no_md5 else ()

    def checksums(self, file: RemoteFile, *, thorough: bool = False) -> tuple[Checksum, ...]:
        """Return the declared checksums, and MD5 where the ETag is one; one request, or two for one of parts."""
        head = self._head(file)
        self._require_same(file, head)
        parts = (
            self._parts(file, thorough=thorough)
            if head.is_composite or _OF_PARTS.fullmatch(file.identity.etag or "")
            else ()
        )
        declared = [parse_checksum(kind, value, parts) for kind, value in head.checksums]
        if head.encryption in (None, "AES256"):
            declared.append(_md5(file, parts))
        else:
            self._no_md5.add(file.path)
        return tuple(checksum for checksum in declared if checksum is not None)

    def _head(self, file: RemoteFile, part: int | None = None) -> Head:
        try:
            return self._http().head(self._key(file), part=part)
        except FileNotFoundError as error:
            raise ChangedError(f"{file.identity.url} is gone since it was listed") from error
        except ExpiredError as error:
            raise self._renewed(error) from error

    def _require_same(self, file: RemoteFile, head: Head) -> None:
        self._require_listed(file, head.size, head.etag)

    def _require_listed(self, file: RemoteFile, size: int, etag: str | None) -> None:
        listed = file.identity.etag
        if size != file.size or (listed is not None and quoted(etag) != listed):
            raise ChangedError(f"{file.identity.url} was replaced since it was listed")

    def _parts(self, file: RemoteFile, *, thorough: bool) -> tuple[int, ...]:
        """Return the sizes of the parts an object was uploaded in, or () if the server does not prove them.

        A server may answer a question for part 1 of an object that was uploaded whole as if it had parts: only
        where the ETag says how many there are, and the answer says the same, it is believed.
        """
        named = _OF_PARTS.fullmatch(file.identity.etag or "")
        if named is None:
            return ()
        count = int(named[2])
        first = self._head(file, part=1)
        if first.status != 206 or first.parts != count or not 0 < first.size <= file.size:
            return ()
        if thorough:
            with ThreadPoolExecutor(8) as pool:
                heads = pool.map(lambda part: self._head(file, part=part), range(1, count + 1))
                sizes = tuple(head.size for head in heads)
        else:
            sizes = (first.size,) * (count - 1) + (file.size - first.size * (count - 1),)
        return sizes if sum(sizes) == file.size and min(sizes) > 0 else ()

    # --- what is published beside it -----------------------------------------------------------------------------

    def read_sidecar(self, limit: int) -> bytes | None:
        """Return what was published of the place; see `KeepsSidecars`."""
        try:
            return self._read_sidecar(limit)
        except WrongRegionError as error:
            self._region = error.region
            return self._read_sidecar(limit)

    def _read_sidecar(self, limit: int) -> bytes | None:
        key = sidecar_key(self.place.prefix)
        try:
            data = self._http().get(key, limit + 1)
        except FileNotFoundError:
            return None
        except ExpiredError as error:
            raise self._renewed(error) from error
        if len(data) > limit:
            raise RemoteError(f"{self._url(key)} has more than {limit} bytes")
        return data

    def write_sidecar(self, data: bytes) -> str:
        """Publish the place's sidecar; see `KeepsSidecars`."""
        key = sidecar_key(self.place.prefix)
        store = self._opened()
        from obstore.exceptions import BaseError

        try:
            store.put(key, data)
        except (BaseError, OSError) as error:
            raise _translate(error, self._url(key), ranged=False) from error
        return self._url(key)

    # --- the rest ----------------------------------------------------------------------------------------------

    def local_path(self, file: RemoteFile) -> None:
        """None: it lies in no folder of this host."""

    def recipe(self) -> dict[str, Any]:
        """Return what another process makes the same remote of."""
        return self.place.to_json()


def _base(bucket: str, region: str, endpoint: str | None) -> str:
    """Return the URL below which a bucket's keys lie."""
    if endpoint is not None:
        return f"{endpoint}/{bucket}"
    host = f"s3.{region}.amazonaws.com" + (".cn" if region.startswith("cn-") else "")
    # A dot in the bucket's name would make a host that the certificate does not cover.
    return f"https://{host}/{bucket}" if "." in bucket else f"https://{bucket}.{host}"


def _md5(file: RemoteFile, parts: tuple[int, ...]) -> Checksum | None:
    etag = file.identity.etag or ""
    if found := _MD5.fullmatch(etag):
        return Checksum("md5", bytes.fromhex(found[1]))
    found = _OF_PARTS.fullmatch(etag)
    return Checksum("md5", bytes.fromhex(found[1]), parts) if found and parts else None


def _translate(error: Exception, url: str, *, ranged: bool) -> Exception:
    """Turn an error of obstore into one of ours; what has no status is a broken connection, or a short answer."""
    text = str(error)
    if ranged and "non-partial" in text.lower():
        return RangesIgnoredError(f"{url}: the server ignores ranges")
    if not (status := _STATUS.search(text)):
        return TransientRemoteError(f"{url}: {_first_line(error)}")
    code, message = _CODE.search(text), _MESSAGE.search(text)
    return by_code(url, int(status[1]), code[1] if code else "", message[1].rstrip(".") if message else "")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:300]
