"""What people have of torch without Determined, and what can be said about loading: real files, compared outputs."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path
from typing import Any

import pytest

from cas.config import Trust
from cas.errors import ContentError, NotFoundError, UnsafeContentError, UsageError
from cas.load.loading import load_folder, user_folder
from cas.load.permit import Permit

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

DATA = Path(__file__).parent / "data" / "checkpoints"
SCRIPTING = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
ONE_PROCESS = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # of torch's, about how it is saved
LEGACY = DATA / "g_legacy_0_12_5_model_state_dict"
TWO_MODELS = DATA / "a_two_models"


def load_path(path: Path, trust: Trust = Trust.SCAN, **options: Any) -> Any:
    with user_folder(path) as view:
        return load_folder(view, permit=Permit(trust), **options)


def net() -> Any:
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Tanh(), torch.nn.Linear(4, 2))


def output(model: Any) -> Any:
    with torch.no_grad():
        return model.eval()(torch.linspace(-1, 1, 6).reshape(2, 3))


@pytest.fixture
def saved() -> Any:
    model = net()
    model.train()(torch.randn(5, 3))  # so that the running statistics are not their defaults
    return model


class Touch:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.trace}",)


# --- safetensors -------------------------------------------------------------------------------------------------


def test_safetensors_give_the_state_dict_with_no_question(
    saved: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from safetensors.torch import save_file

    save_file(saved.state_dict(), tmp_path / "model.safetensors")
    found = load_path(tmp_path, Trust.NEVER)
    assert found.keys() == saved.state_dict().keys()
    assert "weights and no code" in caplog.text
    assert torch.equal(output(load_path(tmp_path, Trust.NEVER, model=net())), output(saved))
    assert torch.equal(output(load_path(tmp_path / "model.safetensors", model=net())), output(saved))


def test_safetensors_in_parts_are_joined_by_their_index(saved: Any, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state = saved.state_dict()
    names = sorted(state)
    parts = {"model-00001-of-00002.safetensors": names[:3], "model-00002-of-00002.safetensors": names[3:]}
    for file, keys in parts.items():
        save_file({key: state[key] for key in keys}, tmp_path / file)
    index = {"metadata": {}, "weight_map": {key: file for file, keys in parts.items() for key in keys}}
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    assert torch.equal(output(load_path(tmp_path, model=net())), output(saved))
    assert torch.equal(output(load_path(path, model=net())), output(saved))
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(NotFoundError, match="model-00002-of-00002"):
        load_path(tmp_path)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "", ".."])
def test_index_that_names_files_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "secret.safetensors").write_bytes(b"")
    (tmp_path / "c" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(ContentError, match="elsewhere"):
        load_path(tmp_path / "c")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "[" * 100_000])
def test_damaged_index_is_an_error_of_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ContentError, match="no index of weights") as caught:
        load_path(tmp_path)
    assert "\n" not in str(caught.value)


def test_index_that_promises_more_than_the_files_have_is_an_error(saved: Any, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors")
    where = {"a": "x.safetensors", "b": "x.safetensors"}
    (tmp_path / "m.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    with pytest.raises(ContentError, match="does not have b"):
        load_path(tmp_path)


def test_damaged_safetensors_are_an_error_of_one_line(saved: Any, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "model.safetensors"
    save_file(saved.state_dict(), path)
    data = path.read_bytes()
    for bad in (b"", data[:-1], data[:20], b"\xff" * 100):
        path.write_bytes(bad)
        with pytest.raises(ContentError, match="not a whole file of safetensors") as caught:
            load_path(tmp_path)
        assert "\n" not in str(caught.value)


def test_place_of_safetensors_is_a_device(saved: Any, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(saved.state_dict(), tmp_path / "model.safetensors")
    assert load_path(tmp_path, map_location=torch.device("meta"))["0.weight"].device.type == "meta"
    with pytest.raises(UsageError, match="must be a device"):
        load_path(tmp_path, map_location={"cuda:0": "cpu"})
    with pytest.raises(UsageError, match="'nowhere' is no device"):
        load_path(tmp_path, map_location="nowhere")
    with pytest.raises(UsageError, match=r"'cuda:77' cannot be used here") as caught:
        load_path(tmp_path, map_location="cuda:77")
    assert "\n" not in str(caught.value)


# --- torch's own -------------------------------------------------------------------------------------------------


def test_state_dict_in_parts_is_joined_by_its_index(saved: Any, tmp_path: Path) -> None:
    state = saved.state_dict()
    names = sorted(state)
    torch.save({key: state[key] for key in names[:4]}, tmp_path / "pytorch_model-00001-of-00002.bin")
    torch.save({key: state[key] for key in names[4:]}, tmp_path / "pytorch_model-00002-of-00002.bin")
    where = {key: f"pytorch_model-0000{1 if key in names[:4] else 2}-of-00002.bin" for key in names}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    assert torch.equal(output(load_path(tmp_path, Trust.NEVER, model=net())), output(saved))


@ONE_PROCESS
def test_distributed_checkpoint_gives_the_whole_state_dict(saved: Any, tmp_path: Path) -> None:
    import torch.distributed.checkpoint as distributed

    state = {"model": saved.state_dict(), "step": 7, "text": "abc", "optimizer": {"lr": 0.5, "m": torch.ones(3)}}
    distributed.save(state, checkpoint_id=str(tmp_path / "c"), no_dist=True)
    found = load_path(tmp_path / "c", Trust.NEVER)
    assert (found["step"], found["text"], found["optimizer"]["lr"]) == (7, "abc", 0.5)
    assert torch.equal(found["model"]["0.weight"], saved.state_dict()["0.weight"])
    assert torch.equal(output(load_path(tmp_path / "c", model=net())), output(saved))
    assert load_path(tmp_path / "c", only="model").keys() == saved.state_dict().keys()


@ONE_PROCESS
def test_distributed_checkpoint_that_is_an_attack_is_refused(saved: Any, tmp_path: Path) -> None:
    import torch.distributed.checkpoint as distributed

    trace = tmp_path / "it-ran"
    distributed.save({"model": saved.state_dict(), "x": Touch(trace)}, checkpoint_id=str(tmp_path / "c"), no_dist=True)
    with pytest.raises(UnsafeContentError, match=r"posix\.system"):
        load_path(tmp_path / "c")
    with pytest.raises(UnsafeContentError, match="never"):
        load_path(tmp_path / "c", Trust.NEVER)
    metadata = tmp_path / "c" / ".metadata"
    good = metadata.read_bytes()
    metadata.write_bytes(pickle.dumps(Touch(trace)))
    with pytest.raises(UnsafeContentError, match=r"posix\.system"):
        load_path(tmp_path / "c")
    assert not trace.exists()
    described = pickle.loads(good)
    for info in described.storage_data.values():
        info.relative_path = f"../{info.relative_path}"
    metadata.write_bytes(pickle.dumps(described))
    with pytest.raises(ContentError, match="elsewhere"):
        load_path(tmp_path / "c")


@ONE_PROCESS
def test_damaged_distributed_checkpoint_is_an_error_of_one_line(saved: Any, tmp_path: Path) -> None:
    import torch.distributed.checkpoint as distributed

    distributed.save({"model": saved.state_dict()}, checkpoint_id=str(tmp_path / "c"), no_dist=True)
    data = next((tmp_path / "c").glob("*.distcp"))
    data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(ContentError) as caught:
        load_path(tmp_path / "c")
    assert "\n" not in str(caught.value)
    data.unlink()
    with pytest.raises((ContentError, NotFoundError)):
        load_path(tmp_path / "c")
    (tmp_path / "c" / ".metadata").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ContentError, match="not of a distributed checkpoint"):
        load_path(tmp_path / "c")


@ONE_PROCESS
def test_file_of_a_distributed_checkpoint_that_is_named_loads_the_checkpoint(saved: Any, tmp_path: Path) -> None:
    import torch.distributed.checkpoint as distributed

    folder = tmp_path / "c"
    distributed.save(saved.state_dict(), checkpoint_id=str(folder), no_dist=True)
    torch.save(net(), folder / "model.pth")  # which would come first, and was not named
    for name in (".metadata", "__0_0.distcp"):
        assert load_path(folder / name).keys() == saved.state_dict().keys()
    (folder / ".metadata").unlink()
    with pytest.raises(NotFoundError, match=r"/__0_0\.distcp \(a part .*, whose \.metadata is not here\): no model"):
        load_path(folder / "__0_0.distcp")


@ONE_PROCESS
def test_messages_name_the_distributed_checkpoint_and_not_its_view(
    saved: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import torch.distributed.checkpoint as distributed

    distributed.save(saved.state_dict(), checkpoint_id=str(tmp_path / "c"), no_dist=True)
    load_path(tmp_path / "c")
    assert "a torch distributed checkpoint holds weights and no code" in caplog.text
    with pytest.raises(ContentError, match=rf"{tmp_path}/c does not fit the model of model="):
        load_path(tmp_path / "c", model=torch.nn.Linear(2, 2))


@ONE_PROCESS
def test_pipe_in_a_distributed_checkpoint_is_never_opened(saved: Any, tmp_path: Path) -> None:
    import torch.distributed.checkpoint as distributed

    distributed.save({"model": saved.state_dict()}, checkpoint_id=str(tmp_path / "c"), no_dist=True)
    data = next((tmp_path / "c").glob("*.distcp"))
    data.unlink()
    os.mkfifo(data)
    with pytest.raises(ContentError, match=r"distcp: neither a file nor a folder"):
        load_path(tmp_path / "c")


@ONE_PROCESS
def test_distributed_checkpoint_goes_where_the_caller_wants_it(saved: Any, tmp_path: Path) -> None:
    import torch.distributed.checkpoint as distributed

    state = {"model": saved.state_dict(), "pair": (torch.ones(2), 1), "step": torch.tensor(3)}
    distributed.save(state, checkpoint_id=str(tmp_path / "c"), no_dist=True)
    found = load_path(tmp_path / "c", map_location="meta")
    tensors = [*found["model"].values(), found["pair"][0], found["step"]]
    assert {value.device.type for value in tensors} == {"meta"}
    found = load_path(tmp_path / "c", map_location=torch.device("cpu"))
    assert torch.equal(found["model"]["0.weight"], saved.state_dict()["0.weight"])
    for place in ("nowhere", "cuda:77", {"cuda:0": "cpu"}, lambda storage, _: storage):
        with pytest.raises(UsageError, match=r"map_location") as caught:
            load_path(tmp_path / "c", map_location=place)
        assert "\n" not in str(caught.value)


@ONE_PROCESS
def test_distributed_checkpoint_holds_to_weights_only(saved: Any, tmp_path: Path) -> None:
    import torch.distributed.checkpoint as distributed

    state = {"model": saved.state_dict(), "step": 7, "place": Path("/x")}
    distributed.save(state, checkpoint_id=str(tmp_path / "c"), no_dist=True)
    assert load_path(tmp_path / "c")["place"] == Path("/x")
    with pytest.raises(UnsafeContentError, match=r"place: holds more than weights, and weights_only was asked for"):
        load_path(tmp_path / "c", weights_only=True)
    del state["place"]
    distributed.save(state, checkpoint_id=str(tmp_path / "d"), no_dist=True)
    assert load_path(tmp_path / "d", weights_only=True)["step"] == 7


def test_lightning_checkpoint_gives_its_state_dict_and_says_what_else_is_in_it(
    saved: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = {
        "epoch": 3,
        "global_step": 100,
        "pytorch-lightning_version": "2.1.0",
        "state_dict": {f"model.{name}": value for name, value in saved.state_dict().items()},
        "optimizer_states": [],
        "hyper_parameters": {"lr": 0.1},
    }
    torch.save(content, tmp_path / "epoch=3.ckpt")
    found = load_path(tmp_path, Trust.NEVER)
    assert found.keys() == content["state_dict"].keys()
    assert "epoch, global_step, hyper_parameters, optimizer_states" in caplog.text
    assert torch.equal(output(load_path(tmp_path, model=net())), output(saved))  # whose names have no `model.`


def test_model_beside_hyperparameters_that_are_modules_is_said_to_be_weights(
    saved: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hyper = {"activation": torch.nn.ReLU(), "lr": 0.1}
    content = {"pytorch-lightning_version": "2.6.6", "state_dict": saved.state_dict(), "hyper_parameters": hyper}
    torch.save(content, tmp_path / "last.ckpt")
    found = load_path(tmp_path, only="model")
    assert found.keys() == saved.state_dict().keys()
    assert "last.ckpt holds weights and no code" in caplog.text and "torch modules" not in caplog.text
    caplog.clear()
    torch.save((saved, {"lr": 0.1}), tmp_path / "last.ckpt")
    assert isinstance(load_path(tmp_path), tuple)
    assert "last.ckpt holds a torch module: this returns what is in it, a tuple" in caplog.text


def test_class_of_the_script_that_saved_it_is_named_with_what_to_do(tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    folder.mkdir()
    (tmp_path / "train.py").write_text(
        "import torch\nclass Scale(torch.nn.Module):\n    def forward(self, x):\n        return 2 * x\n"
        "if __name__ == '__main__':\n    torch.save(Scale(), 'saved/model.pt')\n"
    )
    subprocess.run([sys.executable, "train.py"], check=True, cwd=tmp_path)
    with pytest.raises(
        NotFoundError, match=r"model\.pt: needs __main__\.Scale, of the script .* into code/ beside it$"
    ):
        load_path(folder)
    (folder / "code").mkdir()
    (tmp_path / "train.py").rename(folder / "code" / "train.py")  # which helps
    assert load_path(folder)(3) == 6


def test_class_that_another_version_of_a_package_had_is_named(tmp_path: Path) -> None:
    class Gone(torch.nn.Module):
        pass

    Gone.__module__, Gone.__qualname__ = "safetensors.torch", "Gone"
    module = pytest.importorskip("safetensors.torch")
    module.Gone = Gone
    try:
        torch.save(Gone(), tmp_path / "model.pt")
    finally:
        del module.Gone
    with pytest.raises(NotFoundError, match=r"needs safetensors\.torch\.Gone, which the safetensors that is installed"):
        load_path(tmp_path)


@pytest.mark.parametrize("module", ["pytorch_lightning.utilities.parsing", "lightning.fabric.utilities.data"])
def test_lightning_checkpoint_loads_where_lightning_is_not_installed(saved: Any, tmp_path: Path, module: str) -> None:
    # What its hyperparameters are: a dict of Lightning's own, written here in a process that has such a class.
    script = f"""
        import sys, types, torch
        class AttributeDict(dict): pass
        name = {module!r}
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            sys.modules[".".join(parts[:end])] = types.ModuleType(".".join(parts[:end]))
        AttributeDict.__module__ = name
        sys.modules[name].AttributeDict = AttributeDict
        state = torch.nn.Linear(2, 2).state_dict()
        torch.save({{"pytorch-lightning_version": "1.9", "state_dict": state,
                    "hyper_parameters": AttributeDict(lr=1)}}, {str(tmp_path / "a.ckpt")!r})
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)
    assert load_path(tmp_path).keys() == {"weight", "bias"}


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "program.pt"
    torch.jit.script(torch.nn.Linear(3, 2)).save(str(path))
    return path


