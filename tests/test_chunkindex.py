"""The index of chunks: it answers what the lists say, whatever happens to its file."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest
from container_files import noise, torch_file, zip_file
from stores import run_python

from cas.index import chunkindex, chunkstore
from cas.index.chunkindex import ChunkIndex
from cas.index.chunks import ChunkList, Part
from cas.index.cutting import cut_file
from cas.index.digest import Digest
from cas.index.store import Store


@pytest.fixture
def store(tmp_path):
    opened = Store(tmp_path / "home")
    yield opened
    opened.close()


def list_of(store: Store, *names: str, length: int = 5000) -> Digest:
    """Keep a list of chunks whose digests are made of these names; return its blob's digest."""
    pieces = [(length, Digest.of(name.encode())) for name in names]
    blob = Digest.of(repr(names).encode())
    with store.staging("test") as staging:
        chunks = ChunkList.of("test-1", [(size, bytes.fromhex(digest.hex)) for size, digest in pieces])
        store.chunks.put(blob, chunks, staging.folder)
    return blob


def key(name: str) -> bytes:
    return bytes.fromhex(Digest.of(name.encode()).hex)


def holders(store: Store, name: str) -> list[tuple[Digest, int]]:
    return [tuple(one) for one in store.chunks.index.chunks([key(name)]).get(key(name), [])]


def test_it_says_which_blobs_have_a_chunk_and_where(store):
    one, two = list_of(store, "a", "b"), list_of(store, "b", "c")
    assert holders(store, "a") == [(one, 0)]
    assert sorted(holders(store, "b")) == sorted([(one, 5000), (two, 0)])
    assert holders(store, "z") == []


def test_lists_that_come_and_go_are_followed(store):
    one = list_of(store, "a")
    assert holders(store, "a") == [(one, 0)]
    two = list_of(store, "a", "b")
    assert sorted(holders(store, "a")) == sorted([(one, 0), (two, 0)])
    store.chunks.forget(one)
    assert holders(store, "a") == [(two, 0)]
    store.chunks.forget(two)
    assert holders(store, "a") == []


def test_folders_that_did_not_change_are_not_read_again(store, monkeypatch):
    list_of(store, "a")
    for folder in (store.home / "chunks").iterdir():
        os.utime(folder, ns=(10**18, 10**18))
    assert holders(store, "a")
    read = []
    monkeypatch.setattr(ChunkIndex, "_read_folder", lambda *args: read.append(args))
    assert holders(store, "a")
    assert read == []


def test_small_chunks_are_not_looked_for(store):
    list_of(store, "a", length=chunkindex.LEAST - 1)
    assert holders(store, "a") == []


def test_a_chunk_that_many_blobs_have_names_a_few(store):
    for number in range(chunkindex.HOLDERS + 5):
        list_of(store, "zeros", str(number))
    assert len(holders(store, "zeros")) == chunkindex.HOLDERS


@pytest.mark.parametrize("harm", ["delete", "garbage", "truncate", "version", "schema", "folder"])
def test_whatever_happens_to_its_file_the_answer_stays(store, harm):
    blob = list_of(store, "a")
    assert holders(store, "a") == [(blob, 0)]
    path = store.chunks.index.path
    if harm == "delete":
        path.unlink()
    elif harm == "garbage":
        path.write_bytes(noise(5000))
    elif harm == "truncate":
        os.truncate(path, 5000)
    elif harm == "folder":
        path.unlink()
        path.mkdir()
    else:
        database = sqlite3.connect(path)
        database.execute("PRAGMA user_version = 99" if harm == "version" else "DROP TABLE piece")
        database.commit()
        database.close()
    expected = [] if harm == "folder" else [(blob, 0)]
    assert holders(store, "a") == expected


def test_a_damaged_list_names_nothing_and_harms_nothing(store):
    one, two = list_of(store, "a"), list_of(store, "a", "b")
    path = store.layout.chunks(one)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1])
    assert holders(store, "a") == [(two, 0)]
    (path.parent / "stray").write_bytes(b"")
    (path.parent / f"{path.name}.other").write_bytes(b"")
    assert holders(store, "a") == [(two, 0)]


