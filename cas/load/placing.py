"""Making one file of a user's out of a blob: reflinked, copied, hard-linked or symlinked."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from cas.config import Link
from cas.errors import CasError, CheckpointNotFoundError, ContentError
from cas.index import disk
from cas.index.digest import Digest
from cas.index.manifest import FileEntry, Manifest
from cas.index.space import can_share
from cas.index.store import Store
from cas.index.twin import Twin

OWN = (Link.COPY, Link.REFLINK)


@dataclass(frozen=True, slots=True)
class LinkReport:
    """What happened in a user's folder: how many files got there how, and how many bytes were copied."""

    reflinked: int = 0
    copied: int = 0
    hardlinked: int = 0
    symlinked: int = 0
    kept: int = 0  # were there already, and right
    bytes: int = 0  # that were copied
    extra: int = 0  # files that are not the checkpoint's, left alone
    moved: int = 0  # were fetched to where they are, past the store
    only_copies: int = 0  # were to be hard links, and were not, because they would be the only copy's

    @property
    def mode(self) -> Link | None:
        """How the most files got there; None if all were there already."""
        counts = {
            Link.REFLINK: self.reflinked,
            Link.HARDLINK: self.hardlinked,
            Link.SYMLINK: self.symlinked,
            Link.COPY: self.copied,
        }
        best = max(counts, key=lambda link: counts[link])
        return best if counts[best] else None

    @classmethod
    def unchanged(cls, manifest: Manifest) -> Self:
        """The report of a target that was complete."""
        return cls(kept=len(manifest.files))

    def __str__(self) -> str:
        names = ("moved", "reflinked", "copied", "hardlinked", "symlinked", "kept")
        words = [f"{getattr(self, name)} {name}" for name in names]
        return ", ".join(word for word in words if not word.startswith("0 ")) or "nothing to do"


