"""Downloads past the store: the same checks, the same rules, the same resuming, and nothing in the store."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest
from disks import fill, tmpfs
from kills import complete, count_steps, each_kill
from stores import UUID, lies, run_python

from cas.checkpoint import Checkpoint
from cas.config import Progress, Settings
from cas.errors import CheckpointNotFoundError, ForeignContentError, NoSpaceError, UsageError
from cas.index import disk
from cas.index.digest import Digest
from cas.index.store import Store
from cas.registry.records import CheckpointRecord

BIG = random.Random(1).randbytes(9 << 20)
FILES = {"model": BIG, "code/a.py": b"a = 1\n", "again": b"a = 1\n", "empty": b""}


@pytest.fixture
def base(memory: Path) -> Path:
    made(memory / "origin" / UUID, FILES)
    return memory


def made(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
        os.utime(folder / name, (10**9, 10**9))
    (folder / "void").mkdir(exist_ok=True)
    return folder


def checkpoint(base: Path, home: Path | None = None, **changes: object) -> Checkpoint:
    storage = {"type": "shared_fs", "host_path": str(base / "origin")}
    record = CheckpointRecord(registry="http://m", uuid=UUID, experiment_config={"checkpoint_storage": storage})
    options = {"home": home or base / "home", "progress": Progress.OFF, "concurrency": 2, **changes}
    settings = Settings(**options)  # type: ignore[arg-type]
    return Checkpoint(record, settings=settings)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def is_right(folder: Path) -> bool:
    found = content(folder)
    found.pop("metadata.json", None)
    return found == FILES and (folder / "void").is_dir()


def holds_nothing(home: Path) -> bool:
    return not any(home.glob("blobs/??/*")) and not any(home.glob("refs/*/*")) and not any(home.glob("manifests/??/*"))


def test_nothing_is_left_in_the_store_or_beside_the_target(base: Path) -> None:
    one = checkpoint(base)
    assert one.download(base / "got", store=False) == str(base / "got")
    assert is_right(base / "got") and holds_nothing(base / "home")
    assert sorted(path.name for path in base.iterdir()) == ["got", "home", "origin"]
    assert one.link_report is not None and one.link_report.moved == 3  # equal files are not one file
    assert (base / "got/again").stat().st_ino != (base / "got/code/a.py").stat().st_ino
    assert one.pull_report is not None and one.pull_report.proofs["model"] == "length only"
    assert {path.stat().st_nlink for path in (base / "got").rglob("*") if path.is_file()} == {1}


def test_the_files_are_the_users_own(base: Path) -> None:
    before = os.umask(0o027)
    try:
        checkpoint(base).download(base / "got", store=False)
    finally:
        os.umask(before)
    assert (base / "got/model").stat().st_mode & 0o777 == 0o640
    assert (base / "got").stat().st_mode & 0o777 == 0o750


def test_a_second_download_fetches_nothing(base: Path) -> None:
    checkpoint(base).download(base / "got", store=False)
    again = checkpoint(base)
    again.download(base / "got", store=False)
    assert again.pull_report is None and again.link_report is not None
    assert again.link_report.kept == len(FILES)
    made(base / "origin" / UUID, {"model": b"new"})
    with pytest.raises(ForeignContentError):  # the origin changed: what is there is the user's
        checkpoint(base).download(base / "got", store=False)
    assert is_right(base / "got")


def test_what_the_store_has_is_used_and_no_more_comes_into_it(base: Path) -> None:
    checkpoint(base).view()
    store = Store(base / "home")
    blob = store.layout.blob(Digest.of(BIG))
    shutil.rmtree(
        base / "home" / "views", onerror=lambda call, path, _: (os.chmod(os.path.dirname(path), 0o700), call(path))
    )
    blob.unlink()
    one = checkpoint(base)
    one.download(base / "got", store=False)
    assert is_right(base / "got")
    assert one.pull_report is not None and one.pull_report.files_fetched == 1
    assert not blob.exists()


def test_a_checkpoint_that_is_in_the_store_is_placed_from_there(base: Path) -> None:
    checkpoint(base).view()
    shutil.rmtree(base / "origin")
    one = checkpoint(base)
    one.download(base / "got", store=False)
    assert is_right(base / "got") and one.pull_report is None


def test_foreign_content_is_refused_and_left(base: Path) -> None:
    (base / "got").mkdir()
    (base / "got/model").write_bytes(b"mine")
    (base / "got/notes").write_bytes(b"mine too")
    with pytest.raises(ForeignContentError, match="has other content"):
        checkpoint(base).download(base / "got", store=False)
    assert content(base / "got") == {"model": b"mine", "notes": b"mine too"}
    (base / "got/model").unlink()
    checkpoint(base).download(base / "got", store=False)
    assert content(base / "got")["notes"] == b"mine too" and content(base / "got")["model"] == BIG
    assert not list((base / "got").glob(".*"))


def test_links_into_the_store_make_no_sense(base: Path) -> None:
    for link in ("hardlink", "symlink", "reflink"):
        with pytest.raises(UsageError, match="leaves nothing"):
            checkpoint(base).download(base / "got", link=link, store=False)
    assert not (base / "got").exists()


def test_what_has_no_origin_is_one_clear_error(base: Path) -> None:
    shutil.rmtree(base / "origin")
    with pytest.raises(CheckpointNotFoundError):
        checkpoint(base).download(base / "got", store=False)
    nowhere = Checkpoint(CheckpointRecord(registry="local", uuid=UUID), settings=checkpoint(base).settings)
    with pytest.raises(CheckpointNotFoundError, match="is not in the store"):
        nowhere.download(base / "got", store=False)
    assert sorted(path.name for path in base.iterdir()) == ["home"]


@pytest.mark.root
def test_a_home_with_a_small_quota_is_enough(base: Path) -> None:
    with tmpfs(base / "small", "size=1m") as point:
        with pytest.raises(NoSpaceError):
            checkpoint(base, point / "home").download(base / "got")
        checkpoint(base, point / "home").download(base / "got", store=False)
        fill(point)
        checkpoint(base, point / "home").download(base / "more", store=False)
    assert is_right(base / "got") and is_right(base / "more")


@pytest.mark.root
def test_a_full_target_disk_is_one_clear_line_and_it_goes_on(base: Path) -> None:
    with tmpfs(base / "small", "size=12m") as point:
        ballast = fill(point, leaving=(9 << 20) - 100_000)
        with pytest.raises(NoSpaceError, match="are missing"):
            checkpoint(base).download(point / "got", store=False)
        with pytest.raises(NoSpaceError, match="the disk is full") as caught:
            checkpoint(base, check_space=False, concurrency=1).download(point / "got", store=False)
        assert "\n" not in str(caught.value) and not (point / "got").exists()
        ballast.unlink()
        one = checkpoint(base)
        one.download(point / "got", store=False)
        assert one.pull_report is not None and one.pull_report.bytes_resumed > 0
        assert is_right(point / "got") and sorted(path.name for path in point.iterdir()) == ["got"]


@pytest.mark.slow
@pytest.mark.parametrize("exists", [False, True])
def test_killed_downloads_go_on_and_nothing_appears_half(base: Path, exists: bool) -> None:
    def setup(folder: Path) -> None:
        folder.mkdir(parents=True)
        if exists:
            (folder / "got").mkdir()
            (folder / "got" / "notes").write_bytes(b"mine")

    def act(folder: Path) -> None:
        checkpoint(base, folder / "home").download(folder / "got", store=False)

    count = 0
    for kill, folder in each_kill(base / "folders", setup, act, at_most=24):
        if (folder / "got").exists():
            there = content(folder / "got")
            assert all(there.get(name) in (None, data) for name, data in FILES.items()), kill
            assert exists or is_right(folder / "got"), kill
        complete(folder, act)
        got = content(folder / "got")
        assert {name: got[name] for name in FILES} == FILES, kill
        assert not exists or got["notes"] == b"mine"
        assert holds_nothing(folder / "home") and lies(folder / "home") == [], kill
        assert list(folder.rglob("*.cas-download")) == [], kill
        count += 1
    assert count > 12


@pytest.mark.slow
def test_a_killed_download_does_not_fetch_again_what_was_whole(base: Path) -> None:
    def act(folder: Path) -> None:
        checkpoint(base, folder / "home").download(folder / "got", store=False)

    steps = count_steps(base / "counted", lambda folder: folder.mkdir(parents=True), act)
    placed = steps.index("link", steps.index("link") + 1)
    resumed = 0
    for kill, folder in each_kill(base / "folders", lambda folder: folder.mkdir(parents=True), act, at_most=24):
        if kill.number <= placed or (folder / "got").exists() or not any(folder.glob(".got.cas-download/blobs/??/*")):
            continue
        one = checkpoint(base, folder / "home")
        one.download(folder / "got", store=False)
        fetched = one.pull_report.bytes_fetched if one.pull_report is not None else 0
        resumed += fetched < len(BIG)
    assert resumed > 1


@pytest.mark.slow
def test_two_processes_at_once(base: Path) -> None:
    code = """
