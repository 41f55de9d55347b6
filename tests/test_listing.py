"""Lists of what is known here: conditions, order and limits are what a plain reading of them says."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import plain_choice
import pytest
from hypothesis import HealthCheck, assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from cas.actions.listing import Here, checkpoints, registries
from cas.config import Settings
from cas.errors import UsageError
from cas.index.store import open_store
from cas.registry.catalog import LOCAL
from cas.registry.filters import MetricFilter
from cas.registry.local import record_local
from cas.registry.records import CheckpointRecord
from cas.registry.remembering import remember


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.load(home=tmp_path / "home")


def test_conditions_are_read_in_every_usual_form() -> None:
    parsed = [MetricFilter.parse(text) for text in ("a>1", " a >= 1e-3 ", "a/b<2", "a==-1", "a=inf", "a!=3", "a b")]
    assert [(one.metric, one.sign, one.value) for one in parsed] == [
        ("a", ">", 1), ("a", ">=", 1e-3), ("a/b", "<", 2), ("a", "==", -1), ("a", "=", math.inf), ("a", "!=", 3),
        ("a b", None, 0),
    ]  # fmt: skip
    for odd in ("", ">1", "a>", "a>b", "a>nan", "a=>1", "a<>1", "  "):
        with pytest.raises(UsageError, match="not a condition"):
            MetricFilter.parse(odd)


OPERATORS: dict[str, Any] = {
    ">": lambda x, y: x > y,
    "<": lambda x, y: x < y,
    ">=": lambda x, y: x >= y,
    "<=": lambda x, y: x <= y,
    "=": lambda x, y: x == y,
    "!=": lambda x, y: x != y,
}


@hypothesis_settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plain_choice.lists("http://h:8080"), st.sampled_from(list(OPERATORS)), st.integers(-2, 2), st.booleans())
def test_a_list_is_what_its_conditions_say(
    settings: Settings, records: list[CheckpointRecord], sign: str, value: int, descending: bool
) -> None:
    remember(open_store(settings.home), "http://h:8080", records, complete="experiment/1")

    def number(record: CheckpointRecord) -> float | None:
        found = (record.validation_metrics or {}).get("acc")
        return found if type(found) in (int, float) and abs(found) < math.inf else None

    # What nobody has, nothing is sorted by; that is tried elsewhere.
    assume(any(record.state != "DELETED" and number(record) is not None for record in records))
    wanted = {
        record.uuid for record in records
        if record.state != "DELETED" and (n := number(record)) is not None and OPERATORS[sign](n, value)
    }  # fmt: skip
    found = checkpoints(metric=f"acc{sign}{value}", sort="acc", descending=descending, settings=settings)
    assert {row.uuid for row in found} == wanted
    numbers = [number(row.record) for row in found]  # type: ignore[arg-type]
    assert numbers == sorted(numbers, reverse=descending)  # type: ignore[type-var]
    assert (
        checkpoints(metric=f"acc{sign}{value}", limit=2, settings=settings)
        == checkpoints(metric=[f"acc{sign}{value}"], settings=settings)[:2]
    )
    every = checkpoints(sort="acc", descending=descending, deleted_too=True, settings=settings)
    lacking = [number(row.record) is None for row in every]  # type: ignore[arg-type]
    assert lacking == sorted(lacking)


def test_what_only_lies_here_is_listed_where_no_condition_is_on_its_record(settings: Settings) -> None:
    from stores import UUID, tagged

    store = open_store(settings.home)
    tagged(store, UUID, {"a": b"1"})
    record_local(store, uuid=plain_choice.uuid(1), experiment=1, trial=2, metrics={"loss": 1})
    assert [(row.uuid, row.here) for row in checkpoints(settings=settings)] == [
        (UUID, Here.YES),
        (plain_choice.uuid(1), Here.NO),
    ]
    assert [row.uuid for row in checkpoints(here=False, settings=settings)] == [plain_choice.uuid(1)]
    for condition in ({"metric": "loss"}, {"state": "COMPLETED"}, {"experiment": 1}, {"trial": 2}):
        assert [row.uuid for row in checkpoints(settings=settings, **condition)] == [plain_choice.uuid(1)]  # type: ignore[arg-type]
    assert checkpoints(experiment=2, trial=2, settings=settings) == []


def test_registries_say_how_much_they_know_and_since_when(settings: Settings) -> None:
    store = open_store(settings.home)
    assert registries(settings=settings) == []
    record_local(store, uuid=plain_choice.uuid(1), experiment=1, trial=2)
    common: dict[str, Any] = {"registry": "http://h:8080", "experiment_id": 1, "trial_id": 1}
    remember(store, "http://h:8080", [CheckpointRecord(uuid=plain_choice.uuid(n), **common) for n in (1, 2)])
    found = registries(settings=settings)
    assert [(one.name, one.counts) for one in found] == [
        ("http://h:8080", {"experiments": 1, "trials": 1, "checkpoints": 2}),
        (LOCAL, {"experiments": 1, "trials": 1, "checkpoints": 1}),
    ]
    assert all(one.seen is not None for one in found)
    with pytest.raises(UsageError, match="there are: http://h:8080, local"):
        checkpoints(registry="nope", settings=settings)
    assert checkpoints(registry=LOCAL, settings=settings)[0].registry == LOCAL
