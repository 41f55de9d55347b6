"""Digests: BLAKE3-256 of some bytes, the same hex that `b3sum FILE` prints."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import NamedTuple, Self

import blake3

from cas.errors import ContentError

is_hex = re.compile(r"[0-9a-f]{64}", re.ASCII).fullmatch
_PREFIX = "blake3:"
_WINDOW = 1 << 20  # bytes per read: stays in the processor's cache between the read and the hash


class _Fields(NamedTuple):  # hashed and compared in C: a prune of a large store does so millions of times
    hex: str


class Digest(_Fields):
    """`blake3:<64 hex>`: the BLAKE3-256 digest of some bytes.

    Raises:
        ContentError: the text is not 64 lower-case hex digits.
    """

    __slots__ = ()

    def __new__(cls, hex: str) -> Self:  # noqa: D102 - the class's docstring says it
        if not is_hex(hex):
            raise ContentError(f"not a BLAKE3 digest (64 lower-case hex digits): {hex!r:.80}")
        return super().__new__(cls, hex)

    @classmethod
    def proven(cls, hex: str) -> Self:
        """Take 64 digits that the caller has looked at."""
        return super().__new__(cls, hex)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `blake3:<64 hex>`.

        Raises:
            ContentError: anything else.
        """
        if not str(text).startswith(_PREFIX):
            raise ContentError(f"not a digest (blake3:<64 hex>): {text!r:.80}")
        return cls(text[len(_PREFIX) :])

    @classmethod
    def of(cls, data: bytes | bytearray | memoryview) -> Self:
        """Return the digest of bytes in memory."""
        return cls(blake3.blake3(data).hexdigest())

    @classmethod
    def of_file(cls, path: str | os.PathLike[str] | int, pace: Callable[[int], None] | None = None) -> Self:
        """Return the digest of a file (a path or an open descriptor), read through the page cache.

        `pace` is called with the number of bytes after each read, and may take its time.
        """
        fd = path if isinstance(path, int) else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return cls(_hash_descriptor(fd, pace))
        finally:
            if fd is not path:
                os.close(fd)

    def fits(self, data: bytes | bytearray | memoryview) -> bool:
        """Whether bytes in memory have this digest."""
        return blake3.blake3(data).hexdigest() == self.hex

    def __str__(self) -> str:
        return _PREFIX + self.hex


def _hash_descriptor(fd: int, pace: Callable[[int], None] | None) -> str:
    # Read, not mapped: a file that shrinks while it is mapped kills the process with SIGBUS.
    hasher = blake3.blake3()
    buffer = memoryview(bytearray(_WINDOW))
    offset = 0
    while count := os.preadv(fd, [buffer], offset):
        hasher.update(buffer[:count])
        offset += count
        if pace is not None:
            pace(count)
    return hasher.hexdigest()
