"""What the store holds, by checkpoint, with shared bytes once."""

from __future__ import annotations

import pytest

from cas.index.identity import RemoteIdentity
from cas.index.manifest import FileEntry, Manifest
from cas.index.paths import RelativePath
from cas.index.store import Store
from cas.index.usage import usage

UUIDS = [f"00000000-0000-4000-8000-00000000000{number}" for number in range(4)]


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "home")
    yield store
    store.close()


def add(store: Store, uuid: str, files: dict[str, bytes], *, registry: str = "local") -> Manifest:
    entries = [FileEntry(RelativePath(name), len(data), store.put(data)) for name, data in files.items()]
    manifest = Manifest.of(entries)
    store.tag(registry, uuid, manifest)
    return manifest


def test_an_empty_store_holds_nothing(store):
    found = usage(store)

    assert found.checkpoints == ()
    assert (found.apart, found.own, found.shared, found.unreferenced, found.total) == (0, 0, 0, 0, 0)


def test_shared_bytes_count_once(store):
    add(store, UUIDS[0], {"common": b"c" * 100, "mine": b"0" * 7})
    add(store, UUIDS[1], {"common": b"c" * 100, "again": b"c" * 100, "mine": b"1" * 9})
    store.put(b"nobody's")

    found = usage(store)

    first, second = found.checkpoints
    assert (first.uuid, first.files, first.size, first.here, first.own, first.shared) == (UUIDS[0], 2, 107, 107, 7, 100)
    assert (second.files, second.size, second.here, second.own, second.shared) == (3, 209, 109, 9, 100)
    assert (found.own, found.shared, found.unreferenced, found.total) == (16, 100, 8, 124)
    assert found.apart == 107 + 209


def test_a_checkpoint_of_several_registries_is_one(store):
    for registry in ("local", "http://m:8080"):
        add(store, UUIDS[0], {"file": b"12345"}, registry=registry)

    (one,) = usage(store).checkpoints

    assert one.registries == ("http://m:8080", "local")
    assert (one.own, one.shared) == (5, 0)


def test_absent_blobs_are_said_and_take_no_room(store):
    manifest = add(store, UUIDS[0], {"here": b"123", "gone": b"4567"})
    digest = manifest.by_path["gone"].digest
    store.layout.blob(digest).unlink()
    far = FileEntry(RelativePath("far"), 50, identity=RemoteIdentity("s3://b/far", 50, etag='"x"'))
    store.tag("local", UUIDS[1], Manifest.of([far]))

    first, second = usage(store).checkpoints

    assert (first.missing, first.size, first.here, first.own) == (1, 7, 3, 3)
    assert (second.files, second.missing, second.size, second.here) == (1, 1, 50, 0)


def test_a_damaged_manifest_hides_one_checkpoint_only(store):
    manifest = add(store, UUIDS[0], {"a": b"1"})
    add(store, UUIDS[1], {"b": b"22"})
    path = store.layout.manifest(manifest.digest)
    path.chmod(0o644)
    path.write_bytes(b"{}")

    found = usage(store)

    assert [one.uuid for one in found.checkpoints] == [UUIDS[1]]
    assert (found.own, found.unreferenced) == (2, 1)
