"""HTTP to storages: pooled connections through the environment's proxies, redirects, and reads of exact ranges."""

from __future__ import annotations

import contextlib
import email.utils
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

from cas.errors import NotAllowedError, RemoteError, TransientRemoteError
from cas.transfer.remote import Piece, RangesIgnoredError, RemoteFile

PIECE = 256 << 10  # bytes: stays in the processor's cache until it is hashed
REDIRECTS = 5
MAX_BODY = 64 << 20  # bytes of an answer that is read whole
_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)", re.ASCII)
_PRIVATE = ("authorization", "cookie", "x-api-key")  # headers that another host must not see

Headers = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server answered; `url` is where the last redirect led."""

    status: int
    headers: Headers
    body: bytes
    url: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer whose body is read as it comes; `origin` names it in messages."""

    status: int
    headers: Headers
    url: str
    origin: str
    raw: Any

    def body(self, limit: int = MAX_BODY) -> bytes:
        """Return all of the body, of at most so many bytes.

        Raises:
            TransientRemoteError: it broke off.
            RemoteError: it is larger; by default, than any answer of a server that is no file.
        """
        found = b"".join(self.pieces(limit + 1))
        if len(found) > limit:
            raise RemoteError(f"{self.origin}: an answer has more than {limit >> 20} MiB")
        return found

    def pieces(self, most: int) -> Iterator[bytes]:
        """Yield the body, as it is sent, up to so many bytes.

        Raises:
            TransientRemoteError: it broke off, or came too slowly.
        """
        from urllib3.exceptions import HTTPError

        try:
            # What is there is yielded: of a connection that breaks off nothing is lost that came.
            while most and (data := self.raw.read1(min(PIECE, most), decode_content=False)):
                most -= len(data)
                yield data
        except (HTTPError, OSError) as error:
            raise TransientRemoteError(f"{self.origin}: {_plain(error)}") from error


class Connections:
    """Pools of connections; safe for threads, and after a fork. Redirects are followed only where it is asked for."""

    def __init__(self, *, name: str, timeout: float, verify: str | None = None) -> None:
        self._name = name
        self._timeout = timeout
        self._verify = verify
        self._lock = threading.Lock()
        self._pools: dict[tuple[int, str | None], Any] = {}

    def send(
        self, method: str, url: str, headers: Headers, *, redirects: int = 0, limit: int = MAX_BODY, body: bytes = b""
    ) -> Answer:
        """Send a request and read all of the answer; one that is what was asked for (200) has at most `limit` bytes.

        Raises:
            TransientRemoteError: no answer, or not a whole one.
            RemoteError: a larger one; or see `open`.
        """
        with self.open(method, url, headers, redirects=redirects, body=body) as reply:
            return Answer(
                reply.status, reply.headers, reply.body(limit if reply.status == 200 else MAX_BODY), reply.url
            )

    @contextlib.contextmanager
    def open(
        self,
        method: str,
        url: str,
        headers: Headers,
        *,
        redirects: int = 0,
        origin: str | None = None,
        body: bytes = b"",
    ) -> Iterator[Reply]:
        """Send a request and yield the answer, its body unread.

        Raises:
            TransientRemoteError: no answer.
            RemoteError: a redirect that must not be followed.
        """
        name = origin or self._name
        for left in range(redirects, -1, -1):
            response = self._request(method, url, headers, name, body)
            try:
                target = response.headers.get("location") if response.status in (301, 302, 303, 307, 308) else None
                if target is None or not redirects:
                    yield Reply(response.status, response.headers, url, name, response)
                    return
                headers, url = _redirected(headers, url, urljoin(url, target), name)
                if not left:
                    raise RemoteError(f"{name}: redirected more than {redirects} times")
            finally:
                _finish(response)

    def _request(self, method: str, url: str, headers: Headers, name: str, body: bytes) -> Any:
        from urllib3 import Timeout
        from urllib3.exceptions import HTTPError, ProtocolError, SSLError

        timeout = Timeout(connect=min(self._timeout, 10.0), read=self._timeout)
        try:
            return self._pool(url).request(
                method,
                url,
                headers=dict(headers),
                body=body or None,
                redirect=False,
                retries=False,
                timeout=timeout,
                preload_content=False,
                decode_content=False,
            )
        except HTTPError as error:
            if isinstance(error, SSLError) and error.args and _is_refusal(error.args[0]):
                raise RemoteError(
                    f"{name}: its certificate is refused ({_plain(error)}); the setting ca_bundle (CAS_CA_BUNDLE) names"
                    " a file with the certificates to trust"
                ) from error
            nobody = not isinstance(error, ProtocolError)  # else somebody hung up
            raise TransientRemoteError(f"{name}: {_plain(error)}", unreachable=nobody) from error

    def _pool(self, url: str) -> Any:
        from urllib.request import getproxies, proxy_bypass

        import urllib3  # without it `import cas` is faster

        from cas.transfer.sockets import POOLS

        parts = urlsplit(url)
        proxy = None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)
        key = (os.getpid(), proxy)
        with self._lock:
            if key not in self._pools:
                options: dict[str, Any] = {"maxsize": 16, "cert_reqs": "CERT_REQUIRED", "ca_certs": self._verify}
                pools = urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)
                pools.pool_classes_by_scheme = POOLS
                self._pools[key] = pools
            return self._pools[key]


