"""The way that files come: from the storage, through the master, and what happens where a way is closed."""

from __future__ import annotations

import logging
import os
import threading
import time

import pytest
from master_simulator import Data, Simulator
from stores import UUID, lies

from cas.client import Determined
from cas.config import DownloadMode, Progress, Settings, Verify
from cas.errors import (
    CasError,
    CheckpointNotFoundError,
    NotFoundError,
    OfflineError,
    UsageError,
)
from cas.experimental import DownloadMode as Documented

FILES = {"state_dict.pth": os.urandom(9 << 20), "code/model_def.py": b"x = 1\n", "empty": b""}
OTHER = "00000000-0000-4000-8000-000000000007"

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path):
    """Where the master itself finds the files."""
    place = tmp_path / "only the master mounts this" / UUID
    for name, data in FILES.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)
    return place


@pytest.fixture(autouse=True)
def nothing_of_the_developers(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith(("AWS_", "DET_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DET_DEBUG_CONFIG_PATH", str(tmp_path / "determined"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "aws-config"))


SIZES = {name: str(len(data)) for name, data in FILES.items()} | {"code/": "0", "void/": "0"}
GONE = {"type": "shared_fs", "host_path": "/not/mounted/here"}
UNREACHABLE = {"type": "s3", "bucket": "b", "endpoint_url": "http://127.0.0.1:9", "access_key": "A", "secret_key": "S"}
KEYLESS = {"type": "s3", "bucket": "b", "endpoint_url": "http://127.0.0.1:9"}


def master_with(storage, folder, **more) -> Simulator:
    data = Data()
    data.experiment(1, checkpoint_storage=storage)
    data.trial(2, 1)
    data.checkpoint(UUID, trial=2, folder=str(folder), resources=SIZES, **more)
    return Simulator(data)


@pytest.fixture
def settings(tmp_path):
    return Settings(home=tmp_path / "home", progress=Progress.OFF, timeout=3)


def checkpoint_of(master, settings):
    return Determined(master.url, settings=settings).get_checkpoint(UUID)


def has_everything(path) -> bool:
    return {name: (path / name).read_bytes() for name in FILES} == FILES and (path / "void").is_dir()


@pytest.mark.parametrize("storage", [GONE, {"type": "hdfs", "path": "/x"}, None], ids=["mount", "type", "none"])
def test_auto_goes_through_the_master_where_the_direct_way_is_closed_and_says_why(
    tmp_path, folder, settings, caplog, storage
):
    with master_with(storage, folder) as master:
        path = checkpoint_of(master, settings).download(tmp_path / "out")
        asked = [one for one in master.requests() if one["path"] == f"/checkpoints/{UUID}"]
    assert has_everything(tmp_path / "out")
    assert path == str(tmp_path / "out")
    assert [one["headers"]["Accept"] for one in asked] == ["application/x-tar"]
    [line] = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert "come through the master" in line and "\n" not in line
    assert lies(settings.home) == []


@pytest.mark.s3
@pytest.mark.parametrize("storage", [UNREACHABLE, KEYLESS], ids=["unreachable", "no credentials"])
def test_auto_goes_round_a_bucket_that_cannot_be_reached(tmp_path, folder, settings, caplog, monkeypatch, storage):
    from cas.transfer import retry

    monkeypatch.setattr(retry, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(retry.RetryingRemote.__init__, "__kwdefaults__", {"stop": None, "pause": 0.01})
    with master_with(storage, folder) as master:
        checkpoint_of(master, settings).download(tmp_path / "out")
    assert has_everything(tmp_path / "out")
    assert "come through the master" in caplog.text


def test_direct_never_asks_the_master_for_files(folder, settings):
    with master_with(GONE, folder) as master:
        checkpoint = checkpoint_of(master, settings)
        with pytest.raises(CheckpointNotFoundError, match=r"/not/mounted/here.* nor /determined_shared_fs"):
            checkpoint.download(mode="direct")
        assert not any(one["path"].startswith("/checkpoints/") for one in master.requests())


def test_master_never_looks_at_the_storage(tmp_path, folder, settings):
    storage = {"type": "directory", "container_path": str(tmp_path / "mounted")}
    (tmp_path / "mounted" / UUID).mkdir(parents=True)
    (tmp_path / "mounted" / UUID / "other").write_bytes(b"x")
    with master_with(storage, folder) as master:
        checkpoint_of(master, settings).download(tmp_path / "out", Documented.MASTER)
    assert has_everything(tmp_path / "out")


def test_the_setting_counts_for_load_and_view(folder, settings):
    with master_with(GONE, folder) as master:
        assert has_everything(checkpoint_of(master, settings.but(mode="master")).view())
        with pytest.raises(UsageError, match="mode"):
            settings.but(mode="sideways")


def test_an_open_way_is_taken_and_the_master_not_asked(tmp_path, folder, settings):
    storage = {"type": "directory", "container_path": str(folder.parent)}
    (folder / "void").mkdir()
    with master_with(storage, folder) as master:
        checkpoint_of(master, settings).download(tmp_path / "out")
        assert not any(one["path"].startswith("/checkpoints/") for one in master.requests())
    assert has_everything(tmp_path / "out")


def test_where_both_ways_are_closed_the_error_says_what_each_answered(settings):
    with master_with(GONE, "/nowhere") as master, pytest.raises(CheckpointNotFoundError) as caught:
        checkpoint_of(master, settings).download()
    assert "/not/mounted/here" in str(caught.value)
    assert "through the master" in str(caught.value) and "checkpoint archive failed" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_content_that_is_wrong_is_no_closed_way(tmp_path, folder, settings):
    storage = {"type": "directory", "container_path": str(folder.parent)}
    (folder / "code" / "model_def.py").write_bytes(b"longer than the record says\n")
    with master_with(storage, folder) as master:
        with pytest.raises(CasError, match="its record says"):
            checkpoint_of(master, settings).download(tmp_path / "out")
        assert not any(one["path"].startswith("/checkpoints/") for one in master.requests())


def test_an_archive_that_breaks_off_is_asked_for_again(tmp_path, folder, settings):
    with master_with(GONE, folder) as master:
        checkpoint = checkpoint_of(master, settings)
        master.faults("cut cut ok")
        checkpoint.download(tmp_path / "out")
        assert len([one for one in master.requests() if one["path"].startswith("/checkpoints/")]) == 3
    assert has_everything(tmp_path / "out")
    assert not any((settings.home / "ingest").glob("*/*"))


@pytest.mark.parametrize("kind", ["application/x-tar", "application/gzip", "application/zip"])
def test_an_archive_that_comes_drop_by_drop_is_asked_for_again(tmp_path, folder, settings, kind):
    with master_with(GONE, folder, kinds=[kind]) as master:
        checkpoint = checkpoint_of(master, settings.but(timeout=0.5))
        others = {"application/x-tar": 0, "application/gzip": 1, "application/zip": 2}[kind]  # are asked for first
        master.faults("ok " * others + "drip:0.02")
        started = time.monotonic()
        checkpoint.download(tmp_path / "out")
        assert time.monotonic() - started < 20  # all of it would take minutes
        assert len([one for one in master.requests() if one["path"].startswith("/checkpoints/")]) == 2 * others + 2
    assert has_everything(tmp_path / "out")


def test_an_expired_token_is_renewed(tmp_path, folder, settings):
    with master_with(GONE, folder) as master:
        checkpoint = checkpoint_of(master, settings)
        master.expire_tokens()
        checkpoint.download(tmp_path / "out")
    assert has_everything(tmp_path / "out")


@pytest.mark.parametrize("kind", ["application/gzip", "application/zip"])
def test_a_master_that_knows_only_one_type_is_asked_for_that(tmp_path, folder, settings, kind):
    with master_with(GONE, folder, kinds=[kind]) as master:
        checkpoint_of(master, settings).download(tmp_path / "out")
        accepted = [one["headers"]["Accept"] for one in master.requests() if one["path"].startswith("/checkpoints/")]
    assert accepted[-1] == kind
    assert has_everything(tmp_path / "out")


def test_strict_takes_a_zip_whose_checksums_vouch_for_each_file(tmp_path, folder, settings):
    with master_with(GONE, folder) as master:
        checkpoint = checkpoint_of(master, settings.but(verify=Verify.STRICT))
        checkpoint.download(tmp_path / "out")
    assert set(checkpoint.pull_report.proofs.values()) == {"origin checksum (crc32)"}


def test_offline_asks_nobody(folder, settings):
    with master_with(UNREACHABLE, folder) as master:
        checkpoint_of(master, settings)
        master.requests()
        with pytest.raises(OfflineError, match="CAS_OFFLINE"):
            Determined(master.url, settings=settings.but(offline=True)).get_checkpoint(UUID).download()
        assert master.requests() == []


def test_a_checkpoint_that_no_master_knows_has_no_way_through_one(tmp_path, settings):
    from cas.actions.adding import add

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a").write_bytes(b"x")
    checkpoint = add(tmp_path / "mine", settings=settings)
    assert checkpoint.download(tmp_path / "out", DownloadMode.MASTER)  # it is here: nothing is to come
    next(settings.home.glob("blobs/*/*")).unlink()
    with pytest.raises(NotFoundError, match="added locally"):
        checkpoint.download(tmp_path / "out2", "master")


def test_several_at_once_fetch_one_archive(folder, settings):
    with master_with(GONE, folder) as master:
        checkpoints = [checkpoint_of(master, settings.but(mode="master")) for _ in range(4)]
        threads = [threading.Thread(target=checkpoint.view) for checkpoint in checkpoints]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len([one for one in master.requests() if one["path"].startswith("/checkpoints/")]) == 1
        assert all(has_everything(checkpoint.view()) for checkpoint in checkpoints)


def test_a_checkpoint_goes_through_a_pipe_without_its_master(folder, settings):
    import pickle

    with master_with(GONE, folder) as master:
        checkpoint = checkpoint_of(master, settings)
        assert has_everything(pickle.loads(pickle.dumps(checkpoint)).view())


def test_the_command_takes_a_mode(tmp_path, folder):
    from cli import Shell

    shell = Shell(tmp_path)
    with master_with(GONE, folder) as master:
        refused = shell.run("-m", master.url, "checkpoint", "download", UUID, "--mode", "direct")
        assert refused.code == 3 and "/not/mounted/here" in refused.line
        ended = shell.run("-m", master.url, "checkpoint", "download", UUID, "-o", "out", "-q").ok
    assert ended.out == "out\n"
    assert "so the files come through the master" in ended.line
    assert has_everything(tmp_path / "out")
    assert "invalid choice" in shell.run("checkpoint", "download", UUID, "--mode", "sideways").line
