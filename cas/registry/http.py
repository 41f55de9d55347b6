"""HTTP to a master: retries, TLS, bounded bodies, and every failure as one clear error of ours."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from cas.errors import (
    AuthenticationError,
    CasError,
    MasterError,
    NotAllowedError,
    NotFoundError,
    OfflineError,
    TransientRemoteError,
    UsageError,
)
from cas.registry.tls import Tls, ssl_context

if TYPE_CHECKING:
    import requests

log = logging.getLogger("cas.registry")

RETRIES = 5  # as the other client: connection errors, and 502, 503, 504 of what may be repeated
CONNECT_RETRIES = 3  # where nobody listens: three seconds are enough for a master that starts again
BACKOFF = 0.5  # seconds, doubled each time
LONGEST_PAUSE = 0.25  # times the timeout: who does not wait long for an answer does not wait long between two tries
GATEWAY_ERRORS = (502, 503, 504)  # a proxy's: the master itself did not answer
MAX_BODY = 256 << 20  # bytes of one answer, unpacked; a page of 1,000 checkpoints has a few MB
PATIENCE = 10  # times the timeout: what one question may take in all, its retries and a dripping answer included
LEAST_PATIENCE = 60.0  # seconds
STILL_GONE = 10.0  # seconds: a master that did not answer just now is asked once, not six times
MAX_MESSAGE = 300  # characters of a server's text in our errors
_WINDOW = 1 << 16
_ALLOCATION = "Grpc-Metadata-x-allocation-token"

Parameters = Sequence[tuple[str, str | int]]


def canonical_url(text: str) -> str:
    """Return a master's address as its canonical URL: the name of its registry, and its key in `auth.json`.

    No scheme: http, port 8080. `http://`: port 80, `https://`: port 443, unless one is given. A path stays, a
    slash at its end does not.

    Raises:
        UsageError: it is no address, or has a user, a password, a query or a fragment in it.
    """
    given = text.strip()
    has_scheme = "://" in given
    try:
        parts = urlsplit(given if has_scheme else f"http://{given}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise UsageError(f"not the address of a master: {_without_user(text)!r:.100} ({error})") from error
    if parts.username is not None or parts.password is not None or "@" in parts.netloc:
        raise UsageError("the address of a master holds no user and no password; give them as user=…, password=…")
    if parts.scheme not in ("http", "https") or not host or any(c.isspace() for c in given):
        raise UsageError(f"not the address of a master: {text!r:.100}; it looks like http://localhost:8080")
    if parts.query or parts.fragment or "?" in given or "#" in given:
        raise UsageError(f"the address of a master has no query and no fragment: {text!r:.100}")
    if port is None:
        port = 443 if parts.scheme == "https" else 80 if has_scheme else 8080
    name = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{name}:{port}{parts.path.rstrip('/')}"


def _without_user(text: str) -> str:
    head, mark, tail = text.rpartition("@")
    return tail if mark else head + tail


class AllocationToken(str):
    """The token of a task inside the cluster (`DET_SESSION_TOKEN`): it has a header of its own."""

    __slots__ = ()


class Http:
    """Requests to one master. Safe for threads; a forked child opens connections of its own.

    `timeout` is how long the master may keep silent, `patience` (default: ten times that, at least a minute) what one
    question may take in all: an answer that comes drop by drop would have no end.

    Raises:
        OfflineError: it does not answer (its gateway's 502, 503 and 504 count as that, after retries).
        AuthenticationError: 401.
        NotAllowedError: 403.
        NotFoundError: 404.
        MasterError: any other error, or what is no answer of a master.
    """

    def __init__(
        self,
        url: str,
        *,
        tls: Tls | None = None,
        timeout: float = 30.0,
        backoff: float = BACKOFF,
        max_body: int = MAX_BODY,
        patience: float | None = None,
    ) -> None:
        self.url = url
        self._patience = max(timeout * PATIENCE, LEAST_PATIENCE) if patience is None else patience
        self._gone_at: float | None = None
        self._max_body = max_body
        self._tls = tls or Tls()
        self._timeout = timeout
        self._backoff = backoff
        self._lock = threading.Lock()
        self._sessions: dict[tuple[int, bool], requests.Session] = {}

    def get(self, path: str, parameters: Parameters = (), *, token: str | None = None) -> Any:
        """Return the JSON of an answer; what is transient is tried again."""
        return self._in_time(lambda: self._get(path, parameters, token))

    def post(self, path: str, body: Mapping[str, Any], *, token: str | None = None) -> Any:
        """Send JSON once, with no retries; return the JSON of the answer."""
        return self._in_time(lambda: self._request("POST", path, (), token=token, body=body, retry=False))

    def _get(self, path: str, parameters: Parameters, token: str | None) -> Any:
        last: CasError | None = None
        for _ in range(RETRIES):
            try:
                return self._request("GET", path, parameters, token=token, retry=not self._is_gone())
            except _BrokenOffError as error:
                last = error
        raise OfflineError(f"{self.url}: its answers break off again and again") from last

    def _in_time(self, work: Callable[[], Any]) -> Any:
        """Return what `work` returns, or raise; a thread of its own can be left behind where it has no end."""
        outcome: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

        def run() -> None:
            try:
                outcome.put((work(), None))
            except BaseException as error:
                outcome.put((None, error))

        threading.Thread(target=run, name="cas-master", daemon=True).start()
        try:
            answer, error = outcome.get(timeout=self._patience)
        except queue.Empty:
            self._gone_at = time.monotonic()
            message = f"the master {self.url} does not answer: no whole answer in {self._patience:g} seconds"
            raise OfflineError(message) from None
        if error is None:
            self._gone_at = None
            return answer
        if isinstance(error, OfflineError):
            self._gone_at = time.monotonic()
        try:
            raise error
        finally:
            del error  # it refers to this frame

    def _is_gone(self) -> bool:
        return self._gone_at is not None and time.monotonic() - self._gone_at < STILL_GONE

    @contextlib.contextmanager
    def open(self, path: str, accept: str, *, token: str | None = None) -> Iterator[Body]:
        """Yield the body of an answer of exactly the type asked for, to be read as it comes.

        Raises:
            UnsupportedTypeError: the master does not know this type.
            TransientRemoteError: the answer broke off while it was read.
        """
        headers = {"Accept": accept, "Accept-Encoding": "identity"}
        with self._sent("GET", path, (), headers, [token], token=token) as response:
            if response.status_code == 415:
                raise UnsupportedTypeError(f"{self.url} does not send {accept}")
            kind = response.headers.get("Content-Type", "no type").partition(";")[0].strip()
            if response.status_code >= 300 or kind != accept:
                self._answer(response, self._read(response), [token])
                raise MasterError(f"{self.url} sent {kind:.60}, not {accept}: it hands out no files")
            yield Body(response.raw, self.url)

    def close(self) -> None:
        """Close the connections of this process."""
        with self._lock:
            mine = [key for key in self._sessions if key[0] == os.getpid()]
            for key in mine:
                self._sessions.pop(key).close()

    def _request(
        self,
        method: str,
        path: str,
        parameters: Parameters,
        *,
        token: str | None = None,
        body: Mapping[str, Any] | None = None,
        retry: bool = True,
    ) -> Any:
        secrets = [token, *(body or {}).values()]
        headers = {"Accept": "application/json", "Accept-Encoding": "gzip"}
        data = None if body is None else json.dumps(body).encode()
        with self._sent(method, path, parameters, headers, secrets, token=token, data=data, retry=retry) as response:
            return self._answer(response, self._read(response), secrets)

    @contextlib.contextmanager
    def _sent(
        self,
        method: str,
        path: str,
        parameters: Parameters,
        headers: Mapping[str, str],
        secrets: Sequence[object],
        *,
        token: str | None,
        data: bytes | None = None,
        retry: bool = True,
    ) -> Iterator[requests.Response]:
        """Send a request and yield the answer, its body unread; failures within are errors of ours."""
        import requests  # imported late: `import cas` must stay fast
        import urllib3

        try:
            with contextlib.ExitStack() as stack:
                if not self._tls.verify:
                    import warnings

                    stack.enter_context(warnings.catch_warnings())
                    warnings.simplefilter("ignore", urllib3.exceptions.InsecureRequestWarning)
                response = self._session(retry=retry).request(
                    method,
                    self.url + path,
                    params=list(parameters),
                    data=data,
                    headers=dict(headers),
                    auth=_bearer(token),
                    timeout=self._timeout,
                    verify=self._verify(),
                    stream=True,
                    allow_redirects=data is None,  # a password goes to nobody but the master
                )
                stack.callback(response.close)
                yield response
        except CasError:
            raise
        except requests.exceptions.SSLError as error:
            raise MasterError(
                f"{self.url}: its certificate is refused ({_reason(error)}); DET_MASTER_CERT_FILE names a file with the"
                " certificates to trust"
            ) from _without_context(error)
        except (requests.exceptions.ConnectionError, requests.exceptions.Timeout) as error:
            raise OfflineError(f"the master {self.url} does not answer: {_reason(error)}") from _without_context(error)
        except (requests.exceptions.RequestException, ValueError) as error:  # ValueError: a redirect to no address
            raise MasterError(f"{self.url}: {_one_line(str(error), secrets)}") from _without_context(error)

    def _verify(self) -> bool | None:
        return None if self._tls.verify else False  # None: the usual authorities, or REQUESTS_CA_BUNDLE

    def _session(self, *, retry: bool) -> requests.Session:
        key = (os.getpid(), retry)
        with self._lock:
            if key not in self._sessions:
                self._sessions[key] = _session(
                    self.url, self._tls, RETRIES if retry else 0, self._backoff, self._timeout * LONGEST_PAUSE
                )
            return self._sessions[key]

    def _read(self, response: requests.Response) -> bytes:
        """Return the body, unpacked, as far as it is bounded."""
        import requests

        parts, size = [], 0
        end = time.monotonic() + self._patience
        try:
            for part in response.iter_content(_WINDOW):
                if time.monotonic() > end:  # nobody waits for it any more
                    raise OfflineError(f"the master {self.url} does not answer: its answer has no end")
                parts.append(part)
                size += len(part)
                if size > self._max_body:
                    raise MasterError(f"{self.url}: an answer has more than {self._max_body >> 20} MiB")
        except (requests.exceptions.ChunkedEncodingError, requests.exceptions.ContentDecodingError) as error:
            raise _BrokenOffError(f"{self.url}: an answer broke off") from error
        return b"".join(parts)

    def _answer(self, response: requests.Response, body: bytes, secrets: Sequence[object]) -> Any:
        try:
            data = json.loads(body) if body else None
            broken = not body
        except (ValueError, RecursionError):
            data, broken = None, True
        if response.status_code < 300 and not broken:
            return data
        if 300 <= response.status_code < 400 and "Location" in response.headers:
            there = _one_line(_without_user(response.headers["Location"]), secrets)
            raise MasterError(f"{self.url} sends logins on to {there!r:.100}: give the master's own address")
        if response.status_code < 300:
            kind = response.headers.get("Content-Type", "no type").partition(";")[0]
            raise MasterError(
                f"{self.url} answered with something that is no JSON ({kind:.60}, {len(body)} bytes); is it the address"
                " of a Determined master?"
            )
        raise self._error(response.status_code, _one_line(_message(data), secrets))

    def _error(self, status: int, message: str) -> CasError:
        if status in GATEWAY_ERRORS:
            return OfflineError(f"the master {self.url} does not answer: HTTP {status} {message}".rstrip())
        kinds: dict[int, type[CasError]] = {401: AuthenticationError, 403: NotAllowedError, 404: NotFoundError}
        text = f"{self.url}: {message or f'HTTP {status}'}"
        return kinds[status](text) if status in kinds else MasterError(text, status=status)


class UnsupportedTypeError(MasterError):
    """A master does not send what was asked for in this form."""


class Body:
    """The body of an answer, read as it comes; an answer that is not whole is an error, never an early end."""

    def __init__(self, raw: Any, name: str) -> None:
        self._raw = raw
        self._name = name

    def read(self, count: int) -> bytes:
        """Return the next bytes, as many as there are, at most so many; no bytes at the end.

        Raises:
            TransientRemoteError: it broke off, or nothing came for too long.
        """
        from urllib3.exceptions import HTTPError

        try:
            return bytes(self._raw.read1(count, decode_content=False))  # `read` waits until all of it is there
        except (HTTPError, OSError) as error:
            raise TransientRemoteError(f"{self._name}: the files broke off: {_reason(error)}") from error


class _BrokenOffError(MasterError):
    """An answer ended before it was whole; worth another try."""


def _session(url: str, tls: Tls, retries: int, backoff: float, longest: float) -> requests.Session:
    import requests
    from requests.adapters import HTTPAdapter
    from urllib3.exceptions import SSLError
    from urllib3.util.retry import Retry

    class Patience(Retry):
        """Retries of what another try may change; a certificate stays what it is."""

        def increment(
            self,
            method: str | None = None,
            url: str | None = None,
            response: Any = None,
            error: Exception | None = None,
            _pool: Any = None,
            _stacktrace: Any = None,
        ) -> Self:
            if isinstance(error, SSLError):
                raise error
            return super().increment(method, url, response, error, _pool, _stacktrace)

    class Adapter(HTTPAdapter):
        """Checks certificates as `tls` says."""

        def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
            if url.startswith("https://") and tls.verify:
                kwargs["ssl_context"] = ssl_context(url, tls)
                if tls.name is not None:
                    kwargs["assert_hostname"] = kwargs["server_hostname"] = tls.name
            super().init_poolmanager(*args, **kwargs)

    class Session(requests.Session):
        """Takes no credential along where a redirect leads to another host, and none of `.netrc` either."""

        def rebuild_auth(self, prepared_request: requests.PreparedRequest, response: requests.Response) -> None:
            elsewhere: bool = self.should_strip_auth(response.request.url, prepared_request.url)  # type: ignore[no-untyped-call]
            if elsewhere:
                for name in ("Authorization", _ALLOCATION):
                    prepared_request.headers.pop(name, None)

    patience = Patience(
        total=retries,
        connect=min(retries, CONNECT_RETRIES),
        backoff_factor=backoff,
        backoff_max=longest,
        status_forcelist=GATEWAY_ERRORS if retries else (),
        raise_on_status=False,
        raise_on_redirect=False,
        respect_retry_after_header=False,  # it may say hours
    )
    session = Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, Adapter(max_retries=patience))
    return session


def _bearer(token: str | None) -> Any:
    from requests.auth import AuthBase

    class Bearer(AuthBase):
        """Sends the token. Being an `auth`, it keeps requests from sending what `.netrc` says instead."""

        def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
            if token is not None:
                name = _ALLOCATION if isinstance(token, AllocationToken) else "Authorization"
                request.headers[name] = f"Bearer {token}"
            return request

    return Bearer()


def _message(data: object) -> str:
    """The text of an error: `{"error": {"error": …}}` under /api/v1, `{"message": …}` elsewhere."""
    if not isinstance(data, dict):
        return ""
    inner = data.get("error")
    text = inner.get("error") if isinstance(inner, dict) else data.get("message")
    return text if isinstance(text, str) else ""


def _one_line(text: str, secrets: Sequence[object]) -> str:
    for secret in secrets:
        if isinstance(secret, str) and len(secret) > 7:
            text = text.replace(secret, "…")
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= MAX_MESSAGE else line[: MAX_MESSAGE - 1] + "…"


def _reason(error: BaseException) -> str:
    """The innermost reason of a failed connection, in a few words."""
    import ssl

    from requests.exceptions import Timeout

    found = "no answer in time" if isinstance(error, Timeout) else "no connection"
    seen: set[int] = set()
    step: object = error
    while isinstance(step, BaseException) and id(step) not in seen:
        seen.add(id(step))
        if isinstance(step, ssl.SSLError):
            found = getattr(step, "verify_message", "") or step.reason or found
        elif isinstance(step, OSError) and step.strerror:
            found = step.strerror
        elif isinstance(step, TimeoutError):
            found = "no answer in time"
        inner = [getattr(step, "reason", None), *step.args, step.__cause__, step.__context__]
        step = next((one for one in inner if isinstance(one, BaseException) and id(one) not in seen), None)
    return found


def _without_context(error: Exception) -> Exception:
    """The third party's error with the request taken off: its headers hold the token."""
    for name in ("request", "response"):
        if hasattr(error, name):
            setattr(error, name, None)
    return error
