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

from cas.errors import ContentError

_PRIVATE_TO_WRITERS = 0o750  # of a group's store: a folder that others may look into, and nothing more

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


def make_shared(path: Path, mode: int) -> None:
    """Make a folder of a group's home. It appears with its mode: nobody ever meets one that is still closed."""
    try:
        found = path.stat()
    except FileNotFoundError:
        found = None
    if found is not None:
        if not stat.S_ISDIR(found.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), os.fspath(path))
        return
    if is_shared(path.parent):
        make_shared(path.parent, 0o777)
    wanted = 0o770 if mode == 0o777 else (mode | _PRIVATE_TO_WRITERS) & 0o777
    others = path.parent.stat().st_mode & (0o005 if wanted & 0o005 or mode == 0o777 else 0)
    made = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    made.mkdir(0o700)
    try:
        made.chmod(wanted | others | stat.S_ISGID)
        made.rename(path)
    except OSError as error:
        with contextlib.suppress(FileNotFoundError):  # somebody removed the folder above in between
            made.rmdir()
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
                    raise ContentError(f"{entry.path} is a symbolic link, and a store has none there: remove it first")
