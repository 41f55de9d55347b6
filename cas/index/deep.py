"""Reading every blob: no faster than is wanted, from the disk and not from memory, and on from where it was stopped."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from typing import Self

from cas.errors import ContentError
from cas.index import disk
from cas.index.digest import Digest
from cas.index.store import Store

log = logging.getLogger("cas.index")

SAVE = 10.0  # seconds between two notes of how far it is: what a kill costs
RESUME_WITHIN = 7 * 86_400  # seconds: what was read longer ago counts for nothing


class Pace:
    """How fast is read; called with the number of bytes after each read."""

    def __init__(self, rate: int | None = None, tell: Callable[[int], None] = lambda count: None) -> None:
        """`rate`: bytes a second; `tell` is called with each number of bytes."""
        self._rate = rate
        self._tell = tell
        self._due = 0.0

    def __call__(self, count: int) -> None:
        """Wait until so many more bytes may have been read."""
        self._tell(count)
        if not self._rate:
            return
        now = disk.monotonic()
        self._due = max(self._due, now) + count / self._rate  # no credit for having been slow before
        if (wait := self._due - now) > 0:
            time.sleep(wait)


class Cursor:
    """How far the reading of all blobs, in order of digest, has come: a fact of this host and user."""

    def __init__(self, store: Store, after: str, begun: float) -> None:
        self._store = store
        self._saved = disk.monotonic()
        self.after = after  # hex; what is not above it was read
        self.begun = begun

    @classmethod
    def anew(cls, store: Store) -> Self:
        """Return the beginning."""
        return cls(store, "", disk.now())

    @classmethod
    def resume(cls, store: Store) -> Self:
        """Return where the last one stopped, in this boot and not too long ago; else the beginning."""
        last = store.facts.deep_check()
        if last is None or last.boot is None or last.boot != disk.boot_id():
            return cls.anew(store)
        if not 0 <= disk.now() - last.begun < RESUME_WITHIN:
            return cls.anew(store)
        return cls(store, last.after, last.begun)

    def passed(self, digest: Digest) -> bool:
        """Whether the blob was read before the interruption."""
        return digest.hex <= self.after

    def reached(self, digest: Digest) -> None:
        """Note, now and then, that all blobs up to this one were read."""
        self.after = digest.hex
        if disk.monotonic() - self._saved > SAVE:
            self.save()

    def save(self) -> None:
        """Note it now."""
        self._saved = disk.monotonic()
        with contextlib.suppress(OSError, ContentError):  # a home that we may only read: then it is not resumed
            self._store.facts.add_deep_check(self.after, self.begun)

    def done(self) -> None:
        """Note that the next one begins anew."""
        self.after = ""
        self.save()
