"""The benchmarks run, small and once, so that they never rot; how fast anything is, is no test."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from stores import ROOT
from users import ANNA, as_user, folder_for_all

from bench.harness import Contender, Goal, Report, process

PEERS = ROOT / ".venv-peers" / "done"
RUNNING = [pytest.mark.slow, pytest.mark.s3, pytest.mark.torch]
NAMES = {  # with what each finds, and how many of that have a goal
    "import": (3, 1),
    "cold": (9, 4),
    "eight": (7, 3),
    "small": (7, 2),
    "mixed": (9, 4),
    "again": (4, 2),
    "wire": (3, 3),
    "hints": (2, 1),
    "load": (4, 2),
    "views": (2, 2),
    "ranks": (3, 2),
    "footprint": (8, 0),
    "memory": (3, 3),
    "chunks": (12, 2),
    "index": (2, 0),
    "catalog": (8, 0),
    "recover": (6, 0),
    "scale": (37, 1),
}


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)


@pytest.mark.parametrize("name", [pytest.param(name, marks=RUNNING) for name in NAMES])
def test_benchmark_finds_all_its_rows(name, tmp_path):
    done = run(name, "--quick", "--on", str(tmp_path), "--json", str(tmp_path / "found.json"))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    rows, with_goal = NAMES[name]
    assert len(found["rows"]) == rows
    for row in found["rows"]:
        assert row["missing"] in ("", "not here: `make bench` brings it into .venv-peers")
        assert (row["median"] is None) == bool(row["missing"])
        assert not row["missing"] or not PEERS.exists()
        if name != "scale":  # whose table names the commands alone
            assert row["work"] in done.stdout and row["name"] in done.stdout
        assert row["bench"] == name and row["place"] == str(tmp_path)
    if PEERS.exists():
        assert sum(1 for row in found["rows"] if row["goal"]) == with_goal
    assert [path.name for path in tmp_path.iterdir()] == ["found.json"]  # it tidies up


def test_names_are_those_that_there_are():
    from bench.__main__ import BENCHES

    assert NAMES.keys() == BENCHES.keys()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["cold", "warm"], "no benchmark warm; there are import, cold, "),
        (["--on", "/no/such/folder"], "--on takes memory, disk, both, or a folder that there is"),
        (["--size", "1"], "it takes 1 MiB to 16 GiB"),
        (["--rounds", "0"], "it takes a number of 1 or more"),
    ],
)
def test_wrong_words_are_named(words, said):
    done = run(*words)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.s3
def test_benchmark_that_fails_does_not_take_the_others_along(tmp_path):
    command = [sys.executable, "-m", "bench", "memory", "import", "--quick", "--json", str(tmp_path / "found.json")]
    environment = os.environ | {"CAS_VERIFY": "nonsense"}  # nothing can be pulled
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 1
    assert "\nfailed: memory, in memory: Command " in done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert [one.partition(":")[0] for one in found["failed"]] == ["memory, in memory"]
    assert {row["bench"] for row in found["rows"]} == {"import"}


def seconds(*values: float):
    left = list(values)
    return lambda: left.pop(0)


def test_ratio_is_the_median_of_rounds_in_which_both_ran():
    report = Report(warm=False)
    slow = Contender("slow", seconds(2.0), goal=Goal(0.4), rounds=1)
    report.compare(
        "work", [Contender("ours", seconds(1.0, 9.0, 4.0)), Contender("peer", seconds(2, 3, 2)), slow], rounds=3
    )
    ours, peer, once = report.rows
    assert (ours.median, ours.least, ours.most, ours.ratio) == (4.0, 1.0, 9.0, None)
    assert (peer.ratio, peer.ratio_least, peer.ratio_most) == (2.0, 0.5, 3.0)
    assert (once.ratio, once.rounds, once.goal, once.reached) == (0.5, 1, "≤ 0.4 x", False)


@pytest.mark.parametrize(
    ("goal", "ours", "theirs", "said", "is_reached"),
    [
        (Goal(1.15), [1.15], [1.0], "≤ 1.15 x", True),
        (Goal(1.15), [1.16], [1.0], "≤ 1.15 x", False),
        (Goal(1.1, plus=0.02), [0.024], [0.004], "≤ 1.1 x + 20 ms", True),
        (Goal(1.1, plus=0.02), [0.025], [0.004], "≤ 1.1 x + 20 ms", False),
        (Goal(plus=0.06), [0.10, 0.05, 0.10], [0.02, 0.02, 0.05], "≤ + 60 ms", True),
    ],
)
def test_goal_is_judged_by_the_median_round(goal, ours, theirs, said, is_reached):
    assert str(goal) == said
    assert goal.is_reached(ours, theirs) is is_reached


def test_peer_that_fails_is_out_of_the_race_and_its_row_says_why(capsys):
    report = Report(rounds=2)
    failing = Contender("peer", process([sys.executable, "-c", "import sys; sys.exit('no such bucket')"]), goal=Goal())

    def is_not_whole() -> None:
        raise RuntimeError("it did not bring a")

    short = Contender("short", lambda: 1.0, after_first=is_not_whole)
    report.compare("work", [Contender("ours", lambda: 1.0), failing, short])
    assert [row.missing for row in report.rows] == ["", "failed: no such bucket", "failed: it did not bring a"]
    assert [row.reached for row in report.rows] == [None, None, None]
    assert "failed: no such bucket" in capsys.readouterr().out


def test_ours_that_fails_ends_the_benchmark():
    ours = Contender("ours", process([sys.executable, "-c", "import sys; sys.exit('broken')"]))
    with pytest.raises(subprocess.CalledProcessError):
        Report().compare("work", [ours])


def test_of_smaller_work_nothing_is_said_to_be_reached():
    for judge, reached in ((True, [True, False]), (False, [None, None])):
        report = Report(judge=judge)
        rows = [report.value("work", "speed", 5, "GB/s", at_least=4), report.value("work", "size", 5, "MiB", at_most=4)]
        assert [row.goal for row in rows] == ["≥ 4", "≤ 4"]
        assert [row.reached for row in rows] == reached


@pytest.mark.root
def test_folder_that_may_not_be_written_is_removed_all_the_same():
    from bench.ground import remove

    with folder_for_all() as folder:

        def make_and_remove() -> None:
            view = folder / "view"
            (view / "part").mkdir(parents=True)
            (view / "part" / "file").write_bytes(b"x")
            (view / "link").symlink_to(folder)
            for path in (view / "part", view):
                path.chmod(0o555)
            remove(view)
            remove(view)  # gone: nothing to do

        as_user(ANNA, make_and_remove)
        assert not (folder / "view").exists()
