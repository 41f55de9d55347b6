"""Azure's blob storage as a remote: signed requests of our own, as for S3, because its listing has what we need.

(Size, ETag and Content-MD5 of every blob: https://learn.microsoft.com/rest/api/storageservices/list-blobs.)
"""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
import os
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from cas.errors import (
    ChangedError,
    CheckpointNotFoundError,
    NotAllowedError,
    RemoteError,
    TransientRemoteError,
    UsageError,
)
from cas.index.identity import RemoteIdentity
from cas.transfer.http import Answer, Connections, Headers, by_status, exact, range_header
from cas.transfer.keys import Key, listing_of, prefix_of
from cas.transfer.remote import Checksum, Listing, Piece, RemoteFile
from cas.transfer.sidecars import sidecar_key
from cas.transfer.tokens import Renewed

VERSION = "2021-08-06"  # of the service, that the requests are written for
SCOPE = "https://storage.azure.com/.default"
MAX_PAGES = 10_000  # of 5,000 blobs each
EMULATED = "devstoreaccount1"  # Azurite's account, with the key that its documentation prints
_EMULATED_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
_ALLOW = "set AZURE_STORAGE_CONNECTION_STRING, AZURE_STORAGE_KEY or AZURE_STORAGE_SAS_TOKEN, or `az login`"


@dataclass(frozen=True, slots=True, kw_only=True)
class AzureAccount:
    """An account and what its requests are allowed by: a key, a shared access signature, or a login."""

    url: str  # https://<account>.blob.core.windows.net, with no slash at its end
    key: str | None = field(default=None, repr=False)
    sas: str | None = field(default=None, repr=False)  # with no question mark
    anonymous: bool = False

    @property
    def name(self) -> str:
        """The account's name: of the host, or the first part of the path where the host is an address."""
        parts = urlsplit(self.url)
        return parts.path.strip("/") or (parts.hostname or "").partition(".")[0]

    @classmethod
    def of(
        cls,
        *,
        connection_string: str | None = None,
        account_url: str | None = None,
        credential: str | None = None,
        anonymous: bool = False,
    ) -> AzureAccount:
        """Return the account that a storage's configuration names, else the environment.

        Raises:
            UsageError: nothing names one, or it makes no sense.
        """
        if connection_string:
            return _from_string(connection_string)
        if account_url:
            url, _, query = account_url.partition("?")
            given = credential or query or None
            is_sas = given is not None and "sig=" in given
            sas = given.lstrip("?") if given is not None and is_sas else None
            found = cls(url=_endpoint(url), key=None if is_sas else given, sas=sas, anonymous=anonymous)
            return found if given or anonymous else _with_environment(found)
        return _from_environment(anonymous=anonymous)


