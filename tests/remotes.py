"""Remotes that run in memory, with scripted faults and counters: fakes, no mocks."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from cas.errors import ChangedError, CheckpointNotFoundError, NotAllowedError, TransientRemoteError
from cas.index.identity import RemoteIdentity
from cas.index.paths import RelativePath
from cas.transfer.remote import Checksum, Listing, Piece, RangesIgnoredError, Remote, RemoteFile

PIECE = 64 << 10


class MemoryRemote:
    """Files in memory, with versions: writing to one makes a new version."""

    def __init__(self, files: Mapping[str, bytes] | None = None, *, directories: tuple[str, ...] = ()) -> None:
        self._files: dict[str, tuple[bytes, str]] = {}
        self._directories = directories
        self._versions = 0
        self.declared: dict[str, tuple[Checksum, ...]] = {}
        self.likely: dict[str, tuple[Checksum, ...]] = {}
        self.has_validators = True
        self.has_ranges = True
        for name, data in (files or {}).items():
            self.write(name, data)

    def write(self, name: str, data: bytes) -> None:
        self._versions += 1
        self._files[name] = (data, f'"v{self._versions}-{hashlib.sha256(data).hexdigest()[:8]}"')

    def remove(self, name: str) -> None:
        del self._files[name]

    @property
    def url(self) -> str:
        return "memory:"

    def list(self) -> Listing:
        if not self._files and not self._directories:
            raise CheckpointNotFoundError("nothing in memory")
        files = tuple(self._file(name) for name in sorted(self._files))
        return Listing(files, tuple(map(RelativePath, self._directories)))

    def _file(self, name: str) -> RemoteFile:
        data, etag = self._files[name]
        identity = RemoteIdentity(f"memory:{name}", len(data), etag=etag if self.has_validators else None)
        return RemoteFile(RelativePath(name), len(data), identity)

    def _data(self, file: RemoteFile) -> bytes:
        if file.path not in self._files or self._file(file.path).identity != file.identity:
            raise ChangedError(f"{file.path} was replaced")
        return self._files[file.path][0]

    def read(self, file: RemoteFile, start: int, end: int) -> Iterator[Piece]:
        if not self.has_ranges:
            raise RangesIgnoredError("no ranges")
        return self._pieces(file, start, end)

    def stream(self, file: RemoteFile) -> Iterator[Piece]:
        return self._pieces(file, 0, file.size)

    def _pieces(self, file: RemoteFile, start: int, end: int) -> Iterator[Piece]:
        data = self._data(file)
        for at in range(start, end, PIECE):
            self._data(file)
            yield memoryview(data)[at : min(at + PIECE, end)]

    def likely_checksums(self, file: RemoteFile) -> tuple[Checksum, ...]:
        return self.likely.get(file.path, ())

    def checksums(self, file: RemoteFile, *, thorough: bool = False) -> tuple[Checksum, ...]:
        self._data(file)
        return self.declared.get(file.path, ())

    def local_path(self, file: RemoteFile) -> None:
        return None

    def recipe(self) -> None:
        return None


class _Around:
    """A remote around a remote."""

    def __init__(self, inner: Remote) -> None:
        self.inner = inner

    @property
    def url(self) -> str:
        return self.inner.url

    def list(self) -> Listing:
        return self.inner.list()

    def read(self, file: RemoteFile, start: int, end: int) -> Iterator[Piece]:
        return self.inner.read(file, start, end)

    def stream(self, file: RemoteFile) -> Iterator[Piece]:
        return self.inner.stream(file)

    def likely_checksums(self, file: RemoteFile) -> tuple[Checksum, ...]:
        return self.inner.likely_checksums(file)

    def checksums(self, file: RemoteFile, *, thorough: bool = False) -> tuple[Checksum, ...]:
        return self.inner.checksums(file, thorough=thorough)

    def local_path(self, file: RemoteFile) -> str | None:
        return self.inner.local_path(file)

    def recipe(self) -> Mapping[str, Any] | None:
        return self.inner.recipe()


class FaultyRemote(_Around):
    """Each read does what the script's next word says; after the last word, all is well.

    `ok`; `short`: the answer ends after half; `flip`: one bit is another; `503`: the server is busy; `reset`: the
    connection breaks after half; `403`: no more tries; `silent`: nothing comes until `wake` is set; `late`: other
    bytes come then.
    """

    def __init__(self, inner: Remote, script: str) -> None:
        super().__init__(inner)
        self._words = iter(script.split())
        self._lock = threading.Lock()
        self.wake = threading.Event()

    def read(self, file: RemoteFile, start: int, end: int) -> Iterator[Piece]:
        with self._lock:
            word = next(self._words, "ok")
        if word == "503":
            raise TransientRemoteError("503 Slow Down", retry_after=0.01)
        if word == "403":
            raise NotAllowedError("403 Forbidden")
        if word in ("silent", "late"):
            return self._late(word, end - start)
        return self._spoiled(word, self.inner.read(file, start, end), (end - start) // 2)

    def _late(self, word: str, size: int) -> Iterator[Piece]:
        self.wake.wait()
        if word == "silent":
            raise TransientRemoteError("timed out")
        yield b"?" * size

    def _spoiled(self, word: str, pieces: Iterator[Piece], half: int) -> Iterator[Piece]:
        seen = 0
        for piece in pieces:
            if word in ("short", "reset") and seen + len(piece) > half:
                yield memoryview(piece)[: half - seen]
                raise TransientRemoteError("short" if word == "short" else "connection reset")
            if word == "flip":
                piece, word = bytes([piece[0] ^ 1]) + bytes(piece[1:]), "ok"
            seen += len(piece)
            yield piece


class CountingRemote(_Around):
    """Counts requests, and bytes for each file."""

    def __init__(self, inner: Remote) -> None:
        super().__init__(inner)
        self._lock = threading.Lock()
        self.lists = self.reads = self.heads = 0
        self.bytes: dict[str, int] = {}

    @property
    def total(self) -> int:
        return sum(self.bytes.values())

    def list(self) -> Listing:
        self.lists += 1
        return self.inner.list()

    def read(self, file: RemoteFile, start: int, end: int) -> Iterator[Piece]:
        with self._lock:
            self.reads += 1
        return self._count(file, self.inner.read(file, start, end))

    def stream(self, file: RemoteFile) -> Iterator[Piece]:
        return self._count(file, self.inner.stream(file))

    def _count(self, file: RemoteFile, pieces: Iterator[Piece]) -> Iterator[Piece]:
        for piece in pieces:
            with self._lock:
                self.bytes[file.path] = self.bytes.get(file.path, 0) + len(piece)
            yield piece

    def checksums(self, file: RemoteFile, *, thorough: bool = False) -> tuple[Checksum, ...]:
        with self._lock:
            self.heads += 1
        return self.inner.checksums(file, thorough=thorough)
