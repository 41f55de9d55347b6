"""Signed S3 requests for what obstore does not tell: exact keys, declared checksums, a bucket's region, Retry-After.

(obstore's listing drops the `/` at the end of a key, which is what tells an empty folder from an empty file.)
"""

from __future__ import annotations

import base64
import binascii
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import unquote_plus, urlsplit

from cas.errors import NotAllowedError, RemoteError, TransientRemoteError
from cas.transfer.http import Answer, Connections, retry_after
from cas.transfer.remote import Checksum
from cas.transfer.sigv4 import Credentials, encode_path, encode_query, sign

MAX_PAGES = 10_000  # of 1,000 keys each
_KINDS = ("crc32", "crc32c", "crc64nvme", "sha1", "sha256")
_ALLOW = "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, of an account that may read it"
_REFUSED = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "AccountProblem", "AllAccessDisabled"}
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"}
_PASSING = {"SlowDown", "InternalError", "RequestTimeout", "ServiceUnavailable", "OperationAborted"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One key of a listing."""

    key: str
    size: int
    etag: str | None
    modified: int | None  # nanoseconds since 1970


@dataclass(frozen=True, slots=True)
class Head:
    """What a HEAD request tells of an object."""

    status: int
    size: int
    etag: str | None
    version: str | None
    encryption: str | None
    parts: int | None
    checksums: tuple[tuple[str, str], ...]  # kind -> base64, with `-N` behind it if it is of N parts
    is_composite: bool


class S3Http:
    """One bucket; safe for threads, and after a fork."""

    def __init__(
        self,
        base: str,
        *,
        name: str,
        region: str,
        credentials: Callable[[], Credentials] | None,
        connections: Connections,
        payer: bool = False,
    ) -> None:
        self.base = base
        self.region = region
        self._name = name
        self._credentials = credentials
        self._connections = connections
        self._always = {"x-amz-request-payer": "requester"} if payer else {}

    def list(self, prefix: str, *, after: str | None = None) -> Iterator[Entry]:
        """Yield all keys with a prefix, in order of their bytes; only those greater than `after`.

        Raises:
            NotAllowedError, RemoteError, TransientRemoteError: as the server answers.
            WrongRegionError: the bucket lies in another region.
        """
        token: str | None = None
        for _ in range(MAX_PAGES):
            query = {"encoding-type": "url", "list-type": "2", "max-keys": "1000", "prefix": prefix}
            if token is not None:
                query["continuation-token"] = token
            elif after is not None:
                query["start-after"] = after
            entries, token = parse_page(self._send("GET", "", query).body, self._name)
            yield from entries
            if token is None:
                return
        raise RemoteError(f"{self._name}: more than {MAX_PAGES * 1000} keys")

    def head(self, key: str, *, part: int | None = None) -> Head:
        """Ask what the server says of an object, or of one part of it, with its checksums.

        Raises:
            FileNotFoundError: there is no such key.
        """
        query = {"partNumber": str(part)} if part is not None else {}
        headers = {"x-amz-checksum-mode": "ENABLED"} if part is None else {}
        return parse_head(self._send("HEAD", key, query, headers))

    def get(self, key: str, limit: int) -> bytes:
        """Return the first bytes of a (small) object, as many as the limit says at most.

        Raises:
            FileNotFoundError: there is no such key.
        """
        return self._send("GET", key, {}, {"range": f"bytes=0-{limit - 1}"}).body

    def _send(
        self, method: str, key: str, query: Mapping[str, str], headers: Mapping[str, str] | None = None
    ) -> Answer:
        parts = urlsplit(self.base)
        path, text = encode_path(f"{parts.path}/{key}"), encode_query(query)
        signed: Mapping[str, str] = {**self._always, **(headers or {})}
        if self._credentials is not None:
            keys = self._credentials()
            signed = sign(
                method,
                host=parts.netloc,
                path=path,
                query=text,
                headers=signed,
                credentials=keys,
                region=self.region,
                now=datetime.now(UTC),
            )
        url = f"{parts.scheme}://{parts.netloc}{path}" + (f"?{text}" if text else "")
        answer = self._connections.send(method, url, signed)
        if answer.status not in (200, 206):
            raise translate(self._name, answer.status, answer.headers, answer.body, key=key)
        return answer


class ExpiredError(NotAllowedError):
    """Keys ran out; the chain that gave them may have others by now."""


class WrongRegionError(RemoteError):
    """The bucket lies in another region, which the server names."""

    def __init__(self, name: str, region: str) -> None:
        self.region = region
        super().__init__(f"{name} lies in region {region}; set CAS_REGION={region}")


def parse_page(body: bytes, name: str) -> tuple[list[Entry], str | None]:
    """Read one page of a listing: its keys, and how the next page is asked for.

    Raises:
        RemoteError: it is none.
    """
    try:
        root = ET.fromstring(body)
    except ET.ParseError as error:
        raise TransientRemoteError(f"{name}: the listing is not whole: {error}") from error
    space = root.tag[: root.tag.index("}") + 1] if root.tag.startswith("{") else ""
    if root.tag != f"{space}ListBucketResult":
        raise RemoteError(f"{name}: the server's answer is no listing but {root.tag!r:.80}")
    decode = unquote_plus if root.findtext(f"{space}EncodingType") == "url" else str
    found = []
    for item in root.iter(f"{space}Contents"):
        key, size = item.findtext(f"{space}Key"), item.findtext(f"{space}Size")
        if key is None or size is None or not size.isdecimal():
            raise RemoteError(f"{name}: an entry of the listing has no key or no size")
        modified = _nanoseconds(item.findtext(f"{space}LastModified"))
        found.append(Entry(decode(key), int(size), item.findtext(f"{space}ETag") or None, modified))
    truncated = root.findtext(f"{space}IsTruncated") == "true"
    return found, (root.findtext(f"{space}NextContinuationToken") or None) if truncated else None


def quoted(etag: str | None) -> str | None:
    """Return an ETag with its quotes: some servers list it without."""
    return etag if etag is None or etag.endswith('"') else f'"{etag}"'


def _nanoseconds(text: str | None) -> int | None:
    try:
        return round(datetime.fromisoformat(text).timestamp() * 1000) * 10**6 if text else None
    except ValueError:
        return None


def parse_head(answer: Answer) -> Head:
    """Read the headers of the answer to a HEAD request."""
    headers = answer.headers
    parts = headers.get("x-amz-mp-parts-count")
    found = tuple((kind, value) for kind in _KINDS if (value := headers.get(f"x-amz-checksum-{kind}")))
    composite = headers.get("x-amz-checksum-type", "").upper() == "COMPOSITE"
    encryption = headers.get("x-amz-server-side-encryption")
    if headers.get("x-amz-server-side-encryption-customer-algorithm"):
        encryption = "customer"
    return Head(
        status=answer.status,
        size=int(headers.get("content-length") or 0),
        etag=headers.get("etag"),
        version=headers.get("x-amz-version-id"),
        encryption=encryption,
        parts=int(parts) if parts and parts.isdecimal() else None,
        checksums=found,
        is_composite=composite or any("-" in value for _, value in found),
    )


def parse_checksum(kind: str, text: str, parts: tuple[int, ...]) -> Checksum | None:
    """Read a checksum header; None if it is none, or is of another number of parts."""
    value, dash, count = text.partition("-")
    if dash and count != str(len(parts)):
        return None
    try:
        return Checksum(kind, base64.b64decode(value, validate=True), parts if dash else ())
    except (ValueError, binascii.Error):
        return None


def translate(name: str, status: int, headers: Mapping[str, str], body: bytes, *, key: str = "") -> Exception:
    """Turn a server's refusal into one of our errors."""
    code, message, region = _reason(body)
    region = headers.get("x-amz-bucket-region") or region
    if status in (301, 307, 400) and region and code not in _EXPIRED:
        return WrongRegionError(name, region)
    if status == 404 and key and code != "NoSuchBucket":
        return FileNotFoundError(key)
    return by_code(name, status, code, message, retry_after=retry_after(headers.get("retry-after")))


def by_code(name: str, status: int, code: str, message: str, *, retry_after: float | None = None) -> Exception:
    """Turn a status and S3's error code into one of our errors."""
    said = f"{name}: {code or f'status {status}'}{f': {message}' if message else ''}"
    if code == "NoSuchBucket" or status == 404:
        return RemoteError(f"{said}; is the bucket's name right?" if code == "NoSuchBucket" else said)
    if code in _EXPIRED:
        return ExpiredError(f"{said}; log in again (with profiles: `aws sso login`), or check this host's clock")
    if status >= 500 or status in (408, 429) or code in _PASSING:
        return TransientRemoteError(said, retry_after=retry_after)
    if status in (401, 403) or code in _REFUSED:
        return NotAllowedError(f"{said}; {_ALLOW}")
    return RemoteError(said)


def _reason(body: bytes) -> tuple[str, str, str | None]:
    try:
        root = ET.fromstring(body[: 1 << 16])
    except ET.ParseError:
        return "", "", None
    found = {child.tag.rpartition("}")[2]: (child.text or "").strip() for child in root}
    return found.get("Code", ""), found.get("Message", "").rstrip("."), found.get("Region")
