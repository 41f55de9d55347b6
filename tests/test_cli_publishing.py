"""`publish`, as users type it."""

from __future__ import annotations

import json
import os

import pytest
from cli import Shell
from container_files import noise
from stores import UUID

pytestmark = pytest.mark.slow


@pytest.fixture
def shell(tmp_path):
    folder = tmp_path / "share" / UUID
    folder.mkdir(parents=True)
    (folder / "model.bin").write_bytes(noise(1000))
    os.utime(folder / "model.bin", ns=(10**18, 10**18))
    return Shell(tmp_path)


def test_a_folder_is_published(shell):
    place = f"file://{shell.folder}/share/{UUID}"
    done = shell.run("publish", place).ok
    assert done.out == f"Published file://{shell.folder}/share/.cas/{UUID}.sidecar\n"
    assert done.line.startswith("1 file, 1.0 KiB in 1 chunk, in a sidecar of ")
    assert done.line.endswith("1.0 KiB had to be fetched first")
    assert shell.run("publish", place, "-q").ok.out == f"file://{shell.folder}/share/.cas/{UUID}.sidecar\n"
    found = json.loads(shell.run("publish", place, "--json").ok.out)
    assert (found["files"], found["chunks"], found["size"], found["bytes_fetched"]) == (1, 1, 1000, 0)


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        ((), 2, "say which checkpoint: cas publish <url|uuid>"),
        (("nonsense",), 3, "no checkpoint is called 'nonsense', and it is no UUID"),
        (("nonsense://host/x",), 2, "nonsense"),
        (("file:///nowhere/at/all",), 3, "there is no folder /nowhere/at/all"),
        ((UUID,), 3, UUID),
        (("s3://bucket/x", "--offline"), 6, "CAS_OFFLINE is set"),
    ],
)
def test_what_cannot_be_published_is_one_line(shell, words, code, text):
    done = shell.run("publish", *words)
    assert done.code == code
    assert text in done.line
