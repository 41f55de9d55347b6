"""A real blob server with Azure's interface (Azurite, from npm) on the loopback interface."""

from __future__ import annotations

import base64
import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlencode

from cas.transfer.azure import _EMULATED_KEY, EMULATED, VERSION, shared_key
from cas.transfer.http import Connections

_LOCAL = Path(__file__).parents[1] / ".venv-azurite" / "node_modules" / ".bin" / "azurite-blob"
_START_SECONDS = 60


def command() -> str | None:
    """Where Azurite is: `npm install --prefix .venv-azurite azurite` brings it."""
    return str(_LOCAL) if _LOCAL.exists() and shutil.which("node") else shutil.which("azurite-blob")


@dataclass(frozen=True, slots=True)
class Azurite:
    """A running server, and what tests do with it that `cas` never does: make containers and write."""

    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/{EMULATED}"

    @property
    def key(self) -> str:
        return _EMULATED_KEY

    @property
    def connection_string(self) -> str:
        return f"DefaultEndpointsProtocol=http;AccountName={EMULATED};AccountKey={self.key};BlobEndpoint={self.url};"

    def make(self, container: str, *, public: bool = False) -> None:
        access = {"x-ms-blob-public-access": "container"} if public else {}
        self._send("PUT", container, {"restype": "container"}, access, b"")

    def put(self, container: str, name: str, data: bytes, **headers: str) -> None:
        more = {name.replace("_", "-"): value for name, value in headers.items()}
        self._send("PUT", f"{container}/{name}", {}, {"x-ms-blob-type": "BlockBlob", **more}, data)

    def put_in_blocks(self, container: str, name: str, data: bytes) -> None:
        """Write a blob as large ones are written: the service knows no MD5 of it then."""
        block = base64.b64encode(b"0").decode()
        if data:
            self._send("PUT", f"{container}/{name}", {"blockid": block, "comp": "block"}, {}, data)
        blocks = f"<Latest>{block}</Latest>" if data else ""
        body = f'<?xml version="1.0"?><BlockList>{blocks}</BlockList>'.encode()
        self._send("PUT", f"{container}/{name}", {"comp": "blocklist"}, {}, body)

    def _send(self, method: str, path: str, query: dict[str, str], headers: dict[str, str], body: bytes) -> None:
        import email.utils

        import urllib3

        wanted = {"x-ms-date": email.utils.formatdate(usegmt=True), "x-ms-version": VERSION, **headers}
        if body:
            wanted["Content-Length"] = str(len(body))
        encoded = f"/{EMULATED}/{quote(path, safe='/-_.~')}"
        wanted["Authorization"] = shared_key(method, EMULATED, self.key, encoded, query, wanted)
        text = urlencode(query)
        with urllib3.PoolManager() as pool:
            url = f"http://127.0.0.1:{self.port}{encoded}" + (f"?{text}" if text else "")
            answer = pool.request(method, url, headers=wanted, body=body, retries=False)
            assert answer.status == 201, (answer.status, answer.data)


@contextlib.contextmanager
def running() -> Iterator[Azurite]:
    """Start a server of our own in a temporary folder; end it by its own pid."""
    found = command()
    assert found is not None
    folder = Path(tempfile.mkdtemp(prefix="azurite-"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [found, "--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", str(folder), "--silent"]
    options = ["--skipApiVersionCheck", "--disableTelemetry"]
    child = subprocess.Popen([*words, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + _START_SECONDS
        while True:
            try:
                Connections(name="azurite", timeout=2).send("GET", f"http://127.0.0.1:{port}/", {})
                break
            except Exception:
                if child.poll() is not None or time.monotonic() > end:
                    raise
                time.sleep(0.1)
        yield Azurite(port)
    finally:
        child.kill()
        child.wait()
        shutil.rmtree(folder, ignore_errors=True)
