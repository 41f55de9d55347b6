"""Loading with real torch: every layout, compared with recorded outputs, in the places where people load."""

from __future__ import annotations

import errno
import functools
import io
import json
import logging
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cas.config import Trust
from cas.errors import CasError, ContentError, NotAllowedError, NotFoundError, UnsafeContentError, UsageError
from cas.index.manifest import FileEntry, Manifest
from cas.index.paths import RelativePath
from cas.index.store import Store
from cas.load.loading import load_folder, user_folder
from cas.load.permit import Permit
from cas.load.views import make_view

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

DATA = Path(__file__).parent / "data" / "checkpoints"
LEGACY = DATA / "g_legacy_0_12_5_model_state_dict"
TWO_MODELS = DATA / "a_two_models"
LEGACY_OUTPUT = [[-0.233088, -0.11463], [-0.067425, 0.210755]]
ENCODER_OUTPUT = [[-0.156507, 0.109758, -0.129535], [0.951749, 0.33085, -0.419344]]
DECODER_OUTPUT = [
    [-0.209447, 0.058065, -0.301998, 0.273911, -0.055452, 0.152769, -1.040924, -0.507564],
    [-0.189905, 0.003701, -0.422468, -0.487976, 0.552919, -0.190717, -0.164849, 0.343836],
]


def forward(model: Any) -> list[list[float]]:
    """The outputs that the samples' README records."""
    width = next(parameter for parameter in model.parameters() if parameter.dim() >= 2).shape[1]
    with torch.no_grad():
        return model.eval()(torch.linspace(-1, 1, 2 * width).reshape(2, width)).tolist()


def close(found: list[list[float]], expected: list[list[float]]) -> bool:
    return torch.allclose(torch.tensor(found), torch.tensor(expected), atol=2e-6)


def load_path(path: Path, trust: Trust = Trust.SCAN, **options: Any) -> Any:
    with user_folder(path) as view:
        return load_folder(view, permit=Permit(trust), **options)


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    found = {}
    for path in sorted(folder.rglob("*")):
        state = path.lstat()
        found[str(path.relative_to(folder))] = (state.st_mtime_ns, state.st_size)
    return found


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Path], Path]:
    def copy(source: Path) -> Path:
        return Path(shutil.copytree(source, tmp_path / source.name))

    return copy


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "home")
    yield made
    made.close()


def view_of(store: Store, folder: Path) -> Path:
    """Put a folder into the store and return its view."""
    entries = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            entries.append(FileEntry(RelativePath(path.relative_to(folder).as_posix()), len(data), store.put(data)))
    return make_view(store, Manifest.of(entries)).path


MODEL_CODE = """
    import torch
    from torch import nn
    from parts.blocks import Scale

    class Net(nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.layer = nn.Linear(2, 2)
            self.scale = Scale(factor)

        def forward(self, x):
            from late import offset
            return self.scale(self.layer(x)) + offset()
"""


@functools.cache
def pickled_module(*, legacy: bool) -> bytes:
    """model.pth as the training script wrote it, in a process of its own with code/ on its path."""
    with tempfile.TemporaryDirectory() as folder:
        write_code(Path(folder), factor=2.0, offset=1.0)
        script = f"""
            import sys, torch
            sys.path.insert(0, {folder!r} + "/code")
            from model_def import Net
            model = Net(1.0)
            torch.nn.init.constant_(model.layer.weight, 0.5)
            torch.nn.init.constant_(model.layer.bias, 0.25)
            torch.save(model, {folder!r} + "/model.pth", _use_new_zipfile_serialization={not legacy})
        """
        subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)
        return Path(folder, "model.pth").read_bytes()


def write_code(folder: Path, *, factor: float, offset: float) -> None:
    code = folder / "code"
    (code / "parts").mkdir(parents=True)
    (code / "model_def.py").write_text(textwrap.dedent(MODEL_CODE))
    (code / "late.py").write_text(f"def offset():\n    return {offset}\n")
    (code / "parts" / "__init__.py").write_text("")
    (code / "parts" / "blocks.py").write_text(
        "from torch import nn\n\n\nclass Scale(nn.Module):\n    def __init__(self, factor):\n"
        "        super().__init__()\n        self.factor = factor\n\n    def forward(self, x):\n"
        f"        return x * self.factor * {factor}\n"
    )


