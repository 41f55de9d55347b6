"""A real HTTP server on the loopback interface over a folder, as plain or as able as a test wants."""

from __future__ import annotations

import contextlib
import email.utils
import hashlib
import html
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

PIECE = 64 << 10


@dataclass
class Site:
    """What is served, and how; a test may change all of it while it runs."""

    folder: Path
    port: int = 0
    index: str = "html"  # html, json, or none
    etag: str = "strong"  # strong, weak, or none
    modified: bool = True
    ranges: bool = True
    head: bool = True
    conditions: str = "obeyed"  # obeyed, ignored, or refused: 412 to every condition
    digest: bool = False
    password: str | None = None
    moved: str | None = None  # where every file is redirected to
    hold: Callable[[int], object] | None = None  # called with the place of each piece of a file before it is sent
    asked: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def write(self, name: str, data: bytes, *, age: float = 3600.0) -> None:
        """Write a file that was last changed so many seconds ago."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        then, whole = time.time() - age, path.with_name(f"{path.name}.new")
        whole.write_bytes(data)
        os.utime(whole, (then, then))
        whole.replace(path)  # nobody reads a part of it, or the old time

    def count(self, method: str, suffix: str = "") -> int:
        return sum(1 for asked, path, _ in self.asked if asked == method and path.endswith(suffix))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    site: Site

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        if self.site.head:
            self._answer()
        else:
            self._plain(405, b"no HEAD here")

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        site, parts = self.site, urlsplit(self.path)
        name = unquote(parts.path)
        site.asked.append((self.command, name, {key.lower(): value for key, value in self.headers.items()}))
        path = site.folder / name.lstrip("/")
        if site.password is not None and self.headers.get("Authorization") != site.password:
            self._plain(401, b"who are you?")
        elif path.is_dir():
            self._index(path)
        elif site.moved is not None:
            self._plain(302, b"", {"Location": site.moved + quote(name)})
        elif path.is_file():
            self._file(path)
        else:
            self._plain(404, b"nothing here")

    def _plain(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _index(self, path: Path) -> None:
        if self.site.index == "none":
            self._plain(403, b"no index")
            return
        entries = sorted(path.iterdir())
        if self.site.index == "json":
            found = [{"name": one.name, "type": "directory" if one.is_dir() else "file"} for one in entries]
            self._plain(200, json.dumps(found).encode(), {"Content-Type": "application/json"})
            return
        links = [(quote(one.name) + ("/" if one.is_dir() else ""), one.name) for one in entries]
        rows = "".join(f'<li><a href="{link}">{html.escape(text)}</a></li>' for link, text in links)
        more = '<a href="?C=N;O=D">Name</a> <a href="../">Parent</a> <a href="http://elsewhere.example/x">x</a>'
        body = f"<html><body>{more}<ul>{rows}</ul></body></html>".encode()
        self._plain(200, body, {"Content-Type": "text/html; charset=utf-8"})

    def _file(self, path: Path) -> None:
        site = self.site
        try:
            data = path.read_bytes()
        except FileNotFoundError:  # removed in between
            self._plain(404, b"nothing here")
            return
        etag = f'"{hashlib.sha1(data).hexdigest()[:20]}"' if site.etag != "none" else None
        if etag and site.etag == "weak":
            etag = f"W/{etag}"
        changed = email.utils.formatdate(path.stat().st_mtime, usegmt=True)
        conditions = [self.headers.get("If-Match"), self.headers.get("If-Unmodified-Since")]
        wrong = (conditions[0] not in (None, etag)) or (conditions[1] not in (None, changed))
        if (site.conditions == "obeyed" and wrong) or (site.conditions == "refused" and any(conditions)):
            self._plain(412, b"changed")
            return
        start, end, wanted = 0, len(data), self.headers.get("Range", "")
        if wanted.startswith("bytes=") and site.ranges:
            first, _, last = wanted[6:].partition("-")
            start, end = int(first), min(int(last or len(data) - 1) + 1, len(data))
            if start >= len(data):
                self._plain(416, b"", {"Content-Range": f"bytes */{len(data)}"})
                return
        self.send_response(206 if wanted and site.ranges else 200)
        if wanted and site.ranges:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        self.send_header("Content-Length", str(end - start))
        if etag:
            self.send_header("ETag", etag)
        if site.modified:
            self.send_header("Last-Modified", changed)
        if site.digest:
            import base64

            value = base64.b64encode(hashlib.sha256(data).digest()).decode()
            self.send_header("Repr-Digest", f"sha-256=:{value}:")
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(OSError):
                for at in range(start, end, PIECE):
                    if site.hold is not None:
                        site.hold(at)
                    self.wfile.write(data[at : min(at + PIECE, end)])


@contextlib.contextmanager
def serving(folder: Path, **options: Any) -> Iterator[Site]:
    """Serve a folder until the context ends."""
    site = Site(folder, **options)
    handler = type("Handler", (_Handler,), {"site": site})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    site.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
