"""Modules of checkpoints: imported as Python would, and kept apart from everybody else's."""

from __future__ import annotations

import copy
import inspect
import os
import pickle
import shutil
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest

from cas.errors import ContentError
from cas.load.sources import ScopedName, Sources, sources_of


def scope(folder: Path, **files: str) -> Sources:
    """Write a `code/` folder (`a__b` is a/b.py) and return its scope."""
    for name, text in files.items():
        path = folder / "code" / (name.replace("__", "/") + ".py").replace("/init.py", "/__init__.py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    return sources_of(folder / "code")


def test_every_form_of_import_works(tmp_path: Path) -> None:
    made = scope(
        tmp_path,
        main="""
            import os.path
            import pkg
            import pkg.a as first
            import pkg.sub.deep
            from pkg import a, b as second
            from pkg.sub import deep
            from pkg.star import *
            assert pkg.sub.deep is deep and pkg.a is first is a
            total = first.value + second.value + deep.value + starred
        """,
        pkg__init="from . import a\n",
        pkg__a="from .b import value\nvalue += 1\n",
        pkg__b="value = 10\n",
        pkg__sub__init="",
        pkg__sub__deep="from ..a import value\n",
        pkg__star="__all__ = ['starred']\nstarred = 100\nhidden = 1\n",
    )
    main = made.load("main")
    assert main.total == 11 + 10 + 11 + 100
    assert not hasattr(main, "hidden")
    assert not {"main", "pkg"} & {name for name in sys.modules if type(name) is str}


def test_direct_sub_folders_are_searched_and_deeper_ones_are_not(tmp_path: Path) -> None:
    made = scope(tmp_path, main="import inner\n", lib__inner="x = 1\n", lib__far__deep="x = 1\n")
    assert made.load("main").inner.x == 1
    with pytest.raises(ModuleNotFoundError, match="deep"):
        made.load("deep")


def test_folders_without_init_are_packages(tmp_path: Path) -> None:
    made = scope(tmp_path, main="from space.inner import x\nimport space\n", space__inner="x = 5\n")
    assert made.load("main").x == 5


def test_modules_that_import_each_other_work(tmp_path: Path) -> None:
    made = scope(
        tmp_path,
        pkg__init="from . import one\n",
        pkg__one="from . import two\n\ndef f():\n    return two.g()\n",
        pkg__two="from . import one\n\ndef g():\n    return one.__name__\n",
    )
    assert made.load("pkg.one").f() == "pkg.one"


def test_standard_library_and_frameworks_are_never_shadowed(tmp_path: Path) -> None:
    made = scope(
        tmp_path, main="import random, numpy, types\n", random="x = 1\n", utils__types="x = 1\n", numpy__init="x = 1\n"
    )
    main = made.load("main")
    assert not hasattr(main.random, "x") and not hasattr(main.types, "x") and not hasattr(main.numpy, "x")


def test_module_of_the_user_is_neither_used_nor_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "shared_name.py").write_text("whose = 'mine'\n")
    monkeypatch.syspath_prepend(str(tmp_path / "mine"))
    import shared_name  # type: ignore[import-not-found]

    made = scope(tmp_path, main="import shared_name\n", shared_name="whose = 'theirs'\n")
    assert made.load("main").shared_name.whose == "theirs"
    assert sys.modules.pop("shared_name") is shared_name
    assert shared_name.whose == "mine"


def test_import_by_name_inside_the_code_finds_its_modules(tmp_path: Path) -> None:
    made = scope(
        tmp_path,
        main="import importlib\n\ndef find(name):\n    return importlib.import_module(name)\n",
        chosen__by_name="x = 3\n",
    )
    assert made.load("main").find("chosen.by_name").x == 3
    with pytest.raises(ModuleNotFoundError):
        made.load("main").find("nowhere")
    import importlib

    with pytest.raises(ModuleNotFoundError):  # the user does not mean the checkpoint
        importlib.import_module("another_chosen")


def test_functions_import_after_the_folder_is_gone(tmp_path: Path) -> None:
    made = scope(tmp_path, main="def f():\n    from late import x\n    return x\n", late="x = 4\n")
    main = made.load("main")
    shutil.rmtree(tmp_path / "code")
    assert main.f() == 4
    assert "from late import x" in inspect.getsource(main.f)


