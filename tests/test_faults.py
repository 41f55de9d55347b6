"""Seeded schedules of faults between us and a server: what is committed is one version, and there is always an end.

`tests/schedules.py` says what must hold, and what goes wrong. The suite runs some of them;
`CAS_FAULT_SCHEDULES=3000 pytest tests/test_faults.py` runs more of them, beginning at seed `CAS_FAULT_FIRST`.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import tempfile
import zlib
from collections import Counter
from pathlib import Path

import pytest
import schedules
from proxy import Fault, counting, error, relaying
from remotes import MemoryRemote
from s3_server import LATER_KEY, LATER_SECRET
from schedules import Schedule, World, each_seed, run, settings_for
from web_server import serving

from cas.errors import ChangedError, TransientRemoteError
from cas.transfer import plan, retry, web
from cas.transfer.remote import Checksum, RangesIgnoredError
from cas.transfer.s3 import S3Place, S3Remote
from cas.transfer.sigv4 import Credentials
from cas.transfer.web import WebRemote

SCHEDULES = int(os.environ.get("CAS_FAULT_SCHEDULES", "40"))
FIRST = int(os.environ.get("CAS_FAULT_FIRST", "0"))
PATIENT = 20.0  # seconds, where a busy machine must not be taken for a silent server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300 + 3 * SCHEDULES)]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Short pauses, and small ranges: a schedule then takes a tenth of a second."""
    monkeypatch.setattr(retry.RetryingRemote.__init__, "__kwdefaults__", {"stop": None, "pause": 0.001})
    monkeypatch.setattr(plan, "SMALL", schedules.RANGE)
    monkeypatch.setattr(plan.split, "__defaults__", (schedules.RANGE,))


