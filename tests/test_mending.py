"""Damaged blobs are mended chunk by chunk: what was whole is kept, and nothing is believed that does not fit."""

from __future__ import annotations

import os

import pytest
from container_files import noise, safetensors_file
from remotes import CountingRemote, MemoryRemote
from stores import OTHER_UUID, UUID, damage, lies
from test_sidecars import CountingShelf, Shelf

from cas.actions import publishing, repairing
from cas.actions.adding import add
from cas.actions.places import Place
from cas.config import Progress, Settings
from cas.index.chunks import ChunkList
from cas.index.cutting import BLOCK, cut_file
from cas.index.digest import Digest
from cas.index.problems import Kind
from cas.index.store import Store
from cas.transfer.mending import MendReport, can_mend, mend

pytestmark = pytest.mark.slow

TENSOR = noise(10 * BLOCK, 1)
DATA = safetensors_file({"a": TENSOR, "b": noise(4 * BLOCK, 2)})
AT = len(DATA) - len(TENSOR) - 4 * BLOCK  # where the tensors begin


@pytest.fixture
def store(tmp_path):
    opened = Store(tmp_path / "home")
    yield opened
    opened.close()
    assert lies(tmp_path / "home") == []


@pytest.fixture
def settings(tmp_path):
    return Settings(home=tmp_path / "home", progress=Progress.OFF)


def cut(store: Store, digest: Digest) -> ChunkList:
    chunks = cut_file(store.layout.blob(digest))
    with store.staging("test") as staging:
        store.chunks.put(digest, chunks, staging.folder)
    return chunks


def spoiled(*places: int, end: int | None = None) -> bytes:
    data = bytearray(DATA[:end])
    for place in places:
        data[place] ^= 1
    return bytes(data)


def damaged(store: Store, data: bytes, *, known: bool = True) -> Digest:
    """A blob that is damaged, put aside, with its chunks known from before."""
    digest = store.put(DATA)
    if known:
        cut(store, digest)
    damage(store.layout.blob(digest), data)
    assert not store.has(digest)
    return digest


def listed(remote):
    return remote.list().files[0]


def test_other_blobs_give_the_damaged_chunks(store):
    digest = damaged(store, spoiled(AT + 5, AT + 7 * BLOCK))
    cut(store, store.put(safetensors_file({"other": TENSOR})))
    assert can_mend(store, digest, len(DATA))
    assert mend(store, digest, len(DATA)) == MendReport(len(DATA) - 2 * BLOCK, 2 * BLOCK, 0)
    assert store.blobs.read(digest) == DATA


def test_only_damaged_chunks_are_read_from_the_origin(store):
    digest = damaged(store, spoiled(AT + 5, AT + BLOCK, AT + 9 * BLOCK))
    remote = CountingRemote(MemoryRemote({"model": DATA}))
    report = mend(store, digest, len(DATA), remote=remote, file=listed(remote))
    assert report == MendReport(len(DATA) - 3 * BLOCK, 0, 3 * BLOCK)
    assert (remote.total, remote.reads) == (3 * BLOCK, 2)
    assert store.blobs.read(digest) == DATA


def test_a_sidecar_knows_the_chunks_of_a_blob_that_was_never_cut(store, tmp_path, settings):
    remote = Shelf({"model": DATA})
    publisher = Store(tmp_path / "publisher")
    publishing.publish_place(publisher, Place("m", UUID, remote), settings=settings)
    publisher.close()
    digest = damaged(store, spoiled(AT + 5), known=False)
    assert not can_mend(store, digest, len(DATA))
    counting = CountingShelf(remote)
    assert mend(store, digest, len(DATA), remote=counting, file=listed(remote)).fetched == BLOCK
    assert counting.total == BLOCK


def test_damaged_glue_comes_with_the_sidecar(store, tmp_path, settings):
    remote = Shelf({"model": DATA})
    publisher = Store(tmp_path / "publisher")
    publishing.publish_place(publisher, Place("m", UUID, remote), settings=settings)
    publisher.close()
    digest = damaged(store, spoiled(3))
    counting = CountingShelf(remote)
    assert mend(store, digest, len(DATA), remote=counting, file=listed(remote)) == MendReport(len(DATA) - AT, AT, 0)
    assert counting.total == 0


