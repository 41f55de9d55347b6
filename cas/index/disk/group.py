"""Whose is what is made in a group's home: every folder is the group's, and every file can be read by it.

Whatever the umask of who makes them; and no folder of such a home may be a link, which leads elsewhere.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from cas.errors import ContentError

_PRIVATE_TO_WRITERS = 0o750  # of a group's store: a folder that others may look into, and nothing more

_LINK = "is a symbolic link, and a store has none there: remove it first"
_FOLDER = os.O_CLOEXEC | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_PATH", 0)

_shared: tuple[str, ...] = ()


def share(home: Path) -> None:
    """Let everything that is made below a home from now on belong to the home's group."""
    global _shared
    if not is_shared(home / "x"):
        _shared = (*_shared, f"{os.fspath(home)}/")


def unshare(home: Path) -> None:
    """Let what is made below a home from now on be as the umask says."""
    global _shared
    _shared = tuple(one for one in _shared if one != f"{os.fspath(home)}/")


def is_shared(path: Path | str) -> bool:
    """Whether a path lies in a home that is a group's."""
    return bool(_shared) and os.fspath(path).startswith(_shared)


class Way:
    """The way to a name: in a group's home, the open folder that it lies in, reached through no symbolic link.

    A member may put a link in the place of any folder there, at any moment; who follows it writes elsewhere.
    Everywhere else, the path itself. ::

        with Way(path) as (name, folder):
            os.unlink(name, dir_fd=folder)

    Raises:
        PermissionError: a folder on the way is a link.
    """

    __slots__ = ("_attribute", "_fd", "_name", "_path")

    def __init__(self, path: Path | str, *, second: bool = False) -> None:
        self._path = path
        self._fd: int | None = None
        self._name = ""
        self._attribute = "filename2" if second else "filename"  # of errors, which are to name the whole path

    def __enter__(self) -> tuple[Path | str, int | None]:
        if not is_shared(self._path):
            return self._path, None
        text = os.fspath(self._path)
        home = next(one for one in _shared if text.startswith(one))
        *above, self._name = text[len(home) :].rstrip("/").split("/")
        self._fd = os.open(home, _FOLDER & ~getattr(os, "O_NOFOLLOW", 0))
        try:
            for depth, one in enumerate(above, 1):
                self._enter(one, f"{home}{'/'.join(above[:depth])}")
        except BaseException:
            os.close(self._fd)
            raise
        return self._name, self._fd

    def _enter(self, name: str, path: str) -> None:
        assert self._fd is not None, "the folder above is open"
        try:
            below = os.open(name, _FOLDER, dir_fd=self._fd)
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP) and Path(path).is_symlink():
                raise PermissionError(errno.EACCES, _LINK, path) from None
            error.filename = path
            raise
        os.close(self._fd)
        self._fd = below

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._fd is None:
            return
        os.close(self._fd)
        if isinstance(error, OSError) and getattr(error, self._attribute, None) == self._name:
            setattr(error, self._attribute, os.fspath(self._path))


def make_shared(path: Path, mode: int) -> None:
    """Make a folder of a group's home. It appears with its mode: nobody ever meets one that is still closed."""
    with contextlib.suppress(FileNotFoundError), Way(path) as (name, folder):
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if stat.S_ISLNK(found.st_mode):
            raise PermissionError(errno.EACCES, _LINK, os.fspath(path))
        if not stat.S_ISDIR(found.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), os.fspath(path))
        return
    if is_shared(path.parent):
        make_shared(path.parent, 0o777)
    with Way(path) as (name, folder):
        assert folder is not None, "it is a group's"
        wanted = 0o770 if mode == 0o777 else (mode | _PRIVATE_TO_WRITERS) & 0o777
        others = os.stat(folder).st_mode & (0o005 if wanted & 0o005 or mode == 0o777 else 0)
        made = f".{name}.{secrets.token_hex(4)}"
        os.mkdir(made, 0o700, dir_fd=folder)
        try:
            os.chmod(made, wanted | others | stat.S_ISGID, dir_fd=folder)
            os.rename(made, name, src_dir_fd=folder, dst_dir_fd=folder)
        except OSError as error:
            with contextlib.suppress(FileNotFoundError):  # somebody removed the folder above in between
                os.rmdir(made, dir_fd=folder)
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # somebody else was quicker
                raise


def show_to_group(fd: int, path: Path | str, mode: int) -> None:
    """Let the group read an open file of its home, if its owner may."""
    if is_shared(path):
        with contextlib.suppress(PermissionError):  # a colleague's
            os.fchmod(fd, mode | (mode & 0o400) >> 3)


def refuse_links(home: Path, inside: Iterable[str]) -> None:
    """Look for symbolic links where the folders of a group's store lie, and in these folders.

    Raises:
        ContentError: there is one: whoever put it there can make others write and delete somewhere else.
    """
    for place in (home, *(home / name for name in inside)):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(place) as entries:
            for entry in entries:
                if entry.is_symlink():
                    raise ContentError(f"{entry.path} {_LINK}")
