"""What was loaded goes to spawned processes and back, with the modules of its code/."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import pickle
import shutil
import textwrap
from pathlib import Path
from typing import Any

import pytest

from cas.load.sources import Sources, sources_of

pytestmark = pytest.mark.slow

SPAWN = multiprocessing.get_context("spawn")


def scope(folder: Path, number: int, *, padding: str = "") -> Sources:
    """Modules that are called the same in every scope, and say which one they are of."""
    (folder / "code" / "pkg").mkdir(parents=True)
    (folder / "code" / "pkg" / "__init__.py").write_text("")
    (folder / "code" / "pkg" / "late.py").write_text(f"number = {number}\n")
    source = """
        import enum
        from pkg import late

        class Color(enum.Enum):
            RED = 1

        class Thing:
            def __init__(self, color=Color.RED):
                self.color = color

            def number(self):
                from pkg.late import number
                return number

        def work(thing, queue):
            queue.put((type(thing) is Thing, thing.number(), Thing(Color.RED)))

        def double(thing):
            assert type(thing) is Thing
            return thing.number() * 2, Thing()
    """
    (folder / "code" / "model_def.py").write_text(textwrap.dedent(source) + padding)
    return sources_of(folder / "code")


def test_spawned_process_has_the_modules_and_sends_values_back(tmp_path: Path) -> None:
    first, second = scope(tmp_path / "a", 1), scope(tmp_path / "b", 2)
    shutil.rmtree(tmp_path / "a")  # the sources travel
    modules = [first.load("model_def"), second.load("model_def")]
    queue = SPAWN.Queue()
    processes = [SPAWN.Process(target=module.work, args=(module.Thing(), queue)) for module in modules]
    for process in processes:
        process.start()
    found = sorted((queue.get(timeout=100) for _ in processes), key=lambda answer: answer[1])
    for process in processes:
        process.join()
    assert [(same, number) for same, number, _ in found] == [(True, 1), (True, 2)]
    for module, (_, _, thing) in zip(modules, found, strict=True):
        assert type(thing) is module.Thing
        assert thing.color is module.Color.RED


def test_pool_of_spawned_workers_takes_values_of_several_checkpoints(tmp_path: Path) -> None:
    large = "\n".join(f"# {index} {hash(str(index))}" for index in range(60_000))  # more than goes with each message
    modules = [scope(tmp_path / "a", 1).load("model_def"), scope(tmp_path / "b", 2, padding=large).load("model_def")]
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=SPAWN) as pool:
        for module in [*modules, *modules]:
            number, thing = pool.submit(module.double, module.Thing()).result(timeout=100)
            assert number == 2 * module.late.number
            assert type(thing) is module.Thing


def test_one_message_holds_the_sources_once_and_files_hold_plain_names(tmp_path: Path) -> None:
    from multiprocessing.reduction import ForkingPickler

    module = scope(tmp_path, 1, padding="# " + "".join(map(str, range(5000)))).load("model_def")
    things = [module.Thing(), module.Color.RED, module.work]
    one, many = (len(bytes(ForkingPickler.dumps(value))) for value in (things[:1], things))
    assert many < one + 1000
    assert b"cas" not in pickle.dumps(things)
    back: Any = pickle.loads(ForkingPickler.dumps(things))
    assert type(back[0]) is module.Thing and back[1:] == things[1:]
