"""What a remote is: a place that files can be read from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

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

    `kind` is crc32, crc32c, crc64nvme, sha1, sha256 or md5; `value` the raw bytes, big-endian. With `part_size`
    it is composite: the checksum of the parts' checksums, one after the other.
    """

    kind: str
    value: bytes
    part_size: int | None = None


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
        """

    def read(self, file: RemoteFile, start: int, end: int) -> bytes | memoryview:
        """Return exactly the bytes from `start` up to `end` of the version that was listed.

        Raises:
            ChangedError: the object is another version now.
            TransientRemoteError: the answer was short, or is worth another try otherwise.
        """

    def stream(self, file: RemoteFile) -> Iterator[bytes | memoryview]:
        """Yield all bytes of a file that has no validator, in order, from one read."""

    def checksums(self, file: RemoteFile) -> tuple[Checksum, ...]:
        """Return what the origin declares of the file's bytes; costs a request at most."""

    def local_path(self, file: RemoteFile) -> str | None:
        """The file's path on this host, for remotes that are folders."""
