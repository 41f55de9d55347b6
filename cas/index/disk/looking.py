"""What only looks at the disk: files, folders, and what an error of theirs means to a user."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cas.errors import CasError, NoSpaceError, NotAllowedError

NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
_PLAINLY = os.O_CLOEXEC | NO_FOLLOW | getattr(os, "O_NONBLOCK", 0)


class Signature(NamedTuple):
    """What a file's stat says of its content: a blob with another signature than its fact's is hashed again."""

    size: int
    mtime_ns: int
    inode: int
    changed: int = 0  # time of the last change (ns), of a file whose owner could set the others back; else 0

    @classmethod
    def of(cls, stat: os.stat_result, *, changed: bool = False) -> Signature:
        """Take the signature from a stat result; with `changed`, no owner can write and hide it."""
        return cls(stat.st_size, stat.st_mtime_ns, stat.st_ino, stat.st_ctime_ns if changed else 0)


def open_file(path: Path | str, *, writing: bool = False) -> int:
    """Open a plain file for reading (or both): never a link, and never a pipe or device, which could keep us waiting.

    Raises:
        OSError: it is something else (EINVAL, ELOOP), or cannot be read.
    """
    return _open_plain(path, os.O_RDWR if writing else os.O_RDONLY)[0]


def _open_plain(path: Path | str, access: int) -> tuple[int, int]:
    """Open a plain file; return its descriptor and its size."""
    fd = os.open(path, access | _PLAINLY)
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "is no plain file", os.fspath(path))
    return fd, found.st_size


def read_file(path: Path | str, at_most: int) -> bytes:
    """Return the bytes of a plain file.

    Raises:
        OSError: it has more than `at_most` (EFBIG), is something else, or cannot be read.
    """
    fd, size = _open_plain(path, os.O_RDONLY)
    try:
        if size > at_most:
            raise OSError(errno.EFBIG, f"has {size} bytes, more than {at_most}", os.fspath(path))
        data = os.read(fd, size)
        while len(data) < size and (more := os.read(fd, size - len(data))):  # one read takes 2 GiB, or a signal's share
            data += more
        return data
    finally:
        os.close(fd)


def read_start(path: Path | str, count: int) -> bytes:
    """Return so many bytes of what lies under a name, or fewer: for who knows by their digest what they should be.

    Raises:
        OSError: there is nothing, a link or a folder, or it cannot be read.
    """
    fd = os.open(path, os.O_RDONLY | _PLAINLY)
    try:
        return os.read(fd, count)
    finally:
        os.close(fd)


def is_ours(found: os.stat_result) -> bool:
    """Whether a file is this process's user's."""
    return not hasattr(os, "geteuid") or found.st_uid == os.geteuid()


def is_writable(folder: Path) -> bool:
    """Whether names can be made in a folder: by its mode and by how its disk is mounted."""
    effective = os.access in os.supports_effective_ids
    return os.access(folder, os.W_OK | os.X_OK, effective_ids=effective)


def forget_cached(fd: int) -> None:
    """Let the next read of a file come from the disk: what is in memory, written and unused, is dropped."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[int]:
    """Keep a folder open, so that the many names below it need not be walked to from the root."""
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_DIRECTORY", 0))
    try:
        yield fd
    finally:
        os.close(fd)


def names(folder: Path) -> list[str]:
    """Return the names in a folder, sorted; none of one that is not there, cannot be read, or is a symbolic link.

    A link in a store may lead anywhere: what lies there is not the store's.
    """
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_DIRECTORY", 0) | NO_FOLLOW)
    except OSError:
        return []
    try:
        return sorted(os.listdir(fd))
    except OSError:
        return []
    finally:
        os.close(fd)


def folders(folder: Path) -> list[Path]:
    """Return the folders in a folder, sorted; symbolic links are none."""
    found = [folder / name for name in names(folder)]
    return [path for path in found if path.is_dir() and not path.is_symlink()]


def translate(error: OSError, doing: str) -> CasError | None:
    """Turn an error of the disk into one clear line, if a user can do something about it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        reason = "the disk is full" if error.errno == errno.ENOSPC else "your quota is used up"
        return NoSpaceError(f"{doing}: {reason}; make room (`cas du` shows what the store holds) and try again")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return NotAllowedError(f"{doing}: {error.strerror}: {error.filename or ''}".rstrip(": "))
    if error.errno == errno.EXDEV:
        where = f"{error.filename or ''} and {error.filename2 or ''}"
        return CasError(f"{doing}: {where} are on different disks; all of a store must be on one")
    return None
