"""What a remote is: a place that files can be read from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from cas.errors import RemoteError
from cas.index.identity import RemoteIdentity
from cas.index.paths import RelativePath


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of a listing: its path below the remote, its size in bytes, and which version was seen."""

    path: RelativePath
    size: int
    identity: RemoteIdentity
    executable: bool = False


@dataclass(frozen=True, slots=True)
class Listing:
    """Everything below a remote's place; `directories` are those that the remote itself names (empty ones too)."""

    files: tuple[RemoteFile, ...]
    directories: tuple[RelativePath, ...] = ()


@dataclass(frozen=True, slots=True)
class Checksum:
    """A checksum that the origin declares of a whole object.

    `kind` is crc32, crc32c, crc64nvme, sha1, sha256 or md5; `value` the raw bytes, big-endian. With `parts` (the
    sizes of the parts that the object was uploaded in) it is composite: the checksum of the parts' checksums, one
    after the other.
    """

    kind: str
    value: bytes
    parts: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.kind}:{self.value.hex()}{f'-{len(self.parts)}' if self.parts else ''}"


class RangesIgnoredError(RemoteError):
    """The server answers ranged requests with whole bodies: one stream has to read everything."""


Piece: TypeAlias = bytes | memoryview


class Remote(Protocol):
    """One place in a remote: lists, reads ranges, names itself. Safe to call from several threads.

    Errors are `TransientRemoteError` (worth another try), `ChangedError`, `CheckpointNotFoundError`,
    `NotAllowedError`, or `RemoteError`; never a third party's.
    """

    @property
    def url(self) -> str:
        """A name for messages and records, with no credentials."""

    def list(self) -> Listing:
        """List everything below the place; of `…/<uuid>`, never what is below `…/<uuid>-other`.

        Raises:
            UnsafeNameError: a key that no relative path can be made of.
            CheckpointNotFoundError: there is nothing.
        """

    def read(self, file: RemoteFile, start: int, end: int) -> Iterator[Piece]:
        """Yield exactly the bytes from `start` up to `end` of the version that was listed, in order, piece by piece.

        A piece is valid until the next one is asked for. What was yielded is right even if an error follows.

        Raises:
            ChangedError: the object is another version now.
            RangesIgnoredError: the server cannot read ranges.
            TransientRemoteError: the answer was short, or is worth another try otherwise.
        """

    def stream(self, file: RemoteFile) -> Iterator[Piece]:
        """Yield all bytes of a file, in order, from one read: for files with no validator."""

    def likely_checksums(self, file: RemoteFile) -> tuple[Checksum, ...]:
        """Return checksums that the listing suggests, at no cost: a match proves the bytes, a mismatch nothing."""

    def checksums(self, file: RemoteFile, *, thorough: bool = False) -> tuple[Checksum, ...]:
        """Return what the origin declares of the file's bytes, for one or two requests.

        Args:
            file: a file of the listing.
            thorough: ask for the size of every part that a composite checksum is of, not of the first one only.
        """

    def local_path(self, file: RemoteFile) -> str | None:
        """The file's path on this host, for remotes that are folders."""

    def recipe(self) -> Mapping[str, Any] | None:
        """Return what another process makes the same remote of, credentials included: for a pipe, nowhere else.

        None if this remote works in a forked child as it is.
        """
