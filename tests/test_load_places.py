"""Every layout of torch in a store, loaded in all the places where people load, compared with recorded outputs."""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import pickle
import shutil
import stat
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import cas
from cas.checkpoint import Checkpoint
from cas.config import Settings

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.torch, pytest.mark.slow]

DATA = Path(__file__).parent / "data" / "checkpoints"


def forward(model: Any) -> list[list[float]]:
    width = next(parameter for parameter in model.parameters() if parameter.dim() >= 2).shape[1]
    with torch.no_grad():
        return model.eval()(torch.linspace(-1, 1, 2 * width).reshape(2, width)).tolist()


def seeded() -> Any:
    torch.manual_seed(5)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))


@functools.cache
def output_of_seeded() -> list[list[float]]:
    return forward(seeded())


# --- the layouts: how each is made, and how it is loaded ---------------------------------------------------------


def legacy(folder: Path) -> None:
    shutil.copytree(DATA / "g_legacy_0_12_5_model_state_dict", folder)


def two_models(folder: Path) -> None:
    shutil.copytree(DATA / "a_two_models", folder)


def pickled(folder: Path, **options: Any) -> None:
    folder.mkdir(parents=True)
    torch.save(seeded(), folder / "model.pth", **options)


def pickled_before_1_6(folder: Path) -> None:
    pickled(folder, _use_new_zipfile_serialization=False)


def pickled_with_code(folder: Path) -> None:
    """Saved by a script that had code/ on its path."""
    (folder / "code" / "parts").mkdir(parents=True)
    (folder / "code" / "model_def.py").write_text(
        "import torch\nfrom parts.scale import factor\n\n\nclass Net(torch.nn.Sequential):\n"
        "    def forward(self, x):\n        from parts.late import offset\n"
        "        return super().forward(x) * factor + offset\n"
    )
    (folder / "code" / "parts" / "__init__.py").write_text("")
    (folder / "code" / "parts" / "scale.py").write_text("factor = 1.0\n")
    (folder / "code" / "parts" / "late.py").write_text("offset = 0.0\n")
    script = f"""
        import sys, torch
        sys.path.insert(0, {os.fspath(folder / "code")!r})
        sys.dont_write_bytecode = True
        from model_def import Net
        torch.manual_seed(5)
        net = Net(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
        torch.save(net, {os.fspath(folder)!r} + "/model.pth")
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)


def safetensors(folder: Path) -> None:
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    save_file(seeded().state_dict(), folder / "model.safetensors")


def safetensors_in_parts(folder: Path) -> None:
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    where = parts(folder, "model-0000{}-of-00002.safetensors", save_file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


def parts(folder: Path, name: str, save: Callable[[Any, Path], None]) -> dict[str, str]:
    state = seeded().state_dict()
    where = {key: name.format(1 + number % 2) for number, key in enumerate(state)}
    for file in set(where.values()):
        save({key: value for key, value in state.items() if where[key] == file}, folder / file)
    return where


def state_in_parts(folder: Path) -> None:
    folder.mkdir(parents=True)
    where = parts(folder, "pytorch_model-0000{}-of-00002.bin", torch.save)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))


def state_dict(folder: Path) -> None:
    folder.mkdir(parents=True)
    torch.save({"model_state_dict": seeded().state_dict(), "optimizer": {"step": 3}}, folder / "weights.pt")


def distributed(folder: Path) -> None:
    import warnings

    from torch.distributed import checkpoint

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that one process saves alone
        checkpoint.save({"model": seeded().state_dict(), "epoch": 3}, checkpoint_id=folder, no_dist=True)


def plain_pickle(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "model.pkl").write_bytes(pickle.dumps(seeded()))


def mlflow(folder: Path) -> None:
    pickled(folder / "data")
    (folder / "MLmodel").write_text("flavors: {}\n")


def trial_of_0_17(folder: Path) -> None:
    """A trial whose class builds the model in its constructor, told by `metadata.json` alone."""
    newer_trial(folder)
    (folder / "load_data.json").unlink()
    metadata = {"framework": "torch-1.9.0", "experiment_config": {"entrypoint": "model_def:T"}, "hparams": {}}
    (folder / "metadata.json").write_text(json.dumps(metadata))


def lightning(folder: Path) -> None:
    folder.mkdir(parents=True)
    state = {f"model.{name}": value for name, value in seeded().state_dict().items()}
    torch.save({"state_dict": state, "pytorch-lightning_version": "2.0"}, folder / "last.ckpt")


def newer_trial(folder: Path) -> None:
    (folder / "code").mkdir(parents=True)
    (folder / "code" / "model_def.py").write_text(
        "import torch\nfrom determined import pytorch\n\n\nclass T(pytorch.PyTorchTrial):\n"
        "    def __init__(self, context):\n"
        "        layers = torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)\n"
        "        self.model = context.wrap_model(torch.nn.Sequential(*layers))\n"
        "        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.5)\n"
        "        self.model.optimizer = [context.wrap_optimizer(optimizer)]\n"
    )
    state = {
        "models_state_dict": [seeded().state_dict()],
        "optimizers_state_dict": [{}],
        "lr_schedulers_state_dict": [],
    }
    torch.save(state, folder / "state_dict.pth")
    load_data = {"trial_type": "PyTorchTrial", "trial_cls_spec": "model_def:T", "hparams": {}, "experiment_config": {}}
    (folder / "load_data.json").write_text(json.dumps(load_data))


EXPECTED = {
    "legacy": [[-0.233088, -0.11463], [-0.067425, 0.210755]],
    "two_models": [[-0.156507, 0.109758, -0.129535], [0.951749, 0.33085, -0.419344]],
}
MAKERS: dict[str, Callable[[Path], None]] = {
    maker.__name__: maker
    for maker in (
        legacy,
        two_models,
        pickled,
        pickled_before_1_6,
        pickled_with_code,
        safetensors,
        safetensors_in_parts,
        state_in_parts,
        state_dict,
        distributed,
        plain_pickle,
        mlflow,
        trial_of_0_17,
        lightning,
        newer_trial,
    )
}


WITHOUT_CODE = {"safetensors", "safetensors_in_parts", "state_in_parts", "state_dict", "distributed", "lightning"}


def load(layout: str, loader: Callable[..., Any]) -> Any:
    """Load a layout, and return the model that its expected output is of."""
    if layout in WITHOUT_CODE:
        model = loader(model=torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)))
    else:
        model = loader()
    return model.encoder if layout == "two_models" else model


def is_right(layout: str, model: Any) -> bool:
    expected = EXPECTED[layout] if layout in EXPECTED else output_of_seeded()
    return torch.allclose(torch.tensor(forward(model)), torch.tensor(expected), atol=2e-6)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each layout, read-only, in a folder with letters that make trouble."""
    root = tmp_path_factory.mktemp("layouts")
    found = {}
    for name, make in MAKERS.items():
        folder = root / "mit Leerzeichen und ünïcode" / f"{name} 'a\"b"
        folder.parent.mkdir(exist_ok=True)
        make(folder)
        for path in [folder, *folder.rglob("*")]:
            path.chmod(stat.S_IMODE(path.stat().st_mode) & ~0o222)
        found[name] = folder
    return found


