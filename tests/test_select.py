"""Best, latest, top n: equal to a plain, independent definition, whatever the records are."""

from __future__ import annotations

from itertools import count
from typing import Any

import plain_choice
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_choice import QUESTIONS, lists, uuid

from cas.errors import NotFoundError, UsageError
from cas.registry import select
from cas.registry.records import CheckpointRecord, State
from cas.registry.select import CheckpointSortBy, OrderBy

_numbers = count(1)


def made(number: int | None = None, **values: Any) -> CheckpointRecord:
    config = {"searcher": {"metric": "loss", "smaller_is_better": True}}
    first = next(_numbers) if number is None else number
    return CheckpointRecord(**({"registry": "r", "uuid": uuid(first), "experiment_config": config} | values))


# --- equal to the plain definition -------------------------------------------------------------------------------


@settings(deadline=None)
@given(lists(), st.sampled_from(QUESTIONS))
def test_best_and_top_n_are_the_plain_definition(
    records: list[CheckpointRecord], question: tuple[str | None, bool | None]
) -> None:
    sort_by, smaller = question
    expected = plain_choice.best_first(records, sort_by, smaller)
    if not expected:
        with pytest.raises(NotFoundError):
            select.best(records, sort_by=sort_by, smaller_is_better=smaller)
        return
    assert select.best(records, sort_by=sort_by, smaller_is_better=smaller).uuid == expected[0]
    for limit in (1, 3, 99):
        top = select.top_n(records, limit, sort_by=sort_by, smaller_is_better=smaller)
        assert [one.uuid for one in top] == expected[:limit]
        each = select.top_n(records, limit, sort_by=sort_by, smaller_is_better=smaller, one_per_trial=True)
        of_trials = plain_choice.best_first(records, sort_by, smaller, one_per_trial=True)
        assert [one.uuid for one in each] == of_trials[:limit]


@settings(deadline=None)
@given(lists())
def test_latest_is_the_plain_definition(records: list[CheckpointRecord]) -> None:
    expected = plain_choice.latest(records)
    if expected is None:
        with pytest.raises(NotFoundError):
            select.latest(records)
        return
    assert select.latest(records).uuid == expected


@settings(deadline=None)
@given(lists(), st.randoms())
def test_the_order_of_the_list_does_not_matter(records: list[CheckpointRecord], random: Any) -> None:
    shuffled = list(records)
    random.shuffle(shuffled)

    def answers(some: list[CheckpointRecord]) -> list[object]:
        found: list[object] = []
        for question in (select.best, select.latest, select.in_order):
            try:
                found.append(question(some))
            except NotFoundError as error:
                found.append(str(error))
        return found

    assert answers(records) == answers(shuffled)


# --- examples ----------------------------------------------------------------------------------------------------


def test_the_direction_comes_from_the_configuration() -> None:
    config = {"searcher": {"metric": "acc", "smaller_is_better": False}}
    records = [made(n, validation_metrics={"acc": n}, experiment_config=config) for n in (1, 3, 2)]
    assert select.best(records).uuid == uuid(3)
    assert select.best(records, smaller_is_better=True).uuid == uuid(1)


def test_an_absent_direction_of_the_searcher_metric_is_smaller() -> None:
    config = {"searcher": {"metric": "loss"}}
    records = [made(n, validation_metrics={"loss": n}, experiment_config=config) for n in (2, 1, 3)]
    assert select.best(records, sort_by="loss").uuid == uuid(1)


def test_another_metric_with_no_direction_is_refused_with_both_spellings() -> None:
    with pytest.raises(UsageError) as caught:
        select.best([made(validation_metrics={"acc": 1})], sort_by="acc", of="experiment 7")
    for part in (
        "smaller_is_better=True",
        "smaller_is_better=False",
        "--smaller-is-better true",
        "'loss'",
        "experiment 7",
    ):
        assert part in str(caught.value)


def test_no_searcher_metric_and_no_sort_by_is_refused_and_the_metrics_are_named() -> None:
    records = [made(experiment_config={}, validation_metrics={"acc": 1, "f1": 2})]
    with pytest.raises(UsageError, match="acc, f1"):
        select.best(records)
    assert select.best(records, sort_by="f1", smaller_is_better=False) == records[0]


