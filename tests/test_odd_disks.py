"""Disks that refuse links, count names, fold case or have a quota: for real, through FUSE, overlays and bind mounts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mounts as disks
import pytest
from stores import OTHER_UUID, UUID, damage, lies, manifest_of, tagged, uuid

from cas.config import Network
from cas.errors import CasError, NoSpaceError, UnsafeNameError
from cas.index.check import check
from cas.index.digest import Digest
from cas.index.remove import execute_remove, plan_remove
from cas.index.store import Store
from cas.load.views import LinkMode, make_view

pytestmark = [pytest.mark.slow, pytest.mark.root]

LARGE = bytes(range(256)) * 40
FILES = {"model": LARGE, "a/small": b"small"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@contextmanager
def opened(disk: Path) -> Iterator[Store]:
    store = Store(disk / "home", network=Network.YES)
    yield store
    store.close()


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_without_hard_links_everything_works(tmp_path: Path) -> None:  # EPERM
    with disks.faulty(tmp_path / "disk", "no-links") as disk, opened(disk) as store:
        manifest = tagged(store, UUID, FILES, durable=True)
        view = make_view(store, manifest)
        assert view.mode is LinkMode.SYMLINK and content(view.path) == FILES
        assert os.readlink(view.path / "model").startswith("../../../blobs/")
        assert make_view(store, manifest).reused
        damage(store.layout.blob(Digest.of(LARGE)))
        assert not store.has(Digest.of(LARGE))
        store.put(LARGE)
        assert content(make_view(store, manifest).path) == FILES
        tagged(store, OTHER_UUID, {"model": LARGE})
        store.leases.release()
        execute_remove(store, plan_remove(store, UUID))
        assert check(store, deep=True).damage == () and lies(store.home) == []
        assert store.has(Digest.of(LARGE)) and not store.layout.blob(Digest.of(b"small")).exists()


def test_a_file_that_has_all_its_names_is_linked_symbolically(tmp_path: Path) -> None:  # EMLINK
    with disks.faulty(tmp_path / "disk", "few-links=3") as disk, opened(disk) as store:
        for number in range(4):
            files = {"model": LARGE, "own": LARGE + b"%d" % number}
            view = make_view(store, tagged(store, uuid(number), files))
            assert content(view.path) == files
            assert (view.path / "model").is_symlink() == (number >= 2)
            assert not (view.path / "own").is_symlink()
        assert check(store, deep=True).damage == ()


def test_a_quota_that_is_used_up_is_one_line_and_breaks_nothing(tmp_path: Path) -> None:  # EDQUOT
    with disks.faulty(tmp_path / "disk", "quota=200000") as disk, opened(disk) as store:
        manifest = tagged(store, UUID, FILES)
        with pytest.raises(NoSpaceError, match="your quota is used up; make room") as caught:
            store.put(bytes(300_000))
        assert "\n" not in str(caught.value)
        assert store.resolve("local", UUID) == manifest and store.absent(manifest) == []
        assert check(store, deep=True).damage == () and lies(store.home) == []
        assert not list(store.home.glob("ingest/*/*/*.data"))


def test_names_that_a_folding_disk_cannot_tell_apart_are_refused(tmp_path: Path) -> None:
    with disks.faulty(tmp_path / "disk", "fold") as disk, opened(disk) as store:
        for names in (("Model", "model"), ("A/x", "a/y")):
            with pytest.raises(UnsafeNameError, match="cannot tell"):
                make_view(store, manifest_of({name: LARGE + name.encode() for name in names}, store))
        assert content(make_view(store, tagged(store, UUID, FILES)).path) == FILES


def test_a_home_on_several_disks_is_one_clear_line(tmp_path: Path) -> None:  # EXDEV
    store = Store(tmp_path / "home")
    (tmp_path / "home" / "blobs").mkdir(exist_ok=True)
    with disks.tmpfs(tmp_path / "home" / "blobs"):
        with pytest.raises(CasError, match="are on different disks; all of a store must be on one") as caught:
            store.put(LARGE)
        assert "\n" not in str(caught.value)
    store.put(LARGE)
    assert store.has(Digest.of(LARGE))


def test_a_container_over_a_store_adds_and_changes_nothing_below(tmp_path: Path) -> None:
    below = Store(tmp_path / "lower" / "home")
    tagged(below, UUID, FILES, durable=True)
    below.close()
    with disks.overlay(tmp_path / "disk", tmp_path / "lower") as disk, opened(disk) as store:
        manifest = store.resolve("local", UUID)
        assert manifest == manifest_of(FILES)
        view = make_view(store, manifest)
        assert view.mode is LinkMode.SYMLINK and content(view.path) == FILES
        more = tagged(store, OTHER_UUID, {"model": LARGE, "new": LARGE + b"new"})
        assert content(make_view(store, more).path)["new"] == LARGE + b"new"
        assert not (tmp_path / "disk.layers" / "upper" / "home" / "blobs" / Digest.of(LARGE).hex[:2]).exists()
        assert check(store, deep=True).damage == ()
    assert Store(tmp_path / "lower" / "home").resolve("local", OTHER_UUID) is None
