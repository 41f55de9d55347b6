"""Plain HTTP(S) as a remote: what an index page links to, files that are named, or one file.

A strong ETag, or a Last-Modified that lies far enough back, says which version was listed; reads are conditional on it.
Without either, or where ranges are ignored, a file is read in one stream.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from typing import Any
from urllib.parse import quote, unquote, urljoin, urlsplit, urlunsplit

from cas.errors import ChangedError, CheckpointNotFoundError, NotAllowedError, RemoteError, TransientRemoteError
from cas.index.digest import Digest
from cas.index.identity import RemoteIdentity
from cas.index.paths import RelativePath, check_tree
from cas.transfer.http import REDIRECTS, Answer, Connections, Headers, by_status, exact, http_date, range_header
from cas.transfer.remote import Checksum, Listing, Piece, RangesIgnoredError, RemoteFile
from cas.transfer.sidecars import sidecar_key

log = logging.getLogger("cas.transfer")

MAX_DEPTH = 50  # folders in folders; a server's loop of links ends here
MAX_FILES = 1_000_000
AT_ONCE = 8  # requests for the sizes of files
OLD = 60.0  # seconds that a file must not have been changed for its time to tell versions apart (RFC 9110, 8.8.2.2)
_LIKELY = {32: "md5", 64: "sha256"}  # hex digits of ETags that are often a checksum of the bytes
_HEX = re.compile(r'"([0-9a-f]{32}|[0-9a-f]{64})"', re.ASCII)
_DECLARED = {"md5": "md5", "sha-256": "sha256", "sha": "sha1", "crc32c": "crc32c"}
_ALLOW = "give it to storage_options as {'headers': {'Authorization': …}}, or use a URL that is allowed"


class WebRemote:
    """Everything below a URL.

    Args:
        url: ends in `/`: an index page, and those that it links to below. Else: one file.
        timeout: seconds that the server may keep silent.
        names: files below the URL that are meant, if it has no index or not all of it is wanted.
        headers: sent with every request, but to no other host; they may be secrets.
        ca_bundle: a file of certificates to trust.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float,
        names: Iterable[RelativePath] = (),
        headers: Mapping[str, str] | None = None,
        ca_bundle: str | None = None,
    ) -> None:
        parts = urlsplit(url)
        self._place = urlunsplit((parts.scheme, parts.netloc, parts.path, parts.query, ""))
        self.url = public_url(url)
        self._names = tuple(names)
        self._headers = {"Accept": "*/*", **(headers or {}), "Accept-Encoding": "identity"}
        self._connections = Connections(name=self.url, timeout=timeout, verify=ca_bundle)
        self._declared: dict[str, tuple[Checksum, ...]] = {}
        self._unconditional = False  # a server that answers 412 though nothing has changed

    # --- listing -----------------------------------------------------------------------------------------------

    def list(self) -> Listing:
        """List what the URL means.

        Raises:
            CheckpointNotFoundError: there is nothing.
            UnsafeNameError: a link that no relative path can be made of.
            NotAllowedError: the server wants credentials.
            RemoteError: there is no index, or a file whose size is not told.
        """
        if self._names:
            return self._of(self._names, ())
        if not urlsplit(self._place).path.endswith("/"):
            name = RelativePath(unquote(urlsplit(self._place).path.rpartition("/")[2]))
            return Listing((self._look(name),))
        files, folders = _Crawl(self._connections, self._place, self.url, self._headers).run()
        if not files and not folders:
            raise CheckpointNotFoundError(f"there are no files at {self.url}")
        return self._of(files, folders)

    def _of(self, names: Iterable[RelativePath], folders: Iterable[RelativePath]) -> Listing:
        every, kept = tuple(names), tuple(folders)
        check_tree(every, kept)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return Listing(tuple(pool.map(self._look, every)), kept)

    def _look(self, name: RelativePath) -> RemoteFile:
        """Ask for a file's size and version."""
        url = self._url_of(name)
        answer = self._connections.send("HEAD", url, self._headers, redirects=REDIRECTS)
        total = _whole(answer.headers.get("content-length"))
        if answer.status != 200 or total is None:
            answer, total = self._look_by_range(url, answer)
        self._declared[name] = tuple(_declared(answer.headers))
        return RemoteFile(name, total, _identity(public_url(url), total, answer.headers))

    def _look_by_range(self, url: str, head: Answer) -> tuple[Answer, int]:
        """Ask with a read of one byte: signed URLs and some servers allow no HEAD."""
        one = {**self._headers, "Range": "bytes=0-0"}
        with self._connections.open("GET", url, one, redirects=REDIRECTS) as reply:
            _, _, text = reply.headers.get("content-range", "").rpartition("/")
            length = reply.headers.get("content-length") if reply.status == 200 else text
            if reply.status in (200, 206, 416) and (total := _whole(length)) is not None:
                return Answer(reply.status, reply.headers, b"", reply.url), total
            if reply.status in (404, 410):
                raise CheckpointNotFoundError(f"there is no file {public_url(url)}")
            if reply.status not in (200, 206):
                raise by_status(public_url(url), reply.status, reply.headers, allow=_ALLOW)
        raise RemoteError(f"{public_url(url)}: the server does not say how large it is")

    def _url_of(self, name: RelativePath) -> str:
        parts = urlsplit(self._place)
        if not parts.path.endswith("/") and not self._names:
            return self._place
        base = parts.path if parts.path.endswith("/") else f"{parts.path}/"
        return urlunsplit((parts.scheme, parts.netloc, base + quote(name, safe="/-_.~"), parts.query, ""))

    # --- bytes -------------------------------------------------------------------------------------------------

    def read(self, file: RemoteFile, start: int, end: int) -> Iterator[Piece]:
        """Yield a range of the version that was listed; see `Remote`."""
        yield from self._read(file, start, end, conditional=file.identity.has_validator)

    def stream(self, file: RemoteFile) -> Iterator[Piece]:
        """Yield all bytes from one unconditional read."""
        yield from self._read(file, 0, file.size, conditional=False)

    def _read(self, file: RemoteFile, start: int, end: int, *, conditional: bool) -> Iterator[Piece]:
        condition = _condition(file.identity) if conditional and not self._unconditional else {}
        headers = {**self._headers, **range_header(file, start, end), **condition}
        url = self._url_of(file.path)
        with self._connections.open("GET", url, headers, redirects=REDIRECTS, origin=file.identity.url) as reply:
            if reply.status in (200, 206):
                if reply.headers.get("content-encoding", "identity").lower() != "identity":
                    raise RemoteError(f"{file.identity.url}: the server packs what it sends, though it must not")
                yield from exact(reply, file, start, end, lambda *found: _require_same(file, *found))
                return
            refused = by_status(file.identity.url, reply.status, reply.headers, allow=_ALLOW)
            status = reply.status
        if status in (404, 410):
            raise ChangedError(f"{file.identity.url} is gone since it was listed")
        if status not in (412, 416):
            raise refused
        if self._look(file.path).identity != file.identity:
            raise ChangedError(f"{file.identity.url} was replaced since it was listed")
        if status == 416 and "Range" in headers:
            raise RangesIgnoredError(f"{file.identity.url}: the server refuses ranges of it")
        if not condition:
            raise TransientRemoteError(str(refused))
        self._unconditional = True
        yield from self._read(file, start, end, conditional=False)

    # --- checksums ---------------------------------------------------------------------------------------------

    def likely_checksums(self, file: RemoteFile) -> tuple[Checksum, ...]:
        """An ETag of 32 or 64 hex digits is often the MD5 or SHA-256 of the bytes."""
        found = _HEX.fullmatch(file.identity.etag or "")
        return (Checksum(_LIKELY[len(found[1])], bytes.fromhex(found[1])),) if found else ()

    def checksums(self, file: RemoteFile, *, thorough: bool = False) -> tuple[Checksum, ...]:
        """Return what the headers declared: Repr-Digest, Digest, Content-MD5."""
        return self._declared.get(file.path, ())

    # --- what is published beside it -----------------------------------------------------------------------------

    def read_sidecar(self, limit: int) -> bytes | None:
        """Return what was published of a folder; see `HasSidecars`. Files that were named one by one have none."""
        parts = urlsplit(self._place)
        if self._names or parts.query or not parts.path.strip("/") or not parts.path.endswith("/"):
            return None
        url = urlunsplit(parts._replace(path=sidecar_key(parts.path)))
        answer = self._connections.send("GET", url, self._headers, redirects=REDIRECTS, limit=limit)
        return answer.body if answer.status == 200 else None

    # --- the rest ----------------------------------------------------------------------------------------------

    def local_path(self, file: RemoteFile) -> None:
        """None: it lies in no folder of this host."""

    def recipe(self) -> None:
        """None: this remote works in a forked child as it is."""


