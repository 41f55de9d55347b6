"""The catalog and the local registry: what was seen is answered later, by any process, with or without the index."""

from __future__ import annotations

import gc
import json
import logging
import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import plain_choice
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cas.errors import NotFoundError, OfflineError, UsageError
from cas.index.records import NewRecord
from cas.index.store import Store
from cas.registry import select
from cas.registry.catalog import LOCAL, Catalog, ago, choose
from cas.registry.local import record_local, record_removed
from cas.registry.records import CheckpointRecord, ExperimentRecord, State, TrialRecord
from cas.registry.remembering import Remembering, remember

MASTER = "http://h:8080"
CONFIG = {
    "searcher": {"metric": "loss", "smaller_is_better": True},
    "checkpoint_storage": {"type": "s3", "bucket": "b", "access_key": "SECRET-1", "secret_key": "SECRET-2"},
}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "home")
    yield opened
    opened.close()


def uuid(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012x}"


def seen(number: int, *, experiment: int | None = 1, trial: int | None = 2, **values: Any) -> CheckpointRecord:
    config = CONFIG if experiment is not None else {}
    first = {"registry": MASTER, "uuid": uuid(number), "experiment_id": experiment, "trial_id": trial}
    more = {"experiment_config": config, "validation_metrics": {"loss": number}, "report_time": "2024-03-01T13:00:00Z"}
    return CheckpointRecord(**(first | more | values))


def lines(store: Store, registry: str) -> list[str]:
    return store.layout.records(registry).read_text().splitlines()


# --- remembering -----------------------------------------------------------------------------------------------


def test_what_was_seen_is_answered_later(store: Store) -> None:
    experiment = ExperimentRecord(registry=MASTER, id=1, name="mnist", state="COMPLETED", config=CONFIG, trial_ids=(2,))
    trial = TrialRecord(registry=MASTER, id=2, experiment_id=1, state="COMPLETED", hparams={"lr": 0.1})
    remember(store, MASTER, [experiment, trial, seen(1), seen(2)], complete="experiment/1")

    reopened = Store(store.home)
    catalog = Catalog(reopened)
    assert catalog.experiment(1).name == "mnist"
    assert catalog.trial(2) == trial
    assert {one.uuid for one in catalog.experiment_checkpoints(1)} == {uuid(1), uuid(2)}
    assert catalog.trial_checkpoints(2) == catalog.experiment_checkpoints(1)
    found = catalog.checkpoint(uuid(1).replace("-", "").upper())
    assert found.searcher_metric == "loss"
    assert found.experiment_config["checkpoint_storage"] == {"type": "s3", "bucket": "b"}
    assert replace(found, experiment_config=CONFIG) == seen(1)
    reopened.close()


def test_no_credential_reaches_the_disk(store: Store) -> None:
    remember(store, MASTER, [seen(1), ExperimentRecord(registry=MASTER, id=3, config=CONFIG)])
    Catalog(store).checkpoint(uuid(1))
    for path in store.home.rglob("*"):
        if path.is_file():
            assert b"SECRET" not in path.read_bytes(), path


def test_a_configuration_is_written_once_not_with_each_checkpoint(store: Store) -> None:
    config = CONFIG | {"note": "marker" * 10}
    remember(store, MASTER, [seen(n, experiment_config=config) for n in range(50)])
    assert sum("marker" in line for line in lines(store, MASTER)) == 1
    assert all(one.experiment_config["note"] for one in Catalog(store).experiment_checkpoints(1))


def test_what_is_known_is_not_written_again(store: Store) -> None:
    everything = [ExperimentRecord(registry=MASTER, id=1, config=CONFIG), *(seen(n) for n in range(20))]
    remember(store, MASTER, everything, complete="experiment/1")
    before = len(lines(store, MASTER))
    remember(store, MASTER, everything, complete="experiment/1")
    assert len(lines(store, MASTER)) == before + 1  # the listing's time
    remember(store, MASTER, [seen(3)])
    assert len(lines(store, MASTER)) == before + 1
    remember(store, MASTER, [seen(3, state=State.DELETED)])
    assert len(lines(store, MASTER)) == before + 2
    assert Catalog(store).checkpoint(uuid(3)).state is State.DELETED


