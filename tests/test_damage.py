"""Every kind of damage to every kind of file of a home: never wrong bytes, never a traceback, healed where it can be.

For each case a home is made anew, in memory: a checkpoint with an origin, one that lies nowhere else, views, downloads,
a chosen hard link, a pin, a lease, an interrupted transfer. One file is damaged. Then every command runs over it.
"""

from __future__ import annotations

import functools
import io
import logging
import os
import random
import shutil
import signal
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from stores import OTHER_UUID, UUID, lies

from cas.actions import repairing
from cas.actions.adding import add
from cas.checkpoint import Checkpoint
from cas.cli import commands, main
from cas.config import Progress, Settings
from cas.errors import CasError
from cas.index import chunkstore
from cas.index.cutting import cut_file
from cas.index.digest import Digest
from cas.index.store import Store
from cas.registry.catalog import Catalog
from cas.registry.records import CheckpointRecord
from cas.registry.remembering import remember

pytestmark = pytest.mark.slow

BYTES = random.Random(8)


def zipped(content: bytes) -> bytes:
    """An archive as frameworks write them: its records are stored as they are."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(zipfile.ZipInfo("data/0"), content)
    return file.getvalue()


ZIP = zipped(BYTES.randbytes(9000))
FAR = {"model": BYTES.randbytes(30_000), "code/a.py": b"a = 1\n", "same": b"in both" * 1000, "far.zip": ZIP}
MINE = {"weights": BYTES.randbytes(20_000), "code/b.py": b"b = 2\n", "same": b"in both" * 1000, "empty": b""}
MINE["mine.zip"] = zipped(BYTES.randbytes(9000))
REGISTRY = "http://master"


BUILT = functools.cache(commands.build)  # the parser of all commands, once: making it takes longer than most of them


@dataclass
class Home:
    """A home with everything in it, and what lies around it."""

    base: Path
    settings: Settings
    far: CheckpointRecord
    mine: CheckpointRecord

    @property
    def path(self) -> Path:
        return self.settings.home

    def blob(self, data: bytes) -> Path:
        hex = Digest.of(data).hex
        return self.path / "blobs" / hex[:2] / hex[2:]

    def read(self, record: CheckpointRecord) -> dict[str, bytes] | None:
        """Return what a loader would see of a checkpoint; None if it is told that there is none."""
        try:
            view = Checkpoint(record, settings=self.settings).view()
            return {str(path.relative_to(view)): path.read_bytes() for path in view.rglob("*") if path.is_file()}
        except CasError as error:
            assert "\n" not in str(error)
            return None

    def run(self, *words: str) -> int:
        return main.run([*words, "--home", str(self.path)], "cas")


@pytest.fixture(scope="module")
def origin() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=_memory()) as name:
        folder = Path(name) / UUID
        for file, data in FAR.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(data)
            os.utime(folder / file, (10**9, 10**9))
        yield Path(name)


def _memory() -> Path | None:
    shared = Path("/dev/shm")
    return shared if shared.is_dir() else None


@pytest.fixture
def home(origin: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    base = Path(tempfile.mkdtemp(dir=_memory()))
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(base / "user"))
    monkeypatch.setattr(commands, "build", BUILT)
    monkeypatch.setattr(chunkstore, "LEAST_ZIP", 1)  # else archives would have to be large
    monkeypatch.chdir(base)
    handlers, interrupt = logging.getLogger("cas").handlers[:], signal.getsignal(signal.SIGINT)
    try:
        yield _made(base, origin)
    finally:
        log = logging.getLogger("cas")
        log.handlers[:], log.propagate = handlers, True
        log.setLevel(logging.NOTSET)
        signal.signal(signal.SIGINT, interrupt)
        shutil.rmtree(base, onerror=_force)


def _force(function: Callable[[str], object], path: str, _: object) -> None:
    os.chmod(os.path.dirname(path), 0o700)
    function(path)


def _made(base: Path, origin: Path) -> Home:
    settings = Settings(home=base / "home", progress=Progress.OFF, concurrency=2)
    config = {"checkpoint_storage": {"type": "shared_fs", "host_path": str(origin)}}
    far = CheckpointRecord(registry=REGISTRY, uuid=UUID, experiment_config=config)
    store = Store(settings.home)
    remember(store, REGISTRY, [far])
    Checkpoint(far, settings=settings).download(base / "linked", link="hardlink")
    for name, data in MINE.items():
        (base / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        (base / "model" / name).write_bytes(data)
    mine = add(base / "model", uuid=OTHER_UUID, experiment=1, trial=1, steps=1, settings=settings).record
    shutil.rmtree(base / "model")
    home = Home(base, settings, far, mine)
    assert home.read(far) == FAR and home.read(mine) == MINE
    store.pins.add(OTHER_UUID)
    with store.staging("chunks") as staging:
        for data in (FAR["model"], MINE["weights"], FAR["far.zip"], MINE["mine.zip"]):
            store.chunks.put(Digest.of(data), cut_file(home.blob(data)), staging.folder)
    assert store.chunks.index.has_parts() and not store.chunks.index.chunks([])
    for name in ("x", "y"):
        staging = store.staging(f"file {name}")
        with pytest.raises(ZeroDivisionError), staging, staging.ingest(9, source=name) as ingest:
            ingest.write_at(0, b"123")
            raise ZeroDivisionError
    (settings.home / "leases" / "0123456789abcdef").mkdir(parents=True)
    (settings.home / "leases" / "0123456789abcdef" / "beat").write_bytes(b'{"command":"x","pid":1,"host":"h"}')
    for path in (*settings.home.glob("facts/*.jsonl"), *settings.home.glob("records/*/*.jsonl")):
        path.with_name("elsewhere.0.jsonl").write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    return home


# --- damage ----------------------------------------------------------------------------------------------------


def written(path: Path, data: bytes) -> None:
    """Write into a file in place, whatever its mode."""
    mode = path.stat().st_mode
    path.chmod(0o600)
    with open(path, "r+b") as file:
        file.truncate(0)
        file.write(data)
    path.chmod(mode & 0o7777)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes() or b"\0")
    data[len(data) // 2] ^= 1
    written(path, bytes(data))


def rot(path: Path) -> None:
    """Other bytes, and nothing that a stat could tell by."""
    before = path.stat()
    flip(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def delete(path: Path) -> None:
    path.unlink()


def half(path: Path) -> None:
    data = path.read_bytes()
    written(path, data[: len(data) // 2])


def emptied(path: Path) -> None:
    written(path, b"")


def zeroed(path: Path) -> None:
    written(path, bytes(len(path.read_bytes())))


def longer(path: Path) -> None:
    written(path, path.read_bytes() + b"garbage\xff\n")


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


def swapped(path: Path) -> None:
    """The bytes of another file of the same kind under this name, and the other way round."""
    folder, pattern = next(
        (above, pattern) for above in path.parents for pattern in KINDS if path in above.glob(pattern)
    )
    other = next(one for one in sorted(folder.glob(pattern)) if one.is_file() and one != path)
    for one in (path, other):  # in views, folders are read-only
        one.parent.chmod(0o755)
    temporary = path.with_name("x")
    path.rename(temporary)
    other.rename(path)
    temporary.rename(other)


# Where files of one kind lie; of each there are two.
KINDS = (
    *("blobs/??/*", "manifests/??/*", "refs/*/*/*", "facts/*.jsonl", "records/*/*.jsonl", "chunks/??/*.parts"),
    *("chunks/??/*", "ingest/*/*/*.journal", "ingest/*/*/*.data", "ingest/*/*/claim", "views/*/stamp.json"),
    *("views/*/tree/*", "views/*/tree/*/*", "linked/*"),
)
DAMAGES = (flip, rot, delete, half, emptied, zeroed, longer, a_folder, a_pipe, a_link, swapped)


def first(home: Home, pattern: str) -> Path:
    return sorted(home.path.glob(pattern))[0]


def chunk_list(home: Home, data: bytes) -> Path:
    path = Store(home.path).layout.chunks(Digest.of(data))
    assert path.exists()
    return path


def of_a_damaged_blob(home: Home) -> Path:
    """The list by which a blob would be mended chunk by chunk."""
    flip(home.blob(FAR["model"]))
    return chunk_list(home, FAR["model"])


def manifest_of(home: Home, record: CheckpointRecord) -> Path:
    manifest = Store(home.path).resolve(record.registry, record.uuid)
    assert manifest is not None
    return Store(home.path).layout.manifest(manifest.digest)


PLACES: dict[str, Callable[[Home], Path]] = {
    "a blob with an origin": lambda home: home.blob(FAR["model"]),
    "a blob that lies nowhere else": lambda home: home.blob(MINE["weights"]),
    "a small blob": lambda home: home.blob(MINE["code/b.py"]),
    "a manifest with an origin": lambda home: manifest_of(home, home.far),
    "a manifest that lies nowhere else": lambda home: manifest_of(home, home.mine),
    "a ref": lambda home: first(home, f"refs/*/{UUID}/*"),
    "a ref that nobody else has": lambda home: first(home, f"refs/local/{OTHER_UUID}/*"),
    "facts": lambda home: first(home, "facts/*.jsonl"),
    "records of a master": lambda home: first(home, "records/http*/*.jsonl"),
    "records of our own": lambda home: first(home, "records/local/*.jsonl"),
    "a chunk list": lambda home: chunk_list(home, FAR["model"]),
    "a chunk list of a damaged blob": of_a_damaged_blob,
    "a part list": lambda home: first(home, "chunks/??/*.parts"),
    "the index of chunks": lambda home: first(home, "chunks-*.sqlite3"),
    "a journal": lambda home: first(home, "ingest/*/*/*.journal"),
    "interrupted bytes": lambda home: first(home, "ingest/*/*/*.data"),
    "a claim": lambda home: first(home, "ingest/*/*/claim"),
    "a view's stamp": lambda home: first(home, "views/*/stamp.json"),
    "a view's link": lambda home: next(home.path.glob("views/*/tree/model")),
    "a view's copy": lambda home: next(home.path.glob("views/*/tree/code/b.py")),
    "a heartbeat": lambda home: first(home, "leases/*/beat"),
    "a pin": lambda home: first(home, "pins/*"),
    "a mark of use": lambda home: first(home, "used/*"),
    "format.json": lambda home: home.path / "format.json",
    "the index": lambda home: first(home, "index-*.sqlite3"),
    "a file linked by the user": lambda home: home.base / "linked" / "model",
}

# What nothing else on this disk, and no origin, has: what is lost of it is lost.
ONLY = {"a blob that lies nowhere else", "a small blob"}
CODES = {0, 1, 2, 3, 4, 8}


# Of small files that hold nothing but a claim, a time or a hint, these stand for all.
SMALL = ("a claim", "interrupted bytes", "a heartbeat", "a pin", "a mark of use", "the index", "the index of chunks")
ALONE = ("format.json",)  # of a store there is one
CASES = [
    pytest.param(place, damage, id=f"{place}-{damage.__name__}")
    for place in PLACES
    for damage in DAMAGES
    if (place not in SMALL or damage in (flip, delete, emptied, a_pipe))
    and (place not in ALONE or damage is not swapped)
]


@pytest.mark.parametrize(("place", "damage"), CASES)
def test_damage(place: str, damage: Callable[[Path], None], home: Home, capfd: pytest.CaptureFixture[str]) -> None:
    path = PLACES[place](home)
    if damage in (a_link, a_folder, a_pipe, swapped, delete) and place == "a view's link":
        path.parent.chmod(0o755)
    damage(path)
    try:
        Store(home.path)  # whoever opens it first
    except CasError as error:  # a folder in place of format.json is somebody's: nothing in it is removed
        assert (place, damage) == ("format.json", a_folder) and "\n" not in str(error)
        return
    if damage is rot:  # nothing but reading can tell
        assert home.run("check", "--deep", "--anew") in (0, 4)
    for record, files in ((home.far, FAR), (home.mine, MINE)):
        assert home.read(record) in (files, None)
    for words in _commands(home):
        code = home.run(*words)
        told = capfd.readouterr().err
        assert "Traceback" not in told and "a defect in cas" not in told, words
        assert code in CODES, (words, told)
        assert not code or told or words[0] == "check", words  # it says why
    for folder in home.base.glob("got-*"):
        files = FAR if folder.name.endswith(UUID) else MINE
        assert {name: (folder / name).read_bytes() for name in files} == files
    assert home.run("check", "--deep", "--anew", "--repair") in (0, 4)
    told = capfd.readouterr()
    assert "a defect in cas" not in told.err
    assert lies(home.path) == []
    assert home.read(home.far) == FAR, told.out
    if place not in ONLY:
        assert home.read(home.mine) == MINE, told.out
        left = repairing.check(Store(home.path), deep=True, anew=True).damage
        # What another host wrote is its own to write anew; until then its torn lines are passed over.
        assert [one for one in left if one.path.name != "elsewhere.0.jsonl"] == [], told.out
    elif home.read(home.mine) is None:
        assert "it was the only copy" in told.out  # kept, and named
        assert damage in (delete, emptied, a_folder, a_pipe, a_link) or list(home.path.glob("aside/*"))


def _commands(home: Home) -> list[tuple[str, ...]]:
    return [
        ("ls",),
        ("du",),
        ("check",),
        ("check", "--deep"),
        ("check", "--repair", "--dry-run"),
        ("prune", "--dry-run"),
        ("view", UUID),
        ("view", OTHER_UUID),
        ("checkpoint", "describe", OTHER_UUID),
        ("checkpoint", "download", UUID, "-o", f"got-{UUID}"),
        ("checkpoint", "download", OTHER_UUID, "-o", f"got-{OTHER_UUID}"),
        ("export", UUID, OTHER_UUID, "all.tar"),
    ]


def test_the_matrix_would_see_wrong_bytes(home: Home) -> None:
    """Rot that nobody looked for is served: that is why it is looked for. The matrix sees it."""
    rot(home.blob(FAR["model"]))
    found = home.read(home.far)
    assert found is not None and found != FAR
    assert Catalog(Store(home.path)).checkpoint(UUID).uuid == UUID