@SCRIPTING
def test_program_of_torchscript_is_no_weights(program: Path) -> None:
    assert output(load_path(program)).shape == (2, 2)
    with pytest.raises(UnsafeContentError, match="holds a TorchScript program, and weights_only was asked for"):
        load_path(program, weights_only=True)


@SCRIPTING
def test_program_of_torchscript_goes_to_one_device(program: Path) -> None:
    assert next(load_path(program, map_location="meta").parameters()).device.type == "meta"
    for place in ("nowhere", "cuda:77", {"cuda:0": "cpu"}, lambda storage, _: storage):
        with pytest.raises(UsageError, match="map_location") as caught:
            load_path(program, map_location=place)
        assert "\n" not in str(caught.value)


def test_whole_archives_of_others_are_named_and_not_called_damaged(saved: Any, tmp_path: Path) -> None:
    import numpy

    torch.export.save(torch.export.export(saved.eval(), (torch.ones(2, 3),)), tmp_path / "model.pt2")
    numpy.savez(tmp_path / "weights.npz", a=numpy.ones(2), b=numpy.ones(2))
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("no\ntes.txt", "text")
    (tmp_path / "exported.pt").write_bytes((tmp_path / "model.pt2").read_bytes())
    expected = {
        "model.pt2": "a program that torch.export saved, which cas does not load",
        "exported.pt": "a program that torch.export saved",
        "weights.npz": "arrays of numpy, which cas does not load",
        "all.zip": "a zip archive of other things: no.tes.txt",
    }
    for name, what in expected.items():
        with pytest.raises(ContentError, match=rf"{name}: {what}") as caught:
            load_path(tmp_path / name)
        assert "\n" not in str(caught.value)
    torch.save(saved.state_dict(), tmp_path / "torn.pt")
    (tmp_path / "torn.pt").write_bytes((tmp_path / "torn.pt").read_bytes()[:-100])
    with pytest.raises(ContentError, match="not a whole file of torch"):
        load_path(tmp_path / "torn.pt")