def test_a_boolean_that_becomes_a_number_is_a_change(store: Store) -> None:
    for value in (True, 1, False, 0, "0", [True], [1], {"a": [True]}, {"a": [1]}):
        remember(store, MASTER, [seen(1, validation_metrics={"loss": value})], complete="experiment/1")
        assert repr(Catalog(store).checkpoint(uuid(1)).validation_metrics) == repr({"loss": value})


def test_what_a_checkpoint_tells_of_its_experiment_leaves_the_rest_of_its_record(store: Store) -> None:
    remember(store, MASTER, [ExperimentRecord(registry=MASTER, id=1, name="mnist", config=CONFIG)])
    remember(store, MASTER, [seen(1, experiment_config=CONFIG | {"labels": ["new"]})])
    found = Catalog(store).experiment(1)
    assert (found.name, found.config["labels"]) == ("mnist", ["new"])
    remember(store, MASTER, [seen(1, experiment_config={})])
    assert Catalog(store).experiment(1).config["labels"] == ["new"]


def test_a_trial_that_only_its_checkpoints_tell_of_is_known(store: Store) -> None:
    remember(store, MASTER, [seen(1, trial=5, hparams={"lr": 1})], complete="experiment/1")
    assert Catalog(store).trial(5) == TrialRecord(registry=MASTER, id=5, experiment_id=1, hparams={"lr": 1})
    assert Catalog(store).experiment(1).trial_ids == (5,)
    whole = TrialRecord(registry=MASTER, id=5, experiment_id=1, state="COMPLETED")
    remember(store, MASTER, [whole])
    remember(store, MASTER, [seen(1, trial=5, hparams={"lr": 1})], complete="experiment/1")
    assert Catalog(store).trial(5) == whole


def test_what_a_complete_listing_does_not_have_any_more_counts_as_deleted(store: Store) -> None:
    remember(store, MASTER, [seen(1), seen(2), seen(3, trial=4)], complete="experiment/1")
    remember(store, MASTER, [seen(2)], complete="trial/2")
    states = {one.uuid: str(one.state) for one in Catalog(store).experiment_checkpoints(1)}
    assert states == {uuid(1): "DELETED", uuid(2): "COMPLETED", uuid(3): "COMPLETED"}
    assert Catalog(store).checkpoint(uuid(1)).validation_metrics == {"loss": 1}
    before = len(lines(store, MASTER))
    remember(store, MASTER, [seen(2)], complete="trial/2")
    assert len(lines(store, MASTER)) == before + 1
    remember(store, MASTER, [seen(1), seen(2)], complete="trial/2")
    assert Catalog(store).checkpoint(uuid(1)).state is State.COMPLETED


def test_the_index_can_go_and_no_answer_changes(store: Store) -> None:
    remember(store, MASTER, [seen(n) for n in range(30)], complete="experiment/1")
    remember(store, MASTER, [seen(7, state=State.ERROR)])
    before = Catalog(store).experiment_checkpoints(1)
    store.close()
    for path in store.home.glob("index-*"):
        path.unlink()
    reopened = Store(store.home)
    assert Catalog(reopened).experiment_checkpoints(1) == before
    reopened.close()


# --- registries and their ids ------------------------------------------------------------------------------------


def test_an_id_that_several_registries_have_is_refused_and_they_are_listed(store: Store) -> None:
    remember(store, MASTER, [seen(1)])
    remember(store, "http://other:80", [seen(2)])
    for question in (Catalog(store).experiment, Catalog(store).experiment_checkpoints):
        with pytest.raises(UsageError, match=r"http://h:8080, http://other:80.*registry="):
            question(1)
    with pytest.raises(UsageError, match="trial 2 is known of several"):
        Catalog(store).trial_checkpoints(2)
    assert Catalog(store, "http://other:80").experiment_checkpoints(1)[0].uuid == uuid(2)
    assert Catalog(store, MASTER).trial(2).registry == MASTER


