"""A counting HTTP proxy on the loopback interface in front of a real S3 server, which can also spoil answers.

Signatures stay valid: the client signs the proxy's own address, and the server checks the Host header that it gets.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from urllib.parse import unquote, urlsplit

from s3_server import S3Server

from cas.transfer.sigv4 import Credentials, sign

_BLOCK = 256 << 10


@dataclass(slots=True)
class Exchange:
    """One request and what was sent back."""

    method: str
    path: str  # with the query, unquoted
    headers: dict[str, str]  # names in lower case
    status: int = 0
    sent: int = 0  # bytes of the body


@dataclass(slots=True)
class Fault:
    """What happens to an answer: another one at all, or this one changed."""

    answer: bytes | None = None  # sent as it is, without asking the server; empty: the connection is closed
    drop: tuple[str, ...] = ()  # request headers that the server does not see
    range: tuple[int, int] | None = None  # what the server is asked for instead
    headers: dict[str, str] = field(default_factory=dict)  # of the answer, replaced
    without: tuple[str, ...] = ()  # headers of the answer that are left out, in lower case
    rewrite: Callable[[bytes], bytes] | None = None  # makes another body of the same length, of one with a length
    cut: int | None = None  # bytes of the body after which the connection breaks
    flip: bool = False  # the first byte of the body is another
    garble: int | None = None  # bytes of the body after which all are others
    stall: float = 0.0  # seconds for which nothing comes after the head
    trickle: float = 0.0  # seconds after each block of the body
    slow_head: float = 0.0  # seconds after each block of the head
    block: int = 1  # bytes that come at once then


Faults = Callable[[Exchange], Fault | None]


@dataclass
class Proxy:
    """A running proxy: a server that counts."""

    port: int
    server: S3Server = field(init=False)  # the same S3 server, behind this proxy
    exchanges: list[Exchange] = field(default_factory=list)
    faults: Faults = lambda exchange: None
    delay: float = 0.0  # seconds before each answer
    pause: float = 0.0  # seconds after each block of a body

    def bodies(self, suffix: str = "") -> int:
        """How many bytes of objects (whose key ends so) were sent."""
        found = [one for one in self.exchanges if one.method == "GET" and "?" not in one.path and one.status < 300]
        return sum(one.sent for one in found if one.path.endswith(suffix))

    def count(self, method: str, suffix: str = "") -> int:
        """How many requests there were for objects whose key ends so."""
        return sum(1 for one in self.exchanges if one.method == method and urlsplit(one.path).path.endswith(suffix))


class _Connection:
    """One client's connection, and ours to the server."""

    def __init__(self, proxy: Proxy, client: socket.socket, upstream: int) -> None:
        self._proxy = proxy
        self._client = client
        self._port = upstream
        self._server: socket.socket | None = None

    def run(self) -> None:
        with contextlib.suppress(OSError), self._client, self._client.makefile("rb") as reader:
            try:
                while head := _head(reader):
                    if not self._serve(head):
                        break
            finally:
                if self._server is not None:
                    self._server.close()

    def _serve(self, head: list[str]) -> bool:
        method, target, _ = head[0].split(" ", 2)
        exchange = Exchange(method, unquote(target), _headers(head[1:]))
        self._proxy.exchanges.append(exchange)
        if self._proxy.delay:
            threading.Event().wait(self._proxy.delay)
        fault = self._proxy.faults(exchange) or Fault()
        if fault.answer is not None:
            self._client.sendall(fault.answer)
            exchange.status = int(fault.answer[9:12] or 0)
            return False
        if self._server is None:
            self._server = socket.create_connection(("127.0.0.1", self._port))
        self._server.sendall("\r\n".join([*self._changed(head, fault), "", ""]).encode("latin-1"))
        with self._server.makefile("rb", buffering=0) as answer:
            return self._relay(exchange, fault, answer)

    def _changed(self, head: list[str], fault: Fault) -> list[str]:
        """Return the request as the server sees it; where it was signed and is another now, signed again."""
        away = {*fault.drop, *(["range"] if fault.range else [])}
        lines = [line for line in head if line.partition(":")[0].lower() not in away]
        if fault.range:
            lines.append(f"Range: bytes={fault.range[0]}-{fault.range[1] - 1}")
        if lines == head or not any(line.lower().startswith("authorization: aws4") for line in lines):
            return lines
        method, target, protocol = lines[0].split(" ")
        path, _, query = target.partition("?")
        headers = _headers(lines[1:])
        del headers["authorization"]
        signed = sign(
            method,
            host=headers.pop("host"),
            path=path,
            query=query,
            headers=headers,
            credentials=Credentials(self._proxy.server.access_key, self._proxy.server.secret_key),
            region="us-east-1",
            now=datetime.now(UTC),
        )
        return [f"{method} {target} {protocol}", *(f"{name}: {value}" for name, value in signed.items())]

    def _relay(self, exchange: Exchange, fault: Fault, answer: object) -> bool:
        head = _head(answer)
        if not head:  # the server hung up
            return False
        exchange.status = int(head[0].split(" ")[1])
        headers = _headers(head[1:])
        away = {*fault.without, *(name.lower() for name in fault.headers)}
        kept = [line for line in head if line.partition(":")[0].lower() not in away]
        changed = [f"{name}: {value}" for name, value in fault.headers.items()]
        self._send("\r\n".join([*kept, *changed, "", ""]).encode("latin-1"), fault.slow_head, fault.block)
        if exchange.method == "HEAD" or exchange.status in (204, 304):
            return True
        if headers.get("transfer-encoding") == "chunked":
            return self._relay_chunks(exchange, fault, answer)
        left = int(headers.get("content-length", 0))
        if fault.rewrite is not None:
            return self._pass(exchange, fault, fault.rewrite(_exactly(answer, left)))
        while left:
            block = answer.read(min(left, _BLOCK))  # type: ignore[attr-defined]
            if not block or not self._pass(exchange, fault, block):
                return False
            left -= len(block)
        return True

    def _relay_chunks(self, exchange: Exchange, fault: Fault, answer: object) -> bool:
        while True:
            line = answer.readline(100)  # type: ignore[attr-defined]
            self._client.sendall(line)
            left = int(line.split(b";")[0], 16)
            while left:
                block = answer.read(min(left, _BLOCK))  # type: ignore[attr-defined]
                if not block or not self._pass(exchange, fault, block):
                    return False
                left -= len(block)
            self._client.sendall(answer.readline(10))  # type: ignore[attr-defined]
            if line.strip() == b"0":
                return True

    def _pass(self, exchange: Exchange, fault: Fault, block: bytes) -> bool:
        """Send a block on; False if the connection is to break."""
        if fault.stall and not exchange.sent:
            threading.Event().wait(fault.stall)
        if fault.flip and not exchange.sent:
            block = bytes([block[0] ^ 1]) + block[1:]
        if fault.garble is not None and exchange.sent + len(block) > fault.garble:
            right = block[: max(fault.garble - exchange.sent, 0)]
            block = right + bytes(byte ^ 0x55 for byte in block[len(right) :])
        if fault.cut is not None and exchange.sent + len(block) > fault.cut:
            self._client.sendall(block[: fault.cut - exchange.sent])
            exchange.sent = fault.cut
            return False
        self._send(block, fault.trickle, fault.block)
        threading.Event().wait(self._proxy.pause)
        exchange.sent += len(block)
        return True

    def _send(self, data: bytes, pause: float, count: int) -> None:
        """Send at once, or so many bytes at a time with pauses between them."""
        for at in range(0, len(data), count if pause else len(data)):
            self._client.sendall(data[at : at + count] if pause else data)
            threading.Event().wait(pause)


