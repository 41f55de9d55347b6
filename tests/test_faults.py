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
import zlib
from collections import Counter
from pathlib import Path
from typing import ClassVar

import azurite
import gcs_emulator
import pytest
import schedules
from proxy import Fault, counting, error, relaying
from remotes import MemoryRemote
from s3_server import LATER_KEY, LATER_SECRET
from schedules import Schedule, World, each_seed, run, settings_for
from web_server import serving

from cas.errors import ChangedError, TransientRemoteError
from cas.transfer import azure, plan, retry, web
from cas.transfer.azure import EMULATED, AzureAccount, AzureRemote
from cas.transfer.gcs import GcsPlace, GcsRemote
from cas.transfer.remote import Checksum, RangesIgnoredError, Remote
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
        self._rng, self.left, self.is_calm = rng, faults, False
        self.has_validators = rng.random() < 0.8
        self.has_ranges = rng.random() < 0.8
        self.world = World(
            rng, self.put, lying=rng.random() < 0.5, declares=rng.random() < 0.6, validates=self.has_validators
        )
        self.world.fill(large=rng.random() < 0.7)

    def end(self) -> None:
        """Let there be no more faults; a thread that comes late changes nothing any more."""
        with self.world.lock:
            self.left, self.is_calm = 0, True

    def put(self, name, data, is_other):
        self.write(name, data)
        if self.world.declares:
            self.declared[name] = (Checksum("crc32", zlib.crc32(data).to_bytes(4, "big")),)

    def checksums(self, file, *, thorough=False):
        with self.world.lock:  # never of one version what is said of another
            return super().checksums(file, thorough=thorough)

    def replace(self, name: str) -> None:
        with self.world.lock:
            if not self.is_calm:
                self.world.replace(name)

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
            self.replace(file.path)
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
                self.replace(file.path)
                word = "ok"


HONEST = ("ok", "ok", "short", "byte", "503", "429", "gone", "replace", "replace later")
LIES = ("flip", "flip", "flip")


def in_memory(folder: Path, seed: int) -> str:
    rng = random.Random(seed)
    remote = Broken(rng, rng.choice([1, 3, 10, 40]))
    with home_in(folder, seed) as home:
        settings = settings_for(home, rng)
        ended = run(remote, settings, remote.world)
        remote.end()  # the same call goes on, and completes
        run(remote, settings, remote.world, calm=True)
    return ended


def test_schedules_in_memory(memory, request):
    tell(request, each_seed(FIRST, 2 * SCHEDULES, lambda seed: in_memory(memory, seed)))


# --- with a server ---------------------------------------------------------------------------------------------------