def module_checkpoint(folder: Path, *, factor: float = 2.0, offset: float = 1.0, legacy: bool = False) -> Path:
    """A checkpoint with model.pth, as Determined <= 0.12.4 laid it out."""
    write_code(folder, factor=factor, offset=offset)
    (folder / "model.pth").write_bytes(pickled_module(legacy=legacy))
    return folder


def expected_of(factor: float, offset: float) -> list[list[float]]:
    x = torch.linspace(-1, 1, 4).reshape(2, 2)
    return ((x.sum(1, keepdim=True) * 0.5 + 0.25).expand(2, 2) * factor + offset).tolist()


# --- the layouts -----------------------------------------------------------------------------------------------


def test_legacy_state_dict_gives_the_bare_module() -> None:
    model = load_path(LEGACY)
    assert isinstance(model, torch.nn.Module)
    assert type(model).__name__ == "Net"
    assert close(forward(model), LEGACY_OUTPUT)


def test_trial_with_two_models_gives_the_trial() -> None:
    trial = load_path(TWO_MODELS)
    assert close(forward(trial.encoder), ENCODER_OUTPUT)
    assert close(forward(trial.decoder), DECODER_OUTPUT)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before 1.6"])
def test_pickled_module_loads_with_its_code(tmp_path: Path, legacy: bool) -> None:
    model = load_path(module_checkpoint(tmp_path / "c", legacy=legacy))
    assert close(forward(model), expected_of(2.0, 1.0))


def test_pickled_module_in_the_layout_of_mlflow_loads(tmp_path: Path) -> None:
    folder = module_checkpoint(tmp_path / "c")
    (folder / "data").mkdir()
    (folder / "model.pth").rename(folder / "data" / "model.pth")
    (folder / "MLmodel").write_text("flavors: {}\n")
    assert close(forward(load_path(folder)), expected_of(2.0, 1.0))