class Placer:
    """Makes files out of blobs, in the way that was asked for, and counts. Safe to call from several threads."""

    def __init__(
        self,
        store: Store,
        target: Path,
        link: Link,
        is_only_copy: Callable[[Digest], bool],
        *,
        giving: bool = False,
    ) -> None:
        """`giving`: the store is made for this target alone, which gets its very files."""
        self._store = store
        self._giving = giving
        self._given: set[Digest] = set()
        self._target = target  # for messages
        self._link = link
        self._is_only_copy = is_only_copy
        self._lock = threading.Lock()
        self._reflinks = True  # until one fails: then the two places cannot share bytes
        self._mode = 0o644
        self.report = LinkReport()

    @property
    def owns(self) -> bool:
        """Whether the user asked for files of their own, that no longer hang on the store."""
        return self._link in OWN

    def adopt_mode(self, folder: Path) -> None:
        """Take the umask from a folder that was just made."""
        self._mode = stat.S_IMODE(folder.stat().st_mode) & 0o777

    def forget(self) -> None:
        """Count from the beginning: what was built is not used."""
        self.report = LinkReport()
        self._given.clear()

    def copies(self, folder: Path) -> bool:
        """Whether files in a folder will be copies: that was asked for, or the store cannot share bytes with them."""
        if self._giving or self._link is not Link.AUTO:
            return self._link is Link.COPY and not self._giving
        self._reflinks = self._reflinks and can_share(self._store.home, folder)
        return not self._reflinks

    def place(self, entry: FileEntry, path: Path, twin: Twin | None = None) -> None:
        """Make one file, which must not exist; a twin of it takes the place, if there is one.

        Raises:
            CheckpointNotFoundError: its blob is not here, or went away in between; no file was made.
        """
        assert entry.digest is not None  # entries are added when their blob is in the store
        disk.make_folder(path.parent)
        if twin is not None and twin.becomes(path, entry):
            self._count(copied=1, bytes=entry.size)
            return
        blob = blob_of(self._store, entry.digest, entry.path)
        try:
            self._place(entry, entry.digest, blob, path)
        except FileNotFoundError as error:
            if blob.exists():
                raise
            raise CheckpointNotFoundError(f"{entry.path}: its blob was removed by another process") from error

    def _place(self, entry: FileEntry, digest: Digest, blob: Path, path: Path) -> None:
        if self._giving and self._give(blob, path, entry, digest):
            self._count(moved=1)
        elif self._link is Link.SYMLINK and not entry.executable:
            disk.symlink(os.fspath(blob), path)
            self._count(symlinked=1)
        elif self._link is Link.HARDLINK and not entry.executable and self._hardlink(blob, path, digest):
            self._count(hardlinked=1)
        elif self._link is not Link.COPY and self._reflink(blob, path, entry):
            self._count(reflinked=1)
        elif self._link is Link.REFLINK and entry.size:
            raise CasError(
                f"{self._target}: files cannot share bytes with the store in {self._store.home} (no reflink between the"
                " two); use link=auto or link=copy"
            )
        else:
            self._copy(blob, path, entry)
            self._count(copied=1, bytes=entry.size)

    def _give(self, blob: Path, path: Path, entry: FileEntry, digest: Digest) -> bool:
        """Give a blob a name in the target and a user's mode; each blob once, because two files are not to be one."""
        with self._lock:
            if digest in self._given or not blob.is_relative_to(self._store.home):
                return False
            self._given.add(digest)
        try:
            disk.link(blob, path)
        except OSError as error:
            if not disk.is_link_refusal(error):
                raise
            return False
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            disk.set_mode(fd, self._mode_of(entry))
        finally:
            os.close(fd)
        return True

    def _hardlink(self, blob: Path, path: Path, digest: Digest) -> bool:
        if self._store.read_only or not blob.is_relative_to(self._store.home):  # even its number of names stays
            return False
        if self._is_only_copy(digest):
            self._count(only_copies=1)
            return False
        try:
            disk.link(blob, path)
        except OSError as error:
            if error.errno == errno.EMLINK:  # this one blob has all the names it can have
                return False
            if not disk.is_link_refusal(error):
                raise
            raise CasError(
                f"{self._target}: no hard links to the store in {self._store.home} can be made ({error.strerror});"
                " use link=auto or link=copy"
            ) from error
        return True

    def _reflink(self, blob: Path, path: Path, entry: FileEntry) -> bool:
        if not self._reflinks or not entry.size:
            return False
        if not disk.reflink(blob, path):
            self._reflinks = False
            with contextlib.suppress(FileNotFoundError):
                disk.unlink(path)
            return False
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            disk.set_mode(fd, self._mode_of(entry))
        finally:
            os.close(fd)
        return True

    def _copy(self, blob: Path, path: Path, entry: FileEntry) -> None:
        source = os.open(blob, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fd = disk.create(path, 0o777 if entry.executable else 0o666)
            try:
                disk.copy_whole(source, fd, entry.size)
            finally:
                os.close(fd)
        except EOFError as error:
            raise ContentError(f"blob {entry.digest} changed while it was copied; try again") from error
        finally:
            os.close(source)

    def _mode_of(self, entry: FileEntry) -> int:
        return self._mode if entry.executable else self._mode & 0o666

    def write(self, data: bytes, path: Path) -> None:
        """Make a file that is no blob."""
        fd = disk.create(path, 0o666)
        try:
            disk.write(fd, data)
        finally:
            os.close(fd)

    def _count(self, **counts: int) -> None:
        with self._lock:
            changes = {name: getattr(self.report, name) + count for name, count in counts.items()}
            self.report = replace(self.report, **changes)


def blob_of(store: Store, digest: Digest, name: str) -> Path:
    """Return the path of a blob that can be believed.

    Raises:
        CheckpointNotFoundError: it is not here.
    """
    path = store.blobs.locate(digest)
    if path is None:
        raise CheckpointNotFoundError(f"{name}: its bytes ({digest}) are not in the store; download it again")
    return path
