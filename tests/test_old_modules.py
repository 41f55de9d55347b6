"""Modules that an older torch pickled, whole: they load, and compute what they did.

Each file holds what that torch wrote: today's module without what its class has got since.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cas.load.loading import load_folder

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

nn = torch.nn


class Backend:
    """How each module up to torch 1.2 holds what computed it."""

    def __reduce__(self) -> Any:
        from torch.nn.backends.thnn import _get_thnn_function_backend

        return _get_thnn_function_backend, ()


def saved(folder: Path, model: Any) -> Path:
    torch.save(model, folder / "model.pth")
    return folder


def without(model: Any, *names: str) -> Any:
    """A copy that lacks these attributes, in all its modules."""
    old = copy.deepcopy(model)
    for module in old.modules():
        for name in names:
            module.__dict__.pop(name, None)
    return old


def test_lists_and_dicts_of_parameters_know_what_they_hold(tmp_path: Path) -> None:
    model = nn.Sequential()
    model.list = nn.ParameterList([nn.Parameter(torch.rand(2)), nn.Parameter(torch.rand(3))])
    model.dict = nn.ParameterDict({"left": nn.Parameter(torch.rand(2)), "right": nn.Parameter(torch.rand(3))})
    loaded = load_folder(saved(tmp_path, without(model, "_size", "_keys")))
    assert [one.shape for one in loaded.list] == [(2,), (3,)] and torch.equal(loaded.list[-1], model.list[1])
    assert list(loaded.dict) == ["left", "right"] and torch.equal(loaded.dict["right"], model.dict["right"])
    loaded.list.append(nn.Parameter(torch.rand(1)))
    assert len(loaded.list) == 3


def test_attention_whose_last_layer_had_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class _LinearWithBias(nn.Linear):  # type: ignore[misc]
        __module__ = "torch.nn.modules.linear"

    _LinearWithBias.__qualname__ = "_LinearWithBias"
    model = nn.TransformerEncoderLayer(4, 2, 8).eval()
    old = without(model, "norm_first", "activation_relu_or_gelu", "batch_first")
    old.self_attn.out_proj.__class__ = _LinearWithBias
    with monkeypatch.context() as patch:  # as torch 1.6 to 1.8 had it
        patch.setattr("torch.nn.modules.linear._LinearWithBias", _LinearWithBias, raising=False)
        saved(tmp_path, old)
    loaded = load_folder(tmp_path)
    x = torch.rand(3, 1, 4)
    assert torch.allclose(loaded(x), model(x), atol=1e-6)


@pytest.mark.parametrize("make", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_from_before_the_list_of_their_weights(
    tmp_path: Path, make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Sequential(make(3, 4, num_layers=2, bidirectional=True))
    lacks = {"_flat_weights", "_flat_weights_names", "_flat_weight_refs", "proj_size"}
    with monkeypatch.context() as patch:  # as torch up to 1.3 wrote it
        patch.setattr(nn.RNNBase, "__getstate__", lambda self: {k: v for k, v in vars(self).items() if k not in lacks})
        saved(tmp_path, model)
    loaded = load_folder(tmp_path)
    x = torch.rand(5, 1, 3)
    assert torch.equal(loaded[0](x)[0], model[0](x)[0])
    optimizer = torch.optim.SGD(loaded.parameters(), lr=1.0)
    loaded[0](x)[0].sum().backward()
    optimizer.step()
    assert not torch.equal(loaded[0](x)[0], model[0](x)[0])
    again = io.BytesIO()
    torch.save(loaded, again)
    again.seek(0)
    assert torch.equal(torch.load(again, weights_only=False)[0](x)[0], loaded[0](x)[0])


def test_a_module_from_before_1_3_needs_no_trust(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    for module in model.modules():
        module.__dict__["_backend"] = Backend()
    loaded = load_folder(saved(tmp_path, model))
    x = torch.rand(3, 2)
    assert torch.equal(loaded(x), model(x))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the GPU that the model asks for")
def test_parallel_model_of_a_machine_with_gpus_computes_without_any(tmp_path: Path) -> None:
    model = nn.DataParallel(nn.Linear(4, 2))
    model.__dict__.update(dim=0, device_ids=[0, 1], output_device=0, src_device_obj=torch.device("cuda:0"))
    loaded = load_folder(saved(tmp_path, model))
    x = torch.rand(3, 4)
    assert torch.equal(loaded(x), model.module(x))
    assert loaded.device_ids == [] and not hasattr(loaded, "src_device_obj")


def test_a_loss_from_before_its_options_computes_what_it_did(tmp_path: Path) -> None:
    loss = load_folder(saved(tmp_path, without(nn.CTCLoss(), "zero_infinity")))
    scores = torch.rand(5, 1, 3).log_softmax(-1)
    arguments = (scores, torch.tensor([[1, 2]]), torch.tensor([5]), torch.tensor([2]))
    assert torch.equal(loss(*arguments), nn.CTCLoss()(*arguments))
