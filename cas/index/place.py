"""Folders of this user's, outside of any home, for what a home cannot hold: the index of a home on a network file
system or of a group's, what is noted of a home that we may only read, and its views.

Nothing in them is needed: they can be deleted at any time. Nobody else may be able to put anything there.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import stat
import tempfile
import time
from pathlib import Path

from cas.config import cache_folder
from cas.index import disk
from cas.index.digest import Digest
from cas.index.mounts import file_system, is_network

log = logging.getLogger("cas.index")

UNUSED = 14 * 86_400.0  # seconds after which a view in a temporary folder, of whatever home, is taken for forgotten
USED = 86_400.0  # seconds between two notes that one is used


def name_of(store: str, home: Path) -> str:
    """Name the folder of one home: another host's home of the same path, and a copy of a store, have others."""
    return f"{store[:16]}-{Digest.of(os.fsencode(home)).hex[:16]}"


def kept(store: str, home: Path) -> Path | None:
    """Return where to keep what is worth keeping of a home, made or not: in the user's cache folder, if that is on a
    disk of this host, else in a temporary folder. None if there is no such place.
    """
    cache = cache_folder()
    above = next((folder for folder in (cache, *cache.parents) if os.path.exists(folder)), None)  # noqa: PTH110 - no error
    if above is not None and disk.is_writable(above) and not is_network(file_system(above)):
        return cache / "stores" / name_of(store, home)
    return temporary(store, home)


def temporary(store: str, home: Path) -> Path | None:
    """Return a temporary folder for what concerns a home, that is this user's alone; None if none can be made."""
    above = Path(os.path.realpath(tempfile.gettempdir()))
    prefix = f"cas-{os.geteuid() if hasattr(os, 'geteuid') else os.getpid()}"
    names = [prefix, *(name for name in disk.names(above) if name.startswith(f"{prefix}."))]
    try:
        for name in names:
            if is_private(above / name, make=name == prefix):
                return above / name / name_of(store, home)
        log.warning("%s is another user's, or others may write there; another folder is used", above / prefix)
        return Path(tempfile.mkdtemp(prefix=f"{prefix}.", dir=above)) / name_of(store, home)
    except OSError as error:
        log.info("no temporary folder in %s: %s", above, error)
        return None


def is_private(folder: Path, *, make: bool = False, mode: int = 0o700) -> bool:
    """Whether a folder is a real one, this user's, and nobody else can write to it; `make`: make it if it is absent."""
    try:
        if make and not os.path.lexists(folder):
            disk.make_folder(folder, mode)
        found = folder.lstat()
    except FileExistsError:
        return False
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(found.st_mode) and disk.is_ours(found) and not found.st_mode & 0o022


# --- views in a temporary folder: nobody's lease protects them, so their age decides -------------------------------


def note_use(view: Path) -> None:
    """Note that a view in a temporary folder is used, now and then."""
    stamp = view / "stamp.json"
    with contextlib.suppress(OSError):
        if time.time() - stamp.stat().st_mtime > USED:
            disk.touch(stamp)


def sweep(views: Path) -> None:
    """Remove views that were forgotten: of this home, and of every other that has some beside it."""
    for name in disk.names(views.parent.parent):
        beside = views.parent.parent / name / "views"
        for one in disk.names(beside):
            with contextlib.suppress(OSError):
                if time.time() - (beside / one / "stamp.json").stat().st_mtime > UNUSED:
                    _remove(beside, one)


def _remove(views: Path, name: str) -> None:
    """Remove a view: it loses its name first, so that nobody is given a part of it."""
    held = views / ".aside" / f"{name}.{secrets.token_hex(4)}"
    disk.make_folder(held.parent, 0o700)
    disk.rename(views / name, held)
    disk.remove_tree(held)
