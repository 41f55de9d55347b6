"""Pins, and when checkpoints were last used: empty files that are named by UUID."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from cas.errors import UsageError
from cas.index import disk
from cas.index.layout import Layout, check_uuid

log = logging.getLogger("cas.index")


class Pins:
    """The checkpoints that stay until they are unpinned."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def add(self, uuid: str, *, durable: bool = True) -> None:
        """Pin a checkpoint; the pin survives a power cut when this returns."""
        path = self._layout.pin(uuid)
        _create(path)
        if durable:
            disk.sync_names(path.parent, self._layout.root)

    def remove(self, uuid: str) -> bool:
        """Unpin a checkpoint; False if it was not pinned."""
        path = self._layout.pin(uuid)
        if not path.exists():
            return False
        disk.unlink(path)
        return True

    def all(self) -> frozenset[str]:
        """Return the UUIDs that are pinned."""
        return frozenset(_uuids(self._layout.root / "pins"))


class Uses:
    """When each checkpoint was last brought, copied, viewed or loaded."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def note(self, uuid: str) -> None:
        """A checkpoint is used now. Where that cannot be written (a home that we may only read), it is not."""
        path = self._layout.used(uuid)
        try:
            try:
                disk.touch(path)
            except FileNotFoundError:
                _create(path)
            except PermissionError:  # another user's file, in a folder of ours
                disk.unlink(path)
                _create(path)
        except OSError as error:
            log.debug("cannot note that %s is used: %s", uuid, error)

    def forget(self, uuid: str) -> None:
        """A checkpoint is no more."""
        disk.unlink(self._layout.used(uuid))

    def all(self) -> dict[str, int]:
        """Return when checkpoints were last used (ns since 1970, by the disk's clock), by UUID."""
        found = {}
        folder = self._layout.root / "used"
        for uuid in _uuids(folder):
            try:
                found[uuid] = os.stat(folder / uuid).st_mtime_ns
            except OSError:
                continue
        return found


def _uuids(folder: Path) -> list[str]:
    return [name for name in disk.names(folder) if is_uuid(name)]


def is_uuid(name: str) -> bool:
    """Whether a name in a folder of the store is a checkpoint's."""
    try:
        check_uuid(name)
    except UsageError:
        return False
    return True


def _create(path: Path) -> None:
    for _ in range(2):
        try:
            os.close(disk.create(path, 0o666))
            return
        except FileExistsError:
            return
        except FileNotFoundError:
            disk.make_folder(path.parent)
