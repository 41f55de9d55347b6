"""A group's store with two real users in one group: what works, and what one can do to the other."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from pathlib import Path

import pytest
from stores import OTHER_UUID, UUID, lies, manifest_of, tagged
from users import ANNA, BOB, TEAM, as_user, start_as_user, wait

from cas.cli import main
from cas.config import Settings, Shared
from cas.errors import CasError, NotAllowedError
from cas.index import disk
from cas.index import prune as prune_module
from cas.index import remove as remove_module
from cas.index.check import check
from cas.index.digest import Digest
from cas.index.prune import PruneReport, Rules, execute, plan_prune
from cas.index.records import NewRecord
from cas.index.remove import execute_remove, plan_remove
from cas.index.stock import Stock, take_stock
from cas.index.store import Store, store_of
from cas.load.views import LinkMode, find_view, make_view

pytestmark = [pytest.mark.slow, pytest.mark.root]

LARGE = bytes(range(256)) * 40
FILES = {"model": LARGE, "folder/small": b"small", "empty": b""}
MODEL = Digest.of(LARGE)


@pytest.fixture
def home(open_folder: Path) -> Path:
    """A group's store that Anna made, below a folder of the group, with one checkpoint of hers."""
    teams = open_folder / "team"
    teams.mkdir()
    os.chown(teams, 0, TEAM)
    teams.chmod(0o2775)
    anna(lambda: tagged(group_store(teams / "home"), UUID, FILES, durable=True) and None)
    return teams / "home"


def group_store(home: Path) -> Store:
    return store_of(Settings(home=home, shared=Shared.GROUP))


def anna(call, umask: int = 0o077) -> None:
    as_user(ANNA, call, groups=(TEAM,), umask=umask)


def bob(call, umask: int = 0o077) -> None:
    as_user(BOB, call, groups=(TEAM,), umask=umask)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


# --- it works ------------------------------------------------------------------------------------------------


def test_modes_are_the_groups_whatever_the_umask(home: Path) -> None:
    bob(lambda: tagged(Store(home), OTHER_UUID, {"other": b"x" * 5000}, durable=True) and None)
    assert mode(home) == 0o3770 and mode(home / "views") == 0o3770
    for path in home.rglob("*"):
        assert path.lstat().st_gid == TEAM
        if path.is_dir():
            assert mode(path) in (0o2770, 0o2755, 0o3770), path
        elif path.is_relative_to(home / "blobs") or path.is_relative_to(home / "manifests"):
            assert mode(path) == 0o444, path
        else:
            assert mode(path) & 0o440 == 0o440 and not mode(path) & 0o022, path


def test_a_private_store_is_private_whatever_the_umask(open_folder: Path) -> None:
    def make() -> None:
        Store(open_folder / "mine").put(b"x")

    as_user(ANNA, make, umask=0)
    assert mode(open_folder / "mine") == 0o700


def test_members_add_to_one_store_and_use_what_others_brought(home: Path) -> None:
    def read_and_add() -> None:
        store = Store(home)
        manifest = store.resolve("local", UUID)
        assert manifest is not None and store.absent(manifest) == []
        view = make_view(store, manifest)
        assert content(view.path) == FILES
        assert view.mode is LinkMode.SYMLINK  # fs.protected_hardlinks
        assert os.readlink(view.path / "model").startswith("../")
        store.records.add("local", [NewRecord("checkpoint", OTHER_UUID, {"whose": "Bob's"})])
        tagged(store, OTHER_UUID, {"model": LARGE, "new": b"n" * 5000})

    def look() -> None:
        store = Store(home)
        manifest = store.resolve("local", OTHER_UUID)
        assert manifest is not None and content(make_view(store, manifest).path)["new"] == b"n" * 5000
        seen = store.records.get("local", "checkpoint", OTHER_UUID)
        assert seen is not None and seen.data == {"whose": "Bob's"}
        assert check(store, deep=True).damage == ()

    if Path("/proc/sys/fs/protected_hardlinks").read_text().strip() != "1":
        pytest.skip("fs.protected_hardlinks is off")
    bob(read_and_add)
    anna(look)


