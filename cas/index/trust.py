"""What a user has decided, and found, about content that runs code: digests that are trusted, verdicts of scans.

Each is a small file of the user's own, named by a digest, with one checked line in it that repeats the digest. Others'
files count for nothing, but for those of root.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cas.errors import ContentError, NotAllowedError
from cas.index import disk, lines
from cas.index.digest import Digest
from cas.index.layout import Layout

log = logging.getLogger("cas.index")

_MAX = 1 << 20  # bytes of such a file; a verdict lists names
_MAX_VERDICTS = 10_000  # kept; then all are dropped, and found again when they are wanted
_NAME = re.compile(r"(\d{1,20})\.([0-9a-f]{64})", re.ASCII)


class Trusted:
    """The checkpoints, by the digest of their manifest, whose code this user lets run (docs/format.md, F60)."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def holds(self, digest: Digest) -> bool:
        """Whether this user, or root, trusts a digest."""
        return any(_read(self._layout.trusted(uid, digest), digest) is not None for uid in {os.getuid(), 0})

    def add(self, digest: Digest) -> None:
        """Trust a digest; this survives a power cut when it returns.

        Raises:
            NotAllowedError: it cannot be written.
        """
        path = self._layout.trusted(os.getuid(), digest)
        try:
            _write(path, digest, {"kind": "trusted", "at": disk.now()}, durable=True)
            disk.sync_names(path.parent, self._layout.notes)
        except OSError as error:
            raise disk.translate(error, "cannot record what you trust") or NotAllowedError(
                f"cannot record what you trust: {error.strerror}: {path}"
            ) from error

    def remove(self, digest: Digest) -> bool:
        """Trust a digest no longer; False if it was not trusted.

        Raises:
            NotAllowedError: it was root who trusted it.
        """
        own = self._layout.trusted(os.getuid(), digest)
        found = _read(own, digest) is not None
        disk.unlink(own)
        if self.holds(digest):
            raise NotAllowedError(f"{digest} is trusted by root, who alone can change that")
        return found

    def all(self) -> list[Digest]:
        """Return the digests that this user, or root, trusts."""
        folder = self._layout.trusted(0, Digest("0" * 64)).parent
        found = {Digest(match[2]) for name in _names(folder) if (match := _NAME.fullmatch(name))}
        return sorted((digest for digest in found if self.holds(digest)), key=str)


class Verdicts:
    """What scans have found, so that nobody scans the same bytes twice; an accelerator (docs/format.md, F61)."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def get(self, key: Digest) -> Mapping[str, Any] | None:
        """Return what was found, or None."""
        return _read(self._layout.verdict(os.getuid(), key), key)

    def put(self, key: Digest, found: Mapping[str, Any]) -> None:
        """Note what was found. Where that cannot be written, it is not: the next process scans again."""
        path = self._layout.verdict(os.getuid(), key)
        try:
            names = _names(path.parent)
            for name in names if len(names) >= _MAX_VERDICTS else ():
                disk.unlink(path.parent / name)
            _write(path, key, {**found, "kind": "verdict"}, durable=False)
        except (OSError, ContentError) as error:
            log.debug("cannot note a verdict: %s", error)


def _names(folder: Path) -> list[str]:
    try:
        return disk.names(folder)
    except OSError:
        return []


def _read(path: Path, digest: Digest) -> Mapping[str, Any] | None:
    """Return what a file says about a digest, if it is a whole file of this user's or root's, and no link."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            log.debug("%s does not count: %s", path, error.strerror)
        return None
    try:
        state = os.fstat(fd)
        if not stat.S_ISREG(state.st_mode) or state.st_uid not in (os.getuid(), 0):
            return None
        found = lines.decode(os.read(fd, _MAX))
    except OSError:  # a bad disk
        return None
    finally:
        os.close(fd)
    return found if found is not None and found.get("digest") == str(digest) else None


def _write(path: Path, digest: Digest, payload: Mapping[str, Any], *, durable: bool) -> None:
    disk.make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    fd = disk.create(temporary, 0o644)
    try:
        disk.write(fd, lines.encode({**payload, "digest": str(digest)}))
        if durable:
            disk.sync(fd)
        disk.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            disk.unlink(temporary)
        raise
    finally:
        os.close(fd)


__all__ = ["Trusted", "Verdicts"]