def test_an_unknown_id_says_how_to_name_a_master_and_how_to_add(store: Store) -> None:
    for question in (
        lambda: Catalog(store).experiment(9),
        lambda: Catalog(store, LOCAL).trial(9),
        lambda: Catalog(store).checkpoint(uuid(9)),
        lambda: Catalog(store).trial_checkpoints(9),
    ):
        with pytest.raises(NotFoundError) as caught:
            question()
        for part in ('Determined(master="http://localhost:8080")', "DET_MASTER", "-m ", "cas add"):
            assert part in str(caught.value)
    with pytest.raises(NotFoundError, match="never seen experiment 9 of http://h:8080"):
        Catalog(store, MASTER).experiment(9)


def test_one_uuid_of_several_registries_is_one_checkpoint(store: Store) -> None:
    for registry in ("recovered:s3://b", LOCAL, MASTER):
        remember(store, registry, [seen(1)])
    assert Catalog(store).checkpoint(uuid(1)).registry == MASTER
    remember(store, MASTER, [seen(1, state=State.DELETED)])
    assert Catalog(store).checkpoint(uuid(1)).registry == LOCAL
    assert Catalog(store, "recovered:s3://b").checkpoint(uuid(1)).registry == "recovered:s3://b"


def test_a_damaged_record_is_skipped_and_said(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    remember(store, MASTER, [seen(1), seen(2)])
    hostile: list[tuple[str, dict[str, Any]]] = [
        (uuid(2), {"state": "COMPLETED", "experiment": 1, "resources": {"a": "x"}}),
        ("../../../etc/passwd", {"state": "COMPLETED", "experiment": 1}),
        (uuid(4), {"state": "COMPLETED", "experiment": {"a": 1}, "config": "no"}),
        (uuid(5), {}),
    ]
    store.records.add(MASTER, [NewRecord("checkpoint", id, data, ("experiment/1",)) for id, data in hostile])
    store.records.add(MASTER, [NewRecord("experiment", "x", {"config": {}})])
    with caplog.at_level(logging.WARNING):
        assert [one.uuid for one in Catalog(store).experiment_checkpoints(1)] == [uuid(1)]
        assert [one.id for one in Catalog(store).experiments()] == [1]
    assert len([message for message in caplog.messages if "damaged record" in message]) == 5


def test_all_checkpoints_and_experiments_are_listed(store: Store) -> None:
    remember(store, MASTER, [seen(2), seen(1), seen(3, experiment=None, trial=None)])
    remember(store, LOCAL, [seen(4, experiment=10, trial=11)])
    assert [one.uuid for one in Catalog(store).checkpoints()] == [uuid(1), uuid(2), uuid(3), uuid(4)]
    assert [one.uuid for one in Catalog(store, LOCAL).checkpoints()] == [uuid(4)]
    assert [(one.registry, one.id) for one in Catalog(store).experiments()] == [(MASTER, 1), (LOCAL, 10)]


# --- choices -----------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plain_choice.lists(MASTER), st.sampled_from(plain_choice.QUESTIONS))
def test_choices_of_the_catalog_are_the_plain_definition(
    store: Store, records: list[CheckpointRecord], question: tuple[str | None, bool | None]
) -> None:
    sort_by, smaller = question
    experiment = ExperimentRecord(registry=MASTER, id=1, config=records[0].experiment_config if records else {})
    remember(store, MASTER, [experiment, *records], complete="experiment/1")

    def top(limit: int, *, one_per_trial: bool = False) -> list[str]:
        def choice(some: Sequence[Any]) -> Sequence[Any]:
            return select.top_n(some, limit, sort_by=sort_by, smaller_is_better=smaller, one_per_trial=one_per_trial)

        try:
            return [one.uuid for one in Catalog(store, MASTER).choose("experiment/1", choice)]
        except (NotFoundError, UsageError):
            return []

    known = {one.uuid for one in records}
    for limit in (1, 3, 99):
        assert top(limit) == plain_choice.best_first(records, sort_by, smaller)[:limit]
        assert (
            top(limit, one_per_trial=True)
            == (plain_choice.best_first(records, sort_by, smaller, one_per_trial=True)[:limit])
        )
    if (expected := plain_choice.latest(records)) is not None:
        (found,) = Catalog(store, MASTER).choose("experiment/1", lambda some: [select.latest(some)])
        assert found == Catalog(store, MASTER).checkpoint(expected)
    assert {one.uuid for one in Catalog(store).checkpoints() if one.state is not State.DELETED} <= known


def test_what_is_chosen_is_read_whole(store: Store) -> None:
    remember(store, MASTER, [seen(1, hparams={"lr": 1}, resources={"a": 3}), seen(2)], complete="experiment/1")
    for thing in ("experiment/1", "trial/2"):
        (found,) = choose(Catalog(store), thing, lambda some: [select.best(some)])
        assert found == Catalog(store).checkpoint(uuid(1))
        assert (found.hparams, found.resources) == ({"lr": 1}, {"a": 3})


def test_what_changes_while_it_is_chosen_is_chosen_anew(store: Store) -> None:
    remember(store, MASTER, [seen(1), seen(2)], complete="experiment/1")
    turns = []

    def choice(some: Sequence[Any]) -> list[Any]:
        found = select.best(some)
        if not turns:  # another process hears that it was deleted
            remember(store, MASTER, [seen(1, state=State.DELETED)])
        turns.append(found.uuid)
        return [found]

    (found,) = Catalog(store, MASTER).choose("experiment/1", choice)
    assert (found.uuid, turns) == (uuid(2), [uuid(1), uuid(2)])


def test_metrics_that_are_many_are_no_hindrance(store: Store) -> None:
    many = {f"metric-{n}": n for n in range(2000)}
    remember(store, MASTER, [seen(1), seen(2, validation_metrics={"loss": 0, **many}), seen(3)], complete="trial/2")
    (found,) = Catalog(store, MASTER).choose("trial/2", lambda some: [select.best(some)])
    assert found.uuid == uuid(2)


@pytest.mark.parametrize("odd", [1 << 70, 1 << 1000, -(1 << 64), 1.7976931348623157e308, 5e-324, "half \ud800", None])
def test_values_that_fast_readers_spoil_are_chosen_by_as_they_are(store: Store, odd: Any) -> None:
    records = [
        seen(1, validation_metrics={"loss": 1 << 64, "odd": odd}),
        seen(2, validation_metrics={"loss": (1 << 64) - 1, "odd": odd}),
        seen(3, validation_metrics={"loss": (1 << 64) + 1, "odd": odd, "half \ud800": 1}),
    ]
    remember(store, MASTER, records, complete="trial/2")
    for metric, smaller in (("loss", True), ("loss", False), ("odd", True)):
        expected = plain_choice.best_first(records, metric, smaller)

        for limit in (1, 3):

            def choice(
                some: Sequence[Any], metric: str = metric, smaller: bool = smaller, limit: int = limit
            ) -> Sequence[Any]:
                return select.top_n(some, limit, sort_by=metric, smaller_is_better=smaller)

            if expected:
                found = Catalog(store, MASTER).choose("trial/2", choice)
                assert [one.uuid for one in found] == expected[:limit]
            else:
                with pytest.raises(NotFoundError, match="no finite number"):
                    Catalog(store, MASTER).choose("trial/2", choice)


@pytest.mark.parametrize("collects", [True, False])
def test_a_choice_leaves_the_collection_of_garbage_as_it_was(store: Store, collects: bool) -> None:
    remember(store, MASTER, [seen(1)], complete="trial/2")
    was_on = gc.isenabled()
    (gc.enable if collects else gc.disable)()
    try:
        Catalog(store, MASTER).choose("trial/2", lambda some: [select.best(some)])
        with pytest.raises(UsageError):
            Catalog(store, MASTER).choose("trial/2", lambda some: [select.best(some, sort_by="other")])
        assert gc.isenabled() is collects
    finally:
        (gc.enable if was_on else gc.disable)()


def test_a_damaged_record_is_never_chosen(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    remember(store, MASTER, [seen(5), seen(6)])
    best = {"state": "COMPLETED", "experiment": 1, "trial": 2, "validation": {"loss": -9}}
    hostile: list[dict[str, Any]] = [
        best | {"resources": {"a": "x"}},
        best | {"state": ["COMPLETED"]},
        best | {"validation": [1]},
        best | {"steps": -1},
        best | {"report_time": 7},
    ]
    store.records.add(
        MASTER, [NewRecord("checkpoint", uuid(10 + n), data, ("trial/2",)) for n, data in enumerate(hostile)]
    )
    with caplog.at_level(logging.WARNING):
        (found,) = Catalog(store, MASTER).choose("trial/2", lambda some: [select.best(some)])
    assert found.uuid == uuid(5)
    assert any("damaged record" in message for message in caplog.messages)


# --- ages --------------------------------------------------------------------------------------------------------


class Silent:
    """A master that does not answer."""

    name = MASTER

    def __getattr__(self, question: str) -> Any:
        def ask(_: object) -> None:
            raise OfflineError("the master http://h:8080 does not answer: Connection refused")

        return ask


def test_a_master_that_does_not_answer_names_the_catalogs_age_and_the_flag(store: Store) -> None:
    registry = Remembering(Silent(), store)
    with pytest.raises(OfflineError, match="never seen experiment 1"):
        registry.experiment(1)
    remember(store, MASTER, [seen(1)], complete="experiment/1")
    for question in (registry.experiment, registry.experiment_checkpoints):
        with pytest.raises(OfflineError, match="as it was less than a minute ago: set CAS_OFFLINE=1"):
            question(1)
    with pytest.raises(OfflineError, match="trial 2 as it was less than a minute ago"):
        registry.trial_checkpoints(2)


def test_a_master_that_does_not_answer_points_to_other_registries(store: Store) -> None:
    registry = Remembering(Silent(), store)
    with pytest.raises(OfflineError, match="cas recover URL"):
        registry.experiment(1)
    remember(store, "recovered:s3://b", [seen(1)])
    with pytest.raises(OfflineError, match="recovered:s3://b has such a one: --registry recovered:s3://b"):
        registry.experiment(1)
    with pytest.raises(NotFoundError, match=r"never seen experiment 9 of nope: .*there are: recovered:s3://b"):
        Catalog(store, "nope").experiment(9)


class Repeating:
    """A master whose answers never change."""

    name = MASTER

    def __getattr__(self, question: str) -> Any:
        return lambda _: seen(1)


def test_an_answer_that_is_the_same_again_is_noted_now_and_then(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("cas.index.disk.now", lambda: now[0])
    registry = Remembering(Repeating(), store)
    registry.checkpoint(uuid(1))
    before = len(lines(store, MASTER))
    for now[0] in (1030.0, 1100.0, 1130.0):
        registry.checkpoint(uuid(1))
    assert len(lines(store, MASTER)) == before + 1
    assert Catalog(store, MASTER).seen_at(f"checkpoint/{uuid(1)}") == 1100.0


def test_the_age_is_that_of_the_last_listing(store: Store) -> None:
    remember(store, MASTER, [seen(1)])
    catalog = Catalog(store, MASTER)
    first = catalog.seen_at("experiment/1")
    remember(store, MASTER, [seen(1)], complete="experiment/1")
    assert first is not None
    assert catalog.seen_at("experiment/1") >= first  # type: ignore[operator]
    assert catalog.seen_at("trial/2") == catalog.seen_at("experiment/1")
    assert catalog.seen_at("trial/9") is None
    assert Catalog(store).seen_at("experiment/1") is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "less than a minute ago"), (61, "1 minute ago"), (7300, "2 hours ago"), (86400 * 3.5, "3 days ago")],
)
def test_ages_are_said_in_words(seconds: float, text: str) -> None:
    import time

    assert ago(time.time() - seconds) == text


