"""Progress: on stderr, where it is wanted, and nowhere else; one line per transfer, whoever else draws."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import threading

import pytest
from stores import ROOT

from cas.config import Progress
from cas.transfer import progress as module
from cas.transfer.progress import drawer


@pytest.fixture(autouse=True)
def no_ranks(monkeypatch):
    for name in ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)


def draw(progress, to_fetch=1 << 20, already=0):
    with drawer(progress, "46985143")(to_fetch, already) as advance:
        for _ in range(4):
            advance(to_fetch // 4)


@pytest.mark.parametrize("progress", [Progress.AUTO, Progress.OFF])
def test_nothing_is_said_of_a_short_transfer_where_there_is_no_terminal(progress, capfd):
    draw(progress)
    assert capfd.readouterr() == ("", "")


def test_one_line_on_stderr_says_bytes_rate_and_what_was_here(capfd):
    draw(Progress.ON, already=3 << 20)
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("46985143: 100%") and "\r" not in err
    assert re.search(r"1\.00M/1\.00M", err)
    assert "B/s" in err
    assert "3.0 MiB already here" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("progress", [Progress.AUTO, Progress.ON])
def test_a_log_file_gets_a_line_now_and_then(progress, capfd, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with drawer(progress, "x")(100 << 20, 0) as advance:
        for _ in range(100):
            advance(1 << 20)
            now[0] += 1
    lines = capfd.readouterr().err.splitlines()
    assert [line.split("%")[0].split()[-1] for line in lines] == ["11", "41", "71", "100"]
    assert all(re.search(r"\[0\d:\d\d<0\d:\d\d, ", line) for line in lines)  # time left


def test_nothing_to_fetch_draws_nothing(capfd):
    draw(Progress.ON, to_fetch=0, already=5)
    assert capfd.readouterr().err == ""


def test_counts_from_many_threads_add_up(capfd):
    with drawer(Progress.ON, "x")(8000, 0) as advance:
        threads = [threading.Thread(target=lambda: [advance(1) for _ in range(1000)]) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert "7.81k/7.81k" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["LOCAL_RANK", "SLURM_LOCALID"])
def test_of_the_ranks_of_a_host_the_first_one_draws(name, capfd, monkeypatch):
    monkeypatch.setenv(name, "3")
    draw(Progress.ON)
    assert capfd.readouterr().err == ""
    monkeypatch.setenv(name, "0")
    draw(Progress.ON)
    assert capfd.readouterr().err


CHILD = """
import sys, time
from cas.config import Progress
from cas.transfer.progress import drawer
with drawer(Progress.AUTO, "bar" + sys.argv[1])(1 << 20, 2048) as advance:
    print("drawing", flush=True)
    sys.stdin.readline()
    advance(1 << 20)
"""


def on_a_terminal(count: int) -> str:
    """Let so many processes draw at once on one terminal; return what it got."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": theirs, "env": environment}
    children = [subprocess.Popen([sys.executable, "-c", CHILD, str(n)], **pipes) for n in range(count)]
    try:
        for child in children:
            assert child.stdout.readline() == b"drawing\n"
        for child in children:
            child.communicate(b"\n", timeout=30)
            assert child.returncode == 0
    finally:
        os.close(theirs)
    found = b""
    try:
        while data := os.read(ours, 65536):
            found += data
    except OSError:  # the terminal's end
        pass
    finally:
        os.close(ours)
    return found.decode()


@pytest.mark.slow
def test_a_terminal_gets_one_bar_that_is_drawn_again():
    text = on_a_terminal(1)
    assert "bar0: 100%" in text and "\r" in text
    assert "2.0 KiB already here" in text
    assert text.count("\n") == 1


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="no /proc: each process draws a bar of its own")
def test_eight_processes_on_one_terminal_draw_one_bar():
    text = on_a_terminal(8)
    assert len(set(re.findall(r"bar\d", text))) == 1
    assert text.count("\n") == 1


def test_a_notebook_without_widgets_gets_text(monkeypatch, capfd):
    class Shell:
        config: dict[str, object] = {"IPKernelApp": {}}  # noqa: RUF012

    monkeypatch.setitem(sys.modules, "IPython", type("IPython", (), {"get_ipython": staticmethod(Shell)}))
    draw(Progress.AUTO)
    assert "46985143: 100%" in capfd.readouterr().err
