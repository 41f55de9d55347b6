"""State dicts in built modules: the memory is taken over, and everything else is as load_state_dict does it."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest

from cas.errors import ContentError
from cas.load.filling import fill

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch


def net() -> Any:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 4))
    model[2].weight = model[0].weight
    return model


def put(model: Any, values: Any, **options: Any) -> Any:
    return fill(model, values, **{"adopt": True, "strict": True, "what": "w.pt", "builder": "build()", **options})


def fresh(model: Any) -> dict[str, Any]:
    """Other values for a model, each in memory of its own, the tied ones in one."""
    made: dict[int, Any] = {}
    return {
        name: made.setdefault(value.data_ptr(), torch.rand(value.shape).to(value.dtype))
        for name, value in model.state_dict().items()
    }


def test_parameters_take_the_memory_and_stay_the_objects_that_they_were() -> None:
    model = net()
    before = [id(tensor) for tensor in [*model.parameters(), *model.buffers()]]
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    values = fresh(model)
    assert put(model, values) is model
    assert [id(tensor) for tensor in [*model.parameters(), *model.buffers()]] == before
    assert model[0].weight is model[2].weight
    for name, value in model.state_dict().items():
        assert value.data_ptr() == values[name].data_ptr(), name
    model(torch.rand(3, 4)).sum().backward()
    weight = model[0].weight.detach().clone()
    optimizer.step()
    assert not torch.equal(model[0].weight, weight)
    assert model[0].weight.requires_grad and model[0].weight.is_leaf


def test_without_adopting_the_values_are_copied() -> None:
    model = net()
    values = fresh(model)
    put(model, values, adopt=False)
    assert torch.equal(model[0].weight, values["0.weight"])
    assert model[0].weight.data_ptr() != values["0.weight"].data_ptr()


def test_weights_that_are_equal_in_the_file_and_apart_in_the_model_stay_apart() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2, bias=False))
    shared = torch.rand(2, 2)
    put(model, {"0.weight": shared, "1.weight": shared})
    with torch.no_grad():
        model[0].weight += 1
    assert not torch.equal(model[0].weight, model[1].weight)


def test_models_that_a_file_fills_alike_stay_apart() -> None:
    first, second = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    values = torch.nn.Linear(2, 2).state_dict()
    put(first, values)
    put(second, values)
    assert torch.equal(first.weight, second.weight) and torch.equal(first.bias, second.bias)
    assert first.weight.data_ptr() == values["weight"].data_ptr()  # one of them needs no copy
    with torch.no_grad():
        first.weight += 1
    assert not torch.equal(first.weight, second.weight)


def test_models_that_are_tied_stay_tied_and_take_the_memory() -> None:
    first, second = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    second.weight = first.weight
    values = torch.nn.Linear(2, 2).state_dict()
    put(first, values)
    put(second, values)
    assert second.weight is first.weight and first.weight.data_ptr() == values["weight"].data_ptr()


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
@pytest.mark.parametrize("absent", ["0.weight", "2.weight"])
def test_a_tied_weight_needs_one_of_its_names(prefix: str, absent: str) -> None:
    model = net()
    values = {prefix + name: value for name, value in fresh(model).items() if name != absent}
    put(model, values)
    shared = values[prefix + ("2.weight" if absent == "0.weight" else "0.weight")]
    assert model[0].weight is model[2].weight and torch.equal(model[0].weight, shared)
    apart = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 4))
    with pytest.raises(ContentError, match=rf"Missing key.*{absent}"):
        put(apart, {name.removeprefix(prefix): value for name, value in values.items()})


def test_a_model_that_safetensors_saved_without_its_doubles_is_filled(tmp_path: Path) -> None:
    from cas.load.loading import load_folder

    save_model = pytest.importorskip("safetensors.torch").save_model
    model, other = net(), net()
    save_model(model, str(tmp_path / "model.safetensors"))
    load_folder(tmp_path, model=other)
    assert torch.equal(other[2].weight, model[0].weight) and other[0].weight is other[2].weight


def test_memory_that_the_model_shares_with_something_else_stays_shared() -> None:
    class Net(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(3, 3)
            self.transposed = self.layer.weight.data.t()  # no parameter: nobody loads it

    model = Net()
    values = fresh(model)
    put(model, values)
    assert torch.equal(model.transposed, values["layer.weight"].t())


def test_a_view_of_a_larger_memory_is_copied() -> None:
    model = torch.nn.Linear(2, 2)
    large = torch.rand(100)
    put(model, {"weight": large[:4].view(2, 2), "bias": large[4:6]})
    assert torch.equal(model.weight, large[:4].view(2, 2))
    large.zero_()
    assert model.weight.abs().sum() > 0


def test_other_types_and_places_are_converted_as_ever() -> None:
    model = torch.nn.Linear(2, 2)
    values = {"weight": torch.ones(2, 2, dtype=torch.float64), "bias": torch.ones(2, dtype=torch.float16)}
    put(model, values)
    assert model.weight.dtype is torch.float32 and model.weight.sum() == 4 and model.bias.sum() == 2
    turned = torch.rand(2, 2).t()
    put(model, {"weight": turned, "bias": torch.ones(2)})
    assert torch.equal(model.weight, turned) and model.weight.is_contiguous()


def test_what_a_module_has_of_its_own_to_load_is_loaded() -> None:
    class Net(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(2, 2)
            self.extra = 0

        def get_extra_state(self) -> int:
            return 7

        def set_extra_state(self, state: int) -> None:
            self.extra = state

    model = Net()
    put(model, Net().state_dict())
    assert model.extra == 7


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model.", "net.inner."])
def test_names_of_wrapped_models_fit_unwrapped_ones(prefix: str) -> None:
    model = net()
    values = fresh(model)
    put(model, {prefix + name: value for name, value in values.items()})
    assert torch.equal(model[0].weight, values["0.weight"])


def test_names_of_a_wrapped_model_fit_it_as_they_are() -> None:
    model = torch.nn.Sequential(OrderedDict(module=torch.nn.Linear(2, 2)))
    put(model, {"module.weight": torch.ones(2, 2), "module.bias": torch.ones(2)})
    assert model.module.weight.sum() == 4


def test_what_torch_keeps_beside_the_names_stays_with_them() -> None:
    seen = []

    class Net(torch.nn.Linear):  # type: ignore[misc]
        _version = 3

        def _load_from_state_dict(self, values: Any, prefix: str, metadata: Any, *rest: Any) -> None:
            seen.append(metadata.get("version"))
            super()._load_from_state_dict(values, prefix, metadata, *rest)

    model = torch.nn.Sequential(Net(2, 2, bias=False), Net(2, 2, bias=False))
    model[1].weight = model[0].weight
    values = model.state_dict()
    del values["1.weight"]
    put(model, values)
    assert seen == [3, 3]


def test_misfit_is_one_line_that_names_both() -> None:
    with pytest.raises(ContentError, match=r"w\.pt does not fit the model of build\(\): .*size mismatch") as caught:
        put(torch.nn.Linear(2, 2), {"weight": torch.ones(3, 3), "bias": torch.ones(2)})
    assert "\n" not in str(caught.value)
    with pytest.raises(ContentError, match="Missing key"):
        put(torch.nn.Linear(2, 2), {"weight": torch.ones(2, 2)})
    put(torch.nn.Linear(2, 2), {"weight": torch.ones(2, 2)}, strict=False)
    with pytest.raises(ContentError, match=r"build\(\) gave a int"):
        put(3, {})


def test_recurrent_layers_keep_their_inner_references(tmp_path: Path) -> None:
    model = torch.nn.LSTM(3, 4, 2)
    values = fresh(model)
    put(model, values)
    other = torch.nn.LSTM(3, 4, 2)
    other.load_state_dict(values)
    x = torch.rand(5, 1, 3)
    assert torch.equal(model(x)[0], other(x)[0])
