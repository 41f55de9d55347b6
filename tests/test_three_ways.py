"""A master asked, its catalog, and the registry recovered from its bucket: one question, one answer, three ways."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import plain_choice
import pytest
from buckets import lay
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from master_simulator import Data, Simulator

from cas.actions.recovering import RecoveryReport, recover
from cas.client import Determined
from cas.config import Progress, Settings
from cas.errors import NotFoundError
from cas.index.store import open_store
from cas.registry.catalog import Catalog
from cas.registry.records import CheckpointRecord, State
from cas.registry.v1 import PAGE

pytestmark = pytest.mark.slow

EXPERIMENT = 1
TRIALS = (1, 2, 3)  # as `plain_choice.lists` draws them

Question = tuple[str | None, bool | None]  # sort_by, smaller_is_better


@pytest.fixture(scope="module")
def master() -> Iterator[Simulator]:
    with Simulator(Data()) as running:
        yield running


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("CAS_OFFLINE", "CAS_MASTER", "DET_MASTER", "DET_MASTER_ADDR", "DET_USER", "DET_PASS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CAS_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.setenv("DET_DEBUG_CONFIG_PATH", str(tmp_path / "determined"))


def told(records: list[CheckpointRecord]) -> Data:
    """Return what the master knows."""
    data = Data()
    data.experiment(EXPERIMENT, **(records[0].experiment_config if records else {"searcher": {"metric": "loss"}}))
    for trial in TRIALS:
        data.trial(trial, EXPERIMENT, trial=trial)
    for one in records:
        metrics = None if one.validation_metrics is None else dict(one.validation_metrics)
        assert one.report_time is not None
        data.checkpoint(
            one.uuid,
            trial=one.trial_id,
            steps=one.steps_completed,
            metrics=metrics,
            state=one.state,
            time=one.report_time,
        )
    return data


def left(records: list[CheckpointRecord], folder: Path, settings: Settings) -> RecoveryReport:
    """Recover what is left without the master: files, and a table of metrics."""
    (folder / "bucket").mkdir()
    rows = []
    for one in records:
        numbers = {name: value for name, value in (one.validation_metrics or {}).items() if type(value) in (int, float)}
        rows.append({"uuid": one.uuid, **numbers})
        lay(
            folder / "bucket",
            0,
            name=one.uuid,
            steps=one.steps_completed,
            config=dict(one.experiment_config),
            hparams={"trial": one.trial_id},
            moment=1_709_251_200 * 10**9 + round(plain_choice.moment(one.report_time)) * 1000,
        )
    (folder / "metrics.json").write_text(json.dumps(rows))
    return recover(folder / "bucket", metrics=folder / "metrics.json", settings=settings)


def chosen(call: Callable[..., Any], *arguments: Any, **named: Any) -> list[str]:
    """Return the UUIDs of an answer; none if there is nothing to choose."""
    try:
        answer = call(*arguments, **named)
    except NotFoundError:
        return []
    return [one.uuid for one in answer] if isinstance(answer, list) else [answer.uuid]


def asked(
    determined: Determined, experiment_id: int, trial_ids: dict[int, int], uuids: list[str], question: Question
) -> dict[str, list[str]]:
    """Return every answer; `trial_ids`: what the trials are called here."""
    experiment = determined.get_experiment(experiment_id)
    answers = {
        "best": chosen(experiment.top_checkpoint, *question),
        "top 3": chosen(experiment.top_n_checkpoints, 3, *question),
        "of each trial": chosen(experiment.top_n_checkpoints, 9, *question, one_per_trial=True),
    }
    for trial, id in trial_ids.items():
        select = determined.get_trial(id).select_checkpoint
        answers[f"latest of {trial}"] = chosen(select, latest=True)
        answers[f"best of {trial}"] = chosen(select, best=True, sort_by=question[0], smaller_is_better=question[1])
        for uuid in uuids:
            answers[f"{uuid} of {trial}"] = chosen(select, uuid=uuid.replace("-", "").upper())
    return answers


def plainly(
    records: list[CheckpointRecord], trials: Iterable[int], uuids: list[str], question: Question
) -> dict[str, list[str]]:
    """Return every answer by the plain definition."""
    best = plain_choice.best_first(records, *question)
    first = plain_choice.best_first(records, *question, one_per_trial=True)
    answers = {"best": best[:1], "top 3": best[:3], "of each trial": first}
    for trial in trials:
        mine = [one for one in records if one.trial_id == trial]
        latest = plain_choice.latest(mine)
        answers[f"latest of {trial}"] = [] if latest is None else [latest]
        answers[f"best of {trial}"] = plain_choice.best_first(mine, *question)[:1]
        for uuid in uuids:
            answers[f"{uuid} of {trial}"] = [one.uuid for one in mine if one.uuid == uuid]
    return answers


@hypothesis_settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plain_choice.lists(), st.sampled_from(plain_choice.QUESTIONS))
def test_online_offline_and_recovered_give_the_answer_of_the_plain_definition(
    master: Simulator, records: list[CheckpointRecord], question: Question
) -> None:
    same = {id: id for id in TRIALS}
    uuids = [one.uuid for one in records]
    with tempfile.TemporaryDirectory(prefix="cas-three-ways-") as folder:
        settings = Settings.load(home=Path(folder) / "home", progress=Progress.OFF)
        master.replace(told(records))
        for offline in (False, True):
            determined = Determined(master.url, offline=offline, settings=settings)
            found = asked(determined, EXPERIMENT, same, uuids, question)
            assert found == plainly(records, TRIALS, uuids, question), "offline" if offline else "online"

        completed = [one for one in records if one.state is State.COMPLETED]
        if completed:
            elsewhere = settings.but(home=Path(folder) / "after")  # a store that has never heard of the master
            report = left(completed, Path(folder), elsewhere)
            known = Catalog(open_store(elsewhere.home), report.registry)
            trials = {int(one.trial_id or 0): int(known.checkpoint(one.uuid).trial_id or 0) for one in completed}
            uuids = [one.uuid for one in completed]
            determined = Determined(registry=report.registry, settings=elsewhere)
            found = asked(determined, report.experiments[0].id, trials, uuids, question)
            assert found == plainly(records, trials, uuids, question), "recovered"


def test_the_best_of_10_000_checkpoints_takes_a_request_for_each_1000(master: Simulator, tmp_path: Path) -> None:
    count = 10 * PAGE
    data = told([])
    for n in range(count):
        data.checkpoint(plain_choice.uuid(n), trial=TRIALS[n % 3], steps=n, metrics={"loss": (n * 7919) % count})
    master.replace(data)
    settings = Settings.load(home=tmp_path / "home", progress=Progress.OFF)
    experiment = Determined(master.url, settings=settings).get_experiment(EXPERIMENT)
    master.requests()
    assert experiment.top_checkpoint().uuid == plain_choice.uuid(0)
    asked = [one["query"] for one in master.requests()]
    assert [int(one["offset"][0]) for one in asked] == list(range(0, count, PAGE))
    assert {one["limit"][0] for one in asked} == {str(PAGE)}

    there = Determined(master.url, offline=True, settings=settings).get_experiment(EXPERIMENT)
    assert there.top_checkpoint().uuid == plain_choice.uuid(0)
    assert master.requests() == []
