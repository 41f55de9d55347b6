"""What a folder's disk can do, found out by trying it in a temporary folder, which is removed again."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cas.index import disk
from cas.index.locks import work_in
from cas.index.mounts import file_system, is_network


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a disk has and can do; None where it could not be tried."""

    folder: Path  # where it was tried
    file_system: str | None  # as the mount table names it
    network: bool  # what is unknown, and FUSE, count as network: what is behind it cannot be told
    free: int  # bytes that this user may still write
    total: int
    writable: bool
    locks: bool | None
    hard_links: bool | None
    reflinks: bool | None


def probe(folder: Path) -> Abilities:
    """Find out what the disk of a folder can do; of one that does not exist, the nearest above it that does."""
    folder = folder.absolute()
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    kind = file_system(folder)
    space = shutil.disk_usage(folder)
    try:
        scratch = Path(tempfile.mkdtemp(prefix=".cas-probe-", dir=folder))
    except OSError:
        tried: tuple[bool | None, bool | None, bool | None] = (None, None, None)
        return Abilities(folder, kind, is_network(kind), space.free, space.total, False, *tried)
    try:
        tried = (_try(work_in, scratch), _try(_hard_links, scratch), _try(_reflinks, scratch))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return Abilities(folder, kind, is_network(kind), space.free, space.total, True, *tried)


def _try(ability: Callable[[Path], bool], scratch: Path) -> bool | None:
    try:
        return ability(scratch)
    except OSError:  # a full disk
        return None


def _hard_links(scratch: Path) -> bool:
    file = scratch / "file"
    file.write_bytes(b"x")
    try:
        disk.link(file, scratch / "link")
    except OSError:
        return False
    return True


def _reflinks(scratch: Path) -> bool:
    file = scratch / f"file-{secrets.token_hex(2)}"
    file.write_bytes(b"x" * (1 << 16))
    try:
        return disk.reflink(file, scratch / "reflink")
    except OSError:
        return False
