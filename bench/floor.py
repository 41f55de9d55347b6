"""The floor of a cold pull: what the same server and the same machine can do at best, whatever the client.

The server is drained over plain sockets with the bytes thrown away; then as many bytes are copied into files once, and
hashed with BLAKE3 on all cores. Nothing is looked at, checked or committed.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

THREADS = 4
RANGE = 16 << 20  # bytes of one request
_BUFFER = 1 << 20
_MMAP = 1 << 20  # bytes; smaller files are hashed from memory


def requests(urls: Iterable[tuple[str, int]]) -> Iterator[bytes]:
    """Yield the requests that read objects (a signed URL and the bytes of each)."""
    for url, size in urls:
        place = urlsplit(url)
        for start in range(0, size, RANGE):
            end = min(size, start + RANGE) - 1
            head = f"GET {place.path}?{place.query} HTTP/1.1\r\nHost: {place.netloc}\r\nRange: bytes={start}-{end}"
            yield f"{head}\r\n\r\n".encode()


def drain(port: int, wanted: Iterator[bytes]) -> None:
    """Send requests over one connection, and throw away what comes.

    Raises:
        RuntimeError: the server refuses, or ends early.
    """
    buffer = memoryview(bytearray(_BUFFER))
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for request in wanted:
            connection.sendall(request)
            have = 0
            while (end := bytes(buffer[:have]).find(b"\r\n\r\n")) < 0:
                have += _receive(connection, buffer[have:])
            head = bytes(buffer[:end]).decode("latin-1").lower().split("\r\n")
            if head[0].split(" ")[1] != "206":
                raise RuntimeError(f"the server answers {head[0]}")
            length = next(int(line.partition(":")[2]) for line in head if line.startswith("content-length:"))
            left = length - (have - end - 4)
            while left > 0:
                left -= _receive(connection, buffer[: min(left, _BUFFER)])


def _receive(connection: socket.socket, buffer: memoryview) -> int:
    count = connection.recv_into(buffer)
    if not count:
        raise RuntimeError("the server closed the connection")
    return count


def in_threads(work: Callable[[], None]) -> None:
    """Do the same in all threads at once, and raise what one of them raised."""
    failed: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=guarded) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


class Shared:
    """An iterator that threads share."""

    def __init__(self, inner: Iterable[bytes]) -> None:
        self._inner = iter(inner)
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        with self._lock:
            return next(self._inner)


def copy_and_hash(folder: Path, sizes: Iterable[int]) -> None:
    """Write files of these sizes from memory, and hash them."""
    import blake3

    data = memoryview(os.urandom(_BUFFER))
    folder.mkdir()
    for number, size in enumerate(sizes):
        path = folder / str(number)
        with path.open("wb", buffering=0) as file:
            for start in range(0, size, _BUFFER):
                file.write(data[: size - start])
        hasher = blake3.blake3(max_threads=blake3.blake3.AUTO)
        _ = hasher.update_mmap(path) if size >= _MMAP else hasher.update(data[:size])
        hasher.digest()


def main(task: str, folder: str) -> None:
    """Do all of it: `task` is a file with the port, and the URL and size of each object, as JSON."""
    port, urls = json.loads(Path(task).read_text(encoding="utf-8"))
    shared = Shared(requests(urls))
    in_threads(lambda: drain(port, shared))
    copy_and_hash(Path(folder), [size for _, size in urls])


if __name__ == "__main__":
    main(*sys.argv[1:])