def test_nothing_is_written(tmp_path: Path) -> None:
    made = scope(tmp_path, main="import pkg.a\n", pkg__init="", pkg__a="")
    made.load("main")
    assert sorted(path.name for path in (tmp_path / "code").rglob("*")) == ["__init__.py", "a.py", "main.py", "pkg"]


def test_failed_import_is_tried_again(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    made = scope(
        tmp_path, pkg__init="", pkg__a=f"import os\nif not os.path.exists({str(flag)!r}):\n    raise OSError\n"
    )
    with pytest.raises(OSError):
        made.load("pkg.a")
    assert not hasattr(made.load("pkg"), "a")
    flag.touch()
    assert made.load("pkg.a") is made.load("pkg").a


def test_syntax_error_names_file_and_line(tmp_path: Path) -> None:
    made = scope(tmp_path, main="x = 1\nif:\n")
    with pytest.raises(SyntaxError) as caught:
        made.load("main")
    assert (caught.value.lineno, caught.value.filename) == (2, str(tmp_path / "code" / "main.py"))


def test_classes_are_found_by_what_looks_for_their_module(tmp_path: Path) -> None:
    source = """
        from __future__ import annotations
        import dataclasses, enum, typing

        class Color(enum.Enum):
            RED = 1

        @dataclasses.dataclass
        class Point:
            x: int
            color: typing.ClassVar[Color] = Color.RED
    """
    first = scope(tmp_path / "a", main=source).load("main")
    second = scope(tmp_path / "b", main=source + "\n        # another\n").load("main")
    import typing

    for module in (first, second):
        assert typing.get_type_hints(module.Point)["x"] is int
        assert "class Point" in inspect.getsource(module.Point)
        point = copy.deepcopy(module.Point(3))
        assert type(point) is module.Point
        assert copy.copy(module.Color.RED) is module.Color.RED
    assert first.Point is not second.Point


def test_values_of_two_scopes_can_be_pickled_under_plain_names(tmp_path: Path) -> None:
    modules = [
        scope(tmp_path / str(number), pkg__init="", pkg__m=f"class C:\n    x = {number}\n").load("pkg.m")
        for number in (1, 2)
    ]
    for module in modules:
        data = pickle.dumps(module.C())
        assert b"pkg.m" in data and b"cas" not in data


def test_module_name_pickles_as_plain_text(tmp_path: Path) -> None:
    name = scope(tmp_path, main="").load("main").__name__
    assert name == "main" and type(name) is ScopedName
    assert type(pickle.loads(pickle.dumps(name))) is str
    assert type(copy.deepcopy(name)) is str
    assert name != "other" and name not in {"main": 1}


def test_threads_that_import_at_once_get_one_module(tmp_path: Path) -> None:
    made = scope(tmp_path, main="import time\ntime.sleep(0.05)\nx = object()\n")
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(made.load("main"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(module) for module in found}) == 1


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # it is what is tested
def test_forked_child_imports_while_a_thread_of_the_parent_holds_the_lock(tmp_path: Path) -> None:
    made = scope(tmp_path, slow="import time\ntime.sleep(1)\n", quick="x = 1\n")
    thread = threading.Thread(target=lambda: made.load("slow"))
    thread.start()
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if made.load("quick").x == 1 else 1)
        finally:
            os._exit(2)
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_class_of_the_training_script_is_found_by_its_definition(tmp_path: Path) -> None:
    made = scope(tmp_path, train="class T:\n    pass\n", broken="class T(:\n", lib__inner="class Deep:\n    pass\n")
    assert made.defines("T") == "train"
    assert made.defines("Deep") == "lib.inner"
    assert made.defines("Nowhere") is None


def test_class_that_several_files_define_is_not_guessed(tmp_path: Path) -> None:
    made = scope(tmp_path, train="class T:\n    pass\n", old_train="class T:\n    pass\n")
    with pytest.raises(ContentError, match=r"\(old_train\.py, train\.py\)"):
        made.defines("T")


