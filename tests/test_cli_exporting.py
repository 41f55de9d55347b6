"""`export` and `import`."""

from __future__ import annotations

import json
import subprocess

import pytest
from cli import UUIDS, Shell, stocked_shell

pytestmark = pytest.mark.slow


@pytest.fixture
def shell(tmp_path):
    (tmp_path / "here").mkdir()
    return stocked_shell(tmp_path / "here")


@pytest.fixture
def other(tmp_path):
    (tmp_path / "there").mkdir()
    return Shell(tmp_path / "there")


def test_checkpoints_travel_in_a_file(shell, other):
    made = shell.run("export", *UUIDS[:2], "x.tar").ok
    assert made.out.startswith("x.tar: 2 checkpoints, 3 blobs, ")
    assert made.err == ""

    came = other.run("import", str(shell.folder / "x.tar")).ok
    assert [line.split()[0] for line in came.out.splitlines()] == UUIDS[:2]
    assert "3 blobs came" in came.err
    assert UUIDS[0] in other.run("ls").ok.out
    path = other.run("trial", "download", "1", "--latest", "-q").ok.out.strip()
    assert (other.folder / path / "common").read_bytes() == b"c" * 1000


def test_checkpoints_travel_through_a_pipe(shell, other):
    first = shell.start("export", UUIDS[0], "-", stdout=subprocess.PIPE)
    came = other.run("import", "-", "--json", stdin=first.stdout)
    first.stdout.close()
    assert first.wait(60) == 0
    assert "1 checkpoint, 2 blobs" in first.stderr.read()
    first.stderr.close()
    assert json.loads(came.ok.out) == {
        "schema": 1,
        "checkpoints": [{"registry": came_from(shell), "uuid": UUIDS[0]}],
        "blobs": 2,
        "here": 0,
        "size": 1010,
        "records": 3,
    }


def came_from(shell):
    return f"imported:{json.loads((shell.home / 'format.json').read_bytes())['store'][:8]}"


def test_a_reader_that_goes_away_ends_an_export_quietly(shell):
    (shell.folder / "model" / "big").write_bytes(bytes(5 << 20))
    shell.prepare("add", "model", "--uuid", UUIDS[2])
    first = shell.start("export", UUIDS[2], "-", stdout=subprocess.PIPE)
    first.stdout.close()
    _, err = first.communicate(timeout=60)
    assert first.returncode == 141 and err == ""


def test_export_says_what_it_wrote_as_json(shell):
    found = json.loads(shell.run("export", UUIDS[0], "x.tar", "--json").ok.out)
    assert found == {"schema": 1, "path": "x.tar", "checkpoints": 1, "blobs": 2, "size": 1010}


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("export",), 2, "say which checkpoints and which file: cas export <uuid> <file>"),
        (("export", UUIDS[0]), 2, "say which checkpoints and which file"),
        (("export", "x.tar", UUIDS[0]), 2, f"the file comes last, and {UUIDS[0]} is a UUID"),
        (("export", UUIDS[2], "x.tar"), 3, "knows no checkpoint"),
        (("export", UUIDS[0], "-", "--json"), 2, "name a file"),
        (("export", UUIDS[0], "no/such/x.tar"), 3, "no/such to write x.tar into"),
        (("export", UUIDS[0], "model"), 2, "exists already"),
        (("import",), 2, "say which file: cas import <file>"),
        (("import", "no.tar"), 3, "there is no file no.tar"),
        (("import", "model"), 2, "is a folder"),
        (("import", "model/own"), 4, "model/own: it is no tar"),
        (("import", "a", "b"), 2, "unrecognized arguments: b"),
    ],
)
def test_wrong_words(shell, words, code, message):
    ended = shell.run(*words)

    assert message in ended.line
    assert ended.code == code
    assert not (shell.folder / "x.tar").exists()


def test_a_compressed_file_is_named(shell):
    shell.prepare("export", UUIDS[0], "x.tar")
    subprocess.run(["gzip", shell.folder / "x.tar"], check=True)
    ended = shell.run("import", "x.tar.gz")
    assert ended.code == 2 and "x.tar.gz is compressed: decompress it into `cas import -`" in ended.line
