"""The whole way: add, find, bring, download, view, remove, over real files and real processes."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import uuid as uuids
from collections.abc import Callable
from pathlib import Path

import pytest
from stores import UUID, damage, lies, run_python

from cas.actions.adding import add
from cas.checkpoint import Checkpoint
from cas.config import Link, Settings
from cas.errors import (
    CasError,
    CheckpointNotFoundError,
    ForeignContentError,
    NotFoundError,
    OfflineError,
    ProtectedError,
    UnsafeNameError,
    UsageError,
)
from cas.index import disk
from cas.index.check import check
from cas.index.digest import Digest
from cas.index.store import open_store
from cas.load.views import SMALL
from cas.registry.records import CheckpointRecord, State
from cas.removing import remove

FILES = {
    "state_dict.pth": os.urandom(3 << 20),
    "code/model_def.py": b"x = 1\n",
    "code/__init__.py": b"",
    "with space and ünïcode.txt": b"hello",
    "deep/er/weights.bin": os.urandom(70_000),
}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.load(home=tmp_path / "home")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint's files as a user has them, with an empty folder."""
    return write(tmp_path / "mine", FILES)


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    """A shared folder in which a cluster left the checkpoint."""
    write(tmp_path / "shared" / UUID, FILES)
    return tmp_path / "shared"


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / "empty").mkdir()
    return folder


def content(folder: Path) -> dict[str, bytes | None]:
    """Everything in a folder: files by their bytes, empty folders by None."""
    found: dict[str, bytes | None] = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file():
            found[name] = path.read_bytes()
        elif not any(path.iterdir()):
            found[name] = None
    return found


def from_shared(settings: Settings, origin: Path, **changes: object) -> Checkpoint:
    """A checkpoint that a master knows, and that lies in a shared folder."""
    storage = {"type": "directory", "container_path": str(origin)}
    known = {"registry": "http://master:8080", "uuid": UUID, "experiment_config": {"checkpoint_storage": storage}}
    return Checkpoint(CheckpointRecord(**{**known, **changes}), settings=settings)  # type: ignore[arg-type]


EXPECTED = {**FILES, "empty": None}


# --- adding ------------------------------------------------------------------------------------------------------


def test_added_folder_is_in_the_store_with_every_name_and_empty_folder(folder: Path, settings: Settings) -> None:
    checkpoint = add(folder, experiment=1, trial=2, steps=300, metrics={"accuracy": 0.9}, settings=settings)
    assert content(checkpoint.view()) == EXPECTED
    assert (checkpoint.experiment_id, checkpoint.trial_id, checkpoint.batch_number) == (1, 2, 300)
    assert checkpoint.resources["deep/er/weights.bin"] == 70_000
    assert checkpoint.resources["empty/"] == 0
    assert not lies(settings.home)


def test_adding_never_links_or_changes_the_users_files(folder: Path, settings: Settings) -> None:
    before = {path: path.stat() for path in folder.rglob("*")}
    checkpoint = add(folder, settings=settings)
    for path, stat in before.items():
        now = path.stat()
        assert (now.st_mtime_ns, now.st_mode, now.st_ino) == (stat.st_mtime_ns, stat.st_mode, stat.st_ino)
        if path.is_file():
            assert now.st_nlink == 1
    (folder / "state_dict.pth").write_bytes(b"trained on")
    assert content(checkpoint.view()) == EXPECTED


def test_same_bytes_are_stored_once(folder: Path, settings: Settings) -> None:
    first = add(folder, settings=settings)
    size = sum(path.stat().st_size for path in settings.home.glob("blobs/??/*"))
    second = add(folder, settings=settings)
    assert first.uuid != second.uuid
    assert sum(path.stat().st_size for path in settings.home.glob("blobs/??/*")) == size


def test_a_single_file_can_be_added(folder: Path, settings: Settings) -> None:
    checkpoint = add(folder / "state_dict.pth", settings=settings)
    assert content(checkpoint.view()) == {"state_dict.pth": FILES["state_dict.pth"]}