# --- the local registry --------------------------------------------------------------------------------------------


def add(store: Store, number: int, **values: Any) -> CheckpointRecord:
    return record_local(store, **({"uuid": uuid(number), "experiment": 1, "trial": 2, "steps": number} | values))


def test_what_is_added_is_found_by_its_metrics(store: Store) -> None:
    add(store, 1, metrics={"acc": 0.5}, searcher_metric="acc", smaller_is_better=False, hparams={"lr": 0.1})
    add(store, 2, metrics={"acc": 0.9})
    record = add(store, 3, metrics={"acc": 0.7}, durable=True)
    assert record == Catalog(store).checkpoint(uuid(3))
    assert record.hparams == {"lr": 0.1}
    assert record.report_time is not None
    assert record.report_time.endswith("Z")
    every = Catalog(store).experiment_checkpoints(1)
    assert select.best(every).uuid == uuid(2)
    assert select.latest(every).uuid == uuid(3)
    assert Catalog(store).experiment(1).trial_ids == (2,)


def test_a_searcher_metric_with_no_direction_is_refused_with_both_spellings(store: Store) -> None:
    with pytest.raises(UsageError, match=r"smaller_is_better=True or smaller_is_better=False \(--smaller"):
        add(store, 1, searcher_metric="acc")
    assert Catalog(store).checkpoints() == []
    with pytest.raises(UsageError, match="say which metric"):
        add(store, 1, smaller_is_better=True)


