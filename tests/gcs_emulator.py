"""A GCS emulator (gcp-storage-emulator) on the loopback interface, and what tests do with it."""

from __future__ import annotations

import contextlib
import json
import socket
import urllib.request
from collections.abc import Iterator
from urllib.parse import quote


@contextlib.contextmanager
def running() -> Iterator[int]:
    """Start one whose buckets are in memory, in a thread of ours; yield its port."""
    from gcp_storage_emulator.server import create_server

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = create_server("127.0.0.1", port, in_memory=True)
    server.start()
    try:
        yield port
    finally:
        server.stop()


def make(url: str, bucket: str) -> None:
    """Make a bucket."""
    _send(f"{url}/storage/v1/b", json.dumps({"name": bucket}).encode(), "application/json")


def upload(url: str, bucket: str, name: str, data: bytes) -> None:
    """Write an object; one with no bytes as the emulator takes it, in several parts."""
    if data:
        _send(f"{url}/upload/storage/v1/b/{bucket}/o?uploadType=media&name={quote(name, safe='')}", data)
        return
    parts = [b"Content-Type: application/json\r\n\r\n" + json.dumps({"name": name}).encode()]
    parts.append(b"Content-Type: application/octet-stream\r\n\r\n")
    body = b"".join(b"--cut\r\n" + part + b"\r\n" for part in parts) + b"--cut--"
    _send(f"{url}/upload/storage/v1/b/{bucket}/o?uploadType=multipart", body, "multipart/related; boundary=cut")


def _send(url: str, body: bytes, kind: str = "application/octet-stream") -> None:
    request = urllib.request.Request(url, data=body, headers={"Content-Type": kind}, method="POST")
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 200
