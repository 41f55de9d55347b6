"""Plain pickles: what pickle.dump and cloudpickle.dump wrote, loaded under the same policy as files of torch."""

from __future__ import annotations

import io
import logging
import os
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import cas
from cas.checkpoint import Checkpoint
from cas.config import Settings, Trust
from cas.errors import CasError, ContentError, NotFoundError, UnsafeContentError, UsageError
from cas.load.layouts import Kind, recognize
from cas.load.loading import load_folder
from cas.load.permit import Permit
from cas.load.sources import sources_of

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch


def seeded() -> Any:
    torch.manual_seed(5)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))


def same(model: Any) -> bool:
    x = torch.linspace(-1, 1, 6).reshape(2, 3)
    with torch.no_grad():
        return torch.equal(model.eval()(x), seeded().eval()(x))


class Call:
    """Pickles as a call."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.function, self.args


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", ["model.pkl", "net.pickle"])
def test_pickled_module_loads(tmp_path: Path, protocol: int, name: str) -> None:
    (tmp_path / name).write_bytes(pickle.dumps(seeded(), protocol))
    assert recognize(tmp_path).kind is Kind.PICKLE
    assert same(load_folder(tmp_path))


@pytest.mark.parametrize("name", ["model.bin", "net.pt", "model.pth", "last.ckpt", "state_dict.pth", "anything"])
def test_pickle_under_a_name_of_torchs_is_known_by_how_it_begins(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(pickle.dumps(seeded()))
    assert same(load_folder(tmp_path))


def test_pickled_module_loads_out_of_the_store_and_into_a_model_of_the_callers(tmp_path: Path) -> None:
    settings = Settings.load(home=tmp_path / "home")
    for name, value in (("a", seeded()), ("b", {"epoch": 3, "model": seeded().state_dict()})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.pkl").write_bytes(pickle.dumps(value))
    assert same(cas.add(tmp_path / "a", settings=settings).load())
    filled = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
    assert same(cas.add(tmp_path / "b", settings=settings).load(model=filled))
    assert Checkpoint.load_from_path(tmp_path / "b", only="model").keys() == seeded().state_dict().keys()
    again = cas.add(tmp_path / "a", settings=settings)
    assert same(again.load())  # the verdict is remembered, and its tensors are judged all the same


def test_classes_of_code_are_found(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "own_net.py").write_text("import torch\n\n\nclass Net(torch.nn.Linear):\n    pass\n")
    net = sources_of(tmp_path / "code").load("own_net").Net(2, 2)
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(net))
    assert b"own_net" in (tmp_path / "model.pkl").read_bytes()
    assert type(load_folder(tmp_path)) is type(net)


def test_pickle_needs_no_torch_where_nothing_of_torch_is_in_it(tmp_path: Path, caplog: Any) -> None:
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(["a", 1]))
    script = f"""
        import sys
        from pathlib import Path
        sys.modules["torch"] = None  # what Python does where it is not installed
        from cas.load.loading import load_folder
        print(load_folder(Path({os.fspath(tmp_path)!r})))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, capture_output=True, text=True)
    assert done.stdout == "['a', 1]\n"
    with caplog.at_level(logging.WARNING, "cas"):
        assert load_folder(tmp_path) == ["a", 1]
    assert "no torch module and no weights" in caplog.text


def test_missing_torch_is_said_where_it_is_needed(tmp_path: Path) -> None:
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(seeded()))
    script = f"""
        import sys
        from pathlib import Path
        sys.modules["torch"] = None
        from cas.errors import CasError
        from cas.load.loading import load_folder
        try:
            load_folder(Path({os.fspath(tmp_path)!r}))
        except CasError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, capture_output=True, text=True)
    assert "pip install 'checkpoint-cas[torch]'" in done.stdout and done.stdout.count("\n") == 1


def test_tensor_of_a_gpu_is_put_where_there_is_a_place(tmp_path: Path) -> None:
    data = pickle.dumps(torch.arange(4.0))
    assert data.count(b"X\x03\x00\x00\x00cpu") == 1
    shifted = data.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
    # The bytes that hold its memory are longer by three; their length is told before them, as is that of the frame.
    at = data.rindex(b"B", 0, data.index(b"l\xfc\x9cF"))
    length = int.from_bytes(data[at + 1 : at + 5], "little")
    frame = int.from_bytes(data[3:11], "little")
    changed = bytearray(shifted)
    changed[at + 1 : at + 5] = (length + 3).to_bytes(4, "little")
    changed[3:11] = (frame + 3).to_bytes(8, "little")
    (tmp_path / "model.pkl").write_bytes(changed)
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError):
            pickle.loads(changed)
    assert torch.equal(load_folder(tmp_path).cpu(), torch.arange(4.0))
    assert load_folder(tmp_path, map_location="meta").device.type == "meta"


# --- the policy --------------------------------------------------------------------------------------------------


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """The file that an attack would make."""
    return tmp_path / "it-ran"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "c"
    made.mkdir()
    return made


def refused(folder: Path, data: bytes, trace: Path, name: str = "model.pkl") -> str:
    (folder / name).write_bytes(data)
    with pytest.raises(UnsafeContentError) as caught:
        load_folder(folder)
    assert not trace.exists() and "\n" not in str(caught.value) and caught.value.exit_code == 9
    return str(caught.value)


def attack(trace: Path) -> Any:
    return Call(exec, f"open({os.fspath(trace)!r}, 'w').close()")


@pytest.mark.parametrize("name", ["model.pkl", "model.bin", "model.pth", "x.pickle", "whatever"])
def test_attack_is_refused_under_any_name(folder: Path, trace: Path, name: str) -> None:
    assert "builtins.exec" in refused(folder, pickle.dumps([seeded(), attack(trace)]), trace, name)


def test_attack_in_a_tensors_memory_is_refused(folder: Path, trace: Path) -> None:
    from torch.storage import _load_from_bytes  # type: ignore[attr-defined]

    for options in ({}, {"_use_new_zipfile_serialization": False}):
        inner = io.BytesIO()
        torch.save(attack(trace), inner, **options)
        message = refused(folder, pickle.dumps(Call(_load_from_bytes, inner.getvalue())), trace)
        assert "a tensor's memory" in message and "builtin" in message and ".exec" in message
        within = io.BytesIO()  # a tensor's memory in a tensor's memory
        torch.save(Call(_load_from_bytes, inner.getvalue()), within, **options)
        refused(folder, pickle.dumps(Call(_load_from_bytes, within.getvalue())), trace)


def _with_state(state: object) -> bytes:
    """BUILD on the function that loads a tensor's memory."""
    return b"\x80\x02ctorch.storage\n_load_from_bytes\n" + pickle.dumps(state, 2)[2:-1] + b"b."