def test_files_that_are_no_sources_are_passed_over(tmp_path: Path) -> None:
    made = scope(tmp_path, main="")
    (tmp_path / "code" / ".hidden.py").write_text("")
    for folder in (".hidden", "__pycache__"):
        (tmp_path / "code" / folder).mkdir()
        (tmp_path / "code" / folder / "x.py").write_text("")
    (tmp_path / "code" / "data.bin").write_bytes(b"\0")
    (tmp_path / "code" / "dangling.py").symlink_to("nowhere")
    (tmp_path / "code" / "endless.py").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "code" / "pipe.py")
    assert sources_of(tmp_path / "code") is made


def test_what_imports_by_name_for_the_code_finds_its_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    library = """
        import importlib

        def make(path):
            module, _, name = path.rpartition(".")
            return getattr(importlib.import_module(module), name)

        def is_module(path):
            try:
                return bool(importlib.import_module(path))
            except ImportError as error:
                assert error.name == path
                return False
    """
    (tmp_path / "mine" / "some_library.py").write_text(textwrap.dedent(library))
    monkeypatch.syspath_prepend(str(tmp_path / "mine"))
    made = scope(
        tmp_path,
        main="""
            import importlib.resources, importlib.util, pkgutil, pydoc
            import some_library
            from chosen.deep.net import Net

            def find():
                assert some_library.make("chosen.deep.net.Net") is Net
                assert some_library.is_module("chosen.deep") and not some_library.is_module("chosen.deep.net.Net")
                assert pydoc.locate("chosen.deep.net.Net") is Net
                assert importlib.util.find_spec("chosen.deep.net") and not importlib.util.find_spec("chosen.nowhere")
                assert pkgutil.get_data("chosen", "data.txt") == b"text"
                return importlib.resources.files("chosen").joinpath("data.txt").read_text()
        """,
        chosen__init="",
        chosen__deep__init="",
        chosen__deep__net="class Net:\n    pass\n",
    )
    (tmp_path / "code" / "chosen" / "data.txt").write_text("text")
    assert made.load("main").find() == "text"
    assert not {"chosen", "chosen.deep", "chosen.deep.net"} & {name for name in sys.modules if type(name) is str}
    import some_library  # type: ignore[import-not-found]

    with pytest.raises(ModuleNotFoundError):  # it does not call for the checkpoint now
        some_library.make("chosen.deep.net.Net")


def test_whoever_asks_what_is_installed_is_not_shown_the_modules(tmp_path: Path) -> None:
    import importlib.util

    flag = tmp_path / "ran"
    made = scope(
        tmp_path, main="import wanted\n", wanted="", optional=f"from pathlib import Path\nPath({str(flag)!r}).touch()\n"
    )
    made.load("main")
    assert [importlib.util.find_spec(name) for name in ("wanted", "optional")] == [None, None]

    def is_there(name: str) -> bool:
        try:
            return bool(__import__(name))
        except ModuleNotFoundError:
            return False

    assert not is_there("wanted") and not is_there("optional")
    assert not flag.exists()


def test_threads_that_unpickle_at_once_get_the_modules_and_leave_none(tmp_path: Path) -> None:
    kinds = [scope(tmp_path, quick__init="", quick__net="class C:\n    pass\n").load("quick.net").C]
    data = [pickle.dumps(kind()) for kind in kinds]
    found: list[Any] = []
    threads = [
        threading.Thread(target=lambda: found.extend(type(pickle.loads(one)) for _ in range(100) for one in data))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == kinds * 400
    assert not {"quick", "quick.net"} & {name for name in sys.modules if type(name) is str}


def test_stand_in_is_seen_by_the_code_and_by_nobody_else(tmp_path: Path) -> None:
    made = scope(
        tmp_path,
        main="""
            import determined as det
            from determined import pytorch, keras
            from determined.pytorch import PyTorchTrial
            assert det.pytorch is pytorch and not hasattr(det, "no_such_thing")
            class T(PyTorchTrial):
                pass
        """,
    )
    assert made.load("main").T.__mro__[1].__name__ == "PyTorchTrial"
    with pytest.raises(ModuleNotFoundError):
        import determined  # noqa: F401
