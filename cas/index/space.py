"""Room on disks: what a piece of work will write and where, what is free there, and what is missing.

Looked at before gigabytes are written. What counts is what the file system says is free, which knows the quotas of
projects (xfs, ext4) and many servers' but no user's: quotactl(2) knows those of local disks alone, by their device, and
btrfs tells root. A quota that is not seen is found out by writing; then the work ends with the same error, and what is
whole is kept.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cas.errors import CasError, NoSpaceError
from cas.index import disk
from cas.index.layout import Layout
from cas.index.store import Store
from cas.index.twin import BeginTwin


@dataclass(frozen=True, slots=True)
class Need:
    """What a piece of work will write below a folder, at least: bytes, and names (each takes an inode)."""

    folder: Path
    size: int
    names: int = 0


@dataclass(frozen=True, slots=True)
class Room:
    """What this user may still write on the disk of a folder; None where the system does not tell."""

    device: int
    size: int | None  # bytes
    names: int | None


@dataclass(frozen=True, slots=True)
class Shortage:
    """A disk on which some work has no room: what it needs there, and what is free."""

    folders: tuple[Path, ...]
    needed: int
    free: int | None
    names_needed: int
    names_free: int | None

    @property
    def missing(self) -> int:
        """The bytes that are missing."""
        return max(self.needed - self.free, 0) if self.free is not None else 0

    @property
    def names_missing(self) -> int:
        """The names (inodes) that are missing."""
        return max(self.names_needed - self.names_free, 0) if self.names_free is not None else 0

    def __str__(self) -> str:
        where = " and ".join(map(str, self.folders))
        if self.missing:
            free = 0 if self.free is None else self.free
            need = f"{shown(self.needed)} will be written to {where}, and {shown(free)} are free"
            return f"{need}: {shown(self.missing)} are missing"
        return f"{self.names_needed} files will be made in {where}, and the disk has inodes for {self.names_free}"


def shown(size: int) -> str:
    """Return a number of bytes for people."""
    amount = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1000:
            return f"{size} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def room(folder: Path) -> Room:
    """Look at the disk of a folder; of one that does not exist, at the nearest above it that does."""
    folder = existing(folder)
    found = os.statvfs(folder)
    is_root = hasattr(os, "geteuid") and os.geteuid() == 0  # may write what is reserved
    blocks, names = (found.f_bfree, found.f_ffree) if is_root else (found.f_bavail, found.f_favail)
    return Room(
        device=folder.stat().st_dev,
        size=blocks * found.f_frsize if found.f_blocks else None,  # some FUSE file systems say 0 of 0
        names=names if found.f_files else None,  # btrfs makes inodes as they are needed
    )


def existing(folder: Path) -> Path:
    """Return a folder, or the nearest above it that exists."""
    folder = folder.absolute()
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return folder


def shortages(needs: Iterable[Need], look: Callable[[Path], Room] = room) -> list[Shortage]:
    """Say which disks have no room for all that is needed of them; needs of one disk are added up."""
    by_disk: dict[int, tuple[Room, list[Need]]] = {}
    for need in needs:
        found = look(need.folder)
        by_disk.setdefault(found.device, (found, []))[1].append(need)
    short = []
    for found, wanted in by_disk.values():
        folders = tuple(dict.fromkeys(need.folder for need in wanted if need.size or need.names))
        size, names = sum(need.size for need in wanted), sum(need.names for need in wanted)
        shortage = Shortage(folders, size, found.size, names, found.names)
        if shortage.missing or shortage.names_missing:
            short.append(shortage)
    return short


@dataclass(frozen=True, slots=True)
class Destination:
    """A folder of the user's that files are placed in besides.

    `may_share`: as reflinks, where the disk can. `begin`: makes the user's copy of a large file while it is fetched; it
    becomes the file itself, so both take the room of one.
    """

    folder: Path
    may_share: bool
    begin: BeginTwin | None = None

    def need(self, files: Iterable[tuple[str, int]]) -> Need:
        """Return what placing files (relative path, bytes) will write; what seems to be there does not count."""
        missing = [size for path, size in files if not _is_there(self.folder / path, size)]
        return Need(self.folder, sum(missing), len(missing))


def _is_there(path: Path, size: int) -> bool:
    try:
        return path.lstat().st_size == size
    except (OSError, ValueError):
        return False


def require_room(
    store: Store, incoming: Need, doing: str, *, destination: Destination | None = None, placed: Need | None = None
) -> None:
    """Refuse work that has no room, before it begins.

    Args:
        store: whose `prune` could make room.
        incoming: what is written into the store (or straight into a folder).
        doing: what cannot be done, for the message.
        destination: where files are placed besides.
        placed: what that writes, if it cannot share bytes with the store.

    Raises:
        NoSpaceError: bytes or inodes are missing; nothing was written.
    """
    short = shortages([incoming] if placed is None else [incoming, placed])
    if short and placed is not None and destination is not None and destination.may_share:  # noqa: SIM102
        if can_share(store.home, placed.folder):
            short = shortages([incoming, Need(placed.folder, 0, placed.names)])
    if short:
        raise NoSpaceError(f"{doing}: {'; '.join(map(str, short))}{_advice(store, short)}")


def _advice(store: Store, short: Sequence[Shortage]) -> str:
    """What can be done: what `prune` could free, if that lies on a disk that is short."""
    on_store = False
    with contextlib.suppress(OSError):
        device = existing(store.home).stat().st_dev
        on_store = any(existing(folder).stat().st_dev == device for one in short for folder in one.folders)
    freed = reclaimable(store) if on_store else 0
    could = f"`cas prune` could free up to {shown(freed)}" if freed else "make room"
    return f"; {could}, or set CAS_CHECK_SPACE=off if you know better"


def reclaimable(store: Store) -> int:
    """Return how many bytes a prune of all that it may take would give back to the disk."""
    from cas.index.prune import Rules, plan_prune  # only where something does not fit
    from cas.index.stock import take_stock

    return plan_prune(take_stock(store, lambda uuid: _is_ours(store, uuid)), Rules(max_size=0, at_once=True)).frees


def _is_ours(store: Store, uuid: str) -> bool:
    """Whether a checkpoint was added to a store, as far as its refs say: it may lie nowhere else."""
    return all(name == "local" or name.startswith("imported:") for name in store.refs.registries(uuid))


def left_over(layout: Layout, key: str) -> int:
    """Return how many bytes of disk the interrupted transfers of one piece of work take: resuming takes them over."""
    total = 0
    folder = layout.ingest(key)
    for name in disk.names(folder):
        for file in disk.names(folder / name):
            if file.endswith(".data"):
                with contextlib.suppress(OSError):
                    total += (folder / name / file).stat().st_blocks * 512
    return total


def can_share(home: Path, folder: Path) -> bool:
    """Whether files of the store can share bytes with files in another folder: found out by trying."""
    target = existing(folder) / f".cas-probe-{secrets.token_hex(8)}"
    try:
        return disk.reflink(home / "format.json", target)
    except (OSError, CasError):  # not ours to write
        return False
    finally:
        with contextlib.suppress(OSError):
            disk.unlink(target)
