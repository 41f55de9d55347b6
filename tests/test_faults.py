"""Seeded schedules of faults between us and a server: never a wrong byte where a checksum was declared, always an end.

Each schedule is a seed; `CAS_FAULT_SCHEDULES=3000 pytest tests/test_faults.py` runs more of them.
"""

from __future__ import annotations

import os
import random
import time

import pytest
from proxy import Fault, answer, error, relaying
from remotes import MemoryRemote
from stores import UUID, lies
from web_server import serving

from cas.config import Progress, Settings, Verify
from cas.errors import CasError, ChangedError, TransientRemoteError
from cas.index.store import Store
from cas.transfer import fetch, plan, retry
from cas.transfer.remote import Checksum
from cas.transfer.s3 import S3Place, S3Remote
from cas.transfer.sigv4 import Credentials
from cas.transfer.web import WebRemote

pytestmark = pytest.mark.slow

SCHEDULES = int(os.environ.get("CAS_FAULT_SCHEDULES", "60"))
OVER_HTTP = max(SCHEDULES // 3, 1)  # of each server: these cost more
BOUND = 60.0  # seconds within which every pull ends, however it ends, on a busy machine
SMALL = {"config.json": b'{"layers": 12}', "code/a.py": b"a = 1\n" * 500, "empty": b""}
LARGE = random.Random(8).randbytes(plan.SMALL + 70_000)


@pytest.fixture(autouse=True)
def no_long_pauses(monkeypatch):
    monkeypatch.setattr(retry.RetryingRemote.__init__, "__kwdefaults__", {"stop": None, "pause": 0.001})


def settings_for(home, rng: random.Random) -> Settings:
    verify = Verify.STRICT if rng.random() < 0.5 else Verify.DEFAULT
    return Settings(home=home, progress=Progress.OFF, timeout=0.4, verify=verify, concurrency=rng.choice([1, 4]))


def run(home, remote, settings: Settings, versions: dict[str, list[bytes]], *, sure: bool) -> str:
    """Pull, and check what the store has then: whole versions, and right ones where something vouched for them."""
    store, began, ended = Store(home), time.monotonic(), "committed"
    try:
        report = fetch.pull(store, remote, registry="pulled", uuid=UUID, settings=settings)
        for entry in report.manifest.files:
            data = store.blobs.read(entry.digest)
            proven = report.proofs[entry.path].startswith("origin checksum")
            assert len(data) in {len(version) for version in versions[entry.path]}
            assert proven or settings.verify is not Verify.STRICT or not data
            if proven or sure:
                assert data in versions[entry.path], f"{entry.path}: wrong bytes were committed"
    except CasError as failure:
        assert "\n" not in str(failure)
        ended = type(failure).__name__
    finally:
        store.close()
    assert time.monotonic() - began < BOUND
    assert lies(home) == []
    return ended


# --- in this process -----------------------------------------------------------------------------------------------


class Broken(MemoryRemote):
    """Each read does what a seed says, for so many reads; then all is well."""

    def __init__(self, files, rng: random.Random, faults: int, versions: dict[str, list[bytes]]) -> None:
        super().__init__(files)
        self._rng, self._left, self._written = rng, faults, versions

    def read(self, file, start, end):
        with self.lock:
            word = self._rng.choice(WORDS) if self._left > 0 else "ok"
            self._left -= 1
        if word in ("503", "429"):
            raise TransientRemoteError(word, retry_after=0.001)
        if word == "gone":
            raise ChangedError(f"{file.path} was replaced")
        if word == "replace":
            with self.lock:
                self._written[file.path].append(self._rng.randbytes(file.size))
                self.write(file.path, self._written[file.path][-1])
                self.declare(file.path)
        return self._spoiled(word, super().read(file, start, end), end - start)

    def _spoiled(self, word, pieces, size):
        seen = 0
        for piece in pieces:
            if word == "flip" and not seen:
                piece = bytes([piece[0] ^ 1]) + bytes(piece[1:])
            if word in ("short", "cut") and seen + len(piece) > size // 2:
                yield memoryview(piece)[: max(size // 2 - seen, 0)]
                raise TransientRemoteError(word)
            seen += len(piece)
            yield piece

    def declare(self, name):
        import zlib

        value = zlib.crc32(self._files[name][0]).to_bytes(4, "big")
        self.declared[name] = (Checksum("crc32", value),)


WORDS = ("ok", "ok", "flip", "short", "cut", "503", "429", "gone", "replace")


def test_schedules_in_memory(tmp_path):
    import threading

    ends: dict[str, int] = {}
    for seed in range(SCHEDULES):
        rng = random.Random(seed)
        files = dict(SMALL) if rng.random() < 0.8 else {**SMALL, "model.pth": LARGE}
        versions = {name: [data] for name, data in files.items()}
        remote = Broken(files, rng, rng.choice([1, 3, 10, 40]), versions)
        remote.lock = threading.RLock()
        for name in files:
            remote.declare(name)
        home = tmp_path / f"home-{seed}"
        settings = settings_for(home, rng)
        try:
            first = run(home, remote, settings, versions, sure=True)
            ends[first] = ends.get(first, 0) + 1
            remote._left = 0  # the faults have an end: the same call goes on, and completes
            assert run(home, remote, settings, versions, sure=True) == "committed"
        except BaseException as failure:
            failure.add_note(f"seed {seed}")
            raise
    assert ends.get("committed", 0) > SCHEDULES // 4
    assert len(ends) > 1


# --- over HTTP -----------------------------------------------------------------------------------------------------


def fault_of(rng: random.Random, *, other: str) -> Fault | None:
    kinds = [
        lambda: None,
        lambda: None,
        lambda: Fault(cut=rng.randrange(3000)),
        lambda: Fault(flip=True),
        lambda: Fault(stall=0.8),
        lambda: Fault(answer=b""),
        lambda: Fault(answer=answer(rng.choice(["500 Oops", "503 Slow Down", "429 Busy"]), Retry_After="0")),
        lambda: Fault(headers={"Content-Range": f"bytes 0-{rng.randrange(1, 99)}/{rng.randrange(100, 10**7)}"}),
        lambda: Fault(headers={"Content-Length": str(rng.randrange(5000))}),
        lambda: Fault(drop=("range",)),
        lambda: Fault(drop=("if-match", "if-unmodified-since")),
        lambda: Fault(answer=answer("412 Precondition Failed")),
        lambda: Fault(headers={"ETag": '"another"'}),
        lambda: Fault(answer=answer("302 Found", Location=other)),
        lambda: Fault(answer=answer("200 OK", b"?" * rng.randrange(5000))),
        lambda: Fault(answer=answer("403 Forbidden")),
        lambda: Fault(answer=error("400 Bad Request", "ExpiredToken")),
    ]
    return rng.choice(kinds)()


def test_schedules_over_plain_http(tmp_path):
    (tmp_path / "site").mkdir()
    with serving(tmp_path / "site") as site, relaying(site.port) as proxy:
        for seed in range(OVER_HTTP):
            rng = random.Random(seed)
            files = {**SMALL, "model.pth": LARGE} if rng.random() < 0.3 else dict(SMALL)
            site.digest, place = rng.random() < 0.7, f"place{seed}/"
            for name, data in files.items():
                site.write(place + name, data)
            left = [rng.choice([1, 3, 8])]

            def faults(one, rng=rng, left=left):
                left[0] -= 1
                return fault_of(rng, other=site.url + "elsewhere") if left[0] >= 0 else None

            remote = WebRemote(f"http://127.0.0.1:{proxy.port}/{place}", timeout=0.4)
            home, settings = tmp_path / f"home-{seed}", settings_for(tmp_path / f"home-{seed}", rng)
            versions = {name: [data] for name, data in files.items()}
            try:
                proxy.faults = faults
                run(home, remote, settings, versions, sure=False)
                proxy.faults = lambda one: None
                ended = run(home, remote, settings, versions, sure=site.digest)
                assert ended == "committed" or (settings.verify is Verify.STRICT and not site.digest)
            except BaseException as failure:
                failure.add_note(f"seed {seed}")
                raise


@pytest.mark.s3
def test_schedules_over_s3(tmp_path, s3_server, bucket, upload):
    from proxy import counting

    with counting(s3_server) as proxy:
        for seed in range(OVER_HTTP // 2 + 1):
            rng = random.Random(seed)
            files = {**SMALL, "model.pth": LARGE} if rng.random() < 0.3 else dict(SMALL)
            upload({f"p{seed}/{name}": data for name, data in files.items()})
            left = [rng.choice([1, 3, 8])]

            def faults(one, rng=rng, left=left):
                left[0] -= 1
                return fault_of(rng, other=f"{s3_server.endpoint}/{bucket}/other") if left[0] >= 0 else None

            keys = Credentials(s3_server.access_key, s3_server.secret_key)
            place = S3Place(
                bucket=bucket, prefix=f"p{seed}", endpoint=proxy.server.endpoint, region="us-east-1", keys=keys
            )
            remote = S3Remote(place, timeout=0.4)
            home, settings = tmp_path / f"home-{seed}", settings_for(tmp_path / f"home-{seed}", rng)
            versions = {name: [data] for name, data in files.items()}
            try:
                proxy.faults = faults
                run(home, remote, settings, versions, sure=False)
                proxy.faults = lambda one: None
                assert run(home, S3Remote(place, timeout=5), settings, versions, sure=False) == "committed"
            except BaseException as failure:
                failure.add_note(f"seed {seed}")
                raise
