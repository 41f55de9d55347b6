"""What commands print."""

from __future__ import annotations

import json

import pytest
import tabulate

from cas.cli import output

DOCUMENTED = """\
     Batch | Checkpoint UUID                      | Validation Metrics
-----------+--------------------------------------+---------------------------------------------
      1000 | 46985143-af68-4d48-ab91-a6447052ca49 | {
           |                                      |     "num_inputs": 0,
           |                                      |     "validation_metrics": {
           |                                      |         "loss": 7.906739711761475,
           |                                      |         "accuracy": 0.9646000266075134,
           |                                      |         "global_step": 1000,
           |                                      |         "average_loss": 0.12492649257183075
           |                                      |     }
           |                                      | }"""


def test_the_documented_table_is_exact_and_other_tables_are_left_alone():
    before = tabulate.MIN_PADDING
    metrics = {
        "num_inputs": 0,
        "validation_metrics": {
            "loss": 7.906739711761475,
            "accuracy": 0.9646000266075134,
            "global_step": 1000,
            "average_loss": 0.12492649257183075,
        },
    }
    row = (1000, "46985143-af68-4d48-ab91-a6447052ca49", json.dumps(metrics, indent=4))

    text = output.documented_table(("Batch", "Checkpoint UUID", "Validation Metrics"), [row])

    assert text == DOCUMENTED
    assert before == tabulate.MIN_PADDING


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (5 << 20, "5.0 MiB"),
        (3 << 30, "3.0 GiB"),
        (5000 << 40, "5000.0 TiB"),
    ],
)
def test_sizes_are_for_people(count, text):
    assert output.size(count) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ünïcode 模型", "plain ünïcode 模型"),
        ("a\nb\tc\rd", "a b c d"),
        ("\x1b[2J\x07\x9b", "\\x1b[2J\\x07\\x9b"),
        ("gpj.\u202etxt", "gpj.\\u202etxt"),
        ("\udcff", "\\udcff"),
    ],
)
def test_nothing_that_is_printed_commands_the_terminal(text, shown):
    assert output.printable(text) == shown


def test_tables_keep_text_as_text():
    text = output.table(("name", "n"), [("1e5", "0012"), ("x", None)], right=("n",))

    assert [line.split() for line in text.splitlines()[2:]] == [["1e5", "0012"], ["x"]]
