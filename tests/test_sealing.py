"""Sealed stores: nothing of them is read again to be believed, also not in an image; and homes that are only read."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import mounts as disks
import pytest
from cli import UUIDS, Shell, stocked_shell
from kills import each_kill
from stores import OTHER_UUID, UUID, damage, lies, manifest_of, tagged
from users import ANNA, BOB, as_user

from cas.config import Settings
from cas.errors import CasError, ContentError, NotAllowedError
from cas.index import disk, place
from cas.index.check import check
from cas.index.cutting import cut_file
from cas.index.digest import Digest
from cas.index.records import NewRecord
from cas.index.remove import execute_remove, plan_remove
from cas.index.sealing import seal_store, unseal_store
from cas.index.store import Store, store_of
from cas.load.views import LinkMode, make_view

pytestmark = pytest.mark.slow

LARGE = bytes(range(256)) * 40
FILES = {"model": LARGE, "a/small": b"small", "empty": b""}


@pytest.fixture(autouse=True)
def own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    yield
    disk.thaw(tmp_path / "home")


def stock(home: Path) -> None:
    store = Store(home)
    tagged(store, UUID, FILES, durable=True)
    with store.staging("chunks") as staging:
        store.chunks.put(Digest.of(LARGE), cut_file(store.layout.blob(Digest.of(LARGE))), staging.folder)
    assert not store.chunks.index.has_parts()  # makes its file
    store.records.add("local", [NewRecord("checkpoint", UUID, {"a": 1})])
    make_view(store, manifest_of(FILES))
    store.close()


def seal(home: Path) -> None:
    seal_store(Store(home))


def stock_and_seal(home: Path) -> None:
    stock(home)
    seal(home)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names(home: Path) -> list[str]:
    return sorted(str(path) for path in home.rglob("*"))


def reads_all(home: Path, *, hashed: int = 0) -> Store:
    """Everything that reads works; `hashed` blobs are read in full for it, besides small ones, which are copied."""
    before = names(home)
    store = Store(home)
    manifest = store.resolve("local", UUID)
    assert manifest == manifest_of(FILES) and store.absent(manifest) == []
    view = make_view(store, manifest)
    assert content(view.path) == FILES and view.mode is LinkMode.SYMLINK
    assert not view.path.is_relative_to(home)
    assert make_view(Store(home), manifest).reused
    assert store.blobs.hashed == hashed
    seen = store.records.get("local", "checkpoint", UUID)
    assert seen is not None and seen.data == {"a": 1}
    assert check(store).damage == ()
    assert names(home) == before
    return store


# --- sealing -----------------------------------------------------------------------------------------------------


def test_a_sealed_store_is_read_and_not_changed(tmp_path: Path) -> None:
    home = tmp_path / "home"
    stock(home)
    report = seal_store(Store(home))
    assert (report.blobs, report.hashed, report.incomplete) == (3, 0, ())
    store = reads_all(home)
    for change in (
        lambda: store.put(b"new"),
        lambda: tagged(store, OTHER_UUID, {"x": b"small"}),
        lambda: execute_remove(store, plan_remove(store, UUID)),
        lambda: store.pins.add(UUID),
        lambda: disk.make_folder(home / "new"),
        lambda: disk.unlink(home / "format.json"),
    ):
        with pytest.raises((NotAllowedError, OSError)):
            change()
    with pytest.raises(NotAllowedError, match=r"is sealed; set CAS_HOME .* `cas seal --undo` opens it"):
        store.put(b"new")
    reads_all(home)


def test_a_sealed_store_has_no_views_no_index_and_can_be_read_by_everybody(tmp_path: Path) -> None:
    home = tmp_path / "home"
    old = os.umask(0o077)
    try:
        stock(home)
        seal(home)
    finally:
        os.umask(old)
    assert not list(home.glob("index-*")) and not list(home.glob("chunks-*"))
    assert [path.name for path in (home / "views").iterdir()] == ["CACHEDIR.TAG"]
    for path in (home, *home.rglob("*")):
        wanted = 0o555 if path.is_dir() else 0o444
        assert path.stat().st_mode & wanted == wanted, path


def test_what_is_not_proven_is_hashed_and_what_is_damaged_prevents_it(tmp_path: Path) -> None:
    home = tmp_path / "home"
    stock(home)
    for path in home.glob("facts/*"):
        path.unlink()
    assert seal_store(Store(home)).hashed == 3
    assert unseal_store(Store(home))
    damage(Store(home).layout.blob(Digest.of(LARGE)))
    with pytest.raises(ContentError, match="damaged, and aside now"):
        seal(home)
    assert Store(home).about.format.sealed is None
    Store(home).put(LARGE)
    seal(home)
    reads_all(home)


def test_a_store_that_is_in_use_is_not_sealed(tmp_path: Path) -> None:
    home = tmp_path / "home"
    stock(home)
    user = Store(home)
    with user.staging("a transfer"), pytest.raises(CasError, match="in use"):
        seal(home)
    with user.leases.claim(UUID), pytest.raises(CasError, match="in use"):
        seal(home)
    seal(home)


def test_sealing_again_does_nothing_and_undoing_lets_everything_go_on(tmp_path: Path) -> None:
    home = tmp_path / "home"
    stock(home)
    seal(home)
    assert seal_store(Store(home)).was_sealed
    assert unseal_store(Store(home)) and not unseal_store(Store(home))
    assert home.stat().st_mode & 0o777 == 0o700
    tagged(Store(home), OTHER_UUID, {"new": b"n" * 5000})
    assert seal_store(Store(home)).blobs == 4


def test_a_killed_sealing_leaves_a_store_that_works_and_can_be_sealed(memory: Path) -> None:
    def little(home: Path) -> None:
        store = Store(home)
        make_view(store, tagged(store, UUID, {"model": LARGE}))
        store.close()

    count = 0
    for kill, home in each_kill(memory, little, seal):
        try:
            assert lies(home) == []
            store = Store(home)
            manifest = store.resolve("local", UUID)
            assert manifest == manifest_of({"model": LARGE}) and store.absent(manifest) == []
            store.close()
            seal_store(Store(home))
            store = Store(home)
            assert store.absent(manifest) == [] and check(store).problems == ()
            assert content(make_view(store, manifest).path) == {"model": LARGE}
            store.close()
        except BaseException as error:
            error.add_note(str(kill))
            raise
        finally:
            disk.thaw(home)
        count += 1
    assert count > 25


def test_a_resumed_sealing_looks_only_at_what_has_no_seal(tmp_path: Path) -> None:
    home = tmp_path / "home"
    stock(home)
    seen: list[tuple[int, int]] = []
    store = Store(home)
    digest = Digest.of(LARGE)
    store.blobs.seal(digest)
    store.facts.add_seals([(digest, disk.Signature.of(store.layout.blob(digest).stat()))])
    store.close()
    seal_store(Store(home), advance=lambda done, total: seen.append((done, total)))
    assert seen[0][0] >= len(LARGE) and seen[-1] == (len(LARGE) + 5, len(LARGE) + 5)


# --- images ------------------------------------------------------------------------------------------------------


def copied(home: Path, to: Path) -> Path:
    """As an image is made: other inodes, and times in whole seconds."""
    shutil.copytree(home, to, symlinks=True)
    for path in to.rglob("*"):
        seconds = int((home / path.relative_to(to)).stat().st_mtime)
        os.utime(path, (seconds, seconds))
    return to


@pytest.mark.root
def test_in_an_image_nothing_is_hashed_whoever_runs_it(open_folder: Path) -> None:
    home = open_folder / "made"
    as_user(ANNA, lambda: stock_and_seal(home))
    image = copied(home, open_folder / "image")
    for uid, owner in ((ANNA, ANNA), (BOB, ANNA), (BOB, 0)):
        for path in (image, *image.rglob("*")):
            os.chown(path, owner, owner)
        with disks.read_only(image):
            as_user(uid, lambda: reads_all(image).close())


@pytest.mark.root
def test_in_a_container_whose_root_may_write_nothing_is_hashed_either(tmp_path: Path) -> None:
    stock_and_seal(tmp_path / "home")
    copied(tmp_path / "home", tmp_path / "layer" / "image")
    with disks.overlay(tmp_path / "disk", tmp_path / "layer") as container:
        reads_all(container / "image").close()
        disk.thaw(container / "image")
        blob = Store(container / "image").layout.blob(Digest.of(LARGE))
        later = blob.stat().st_mtime + 10
        damage(blob)
        os.utime(blob, (later, later))
        assert not Store(container / "image").has(Digest.of(LARGE))
        Store(container / "image").close()


def test_a_copy_on_a_disk_that_we_may_write_to_is_hashed(tmp_path: Path) -> None:
    """A power cut may have taken what a copying program had not synced."""
    stock_and_seal(tmp_path / "made")
    image = copied(tmp_path / "made", tmp_path / "home")
    if os.geteuid() == 0:
        reads_all(image, hashed=1).close()
    disk.thaw(tmp_path / "made")


@pytest.mark.root
def test_a_file_that_others_could_write_makes_no_word_count(open_folder: Path) -> None:
    home = open_folder / "made"
    as_user(ANNA, lambda: stock_and_seal(home))
    image = copied(home, open_folder / "image")
    for path in (image, *image.rglob("*")):
        os.chown(path, ANNA, ANNA)
    (image / "facts").chmod(0o777)

    def look() -> None:
        store = Store(image)
        assert store.has(Digest.of(LARGE)) and store.blobs.hashed == 1
        assert Store(image).has(Digest.of(LARGE)) and Store(image).blobs.hashed == 0  # noted in a folder of our own

    with disks.read_only(image):
        as_user(BOB, look)


# --- homes that are only read, sealed or not ------------------------------------------------------------------------


@pytest.mark.root
def test_a_read_only_home_that_was_not_sealed_is_hashed_once_per_user(tmp_path: Path) -> None:
    stock(tmp_path / "home")
    for path in (tmp_path / "home").glob("facts/*"):
        path.unlink()
    with disks.read_only(tmp_path / "home"):
        reads_all(tmp_path / "home", hashed=1).close()
        reads_all(tmp_path / "home", hashed=0).close()


@pytest.mark.root
def test_what_cannot_be_written_says_what_to_set(tmp_path: Path) -> None:
    stock(tmp_path / "home")
    with disks.read_only(tmp_path / "home"):
        store = store_of(Settings(home=tmp_path / "home"))
        with pytest.raises(NotAllowedError, match="set CAS_HOME to a folder of yours, and CAS_READ_ONLY_STORES="):
            store.put(b"new")
        with pytest.raises(NotAllowedError, match="cannot be sealed"):
            seal_store(store)
        store.close()


@pytest.mark.root
def test_of_a_read_only_home_what_is_learned_is_kept(tmp_path: Path) -> None:
    stock(tmp_path / "home")
    with disks.read_only(tmp_path / "home"):
        Store(tmp_path / "home").records.add("https://master", [NewRecord("checkpoint", OTHER_UUID, {"b": 2})])
        fresh = Store(tmp_path / "home")
        assert [seen.data for seen in fresh.records.find("checkpoint")] == [{"b": 2}, {"a": 1}]
        assert fresh.records.registries() == ["https://master", "local"]
        fresh.close()


@pytest.mark.root
def test_damage_in_a_read_only_home_is_not_served(tmp_path: Path) -> None:
    stock(tmp_path / "home")
    damage(Store(tmp_path / "home").layout.blob(Digest.of(LARGE)))
    damage(Store(tmp_path / "home").layout.manifest(manifest_of(FILES).digest))
    with disks.read_only(tmp_path / "home"):
        store = Store(tmp_path / "home")
        assert not store.has(Digest.of(LARGE)) and store.has(Digest.of(b"small"))
        assert store.resolve("local", UUID) is None
        store.close()


# --- places --------------------------------------------------------------------------------------------------------


def test_a_temporary_folder_that_another_user_planted_is_not_used(tmp_path: Path) -> None:
    above = tmp_path / "tmp"
    planted = above / f"cas-{os.geteuid()}"
    planted.mkdir()
    planted.chmod(0o777)
    first = place.temporary("0" * 32, tmp_path)
    assert first is not None and not first.is_relative_to(planted)
    assert first.parent.stat().st_mode & 0o777 == 0o700
    assert place.temporary("0" * 32, tmp_path) == first  # and the other is found again
    shutil.rmtree(planted)
    planted.symlink_to(tmp_path)
    assert place.temporary("0" * 32, tmp_path) == first


def test_two_homes_have_two_places(tmp_path: Path) -> None:
    assert len({place.temporary(id * 32, tmp_path / name) for id in "01" for name in "ab"}) == 4


# --- commands ------------------------------------------------------------------------------------------------------


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    shell = stocked_shell(tmp_path)
    shell.variables["TMPDIR"] = str(tmp_path / "tmp")
    return shell


def test_the_command_seals_and_undoes(shell: Shell) -> None:
    assert "is sealed (3 blobs, 1.0 KiB, 0 of them read)" in shell.run("seal").ok.out
    assert "was sealed already" in shell.run("seal").ok.out
    assert "is sealed; set CAS_HOME" in shell.run("add", "model").line
    folder = Path(shell.run("view", UUIDS[0]).ok.out.strip())
    assert (folder / "common").read_bytes() == b"c" * 1000 and folder.is_relative_to(shell.folder / "tmp")
    assert shell.run("ls").ok.out.count("-4000-8000-") >= 2
    told = json.loads(shell.run("seal", "--json").ok.out)
    assert told["sealed"] and told["was_sealed"] and told["incomplete"] == []
    assert "is open again" in shell.run("seal", "--undo").ok.out
    assert json.loads(shell.run("seal", "--undo", "--json").ok.out)["was_sealed"] is False
    shell.prepare("add", "model")


def test_wrong_words_to_seal_are_one_line(shell: Shell) -> None:
    for words in (("seal", "now"), ("seal", "--undoo"), ("seal", "--home")):
        result = shell.run(*words)
        assert result.code == 2 and result.line
    damage(next((shell.home / "blobs").glob("??/*")))
    result = shell.run("seal")
    assert result.code == 4 and "damaged, and aside now" in result.err


def test_progress_of_sealing_is_on_stderr(shell: Shell) -> None:
    shell.variables["CAS_PROGRESS"] = "on"
    result = shell.run("seal").ok
    assert "sealed" in result.err and "100%" in result.err


def test_share_makes_a_groups_store_and_ends_that(shell: Shell) -> None:
    group = subprocess.run(["id", "-gn"], capture_output=True, text=True, check=True).stdout.strip()
    assert f"the store of the group {group}" in shell.run("share", "--group", group).ok.out
    assert shell.home.stat().st_mode & 0o7777 == 0o3770
    assert all(path.stat().st_mode & 0o2070 == 0o2070 for path in (shell.home / "blobs").iterdir())
    view = Path(shell.run("view", UUIDS[0]).ok.out.strip())
    assert view.is_relative_to(shell.home / "views" / str(os.geteuid()))
    told = json.loads(shell.run("share", "--private", "--json").ok.out)
    assert told["group"] is None and shell.home.stat().st_mode & 0o7777 == 0o700
    shell.prepare("check", "--deep")


def test_wrong_words_to_share_are_one_line(shell: Shell) -> None:
    result = shell.run("share", "--group", "no-such-group")
    assert result.code == 2 and "there is no group 'no-such-group'" in result.line
    for words in (("share", "--group"), ("share", "--group", "root", "--private"), ("share", "x")):
        assert shell.run(*words).code == 2
    shell.prepare("seal")
    assert "is sealed" in shell.run("share").line


# --- views that are forgotten ------------------------------------------------------------------------------------


def test_views_in_a_temporary_folder_go_when_they_were_not_used_for_two_weeks(tmp_path: Path) -> None:
    homes = [tmp_path / name for name in ("home", "other")]
    views = []
    for home in homes:
        stock_and_seal(home)
        views.append(make_view(Store(home), manifest_of(FILES)).path)
    for view in views:
        age(view.parent / "stamp.json", place.UNUSED - 60)
    assert make_view(Store(homes[0]), manifest_of(FILES)).reused  # which is noted
    age(views[1].parent / "stamp.json", place.UNUSED + 60)
    manifest = manifest_of({"small": b"small"})
    make_view(Store(homes[0]), manifest)
    assert views[0].exists() and not views[1].parent.exists()
    assert content(make_view(Store(homes[1]), manifest_of(FILES)).path) == FILES
    for home in homes:
        disk.thaw(home)


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))
