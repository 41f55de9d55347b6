"""Checksums that origins declare: computed while the bytes pass by, compared at the end."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterable
from typing import Protocol

from cas.errors import DigestMismatchError
from cas.transfer.remote import Checksum

LENGTH_ONLY = "length only"  # the proof of bytes that no checksum of the origin vouches for

# The first that an origin declares is verified: what detects most comes first, what costs most last.
# MD5 (0.7 GB/s) is verified only where it is asked for.
ORDER = ("sha256", "crc64nvme", "sha1", "crc32c", "crc32")
STRONG = ("sha256", "sha1", "md5")
_SIZES = {"crc32": 4, "crc32c": 4, "crc64nvme": 8}


class Running(Protocol):
    """A checksum in progress."""

    def update(self, data: memoryview, /) -> object:
        """Take the next bytes."""

    def digest(self) -> bytes:
        """Return the checksum of the bytes so far, big-endian."""


class _Crc:
    def __init__(self, function: Callable[[memoryview, int], int], size: int) -> None:
        self._function = function
        self._size = size
        self._value = 0

    def update(self, data: memoryview, /) -> None:
        self._value = self._function(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(self._size, "big")


def _crc(kind: str) -> Callable[[memoryview, int], int] | None:
    if kind == "crc32":
        try:
            from isal import isal_zlib  # 60 GB/s; zlib 7, awscrt 3 (a 2-core x86 machine)
        except ImportError:
            return zlib.crc32
        return isal_zlib.crc32
    try:
        from awscrt import checksums  # 55 GB/s
    except ImportError:
        return None
    return getattr(checksums, kind, None)


def start(kind: str) -> Running | None:
    """Start a checksum; None if this Python has nothing that computes it."""
    if kind in _SIZES:
        function = _crc(kind)
        return None if function is None else _Crc(function, _SIZES[kind])
    if kind in ("sha1", "sha256", "md5"):
        return hashlib.new(kind, usedforsecurity=False)
    return None


class Verifier:
    """Follows the bytes of one file and tells whether they have a declared checksum."""

    def __init__(self, checksum: Checksum) -> None:
        first = start(checksum.kind)
        if first is None:
            raise ValueError(f"nothing here computes {checksum.kind}")
        self.checksum = checksum
        self._running = first
        self._parts = iter(checksum.parts)
        self._left = next(self._parts, None)  # bytes of the present part; None if the checksum is of the whole
        self._done: list[bytes] = []

    def update(self, data: memoryview, /) -> None:
        """Take the next bytes."""
        while self._left is not None and len(data) >= self._left:
            self._running.update(data[: self._left])
            data = data[self._left :]
            self._end_part()
        if len(data):
            self._running.update(data)
            if self._left is not None:
                self._left -= len(data)

    def _end_part(self) -> None:
        self._done.append(self._running.digest())
        self._running = self._fresh()
        self._left = next(self._parts, None)

    def _fresh(self) -> Running:
        running = start(self.checksum.kind)
        assert running is not None  # the first one started
        return running

    @property
    def value(self) -> bytes:
        """The checksum of the bytes so far."""
        if not self.checksum.parts:
            return self._running.digest()
        whole = self._fresh()
        whole.update(memoryview(b"".join(self._done)))
        return whole.digest()

    @property
    def matches(self) -> bool:
        """Whether the bytes so far, which must be all, have the declared checksum."""
        return self.value == self.checksum.value

    @property
    def proof(self) -> str:
        """What to record when it matches."""
        return proof(self.checksum)


def proof(checksum: Checksum) -> str:
    """Return what is recorded of bytes that have this checksum."""
    return f"origin checksum ({checksum.kind})"


def choose(declared: Iterable[Checksum], *, md5: bool = False) -> Checksum | None:
    """Return the declared checksum to verify, or None if there is none that can be; MD5 only if asked for."""
    by_kind = {checksum.kind: checksum for checksum in declared}
    for kind in (*ORDER, "md5") if md5 else ORDER:
        if kind in by_kind and start(kind) is not None:
            return by_kind[kind]
    return None


def of_whole(declared: Iterable[Checksum]) -> tuple[Checksum | None, Checksum | None]:
    """Return the declared checksum that tells other bytes even if somebody chose them (or is meant to), and a CRC."""
    by_kind = {checksum.kind: checksum for checksum in declared if start(checksum.kind) is not None}
    strong = next((by_kind[kind] for kind in STRONG if kind in by_kind), None)
    return strong, next((by_kind[kind] for kind in ORDER if kind in by_kind and kind not in STRONG), None)


def matches(checksum: Checksum, data: bytes | memoryview) -> bool:
    """Whether bytes in memory have a checksum."""
    verifier = Verifier(checksum)
    verifier.update(memoryview(data))
    return verifier.matches


def require(checksum: Checksum, data: bytes | memoryview, subject: str) -> None:
    """Check bytes in memory.

    Raises:
        DigestMismatchError: they do not have the checksum.
    """
    verifier = Verifier(checksum)
    verifier.update(memoryview(data))
    if not verifier.matches:
        actual = f"{checksum.kind}:{verifier.value.hex()}"
        raise DigestMismatchError(subject, expected=str(checksum), actual=actual)