def test_a_colleagues_blob_is_hashed_once_and_then_believed(home: Path) -> None:
    def first() -> None:
        store = Store(home)
        assert store.has(MODEL) and store.blobs.hashed == 1

    def second() -> None:
        store = Store(home)
        assert store.has(MODEL) and store.blobs.hashed == 0

    bob(first)
    bob(second)


def test_views_are_everybodys_own_and_used_again(home: Path) -> None:
    def view() -> None:
        store = Store(home)
        manifest = store.resolve("local", UUID)
        assert manifest is not None
        made = make_view(store, manifest)
        again = make_view(Store(home), manifest)
        assert again.reused and again.path == made.path
        assert made.path.parent.parent.name == str(os.geteuid())

    anna(view)
    bob(view)
    assert {path.name for path in (home / "views").iterdir()} == {str(ANNA), str(BOB), "CACHEDIR.TAG"}


def test_one_member_removes_what_another_brought(home: Path) -> None:
    def remove() -> None:
        store = Store(home)
        execute_remove(store, plan_remove(store, UUID))
        assert not list(home.glob("blobs/??/*"))

    bob(remove)
    anna(lambda: tagged(Store(home), UUID, FILES) and None)


def test_the_index_of_a_groups_store_lies_where_no_colleague_can_write(home: Path) -> None:
    bob(lambda: Store(home).has(MODEL) and None)
    assert not list(home.glob("index-*"))


# --- pruning what another brought -----------------------------------------------------------------------------


def prune_all(home: Path) -> PruneReport:
    """Prune everything that may go; others may be at work."""
    store, rules = Store(home), Rules(max_size=0)
    plan = plan_prune(take_stock(store, lambda uuid: False), rules)
    return execute(store, plan, lambda uuid: False)


@pytest.fixture
def no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prune_module, "GRACE", 0.0)
    monkeypatch.setattr(remove_module, "GRACE", 0.0)


def test_a_member_prunes_what_another_brought(home: Path, no_grace: None) -> None:
    def prune() -> None:
        assert prune_all(home).gone == (UUID,)
        report = prune_all(home)  # what was put aside is deleted
        assert report.closed == () and not list(home.glob("blobs/??/*")) and not list(home.glob("refs/*/*/*"))

    bob(prune)
    anna(lambda: tagged(Store(home), UUID, FILES) and None)
    assert lies(home) == []


def test_what_a_member_uses_stays_when_another_prunes(home: Path, open_folder: Path, no_grace: None) -> None:
    """Anna's lease, and then her view, are honoured; when she has ended it goes."""
    (open_folder / "signs").mkdir(mode=0o777)
    (open_folder / "signs").chmod(0o777)

    def use() -> None:
        store = Store(home)
        manifest = store.resolve("local", UUID)
        assert manifest is not None
        with store.leases.claim(UUID):
            sign(open_folder, "claimed")
            await_sign(open_folder, "pruned")
            view = make_view(store, manifest)
            assert content(view.path) == FILES

    def prune() -> None:
        await_sign(open_folder, "claimed")
        (stays,) = [one for one in plan_prune(stock_of(home), Rules(max_size=0)).staying if one.uuid == UUID]
        assert "in use by" in stays.reason
        report = prune_all(home)
        sign(open_folder, "pruned")
        assert report.gone == () and len(list(home.glob("blobs/??/*"))) == 3

    pids = [start_as_user(uid, call, groups=(TEAM,), umask=0o077) for uid, call in ((ANNA, use), (BOB, prune))]
    assert [wait(pid) for pid in pids] == [0, 0]
    assert lies(home) == []


def stock_of(home: Path) -> Stock:
    return take_stock(Store(home), lambda uuid: False)


def sign(folder: Path, name: str) -> None:
    (folder / "signs" / name).touch()


def await_sign(folder: Path, name: str) -> None:
    end = time.monotonic() + 60
    while not (folder / "signs" / name).exists():
        assert time.monotonic() < end, f"nobody gave the sign {name!r}"
        time.sleep(0.01)