def test_trial_with_one_model_gives_the_module(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    (folder / "code").mkdir(parents=True)
    (folder / "code" / "model_def.py").write_text(
        textwrap.dedent(
            """
            import torch
            from determined.pytorch import PyTorchTrial, PyTorchTrialContext, DataLoader, LRScheduler

            class OneTrial(PyTorchTrial):
                def __init__(self, context: PyTorchTrialContext) -> None:
                    self.context = context
                    self.model = context.wrap_model(torch.nn.Linear(context.get_hparam("width"), 1))
                    self.model.optimizer = [context.wrap_optimizer(
                        torch.optim.SGD(self.model.parameters(), lr=context.get_hparams()["lr"]))]
                    schedule = torch.optim.lr_scheduler.StepLR(self.model.optimizer[0], 1)
                    context.wrap_lr_scheduler(schedule, step_mode=LRScheduler.StepMode.STEP_EVERY_EPOCH)
            """
        )
    )
    saved = torch.nn.Linear(3, 1)
    torch.save({"models_state_dict": [saved.state_dict()], "optimizers_state_dict": [{}]}, folder / "state_dict.pth")
    (folder / "load_data.json").write_text(
        '{"trial_type": "PyTorchTrial", "trial_cls_spec": "model_def:OneTrial", "hparams": {"width": 3, "lr": 0.5},'
        ' "experiment_config": {}}'
    )
    model = load_path(folder)
    assert torch.equal(model.weight, saved.weight)
    before = model.weight.detach().clone()
    model(torch.ones(1, 3)).sum().backward()
    model.optimizer[0].step()  # made in __init__, before the weights were loaded
    assert torch.allclose(model.weight, before - 0.5)


def test_trial_defined_in_the_training_script_is_found_in_code(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    (folder / "code").mkdir(parents=True)
    (folder / "code" / "train.py").write_text(
        "import torch\nfrom determined import pytorch\n\n\nclass T(pytorch.PyTorchTrial):\n"
        "    def __init__(self, context):\n        self.model = context.wrap_model(torch.nn.Linear(1, 1))\n\n\n"
        "if __name__ == '__main__':\n    raise AssertionError('the script ran')\n"
    )
    torch.save({"models_state_dict": [torch.nn.Linear(1, 1).state_dict()]}, folder / "state_dict.pth")
    (folder / "load_data.json").write_text('{"trial_cls_spec": "__main__:T", "hparams": null}')
    assert isinstance(load_path(folder), torch.nn.Linear)


@pytest.mark.parametrize(
    "entrypoint",
    [
        "python3 train-det.py",
        "python3 -m determined.launch.torch_distributed python3 ./train-det.py --flag old_train",
        ["sh", "-c", "python3 /run/determined/workdir/train-det.py"],
    ],
)
def test_trial_is_that_of_the_script_that_the_entrypoint_names(tmp_path: Path, entrypoint: object) -> None:
    folder = tmp_path / "c"
    (folder / "code").mkdir(parents=True)
    for name, width in (("old_train", 1), ("train-det", 2)):
        (folder / "code" / f"{name}.py").write_text(
            "import torch\nfrom determined import pytorch\n\n\nclass T(pytorch.PyTorchTrial):\n"
            f"    def __init__(self, context):\n        self.m = context.wrap_model(torch.nn.Linear({width}, 1))\n"
        )
    torch.save({"models_state_dict": [torch.nn.Linear(2, 1).state_dict()]}, folder / "state_dict.pth")
    loaded: dict[str, Any] = {"trial_cls_spec": "__main__:T", "experiment_config": {"entrypoint": entrypoint}}
    (folder / "load_data.json").write_text(json.dumps(loaded))
    assert load_path(folder).in_features == 2
    loaded["experiment_config"] = {"entrypoint": "sh run.sh"}
    (folder / "load_data.json").write_text(json.dumps(loaded))
    with pytest.raises(ContentError, match=r"2 files in code/ define it \(old_train\.py, train-det\.py\)"):
        load_path(folder)


def test_direct_sub_folder_is_searched_whatever_it_is_called(tmp_path: Path) -> None:
    folder = module_checkpoint(tmp_path / "c")
    (folder / "code" / "my-lib").mkdir()
    for name in ("model_def.py", "late.py"):
        (folder / "code" / name).rename(folder / "code" / "my-lib" / name)
    assert close(forward(load_path(folder)), expected_of(2.0, 1.0))


def test_state_of_data_parallel_training_loads(copy_of: Callable[[Path], Path]) -> None:
    folder = copy_of(LEGACY)
    state = torch.load(folder / "state_dict.pth", weights_only=True)
    state["model_state_dict"] = {f"module.{name}": value for name, value in state["model_state_dict"].items()}
    torch.save(state, folder / "state_dict.pth")
    assert close(forward(load_path(folder)), LEGACY_OUTPUT)


@pytest.mark.parametrize("place", ["determined/state_dict.pth", "pedl/state_dict.pth", "checkpoint.pt"])
def test_older_places_of_the_state_dict_are_known(copy_of: Callable[[Path], Path], place: str) -> None:
    folder = copy_of(LEGACY)
    (folder / place).parent.mkdir(exist_ok=True)
    (folder / "state_dict.pth").rename(folder / place)
    assert close(forward(load_path(folder)), LEGACY_OUTPUT)


def test_state_dict_without_code_is_returned_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    saved = torch.nn.Linear(2, 2).state_dict()
    torch.save(saved, tmp_path / "weights.pt")
    with caplog.at_level(logging.WARNING, logger="cas.load"):
        found = load_path(tmp_path)
    assert found.keys() == saved.keys()
    assert "weights.pt holds weights and no code" in caplog.text


def test_one_file_can_be_named(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "a.pt")
    torch.save(torch.nn.Linear(3, 3), tmp_path / "b.pt")
    assert load_path(tmp_path / "b.pt").in_features == 3
    with pytest.raises(ContentError, match=r"2 files of torch \(a\.pt, b\.pt\)"):
        load_path(tmp_path)


def test_what_is_more_than_weights_is_said_in_one_plain_line(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pth")
    with pytest.raises(UnsafeContentError, match=r"GLOBAL torch\.nn\.modules\.linear\.Linear") as caught:
        load_path(tmp_path, weights_only=True)
    assert str(caught.value).isprintable() and "you have two options" not in str(caught.value)


def test_a_file_that_may_not_be_read_is_named_as_the_user_knows_it(tmp_path: Path) -> None:
    with pytest.raises(NotAllowedError) as caught, user_folder(tmp_path) as view:
        raise PermissionError(errno.EACCES, "Permission denied", str(view / "model.pth"))
    assert str(caught.value) == f"cannot load {tmp_path}: Permission denied: {tmp_path}/model.pth"


def test_torchscript_loads(tmp_path: Path) -> None:
    # Its compiler is deprecated in today's torch; files made by it are not.
    script = f"""
        import warnings, torch
        warnings.simplefilter("ignore")
        torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)).save({str(tmp_path / "model.pth")!r})
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        model = load_path(tmp_path)
    assert model(torch.ones(1, 2)).shape == (1, 2)
    with pytest.raises(UnsafeContentError):
        load_path(tmp_path, trust=Trust.NEVER)


# --- where people load -----------------------------------------------------------------------------------------


def test_loads_from_a_view_with_memory_mapped_tensors(store: Store, tmp_path: Path) -> None:
    view = view_of(store, module_checkpoint(tmp_path / "c"))
    model = load_folder(view, from_store=True)
    assert close(forward(model), expected_of(2.0, 1.0))
    blob = os.path.realpath(view / "model.pth")
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(view / "model.pth") in maps.read_text() or blob in maps.read_text()


def test_training_a_mapped_model_leaves_the_blob_as_it_is(store: Store, tmp_path: Path) -> None:
    view = view_of(store, module_checkpoint(tmp_path / "c"))
    before = (view / "model.pth").read_bytes()
    model = load_folder(view, from_store=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert not torch.equal(model.layer.weight, torch.full((2, 2), 0.5))
    assert (view / "model.pth").read_bytes() == before
    assert torch.equal(load_folder(view, from_store=True).layer.weight, torch.full((2, 2), 0.5))


def test_saving_over_the_file_that_was_loaded_works(copy_of: Callable[[Path], Path], tmp_path: Path) -> None:
    folder = module_checkpoint(tmp_path / "mine")
    model = load_path(folder)
    torch.save(model, folder / "model.pth")  # kills the process if the file is mapped
    assert close(forward(model), expected_of(2.0, 1.0))
    assert close(forward(load_path(folder)), expected_of(2.0, 1.0))


def test_user_folder_is_not_written_into(copy_of: Callable[[Path], Path]) -> None:
    folder = copy_of(LEGACY)
    before = listing(folder)
    load_path(folder)
    assert listing(folder) == before


def test_loads_from_a_read_only_folder_with_odd_letters_in_its_path(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(TWO_MODELS, tmp_path / "mit Leerzeichen und ünïcode" / "a'b\"c"))
    for path in [folder, *folder.rglob("*")]:
        path.chmod(stat.S_IMODE(path.stat().st_mode) & ~0o222)
    assert close(forward(load_path(folder).encoder), ENCODER_OUTPUT)


def test_loads_from_another_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(DATA)
    assert close(forward(load_path(Path(LEGACY.name))), LEGACY_OUTPUT)


def test_loads_in_threads_at_once(copy_of: Callable[[Path], Path], tmp_path: Path) -> None:
    folders = [LEGACY, TWO_MODELS, module_checkpoint(tmp_path / "c")] * 3
    found: dict[int, Any] = {}

    def work(number: int) -> None:
        found[number] = load_path(folders[number])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(folders))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(0, len(folders), 3):
        assert close(forward(found[number]), LEGACY_OUTPUT)
        assert close(forward(found[number + 1].encoder), ENCODER_OUTPUT)
        assert close(forward(found[number + 2]), expected_of(2.0, 1.0))


def test_loaded_model_works_when_its_folder_is_gone(tmp_path: Path) -> None:
    folder = module_checkpoint(tmp_path / "c")
    model = load_path(folder)
    shutil.rmtree(folder)
    assert close(forward(model), expected_of(2.0, 1.0))  # forward imports a module of code/ that was not needed before


def test_loads_in_a_fresh_process_that_does_not_have_determined(tmp_path: Path) -> None:
    script = f"""
        import sys
        from pathlib import Path
        from cas.load.loading import load_folder, user_folder
        with user_folder(Path({str(TWO_MODELS)!r})) as view:
            trial = load_folder(view)
        assert "determined" not in sys.modules and "model_def" not in sys.modules
        try:
            import determined
        except ImportError:
            print(type(trial).__name__)
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script)], check=True, capture_output=True, cwd=tmp_path
    )
    assert done.stdout.decode().strip() == "TwoModelTrial"
    assert done.stderr == b""


