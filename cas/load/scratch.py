"""The folder beside a target in which it is built, and what dead processes leave of such folders."""

from __future__ import annotations

import logging
import os
import re
import secrets
from pathlib import Path

from cas.index import disk
from cas.index.locks import Claim, is_abandoned

log = logging.getLogger("cas.load")

_NAME = 200  # bytes of the target's name that the folder beside it repeats: with the rest it stays below 255
_BESIDE = ".cas-download"  # ends the name of a store that a download past the store keeps until it is done
_PART = re.compile(r"\.[0-9a-f]{16}\.part\Z")
_UNCLAIMED = 3600  # seconds after which a folder beside a target that nobody has claimed is a dead process's


class Scratch:
    """A folder of ours beside (or in) a target: what is built lies in `tree` until it is renamed."""

    def __init__(self, parent: Path, name: str) -> None:
        self.folder = parent / f"{prefix_of(name)}{secrets.token_hex(8)}.part"
        self.tree = self.folder / "tree"
        self._numbers = 0
        disk.make_folder(self.folder)
        try:
            self._claim = Claim(self.folder / "claim")
            disk.make_folder(self.tree)
        except BaseException:  # a full disk
            disk.remove_tree(self.folder)
            raise

    def path_for(self, path: str) -> Path:
        """Where a file is built for a target that appears as a whole."""
        return self.tree / path

    def path_aside(self) -> Path:
        """A name for one file that is not part of what is built, yet."""
        self._numbers += 1
        return self.folder / str(self._numbers)

    def new_path(self) -> Path:
        """A name for one file that is renamed on its own."""
        self._numbers += 1
        return self.tree / str(self._numbers)

    def close(self) -> None:
        """Remove it, and what is left in it."""
        self._claim.release()
        disk.remove_tree(self.folder)


def prefix_of(name: str) -> str:
    """Return how the names of the folders beside a target of this name begin."""
    stem = name.encode("utf-8", "surrogateescape")[:_NAME].decode("utf-8", "ignore")
    return f".{stem}."


def beside(target: Path) -> Path:
    """Return where a download past the store puts a target together: on its disk, and found again after a kill."""
    name = f"{prefix_of(target.name)[:-1]}{_BESIDE}"
    if (target.parent / name).is_dir():  # of one that was killed, perhaps when the target had appeared
        return target.parent / name
    return (target if target.is_dir() else target.parent) / name


def is_part(name: str) -> bool:
    """Whether a name is that of a folder beside some target."""
    return name.startswith(".") and (name.endswith(_BESIDE) or _PART.search(name) is not None)


def is_part_of(name: str, prefix: str) -> bool:
    """Whether a name is one that `Scratch` gives, and no user's: what is deleted is decided by it."""
    return name.startswith(prefix) and _PART.match(name, len(prefix) - 1) is not None


def sweep(parent: Path, prefix: str) -> None:
    """Remove what dead processes left of the same target."""
    try:
        names = os.listdir(parent)
    except OSError:
        return
    for name in names:
        if is_part_of(name, prefix) and _is_left(parent / name):
            log.info("removing %s, which a dead process left", parent / name)
            disk.remove_tree(parent / name)


def _is_left(folder: Path) -> bool:
    claim = folder / "claim"
    if claim.exists():
        return is_abandoned(claim)
    try:
        return disk.now() - folder.stat().st_mtime > _UNCLAIMED
    except OSError:
        return False
