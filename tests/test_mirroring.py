"""Mirroring: what a master knows is in the catalog afterwards, its checkpoints in the store, and the gaps are said."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cli import Shell
from master_simulator import Data, Simulator
from s3_server import S3Server
from stores import ROOT

import cas
from cas.actions.mirroring import MirrorReport, mirror
from cas.client import Determined
from cas.config import Progress, Settings
from cas.errors import AuthenticationError, NotFoundError, OfflineError, UsageError
from cas.index.store import open_store
from cas.registry.catalog import Catalog
from cas.registry.records import State

pytestmark = pytest.mark.slow

FILES = {"state_dict.pth": b"weights", "metadata.json": b"{}"}
SIZES = {name: str(len(data)) for name, data in FILES.items()}


def uuid(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012x}"


def data(storage: dict[str, Any] | None = None, count: int = 4) -> Data:
    """Experiments 1 to 3 of two trials each; in each of them `count` checkpoints, one DELETED, one with no metrics."""
    made = Data()
    for experiment in (1, 2, 3):
        made.experiment(
            experiment,
            searcher={"metric": "loss", "smaller_is_better": True},
            checkpoint_storage=storage or {"type": "s3", "bucket": "b", "secret_key": "SECRET"},
        )
        for trial in (10 * experiment, 10 * experiment + 1):
            made.trial(trial, experiment, lr=trial)
        for n in range(count):
            metrics = None if n == 1 else {"loss": n / 10}
            state = "DELETED" if n == 0 else "COMPLETED"
            made.checkpoint(
                uuid(100 * experiment + n),
                trial=10 * experiment + n % 2,
                steps=n,
                metrics=metrics,
                state=state,
                resources=SIZES,
            )
    return made


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name in [name for name in os.environ if name.startswith(("CAS_", "DET_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DET_DEBUG_CONFIG_PATH", str(tmp_path / "determined"))
    monkeypatch.setenv("CAS_CONFIG", str(tmp_path / "config.toml"))
    return Settings.load(home=tmp_path / "home", progress=Progress.OFF, timeout=5)


@pytest.fixture
def server() -> Iterator[Simulator]:
    with Simulator(data()) as running:
        yield running


def offline(server: Simulator, settings: Settings) -> Determined:
    return Determined(master=server.url, settings=settings.but(offline=True))


# --- records -----------------------------------------------------------------------------------------------------


def test_a_whole_master_answers_when_it_is_gone(server: Simulator, settings: Settings) -> None:
    report = cas.mirror(server.url, everything=True, settings=settings)
    assert (report.asked, report.checkpoints, report.new, report.missing) == (3, 12, 12, [])
    server.stop()
    determined = offline(server, settings)
    for experiment in (1, 2, 3):
        found = determined.get_experiment(experiment)
        assert found.top_checkpoint().uuid == uuid(100 * experiment + 2)
        assert determined.get_trial(10 * experiment + 1).select_checkpoint(latest=True).uuid == uuid(
            100 * experiment + 3
        )
        assert determined.get_trial(10 * experiment).record.hparams == {"lr": 10 * experiment}
    assert Catalog(open_store(settings.home)).checkpoint(uuid(100)).state is State.DELETED
    for path in settings.home.rglob("*"):
        assert not path.is_file() or b"SECRET" not in path.read_bytes(), path


def test_the_second_run_asks_only_for_what_is_new(server: Simulator, settings: Settings) -> None:
    mirror(server.url, everything=True, settings=settings)
    server.requests()
    before = _bytes(settings)
    report = mirror(server.url, everything=True, settings=settings)
    assert (report.asked, report.unchanged, report.new) == (0, 3, 0)
    assert not [one for one in server.requests() if "checkpoints" in one["path"]]
    assert _bytes(settings) == before

    server.add(uuid=uuid(999), trial=20, steps=50, metrics={"loss": -1})
    report = mirror(server.url, everything=True, settings=settings)
    assert (report.asked, report.unchanged, report.new) == (1, 2, 1)
    assert offline(server, settings).get_experiment(2).top_checkpoint().uuid == uuid(999)
    report = mirror(server.url, everything=True, again=True, settings=settings)
    assert (report.asked, report.unchanged, report.new) == (3, 0, 0)


def _bytes(settings: Settings) -> int:
    return sum(path.stat().st_size for path in settings.home.glob("records/*/*"))


def test_experiments_that_still_run_are_asked_for_each_time(settings: Settings) -> None:
    running = data()
    running.experiments[1]["state"] = "STATE_RUNNING"
    with Simulator(running) as server:
        mirror(server.url, everything=True, settings=settings)
        assert mirror(server.url, everything=True, settings=settings).asked == 1


def test_named_experiments_and_trials_and_nothing_else(server: Simulator, settings: Settings) -> None:
    report = mirror(server.url, experiments=[1, 1], trials=[21], settings=settings)
    assert (report.asked, report.checkpoints) == (2, 6)
    determined = offline(server, settings)
    assert determined.get_experiment(1).top_checkpoint().uuid == uuid(102)
    assert determined.get_trial(21).select_checkpoint(latest=True).uuid == uuid(203)
    with pytest.raises(NotFoundError):
        determined.get_experiment(3)


def test_what_cannot_be_got_is_named_and_stops_nothing(server: Simulator, settings: Settings) -> None:
    report = mirror(server.url, experiments=[1, 77, 3], trials=[88], settings=settings)
    assert report.asked == 2
    assert [one.what for one in report.missing] == ["experiment 77", "trial 88"]
    assert all("not found" in one.why for one in report.missing)
    assert offline(server, settings).get_experiment(3).top_checkpoint().uuid == uuid(302)


def test_faults_of_one_answer_are_named_and_the_next_run_brings_the_rest(server: Simulator, settings: Settings) -> None:
    server.faults("ok ok ok ok ok ok garbage")
    report = mirror(server.url, everything=True, settings=settings.but(concurrency=1))
    assert len(report.missing) == 1
    assert report.asked == 2
    report = mirror(server.url, everything=True, settings=settings)
    assert (report.asked, report.unchanged, report.missing) == (1, 2, [])


def test_a_dry_run_writes_nothing(server: Simulator, settings: Settings) -> None:
    report = mirror(server.url, everything=True, files=True, dry_run=True, settings=settings)
    assert (report.checkpoints, report.new, report.fetched, report.without_files) == (12, 12, 9, 3)
    assert report.bytes_fetched == 9 * sum(map(len, FILES.values()))
    assert not list(settings.home.glob("records/*")) and not list(settings.home.glob("refs/*"))


def test_wrong_calls_are_refused(server: Simulator, settings: Settings) -> None:
    with pytest.raises(UsageError, match="which master"):
        mirror(everything=True, settings=settings)
    with pytest.raises(UsageError, match="what to mirror"):
        mirror(server.url, settings=settings)
    with pytest.raises(UsageError, match="goes alone"):
        mirror(server.url, everything=True, trials=[1], settings=settings)
    with pytest.raises(OfflineError, match="CAS_OFFLINE"):
        mirror(server.url, everything=True, settings=settings.but(offline=True))
    with pytest.raises(AuthenticationError):
        mirror(server.url, everything=True, user="alice", password="wrong", settings=settings)


def test_an_old_master_is_mirrored_by_experiments(settings: Settings) -> None:
    old = data()
    old.version = "0.12.5"
    old.null_is_500 = False
    with Simulator(old) as server:
        with pytest.raises(UsageError, match="too old to list"):
            mirror(server.url, everything=True, settings=settings)
        report = mirror(server.url, experiments=[1], settings=settings)
        assert report.missing == []
        assert offline(server, settings).get_experiment(1).top_checkpoint().uuid == uuid(102)


# --- files -------------------------------------------------------------------------------------------------------


@pytest.fixture
def stocked(
    s3_server: S3Server, bucket: str, upload: Callable[..., None], tmp_path: Path
) -> Iterator[tuple[Simulator, Callable[[int], None]]]:
    """A master whose checkpoints lie in a real bucket; one of them does not: 303."""
    storage = s3_server.storage(bucket, "ckpts")

    def put(number: int) -> None:
        upload({f"ckpts/{uuid(number)}/{name}": contents for name, contents in FILES.items()})

    for number in (101, 102, 103, 201, 202, 203, 301, 302):
        put(number)
    with Simulator(data(storage)) as server:
        yield server, put


@pytest.mark.s3
def test_files_are_fetched_once_and_what_is_not_there_is_named(
    stocked: tuple[Simulator, Callable[[int], None]], settings: Settings, tmp_path: Path
) -> None:
    server, put = stocked
    report = mirror(server.url, everything=True, files=True, settings=settings)
    assert (report.fetched, report.here, report.without_files) == (8, 0, 3)
    assert [one.what for one in report.missing] == [f"checkpoint {uuid(303)}"]
    put(303)
    report = mirror(server.url, everything=True, files=True, settings=settings)
    assert (report.asked, report.unchanged) == (1, 2)
    assert (report.fetched, report.missing) == (1, [])
    server.stop()
    checkpoint = offline(server, settings).get_experiment(3).top_checkpoint()
    path = Path(checkpoint.download(tmp_path / "target"))
    assert {one.name: one.read_bytes() for one in path.iterdir()} == FILES


@pytest.mark.s3
def test_a_killed_mirror_goes_on(
    stocked: tuple[Simulator, Callable[[int], None]], settings: Settings, tmp_path: Path
) -> None:
    server, put = stocked
    put(303)
    command = ["-m", "cas.cli.main", "--home", str(settings.home), "-m", server.url, "mirror", "--all", "--files"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    child = subprocess.Popen([sys.executable, *command], env=environment)
    while len(list(settings.home.glob("refs/*/*/*"))) < 3 and child.poll() is None:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    done = len(list(settings.home.glob("refs/*/*/*")))
    report = mirror(server.url, everything=True, files=True, settings=settings)
    assert report.missing == []
    assert report.fetched <= 9 - done + 1  # one was on its way
    assert len(list(settings.home.glob("refs/*/*"))) == 9


# --- the command -------------------------------------------------------------------------------------------------


def test_the_command_says_what_it_did_and_ends_with_1_if_something_is_missing(
    server: Simulator, tmp_path: Path
) -> None:
    shell = Shell(tmp_path, {"DET_MASTER": server.url})
    done = shell.run("mirror", "--all").ok
    assert done.out.startswith(f"{server.url}: 3 asked for; 12 checkpoints, 12 new in the catalog")
    assert "3 unchanged since the last time" in shell.run("mirror", "--all").ok.out
    done = shell.run("mirror", "--experiment", "1", "--experiment", "77")
    assert done.code == 1
    assert "1 could not be got:" in done.err and "experiment 77" in done.err
    found = json.loads(shell.run("mirror", "--trial", "10", "--dry-run", "--files", "--json").ok.out)
    assert set(MirrorReport.__slots__) <= set(found)
    assert (found["dry_run"], found["fetched"]) == (True, 1)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["mirror"], 2, "say what to mirror: --experiment ID, --trial ID, or --all"),
        (["mirror", "--all", "--trial", "1"], 2, "--all goes alone"),
        (["mirror", "--trial", "1", "--again"], 2, "--again goes with --all"),
        (["mirror", "--trial", "x"], 2, "must be a whole number"),
        (["mirror", "--all"], 2, "say which master"),
        (["-m", "http://127.0.0.1:9", "mirror", "--all"], 6, "does not answer"),
    ],
)
def test_wrong_words_are_one_clear_line(tmp_path: Path, words: list[str], code: int, message: str) -> None:
    done = Shell(tmp_path).run(*words)
    assert done.code == code, done
    assert message in done.line
