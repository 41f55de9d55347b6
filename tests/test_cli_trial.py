"""`trial download`, on checkpoints that were added with `add`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli import Shell

pytestmark = pytest.mark.slow

UUIDS = [f"{number}0000000-0000-4000-8000-000000000000" for number in range(1, 4)]
DOCUMENTED_UUID = "46985143-af68-4d48-ab91-a6447052ca49"
DOCUMENTED = """\
Local checkpoint path:
checkpoints/46985143-af68-4d48-ab91-a6447052ca49

     Batch | Checkpoint UUID                      | Validation Metrics
-----------+--------------------------------------+---------------------------------------------
      1000 | 46985143-af68-4d48-ab91-a6447052ca49 | {
           |                                      |     "num_inputs": 0,
           |                                      |     "validation_metrics": {
           |                                      |         "loss": 7.906739711761475,
           |                                      |         "accuracy": 0.9646000266075134,
           |                                      |         "global_step": 1000,
           |                                      |         "average_loss": 0.12492649257183075
           |                                      |     }
           |                                      | }
"""


@pytest.fixture
def shell(tmp_path):
    return Shell(tmp_path)


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def add(shell: Shell, uuid: str, *words: str) -> None:
    write(shell.folder / "model", weights=uuid)
    shell.prepare("add", "model", "--uuid", uuid, "--experiment", "1", "--trial", "1", *words)


@pytest.fixture
def trained(shell):
    """A shell with a trial of three checkpoints: the second has the best loss, the first the best accuracy."""
    searcher = ("--searcher-metric", "loss", "--smaller-is-better", "yes")
    add(shell, UUIDS[0], "--steps", "100", "--metric", "loss=0.5", "--metric", "accuracy=0.9", *searcher)
    add(shell, UUIDS[1], "--steps", "200", "--metric", "loss=0.25", "--metric", "accuracy=0.8")
    add(shell, UUIDS[2], "--steps", "300", "--metric", "loss=nan", "--metric", "accuracy=0.7")
    return shell


@pytest.mark.parametrize("program", ["det", "cas"])
def test_download_best_prints_the_documented_text(shell, program):
    metrics = {
        "loss": 7.906739711761475,
        "accuracy": 0.9646000266075134,
        "global_step": 1000,
        "average_loss": 0.12492649257183075,
    }
    words = [word for name, value in metrics.items() for word in ("--metric", f"{name}={value}")]
    searcher = ("--searcher-metric", "loss", "--smaller-is-better", "true")
    add(shell, DOCUMENTED_UUID, "--steps", "1000", *words, *searcher)

    ended = shell.run("trial", "download", "1", "--best", program=program).ok

    assert ended.out == DOCUMENTED
    assert ended.line.startswith("files: 2 ") or ended.line.startswith("files: 1 ")
    assert (shell.folder / "checkpoints" / DOCUMENTED_UUID / "weights").read_text() == DOCUMENTED_UUID


@pytest.mark.parametrize(
    ("words", "uuid"),
    [
        (("--best",), UUIDS[1]),
        (("--latest",), UUIDS[2]),
        (("--uuid", UUIDS[0].upper()), UUIDS[0]),
        (("--best", "--sort-by", "accuracy", "--smaller-is-better", "false"), UUIDS[0]),
        (("--best", "--sort-by", "accuracy", "--smaller-is-better", "FALSE"), UUIDS[0]),
        (("--best", "--sort-by", "accuracy", "--smaller-is-better", "n"), UUIDS[0]),
        (("--best", "--sort-by", "accuracy", "--smaller-is-better", "No"), UUIDS[0]),
        (("--best", "--sort-by", "accuracy", "--smaller-is-better", "f"), UUIDS[0]),
        (("--best", "--sort-by", "accuracy", "--smaller-is-better", "off"), UUIDS[0]),
        (("--best", "--sort-by", "accuracy", "--smaller-is-better", "0"), UUIDS[0]),
        (("--best", "--sort-by", "accuracy", "--smaller-is-better", ""), UUIDS[0]),
        (("--best", "--sort-by", "accuracy", "--smaller-is-better", "TRUE"), UUIDS[2]),
        (("--best", "--sort-by", "accuracy", "--smaller-is-better", "y"), UUIDS[2]),
        (("--best", "--sort-by", "accuracy", "--smaller-is-better", "on"), UUIDS[2]),
    ],
)
def test_quiet_prints_only_the_path_of_what_the_options_choose(trained, words, uuid):
    ended = trained.run("t", "download", "1", *words, "-q", program="det").ok

    assert (ended.out, ended.err) == (f"checkpoints/{uuid}\n", "")
    assert (trained.folder / "checkpoints" / uuid / "weights").read_text() == uuid


def test_a_metric_without_a_direction_is_wrong_usage(trained):
    ended = trained.run("trial", "download", "1", "--best", "--sort-by", "accuracy")

    assert ended.code == 2
    assert ended.line.startswith("Failed to download the checkpoint: ")


def test_the_folder_and_the_way_of_linking_can_be_chosen(trained):
    ended = trained.run("trial", "download", "1", "--latest", "-o", "some where", "--link", "symlink", "-q").ok

    assert ended.out == "some where\n"
    assert (trained.folder / "some where" / "weights").is_symlink()


def test_a_folder_with_other_content_is_refused_with_one_line(trained):
    write(trained.folder / "mine", weights="my own work")

    ended = trained.run("trial", "download", "1", "--latest", "--output-dir", "mine")

    assert (ended.code, ended.out) == (4, "")
    assert ended.line.startswith("Failed to download the checkpoint: ")
    assert (trained.folder / "mine" / "weights").read_text() == "my own work"


def test_json_is_one_object_with_its_schema(trained):
    ended = trained.run("trial", "download", "1", "--best", "--json").ok

    found = json.loads(ended.out)
    assert (found["schema"], found["path"]) == (1, f"checkpoints/{UUIDS[1]}")
    assert found["checkpoint"]["uuid"] == UUIDS[1]
    assert found["checkpoint"]["validation_metrics"] == {"loss": 0.25, "accuracy": 0.8}
    assert ended.err == ""


def test_an_unknown_trial_says_how_to_name_a_master(trained):
    ended = trained.run("trial", "download", "7", "--best", program="det")

    assert (ended.code, ended.out) == (3, "")
    assert ended.line.startswith("Failed to download the checkpoint: ")
    assert "-m http://localhost:8080" in ended.line


def test_a_master_that_does_not_answer_is_one_line(trained):
    ended = trained.run("-m", "http://127.0.0.1:9", "trial", "download", "1", "--best")

    assert (ended.code, ended.out) == (6, "")
    assert "http://127.0.0.1:9" in ended.line


def test_options_of_every_command_count_before_and_after(trained):
    before = trained.run("--home", "elsewhere", "trial", "download", "1", "--best")
    after = trained.run("trial", "download", "1", "--best", "--home", "elsewhere")

    assert before.code == after.code == 3
    assert (trained.folder / "elsewhere").is_dir()
    assert trained.run("trial", "download", "1", "--best", "-q", "--home", str(trained.home)).ok


def test_a_registry_can_be_named(trained):
    assert trained.run("trial", "download", "1", "--best", "-q", "--registry", "local").ok
    assert trained.run("trial", "download", "1", "--best", "--registry", "http://other:8080").code == 2
    both = trained.run("-m", "http://127.0.0.1:9", "trial", "download", "1", "--best", "--registry", "local")
    assert (both.code, both.line) == (
        2,
        "cas trial download: --master asks a master, --registry the catalog: give one of them"
        "; see cas trial download --help",
    )