class Over:
    """A server, the proxy before it, and another host with other objects under the same names."""

    # What nothing of the origin vouches for and no condition guards: a check that were missing would show.
    OPEN: ClassVar[dict[str, object]] = {"lying": False, "large": True, "strict": False, "declares": False}

    def __init__(self, folder: Path, proxy, other) -> None:
        self.folder, self.proxy, self.other = folder, proxy, other
        self.used: Counter[str] = Counter()

    def schedule(self, seed: int, *, kinds: tuple[str, ...] = (), **given: object) -> str:
        """Run a schedule against a server that is as the seed says, but for what is given."""
        rng, place = random.Random(seed), f"place{seed}/"
        likes = {
            "lying": rng.random() < 0.5,
            "declares": rng.random() < 0.6,
            "large": rng.random() < 0.7,
            "strict": rng.random() < 0.4,
            **self.likes(rng),
        }
        if rng.random() < schedules.OPEN:
            likes |= self.OPEN
            kinds = kinds or schedules.mixing(rng)
        likes |= given
        self.begin(likes)
        world = World(
            rng,
            lambda name, data, is_other: self.write(world, place, name, data, likes, is_other=is_other),
            lying=likes["lying"],
            declares=likes["declares"],
            validates=self.validates(),
        )
        world.fill(large=likes["large"])
        at = self.at(place)
        for name, data in world.elsewhere.items():
            self.other.write(f"{at[1:]}{name}", data, age=7200)
        faults = Schedule(seed, world, at, f"{self.other.url}{at[1:]}", always=self.always(at, likes), kinds=kinds)
        with home_in(self.folder, seed) as home:
            settings = settings_for(home, rng, strict=likes["strict"])
            self.proxy.faults = faults
            ended = run(self.remote(place, schedules.TIMEOUT, likes), settings, world)
            faults.end()
            run(self.remote(place, PATIENT, likes), settings, world, calm=True)
        self.used += faults.used
        self.proxy.exchanges.clear()
        shutil.rmtree(self.other.folder / at[1:])
        self.end(place)
        return ended

    def likes(self, rng: random.Random) -> dict[str, object]:
        """What the server is like, besides what each may be."""
        return {"is_deaf": rng.random() < 0.4}  # it ignores conditions, always

    def begin(self, likes: dict[str, object]) -> None:
        """Let the server be like that."""

    def validates(self) -> bool:
        """Whether the server tells versions apart."""
        return True

    def write(self, world, place: str, name: str, data: bytes, likes: dict[str, object], *, is_other: bool) -> None:
        """Write an object, or another version of it."""
        raise NotImplementedError

    def at(self, place: str) -> str:
        """How the paths of requests for objects begin."""
        raise NotImplementedError

    def always(self, at: str, likes: dict[str, object]):
        """Return what the server does with every request."""
        drop = schedules.CONDITIONS if likes["is_deaf"] else ()
        return lambda one: Fault(drop=drop) if one.path.startswith(at) else None

    def remote(self, place: str, timeout: float, likes: dict[str, object]) -> Remote:
        """The place, behind the proxy."""
        raise NotImplementedError

    def end(self, place: str) -> None:
        """Remove what was written, where it would be much in the end."""


def require_noticed(over: Over, *kinds: str, **traits: object) -> None:
    """With a check missing, schedules that are open to it fail, and say of which versions the bytes are."""
    with pytest.raises(ExceptionGroup, match="schedules failed") as caught:
        each_seed(0, 40, lambda seed: over.schedule(seed, kinds=kinds, **{**over.OPEN, **traits}), failures=1)
    assert "blocks of versions" in str(caught.value.exceptions[0])


# --- over HTTP -------------------------------------------------------------------------------------------------------


class OverHttp(Over):
    """A plain web server."""

    OPEN: ClassVar = {**Over.OPEN, "modified": True, "ranges": True, "conditions": "ignored"}

    def __init__(self, folder: Path, site, proxy, other) -> None:
        super().__init__(folder, proxy, other)
        self.site = site

    def likes(self, rng: random.Random) -> dict[str, object]:
        return {
            "etag": rng.choice(["strong", "strong", "strong", "weak", "none"]),
            "modified": rng.random() < 0.6,
            "ranges": rng.random() < 0.85,
            "conditions": rng.choice(["obeyed", "obeyed", "ignored", "refused"]),
        }

    def begin(self, likes: dict[str, object]) -> None:
        site = self.site
        site.etag, site.ranges, site.conditions = likes["etag"], likes["ranges"], likes["conditions"]
        site.digest = likes["declares"]
        site.modified = likes["modified"] or site.etag != "none"

    def validates(self) -> bool:
        return self.site.modified

    def write(self, world, place: str, name: str, data: bytes, likes: dict[str, object], *, is_other: bool) -> None:
        self.site.write(place + name, data, age=0 if is_other else 3600)
        if is_other and self.site.etag != "strong":
            world.untold.add(name)  # its time is too young to tell versions apart

    def at(self, place: str) -> str:
        return f"/{place}"

    def always(self, at: str, likes: dict[str, object]):
        return lambda one: None

    def remote(self, place: str, timeout: float, likes: dict[str, object]) -> WebRemote:
        return WebRemote(f"http://127.0.0.1:{self.proxy.port}/{place}", timeout=timeout)

    def end(self, place: str) -> None:
        shutil.rmtree(self.site.folder / place)