def test_the_same_can_be_added_again_and_nothing_else_under_its_uuid(folder: Path, settings: Settings) -> None:
    said = {"experiment": 1, "trial": 2, "steps": 3, "metrics": {"loss": 0.5}}
    assert not add(folder, uuid=UUID, settings=settings, **said).was_here  # type: ignore[arg-type]
    again = add(folder, uuid=UUID.upper(), settings=settings)
    assert again.was_here
    assert again.batch_number == 3
    with pytest.raises(UsageError, match="other metrics"):
        add(folder, uuid=UUID, settings=settings, **{**said, "metrics": {"loss": 0.4}})  # type: ignore[arg-type]
    (folder / "deep/er/weights.bin").write_bytes(b"changed")
    with pytest.raises(UsageError, match=r"other files.*cas rm"):
        add(folder, uuid=UUID, settings=settings)
    remove(UUID, settings=settings)
    assert not add(folder, uuid=UUID, settings=settings).was_here


def test_adding_one_file_does_not_look_at_its_neighbours(folder: Path, settings: Settings) -> None:
    os.mkfifo(folder / "pipe")
    (folder / "a\\b").write_text("x")
    assert list(add(folder / "state_dict.pth", settings=settings).resources) == ["state_dict.pth"]
    with pytest.raises(CasError, match="a pipe"):
        add(folder / "pipe", settings=settings)


def test_an_empty_folder_is_no_checkpoint(tmp_path: Path, settings: Settings) -> None:
    (tmp_path / "nothing" / "here").mkdir(parents=True)
    with pytest.raises(UsageError, match="no files"):
        add(tmp_path / "nothing", settings=settings)


