"""`check`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from cli import blobs, stocked_shell

pytestmark = pytest.mark.slow


@pytest.fixture
def shell(tmp_path):
    return stocked_shell(tmp_path)


def damage(path: Path) -> None:
    path.chmod(0o644)
    path.write_bytes(b"other bytes")


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
