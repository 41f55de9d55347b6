"""Servers that keep a connection open and send next to nothing are given up; lines that are only slow are not."""

from __future__ import annotations

import random
import time

import pytest
from proxy import Fault, counting, relaying
from remotes import MemoryRemote
from stores import UUID, lies
from web_server import serving

from cas.config import Progress, Settings
from cas.errors import TransientRemoteError
from cas.index.paths import RelativePath
from cas.index.store import Store
from cas.transfer import fetch, plan, retry
from cas.transfer.pace import SLOWEST, Pace, TooSlowError
from cas.transfer.retry import RetryingRemote
from cas.transfer.s3 import S3Place, S3Remote
from cas.transfer.sigv4 import Credentials
from cas.transfer.web import WebRemote

SMALL = random.Random(1).randbytes(20_000)
LARGE = random.Random(2).randbytes(plan.RANGE + 1_000_000)  # two ranges
SILENCE = 0.4  # seconds, as the setting
ONE_NOW_AND_THEN = 0.05  # seconds after each byte: 20 bytes a second
BOUND = 30.0  # seconds, on a busy machine


# --- the floor -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("connections", [1, 8, 18])
def test_connections_that_share_a_line_of_1_mbit_are_left_alone(connections):
    pace = Pace(30.0)
    for _ in range(3600):
        pace.note(125_000 // connections, 1.0)


def test_a_server_that_thinks_long_between_two_bursts_is_left_alone():
    pace = Pace(30.0)
    for _ in range(50):
        pace.note(1 << 20, 0.1)
        pace.note(1000, 29.8)
        pace.note(1000, 1.0)


def test_a_byte_now_and_then_is_too_slow():
    pace = Pace(30.0)
    pace.note(10 << 20, 1.0)
    pace.note(1, 29.5)  # the window that began with megabytes ends
    with pytest.raises(TooSlowError, match="3 bytes came in 36 s"):
        for _ in range(10):
            pace.note(1, 12.0)


def test_the_floor_is_bytes_a_second_of_waiting():
    Pace(10.0).note(10 * SLOWEST, 10.0)
    with pytest.raises(TooSlowError):
        Pace(10.0).note(10 * SLOWEST - 1, 10.0)


# --- over HTTP -----------------------------------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path):
    (tmp_path / "site").mkdir()
    with serving(tmp_path / "site") as running:
        running.write("here/small", SMALL)
        yield running


@pytest.fixture
def proxy(site):
    with relaying(site.port) as running:
        yield running


def web(proxy, *, timeout=SILENCE, names=("small",)):
    return WebRemote(f"http://127.0.0.1:{proxy.port}/here/", timeout=timeout, names=map(RelativePath, names))


def given_up(remote, file, start, end) -> bytes:
    """Read until the server is given up, in time; return what came before."""
    began, came = time.monotonic(), b""
    with pytest.raises(TransientRemoteError, match=r"bytes came in \d+ s; the server is too slow") as caught:
        for piece in remote.read(file, start, end):
            came += bytes(piece)
    assert time.monotonic() - began < BOUND
    assert "\n" not in str(caught.value)
    return came


@pytest.mark.slow
@pytest.mark.parametrize("span", [(0, 20_000), (5, 9000)])
def test_a_body_that_trickles_is_given_up_and_what_came_is_kept(proxy, span):
    remote = web(proxy)
    [file] = remote.list().files
    proxy.faults = lambda one: Fault(trickle=ONE_NOW_AND_THEN)
    came = given_up(remote, file, *span)
    assert came
    assert came == SMALL[span[0] : span[0] + len(came)]


@pytest.mark.slow
def test_a_head_that_trickles_is_given_up(proxy):
    remote = web(proxy)
    [file] = remote.list().files
    proxy.faults = lambda one: Fault(slow_head=ONE_NOW_AND_THEN)
    assert given_up(remote, file, 0, 20_000) == b""
    with pytest.raises(TransientRemoteError, match="too slow"):
        remote.list()


@pytest.mark.slow
def test_a_server_that_trickles_for_ever_ends_in_one_error(proxy):
    remote = RetryingRemote(web(proxy), pause=0.001)
    [file] = remote.list().files
    proxy.faults = lambda one: Fault(trickle=ONE_NOW_AND_THEN)
    given_up(remote, file, 0, 20_000)
    assert proxy.count("GET", "small") == retry.ATTEMPTS


@pytest.mark.slow
def test_a_line_that_is_only_slow_is_not_given_up(proxy):
    remote = web(proxy, timeout=1.5)
    [file] = remote.list().files
    proxy.faults = lambda one: Fault(trickle=0.08, block=200)  # five times the floor
    assert b"".join(remote.read(file, 0, 9000)) == SMALL[:9000]


@pytest.mark.slow
def test_a_reader_that_takes_its_time_is_not_given_up(proxy, site):
    site.write("here/large", LARGE)
    remote = web(proxy, names=("large",))
    [file] = remote.list().files
    came = b""
    for piece in remote.read(file, 0, file.size):
        came += piece
        if len(came) < 500_000:
            time.sleep(2 * SILENCE)
    assert came == LARGE


@pytest.mark.slow
def test_one_range_that_trickles_is_asked_again_while_the_others_go_on(proxy, site, tmp_path):
    site.write("here/large", LARGE)
    left = ["one"]
    proxy.faults = lambda one: (
        Fault(trickle=ONE_NOW_AND_THEN) if "range" in one.headers and left and left.pop() else None
    )
    store = Store(tmp_path / "home")
    settings = Settings(home=store.home, progress=Progress.OFF, timeout=SILENCE)
    began = time.monotonic()
    report = fetch.pull(store, web(proxy, names=("large",)), registry="pulled", uuid=UUID, settings=settings)
    assert time.monotonic() - began < BOUND
    assert store.blobs.read(report.manifest.files[0].digest) == LARGE
    assert not left
    asked = [one.headers["range"] for one in proxy.exchanges if one.method == "GET"]
    assert len(asked) == 3
    assert len(set(asked)) == 3  # it was asked for what had not come yet, and nothing else again
    store.close()
    assert lies(store.home) == []


# --- over S3 -------------------------------------------------------------------------------------------------------


@pytest.fixture
def s3_proxy(s3_server):
    with counting(s3_server) as running:
        yield running


@pytest.fixture
def s3(s3_proxy, s3_server, bucket, upload):
    upload({"p/small": SMALL, "p/large": LARGE})
    keys = Credentials(s3_server.access_key, s3_server.secret_key)
    place = S3Place(bucket=bucket, prefix="p", endpoint=s3_proxy.server.endpoint, region="us-east-1", keys=keys)
    return S3Remote(place, timeout=SILENCE)


@pytest.mark.s3
@pytest.mark.slow
@pytest.mark.parametrize("name", ["small", "large"])
def test_a_body_that_trickles_from_s3_is_given_up_and_what_came_is_kept(s3, s3_proxy, name):
    file = next(file for file in s3.list().files if file.path == name)
    s3_proxy.faults = lambda one: Fault(trickle=ONE_NOW_AND_THEN)
    came = given_up(s3, file, 0, min(file.size, 1 << 20))
    assert came
    assert came == (SMALL if name == "small" else LARGE)[: len(came)]


@pytest.mark.s3
@pytest.mark.slow
def test_a_head_that_trickles_from_s3_is_given_up(s3, s3_proxy):
    file = next(file for file in s3.list().files if file.path == "small")
    s3_proxy.faults = lambda one: Fault(slow_head=ONE_NOW_AND_THEN)
    began = time.monotonic()
    for ask in (lambda: list(s3.read(file, 0, file.size)), s3.list, lambda: s3.checksums(file)):
        with pytest.raises(TransientRemoteError):
            ask()
    assert time.monotonic() - began < BOUND


# --- trying again --------------------------------------------------------------------------------------------------


class Miser(MemoryRemote):
    """Gives so many bytes each time, and breaks off."""

    gives = 1
    reads = 0

    def read(self, file, start, end):
        self.reads += 1
        yield from super().read(file, start, min(start + self.gives, end))
        if start + self.gives < end:
            raise TransientRemoteError("connection reset")


def test_a_byte_each_time_is_no_progress():
    remote = Miser({"f": LARGE})
    [file] = remote.list().files
    with pytest.raises(TransientRemoteError, match="reset"):
        list(RetryingRemote(remote, pause=0.001).read(file, 0, file.size))
    assert remote.reads == retry.ATTEMPTS


def test_connections_that_break_off_after_some_progress_get_a_file_through():
    remote = Miser({"f": LARGE})
    remote.gives = retry.PROGRESS
    [file] = remote.list().files
    assert b"".join(map(bytes, RetryingRemote(remote, pause=0).read(file, 0, file.size))) == LARGE