def public_url(url: str) -> str:
    """Return a URL for messages, records and identities: a query may be a signature, so its digest stands for it."""
    parts = urlsplit(url)
    bare = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
    return f"{bare}?query={Digest.of(parts.query.encode()).hex[:16]}" if parts.query else bare


def _whole(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 19 else None


# --- versions ----------------------------------------------------------------------------------------------------


def _identity(url: str, size: int, headers: Headers) -> RemoteIdentity:
    etag, modified = headers.get("etag"), http_date(headers.get("last-modified"))
    date = http_date(headers.get("date"))
    is_old = modified is not None and date is not None and date - modified >= OLD
    strong = etag is not None and etag.startswith('"')
    return RemoteIdentity(
        url,
        size,
        etag=etag if strong else None,
        version=headers.get("last-modified") if is_old and not strong else None,
        modified=None if modified is None else round(modified) * 10**9,
    )


def _condition(identity: RemoteIdentity) -> dict[str, str]:
    if identity.etag is not None:
        return {"If-Match": identity.etag}
    return {"If-Unmodified-Since": identity.version} if identity.version is not None else {}


def _require_same(file: RemoteFile, headers: Headers, total: int | None) -> None:
    identity = file.identity
    same = total in (None, file.size)
    if identity.etag is not None:
        same = same and headers.get("etag") == identity.etag
    elif identity.version is not None:
        same = same and headers.get("last-modified") == identity.version
    if not same:
        raise ChangedError(f"{identity.url} was replaced since it was listed")


def _declared(headers: Headers) -> Iterator[Checksum]:
    for name in ("repr-digest", "digest"):
        for part in headers.get(name, "").split(","):
            kind, _, value = part.strip().partition("=")
            if kind.lower() in _DECLARED and (raw := _bytes(value.strip(":"))) is not None:
                yield Checksum(_DECLARED[kind.lower()], raw)
    if (raw := _bytes(headers.get("content-md5", ""))) is not None:
        yield Checksum("md5", raw)


def _bytes(text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True) or None
    except (ValueError, binascii.Error):
        return None


# --- index pages -------------------------------------------------------------------------------------------------


class _Links(HTMLParser):
    """Collects where the links of a page lead."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.found += [value for name, value in attrs if name == "href" and value]


class _Crawl:
    """Reads an index page and those of the folders below it."""

    def __init__(self, connections: Connections, place: str, name: str, headers: Headers) -> None:
        self._connections = connections
        self._base = urlsplit(place)
        self._name = name
        self._headers = headers
        self._files: dict[RelativePath, None] = {}
        self._folders: dict[RelativePath, None] = {}

    def run(self) -> tuple[tuple[RelativePath, ...], tuple[RelativePath, ...]]:
        waiting = [""]
        while waiting:
            folder = waiting.pop()
            for name in self._page(folder):
                path = RelativePath(name.removesuffix("/"))
                if not name.endswith("/"):
                    self._files[path] = None
                elif path not in self._folders:
                    if len(path.parents) >= MAX_DEPTH:
                        raise RemoteError(f"{self._name}: folders more than {MAX_DEPTH} deep")
                    self._folders[path] = None
                    waiting.append(name)
                if len(self._files) + len(self._folders) > MAX_FILES:
                    raise RemoteError(f"{self._name}: more than {MAX_FILES} files")
        return tuple(self._files), tuple(self._folders)

    def _page(self, folder: str) -> Iterator[str]:
        """Yield the names, below the first page, that a page links to; folders end in `/`."""
        url = urlunsplit(self._base._replace(path=self._base.path + quote(folder, safe="/-_.~")))
        answer = self._connections.send("GET", url, self._headers, redirects=REDIRECTS)
        if answer.status in (404, 410):
            raise CheckpointNotFoundError(f"there is nothing at {public_url(url)}")
        if answer.status == 403:
            raise NotAllowedError(f"{public_url(url)}: HTTP 403; there may be no index: name the files with --include")
        if answer.status != 200:
            raise by_status(public_url(url), answer.status, answer.headers, allow=_ALLOW)
        kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "application/json":
            names = _names_in_json(answer.body, public_url(url))
        elif kind in ("text/html", "application/xhtml+xml"):
            names = self._names_in_html(answer, folder)
        else:
            raise RemoteError(
                f"{public_url(url)} is no index page but {kind or 'something'}; name the files one by one"
            )
        yield from (folder + name for name in names)

    def _names_in_html(self, answer: Answer, folder: str) -> Iterator[str]:
        parser = _Links()
        parser.feed(answer.body.decode("utf-8", "replace"))
        here = urlsplit(answer.url)
        if here.netloc != self._base.netloc or not unquote(here.path).endswith(unquote(self._base.path) + folder):
            raise RemoteError(f"{self._name}: the index of {folder!r:.80} is redirected elsewhere")
        for link in parser.found:
            try:
                parts = urlsplit(urljoin(answer.url, link))
            except ValueError:
                continue
            path = unquote(parts.path)
            if (parts.scheme, parts.netloc) == (here.scheme, here.netloc) and not parts.query:
                name = path.removeprefix(unquote(here.path))
                if name and path.startswith(unquote(here.path)):
                    yield name


def _names_in_json(body: bytes, url: str) -> Iterator[str]:
    """Yield the names of an index in JSON, as nginx writes it: `[{"name": …, "type": "file" | "directory"}]`."""
    try:
        found: Any = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RemoteError(f"{url}: the index is no JSON: {error}") from error
    for one in found if isinstance(found, list) else [None]:
        if not isinstance(one, dict) or not isinstance(one.get("name"), str):
            raise RemoteError(f"{url} is no index page: {one!r:.80}")
        yield one["name"] + ("/" if one.get("type") == "directory" else "")
