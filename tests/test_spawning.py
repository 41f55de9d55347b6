"""What was loaded goes to spawned processes and back, with the modules of its code/."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
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


def run_there(function: Any, *arguments: Any) -> Any:
    """Send a call through cloudpickle to a new process, as joblib, Ray and Dask do, and take its answer."""
    cloudpickle = pytest.importorskip("cloudpickle")
    script = (
        "import sys, cloudpickle\n"
        "function, arguments = cloudpickle.loads(sys.stdin.buffer.read())\n"
        "sys.stdout.buffer.write(cloudpickle.dumps(function(*arguments)))\n"
    )
    sent = cloudpickle.dumps((function, arguments))
    done = subprocess.run([sys.executable, "-c", script], input=sent, stdout=subprocess.PIPE, check=True)
    return cloudpickle.loads(done.stdout)


def test_cloudpickle_takes_values_functions_and_modules_to_a_process_without_the_folder(tmp_path: Path) -> None:
    large = "\n".join(f"# {index} {hash(str(index))}" for index in range(60_000))
    for number, padding in ((1, ""), (2, large)):
        module = scope(tmp_path / str(number), number, padding=padding).load("model_def")
        (tmp_path / str(number)).rename(tmp_path / "gone")  # as on another host
        found, thing = run_there(module.double, module.Thing())
        assert found == 2 * number and type(thing) is module.Thing and thing.color is module.Color.RED
        # What the caller defines himself goes by value, and refers to the checkpoint's module.
        assert run_there(lambda: (module.late.number, module.Thing().number())) == (number, number)  # noqa: B023
        shutil.rmtree(tmp_path / "gone")


def test_workers_of_joblib_take_what_was_loaded(tmp_path: Path) -> None:
    joblib = pytest.importorskip("joblib")
    modules = [scope(tmp_path / "a", 1).load("model_def"), scope(tmp_path / "b", 2).load("model_def")]
    with joblib.Parallel(n_jobs=2, backend="loky") as parallel:
        assert os.getpid() not in parallel([joblib.delayed(os.getpid)()] * 2)
        found = parallel(joblib.delayed(module.double)(module.Thing()) for module in modules)
    assert [number for number, _ in found] == [2, 4]
    assert all(type(thing) is module.Thing for module, (_, thing) in zip(modules, found, strict=True))


def test_files_of_a_worker_pickler_hold_the_sources_and_other_files_plain_names(tmp_path: Path) -> None:
    cloudpickle = pytest.importorskip("cloudpickle")
    thing = scope(tmp_path, 1).load("model_def").Thing()
    assert b"open_parcel" in cloudpickle.dumps(thing)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert b"open_parcel" not in pickle.dumps(thing, protocol)


def test_one_message_holds_the_sources_once_and_files_hold_plain_names(tmp_path: Path) -> None:
    from multiprocessing.reduction import ForkingPickler

    module = scope(tmp_path, 1, padding="# " + "".join(map(str, range(5000)))).load("model_def")
    things = [module.Thing(), module.Color.RED, module.work]
    one, many = (len(bytes(ForkingPickler.dumps(value))) for value in (things[:1], things))
    assert many < one + 1000
    assert b"cas" not in pickle.dumps(things)
    back: Any = pickle.loads(ForkingPickler.dumps(things))
    assert type(back[0]) is module.Thing and back[1:] == things[1:]