# --- what a caller can say ---------------------------------------------------------------------------------------


def test_trial_is_given_on_request_also_where_load_gives_its_model() -> None:
    with user_folder(TWO_MODELS) as view:
        assert type(load_folder(view, whole=True)).__name__ == "TwoModelTrial"
    with user_folder(LEGACY) as view:
        trial = load_folder(view, whole=True)
    assert type(trial).__name__ == "OldTrial"
    model = trial.build_model()
    assert model is trial.build_model()
    with torch.no_grad():
        found = model.eval()(torch.linspace(-1, 1, 8).reshape(2, 4))
    assert torch.allclose(found, torch.tensor([[-0.233088, -0.11463], [-0.067425, 0.210755]]), atol=2e-6)


def test_no_trial_is_said_where_there_is_none(saved: Any, tmp_path: Path) -> None:
    torch.save(saved, tmp_path / "model.pth")
    with pytest.raises(NotFoundError, match=r"a pickled torch module and no trial class; load\(\) gives"):
        load_path(tmp_path, whole=True)


def trial_checkpoint(folder: Path, code: str, **load_data: Any) -> Any:
    """A checkpoint of a trial with one linear layer; returns its weights."""
    (folder / "code").mkdir(parents=True)
    (folder / "code" / "model_def.py").write_text(textwrap.dedent(code))
    layer = torch.nn.Linear(2, 1)
    torch.save({"models_state_dict": [layer.state_dict()], "optimizers_state_dict": [{}]}, folder / "state_dict.pth")
    (folder / "load_data.json").write_text(json.dumps({"trial_type": "PyTorchTrial", **load_data}))
    return layer


