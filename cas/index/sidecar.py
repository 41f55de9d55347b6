"""Sidecars: what a publisher says of a checkpoint that lies in a remote (docs/format.md says the bytes). Hints."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Self

from cas.errors import ContentError
from cas.index.chunks import ENTRY, Chunk, ChunkList
from cas.index.digest import Digest
from cas.index.identity import RemoteIdentity
from cas.index.manifest import MAX_SIZE
from cas.index.paths import RelativePath, check_tree

FORMAT = 1
MAX_BYTES = 256 << 20  # as it lies in the remote, and unpacked: chunks of 1.9 TB of tensors
MAX_HEAD = 64 << 20
INLINE = 4096  # bytes; shorter chunks are carried in it: glue, and small files
LEVEL = 9  # of zstandard: most of it are digests, which do not get smaller


@dataclass(frozen=True, slots=True)
class Described:
    """One file of a sidecar: its chunks, the bytes of the short ones, and the version that this is true of."""

    path: RelativePath
    digest: Digest
    chunks: ChunkList
    version: tuple[tuple[str, Any], ...]
    inline: bytes

    @property
    def size(self) -> int:
        """The file's size in bytes."""
        return self.chunks.size

    def is_of(self, identity: RemoteIdentity) -> bool:
        """Whether it is of this version of the object."""
        return identity.size == self.size and bool(self.version) and self.version == version_of(identity)

    def pieces(self) -> Iterator[tuple[Chunk, bytes]]:
        """Yield the chunks, each with its bytes if they are carried in the sidecar."""
        at = 0
        for chunk in self.chunks:
            data = b""
            if chunk.length < INLINE:
                data = self.inline[at : at + chunk.length]
                at += chunk.length
            yield chunk, data

    @property
    def whole(self) -> bytes | None:
        """The file's bytes, if all of them are carried in the sidecar."""
        return self.inline if len(self.inline) == self.size else None


@dataclass(frozen=True, slots=True)
class Sidecar:
    """What is published of a checkpoint; files are sorted by path."""

    files: tuple[Described, ...]

    @classmethod
    def of(cls, files: Iterable[Described]) -> Self:
        """Make one of files in any order.

        Raises:
            UnsafeNameError: a name is there twice, or is a file and also a folder.
        """
        found = tuple(sorted(files, key=lambda one: one.path))
        check_tree(one.path for one in found)
        return cls(found)

    def encode(self) -> bytes:
        """Return the bytes to publish.

        Raises:
            ContentError: they are more than a sidecar may have.
        """
        import zstandard  # late: `import cas` must stay fast

        head = {"cas": "sidecar", "files": [_to_json(one) for one in self.files], "format": FORMAT}
        text = json.dumps(head, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode() + b"\n"
        entries, inline = (one.chunks.entries for one in self.files), (one.inline for one in self.files)
        data = b"".join([text, *entries, *inline])
        if len(data) > MAX_BYTES or len(text) > MAX_HEAD:
            raise ContentError(f"a sidecar of {len(data)} bytes: at most {MAX_BYTES} are allowed")
        return zstandard.ZstdCompressor(level=LEVEL, write_checksum=True, write_content_size=True).compress(data)

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read a sidecar; it comes from outside.

        Raises:
            ContentError: it is none, or damaged.
            UnsafeNameError: a hostile name.
        """
        content = _unpack(data)
        end = content.find(b"\n", 0, MAX_HEAD) + 1
        try:
            head = json.loads(content[:end])
        except (ValueError, RecursionError) as error:
            raise ContentError(f"not a sidecar: {error}") from error
        if not isinstance(head, dict) or (head.get("cas"), head.get("format")) != ("sidecar", FORMAT):
            raise ContentError("not a sidecar, or of another format")
        files = head.get("files")
        if not isinstance(files, list):
            raise ContentError("not a sidecar: it names no files")
        return cls.of(_read_files(files, content, end))


def version_of(identity: RemoteIdentity) -> tuple[tuple[str, Any], ...]:
    """Return what tells an object's version from others, whatever URL it has; empty if nothing does."""
    if identity.etag is not None:
        return (("etag", identity.etag),) if identity.has_validator else ()
    if identity.version is None:
        return ()
    modified = () if identity.modified is None else (("modified", identity.modified),)
    return (*modified, ("version", identity.version))


def _to_json(one: Described) -> dict[str, Any]:
    count = {"chunker": one.chunks.chunker, "count": len(one.chunks), "digest": str(one.digest)}
    return {**count, "path": str(one.path), "size": one.size, "version": dict(one.version)}


def _unpack(data: bytes) -> bytes:
    import zstandard

    if len(data) > MAX_BYTES:
        raise ContentError(f"a sidecar of {len(data)} bytes: at most {MAX_BYTES} are allowed")
    try:
        frame = zstandard.get_frame_parameters(data)
        if not 0 < frame.content_size <= MAX_BYTES or not frame.has_checksum:
            raise ContentError("not a sidecar: its size is odd, or it has no checksum")
        content: bytes = zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ContentError(f"not a sidecar, or damaged: {error}") from error
    return content


def _read_files(files: list[Any], content: bytes, at: int) -> list[Described]:
    heads = [_head(one) for one in files]
    found = []
    for path, digest, size, chunker, count, version in heads:
        entries = content[at : at + count * ENTRY]
        if len(entries) != count * ENTRY:
            raise ContentError("a sidecar was cut short")
        at += len(entries)
        found.append((path, digest, ChunkList.checked(chunker, size, entries), version))
    described = []
    for path, digest, chunks, version in found:
        length = sum(chunk.length for chunk in chunks if chunk.length < INLINE)
        inline = content[at : at + length]
        if len(inline) != length:
            raise ContentError("a sidecar was cut short")
        at += length
        described.append(Described(path, digest, chunks, version, inline))
    if at != len(content):
        raise ContentError("a sidecar is longer than what it names")
    return described


def _head(one: object) -> tuple[RelativePath, Digest, int, object, int, tuple[tuple[str, Any], ...]]:
    if not isinstance(one, dict):
        raise ContentError(f"not a file of a sidecar: {one!r:.120}")
    size, count, version = one.get("size"), one.get("count"), one.get("version")
    if type(size) is not int or not 0 <= size <= MAX_SIZE or type(count) is not int or not 0 <= count <= MAX_BYTES:
        raise ContentError(f"not a file of a sidecar: its size is {size!r:.40}, of {count!r:.40} chunks")
    if not isinstance(version, dict) or not version.keys() <= {"etag", "version", "modified"}:
        raise ContentError("not a file of a sidecar: no version")
    path, digest = RelativePath(one.get("path", "")), Digest.parse(one.get("digest", ""))
    return path, digest, size, one.get("chunker"), count, tuple(sorted(version.items()))


def describe(fd: int, path: RelativePath, digest: Digest, chunks: ChunkList, identity: RemoteIdentity) -> Described:
    """Describe a file of a checkpoint, whose bytes are read through `fd`."""
    short = [os.pread(fd, chunk.length, chunk.start) for chunk in chunks if chunk.length < INLINE]
    return Described(path, digest, chunks, version_of(identity), b"".join(short))