import sys; from pathlib import Path; from test_unstored import checkpoint, is_right
base = Path(sys.argv[1]); checkpoint(base).download(base / "got", store=False); print(is_right(base / "got"))
"""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(3) as pool:
        assert [out.strip() for out in pool.map(lambda _: run_python(code, base), range(3))] == ["True"] * 3
    assert holds_nothing(base / "home")
    assert not list(base.glob(".got*"))
    assert disk.names(base / "got") == sorted({"model", "code", "again", "empty", "void", "metadata.json"})


@pytest.mark.slow
def test_the_command_says_what_went_where(base: Path) -> None:
    from cli import Shell

    from cas.registry.remembering import remember

    shell = Shell(base)
    one = checkpoint(base, shell.home)
    remember(one.store, "http://m", [one.record])
    ended = shell.run("checkpoint", "download", UUID, "-o", "got", "--no-store").ok
    assert ended.out.startswith("Local checkpoint path:\ngot\n")
    assert "files: 3 moved, 1 " in ended.line and "9.0 MiB fetched in " in ended.line
    assert is_right(base / "got") and holds_nothing(shell.home)
    refused = shell.run("checkpoint", "download", UUID, "-o", "more", "--no-store", "--link", "hardlink")
    assert refused.code == 2 and "leaves nothing" in refused.line


def test_some_files_only(base: Path) -> None:
    one = checkpoint(base).only(include=["code/", "empty"])
    one.download(base / "got", store=False)
    assert content(base / "got").keys() - {"metadata.json"} == {"code/a.py", "empty"}
    again = checkpoint(base).only(include=["code/", "empty"])
    again.download(base / "got", store=False)
    assert again.pull_report is None
