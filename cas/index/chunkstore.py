"""The chunk lists and part lists of a home: written when it pays, read as hints, absent when in doubt."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from cas.errors import ContentError
from cas.index import containers, disk
from cas.index.chunkindex import ChunkIndex, Holder
from cas.index.chunks import ChunkList, Part, PartList
from cas.index.digest import Digest
from cas.index.layout import Layout

log = logging.getLogger("cas.index")

K = TypeVar("K", bytes, int)

LEAST_ZIP = 1 << 20  # bytes; the parts of smaller archives are not worth a request each


class Chunks:
    """What is known of how the blobs of this home, and of its layers, fall into pieces."""

    def __init__(self, layout: Layout, index_folder: Path | None) -> None:
        self._layout = layout
        self.index = ChunkIndex(layout.root / "chunks", index_folder)
        self.layers: tuple[Chunks, ...] = ()

    # --- which blobs may have a piece --------------------------------------------------------------------------

    def holders(self, digests: Iterable[bytes]) -> dict[bytes, list[Holder]]:
        """Return the blobs that may have chunks of these digests; only what has any is named."""
        return self._ask(digests, lambda one, wanted: one.index.chunks(wanted))

    def part_holders(self, keys: Iterable[int]) -> dict[int, list[Holder]]:
        """Return the blobs that may have records of these keys (`Part.key`)."""
        return self._ask(keys, lambda one, wanted: one.index.parts(wanted))

    def has_parts(self) -> bool:
        """Whether any blob is known to have a record."""
        return any(one.index.has_parts() for one in (self, *self.layers))

    def _ask(
        self, wanted: Iterable[K], ask: Callable[[Chunks, list[K]], dict[K, list[Holder]]]
    ) -> dict[K, list[Holder]]:
        """Ask this home, then the layers for what was not found."""
        left = list(wanted)
        found: dict[K, list[Holder]] = {}
        for one in (self, *self.layers):
            if left:
                found |= ask(one, left)
                left = [key for key in left if key not in found]
        return found

    # --- lists -------------------------------------------------------------------------------------------------

    def get(self, digest: Digest, size: int) -> ChunkList | None:
        """Return the chunk list of a blob; None if there is none that can be read."""
        return next((found for one in (self, *self.layers) if (found := one._get(digest, size)) is not None), None)

    def _get(self, digest: Digest, size: int) -> ChunkList | None:
        try:
            return ChunkList.parse(self._layout.chunks(digest).read_bytes(), size)
        except FileNotFoundError:
            return None
        except (OSError, ContentError) as error:
            log.info("the chunk list of %s is not used: %s", digest, error)
            return None

    def has(self, digest: Digest) -> bool:
        """Whether there is a chunk list of a blob, usable or not."""
        return self._layout.chunks(digest).exists()

    def put(self, digest: Digest, chunks: ChunkList, scratch: Path) -> None:
        """Keep the chunk list of a blob; `scratch` is a folder of ours in `ingest/`."""
        self._write(self._layout.chunks(digest), chunks.encode(), scratch)

    def parts(self, digest: Digest, size: int) -> PartList | None:
        """Return the part list of a blob; None if there is none that can be read."""
        return next(
            (found for one in (self, *self.layers) if (found := one._part_list(digest, size)) is not None), None
        )

    def _part_list(self, digest: Digest, size: int) -> PartList | None:
        try:
            return PartList.parse(self._parts(digest).read_bytes(), size)
        except FileNotFoundError:
            return None
        except (OSError, ContentError) as error:
            log.info("the part list of %s is not used: %s", digest, error)
            return None

    def note_parts(self, digest: Digest, fd: int, size: int, scratch: Path) -> None:
        """Keep the part list of a new blob, if it is a zip archive that is worth it. Raises nothing: it is a hint."""
        if size < LEAST_ZIP:
            return
        with contextlib.suppress(ContentError):
            try:
                if containers.is_zip(os.pread(fd, 4, 0)) and not self._parts(digest).exists():
                    self._write(self._parts(digest), part_list(fd, size).encode(), scratch)
            except OSError as error:
                log.info("the part list of %s cannot be kept: %s", digest, error)

    def forget(self, digest: Digest) -> None:
        """Remove the lists of a blob that was deleted. Raises nothing: they are only hints."""
        for path in (self._layout.chunks(digest), self._parts(digest)):
            with contextlib.suppress(OSError):
                if path.exists():
                    disk.unlink(path)

    def _parts(self, digest: Digest) -> Path:
        path = self._layout.chunks(digest)
        return path.with_name(f"{path.name}.parts")

    def _write(self, path: Path, data: bytes, scratch: Path) -> None:
        temporary = scratch / f"{path.parent.name}{path.name}.list"
        fd = disk.create(temporary, 0o444)
        try:
            disk.write(fd, data)
        finally:
            os.close(fd)
        disk.make_folder(path.parent)
        disk.rename(temporary, path)


def part_list(fd: int, size: int) -> PartList:
    """Read which stored records a zip archive has, from its own directory and headers.

    Raises:
        ContentError: it is no zip archive as frameworks write them.
    """

    def read(start: int, end: int) -> bytes:
        return os.pread(fd, max(end - start, 0), start)

    found = []
    for record in containers.read_directory(read, size):
        if record.is_stored and record.crc and record.length:
            start = containers.content_start(read, record)
            found.append(Part(record.start, start, record.length, record.end, record.crc))
    return PartList(size, tuple(found))
