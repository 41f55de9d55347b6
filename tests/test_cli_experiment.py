"""`experiment`, `trial describe`, `checkpoint list` and `user`, against a master that runs: real processes."""

from __future__ import annotations

import csv
import io
import json
import subprocess

import pytest
from cli import Shell
from master_simulator import Data, Simulator

pytestmark = pytest.mark.slow

UUIDS = [f"{number}0000000-0000-4000-8000-000000000000" for number in range(1, 6)]
HEADERS = ["Trial ID", "# of Batches", "State", "Validation Metric", "UUID", "Resources", "Size"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def master(shared):
    """An experiment of two trials; losses 0.5, 0.25, 0.75, then one with no validation, then a deleted one."""
    data = Data(users={"determined": "", "alice": "wonder", "bob": "builder"})
    storage = {"type": "shared_fs", "host_path": str(shared), "storage_path": "files", "secret_key": "PLANTED"}
    data.experiment(4, searcher={"metric": "loss", "smaller_is_better": True}, checkpoint_storage=storage)
    data.trial(7, 4, lr=0.1, note="\x1b[31mred")
    data.trial(8, 4, lr=0.2)
    for number, (uuid, loss) in enumerate(zip(UUIDS, (0.5, 0.25, 0.75, None, 0.001), strict=True), 1):
        folder = shared / "files" / uuid
        folder.mkdir(parents=True)
        (folder / "weights").write_text(uuid)
        data.checkpoint(
            uuid,
            trial=7 if number < 3 else 8,
            steps=number * 100,
            metrics=None if loss is None else {"loss": loss, "acc": number},
            resources={"weights": "36", "code/": "0"},
            state="DELETED" if number == 5 else "COMPLETED",
            time=f"2024-03-01T13:00:{60 - number}.250Z",
        )
    with Simulator(data) as running:
        yield running


@pytest.fixture
def shell(tmp_path, master):
    master.faults("")
    return Shell(tmp_path, {"DET_MASTER": master.url})


# --- lists -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", ["experiment list-checkpoints 4", "e lc 4", "c list 4"])
def test_the_list_has_every_checkpoint_in_order_of_time(shell, words):
    rows = list(csv.reader(io.StringIO(shell.run(*words.split(), "--csv", program="det").ok.out)))

    assert rows[0] == HEADERS
    assert [row[4] for row in rows[1:]] == UUIDS[::-1]
    assert rows[1] == ["8", "500", "DELETED", "0.001", UUIDS[4], "code/\nweights", "36 B"]
    assert rows[2][3] == ""


def test_the_list_is_a_table_as_documented(shell):
    out = shell.run("e", "lc", "4", "--best", "1", program="det").ok.out

    head, line, first, second = out.rstrip("\n").split("\n")
    assert [cell.strip() for cell in head.split("|")] == HEADERS
    assert set(line) == {"-", "+"}
    assert [cell.strip() for cell in first.split("|")] == ["7", "200", "COMPLETED", "0.25", UUIDS[1], "code/", "36 B"]
    assert second.split("|")[5].strip() == "weights"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("e lc 4 --best 2", [2, 1]),
        ("c list 4 --best 9", [2, 1, 3]),
        ("c list --trial 8", [5, 4, 3]),
        ("c list --trial 7 --best 1", [2]),
        ("c list 4 --sort-by acc --order desc", [5, 3, 2, 1, 4]),
        ("c list 4 --sort-by acc", [1, 2, 3, 5, 4]),
    ],
)
def test_quiet_prints_the_uuids_in_the_order_asked_for(shell, words, expected):
    out = shell.run(*words.split(), "-q").ok.out

    assert out.split() == [UUIDS[number - 1] for number in expected]


def test_a_list_as_json_has_no_credential(shell, master):
    found = json.loads(shell.run("e", "lc", "4", "--json").ok.out)

    assert found["schema"] == 1
    assert [one["uuid"] for one in found["checkpoints"]] == UUIDS[::-1]
    assert found["checkpoints"][3]["metric"] == {"name": "loss", "value": 0.25}
    assert found["checkpoints"][3]["registry"] == master.url
    assert "PLANTED" not in json.dumps(found)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("e lc", "cas experiment list-checkpoints: say which experiment: cas e lc <experiment_id>; see"),
        ("e lc 4 --best 0", "argument --best: must be 1 or more, not '0'"),
        ("e lc four", "must be a whole number, not 'four'"),
        ("c list", "say of which experiment, or of which trial: one of them"),
        ("c list 4 --trial 7", "say of which experiment, or of which trial: one of them"),
        ("c list 4 --order desc", "--order goes with --sort-by only"),
        ("c list 4 --best 1 --sort-by acc", "give one"),
        ("e describe 1,x", "must be a whole number, not 'x'"),
        ("e download 4 --sort-by acc", "is a smaller 'acc' better?"),
        ("e download 4 -o", "expected one argument"),
        ("e", "say what to do: list-checkpoints, lc, download, describe"),
        ("u", "say what to do: login, logout, whoami"),
    ],
)
def test_wrong_usage_is_one_line(shell, words, line):
    ended = shell.run(*words.split())

    assert ended.code == 2
    assert line in ended.line


