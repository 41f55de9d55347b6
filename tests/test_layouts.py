"""What checkpoint folders are recognized as; nothing here needs a framework."""

from __future__ import annotations

import json
import os
import pickle
import re
import zipfile
from pathlib import Path

import pytest

from cas.errors import ContentError, NotFoundError
from cas.load.layouts import Kind, companions, recognize
from cas.load.loading import user_folder
from cas.load.scanning import MAGIC
from cas.transfer.selection import Selection

DATA = Path(__file__).parent / "data" / "checkpoints"


def make(folder: Path, *names: str, **documents: object) -> Path:
    """Make empty files, and JSON documents named by their stem."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if name.endswith("/") else path.write_bytes(b"")
    for name, document in documents.items():
        (folder / f"{name}.json").write_text(json.dumps(document))
    return folder


@pytest.mark.parametrize(
    ("sample", "kind", "file", "entrypoint"),
    [
        ("a_two_models", Kind.TORCH_TRIAL, "state_dict.pth", "model_def:TwoModelTrial"),
        ("d_keras_callback", Kind.TF_WEIGHTS, "model_checkpoint", None),
        ("g_legacy_0_12_5_model_state_dict", Kind.TORCH_TRIAL, "state_dict.pth", "model_def:OldTrial"),
        ("j_tf_saved_model", Kind.SAVED_MODEL, "inference/1591920000", "model_def:EstTrial"),
        ("k_legacy_keras_h5", Kind.KERAS_TRIAL, "determined-keras-model.h5", "model_def:KTrial"),
    ],
)
def test_real_checkpoints_are_recognized(sample: str, kind: Kind, file: str, entrypoint: str | None) -> None:
    layout = recognize(DATA / sample)
    assert layout.kind is kind
    assert layout.file == DATA / sample / file
    assert layout.entrypoint == entrypoint


def test_hyperparameters_come_from_where_each_version_wrote_them() -> None:
    assert recognize(DATA / "g_legacy_0_12_5_model_state_dict").hparams["hidden"] == 6
    assert recognize(DATA / "a_two_models").hparams == {}


def test_registry_fills_in_what_the_folder_does_not_say(tmp_path: Path) -> None:
    make(tmp_path, "state_dict.pth", "code/model_def.py")
    known = {"experiment_config": {"entrypoint": "model_def:T"}, "hparams": {"a": 1}}
    layout = recognize(tmp_path, known)
    assert (layout.kind, layout.entrypoint, layout.hparams) == (Kind.TORCH_TRIAL, "model_def:T", {"a": 1})
    assert recognize(tmp_path).kind is Kind.TORCH_FILE


def test_module_comes_before_the_state_dict_beside_it(tmp_path: Path) -> None:
    make(tmp_path, "model.pth", "state_dict.pth", "code/model_def.py")
    assert recognize(tmp_path).kind is Kind.TORCH_MODULE


def test_keras_weights_are_named_by_their_common_start(tmp_path: Path) -> None:
    stem = "determined-keras-model-weights"
    make(tmp_path, f"{stem}.index", f"{stem}.data-00000-of-00001", "checkpoint", "code/model_def.py")
    layout = recognize(tmp_path)
    assert (layout.kind, layout.file) == (Kind.TF_WEIGHTS, tmp_path / stem)
    make(tmp_path, load_data={"trial_type": "TFKerasTrial", "trial_cls_spec": "model_def:T"})
    layout = recognize(tmp_path)
    assert (layout.kind, layout.file) == (Kind.KERAS_TRIAL, tmp_path / stem)


def test_files_of_torch_are_recognized_by_how_they_begin(tmp_path: Path) -> None:
    make(tmp_path, "notes.bin", "other.pt")
    with pytest.raises(NotFoundError):
        recognize(tmp_path)
    with zipfile.ZipFile(tmp_path / "weights.bin", "w") as archive:
        archive.writestr("weights/data.pkl", b"")
    assert recognize(tmp_path).file == tmp_path / "weights.bin"
    (tmp_path / "weights.bin").unlink()
    (tmp_path / "old.ckpt").write_bytes(pickle.dumps(MAGIC, 2) + pickle.dumps(1001, 2))
    assert recognize(tmp_path).file == tmp_path / "old.ckpt"


def test_what_is_no_model_is_said_with_what_was_found_and_what_would_do() -> None:
    with pytest.raises(NotFoundError) as caught:
        recognize(DATA / "c_core_api")
    message = str(caught.value)
    for part in ("a/", "dots.tar.gz", "metadata.json", "with space and ünïcode.txt", "model.pth", "saved_model.pb"):
        assert part in message
    assert "\n" not in message


def test_empty_and_missing_folders_are_said(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="it holds nothing"):
        recognize(tmp_path)
    with pytest.raises(NotFoundError, match="no such folder"):
        recognize(tmp_path / "missing")


@pytest.mark.parametrize(
    ("names", "folders"),
    [
        (("checkpoint-500/model.safetensors", "checkpoint-500/optimizer.pt", "runs/a.log"), "checkpoint-500"),
        (("unet/diffusion_pytorch_model.bin", "vae/x.safetensors", "tokenizer/vocab.txt", "a.json"), "unet, vae"),
        (("lightning_logs/version_0/checkpoints/a.ckpt",), "lightning_logs/version_0/checkpoints"),
        (("weights/best.pt", "weights/last.pt", "args.yaml"), "weights"),
        (("latest", "global_step10/mp_rank_00_model_states.pt", "code/x/model.pth"), "global_step10"),
        (("pytorch_model_fsdp_0/.metadata", "optimizer_0/.metadata", "rng_state_0.pth"), "pytorch_model_fsdp_0"),
    ],
)
def test_folders_with_models_are_named_where_the_folder_above_has_none(
    tmp_path: Path, names: tuple[str, ...], folders: str
) -> None:
    make(tmp_path, *names)
    for path in tmp_path.rglob("*"):
        if path.is_file() and path.suffix in (".pt", ".bin", ".ckpt", ".pth"):
            path.write_bytes(b"PK\x03\x04")
    with pytest.raises(NotFoundError, match=rf"no model in .* itself: .* in view\(\)\): {folders}$") as caught:
        recognize(tmp_path)
    assert "begins like no such file" not in str(caught.value)  # what lies beside them is whole


def test_states_of_deepspeeds_optimizers_lie_beside_the_model(tmp_path: Path) -> None:
    ranks = [f"bf16_zero_pp_rank_{number}_mp_rank_00_optim_states.pt" for number in range(2)]
    for name in ("mp_rank_00_model_states.pt", *ranks):
        (tmp_path / name).write_bytes(b"PK\x03\x04")
    assert recognize(tmp_path).file.name == "mp_rank_00_model_states.pt"


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", r"empty"),
        (b"<!DOCTYPE html>\r\n<title>404 Not Found", "text"),
        (LFS, "a Git LFS pointer in place of the file: fetch it with git lfs pull"),
        (b"\x00\x01garbage", "begins like no such file"),
    ],
)
def test_what_is_wrong_with_a_file_of_the_right_name_is_said(tmp_path: Path, content: bytes, why: str) -> None:
    make(tmp_path, *(f"{number}.json" for number in range(20)))
    (tmp_path / "weights.pt").write_bytes(content)
    with pytest.raises(NotFoundError, match=rf"it holds weights\.pt \({why}\), 0\.json"):
        recognize(tmp_path)


def test_link_that_leads_nowhere_and_a_pipe_are_said(tmp_path: Path) -> None:
    (tmp_path / "a.pt").symlink_to("gone.pt")
    os.mkfifo(tmp_path / "b.pt")
    (tmp_path / "c.pt").mkdir()
    expected = r"holds a\.pt \(a link that leads nowhere\), b\.pt \(neither a file nor a folder\), c\.pt/;"
    with pytest.raises(NotFoundError, match=expected):
        recognize(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "model.pth", "model.h5", "a.data-00000-of-00001", "x-1.bin"])
def test_git_lfs_pointer_is_said_where_the_name_tells_the_layout(tmp_path: Path, name: str) -> None:
    if name.startswith(("a.", "x-")):
        make(tmp_path, "a.index" if name.startswith("a.") else "x.bin.index.json")
    (tmp_path / name).write_bytes(LFS)
    with pytest.raises(ContentError, match=rf"{name}: a Git LFS pointer"):
        recognize(tmp_path)


def test_named_file_that_is_no_model_is_named(tmp_path: Path) -> None:
    make(tmp_path, "config.json", "x.pt")
    for name, expected in (("config.json", r"/config\.json: no model; cas loads"), ("x.pt", r"/x\.pt \(empty\): no")):
        with pytest.raises(NotFoundError, match=expected), user_folder(tmp_path / name) as view:
            recognize(view)


def test_many_files_are_counted_and_not_all_named(tmp_path: Path) -> None:
    make(tmp_path, *(f"{number:03}.txt" for number in range(500)))
    with pytest.raises(NotFoundError, match=r"007\.txt and 492 more") as caught:
        recognize(tmp_path)
    assert len(str(caught.value)) < 500 + len(str(tmp_path))


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"experiment_config": [], "hparams": "x"}', "\ud800"])
def test_damaged_metadata_counts_as_none(tmp_path: Path, text: str) -> None:
    make(tmp_path, "model.pth")
    (tmp_path / "metadata.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    (tmp_path / "load_data.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    assert recognize(tmp_path).hparams == {}


def test_pipes_and_devices_count_as_no_metadata(tmp_path: Path) -> None:
    make(tmp_path, "model.pth")
    os.mkfifo(tmp_path / "metadata.json")
    (tmp_path / "load_data.json").symlink_to("/dev/zero")
    assert recognize(tmp_path).hparams == {}


@pytest.mark.parametrize("name", ["x.pt", "x.bin", "x.pkl", "weights", ".metadata", "x.keras", "a/saved_model.pb"])
@pytest.mark.parametrize("what", ["a pipe", "a device"])
def test_pipes_and_devices_are_no_model_and_are_never_opened(tmp_path: Path, name: str, what: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    os.mkfifo(tmp_path / name) if what == "a pipe" else (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(NotFoundError, match="no model in"):
        recognize(tmp_path)


@pytest.mark.parametrize(
    ("file", "pipe"),
    [
        ("saved_model.pb", "variables/variables.index"),
        ("ckpt-3.index", "ckpt-3.data-00000-of-00001"),
        ("model_checkpoint.index", "model_checkpoint.data-00000-of-00001"),
    ],
)
def test_pipe_that_a_framework_would_open_is_refused(tmp_path: Path, file: str, pipe: str) -> None:
    make(tmp_path, file)
    (tmp_path / pipe).parent.mkdir(exist_ok=True)
    os.mkfifo(tmp_path / pipe)
    with pytest.raises(ContentError, match=rf"{pipe}: neither a file nor a folder"):
        recognize(tmp_path)


def test_pipe_that_is_named_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.pt")
    with pytest.raises(ContentError, match=r"x\.pt: neither a file nor a folder"):
        companions(tmp_path / "x.pt")


def test_several_saved_models_are_an_error(tmp_path: Path) -> None:
    make(tmp_path, "b/saved_model.pb", "a/saved_model.pb")
    with pytest.raises(ContentError, match=r"2 SavedModels \(a, b\)"):
        recognize(tmp_path)


@pytest.mark.parametrize(
    ("entrypoint", "found"),
    [
        ("model_def:T", "model_def:T"),
        ("python3 -m determined.launch.torch_distributed --trial pkg.model_def:Outer.T", "pkg.model_def:Outer.T"),
        (["python3", "-m", "determined.exec.harness", "model_def:T"], "model_def:T"),
        ("python3 train.py --lr 0.1", None),
        ({"model_def": "T"}, None),
        (None, None),
    ],
)
def test_trial_class_is_found_in_entrypoints_of_all_years(
    tmp_path: Path, entrypoint: object, found: str | None
) -> None:
    make(tmp_path, "state_dict.pth", "code/model_def.py", metadata={"experiment_config": {"entrypoint": entrypoint}})
    assert recognize(tmp_path).entrypoint == found


@pytest.mark.parametrize(
    ("names", "kind", "file"),
    [
        (["model.safetensors", "training_args.bin", "config.json"], Kind.SAFETENSORS, "model.safetensors"),
        (
            ["model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
            Kind.SAFETENSORS,
            "model.safetensors.index.json",
        ),
        (["pytorch_model.bin.index.json", "a-00001-of-00001.bin"], Kind.TORCH_PARTS, "pytorch_model.bin.index.json"),
        ([".metadata", "__0_0.distcp"], Kind.DISTRIBUTED, "."),
        (["model.keras"], Kind.KERAS_FILE, "model.keras"),
        (["best.h5"], Kind.KERAS_FILE, "best.h5"),
        (["ckpt-3.index", "ckpt-3.data-00000-of-00001", "checkpoint"], Kind.TF_WEIGHTS, "ckpt-3"),
        (["model_checkpoint.weights.h5", "callback_state"], Kind.KERAS_FILE, "model_checkpoint.weights.h5"),
        (["export/saved_model.pbtxt"], Kind.SAVED_MODEL, "export"),
    ],
)
def test_what_people_have_without_determined_is_recognized(
    tmp_path: Path, names: list[str], kind: Kind, file: str
) -> None:
    layout = recognize(make(tmp_path, *names))
    assert (layout.kind, layout.file) == (kind, tmp_path / file)


@pytest.mark.parametrize("suffix", [".safetensors", ".keras", ".h5", ".index"])
def test_several_files_of_one_kind_are_named(tmp_path: Path, suffix: str) -> None:
    make(tmp_path, f"a{suffix}", f"b{suffix}", "a.data-00000-of-00001", "b.data-00000-of-00001")
    with pytest.raises(ContentError, match=r"holds 2 .* \(a.*, b.*\); load one by its path"):
        recognize(tmp_path)


def torch_files(folder: Path, *names: str) -> Path:
    """Make files that begin as torch.save writes, each of its own content."""
    for name in names:
        with zipfile.ZipFile(folder / name, "w") as archive:
            archive.writestr("weights/data.pkl", name)
    return folder


@pytest.mark.parametrize(
    ("names", "file"),
    [
        (["model.pt", "optimizer.pt", "scheduler.pt", "rng_state.pth"], "model.pt"),
        (["pytorch_model_fsdp.bin", "optimizer.bin"], "pytorch_model_fsdp.bin"),
        (["best.pt", "optim.pt"], "best.pt"),
        (["optimizer.pt"], "optimizer.pt"),
        (["checkpoint.pth.tar"], "checkpoint.pth.tar"),
    ],
)
def test_states_beside_a_file_of_torch_are_not_the_model(tmp_path: Path, names: list[str], file: str) -> None:
    make(torch_files(tmp_path, *names), "log.txt", "config.json")
    layout = recognize(tmp_path)
    assert (layout.kind, layout.file) == (Kind.TORCH_FILE, tmp_path / file)


def test_model_of_another_kind_comes_before_states_of_torch(tmp_path: Path) -> None:
    make(torch_files(tmp_path, "optimizer.pt", "scheduler.pt"), "model.h5", "log.txt")
    assert recognize(tmp_path).file == tmp_path / "model.h5"
    (tmp_path / "model.h5").unlink()
    with pytest.raises(ContentError, match=r"2 files of torch \(optimizer\.pt, scheduler\.pt\)"):
        recognize(tmp_path)


@pytest.mark.parametrize(
    ("names", "pattern"),
    [
        (["a.keras", "b.keras"], "a.keras"),
        (["a/saved_model.pb", "b/saved_model.pb"], "a/"),
        (["a-1.index", "a-1.data-00000-of-00001", "b.index", "b.data-00000-of-00001"], "a-1.*"),
    ],
)
def test_pattern_that_chooses_one_of_several_is_said_and_does(tmp_path: Path, names: list[str], pattern: str) -> None:
    with pytest.raises(ContentError, match=rf'or only\(include="{re.escape(pattern)}"\)\.load\(\)'):
        recognize(make(tmp_path / "all", *names))
    chosen = [name for name in names if Selection.of(pattern).takes(name)]
    assert chosen == [name for name in names if name.startswith("a")]
    assert recognize(make(tmp_path / "one", *chosen))


def test_two_names_of_one_file_are_one(tmp_path: Path) -> None:
    torch_files(tmp_path, "epoch_12.pth")
    (tmp_path / "latest.pth").symlink_to("epoch_12.pth")
    os.link(tmp_path / "epoch_12.pth", tmp_path / "last.pth")
    assert recognize(tmp_path).file == tmp_path / "epoch_12.pth"
    with user_folder(tmp_path) as view:
        assert recognize(view).file == view / "epoch_12.pth"
    torch_files(tmp_path, "epoch_11.pth")
    with pytest.raises(ContentError, match=r"2 files of torch \(epoch_11\.pth, epoch_12\.pth\)"):
        recognize(tmp_path)


@pytest.mark.parametrize(
    ("note", "file"),
    [
        ('model_checkpoint_path: "ckpt-2"\nall_model_checkpoint_paths: "ckpt-1"\n', "ckpt-2"),
        ('model_checkpoint_path: "/where/it/was/trained/ckpt-1"\n', "ckpt-1"),
        ('model_checkpoint_path: "ckpt-9"\n', None),
        ("", None),
    ],
)
def test_latest_of_several_tensorflow_checkpoints_is_where_their_note_says(
    tmp_path: Path, note: str, file: str | None
) -> None:
    make(tmp_path, *(f"ckpt-{number}.{end}" for number in (1, 2) for end in ("index", "data-00000-of-00001")))
    (tmp_path / "checkpoint").write_text(note)
    if file is not None:
        assert recognize(tmp_path).file == tmp_path / file
        return
    with pytest.raises(ContentError, match=r"2 TensorFlow checkpoints \(ckpt-1, ckpt-2\)"):
        recognize(tmp_path)


def test_several_indexes_are_called_so(tmp_path: Path) -> None:
    make(tmp_path, "a.safetensors.index.json", "b.safetensors.index.json")
    with pytest.raises(ContentError, match=r"2 indexes of safetensors \(a.*\); load one by its path$"):
        recognize(tmp_path)


def test_model_in_the_users_sources_is_not_the_checkpoint(tmp_path: Path) -> None:
    make(tmp_path, "code/assets/saved_model.pb", "weights/saved_model.pb")
    assert recognize(tmp_path).file == tmp_path / "weights"


def test_one_file_of_any_name_is_recognized_by_how_it_begins(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "weights", "w") as archive:
        archive.writestr("weights/data.pkl", b"")
    assert (recognize(tmp_path).kind, recognize(tmp_path).file) == (Kind.TORCH_FILE, tmp_path / "weights")
    (tmp_path / "weights").write_bytes(b"\x89HDF\r\n\x1a\n")
    assert recognize(tmp_path).kind is Kind.KERAS_FILE
    (tmp_path / "weights").write_bytes(b"none of them")
    with pytest.raises(NotFoundError):
        recognize(tmp_path)
