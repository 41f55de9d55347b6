"""A disk with faults: a folder shown through FUSE, by a process of its own. `python fuse_disk.py SOURCE MOUNT FAULT…`

Faults: `no-links` (EPERM), `few-links=N` (EMLINK from the Nth name of a file on), `fold` (names that differ by case are
one), `quota=BYTES` (EDQUOT for what is written above it).
"""

from __future__ import annotations

import errno
import os
import sys
import threading
from typing import Any

import mfusepy

_STAT = ("st_mode", "st_nlink", "st_uid", "st_gid", "st_size", "st_ino", "st_dev")
_TIMES = ("st_atime", "st_mtime", "st_ctime")


class FaultyDisk(mfusepy.Operations):  # type: ignore[misc]
    """Passes everything on to a folder, but for the faults."""

    use_ns = True

    def __init__(self, source: str, faults: dict[str, str]) -> None:
        self.source = source
        self.faults = faults
        self.written = 0
        self.counting = threading.Lock()

    def real(self, path: str) -> str:
        if "fold" not in self.faults:
            return self.source + path
        found = self.source
        for part in path.strip("/").split("/"):
            names = os.listdir(found) if os.path.isdir(found) else []
            found = os.path.join(found, next((name for name in names if name.lower() == part.lower()), part))
        return found

    # --- with faults -----------------------------------------------------------------------------------------

    def link(self, target: str, source: str) -> int:
        if "no-links" in self.faults:
            raise mfusepy.FuseOSError(errno.EPERM)
        limit = int(self.faults.get("few-links", 1 << 30))
        if os.lstat(self.real(source)).st_nlink >= limit:
            raise mfusepy.FuseOSError(errno.EMLINK)
        os.link(self.real(source), self.real(target), follow_symlinks=False)
        return 0

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        with self.counting:
            if self.written + len(data) > int(self.faults.get("quota", 1 << 62)):
                raise mfusepy.FuseOSError(errno.EDQUOT)
            self.written += len(data)
        return os.pwrite(fh, data, offset)

    # --- passed on -------------------------------------------------------------------------------------------

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        stat = os.lstat(self.real(path))
        found = {name: getattr(stat, name) for name in _STAT}
        return found | {name: getattr(stat, f"{name}_ns") for name in _TIMES}

    def readdir(self, path: str, fh: int) -> list[tuple[str, dict[str, int], int]]:
        with os.scandir(self.real(path)) as entries:
            found = [(one.name, one.stat(follow_symlinks=False)) for one in entries]
        above = os.lstat(self.real(path))  # names without an inode would be passed over
        listed = [(".", above), ("..", above), *found]
        return [(name, {"st_mode": stat.st_mode, "st_ino": stat.st_ino}, 0) for name, stat in listed]

    def readlink(self, path: str) -> str:
        return os.readlink(self.real(path))

    def statfs(self, path: str) -> dict[str, int]:
        found = os.statvfs(self.real(path))
        names = ("f_bavail", "f_bfree", "f_blocks", "f_bsize", "f_favail", "f_ffree", "f_files", "f_flag", "f_frsize")
        return {name: getattr(found, name) for name in (*names, "f_namemax")}

    def chmod(self, path: str, mode: int) -> int:
        os.chmod(self.real(path), mode)
        return 0

    def chown(self, path: str, uid: int, gid: int) -> int:
        os.chown(self.real(path), uid, gid, follow_symlinks=False)
        return 0

    def mkdir(self, path: str, mode: int) -> int:
        os.mkdir(self.real(path), mode)
        return 0

    def rmdir(self, path: str) -> int:
        os.rmdir(self.real(path))
        return 0

    def unlink(self, path: str) -> int:
        os.unlink(self.real(path))
        return 0

    def symlink(self, target: str, source: str) -> int:
        os.symlink(source, self.real(target))
        return 0

    def rename(self, old: str, new: str) -> int:
        os.rename(self.real(old), self.real(new))
        return 0

    def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
        os.utime(self.real(path), ns=times, follow_symlinks=False)
        return 0

    def create(self, path: str, mode: int, fi: object = None) -> int:
        return os.open(self.real(path), os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)

    def open(self, path: str, flags: int) -> int:
        # The kernel appends for us, and reads what it must to do so.
        access = os.O_RDONLY if flags & os.O_ACCMODE == os.O_RDONLY else os.O_RDWR
        return os.open(self.real(path), access | (flags & os.O_TRUNC))

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return os.pread(fh, size, offset)

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        os.truncate(self.real(path) if fh is None else fh, length)
        return 0

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        os.fsync(fh)
        return 0

    def flush(self, path: str, fh: int) -> int:
        return 0

    def release(self, path: str, fh: int) -> int:
        os.close(fh)
        return 0


if __name__ == "__main__":
    _, source, point, *words = sys.argv
    faults = dict(word.partition("=")[::2] for word in words)
    mfusepy.FUSE(FaultyDisk(source, faults), point, foreground=True, allow_other=True, use_ino=True, hard_remove=True)
