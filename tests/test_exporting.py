"""Export and import: what one store wrote another one has, whole; and nothing in a file is believed."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from disks import fill, tmpfs
from kills import complete, each_kill
from stores import OTHER_UUID, UUID, damage, lies, manifest_of, tagged, uuid

from cas.actions import exporting, importing
from cas.actions.adding import add
from cas.actions.exporting import export
from cas.actions.importing import import_file
from cas.checkpoint import Checkpoint
from cas.config import Progress, Settings
from cas.errors import (
    CasError,
    CheckpointNotFoundError,
    ContentError,
    DigestMismatchError,
    NoSpaceError,
    NotFoundError,
    UsageError,
)
from cas.index import bundle, lines
from cas.index.bundle import Exported, Head, Writer
from cas.index.check import check
from cas.index.digest import Digest
from cas.index.store import Store
from cas.registry.catalog import Catalog
from cas.registry.records import CheckpointRecord
from cas.registry.remembering import remember
from cas.removing import remove

FILES = {"model": os.urandom(50_000), "code/a.py": b"a = 1\n", "empty": b"", "void/": b""}
OTHER = {"model": FILES["model"], "more": b"more"}


def folder_of(path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            (path / name).mkdir()
        else:
            (path / name).write_bytes(data)
    return path


@pytest.fixture
def here(tmp_path: Path) -> Settings:
    """A store with two checkpoints that were added to it."""
    settings = Settings(home=tmp_path / "here", progress=Progress.OFF)
    said = {"experiment": 1, "trial": 2, "searcher_metric": "loss", "smaller_is_better": True, "settings": settings}
    add(folder_of(tmp_path / "one", FILES), uuid=UUID, steps=100, metrics={"loss": 0.5}, hparams={"lr": 1}, **said)
    add(folder_of(tmp_path / "two", OTHER), uuid=OTHER_UUID, steps=200, metrics={"loss": 0.4}, **said)
    return settings


@pytest.fixture
def there(tmp_path: Path) -> Settings:
    """A store on another host, of which `here` knows nothing."""
    return Settings(home=tmp_path / "there", progress=Progress.OFF)


def store_of(settings: Settings) -> Store:
    return Store(settings.home)


def registry_there(here: Settings) -> str:
    return f"imported:{store_of(here).id[:8]}"


def content(settings: Settings, uuid: str) -> dict[str, bytes]:
    store = store_of(settings)
    record = Catalog(store).checkpoint(uuid)
    view = Checkpoint(record, settings=settings).view()
    found = {str(path.relative_to(view)): path.read_bytes() for path in view.rglob("*") if path.is_file()}
    return found | {
        f"{path.relative_to(view)}/": b"" for path in view.rglob("*") if path.is_dir() and not any(path.iterdir())
    }


# --- there and back --------------------------------------------------------------------------------------------


def test_what_is_exported_is_imported_with_all_that_is_known(here: Settings, there: Settings, tmp_path: Path) -> None:
    report = export([UUID, OTHER_UUID], tmp_path / "x.tar", settings=here)
    assert (report.checkpoints, report.blobs) == (2, 4)
    came = import_file(tmp_path / "x.tar", settings=there)
    assert (came.blobs, came.here, len(came.checkpoints)) == (4, 0, 2)
    assert content(there, UUID) == FILES and content(there, OTHER_UUID) == OTHER
    mine, theirs = (Catalog(store_of(settings)).checkpoint(UUID) for settings in (here, there))
    assert theirs == replace(mine, registry=registry_there(here))
    catalog = Catalog(store_of(there))
    assert catalog.trial(2).experiment_id == 1 and len(catalog.experiment_checkpoints(1)) == 2
    assert check(store_of(there), deep=True).problems == ()


def test_the_same_checkpoints_give_the_same_bytes(here: Settings, tmp_path: Path) -> None:
    export([UUID, OTHER_UUID], tmp_path / "1.tar", settings=here)
    export([OTHER_UUID, UUID, UUID], tmp_path / "2.tar", settings=here)
    assert (tmp_path / "1.tar").read_bytes() == (tmp_path / "2.tar").read_bytes()


def test_tar_reads_it_and_what_it_makes_is_a_home(here: Settings, there: Settings, tmp_path: Path) -> None:
    export([UUID], tmp_path / "x.tar", settings=here)
    names = subprocess.run(["tar", "-tf", tmp_path / "x.tar"], capture_output=True, text=True, check=True).stdout
    assert names.splitlines()[:2] == ["export.json", "format.json"]
    there.home.mkdir()
    subprocess.run(["tar", "-xf", tmp_path / "x.tar", "-C", there.home], check=True)
    assert content(there, UUID) == FILES
    assert Catalog(store_of(there)).checkpoint(UUID).hparams == {"lr": 1}
    assert check(store_of(there), deep=True).damage == ()


def test_import_into_the_same_store_gives_back_what_was_removed(here: Settings, tmp_path: Path) -> None:
    export([UUID], tmp_path / "x.tar", settings=here)
    before = Catalog(store_of(here)).checkpoint(UUID)
    remove(UUID, settings=here)
    import_file(tmp_path / "x.tar", settings=here)
    assert Catalog(store_of(here)).checkpoint(UUID) == before
    assert content(here, UUID) == FILES


def test_what_was_imported_comes_home_as_what_it_was(here: Settings, there: Settings, tmp_path: Path) -> None:
    export([UUID], tmp_path / "x.tar", settings=here)
    import_file(tmp_path / "x.tar", settings=there)
    export([UUID], tmp_path / "y.tar", settings=there)
    remove(UUID, settings=here)
    import_file(tmp_path / "y.tar", settings=here)
    assert Catalog(store_of(here)).checkpoint(UUID).registry == "local"
    third = replace(there, home=tmp_path / "third")
    import_file(tmp_path / "y.tar", settings=third)
    assert Catalog(store_of(third)).checkpoint(UUID).registry == registry_there(here)


def test_ids_of_two_stores_are_not_mixed(here: Settings, there: Settings, tmp_path: Path) -> None:
    add(folder_of(tmp_path / "three", {"x": b"x"}), experiment=1, trial=2, uuid=uuid(7), settings=there)
    export([UUID], tmp_path / "x.tar", settings=here)
    import_file(tmp_path / "x.tar", settings=there)
    local = Catalog(store_of(there), "local")
    assert [record.uuid for record in local.experiment_checkpoints(1)] == [uuid(7)]
    with pytest.raises(UsageError, match="known of several registries"):
        Catalog(store_of(there)).experiment(1)


def test_a_masters_checkpoint_is_fetched_first_and_keeps_its_registry(there: Settings, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "here", progress=Progress.OFF)
    folder_of(tmp_path / "origin" / UUID, {"a": b"a"})
    storage = {"type": "shared_fs", "host_path": str(tmp_path / "origin"), "secret_key": "hush"}
    record = CheckpointRecord(registry="http://m", uuid=UUID, experiment_config={"checkpoint_storage": storage})
    remember(store_of(settings), "http://m", [record])
    export([UUID], tmp_path / "x.tar", settings=settings)
    import_file(tmp_path / "x.tar", settings=there)
    found = Catalog(store_of(there)).checkpoint(UUID)
    assert found.registry == "http://m" and found.experiment_config["checkpoint_storage"]["host_path"]
    assert content(there, UUID) == {"a": b"a"}
    assert b"hush" not in (tmp_path / "x.tar").read_bytes()


def test_a_checkpoint_without_a_record_is_exported_too(there: Settings, tmp_path: Path) -> None:
    store = Store(tmp_path / "here")
    tagged(store, UUID, {"a": b"a"})
    export([UUID], tmp_path / "x.tar", settings=Settings(home=store.home, progress=Progress.OFF))
    assert import_file(tmp_path / "x.tar", settings=there).records == 0
    assert store_of(there).resolve(f"imported:{store.id[:8]}", UUID) is not None


def test_a_long_name_and_a_large_file(there: Settings, tmp_path: Path) -> None:
    registry = "http://" + "m" * 200
    store = Store(tmp_path / "here")
    manifest = manifest_of({"a": b"a"}, store)
    store.tag(registry, UUID, manifest)
    remember(store, registry, [CheckpointRecord(registry=registry, uuid=UUID)])
    export([UUID], tmp_path / "x.tar", settings=Settings(home=store.home, progress=Progress.OFF))
    import_file(tmp_path / "x.tar", settings=there)
    assert Catalog(store_of(there)).checkpoint(UUID).registry == registry


# --- what is refused before anything is written ----------------------------------------------------------------


def test_a_file_that_exists_is_not_replaced(here: Settings, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"mine")
    with pytest.raises(UsageError, match="exists already"):
        export([UUID], tmp_path / "x.tar", settings=here)
    assert (tmp_path / "x.tar").read_bytes() == b"mine"


def test_unknown_checkpoints(here: Settings, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        export([uuid(9)], tmp_path / "x.tar", settings=here)
    with pytest.raises(UsageError, match="say which"):
        export([], tmp_path / "x.tar", settings=here)
    assert not list(tmp_path.glob("*.tar")) and not list(tmp_path.glob(".*"))


def test_a_damaged_blob_is_not_exported_and_nothing_is_left(here: Settings, tmp_path: Path) -> None:
    path = store_of(here).layout.blob(Digest.of(FILES["model"]))
    stat = path.stat()
    damage(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # looks as if nothing had happened
    with pytest.raises(DigestMismatchError):
        export([UUID], tmp_path / "x.tar", settings=here)
    assert not list(tmp_path.glob("*.tar")) and not list(tmp_path.glob(".*"))
    assert not path.exists()
    with pytest.raises(CheckpointNotFoundError):
        export([UUID], tmp_path / "x.tar", settings=here)


@pytest.mark.root
def test_an_export_or_import_that_will_not_fit(here: Settings, there: Settings, tmp_path: Path) -> None:
    add(folder_of(tmp_path / "big", {"x": os.urandom(3 << 20)}), uuid=uuid(3), settings=here)
    with tmpfs(tmp_path / "small", "size=2m") as point:
        with pytest.raises(NoSpaceError, match="are missing"):
            export([uuid(3)], point / "x.tar", settings=here)
        with pytest.raises(NoSpaceError, match="the disk is full"):
            export([uuid(3)], point / "x.tar", settings=here.but(check_space=False))
        assert list(point.iterdir()) == []
        export([uuid(3)], tmp_path / "x.tar", settings=here)
        with pytest.raises(NoSpaceError, match="are missing"):
            import_file(tmp_path / "x.tar", settings=replace(there, home=point / "home"))
        assert not (point / "home" / "blobs").exists()


@pytest.mark.root
def test_a_disk_that_becomes_full_while_importing(here: Settings, tmp_path: Path) -> None:
    export([UUID, OTHER_UUID], tmp_path / "x.tar", settings=here)
    with tmpfs(tmp_path / "small", "size=4m") as point:
        settings = Settings(home=point / "home", progress=Progress.OFF, check_space=False)
        Store(settings.home)
        ballast = fill(point, leaving=30_000)
        with pytest.raises(NoSpaceError):
            import_file(tmp_path / "x.tar", settings=settings)
        assert lies(settings.home) == [] and store_of(settings).resolve(registry_there(here), UUID) is None
        ballast.unlink()
        import_file(tmp_path / "x.tar", settings=settings)
        assert content(settings, UUID) == FILES


def test_no_such_file(there: Settings, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        import_file(tmp_path / "no.tar", settings=there)
    with pytest.raises(UsageError, match="is a folder"):
        import_file(tmp_path, settings=there)


# --- going on --------------------------------------------------------------------------------------------------


def test_an_import_of_a_file_that_ends_early_goes_on(here: Settings, there: Settings, tmp_path: Path) -> None:
    export([UUID, OTHER_UUID], tmp_path / "x.tar", settings=here)
    whole = (tmp_path / "x.tar").read_bytes()
    failed = 0
    for length in range(0, len(whole), 5_000):
        (tmp_path / "cut.tar").write_bytes(whole[:length])
        try:
            import_file(tmp_path / "cut.tar", settings=there)
        except ContentError as error:
            assert "\n" not in str(error) and str(tmp_path / "cut.tar") in str(error)
            failed += 1
        assert not there.home.exists() or lies(there.home) == []
    assert failed > 5
    report = import_file(tmp_path / "x.tar", settings=there)
    assert report.here == 4 and content(there, UUID) == FILES


def test_a_second_import_changes_nothing(here: Settings, there: Settings, tmp_path: Path) -> None:
    export([UUID], tmp_path / "x.tar", settings=here)
    import_file(tmp_path / "x.tar", settings=there)
    records = sorted((path, path.stat().st_size) for path in there.home.glob("records/*/*"))
    again = import_file(tmp_path / "x.tar", settings=there)
    assert (again.blobs, again.here, again.records) == (0, 3, 0)
    assert sorted((path, path.stat().st_size) for path in there.home.glob("records/*/*")) == records


@pytest.mark.slow
def test_imports_killed_anywhere_go_on(tmp_path: Path, memory: Path) -> None:
    """Two checkpoints that share a file, and a blob that was damaged here before."""
    there, shared = Settings(home=tmp_path / "elsewhere", progress=Progress.OFF), b"both" * 2000
    trees = {UUID: {"model": b"first" * 1000, "same": shared}, OTHER_UUID: {"same": shared}}
    for name, files in trees.items():
        add(folder_of(tmp_path / name, files), uuid=name, settings=there)
    export(trees, tmp_path / "x.tar", settings=there)
    registry = registry_there(there)

    def setup(home: Path) -> None:
        store = Store(home)
        store.put(shared)
        damage(store.layout.blob(Digest.of(shared)))
        store.close()

    def act(home: Path) -> None:
        import_file(tmp_path / "x.tar", settings=Settings(home=home, progress=Progress.OFF))

    count = 0
    for kill, home in each_kill(memory / "homes", setup, act, at_most=50):
        wrong = [Digest(path.parent.name + path.name) for path in lies(home)]
        assert wrong in ([], [Digest.of(shared)]), kill  # that which was there before, and nobody is served
        store = Store(home)
        assert all(store.blobs.locate(digest) is None for digest in wrong), kill
        for one in trees:  # no query finds files that did not arrive
            if store.records.registries_with("checkpoint", one):
                manifest = store.resolve(registry, one)
                assert manifest is not None and store.absent(manifest) == [], kill
        store.close()
        complete(home, act)
        store = Store(home)
        for name, files in trees.items():
            manifest = store.resolve(registry, name)
            assert manifest is not None, kill
            found = {str(entry.path): store.blobs.read(entry.digest) for entry in manifest.files if entry.digest}
            assert found == files, kill
        assert check(store, deep=True).damage == (), kill
        store.close()
        count += 1
    assert count > 30


@pytest.mark.slow
def test_killed_exports_leave_no_file_under_the_name(here: Settings, tmp_path: Path) -> None:
    export([UUID], tmp_path / "x.tar", settings=here)
    whole = (tmp_path / "x.tar").read_bytes()

    def act(folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        export([UUID], folder / "x.tar", settings=here)

    for kill, folder in each_kill(tmp_path / "folders", lambda _: None, act):
        found = folder / "x.tar"
        assert not found.exists() or found.read_bytes() == whole, kill


# --- hostile files ---------------------------------------------------------------------------------------------

DATA = b"the bytes"
MANIFEST = manifest_of({"a": DATA})
DIGEST = Digest.of(DATA)
GOOD = Head("0" * 32, (Exported("http://m", UUID, MANIFEST.digest),), 1, len(DATA), {})


class Tar:
    """An export that is made by hand."""

    def __init__(self, path: Path, head: Head = GOOD) -> None:
        self.path = path
        self.tar = tarfile.open(path, "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115
        self.put("export.json", head.encoded)

    def put(self, name: str, data: bytes = b"", **changes: object) -> Tar:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        for key, value in changes.items():
            setattr(info, key, value)
        self.tar.addfile(info, io.BytesIO(data))
        return self

    def manifest(self) -> Tar:
        hex = MANIFEST.digest.hex
        return self.put(f"manifests/{hex[:2]}/{hex[2:]}.json", MANIFEST.encoded)

    def blob(self, data: bytes = DATA, digest: Digest = DIGEST) -> Tar:
        return self.put(f"blobs/{digest.hex[:2]}/{digest.hex[2:]}", data)

    def ref(self) -> Tar:
        return self.put(f"refs/http%3A%2F%2Fm/{UUID}/{MANIFEST.digest.hex}")

    def close(self) -> Path:
        self.tar.close()
        return self.path


def test_an_export_made_by_hand_is_taken(there: Settings, tmp_path: Path) -> None:
    import_file(Tar(tmp_path / "x").manifest().blob().ref().close(), settings=there)
    assert store_of(there).resolve("http://m", UUID) == MANIFEST


LINK = {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}
BLOB_NAME = f"blobs/{DIGEST.hex[:2]}/{DIGEST.hex[2:]}"
Build = Callable[[Tar], object]
HOSTILE: dict[str, tuple[Build, str]] = {
    "absolute name": (lambda tar: tar.manifest().put("/etc/passwd", b"x"), "nothing that an export has"),
    "way out": (lambda tar: tar.manifest().put("blobs/../../x", b"x"), "no name of blobs"),
    "way out of refs": (lambda tar: tar.manifest().blob().put("refs/../../x"), "did not announce"),
    "dots": (lambda tar: tar.manifest().put("./export.json", b"x"), "nothing that an export has"),
    "symlink": (lambda tar: tar.manifest().put(BLOB_NAME, **LINK), "no plain file"),
    "hard link": (lambda tar: tar.manifest().put(BLOB_NAME, type=tarfile.LNKTYPE, linkname="x"), "no plain file"),
    "device": (lambda tar: tar.manifest().put(BLOB_NAME, type=tarfile.CHRTYPE), "no plain file"),
    "pipe": (lambda tar: tar.manifest().put(BLOB_NAME, type=tarfile.FIFOTYPE), "no plain file"),
    "folder": (lambda tar: tar.manifest().put("blobs", type=tarfile.DIRTYPE), "no plain file"),
    "old sparse file": (lambda tar: tar.manifest().put(BLOB_NAME, type=tarfile.GNUTYPE_SPARSE), "no plain file"),
    "sparse file": (
        lambda tar: tar.manifest().put(BLOB_NAME, DATA, pax_headers={"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}),
        "sparse",
    ),
    "long gnu name": (lambda tar: tar.put("././@LongLink", b"x" * 200, type=tarfile.GNUTYPE_LONGNAME), "no plain file"),
    "global header": (lambda tar: tar.put("g", b"", type=tarfile.XGLTYPE), "no plain file"),
    "pax bomb": (lambda tar: tar.put("x", bytes(100_000), type=tarfile.XHDTYPE), "a header in it has 100000 bytes"),
    "size in a pax header": (
        lambda tar: tar.manifest().put(BLOB_NAME, DATA, pax_headers={"size": str(1 << 61)}),
        "an export has",
    ),
    "negative size": (lambda tar: tar.manifest().put(BLOB_NAME, DATA, pax_headers={"size": "-512"}), "an export has"),
    "twice": (lambda tar: tar.manifest().blob().blob(), "there twice"),
    "manifest twice": (lambda tar: tar.manifest().manifest(), "there twice"),
    "other order": (lambda tar: tar.manifest().blob().put("format.json", b"{}"), "not in its place"),
    "other bytes": (
        lambda tar: tar.manifest().blob(b"THE BYTES"),
        f": its member blobs/{DIGEST.hex[:2]}/{DIGEST.hex[2:]}: expected",
    ),
    "other size": (lambda tar: tar.manifest().blob(DATA + b"!"), "no manifest of it names"),
    "unnamed blob": (lambda tar: tar.manifest().blob(b"x", Digest.of(b"x")), "no manifest of it names"),
    "no blob": (lambda tar: tar.manifest().ref(), "1 of 1 blobs are missing"),
    "no manifest": (lambda tar: tar.blob(), "the manifest .* is missing"),
    "unnamed manifest": (
        lambda tar: tar.put(f"manifests/ab/{'c' * 62}.json", MANIFEST.encoded),
        "a manifest that it does not name",
    ),
    "manifest of other bytes": (
        lambda tar: tar.put(f"manifests/{MANIFEST.digest.hex[:2]}/{MANIFEST.digest.hex[2:]}.json", b"{}"),
        "the bytes have",
    ),
    "ref with bytes": (
        lambda tar: tar.manifest().blob().put(f"refs/http%3A%2F%2Fm/{UUID}/{MANIFEST.digest.hex}", b"x"),
        "did not announce",
    ),
    "other ref": (
        lambda tar: tar.manifest().blob().put(f"refs/local/{UUID}/{MANIFEST.digest.hex}"),
        "did not announce",
    ),
    "records": (lambda tar: tar.manifest().blob().put("records/local/export.0.jsonl", b"x\n"), "did not announce"),
    "capitals": (lambda tar: tar.manifest().put(BLOB_NAME.upper().replace("BLOBS", "blobs"), DATA), "no name of blobs"),
}


@pytest.mark.parametrize("seekable", [True, False])
@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_file_is_refused(
    what: str, seekable: bool, there: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, message = HOSTILE[what]
    tar = Tar(tmp_path / "x.tar")
    build(tar)
    file: Path | str = tar.close()
    if not seekable:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(tar.path.read_bytes())))
        file = "-"
    with pytest.raises(ContentError, match=message):
        import_file(file, settings=there)
    store = store_of(there)
    assert list(store.refs.all()) == [] and list(store.records.registries()) == []
    assert lies(there.home) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there", "x.tar"]


@pytest.mark.parametrize(
    "data",
    [b"", b"no tar", b"\x1f\x8b" + bytes(600), bytes(10_240), b"x" * 2000, b"\xff" * 512 * 30],
)
def test_what_is_no_export_is_one_clear_line(data: bytes, there: Settings, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(ContentError, match=r"x: it is no (tar|export)") as caught:
        import_file(tmp_path / "x", settings=there)
    assert "\n" not in str(caught.value)


def test_any_flipped_bit_is_found_or_says_nothing(here: Settings, tmp_path: Path) -> None:
    """No bit of an export can be changed so that other bytes, or other records, come in."""
    add(folder_of(tmp_path / "tiny", {"a": b"tiny"}), uuid=uuid(5), settings=here)
    export([uuid(5)], tmp_path / "x.tar", settings=here)
    whole = bytearray((tmp_path / "x.tar").read_bytes())
    refused = 0
    for number, at in enumerate(range(0, len(whole), 331)):
        whole[at] ^= 1
        (tmp_path / "y.tar").write_bytes(whole)
        whole[at] ^= 1
        settings = Settings(home=tmp_path / f"home{number}", progress=Progress.OFF)
        try:
            import_file(tmp_path / "y.tar", settings=settings)
        except CasError as error:
            assert "\n" not in str(error)
            refused += 1
            continue
        assert content(settings, uuid(5)) == {"a": b"tiny"}, at
    assert refused > 8


@pytest.mark.parametrize(
    "changes",
    [
        {"cas": "store"},
        {"format": 2},
        {"store": "../x"},
        {"checkpoints": []},
        {"checkpoints": [{"registry": "r", "uuid": "../..", "manifest": str(DIGEST)}]},
        {"checkpoints": [{"registry": "", "uuid": UUID, "manifest": str(DIGEST)}]},
        {"checkpoints": [{"registry": "r" * 300, "uuid": UUID, "manifest": str(DIGEST)}]},
        {"checkpoints": [{"registry": "r", "uuid": UUID, "manifest": "blake3:xy"}]},
        {"checkpoints": [{"registry": "r", "uuid": UUID, "manifest": str(DIGEST)}] * 2},
        {"checkpoints": 7},
        {"blobs": -1},
        {"size": True},
        {"records": {"r": "many"}},
        {"records": []},
    ],
)
def test_a_head_is_read_strictly(changes: dict[str, object]) -> None:
    data = json.dumps(json.loads(GOOD.encoded) | changes).encode()
    with pytest.raises(ContentError):
        Head.parse(data)
    assert Head.parse(GOOD.encoded) == GOOD


def test_a_checkpoint_that_is_here_with_other_files_is_not_changed(there: Settings, tmp_path: Path) -> None:
    store = store_of(there)
    mine = manifest_of({"a": b"mine"}, store)
    store.tag("http://m", UUID, mine)
    with pytest.raises(ContentError, match=r"is in this store already, with other files; .* nothing was imported"):
        import_file(Tar(tmp_path / "x").manifest().blob().ref().close(), settings=there)
    assert store.resolve("http://m", UUID) == mine
    assert not store.has(DIGEST)


def with_records(path: Path, *payloads: dict[str, object]) -> Path:
    head = replace(GOOD, records={"http://m": len(payloads)})
    tar = Tar(path, head).manifest().blob().ref()
    return tar.put("records/http%3A%2F%2Fm/export.0.jsonl", b"".join(map(lines.encode, payloads))).close()


CHECKPOINT = {"kind": "checkpoint", "id": UUID, "seen": 5.0, "parents": [], "data": {"state": "COMPLETED"}}


@pytest.mark.parametrize(
    "payload",
    [
        {**CHECKPOINT, "id": OTHER_UUID},
        {**CHECKPOINT, "id": 7},
        {**CHECKPOINT, "seen": "x"},
        {**CHECKPOINT, "data": []},
        {**CHECKPOINT, "data": {"state": "GREAT"}},
        {**CHECKPOINT, "kind": "listing"},
        {"kind": "experiment", "id": "1", "seen": 5.0, "data": {}},
        {"kind": "trial", "id": "01", "seen": 5.0, "data": {"experiment": 1}},
        {"kind": "experiment", "id": "9" * 30, "seen": 5.0, "data": {}},
    ],
)
def test_records_that_no_export_has_are_refused(payload: dict[str, object], there: Settings, tmp_path: Path) -> None:
    with pytest.raises(ContentError):
        import_file(with_records(tmp_path / "x", payload), settings=there)
    assert store_of(there).records.registries() == []


def test_records_are_merged_by_time_and_hold_no_credential(there: Settings, tmp_path: Path) -> None:
    known = CheckpointRecord(registry="http://m", uuid=UUID, metadata={"whose": "mine"})
    remember(store_of(there), "http://m", [known])
    old = {**CHECKPOINT, "data": {"state": "COMPLETED", "metadata": {"whose": "theirs"}}}
    assert import_file(with_records(tmp_path / "old", old), settings=there).records == 0
    assert Catalog(store_of(there)).checkpoint(UUID).metadata == {"whose": "mine"}
    config = {"checkpoint_storage": {"type": "s3", "bucket": "b", "secret_key": "hush"}}
    later = {**old, "seen": 1e12, "data": {**old["data"], "config": config}}
    import_file(with_records(tmp_path / "new", later), settings=there)
    seen = store_of(there).records.get("http://m", "checkpoint", UUID)
    assert seen is not None and seen.at < 1e12  # a time that is yet to come would count for ever
    assert Catalog(store_of(there)).checkpoint(UUID).metadata == {"whose": "theirs"}
    assert b"hush" not in b"".join(path.read_bytes() for path in there.home.glob("records/*/*"))


def test_one_writer_of_bytes_reads_what_the_other_wrote() -> None:
    out = io.BytesIO()
    writer = Writer(out)
    writer.head(GOOD)
    writer.manifest(MANIFEST)
    writer.blob(DIGEST, len(DATA), io.BytesIO(DATA), lambda count: None)
    writer.end(GOOD, {})
    out.seek(0)
    names = [(member.name, b"".join(member.pieces())) for member in bundle.members(out, seekable=True)]
    assert names[0] == ("export.json", GOOD.encoded) and (BLOB_NAME, DATA) in names
    assert exporting.STREAM == importing.STREAM
