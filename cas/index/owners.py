"""Whose word counts in a home: whose facts are believed, and who could change a blob behind our back.

A reader believes facts of its own user and of root (F12), and of one more: the owner of a home that nobody else can
write to, us included. That is who made an image or a site's cache; who reads it relies on its owner for what the
checkpoints consist of anyway.
"""

from __future__ import annotations

import os
import stat as stats
from dataclasses import dataclass
from pathlib import Path

from cas.index import disk
from cas.index.disk import Signature

ROOT = 0
_OTHERS_WRITE = 0o022  # of the group, of everybody; of a folder with an access list, the group's bit is its mask


@dataclass(frozen=True, slots=True)
class Owners:
    """The users (by number) whose facts are believed; None where the system has no such numbers."""

    believed: frozenset[int] | None

    @classmethod
    def of(cls, home: Path) -> Owners:
        """Find out for one home."""
        if not hasattr(os, "geteuid"):
            return cls(None)
        believed = {os.geteuid(), ROOT}
        if os.geteuid() != ROOT and not disk.is_writable(home):
            found = [home.stat(), *_stat(home / "facts"), *_stat(home / "records")]
            if not any(one.st_mode & _OTHERS_WRITE or one.st_uid != found[0].st_uid for one in found):
                believed.add(found[0].st_uid)
        return cls(frozenset(believed))

    def believe(self, found: os.stat_result) -> bool:
        """Whether what a file says is believed: it is a plain one, of a user whose word counts."""
        return stats.S_ISREG(found.st_mode) and self.trust(found)

    def trust(self, found: os.stat_result) -> bool:
        """Whether the owner of a file is a user whose word counts."""
        return self.believed is None or found.st_uid in self.believed

    def signature(self, found: os.stat_result) -> Signature:
        """Take a file's signature. Of one whose owner's word does not count, with the time of its last change: the
        owner can write to it and set the other times back, but not this one.
        """
        return Signature.of(found, changed=not self.trust(found))

    def matches(self, signature: tuple[int, int, int, int], found: os.stat_result) -> bool:
        """Whether a file has a signature (of such numbers); makes none, because views ask it of ten thousand files."""
        size, mtime, inode, changed = signature
        return (
            found.st_ino == inode
            and found.st_mtime_ns == mtime
            and found.st_size == size
            and changed == (0 if self.believed is None or found.st_uid in self.believed else found.st_ctime_ns)
        )


def _stat(path: Path) -> list[os.stat_result]:
    try:
        return [path.stat()]
    except OSError:
        return []
