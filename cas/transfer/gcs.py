"""Google Cloud Storage as a remote, through its JSON API: one listing tells size, generation, MD5 and CRC-32C of all.

Each read names the generation that was listed, so it reads that version or nothing.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC
from typing import Any
from urllib.parse import quote, urlencode

from cas.errors import ChangedError, NotAllowedError, RemoteError, TransientRemoteError
from cas.index.identity import RemoteIdentity
from cas.transfer.http import Answer, Connections, Headers, by_status, exact, range_header, retry_after
from cas.transfer.keys import Key, listing_of, prefix_of
from cas.transfer.remote import Checksum, Listing, Piece, RemoteFile
from cas.transfer.sidecars import sidecar_key
from cas.transfer.tokens import Renewed

ENDPOINT = "https://storage.googleapis.com"
SCOPE = "https://www.googleapis.com/auth/devstorage.read_only"
WRITE_SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"  # asked for by `publish` alone
MAX_PAGES = 10_000  # of 1,000 objects each
_FIELDS = "nextPageToken,items(name,size,generation,md5Hash,crc32c)"
_ALLOW = "log in with `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS"


@dataclass(frozen=True, slots=True, kw_only=True)
class GcsPlace:
    """A place in a bucket: everything below `prefix` (all of the bucket if it is empty)."""

    bucket: str
    prefix: str = ""
    endpoint: str | None = None  # of an emulator, or a private one
    anonymous: bool = False
    requester_pays: bool = False


class GcsRemote:
    """Everything below a place in a bucket."""

    def __init__(self, place: GcsPlace, *, timeout: float, ca_bundle: str | None = None) -> None:
        self.place = place
        emulator = os.environ.get("STORAGE_EMULATOR_HOST")  # what Google's own clients look for
        if emulator and "://" not in emulator:
            emulator = f"http://{emulator}"
        self._endpoint = (place.endpoint or emulator or ENDPOINT).rstrip("/")
        self._anonymous = place.anonymous or (bool(emulator) and not place.endpoint)
        self._chain = _Chain(SCOPE)
        self._tokens = Renewed(self._chain.ask)
        self._writing = Renewed(_Chain(WRITE_SCOPE).ask)
        self._connections = Connections(name=self.url, timeout=timeout, verify=ca_bundle)
        self._declared: dict[str, tuple[Checksum, ...]] = {}

    @property
    def url(self) -> str:
        """`gs://bucket/prefix`, or `gs+http://host/bucket/prefix` of another endpoint than Google's."""
        return self._url(self.place.prefix)

    def _url(self, key: str) -> str:
        path = quote(f"{self.place.bucket}/{key}", safe="/-_.~")
        return f"gs://{path}" if self._endpoint == ENDPOINT else f"gs+{self._endpoint}/{path}"

    # --- listing -----------------------------------------------------------------------------------------------

    def list(self) -> Listing:
        """List everything below the place.

        Raises:
            CheckpointNotFoundError: there is nothing.
            UnsafeNameError: a name that no relative path can be made of.
            NotAllowedError: no credentials, or they may not list.
        """
        return listing_of(self._keys(), self.place.prefix, url=self.url)

    def _keys(self) -> Iterator[Key]:
        prefix, token = prefix_of(self.place.prefix), ""
        for _ in range(MAX_PAGES):
            query = {"prefix": prefix, "maxResults": "1000", "fields": _FIELDS} | (
                {"pageToken": token} if token else {}
            )
            page = self._page(self._ask(f"/storage/v1/b/{quote(self.place.bucket, safe='')}/o", query))
            for item in page.get("items") or []:
                yield self._key(item)
            if not (token := page.get("nextPageToken") or ""):
                return
        raise RemoteError(f"{self.url}: more than {MAX_PAGES * 1000} objects")

    def _page(self, answer: Answer) -> dict[str, Any]:
        try:
            page = json.loads(answer.body)
        except (ValueError, RecursionError) as error:
            raise TransientRemoteError(f"{self.url}: the listing is not whole: {error}") from error
        if not isinstance(page, dict) or not isinstance(page.get("items") or [], list):
            raise RemoteError(f"{self.url}: the server's answer is no listing")
        return page

    def _key(self, item: Any) -> Key:
        try:
            name, size, generation = str(item["name"]), int(item["size"]), str(item["generation"])
            declared = tuple(_declared(item))
        except (KeyError, TypeError, ValueError) as error:
            raise RemoteError(f"{self.url}: an object of the listing has no name, size or generation") from error
        self._declared[name] = declared
        return Key(name, size, RemoteIdentity(self._url(name), size, version=generation))

    # --- bytes -------------------------------------------------------------------------------------------------

    def read(self, file: RemoteFile, start: int, end: int) -> Iterator[Piece]:
        """Yield a range of the generation that was listed; see `Remote`."""
        path = f"/storage/v1/b/{quote(self.place.bucket, safe='')}/o/{quote(self._name(file), safe='')}"
        query = {"alt": "media", "generation": file.identity.version or ""}
        # An object that is stored packed comes as it is stored, and has the size and checksums that were listed.
        headers = {"Accept-Encoding": "gzip", **range_header(file, start, end)}
        url, signed = self._with_query(path, query), self._signed(headers)
        with self._connections.open("GET", url, signed, origin=file.identity.url) as reply:
            if reply.status in (200, 206):
                yield from exact(reply, file, start, end, lambda *found: _require_same(file, *found))
                if "x-goog-generation" not in reply.headers:  # an emulator: it may have sent another version
                    self._ask_same(file, path)
                return
            answer = Answer(reply.status, reply.headers, reply.body(), url)
            refusal = self._refusal(answer, file.identity.url, signed, of_object=True)
        raise refusal

    def _ask_same(self, file: RemoteFile, path: str) -> None:
        generation = self._page(self._ask(path, {"fields": "generation"})).get("generation")
        if generation != file.identity.version:
            raise ChangedError(f"{file.identity.url} was replaced since it was listed")

    def stream(self, file: RemoteFile) -> Iterator[Piece]:
        """Yield all bytes."""
        return self.read(file, 0, file.size)

    def _name(self, file: RemoteFile) -> str:
        return prefix_of(self.place.prefix) + file.path

    # --- requests ----------------------------------------------------------------------------------------------

    def _ask(self, path: str, query: Mapping[str, str]) -> Answer:
        signed = self._signed({})
        answer = self._connections.send("GET", self._with_query(path, query), signed)
        if answer.status != 200:
            raise self._refusal(answer, self.url, signed)
        return answer

    def _with_query(self, path: str, query: Mapping[str, str]) -> str:
        payer = {"userProject": self._chain.project()} if self.place.requester_pays else {}
        return f"{self._endpoint}{path}?{urlencode({**query, **payer})}"

    def _signed(self, headers: Headers, *, writing: bool = False) -> Headers:
        tokens = self._writing if writing else self._tokens
        return headers if self._anonymous else {**headers, "Authorization": f"Bearer {tokens.current()}"}

    def _refusal(
        self, answer: Answer, name: str, headers: Headers, *, of_object: bool = False, writing: bool = False
    ) -> Exception:
        sent = headers.get("Authorization", "").removeprefix("Bearer ")
        said = _message(answer.body)
        if answer.status == 401 and sent and (self._writing if writing else self._tokens).refused(sent):
            return TransientRemoteError(f"{name}: the token was refused; another is asked for")
        if answer.status in (404, 412) and of_object:
            return ChangedError(f"{name} was replaced or removed since it was listed")
        if answer.status == 404:
            return RemoteError(f"{name}: {said or 'not found'}; is the bucket's name right?")
        if answer.status == 403 and "rateLimit" in answer.body.decode("latin-1"):
            after = retry_after(answer.headers.get("retry-after"))
            return TransientRemoteError(f"{name}: {said}", retry_after=after)
        return by_status(name, answer.status, answer.headers, said, allow=_ALLOW)

    # --- what is published beside it -----------------------------------------------------------------------------

    def read_sidecar(self, limit: int) -> bytes | None:
        """Return what was published of the place; see `KeepsSidecars`."""
        key, signed = sidecar_key(self.place.prefix), self._signed({})
        path = f"/storage/v1/b/{quote(self.place.bucket, safe='')}/o/{quote(key, safe='')}"
        answer = self._connections.send("GET", self._with_query(path, {"alt": "media"}), signed, limit=limit)
        if answer.status == 404:
            return None
        if answer.status != 200:
            raise self._refusal(answer, self._url(key), signed)
        return answer.body

    def write_sidecar(self, data: bytes) -> str:
        """Publish the place's sidecar; see `KeepsSidecars`."""
        key = sidecar_key(self.place.prefix)
        signed = self._signed({"Content-Type": "application/octet-stream"}, writing=True)
        path = f"/upload/storage/v1/b/{quote(self.place.bucket, safe='')}/o"
        url = self._with_query(path, {"uploadType": "media", "name": key})
        answer = self._connections.send("POST", url, signed, body=data)
        if answer.status != 200:
            raise self._refusal(answer, self._url(key), signed, writing=True)
        return self._url(key)

    # --- checksums and the rest --------------------------------------------------------------------------------

    def likely_checksums(self, file: RemoteFile) -> tuple[Checksum, ...]:
        """What the listing declared is sure, and costs no request either."""
        return self._declared.get(self._name(file), ())

    def checksums(self, file: RemoteFile, *, thorough: bool = False) -> tuple[Checksum, ...]:
        """Return the CRC-32C of every object, and the MD5 of those that were not composed."""
        return self._declared.get(self._name(file), ())

    def local_path(self, file: RemoteFile) -> None:
        """None: it lies in no folder of this host."""

    def recipe(self) -> None:
        """None: this remote works in a forked child as it is."""


