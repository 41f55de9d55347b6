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
        (("--metric", "loss>1"), UUIDS[1:2]),
        (("--metric", "loss>=1", "--metric", "loss < 2"), UUIDS[:1]),
        (("--metric", "accuracy"), []),
        (("--sort", "loss", "--desc"), UUIDS[1::-1]),
        (("--sort", "loss", "--limit", "1"), UUIDS[:1]),
        (("--state", "completed"), UUIDS[:2]),
        (("--state", "error", "--state", "DELETED"), []),
        (("--here",), UUIDS[:2]),
        (("--missing",), []),
    ],
)
def test_ls_filters(shell, words, uuids):
    found = json.loads(shell.run("ls", "--json", *words).ok.out)

    assert found["schema"] == 1
    assert [row["uuid"] for row in found["checkpoints"]] == uuids


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--registry", "nope"), 2, "no registry is called 'nope' here; there are: local"),
        (("--sort", "bogus"), 2, "nothing can be sorted by 'bogus': the metrics are: "),
        (("--metric", ">1"), 2, "not a condition on a metric"),
        (("--metric", "loss>high"), 2, "not a condition on a metric: 'loss>high'"),
        (("--metric", "loss>nan"), 2, "not a condition"),
        (("--state", "gone"), 2, "no state is called 'gone'; there are ACTIVE, COMPLETED"),
        (("--limit", "0"), 2, "must be 1 or more"),
        (("--here", "--missing"), 2, "not allowed with"),
        (("--csv", "--json"), 2, "not allowed with"),
    ],
)
def test_ls_says_what_is_wrong(shell, words, code, message):
    ended = shell.run("ls", *words)

    assert ended.code == code
    assert message in ended.line


def test_ls_in_other_forms(shell):
    assert shell.run("ls", "-q").ok.out.split() == UUIDS[:2]
    lines = shell.run("ls", "--csv", "--sort", "loss").ok.out.splitlines()
    assert lines[0] == "registry,experiment,trial,batch,uuid,state,size,here,pinned,metric,value"
    assert lines[1] == f"local,1,1,100,{UUIDS[0]},COMPLETED,1010,yes,False,loss,1"


def test_registries_are_listed(shell):
    lines = shell.run("registries").ok.out.splitlines()
    assert lines[2].split()[:4] == ["local", "1", "2", "2"]
    assert lines[2].endswith("ago")
    assert shell.run("ls", "--registries", "-q").ok.out == "local\n"
    (found,) = json.loads(shell.run("registries", "--json").ok.out)["registries"]
    assert (found["name"], found["checkpoints"], found["trials"]) == ("local", 2, 2)
    assert shell.run("registries", "--csv").ok.out.startswith(
        "registry,experiments,trials,checkpoints,seen\nlocal,1,2,2,"
    )


def test_a_question_to_a_registry_that_is_not_there_lists_those_there_are(shell):
    ended = shell.run("trial", "download", "1", "--best", "--registry", "nope")
    assert ended.code == 2
    assert "no registry is called 'nope' here; there are: local" in ended.line


def test_ls_says_what_is_here(shell):
    for path in blobs(shell):
        if path.stat().st_size == 10:
            path.unlink()
            break

    rows = json.loads(shell.run("ls", "--json").ok.out)["checkpoints"]

    assert sorted(row["here"] for row in rows) == ["part", "yes"]
    (missing,) = shell.run("ls", "--missing", "-q").ok.out.split()
    assert [missing] == [row["uuid"] for row in rows if row["here"] == "part"]


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