@pytest.mark.parametrize(
    "data",
    [
        _with_state({"_take": 1}),
        _with_state((None, {"_take": 1, "__defaults__": (1,)})),
        b"\x80\x02ctorch.storage\n_load_from_bytes\nK\x01\x85R.",
        b"cbuiltins\ngetattr\n(ctorch.storage\n_load_from_bytes\nX\x0b\x00\x00\x00__globals__tR.",
        b"cbuiltins\ngetattr\n(ctorch.storage\n_load_from_bytes\nX\x05\x00\x00\x00_taketR.",
    ],
    ids=range(5),
)
def test_what_loads_a_tensors_memory_cannot_be_turned_to_something_else(folder: Path, trace: Path, data: bytes) -> None:
    refused(folder, data, trace)


@pytest.mark.parametrize("code", [b")R.", b")\x81."], ids=range(2))
def test_what_loads_a_tensors_memory_loads_nothing_without_bytes(folder: Path, code: bytes) -> None:
    (folder / "model.pkl").write_bytes(b"\x80\x02ctorch.storage\n_load_from_bytes\n" + code)
    with pytest.raises(ContentError, match="not a pickle that can be read to its end"):
        load_folder(folder)


def test_a_file_of_torch_still_may_not_name_what_loads_bytes(folder: Path) -> None:
    torch.save({"a": Call(torch.storage._load_from_bytes, b"")}, folder / "model.pth")
    with pytest.raises(UnsafeContentError, match="_load_from_bytes"):
        load_folder(folder)


def test_second_pickle_in_the_file_is_not_run(folder: Path, trace: Path) -> None:
    (folder / "model.pkl").write_bytes(pickle.dumps(seeded()) + pickle.dumps(attack(trace)))
    assert same(load_folder(folder))
    assert not trace.exists()


@pytest.mark.parametrize("trust", [Trust.NEVER, Trust.SCAN])
def test_where_only_safe_formats_load_a_pickle_is_none(folder: Path, trust: Trust) -> None:
    (folder / "model.pkl").write_bytes(pickle.dumps(seeded()))
    permit = Permit(trust, None if trust is Trust.NEVER else "it was pulled from a bare URL")
    with pytest.raises(UnsafeContentError, match=r"model\.pkl: a plain pickle, which calls what it names, and"):
        load_folder(folder, permit=permit)
    with pytest.raises(UnsafeContentError, match="weights_only"):
        load_folder(folder, weights_only=True)
    with pytest.raises(UsageError, match="no argument 'mmap'"):
        load_folder(folder, mmap=True)


def test_sparse_tensor_is_looked_at_where_the_user_has_torch_do_so(folder: Path) -> None:
    bad = torch.sparse_coo_tensor(torch.tensor([[9]]), torch.ones(1), (2,), check_invariants=False)
    (folder / "model.pkl").write_bytes(pickle.dumps({"a": bad}))
    assert load_folder(folder)["a"].shape == (2,)  # as torch.load has it: looking costs time
    with torch.sparse.check_sparse_tensor_invariants(), pytest.raises(ContentError, match="cannot be made"):
        load_folder(folder)


