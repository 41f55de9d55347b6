"""`Determined` and its references, as the documentation calls them: over the catalog, and over a master."""

from __future__ import annotations

import inspect
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from master_simulator import Data, Simulator

import cas.client
import cas.experimental
from cas.actions.adding import add
from cas.client import Determined, ExperimentReference, TrialReference
from cas.config import Settings
from cas.errors import AuthenticationError, NotFoundError, OfflineError, UsageError
from cas.experimental import Checkpoint
from cas.index.store import open_store
from cas.registry.catalog import LOCAL, Catalog
from cas.registry.local import record_local, record_removed
from cas.registry.master import Master
from cas.registry.remembering import Remembering


def uuid(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012x}"


@pytest.fixture(autouse=True)
def nothing_configured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A user's fresh machine: an empty home, and no variable of either client set."""
    import os

    for name in [name for name in os.environ if name.startswith(("CAS_", "DET_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("CAS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CAS_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.setenv("DET_DEBUG_CONFIG_PATH", str(tmp_path / "determined"))


@pytest.fixture
def added() -> None:
    """One experiment of two trials: accuracy is best at 3, loss at 1, most steps at 2."""
    store = open_store(Settings.load().home)
    for number, trial, steps, acc, loss in ((1, 1, 100, 0.5, 0.1), (2, 1, 900, 0.7, 0.2), (3, 2, 300, 0.9, 0.3)):
        record_local(
            store,
            uuid=uuid(number),
            experiment=1,
            trial=trial,
            steps=steps,
            metrics={"accuracy": acc, "loss": loss},
            searcher_metric="accuracy",
            smaller_is_better=False,
        )


def data() -> Data:
    made = Data(users={"determined": "", "alice": "wonder"})
    made.experiment(1, searcher={"metric": "loss", "smaller_is_better": True}, checkpoint_storage={"type": "s3"})
    made.trial(1, 1)
    made.trial(2, 1)
    for n, (trial, loss) in enumerate([(1, 0.5), (1, 0.2), (2, 0.3), (2, "NaN"), (2, 0.1)], 11):
        state = "DELETED" if n == 15 else "COMPLETED"
        made.checkpoint(uuid(n), trial=trial, steps=n, metrics={"loss": loss, "accuracy": n}, state=state)
    return made


@pytest.fixture
def server() -> Iterator[Simulator]:
    with Simulator(data()) as running:
        yield running


# --- the catalog ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("added")
def test_the_documented_calls_find_the_checkpoint() -> None:
    experiment = Determined().get_experiment(1)
    assert experiment.id == 1
    assert experiment.top_checkpoint().uuid == uuid(3)
    assert experiment.top_checkpoint(sort_by="loss", smaller_is_better=True).uuid == uuid(1)
    assert [one.uuid for one in experiment.top_n_checkpoints(2)] == [uuid(3), uuid(2)]
    assert [one.uuid for one in experiment.top_n_checkpoints(5, one_per_trial=True)] == [uuid(3), uuid(2)]
    assert [one.uuid for one in experiment.top_n_checkpoints(5, "loss", False)] == [uuid(3), uuid(2), uuid(1)]
    trial = Determined().get_trial(1)
    assert (trial.id, trial.experiment_id) == (1, 1)
    assert trial.top_checkpoint().uuid == uuid(2)
    assert trial.select_checkpoint(best=True).uuid == uuid(2)
    assert trial.select_checkpoint(best=True, sort_by="loss", smaller_is_better=True).uuid == uuid(1)
    assert trial.select_checkpoint(latest=True).uuid == uuid(2)
    assert trial.select_checkpoint(uuid=uuid(1).upper()).uuid == uuid(1)
    checkpoint = Determined().get_checkpoint(uuid(3))
    assert isinstance(checkpoint, Checkpoint)
    assert (checkpoint.uuid, checkpoint.batch_number, checkpoint.trial_id) == (uuid(3), 300, 2)


@pytest.mark.usefixtures("added")
def test_the_calls_work_on_the_class_too() -> None:
    assert Determined.get_experiment(1).top_checkpoint().uuid == uuid(3)
    assert Determined.get_trial(1).select_checkpoint(latest=True).uuid == uuid(2)
    assert Determined.get_trial(trial_id=1).id == 1
    assert Determined.get_checkpoint(uuid(1)).uuid == uuid(1)
    assert inspect.getdoc(Determined.get_trial)
    assert "Raises:" in (Determined.get_experiment.__doc__ or "")


@pytest.mark.usefixtures("added")
def test_lists_are_in_the_order_asked_for() -> None:
    experiment = Determined().get_experiment(1)
    assert [one.uuid for one in experiment.list_checkpoints()] == [uuid(3), uuid(2), uuid(1)]  # the best first
    assert experiment.list_checkpoints(max_results=1)[0].uuid == experiment.top_checkpoint().uuid
    assert [one.uuid for one in experiment.list_checkpoints("loss", "desc", 2)] == [uuid(3), uuid(2)]
    record_removed(open_store(Settings.load().home), uuid(2))
    assert [one.uuid for one in experiment.list_checkpoints()] == [uuid(3), uuid(1)]
    assert [str(one.state) for one in Determined().get_trial(1).list_checkpoints()] == ["COMPLETED", "DELETED"]
    assert Determined().get_trial(1).select_checkpoint(latest=True).uuid == uuid(1)
    with pytest.raises(UsageError, match="go together"):
        experiment.list_checkpoints(sort_by="loss")


@pytest.mark.usefixtures("added")
def test_select_checkpoint_wants_exactly_one_criterion() -> None:
    trial = Determined().get_trial(1)
    wrong: list[dict[str, Any]] = [
        {},
        {"latest": True, "best": True},
        {"best": True, "uuid": uuid(1)},
        {"latest": True, "uuid": uuid(1)},
    ]
    for criteria in wrong:
        with pytest.raises(UsageError, match="exactly one"):
            trial.select_checkpoint(**criteria)
    wrong = [
        {"latest": True, "sort_by": "loss"},
        {"uuid": uuid(1), "smaller_is_better": True},
        {"latest": True, "smaller_is_better": False},
    ]
    for criteria in wrong:
        with pytest.raises(UsageError, match="belong to best"):
            trial.select_checkpoint(**criteria)


@pytest.mark.usefixtures("added")
def test_another_trials_uuid_is_an_error_that_names_its_trial() -> None:
    with pytest.raises(NotFoundError, match=f"checkpoint {uuid(3)} belongs to trial 2, not to trial 1"):
        Determined().get_trial(1).select_checkpoint(uuid=uuid(3))


@pytest.mark.usefixtures("added")
def test_another_metric_with_no_direction_is_never_guessed() -> None:
    with pytest.raises(UsageError, match=r"smaller_is_better=True or smaller_is_better=False .*--smaller-is-better"):
        Determined().get_experiment(1).top_checkpoint(sort_by="loss")


@pytest.mark.usefixtures("added")
@pytest.mark.parametrize("empty", [None, ""])
def test_with_no_master_the_catalog_answers(monkeypatch: pytest.MonkeyPatch, empty: str | None) -> None:
    if empty is not None:
        monkeypatch.setenv("DET_MASTER", empty)
    assert "Catalog" in repr(Determined(empty))
    with pytest.raises(NotFoundError, match=r"no experiment 7; .*http://localhost:8080"):
        Determined(empty).get_experiment(7)


@pytest.mark.parametrize("id", [0, -1, "x", None, True, 1.5, "1\n", "٣"])
def test_odd_ids_are_usage_errors(id: Any) -> None:
    with pytest.raises(UsageError, match="whole numbers"):
        Determined().get_experiment(id)
    with pytest.raises(UsageError, match="whole numbers"):
        Determined().get_trial(id)


def test_odd_uuids_are_usage_errors() -> None:
    with pytest.raises(UsageError, match="not a checkpoint UUID"):
        Determined().get_checkpoint("../..")


@pytest.mark.usefixtures("added")
def test_references_say_what_they_are() -> None:
    assert repr(Determined().get_experiment(1)) == "<ExperimentReference 1 of local>"
    assert repr(Determined().get_trial(2)) == "<TrialReference 2 of experiment 1 of local>"


def test_a_checkpoint_whose_records_are_lost_is_known_by_its_files(tmp_path: Path) -> None:
    (tmp_path / "model.txt").write_text("weights")
    made = add(tmp_path / "model.txt")
    home = Settings.load().home
    for path in home.glob("records/*/*"):
        path.write_text("damaged\n")
    open_store(home).close()
    found = Determined().get_checkpoint(made.uuid)
    assert Path(found.download(tmp_path / "out")).joinpath("model.txt").read_text() == "weights"


# --- a master ------------------------------------------------------------------------------------------------------


def test_a_master_is_asked_and_its_answers_are_remembered(server: Simulator) -> None:
    experiment = Determined(server.url, "alice", "wonder").get_experiment(1)
    assert experiment.top_checkpoint().uuid == uuid(12)
    assert [one.uuid for one in experiment.top_n_checkpoints(9)] == [uuid(12), uuid(13), uuid(11)]
    assert Determined(server.url).get_trial(2).select_checkpoint(latest=True).uuid == uuid(14)
    known = Catalog(open_store(Settings.load().home), server.url)
    assert {one.uuid for one in known.experiment_checkpoints(1)} == {uuid(n) for n in range(11, 16)}
    assert known.experiment(1).name == "experiment-1"


def test_the_environment_names_the_master(server: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DET_MASTER", server.url)
    assert Determined().get_experiment(1).record.registry == server.url
    assert Determined.get_trial(1).record.registry == server.url
    monkeypatch.setenv("DET_USER", "alice")
    monkeypatch.setenv("DET_PASS", "wrong")
    with pytest.raises(AuthenticationError, match="refuses 'alice'"):
        Determined().get_experiment(1)


def test_offline_the_same_calls_give_the_same_answers(
    server: Simulator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def answers() -> list[str]:
        client = Determined(server.url)
        experiment, trial = client.get_experiment(1), client.get_trial(2)
        return [
            experiment.top_checkpoint().uuid,
            experiment.top_checkpoint("accuracy", smaller_is_better=False).uuid,
            *(one.uuid for one in experiment.top_n_checkpoints(3)),
            *(one.uuid for one in experiment.list_checkpoints("loss", "asc")),
            trial.select_checkpoint(latest=True).uuid,
            trial.select_checkpoint(best=True).uuid,
            trial.select_checkpoint(uuid=uuid(13)).uuid,
            *(one.uuid for one in trial.list_checkpoints()),
        ]

    online = answers()
    server.requests()
    monkeypatch.setenv("CAS_OFFLINE", "1")
    assert answers() == online
    assert server.requests() == []
    assert "as it was less than a minute ago" in caplog.text
    with pytest.raises(NotFoundError, match=f"never seen experiment 2 of {server.url}"):
        Determined(server.url).get_experiment(2)


def test_a_master_that_does_not_answer_is_never_replaced_by_old_answers(
    server: Simulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CAS_TIMEOUT", "2")  # so that six tries are over in seconds
    settings = Settings.load()
    impatient = Remembering(Master(server.url, backoff=0.001), open_store(settings.home))
    experiment = ExperimentReference(impatient.experiment(1), impatient, settings=settings)
    trial = TrialReference(impatient.trial(1), impatient, settings=settings)
    experiment.top_checkpoint()
    server.faults("503 " * 100)
    monkeypatch.setenv("DET_DEBUG_CONFIG_PATH", str(tmp_path / "other"))  # no token: the login fails, at once
    for question in (
        experiment.top_checkpoint,
        lambda: experiment.top_n_checkpoints(2),
        lambda: trial.select_checkpoint(latest=True),
        trial.list_checkpoints,
        lambda: Determined(server.url).get_experiment(1),
        lambda: Determined(server.url).get_trial(1).select_checkpoint(best=True),
    ):
        with pytest.raises(OfflineError, match=r"does not answer.*as it was .* ago: set CAS_OFFLINE=1") as caught:
            question()
        assert caught.value.exit_code == 6
    with pytest.raises(OfflineError, match="never seen experiment 77"):
        Determined(server.url).get_experiment(77)


def test_a_uuid_whose_files_are_here_is_answered_without_the_master(server: Simulator, tmp_path: Path) -> None:
    (tmp_path / "model.txt").write_text("weights")
    here = add(tmp_path / "model.txt", experiment=5, trial=6, uuid=uuid(12), metrics={"loss": 1})
    found = Determined(server.url).get_checkpoint(here.uuid)
    assert server.requests() == []
    assert found.download(tmp_path / "out") == str(tmp_path / "out")
    assert Determined(server.url).get_checkpoint(uuid(13)).trial_id == 2
    assert server.requests()


def test_what_is_known_of_a_uuid_counts_where_the_master_is_gone(
    server: Simulator, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url = server.url
    Determined(url).get_checkpoint(uuid(13))
    server.stop()
    monkeypatch.setenv("DET_DEBUG_CONFIG_PATH", str(tmp_path / "other"))  # no token: the login fails, at once
    client = Determined(url)
    assert client.get_checkpoint(uuid(13)).trial_id == 2
    assert "does not answer; what the catalog knows" in caplog.text
    with pytest.raises(OfflineError, match="never seen checkpoint"):
        client.get_checkpoint(uuid(14))


def test_registries_are_kept_apart(server: Simulator, added: None) -> None:
    Determined(server.url).get_experiment(1).top_checkpoint()
    with pytest.raises(UsageError, match=f"several registries: {server.url}, local"):
        Determined().get_experiment(1)
    assert Determined(registry=LOCAL).get_experiment(1).top_checkpoint().uuid == uuid(3)
    server.requests()
    assert Determined(registry=server.url).get_experiment(1).top_checkpoint().uuid == uuid(12)
    assert server.requests() == []
    assert Determined(registry=server.url).get_checkpoint(uuid(12)).trial_id == 1
    with pytest.raises(NotFoundError, match="no checkpoint"):
        Determined(registry=LOCAL).get_checkpoint(uuid(12))
    with pytest.raises(UsageError, match="one of them"):
        Determined(server.url, registry=LOCAL)


def test_a_master_that_cannot_be_an_address_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="not the address of a master"):
        Determined("ftp://h")


def test_what_cannot_be_remembered_is_said_and_is_no_error(server: Simulator, caplog: pytest.LogCaptureFixture) -> None:
    store = open_store(Settings.load().home)
    store.layout.records(server.url).mkdir(parents=True)  # nothing can be appended to a folder
    with caplog.at_level(logging.WARNING):
        assert Determined(server.url).get_experiment(1).id == 1
    assert "cannot write down" in caplog.text


def test_nothing_of_a_password_is_in_repr(server: Simulator) -> None:
    client = Determined(server.url, "alice", "wonder")
    client.get_experiment(1)
    assert "wonder" not in repr(client) + repr(client.get_trial(1)) + repr(vars(client))


# --- names -----------------------------------------------------------------------------------------------------------


def test_the_documented_import_path_has_the_documented_names() -> None:
    documented = {"Checkpoint", "Determined", "ExperimentReference", "TrialReference"}
    newer = {"CheckpointSortBy", "DownloadMode", "Experiment", "OrderBy", "Trial", "client"}
    assert set(cas.experimental.__all__) == documented | newer
    assert cas.experimental.Determined is Determined
    assert cas.experimental.ExperimentReference is ExperimentReference
    assert cas.experimental.TrialReference is TrialReference


def test_importing_the_client_loads_no_http_and_no_framework() -> None:
    code = (
        "import sys, cas.experimental;"
        "print([m for m in ('requests','urllib3','torch','numpy','obstore','botocore','filelock') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
