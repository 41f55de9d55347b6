"""Staging: the folders `ingest/<key>/<random>/`, in each of which one process does one piece of work."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self

from cas.index import disk
from cas.index.digest import Digest
from cas.index.ingest import Follower, Ingest, Left, Publisher
from cas.index.locks import Claim, is_abandoned

log = logging.getLogger("cas.index")

PARTS = "parts"  # the file that names the folders of `ingest/` in which a piece of work is done
_MOST_PARTS = 64 << 20  # bytes of it that are read
_NAME = re.compile(r"[0-9a-f]{16}")


class Staging:
    """One process's folder of partial files for one piece of work; removed at the end, left by a kill."""

    def __init__(self, folder: Path, publisher: Publisher, *, leases: bool = False) -> None:
        self._publisher = publisher
        self._leases = leases  # whether locks tell nothing here: whose process is dead is seen by its age alone
        self._numbers = itertools.count()
        self.folder = folder / secrets.token_hex(8)
        disk.make_folder(self.folder, 0o700)
        self._claim = Claim(self.folder / "claim")

    def ingest(
        self,
        size: int | None = None,
        *,
        source: str | None = None,
        followers: tuple[Follower, ...] = (),
        resume: bool = True,
    ) -> Ingest:
        """Start one file. With a `source`, its ranges are journaled, and with `resume` those of others taken over."""
        path = self.folder / f"{next(self._numbers)}.data"
        left = self._left() if resume else ()
        return Ingest(path, self._publisher, size=size, source=source, followers=followers, left=left)

    def _left(self) -> Iterator[Left]:
        """Yield where interrupted transfers of the same may lie; those in our own folder were left by this process."""
        yield Left(self.folder, is_dead=True)
        for folder in _siblings(self.folder):
            yield Left(folder, is_dead=is_abandoned(folder / "claim"))

    def put(self, data: bytes) -> Digest:
        """Store bytes in memory as a blob: what a small file needs, and no more."""
        digest = Digest.of(data)
        path = self.folder / f"{next(self._numbers)}.data"
        fd = disk.create(path, 0o444)
        try:
            disk.write(fd, data)
            self._publisher.publish(path, fd, digest, durable=False)
        finally:
            os.close(fd)
            disk.unlink(path)
        return digest

    def name_parts(self, folders: Iterable[Path]) -> None:
        """Say in which other folders of `ingest/` this work is done, for those who wait for its progress."""
        fd = disk.create(self.folder / PARTS)
        try:
            disk.write(fd, "".join(f"{folder.name}\n" for folder in folders).encode())
        finally:
            os.close(fd)

    def close(self) -> None:
        """Remove the folder, and those of dead processes that worked on the same."""
        self._claim.release()
        dead = [other for other in _siblings(self.folder) if is_abandoned(other / "claim", by_age=self._leases)]
        for folder in (self.folder, *dead):
            try:
                disk.remove_tree(folder)
            except OSError as error:  # a file that is open stays, on NFS, under another name: it goes the next time
                log.info("%s is not removed now: %s", folder, error)
        with contextlib.suppress(OSError):
            self.folder.parent.rmdir()

    def abandon(self) -> None:
        """Leave the folder for whoever resumes the work, if anything in it can be resumed."""
        self._claim.release()
        if not any(name.endswith(".journal") for name in disk.names(self.folder)):
            with contextlib.suppress(OSError):  # a thread that comes too late
                disk.remove_tree(self.folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()


def activity(folder: Path) -> object:
    """What changes while somebody works in the staging folders of a key, or in those that they name as their parts."""
    parts: set[str] = set()
    for name in disk.names(folder):
        with contextlib.suppress(OSError, ValueError):
            parts.update(disk.read_file(folder / name / PARTS, _MOST_PARTS).decode("ascii").split())
    found = _files(folder)
    for name in disk.names(folder.parent) if parts else ():
        if name in parts:
            found += _files(folder.parent / name)
    return found


def _files(folder: Path) -> list[tuple[str, int, int]]:
    found = []
    for inner in disk.names(folder):  # whose own time tells of small files that have come and gone
        for name in (".", *disk.names(folder / inner)):
            with contextlib.suppress(OSError):
                stat = (folder / inner / name).lstat()
                found.append((f"{inner}/{name}", stat.st_size, stat.st_mtime_ns))
    return found


def _siblings(folder: Path) -> Iterator[Path]:
    """Yield the folders that this user's other processes have for the same piece of work.

    Not those of other users: what they say of their bytes proves nothing, and they are theirs to remove. And nothing
    that is not named as `Staging` names its folders: what is removed is decided by it.
    """
    for name in disk.names(folder.parent):
        if name != folder.name and _NAME.fullmatch(name):
            with contextlib.suppress(OSError):
                found = (folder.parent / name).lstat()
                if stat.S_ISDIR(found.st_mode) and disk.is_ours(found):
                    yield folder.parent / name