def test_an_unknown_experiment_is_not_found(shell):
    ended = shell.run("e", "lc", "99")

    assert (ended.code, "experiment '99' not found" in ended.line) == (3, True)


# --- download --------------------------------------------------------------------------------------------------------


def test_the_best_of_an_experiment_are_downloaded_each_into_its_folder(shell):
    out = shell.run("experiment", "download", "4", "--top-n", "2", "-q", program="det").ok.out

    assert out == f"checkpoints/{UUIDS[1]}\ncheckpoints/{UUIDS[0]}\n"
    assert (shell.folder / "checkpoints" / UUIDS[0] / "weights").read_text() == UUIDS[0]


def test_one_per_trial_another_metric_and_another_folder(shell):
    words = "e download 4 --top-n 5 --one-per-trial --sort-by acc --smaller-is-better FALSE -o models --json"
    found = json.loads(shell.run(*words.split()).ok.out)

    assert [one["path"] for one in found["checkpoints"]] == [f"models/{UUIDS[2]}", f"models/{UUIDS[1]}"]
    assert found["checkpoints"][0]["transfer"]["files_fetched"] == 1


def test_the_default_is_the_best_one(shell):
    out = shell.run("e", "download", "4").ok.out

    assert out.startswith(f"Local checkpoint path:\ncheckpoints/{UUIDS[1]}\n")


def test_an_empty_folder_is_refused(shell):
    ended = shell.run("e", "download", "4", "-o", "")

    assert (ended.code, "the folder is empty" in ended.line) == (2, True)


# --- describe --------------------------------------------------------------------------------------------------------


def test_an_experiment_and_its_trials_are_described(shell):
    out = shell.run("e", "describe", "4", program="det").ok.out

    assert out.startswith("Experiment:\n") and "\nTrials:\n" in out
    assert "experiment-4" in out and "COMPLETED" in out
    assert '"lr": 0.2' in out
    assert "\x1b" not in out and "PLANTED" not in out


def test_an_experiment_as_json_has_no_credential(shell):
    found = json.loads(shell.run("e", "describe", "4", "--json").ok.out)["experiments"][0]

    assert found["config"]["checkpoint_storage"]["type"] == "shared_fs"
    assert [(one["id"], one["hparams"]["lr"]) for one in found["trials"]] == [(7, 0.1), (8, 0.2)]
    assert "PLANTED" not in json.dumps(found)


def test_a_trial_and_its_checkpoints_are_described(shell):
    out = shell.run("t", "describe", "7", program="det").ok.out
    rows = list(csv.reader(io.StringIO(shell.run("t", "describe", "7", "--csv").ok.out)))
    found = json.loads(shell.run("t", "describe", "7", "--json").ok.out)["trial"]

    assert "\nCheckpoints:\n" in out and "\x1b" not in out
    assert rows[1][:2] == ["4", "COMPLETED"]
    assert [row[0] for row in rows[4:]] == ["100", "200"]
    assert (found["id"], found["experiment"]) == (7, 4)
    assert [one["uuid"] for one in found["checkpoints"]] == UUIDS[:2]


def test_a_master_that_is_gone_is_no_description(shell, master):
    shell.prepare("t", "describe", "7")
    master.faults("503 " * 99)
    shell.variables["CAS_TIMEOUT"] = "2"  # so that six tries are over in seconds

    ended = shell.run("t", "describe", "7")

    assert ended.code == 6
    assert "--offline" in ended.line
    assert shell.run("t", "describe", "7", "--offline").ok.err.startswith(
        "WARNING cas.client: offline: trial 7 of http"
    )


