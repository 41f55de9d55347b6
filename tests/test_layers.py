"""Layers: what other homes have is used from there; nothing in them changes; one that is lost is done without."""

from __future__ import annotations

import io
import logging
import os
import shutil
import zipfile
from pathlib import Path

import mounts as disks
import pytest
from cli import UUIDS, stocked_shell
from remote_suite import siblings
from stores import OTHER_UUID, UUID, damage, manifest_of, tagged
from test_sidecars import Shelf

from cas.actions.places import Place
from cas.actions.publishing import publish_place
from cas.config import Link, Progress, Settings
from cas.errors import CheckpointNotFoundError, NotFoundError, UsageError
from cas.index.digest import Digest
from cas.index.records import NewRecord
from cas.index.remove import plan_remove
from cas.index.store import Store, store_of
from cas.load.links import Materializer
from cas.load.views import LinkMode, make_view
from cas.transfer.fetch import pull
from cas.transfer.folder import FolderRemote

pytestmark = pytest.mark.slow

LARGE = bytes(range(256)) * 40
FILES = {"model": LARGE, "a/small": b"small", "run": b"#!/bin/sh\n" * 1000}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


@pytest.fixture
def lower(tmp_path: Path) -> Path:
    """A home with one checkpoint."""
    store = Store(tmp_path / "lower")
    tagged(store, UUID, FILES, durable=True)
    store.records.add("local", [NewRecord("checkpoint", UUID, {"from": "below"}, ("trial/1",))])
    store.close()
    return tmp_path / "lower"


