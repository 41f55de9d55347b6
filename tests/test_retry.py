"""Retries: only what is transient, from the byte where it broke off, and not for ever."""

from __future__ import annotations

import random
import threading
import time
from typing import ClassVar

import pytest
from remote_suite import FILES, FOLDERS, RemoteSuite
from remotes import CountingRemote, FaultyRemote, MemoryRemote

from cas.errors import ChangedError, OfflineError, TransientRemoteError
from cas.transfer import retry
from cas.transfer.retry import RetryingRemote
from cas.transfer.s3 import S3Place, S3Remote
from cas.transfer.sigv4 import Credentials

DATA = random.Random(5).randbytes(1_000_000)


class TestRetryingRemote(RemoteSuite):
    @pytest.fixture
    def remote(self):
        return RetryingRemote(MemoryRemote(FILES, directories=FOLDERS))

    def replace(self, remote, name, data):
        remote._inner.write(name, data)

    def empty(self, remote):
        return RetryingRemote(MemoryRemote())


def read(remote):
    [file] = remote.list().files
    return b"".join(map(bytes, remote.read(file, 0, file.size)))


@pytest.mark.parametrize("script", ["503 ok", "short reset ok", "503 503 503 503 503 ok", "reset 503 short 503 ok"])
def test_what_is_transient_is_tried_again(script):
    assert read(RetryingRemote(FaultyRemote(MemoryRemote({"f": DATA}), script), pause=0.001)) == DATA


def test_a_read_goes_on_where_it_broke_off():
    counting = CountingRemote(FaultyRemote(MemoryRemote({"f": DATA}), "reset reset reset"))
    assert read(RetryingRemote(counting, pause=0.001)) == DATA
    assert counting.total == len(DATA)
    assert counting.reads == 4


def test_attempts_without_progress_come_to_an_end():
    counting = CountingRemote(FaultyRemote(MemoryRemote({"f": DATA}), "503 " * 50))
    with pytest.raises(TransientRemoteError, match="503"):
        read(RetryingRemote(counting, pause=0.001))
    assert counting.reads == retry.ATTEMPTS


def test_progress_renews_the_attempts():
    script = "503 503 503 reset " * 5
    assert read(RetryingRemote(FaultyRemote(MemoryRemote({"f": DATA}), script), pause=0.001)) == DATA


def test_a_changed_object_is_not_tried_again():
    remote = CountingRemote(MemoryRemote({"f": DATA}))
    retrying = RetryingRemote(remote)
    [file] = retrying.list().files
    remote.inner.write("f", b"other")
    with pytest.raises(ChangedError):
        list(retrying.read(file, 0, 10))
    assert remote.reads == 1


def test_stopping_ends_a_pause_at_once():
    stop = threading.Event()
    retrying = RetryingRemote(FaultyRemote(MemoryRemote({"f": DATA}), "503 " * 50), stop=stop, pause=30)
    threading.Timer(0.1, stop.set).start()
    began = time.monotonic()
    with pytest.raises(TransientRemoteError):
        read(retrying)
    assert time.monotonic() - began < 15


def test_a_server_that_asks_for_time_gets_it_within_bounds():
    assert retry._pause(0.001, 1, 7.0) == 7.0
    assert retry._pause(0.001, 1, 3600.0) == retry.LONGEST_ASKED
    assert retry._pause(1.0, 30, None) == retry.LONGEST_PAUSE


def test_a_server_that_asks_one_thread_to_wait_is_left_alone_by_all():
    class Busy(MemoryRemote):
        asked: ClassVar[list[float]] = []

        def read(self, file, start, end):
            self.asked.append(time.monotonic())
            if len(self.asked) == 1:
                raise TransientRemoteError("429", retry_after=0.5)
            return super().read(file, start, end)

    remote = RetryingRemote(Busy({"f": DATA}), pause=0.001)
    [file] = remote.list().files
    first = threading.Thread(target=lambda: list(remote.read(file, 0, 10)))
    first.start()
    while not Busy.asked:
        time.sleep(0.001)
    time.sleep(0.05)
    list(remote.read(file, 10, 20))
    first.join()
    assert min(Busy.asked[1:]) - Busy.asked[0] >= 0.5


def test_a_server_that_nobody_can_reach_is_offline() -> None:
    place = S3Place(bucket="b", endpoint="http://127.0.0.1:9", keys=Credentials("key", "secret"))
    remote = RetryingRemote(S3Remote(place, timeout=1), pause=0.001)
    with pytest.raises(OfflineError, match=r"127\.0\.0\.1:9.*is the network up"):
        remote.list()
