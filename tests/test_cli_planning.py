"""`plan` and `--dry-run`, as users type them."""

from __future__ import annotations

import json
import os

import pytest
from cli import UUIDS, Shell, blobs, stocked_shell
from container_files import noise
from stores import UUID

pytestmark = pytest.mark.slow


@pytest.fixture
def place(tmp_path):
    folder = tmp_path / "share" / UUID
    folder.mkdir(parents=True)
    (folder / "model.bin").write_bytes(noise(2000))
    os.utime(folder / "model.bin", ns=(10**18, 10**18))
    return f"file://{folder}"


def test_a_plan_of_a_folder(tmp_path, place):
    shell = Shell(tmp_path)
    out = shell.run("plan", place).ok.out
    assert out.startswith(f"{place}: 1 file, 2.0 KiB\nto fetch: 2.0 KiB with 1 request\nhere already: 0 B\n")
    assert shell.run("plan", place, "-q").ok.out == "2000\n"
    found = json.loads(shell.run("plan", place, "--json").ok.out)
    assert (found["url"], found["size"], found["fetch"], found["here"]) == (place, 2000, 2000, 0)
    assert found["files"] == [{"path": "model.bin", "size": 2000, "fetch": 2000, "requests": 1}]
    assert blobs(shell) == []


def test_a_plan_says_which_checkpoint_has_what_is_here(tmp_path):
    shell = stocked_shell(tmp_path)
    out = shell.run("plan", UUIDS[0]).ok.out
    assert "to fetch: 0 B with 0 requests" in out
    assert f"in checkpoint {UUIDS[0]} of local" in out


def test_a_dry_run_of_a_download_does_nothing(tmp_path):
    shell = stocked_shell(tmp_path)
    for words in (("checkpoint", "download", UUIDS[0]), ("trial", "download", "1", "--latest")):
        assert "to fetch: 0 B" in shell.run(*words, "--dry-run").ok.out
        assert shell.run(*words, "--dry-run", "-q").ok.out == "0\n"
        assert json.loads(shell.run(*words, "--dry-run", "--json").ok.out)["fetch"] == 0
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        ((), 2, "say which checkpoint: cas plan <url|uuid>"),
        (("nonsense",), 3, "no checkpoint is called 'nonsense', and it is no UUID"),
        (("file:///nowhere/at/all",), 3, "there is no folder /nowhere/at/all"),
        ((UUID,), 3, UUID),
    ],
)
def test_what_cannot_be_planned_is_one_line(tmp_path, words, code, text):
    done = Shell(tmp_path).run("plan", *words)
    assert done.code == code
    assert text in done.line
