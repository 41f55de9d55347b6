"""A job of eight ranks, real processes over one home; one cannot reach the master: none loads another model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from master_simulator import Data, Simulator

from cas import Determined

ROOT = Path(__file__).resolve().parents[1]
OLD, NEW = "10000000-0000-4000-8000-000000000000", "20000000-0000-4000-8000-000000000000"
RANKS = 8

pytestmark = pytest.mark.slow

RANK = """
import sys, time
from pathlib import Path
from cas import Determined
from cas.errors import CasError
start, name = Path(sys.argv[1]), sys.argv[2]
Path(name).touch()
while not start.exists():
    time.sleep(0.01)
determined = Determined()
for number, question in enumerate([
    lambda: determined.get_experiment(1).top_checkpoint(),
    lambda: determined.get_experiment(1).list_checkpoints()[0],
    lambda: determined.get_trial(1).select_checkpoint(best=True),
    lambda: determined.get_trial(1).select_checkpoint(latest=True),
    lambda: determined.get_trial(1).list_checkpoints()[0],
]):
    try:
        print((Path(question().download(f"{name}.model-{number}")) / "weights").read_text())
    except CasError as error:
        print(error.exit_code, error)
"""


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("CAS_OFFLINE", "CAS_MASTER", "DET_MASTER", "DET_MASTER_ADDR", "DET_USER", "DET_PASS", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CAS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CAS_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.setenv("DET_DEBUG_CONFIG_PATH", str(tmp_path / "determined"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for uuid in (OLD, NEW):
        folder = tmp_path / "shared" / "files" / uuid
        folder.mkdir(parents=True)
        (folder / "weights").write_text(uuid)
    return tmp_path


def data(folder: Path) -> Data:
    made = Data()
    storage = {"type": "shared_fs", "host_path": str(folder / "shared"), "storage_path": "files"}
    made.experiment(1, searcher={"metric": "loss", "smaller_is_better": True}, checkpoint_storage=storage)
    made.trial(1, 1)
    made.checkpoint(OLD, trial=1, steps=100, metrics={"loss": 0.5}, resources={"weights": "36"})
    return made


def test_no_rank_loads_another_model_than_the_others(job: Path) -> None:
    with Simulator(data(job)) as master:
        before = Determined(master.url).get_trial(1).select_checkpoint(best=True)  # the catalog knows, and has it
        before.download(job / "before")
        assert before.uuid == OLD
        master.add(uuid=NEW, trial=1, steps=200, metrics={"loss": 0.25}, resources={"weights": "36"})
        answers = _run(job, master)
    cut_off, others = answers[3], [answer for rank, answer in enumerate(answers) if rank != 3]
    assert others == [[NEW] * 5] * (RANKS - 1)
    assert len(cut_off) == 5
    assert all(line.startswith("6 ") and "--offline" in line for line in cut_off)
    assert not list(job.glob("rank-3.model*"))


def _run(job: Path, master: Simulator) -> list[list[str]]:
    """Start eight ranks at one time; the proxy of the fourth is a port where nobody listens."""
    ranks = []
    for rank in range(RANKS):
        environment = {**os.environ, "DET_MASTER": master.url}
        if rank == 3:
            environment |= {"HTTP_PROXY": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9", "CAS_TIMEOUT": "1"}
        command = [sys.executable, "-c", RANK, str(job / "start"), str(job / f"rank-{rank}")]
        ranks.append(subprocess.Popen(command, cwd=job, env=environment, stdout=subprocess.PIPE, text=True))
    while not all((job / f"rank-{rank}").exists() for rank in range(RANKS)):
        assert all(one.poll() is None for one in ranks)
    (job / "start").touch()
    return [one.communicate(timeout=120)[0].splitlines() for one in ranks]
