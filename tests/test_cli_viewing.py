"""`view`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli import UUIDS, stocked_shell

pytestmark = pytest.mark.slow


@pytest.fixture
def shell(tmp_path):
    return stocked_shell(tmp_path)


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
