"""Modules pickled by an older torch: what their classes got since is taken from a pickle, and the outputs compared."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cas.load.loading import load_folder
from cas.load.mending import _SINCE, mend

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore:enable_nested_tensor")]  # of a new Transformer
nn = torch.nn

X = torch.linspace(-2, 2, 24)
CASES: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "_ConvNd": (lambda: nn.Conv2d(1, 2, 3, padding=1), lambda m: m(X.view(1, 1, 4, 6))),
    "_NormBase": (lambda: nn.BatchNorm1d(6), lambda m: m.train()(X.view(4, 6))),
    "AvgPool2d": (lambda: nn.AvgPool2d(2), lambda m: m(X.view(1, 1, 4, 6))),
    "AvgPool3d": (lambda: nn.AvgPool3d(2), lambda m: m(X.view(1, 1, 2, 2, 6))),
    "BCEWithLogitsLoss": (nn.BCEWithLogitsLoss, lambda m: m(X, X.sigmoid())),
    "CrossEntropyLoss": (nn.CrossEntropyLoss, lambda m: m(X.view(4, 6), torch.arange(4))),
    "EmbeddingBag": (lambda: nn.EmbeddingBag(5, 3), lambda m: m(torch.arange(4).view(2, 2))),
    "GELU": (nn.GELU, lambda m: m(X)),
    "Hardsigmoid": (nn.Hardsigmoid, lambda m: m(X)),
    "Hardswish": (nn.Hardswish, lambda m: m(X)),
    "KLDivLoss": (lambda: nn.KLDivLoss(reduction="sum"), lambda m: m(X, X.sigmoid())),
    "MultiheadAttention": (lambda: nn.MultiheadAttention(6, 2), lambda m: m(*[X.view(4, 1, 6)] * 3)[0]),
    "SiLU": (nn.SiLU, lambda m: m(X)),
    "SmoothL1Loss": (nn.SmoothL1Loss, lambda m: m(X, X * 2)),
    "Transformer": (
        lambda: nn.Transformer(6, 2, 1, 1, 8, dropout=0.0),
        lambda m: m(X.view(4, 1, 6), X.view(4, 1, 6)),
    ),
    "TransformerDecoderLayer": (
        lambda: nn.TransformerDecoderLayer(6, 2, 8, dropout=0.0),
        lambda m: m(X.view(4, 1, 6), X.view(4, 1, 6)),
    ),
    "TransformerEncoder": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0), 1, enable_nested_tensor=False),
        lambda m: m(X.view(4, 1, 6)),
    ),
    "TransformerEncoderLayer": (
        lambda: nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0),
        lambda m: m(X.view(4, 1, 6)),
    ),
}


def aged(model: Any) -> Any:
    """The module with every listed attribute of every class in it taken away, as an older torch pickled it."""
    old = copy.deepcopy(model)
    for module in old.modules():
        for kind in type(module).__mro__:
            for name in _SINCE.get(kind.__name__, {}) if kind.__module__.startswith("torch.nn.modules.") else ():
                module.__dict__.pop(name, None)
                module._buffers.pop(name, None)
                module._parameters.pop(name, None)
    return old


def test_every_listed_class_has_a_case() -> None:
    assert CASES.keys() == _SINCE.keys()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before 1.6"])
def test_old_module_gives_the_output_of_a_new_one(name: str, legacy: bool, tmp_path: Path) -> None:
    make, forward = CASES[name]
    new = nn.ModuleList([make()])  # inside of another: modules in modules are mended, too
    old = aged(new)
    torch.save(old, tmp_path / "model.pth", _use_new_zipfile_serialization=not legacy)
    loaded = load_folder(tmp_path)
    new.eval(), loaded.eval()
    assert torch.equal(forward(loaded[0]), forward(new[0]))


@pytest.mark.parametrize("name", ["GELU", "CrossEntropyLoss", "MultiheadAttention", "TransformerEncoderLayer"])
def test_without_mending_they_fail(name: str) -> None:
    make, forward = CASES[name]
    with pytest.raises(AttributeError):
        forward(aged(make()).eval())


def test_what_is_there_is_left_as_it_is() -> None:
    model = nn.GELU(approximate="tanh")
    assert mend(model).approximate == "tanh"


def test_circular_padding_is_what_it_was() -> None:
    model = nn.Conv1d(1, 1, 3, padding=2, padding_mode="circular", bias=False)
    of_1_5, of_1_4 = copy.deepcopy(model), copy.deepcopy(model)
    for old in (of_1_5, of_1_4):
        del old.__dict__["_reversed_padding_repeated_twice"]
    of_1_5._padding_repeated_twice = (2, 2)
    x = X.view(1, 1, -1)
    assert torch.equal(mend(of_1_5)(x), model(x))
    assert mend(of_1_4)(x).shape[-1] == 24 + 2 - 2  # 1.4 padded by 2 in all


def test_upsampling_to_a_size_works() -> None:
    model = nn.Upsample(size=12)
    state = {name: value for name, value in model.__dict__.items() if name != "recompute_scale_factor"}
    old = nn.Upsample.__new__(nn.Upsample)
    old.__setstate__(state)  # where torch itself assumes a value
    x = X.view(1, 1, -1)
    assert torch.equal(mend(old)(x), model(x))


def test_modules_that_hold_each_other_end() -> None:
    model = nn.ModuleList([nn.GELU()])
    model[0].parent = None
    model[0]._modules["up"] = model
    assert mend(model) is model
