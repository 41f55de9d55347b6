"""Progress: on stderr, where it is wanted, and nowhere else."""

from __future__ import annotations

import re
import threading

import pytest

from cas.config import Progress
from cas.transfer.progress import drawer


def draw(progress, to_fetch=1 << 20, already=0):
    with drawer(progress, "46985143")(to_fetch, already) as advance:
        for _ in range(4):
            advance(to_fetch // 4)


@pytest.mark.parametrize("progress", [Progress.AUTO, Progress.OFF])
def test_nothing_is_drawn_where_there_is_no_terminal(progress, capfd):
    draw(progress)
    assert capfd.readouterr() == ("", "")


def test_one_line_on_stderr_says_bytes_rate_and_what_was_here(capfd):
    draw(Progress.ON, already=3 << 20)
    out, err = capfd.readouterr()
    assert out == ""
    last = err.rstrip("\n").split("\r")[-1]
    assert last.startswith("46985143: 100%")
    assert re.search(r"1\.00M/1\.00M", last)
    assert "B/s" in last
    assert "3.0 MiB already here" in last
    assert err.count("\n") == 1


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
