"""Many hosts, one job: what vouches for the bytes that each of them keeps."""

from __future__ import annotations

import base64
import hashlib
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from jobs import IN_THREE_SECONDS, MIB, REGISTRY, Start, site_and_proxy
from proxy import Exchange, Fault, Proxy
from s3_server import S3Server
from stores import UUID, lies
from web_server import Site

from cas.index.store import Store

pytestmark = [pytest.mark.s3, pytest.mark.torch, pytest.mark.slow]


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


def encrypted(
    proxy: Proxy,
    files: dict[str, bytes],
    *,
    takes: Callable[[str], bool] = lambda name: True,
    crc: bool = False,
    says_so: bool = True,
) -> None:
    """Answer as S3 does of objects that a key of KMS encrypts: an ETag that looks like an MD5 and is none.

    A server that does not say why it is none is no S3; there are such gateways.
    """
    etags = {hashlib.md5(data).hexdigest(): name for name, data in files.items() if takes(name)}
    others = {etag: hashlib.md5(name.encode()).hexdigest() for etag, name in etags.items()}
    names = {name: others[etag] for etag, name in etags.items()}

    def relist(body: bytes) -> bytes:
        for etag, other in others.items():
            body = body.replace(etag.encode(), other.encode())
        return body

    def fault(asking: Exchange) -> Fault | None:
        name = asking.path.partition("?")[0].partition(f"{UUID}/")[2]
        if "list-type" in asking.path:
            return Fault(rewrite=relist)
        told = {"ETag": f'"{names[name]}"'} if name in names else {}
        if told and says_so:
            told["x-amz-server-side-encryption"] = "aws:kms"
        return Fault(headers=told, drop=("if-match",), without=() if crc else ("x-amz-checksum-crc32",))

    proxy.faults = fault


SHARED = f"""
shared = checkpoint("{UUID}")
shared.share()
say(proofs=dict(shared.proofs), leads=shared.pull_report is not None)
"""


@pytest.fixture
def small() -> dict[str, bytes]:
    """Files of which most are so small that a listing's ETag is all that is asked of the origin; one is empty."""
    rng = random.Random(6)
    code = {f"code/{number}.py": rng.randbytes(1000 + number) for number in range(20)}
    return {**code, "code/__init__.py": b"", "notes.bin": rng.randbytes(3 * MIB), "model.pth": rng.randbytes(20 * MIB)}


@pytest.mark.parametrize("crc", [False, True], ids=["length only", "crc32"])
def test_where_etags_look_like_an_md5_and_are_none_a_job_costs_one_checkpoint(
    crc: bool,
    start: Start,
    proxy: Proxy,
    bucket: str,
    upload: Callable[..., None],
    small: dict[str, bytes],
    tmp_path: Path,
) -> None:
    upload({f"{UUID}/{name}": data for name, data in small.items()})
    encrypted(proxy, small, crc=crc)
    job = start([tmp_path / name for name in ("a", "b", "c")], proxy.server.storage(bucket), SHARED)

    told = [job.told(rank)[0] for rank in range(3)]

    proof = "origin checksum (crc32)" if crc else "length only"
    assert [one["proofs"] for one in told] == [dict.fromkeys(small, proof)] * 3
    assert proxy.bodies() == sum(map(len, small.values()))
    assert sum("list-type" in one.path for one in proxy.exchanges) == 1
    assert proxy.count("HEAD") == len(small)  # each is asked about once, by one host
    for name in "abc":
        assert lies(tmp_path / name) == []


def test_where_nobody_says_why_an_etag_is_no_md5_such_files_are_read_twice_by_one_host(
    start: Start, proxy: Proxy, bucket: str, upload: Callable[..., None], small: dict[str, bytes], tmp_path: Path
) -> None:
    upload({f"{UUID}/{name}": data for name, data in small.items()})
    encrypted(proxy, small, takes=lambda name: name.endswith(("1.py", "3.py")), says_so=False)
    job = start([tmp_path / name for name in "abc"], proxy.server.storage(bucket), SHARED)

    told = [job.told(rank)[0]["proofs"] for rank in range(3)]

    proofs = dict.fromkeys(small, "origin checksum (md5)") | {"model.pth": "length only"}
    twice = {name: "length only" for name in small if name.endswith(("1.py", "3.py"))}
    assert told == [proofs | twice] * 3
    assert proxy.bodies() == sum(map(len, small.values())) + sum(len(small[name]) for name in twice)