def _require_same(file: RemoteFile, headers: Headers, total: int | None) -> None:
    generation = headers.get("x-goog-generation", file.identity.version)
    if generation != file.identity.version or total not in (None, file.size):
        raise ChangedError(f"{file.identity.url} was replaced since it was listed")


def _declared(item: Mapping[str, Any]) -> Iterator[Checksum]:
    for kind, name, size in (("crc32c", "crc32c", 4), ("md5", "md5Hash", 16)):
        if isinstance(text := item.get(name), str):
            try:
                value = base64.b64decode(text, validate=True)
            except (ValueError, binascii.Error):
                continue
            if len(value) == size:
                yield Checksum(kind, value)


def _message(body: bytes) -> str:
    """The text of an error: `{"error": {"message": …}}`, or plain text."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    inner = found.get("error") if isinstance(found, dict) else None
    text = inner.get("message") if isinstance(inner, dict) else None
    return " ".join(text.split())[:300] if isinstance(text, str) else ""


class _Chain:
    """Google's Application Default Credentials."""

    def __init__(self, scope: str) -> None:
        self._scope = scope
        self._found: tuple[Any, str | None] | None = None

    def ask(self) -> tuple[str, float | None]:
        """Return a new token, and until when it is good.

        Raises:
            NotAllowedError: there are no credentials, or they are refused.
        """
        credentials, _ = self._load()
        from google.auth.exceptions import GoogleAuthError, TransportError
        from google.auth.transport.requests import Request

        try:
            credentials.refresh(Request())
        except TransportError as error:
            raise TransientRemoteError(f"GCS credentials: {_line(error)}", unreachable=True) from error
        except GoogleAuthError as error:
            raise NotAllowedError(f"GCS credentials are refused: {_line(error)}; {_ALLOW}") from error
        expiry = getattr(credentials, "expiry", None)  # in UTC, and says no zone
        return str(credentials.token), None if expiry is None else expiry.replace(tzinfo=UTC).timestamp()

    def project(self) -> str:
        """Return who pays, where the requester does.

        Raises:
            NotAllowedError: the credentials name no project.
        """
        credentials, project = self._load()
        found = getattr(credentials, "quota_project_id", None) or project
        if not found:
            raise NotAllowedError("requester_pays needs a project that pays: set GOOGLE_CLOUD_PROJECT")
        return str(found)

    def _load(self) -> tuple[Any, str | None]:
        if self._found is None:
            try:
                import google.auth
                from google.auth.exceptions import GoogleAuthError
            except ImportError as error:
                raise NotAllowedError(
                    "GCS needs google-auth; `pip install 'checkpoint-cas[gcs]'` brings it (or set CAS_ANONYMOUS=1)"
                ) from error
            try:
                self._found = google.auth.default(scopes=[self._scope])
            except GoogleAuthError as error:
                raise NotAllowedError(f"no GCS credentials: {_line(error)}; {_ALLOW}") from error
        return self._found


def _line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]
