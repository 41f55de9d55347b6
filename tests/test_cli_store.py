"""`ls`, `du`, `view`, `check`, `rm`."""

from __future__ import annotations

import json
import os
import pty
from pathlib import Path

import pytest
from cli import Shell

pytestmark = pytest.mark.slow

UUIDS = [f"{number}0000000-0000-4000-8000-000000000000" for number in range(1, 4)]


@pytest.fixture
def shell(tmp_path):
    """A shell with two checkpoints that share a file, of two trials."""
    shell = Shell(tmp_path)
    for number, uuid in enumerate(UUIDS[:2], 1):
        folder = tmp_path / "model"
        folder.mkdir(exist_ok=True)
        (folder / "common").write_bytes(b"c" * 1000)
        (folder / "own").write_bytes(b"%d" % number * 10)
        words = [
            "--experiment",
            "1",
            "--trial",
            str(number),
            "--steps",
            str(number * 100),
            "--metric",
            f"loss={number}",
        ]
        searcher = ["--searcher-metric", "loss", "--smaller-is-better", "yes"]
        shell.run("add", "model", "--uuid", uuid, *words, *searcher).ok  # noqa: B018
    return shell


def blobs(shell: Shell) -> list[Path]:
    return sorted((shell.home / "blobs").glob("??/*"))


def damage(path: Path) -> None:
    path.chmod(0o644)
    path.write_bytes(b"other bytes")


# --- ls ------------------------------------------------------------------------------------------------------


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


# --- du ------------------------------------------------------------------------------------------------------


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


# --- view ----------------------------------------------------------------------------------------------------


def test_view_prints_a_read_only_folder(shell):
    path = Path(shell.run("view", UUIDS[0]).ok.out.rstrip("\n"))

    assert (path / "own").read_bytes() == b"1" * 10
    assert path.is_relative_to(shell.home / "views")
    assert json.loads(shell.run("view", UUIDS[0], "--json").ok.out) == {
        "schema": 1,
        "uuid": UUIDS[0],
        "path": str(path),
    }


def test_view_of_an_unknown_checkpoint_is_not_found(shell):
    ended = shell.run("view", UUIDS[2])

    assert ended.code == 3
    assert ended.line.startswith("Failed to make a view of the checkpoint: ")


# --- check ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [(), ("--deep",)])
def test_check_of_a_sound_store_succeeds(shell, words):
    ended = shell.run("check", *words).ok

    assert ended.out.startswith("nothing is damaged (3 blobs, ")
    assert ended.err == ""


def test_deep_check_draws_progress_where_that_is_wanted(shell):
    shell.variables["CAS_PROGRESS"] = "on"

    ended = shell.run("check", "--deep").ok

    assert "checked" in ended.err and "100%" in ended.err
    assert ended.out.startswith("nothing is damaged (3 blobs, ")
    assert shell.run("check").ok.err == ""


def test_check_names_damage_and_exits_4(shell):
    damage(blobs(shell)[0])

    ended = shell.run("check", "--json")

    found = json.loads(ended.out)
    assert (ended.code, found["schema"]) == (4, 1)
    assert {"damaged blob", "missing blob"} <= {problem["kind"] for problem in found["problems"]}
    again = shell.run("check")
    assert again.code == 4
    assert "missing blob: " in again.out


def test_damage_that_looks_like_nothing_is_found_by_deep_check_only(shell):
    path = blobs(shell)[0]
    stat = path.stat()
    path.chmod(0o644)
    path.write_bytes(b"x" * stat.st_size)
    path.chmod(0o444)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    assert shell.run("check").ok
    assert shell.run("check", "--deep").code == 4


# --- rm ------------------------------------------------------------------------------------------------------


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
