"""Names and folders: made, moved, linked, removed, their modes and times, and synced."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import sys
from collections.abc import Callable
from pathlib import Path

from cas.index.disk.group import Way, is_shared, make_shared
from cas.index.disk.looking import NO_FOLLOW
from cas.index.disk.steps import is_step

_RACES = 20  # how often in a row a race with another process is tried again


@is_step
def make_folder(path: Path, mode: int = 0o777) -> None:
    """Make a folder and those above it; an existing one is fine."""
    for attempt in range(_RACES):
        try:
            if is_shared(path):
                make_shared(path, mode)
            else:
                path.mkdir(mode=mode, parents=True, exist_ok=True)
            return
        except (FileNotFoundError, FileExistsError):  # another process removed, or made, a folder above in between
            if attempt == _RACES - 1:
                raise


@is_step
def make_folder_in(folder: int, name: str) -> None:
    """Make one folder in an open one; an existing one is fine."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, dir_fd=folder)


@is_step
def link(source: Path | str, target: Path | str) -> None:
    """Give a file a second name, which must not exist.

    Raises:
        FileExistsError: the name is taken.
        OSError: `is_link_refusal(error)` tells whether this file system (or this file) has no links.
    """
    with Way(target, second=True) as (new, into), Way(source) as (old, within):
        os.link(old, new, src_dir_fd=within, dst_dir_fd=into, follow_symlinks=False)


@is_step
def rename(source: Path | str, target: Path | str, *, within: int | None = None, into: int | None = None) -> None:
    """Rename; an existing target file is replaced, at no moment absent.

    `within`, `into`: the open folders of the old and of the new name.
    """
    with Way(target, second=True) as (new, above), Way(source) as (old, below):
        os.rename(old, new, src_dir_fd=within if below is None else below, dst_dir_fd=into if above is None else above)


@is_step
def symlink(target: str, path: Path | str) -> None:
    """Make a symbolic link at `path` that says `target`."""
    with Way(path, second=True) as (name, folder):
        os.symlink(target, name, dir_fd=folder)


@is_step
def unlink(path: Path | str, *, within: int | None = None) -> None:
    """Remove a name (in the open folder `within`, if given); one that is gone already is fine."""
    with contextlib.suppress(FileNotFoundError), Way(path) as (name, folder):
        os.unlink(name, dir_fd=within if folder is None else folder)


@is_step
def remove_folder(path: Path | str, *, within: int | None = None) -> bool:
    """Remove an empty folder (in the open folder `within`, if given); False if it is not empty. Gone is fine."""
    try:
        with Way(path) as (name, folder):
            os.rmdir(name, dir_fd=within if folder is None else folder)
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def _open_up(name: Path | str, within: int | None) -> None:
    """Let the owner remove what is in a folder: those of views are read-only. Follows no link."""
    flags = os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_DIRECTORY", 0) | NO_FOLLOW
    with contextlib.suppress(OSError):
        try:
            fd = os.open(name, flags, dir_fd=within)
        except PermissionError:
            os.chmod(name, 0o700, dir_fd=within)
            fd = os.open(name, flags, dir_fd=within)
        try:
            if (mode := stat.S_IMODE(os.fstat(fd).st_mode)) & 0o700 != 0o700:
                os.fchmod(fd, mode | 0o700)
            with os.scandir(fd) as entries:
                below = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
            for one in below:
                _open_up(one, fd)
        finally:
            os.close(fd)


@is_step
def remove_tree(path: Path) -> None:
    """Remove a folder of the store with all that is in it; one that is gone already is fine.

    Raises:
        OSError: something in it is another user's.
    """

    def allow(function: Callable[[str], object], name: str, error: BaseException) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    with contextlib.suppress(FileNotFoundError), Way(path) as (name, folder):
        if not stat.S_ISDIR(
            os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
        ):  # somebody put it in its place
            os.unlink(name, dir_fd=folder)
            return
        _open_up(name, folder)
        if sys.version_info >= (3, 12):
            shutil.rmtree(name, dir_fd=folder, onexc=allow)
        else:
            shutil.rmtree(name, dir_fd=folder, onerror=lambda function, name, exc: allow(function, name, exc[1]))


@is_step
def change_mode(path: Path, mode: int) -> None:
    """Change the permissions of a folder or file; never through a link."""
    with Way(path) as (name, folder):
        if not stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            os.chmod(name, mode, dir_fd=folder)


@is_step
def give_to_group(path: Path, group: int, mode: int) -> None:
    """Let a file, folder or link belong to a group, and give it (but no link) its permissions."""
    os.chown(path, -1, group, follow_symlinks=False)
    if not path.is_symlink():
        path.chmod(mode)  # after the change of its group, which takes setgid away


@is_step
def set_time(path: Path, mtime_ns: int) -> None:
    """Set a file's modification time."""
    with Way(path) as (name, folder):
        os.utime(name, ns=(mtime_ns, mtime_ns), dir_fd=folder, follow_symlinks=False)


@is_step
def touch(path: Path) -> None:
    """Set a file's modification time to the disk's own present: on a network file system, the server's."""
    with Way(path) as (name, folder):
        os.utime(name, dir_fd=folder, follow_symlinks=False)


@is_step
def sync_folder(path: Path) -> None:
    """Return when the names in a folder will survive a power cut."""
    with Way(path) as (name, folder):
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_DIRECTORY", 0), dir_fd=folder)
    try:
        os.fsync(fd)
    except OSError as error:  # some network file systems cannot sync a folder, and need not
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(fd)


def sync_names(folder: Path, root: Path) -> None:
    """Return when the names in a folder, and in those above it up to `root`, will survive a power cut."""
    for one in (folder, *folder.parents):
        sync_folder(one)
        if one == root:
            return
