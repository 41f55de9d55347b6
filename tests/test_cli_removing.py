"""`rm`."""

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
