"""Whether work gets on: what others who wait for it are told, so that they wait for slow work, and not for ever."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

from cas.transfer.folder import FolderRemote
from cas.transfer.progress import Advance, Drawer
from cas.transfer.remote import Checksum, Listing, Piece, Remote, RemoteFile
from cas.transfer.workers import StoppedError

T = TypeVar("T")


class Watch:
    """Sees whether one piece of work gets on; safe for its threads. Setting `ended` ends the work where it next looks.

    Work gets on when bytes come or are written, when a request is begun or answered, and when the thread that does it
    reads or writes anything: hashing a blob that no fact vouches for, taking over what was left of a transfer.
    """

    def __init__(self) -> None:
        self.ended = threading.Event()
        self._noticed = 0
        self._listing = 0
        self._thread: int | None = None

    def notice(self, _: int = 0) -> None:
        """Something was done.

        Raises:
            StoppedError: the work was ended.
        """
        if self.ended.is_set():
            raise StoppedError
        self._noticed += 1  # two threads may count as one: only a change matters

    def doing(self, work: Callable[..., T], *arguments: Any) -> T:
        """Do the work in this thread, which is watched."""
        self._thread = threading.get_native_id()
        return work(*arguments)

    def sign(self) -> object:
        """Return what changes while the work gets on."""
        return object() if self._listing else (self._noticed, self._bytes_moved())

    @contextlib.contextmanager
    def listing(self) -> Iterator[None]:
        """List a storage over the network: nothing is seen of its pages, but each request ends by itself."""
        self._listing += 1
        try:
            yield
        finally:
            self._listing -= 1

    def drawer(self, draw: Drawer) -> Drawer:
        """Return what draws the same, and notices it."""

        @contextlib.contextmanager
        def watched(to_fetch: int, already_here: int) -> Iterator[Advance]:
            with draw(to_fetch, already_here) as advance:

                def both(count: int) -> None:
                    self.notice()
                    advance(count)

                yield both

        return watched

    def _bytes_moved(self) -> bytes:
        """What the kernel counted for the thread that does the work; empty where it does not tell."""
        with contextlib.suppress(OSError):
            return Path(f"/proc/self/task/{self._thread}/io").read_bytes()
        return b""


class WatchedRemote:
    """Notices what its inner remote gets done; all else is the inner remote's."""

    def __init__(self, inner: Remote, watch: Watch) -> None:
        self._inner = inner
        self._watch = watch

    def __getattr__(self, name: str) -> Any:
        """Whatever else the inner remote can do."""
        return getattr(self._inner, name)

    def list(self) -> Listing:
        """List; see `Remote`."""
        self._watch.notice()
        on_disk = isinstance(self._inner, FolderRemote)  # a disk that hangs does so for ever
        waiting: AbstractContextManager[None] = contextlib.nullcontext() if on_disk else self._watch.listing()
        with waiting:
            return self._inner.list()

    def read(self, file: RemoteFile, start: int, end: int) -> Iterator[Piece]:
        """Yield a range; see `Remote`."""
        return self._noticed(self._inner.read(file, start, end))

    def stream(self, file: RemoteFile) -> Iterator[Piece]:
        """Yield all bytes; see `Remote`."""
        return self._noticed(self._inner.stream(file))

    def checksums(self, file: RemoteFile, *, thorough: bool = False) -> tuple[Checksum, ...]:
        """Return declared checksums; see `Remote`."""
        self._watch.notice()
        return self._inner.checksums(file, thorough=thorough)

    def _noticed(self, pieces: Iterator[Piece]) -> Iterator[Piece]:
        self._watch.notice()
        for piece in pieces:
            self._watch.notice()
            yield piece
