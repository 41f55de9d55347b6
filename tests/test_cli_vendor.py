"""`det` with words that ours does not have."""

from __future__ import annotations

import os
import signal

import pytest
from cli import Shell


@pytest.fixture
def shell(tmp_path):
    return Shell(tmp_path)


def install_vendor(shell: Shell, main: str) -> None:
    """Put a small stand-in for the vendor's package on the path: it is a separate program, run for real."""
    package = shell.folder / "vendor" / "determined" / "cli"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").write_text("")
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text(f"import sys\n\n\ndef main(args=sys.argv[1:]):\n    {main}\n")
    shell.variables["PYTHONPATH"] = f"{shell.folder / 'vendor'}{os.pathsep}{shell.environment['PYTHONPATH']}"


@pytest.mark.parametrize("words", [("master", "info"), ("-m", "http://h", "trial", "kill", "7"), ("e", "list")])
def test_words_of_the_vendor_are_handed_over_as_they_are(shell, words):
    install_vendor(shell, "print(sys.argv, list(args)); sys.exit(5)")

    ended = shell.run(*words, program="det")

    assert (ended.code, ended.err) == (5, "")
    assert ended.out == f"{['det', *words]} {list(words)}\n"


def test_the_vendors_own_success_and_message_are_kept(shell):
    install_vendor(shell, "return None")
    assert shell.run("version", program="det").ok.out == ""

    (shell.folder / "vendor/determined/cli/__main__.py").write_text("def main():\n    raise SystemExit('no master')\n")
    ended = shell.run("version", program="det")
    assert (ended.code, ended.line) == (1, "no master")


def test_documented_words_are_ours_even_if_the_vendor_is_installed(shell):
    install_vendor(shell, "sys.exit(5)")

    ended = shell.run("trial", "download", "--best", program="det")

    assert ended.code == 2
    assert "det trial download <trial_id> --best" in ended.line


def test_without_the_vendor_one_line_says_what_ours_does(shell):
    ended = shell.run("trial", "kill", "7", program="det")

    assert (ended.code, ended.out) == (2, "")
    assert ended.line == (
        "det: this det does trial download, checkpoint download, checkpoint describe, and what `cas` does; for"
        " `det trial kill` install the vendor's package, determined; see det --help"
    )


def test_without_the_vendor_a_slip_is_corrected(shell):
    assert "did you mean `det trial`?" in shell.run("trail", "download", "7", program="det").line
    assert "did you mean `det trial download`?" in shell.run("trial", "dowload", "7", program="det").line
    for word in ("notebook", "master", "task", "model", "version", "template", "shell"):
        assert "install the vendor's package" in shell.run(word, program="det").line


def test_cas_never_hands_over(shell):
    install_vendor(shell, "sys.exit(5)")

    ended = shell.run("notebook", "start")

    assert (ended.code, ended.line) == (2, "cas: no command is called 'notebook'; see cas --help")


def test_a_second_ctrl_c_ends_what_does_not_want_to_end(shell):
    stubborn = (
        "try: print('started', flush=True); time.sleep(60)\n    finally: print('wait', flush=True); time.sleep(60)"
    )
    install_vendor(shell, f"import time\n    {stubborn}")

    with shell.start("notebook", "start", program="det") as process:
        assert process.stdout.readline() == "started\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "wait\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)

    assert process.returncode == 130
    assert err == "Interrupted; run the same command again to go on\n"
