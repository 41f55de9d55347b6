"""What is known of a checkpoint: attributes of both APIs, metadata at a master and here, notebook and pickle."""

from __future__ import annotations

import json
import logging
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from master_simulator import Data, Simulator

from cas import Checkpoint, Determined, Settings
from cas.errors import NotFoundError, OfflineError, UsageError
from cas.index.store import open_store
from cas.registry.catalog import Catalog
from cas.registry.local import record_local
from cas.registry.records import State

pytestmark = pytest.mark.slow

STORAGE = {"type": "s3", "bucket": "b", "access_key": "AKIA-PLANTED", "secret_key": "SECRET-PLANTED"}


def uuid(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012x}"


def data() -> Data:
    made = Data(users={"determined": "", "alice": "wonder"})
    made.experiment(1, searcher={"metric": "loss", "smaller_is_better": True}, checkpoint_storage=STORAGE)
    made.trial(7, 1, lr=0.5)
    made.checkpoint(uuid(1), trial=7, steps=100, metrics={"loss": 0.5}, metadata={"steps_completed": 100, "a": [1]})
    made.checkpoint(uuid(2), trial=7, steps=200, metrics=None)
    made.checkpoint(uuid(3), trial=None, steps=None, metrics=None)
    return made


@pytest.fixture(scope="module")
def server() -> Iterator[Simulator]:
    with Simulator(data()) as running:
        yield running


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("CAS_OFFLINE", "CAS_MASTER", "DET_MASTER", "DET_MASTER_ADDR", "DET_USER", "DET_PASS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CAS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CAS_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.setenv("DET_DEBUG_CONFIG_PATH", str(tmp_path / "determined"))


def added(**more: Any) -> Checkpoint:
    store = open_store(Settings.load().home)
    record_local(store, uuid=uuid(50), experiment=9, trial=90, steps=3, metadata={"kept": 1}, **more)
    return Determined().get_checkpoint(uuid(50))


# --- attributes ----------------------------------------------------------------------------------------------------


def test_the_attributes_of_both_apis_are_there(server: Simulator) -> None:
    found = Determined(server.url).get_checkpoint(uuid(1))
    assert (found.uuid, found.state, found.batch_number) == (uuid(1), State.COMPLETED, 100)
    assert found.report_time == found.end_time == found.start_time == "2024-03-01T13:00:37.250Z"
    assert found.resources == {"metadata.json": 62, "code/": 0}
    assert found.metadata == {"steps_completed": 100, "a": [1]}
    assert (found.task_id, found.allocation_id) == ("2.task-6", "2.task-6.1")
    assert found.storage_config == STORAGE
    assert found.validation["metrics"]["validation_metrics"] == {"loss": 0.5}
    assert found.training is not None
    assert (found.training.experiment_id, found.training.trial_id) == (1, 7)
    assert found.training.experiment_config["searcher"]["metric"] == "loss"
    assert found.training.hparams == {"lr": 0.5}
    assert found.training.validation_metrics["avgMetrics"] == {"loss": 0.5}


def test_a_checkpoint_of_no_trial_has_no_training(server: Simulator) -> None:
    found = Determined(server.url).get_checkpoint(uuid(3))
    assert found.training is None
    assert "no trial" in repr(found)
    assert found.storage_config == {}


def test_no_way_to_show_it_shows_a_storage_key(server: Simulator) -> None:
    found = Determined(server.url).get_checkpoint(uuid(1))
    for shown in (repr(found), str(found), found._repr_html_(), repr(found.training), repr(found.record)):
        assert "PLANTED" not in shown


def test_a_notebook_shows_a_table_in_which_nothing_from_outside_runs() -> None:
    found = added(metrics={"<script>alert(1)</script>": 0.5})
    shown = found._repr_html_()
    assert uuid(50) in shown
    assert "<script>" not in shown
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in shown
    assert "None" not in shown


# --- metadata at a master --------------------------------------------------------------------------------------------


def test_metadata_is_added_and_removed_at_the_master_and_in_the_catalog(server: Simulator) -> None:
    found = Determined(server.url).get_checkpoint(uuid(2))
    others = Determined(server.url).get_checkpoint(uuid(2))
    others.add_metadata({"by": "others", "n": 1})
    found.add_metadata({"n": 2, "deep": {"x": [True, None, "é"]}})
    assert found.metadata["by"] == "others"  # read again before it is written
    assert found.metadata["n"] == 2
    found.remove_metadata(["by", "never-there"])
    assert "by" not in found.metadata
    expected = dict(found.metadata)
    others.reload()
    assert others.metadata == expected == Determined(server.url, offline=True).get_checkpoint(uuid(2)).metadata
    assert expected["deep"] == {"x": [True, None, "é"]}
    sent = [one for one in server.requests() if one["method"] == "POST" and one["path"].endswith("/metadata")]
    body = json.loads(sent[-1]["body"])["checkpoint"]
    assert body == {
        "uuid": uuid(2),
        "metadata": expected,
        "resources": {},
        "training": {},
        "state": "STATE_UNSPECIFIED",
    }


def test_what_changes_nothing_is_not_sent(server: Simulator) -> None:
    found = Determined(server.url).get_checkpoint(uuid(1))
    found.add_metadata({"a": [1]})
    found.remove_metadata(["nothing"])
    assert not [one for one in server.requests() if one["path"].endswith("/metadata")]


def test_steps_that_metadata_names_link_to_another_validation() -> None:
    with Simulator(data()) as server:
        found = Determined(server.url).get_checkpoint(uuid(2))
        assert found.validation["metrics"] is None
        found.add_metadata({"steps_completed": 100})
        assert (found.batch_number, found.validation["metrics"]["validation_metrics"]) == (100, {"loss": 0.5})


def test_offline_a_masters_metadata_is_not_changed(server: Simulator) -> None:
    Determined(server.url).get_checkpoint(uuid(1))
    found = Determined(server.url, offline=True).get_checkpoint(uuid(1))
    with pytest.raises(OfflineError, match="kept by http"):
        found.add_metadata({"n": 1})
    assert "n" not in found.metadata


def test_a_master_that_is_gone_changes_nothing_here_either(server: Simulator) -> None:
    found = Determined(server.url).get_checkpoint(uuid(1))
    server.faults("ok 500")
    with pytest.raises(Exception, match="500"):
        found.add_metadata({"n": 1})
    assert "n" not in found.metadata
    assert "n" not in Determined(server.url, offline=True).get_checkpoint(uuid(1)).metadata


def test_a_checkpoint_found_in_the_catalog_still_tells_its_master(server: Simulator) -> None:
    Determined(server.url).get_checkpoint(uuid(1))
    found = Determined().get_checkpoint(uuid(1))
    found.add_metadata({"from": "catalog"})
    assert Determined(server.url).get_checkpoint(uuid(1)).metadata["from"] == "catalog"
    found.remove_metadata(["from"])


def test_a_checkpoint_that_was_sent_to_another_process_can_be_reloaded(server: Simulator) -> None:
    found = Determined(server.url, "alice", "wonder").get_checkpoint(uuid(1))
    pickled = pickle.dumps(found)
    assert b"wonder" not in pickled
    assert b"v2.public" not in pickled
    back = pickle.loads(pickled)
    back.reload()
    assert back.record == found.record


# --- metadata here ---------------------------------------------------------------------------------------------------


def test_metadata_of_what_was_added_here_is_changed_in_the_catalog() -> None:
    found = added()
    found.add_metadata({"new": 2.5})
    assert Determined().get_checkpoint(uuid(50)).metadata == {"kept": 1, "new": 2.5}
    found.remove_metadata(["kept"])
    assert found.metadata == {"new": 2.5}
    home = Settings.load().home
    for index in home.glob("index-*"):
        index.unlink()
    assert Catalog(open_store(home), "local").checkpoint(uuid(50)).metadata == {"new": 2.5}


def test_a_credential_in_metadata_is_not_written(tmp_path: Path) -> None:
    added().add_metadata({"password": "PLANTED", "fine": 1})
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"PLANTED" in path.read_bytes()]