@pytest.fixture
def over_http(memory):
    for name in ("site", "other"):
        (memory / name).mkdir()
    with serving(memory / "site") as site, serving(memory / "other") as other, relaying(site.port) as proxy:
        yield OverHttp(memory, site, proxy, other)


def test_schedules_over_plain_http(over_http, request):
    tell(request, each_seed(FIRST, SCHEDULES, over_http.schedule), over_http.used)


def trusting(reply, file, start, end, require_same):
    """Yield a range as `http.exact` does, and believe that it is the one that was asked for."""
    require_same(reply.headers, None)
    yield from reply.pieces(end - start)


@pytest.mark.parametrize(
    ("check", "instead", "traits", "kinds"),
    [
        ("exact", trusting, {"conditions": "obeyed"}, ("other range",)),
        ("_require_same", lambda *_: None, {}, ("replaced", "cut")),
    ],
)
def test_schedules_over_plain_http_notice_a_check_that_is_missing(
    over_http, monkeypatch, check, instead, traits, kinds
):
    monkeypatch.setattr(web, check, instead)
    require_noticed(over_http, *kinds, etag="strong", **traits)


# --- over S3 ---------------------------------------------------------------------------------------------------------

DECLARED = tuple(f"x-amz-checksum-{name}" for name in ("crc32", "crc32c", "crc64nvme", "sha1", "sha256", "type"))


class OverS3(Over):
    """A bucket of a real server."""

    OPEN: ClassVar = {**Over.OPEN, "in_parts": True, "is_deaf": True}

    def __init__(self, folder: Path, server, bucket: str, proxy, other) -> None:
        super().__init__(folder, proxy, other)
        self.server, self.bucket, self.client = server, bucket, server.client()

    def likes(self, rng: random.Random) -> dict[str, object]:
        return {
            **super().likes(rng),
            "in_parts": rng.random() < 0.6,
            "expiry": rng.choice([0, 0, 0, 2, 6, 12]),  # answers after which the keys run out, if they do
        }

    def write(self, world, place: str, name: str, data: bytes, likes: dict[str, object], *, is_other: bool) -> None:
        """Write an object; in parts, its ETag is no MD5 of its bytes."""
        where = {"Bucket": self.bucket, "Key": place + name}
        if not likes["in_parts"] or not data:
            self.client.put_object(**where, Body=data)
            return
        upload = {**where, "UploadId": self.client.create_multipart_upload(**where)["UploadId"]}
        part = self.client.upload_part(**upload, PartNumber=1, Body=data)
        parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
        self.client.complete_multipart_upload(**upload, MultipartUpload=parts)

    def at(self, place: str) -> str:
        return f"/{self.bucket}/{place}"

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


@pytest.fixture
def keys_by_command(memory, s3_server, monkeypatch):
    """A command that gives two pairs of keys, one after the other."""
    for number, (key, secret) in enumerate([(s3_server.access_key, s3_server.secret_key), (LATER_KEY, LATER_SECRET)]):
        said = {"Version": 1, "AccessKeyId": key, "SecretAccessKey": secret, "Expiration": "2099-01-01T00:00:00Z"}
        (memory / f"keys-{number}.json").write_text(json.dumps(said))
    script = memory / "keys.sh"
    script.write_text(
        f"cd {memory}\n[ -e calls ] && cat keys-1.json || cat keys-0.json\ntouch calls\n", encoding="utf-8"
    )
    (memory / "aws-config").write_text(f"[default]\ncredential_process = sh {script}\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(memory / "aws-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(memory / "none"))


@pytest.fixture
def over_s3(memory, s3_server, bucket, keys_by_command):
    (memory / "other").mkdir()
    with serving(memory / "other") as other, counting(s3_server) as proxy:
        ground = OverS3(memory, s3_server, bucket, proxy, other)
        yield ground
        ground.client.close()