def test_a_blob_that_was_cut_short_or_is_zeros(store):
    remote = MemoryRemote({"model": DATA})
    digest = damaged(store, spoiled(end=AT + 3 * BLOCK + 7))
    assert mend(store, digest, len(DATA), remote=remote, file=listed(remote)).kept == AT + 3 * BLOCK
    damage(store.layout.blob(digest), bytes(len(DATA)))
    assert not store.has(digest)
    assert mend(store, digest, len(DATA), remote=remote, file=listed(remote)) is not None
    assert store.blobs.read(digest) == DATA


def test_nothing_is_rewritten_in_place(store):
    bad = spoiled(AT + 5)
    digest = damaged(store, bad)
    held = next((store.home / "aside").iterdir())
    before = held.stat()
    cut(store, store.put(safetensors_file({"other": TENSOR})))
    mend(store, digest, len(DATA))
    assert held.read_bytes() == bad
    assert held.stat().st_mtime_ns == before.st_mtime_ns
    assert store.layout.blob(digest).stat().st_ino != held.stat().st_ino


def test_what_cannot_be_mended_is_left_as_it_is(store):
    digest = damaged(store, spoiled(AT + 5))
    assert mend(store, digest, len(DATA)) is None  # nobody has the chunk
    assert mend(store, Digest.of(b"another"), 7) is None
    changed = MemoryRemote({"model": spoiled(AT + 6)})
    assert mend(store, digest, len(DATA), remote=changed, file=listed(changed)) is None
    shorter = MemoryRemote({"model": DATA[:-1]})
    assert mend(store, digest, len(DATA), remote=shorter, file=listed(shorter)) is None
    assert not store.has(digest)
    assert len(list((store.home / "aside").iterdir())) == 1
    assert not any((store.home / "ingest").glob("*/*"))


def test_a_chunk_list_that_lies_mends_nothing(store):
    digest = damaged(store, spoiled(AT + 5))
    honest = store.chunks.get(digest, len(DATA))
    bad = Digest.of(spoiled(AT + 5)[AT : AT + BLOCK])
    lied = [(one.length, bytes.fromhex(bad.hex) if one.start == AT else one.digest) for one in honest]
    with store.staging("lie") as staging:
        store.chunks.put(digest, ChunkList.of("safetensors-1", lied), staging.folder)
    assert mend(store, digest, len(DATA)) is None
    assert not store.has(digest)


def test_check_mends_an_only_copy_with_what_other_checkpoints_have(tmp_path, settings, store):
    for uuid, data in ((UUID, DATA), (OTHER_UUID, safetensors_file({"x": TENSOR}))):
        (tmp_path / uuid).mkdir()
        (tmp_path / uuid / "model.safetensors").write_bytes(data)
        add(tmp_path / uuid, uuid=uuid, settings=settings)
        cut(store, Digest.of(data))
        (tmp_path / uuid / "model.safetensors").unlink()
    damage(store.layout.blob(Digest.of(DATA)), spoiled(AT + 2 * BLOCK))
    report = repairing.check(store, deep=True, anew=True)
    done = repairing.repair(store, report.problems, settings)
    texts = {result.step.problem.kind: result.text for result in done.results}
    assert texts[Kind.DAMAGED_BLOB].startswith(f"mended: {len(DATA) - BLOCK} bytes of it were whole")
    assert done.left == ()
    assert store.blobs.read(Digest.of(DATA)) == DATA


def test_check_reads_only_damaged_chunks_from_an_origin(tmp_path, settings, store):
    from cas.checkpoint import Checkpoint
    from cas.registry.records import CheckpointRecord
    from cas.registry.remembering import remember

    folder = tmp_path / "origin" / UUID
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(DATA)
    os.utime(folder / "model.safetensors", (10**9, 10**9))
    config = {"checkpoint_storage": {"type": "shared_fs", "host_path": str(tmp_path / "origin")}}
    record = CheckpointRecord(registry="http://master", uuid=UUID, experiment_config=config)
    remember(store, "http://master", [record])
    Checkpoint(record, settings=settings).fetch()
    cut(store, Digest.of(DATA))
    damage(store.layout.blob(Digest.of(DATA)), spoiled(AT + 2 * BLOCK))
    done = repairing.repair(store, repairing.check(store, deep=True, anew=True).problems, settings)
    texts = {result.step.problem.kind: result.text for result in done.results}
    assert f"{BLOCK} from its origin" in texts[Kind.DAMAGED_BLOB]
    assert store.blobs.read(Digest.of(DATA)) == DATA