# --- modules of code/ ------------------------------------------------------------------------------------------


def test_modules_of_two_checkpoints_do_not_meet(tmp_path: Path) -> None:
    first = load_path(module_checkpoint(tmp_path / "a", factor=2.0, offset=1.0))
    second = load_path(module_checkpoint(tmp_path / "b", factor=5.0, offset=-3.0))
    assert type(first) is not type(second)
    assert close(forward(first), expected_of(2.0, 1.0))
    assert close(forward(second), expected_of(5.0, -3.0))


def test_checkpoints_with_the_same_code_share_their_classes(tmp_path: Path) -> None:
    folder = module_checkpoint(tmp_path / "a")
    again = Path(shutil.copytree(folder, tmp_path / "b"))
    assert type(load_path(folder)) is type(load_path(again))


def test_the_users_own_modules_are_not_shadowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "model_def.py").write_text("MINE = True\n")
    (mine / "late.py").write_text("MINE = True\n")
    monkeypatch.syspath_prepend(str(mine))
    import model_def  # type: ignore[import-not-found]

    try:
        model = load_path(module_checkpoint(tmp_path / "c"))
        assert close(forward(model), expected_of(2.0, 1.0))
        torch.save(model, io.BytesIO())
        import late  # type: ignore[import-not-found]

        assert model_def.MINE and late.MINE
        assert sys.modules["model_def"] is model_def
    finally:
        for name in ("model_def", "late"):
            sys.modules.pop(name, None)


