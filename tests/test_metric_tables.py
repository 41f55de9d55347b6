"""Files of metrics: CSV and JSON as people have them; what is wrong is named with its line and column."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cas.errors import ContentError, NotFoundError, UsageError
from cas.registry.metric_tables import Row, read

A, B = "00000000-0000-4000-8000-00000000000a", "00000000-0000-4000-8000-00000000000b"


@pytest.mark.parametrize(
    "text",
    [
        f"uuid,loss,acc\n{A},0.5,1\n{B},2e3,\n",
        f"\ufeffuuid;loss;acc\r\n{A};0.5;1\r\n\r\n{B};2e3;\r\n",
        f"acc\tUUID\tloss\n1\t{A.upper()}\t0.5\n\t{B.replace('-', '')}\t2e3",
        f'"checkpoint_uuid", loss ,acc,\n"{A}", 0.5 ,1,\n{B},2e3,,\n',
        f'[{{"uuid": "{A}", "loss": 0.5, "acc": 1}}, {{"uuid": "{B}", "metrics": {{"loss": 2000.0}}, "acc": null}}]',
        f'{{"{A}": {{"loss": 0.5, "acc": 1}}, "{B}": {{"metrics": {{"loss": 2000.0}}}}}}',
    ],
)
def test_all_usual_forms_say_the_same(text: str, tmp_path: Path) -> None:
    (tmp_path / "m").write_text(text, newline="")
    found = read(tmp_path / "m")
    assert found == {A: Row({"loss": 0.5, "acc": 1}), B: Row({"loss": 2000.0})}
    assert type(found[A].metrics["acc"]) is int


def test_ids_and_steps_are_no_metrics(tmp_path: Path) -> None:
    (tmp_path / "m").write_text(f"uuid,Experiment_ID,trial,steps,loss\n{A},7,8.0,0,1\n{B},,,,\n")
    assert read(tmp_path / "m") == {A: Row({"loss": 1}, 7, 8, 0), B: Row()}


def test_numbers_that_json_does_not_have_are_as_masters_write_them(tmp_path: Path) -> None:
    (tmp_path / "m").write_text(f"uuid,a,b,c\n{A},nan,inf,-Infinity\n")
    assert read(tmp_path / "m")[A].metrics == {"a": "NaN", "b": "Infinity", "c": "-Infinity"}
    (tmp_path / "m").write_text(f'{{"{A}": {{"a": NaN, "b": "Infinity"}}}}')
    assert read(tmp_path / "m")[A].metrics == {"a": "NaN", "b": "Infinity"}


WRONG: list[tuple[str | bytes, str]] = [
    ("", "line 1: no column is called uuid; there is nothing"),
    ("id,loss\n1,2\n", "line 1: no column is called uuid; there is id, loss"),
    ("uuid,loss,loss\n", "line 1: two columns are called 'loss'"),
    (f"uuid,loss\n{A},1\nnonsense,2\n", "line 3, column 'uuid': not a checkpoint UUID: 'nonsense'"),
    (f"uuid,loss\n{A},high\n", "line 2, column 'loss': 'high' is no number"),
    (f"uuid,loss\n{A},1_000\n", "line 2, column 'loss': '1_000' is no number"),
    (f"uuid,loss\n{A},true\n", "line 2, column 'loss': 'true' is no number"),
    (f"uuid,loss\n{A},1,2\n", "line 2, column 3: line 1 names only 2 columns"),
    (f"uuid,trial_id\n{A},0\n", "line 2, column 'trial_id': must be a whole number of 1 or more, not '0'"),
    (f"uuid,steps\n{A},1.5\n", "line 2, column 'steps': must be a whole number of 0 or more"),
    (f"uuid,steps\n{A},inf\n", "line 2, column 'steps': must be a whole number"),
    (f"uuid,loss\n{A},1\n{A},2\n", f"line 3: checkpoint {A} has other values at .*line 2"),
    (f'uuid,loss\n"{A},1\n', "line "),
    (b"uuid,loss\n\xff\xfe", "no UTF-8"),
    ('[{"uuid": 1}', "line 1, column 13"),
    ("[1]", "entry 1: must be an object"),
    ('[{"loss": 1}]', "entry 1: it has no uuid"),
    (f'[{{"uuid": "{A}", "loss": true}}]', "entry 1, 'loss': True is no number"),
    (f'[{{"uuid": "{A}", "loss": [1]}}]', r"entry 1, 'loss': \[1\] is no number"),
    (f'[{{"uuid": "{A}", "metrics": 1}}]', "entry 1, 'metrics': must be an object"),
    ('{"x": {"loss": 1}}', "entry 1, 'uuid': not a checkpoint UUID: 'x'"),
    ("[" * 100_000, "m:"),
]


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_what_is_wrong_is_named_with_its_place(text: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ContentError, match=message) as caught:
        read(tmp_path / "m")
    assert str(tmp_path / "m") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_same_row_twice_is_no_contradiction(tmp_path: Path) -> None:
    (tmp_path / "m").write_text(f"uuid,loss\n{A},1\n{A},1\n")
    assert read(tmp_path / "m") == {A: Row({"loss": 1})}


def test_no_file_and_a_folder_are_said(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="there is no file"):
        read(tmp_path / "no")
    with pytest.raises(UsageError, match="is a folder"):
        read(tmp_path)
