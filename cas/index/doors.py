"""The door of a view: who is inside, closing it, and taking away what is behind it (F32).

A view is removed while others may begin to use it, and may take its name at any moment. So all is done through a
descriptor of the view's folder: what another process has put under the same name since is never touched.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from cas.index import disk, stamps
from cas.index.paths import RelativePath

_FLAGS = os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0)
_ATTEMPTS = 100  # to close a door while others enter


class Door:
    """The door of one view, as it was when this was made."""

    def __init__(self, view: Path) -> None:
        self._view = view
        self._fd = os.open(view, _FLAGS)

    def inside(self) -> list[str] | None:
        """Return the leases of those who are inside; None if the door is closed."""
        try:
            users = os.open("users", _FLAGS, dir_fd=self._fd)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            return sorted(os.listdir(users))
        finally:
            os.close(users)

    def close(self, stays: Callable[[str], bool] = lambda id: False) -> bool:
        """Close the door unless somebody inside stays; those who do not are put out. Return whether it is closed.

        `stays` is asked at each moment anew: whoever enters last may not have had a lease a moment ago.
        """
        for _ in range(_ATTEMPTS):
            found = self.inside()
            if found is None:
                return True
            if any(stays(id) for id in found):
                return False
            for id in found:
                disk.unlink(f"users/{id}", within=self._fd)
            if disk.remove_folder("users", within=self._fd):
                return True
        return False

    def doubt(self, wrong: Iterable[str]) -> None:
        """Let nobody believe what is behind the door, and take wrong files away; who is inside keeps the others."""
        disk.unlink(stamps.NAME, within=self._fd)
        for path in map(RelativePath, wrong):
            above, _, name = f"tree/{path}".rpartition("/")
            with contextlib.suppress(FileNotFoundError, NotADirectoryError), self._writable(above) as folder:
                disk.unlink(name, within=folder)

    @contextlib.contextmanager
    def _writable(self, path: str) -> Iterator[int]:
        folder = os.open(path, _FLAGS, dir_fd=self._fd)
        try:
            disk.set_mode(folder, 0o755)
            try:
                yield folder
            finally:
                disk.set_mode(folder, 0o555)
        finally:
            os.close(folder)

    def empty(self, held: Path) -> None:
        """Take what is behind a closed door away: to `held`, a new name in `aside/`, and off the disk."""
        disk.make_folder(held.parent)
        for name in sorted(os.listdir(self._fd)):
            with contextlib.suppress(FileNotFoundError):  # somebody else empties it too
                self._take(name, held)
        with contextlib.suppress(OSError):  # another view has the name now
            disk.remove_folder(self._view)

    def _take(self, name: str, held: Path) -> None:
        try:
            folder = os.open(name, _FLAGS, dir_fd=self._fd)
        except OSError:
            disk.unlink(name, within=self._fd)  # the stamp
            return
        try:
            with contextlib.suppress(PermissionError):  # another user's: then the next call says so
                disk.set_mode(folder, 0o755)  # a folder that is read-only cannot be moved
        finally:
            os.close(folder)
        disk.rename(name, held, within=self._fd)
        disk.remove_tree(held)


@contextlib.contextmanager
def door(view: Path) -> Iterator[Door | None]:
    """Open the door of a view; None if there is no view."""
    try:
        found = Door(view)
    except (FileNotFoundError, NotADirectoryError):
        yield None
        return
    try:
        yield found
    finally:
        os.close(found._fd)
