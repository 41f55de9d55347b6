"""What a sibling of a checkpoint that is here costs on the wire, and what looking for siblings costs where none is."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from typing import Any

from boto3.s3.transfer import TransferConfig

from bench.ground import MIB, Ground, Uploaded, saved, state_dict
from bench.harness import Contender, Goal, Row, job, process
from tests import proxy

LAYERS = 48  # of 4 MB each, two thirds of them frozen; the others three times, with what Adam keeps of them
WIRE = 1.05  # times the changed bytes
HINTS = Goal(1.05)


def wire(ground: Ground) -> None:
    """A fine-tune with two thirds of its layers frozen: the bytes that the second checkpoint costs."""
    first, second, frozen = _fine_tuned(ground.size.of(LAYERS, least=3))
    rows = []
    for how, part in {"in parts of 8 MiB": 8 * MIB, "in one piece": 1 << 40}.items():
        names = [_upload(ground, {"state_dict.pth": saved(state)}, part) for state in (first, second)]
        rows.append(_row(ground, f"torch.save, uploaded {how}", names, frozen, published=False))
    names = [_upload(ground, {"model.safetensors": _safetensors(state)}, 8 * MIB) for state in (first, second)]
    rows.append(_row(ground, "safetensors, with a sidecar of `cas publish`", names, frozen, published=True))
    title = f"The second of two checkpoints of {names[1].size // MIB} MiB, two thirds of the layers frozen: {{}}"
    ground.report.values(title.format("bytes of bodies on the wire"), rows)


def hints(ground: Ground) -> None:
    """A cold pull of unknown content: with another checkpoint of the same model in the store, and with none."""
    layers = ground.size.of(256, least=4)
    other, wanted = (ground.upload([("state_dict.pth", saved(state_dict(layers)))]) for _ in range(2))
    pull = process(job("pull", ground.home, ground.storage, wanted.uuid))

    def with_other() -> None:
        ground.clean()
        process(job("pull", ground.home, ground.storage, other.uuid))()
        if next(ground.home.glob("chunks/??/*.parts"), None) is None:
            raise RuntimeError("the store knows no records of the other's archive, so nobody looks for hints")

    ours = Contender("cas: with an unknown sibling in the store", pull, with_other)
    peer = Contender("cas: with an empty store, where no hint is looked for", pull, ground.clean, HINTS)
    ground.report.compare(f"Looking for hints: a cold pull of unknown {wanted.size // MIB} MiB", [ours, peer])


def _fine_tuned(layers: int) -> tuple[dict[str, Any], dict[str, Any], int]:
    """Return the states before and after a real step of Adam, and the bytes of what was frozen."""
    import torch

    torch.manual_seed(0)
    model = torch.nn.Sequential(*[torch.nn.Linear(1000, 1000) for _ in range(layers)])
    frozen = [parameter for layer in list(model)[: layers * 2 // 3] for parameter in layer.parameters()]
    for parameter in frozen:
        parameter.requires_grad_(False)
    optimizer = torch.optim.Adam([one for one in model.parameters() if one.requires_grad], lr=1e-3)
    states = []
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(16, 1000)).square().mean().backward()
        optimizer.step()
        state = {name: value.clone() for name, value in model.state_dict().items()}
        moments = {
            f"{name}.{number}": value.clone()
            for number, one in optimizer.state_dict()["state"].items()
            for name, value in one.items()
        }
        states.append({**state, **moments})
    return states[0], states[1], sum(one.numel() * one.element_size() for one in frozen)


def _safetensors(state: Mapping[str, Any]) -> bytes:
    from safetensors.torch import save

    return bytes(save(dict(state)))


def _upload(ground: Ground, files: Mapping[str, bytes], part: int) -> Uploaded:
    return ground.upload(
        files.items(), TransferConfig(multipart_threshold=part, multipart_chunksize=min(part, 1 << 30))
    )


def _row(ground: Ground, name: str, uploaded: list[Uploaded], frozen: int, *, published: bool) -> Row:
    """Pull the first, then the second through a proxy that counts."""
    ground.clean()
    if published:
        for one in uploaded:
            subprocess.run(job("publish", ground.folder / "publisher", ground.storage, one.uuid), check=True)
    with proxy.counting(ground.server) as counted:
        storage = json.dumps(counted.server.storage("bench"))
        subprocess.run(job("pull", ground.home, storage, uploaded[0].uuid), check=True)
        counted.exchanges.clear()
        subprocess.run(job("pull", ground.home, storage, uploaded[1].uuid), check=True)
        fetched = counted.bodies()
    ground.require_stored(Uploaded("", {"both": sum(one.size for one in uploaded)}))
    changed = uploaded[1].size - frozen
    work = f"a sibling: {changed / MIB:.1f} MiB changed, {fetched / MIB:.1f} MiB fetched"
    return ground.report.value(work, name, fetched / changed, "times the changed bytes", at_most=WIRE)