def test_a_home_is_never_made_in_a_folder_that_holds_other_things(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    with pytest.raises(UsageError, match="is no store, and holds other things; set CAS_HOME"):
        open_store(folder)
    assert sorted(folder.rglob("*")) == before


def test_an_error_of_loading_names_the_checkpoint_and_no_view(folder: Path, settings: Settings) -> None:
    (folder / "state_dict.pth").unlink()
    checkpoint = add(folder, settings=settings)
    with pytest.raises(CasError, match=checkpoint.uuid) as raised:
        checkpoint.load()
    assert "views" not in str(raised.value)


def test_a_uuid_is_taken_in_any_form(folder: Path, settings: Settings) -> None:
    assert add(folder, uuid=UUID.replace("-", ""), settings=settings).uuid == UUID
    remove("{" + UUID.upper() + "}", settings=settings)
    assert add(folder, uuid=uuids.UUID(UUID), settings=settings).uuid == UUID  # type: ignore[arg-type]
    for odd in (5, None, "x y"):
        with pytest.raises(UsageError, match="not a checkpoint UUID"):
            remove(odd, settings=settings)  # type: ignore[arg-type]


def test_an_empty_path_is_refused_and_does_not_mean_the_current_folder(
    folder: Path, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = add(folder, settings=settings)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for call in (checkpoint.download, checkpoint.load, checkpoint.load_from_path):
        with pytest.raises(UsageError, match="the path is empty"):
            call("")
    with pytest.raises(UsageError, match="the path is empty"):
        add("", settings=settings)
    assert list(Path.cwd().iterdir()) == []
    assert checkpoint.download(".") == "."


def test_a_url_of_the_store_is_no_path_and_says_how_to_load_it(folder: Path, settings: Settings) -> None:
    uuid = add(folder, settings=settings).uuid
    for end in ("", "/state_dict.pth"):
        with pytest.raises(UsageError, match=rf"Determined\.get_checkpoint\('{uuid}'\)\.load\(\) loads it"):
            Checkpoint.load_from_path(f"cas://{uuid}{end}")


@pytest.mark.parametrize("path", [3, b"checkpoints"])
def test_what_is_no_path_is_refused(folder: Path, settings: Settings, path: object) -> None:
    checkpoint = add(folder, settings=settings)
    for call in (checkpoint.download, checkpoint.load, checkpoint.load_from_path, checkpoint.load_trial_from_path):
        with pytest.raises(UsageError, match="not a path"):
            call(path)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="not a path: None"):
        checkpoint.load_from_path(None)  # type: ignore[arg-type]


def test_a_word_that_is_no_choice_is_a_usage_error_that_lists_them(folder: Path, settings: Settings) -> None:
    checkpoint = add(folder, settings=settings)
    with pytest.raises(UsageError, match="'magic' must be one of auto, reflink"):
        checkpoint.download(link="magic")
    with pytest.raises(UsageError, match="'maybe' must be one of never, scan, always"):
        checkpoint.load(trust="maybe")


def test_a_checkpoint_can_be_sent_to_another_process(folder: Path, settings: Settings, tmp_path: Path) -> None:
    checkpoint = add(folder, settings=settings)
    checkpoint.download(tmp_path / "a")
    received = pickle.loads(pickle.dumps(checkpoint))
    assert (received.record, received.settings) == (checkpoint.record, settings)
    assert content(received.view()) == content(folder)


def test_wrong_arguments_are_refused_before_anything_is_copied(folder: Path, settings: Settings) -> None:
    with pytest.raises(UsageError, match="smaller_is_better"):
        add(folder, experiment=1, trial=1, steps=1, metrics={"a": 1}, searcher_metric="a", settings=settings)
    assert not list(settings.home.glob("blobs/??/*"))


def test_adding_nothing_or_a_pipe_is_one_clear_line(tmp_path: Path, folder: Path, settings: Settings) -> None:
    with pytest.raises(NotFoundError, match="there is no folder or file"):
        add(tmp_path / "nowhere", settings=settings)
    os.mkfifo(folder / "pipe")
    with pytest.raises(CasError, match="pipe"):
        add(folder, settings=settings)


def test_a_link_that_leads_out_of_the_folder_is_refused(folder: Path, settings: Settings) -> None:
    (folder / "secret").symlink_to("/etc/passwd")
    with pytest.raises(UnsafeNameError, match="secret"):
        add(folder, settings=settings)


def test_a_backslash_in_a_name_is_refused(folder: Path, settings: Settings) -> None:
    (folder / "a\\b").write_text("x")
    with pytest.raises(UnsafeNameError, match="backslash"):
        add(folder, settings=settings)


def test_metadata_of_an_added_checkpoint_comes_from_its_own_file(folder: Path, settings: Settings) -> None:
    (folder / "metadata.json").write_text('{"steps_completed": 5}')
    assert add(folder, settings=settings).metadata == {"steps_completed": 5}


# --- downloading --------------------------------------------------------------------------------------------------


def test_download_goes_below_the_current_folder_and_returns_text(
    tmp_path: Path, origin: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint = from_shared(settings, origin, metadata={"steps_completed": 7, "ü": 1})
    path = checkpoint.download()
    assert path == f"checkpoints/{UUID}"
    found = content(tmp_path / path)
    written = found.pop("metadata.json")
    assert written is not None
    assert json.loads(written) == {"steps_completed": 7, "ü": 1}
    assert found == EXPECTED


def test_second_download_does_nothing_and_asks_nobody(origin: Path, tmp_path: Path, settings: Settings) -> None:
    checkpoint = from_shared(settings, origin)
    target = tmp_path / "target"
    checkpoint.download(target)
    shutil.rmtree(origin)
    before = {path: path.stat().st_ino for path in target.rglob("*")}
    checkpoint.download(target)
    assert {path: path.stat().st_ino for path in target.rglob("*")} == before
    assert checkpoint.link_report is not None
    assert checkpoint.link_report.mode is None


def test_a_half_finished_folder_of_the_old_client_is_completed(
    origin: Path, tmp_path: Path, settings: Settings
) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "metadata.json").write_text("{}")  # what made the old client believe that it was whole
    (target / "state_dict.pth").write_bytes(FILES["state_dict.pth"][:1000])
    from_shared(settings, origin).download(target)
    assert content(target) == {**EXPECTED, "metadata.json": b"{}"}


def test_what_the_user_wrote_in_the_target_is_never_replaced(origin: Path, tmp_path: Path, settings: Settings) -> None:
    checkpoint = from_shared(settings, origin)
    target = tmp_path / "target"
    checkpoint.download(target)
    (target / "code/model_def.py").write_text("my changes")
    (target / "notes.txt").write_text("my notes")
    with pytest.raises(ForeignContentError, match=r"model_def\.py"):
        checkpoint.download(target)
    assert (target / "code/model_def.py").read_text() == "my changes"
    (target / "code/model_def.py").unlink()
    checkpoint.download(target)
    assert (target / "code/model_def.py").read_bytes() == FILES["code/model_def.py"]
    assert (target / "notes.txt").read_text() == "my notes"


def test_a_foreign_folder_is_left_alone(origin: Path, tmp_path: Path, settings: Settings) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "state_dict.pth").write_text("another model")
    with pytest.raises(ForeignContentError, match=r"state_dict\.pth"):
        from_shared(settings, origin).download(target)
    assert content(target) == {"state_dict.pth": b"another model"}


