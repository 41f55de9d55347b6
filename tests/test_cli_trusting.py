"""`trust`: typed by users, read by scripts."""

from __future__ import annotations

import json
import uuid as uuids
from pathlib import Path

import pytest
from cli import Shell

from cas.index.store import Store
from cas.registry.records import PULLED
from cas.transfer.adopt import ingest_folder

pytestmark = pytest.mark.slow

UUID = str(uuids.UUID(int=11))


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """A home with one checkpoint that was pulled from a URL."""
    from cas.config import Settings

    made = Shell(tmp_path)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "model.pth").write_bytes(b"a pickle")
    store = Store(made.home)
    store.tag(PULLED, UUID, ingest_folder(store, tmp_path / "c", settings=Settings.load(home=made.home)))
    store.close()
    return made


def test_trust_is_recorded_listed_and_revoked(shell: Shell) -> None:
    digest = shell.run("trust", UUID, "--json").ok.out
    said = json.loads(digest)
    assert (said["trusted"], said["changed"]) == (True, True)
    assert shell.run("trust", UUID).ok.out == f"{said['digest']}  trusted already: 1 file\n"
    assert shell.run("trust", "--list").ok.out == f"{said['digest']}\n"
    assert json.loads(shell.run("trust", "--list", "--json").ok.out)["trusted"] == [said["digest"]]
    assert shell.run("trust", said["digest"], "--revoke").ok.out == f"{said['digest']}  no longer trusted\n"
    assert shell.run("trust", UUID, "--revoke").ok.out == f"{said['digest']}  was not trusted\n"
    assert shell.run("trust", "--list").ok.out == ""


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        ([], 2, "cas trust: say which checkpoint: cas trust <uuid>"),
        (["nonsense"], 3, "Failed to trust the checkpoint: no checkpoint is called 'nonsense', and it is no UUID"),
        (["--list", UUID], 2, "cas trust: --list takes nothing else"),
        (["blake3:12"], 2, "Failed to trust the checkpoint: "),
        (
            [str(uuids.UUID(int=12))],
            3,
            "Failed to trust the checkpoint: checkpoint 00000000-0000-0000-0000-00000000000c",
        ),
        (["0" * 64], 3, "Failed to trust the checkpoint: blake3:0000"),
    ],
)
def test_what_makes_no_sense_is_one_line(shell: Shell, words: list[str], code: int, line: str) -> None:
    ended = shell.run("trust", *words)
    assert (ended.code, ended.out) == (code, "")
    assert ended.line.startswith(line)
