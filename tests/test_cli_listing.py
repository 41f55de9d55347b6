"""`ls`, `du`."""

from __future__ import annotations

import json

import pytest
from cli import UUIDS, Shell, blobs, stocked_shell

pytestmark = pytest.mark.slow


@pytest.fixture
def shell(tmp_path):
    return stocked_shell(tmp_path)


# --- ls ----------------------------------------------------------------------------------------------------------


def test_ls_is_a_table(shell):
    lines = shell.run("ls").ok.out.splitlines()

    assert lines[0].split() == ["registry", "experiment", "trial", "batch", "checkpoint", "size", "here", "metric"]
    assert lines[2].split() == ["local", "1", "1", "100", UUIDS[0], "1.0", "KiB", "yes", "loss=1"]
    assert len(lines) == 4


@pytest.mark.parametrize(
    ("words", "uuids"),
    [
        ((), UUIDS[:2]),
        (("--trial", "2"), UUIDS[1:2]),
        (("--experiment", "1"), UUIDS[:2]),
        (("--experiment", "2"), []),
        (("--registry", "local"), UUIDS[:2]),
        (("--registry", "http://m:8080"), []),
    ],
)
def test_ls_filters(shell, words, uuids):
    found = json.loads(shell.run("ls", "--json", *words).ok.out)

    assert found["schema"] == 1
    assert [row["uuid"] for row in found["checkpoints"]] == uuids


def test_ls_says_what_is_here(shell):
    for path in blobs(shell):
        if path.stat().st_size == 10:
            path.unlink()
            break

    rows = json.loads(shell.run("ls", "--json").ok.out)["checkpoints"]

    assert sorted(row["here"] for row in rows) == ["part", "yes"]


def test_ls_without_checkpoints_says_so_on_stderr(tmp_path):
    ended = Shell(tmp_path).run("ls").ok

    assert ended.out == ""
    assert ended.line.startswith("no such checkpoint is known here")


# --- du ----------------------------------------------------------------------------------------------------------


def test_du_counts_shared_bytes_once(shell):
    found = json.loads(shell.run("du", "--json").ok.out)

    assert found["schema"] == 1
    assert [(one["uuid"], one["size"], one["own"]) for one in found["checkpoints"]] == [
        (UUIDS[0], 1010, 10),
        (UUIDS[1], 1010, 10),
    ]
    assert (found["own"], found["shared"], found["total"], found["apart"]) == (20, 1000, 1020, 2020)
    text = shell.run("du").ok.out
    assert "total:                 1.0 KiB (in a folder per checkpoint: 2.0 KiB)" in text