@pytest.mark.parametrize("program", ["prune", "rm"])
def test_files_that_a_member_closed_are_named_and_the_rest_goes(
    program: str, home: Path, no_grace: None, capfd: pytest.CaptureFixture[str]
) -> None:
    """Exit code 8, nothing broken; their owner can remove them, and a download brings the checkpoint again."""
    place = Store(home).layout.blob(MODEL)

    def close() -> None:
        place.parent.chmod(0o2755)

    def act() -> None:
        words = ["rm", UUID, "--yes"] if program == "rm" else ["prune", UUID, "--yes"]
        assert main.run([*words, "--home", str(home)], "cas") == NotAllowedError.exit_code
        assert place.exists() and Store(home).refs.registries(UUID) == []
        assert main.run(["prune", "--home", str(home)], "cas") == NotAllowedError.exit_code  # again, and no worse
        assert [path for path in home.glob("blobs/??/*") if path != place] == []
        assert check(Store(home), deep=True).damage == ()

    def remove_own() -> None:
        report = prune_all(home)
        report = prune_all(home)
        assert report.closed == () and not place.exists()
        tagged(Store(home), UUID, FILES)

    anna(close)
    bob(act)
    told = capfd.readouterr()
    assert told.err.count(f"{place} stays: another user closed its folder, and can remove it") == 2
    assert "Traceback" not in told.err
    anna(remove_own)
    assert lies(home) == []


def test_a_checkpoint_whose_refs_a_member_closed_stays_whole(home: Path, no_grace: None) -> None:
    def close() -> None:
        Store(home).layout.refs("local", UUID).chmod(0o2755)

    def prune() -> None:
        report = prune_all(home)
        (stayed,) = report.stayed
        assert report.gone == () and stayed.uuid == UUID
        assert "is another user's, who alone can remove it" in stayed.reason
        store = Store(home)
        assert report.closed == (store.layout.refs("local", UUID),)
        with pytest.raises(NotAllowedError, match=f"cannot remove checkpoint {UUID}: Permission denied"):
            execute_remove(store, plan_remove(store, UUID))

    def look() -> None:
        store = Store(home)
        manifest = store.resolve("local", UUID)
        assert manifest is not None and content(make_view(store, manifest).path) == FILES

    anna(close)
    bob(prune)
    anna(look)


# --- what one can do to the other ------------------------------------------------------------------------------


def replace_blob(home: Path, make) -> None:
    path = Store(home).layout.blob(MODEL)
    path.rename(path.with_name("gone"))
    make(path)


