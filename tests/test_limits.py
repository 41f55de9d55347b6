"""The limit on bandwidth: kept by all threads together, ended at once by stopping, and of folders too."""

from __future__ import annotations

import os
import threading
import time

import pytest
from remote_suite import FILES, FOLDERS, RemoteSuite
from remotes import MemoryRemote
from stores import UUID

from cas.config import Progress, Settings
from cas.errors import UsageError
from cas.index.store import Store
from cas.transfer import fetch
from cas.transfer.folder import FolderRemote
from cas.transfer.limits import LimitedRemote, Rate


class TestLimitedRemote(RemoteSuite):
    @pytest.fixture
    def remote(self):
        return LimitedRemote(MemoryRemote(FILES, directories=FOLDERS), Rate(1 << 40, threading.Event()))

    def replace(self, remote, name, data):
        remote._inner.write(name, data)

    def empty(self, remote):
        return LimitedRemote(MemoryRemote(), Rate(1 << 40, threading.Event()))


def test_all_threads_together_take_no_more_than_the_rate():
    rate = Rate(1_000_000, threading.Event())
    began = time.monotonic()
    threads = [threading.Thread(target=lambda: [rate.take(25_000) for _ in range(10)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - began >= 1.0 - 0.25 - 0.1  # the last one does not wait for what it took


def test_stopping_ends_all_waiting():
    stop = threading.Event()
    rate = Rate(1000, stop)
    rate.take(1_000_000)
    threading.Timer(0.1, stop.set).start()
    began = time.monotonic()
    rate.take(1)
    assert time.monotonic() - began < 60


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["memory", "folder"])
def test_a_pull_takes_its_time(tmp_path, kind):
    data = os.urandom(9 << 20)
    (tmp_path / "place").mkdir()
    (tmp_path / "place" / "f").write_bytes(data)
    remote = MemoryRemote({"f": data}) if kind == "memory" else FolderRemote(tmp_path / "place")
    store = Store(tmp_path / "home")
    settings = Settings(home=tmp_path / "home", progress=Progress.OFF).but(bandwidth="6M")
    report = fetch.pull(store, remote, registry="local", uuid=UUID, settings=settings)
    assert report.seconds > 9 / 6 - 0.6
    assert store.blobs.read(report.manifest.files[0].digest) == data
    store.close()


@pytest.mark.parametrize("value", ["fast", "10", "-1M", "1x"])
def test_what_is_no_rate(tmp_path, value):
    with pytest.raises(UsageError, match="bandwidth"):
        Settings(home=tmp_path).but(bandwidth=value)
