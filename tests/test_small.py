"""Small files: which threads store them, and how many of them wait in memory."""

from __future__ import annotations

import collections
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from remotes import MemoryRemote
from stores import UUID

from cas.config import Progress, Settings
from cas.index import disk
from cas.index.store import Store
from cas.transfer.fetch import UNITS_AT_ONCE, pull
from cas.transfer.remote import Piece, RemoteFile
from cas.transfer.small import SMALL_AT_ONCE, WAITING

FILES = {f"{number}.bin": os.urandom(200) for number in range(600)}
CONCURRENCY = 4


class SlowRemote(MemoryRemote):
    """Its server takes a while for each file."""

    def _pieces(self, file: RemoteFile, start: int, end: int) -> Iterator[Piece]:
        time.sleep(0.01)
        yield from super()._pieces(file, start, end)


class Seen:
    """Which threads stored how many files, how many were fetched, and how many of these waited at most."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.stored: collections.Counter[str] = collections.Counter()
        self.most = 0
        self.pulled: dict[str, bytes] = {}

    def pull(self, home: Path, remote: MemoryRemote) -> None:
        fetched, read = 0, remote.read

        def counted(file: RemoteFile, start: int, end: int) -> Iterator[Piece]:
            nonlocal fetched
            yield from read(file, start, end)
            fetched += 1
            self.most = max(self.most, fetched - self.stored.total())

        def observe(moment: str, step: str) -> None:
            name = threading.current_thread().name
            if (moment, step) == ("after", "link") and name.startswith("cas-"):
                time.sleep(self._seconds)
                self.stored[name.rstrip("0123456789")] += 1

        remote.read = counted
        store = Store(home)
        disk.observe(observe)
        try:
            report = pull(
                store,
                remote,
                registry="r",
                uuid=UUID,
                settings=Settings(home=home, concurrency=CONCURRENCY, progress=Progress.OFF),
            )
        finally:
            disk.observe(None)
        self.pulled = {str(entry.path): store.blobs.read(entry.digest) for entry in report.manifest.files}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def test_on_a_quick_disk_one_thread_stores_what_many_wait_for(home):
    seen = Seen(0.0)
    seen.pull(home, SlowRemote(FILES))
    assert seen.pulled == FILES
    assert seen.stored["cas-unit-"] > seen.stored["cas-small-"]  # all of them, where nothing else runs


def test_on_a_slow_disk_all_threads_store_and_no_more_wait_in_memory_than_may(home):
    seen = Seen(0.01)
    seen.pull(home, MemoryRemote(FILES))
    assert seen.pulled == FILES
    assert seen.stored.total() == len(FILES)
    assert seen.stored["cas-small-"] > seen.stored["cas-unit-"]
    assert seen.most <= UNITS_AT_ONCE * (WAITING + 2 * CONCURRENCY * SMALL_AT_ONCE)