def test_what_was_said_of_an_experiment_is_inherited_and_not_contradicted(store: Store) -> None:
    add(store, 1, metrics={"acc": 1})
    add(store, 2, searcher_metric="acc", smaller_is_better=False)
    for again in (
        {},
        {"searcher_metric": "acc"},
        {"smaller_is_better": False},
        {"config": {"searcher": {"metric": "acc", "smaller_is_better": False}, "name": "x"}},
        {"config": {"searcher": {"name": "grid"}}},
    ):
        record = add(store, 3, **again)
        assert (record.searcher_metric, record.smaller_is_better) == ("acc", False)
    for other in (
        {"searcher_metric": "loss", "smaller_is_better": True},
        {"searcher_metric": "acc", "smaller_is_better": True},
        {"smaller_is_better": True},
        {"config": {"searcher": {"metric": "acc"}}},
        {"config": {"searcher": {"metric": "loss", "smaller_is_better": False}}},
    ):
        with pytest.raises(UsageError, match="searcher metric of experiment 1 is 'acc' with smaller_is_better=False"):
            add(store, 4, **other)
    assert Catalog(store).checkpoint(uuid(1)).searcher_metric == "acc"
    assert Catalog(store).experiment(1).config["name"] == "x"


def test_a_direction_that_a_configuration_leaves_out_is_the_masters_default(store: Store) -> None:
    record = add(store, 1, config={"searcher": {"metric": "loss"}})
    assert record.smaller_is_better is True
    assert add(store, 2, searcher_metric="loss", smaller_is_better=True).searcher_metric == "loss"
    with pytest.raises(UsageError, match="smaller_is_better=True, not 'loss' with smaller_is_better=False"):
        add(store, 3, searcher_metric="loss", smaller_is_better=False)