def _endpoint(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        raise UsageError(f"{text!r:.200} is not of the form https://<account>.blob.core.windows.net")
    return text.rstrip("/")


def _from_string(text: str) -> AzureAccount:
    """Read a connection string: `Name=value;Name=value`."""
    found = {name.strip().lower(): value.strip() for name, _, value in (p.partition("=") for p in text.split(";"))}
    if found.get("usedevelopmentstorage", "").lower() == "true":
        return AzureAccount(url=f"http://127.0.0.1:10000/{EMULATED}", key=_EMULATED_KEY)
    name, scheme = found.get("accountname"), found.get("defaultendpointsprotocol", "https")
    suffix = found.get("endpointsuffix", "core.windows.net")
    url = found.get("blobendpoint") or (f"{scheme}://{name}.blob.{suffix}" if name else "")
    if not url:
        raise UsageError("the connection string names no account: it has neither AccountName nor BlobEndpoint")
    return AzureAccount(url=_endpoint(url), key=found.get("accountkey"), sas=found.get("sharedaccesssignature"))


def _from_environment(*, anonymous: bool) -> AzureAccount:
    get = os.environ.get
    if text := get("AZURE_STORAGE_CONNECTION_STRING"):
        return _from_string(text)
    name = get("AZURE_STORAGE_ACCOUNT") or get("AZURE_STORAGE_ACCOUNT_NAME")
    if not name:
        raise UsageError("which Azure account? Set AZURE_STORAGE_CONNECTION_STRING or AZURE_STORAGE_ACCOUNT")
    account = AzureAccount(url=_endpoint(f"https://{name}.blob.core.windows.net"), anonymous=anonymous)
    return account if anonymous else _with_environment(account)


def _with_environment(account: AzureAccount) -> AzureAccount:
    get = os.environ.get
    key = get("AZURE_STORAGE_KEY") or get("AZURE_STORAGE_ACCOUNT_KEY") or get("AZURE_STORAGE_ACCESS_KEY")
    sas = (get("AZURE_STORAGE_SAS_TOKEN") or "").lstrip("?") or None
    return AzureAccount(url=account.url, key=key or None, sas=sas)


class AzureRemote:
    """Everything below a place in a container (all of the container if `prefix` is empty)."""

    def __init__(
        self, account: AzureAccount, container: str, prefix: str = "", *, timeout: float, ca_bundle: str | None = None
    ) -> None:
        self.account = account
        self.container = container
        self.prefix = prefix
        self._tokens = Renewed(_Chain().ask)
        self._connections = Connections(name=self.url, timeout=timeout, verify=ca_bundle)
        self._declared: dict[str, tuple[Checksum, ...]] = {}
        self._unconditional = False  # a server that answers 412 though nothing has changed

    @property
    def url(self) -> str:
        """`az+https://<account>.blob.core.windows.net/container/prefix`."""
        return self._url(self.prefix)

    def _url(self, key: str) -> str:
        return f"az+{self.account.url}/{quote(f'{self.container}/{key}', safe='/-_.~')}"

    # --- listing -----------------------------------------------------------------------------------------------

    def list(self) -> Listing:
        """List everything below the place.

        Raises:
            CheckpointNotFoundError: there is nothing.
            UnsafeNameError: a name that no relative path can be made of.
            NotAllowedError: no credentials, or they may not list.
        """
        return listing_of(self._keys(), self.prefix, url=self.url)

    def _keys(self) -> Iterator[Key]:
        marker = ""
        for _ in range(MAX_PAGES):
            query = {"restype": "container", "comp": "list", "include": "metadata", "prefix": prefix_of(self.prefix)}
            answer = self._ask("GET", self.container, query | ({"marker": marker} if marker else {}))
            root = self._parse(answer.body)
            for item in root.iter("Blob"):
                yield self._key(item)
            if not (marker := root.findtext("NextMarker") or ""):
                return
        raise RemoteError(f"{self.url}: more than {MAX_PAGES * 5000} blobs")

    def _parse(self, body: bytes) -> ET.Element:
        try:
            root = ET.fromstring(body)
        except ET.ParseError as error:
            raise TransientRemoteError(f"{self.url}: the listing is not whole: {error}") from error
        if root.tag != "EnumerationResults":
            raise RemoteError(f"{self.url}: the server's answer is no listing but {root.tag!r:.80}")
        return root

    def _key(self, item: ET.Element) -> Key:
        named = item.find("Name")
        size = item.findtext("Properties/Content-Length")
        if named is None or not named.text or size is None or not size.isdecimal():
            raise RemoteError(f"{self.url}: a blob of the listing has no name or no size")
        name = unquote(named.text) if named.get("Encoded") == "true" else named.text
        etag = item.findtext("Properties/Etag")
        quoted = etag if etag is None or etag.endswith('"') else f'"{etag}"'
        self._declared[name] = tuple(_md5(item.findtext("Properties/Content-MD5")))
        is_folder = item.findtext("Properties/ResourceType") == "directory" or (
            (item.findtext("Metadata/hdi_isfolder") or "").lower() == "true"
        )
        return Key(name, int(size), RemoteIdentity(self._url(name), int(size), etag=quoted), is_folder=is_folder)

    # --- bytes -------------------------------------------------------------------------------------------------

    def read(self, file: RemoteFile, start: int, end: int) -> Iterator[Piece]:
        """Yield a range of the version that was listed; see `Remote`."""
        etag = file.identity.etag
        condition = {"If-Match": etag} if etag is not None and not self._unconditional else {}
        path, sent = f"{self.container}/{self._name(file)}", {**range_header(file, start, end), **condition}
        url, headers = self._signed("GET", path, {}, sent)
        with self._connections.open("GET", url, headers, origin=file.identity.url) as reply:
            if reply.status in (200, 206):
                yield from exact(reply, file, start, end, lambda *found: _require_same(file, *found))
                return
            answer = Answer(reply.status, reply.headers, reply.body(), url)
        if answer.status == 404:
            raise ChangedError(f"{file.identity.url} is gone since it was listed")
        if answer.status not in (412, 416):
            raise self._refusal(answer, file.identity.url, headers)
        head = self._ask("HEAD", path, {})
        length = head.headers.get("content-length", "")
        _require_same(file, head.headers, int(length) if length.isdecimal() else None)
        if not condition:
            raise TransientRemoteError(f"{file.identity.url}: HTTP {answer.status}, though it is unchanged")
        self._unconditional = True
        yield from self.read(file, start, end)

    def stream(self, file: RemoteFile) -> Iterator[Piece]:
        """Yield all bytes."""
        return self.read(file, 0, file.size)

    def _name(self, file: RemoteFile) -> str:
        return prefix_of(self.prefix) + file.path

    # --- requests ----------------------------------------------------------------------------------------------

    def _ask(self, method: str, path: str, query: Mapping[str, str]) -> Answer:
        url, headers = self._signed(method, path, query, {})
        answer = self._connections.send(method, url, headers)
        if answer.status != 200:
            raise self._refusal(answer, self.url, headers)
        return answer

    def _signed(self, method: str, path: str, query: Mapping[str, str], headers: Headers) -> tuple[str, Headers]:
        account = self.account
        every = dict(query)
        wanted = {**headers, "x-ms-date": formatdate(time.time(), usegmt=True), "x-ms-version": VERSION}
        base = urlsplit(account.url)
        encoded = f"{base.path}/{quote(path, safe='/-_.~')}"
        if account.sas:
            every |= dict(parse_qsl(account.sas, keep_blank_values=True))
        elif account.key:
            wanted["Authorization"] = shared_key(method, account.name, account.key, encoded, every, wanted)
        elif not account.anonymous:
            wanted["Authorization"] = f"Bearer {self._tokens.current()}"
        text = urlencode(every, quote_via=quote)
        return f"{base.scheme}://{base.netloc}{encoded}" + (f"?{text}" if text else ""), wanted

    def _refusal(self, answer: Answer, name: str, headers: Headers) -> Exception:
        sent = headers.get("Authorization", "").partition("Bearer ")[2]
        code = answer.headers.get("x-ms-error-code") or ""
        if code == "ContainerNotFound":
            return RemoteError(f"{name}: ContainerNotFound; is the container's name right?")
        if answer.status == 404:
            return CheckpointNotFoundError(f"there are no files at {name}")
        if answer.status == 401 and sent and self._tokens.refused(sent):
            return TransientRemoteError(f"{name}: the token was refused; another is asked for")
        return by_status(name, answer.status, answer.headers, code, allow=_ALLOW)

    # --- what is published beside it -----------------------------------------------------------------------------

    def read_sidecar(self, limit: int) -> bytes | None:
        """Return what was published of the place; see `KeepsSidecars`."""
        key = sidecar_key(self.prefix)
        url, headers = self._signed("GET", f"{self.container}/{key}", {}, {})
        answer = self._connections.send("GET", url, headers, limit=limit)
        if answer.status == 404:
            return None
        if answer.status != 200:
            raise self._refusal(answer, self._url(key), headers)
        return answer.body

    def write_sidecar(self, data: bytes) -> str:
        """Publish the place's sidecar; see `KeepsSidecars`."""
        key = sidecar_key(self.prefix)
        sent = {
            "x-ms-blob-type": "BlockBlob",
            "Content-Type": "application/octet-stream",
            "Content-Length": str(len(data)),
        }
        url, headers = self._signed("PUT", f"{self.container}/{key}", {}, sent)
        answer = self._connections.send("PUT", url, headers, body=data)
        if answer.status != 201:
            raise self._refusal(answer, self._url(key), headers)
        return self._url(key)

    # --- checksums and the rest --------------------------------------------------------------------------------

    def likely_checksums(self, file: RemoteFile) -> tuple[Checksum, ...]:
        """What the listing declared costs no request either."""
        return self._declared.get(self._name(file), ())

    def checksums(self, file: RemoteFile, *, thorough: bool = False) -> tuple[Checksum, ...]:
        """Return the MD5 that the uploader declared, if it did."""
        return self._declared.get(self._name(file), ())

    def local_path(self, file: RemoteFile) -> None:
        """None: it lies in no folder of this host."""

    def recipe(self) -> None:
        """None: this remote works in a forked child as it is."""


def _require_same(file: RemoteFile, headers: Headers, total: int | None) -> None:
    if total not in (None, file.size) or file.identity.etag not in (None, headers.get("etag")):
        raise ChangedError(f"{file.identity.url} was replaced since it was listed")


def _md5(text: str | None) -> Iterator[Checksum]:
    try:
        value = base64.b64decode(text or "", validate=True)
    except (ValueError, binascii.Error):
        return
    if len(value) == 16:
        yield Checksum("md5", value)


def shared_key(
    method: str, account: str, key: str, path: str, query: Mapping[str, str], headers: Mapping[str, str]
) -> str:
    """Return the Authorization header of a request.

    (https://learn.microsoft.com/rest/api/storageservices/authorize-with-shared-key)

    Raises:
        UsageError: the key is no key.
    """
    lower = {name.lower(): value for name, value in headers.items()}
    plain = ("content-encoding", "content-language", "content-length", "content-md5", "content-type", "date")
    conditions = ("if-modified-since", "if-match", "if-none-match", "if-unmodified-since", "range")
    lines = [method, *(lower.get(name, "") for name in (*plain, *conditions))]
    lines += [f"{name}:{lower[name]}" for name in sorted(lower) if name.startswith("x-ms-")]
    lines += [f"/{account}{path}", *(f"{name.lower()}:{query[name]}" for name in sorted(query))]
    try:
        secret = base64.b64decode(key, validate=True)
    except (ValueError, binascii.Error) as error:
        raise UsageError("the key of the Azure account is no Base64") from error
    signature = base64.b64encode(hmac.digest(secret, "\n".join(lines).encode(), "sha256")).decode()
    return f"SharedKey {account}:{signature}"


class _Chain:
    """The chain of azure-identity: environment, workload and managed identity, `az login`."""

    def __init__(self) -> None:
        self._chain: Any = None

    def ask(self) -> tuple[str, float]:
        """Return a token, and until when it is good.

        Raises:
            NotAllowedError: there are no credentials, or they are refused.
        """
        try:
            from azure.core.exceptions import ClientAuthenticationError
            from azure.identity import DefaultAzureCredential
        except ImportError as error:
            raise NotAllowedError(f"no Azure key is set, and azure-identity is not installed; {_ALLOW}") from error
        try:
            self._chain = self._chain or DefaultAzureCredential()
            found = self._chain.get_token(SCOPE)
        except ClientAuthenticationError as error:
            line = next(iter(str(error).splitlines()), "")[:200]
            raise NotAllowedError(f"no Azure credentials: {line}; {_ALLOW}") from error
        return str(found.token), float(found.expires_on)


def is_address(host: str) -> bool:
    """Whether a host is an address (of an emulator): then the account is the first part of the path."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return True