@pytest.mark.s3
def test_schedules_over_s3(over_s3, request):
    tell(request, each_seed(FIRST, max(SCHEDULES // 2, 1), over_s3.schedule), over_s3.used)


@pytest.mark.s3
def test_schedules_over_s3_notice_a_check_that_is_missing(over_s3, monkeypatch):
    monkeypatch.setattr(S3Remote, "_require_listed", lambda *_: None)
    require_noticed(over_s3, "replaced", "cut", expiry=0)


# --- over Azure and GCS ----------------------------------------------------------------------------------------------


class OverAzure(Over):
    """A container of a real server, which everybody may read: a signature is of the headers that faults change."""

    OPEN: ClassVar = {**Over.OPEN, "is_deaf": True}

    def __init__(self, folder: Path, server: azurite.Azurite, container: str, proxy, other) -> None:
        super().__init__(folder, proxy, other)
        self.server, self.container = server, container

    def write(self, world, place: str, name: str, data: bytes, likes: dict[str, object], *, is_other: bool) -> None:
        put = self.server.put if likes["declares"] else self.server.put_in_blocks
        put(self.container, place + name, data)

    def at(self, place: str) -> str:
        return f"/{EMULATED}/{self.container}/{place}"

    def remote(self, place: str, timeout: float, likes: dict[str, object]) -> AzureRemote:
        account = AzureAccount(url=f"http://127.0.0.1:{self.proxy.port}/{EMULATED}", anonymous=True)
        return AzureRemote(account, self.container, place.rstrip("/"), timeout=timeout)


@pytest.fixture
def over_azure(memory):
    if azurite.command() is None:
        pytest.skip("no azurite: `npm install --prefix .venv-azurite azurite` brings it")
    (memory / "other").mkdir()
    with azurite.running() as server, serving(memory / "other") as other, relaying(server.port) as proxy:
        server.make("schedules", public=True)
        yield OverAzure(memory, server, "schedules", proxy, other)


def test_schedules_over_azure(over_azure, request):
    tell(request, each_seed(FIRST, max(SCHEDULES // 2, 1), over_azure.schedule), over_azure.used)


def test_schedules_over_azure_notice_a_check_that_is_missing(over_azure, monkeypatch):
    monkeypatch.setattr(azure, "_require_same", lambda *_: None)
    require_noticed(over_azure, "replaced", "cut")


class Undeclared(GcsRemote):
    """A place that declares no checksums."""

    def checksums(self, file, *, thorough=False):
        return ()

    likely_checksums = checksums


class OverGcs(Over):
    """A bucket of the emulator, which sends the newest version whatever was asked for."""

    def __init__(self, folder: Path, port: int, bucket: str, proxy, other) -> None:
        super().__init__(folder, proxy, other)
        self.url, self.bucket = f"http://127.0.0.1:{port}", bucket

    def write(self, world, place: str, name: str, data: bytes, likes: dict[str, object], *, is_other: bool) -> None:
        gcs_emulator.upload(self.url, self.bucket, place + name, data)

    def at(self, place: str) -> str:
        return f"/storage/v1/b/{self.bucket}/o/{place}"

    def remote(self, place: str, timeout: float, likes: dict[str, object]) -> GcsRemote:
        endpoint = f"http://127.0.0.1:{self.proxy.port}"
        found = GcsPlace(bucket=self.bucket, prefix=place.rstrip("/"), endpoint=endpoint, anonymous=True)
        return (GcsRemote if likes["declares"] else Undeclared)(found, timeout=timeout)


@pytest.fixture
def over_gcs(memory):
    (memory / "other").mkdir()
    with gcs_emulator.running() as port, serving(memory / "other") as other, relaying(port) as proxy:
        gcs_emulator.make(f"http://127.0.0.1:{port}", "schedules")
        yield OverGcs(memory, port, "schedules", proxy, other)


def test_schedules_over_gcs(over_gcs, request):
    tell(request, each_seed(FIRST, max(SCHEDULES // 2, 1), over_gcs.schedule), over_gcs.used)


def test_schedules_over_gcs_notice_a_check_that_is_missing(over_gcs, monkeypatch):
    monkeypatch.setattr(GcsRemote, "_ask_same", lambda *_: None)
    require_noticed(over_gcs, "replaced", "cut")
