"""Bytes that two files share, or that the kernel copies."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

from cas.index.disk.forks import importing
from cas.index.disk.steps import is_step

COPY_WINDOW = 64 << 20  # bytes per copy_file_range call: long enough to be cheap, short enough for Ctrl-C
SHARED = 4096  # bytes of a block that two files can share: what xfs and btrfs have where nobody asked for another

_WINDOW = 1 << 20  # bytes per read, where the kernel copies nothing
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV, errno.ENOSYS}
_NOT_THIS_WAY = _NO_LINKS | {errno.EINVAL, errno.EBADF, errno.ENOTSOCK}

_Way = Callable[[int, int, int, int, int], int]  # source, target, bytes, offset, offset there -> bytes that were copied


@is_step
def copy_range(source: int, target: int, offset: int, length: int, *, to: int | None = None) -> None:
    """Copy a range between two descriptors, in the kernel where it can, to the same offset or another (`to`).

    What lies alike in the blocks of both files is shared between them, where the disk can.

    Raises:
        EOFError: the source ended before the range did.
    """
    to = offset if to is None else to
    head = -to % SHARED if (to - offset) % SHARED == 0 else 0  # only whole blocks can be shared
    if 0 < head < length - SHARED:
        _copy(source, target, offset, to, head)
        offset, to, length = offset + head, to + head, length - head
    _copy(source, target, offset, to, length)


@is_step
def copy_whole(source: int, target: int, length: int) -> None:
    """Copy the first bytes of a file into one that was just made and has this one descriptor.

    As `copy_range`; but between two disks, where nothing can be shared, the kernel copies too, for less than reading
    and writing costs (256 MiB: 0.17 against 0.20 CPU seconds from memory to ext4, 0.28 against 0.32 back).

    Raises:
        EOFError: the source is shorter.
    """
    _copy(source, target, 0, 0, length, (_share, _send, _write))


def _copy(source: int, target: int, offset: int, to: int, length: int, ways: tuple[_Way, ...] | None = None) -> None:
    """Copy in the first of some ways that works here."""
    first, *others = ways or (_share, _write)
    end = offset + length
    while offset < end:
        try:
            count = first(source, target, min(end - offset, COPY_WINDOW), offset, to)
        except (OSError, AttributeError) as error:  # not each system has each call
            if not others or (isinstance(error, OSError) and error.errno not in _NOT_THIS_WAY):
                raise
            first, *others = others
            continue
        if not count:
            raise EOFError(f"the source ends at byte {offset}")
        offset, to = offset + count, to + count


def _share(source: int, target: int, count: int, offset: int, to: int) -> int:
    return os.copy_file_range(source, target, count, offset, to)


def _send(source: int, target: int, count: int, offset: int, to: int) -> int:
    os.lseek(target, to, os.SEEK_SET)
    return os.sendfile(target, source, offset, count)


def _write(source: int, target: int, count: int, offset: int, to: int) -> int:
    data = memoryview(os.pread(source, min(count, _WINDOW), offset))
    written = 0
    while written < len(data):
        written += os.pwrite(target, data[written:], to + written)
    return written


@is_step
def reflink(source: Path, target: Path) -> bool:
    """Make `target`, which must not exist, share the bytes of `source` copy-on-write; False if it cannot.

    Raises:
        FileExistsError: the target exists.
    """
    with importing:
        import reflink_copy  # Rust; loaded late because `import cas` must stay fast

    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    try:
        reflink_copy.reflink(os.fspath(source), os.fspath(target))
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        return False
    return True


def is_link_refusal(error: OSError) -> bool:
    """Whether the error says that a hard link cannot be made here, by anybody or by us."""
    return error.errno in _NO_LINKS