def _exactly(reader: object, count: int) -> bytes:
    found = bytearray()
    while len(found) < count and (block := reader.read(count - len(found))):  # type: ignore[attr-defined]
        found += block
    return bytes(found)


def _head(reader: object) -> list[str]:
    found = []
    while line := reader.readline(65536):  # type: ignore[attr-defined]
        if line == b"\r\n":
            break
        found.append(line.decode("latin-1").rstrip("\r\n"))
    return found


def _headers(lines: list[str]) -> dict[str, str]:
    return {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


@contextlib.contextmanager
def counting(server: S3Server) -> Iterator[Proxy]:
    """Run a proxy in front of a server; `proxy.server` is what clients talk to."""
    with relaying(server.port) as proxy:
        proxy.server = replace(server, port=proxy.port)
        yield proxy


@contextlib.contextmanager
def relaying(port: int) -> Iterator[Proxy]:
    """Run a proxy in front of whatever HTTP server listens at a port; clients talk to `proxy.port`."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=64)
    proxy = Proxy(listening.getsockname()[1])

    def accept() -> None:
        while True:
            try:
                client, _ = listening.accept()
            except OSError:
                return
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=_Connection(proxy, client, port).run, daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        with contextlib.suppress(OSError):
            listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join(5)


def answer(status: str, body: str | bytes = "", **headers: str) -> bytes:
    """Return the bytes of an answer, after which the connection is closed."""
    body = body.encode() if isinstance(body, str) else body
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def error(status: str, code: str, message: str = "said so", **more: str) -> bytes:
    """Return an error as S3 says it."""
    extra = "".join(f"<{name}>{value}</{name}>" for name, value in more.items())
    body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{message}</Message>{extra}</Error>'
    return answer(status, body, Content_Type="application/xml")