def test_trial_of_the_trainer_takes_more_arguments(tmp_path: Path) -> None:
    code = """
        import torch
        from determined import pytorch

        class T(pytorch.PyTorchTrial):
            def __init__(self, context, width, *, bias=True):
                self.model = context.wrap_model(torch.nn.Linear(width, 1, bias=bias))
    """
    layer = trial_checkpoint(
        tmp_path, code, trial_cls_spec="model_def:T", is_trainer=True, hparams=None, experiment_config=None
    )
    assert torch.equal(load_path(tmp_path, trial_kwargs={"width": 2}).weight, layer.weight)
    with pytest.raises(UsageError, match=r"T\(context, width.*missing a required argument: 'width'"):
        load_path(tmp_path)
    with pytest.raises(UsageError, match="unexpected keyword argument 'depth'"):
        load_path(tmp_path, trial_kwargs={"width": 2, "depth": 3})
    with pytest.raises(UsageError, match="trial_kwargs must map"):
        load_path(tmp_path, trial_kwargs=[1])


def test_trial_class_of_the_callers_own_is_used(tmp_path: Path) -> None:
    class Mine:
        def __init__(self, context: Any) -> None:
            self.model = context.wrap_model(torch.nn.Linear(context.get_hparam("width"), 1))

    code = "raise AssertionError('nobody imports this')\n"
    layer = trial_checkpoint(tmp_path, code, trial_cls_spec="__main__:Gone", hparams={"width": 2})
    with pytest.raises(ContentError, match="give the class as trial_class="):
        load_path(tmp_path)
    assert torch.equal(load_path(tmp_path, trial_class=Mine).weight, layer.weight)
    assert type(load_path(tmp_path, trial_class=Mine, whole=True)) is Mine


