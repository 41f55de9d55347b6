"""Which tensors of a file of torch belong to its models."""

from __future__ import annotations

import io
import pickle
import zipfile
from typing import Any

import pytest

from cas.load.selecting import model_storages

pytestmark = pytest.mark.torch


def saved(value: Any) -> tuple[bytes, dict[str, bytes]]:
    """Return `data.pkl` of a file that torch saved, and the bytes of every storage by its key."""
    import torch

    buffer = io.BytesIO()
    torch.save(value, buffer)
    with zipfile.ZipFile(buffer) as archive:
        top = archive.namelist()[0].split("/")[0]
        names = [name for name in archive.namelist() if name.startswith(f"{top}/data/")]
        return archive.read(f"{top}/data.pkl"), {name.rpartition("/")[2]: archive.read(name) for name in names}


def trained() -> tuple[Any, Any]:
    import torch

    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 2))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("name", ["models_state_dict", "model_state_dict", "state_dict", "model"])
def test_the_models_of_a_trainers_state_are_told_from_its_optimizers(name):
    model, optimizer = trained()
    state = [model.state_dict()] if name == "models_state_dict" else model.state_dict()
    pickled, storages = saved({name: state, "optimizers_state_dict": [optimizer.state_dict()], "rng": object})

    wanted = model_storages(pickled)

    assert wanted is not None
    assert len(wanted) == len(model.state_dict())
    values = {value.numpy().tobytes() for value in model.state_dict().values()}
    assert {storages[key] for key in wanted} == values


def test_tied_weights_and_whole_modules_and_parameters_are_followed():
    import torch

    model, optimizer = trained()
    tied = {"a": model[0].weight, "b": model[0].weight, "c": torch.nn.Parameter(torch.ones(3))}
    pickled, storages = saved({"state_dict": {**tied, "module": model}, "optimizer": optimizer.state_dict()})

    wanted = model_storages(pickled)

    assert wanted is not None
    assert len(wanted) == len(model.state_dict()) + 1  # a and b are the module's own
    assert torch.ones(3).numpy().tobytes() in {storages[key] for key in wanted}


@pytest.mark.parametrize("form", ["net", "app", "module", "list"])
def test_a_model_under_any_name_is_told_from_what_lies_beside_it(form):
    import argparse

    model, optimizer = trained()
    beside = {"optimizer": optimizer.state_dict(), "args": argparse.Namespace(lr=1), "epoch": 3}
    value = {
        "net": {"net": model.state_dict(), **beside},
        "app": {"app": {"model": model.state_dict(), "optim": optimizer.state_dict()}, "step": 1},
        "module": {"model": model, **beside},
        "list": {"nets": [dict(model.state_dict())], **beside},
    }[form]
    pickled, storages = saved(value)

    wanted = model_storages(pickled)

    assert wanted is not None
    values = {value.numpy().tobytes() for value in model.state_dict().values()}
    assert {storages[key] for key in wanted} == values


def test_where_two_may_be_the_model_nothing_is_chosen():
    model, optimizer = trained()
    two = {"actor": model.state_dict(), "critic": trained()[0].state_dict(), "optimizer": optimizer.state_dict()}

    assert model_storages(saved(two)[0]) is None


class Odd:
    """Something of which a pickle does not show whether it is like a dict."""

    def __init__(self, state: Any) -> None:
        self.state = state


def test_where_something_may_be_a_model_or_not_nothing_is_chosen():
    model, optimizer = trained()
    value = {"model": Odd(trained()[0].state_dict()), "net": model.state_dict(), "optimizer": optimizer.state_dict()}

    assert model_storages(saved(value)[0]) is None


@pytest.mark.parametrize(
    "value",
    [[1, 2], {"weights": 1}, {"state_dict": {}}, "text"],
    ids=["a list", "no model", "an empty model", "text"],
)
def test_where_nothing_can_be_chosen_it_says_so(value):
    assert model_storages(saved(value)[0]) is None


def test_a_file_that_holds_only_the_model_is_needed_whole():
    model, _ = trained()

    assert model_storages(saved({"state_dict": model.state_dict()})[0]) is None


@pytest.mark.parametrize("data", [b"", b"garbage", b"\x80\x04."], ids=["empty", "garbage", "short"])
def test_garbage_is_nothing_to_choose_from(data):
    assert model_storages(data) is None


def test_nothing_in_the_pickle_runs(tmp_path):
    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return open, (str(tmp_path / "written"), "w")

    assert model_storages(pickle.dumps({"state_dict": Attack()})) is None
    assert not (tmp_path / "written").exists()