@pytest.mark.parametrize("odd", [None, 3, "a=1", [("a", 1)], {1: 2}, {"a": object()}, {"a": {1, 2}}])
def test_what_is_no_metadata_is_a_usage_error(odd: Any) -> None:
    with pytest.raises(UsageError, match="metadata"):
        added().add_metadata(odd)


@pytest.mark.parametrize("odd", ["name", b"name", None, 3])
def test_what_are_no_names_is_a_usage_error(odd: Any) -> None:
    with pytest.raises(UsageError, match="as a list"):
        added().remove_metadata(odd)


def test_a_checkpoint_that_nobody_recorded_has_no_metadata_to_change() -> None:
    found = added()
    found.record = type(found.record)(registry="local", uuid=uuid(51))
    with pytest.raises(NotFoundError):
        found.add_metadata({"n": 1})


def test_metadata_is_written_into_a_file(tmp_path: Path) -> None:
    added().write_metadata_file(tmp_path / "metadata.json")
    assert json.loads((tmp_path / "metadata.json").read_text()) == {"kept": 1}


def test_offline_says_how_old_what_is_known_is(server: Simulator, caplog: pytest.LogCaptureFixture) -> None:
    Determined(server.url).get_checkpoint(uuid(1))
    caplog.set_level(logging.WARNING)
    Determined(server.url, offline=True).get_checkpoint(uuid(1))
    assert f"offline: checkpoint {uuid(1)} of {server.url} as it was less than a minute ago" in caplog.text
