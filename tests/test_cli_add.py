"""`add`: folders by option, and in bulk as the older client left them."""

from __future__ import annotations

import json
import shutil
import uuid as uuids
from pathlib import Path

import pytest
from cli import Shell

UUIDS = [f"{number}0000000-0000-4000-8000-000000000000" for number in range(1, 4)]
OLD = {
    "experiment_id": 7,
    "trial_id": 9,
    "hparams": {"lr": 0.1},
    "experiment_config": {
        "description": "old",
        "searcher": {"name": "single", "metric": "val_loss", "smaller_is_better": True},
        "checkpoint_storage": {"type": "s3", "bucket": "b", "access_key": "AK", "secret_key": "SK"},
    },
}


@pytest.fixture
def shell(tmp_path):
    return Shell(tmp_path)


def write(folder: Path, **files: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        text = value if isinstance(value, str) else json.dumps(value)
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def listed(shell: Shell, *words: str) -> list[dict]:
    return json.loads(shell.run("ls", "--json", *words).ok.out)["checkpoints"]


def test_what_is_said_of_a_checkpoint_is_known_afterwards(shell):
    write(shell.folder / "model", weights="abc", metadata__json={"steps_completed": 5, "note": "kept"})
    words = ["--experiment", "1", "--trial", "2", "--steps", "300", "--metric", "accuracy=0.97", "--metric", "n=3"]
    words += ["--searcher-metric", "accuracy", "--smaller-is-better", "no"]
    words += ["--hparams", '{"lr": 0.1, "deep": {"a": [1]}}', "--hparams", "optimizer=adam", "--hparams", "width=64"]

    ended = shell.run("add", "model", *words, "-q").ok

    uuid = ended.out.strip()
    assert str(uuids.UUID(uuid)) == uuid
    found = json.loads(shell.run("c", "describe", uuid, "--json").ok.out)["checkpoint"]
    assert (found["experiment"], found["trial"], found["batch"]) == (1, 2, 300)
    assert found["validation_metrics"] == {"accuracy": 0.97, "n": 3}
    assert found["hparams"] == {"lr": 0.1, "deep": {"a": [1]}, "optimizer": "adam", "width": 64}
    assert found["metadata"] == {"steps_completed": 5, "note": "kept"}
    assert shell.run("trial", "download", "2", "--best", "-q").ok.out == f"checkpoints/{uuid}\n"


def test_metadata_on_the_command_line_is_added_to_that_of_the_folder(shell):
    write(shell.folder / "model", metadata__json={"steps_completed": 5, "note": "old"})

    uuid = shell.run("add", "model", "--metadata", "note=new", "-q").ok.out.strip()

    found = json.loads(shell.run("c", "describe", uuid, "--json").ok.out)["checkpoint"]
    assert (found["metadata"], found["batch"]) == ({"steps_completed": 5, "note": "new"}, 5)


def test_one_line_says_what_was_added(shell):
    write(shell.folder / "model", a="abc", b="de")

    ended = shell.run("add", "model", "--uuid", UUIDS[0]).ok

    assert (ended.out, ended.err) == (f"{UUIDS[0]}  added from model: 2 files, 5 B\n", "")


def test_folders_of_the_older_client_are_adopted(shell):
    first = write(shell.folder / "checkpoints" / UUIDS[0], weights="1", metadata__json=OLD)
    write(shell.folder / "checkpoints" / UUIDS[1], weights="2", metadata__json={"steps_completed": 800})
    write(shell.folder / "checkpoints" / UUIDS[2], weights="3", metadata__json="not JSON")
    folders = [f"checkpoints/{uuid}" for uuid in UUIDS]

    ended = shell.run("add", *folders, "-q").ok

    assert ended.out.split() == UUIDS
    rows = {row["uuid"]: row for row in listed(shell)}
    assert (rows[UUIDS[0]]["experiment"], rows[UUIDS[0]]["trial"], rows[UUIDS[0]]["batch"]) == (7, 9, None)
    assert (rows[UUIDS[1]]["experiment"], rows[UUIDS[1]]["batch"]) == (None, 800)
    assert (rows[UUIDS[2]]["experiment"], rows[UUIDS[2]]["batch"]) == (None, None)
    described = json.loads(shell.run("c", "describe", UUIDS[0], "--json").ok.out)["checkpoint"]
    assert (described["hparams"], described["storage"]) == ({"lr": 0.1}, None)
    shutil.rmtree(first)
    assert shell.run("checkpoint", "download", UUIDS[0], "-q").ok
    assert (first / "weights").read_text() == "1"


def test_no_credential_of_an_adopted_folder_is_printed_or_recorded(shell):
    write(shell.folder / UUIDS[0], weights="1", metadata__json=OLD)
    shell.prepare("add", UUIDS[0])

    printed = shell.run("c", "describe", UUIDS[0], "--json").ok.out + shell.run("c", "describe", UUIDS[0]).ok.out
    written = b"".join(path.read_bytes() for path in shell.home.glob("records/*/*.jsonl"))

    assert "SK" not in printed and b"SK" not in written


def test_what_the_command_line_says_counts_before_what_the_folder_says(shell):
    write(shell.folder / UUIDS[0], weights="1", metadata__json=OLD)

    shell.prepare("add", UUIDS[0], "--experiment", "1", "--trial", "2", "--steps", "3")

    (row,) = listed(shell)
    assert (row["experiment"], row["trial"], row["batch"]) == (1, 2, 3)


def test_one_bad_path_does_not_stop_the_others(shell):
    write(shell.folder / UUIDS[0], weights="1")
    write(shell.folder / UUIDS[1], weights="2")

    ended = shell.run("add", UUIDS[0], "absent", UUIDS[1], "-q")

    assert (ended.code, ended.out.split()) == (3, UUIDS[:2])
    assert ended.line.startswith("Failed to add absent: ")


def test_adding_the_same_folder_again_is_one_line(shell):
    write(shell.folder / UUIDS[0], weights="1")
    shell.prepare("add", UUIDS[0])

    ended = shell.run("add", UUIDS[0])

    assert (ended.code, ended.err) == (0, "")
    assert "is in the store already" in ended.out


def test_metadata_that_contradicts_an_experiment_says_the_way_out(shell):
    for uuid, metric in zip(UUIDS[:2], ("loss", "accuracy"), strict=True):
        write(shell.folder / uuid, weights="1")
        searcher = {"metric": metric, "smaller_is_better": True}
        metadata = {"experiment_id": 7, "trial_id": 9, "experiment_config": {"searcher": searcher}}
        (shell.folder / uuid / "metadata.json").write_text(json.dumps(metadata))
    shell.prepare("add", UUIDS[0])

    ended = shell.run("add", UUIDS[1])

    assert ended.code == 2
    assert "its metadata.json says experiment 7" in ended.line
    assert shell.run("add", UUIDS[1], "--experiment", "8", "--trial", "10").code == 0


def test_an_empty_word_does_not_mean_the_current_folder(shell):
    ended = shell.run("add", "", "--experiment", "1")

    assert (ended.code, ended.out) == (2, "")
    assert ended.line == "Failed to add the checkpoint: the path is empty; to mean the current folder, say '.'"


def test_a_single_file_is_a_checkpoint(shell):
    write(shell.folder, model__pth="weights")

    uuid = shell.run("add", "model.pth", "-q").ok.out.strip()

    files = json.loads(shell.run("c", "describe", uuid, "--json").ok.out)["files"]
    assert [(one["path"], one["size"], one["here"]) for one in files] == [("model.pth", 7, True)]


def test_json_lists_what_was_added(shell):
    write(shell.folder / UUIDS[0], weights="123")

    found = json.loads(shell.run("add", UUIDS[0], "--json").ok.out)

    assert found["schema"] == 1
    (one,) = found["checkpoints"]
    assert (one["uuid"], one["from"], one["files"], one["size"]) == (UUIDS[0], UUIDS[0], 1, 3)


def test_the_users_files_are_left_alone(shell):
    folder = write(shell.folder / "model", weights="1")
    before = (folder / "weights").stat()

    shell.prepare("add", "model")

    after = (folder / "weights").stat()
    assert (before.st_ino, before.st_mtime_ns, before.st_mode, after.st_nlink) == (
        after.st_ino,
        after.st_mtime_ns,
        after.st_mode,
        1,
    )
