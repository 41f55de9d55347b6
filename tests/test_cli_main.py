"""How commands start and end: exit codes, one line for each mistake, quiet pipes, interrupts, logging."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli import SCRIPTS, Shell

pytestmark = pytest.mark.slow

UUID = "46985143-af68-4d48-ab91-a6447052ca49"


@pytest.fixture
def shell(tmp_path):
    return Shell(tmp_path)


WRONG = [
    ("", "cas: say what to do: add, ls, trial download, doctor, …; see cas --help"),
    ("-v", "cas: say what to do: add, ls, trial download, doctor, …; see cas --help"),
    ("--nonsense", "cas: unrecognized arguments: --nonsense; see cas --help"),
    ("-m", "cas: argument -m/--master: expected one argument; see cas --help"),
    ("tril", "cas: no command is called 'tril'; did you mean `cas trial`?; see cas --help"),
    ("frobnicate", "cas: no command is called 'frobnicate'; see cas --help"),
    ("experiment list", "cas experiment: no command is called 'list'; see cas experiment --help"),
    ("trial", "cas trial: say what to do: download, describe; see cas trial --help"),
    ("t", "cas t: say what to do: download, describe; see cas t --help"),
    ("trial --best", "cas trial: unrecognized arguments: --best; see cas trial --help"),
    (
        "trial downlod 1",
        "cas trial: no command is called 'downlod'; did you mean `cas trial download`?; see cas trial --help",
    ),
    (
        "trial download",
        "cas trial download: say which trial: cas trial download <trial_id>; see cas trial download --help",
    ),
    (
        "trial download --best",
        "cas trial download: say which trial: cas trial download <trial_id> --best; see cas trial download --help",
    ),
    (
        "-m http://127.0.0.1:9 --offline t download --best -o 'a b'",
        "cas trial download: say which trial: cas -m http://127.0.0.1:9 --offline t download <trial_id> --best -o 'a b'"
        "; see cas trial download --help",
    ),
    (
        "trial download 1",
        "cas trial download: say which checkpoint: `cas trial download 1 --best`, `cas trial download 1 --latest`"
        " or `cas trial download 1 --uuid <uuid>`; see cas trial download --help",
    ),
    (
        "trial download 1 --best --latest",
        "cas trial download: argument --latest: not allowed with argument --best; see cas trial download --help",
    ),
    (
        f"trial download 1 --uuid {UUID} --best",
        "cas trial download: argument --best: not allowed with argument --uuid; see cas trial download --help",
    ),
    (
        "trial download one --best",
        "cas trial download: argument TRIAL_ID: must be a whole number, not 'one'; see cas trial download --help",
    ),
    (
        "trial download 1 2 --best",
        "cas trial download: unrecognized arguments: 2; see cas trial download --help",
    ),
    (
        "trial download 1 --uuid 4698",
        "cas trial download: argument --uuid: must be a checkpoint UUID, or a name, not '4698'"
        "; see cas trial download --help",
    ),
    (
        "trial download 1 --latest -q --json",
        "cas trial download: argument --json: not allowed with argument -q/--quiet; see cas trial download --help",
    ),
    (
        "trial download 1234567890123456789 --best",
        "cas trial download: argument TRIAL_ID: must be a whole number, not '1234567890123456789'"
        "; see cas trial download --help",
    ),
    (
        "trial download 1 --latest --sort-by loss",
        "cas trial download: --sort-by goes with --best only; see cas trial download --help",
    ),
    (
        f"trial download 1 --uuid {UUID} --smaller-is-better no",
        "cas trial download: --smaller-is-better goes with --best only; see cas trial download --help",
    ),
    (
        "trial download 1 --best --sort-by loss --smaller-is-better maybe",
        "cas trial download: argument --smaller-is-better: must be true or false, not 'maybe'"
        "; see cas trial download --help",
    ),
    (
        "trial download 1 --best --outp x",
        "cas trial download: unrecognized arguments: --outp x; see cas trial download --help",
    ),
    (
        "checkpoint download",
        "cas checkpoint download: say which checkpoint: cas checkpoint download <uuid>"
        "; see cas checkpoint download --help",
    ),
    (
        "checkpoint download 12",
        "cas checkpoint download: argument UUID: must be a checkpoint UUID, or a name, not '12'"
        "; see cas checkpoint download --help",
    ),
    (
        "c describe --json",
        "cas checkpoint describe: say which checkpoint: cas c describe <uuid> --json"
        "; see cas checkpoint describe --help",
    ),
    (
        "-m http://127.0.0.1:9 ls --registry local --nonsense",
        "cas ls: unrecognized arguments: --nonsense; see cas ls --help",
    ),
    ("add", "cas add: say which folder: cas add <folder>; see cas add --help"),
    (
        "add x --metric accuracy",
        "cas add: argument --metric: must be NAME=VALUE, not 'accuracy'; see cas add --help",
    ),
    (
        "add x --metric accuracy=high",
        "cas add: argument --metric: the value of accuracy must be a number, not 'high'; see cas add --help",
    ),
    (
        "add x --experiment -1",
        "cas add: argument --experiment: must be a whole number, not '-1'; see cas add --help",
    ),
    (
        "add x --hparams lr",
        "cas add: argument --hparams: must be a JSON object or NAME=VALUE, not 'lr'; see cas add --help",
    ),
    (f"add x y --uuid {UUID}", "cas add: --uuid names one checkpoint: give one PATH with it; see cas add --help"),
    ("ls 7", "cas ls: unrecognized arguments: 7; see cas ls --help"),
    ("view", "cas view: say which checkpoint: cas view <uuid>; see cas view --help"),
    ("check --deeep", "cas check: unrecognized arguments: --deeep; see cas check --help"),
    ("rm", "cas rm: say which checkpoint: cas rm <uuid>; see cas rm --help"),
]


@pytest.mark.parametrize(("words", "line"), WRONG)
def test_wrong_usage_is_one_line_and_exit_2(shell, words, line):
    import shlex

    ended = shell.run(*shlex.split(words))

    assert (ended.code, ended.out, ended.line) == (2, "", line)
    assert not shell.home.exists(), "a wrong command must not make a store"


def test_a_wrong_line_names_the_program_that_was_typed(shell):
    ended = shell.run("trial", "download", "--best", program="det")

    assert ended.code == 2
    assert ended.line == (
        "det trial download: say which trial: det trial download <trial_id> --best; see det trial download --help"
    )


@pytest.mark.parametrize("program", ["cas", "det"])
def test_console_scripts_run(shell, program):
    shell.variables["PYTHONPATH"] = ""
    done = subprocess.run(
        [SCRIPTS / program, "--version"], env=shell.environment, cwd=shell.folder, capture_output=True, text=True
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{program} (checkpoint-cas) 0.")


def test_an_error_of_the_library_is_one_line_and_its_exit_code(shell):
    ended = shell.run("checkpoint", "download", UUID)

    assert (ended.code, ended.out) == (3, "")
    assert ended.line.startswith(f"Failed to download the checkpoint: the catalog knows no checkpoint {UUID}")


def test_a_broken_setting_is_one_line(shell):
    shell.variables["CAS_LINK"] = "glue"

    ended = shell.run("ls")

    assert ended.code == 2
    assert ended.line == (
        "Failed to list checkpoints: CAS_LINK: 'glue' must be one of auto, reflink, hardlink, symlink, copy"
    )


def test_an_unexpected_error_is_one_line_unless_more_is_asked_for(shell):
    broken = shell.folder / "broken"
    broken.mkdir()
    (broken / "tabulate.py").write_text("raise KeyError('nothing')\n")  # an installation that is damaged
    shell.variables["PYTHONPATH"] = f"{broken}{os.pathsep}{shell.environment['PYTHONPATH']}"

    quiet = shell.run("doctor")
    assert quiet.code == 1
    assert quiet.line == (
        "Failed to examine this machine: unexpected KeyError: 'nothing'; this is a defect in cas: `cas -v …` shows"
        " where, please report it"
    )

    shown = shell.run("doctor", "-v")
    assert shown.code == 1
    assert "Traceback" in shown.err and shown.err.endswith("unexpected KeyError: 'nothing'\n")
    shell.variables["CAS_LOG_LEVEL"] = "debug"
    assert "Traceback" in shell.run("doctor").err


def test_debug_shows_where_an_expected_error_comes_from(shell):
    assert "Traceback" in shell.run("-vv", "view", UUID).err
    assert "Traceback" in shell.run("-v", "view", UUID, "-v").err
    assert "Traceback" not in shell.run("-v", "view", UUID).err


def test_a_reader_that_goes_away_is_no_error(shell):
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as closed:
        ended = shell.run("doctor", stdout=closed)

    assert (ended.code, ended.err) == (128 + signal.SIGPIPE, "")


def test_help_to_a_reader_that_goes_away_is_no_error(shell):
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as closed:
        ended = shell.run("--help", stdout=closed)

    assert (ended.code, ended.err) == (128 + signal.SIGPIPE, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("words", ["doctor", "--help", "du"])
def test_output_that_cannot_be_written_is_one_line(shell, words):
    with open("/dev/full", "w") as full:
        ended = shell.run(words, stdout=full)

    assert ended.code == 7
    assert "the disk is full" in ended.line


def test_without_a_stdout_commands_still_work(shell):
    command = f"{sys.executable} -m cas.cli.main doctor >&-"
    done = subprocess.run(["sh", "-c", command], env=shell.environment, cwd=shell.folder, capture_output=True)

    assert (done.returncode, done.stderr) == (0, b"")


def test_ctrl_c_is_one_line_that_says_how_to_go_on(shell):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(30)
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with shell.start("-m", url, "trial", "download", "1", "--best") as process:
            connection, _ = silent.accept()
            with connection:
                time.sleep(0.2)
                process.send_signal(signal.SIGINT)
                out, err = process.communicate(timeout=30)

    assert (process.returncode, out) == (130, "")
    assert err == "Interrupted; what was fetched is kept: run the same command again to go on\n"


def test_ctrl_c_does_not_wait_for_threads_that_go_on(shell):
    code = (
        "import sys, threading, time; from cas.cli import main\n"
        "threading.Thread(target=time.sleep, args=(60,)).start()\n"
        "sys.argv = ['cas', '-m', sys.argv[1], 'trial', 'download', '1', '--best']; main.cas()"
    )
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(30)
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        command = [sys.executable, "-c", code, url]
        with subprocess.Popen(command, env=shell.environment, stderr=subprocess.PIPE, text=True) as process:
            connection, _ = silent.accept()
            with connection:
                time.sleep(0.2)  # until the client holds the connection too, and waits for an answer
                process.send_signal(signal.SIGINT)
                _, err = process.communicate(timeout=30)

    assert process.returncode == 130
    assert err == "Interrupted; what was fetched is kept: run the same command again to go on\n"


def test_control_characters_in_messages_do_nothing_to_the_terminal(shell):
    ended = shell.run("add", "no\x1b[31m\nsuch")

    assert ended.code == 3
    assert "\x1b" not in ended.line
    assert "no\\x1b[31m such" in ended.line


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
def test_paths_that_are_no_text_are_printed_as_they_are(shell, encoding):
    """The path has a byte that is no UTF-8, and a letter that other encodings lack."""
    folder = os.fsencode(shell.folder) + b"/h\xff\xe2\x80\xa6"
    os.mkdir(folder)
    with open(folder + b"/weights", "w") as file:
        file.write("1")
    environment = shell.environment | {"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": encoding}
    command = [sys.executable, "-m", "cas.cli.main"]
    uuid = shell.run("add", os.fsdecode(folder), "-q").ok.out.strip()
    words = ["c", "download", uuid, "-q", "-o", folder]

    done = subprocess.run([*command, *words], env=environment, cwd=shell.folder, capture_output=True)

    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.endswith(b"h\xff" + "…".encode(encoding, "backslashreplace") + b"\n")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_help_is_printed_on_terminals_that_lack_letters(shell, encoding):
    shell.variables["PYTHONIOENCODING"] = encoding

    assert "\\u2026" in shell.run("--help").ok.out


def test_commands_start_quickly(shell):
    heavy = ("torch", "tensorflow", "numpy", "obstore", "botocore", "boto3", "requests", "tqdm", "sqlite3")
    code = (
        "import sys; from cas.cli import main\n"
        f"main.run(['trial', 'download', '--best'], 'cas'); print([m for m in {heavy!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], env=shell.environment, capture_output=True, text=True)

    assert done.stdout == "[]\n"
