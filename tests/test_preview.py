"""Plans say what a pull then does, and change nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from container_files import noise, zip_file
from remotes import CountingRemote
from stores import OTHER_UUID, UUID
from test_sidecars import Shelf

from cas.actions import publishing
from cas.actions.places import Place
from cas.config import Progress, Settings
from cas.errors import CheckpointNotFoundError
from cas.index.digest import Digest
from cas.index.store import Store
from cas.transfer import fetch
from cas.transfer.preview import Preview, holders, preview

pytestmark = pytest.mark.slow

MIB = 1 << 20
FROZEN = noise(6 * MIB, 1)
FIRST = zip_file({"frozen": FROZEN, "head": noise(3 * MIB, 2)})
SECOND = zip_file({"frozen": FROZEN, "head": noise(3 * MIB, 4)})


@pytest.fixture
def store(tmp_path):
    opened = Store(tmp_path / "home")
    yield opened
    opened.close()


@pytest.fixture
def settings(tmp_path):
    return Settings(home=tmp_path / "home", progress=Progress.OFF)


def tree(home: Path) -> set[str]:
    return {f"{above}/{name}" for above, _, names in os.walk(home) for name in names if ".sqlite3" not in name}


def plan(store, remote, settings, uuid=OTHER_UUID):
    return preview(store, remote, registry="m", uuid=uuid, settings=settings)


def pull(store, remote, settings, uuid=OTHER_UUID):
    return fetch.pull(store, remote, registry="m", uuid=uuid, settings=settings)


def test_a_plan_of_what_is_not_here(store, settings):
    remote = Shelf({"model.pth": FIRST, "a.py": b"a", "empty": b""})
    before = tree(store.home)
    found = plan(store, remote, settings)
    assert (found.size, found.fetch, found.requests, found.donors) == (len(FIRST) + 1, len(FIRST) + 1, 2, {})
    assert [(one.path, one.fetch, one.here) for one in found.files] == [
        ("a.py", 1, 0),
        ("empty", 0, 0),
        ("model.pth", len(FIRST), 0),
    ]
    assert tree(store.home) == before


def test_a_plan_with_a_sibling_is_what_the_pull_then_does(store, settings):
    pull(store, Shelf({"model.pth": FIRST, "same.py": b"x" * 100}), settings, UUID)
    remote = CountingRemote(Shelf({"model.pth": SECOND, "new.py": b"y" * 50}))
    before = tree(store.home)
    found = plan(store, remote, settings)
    assert tree(store.home) == before
    assert found.fetch < 3 * MIB + 1000
    digest = store.resolve("m", UUID).by_path["model.pth"].digest
    assert found.donors == {digest: pytest.approx(6 * MIB, abs=1000)}
    assert list(holders(store, found.donors)) == [("m", UUID, found.donors[digest])]
    remote.bytes.clear()
    report = pull(store, remote, settings)
    assert report.bytes_fetched == pytest.approx(found.fetch, abs=70_000)  # the directory, which is read to plan


def test_a_plan_of_what_is_known_by_its_identity(store, settings):
    remote = Shelf({"model.pth": FIRST})
    pull(store, remote, settings, UUID)
    found = plan(store, remote, settings)
    assert (found.fetch, found.requests, list(found.donors.values())) == (0, 0, [len(FIRST)])


def test_a_plan_with_a_sidecar(store, settings, tmp_path):
    publisher = Store(tmp_path / "publisher")
    remote = Shelf({"model.pth": SECOND, "small.py": b"s" * 100, "medium.bin": noise(9000)})
    publishing.publish_place(publisher, Place("m", UUID, remote), settings=settings)
    publisher.close()
    held = store.put(noise(9000))
    store.put(SECOND)
    found = plan(store, remote, settings)
    assert found.fetch == 0
    assert found.donors == {Digest.of(SECOND): len(SECOND), held: 9000}
    assert {one.path: one.told for one in found.files}["small.py"] == 100
    assert pull(store, remote, settings).bytes_fetched < 70_000


def test_no_files_at_all(store, settings):
    with pytest.raises(CheckpointNotFoundError):
        plan(store, Shelf(), settings)


def test_a_plan_of_a_checkpoint_that_is_here_asks_nobody(store, settings):
    pull(store, Shelf({"model.pth": FIRST, "a": b"1"}), settings, UUID)
    found = Preview.of_manifest("file:///home", store.resolve("m", UUID))
    assert (found.size, found.fetch, found.requests) == (len(FIRST) + 1, 0, 0)
    assert sum(count for _, _, count in holders(store, found.donors)) == len(FIRST) + 1
