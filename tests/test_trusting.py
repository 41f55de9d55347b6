"""What came from a bare URL: only safe formats load, until the user trusts those very bytes."""

from __future__ import annotations

import contextlib
import json
import pickle
import shutil
import uuid as uuids
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from assembled import named, pickled

import cas
from cas.actions.trusting import trust, trusted
from cas.checkpoint import Checkpoint
from cas.config import Settings
from cas.errors import CasError, CheckpointNotFoundError, NotFoundError, UnsafeContentError, UsageError
from cas.index.store import store_of
from cas.load.scanning import MAGIC
from cas.registry.records import PULLED, CheckpointRecord
from cas.transfer.adopt import ingest_folder

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

TWO_MODELS = Path(__file__).parent / "data" / "checkpoints" / "a_two_models"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.load(home=tmp_path / "home")


def pulled(folder: Path, settings: Settings, uuid: str | None = None) -> Checkpoint:
    """A checkpoint as a pull of a URL leaves it."""
    store, name = store_of(settings), uuid or str(uuids.uuid4())
    store.tag(PULLED, name, ingest_folder(store, folder, settings=settings))
    return Checkpoint(CheckpointRecord(registry=PULLED, uuid=name), settings=settings)


def folder_with(tmp_path: Path, save: Callable[[Path], Any]) -> Path:
    folder = tmp_path / "c"
    folder.mkdir(exist_ok=True)
    save(folder)
    return folder


def test_safe_formats_load_with_no_question(tmp_path: Path, settings: Settings) -> None:
    from safetensors.torch import save_file

    state = torch.nn.Linear(2, 2).state_dict()
    for save in (
        lambda folder: save_file(state, folder / "m.safetensors"),
        lambda folder: torch.save(state, folder / "m.pt"),
    ):
        checkpoint = pulled(folder_with(tmp_path, save), settings)
        assert checkpoint.load().keys() == state.keys()
        shutil.rmtree(tmp_path / "c")


def test_code_and_pickles_wait_for_the_users_word(tmp_path: Path, settings: Settings) -> None:
    module = pulled(folder_with(tmp_path, lambda f: torch.save(torch.nn.Linear(2, 2), f / "model.pth")), settings)
    trial = pulled(TWO_MODELS, settings)
    for checkpoint in (module, trial):
        with pytest.raises(UnsafeContentError, match=f"cas trust {checkpoint.uuid}") as caught:
            checkpoint.load()
        assert caught.value.exit_code == 9 and "\n" not in str(caught.value)
        with pytest.raises(UnsafeContentError):
            checkpoint.load(trust="scan")
        with pytest.raises(UnsafeContentError):
            checkpoint.load(tmp_path / f"copy-{checkpoint.uuid}")
    report = trust(module.uuid, settings=settings)
    assert (report.trusted, report.changed, report.files) == (True, True, 1)
    assert isinstance(module.load(), torch.nn.Linear)
    assert isinstance(module.load(tmp_path / f"copy-{module.uuid}"), torch.nn.Linear)
    with pytest.raises(UnsafeContentError):
        trial.load()
    trust(trial.uuid, settings=settings)
    assert type(trial.load()).__name__ == "TwoModelTrial"
    assert len(trusted(settings=settings)) == 2
    trust(trial.uuid, revoke=True, settings=settings)
    with pytest.raises(UnsafeContentError):
        trial.load()


def test_the_setting_and_the_argument_choose(tmp_path: Path, settings: Settings) -> None:
    checkpoint = pulled(folder_with(tmp_path, lambda f: torch.save(torch.nn.Linear(2, 2), f / "model.pth")), settings)
    assert isinstance(checkpoint.load(trust="always"), torch.nn.Linear)
    assert isinstance(Checkpoint(checkpoint.record, settings=settings.but(trust="always")).load(), torch.nn.Linear)
    trust(checkpoint.uuid, settings=settings)
    with pytest.raises(UnsafeContentError, match="CAS_TRUST=never"):
        checkpoint.load(trust="never")


def test_trust_is_for_the_bytes_and_not_for_the_name(tmp_path: Path, settings: Settings) -> None:
    first = pulled(folder_with(tmp_path, lambda f: torch.save(torch.nn.Linear(2, 2), f / "model.pth")), settings)
    trust(first.uuid, settings=settings)
    folder_with(tmp_path, lambda f: torch.save(torch.nn.Linear(3, 3), f / "model.pth"))
    second = pulled(tmp_path / "c", settings, uuid=first.uuid)  # what the URL has today
    with pytest.raises(UnsafeContentError):
        second.load()


