"""Stamps: what a view is made of, and what the stat of its files said when it was made.

A view is believed as long as every file's stat is as in its stamp. That needs neither SQLite nor a lock nor a hash: one
look at each file, and one at the blob that it is a link to.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from operator import attrgetter, eq
from pathlib import Path
from typing import Any, NamedTuple, Self

from cas.index import disk
from cas.index.digest import Digest
from cas.index.disk import Signature
from cas.index.manifest import MAX_BYTES
from cas.index.owners import Owners

NAME = "stamp.json"
_FORMAT = 2
_LINKS = ("link", "symlink")  # what leads to a blob of this home
_inode = attrgetter("st_ino")


class StampedFiles(NamedTuple):
    """What a stamp says of files, one list for each thing: so ten thousand are read, and compared, with few steps."""

    paths: list[str]
    kinds: list[str]  # link, symlink, copy, or layer (a symlink out of the home)
    digests: list[str]  # 64 hex digits
    sizes: list[int]
    mtimes: list[int]  # ns
    inodes: list[int]
    changed: list[int]  # see `Signature`

    @classmethod
    def none(cls) -> Self:
        """Return lists of no files, to be added to."""
        return cls([], [], [], [], [], [], [])

    def add(self, path: str, kind: str, digest: Digest, signature: Signature) -> None:
        """Say of one more file what its stat is."""
        self.paths.append(path)
        self.kinds.append(kind)
        self.digests.append(digest.hex)
        self.sizes.append(signature.size)
        self.mtimes.append(signature.mtime_ns)
        self.inodes.append(signature.inode)
        self.changed.append(signature.changed)

    def signatures(self) -> Iterator[Signature]:
        """Yield what the stat of each file said."""
        return map(Signature, self.sizes, self.mtimes, self.inodes, self.changed)

    def rows(self) -> Iterator[tuple[str, str, str, Signature]]:
        """Yield of each file its path, its kind, its digest and its signature."""
        return zip(self.paths, self.kinds, self.digests, self.signatures(), strict=True)

    def linked(self) -> Iterator[tuple[str, Signature]]:
        """Yield of each file that is no copy its digest and its signature."""
        for _, kind, digest, signature in self.rows():
            if kind != "copy":
                yield digest, signature

    def copies(self) -> Iterator[tuple[str, str]]:
        """Yield of each copy its path and its digest."""
        for path, kind, digest in zip(*self[:3], strict=True):
            if kind == "copy":
                yield path, digest


@dataclass(frozen=True, slots=True)
class Stamp:
    """What `stamp.json` of a view says."""

    boot: str | None
    sealed: bool  # the linked blobs were, so their signatures count in later boots too
    folders: dict[str, int]  # relative path -> mtime_ns: tells of names that were added
    files: StampedFiles

    @classmethod
    def read(cls, view: Path) -> Self | None:
        """Return the stamp of a view, or None if there is none that is whole; nothing in it is believed yet."""
        try:
            data = json.loads(disk.read_file(view / NAME, MAX_BYTES))
            files = StampedFiles(**{name: list(column) for name, column in data["files"].items()})
            if data["format"] != _FORMAT or len({len(column) for column in files}) != 1:
                return None
            return cls(data["boot"], data["sealed"], dict(data["folders"]), files)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None

    def write(self, view: Path) -> None:
        """Write the stamp of a view that has none."""
        data: dict[str, Any] = {"cas": "view", "format": _FORMAT, "boot": self.boot, "sealed": self.sealed}
        data |= {"folders": self.folders, "files": self.files._asdict()}
        fd = disk.create(view / NAME, 0o644)
        try:
            disk.write(fd, json.dumps(data, separators=(",", ":")).encode("utf-8"))
        finally:
            os.close(fd)

    @property
    def this_boot(self) -> bool:
        """Whether it was written since this host was started."""
        return self.boot is not None and self.boot == disk.boot_id()

    @property
    def usable(self) -> bool:
        """Whether what it says of links counts in this boot."""
        return self.this_boot or self.sealed is True

    def holds(self, home: Path, owners: Owners, tree: Path, *, hashing: bool) -> bool:
        """Whether every file is as the stamp says, and links lead to the blobs that have their names now.

        `hashing`: the copies, which are small and were never synced, are read too.
        """
        try:
            return (
                self._tree_holds(tree, owners)
                and self._blobs_hold(home / "blobs")
                and (not hashing or self._copies_hold(tree))
            )
        except (OSError, ValueError, TypeError):  # it is gone, or the stamp makes no sense
            return False

    def _tree_holds(self, tree: Path, owners: Owners) -> bool:
        files = self.files
        with disk.opened(tree) as root:
            look = partial(os.stat, dir_fd=root)  # ten thousand names below it need not be walked to
            for folder, mtime in self.folders.items():
                if look(folder, follow_symlinks=False).st_mtime_ns != mtime:
                    return False
            return all(map(owners.matches, zip(*files[3:], strict=True), map(look, files.paths)))

    def _blobs_hold(self, blobs: Path) -> bool:
        """Whether links lead where the names of their blobs do: one that was damaged and repaired is another inode."""
        files = zip(self.files.kinds, self.files.digests, self.files.inodes, strict=True)
        links = [(hex, inode) for kind, hex, inode in files if kind in _LINKS]
        found = map(os.stat, (f"{blobs}/{hex[:2]}/{hex[2:]}" for hex, _ in links))
        return all(map(eq, map(_inode, found), (inode for _, inode in links)))

    def _copies_hold(self, tree: Path) -> bool:
        return all(Digest.of_file(f"{tree}/{path}").hex == hex for path, hex in self.files.copies())