def test_newer_trials_may_call_something_of_their_own_build_model(tmp_path: Path) -> None:
    code = """
        import torch
        from determined.pytorch import PyTorchTrial

        class T(PyTorchTrial):
            def __init__(self, context):
                self.model = context.wrap_model(self.build_model())

            def build_model(self):
                return torch.nn.Linear(2, 1)
    """
    layer = trial_checkpoint(tmp_path, code, trial_cls_spec="model_def:T", hparams={}, experiment_config={})
    trial = load_path(tmp_path, whole=True)
    assert torch.equal(trial.model.weight, layer.weight)
    assert load_path(tmp_path).weight.shape == (1, 2)


def test_only_the_model_leaves_the_optimizer_out(saved: Any, tmp_path: Path) -> None:
    state = {"models_state_dict": [saved.state_dict()], "optimizers_state_dict": [{"state": torch.ones(1000)}]}
    torch.save(state, tmp_path / "state_dict.pth")
    assert load_path(tmp_path, only="model").keys() == saved.state_dict().keys()
    assert torch.equal(output(load_path(tmp_path, only="model", model=net())), output(saved))
    state["models_state_dict"].append({"w": torch.ones(1)})
    torch.save(state, tmp_path / "state_dict.pth")
    assert [set(one) for one in load_path(tmp_path, only="model")] == [set(saved.state_dict()), {"w"}]
    with pytest.raises(UsageError, match="states of 2 models"):
        load_path(tmp_path, model=net())
    with pytest.raises(UsageError, match="'optimizer': the one part"):
        load_path(tmp_path, only="optimizer")


