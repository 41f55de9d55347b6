"""What a folder's disk can do, found out by trying it in a temporary folder, which is removed again."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cas.index import disk
from cas.index.locks import Claim, is_abandoned

_NETWORK = (
    "nfs",
    "cifs",
    "smb",
    "lustre",
    "gpfs",
    "ceph",
    "beegfs",
    "gluster",
    "afs",
    "9p",
    "fuse",
    "pvfs",
    "orangefs",
)


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a disk has and can do; None where it could not be tried."""

    folder: Path  # where it was tried
    file_system: str | None  # as the mount table names it
    network: bool  # FUSE counts as network: what is behind it cannot be told
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
        tried = (_try(_locks, scratch), _try(_hard_links, scratch), _try(_reflinks, scratch))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return Abilities(folder, kind, is_network(kind), space.free, space.total, True, *tried)


def file_system(folder: Path) -> str | None:
    """Name the file system that a folder lies on; None where the system does not tell."""
    try:
        table = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return None
    return mounted_type(table, os.path.realpath(folder))


def mounted_type(table: str, path: str) -> str | None:
    """Return the type of the mount that holds a path, from the text of Linux' `mountinfo` (man 5 proc)."""
    best, found = -1, None
    for line in table.splitlines():
        before, dash, after = line.partition(" - ")
        fields = before.split(" ")
        if not dash or len(fields) < 5:
            continue
        point = _unescape(fields[4])
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= best:  # a later mount on the same point hides the earlier one
            best, found = len(point), after.split(" ")[0]
    return found


def _unescape(text: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text


def is_network(kind: str | None) -> bool:
    """Whether a type of file system is one whose bytes lie on another host."""
    return kind is not None and kind.startswith(_NETWORK)


def _try(ability: Callable[[Path], bool], scratch: Path) -> bool | None:
    try:
        return ability(scratch)
    except OSError:  # a full disk
        return None


def _locks(scratch: Path) -> bool:
    """Whether a lock that somebody holds keeps others out (a silent no-op does not)."""
    held = Claim(scratch / "lock")
    try:
        if is_abandoned(scratch / "lock"):
            return False
    finally:
        held.release()
    return is_abandoned(scratch / "lock")


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