@pytest.mark.parametrize("link", [Link.COPY, Link.HARDLINK, Link.SYMLINK, Link.AUTO])
def test_each_way_of_linking_gives_the_same_content(
    origin: Path, tmp_path: Path, settings: Settings, link: Link
) -> None:
    checkpoint = from_shared(settings, origin, metadata={})
    target = tmp_path / "target"
    checkpoint.download(target, link=link)
    assert {name: data for name, data in content(target).items() if name != "metadata.json"} == EXPECTED
    assert not lies(settings.home)


@pytest.mark.parametrize("first", [Link.SYMLINK, Link.HARDLINK])
def test_a_copy_that_is_asked_for_replaces_links_into_the_store(
    origin: Path, tmp_path: Path, settings: Settings, first: Link
) -> None:
    checkpoint = from_shared(settings, origin, metadata={})
    target = tmp_path / "target"
    checkpoint.download(target, link=first)
    checkpoint.download(target, link=Link.COPY)
    assert not any(path.is_symlink() or path.stat().st_nlink > 1 for path in target.rglob("*") if path.is_file())
    remove(UUID, settings=settings)
    assert {name: data for name, data in content(target).items() if name != "metadata.json"} == EXPECTED


def test_an_only_copy_is_never_hard_linked(folder: Path, tmp_path: Path, settings: Settings) -> None:
    checkpoint = add(folder, settings=settings)
    target = tmp_path / "target"
    checkpoint.download(target, link="hardlink")
    (target / "state_dict.pth").write_bytes(b"the user writes here")
    assert content(checkpoint.view()) == EXPECTED


@pytest.mark.parametrize("state", [State.ACTIVE, State.ERROR, State.DELETED])
def test_only_completed_checkpoints_are_downloaded(
    origin: Path, tmp_path: Path, settings: Settings, state: State
) -> None:
    checkpoint = from_shared(settings, origin, state=state)
    for call in (lambda: checkpoint.download(tmp_path / "target"), checkpoint.view, checkpoint.load):
        with pytest.raises(CasError, match=str(state)):
            call()
    assert not (tmp_path / "target").exists()


def test_a_checkpoint_whose_files_are_nowhere_is_one_clear_line(
    tmp_path: Path, origin: Path, settings: Settings
) -> None:
    shutil.rmtree(origin / UUID)
    with pytest.raises(CheckpointNotFoundError):
        from_shared(settings, origin).download(tmp_path / "target")
    with pytest.raises(CheckpointNotFoundError, match="cas add"):
        Checkpoint(CheckpointRecord(registry="local", uuid=UUID), settings=settings).view()