def test_import_statement_of_the_user_does_not_find_the_checkpoints_modules(tmp_path: Path) -> None:
    model = load_path(module_checkpoint(tmp_path / "c"))
    forward(model)
    with pytest.raises(ModuleNotFoundError):
        import late  # noqa: F401


def test_loaded_modules_can_be_saved_and_loaded_again(tmp_path: Path) -> None:
    first = module_checkpoint(tmp_path / "a", factor=2.0, offset=1.0)
    second = module_checkpoint(tmp_path / "b", factor=5.0, offset=-3.0)
    models = [load_path(first), load_path(second)]
    for folder, model in zip((first, second), models, strict=True):
        (folder / "model.pth").unlink()
        torch.save(model, folder / "model.pth")
    assert close(forward(load_path(first)), expected_of(2.0, 1.0))
    assert close(forward(load_path(second)), expected_of(5.0, -3.0))
    # The file names the modules as the training script did, so it loads without cas, too.
    script = f"""
        import sys, torch
        sys.path.insert(0, {str(second / "code")!r})
        print(type(torch.load({str(second / "model.pth")!r}, weights_only=False)).__module__)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, capture_output=True)
    assert done.stdout.decode().strip() == "model_def"


IN_A_FRESH_PROCESS = """
import copy, io, pickle, sys, torch
from pathlib import Path
from cas.load.loading import load_folder

