"""`rm`, `prune`, `pin`, `unpin`."""

from __future__ import annotations

import json
import os
import pty

import pytest
from cli import UUIDS, blobs, stocked_shell

pytestmark = pytest.mark.slow


@pytest.fixture
def shell(tmp_path):
    return stocked_shell(tmp_path)


def test_an_only_copy_is_not_removed_without_a_word(shell):
    ended = shell.run("rm", UUIDS[0])

    assert (ended.code, ended.out) == (2, "")
    assert ended.line == (
        f"Failed to remove the checkpoint: checkpoint {UUIDS[0]} was added here and lies nowhere else (removing"
        f" it frees 10 B); to remove it for good: cas rm {UUIDS[0]} --yes"
    )
    assert len(blobs(shell)) == 3


def test_rm_frees_what_nobody_else_needs(shell):
    ended = shell.run("rm", UUIDS[0], "--yes").ok

    assert ended.out == f"{UUIDS[0]}  removed: 10 B freed\n"
    assert sorted(path.stat().st_size for path in blobs(shell)) == [10, 1000]
    assert [row["uuid"] for row in json.loads(shell.run("ls", "--json").ok.out)["checkpoints"]] == UUIDS[1:2]
    deleted = json.loads(shell.run("ls", "--all", "--json").ok.out)["checkpoints"]
    assert [row["state"] for row in deleted if row["uuid"] == UUIDS[0]] == ["DELETED"]
    assert shell.run("checkpoint", "download", UUIDS[1], "-q").ok


def test_several_are_removed_and_one_unknown_does_not_stop_the_others(shell):
    ended = shell.run("rm", UUIDS[0], UUIDS[2], UUIDS[1], "--yes", "--json")

    assert ended.code == 3
    assert [one["uuid"] for one in json.loads(ended.out)["removed"]] == UUIDS[:2]
    assert ended.line.startswith(f"Failed to remove {UUIDS[2]}: ")
    assert blobs(shell) == []


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("yes", 0), ("n", 2), ("", 2)])
def test_on_a_terminal_an_only_copy_is_asked_about(shell, answer, code):
    controller, terminal = pty.openpty()
    with os.fdopen(controller, "rb", 0) as screen:
        os.write(screen.fileno(), f"{answer}\n".encode())
        with os.fdopen(terminal, "r+b", 0) as stream:
            process = shell.start("rm", UUIDS[0], stdin=stream, stderr=stream)
            with process:
                out, _ = process.communicate(timeout=60)
        shown = os.read(screen.fileno(), 1 << 16).decode()

    assert process.returncode == code
    question = f"checkpoint {UUIDS[0]} was added here and lies nowhere else (removing it frees 10 B)"
    assert f"{question}. Remove it for good? [y/N] " in shown
    assert (f"{UUIDS[0]}  removed" in out) == (code == 0)


# --- pin, unpin --------------------------------------------------------------------------------------------------


def test_a_pinned_checkpoint_stays_until_it_is_unpinned(shell):
    assert shell.run("pin").ok.line == "no checkpoint is pinned"
    assert shell.run("pin", UUIDS[0]).ok.out == ""
    assert shell.run("pin").ok.out == f"{UUIDS[0]}\n"
    assert json.loads(shell.run("pin", "--json").ok.out)["pinned"] == [UUIDS[0]]

    refused = shell.run("rm", UUIDS[0], "--yes", "--force")

    assert (refused.code, refused.out) == (10, "")
    assert refused.line == (
        f"Failed to remove the checkpoint: checkpoint {UUIDS[0]} stays: it is pinned; `cas unpin {UUIDS[0]}` unpins it"
    )
    assert "yes, pinned" in shell.run("ls").ok.out
    assert "pinned" in shell.run("du").ok.out.splitlines()[2]
    assert [one["pinned"] for one in json.loads(shell.run("du", "--json").ok.out)["checkpoints"]] == [True, False]
    assert shell.run("unpin", UUIDS[0]).ok.out == ""
    assert shell.run("rm", UUIDS[0], "--yes").ok


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("pin", UUIDS[2]), 3, f"checkpoint {UUIDS[2]} is not in the store"),
        (("unpin", UUIDS[1]), 3, f"checkpoint {UUIDS[1]} is not pinned"),
        (("unpin",), 2, "say which checkpoint"),
        (("pin", "nonsense"), 3, "nonsense"),
        (("prune", "--older-than", "soon"), 2, "must be a length of time, like 30d, 12h, 2w or 90m, not 'soon'"),
        (("prune", "--older-than", "-1d"), 2, "older-than"),
        (("prune", "--max-size", "many"), 2, "not 'many'"),
        (("prune", UUIDS[2]), 3, f"checkpoint {UUIDS[2]} is not in the store"),
        (("prune", "1000"), 3, "no checkpoint in the store"),
        (("prune", "--yes"), 2, "--yes is for checkpoints that lie nowhere else"),
    ],
)
def test_what_is_wrong_is_one_line_and_changes_nothing(shell, words, code, says):
    before = blobs(shell)

    ended = shell.run(*words)

    assert (ended.code, ended.out) == (code, "")
    assert says in ended.line
    assert blobs(shell) == before


