"""HTTP to a master: retries, TLS, bounded bodies, and every failure as one clear error of ours."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from cas.config import DeterminedEnvironment
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

if TYPE_CHECKING:
    import ssl

    import requests

log = logging.getLogger("cas.registry")

RETRIES = 5  # as the other client: connection errors, and 502, 503, 504 of what may be repeated
BACKOFF = 0.5  # seconds, doubled each time
GATEWAY_ERRORS = (502, 503, 504)  # a proxy's: the master itself did not answer
MAX_BODY = 256 << 20  # bytes of one answer, unpacked; a page of 1,000 checkpoints has a few MB
MAX_MESSAGE = 300  # characters of a server's text in our errors
_WINDOW = 1 << 16

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


@dataclass(frozen=True, slots=True)
class Tls:
    """How the certificate of a master is checked.

    `certificates` (PEM) count in addition to the usual authorities; `name` is what the certificate must be for, if
    that is not the host of the URL.
    """

    verify: bool = True
    certificates: str | None = field(default=None, repr=False)
    name: str | None = None

    @classmethod
    def choose(
        cls,
        url: str,
        environment: DeterminedEnvironment,
        *,
        cert_path: str | os.PathLike[str] | None = None,
        cert_name: str | None = None,
        noverify: bool = False,
    ) -> Tls:
        """Choose from arguments; with none of them, from the environment, else from `certs.json`.

        Raises:
            UsageError: the file given cannot be read, or both a file and `noverify` are given.
        """
        if cert_path is not None or cert_name is not None or noverify:
            if cert_path is not None and noverify:
                raise UsageError("cert_path and noverify contradict each other")
            certificates = None if cert_path is None else _read_pem(Path(cert_path))
            return cls(verify=not noverify, certificates=certificates, name=cert_name)
        return cls._from_environment(url, environment)

    @classmethod
    def _from_environment(cls, url: str, environment: DeterminedEnvironment) -> Tls:
        name = environment.cert_name or None
        file = environment.cert_file
        if not file:
            return cls(certificates=_stored_certificates(url, environment.config_folder), name=name)
        if file.lower() == "noverify":
            return cls(verify=False, name=name)
        if not Path(file).exists():
            log.warning("DET_MASTER_CERT_FILE names %s, which does not exist; only the usual authorities count", file)
            return cls(name=name)
        return cls(certificates=_read_pem(Path(file)), name=name)


def _read_pem(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError as error:
        raise UsageError(f"cannot read the certificates in {path}: {error.strerror}") from error


def _stored_certificates(url: str, folder: Path) -> str | None:
    path = folder / "certs.json"
    try:
        known = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        log.warning("cannot read %s (%s); only the usual authorities count", path, error)
        return None
    found = known.get(url) if isinstance(known, dict) else None
    return found if isinstance(found, str) else None


class Http:
    """Requests to one master. Safe for threads; a forked child opens connections of its own.

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
    ) -> None:
        self.url = url
        self._max_body = max_body
        self._tls = tls or Tls()
        self._timeout = timeout
        self._backoff = backoff
        self._lock = threading.Lock()
        self._sessions: dict[tuple[int, bool], requests.Session] = {}

    def get(self, path: str, parameters: Parameters = (), *, token: str | None = None) -> Any:
        """Return the JSON of an answer; what is transient is tried again."""
        last: CasError | None = None
        for _ in range(RETRIES):
            try:
                return self._request("GET", path, parameters, token=token)
            except _BrokenOffError as error:
                last = error
        raise OfflineError(f"{self.url}: its answers break off again and again") from last

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Send JSON once, with no retries; return the JSON of the answer."""
        return self._request("POST", path, (), body=body, retry=False)

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
                self._sessions[key] = _session(self.url, self._tls, RETRIES if retry else 0, self._backoff)
            return self._sessions[key]

    def _read(self, response: requests.Response) -> bytes:
        """Return the body, unpacked, as far as it is bounded."""
        import requests

        parts, size = [], 0
        try:
            for part in response.iter_content(_WINDOW):
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
        kinds = {401: AuthenticationError, 403: NotAllowedError, 404: NotFoundError}
        return kinds.get(status, MasterError)(f"{self.url}: {message or f'HTTP {status}'}")


class UnsupportedTypeError(MasterError):
    """A master does not send what was asked for in this form."""


class Body:
    """The body of an answer, read as it comes; an answer that is not whole is an error, never an early end."""

    def __init__(self, raw: Any, name: str) -> None:
        self._raw = raw
        self._name = name

    def read(self, count: int = -1) -> bytes:
        """Return the next bytes, at most so many; none at the end.

        Raises:
            TransientRemoteError: it broke off, or nothing came for too long.
        """
        from urllib3.exceptions import HTTPError

        try:
            return bytes(self._raw.read(None if count < 0 else count, decode_content=False))
        except (HTTPError, OSError) as error:
            raise TransientRemoteError(f"{self._name}: the files broke off: {_reason(error)}") from error


class _BrokenOffError(MasterError):
    """An answer ended before it was whole; worth another try."""


def _session(url: str, tls: Tls, retries: int, backoff: float) -> requests.Session:
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
                kwargs["ssl_context"] = _context(url, tls)
                if tls.name is not None:
                    kwargs["assert_hostname"] = kwargs["server_hostname"] = tls.name
            super().init_poolmanager(*args, **kwargs)

    patience = Patience(
        total=retries,
        backoff_factor=backoff,
        status_forcelist=GATEWAY_ERRORS if retries else (),
        raise_on_status=False,
        raise_on_redirect=False,
        respect_retry_after_header=False,  # it may say hours
    )
    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, Adapter(max_retries=patience))
    return session


def _context(url: str, tls: Tls) -> ssl.SSLContext:
    import ssl  # with requests: late

    import certifi

    context = ssl.create_default_context(cafile=certifi.where())
    if tls.certificates:
        try:
            context.load_verify_locations(cadata=tls.certificates)
        except (ssl.SSLError, ValueError) as error:
            raise UsageError(f"the certificates for {url} are no PEM text: {error}") from error
    return context


def _bearer(token: str | None) -> Any:
    from requests.auth import AuthBase

    class Bearer(AuthBase):
        """Sends the token. Being an `auth`, it keeps requests from sending what `.netrc` says instead."""

        def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
            if token is not None:
                request.headers["Authorization"] = f"Bearer {token}"
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