def test_with_no_searcher_metric_best_says_which_metrics_there_are(store: Store) -> None:
    add(store, 1, metrics={"acc": 1, "f1": 2})
    with pytest.raises(UsageError, match="acc, f1"):
        select.best(Catalog(store).experiment_checkpoints(1), of="experiment 1")


def test_a_trial_of_another_experiment_is_refused(store: Store) -> None:
    add(store, 1)
    with pytest.raises(UsageError, match="trial 2 belongs to experiment 1, not to experiment 5"):
        add(store, 2, experiment=5)


def test_a_checkpoint_cannot_move_to_another_trial(store: Store) -> None:
    add(store, 1)
    with pytest.raises(UsageError, match="added before, to trial 2 of experiment 1"):
        add(store, 1, trial=3)
    record_removed(store, uuid(1))
    assert add(store, 1, trial=3).trial_id == 3


def test_a_checkpoint_with_no_trial(store: Store) -> None:
    config = {"checkpoint_storage": {"type": "directory", "container_path": "/a", "secret_key": "SECRET"}}
    record_local(store, uuid=uuid(1), metrics={"acc": 1}, config=config, resources={"a": 3})
    found = Catalog(store).checkpoint(uuid(1))
    assert (found.experiment_id, found.trial_id, found.resources) == (None, None, {"a": 3})
    assert found.experiment_config == {"checkpoint_storage": {"type": "directory", "container_path": "/a"}}
    with pytest.raises(UsageError, match="an experiment's"):
        record_local(store, uuid=uuid(2), searcher_metric="acc", smaller_is_better=True)
    with pytest.raises(UsageError, match="say which one"):
        record_local(store, uuid=uuid(2), trial=7)


