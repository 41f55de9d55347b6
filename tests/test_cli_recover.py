"""`cas recover` as users type it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from buckets import SEARCHER, lay, uuid
from cli import Shell

pytestmark = pytest.mark.slow


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    shell = Shell(tmp_path)
    for n in (1, 2):
        lay(tmp_path / "bucket", n, config={"name": "mnist", "searcher": SEARCHER}, hparams={"lr": n}, steps=n)
    (tmp_path / "bucket" / "tensorboard").mkdir()
    (tmp_path / "m.csv").write_text(f"uuid,loss\n{uuid(1)},0.5\n{uuid(2)},0.25\n")
    return shell


def test_recover_says_what_was_found_and_then_the_usual_commands_work(shell: Shell) -> None:
    done = shell.run("recover", "bucket", "--metrics", "m.csv").ok
    registry = f"recovered:{(shell.folder / 'bucket').as_uri()}"
    assert done.out.startswith(f"{registry}: 2 checkpoints")
    assert "mnist" in done.out and "model_def:Trial" in done.out and "loss, smaller is better" in done.out
    assert "left out: tensorboard" in done.err
    found = json.loads(shell.run("recover", "bucket", "--metrics", "m.csv", "--json").ok.out)
    assert (found["registry"], found["checkpoints"], found["new"], found["with_metrics"]) == (registry, 2, 0, 2)
    (experiment,) = found["experiments"]
    trial = json.loads(shell.run("ls", "--experiment", str(experiment["id"]), "--json").ok.out)["checkpoints"][0][
        "trial"
    ]
    path = Path(shell.run("trial", "download", str(trial), "--best", "-q").ok.out.strip())
    assert (shell.folder / path / "state_dict.pth").read_bytes() == b"s"
    assert shell.run("recover", "bucket", "-q").ok.out == f"{registry}\n"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["recover"], 2, "say which place: cas recover <url>"),
        (["recover", "nowhere"], 3, "there is no folder"),
        (["recover", "."], 3, "nothing is called by a UUID"),
        (["recover", "gopher://x/y"], 2, "gopher"),
        (["recover", "bucket", "--metrics", "no.csv"], 3, "there is no file"),
        (["recover", "bucket", "--metrics", "bucket"], 2, "is a folder"),
        (["recover", "bucket", "--json", "-q"], 2, "not allowed with"),
        (["recover", "s3://bucket/x", "--offline"], 6, "CAS_OFFLINE"),
    ],
)
def test_wrong_words_are_one_clear_line(shell: Shell, words: list[str], code: int, message: str) -> None:
    done = shell.run(*words)
    assert done.code == code, done
    assert message in done.line
