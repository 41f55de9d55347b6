"""Masters of other ages: 0.12 with its own dialect, and those whose checkpoints are flat; found out by asking them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from master_simulator import Data, Simulator

from cas import Determined
from cas.config import DeterminedEnvironment, Settings
from cas.errors import AuthenticationError, MasterError, NotFoundError, UsageError
from cas.index.store import open_store
from cas.registry import select
from cas.registry.master import Master
from cas.registry.records import State
from cas.registry.remembering import remember

pytestmark = pytest.mark.slow

STORAGE = {"type": "shared_fs", "host_path": "/tmp/none", "save_trial_best": 1}
CONFIG: dict[str, Any] = {
    "searcher": {"metric": "loss", "smaller_is_better": True, "max_steps": 9},
    "checkpoint_storage": STORAGE,
    "description": "an old one",
}


def uuid(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012x}"


def data(version: str, *, unvalidated: bool = True, **options: Any) -> Data:
    """Two experiments; the first with ties, odd values, and states; `unvalidated`: some with no validation."""
    made = Data(version=version, users={"determined": "", "alice": "wonder", "gone": "!left"}, **options)
    made.experiment(1, **CONFIG)
    made.experiment(2, searcher={"metric": "acc", "smaller_is_better": False}, checkpoint_storage=STORAGE)
    made.trial(5, 1, lr=0.5)
    made.trial(6, 1, lr=0.25)
    made.trial(7, 2)
    for n, loss in enumerate([0.5, 0.25, 0.25, "NaN", "Infinity", 0.75]):
        time = f"2020-06-12T10:00:{59 - n:02}.123Z"
        made.checkpoint(uuid(n), trial=5 + n % 2, steps=100 * (n + 1), metrics={"loss": loss, "acc": n}, time=time)
    made.checkpoint(uuid(20), trial=5, steps=9000, metrics={"loss": 0.001}, state="DELETED")
    made.checkpoint(uuid(30), trial=7, steps=100, metrics={"acc": 0.5})
    made.checkpoint(uuid(31), trial=7, steps=200, metrics={"acc": 0.75})
    if unvalidated:
        made.checkpoint(uuid(21), trial=6, steps=1000, metrics=None, time="2020-06-12T11:00:00Z")
    return made


@pytest.fixture
def ask(tmp_path: Path) -> Iterator[Callable[..., Master]]:
    made: list[Master] = []
    environment = DeterminedEnvironment(None, None, None, None, None, tmp_path / "determined")

    def make(url: str, *arguments: str, **around: str) -> Master:
        settings = Settings(home=tmp_path / "home", timeout=10.0)
        outer = replace(environment, **around)  # type: ignore[arg-type]
        made.append(Master(url, *arguments, settings=settings, environment=outer, backoff=0.01))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("CAS_OFFLINE", "CAS_MASTER", "DET_MASTER", "DET_MASTER_ADDR", "DET_USER", "DET_PASS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CAS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CAS_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.setenv("DET_DEBUG_CONFIG_PATH", str(tmp_path / "determined"))


Ask = Callable[..., Master]


@pytest.fixture(scope="module")
def old() -> Iterator[Simulator]:
    """0.12.5 with every checkpoint validated."""
    with Simulator(data("0.12.5", unvalidated=False)) as running:
        yield running


# --- 0.12 ------------------------------------------------------------------------------------------------------------


def test_a_0_12_master_is_recognised_and_asked_in_its_own_words(old: Simulator, ask: Ask) -> None:
    old.requests()
    found = ask(old.url).trial_checkpoints(5)
    asked = [(one["method"], one["path"], one["query"]) for one in old.requests()]
    assert asked[:2] == [("GET", "/info", {}), ("POST", "/login", {})]
    assert ("GET", "/checkpoints", {"trial_id": ["5"]}) in asked
    assert not [path for _, path, _ in asked if path.startswith("/api/")]
    assert {one.uuid for one in found} == {uuid(0), uuid(2), uuid(4), uuid(20)}


def test_a_0_12_checkpoint_is_read_as_the_contract_says(old: Simulator, ask: Ask) -> None:
    found = ask(old.url).checkpoint(uuid(1))
    assert (found.uuid, found.state, found.steps_completed) == (uuid(1), State.COMPLETED, 200)
    assert found.report_time == found.start_time == "2020-06-12T10:00:58.123Z"
    assert found.resources == {"metadata.json": 62}
    assert (found.searcher_metric, found.smaller_is_better) == ("loss", True)
    assert found.experiment_config["checkpoint_storage"] == STORAGE
    assert found.validation_metrics == {"loss": 0.25, "acc": 1}


def test_the_choice_is_the_same_as_of_a_new_master(old: Simulator, ask: Ask) -> None:
    with Simulator(data("0.38.1", unvalidated=False)) as new:
        for question in (
            lambda m: select.best(m.experiment_checkpoints(1)).uuid,
            lambda m: [one.uuid for one in select.top_n(m.experiment_checkpoints(1), 9)],
            lambda m: [one.uuid for one in select.top_n(m.experiment_checkpoints(1), 9, one_per_trial=True)],
            lambda m: select.best(m.trial_checkpoints(6)).uuid,
            lambda m: select.latest(m.trial_checkpoints(5)).uuid,
            lambda m: select.best(m.experiment_checkpoints(2)).uuid,
            lambda m: select.best(m.experiment_checkpoints(1), sort_by="acc", smaller_is_better=False).uuid,
            lambda m: sorted((one.id, dict(one.hparams)) for one in m.experiment_trials(1)),
            lambda m: {one.uuid: (one.trial_id, one.state) for one in m.experiment_checkpoints(1)},
        ):
            assert question(ask(old.url)) == question(ask(new.url))


def test_the_documented_calls_work_on_a_0_12_master(old: Simulator) -> None:
    determined = Determined(old.url)
    assert determined.get_experiment(1).top_checkpoint().uuid == uuid(2)  # the older of two equal ones
    assert determined.get_experiment(1).config["searcher"]["max_steps"] == 9
    trial = determined.get_trial(5)
    assert (trial.experiment_id, trial.hparams) == (1, {"lr": 0.5})
    assert trial.select_checkpoint(latest=True).uuid == uuid(4)
    assert trial.select_checkpoint(uuid=uuid(0)).uuid == uuid(0)
    with pytest.raises(NotFoundError, match="belongs to trial 6, not to trial 5"):
        trial.select_checkpoint(uuid=uuid(1))
    found = determined.get_experiment(1).top_checkpoint()
    assert found.storage_config == STORAGE
    assert found.training is not None and found.training.trial_id == 5
    with pytest.raises(UsageError, match=r"0\.12: it keeps no metadata"):
        found.add_metadata({"a": 1})


def test_what_another_list_told_of_a_0_12_checkpoint_is_not_lost(old: Simulator) -> None:
    determined = Determined(old.url)
    assert determined.get_checkpoint(uuid(1)).trial_id is None  # by its UUID alone nobody tells it
    determined.get_experiment(1).list_checkpoints()
    again = determined.get_checkpoint(uuid(1))
    assert (again.trial_id, again.experiment_id) == (6, 1)
    with pytest.raises(NotFoundError, match="belongs to trial 6, not to trial 5"):
        determined.get_trial(5).select_checkpoint(uuid=uuid(1))
    offline = Determined(old.url, offline=True)
    assert offline.get_trial(6).select_checkpoint(best=True).uuid == uuid(1)


@pytest.mark.parametrize("commands", [True, False])
def test_a_0_12_list_that_lacks_a_checkpoint_does_not_make_it_deleted(commands: bool) -> None:
    with Simulator(data("0.12.5", null_is_500=False, commands=commands)) as server:
        determined = Determined(server.url)
        determined.get_trial(6).list_checkpoints()
        if not commands:  # so that the catalog takes the trial for one of the experiment
            record = replace(determined.get_trial(6).list_checkpoints()[0].record, uuid=uuid(21), experiment_id=1)
            remember(open_store(Settings.load().home), server.url, [record])
        determined.get_experiment(1).list_checkpoints()
        states = {one.uuid: one.state for one in Determined(server.url, offline=True).get_trial(6).list_checkpoints()}
        assert states[uuid(21)] is State.COMPLETED


@pytest.mark.parametrize("null_is_500", [True, False])
def test_a_checkpoint_with_no_validation_does_not_hide_the_others(ask: Ask, null_is_500: bool) -> None:
    with Simulator(data("0.12.5", null_is_500=null_is_500)) as server:
        found = {one.uuid: one for one in ask(server.url).trial_checkpoints(6)}
        assert set(found) == {uuid(1), uuid(3), uuid(5), uuid(21)}
        assert found[uuid(21)].validation_metrics is None
        assert found[uuid(21)].steps_completed == 1000
        assert select.latest(found.values()).uuid == uuid(21)
        assert select.best(found.values()).uuid == uuid(1)
        assert found[uuid(1)].experiment_config["checkpoint_storage"] == STORAGE


def test_where_nothing_tells_of_an_unvalidated_checkpoint_that_is_said(ask: Ask) -> None:
    with Simulator(data("0.12.5", commands=False)) as server:
        with pytest.raises(MasterError, match=r"0\.12, which cannot tell of trial 6 while a checkpoint there"):
            ask(server.url).trial_checkpoints(6)
        with pytest.raises(MasterError, match=r"0\.12, which cannot tell of checkpoint"):
            ask(server.url).checkpoint(uuid(21))


def test_only_what_is_documented_of_0_12_is_needed() -> None:
    with Simulator(data("0.12.5", unvalidated=False, commands=False)) as server:
        determined = Determined(server.url)
        assert determined.get_experiment(1).top_checkpoint().uuid == uuid(2)
        trial = determined.get_trial(5)
        assert trial.experiment_id is None
        assert trial.select_checkpoint(best=True).uuid == uuid(20)  # nobody tells that it is deleted
        assert trial.select_checkpoint(best=True).storage_config == STORAGE
        with pytest.raises(NotFoundError, match=f"checkpoint {uuid(1)} is none of trial 5's"):
            trial.select_checkpoint(uuid=uuid(1))
        offline = Determined(server.url, offline=True)
        assert offline.get_trial(5).select_checkpoint(latest=True).uuid == uuid(20)
        assert offline.get_experiment(1).top_checkpoint().uuid == uuid(2)


def test_unknown_ids_of_a_0_12_master_are_not_found(old: Simulator) -> None:
    determined = Determined(old.url)
    with pytest.raises(NotFoundError, match=r"checkpoint .* not found"):
        determined.get_checkpoint(uuid(999))
    with pytest.raises(NotFoundError, match="experiment 999 has no checkpoints"):
        determined.get_experiment(999).top_checkpoint()
    with pytest.raises(NotFoundError, match="trial 999 has no checkpoints"):
        determined.get_trial(999).select_checkpoint(latest=True)


def test_0_12_logins_are_refused_and_renewed(old: Simulator, ask: Ask) -> None:
    for user, password in (("alice", "wrong"), ("nobody", "x"), ("gone", "left")):
        with pytest.raises(AuthenticationError, match="invalid credentials"):
            ask(old.url, user, password).experiment_checkpoints(1)
    registry = ask(old.url, "Alice", "wonder")
    assert registry.login.whoami() == "alice"  # it takes names in lower case
    old.expire_tokens()
    assert len(registry.experiment_checkpoints(1)) == 7


@pytest.mark.parametrize(
    "answer",
    ["{}", "null", "[1]", '[{"uuid": "x"}]', f'[{{"uuid": "{uuid(1)}", "resources": []}}]', '{"message": "no"}'],
)
def test_what_is_no_answer_of_a_0_12_master_is_one_line(old: Simulator, ask: Ask, answer: str) -> None:
    registry = ask(old.url)
    registry.experiment_checkpoints(2)
    old.faults("json:" + answer.replace(" ", ""))
    with pytest.raises(MasterError, match="cannot be understood"):
        registry.experiment_checkpoints(2)
    old.faults("")


# --- what a master is ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["0.13.0", "0.17.15"])
def test_flat_checkpoints_of_older_masters_are_read(ask: Ask, version: str) -> None:
    with Simulator(data(version)) as server:
        found = {one.uuid: one for one in ask(server.url).experiment_checkpoints(1)}
        assert len(found) == 8  # their states are fewer: the list is asked for again with none named
        one = found[uuid(1)]
        assert (one.trial_id, one.experiment_id, one.steps_completed) == (6, 1, 200)
        assert (one.validation_metrics, one.hparams) == ({"loss": 0.25, "acc": 1}, {"lr": 0.25})
        assert one.start_time == one.report_time == "2020-06-12T10:00:58.123Z"
        assert found[uuid(21)].validation_metrics is None
        assert select.best(found.values()).uuid == uuid(2)
        assert ask(server.url).checkpoint(uuid(1)) == one


@pytest.mark.parametrize("version", ["0.12.5", "0.12.11rc1", "v0.12.3"])
def test_old_versions_are_old(ask: Ask, version: str) -> None:
    with Simulator(data("0.12.5", unvalidated=False)) as server:
        registry = ask(server.url)
        server.faults('json:{"version":"' + version + '"}')
        assert len(registry.experiment_checkpoints(2)) == 2


@pytest.mark.parametrize("hello", ['json:{"version":"main-abc123"}', 'json:{"version":""}', "404"])
@pytest.mark.parametrize("version", ["0.12.5", "0.38.1"])
def test_a_master_that_does_not_say_how_old_it_is_shows_it(ask: Ask, version: str, hello: str) -> None:
    with Simulator(data(version, unvalidated=False)) as server:
        registry = ask(server.url)
        server.faults(hello)
        assert select.best(registry.experiment_checkpoints(2)).uuid == uuid(31)


@pytest.mark.parametrize("hello", ["html", "json:[]", "json:{}", "empty", "garbage", "500"])
def test_what_is_no_master_is_sent_no_password(ask: Ask, hello: str) -> None:
    with Simulator(data("0.38.1")) as server:
        server.faults(f"{hello} " * 9)
        with pytest.raises(MasterError):
            ask(server.url, "alice", "wonder").experiment(1)
        assert {one["method"] for one in server.requests()} == {"GET"}