def rewritten(path: Path) -> None:
    path.write_bytes(b"evil" * (len(LARGE) // 4))
    path.chmod(0o444)


HOSTILE = {
    "wrong bytes": rewritten,
    "a closed file": lambda path: (path.write_bytes(LARGE), path.chmod(0o600)),
    "a link to outside": lambda path: path.symlink_to("/etc/passwd"),
    "a link to what never ends": lambda path: path.symlink_to("/dev/zero"),
    "a pipe": os.mkfifo,
    "a huge file": lambda path: (path.touch(), os.truncate(path, 1 << 42), path.chmod(0o444)),
    "a folder": lambda path: (path.mkdir(), (path / "x").touch()),
}


@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_members_wrong_blob_is_found_before_use_and_replaced(make, home: Path) -> None:
    def heal() -> None:
        store = Store(home)
        manifest = store.resolve("local", UUID)
        assert manifest is not None
        with pytest.raises(CasError, match="not in the store"):
            make_view(store, manifest)
        assert store.put(LARGE) == MODEL
        assert content(make_view(store, manifest).path) == FILES

    bob(lambda: replace_blob(home, make))
    anna(heal)


def test_a_member_who_hides_a_later_write_is_found_out(home: Path) -> None:
    """The owner of a file can set its size and times back, but not the time of its last change."""

    def bring() -> None:
        Store(home).put(b"b" * 10000)

    def use() -> None:
        store = Store(home)
        manifest = manifest_of({"b": b"b" * 10000})
        store.tag("local", OTHER_UUID, manifest)
        make_view(store, manifest)

    def rewrite() -> None:
        path = Store(home).layout.blob(Digest.of(b"b" * 10000))
        before = path.stat()
        path.chmod(0o644)
        with open(path, "r+b") as file:
            file.write(b"evil")
        path.chmod(0o444)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    def look() -> None:
        store = Store(home)
        manifest = manifest_of({"b": b"b" * 10000})
        assert find_view(store, manifest.digest) is None
        with pytest.raises(CasError, match="not in the store"):
            make_view(store, manifest)

    bob(bring)
    anna(use)
    bob(rewrite)
    anna(look)


def test_a_members_facts_prove_nothing_to_others(home: Path) -> None:
    def lie() -> None:
        store = Store(home)
        path = store.layout.blob(MODEL)
        path.unlink()
        rewritten(path)
        stat = path.stat()
        line = {"kind": "blob", "key": str(MODEL), "size": stat.st_size, "mtime": stat.st_mtime_ns}
        store.facts.add([{**line, "inode": stat.st_ino, "boot": disk.boot_id(), "sealed": True, "at": 1}])
        assert Store(home).has(MODEL)  # Bob is free to fool himself

    bob(lie)
    anna(lambda: _is_not_here(home))


def _is_not_here(home: Path) -> None:
    assert not Store(home).has(MODEL)


def test_a_members_ref_does_not_change_what_we_brought(home: Path) -> None:
    def add_code() -> None:
        store = Store(home)
        evil = manifest_of({"model": b"evil", "code/model_def.py": b"evil"}, store)
        store.tag("local", UUID, evil)
        resolved = store.resolve("local", UUID)
        assert resolved is not None and "code/model_def.py" in resolved.by_path  # he brought that himself

    def look() -> None:
        manifest = Store(home).resolve("local", UUID)
        assert manifest == manifest_of(FILES)

    bob(add_code)
    anna(look)


def test_a_members_damaged_manifest_is_not_read(home: Path) -> None:
    def spoil() -> None:
        path = Store(home).layout.manifest(manifest_of(FILES).digest)
        path.rename(path.with_suffix(".old"))
        os.mkfifo(path)

    def look() -> None:
        store = Store(home)
        assert store.resolve("local", UUID) is None
        tagged(store, UUID, FILES)
        assert store.resolve("local", UUID) == manifest_of(FILES)

    bob(spoil)
    anna(look)


def test_a_member_cannot_slip_a_view_under_another(home: Path) -> None:
    def plant() -> None:
        views = home / "views"
        (views / str(ANNA)).mkdir(mode=0o777)
        (views / str(ANNA)).chmod(0o777)
        with pytest.raises(PermissionError):
            views.rename(home / "views.old")
        with pytest.raises(PermissionError):
            (home / "blobs").rename(home / "blobs.old")

    def use() -> None:
        store = Store(home)
        view = make_view(store, manifest_of(FILES))
        assert content(view.path) == FILES
        assert not view.path.is_relative_to(home)
        assert make_view(Store(home), manifest_of(FILES)).reused

    def touch_annas() -> None:
        with pytest.raises(PermissionError):
            (home / "views" / str(ANNA)).rename(home / "views" / "x")

    os.rmdir(home / "views" / str(ANNA))
    bob(plant)
    anna(use)
    os.rmdir(home / "views" / str(ANNA))
    anna(lambda: make_view(Store(home), manifest_of(FILES)) and None)
    bob(touch_annas)


def test_links_planted_in_the_store_lead_nobody_outside(home: Path, open_folder: Path) -> None:
    """What Anna's process cleans up is hers, whatever a colleague put in its place."""
    precious = open_folder / "anna"

    def make_precious() -> None:
        (precious / ("0" * 16)).mkdir(parents=True)
        (precious / "thesis").mkdir()
        (precious / "thesis" / "text").write_text("years")
        os.utime(precious / "thesis", (0, 0))
        (precious / "profile").write_text("mine")

    def plant() -> None:
        store = Store(home)
        layout = store.layout
        for key in ("one file", "manifest", "k"):
            folder = layout.ingest(key)
            if folder.exists():
                folder.rename(folder.with_name(f"x{key}"))
            folder.symlink_to(precious)
        mine = layout.facts.name.replace(str(BOB), str(ANNA))
        (home / "facts" / mine).unlink()
        (home / "facts" / mine).symlink_to(precious / "profile")
        (home / "aside" / "view-x").symlink_to(precious)

    def work() -> None:
        store = Store(home)
        with pytest.raises(CasError):
            store.put(b"new" * 5000)  # facts would go through the link
        assert (precious / "profile").read_text() == "mine"
        (home / "facts" / store.layout.facts.name).unlink()
        with pytest.raises(CasError, match="is a symbolic link, and a store has none there"):
            store.put(b"new" * 5000)
        for path in (home / "ingest").iterdir():
            if path.is_symlink():
                path.unlink()
        store.put(b"new" * 5000)
        with store.staging("k"):
            pass
        store.blobs.drop_healed()
        assert (precious / "thesis" / "text").read_text() == "years"
        assert (precious / "profile").read_text() == "mine"

    anna(make_precious)
    bob(plant)
    anna(work)


@pytest.mark.parametrize("where", ["leases/0123456789abcdef", "refs/local", "blobs/00", "manifests/00"])
def test_a_folder_that_is_a_link_is_refused_before_anything_goes_there(
    where: str, home: Path, open_folder: Path
) -> None:
    precious = open_folder / "anna"

    def make_precious() -> None:
        (precious / "thesis").mkdir(parents=True)
        (precious / "thesis" / ("f" * 62)).write_text("years")

    def plant() -> None:
        Store(home)
        place = home / where
        if place.is_dir():
            place.rename(home / "ingest" / "moved")
        place.parent.mkdir(exist_ok=True)
        place.symlink_to(precious)

    def work() -> None:
        with pytest.raises(CasError, match="is a symbolic link"):
            Store(home)
        assert (precious / "thesis" / ("f" * 62)).read_text() == "years"

    anna(make_precious)
    bob(plant)
    anna(work)


@pytest.mark.parametrize("act", ["put", "tag", "remove", "put aside", "note", "empty"])
def test_a_link_that_is_planted_while_the_store_is_open_leads_nobody_outside(
    act: str, home: Path, open_folder: Path
) -> None:
    """Anna's process has looked at the store when Bob plants the link: it writes and removes nothing behind it."""
    precious, new = open_folder / "anna", b"new" * 5000
    (open_folder / "signs").mkdir(mode=0o777)
    (open_folder / "signs").chmod(0o777)
    layout = Store(home).layout
    where = {
        "put": layout.blob(Digest.of(new)).parent,
        "tag": home / "refs" / "local",
        "remove": layout.blob(MODEL).parent,
        "put aside": layout.blob(MODEL).parent,
        "note": home / "records" / "local",
        "empty": home / "ingest" / "0123456789abcdef",
    }[act]

    def make_precious() -> None:
        precious.mkdir(mode=0o755)
        for name in (MODEL.hex[2:], UUID):
            (precious / name).write_text("years")

    def work() -> None:
        store = Store(home)
        manifest = store.resolve("local", UUID)
        assert manifest is not None and store.has(MODEL)
        planned = plan_remove(store, UUID)
        sign(open_folder, "opened")
        await_sign(open_folder, "planted")
        before = {path: (path.read_text(), path.stat().st_mtime_ns) for path in precious.iterdir()}
        with contextlib.suppress(CasError, OSError):
            if act == "put":
                store.put(new)
            elif act == "tag":
                store.tag("local", OTHER_UUID, manifest)
            elif act == "remove":
                execute_remove(store, planned)
            elif act == "put aside":
                store.blobs.put_aside(MODEL)
            elif act == "note":
                store.records.add("local", [NewRecord("checkpoint", UUID, {"a": 1})])
            else:
                disk.remove_tree(where / "thesis")
        assert before == {path: (path.read_text(), path.stat().st_mtime_ns) for path in precious.iterdir()}
        assert len(before) == 2 + (act == "empty")

    def plant() -> None:
        await_sign(open_folder, "opened")
        if where.exists():
            where.rename(home / "ingest" / "moved")
        where.parent.mkdir(exist_ok=True)
        where.symlink_to(precious)
        sign(open_folder, "planted")

    anna(make_precious)
    if act == "empty":
        anna(lambda: (precious / "thesis").write_text("years") and None)
    pids = [start_as_user(uid, call, groups=(TEAM,), umask=0o077) for uid, call in ((ANNA, work), (BOB, plant))]
    assert [wait(pid) for pid in pids] == [0, 0]


def test_a_step_through_a_planted_link_says_what_is_wrong(home: Path, open_folder: Path) -> None:
    """Every step that changes the disk by a path refuses to go through it, in one clear line."""
    (open_folder / "elsewhere").mkdir(mode=0o777)
    (open_folder / "elsewhere").chmod(0o777)

    def work() -> None:
        store = Store(home)
        (home / "blobs" / "zz").symlink_to(open_folder / "elsewhere")
        inside, outside = home / "blobs" / "zz" / "x", store.layout.aside("x")
        disk.make_folder(outside.parent)
        os.close(disk.create(outside))
        for step in (
            lambda: disk.create(inside),
            lambda: disk.open_append(inside),
            lambda: disk.make_folder(inside),
            lambda: disk.make_folder(inside.parent),
            lambda: disk.link(outside, inside),
            lambda: disk.rename(outside, inside),
            lambda: disk.rename(inside, outside),
            lambda: disk.symlink("x", inside),
            lambda: disk.unlink(inside),
            lambda: disk.remove_folder(inside),
            lambda: disk.remove_tree(inside),
            lambda: disk.set_time(inside, 0),
            lambda: disk.touch(inside),
            lambda: disk.change_mode(inside, 0o600),
            lambda: disk.sync_folder(inside),
        ):
            with pytest.raises(PermissionError, match="is a symbolic link, and a store has none there") as caught:
                step()
            assert str(home / "blobs" / "zz") in str(caught.value)
        assert list((open_folder / "elsewhere").iterdir()) == [] and outside.exists()
        with pytest.raises(FileNotFoundError) as missing:
            disk.rename(home / "blobs" / "no", home / "blobs" / "new")
        assert (missing.value.filename, missing.value.filename2) == (f"{home}/blobs/no", f"{home}/blobs/new")

    anna(work)


def test_pipes_and_links_among_records_keep_nobody_waiting(home: Path) -> None:
    def plant() -> None:
        folder = home / "records" / "local"
        folder.mkdir()
        folder.chmod(0o2770)
        os.mkfifo(folder / "a.1.jsonl")
        (folder / "b.1.jsonl").symlink_to("/dev/zero")
        (folder / "c.1.jsonl").write_bytes(b"\0" * 1000)
        os.mkfifo(home / "facts" / f"x.{ANNA}.jsonl")

    def look() -> None:
        store = Store(home)
        assert store.records.find("checkpoint") == []
        store.records.add("local", [NewRecord("checkpoint", UUID, {"a": 1})])
        assert len(store.records.find("checkpoint")) == 1

    bob(plant)
    anna(look)


def test_a_folder_that_a_member_closed_is_one_clear_line(home: Path) -> None:
    def close() -> None:
        folder = Store(home).layout.blob(MODEL).parent
        folder.rename(folder.with_name("zz"))
        folder.mkdir(mode=0o700)

    def look() -> None:
        store = Store(home)
        assert not store.has(MODEL)
        with pytest.raises(CasError, match="Permission denied") as caught:
            store.put(LARGE)
        assert "\n" not in str(caught.value)

    bob(close)
    anna(look)


def test_ranges_of_a_members_transfer_are_not_taken_over(home: Path) -> None:
    """XXH3 is no proof against somebody who writes both the bytes and the journal."""

    def leave() -> None:
        staging = Store(home).staging("transfer")
        ingest = staging.ingest(len(LARGE), source="origin")
        ingest.write_at(0, b"evil" * (len(LARGE) // 4))
        ingest.leave()
        os._exit(0)

    def resume() -> None:
        with Store(home).staging("transfer") as staging, staging.ingest(len(LARGE), source="origin") as ingest:
            assert ingest.written == 0
            ingest.write_at(0, LARGE)
            assert ingest.commit(MODEL) == MODEL

    bob(leave)
    anna(resume)
