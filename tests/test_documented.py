"""Every block of Python in docs/migrating.md and README.md runs as it stands, against masters of each kind."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from master_simulator import Data, Simulator

import cas
from cas.config import Settings
from cas.experimental import client

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "tests" / "data" / "checkpoints" / "g_legacy_0_12_5_model_state_dict"
UUIDS = [f"{number}0000000-0000-4000-8000-000000000000" for number in range(1, 4)]

pytestmark = [pytest.mark.slow, pytest.mark.torch]


def blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def data(folder: Path, version: str) -> Data:
    """Experiment 7 with trial 12; the best of its three checkpoints is the second, and each is a model of torch."""
    made = Data(version=version, users={"determined": "", "alice": "wonder"})
    storage = {"type": "shared_fs", "host_path": str(folder), "storage_path": "files"}
    made.experiment(7, searcher={"metric": "loss", "smaller_is_better": True}, checkpoint_storage=storage)
    made.trial(12, 7, lr=0.5)
    for number, (uuid, loss) in enumerate(zip(UUIDS, (0.5, 0.25, 0.75), strict=True), 1):
        place = folder / "files" / uuid
        shutil.copytree(MODEL, place)
        files = {str(path.relative_to(place)): str(path.stat().st_size) for path in place.rglob("*") if path.is_file()}
        metrics = {"loss": loss, "accuracy": number / 4}
        time = f"2024-03-01T13:00:0{number}.250Z"
        made.checkpoint(uuid, trial=12, steps=number * 100, metrics=metrics, resources=files, time=time)
    return made


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in ("CAS_OFFLINE", "CAS_MASTER", "DET_MASTER", "DET_MASTER_ADDR", "DET_USER", "DET_PASS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CAS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CAS_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.setenv("DET_DEBUG_CONFIG_PATH", str(tmp_path / "determined"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield
    client._determined = None


def run(block: str, **names: Any) -> dict[str, Any]:
    exec(compile(block, "docs", "exec"), names)
    return names


MIGRATING = blocks("docs/migrating.md")


def test_the_pages_have_the_blocks_that_this_file_runs() -> None:
    assert len(MIGRATING) == 3
    assert len(blocks("README.md")) >= 2


@pytest.mark.parametrize("version", ["0.12.5", "0.17.4", "0.38.1"])
def test_code_for_0_12_runs_on_masters_of_every_age(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    with Simulator(data(tmp_path, version)) as master:
        monkeypatch.setenv("DET_MASTER", master.url)
        names = run(MIGRATING[0])
    assert names["checkpoint"].uuid == names["best"].uuid == names["top"].uuid == UUIDS[1]
    assert names["best_accuracy"].uuid == names["latest"].uuid == names["one"].uuid == UUIDS[2]
    assert [one.uuid for one in names["best_five"]] == [UUIDS[1], UUIDS[0], UUIDS[2]]
    assert names["path"] == "local_checkpoint"
    assert sorted(path.name for path in Path("local_checkpoint").iterdir()) >= sorted(
        path.name for path in MODEL.iterdir() if path.name != "__pycache__"
    )
    assert type(names["model"]).__mro__[-2].__name__ == "Module"


@pytest.mark.parametrize("version", ["0.12.5", "0.38.1"])
def test_calls_on_the_class_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    with Simulator(data(tmp_path, version)) as master:
        monkeypatch.setenv("DET_MASTER", master.url)
        names = run(MIGRATING[1])
    assert names["best"].uuid == names["checkpoint"].uuid == UUIDS[1]


def test_code_for_0_38_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Simulator(data(tmp_path, "0.38.1")) as master:
        monkeypatch.setenv("DET_MASTER", master.url)
        names = run(MIGRATING[2])
    assert names["best_checkpoint"].uuid == names["checkpoint"].uuid == UUIDS[1]
    assert [one.uuid for one in names["newest"]] == UUIDS[::-1]
    assert names["accurate"].uuid == UUIDS[2]
    assert names["trials"] == [12]
    assert capsys.readouterr().out.splitlines()[-1] == "alice"
    assert (Path("local_checkpoint") / "state_dict.pth").exists()


def test_what_the_readme_shows_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, *_ = blocks("README.md")
    with Simulator(data(tmp_path, "0.38.1")) as master:
        monkeypatch.setenv("DET_MASTER", master.url)
        shutil.copytree(MODEL, "local_checkpoint")
        names = run(first.replace("https://master:8443", master.url))
        assert names["checkpoint"].uuid == UUIDS[2]
        assert len(names["best_five"]) == 3
        assert names["path"] == f"checkpoints/{UUIDS[2]}"
        monkeypatch.delenv("DET_MASTER")
        shutil.copytree(MODEL, "output")
        names = run(second, checkpoint=names["checkpoint"])
    assert (names["folder"] / "state_dict.pth").exists()
    found = cas.Determined(registry="local", settings=Settings.load()).get_experiment(1).top_checkpoint()
    assert found.record.validation_metrics == {"accuracy": 0.97}


def test_logging_in_twice_is_refused(tmp_path: Path) -> None:
    client.login("http://localhost:1", "alice")
    with pytest.raises(cas.CasError, match="comes once"):
        client.login("http://localhost:1", "bob")
