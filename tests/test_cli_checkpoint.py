"""`checkpoint download` and `checkpoint describe`."""

from __future__ import annotations

import json

import pytest
from cli import Shell

UUID = "46985143-af68-4d48-ab91-a6447052ca49"


@pytest.fixture
def shell(tmp_path):
    shell = Shell(tmp_path)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights").write_text("abc")
    (folder / "empty").mkdir()
    words = ["--experiment", "1", "--trial", "2", "--steps", "30", "--metric", "loss=0.5", "--hparams", "lr=0.1"]
    shell.prepare("add", "model", "--uuid", UUID, *words)
    return shell


def test_download_prints_the_path_and_the_table(shell):
    ended = shell.run("c", "download", UUID, "-o", "there").ok

    assert ended.out.startswith("Local checkpoint path:\nthere\n\n     Batch | Checkpoint UUID ")
    assert (shell.folder / "there" / "weights").read_text() == "abc"
    assert (shell.folder / "there" / "empty").is_dir()


@pytest.mark.parametrize("form", [UUID.upper(), UUID.replace("-", ""), f"urn:uuid:{UUID}", f"{{{UUID}}}"])
def test_any_form_of_the_uuid_is_taken(shell, form):
    assert shell.run("checkpoint", "download", form, "-q").ok.out == f"checkpoints/{UUID}\n"


def test_download_twice_says_the_same(shell):
    first = shell.run("checkpoint", "download", UUID, "--link", "copy").ok
    second = shell.run("checkpoint", "download", UUID).ok

    assert first.out == second.out
    assert (first.line, second.line) == ("files: 1 copied", "files: 1 kept")


def test_json_says_what_was_done(shell):
    found = json.loads(shell.run("checkpoint", "download", UUID, "--link", "copy", "--json").ok.out)

    assert (found["schema"], found["path"]) == (1, f"checkpoints/{UUID}")
    assert (found["files"]["copied"], found["files"]["reflinked"], found["transfer"]) == (1, 0, None)


def test_describe_prints_what_is_known(shell):
    text = shell.run("checkpoint", "describe", UUID).ok.out

    for line in (f"uuid: {UUID}", "registry: local", "state: COMPLETED", "experiment: 1", "trial: 2", "batch: 30"):
        assert line in text.splitlines()
    assert '"loss": 0.5' in text and '"lr": 0.1' in text
    assert text.splitlines()[-1].split() == ["3", "B", "yes", "-", "weights"]  # added here: nothing to prove


def test_describe_as_json(shell):
    found = json.loads(shell.run("checkpoint", "describe", UUID, "--json").ok.out)

    assert found["schema"] == 1
    assert found["checkpoint"]["uuid"] == UUID
    (file,) = found["files"]
    assert (file["path"], file["size"], file["here"]) == ("weights", 3, True)
    assert file["digest"].startswith("blake3:")


def test_an_unknown_checkpoint_is_not_found(shell):
    ended = shell.run("checkpoint", "describe", UUID.replace("4", "5"))

    assert ended.code == 3
    assert ended.line.startswith("Failed to describe the checkpoint: ")