def test_a_checkpoint_that_is_here_comes_by_uuid_though_the_master_is_gone(shell, master):
    shell.prepare("t", "download", "7", "--uuid", UUIDS[0], "-q")
    master.faults("503 " * 99)
    shell.variables["CAS_TIMEOUT"] = "2"  # so that six tries are over in seconds

    assert shell.run("t", "download", "7", "--uuid", UUIDS[0], "-o", "again", "-q").ok.out == "again\n"
    third = shell.run("c", "download", UUIDS[0], "-o", "third", "-q").ok
    assert (third.out, third.err) == ("third\n", "")  # nobody was asked
    assert shell.run("t", "download", "7", "--best", "-o", "fourth").code == 6
    assert not (shell.folder / "fourth").exists()


# --- users -----------------------------------------------------------------------------------------------------------


def log_in(shell: Shell, name: str, password: str, *words: str):
    process = shell.start("user", "login", name, *words, program="det", stdin=subprocess.PIPE)
    _, err = process.communicate(password + "\n", timeout=60)
    return process.returncode, err


def test_login_makes_the_user_the_one_who_asks(shell, master):
    assert shell.run("user", "whoami", program="det").ok.out == "You are logged in as user 'determined'\n"

    assert log_in(shell, "alice", "wonder") == (0, f"logged in to {master.url} as alice\n")

    assert shell.run("user", "whoami", program="det").ok.out == "You are logged in as user 'alice'\n"
    assert shell.run("u", "whoami", "-q").ok.out == "alice\n"
    assert json.loads(shell.run("u", "whoami", "--json").ok.out)["username"] == "alice"
    auth = shell.folder / "user" / "config" / "determined" / "auth.json"
    assert json.loads(auth.read_text())["masters"][master.url]["active_user"] == "alice"
    assert auth.stat().st_mode & 0o777 == 0o600


def test_logout_ends_the_session_at_the_master_too(shell, master):
    log_in(shell, "alice", "wonder")
    auth = shell.folder / "user" / "config" / "determined" / "auth.json"
    token = json.loads(auth.read_text())["masters"][master.url]["tokens"]["alice"]

    assert shell.run("user", "logout", program="det").ok.err == f"logged alice out of {master.url}\n"

    assert json.loads(auth.read_text())["masters"][master.url] == {"tokens": {}}
    shell.variables |= {"DET_USER": "alice", "DET_USER_TOKEN": token}
    ended = shell.run("user", "whoami")
    assert (ended.code, "token has expired" in ended.line or "invalid credentials" in ended.line) == (8, True)


def test_everyone_is_logged_out_of_this_master_only(shell, master):
    log_in(shell, "alice", "wonder")
    log_in(shell, "bob", "builder")
    auth = shell.folder / "user" / "config" / "determined" / "auth.json"
    known = json.loads(auth.read_text())
    known["masters"]["http://other:8080"] = {"tokens": {"eve": "v2.public.x"}}
    auth.write_text(json.dumps(known))

    said = shell.run("u", "logout", "--all").ok.err

    assert said.splitlines() == [f"logged {name} out of {master.url}" for name in ("alice", "bob")]
    assert list(json.loads(auth.read_text())["masters"]["http://other:8080"]["tokens"]) == ["eve"]
    assert shell.run("u", "logout", "--all").ok.err == f"nobody was logged in to {master.url} here\n"


def test_a_user_who_logs_out_is_active_no_more_and_others_stay(shell, master):
    log_in(shell, "alice", "wonder")
    log_in(shell, "bob", "builder")

    shell.prepare("-u", "alice", "user", "logout")

    assert shell.run("u", "whoami", "-q").ok.out == "bob\n"


@pytest.mark.parametrize("password", ["wrong", ""])
def test_a_wrong_password_is_refused_and_nothing_is_kept(shell, password):
    code, err = log_in(shell, "alice", password)

    assert (code, err.count("\n")) == (8, 1)
    assert "wrong user or password" in err
    assert not (shell.folder / "user" / "config" / "determined" / "auth.json").exists()


def test_login_with_nobody_to_ask_says_so(shell):
    ended = shell.run("user", "login")
    assert (ended.code, "say who logs in" in ended.line) == (2, True)
    ended = shell.run("user", "login", "alice")
    assert (ended.code, "there is no terminal to ask on" in ended.line) == (8, True)
    del shell.variables["DET_MASTER"]
    ended = shell.run("user", "whoami")
    assert (ended.code, "no master is named" in ended.line) == (2, True)


def test_offline_nobody_logs_in(shell):
    ended = shell.run("user", "whoami", "--offline")
    assert (ended.code, "the network is off" in ended.line) == (6, True)