def test_offline_uses_what_is_here_and_says_what_is_not(origin: Path, tmp_path: Path) -> None:
    offline = Settings.load(home=tmp_path / "home", offline=True)
    storage = {"type": "s3", "bucket": "b", "endpoint_url": "http://127.0.0.1:9", "access_key": "a", "secret_key": "b"}
    there = from_shared(offline, origin, experiment_config={"checkpoint_storage": storage})
    with pytest.raises(OfflineError, match="CAS_OFFLINE"):
        there.view()
    from_shared(offline, origin).view()  # a folder needs no network
    assert content(there.view()) == EXPECTED


# --- damage -------------------------------------------------------------------------------------------------------


def blob_of(settings: Settings, data: bytes) -> Path:
    return open_store(settings.home).layout.blob(Digest.of(data))


def wrong(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


def replace(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)


BREAK: dict[str, Callable[[Path], None]] = {
    "flip": damage,
    "cut": lambda path: damage(path, path.read_bytes()[:-1]),
    "empty": lambda path: damage(path, b""),
    "zeros": lambda path: damage(path, bytes(path.stat().st_size)),
    "delete": lambda path: path.unlink(),
    "another file": lambda path: replace(path, b"new inode"),
}


@pytest.mark.parametrize("way", BREAK)
@pytest.mark.parametrize("name", ["state_dict.pth", "code/model_def.py"])
def test_a_damaged_blob_is_never_served_and_healed_from_its_origin(
    origin: Path, tmp_path: Path, settings: Settings, way: str, name: str
) -> None:
    checkpoint = from_shared(settings, origin)
    view = checkpoint.view()
    BREAK[way](blob_of(settings, FILES[name]))
    assert content(checkpoint.view()) == EXPECTED
    assert content(view) == EXPECTED  # views follow
    checkpoint.download(tmp_path / "target")
    assert (tmp_path / "target" / name).read_bytes() == FILES[name]
    assert not lies(settings.home)
    assert not check(open_store(settings.home), deep=True).damage


def test_damage_that_keeps_the_signature_is_found_by_a_deep_check_and_healed(origin: Path, settings: Settings) -> None:
    checkpoint = from_shared(settings, origin)
    checkpoint.view()
    blob = blob_of(settings, FILES["state_dict.pth"])
    stat = blob.stat()
    damage(blob)
    os.utime(blob, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    store = open_store(settings.home)
    assert [problem.digest for problem in check(store, deep=True).damage if problem.kind == "damaged blob"] == [
        Digest.of(FILES["state_dict.pth"])
    ]
    assert content(checkpoint.view()) == EXPECTED
    assert not check(store, deep=True).damage


@pytest.mark.parametrize("way", ["flip", "delete"])
def test_a_damaged_only_copy_is_kept_and_named_and_added_again(folder: Path, settings: Settings, way: str) -> None:
    checkpoint = add(folder, uuid=UUID, settings=settings)
    checkpoint.view()
    BREAK[way](blob_of(settings, FILES["state_dict.pth"]))
    with pytest.raises(CheckpointNotFoundError, match=r"state_dict\.pth"):
        checkpoint.view()
    if way == "flip":
        held = list((settings.home / "aside").iterdir())
        assert [path.read_bytes() for path in held] == [wrong(FILES["state_dict.pth"])]
    add(folder, uuid=UUID, settings=settings)
    assert content(checkpoint.view()) == EXPECTED


def test_a_file_changed_at_the_origin_is_no_longer_what_was_pulled(origin: Path, settings: Settings) -> None:
    checkpoint = from_shared(settings, origin)
    checkpoint.view()
    (origin / UUID / "state_dict.pth").write_bytes(b"replaced at the origin")
    assert content(checkpoint.view()) == EXPECTED  # what was pulled stays what it was


# --- removing -----------------------------------------------------------------------------------------------------


def test_removing_keeps_what_another_checkpoint_needs(folder: Path, tmp_path: Path, settings: Settings) -> None:
    one = add(folder, settings=settings)
    (folder / "state_dict.pth").write_bytes(b"other weights")
    other = add(folder, settings=settings)
    report = remove(one.uuid, settings=settings)
    assert (report.blobs, report.size) == (1, len(FILES["state_dict.pth"]))
    assert content(other.view()) == {**EXPECTED, "state_dict.pth": b"other weights"}
    with pytest.raises(CheckpointNotFoundError):
        one.view()
    with pytest.raises(NotFoundError):
        remove(one.uuid, settings=settings)
    assert not check(open_store(settings.home), deep=True).problems


def test_what_was_removed_is_brought_again_from_its_origin(origin: Path, settings: Settings) -> None:
    checkpoint = from_shared(settings, origin)
    path = checkpoint.view()
    with pytest.raises(ProtectedError, match="in use by"):
        remove(UUID, settings=settings)
    assert content(path) == EXPECTED
    checkpoint.release()
    remove(UUID, settings=settings)
    assert not list(settings.home.glob("blobs/??/*"))
    assert content(checkpoint.view()) == EXPECTED


# --- what is touched ----------------------------------------------------------------------------------------------


def test_a_view_that_is_there_is_enough(folder: Path, settings: Settings) -> None:
    checkpoint = add(folder, uuid=UUID, settings=settings)
    viewed = checkpoint.view()
    digest = checkpoint.store.sole("local", UUID)
    assert digest is not None
    damage(checkpoint.store.layout.manifest(digest))
    fresh = Checkpoint(checkpoint.record, settings=settings)
    assert fresh.view() == viewed  # it is read from the view and from blobs, each looked at
    fresh.release()
    checkpoint.release()
    disk.remove_tree(checkpoint.store.home / "views")
    with pytest.raises(CheckpointNotFoundError):  # the only manifest, without which nobody knows the files
        fresh.view()


def test_a_small_blob_with_other_bytes_is_in_no_view_and_comes_anew(origin: Path, settings: Settings) -> None:
    checkpoint = from_shared(settings, origin)
    viewed = checkpoint.view()
    checkpoint.release()
    disk.remove_tree(settings.home / "views")
    small = [path for path in settings.home.glob("blobs/??/*") if 0 < path.stat().st_size <= SMALL]
    for path in small:  # as rot does it: no stat tells
        before = path.stat()
        damage(path, bytes(before.st_size))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert small
    fresh = Checkpoint(checkpoint.record, settings=settings)
    assert fresh.view() == viewed and content(viewed) == EXPECTED
    assert lies(settings.home) == []


def test_making_a_view_of_what_is_here_says_that_nothing_was_transferred(origin: Path, settings: Settings) -> None:
    checkpoint = from_shared(settings, origin)
    viewed = checkpoint.view()
    assert checkpoint.pull_report is not None
    checkpoint.release()
    disk.remove_tree(settings.home / "views")
    assert checkpoint.view() == viewed and content(viewed) == EXPECTED
    assert checkpoint.pull_report is None


WATCHED = """
import sys
from cas.checkpoint import Checkpoint
from cas.config import Settings
from cas.registry.records import CheckpointRecord

seen = []
checkpoint = Checkpoint(CheckpointRecord(registry="local", uuid=sys.argv[2]), settings=Settings.load(home=sys.argv[1]))
checkpoint.store
sys.addaudithook(lambda event, args: seen.append((event, args)))
checkpoint.view()
opened = [str(args[0]) for event, args in seen if event == "open" and str(args[0]).startswith(sys.argv[1])]
events = {event for event, _ in seen}
print([event for event in events if "sqlite" in event or "fcntl" in event or event.startswith("socket")])
print(sorted({path[len(sys.argv[1]) + 1:].split("/")[0] for path in opened}))
"""


def test_a_known_checkpoint_is_viewed_with_no_index_no_lock_and_no_blob_read(folder: Path, settings: Settings) -> None:
    add(folder, uuid=UUID, settings=settings).view()
    events, opened = run_python(WATCHED, settings.home, UUID).splitlines()
    assert events == "[]"
    assert opened == "['leases', 'views']"  # and the names in `refs`, which are listed