def same(model, again):
    x = torch.linspace(-1, 1, 4).reshape(2, 2)
    return type(again) is type(model) and torch.equal(again(x), model(x))

def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return file

first = load_folder(Path(sys.argv[1]))
"""


def run_fresh(script: str, *folders: Path) -> None:
    """Run lines in a process that loaded nothing but one checkpoint: `first`."""
    script = IN_A_FRESH_PROCESS + textwrap.dedent(script)
    done = subprocess.run([sys.executable, "-c", script, *map(str, folders)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_loaded_module_survives_pickle_and_deepcopy(tmp_path: Path) -> None:
    script = """
        assert same(first, copy.deepcopy(first))
        assert all(same(first, pickle.loads(pickle.dumps(first, protocol))) for protocol in range(2, 6))
        assert same(first, torch.load(saved(first), weights_only=False))
        assert not {"late", "model_def", "parts", "parts.blocks"} & {name for name in sys.modules if type(name) is str}
        sys.path.append(sys.argv[2])
        import parts.blocks
        assert parts.MINE and parts.blocks.MINE
    """
    mine = tmp_path / "mine" / "parts"
    mine.mkdir(parents=True)
    for name in ("__init__", "blocks"):
        (mine / f"{name}.py").write_text("MINE = True\n")
    run_fresh(script, module_checkpoint(tmp_path / "c", factor=7.0), mine.parent)


def test_a_pickle_never_gives_another_checkpoints_class(tmp_path: Path) -> None:
    script = """
        second = load_folder(Path(sys.argv[2]))
        for model in (first, second):
            for load in (
                lambda: torch.load(saved(model), weights_only=False),
                lambda: pickle.loads(pickle.dumps(model)),
            ):
                try:
                    load()
                except ModuleNotFoundError as error:
                    assert sys.argv[1] in str(error) and sys.argv[2] in str(error)
                else:
                    raise AssertionError
    """
    run_fresh(script, *(module_checkpoint(tmp_path / str(n), factor=n, offset=n) for n in (1.0, 10.0)))
    same_in_what_counts = [module_checkpoint(tmp_path / name) for name in "ab"]
    (same_in_what_counts[1] / "code" / "unused.py").write_text("")
    script = """
        second = load_folder(Path(sys.argv[2]))
        assert type(first) is not type(second)
        x = torch.ones(2, 2)
        assert torch.equal(torch.load(saved(first), weights_only=False)(x), first(x))
    """
    run_fresh(script, *same_in_what_counts)


def test_errors_in_the_code_show_its_lines(copy_of: Callable[[Path], Path]) -> None:
    import traceback

    folder = copy_of(LEGACY)
    source = folder / "code" / "model_def.py"
    source.write_text(source.read_text().replace("return Net(self.hidden)", "return Net(self.hidden, wrong=1)"))
    with pytest.raises(TypeError) as caught:
        load_path(folder)
    assert "return Net(self.hidden, wrong=1)" in "".join(traceback.format_exception(caught.value))


# --- what can go wrong -----------------------------------------------------------------------------------------


def test_what_the_stand_in_lacks_is_named(copy_of: Callable[[Path], Path]) -> None:
    folder = copy_of(LEGACY)
    source = folder / "code" / "model_def.py"
    text = source.read_text()
    source.write_text("from determined.pytorch import FancyThing\n" + text)
    with pytest.raises(CasError, match=r"determined\.pytorch\.FancyThing.*install determined"):
        load_path(folder)
    source.write_text("import determined.deploy\n" + text)
    with pytest.raises(CasError, match=r"determined\.deploy.*install determined"):
        load_path(folder)
    source.write_text(text.replace('context.get_hparam("hidden")', "context.make_coffee()"))
    with pytest.raises(CasError, match=r"make_coffee.*install determined"):
        load_path(folder)


def test_missing_module_is_named(copy_of: Callable[[Path], Path], tmp_path: Path) -> None:
    folder = copy_of(LEGACY)
    source = folder / "code" / "model_def.py"
    source.write_text("import surely_not_installed\n" + source.read_text())
    with pytest.raises(NotFoundError, match="surely_not_installed"):
        load_path(folder)
    module = module_checkpoint(tmp_path / "c")
    shutil.rmtree(module / "code")
    with pytest.raises(NotFoundError, match="model_def"):
        load_path(module)


def test_weights_that_do_not_fit_are_an_error(copy_of: Callable[[Path], Path]) -> None:
    folder = copy_of(LEGACY)
    metadata = folder / "metadata.json"
    metadata.write_text(metadata.read_text().replace('"hidden": 6', '"hidden": 5'))
    with pytest.raises(ContentError, match="does not fit"):
        load_path(folder)


@pytest.mark.parametrize("keep", [0, 100, 1000])
def test_torn_file_is_an_error_of_one_line(copy_of: Callable[[Path], Path], keep: int) -> None:
    folder = copy_of(LEGACY)
    path = folder / "state_dict.pth"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises((ContentError, UnsafeContentError)) as caught:
        load_path(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_trust_never_runs_no_code(copy_of: Callable[[Path], Path], tmp_path: Path) -> None:
    folder = copy_of(LEGACY)
    source = folder / "code" / "model_def.py"
    source.write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n" + source.read_text())
    with pytest.raises(UnsafeContentError, match="never"):
        load_path(folder, trust=Trust.NEVER)
    assert not (tmp_path / "ran").exists()
    load_path(folder)
    assert (tmp_path / "ran").exists()


def test_attack_in_a_checkpoint_with_code_is_refused(copy_of: Callable[[Path], Path], tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    folder = copy_of(LEGACY)
    torch.save({"model_state_dict": {}, "extra": Attack()}, folder / "state_dict.pth")
    with pytest.raises(UnsafeContentError, match=r"posix\.system"):
        load_path(folder)
    assert not (tmp_path / "ran").exists()


# --- arguments -------------------------------------------------------------------------------------------------


def test_arguments_reach_torch_load(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "weights.pt")
    found = load_path(tmp_path, map_location="meta")
    assert found["weight"].device.type == "meta"
    assert load_path(tmp_path, torch_load_kwargs={"map_location": "meta"})["weight"].device.type == "meta"
    with pytest.raises(UsageError, match=r"no argument 'no_such_argument'; it takes encoding, .*map_location"):
        load_path(tmp_path, no_such_argument=1)
    with pytest.raises(UsageError, match="tags choose a graph"):
        load_path(tmp_path, tags=["serve"])
    torch.save(torch.nn.Linear(2, 2), tmp_path / "weights.pt")
    with pytest.raises(UnsafeContentError, match="weights_only"):
        load_path(tmp_path, weights_only=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_checkpoint_made_on_a_gpu_loads_without_one(tmp_path: Path) -> None:
    # What torch writes for a tensor on a GPU differs in the location alone.
    path = tmp_path / "weights.pt"
    torch.save({"w": torch.arange(4.0)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0"))
    assert b"cuda:0" in path.read_bytes()
    with pytest.raises(RuntimeError):
        torch.load(path)
    assert torch.equal(load_path(tmp_path)["w"], torch.arange(4.0))


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    model[1].weight = model[0].weight
    torch.save(model, tmp_path / "model.pth")
    found = load_path(tmp_path)
    assert found[1].weight is found[0].weight


def test_missing_torch_is_said_with_the_extra_to_install(tmp_path: Path) -> None:
    script = f"""
        import sys
        from pathlib import Path
        sys.modules["torch"] = None  # what Python does where it is not installed
        from cas.errors import CasError
        from cas.load.loading import load_folder
        try:
            load_folder(Path({str(LEGACY)!r}))
        except CasError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, capture_output=True)
    assert "pip install 'checkpoint-cas[torch]'" in done.stdout.decode()
    assert len(done.stdout.decode().strip().splitlines()) == 1
