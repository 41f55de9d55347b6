"""The vendor's own client, 0.38.1, in an environment of its own: it gets the same records, and shares the token cache.

This shows that the simulated master is right, and not just what ours expects. `make test` makes the environment, once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from master_data import ACCURACY, CLEAN, EMPTY, NO_METRIC, SILENT, big
from master_simulator import Data, Simulator

from cas import Checkpoint, Determined
from cas.config import DeterminedEnvironment
from cas.registry.tokens import TokenCache

ROOT = Path(__file__).resolve().parents[1]
PYTHON = ROOT / ".venv-vendor" / "bin" / "python"
READS = ROOT / "tests" / "vendor_reads.py"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not PYTHON.exists(), reason="no .venv-vendor with the vendor's client: `make .venv-vendor/done`"
    ),
]


@pytest.fixture(scope="module")
def server() -> Iterator[Simulator]:
    with Simulator(big()) as running:
        yield running


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("CAS_OFFLINE", "CAS_MASTER", "DET_MASTER", "DET_MASTER_ADDR", "DET_USER", "DET_PASS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CAS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CAS_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.setenv("DET_DEBUG_CONFIG_PATH", str(tmp_path / "determined"))


def vendor(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    environment |= {"HOME": str(folder), "DET_DEBUG_CONFIG_PATH": str(folder / "determined")}
    pipe = subprocess.PIPE
    command = [str(PYTHON), str(READS), *arguments]
    return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True)


def ended(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


def seen(checkpoint: Checkpoint) -> dict[str, Any]:
    """What `vendor_reads.py` prints of a checkpoint, by the same attributes of ours."""
    training = checkpoint.training
    return {
        "uuid": checkpoint.uuid,
        "state": checkpoint.state.name,
        "report_time": checkpoint.report_time,
        "resources": dict(checkpoint.resources),
        "metadata": dict(checkpoint.metadata),
        "task_id": checkpoint.task_id,
        "training": training
        and {
            "experiment": training.experiment_id,
            "trial": training.trial_id,
            "hparams": dict(training.hparams),
            "config": dict(training.experiment_config),
            "metrics": training.validation_metrics["avgMetrics"],
        },
    }


def test_the_vendors_client_gets_the_same_records(server: Simulator, tmp_path: Path) -> None:
    experiments = (CLEAN, ACCURACY, SILENT, NO_METRIC, EMPTY)
    theirs = json.loads(ended(vendor(tmp_path, server.url, "alice", "wonder", *map(str, experiments))))
    determined = Determined(server.url, "alice", "wonder")
    assert theirs["version"] == "0.38.1"
    for id in experiments:
        experiment, found = determined.get_experiment(id), theirs[str(id)]
        assert experiment.name == found["name"]
        assert [one.id for one in experiment.list_trials()] == found["trials"]
        assert len(found["completed"]) > 20 or id == EMPTY
        ours = sorted((seen(one) for one in experiment.list_checkpoints()), key=lambda one: str(one["uuid"]))
        assert ours == found["completed"]
        for trial, listed in found["of_trials"].items():
            mine = determined.get_trial(trial).list_checkpoints()
            assert sorted((seen(one) for one in mine), key=lambda one: str(one["uuid"])) == listed
    best = determined.get_experiment(CLEAN).top_checkpoint()
    (theirs_best,) = theirs[str(CLEAN)]["by_default"]
    by_uuid = {one["uuid"]: one for one in theirs[str(CLEAN)]["completed"]}
    assert seen(best)["training"]["metrics"]["loss"] == by_uuid[theirs_best]["training"]["metrics"]["loss"]


LOGINS = """
import sys
from pathlib import Path
from cas.registry.master import Master
folder, url, *users = sys.argv[1:]
for user in users:
    assert Master(url, user, f"secret of {user}").login.token()
"""


def test_both_clients_share_the_token_cache_without_losing_an_entry(tmp_path: Path) -> None:
    ours, theirs = [f"ours-{n}" for n in range(6)], [f"theirs-{n}" for n in range(6)]
    with Simulator(Data(users={name: f"secret of {name}" for name in ours + theirs})) as server:
        words = [word for name in theirs for word in (name, f"secret of {name}")]
        other = vendor(tmp_path, server.url, "login", *words)
        command = [sys.executable, "-c", LOGINS, str(tmp_path), server.url]
        mine = [
            subprocess.Popen([*command, *some], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
            for some in (ours[:3], ours[3:])
        ]
        assert [one.wait(timeout=120) for one in mine] == [0, 0]
        ended(other)
        folder = DeterminedEnvironment.load().config_folder
        assert set(TokenCache(folder, server.url).users()) == set(ours + theirs)
        assert not list(folder.glob("*corrupt*"))
        token = TokenCache(folder, server.url).token("theirs-0")  # ours asks with what the other client got
        Determined(server.url, "theirs-0").whoami()
        asked = server.requests()[-1]["headers"]["Authorization"]
        assert asked == f"Bearer {token}"
        experiments = json.loads(ended(vendor(tmp_path, server.url, "ours-5", "secret of ours-5")))
        assert experiments["version"] == "0.38.1"  # and the other with what ours got
        assert not [one for one in server.requests() if one["path"].endswith("/login")]
