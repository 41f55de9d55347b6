"""A user's copy of a file that is still on its way into the store, where the two cannot share bytes.

It follows the ingest as a checksum does: what is hashed is written into it, in the same order. So when the digest is
proven, these are the bytes that it proves, and a copy that began early is no less checked than one that is made of the
blob. Until then it has a name of ours, in the folder beside the target, and is removed if anything goes wrong.
"""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path
from typing import Protocol, Self

from cas.index import disk
from cas.index.digest import Digest
from cas.index.manifest import FileEntry
from cas.index.paths import RelativePath

log = logging.getLogger("cas.index")


class Twin:
    """One file that follows one ingest: `with twin: …; twin.keep(digest)`. Safe for threads.

    If its disk fails, it is given up and the transfer goes on: the user's file is then made of the blob, and whoever
    makes it says what is wrong with the disk.
    """

    def __init__(self, path: Path, size: int, *, executable: bool) -> None:
        """Make the file, with the permissions that a user's files get.

        Raises:
            OSError: it cannot be made.
        """
        self.path = path
        self._size = size
        self._written = 0
        self._lock = threading.Lock()  # a thread that comes too late must not write into another file of this number
        self._executable = executable
        self._proven: Digest | None = None
        self._fd = disk.create(path, 0o777 if executable else 0o666)

    def update(self, data: memoryview) -> None:
        """Take the next bytes, which have just been hashed."""
        with self._lock:
            if self._fd < 0:
                return
            try:
                disk.write_at(self._fd, data, self._written)
                self._written += len(data)
            except OSError as error:
                log.info("%s is given up, and copied when the whole is here: %s", self.path, error)
                self._end()
                disk.unlink(self.path)

    def keep(self, digest: Digest) -> None:
        """Say that what was hashed has this digest: its ingest has committed."""
        with self._lock:
            if self._fd >= 0 and self._written == self._size == os.fstat(self._fd).st_size:
                self._proven = digest
                self._end()

    def becomes(self, path: Path, entry: FileEntry) -> bool:
        """Move to a new name, if this is that file, whole; False if it must be made in another way."""
        if self._proven is None or (self._proven, self._executable) != (entry.digest, entry.executable):
            return False
        try:
            disk.rename(self.path, path)
        except FileNotFoundError:
            return False
        return True

    def _end(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._end()
        if self._proven is None:
            disk.unlink(self.path)


class BeginTwin(Protocol):
    """Who may want a copy of a large file while it is fetched."""

    def __call__(self, path: RelativePath, size: int, *, executable: bool) -> Twin | None:
        """Begin it; None if none is wanted, or it is made in another way."""