def test_a_flipped_bit_that_only_the_etag_shows_is_kept_by_no_host(
    start: Start, proxy: Proxy, bucket: str, upload: Callable[..., None], small: dict[str, bytes], tmp_path: Path
) -> None:
    upload({f"{UUID}/{name}": data for name, data in small.items()})
    asked: list[str] = []

    def flip_first(asking: Exchange) -> Fault | None:
        if asking.method != "GET" or not asking.path.endswith("code/7.py"):
            return Fault(without=("x-amz-checksum-crc32",))
        asked.append(asking.path)
        return Fault(flip=len(asked) == 1)

    proxy.faults = flip_first
    job = start([tmp_path / name for name in "ab"], proxy.server.storage(bucket), SHARED)

    assert [job.told(rank)[0]["proofs"]["code/7.py"] for rank in range(2)] == ["origin checksum (md5)"] * 2
    for name in "ab":
        store = Store(tmp_path / name)
        manifest = store.resolve(REGISTRY, UUID)
        assert manifest is not None
        assert {str(one.path): store.blobs.read(one.digest) for one in manifest.files if one.digest} == small
    assert proxy.count("GET", "code/6.py") == 1


def test_what_one_host_has_is_known_to_the_others_where_etags_are_none(
    start: Start, proxy: Proxy, bucket: str, upload: Callable[..., None], small: dict[str, bytes], tmp_path: Path
) -> None:
    """Of a host that pulled by itself: what it found out is enough."""
    upload({f"{UUID}/{name}": data for name, data in small.items()})
    encrypted(proxy, small)
    job = start([tmp_path / "b"], proxy.server.storage(bucket), f'checkpoint("{UUID}").only("code/").view(); say()')
    assert job.told(0) == [{}]
    before = proxy.bodies()

    job = start([tmp_path / name for name in "abc"], proxy.server.storage(bucket), SHARED)

    assert [job.told(rank)[0]["proofs"] for rank in range(3)] == [dict.fromkeys(small, "length only")] * 3
    code = sum(len(data) for name, data in small.items() if name.startswith("code/"))
    rest = sum(map(len, small.values())) - code
    assert proxy.bodies() - before == rest


def test_bytes_that_came_from_another_host_and_are_others_are_not_kept(
    start: Start, proxy: Proxy, bucket: str, upload: Callable[..., None], small: dict[str, bytes], tmp_path: Path
) -> None:
    """A line between two hosts that spoils what it carries, where no checksum of the origin shows it."""
    del small["model.pth"]
    upload({f"{UUID}/{name}": data for name, data in small.items()})
    encrypted(proxy, small)
    scenario = f"""
from cas.transfer.process_group import TorchGroup
def spoiling(self, sends, receives, swap=TorchGroup.swap):
    swap(self, sends, receives)
    for _, buffer in receives:
        buffer[0] ^= 1
if rank == 2:
    TorchGroup.swap = spoiling
{SHARED}"""
    job = start([tmp_path / name for name in "abc"], proxy.server.storage(bucket), scenario)

    assert [job.told(rank)[0]["proofs"] for rank in range(3)] == [dict.fromkeys(small, "length only")] * 3
    for name in "abc":
        store = Store(tmp_path / name)
        manifest = store.resolve(REGISTRY, UUID)
        assert manifest is not None
        assert {str(one.path): store.blobs.read(one.digest) for one in manifest.files if one.digest} == small


@pytest.mark.parametrize("crc", [False, True], ids=["nothing vouches", "crc32"])
def test_strict_verification_takes_no_etag_that_is_no_md5(
    crc: bool,
    start: Start,
    proxy: Proxy,
    bucket: str,
    upload: Callable[..., None],
    small: dict[str, bytes],
    tmp_path: Path,
) -> None:
    del small["model.pth"]  # which is asked about before anything is read
    upload({f"{UUID}/{name}": data for name, data in small.items()})
    encrypted(proxy, small, crc=crc)
    scenario = f'settings = settings.but(verify="strict"){SHARED}'
    job = start([tmp_path / name for name in "ab"], proxy.server.storage(bucket), scenario)

    told = [job.told(rank)[0] for rank in range(2)]

    if crc:
        assert [one["proofs"] for one in told] == [dict.fromkeys(small, "origin checksum (crc32)")] * 2
        assert proxy.bodies() == sum(map(len, small.values()))
    else:
        assert {one["error"] for one in told} == {"ContentError", "PeerError"}
        assert all("no checksum vouches for its bytes" in one["text"] for one in told)
