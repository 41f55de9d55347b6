"""Records written anew: fewer bytes, the same answers; no entry is lost to a kill or to a writer beside it."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from kills import each_kill
from stores import ROOT

from cas.index import compaction, disk, lines
from cas.index.compaction import LOOK, WORTH, is_time_to_look
from cas.index.records import NewRecord
from cas.index.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


def add(store: Store, id: str, n: int, pad: int = 0) -> None:
    store.records.add("local", [NewRecord("checkpoint", id, {"n": n, "pad": "x" * pad}, ("experiment/1",))])


def files(store: Store) -> list[Path]:
    return sorted((store.home / "records" / "local").iterdir())


def known(store: Store) -> dict[str, int]:
    return {seen.id: seen.data["n"] for seen in store.records.find("checkpoint")}


def test_what_no_longer_counts_goes_and_no_answer_changes(store: Store) -> None:
    for n in range(50):
        add(store, "often", n)
    add(store, "once", 7)
    before = sum(path.stat().st_size for path in files(store))
    store.records.compact("local")
    assert sum(path.stat().st_size for path in files(store)) < before / 10
    for reader in (store, Store(store.home)):
        assert known(reader) == {"often": 49, "once": 7}
        assert [seen.id for seen in reader.records.find("checkpoint", parent="experiment/1")] == ["often", "once"]
    add(store, "often", 50)
    assert known(store) == known(Store(store.home)) == {"often": 50, "once": 7}
    store.records.compact("local")
    assert len(files(store)) == 1


def test_a_line_that_was_added_within_the_same_moment_is_later_than_what_was_written_anew(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "now", lambda: 1000.0)
    for n in range(3):
        add(store, "a", n)
        store.records.compact("local")
        add(store, "a", n + 10)
        assert known(store) == known(Store(store.home)) == {"a": n + 10}


def test_lines_that_are_no_records_of_ours_are_kept(store: Store) -> None:
    add(store, "a", 1)
    path = store.layout.records("local")
    lines.append(path, [{"kind": "from the future", "of": [1]}])
    store.records.compact("local")
    (file,) = files(store)
    assert {"kind": "from the future", "of": [1]} in [line.payload for line in lines.read(file)]


def test_files_of_others_are_left_alone(store: Store) -> None:
    add(store, "a", 1)
    folder = store.home / "records" / "local"
    mine = f"{disk.writer_name()}.jsonl"
    others = ["other.0.jsonl", f"{mine}.txt", f"x{mine}", "other.0+0000000000000001.00000000.jsonl"]
    for name in others:
        lines.append(folder / name, [{"kind": "checkpoint", "id": name, "seen": 1.0, "parents": [], "data": {"n": 1}}])
    before = {name: (folder / name).read_bytes() for name in others}
    store.records.compact("local")
    assert {name: (folder / name).read_bytes() for name in others} == before


def test_a_file_grows_no_further_when_the_same_is_written_again_and_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "WORTH", 64 << 10)
    monkeypatch.setattr(compaction, "LOOK", 16 << 10)
    sizes = []
    for n in range(300):
        add(store, str(n % 5), n, pad=2000)
        sizes.append(sum(path.stat().st_size for path in files(store)))
    assert max(sizes) < 120 << 10  # 600 kB were written
    assert known(store) == {str(n % 5): n for n in range(295, 300)}


def test_what_all_counts_is_not_written_anew(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "WORTH", 16 << 10)
    monkeypatch.setattr(compaction, "LOOK", 4 << 10)
    for n in range(30):
        add(store, str(n), n, pad=2000)
    assert [path.name for path in files(store)] == [f"{disk.writer_name()}.jsonl"]


def test_a_full_disk_while_compacting_loses_nothing(store: Store) -> None:
    add(store, "a", 1)

    def full(moment: str, step: str) -> None:
        if (moment, step) == ("before", "write"):
            raise OSError(28, "No space left on device")

    disk.observe(full)
    try:
        store.records.compact("local")
    finally:
        disk.observe(None)
    assert known(store) == known(Store(store.home)) == {"a": 1}
    assert not [path for path in files(store) if path.name.startswith(".")]


def test_what_is_written_while_its_file_is_written_anew_is_not_lost(store: Store) -> None:  # F18
    add(store, "a", 1)
    other = Store(store.home)

    def meanwhile(moment: str, step: str) -> None:
        if (moment, step) == ("before", "write_once"):  # the file is open, and nothing is written yet
            disk.observe(None)
            other.records.compact("local")

    disk.observe(meanwhile)
    try:
        add(store, "b", 2)
    finally:
        disk.observe(None)
    assert known(store) == known(Store(store.home)) == {"a": 1, "b": 2}


def _setup(home: Path) -> None:
    store = Store(home)
    for n in range(5):
        add(store, "a", n)
    store.records.compact("local")
    add(store, "b", 5)
    add(store, "a", 6)


def test_looks_grow_rare_as_the_file_grows() -> None:
    step, looked = 200_000, []
    for size in range(0, 1 << 30, step):
        if is_time_to_look(size, size + step):
            looked.append(size + step)
    assert looked[0] >= WORTH
    assert all(later - earlier < max(2 * LOOK, later / 7) for earlier, later in pairwise(looked))  # often enough
    assert sum(looked) < 20 * looked[-1]  # each look reads in proportion; at every MiB it were 500 times


@pytest.mark.slow
def test_killed_at_any_step_nothing_is_lost(tmp_path: Path) -> None:
    for kill, home in each_kill(tmp_path, _setup, lambda home: Store(home).records.compact("local")):
        store = Store(home)
        assert known(store) == {"a": 6, "b": 5}, kill
        add(store, "c", 7)
        store.records.compact("local")
        assert known(store) == known(Store(home)) == {"a": 6, "b": 5, "c": 7}, kill


WRITER = """
import sys
from pathlib import Path
from cas.index.records import NewRecord
from cas.index.store import Store
store, name = Store(Path(sys.argv[1])), sys.argv[2]
for count in range(100_000):
    ids = [f"{name}-{count}-{n}" for n in range(3)]
    store.records.add("local", [NewRecord("checkpoint", id, {"n": count, "pad": "x" * 3000}) for id in ids])
    print(*ids, flush=True)
    sys.stdin.readline()
"""

COMPACTER = """
import sys
from pathlib import Path
from cas.index.store import Store
store = Store(Path(sys.argv[1]))
print(flush=True)
for line in sys.stdin:
    store.records.compact("local")
    print(flush=True)
"""


@pytest.mark.slow
def test_writers_and_compacters_that_are_killed_lose_no_entry(tmp_path: Path) -> None:
    home = tmp_path / "home"
    watcher = Store(home)
    told: set[str] = set()
    for turn in range(2):
        children = [
            subprocess.Popen(
                [sys.executable, "-c", code, home, f"{turn}-{number}"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
            )
            for number, code in enumerate((WRITER, WRITER, COMPACTER, WRITER, COMPACTER))
        ]
        for step in range(8):
            for child in children:  # all of them at once, until each has done one thing more
                print(file=child.stdin, flush=True)
            if step == 4:
                assert told <= set(known(watcher))  # also in the middle of it
            told.update(word for child in children for word in child.stdout.readline().split())  # type: ignore[union-attr]
        for child in children:
            print(file=child.stdin, flush=True)
        for child in children:
            child.kill()
            told.update(word for line in child.communicate()[0].split("\n")[:-1] for word in line.split())
        assert told <= set(known(watcher))
        assert told <= set(known(Store(home)))
    assert len(told) >= 2 * 3 * 8 * 3