def test_metrics_are_numbers_and_odd_ones_are_kept(store: Store) -> None:
    numpy = pytest.importorskip("numpy")
    metrics = {"a": 1, "b": math.nan, "c": -math.inf, "d": numpy.float32(0.5), "e": numpy.float64("nan")}
    add(store, 1, metrics=metrics)
    found = Catalog(store).checkpoint(uuid(1)).validation_metrics
    assert found == {"a": 1, "b": "NaN", "c": "-Infinity", "d": 0.5, "e": "NaN"}
    for odd in ("0.5", "NaN", True, None, [1], {}, numpy.bool_(True), numpy.zeros(2), {1}):
        with pytest.raises(UsageError, match="metric"):
            add(store, 2, metrics={"acc": odd})
    assert [one.uuid for one in Catalog(store).checkpoints()] == [uuid(1)]


def test_numbers_of_numpy_and_of_tensors_are_numbers(store: Store) -> None:
    numpy = pytest.importorskip("numpy")

    class Scalar:
        """As a tensor of torch: its size is a method."""

        def item(self) -> float:
            return 0.25

        def size(self) -> tuple[int, ...]:
            return ()

    add(store, 1, trial=numpy.int64(3), steps=numpy.int32(300), metrics={"a": Scalar(), "b": numpy.ones(1)})
    found = Catalog(store).checkpoint(uuid(1))
    assert (found.trial_id, found.steps_completed, found.validation_metrics) == (3, 300, {"a": 0.25, "b": 1.0})
    for odd in (numpy.bool_(True), numpy.float64(3), numpy.ones(2, dtype=int)):
        with pytest.raises(UsageError, match="steps must be a whole number"):
            add(store, 2, steps=odd)


