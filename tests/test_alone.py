"""`load(only="model")` of a checkpoint that is not here: a real S3 server, whose bytes are counted."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from proxy import Proxy
from stores import UUID

from cas.checkpoint import Checkpoint
from cas.config import Settings
from cas.errors import CasError, UnsafeContentError
from cas.index.check import check
from cas.index.store import store_of
from cas.registry.records import PULLED, CheckpointRecord

pytestmark = [pytest.mark.s3, pytest.mark.torch, pytest.mark.slow]

CODE = b"""
import torch
from torch import nn

class Trial:
    def __init__(self, context):
        self.context = context

    def build_model(self):
        return nn.Sequential(nn.Linear(1000, 1200), nn.ReLU(), nn.Linear(1200, 2))
"""
SIZES: list[tuple[int, ...]] = [(1000, 1200), (), (1200, 2)]
METADATA = b'{"torch_version": "1.4", "experiment_config": {"entrypoint": "model_def:Trial"}, "hparams": {}}'


@pytest.fixture
def trained() -> tuple[Any, bytes]:
    """A model, and the state of its trainer: three quarters of the bytes are the optimizer's."""
    import torch

    torch.manual_seed(5)
    model = torch.nn.Sequential(torch.nn.Linear(1000, 1200), torch.nn.ReLU(), torch.nn.Linear(1200, 2))
    optimizer = torch.optim.Adam(model.parameters(), amsgrad=True)
    model(torch.randn(4, 1000)).sum().backward()
    optimizer.step()
    buffer = io.BytesIO()
    torch.save(
        {"optimizer_state_dict": optimizer.state_dict(), "model_state_dict": model.state_dict(), "rng": [1, 2]}, buffer
    )
    return model, buffer.getvalue()


Make = Callable[..., Checkpoint]


@pytest.fixture
def make(proxy: Proxy, bucket: str, upload: Callable[..., None], trained: tuple[Any, bytes], tmp_path: Path) -> Make:
    files = {"state_dict.pth": trained[1], "metadata.json": METADATA, "code/model_def.py": CODE}
    upload({f"{UUID}/{name}": data for name, data in files.items()})

    def made(*, registry: str = "http://m", **changes: Any) -> Checkpoint:
        config = {"checkpoint_storage": proxy.server.storage(bucket) | changes}
        record = CheckpointRecord(registry=registry, uuid=UUID, experiment_config=config)
        return Checkpoint(record, settings=Settings.load(home=tmp_path / "home", progress="off"))

    return made


def output(model: Any) -> Any:
    import torch

    return model.eval()(torch.linspace(-1, 1, 1000))


def test_a_model_alone_costs_its_own_bytes_and_the_rest_comes_when_all_is_loaded(
    make: Make, proxy: Proxy, trained: tuple[Any, bytes]
) -> None:
    import torch

    checkpoint, size = make(), len(trained[1])

    model = checkpoint.load(only="model")

    assert torch.equal(output(model), output(trained[0]))
    first = proxy.bodies()
    assert first < 0.32 * size
    assert checkpoint.is_partial
    assert not checkpoint.store.blobs.hashed

    assert torch.equal(output(checkpoint.load(only="model")), output(trained[0]))
    assert proxy.bodies() - first < 2000  # all of it was here

    whole = torch.load(checkpoint.view() / "state_dict.pth", weights_only=False)
    assert len(whole["optimizer_state_dict"]["state"]) == 4
    assert proxy.bodies() < size + 100_000
    assert not checkpoint.is_partial
    assert check(store_of(checkpoint.settings), deep=True).damage == ()
    before = proxy.bodies()
    assert torch.equal(output(checkpoint.load(only="model")), output(trained[0]))
    assert proxy.bodies() == before


def test_the_model_goes_on_working_after_its_source_was_completed_and_removed(
    make: Make, trained: tuple[Any, bytes]
) -> None:
    import torch

    checkpoint = make()
    model = checkpoint.load(only="model")
    checkpoint.view()

    assert not list(checkpoint.store.home.glob("ingest/*/*/*.data"))
    assert torch.equal(output(model), output(trained[0]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    output(model).sum().backward()
    optimizer.step()
    assert not torch.equal(output(model), output(trained[0]))


@pytest.mark.parametrize("form", ["net", "module"])
def test_a_model_under_a_name_of_the_users_own_is_fetched_alone(
    form: str, make: Make, proxy: Proxy, upload: Callable[..., None], trained: tuple[Any, bytes]
) -> None:
    import torch

    model, state = trained[0], torch.load(io.BytesIO(trained[1]), weights_only=True)
    buffer = io.BytesIO()
    saved = model.state_dict() if form == "net" else model
    torch.save({"optim": state["optimizer_state_dict"], "net": saved, "epoch": 3}, buffer)
    upload({f"{UUID}/state_dict.pth": buffer.getvalue(), f"{UUID}/metadata.json": b"{}"})
    mine = {"model": torch.nn.Sequential(*(type(one)(*sizes) for one, sizes in zip(model, SIZES, strict=True)))}

    found = make().load(only="model", **(mine if form == "net" else {}))

    assert torch.equal(output(found), output(model))
    assert proxy.bodies() < 0.32 * len(buffer.getvalue())


def test_of_a_bare_url_no_part_is_run(make: Make) -> None:
    with pytest.raises(UnsafeContentError, match="only a part of it"):
        make(registry=PULLED).load(only="model")


def test_where_the_origin_cannot_be_asked_the_message_is_that_of_a_load(make: Make) -> None:
    checkpoint = make(bucket="no-such-bucket", registry="local")

    with pytest.raises(CasError, match="no-such-bucket"):
        checkpoint.load(only="model")