@pytest.mark.parametrize("keep", [0, 1, 50, 700, -1])
def test_torn_pickle_is_an_error_of_one_line(folder: Path, keep: int) -> None:
    (folder / "model.pkl").write_bytes(pickle.dumps(seeded())[:keep])
    for trust in (Trust.SCAN, Trust.ALWAYS):
        with pytest.raises((ContentError, UnsafeContentError)) as caught:
            load_folder(folder, permit=Permit(trust))
        assert "\n" not in str(caught.value) and "model.pkl" in str(caught.value)


# --- cloudpickle -------------------------------------------------------------------------------------------------


NOTEBOOK = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(2, 2)

    def forward(self, x):
        return self.inner(x) * factor

factor = 3.0
torch.manual_seed(0)
net = Net()
"""


def by_value(path: Path) -> None:
    """A module whose class is stored in the file, with its code: how notebooks save what they define."""
    cloudpickle = pytest.importorskip("cloudpickle")
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(NOTEBOOK, names)
    path.write_bytes(cloudpickle.dumps(names["net"]))


def test_cloudpickle_with_code_in_it_loads_where_code_may_run_unseen(folder: Path, trace: Path) -> None:
    by_value(folder / "model.pkl")
    data = (folder / "model.pkl").read_bytes()
    message = refused(folder, data, trace)
    assert "cloudpickle" in message and "holds code of its own" in message and "trust='always'" in message
    model = load_folder(folder, permit=Permit(Trust.ALWAYS))
    torch.manual_seed(0)
    inner = torch.nn.Linear(2, 2)
    assert torch.equal(model(torch.ones(1, 2)), inner(torch.ones(1, 2)) * 3.0)


def test_cloudpickle_of_what_others_define_is_a_plain_pickle(folder: Path) -> None:
    cloudpickle = pytest.importorskip("cloudpickle")
    (folder / "model.pkl").write_bytes(cloudpickle.dumps(seeded()))
    assert same(load_folder(folder))


def _function() -> int:
    return 1


FORMS: list[Callable[[Any, Path], Any]] = [
    lambda cloudpickle, trace: cloudpickle.dumps(lambda: 1),
    lambda cloudpickle, trace: cloudpickle.dumps([os]),
    lambda cloudpickle, trace: pickle.dumps(Call(cloudpickle.loads, pickle.dumps(attack(trace)))),
    lambda cloudpickle, trace: b"cjoblib.externals.cloudpickle.cloudpickle\nsubimport\n(X\x02\x00\x00\x00ostR.",
    lambda cloudpickle, trace: b"cray.cloudpickle\nloads\n(C\x01NtR.",
    lambda cloudpickle, trace: b"cpyspark.cloudpickle.cloudpickle\n_make_function\n(NtR.",
]


@pytest.mark.parametrize("form", FORMS, ids=range(len(FORMS)))
def test_every_copy_of_cloudpickle_is_code(folder: Path, trace: Path, form: Callable[[Any, Path], bytes]) -> None:
    cloudpickle = pytest.importorskip("cloudpickle")
    assert "cloudpickle" in refused(folder, form(cloudpickle, trace), trace)


# --- which file counts -------------------------------------------------------------------------------------------


def test_states_beside_a_model_are_no_models(folder: Path) -> None:
    for name in ("trial_state.pkl", "random_states_0.pkl", "optimizer.pkl", "scheduler.bin", "training_args.bin"):
        (folder / name).write_bytes(pickle.dumps({}))
    with pytest.raises(NotFoundError, match=r"no model in .*\.pkl or \.pickle"):
        load_folder(folder)
    (folder / "tokenizer.pkl").write_bytes(pickle.dumps({}))
    (folder / "model.pkl").write_bytes(pickle.dumps(seeded()))
    assert recognize(folder).file == folder / "model.pkl"
    torch.save(seeded(), folder / "net.pt")
    assert recognize(folder).kind is Kind.TORCH_FILE
    (folder / "net.pt").unlink()
    (folder / "model.pkl").rename(folder / "other.pkl")
    with pytest.raises(ContentError, match=r"2 plain pickles \(other\.pkl, tokenizer\.pkl\)"):
        load_folder(folder)
    assert same(Checkpoint.load_from_path(folder / "other.pkl"))


def test_missing_class_is_one_line(folder: Path) -> None:
    for data, error in ((b"cnot_there\nThing\n)R.", NotFoundError), (b"cpackaging.version\nNope\n)R.", CasError)):
        (folder / "model.pkl").write_bytes(data)
        with pytest.raises(error) as caught:
            load_folder(folder)
        assert "\n" not in str(caught.value) and "model.pkl" in str(caught.value)


def test_what_joblib_wrote_is_said_to_be_so(folder: Path) -> None:
    joblib = pytest.importorskip("joblib")
    numpy = pytest.importorskip("numpy")
    joblib.dump({"coefficients": numpy.arange(6.0)}, folder / "model.pkl")
    with pytest.raises(ContentError, match=r"model\.pkl: joblib wrote it, in a format that .* \(joblib\.load does\)"):
        load_folder(folder)
    joblib.dump({"coefficients": [1.0, 2.0]}, folder / "model.pkl")  # without arrays it is a plain pickle
    assert load_folder(folder) == {"coefficients": [1.0, 2.0]}
