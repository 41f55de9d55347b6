"""The commands against a master that runs, with the checkpoints' files in a shared folder."""

from __future__ import annotations

import json

import pytest
from cli import Shell
from master_simulator import Data, Simulator

pytestmark = pytest.mark.slow

UUIDS = [f"{number}0000000-0000-4000-8000-000000000000" for number in range(1, 4)]
SECRET = "QkVMT05HUy1UTy1OT0JPRFk"


@pytest.fixture
def shell(tmp_path):
    return Shell(tmp_path)


@pytest.fixture
def master(shell):
    """A master with one trial; the best of its three checkpoints is the second."""
    data = Data()
    storage = {"type": "shared_fs", "host_path": str(shell.folder), "storage_path": "shared", "secret_key": SECRET}
    searcher = {"metric": "loss", "smaller_is_better": True}
    data.experiment(4, searcher=searcher, checkpoint_storage=storage)
    data.trial(7, 4, lr=0.1, note="\x1b[31mred")
    for number, (uuid, loss) in enumerate(zip(UUIDS, (0.5, 0.25, 0.75), strict=True), 1):
        folder = shell.folder / "shared" / uuid
        folder.mkdir(parents=True)
        (folder / "weights").write_text(uuid)
        data.checkpoint(uuid, trial=7, steps=number * 100, metrics={"loss": loss}, resources={"weights": 36})
    with Simulator(data) as running:
        yield running


@pytest.mark.parametrize(("selector", "uuid"), [("--best", UUIDS[1]), ("--latest", UUIDS[2])])
@pytest.mark.parametrize("place", ["before", "after", "variable"])
def test_download_asks_the_master_that_is_named(shell, master, selector, uuid, place):
    words = ["trial", "download", "7", selector, "-q"]
    if place == "variable":
        shell.variables["DET_MASTER"] = master.url
    else:
        words = ["-m", master.url, *words] if place == "before" else [*words, "-m", master.url]

    ended = shell.run(*words, program="det").ok

    assert (ended.out, ended.err) == (f"checkpoints/{uuid}\n", "")
    assert (shell.folder / "checkpoints" / uuid / "weights").read_text() == uuid


def test_what_was_seen_is_listed_and_what_was_fetched_is_here(shell, master):
    shell.prepare("-m", master.url, "trial", "download", "7", "--best")
    master.stop()

    rows = json.loads(shell.run("ls", "--json").ok.out)["checkpoints"]

    assert [(row["registry"], row["experiment"], row["trial"], row["batch"]) for row in rows] == [
        (master.url, 4, 7, steps) for steps in (100, 200, 300)
    ]
    assert [row["here"] for row in rows] == ["no", "yes", "no"]
    assert rows[1]["metric"] == {"name": "loss", "value": 0.25}


@pytest.mark.slow  # a master that is gone is asked again for a while
def test_offline_answers_from_what_was_seen(shell, master):
    shell.prepare("-m", master.url, "trial", "download", "7", "--best")
    url = master.url
    master.stop()

    refused = shell.run("-m", url, "trial", "download", "7", "--best", "-q")
    answered = shell.run("-m", url, "--offline", "trial", "download", "7", "--best", "-q").ok

    assert refused.code == 6
    assert url in refused.line
    assert answered.out == f"checkpoints/{UUIDS[1]}\n"


def test_what_can_be_fetched_again_is_removed_without_a_question(shell, master):
    shell.prepare("-m", master.url, "checkpoint", "download", UUIDS[0])

    ended = shell.run("rm", UUIDS[0]).ok

    assert ended.out == f"{UUIDS[0]}  removed: 36 B freed\n"
    assert shell.run("-m", master.url, "checkpoint", "download", UUIDS[0], "-o", "again").ok
    assert (shell.folder / "again" / "weights").read_text() == UUIDS[0]


def test_no_credential_is_printed_and_nothing_commands_the_terminal(shell, master):
    words = ["checkpoint", "describe", UUIDS[0], "-m", master.url]
    ended = [shell.run(*words, *more).ok for more in ((), ("--json",), ("-vv",))]
    ended.append(shell.run("-m", master.url, "-vv", "trial", "download", "7", "--best", "--json").ok)

    for one in ended:
        assert SECRET not in one.out + one.err
        assert "\x1b" not in one.out + one.err
    assert "storage: shared_fs" in ended[0].out


def test_a_refused_login_is_exit_8(shell, master):
    shell.variables |= {"DET_USER": "alice", "DET_PASS": "wrong"}

    ended = shell.run("-m", master.url, "trial", "download", "7", "--best")

    assert (ended.code, ended.out) == (8, "")
    assert ended.line.startswith("Failed to download the checkpoint: ")


def test_an_id_that_two_registries_have_is_asked_about(shell, master):
    shell.prepare("-m", master.url, "trial", "download", "7", "--best")
    (shell.folder / "model").mkdir()
    (shell.folder / "model" / "weights").write_text("mine")
    searcher = ["--searcher-metric", "loss", "--smaller-is-better", "yes", "--metric", "loss=1"]
    uuid = shell.run("add", "model", "--experiment", "1", "--trial", "7", "-q", *searcher).ok.out.strip()

    ended = shell.run("trial", "download", "7", "--best", "-q")

    assert ended.code == 2
    assert "local" in ended.line and master.url in ended.line and "--registry" in ended.line
    assert shell.run("trial", "download", "7", "--best", "-q", "--registry", "local").ok.out == f"checkpoints/{uuid}\n"
    named = shell.run("trial", "download", "7", "--best", "-q", "--registry", master.url).ok
    assert named.out == f"checkpoints/{UUIDS[1]}\n"
