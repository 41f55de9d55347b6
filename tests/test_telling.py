"""Many hosts, one job: what one of them cannot do ends it for all, and soon; slow work is waited for."""

from __future__ import annotations

import os
import platform
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jobs import IN_THREE_SECONDS, MIB, Start, content, site_and_proxy
from mounts import loop, tmpfs
from proxy import Fault, Proxy
from stores import UUID, lies
from web_server import Site

pytestmark = [pytest.mark.s3, pytest.mark.torch, pytest.mark.slow]


@pytest.fixture
def files() -> dict[str, bytes]:
    return content()


@pytest.fixture
def storage(
    proxy: Proxy, bucket: str, upload: Callable[..., None], files: dict[str, bytes]
) -> Callable[[], dict[str, Any]]:
    upload({f"{UUID}/{name}": data for name, data in files.items()})
    return lambda: proxy.server.storage(bucket)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Site, Proxy]]:
    with site_and_proxy(tmp_path / "site") as both:
        yield both


def test_what_one_rank_cannot_open_all_hear_of_at_once(
    start: Start, storage: Callable[[], dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "b").write_bytes(b"no folder")
    job = start([tmp_path / "a", tmp_path / "b"], storage(), f'checkpoint("{UUID}").share()', timeout=30)
    home = [job.told(rank)[0] for rank in range(2)]
    scenario = f'settings = settings.but(offline=rank == 1); checkpoint("{UUID}").share()'
    job = start([tmp_path / "a", tmp_path / "c"], storage(), scenario, timeout=30)
    remote = [job.told(rank)[0] for rank in range(2)]

    assert home[1]["error"] == "UsageError" and str(tmp_path / "b") in home[1]["text"]
    assert remote[1]["error"] == "OfflineError"
    for told in (home, remote):
        assert told[0]["error"] == "PeerError"
        assert told[0]["text"] == f"rank 1 of the process group (on {platform.node()}) failed: {told[1]['text']}"
        assert told[0]["seconds"] < 20


@pytest.mark.parametrize("check_space", [True, False])
def test_a_host_with_a_full_disk_ends_it_for_every_rank(
    check_space: bool, start: Start, storage: Callable[[], dict[str, Any]], proxy: Proxy, tmp_path: Path
) -> None:
    """Before anything is fetched, if it may be looked at."""
    scenario = f'settings = settings.but(check_space={check_space}); checkpoint("{UUID}").share()'
    with tmpfs(tmp_path / "small", size="30m") as small:
        job = start([tmp_path / "a", small / "home", tmp_path / "c"], storage(), scenario)
        told = [job.told(rank)[0] for rank in range(3)]

        assert [one["error"] for one in told] == ["PeerError", "NoSpaceError", "PeerError"]
        assert str(small / "home") in told[1]["text"]
        assert told[0]["text"] == f"rank 1 of the process group (on {platform.node()}) failed: {told[1]['text']}"
        assert all(one["seconds"] < 60 for one in told)
        assert lies(tmp_path / "a") == lies(small / "home") == []
        assert (proxy.bodies() == 0) is check_space
        assert ("MiB are missing" in told[1]["text"]) is check_space


def blocks(path: Path) -> int:
    """Return how many blocks of a file are written; small ones come and go while they are looked for."""
    try:
        return path.stat().st_blocks
    except FileNotFoundError:
        return 0


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_host_that_dies_or_hangs_ends_it_for_the_others_and_the_next_job_goes_on(
    how: signal.Signals,
    start: Start,
    storage: Callable[[], dict[str, Any]],
    proxy: Proxy,
    files: dict[str, bytes],
    tmp_path: Path,
) -> None:
    proxy.pause = 0.05
    homes = [tmp_path / "a", tmp_path / "b", tmp_path / "c"]
    job = start(homes, storage(), f'checkpoint("{UUID}").share()', timeout=1)
    end = time.monotonic() + 90
    while not any(blocks(path) > 2048 for path in homes[0].glob("ingest/*/*/*.data")):
        assert time.monotonic() < end and job.children[0].poll() is None, job.children[0].communicate()
        time.sleep(0.01)

    os.kill(job.children[2].pid, how)
    told = [job.told(rank)[0] for rank in range(2)]

    assert [one["error"] for one in told] == ["PeerError"] * 2
    assert "process group" in told[0]["text"]
    job.end()
    if how is signal.SIGKILL:
        spent, proxy.pause = proxy.bodies(), 0.0
        again = start(homes, storage(), f'checkpoint("{UUID}").share(); say(done=True)')
        assert [again.told(rank)[0] for rank in range(3)] == [{"done": True}] * 3
        assert proxy.bodies() - spent < sum(map(len, files.values())) - 16 * MIB  # what had arrived was used


@pytest.mark.parametrize("etag", ["strong", "none"])
def test_slow_work_is_waited_for_as_long_as_it_gets_on(
    etag: str, start: Start, site: tuple[Site, Proxy], tmp_path: Path
) -> None:
    """With an ETag one host reads a block while the other waits for it, without one each pulls by itself."""
    pages, proxy = site
    pages.etag, pages.modified = etag, etag != "none"
    data = random.Random(4).randbytes(16 * MIB)
    pages.write(f"{UUID}/model.pth", data)
    proxy.pause = 0.2 if etag == "none" else 0.7  # after 256 KiB, of one connection or of four
    homes = [tmp_path / name for name in ("a", "a", "b")]

    job = start(homes, f"http://127.0.0.1:{proxy.port}/{UUID}/", IN_THREE_SECONDS, timeout=30)
    began = time.monotonic()

    assert [job.told(rank)[0] for rank in range(3)] == [{"done": True}] * 3
    assert time.monotonic() - began > 10  # which is far above the bound
    assert proxy.bodies("model.pth") <= len(data) * (1 if etag == "strong" else 2)


def test_a_host_whose_disk_hangs_ends_it_for_the_others(
    start: Start, storage: Callable[[], dict[str, Any]], proxy: Proxy, tmp_path: Path
) -> None:
    proxy.pause = 0.05
    with loop(tmp_path / "hung", size=160 * MIB) as hung:
        job = start([tmp_path / "a", hung / "home", tmp_path / "c"], storage(), IN_THREE_SECONDS, timeout=30)
        end = time.monotonic() + 90
        while not any(blocks(path) > 2048 for path in hung.glob("home/ingest/*/*/*.data")):
            assert time.monotonic() < end and job.children[1].poll() is None, job.children[1].communicate()
            time.sleep(0.01)
        subprocess.run(["fsfreeze", "--freeze", hung], check=True)  # whoever writes there waits
        try:
            told = [job.told(rank, timeout=60)[0] for rank in (0, 2)]
        finally:
            subprocess.run(["fsfreeze", "--unfreeze", hung], check=True)
        job.end()

    for one in told:
        assert one["error"] == "PeerError"
        assert one["text"].startswith(
            f"rank 1 of the process group (on {platform.node()}) failed: nothing was read or "
        )
        assert str(hung) in one["text"]


def test_what_ends_it_after_the_exchange_is_raised_as_what_it_is(
    start: Start, site: tuple[Site, Proxy], tmp_path: Path
) -> None:
    """Of a file with no validator each host reads its own, and all that comes is wrong."""
    pages, proxy = site
    pages.etag, pages.modified, pages.digest = "none", False, True
    pages.write(f"{UUID}/model.pth", random.Random(4).randbytes(MIB))
    proxy.faults = lambda asking: Fault(flip=True) if asking.path.endswith("model.pth") else None
    job = start(
        [tmp_path / "a", tmp_path / "b"], f"http://127.0.0.1:{proxy.port}/{UUID}/", IN_THREE_SECONDS, timeout=30
    )

    told = [job.told(rank)[0] for rank in range(2)]

    assert {one["error"] for one in told} <= {"DigestMismatchError", "PeerError"}
    assert "DigestMismatchError" in {one["error"] for one in told}
    assert all("model.pth: expected sha256:" in one["text"] for one in told)
