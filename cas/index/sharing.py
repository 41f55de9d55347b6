"""Making a group's store of a private one, and a private one of a group's (F40)."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from cas.errors import NotAllowedError, UsageError
from cas.index import disk
from cas.index.digest import Digest
from cas.index.layout import GROUPS_HOME, make_groups
from cas.index.store import Store, explained, forget_store


def share_store(store: Store, group: str | None = None) -> str:
    """Let all members of a group use a store; return the group's name.

    Everything in it gets the group and the modes of F40; the home itself comes last, so that nobody enters before.
    A call that was killed goes on when it is made again.

    Args:
        store: this user's own.
        group: its name or number; default: the group that the home has.

    Raises:
        UsageError: there is no such group.
        NotAllowedError: the store is another user's, or this user is not in the group.
    """
    store.about.require_writable("it cannot be shared")
    _require_owner(store.home)
    number = _number_of(group) if group is not None else store.home.stat().st_gid
    with explained(f"cannot give {store.home} to the group {group or number}"):
        store.close()
        for name in disk.names(store.layout.views):  # of one user; in a group's store everybody has their own
            if _is_manifest(name):
                store.drop_view(Digest(name))
        for path in store.home.glob("index-*"):
            disk.unlink(path)
        _give(store.home, number)
        make_groups(store.home)
    forget_store(store)
    return _name_of(number)


def unshare_store(store: Store) -> None:
    """Keep everybody else out of a store.

    Raises:
        NotAllowedError: it is another user's.
    """
    _require_owner(store.home)
    with explained(f"cannot close {store.home} to others"):
        disk.change_mode(store.home, 0o700)
    disk.unshare(store.home)
    forget_store(store)


def _require_owner(home: Path) -> None:
    found = home.stat()
    if not disk.is_ours(found) and os.geteuid() != 0:
        raise NotAllowedError(f"the store {home} is another user's, who alone can say who uses it")


def _give(home: Path, group: int) -> None:
    for folder, folders, names in os.walk(home, topdown=False):
        for name in (*names, *folders):
            path = Path(folder, name)
            disk.give_to_group(path, group, _mode_for(path, home))
    disk.give_to_group(home, group, stat.S_IMODE(home.stat().st_mode))


def _mode_for(path: Path, home: Path) -> int:
    found = path.lstat()
    mode = stat.S_IMODE(found.st_mode)
    if not stat.S_ISDIR(found.st_mode):
        return mode | (0o060 if path.parent == home / "locks" else 0o040)
    if path == home / "views":
        return GROUPS_HOME
    inside = path.relative_to(home).parts
    return 0o2750 if inside[0] == "ingest" and len(inside) == 3 else 0o2770


def _is_manifest(name: str) -> bool:
    return len(name) == 64 and set(name) <= set("0123456789abcdef")


def _number_of(group: str) -> int:
    import grp

    try:
        return int(group) if group.isascii() and group.isdigit() else grp.getgrnam(group).gr_gid
    except KeyError as error:
        raise UsageError(f"there is no group {group!r:.80} here") from error


def _name_of(group: int) -> str:
    import grp

    try:
        return grp.getgrgid(group).gr_name
    except KeyError:
        return str(group)
