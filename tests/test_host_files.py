"""Many hosts, one job: what vouches for the bytes that each of them keeps."""

from __future__ import annotations

import base64
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from jobs import IN_THREE_SECONDS, MIB, Start, site_and_proxy, starting
from proxy import Exchange, Fault, Proxy, counting
from s3_server import S3Server
from stores import UUID
from web_server import Site

pytestmark = [pytest.mark.s3, pytest.mark.torch, pytest.mark.slow]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with starting(tmp_path) as start:
        yield start


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[Proxy]:
    with counting(s3_server) as running:
        yield running


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Site, Proxy]]:
    with site_and_proxy(tmp_path / "site") as both:
        yield both


def test_the_first_rank_asks_for_many_checksums_at_once(
    start: Start, s3_server: S3Server, bucket: str, proxy: Proxy, tmp_path: Path
) -> None:
    client = s3_server.client()
    for number in range(40):  # in parts: no ETag spares the question
        place = {"Bucket": bucket, "Key": f"{UUID}/{number}"}
        begun = place | {"UploadId": client.create_multipart_upload(**place)["UploadId"]}
        part = client.upload_part(**begun, PartNumber=1, Body=b"%d" % number)
        client.complete_multipart_upload(**begun, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]})
    client.close()
    asked: list[float] = []
    proxy.delay = 0.2
    proxy.faults = lambda asking: asked.append(time.monotonic()) if asking.method == "HEAD" else None

    job = start([tmp_path / "a", tmp_path / "b"], proxy.server.storage(bucket), IN_THREE_SECONDS, timeout=30)

    assert [job.told(rank)[0] for rank in range(2)] == [{"done": True}] * 2
    assert len(asked) >= 40
    assert asked[-1] - asked[0] < 40 * proxy.delay / 2


def test_a_host_that_cannot_compute_the_declared_checksum_takes_part(
    start: Start, site: tuple[Site, Proxy], tmp_path: Path
) -> None:
    crc32c = pytest.importorskip("awscrt.checksums").crc32c
    pages, proxy = site
    content = {"small": b"hello", "model.pth": random.Random(4).randbytes(20 * MIB)}
    for name, data in content.items():
        pages.write(f"{UUID}/{name}", data)
    told = {name: base64.b64encode(crc32c(data).to_bytes(4, "big")).decode() for name, data in content.items()}

    def declare(asking: Exchange) -> Fault | None:
        name = asking.path.rpartition("/")[2]
        return Fault(headers={"Digest": f"crc32c={told[name]}"}) if name in told else None

    proxy.faults = declare
    scenario = f"""
if rank == 1:
    sys.modules["awscrt"] = None  # not installed there
shared = checkpoint("{UUID}")
shared.share()
say(proofs=dict(shared.proofs))
"""
    job = start([tmp_path / "a", tmp_path / "b"], f"http://127.0.0.1:{proxy.port}/{UUID}/", scenario)

    proofs = [job.told(rank)[0]["proofs"] for rank in range(2)]
    assert proofs == [dict.fromkeys(content, proof) for proof in ("origin checksum (crc32c)", "length only")]


def test_what_hosts_have_read_differently_is_read_again(start: Start, site: tuple[Site, Proxy], tmp_path: Path) -> None:
    """With no validator each host reads its own, and no checksum tells which of them is right."""
    pages, proxy = site
    pages.etag, pages.modified = "none", False
    data = random.Random(4).randbytes(MIB)
    pages.write(f"{UUID}/model.pth", data)
    pages.write(f"{UUID}/notes.txt", b"hello")
    asked: list[str] = []

    def flip_first(asking: Exchange) -> Fault | None:
        if asking.method != "GET" or not asking.path.endswith("model.pth"):
            return None
        asked.append(asking.path)
        return Fault(flip=len(asked) == 1)

    proxy.faults = flip_first
    scenario = f"""
try:
    checkpoint("{UUID}").share()
except CasError as error:
    say(error=type(error).__name__, text=str(error))
shared = checkpoint("{UUID}")
shared.share()
say(first=(shared.view() / "model.pth").read_bytes()[0])
"""
    job = start([tmp_path / "a", tmp_path / "b"], f"http://127.0.0.1:{proxy.port}/{UUID}/", scenario)
    told = [job.told(rank) for rank in range(2)]

    for one in told:
        assert one[0]["error"] == "ContentError" and one[0]["text"].startswith("model.pth of checkpoint")
        assert one[1] == {"first": data[0]}
    assert len(asked) == 4