def _is_refusal(error: object) -> bool:
    """Whether a certificate was looked at, and refused: another try changes nothing."""
    import ssl

    return isinstance(error, ssl.SSLCertVerificationError)


def _finish(response: Any) -> None:
    """Give a connection back whose answer was read to its end; close one that would send more."""
    if not response.isclosed():
        response.close()
    response.release_conn()


def _redirected(headers: Headers, url: str, target: str, name: str) -> tuple[Headers, str]:
    """Return what to send where a redirect leads: what is meant for one host is not sent to another."""
    before, after = urlsplit(url), urlsplit(target)
    if after.scheme not in ("http", "https") or not after.hostname:
        raise RemoteError(f"{name}: redirected to something that is no address")
    if before.scheme == "https" and after.scheme == "http":
        raise RemoteError(f"{name}: redirected from https to http, which is not followed")
    if (before.scheme, before.netloc) != (after.scheme, after.netloc):
        headers = {key: value for key, value in headers.items() if key.lower() not in _PRIVATE}
    return headers, target


def _plain(error: BaseException) -> str:
    """Return an error's message without the object that urllib3 puts before it, and without any URL's query."""
    line = next(iter(str(error).splitlines()), type(error).__name__).rpartition(">: ")[2]
    return re.sub(r"\?\S+", "?…", line)[:300]


# --- what a status means -----------------------------------------------------------------------------------------


def by_status(name: str, status: int, headers: Headers, said: str = "", *, allow: str = "") -> Exception:
    """Turn a refusal into one of our errors; `allow` says what would allow it."""
    line = f"{name}: HTTP {status}{f', {said}' if said else ''}"
    if status in (401, 403, 407):
        return NotAllowedError(f"{line}; {allow}" if allow else line)
    if status >= 500 or status in (408, 425, 429):
        return TransientRemoteError(line, retry_after=retry_after(headers.get("retry-after")))
    return RemoteError(line)


def retry_after(text: str | None) -> float | None:
    """Read `Retry-After`: seconds, or a date."""
    if not text:
        return None
    if text.strip().isdecimal():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None


def http_date(text: str | None) -> float | None:
    """Read a date of a header (seconds since 1970); None if it is none."""
    try:
        return email.utils.parsedate_to_datetime(text).timestamp() if text else None
    except ValueError:
        return None


# --- ranges ------------------------------------------------------------------------------------------------------


def range_header(file: RemoteFile, start: int, end: int) -> dict[str, str]:
    """Return the header that asks for a range; none for all of a file."""
    return {} if (start, end) == (0, file.size) else {"Range": f"bytes={start}-{end - 1}"}


def exact(
    reply: Reply, file: RemoteFile, start: int, end: int, require_same: Callable[[Headers, int | None], None]
) -> Iterator[Piece]:
    """Yield exactly the range from an answer with status 200 or 206.

    Args:
        reply: the answer.
        file: what was asked for.
        start: the first byte.
        end: the byte behind the last one.
        require_same: raises unless headers and total size are those of the version that was listed.

    Raises:
        RangesIgnoredError: the whole file comes, though a range was asked for.
        TransientRemoteError: another range comes, or less than it.
    """
    url = file.identity.url
    length = reply.headers.get("content-length", "")
    if reply.status == 206:
        found = _CONTENT_RANGE.fullmatch(reply.headers.get("content-range", ""))
        if found is None or (int(found[1]), int(found[2]) + 1) != (start, end):
            raise TransientRemoteError(
                f"{url}: asked for {start} to {end}, got {reply.headers.get('content-range', 'no range')!r:.80}"
            )
        require_same(reply.headers, int(found[3]) if found[3] != "*" else None)
    elif (start, end) != (0, file.size):
        require_same(reply.headers, int(length) if length.isdecimal() else None)
        raise RangesIgnoredError(f"{url}: the server ignores ranges")
    else:
        require_same(reply.headers, int(length) if length.isdecimal() else None)
    at = start
    for data in reply.pieces(end - start + 1):
        at += len(data)
        if at > end:
            raise TransientRemoteError(f"{url}: more than {end - start} bytes came")
        yield data
    if at != end:
        raise TransientRemoteError(f"{url}: {at - start} of {end - start} bytes came")