def test_scan_goes_on_after_trust(tmp_path: Path, settings: Settings) -> None:
    class Attack:
        def __reduce__(self) -> Any:
            return eval, ("1 + 1",)

    checkpoint = pulled(folder_with(tmp_path, lambda f: torch.save(Attack(), f / "model.pth")), settings)
    trust(checkpoint.uuid, settings=settings)
    with pytest.raises(UnsafeContentError, match=r"would call __builtin__\.eval"):
        checkpoint.load()


def test_pulled_files_do_not_stand_in_for_a_registrys_checkpoint_of_the_same_uuid(
    tmp_path: Path, settings: Settings
) -> None:
    checkpoint = pulled(folder_with(tmp_path, lambda f: torch.save(torch.nn.Linear(2, 2), f / "model.pth")), settings)
    record = CheckpointRecord(registry="https://master.example.org", uuid=checkpoint.uuid)
    with pytest.raises(CheckpointNotFoundError):
        Checkpoint(record, settings=settings).load()


def test_digest_of_a_checkpoint_can_be_named(tmp_path: Path, settings: Settings) -> None:
    checkpoint = pulled(folder_with(tmp_path, lambda f: torch.save(torch.nn.Linear(2, 2), f / "model.pth")), settings)
    manifest = store_of(settings).resolve(PULLED, checkpoint.uuid)
    assert manifest is not None
    assert trust(str(manifest.digest), settings=settings).changed
    assert not trust(manifest.digest.hex, settings=settings).changed
    assert isinstance(checkpoint.load(), torch.nn.Linear)


@pytest.mark.parametrize(
    ("which", "error"),
    [
        ("nonsense", NotFoundError),
        ("blake3:xyz", UsageError),
        ("z" * 64, NotFoundError),
        ("0" * 64, NotFoundError),
        (str(uuids.UUID(int=7)), NotFoundError),
    ],
)
def test_what_is_not_here_cannot_be_trusted(which: str, error: type[Exception], settings: Settings) -> None:
    with pytest.raises(error) as caught:
        trust(which, settings=settings)
    assert "\n" not in str(caught.value)


def test_verdict_spares_the_second_scan_of_the_same_bytes(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    import cas.load.torch_files as torch_files

    scans: list[object] = []
    real = torch_files.check_torch_file

    def counted(*args: Any, **options: Any) -> None:
        scans.append(args[0])
        real(*args, **options)

    monkeypatch.setattr(torch_files, "check_torch_file", counted)
    model = torch.nn.Linear(2, 2)
    model.extra = [torch.nn.functional.gelu, json.dumps]
    checkpoint = cas.add(folder_with(tmp_path, lambda f: torch.save(model, f / "model.pth")), settings=settings)
    with pytest.raises(UnsafeContentError, match=r"json\.dumps"):
        checkpoint.load()
    with pytest.raises(UnsafeContentError):
        checkpoint.load()
    assert len(scans) == 2  # a refusal is no verdict that is kept
    model.extra = [torch.nn.functional.gelu]
    checkpoint = cas.add(folder_with(tmp_path, lambda f: torch.save(model, f / "model.pth")), settings=settings)
    for _ in range(3):
        assert checkpoint.load().extra == [torch.nn.functional.gelu]
    assert len(scans) == 3
    checkpoint.load(encoding="latin1")  # read otherwise, it may say something else
    assert len(scans) == 4
    copy = cas.add(folder_with(tmp_path, lambda f: None), settings=settings)  # another checkpoint, the same bytes
    copy.load()
    assert len(scans) == 4


def test_verdict_about_functions_that_are_only_stored_is_remembered(tmp_path: Path, settings: Settings) -> None:
    numpy = pytest.importorskip("numpy")
    model = torch.nn.Linear(2, 2)
    model.extra = [numpy.linalg.norm]
    checkpoint = cas.add(folder_with(tmp_path, lambda f: torch.save(model, f / "model.pth")), settings=settings)
    for _ in range(2):
        assert checkpoint.load().extra == [numpy.linalg.norm]


def test_verdict_on_a_plain_pickle_is_none_on_the_file_of_torch_with_the_same_bytes(
    tmp_path: Path, settings: Settings
) -> None:
    """Torch reads five pickles of a file from before 1.6, and an unpickler one."""
    hostile = pickled({"w": named("torch.nn.modules.linear", "Linear")(2, 2)})
    parts = [MAGIC, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}]
    data = b"".join(pickle.dumps(part, 2) for part in parts) + hostile + pickle.dumps([], 2)
    kinds = []
    for name in ("x.cloudpickle", "x.pt"):
        kinds.append(tmp_path / name.partition(".")[2])
        kinds[-1].mkdir()
        (kinds[-1] / name).write_bytes(data)
    as_pickle, as_torch = (cas.add(folder, settings=settings) for folder in kinds)
    with contextlib.suppress(CasError):
        as_pickle.load(encoding="utf-8")
    with pytest.raises(UnsafeContentError, match="makes a torch"):
        as_torch.load()