@pytest.mark.parametrize(
    "odd",
    [
        {"experiment": 0},
        {"experiment": True},
        {"experiment": "1"},
        {"trial": -1},
        {"trial": 1.5},
        {"steps": -1},
        {"steps": 1 << 70},
        {"uuid": "nonsense"},
        {"hparams": {"a": {1}}},
        {"metadata": {"a": object()}},
        {"config": "text"},
        {"searcher_metric": ""},
        {"searcher_metric": "acc", "smaller_is_better": "true"},
    ],
)
def test_odd_arguments_are_usage_errors(store: Store, odd: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        add(store, 1, **odd)
    assert Catalog(store).checkpoints() == []


def test_what_was_removed_stays_as_a_deleted_record(store: Store) -> None:
    add(store, 1, metrics={"acc": 1}, searcher_metric="acc", smaller_is_better=False)
    remember(store, MASTER, [seen(2, experiment=7, trial=8)])
    removed = record_removed(store, uuid(1))
    assert removed is not None
    found = Catalog(store).checkpoint(uuid(1))
    assert (found.registry, found.state, found.validation_metrics) == (LOCAL, State.DELETED, {"acc": 1})
    assert record_removed(store, uuid(2)) is None
    assert Catalog(store).checkpoint(uuid(2)).state is State.COMPLETED
    with pytest.raises(NotFoundError, match="1 is DELETED"):
        select.best(Catalog(store).experiment_checkpoints(1), of="experiment 1")


ADDER = """
import json, sys
from pathlib import Path
from cas.index.store import Store
from cas.registry.local import record_local
home, number = Path(sys.argv[1]), int(sys.argv[2])
store = Store(home)
print("ready", flush=True)
sys.stdin.readline()
try:
    for step in range(10):
        uuid = f"00000000-0000-4000-8000-{number:06x}{step:06x}"
        record_local(store, uuid=uuid, experiment=1, trial=number, steps=step, metrics={"acc": number + step / 10},
                     searcher_metric="acc", smaller_is_better=bool(number % 2), durable=True)
    print("added")
except ValueError as error:
    print("refused")
"""


def test_processes_that_add_at_once_lose_nothing_and_never_contradict_each_other(tmp_path: Path) -> None:
    home = tmp_path / "home"
    Store(home)
    children = [
        subprocess.Popen(
            [sys.executable, "-c", ADDER, home, str(n)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for n in range(1, 7)
    ]
    for child in children:
        child.stdout.readline()  # type: ignore[union-attr]
    for child in children:
        child.stdin.write("go\n")  # type: ignore[union-attr]
        child.stdin.flush()  # type: ignore[union-attr]
    said = {n: child.communicate(timeout=60)[0].strip() for n, child in enumerate(children, 1)}
    won = [n for n, text in said.items() if text == "added"]
    assert sorted(said.values()) == ["added"] * 3 + ["refused"] * 3
    assert {n % 2 for n in won} in ({0}, {1})
    store = Store(home)
    records = Catalog(store).experiment_checkpoints(1)
    assert len(records) == 30
    assert {one.trial_id for one in records} == set(won)
    assert len({json.dumps(one.experiment_config) for one in records}) == 1
    store.close()


HEARER = """
import sys
from pathlib import Path
from cas.index.store import Store
from cas.registry.records import CheckpointRecord
from cas.registry.remembering import remember
home, number = Path(sys.argv[1]), int(sys.argv[2])
store = Store(home)
print("ready", flush=True)
sys.stdin.readline()
for step in range(1000):
    uuid = f"00000000-0000-4000-8000-{number:06x}{step:06x}"
    one = CheckpointRecord(registry="http://h:8080", uuid=uuid, experiment_id=1, trial_id=number, steps_completed=step)
    remember(store, "http://h:8080", [one])
    print(uuid, flush=True)
"""


@pytest.mark.slow
def test_processes_that_are_killed_while_they_write_what_they_heard_lose_none_of_it(tmp_path: Path) -> None:
    home = tmp_path / "home"
    Store(home)
    said: set[str] = set()
    for round in range(2):
        children = [
            subprocess.Popen(
                [sys.executable, "-c", HEARER, home, str(4 * round + n)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for n in range(4)
        ]
        for child in children:
            assert child.stdout is not None and child.stdin is not None
            assert child.stdout.readline() == "ready\n"
            child.stdin.write("go\n")
            child.stdin.flush()
        for number, child in enumerate(children):
            assert child.stdout is not None
            heard = [child.stdout.readline().strip() for _ in range(5 * number + round + 1)]
            child.kill()  # in the middle of whatever it does: the next line, the index, the end of its file
            rest = child.communicate()[0].split("\n")[:-1]  # what it still said before
            said.update(heard, rest)
        store = Store(home)
        known = {one.uuid for one in Catalog(store, MASTER).experiment_checkpoints(1)}
        assert said - known == set()
        store.close()
    for path in home.glob("index-*"):
        path.unlink()
    store = Store(home)
    assert said <= {one.uuid for one in Catalog(store, MASTER).experiment_checkpoints(1)}
    store.close()