@pytest.fixture(scope="module")
def checkpoints(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Checkpoint]]:
    """Each layout in a store."""
    output_of_seeded()  # before there are threads: the seed is the process's
    settings = Settings.load(home=tmp_path_factory.mktemp("store") / "ünï home")
    yield {name: cas.add(folder, settings=settings) for name, folder in folders.items()}


@pytest.mark.parametrize("layout", MAKERS)
def test_loads_from_the_store(layout: str, checkpoints: dict[str, Checkpoint]) -> None:
    assert is_right(layout, load(layout, checkpoints[layout].load))


@pytest.mark.parametrize("layout", MAKERS)
def test_loads_from_a_read_only_folder_with_odd_letters_named_from_elsewhere(
    layout: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folders[layout].parent)
    assert is_right(layout, load(layout, lambda **options: Checkpoint.load_from_path(folders[layout].name, **options)))


def test_loads_in_threads_at_once(checkpoints: dict[str, Checkpoint]) -> None:
    found: dict[tuple[str, int], bool] = {}

    def work(layout: str, number: int) -> None:
        found[layout, number] = is_right(layout, load(layout, checkpoints[layout].load))

    threads = [threading.Thread(target=work, args=(layout, number)) for layout in MAKERS for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2 * len(MAKERS) and all(found.values())


class Loading(torch.utils.data.Dataset):  # type: ignore[misc]
    """A data set that loads a checkpoint in the worker, as data sets with a teacher model do."""

    def __init__(self, checkpoints: dict[str, Checkpoint]) -> None:
        self.checkpoints = checkpoints

    def __len__(self) -> int:
        return len(MAKERS)

    def __getitem__(self, index: int) -> bool:
        layout = list(MAKERS)[index]
        return is_right(layout, load(layout, self.checkpoints[layout].load))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # it is what is tested
def test_loads_in_a_forked_data_loader_worker_after_the_parent_used_the_store(
    checkpoints: dict[str, Checkpoint],
) -> None:
    for checkpoint in checkpoints.values():
        checkpoint.view()
    load("pickled", checkpoints["pickled"].load)
    loader = torch.utils.data.DataLoader(
        Loading(checkpoints), batch_size=1, num_workers=2, multiprocessing_context="fork", timeout=100
    )
    assert [bool(one) for batch in loader for one in batch] == [True] * len(MAKERS)


def work_in_spawned_process(checkpoints: dict[str, Checkpoint], loaded: Any, queue: Any, done: Any) -> None:
    right = {layout: is_right(layout, load(layout, checkpoints[layout].load)) for layout in MAKERS}
    queue.put((right, forward(loaded), loaded))
    done.wait(200)  # torch sends tensors by asking the sender for them


def test_loads_in_a_spawned_process_which_also_takes_what_was_loaded_before(
    checkpoints: dict[str, Checkpoint],
) -> None:
    loaded = load("pickled_with_code", checkpoints["pickled_with_code"].load)
    context = multiprocessing.get_context("spawn")
    queue, done = context.Queue(), context.Event()
    process = context.Process(target=work_in_spawned_process, args=(checkpoints, loaded, queue, done))
    process.start()
    right, output, back = queue.get(timeout=200)
    done.set()
    process.join()
    assert right == dict.fromkeys(MAKERS, True)
    assert output == forward(loaded)
    assert type(back) is type(loaded)


@pytest.mark.parametrize("layout", MAKERS)
def test_optimizer_step_trains_the_model_and_leaves_the_store(layout: str, checkpoints: dict[str, Checkpoint]) -> None:
    model = load(layout, checkpoints[layout].load)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    width = next(parameter for parameter in model.parameters() if parameter.dim() >= 2).shape[1]
    model.train()(torch.rand(4, width)).square().sum().backward()
    optimizer.step()
    assert not is_right(layout, model)
    assert is_right(layout, load(layout, checkpoints[layout].load))


def test_optimizer_of_the_trial_trains_the_model_that_was_loaded(checkpoints: dict[str, Checkpoint]) -> None:
    model = load("newer_trial", checkpoints["newer_trial"].load)
    assert is_right("newer_trial", model)
    before = model[0].weight.detach().clone()
    model(torch.rand(4, 3)).square().sum().backward()
    model.optimizer[0].step()
    assert not torch.equal(model[0].weight, before)


@pytest.mark.parametrize("layout", MAKERS)
def test_what_was_loaded_by_its_path_does_not_need_its_files(layout: str, tmp_path: Path) -> None:
    MAKERS[layout](tmp_path / "mine")
    model = load(layout, lambda **options: Checkpoint.load_from_path(tmp_path / "mine", **options))
    for path in (tmp_path / "mine").rglob("*"):
        if path.is_file():
            path.chmod(0o644)
            path.write_bytes(b"")  # whoever reads a mapping of it now is killed
    assert is_right(layout, model)


@pytest.mark.parametrize("layout", ["pickled", "pickled_before_1_6", "safetensors"])
def test_saving_over_the_file_that_was_loaded_works(layout: str, tmp_path: Path) -> None:
    MAKERS[layout](tmp_path / "mine")
    file = next((tmp_path / "mine").iterdir())
    model = load(layout, lambda **options: Checkpoint.load_from_path(tmp_path / "mine", **options))
    weights = load(layout, lambda **_: Checkpoint.load_from_path(file)) if layout == "safetensors" else None
    if layout == "safetensors":
        file.write_bytes(b"")  # whoever reads a mapping of it now is killed
        assert torch.equal(weights["0.weight"], model[0].weight)
    else:
        torch.save(model, file)
    assert is_right(layout, model)


def measure(checkpoint: Checkpoint, ways: tuple[dict[str, Any], ...], queue: Any, barrier: Any) -> None:
    def memory() -> tuple[int, int]:
        found = {"Pss": 0, "Private_Clean": 0, "Private_Dirty": 0}
        for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in found:
                found[name] = int(value.split()[0]) << 10
        return found["Pss"], found["Private_Clean"] + found["Private_Dirty"]

    model = torch.nn.Sequential(torch.nn.Linear(2048, 2048, bias=False), torch.nn.Linear(2048, 2048, bias=False))
    barrier.wait()
    before = memory()
    found = checkpoint.load(model=model) if ways else checkpoint.load()
    with torch.no_grad():
        found(torch.ones(1, 2048))
    barrier.wait()
    after = memory()
    barrier.wait()
    queue.put((after[0] - before[0], after[1] - before[1]))


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="only Linux tells who shares memory")
@pytest.mark.parametrize("kind", ["module", "state dict", "safetensors"])
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_processes_of_a_host_share_one_copy_of_the_weights(kind: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    model = torch.nn.Sequential(torch.nn.Linear(2048, 2048, bias=False), torch.nn.Linear(2048, 2048, bias=False))
    size = 2 * 2048 * 2048 * 4
    (tmp_path / "c").mkdir()
    if kind == "module":
        torch.save(model, tmp_path / "c" / "model.pth")
    elif kind == "state dict":
        torch.save({"model": model.state_dict(), "optimizer": torch.rand(2048, 2048)}, tmp_path / "c" / "weights.pt")
    else:
        save_file(model.state_dict(), tmp_path / "c" / "model.safetensors")
    checkpoint = cas.add(tmp_path / "c", settings=Settings.load(home=tmp_path / "home"))
    del model
    context = multiprocessing.get_context("fork")
    queue, barrier = context.Queue(), context.Barrier(3)
    ways = () if kind == "module" else ({"model": True},)
    processes = [context.Process(target=measure, args=(checkpoint, ways, queue, barrier)) for _ in range(3)]
    for process in processes:
        process.start()
    found = [queue.get(timeout=200) for _ in processes]
    for process in processes:
        process.join()
    assert all(private < size / 2 for _, private in found), found
    assert sum(shared for shared, _ in found) < size * 2, found
