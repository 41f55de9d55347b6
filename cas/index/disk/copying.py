"""Bytes that two files share, or that the kernel copies."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from cas.index.disk.forks import importing
from cas.index.disk.steps import is_step

COPY_WINDOW = 64 << 20  # bytes per copy_file_range call: long enough to be cheap, short enough for Ctrl-C
SHARED = 4096  # bytes of a block that two files can share: what xfs and btrfs have where nobody asked for another

_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV, errno.ENOSYS}


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


def _copy(source: int, target: int, offset: int, to: int, length: int) -> None:
    end = offset + length
    while offset < end:
        wanted = min(end - offset, COPY_WINDOW)
        try:
            count = os.copy_file_range(source, target, wanted, offset, to)
        except (OSError, AttributeError) as error:
            if isinstance(error, OSError) and error.errno not in _NO_LINKS | {errno.EINVAL, errno.EBADF}:
                raise
            data = os.pread(source, min(wanted, 1 << 20), offset)
            count = len(data)
            written = 0
            while written < count:
                written += os.pwrite(target, data[written:], to + written)
        if not count:
            raise EOFError(f"the source ends at byte {offset}")
        offset, to = offset + count, to + count


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
