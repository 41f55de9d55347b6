"""What kind of disk a folder lies on, and whether another host may be behind it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")  # Linux: man 5 proc; a test may name another file

# Whose bytes lie on this host, and where flock works. Everything else counts as a network file system: one that is not
# known here, and FUSE, behind which may be anything (`fuseblk` too: nobody is hurt by a lease in the place of a lock).
_LOCAL = frozenset(
    {"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "bcachefs", "f2fs", "jfs", "nilfs2", "reiserfs", "ufs"}
    | {"tmpfs", "ramfs", "rootfs", "devtmpfs", "overlay", "ecryptfs", "apfs", "hfs", "hfsplus"}
    | {"squashfs", "erofs", "cramfs", "iso9660", "udf", "vfat", "exfat", "msdos", "ntfs", "ntfs3"}
)


def file_system(folder: Path) -> str | None:
    """Name the file system that a folder lies on; None where the system does not tell."""
    try:
        table = MOUNTS.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return None
    return mounted_type(table, os.path.realpath(folder))


def mounted_type(table: str, path: str) -> str | None:
    """Return the type of the mount that holds a path, from the text of Linux' `mountinfo`."""
    best, found = -1, None
    for line in table.splitlines():
        before, dash, after = line.partition(" - ")
        fields = before.split(" ")
        if not dash or len(fields) < 5:
            continue
        point = _unescape(fields[4])
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= best:  # a later mount on the same point hides the earlier one
            best, found = len(point), after.split(" ")[0]
    return found


def _unescape(text: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text


def is_network(kind: str | None) -> bool:
    """Whether a type of file system counts as one whose bytes lie on another host.

    Where a system other than Linux does not tell, its disk counts as local: say `network = yes` there.
    """
    if kind is None:
        return sys.platform.startswith("linux")
    return kind not in _LOCAL