def beside(model: Any) -> dict[str, Any]:
    optimizer = torch.optim.AdamW(model.parameters())
    model.train()(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    rest = {"scheduler": {"last_epoch": 3}, "rng_state": torch.get_rng_state(), "epoch": 3, "arch": "net"}
    return {"optimizer": optimizer.state_dict(), **rest}


@pytest.mark.parametrize("form", ["net", "app", "list"])
def test_model_is_found_under_names_of_the_users_own(saved: Any, tmp_path: Path, form: str) -> None:
    rest, state = beside(saved), saved.state_dict()
    value = {
        "net": {"net": state, **rest},
        "app": {"app": {"model": state, "optim": rest["optimizer"]}, "epoch": 3},
        "list": {"nets": [dict(state)], **rest},
    }[form]
    torch.save(value, tmp_path / "last.pt")
    assert load_path(tmp_path).keys() == value.keys()
    assert load_path(tmp_path, only="model").keys() == state.keys()
    assert torch.equal(output(load_path(tmp_path, model=net())), output(saved))
    assert torch.equal(output(load_path(tmp_path, only="model", model=net())), output(saved))


def test_model_that_cannot_be_told_is_not_guessed(saved: Any, tmp_path: Path) -> None:
    torch.save({"actor": saved.state_dict(), "critic": net().state_dict(), **beside(saved)}, tmp_path / "last.pt")
    assert set(load_path(tmp_path)) >= {"actor", "critic", "optimizer"}
    for said in ({"only": "model"}, {"model": net()}):
        with pytest.raises(UsageError, match=r"actor, critic may be it\): it holds actor, critic, optimizer") as caught:
            load_path(tmp_path, **said)
        assert "\n" not in str(caught.value)
    torch.save({"optimizer": beside(saved)["optimizer"], "epoch": 3}, tmp_path / "last.pt")
    with pytest.raises(UsageError, match=r"holds no state of a model\): it holds optimizer, epoch"):
        load_path(tmp_path, only="model")


@ONE_PROCESS
def test_model_of_a_distributed_checkpoint_is_found_under_any_name(saved: Any, tmp_path: Path) -> None:
    import torch.distributed.checkpoint as distributed

    state, rest = saved.state_dict(), beside(saved)
    app = {"app": {"model": state, "optim": rest["optimizer"]}, "step": 1}  # as PyTorch's own recipe has it
    distributed.save(app, checkpoint_id=str(tmp_path / "a"), no_dist=True)
    distributed.save({"net": state, **rest}, checkpoint_id=str(tmp_path / "b"), no_dist=True)
    distributed.save(state, checkpoint_id=str(tmp_path / "c"), no_dist=True)
    for name in "abc":
        assert load_path(tmp_path / name, only="model").keys() == state.keys()
        assert torch.equal(output(load_path(tmp_path / name, model=net())), output(saved))
        assert torch.equal(output(load_path(tmp_path / name, model=net(), only="model")), output(saved))
    two = {"actor": state, "critic": net().state_dict()}
    distributed.save(two, checkpoint_id=str(tmp_path / "d"), no_dist=True)
    with pytest.raises(UsageError, match=r"actor, critic may be it"):
        load_path(tmp_path / "d", only="model")


def test_module_beside_other_things_is_the_model(saved: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    gelu = torch.nn.GELU()
    del gelu.approximate  # as before 1.12
    model = torch.nn.Sequential(saved, gelu)
    torch.save({"epoch": 3, "model": model, "ema": None, "optimizer": beside(saved)["optimizer"]}, tmp_path / "last.pt")
    found = load_path(tmp_path)
    assert torch.equal(output(found), torch.nn.functional.gelu(output(saved)))
    assert "returns the module in it (model); also in the file: ema, epoch, optimizer" in caplog.text
    torch.save({"run": {"net": model}, "epoch": 3}, tmp_path / "last.pt")
    assert torch.equal(output(load_path(tmp_path)), output(found))
    assert "returns the module in it (run.net); also in the file: epoch" in caplog.text
    mine = load_path(tmp_path, only="model")
    maps = Path("/proc/self/maps")
    assert not maps.exists() or "last.pt" not in maps.read_text()
    assert torch.equal(output(mine), output(found))
    with pytest.raises(UsageError, match="whole module"):
        load_path(tmp_path, model=net())


def test_several_modules_are_returned_as_they_lie_and_mended(
    saved: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gelu = torch.nn.GELU()
    del gelu.approximate
    torch.save({"G": saved, "D": [gelu], "epoch": 3}, tmp_path / "gan.pt")
    found = load_path(tmp_path)
    assert found.keys() == {"G", "D", "epoch"}
    assert found["D"][0](torch.zeros(1)) == 0
    assert "gan.pt holds 2 torch modules: this returns what is in it, a dict of G, D, epoch" in caplog.text
    with pytest.raises(UsageError, match="G, D may be it"):
        load_path(tmp_path, only="model")


def test_module_among_hyperparameters_is_not_the_model(saved: Any, tmp_path: Path) -> None:
    torch.save({"state_dict": saved.state_dict(), "act": torch.nn.ReLU(), "hparams": {"f": net()}}, tmp_path / "a.ckpt")
    assert set(load_path(tmp_path)) == {"state_dict", "act", "hparams"}
    assert load_path(tmp_path, only="model").keys() == saved.state_dict().keys()


def test_only_the_model_of_a_users_whole_module_leaves_the_file_to_the_user(saved: Any, tmp_path: Path) -> None:
    torch.save(saved, tmp_path / "model.pth")
    found = load_path(tmp_path, only="model")
    maps = Path("/proc/self/maps")
    assert not maps.exists() or "model.pth" not in maps.read_text()
    assert torch.equal(output(found), output(saved))


def test_only_the_model_of_a_users_file_leaves_the_file_to_the_user(saved: Any, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"model": saved.state_dict(), "optimizer": {"m": torch.ones(1000)}}, path)
    found = load_path(path, only="model")
    mine = load_path(path, only="model", model=net())
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert "weights.pt" not in maps.read_text()
    path.write_bytes(b"")  # reading from a mapping of it would end the process
    assert torch.equal(found["0.weight"], saved.state_dict()["0.weight"])
    assert torch.equal(output(mine), output(saved))


def test_users_file_is_mapped_when_asked(saved: Any, tmp_path: Path) -> None:
    torch.save(saved.state_dict(), tmp_path / "weights.pt")
    found = load_path(tmp_path, mmap=True)
    maps = Path("/proc/self/maps")
    assert not maps.exists() or "weights.pt" in maps.read_text()
    assert torch.equal(found["0.weight"], saved.state_dict()["0.weight"])
    torch.save(saved.state_dict(), tmp_path / "weights.pt.new", _use_new_zipfile_serialization=False)
    os.replace(tmp_path / "weights.pt.new", tmp_path / "weights.pt")
    with pytest.raises(UsageError, match=r"before 1\.6"):
        load_path(tmp_path, mmap=True)


def test_names_that_may_be_absent_are_the_callers_choice(saved: Any, tmp_path: Path) -> None:
    state = saved.state_dict()
    del state["3.bias"]
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(ContentError, match=r"Missing key\(s\) in state_dict: \"3\.bias\"") as caught:
        load_path(tmp_path, model=net())
    assert "\n" not in str(caught.value)
    assert torch.equal(load_path(tmp_path, model=net(), strict=False)[0].weight, state["0.weight"])


def test_arguments_that_contradict_the_content_are_refused(saved: Any, tmp_path: Path) -> None:
    torch.save(saved, tmp_path / "model.pth")
    with pytest.raises(UsageError, match="whole module"):
        load_path(tmp_path, model=net())
    with pytest.raises(UsageError, match="trial class builds the model"):
        load_path(LEGACY, model=net())
    with pytest.raises(UsageError, match="trust='always'"):
        load_path(tmp_path, pickle_module=pickle)
    assert isinstance(load_path(tmp_path, Trust.ALWAYS, pickle_module=pickle), torch.nn.Module)
    with pytest.raises(UsageError, match="takes no pickle_module"):
        load_path(tmp_path, Trust.ALWAYS, pickle_module=pickle, weights_only=True)
    with pytest.raises(UsageError, match="torch_load_kwargs must be"):
        load_path(tmp_path, torch_load_kwargs={"x": 1})
    with pytest.raises(UsageError, match="map_location=3: it is a device, a dict of devices, or a function"):
        load_path(tmp_path, map_location=3)
    (tmp_path / "model.pth").unlink()
    torch.save(saved.state_dict(), tmp_path / "w.pt")
    for model in (3, torch.nn.Linear):
        with pytest.raises(UsageError, match="model= must be a torch module, not"):
            load_path(tmp_path, model=model)
    for trial_class in (3, "model_def:T"):
        with pytest.raises(UsageError, match="trial_class must be a class, not"):
            load_path(tmp_path, trial_class=trial_class)


def test_missing_safetensors_is_said_with_the_extra_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "safetensors", None)  # what Python does where it is not installed
    with pytest.raises(Exception, match=r"pip install 'checkpoint-cas\[torch\]'"):
        load_path(tmp_path)
