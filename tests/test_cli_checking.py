"""`check`."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from cli import UUIDS, blobs, stocked_shell

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


def test_check_says_what_repair_would_do_and_does_it(shell, tmp_path):
    shell.prepare("trial", "download", "1", "--latest", "-o", "mine")
    path = next(path for path in blobs(shell) if path.read_bytes() == b"c" * 1000)
    damage(path)

    dry = shell.run("check", "--repair", "--dry-run")
    again = shell.run("check", "--repair", "--dry-run", "--json")

    assert dry.code == again.code == 4
    assert f"would copy from {tmp_path}/mine/common: {path}" in dry.out
    assert path.read_bytes() == b"other bytes"
    assert [step["remedy"] for step in json.loads(again.out)["plan"]] == ["copy"]
    found = shell.run("check")
    assert "repair brings the bytes back, from a copy on this disk or from the origin" in found.out
    done = shell.run("check", "--repair").ok
    assert "repaired: missing blob: " in done.out and "nothing is damaged" in done.out
    assert path.read_bytes() == b"c" * 1000
    assert shell.run("check", "--deep").ok


def test_what_cannot_be_repaired_is_named_and_exits_4(shell):
    damage(path := blobs(shell)[0])

    seen = shell.run("check")
    ended = shell.run("check", "--repair")
    found = json.loads(shell.run("check", "--repair", "--json").out)

    (held,) = shell.home.glob("aside/*")
    only = "it was the only copy: no file here has its bytes, and it has no origin"
    assert seen.code == 4 and f"it lies in {held} now; {only}" in seen.out
    assert "download" not in seen.out
    assert ended.code == 4
    assert f"not repaired: missing blob: {path}: {only}" in ended.out
    assert f"not repaired: put aside: {held}: it stays: what it was is not here again" in ended.out
    assert f"still missing blob: {path}: " in ended.out
    assert "1 still damaged" in ended.out
    assert [problem["kind"] for problem in found["left"]] == ["missing blob"]


def test_a_damaged_only_copy_ends_a_download_with_3_and_a_check_with_4(shell):
    damage(blobs(shell)[0])

    for words in (("view", UUIDS[1]), ("checkpoint", "download", UUIDS[1], "-o", "got")):
        ended = shell.run(*words)
        assert ended.code == 3 and "is damaged or gone, and it was added locally" in ended.line
    assert shell.run("check").code == 4


def test_what_has_an_origin_says_what_brings_it_back(shell, tmp_path):
    shell.prepare("trial", "download", "1", "--latest", "-o", "mine")
    damage(next(path for path in blobs(shell) if path.read_bytes() == b"c" * 1000))

    assert f"; a repair brings it back from {tmp_path}/mine/common" in shell.run("check").out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--rate", "fast", "--deep"), "must be bytes a second, like 200MiB/s, not 'fast'"),
        (("--rate", "0", "--deep"), "must be bytes a second"),
        (("--rate", "1MiB/s"), "--rate goes with --deep"),
        (("--anew",), "--anew goes with --deep"),
        (("everything",), "unrecognized arguments: everything"),
    ],
)
def test_wrong_words(shell, words, message):
    ended = shell.run("check", *words)

    assert ended.code == 2
    assert message in ended.line


def test_a_deep_check_that_is_interrupted_goes_on(shell):
    shell.variables["CAS_PROGRESS"] = "on"
    process = shell.start("check", "--deep", "--rate", "100")
    assert process.stderr is not None
    while "checked" not in process.stderr.readline():  # before that, it does not check yet
        assert process.poll() is None
    process.send_signal(signal.SIGINT)

    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "a deep check goes on where it was" in err
    assert "nothing is damaged" in shell.run("check", "--deep").ok.out