# --- prune -------------------------------------------------------------------------------------------------------


def test_a_dry_run_says_what_goes_what_stays_and_why_and_changes_nothing(shell):
    before = sorted(shell.home.rglob("*"))

    text = shell.run("prune", f"{UUIDS[0][:8]}*", "--dry-run").ok.out
    named = json.loads(shell.run("prune", UUIDS[0], "--yes", "--now", "--dry-run", "--json").ok.out)

    assert f"{UUIDS[0]}  stays                  it lies nowhere else" in text
    assert "checkpoints:      0 go, 2 stay, 1 of them by the rules" in text
    assert [one["uuid"] for one in named["going"]] == UUIDS[:1]
    assert {one["uuid"]: one["reason"] for one in named["staying"]} == {UUIDS[1]: "no rule names it"}
    assert (named["frees"], named["size"], named["size_after"]) == (10, 1020, 1010)
    assert [path for path in sorted(shell.home.rglob("*")) if "index" not in path.name] == [
        path for path in before if "index" not in path.name
    ]


def test_an_only_copy_goes_by_its_full_name_and_a_yes(shell):
    assert shell.run("prune", UUIDS[0], "--now").ok.out.startswith("0 checkpoints removed, 0 B freed; 1 stay")

    ended = shell.run("prune", UUIDS[0], "--yes", "--now").ok

    assert ended.out == f"{UUIDS[0]}  removed\n1 checkpoint removed, 10 B freed\n"
    deleted = json.loads(shell.run("ls", "--all", "--json").ok.out)["checkpoints"]
    assert [row["state"] for row in deleted if row["uuid"] == UUIDS[0]] == ["DELETED"]
    assert shell.run("checkpoint", "download", UUIDS[1], "-q").ok


def test_without_now_bytes_are_kept_for_a_while(shell):
    used = shell.home / "used" / UUIDS[0]
    os.utime(used, (0, 0))

    ended = shell.run("prune", UUIDS[0], "--yes").ok

    assert "1 checkpoint removed, 0 B freed; " in ended.out
    assert "more are kept for 10 minutes, in case that somebody needs them: the next `cas prune` deletes" in ended.out
    assert "put aside, not counted" in shell.run("du").ok.out
    assert shell.run("prune", "--now").ok.out == "0 checkpoints removed, 10 B freed\n"


def test_what_a_view_shows_is_kept_for_a_while(shell):
    path = shell.run("view", UUIDS[0]).ok.out.strip()

    refused = shell.run("rm", UUIDS[0], "--yes")

    assert refused.code == 10
    assert "stays: it is in use by main.py (process " in refused.line
    assert shell.run("prune", "--now").code == 10
    forced = shell.run("rm", UUIDS[0], "--yes", "--force").ok.out
    assert forced == f"{UUIDS[0]}  removed: 0 B freed, 1010 B more by a later `cas prune`\n".replace("1010 B", "10 B")
    assert sorted(os.listdir(path)) == ["common", "own"]


def test_prune_takes_a_name_and_no_registry_that_is_not_there(shell):
    shell.prepare("tag", "best", UUIDS[1])
    planned = json.loads(shell.run("prune", "best", "--yes", "--dry-run", "--json").ok.out)
    assert [one["uuid"] for one in planned["going"] + [one for one in planned["staying"] if one["chosen"]]] == [
        UUIDS[1]
    ]

    ended = shell.run("prune", "--registry", "nope")
    assert (ended.code, "no registry is called 'nope' here; there are: local" in ended.line) == (2, True), ended
    ended = shell.run("prune", "no-such-name")
    assert (ended.code, "`cas tag` the names" in ended.line) == (3, True), ended
