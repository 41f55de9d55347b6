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

from cas.index.disk.group import is_shared, make_shared
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
    os.link(source, target, follow_symlinks=False)


@is_step
def rename(source: Path | str, target: Path | str, *, within: int | None = None, into: int | None = None) -> None:
    """Rename; an existing target file is replaced, at no moment absent.

    `within`, `into`: the open folders of the old and of the new name.
    """
    os.rename(source, target, src_dir_fd=within, dst_dir_fd=into)


@is_step
def symlink(target: str, path: Path | str) -> None:
    """Make a symbolic link at `path` that says `target`."""
    os.symlink(target, path)


@is_step
def unlink(path: Path | str, *, within: int | None = None) -> None:
    """Remove a name (in the open folder `within`, if given); one that is gone already is fine."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path, dir_fd=within)


@is_step
def remove_folder(path: Path | str, *, within: int | None = None) -> bool:
    """Remove an empty folder (in the open folder `within`, if given); False if it is not empty. Gone is fine."""
    try:
        os.rmdir(path, dir_fd=within)
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def _open_up(path: Path) -> None:
    """Let the owner remove what is in a folder: those of views are read-only. Follows no link."""
    waiting = [os.fspath(path)]
    while waiting:
        folder = waiting.pop()
        with contextlib.suppress(OSError):
            if (mode := stat.S_IMODE(os.lstat(folder).st_mode)) & 0o700 != 0o700:
                os.chmod(folder, mode | 0o700)
            with os.scandir(folder) as entries:
                waiting += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]


@is_step
def remove_tree(path: Path) -> None:
    """Remove a folder of the store with all that is in it; one that is gone already is fine.

    Raises:
        OSError: something in it is another user's.
    """
    if path.is_symlink() or (path.exists() and not path.is_dir()):  # that somebody put in its place
        path.unlink(missing_ok=True)
        return
    _open_up(path)

    def allow(function: Callable[[str], object], name: str, error: BaseException) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    if sys.version_info >= (3, 12):
        shutil.rmtree(path, onexc=allow)
    else:
        shutil.rmtree(path, onerror=lambda function, name, exc: allow(function, name, exc[1]))


@is_step
def change_mode(path: Path, mode: int) -> None:
    """Change the permissions of a folder or file; never through a link."""
    if not path.is_symlink():
        path.chmod(mode)


@is_step
def give_to_group(path: Path, group: int, mode: int) -> None:
    """Let a file, folder or link belong to a group, and give it (but no link) its permissions."""
    os.chown(path, -1, group, follow_symlinks=False)
    if not path.is_symlink():
        path.chmod(mode)  # after the change of its group, which takes setgid away


@is_step
def set_time(path: Path, mtime_ns: int) -> None:
    """Set a file's modification time."""
    os.utime(path, ns=(mtime_ns, mtime_ns), follow_symlinks=False)


@is_step
def touch(path: Path) -> None:
    """Set a file's modification time to the disk's own present: on a network file system, the server's."""
    os.utime(path)


@is_step
def sync_folder(path: Path) -> None:
    """Return when the names in a folder will survive a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_DIRECTORY", 0))
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