@pytest.fixture
def settings(lower: Path, tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", read_only_stores=(lower,), progress=Progress.OFF)


def everything(home: Path) -> dict[str, tuple[int, ...]]:
    """Each file and folder with its stat."""
    found = {}
    for path in sorted(home.rglob("*")):
        stat = path.lstat()
        found[str(path)] = (stat.st_mode, stat.st_nlink, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
    return found


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_a_layer_has_is_used_from_there_and_nothing_in_it_changes(settings: Settings, lower: Path) -> None:
    before = everything(lower)
    store = store_of(settings)
    manifest = store.resolve("local", UUID)
    assert manifest == manifest_of(FILES) and store.absent(manifest) == []
    view = make_view(store, manifest)
    assert content(view.path) == FILES and view.mode is LinkMode.SYMLINK
    assert os.readlink(view.path / "model") == str(Store(lower).layout.blob(Digest.of(LARGE)))
    assert make_view(store, manifest).reused
    assert list((settings.home / "blobs").glob("??/*")) == [] and store.blobs.hashed == 0
    seen = store.records.get("local", "checkpoint", UUID)
    assert seen is not None and seen.data == {"from": "below"}
    assert [one.id for one in store.records.find("checkpoint", parent="trial/1")] == [UUID]
    assert store.records.ids("checkpoint", registry="local", parent="trial/1") == [UUID]
    assert store.records.registries() == ["local"] == store.records.registries_with("checkpoint", UUID)
    assert [row[0] for row in store.records.briefs("checkpoint", registry="local", parent="trial/1")] == [UUID]
    store.close()
    assert everything(lower) == before


def test_what_was_seen_last_counts_wherever_it_was_written(settings: Settings) -> None:
    store = store_of(settings)
    store.records.add("local", [NewRecord("checkpoint", UUID, {"from": "above"}, ("trial/1",))])
    store.records.add("other", [NewRecord("checkpoint", OTHER_UUID, {})])
    seen = store.records.get("local", "checkpoint", UUID)
    assert seen is not None and seen.data == {"from": "above"}
    assert [one.data for one in store.records.find("checkpoint", parent="trial/1")] == [{"from": "above"}]
    assert store.records.registries() == ["local", "other"]


def test_a_pull_fetches_only_what_no_layer_has(settings: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "origin"
    folder.mkdir()
    (folder / "model").write_bytes(LARGE)
    (folder / "new").write_bytes(b"new" * 3000)
    os.utime(folder / "model", (1, 1))
    remote = FolderRemote(folder)
    listed = next(file for file in remote.list().files if file.path == "model")
    below = Store(settings.read_only_stores[0])
    below.facts.add_origin(listed.identity, Digest.of(LARGE), "length only")
    below.close()
    store = store_of(settings)
    report = pull(store, remote, registry="local", uuid=OTHER_UUID, settings=settings)
    assert report.bytes_fetched == 9000
    assert [path.read_bytes() for path in settings.home.glob("blobs/??/*")] == [b"new" * 3000]
    assert content(make_view(store, report.manifest).path) == {"model": LARGE, "new": b"new" * 3000}


@pytest.mark.parametrize("hint", ["sidecar", "zip"])
def test_what_a_layer_has_of_a_sibling_is_not_fetched(settings: Settings, lower: Path, hint: str) -> None:
    first, second = (Shelf({"m.pth": data if hint == "sidecar" else zipped(data)}) for data in siblings())
    below = Store(lower)
    if hint == "sidecar":
        publish_place(below, Place("m", OTHER_UUID, second), settings=settings)
        below.close()
        shutil.rmtree(lower)
        below = Store(lower)
        publish_place(below, Place("m", UUID, first), settings=settings)
    else:
        pull(below, first, registry="m", uuid=UUID, settings=settings)
    below.close()
    before = everything(lower)
    store = store_of(settings)
    report = pull(store, second, registry="m", uuid=OTHER_UUID, settings=settings)
    assert store.blobs.read(report.manifest.files[0].digest) == second._files["m.pth"][0]
    assert 300_000 <= report.bytes_fetched < 3 << 20
    assert everything(lower) == before


def zipped(data: bytes) -> bytes:
    """As `torch.save` packs tensors: stored records."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for at in range(0, len(data), 1 << 20):
            archive.writestr(f"m/data/{at >> 20}", data[at : at + (1 << 20)])
    return packed.getvalue()


def test_a_download_copies_from_a_layer_and_never_links_hard(settings: Settings, lower: Path, tmp_path: Path) -> None:
    store = store_of(settings)
    manifest = store.resolve("local", UUID)
    assert manifest is not None
    for link in (Link.AUTO, Link.HARDLINK):
        before = everything(lower)
        with Materializer(store, tmp_path / link, link=link) as materializer:
            report = materializer.finish(manifest)
        assert content(tmp_path / link) == FILES and report.hardlinked == 0
        assert everything(lower) == before


def test_a_layer_that_is_not_there_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = Settings(home=tmp_path / "home", read_only_stores=(tmp_path / "nothing",))
    with caplog.at_level(logging.WARNING, "cas"):
        for _ in range(3):
            store_of(settings)
    assert len(caplog.records) == 1 and "nothing (read_only_stores) is not used: there is no store" in caplog.text
    assert not (tmp_path / "nothing").exists()


def test_a_layer_that_vanishes_is_done_without(
    settings: Settings, lower: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = store_of(settings)
    manifest = store.resolve("local", UUID)
    assert manifest is not None
    make_view(store, manifest)
    lower.rename(lower.with_name("away"))
    with caplog.at_level(logging.WARNING, "cas"):
        for _ in range(3):
            assert store.resolve("local", UUID) is None
    assert len(caplog.records) == 1 and "is gone" in caplog.text
    assert set(store.absent(manifest)) == {Digest.of(data) for data in FILES.values()}
    with pytest.raises(CheckpointNotFoundError):
        make_view(store, manifest)
    for data in FILES.values():
        store.put(data)
    assert content(make_view(store, manifest).path) == FILES


@pytest.mark.parametrize("name", ["model", "a/small"])
def test_a_damaged_blob_of_a_layer_is_not_served_and_left_where_it_is(
    name: str, settings: Settings, lower: Path
) -> None:
    digest = Digest.of(FILES[name])
    blob = Store(lower).layout.blob(digest)
    damage(blob)
    before = everything(lower)
    store = store_of(settings)
    manifest = store.resolve("local", UUID)
    assert manifest is not None and store.blobs.locate(digest) is None
    assert everything(lower) == before
    store.put(FILES[name])
    assert content(make_view(store, manifest).path) == FILES


def test_a_small_blob_that_rotted_under_its_stat_is_found_when_it_is_copied(settings: Settings, lower: Path) -> None:
    blob = Store(lower).layout.blob(Digest.of(b"small"))
    stat = blob.stat()
    damage(blob, b"smalL")
    os.utime(blob, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    store = store_of(settings)
    manifest = store.resolve("local", UUID)
    assert manifest is not None
    with pytest.raises(CheckpointNotFoundError, match="a/small"):
        make_view(store, manifest)
    store.put(b"small")
    assert content(make_view(store, manifest).path) == FILES


def test_our_own_home_comes_before_its_layers(settings: Settings) -> None:
    store = store_of(settings)
    tagged(store, UUID, {"model": b"other" * 2000})
    assert store.resolve("local", UUID) == manifest_of({"model": b"other" * 2000})


def test_a_home_is_no_layer_of_itself(settings: Settings) -> None:
    store = store_of(settings.but(read_only_stores=[settings.home]))
    assert store.layers == ()


def test_what_only_a_layer_has_is_not_removed(settings: Settings) -> None:
    with pytest.raises(NotFoundError, match="read_only_stores"):
        plan_remove(store_of(settings), UUID)


@pytest.mark.root
def test_a_layer_on_a_read_only_mount_serves_through_a_checkpoint(settings: Settings, lower: Path) -> None:
    with disks.read_only(lower):
        store = store_of(settings)
        manifest = store.resolve("local", UUID)
        assert manifest is not None
        assert content(make_view(store, manifest).path) == FILES
        store.close()
        for layer in store.layers:
            layer.close()


def test_commands_see_what_is_below(tmp_path: Path) -> None:
    below = stocked_shell(tmp_path)
    shutil.move(below.home, tmp_path / "below")
    below.variables["CAS_READ_ONLY_STORES"] = str(tmp_path / "below")
    assert UUIDS[0] in below.run("ls").ok.out
    folder = below.run("view", UUIDS[0]).ok.out.strip()
    assert Path(folder, "common").read_bytes() == b"c" * 1000
    below.prepare("trial", "download", "1", "--best", "-o", "out")
    assert (tmp_path / "out" / "own").read_bytes() == b"1" * 10
    assert list((below.home / "blobs").glob("??/*")) == []


def test_the_setting_is_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAS_READ_ONLY_STORES", f"/a{os.pathsep}/b{os.pathsep}/a")
    assert Settings.load().read_only_stores == (Path("/a"), Path("/b"))
    monkeypatch.delenv("CAS_READ_ONLY_STORES")
    (tmp_path / "config.toml").write_text('read_only_stores = ["/c", "/d"]')
    monkeypatch.setenv("CAS_CONFIG", str(tmp_path / "config.toml"))
    assert Settings.load().read_only_stores == (Path("/c"), Path("/d"))
    (tmp_path / "config.toml").write_text("read_only_stores = 7")
    with pytest.raises(UsageError, match="list of folders"):
        Settings.load()