def test_an_index_whose_rows_are_mostly_of_lists_that_are_gone_is_made_again(store, monkeypatch):
    monkeypatch.setattr(chunkindex, "WORN", 3)
    blobs = [list_of(store, "same", str(number)) for number in range(8)]
    assert holders(store, "same")
    for blob in blobs[1:]:
        store.chunks.forget(blob)
    assert holders(store, "same") == [(blobs[0], 0)]
    database = sqlite3.connect(store.chunks.index.path)
    assert database.execute("SELECT count(*) FROM piece").fetchone() == (2,)
    database.close()


def test_a_folder_that_cannot_be_written_gives_no_hints(store, tmp_path):
    list_of(store, "a")
    for folder in (None, Path("/dev/null/folder")):
        index = ChunkIndex(store.home / "chunks", folder)
        assert index.chunks([key("a")]) == {}
        assert not index.has_parts()
    assert ChunkIndex(tmp_path / "nowhere", tmp_path).chunks([key("a")]) == {}


@pytest.mark.slow
def test_several_processes_make_it_at_once(store):
    blob = list_of(store, "a")
    code = """
import sys, subprocess
from pathlib import Path
from cas.index.store import Store
print(Store(Path(sys.argv[1])).chunks.index.chunks([bytes.fromhex(sys.argv[2])]))
"""
    import concurrent.futures

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: run_python(code, store.home, key("a").hex()), range(4)))
    assert all(blob.hex in text for text in found)


# --- part lists ------------------------------------------------------------------------------------------------


def test_every_zip_archive_that_comes_in_has_its_records_noted(store, monkeypatch):
    monkeypatch.setattr(chunkstore, "LEAST_ZIP", 1000)
    data = zip_file({"a": noise(2000), "b": b"", "c": noise(300, seed=1)})
    blob = store.put(data)
    noted = store.chunks.parts(blob, len(data))
    assert noted is not None
    assert [data[part.content :][: part.length] for part in noted.parts] == [noise(2000), noise(300, seed=1)]
    wanted = Part(0, 0, 2000, 0, noted.parts[0].crc)
    assert store.chunks.index.parts([wanted.key]) == {wanted.key: [(blob, 0)]}
    assert store.chunks.index.has_parts()


def test_compressed_records_and_those_of_crc_0_are_not_noted(store, monkeypatch):
    from container_files import directory_changed

    monkeypatch.setattr(chunkstore, "LEAST_ZIP", 100)
    packed = zip_file({"a": b"a" * 100000}, compress=True)
    assert store.chunks.parts(store.put(packed), len(packed)).parts == ()
    zero = directory_changed(zip_file({"a": noise(2000)}), 0, crc=0)
    assert store.chunks.parts(store.put(zero), len(zero)).parts == ()


def test_small_archives_and_other_files_are_not_noted(store):
    for data in (zip_file({"a": b"a"}), noise(2 << 20), b"PK\3\4" + noise(2 << 20)):
        assert store.chunks.parts(store.put(data), len(data)) is None
    assert not store.chunks.index.has_parts()


@pytest.mark.torch
def test_a_checkpoint_of_torch_is_noted(store):
    import torch

    data = torch_file({"w": torch.randn(600, 1000)})
    blob = store.put(data)
    assert [part.length for part in store.chunks.parts(blob, len(data)).parts if part.length > 1000] == [2400000]


def test_a_list_that_cannot_be_kept_is_no_error(store):
    (store.home / "chunks").write_text("in the way")
    data = zip_file({"a": noise(2 << 20)})
    blob = store.put(data)
    assert store.has(blob)
    assert store.chunks.parts(blob, len(data)) is None
    assert not store.chunks.index.has_parts()


def test_lists_are_read_back(store, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(noise(300000))
    chunks, blob = cut_file(path), Digest.of_file(path)
    assert store.chunks.get(blob, 300000) is None
    with store.staging("test") as staging:
        store.chunks.put(blob, chunks, staging.folder)
    assert store.chunks.get(blob, 300000) == chunks
    assert store.chunks.get(blob, 300001) is None
