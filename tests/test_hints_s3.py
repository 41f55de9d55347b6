"""Siblings on a real S3 server: what a fine-tune did not change does not cross the wire again."""

from __future__ import annotations

import pytest
from container_files import torch_file
from proxy import counting
from stores import OTHER_UUID, UUID, lies

from cas.config import Progress, Settings
from cas.index.store import Store
from cas.transfer import fetch
from cas.transfer.urls import remote_for_storage

pytestmark = [pytest.mark.slow, pytest.mark.s3, pytest.mark.torch]


@pytest.fixture(scope="module")
def siblings():
    """Two checkpoints of a real fine-tune with two thirds of its layers frozen: stock files with optimizer state."""
    import torch

    torch.manual_seed(0)
    layers = [torch.nn.Linear(1000, 1000) for _ in range(6)]
    model = torch.nn.Sequential(*layers)
    for layer in layers[:4]:
        layer.requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    files = []
    for epoch in (1, 2):
        loss = model(torch.randn(16, 1000)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        state = {"epoch": epoch, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
        files.append(torch_file(state, name=f"epoch-{epoch}"))
    return files


def changed_bytes(siblings) -> int:
    """How many bytes of the second file the first does not have: those of the trained layers, three times with Adam."""
    frozen = 4 * 1001 * 1000 * 4
    return len(siblings[1]) - frozen


@pytest.fixture
def pulled(tmp_path, s3_server, bucket):
    """Pull through a proxy that counts."""
    store = Store(tmp_path / "home")
    settings = Settings(home=tmp_path / "home", progress=Progress.OFF)
    with counting(s3_server) as proxy:

        def run(uuid, **options):
            proxy.exchanges.clear()
            remote = remote_for_storage(proxy.server.storage(bucket), uuid, settings)
            report = fetch.pull(store, remote, registry="m", uuid=uuid, settings=settings, **options)
            return report, proxy, {str(one.path): store.blobs.read(one.digest) for one in report.manifest.files}

        yield run
    store.close()
    assert lies(tmp_path / "home") == []


@pytest.mark.parametrize("part_size", [None, 8 << 20])
def test_the_second_transfers_what_was_changed_and_is_identical(pulled, upload, siblings, part_size):
    upload({f"{UUID}/model.pth": siblings[0], f"{OTHER_UUID}/model.pth": siblings[1]}, part_size)
    pulled(UUID)
    report, proxy, files = pulled(OTHER_UUID)
    assert files == {"model.pth": siblings[1]}
    assert proxy.bodies() <= 1.05 * changed_bytes(siblings)
    assert report.bytes_fetched == proxy.bodies("model.pth")
    assert report.bytes_fetched + report.bytes_reused == len(siblings[1])
    assert report.proofs == {"model.pth": "origin checksum (md5)"}
    assert proxy.count("GET", "model.pth") < 10
