"""Connections of urllib3 whose answers must keep a pace; imported late, as urllib3 is."""

from __future__ import annotations

import io
import time
from http.client import HTTPResponse
from typing import Any

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from cas.transfer.pace import Pace


class _PacedBytes(io.RawIOBase):
    """What comes from a socket, at a pace."""

    def __init__(self, inner: Any, pace: Pace) -> None:
        self._inner = inner
        self._pace = pace

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        began = time.monotonic()
        count: int = self._inner.readinto(buffer)
        if count:
            self._pace.note(count, time.monotonic() - began)
        return count

    def close(self) -> None:
        self._inner.close()
        super().close()


class _PacedResponse(HTTPResponse):
    """An answer that must keep the pace from its first byte on: its head too, which no other limit bounds."""

    def __init__(self, sock: Any, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        timeout = sock.gettimeout()
        self._pace = Pace(float("inf") if timeout is None else timeout)
        self.fp = io.BufferedReader(_PacedBytes(self.fp.detach(), self._pace))

    def begin(self) -> None:
        """Read the head; a server may think long before it, and the body has time of its own."""
        super().begin()
        self._pace.begin()


class _PacedConnection(HTTPConnection):
    response_class = _PacedResponse

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"  # as urllib3's messages name it


class _PacedHttps(HTTPSConnection):
    response_class = _PacedResponse

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class _PacedPool(HTTPConnectionPool):
    ConnectionCls = _PacedConnection


class _PacedHttpsPool(HTTPSConnectionPool):
    ConnectionCls = _PacedHttps


POOLS = {"http": _PacedPool, "https": _PacedHttpsPool}  # for urllib3's pool managers
