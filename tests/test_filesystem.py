"""`cas://`: checkpoints as an fsspec file system."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from stores import OTHER_UUID, UUID

import cas
from cas.config import Settings
from cas.index.records import NewRecord
from cas.index.store import Store
from cas.registry.records import CheckpointRecord

fsspec = pytest.importorskip("fsspec", reason="fsspec is an extra")

FILES = {"config.json": b'{"a": 1}', "code/deep/model.py": b"x = 1\n", "weights": b"w" * 100_000}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    for name, data in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / "empty").mkdir()
    cas.add(folder, uuid=UUID, settings=Settings.load(home=tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def files(home: Path):
    from cas.filesystem import CasFileSystem

    return CasFileSystem(settings={"home": str(home)}, skip_instance_cache=True)


def test_fsspec_finds_it_by_its_entry_point():
    found = [one for one in entry_points(group="fsspec.specs") if one.name == "cas"]

    assert [one.value for one in found] == ["cas.filesystem:CasFileSystem"]


def test_it_lists_checkpoints_folders_and_files(files):
    assert files.ls("cas://", detail=False) == [UUID]
    assert files.ls(f"cas://{UUID}", detail=False) == [
        f"{UUID}/{name}" for name in ("code", "config.json", "empty", "weights")
    ]
    assert files.find(UUID) == sorted(f"{UUID}/{name}" for name in FILES)
    assert files.glob(f"{UUID}/**/*.py") == [f"{UUID}/code/deep/model.py"]
    assert files.info(f"{UUID}/weights")["size"] == 100_000
    assert files.info(f"{UUID}/weights")["digest"].startswith("blake3:")
    assert (files.isdir(f"{UUID}/empty"), files.isfile(f"{UUID}/config.json")) == (True, True)


def test_it_reads(files, tmp_path):
    with files.open(f"cas://{UUID}/config.json") as file:
        assert file.read() == FILES["config.json"]
    with files.open(f"cas://{UUID}/code/deep/model.py", "r") as file:
        assert file.read() == "x = 1\n"
    assert files.cat_file(f"{UUID}/weights", 10, 14) == b"wwww"
    assert set(files.cat([f"{UUID}/code/deep/model.py", f"{UUID}/config.json"]).values()) == {b"x = 1\n", b'{"a": 1}'}

    files.get(f"cas://{UUID}/", str(tmp_path / "copy"), recursive=True)

    assert {
        str(path.relative_to(tmp_path / "copy")): path.read_bytes()
        for path in (tmp_path / "copy").rglob("*")
        if path.is_file()
    } == FILES


@pytest.mark.parametrize("path", [f"{UUID}/no", f"{UUID}/code/no", f"{OTHER_UUID}/x", "no-uuid/x", f"{UUID}/../x"])
def test_what_is_not_there_is_said_as_files_systems_say_it(files, path):
    with pytest.raises(FileNotFoundError):
        files.info(path)
    with pytest.raises(FileNotFoundError):
        files.open(path)


def test_nothing_is_ever_written(files):
    for write in (
        lambda: files.open(f"{UUID}/new", "wb"),
        lambda: files.pipe_file(f"{UUID}/new", b"x"),
        lambda: files.rm(f"{UUID}/config.json"),
        lambda: files.mkdir(f"{UUID}/folder"),
        lambda: files.touch(f"{UUID}/config.json"),
        lambda: files.cp_file(f"{UUID}/config.json", f"{UUID}/b"),
    ):
        with pytest.raises(OSError, match="Read-only file system"):
            write()


def test_listing_what_only_a_registry_knows_fetches_nothing(tmp_path):
    from cas.filesystem import CasFileSystem

    storage = {"type": "directory", "container_path": str(tmp_path / "nowhere")}
    record = CheckpointRecord(
        registry="http://m",
        uuid=UUID,
        resources={"a/b": 3, "c": 5, "d/": 0},
        experiment_config={"checkpoint_storage": storage},
    )
    store = Store(tmp_path / "home")
    store.records.add("http://m", [NewRecord("checkpoint", UUID, record.to_json())])
    files = CasFileSystem(settings={"home": str(tmp_path / "home")}, skip_instance_cache=True)

    assert files.find(UUID) == [f"{UUID}/a/b", f"{UUID}/c"]
    assert not list(store.home.glob("blobs/*/*"))
    with pytest.raises(cas.CasError):
        files.open(f"{UUID}/c")


@pytest.mark.slow
def test_other_libraries_open_such_urls(home):
    code = f"""
import fsspec, json
with fsspec.open("cas://{UUID}/config.json", settings={{"home": {str(home)!r}}}) as file:
    print(json.load(file))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=home, check=True)
    assert done.stdout == "{'a': 1}\n"


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_distributed_checkpoint_is_read_through_a_view_and_through_its_url(tmp_path):
    import torch
    import torch.distributed.checkpoint as dcp

    state = {"weights": torch.arange(1000.0), "step": torch.tensor(7)}
    dcp.save(state, checkpoint_id=tmp_path / "saved", no_dist=True)
    settings = Settings.load(home=tmp_path / "home")
    checkpoint = cas.add(tmp_path / "saved", uuid=UUID, settings=settings)
    loaded = {"weights": torch.zeros(1000), "step": torch.tensor(0)}

    dcp.load(loaded, storage_reader=checkpoint.storage_reader(), no_dist=True)

    assert torch.equal(loaded["weights"], state["weights"])
    assert loaded["step"] == 7