@pytest.fixture
def folder():
    """A folder in memory, where syncing costs nothing."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        yield Path(name)


@contextlib.contextmanager
def home_in(folder: Path, seed: int):
    home = folder / f"home-{seed}"
    yield home
    shutil.rmtree(home)


def tell(request, ends: Counter[str], used: Counter[str] | None = None) -> None:
    """Print what happened, for who asked for many; see that the schedules were no walk in the park."""
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        if "CAS_FAULT_SCHEDULES" in os.environ:
            print(f"\n{request.node.name}: {ends.total()} schedules, {dict(ends)}, faults {dict(used or {})}")
    if ends.total() >= 30:
        assert ends["committed"] >= ends.total() // 5
        assert len(ends) > 1


# --- in this process -------------------------------------------------------------------------------------------------


class Broken(MemoryRemote):
    """Each read does what a seed says, for so many reads; then all is well."""

    def __init__(self, rng: random.Random, faults: int) -> None:
        super().__init__()
        self._rng, self.left = rng, faults
        self.has_validators = rng.random() < 0.8
        self.has_ranges = rng.random() < 0.8
        self.world = World(
            rng, self.put, lying=rng.random() < 0.5, declares=rng.random() < 0.6, validates=self.has_validators
        )
        self.world.fill(large=rng.random() < 0.7)

    def put(self, name, data, is_other):
        self.write(name, data)
        if self.world.declares:
            self.declared[name] = (Checksum("crc32", zlib.crc32(data).to_bytes(4, "big")),)

    def read(self, file, start, end):
        if self.left > 0 and self._rng.random() < 0.05:
            raise RangesIgnoredError("no ranges this time")
        return super().read(file, start, end)

    def _pieces(self, file, start, end):
        with self.world.lock:
            words = (*HONEST, *LIES) if self.world.lying else HONEST
            word = self._rng.choice(words) if self.left > 0 else "ok"
            self.left -= 1
            half = (end - start) // 2
            at = self._rng.randrange(max(end - start, 1))
        if word in ("503", "429"):
            raise TransientRemoteError(word, retry_after=0.001)
        if word == "gone":
            raise ChangedError(f"{file.path} was replaced")
        if word == "replace":
            self.world.replace(file.path)
        return self._spoiled(file, word, super()._pieces(file, start, end), half, at)

    def _spoiled(self, file, word, pieces, half, at):
        seen = 0
        for piece in pieces:
            if word == "flip" and seen <= at < seen + len(piece):
                piece = bytearray(piece)
                piece[at - seen] ^= 1
            if word in ("short", "byte") and seen + len(piece) > (half if word == "short" else 1):
                yield memoryview(piece)[: half - seen if word == "short" else 1]
                raise TransientRemoteError(word)
            seen += len(piece)
            yield piece
            if word == "replace later":
                self.world.replace(file.path)
                word = "ok"


HONEST = ("ok", "ok", "short", "byte", "503", "429", "gone", "replace", "replace later")
LIES = ("flip", "flip", "flip")


def in_memory(folder: Path, seed: int) -> str:
    rng = random.Random(seed)
    remote = Broken(rng, rng.choice([1, 3, 10, 40]))
    with home_in(folder, seed) as home:
        settings = settings_for(home, rng)
        ended = run(remote, settings, remote.world)
        remote.left = 0  # the faults have an end: the same call goes on, and completes
        run(remote, settings, remote.world, calm=True)
    return ended


def test_schedules_in_memory(folder, request):
    tell(request, each_seed(FIRST, 2 * SCHEDULES, lambda seed: in_memory(folder, seed)))


# --- over HTTP -------------------------------------------------------------------------------------------------------


class OverHttp:
    """A server, the proxy before it, and another host."""

    def __init__(self, folder: Path, site, proxy, other) -> None:
        self.folder, self.site, self.proxy, self.other = folder, site, proxy, other
        self.used: Counter[str] = Counter()

    def schedule(self, seed: int, *, kinds: tuple[str, ...] = (), **given: object) -> str:
        """Run a schedule against a server that is as the seed says, but for what is given."""
        rng, site, place = random.Random(seed), self.site, f"place{seed}/"
        likes = {
            "etag": rng.choice(["strong", "strong", "strong", "weak", "none"]),
            "modified": rng.random() < 0.6,
            "digest": rng.random() < 0.6,
            "ranges": rng.random() < 0.85,
            "conditions": rng.choice(["obeyed", "obeyed", "ignored", "refused"]),
            "lying": rng.random() < 0.5,
            "large": rng.random() < 0.7,
            "strict": rng.random() < 0.4,
        }
        if rng.random() < schedules.OPEN:
            likes |= {"etag": rng.choice(["strong", "none"]), "modified": True, "digest": False, "ranges": True}
            likes |= {"conditions": "ignored", "lying": False, "large": True, "strict": False}
            kinds = kinds or schedules.mixing(rng)
        likes |= given
        for name in ("etag", "digest", "ranges", "conditions"):
            setattr(site, name, likes[name])
        site.modified = likes["modified"] or site.etag != "none"

        def write(name, data, is_other):
            site.write(place + name, data, age=0 if is_other else 3600)
            if is_other and site.etag != "strong":
                world.untold.add(name)  # its time is too young to tell versions apart

        world = World(rng, write, lying=likes["lying"], declares=site.digest, validates=site.modified)
        world.fill(large=likes["large"])
        for name, data in world.elsewhere.items():
            self.other.write(place + name, data, age=7200)
        faults = Schedule(seed, world, f"/{place}", self.other.url + place, kinds=kinds)
        with home_in(self.folder, seed) as home:
            settings = settings_for(home, rng, strict=likes["strict"])
            self.proxy.faults = faults
            ended = run(self.remote(place, schedules.TIMEOUT), settings, world)
            faults.end()
            run(self.remote(place, PATIENT), settings, world, calm=True)
        self.used += faults.used
        self.proxy.exchanges.clear()
        for root in (site.folder, self.other.folder):
            shutil.rmtree(root / place)
        return ended

    def remote(self, place: str, timeout: float) -> WebRemote:
        return WebRemote(f"http://127.0.0.1:{self.proxy.port}/{place}", timeout=timeout)


@pytest.fixture
def over_http(folder):
    for name in ("site", "other"):
        (folder / name).mkdir()
    with serving(folder / "site") as site, serving(folder / "other") as other, relaying(site.port) as proxy:
        yield OverHttp(folder, site, proxy, other)


def test_schedules_over_plain_http(over_http, request):
    tell(request, each_seed(FIRST, SCHEDULES, over_http.schedule), over_http.used)


def trusting(reply, file, start, end, require_same):
    """Yield a range as `http.exact` does, and believe that it is the one that was asked for."""
    require_same(reply.headers, None)
    yield from reply.pieces(end - start)


@pytest.mark.parametrize(
    ("check", "instead", "traits", "kinds"),
    [
        ("exact", trusting, {"ranges": True}, ("other range",)),
        ("_require_same", lambda *_: None, {"conditions": "ignored"}, ("replaced", "cut")),
    ],
)
def test_schedules_over_plain_http_notice_a_check_that_is_missing(
    over_http, monkeypatch, check, instead, traits, kinds
):
    monkeypatch.setattr(web, check, instead)
    open_to_it = {
        "lying": False,
        "digest": False,
        "etag": "strong",
        "large": True,
        "strict": False,
        **traits,
    }
    with pytest.raises(ExceptionGroup, match="schedules failed") as caught:
        each_seed(0, 40, lambda seed: over_http.schedule(seed, kinds=kinds, **open_to_it), failures=1)
    assert "blocks of versions" in str(caught.value.exceptions[0])


# --- over S3 ---------------------------------------------------------------------------------------------------------

DECLARED = tuple(f"x-amz-checksum-{name}" for name in ("crc32", "crc32c", "crc64nvme", "sha1", "sha256", "type"))


class OverS3:
    """A bucket of a real server, the proxy before it, and another host."""

    def __init__(self, folder: Path, server, bucket: str, proxy, other) -> None:
        self.folder, self.server, self.bucket, self.proxy, self.other = folder, server, bucket, proxy, other
        self.client = server.client()
        self.used: Counter[str] = Counter()

    def schedule(self, seed: int, *, kinds: tuple[str, ...] = (), **given: object) -> str:
        """Run a schedule against a server that is as the seed says, but for what is given."""
        rng, place = random.Random(seed), f"p{seed}/"
        likes = {
            "in_parts": rng.random() < 0.6,
            "is_deaf": rng.random() < 0.4,  # it ignores If-Match, always
            "lying": rng.random() < 0.5,
            "declares": rng.random() < 0.6,
            "large": rng.random() < 0.7,
            "strict": rng.random() < 0.4,
            "expiry": rng.choice([0, 0, 0, 2, 6, 12]),  # answers after which the keys run out, if they do
        }
        if rng.random() < schedules.OPEN:
            likes |= {"in_parts": True, "is_deaf": True, "lying": False, "declares": False}
            likes |= {"large": True, "strict": False}
            kinds = kinds or schedules.mixing(rng)
        likes |= given

        def write(name, data, is_other):
            self.put(place + name, data, in_parts=likes["in_parts"])

        world = World(rng, write, lying=likes["lying"], declares=likes["declares"], validates=True)
        world.fill(large=likes["large"])
        for name, data in world.elsewhere.items():
            self.other.write(f"{self.bucket}/{place}{name}", data)
        at = f"/{self.bucket}/{place}"
        faults = Schedule(
            seed,
            world,
            at,
            f"{self.other.url}{at[1:]}",
            always=self.always(at, likes),
            kinds=kinds,
        )
        with home_in(self.folder, seed) as home:
            settings = settings_for(home, rng, strict=likes["strict"])
            self.proxy.faults = faults
            ended = run(self.remote(place, schedules.TIMEOUT, likes), settings, world)
            faults.end()
            run(self.remote(place, PATIENT, likes), settings, world, calm=True)
        self.used += faults.used
        self.proxy.exchanges.clear()
        return ended

    def always(self, at: str, likes: dict[str, object]):
        """Return what the server does with every request: what it is deaf to, and keys that run out."""
        drop = ("if-match",) if likes["is_deaf"] else ()
        without = () if likes["declares"] else DECLARED
        left = [likes["expiry"]]

        def found(one):
            if likes["expiry"] and f"Credential={self.server.access_key}/" in one.headers.get("authorization", ""):
                left[0] -= 1
                if left[0] < 0:
                    return Fault(answer=error("400 Bad Request", "ExpiredToken"))
            return Fault(drop=drop, without=without) if one.path.startswith(at) else None

        return found

    def remote(self, place: str, timeout: float, likes: dict[str, object]) -> S3Remote:
        """The place, read with keys of a file or with those of a command, which gives others the second time."""
        keys = None if likes["expiry"] else Credentials(self.server.access_key, self.server.secret_key)
        (self.folder / "calls").unlink(missing_ok=True)
        endpoint = self.proxy.server.endpoint
        return S3Remote(
            S3Place(bucket=self.bucket, prefix=place.rstrip("/"), endpoint=endpoint, region="us-east-1", keys=keys),
            timeout=timeout,
        )

    def put(self, key: str, data: bytes, *, in_parts: bool) -> None:
        """Write an object; in parts, its ETag is no MD5 of its bytes."""
        where = {"Bucket": self.bucket, "Key": key}
        if not in_parts or not data:
            self.client.put_object(**where, Body=data)
            return
        upload = {**where, "UploadId": self.client.create_multipart_upload(**where)["UploadId"]}
        part = self.client.upload_part(**upload, PartNumber=1, Body=data)
        parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
        self.client.complete_multipart_upload(**upload, MultipartUpload=parts)


@pytest.fixture
def keys_by_command(folder, s3_server, monkeypatch):
    """A command that gives two pairs of keys, one after the other."""
    for number, (key, secret) in enumerate([(s3_server.access_key, s3_server.secret_key), (LATER_KEY, LATER_SECRET)]):
        said = {"Version": 1, "AccessKeyId": key, "SecretAccessKey": secret, "Expiration": "2099-01-01T00:00:00Z"}
        (folder / f"keys-{number}.json").write_text(json.dumps(said))
    script = folder / "keys.sh"
    script.write_text(
        f"cd {folder}\n[ -e calls ] && cat keys-1.json || cat keys-0.json\ntouch calls\n", encoding="utf-8"
    )
    (folder / "aws-config").write_text(f"[default]\ncredential_process = sh {script}\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(folder / "aws-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(folder / "none"))


@pytest.fixture
def over_s3(folder, s3_server, bucket, keys_by_command):
    (folder / "other").mkdir()
    with serving(folder / "other") as other, counting(s3_server) as proxy:
        ground = OverS3(folder, s3_server, bucket, proxy, other)
        yield ground
        ground.client.close()


@pytest.mark.s3
def test_schedules_over_s3(over_s3, request):
    tell(request, each_seed(FIRST, max(SCHEDULES // 2, 1), over_s3.schedule), over_s3.used)


@pytest.mark.s3
def test_schedules_over_s3_notice_a_check_that_is_missing(over_s3, monkeypatch):
    monkeypatch.setattr(S3Remote, "_require_listed", lambda *_: None)
    open_to_it = {"lying": False, "declares": False, "is_deaf": True, "in_parts": True, "large": True, "strict": False}
    with pytest.raises(ExceptionGroup, match="schedules failed") as caught:
        each_seed(0, 40, lambda seed: over_s3.schedule(seed, kinds=("replaced", "cut"), **open_to_it), failures=1)
    assert "blocks of versions" in str(caught.value.exceptions[0])