def test_why_none_is_left_is_said() -> None:
    records = [
        made(state=State.DELETED, validation_metrics={"loss": 1}),
        made(state=State.DELETED, validation_metrics={"loss": 1}),
        made(state=State.ERROR, validation_metrics={"loss": 1}),
        made(validation_metrics=None),
        made(validation_metrics={"acc": 1}),
        made(validation_metrics={"loss": "NaN"}),
    ]
    with pytest.raises(NotFoundError) as caught:
        select.best(records, of="experiment 7")
    text = str(caught.value)
    for part in (
        "6 checkpoints of experiment 7",
        "2 are DELETED",
        "1 is ERROR",
        "2 lack the metric",
        "1 has it as",
        "acc",
    ):
        assert part in text
    with pytest.raises(NotFoundError, match="experiment 7 has no checkpoints"):
        select.best([], of="experiment 7")
    with pytest.raises(NotFoundError, match="2 are DELETED"):
        select.latest(records[:2])


def test_numbers_that_no_float_can_hold_never_win_and_never_crash() -> None:
    records = [made(1, validation_metrics={"loss": -(10**400)}), made(2, validation_metrics={"loss": 5})]
    assert select.best(records).uuid == uuid(2)


def test_nanoseconds_decide_ties() -> None:
    older = made(9, validation_metrics={"loss": 1}, report_time="2024-03-01T13:42:39.969136001Z")
    newer = made(1, validation_metrics={"loss": 1}, report_time="2024-03-01T13:42:39.969136002Z")
    unknown = made(0, validation_metrics={"loss": 1}, report_time="soon")
    assert select.best([newer, unknown, older]) == older
    assert select.latest([newer, unknown, older]) == newer


def test_report_times_with_offsets_are_compared_as_moments() -> None:
    assert select.report_time(made(report_time="2024-03-01T15:00:00+02:00")) == select.report_time(
        made(report_time="2024-03-01T13:00:00Z")
    )
    for odd in ("2024-13-01T00:00:00Z", "", "now", "0001-01-01T00:00:00+23:59"):
        select.report_time(made(report_time=odd))


@pytest.mark.parametrize("limit", [0, -1, True, 1.5, "3", None])
def test_a_limit_is_a_number_of_checkpoints(limit: Any) -> None:
    with pytest.raises(UsageError, match="1 or more"):
        select.top_n([made(validation_metrics={"loss": 1})], limit)


@pytest.mark.parametrize("direction", ["true", 2, "", []])
def test_a_direction_is_a_boolean(direction: Any) -> None:
    with pytest.raises(UsageError, match="True or False"):
        select.best([made(validation_metrics={"loss": 1})], smaller_is_better=direction)


def test_lists_put_what_lacks_the_value_last_in_both_directions() -> None:
    records = [
        made(1, trial_id=2, steps_completed=5, validation_metrics={"loss": 3}),
        made(2, trial_id=1, steps_completed=None, validation_metrics=None),
        made(3, trial_id=1, steps_completed=9, validation_metrics={"loss": 1}),
    ]

    def order(sort_by: Any, order_by: Any, limit: int | None = None) -> list[int]:
        found = select.in_order(records, sort_by=sort_by, order_by=order_by, limit=limit)
        return [int(one.uuid[-1]) for one in found]

    assert order(None, None) == [3, 1, 2]  # the best first: newer code takes the first of the list
    assert order("loss", "asc") == [3, 1, 2]
    assert order("loss", OrderBy.DESC) == [1, 3, 2]
    assert order(CheckpointSortBy.SEARCHER_METRIC, "ORDER_BY_DESC") == [1, 3, 2]
    assert order(CheckpointSortBy.BATCH_NUMBER, OrderBy.DESC) == [3, 1, 2]
    assert order(CheckpointSortBy.UUID, OrderBy.DESC, 2) == [3, 2]
    assert order(CheckpointSortBy.TRIAL_ID, OrderBy.DESC) == [1, 2, 3]
    with pytest.raises(UsageError, match="go together"):
        order("loss", None)
    with pytest.raises(UsageError, match="name of a metric, not 3"):
        order(3, "asc")
    with pytest.raises(UsageError, match="ASC or DESC"):
        order("loss", "up")
