"""Open files to be written: made, filled, closed to writers, and synced."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from cas.index.disk.group import Way, is_shared, make_shared, show_to_group
from cas.index.disk.looking import NO_FOLLOW, is_ours
from cas.index.disk.steps import is_step

_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_NOT_OURS = "is another user's, or no plain file; move it away"


@is_step
def create(path: Path | str, mode: int = 0o600) -> int:
    """Create a new file, which must not exist, for reading and writing; return its descriptor."""
    if not is_shared(path):  # nearly all, and the way there costs more than the question
        return os.open(path, _NEW, mode)
    with Way(path) as (name, folder):
        fd = os.open(name, _NEW, mode, dir_fd=folder)
    show_to_group(fd, path, mode)
    return fd


@is_step
def open_append(path: Path, mode: int = 0o644) -> int:
    """Open a plain file of ours for appending (and reading), created if absent; return its descriptor.

    Raises:
        PermissionError: another user put something under that name.
    """
    try:
        fd = _open_append(path, mode)
    except FileNotFoundError:
        if is_shared(path):
            make_shared(path.parent, 0o777)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
        fd = _open_append(path, mode)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise PermissionError(errno.EPERM, _NOT_OURS, os.fspath(path)) from error
        raise
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or not is_ours(found):
        os.close(fd)
        raise PermissionError(errno.EPERM, _NOT_OURS, os.fspath(path))
    show_to_group(fd, path, mode)
    return fd


def _open_append(path: Path, mode: int) -> int:
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | NO_FOLLOW
    with Way(path) as (name, folder):
        return os.open(name, flags, mode, dir_fd=folder)


@is_step
def write(fd: int, data: bytes | memoryview) -> None:
    """Write all of the data at the descriptor's position."""
    view = data if isinstance(data, bytes) else memoryview(data).cast("B")
    while (count := os.write(fd, view)) < len(view):
        view = memoryview(view)[count:]


@is_step
def write_once(fd: int, data: bytes | memoryview) -> int:
    """Write at the descriptor's position with one call; return how many bytes were written."""
    return os.write(fd, data)


@is_step
def write_at(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of the data at an offset."""
    view = memoryview(data).cast("B")
    while view:
        count = os.pwrite(fd, view, offset)
        view, offset = view[count:], offset + count


def overwrite(fd: int, data: bytes, offset: int) -> None:
    """Write all of the data over bytes that are there, through a descriptor that was opened for appending."""
    import fcntl

    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    fcntl.fcntl(fd, fcntl.F_SETFL, flags & ~os.O_APPEND)  # with it, all that is written goes to the end
    try:
        write_at(fd, data, offset)
    finally:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags)


@is_step
def truncate(fd: int, size: int) -> None:
    """Set a file's length; what is new reads as zeros."""
    os.ftruncate(fd, size)


@is_step
def set_mode(fd: int, mode: int) -> None:
    """Change the permissions of an open file."""
    os.fchmod(fd, mode)


def write_new(path: Path | str, data: bytes, mode: int) -> os.stat_result:
    """Make a new file, which must not exist, of these bytes and of exactly this mode; return what its stat says."""
    fd = create(path, mode)
    try:
        write(fd, data)
        found = os.fstat(fd)
        if stat.S_IMODE(found.st_mode) != mode:  # the umask took something
            set_mode(fd, mode)
            found = os.fstat(fd)
        return found
    finally:
        os.close(fd)


@is_step
def sync(fd: int) -> None:
    """Return when the file's bytes and metadata will survive a power cut."""
    os.fsync(fd)
