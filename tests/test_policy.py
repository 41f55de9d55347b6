"""Attack pickles in every form that is known to slip past scanners; each would leave a file behind if it ran."""

from __future__ import annotations

import collections
import datetime
import io
import pickle
import pickletools
import re
import struct
import subprocess
import sys
import tarfile
import time
import warnings
import zipfile
import zoneinfo
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cas.config import Trust
from cas.errors import ContentError, UnsafeContentError
from cas.load.allowlist import Verdict, judge, makes_again
from cas.load.dry_run import names_in
from cas.load.permit import Permit
from cas.load.policy import Policy
from cas.load.scanning import MAGIC, check_torch_file
from cas.load.sources import sources_of

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from cas.load.torch_files import Reading, read_file  # noqa: E402


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """The file that an attack would make."""
    return tmp_path / "it-ran"


class Call:
    """Pickles as a call."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.function, self.args


def touch(trace: Path) -> str:
    return f"touch {trace}"


def string(text: str) -> bytes:
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def attack_system(trace: Path) -> bytes:
    import os

    return pickle.dumps(Call(os.system, touch(trace)), protocol=2)


def attack_eval(trace: Path) -> bytes:
    return pickle.dumps(Call(eval, f"open({str(trace)!r}, 'w').close()"), protocol=2)


def attack_subprocess(trace: Path) -> bytes:
    return pickle.dumps(Call(subprocess.check_output, ["touch", str(trace)]), protocol=2)


def attack_python2_name(trace: Path) -> bytes:
    return b"c__builtin__\neval\n(" + string(f"open({str(trace)!r}, 'w').close()") + b"tR."


def attack_python2_module(trace: Path) -> bytes:
    return b"ccommands\ngetoutput\n(" + string(touch(trace)) + b"tR."


def attack_protocol_0_inst(trace: Path) -> bytes:
    return b"(S'" + touch(trace).encode() + b"'\nios\nsystem\n."


def attack_obj(trace: Path) -> bytes:
    return b"(cos\nsystem\n" + string(touch(trace)) + b"o."


def attack_memo(trace: Path) -> bytes:
    """STACK_GLOBAL whose strings come out of the memo, behind harmless ones."""
    return (
        b"\x80\x04" + string("system") + b"q\x010" + string("posix") + b"q\x020" + string("OrderedDict")
        + b"0h\x02h\x01\x93(" + string(touch(trace)) + b"tR."
    )  # fmt: skip


def attack_memo_swapped(trace: Path) -> bytes:
    """The memo entry is overwritten between two uses: a scanner that fills the memo first sees the other name."""
    return (
        b"\x80\x04" + string("posix") + b"q\x01" + string("system") + b"q\x02\x93q\x03"
        + string("collections") + b"q\x010" + string("OrderedDict") + b"q\x020"
        + b"0h\x03(" + string(touch(trace)) + b"tR."
    )  # fmt: skip


def attack_dup(trace: Path) -> bytes:
    """The strings are followed by opcodes that scanners do not expect before STACK_GLOBAL."""
    return (
        b"\x80\x04" + string("posix") + string("system") + b"20\x94N0\x93(" + string(touch(trace)) + b"tR."
    )  # fmt: skip


def attack_dotted(trace: Path) -> bytes:
    """A dotted name walks from a harmless module into another."""
    return b"\x80\x04" + string("torch.serialization") + string("os.system") + b"\x93(" + string(touch(trace)) + b"tR."


def attack_getattr(trace: Path) -> bytes:
    """getattr on a class leads to its globals."""
    return (
        b"cbuiltins\ngetattr\n(ctorch.nn.modules.linear\nLinear\n" + string("__init__") + b"tR"
        b"q\x010cbuiltins\ngetattr\n(h\x01" + string("__globals__") + b"tR."
    )  # fmt: skip


def attack_after_stop(trace: Path) -> bytes:
    """A broken end: what came before it would have run."""
    return attack_system(trace)[:-1] + b"\xff"


def attack_nested_load(trace: Path) -> bytes:
    """A function of torch that unpickles bytes."""
    from torch.storage import _load_from_bytes  # type: ignore[attr-defined]

    inner = io.BytesIO()
    torch.save(Call(exec, f"open({str(trace)!r}, 'w').close()"), inner)
    return pickle.dumps(Call(_load_from_bytes, inner.getvalue()), protocol=2)


def attack_hidden_call(trace: Path) -> bytes:
    """partial, then a call of what it made."""
    return b"cfunctools\npartial\n(cos\nsystem\n" + string(touch(trace)) + b"tR)R."


def attack_importlib(trace: Path) -> bytes:
    return b"cimportlib\nimport_module\n(" + string("os") + b"tR."


def attack_runpy(trace: Path) -> bytes:
    return b"crunpy\nrun_path\n(" + string(str(trace)) + b"tR."


def attack_pip(trace: Path) -> bytes:
    return b"cpip\nmain\n((lp0\n" + string("download") + b"atR."


def attack_numpy(trace: Path) -> bytes:
    code = f"open({str(trace)!r}, 'w').close()"
    return b"cnumpy.testing._private.utils\nrunstring\n(" + string(code) + b"}tR."


def attack_type_hints(trace: Path) -> bytes:
    """typing.get_type_hints evaluates annotations that are text."""
    code = f"open({str(trace)!r}, 'w').close()"
    return (
        b"ctyping\nget_type_hints\n(ctypes\nSimpleNamespace\n)R}" + string("__annotations__") + b"}" + string("a")
        + string(code) + b"ssbtR."
    )  # fmt: skip


def attack_code_object(trace: Path) -> bytes:
    return b"ctypes\nCodeType\n)R."


def attack_build(trace: Path) -> bytes:
    """BUILD with a state that overwrites what a later opcode calls."""
    return b"ctorch.nn.modules.linear\nLinear\n)\x81}" + string("forward") + b"cos\nsystem\nsb."


def attack_path_method(trace: Path) -> bytes:
    """A method of a plain value that writes a file."""
    return (
        b"cbuiltins\ngetattr\n(cpathlib\nPosixPath\n(" + string(str(trace)) + b"tR" + string("write_text") + b"tR("
        + string("x") + b"tR."
    )  # fmt: skip


def attack_path_function(trace: Path) -> bytes:
    return (
        b"\x80\x04" + string("pathlib") + string("PosixPath.touch") + b"\x93(cpathlib\nPosixPath\n("
        + string(str(trace)) + b"tRtR."
    )  # fmt: skip


def attack_array_method(trace: Path) -> bytes:
    return (
        b"\x80\x04" + string("numpy") + string("ndarray.tofile") + b"\x93(cnumpy\nndarray\n(K\x01tR"
        + string(str(trace)) + b"tR."
    )  # fmt: skip


def attack_map_file(trace: Path) -> bytes:
    """A storage that makes a file."""
    return (
        b"\x80\x04" + string("torch.storage") + string("UntypedStorage.from_file") + b"\x93(" + string(str(trace))
        + b"\x88K\x08tR."
    )  # fmt: skip


def attack_command_module(trace: Path) -> bytes:
    """Importing the module is enough."""
    return b"cpickletools.__main__\nx\n."


def attack_own_code(trace: Path) -> bytes:
    return b"ccas.index.disk\nremove_tree\n(" + string(str(trace)) + b"tR."


def attack_operation_of_torch(trace: Path) -> bytes:
    return b"cbuiltins\ngetattr\n(ctorch._C\n_VariableFunctionsClass\n" + string("from_file") + b"tR."


def attack_change_of_a_class(trace: Path) -> bytes:
    """BUILD on a class replaces its methods for the whole process."""
    return b"ctorch.nn.modules.linear\nLinear\n(N}" + string("forward") + b"cmath\nsqrt\nstb."


def attack_annotations(trace: Path) -> bytes:
    """A package that comes with torch evaluates annotations that are text; what it looks at gets them as its state."""
    code = f"open({str(trace)!r}, 'w').close()"
    return (
        b"ctyping_extensions\nget_annotations\n(cfunctools\npartial\n(cmath\nsqrt\ntR(cmath\nsqrt\n)}}"
        + string("__annotations__") + b"}" + string("a") + string(code) + b"sstb}NN\x88tR."
    )  # fmt: skip


def attack_function_of_a_package(trace: Path) -> bytes:
    """No list names it: it writes a file."""
    return b"cnumpy.rec\nformat_parser\n0\x80\x04" + (
        string("numpy.rec") + string("recarray.tofile") + b"\x93(cnumpy._core.multiarray\n_reconstruct\n("
        + b"cnumpy.rec\nrecarray\n(K\x03tC\x01btR" + string(str(trace)) + b"tR."
    )  # fmt: skip


def attack_library(trace: Path) -> bytes:
    """Loads a library, by a name in a harmless module."""
    return (
        b"\x80\x04" + string("torch.nn.modules.module") + string("torch.classes.load_library") + b"\x93("
        + string(str(trace)) + b"tR."
    )  # fmt: skip


def attack_state_of_a_partial(trace: Path) -> bytes:
    """The function is given as a state, to something made of a harmless one."""
    return b"cfunctools\npartial\n(cmath\nsqrt\ntR(cabsl.app\nrun\n)}Ntb."


def attack_call_of_a_value(trace: Path) -> bytes:
    return b"cfunctools\npartial\n(cmath\nsqrt\ntR(K\x04tR."


def attack_value_to_be_called_later(trace: Path) -> bytes:
    return b"ccollections\ndefaultdict\n(ctorch.nn.modules.linear\nIdentity\n)RtR."


def attack_class_out_of_a_list(trace: Path) -> bytes:
    """BUILD on a class that does not come from a name, but from a list of one."""
    return (
        b"coperator\ngetitem\n((lctorch.nn.modules.linear\nLinear\naK\x00tR(N}" + string("forward")
        + b"cmath\nsqrt\nstb."
    )  # fmt: skip


def attack_address_of_a_tensor(trace: Path) -> bytes:
    """The memory of a tensor is wherever the file says: an argument by name."""
    return b"\x80\x04ctorch\nTensor\n)}" + string("cdata") + b"J\x41\x41\x41\x41s\x92."


def attack_address_of_an_allocator(trace: Path) -> bytes:
    return b"\x80\x04ctorch.storage\nUntypedStorage\n(K\x08t}" + string("allocator") + b"J\x41\x41\x41\x41s\x92."


def attack_address_by_a_function(trace: Path) -> bytes:
    return b"ccopyreg\n__newobj_ex__\n(ctorch\nTensor\n)}" + string("cdata") + b"J\x41\x41\x41\x41stR."


def attack_address_in_a_rebuilt_tensor(trace: Path) -> bytes:
    return (
        b"ctorch._tensor\n_rebuild_from_type_v2\n(ccopyreg\n__newobj_ex__\nctorch\nTensor\n(ctorch\nTensor\n)}"
        + string("cdata") + b"J\x41\x41\x41\x41st}tR."
    )  # fmt: skip


def attack_change_of_a_class_by_a_function(trace: Path) -> bytes:
    return (
        b"ctorch._utils\n_set_obj_state\n(ctorch.nn.modules.linear\nLinear\n}" + string("forward")
        + b"cmath\nsqrt\nstR."
    )  # fmt: skip


def array_type(code: str, fields: bytes, size: int, flags: int) -> bytes:
    """A type of numpy with a state."""
    names = b"(" + string("a") + b"t" if fields != b"N" else b"N"
    state = b"(K\x03" + string("|") + b"N" + names + fields + b"J" + struct.pack("<i", size) + b"K\x01"
    return b"cnumpy\ndtype\n(" + string(code) + b"tR" + state + b"K" + bytes([flags]) + b"tb"


def array_of(kind: bytes) -> bytes:
    """An array of one element, whose bytes are an address."""
    return (
        b"\x80\x03cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tC\x01btR(K\x01(K\x01t" + kind
        + b"\x89C\x08AAAAAAAAtb."
    )  # fmt: skip


def attack_objects_out_of_bytes(trace: Path) -> bytes:
    return array_of(array_type("O8", b"N", -1, 0))


def attack_objects_in_a_field(trace: Path) -> bytes:
    field = b"}" + string("a") + b"(" + array_type("O8", b"N", -1, 63) + b"K\x00ts"
    return array_of(array_type("V8", field, 8, 0))


def attack_field_behind_the_end(trace: Path) -> bytes:
    field = b"}" + string("a") + b"(" + array_type("f8", b"N", -1, 0) + b"M\xff\x7fts"
    return array_of(array_type("V8", field, 8, 0))


def attack_function_in_a_harmless_module(trace: Path) -> bytes:
    """What a module of torch imports for itself: `typing.TypedDict` compiles text."""
    return b"ctorch.optim.lr_scheduler\nTypedDict\n(" + string("N") + b"}" + string("a") + string("exec('')") + b"stR."


ATTACKS: list[Callable[[Path], bytes]] = [
    value for name, value in sorted(globals().items()) if name.startswith("attack_") and callable(value)
]


def zip_file(path: Path, data: bytes) -> Path:
    """A file as torch.save writes them today, with this pickle in it."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", "3\n")
    return path


def legacy_file(path: Path, data: bytes, *, place: int = 3) -> Path:
    """A file as torch before 1.6 wrote them, with this pickle as one of the five."""
    parts = [
        pickle.dumps(MAGIC, 2),
        pickle.dumps(1001, 2),
        pickle.dumps({}, 2),
        pickle.dumps({}, 2),
        pickle.dumps([], 2),
    ]
    parts[place] = data
    path.write_bytes(b"".join(parts))
    return path


def load(path: Path, trust: Trust = Trust.SCAN) -> Any:
    return read_file(path, Reading(Permit(trust)))


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_attack_in_a_zip_file_is_refused_and_nothing_runs(
    attack: Callable[[Path], bytes], tmp_path: Path, trace: Path
) -> None:
    path = zip_file(tmp_path / "model.pth", attack(trace))
    with pytest.raises(UnsafeContentError) as caught:
        load(path)
    assert not trace.exists()
    assert caught.value.exit_code == 9
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
@pytest.mark.parametrize("place", range(5))
def test_attack_in_each_pickle_of_a_legacy_file_is_refused(
    attack: Callable[[Path], bytes], place: int, tmp_path: Path, trace: Path
) -> None:
    path = legacy_file(tmp_path / "model.pth", attack(trace), place=place)
    # Without the number that they all begin with it is no file of torch, and nothing of it is run.
    with pytest.raises((UnsafeContentError, ContentError) if place == 0 else UnsafeContentError):
        load(path)
    assert not trace.exists()


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_attack_is_refused_without_picklescan(
    attack: Callable[[Path], bytes], tmp_path: Path, trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "picklescan.scanner", None)  # what Python does where it is not installed
    with pytest.raises(UnsafeContentError):
        load(zip_file(tmp_path / "model.pth", attack(trace)))
    assert not trace.exists()


def test_the_attacks_do_run_where_everything_is_trusted(tmp_path: Path, trace: Path) -> None:
    load(zip_file(tmp_path / "model.pth", attack_memo(trace)), Trust.ALWAYS)
    assert trace.exists()


def test_swapped_memo_attack_is_one(trace: Path) -> None:
    pickle.loads(attack_memo_swapped(trace))
    assert trace.exists()


def test_refusal_names_what_would_have_been_called(tmp_path: Path, trace: Path) -> None:
    with pytest.raises(UnsafeContentError, match=r"model\.pth: .*posix\.system") as caught:
        load(zip_file(tmp_path / "model.pth", attack_system(trace)))
    assert "CAS_TRUST" in str(caught.value)


def test_zip_that_other_parsers_read_differently_is_judged_by_what_torch_reads(tmp_path: Path, trace: Path) -> None:
    path = tmp_path / "model.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("a/data.pkl", attack_system(trace))
        archive.writestr("a/decoy/data.pkl", pickle.dumps({}, 2))
        archive.writestr("a/version", "3\n")
    data = bytearray(path.read_bytes())
    data[data.rindex(b"PK\x01\x02") + 16] ^= 0xFF  # a CRC that is wrong: Python's zipfile refuses, others do not
    path.write_bytes(data)
    with pytest.raises((UnsafeContentError, ContentError)):
        load(path)
    assert not trace.exists()


def test_tar_format_is_refused(tmp_path: Path, trace: Path) -> None:
    path = tmp_path / "model.pth"
    with tarfile.open(path, "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            data = attack_system(trace)
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    with pytest.raises(UnsafeContentError, match="tar"):
        load(path)
    assert not trace.exists()


def test_plain_pickle_is_refused(tmp_path: Path, trace: Path) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(attack_system(trace))
    with pytest.raises(UnsafeContentError):
        load(path)
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ContentError, match="plain pickle"):
        load(path)
    assert not trace.exists()


def test_alias_in_the_checkpoints_own_code_is_found_out_when_it_is_looked_up(tmp_path: Path, trace: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "model_def.py").write_text("import os\nfrom os import system as harmless_looking\n")
    reading = Reading(Permit(), sources_of(code))
    alias = b"cmodel_def\nharmless_looking\n(" + string(touch(trace)) + b"tR."
    with pytest.raises(UnsafeContentError, match=r"posix\.system"):
        read_file(zip_file(tmp_path / "a.pth", alias), reading)
    module = b"cbuiltins\ngetattr\n(cmodel_def\nos\n" + string("system") + b"tR(" + string(touch(trace)) + b"tR."
    with pytest.raises(UnsafeContentError):
        read_file(zip_file(tmp_path / "b.pth", module), reading)
    dotted = b"\x80\x04" + string("model_def") + string("os.system") + b"\x93(" + string(touch(trace)) + b"tR."
    with pytest.raises(UnsafeContentError):
        read_file(zip_file(tmp_path / "c.pth", dotted), reading)
    assert not trace.exists()


def test_code_that_nobody_vouches_for_does_not_run(tmp_path: Path) -> None:
    path = zip_file(tmp_path / "model.pth", b"cmodel_def\nNet\n)R.")
    with pytest.raises(UnsafeContentError, match=r"model_def\.Net"):
        check_torch_file(path, Policy(vouched=False))
    check_torch_file(path, Policy())


def test_what_torch_itself_saves_is_let_through(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    import random

    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.GELU(), torch.nn.LayerNorm(4), torch.nn.LSTM(4, 2))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 3))[0].sum().backward()
    optimizer.step()
    state = {
        "models_state_dict": [model.state_dict()],
        "optimizers_state_dict": [optimizer.state_dict()],
        "rng_state": {
            "cpu_rng_state": torch.random.get_rng_state(),
            "np_rng_state": numpy.random.get_state(),
            "rand_rng_state": random.getstate(),
            "generator": numpy.random.default_rng(1),
        },
        "values": (1, 2.5, None, b"x", numpy.float64(3.5), torch.float16, torch.device("cpu"), torch.Size([1])),
        "containers": collections.Counter("aab"),
        "sparse": torch.eye(2).to_sparse(),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "path": Path("a/b"),
    }
    for legacy in (False, True):
        path = tmp_path / f"state-{legacy}.pth"
        torch.save(state, path, _use_new_zipfile_serialization=not legacy)
        check_torch_file(path, Policy(vouched=False))
        found = load(path)
        assert torch.equal(found["models_state_dict"][0]["0.weight"], model[0].weight)
    torch.save(model, tmp_path / "model.pth")
    check_torch_file(tmp_path / "model.pth", Policy(vouched=False))
    assert isinstance(load(tmp_path / "model.pth"), torch.nn.Sequential)


@pytest.mark.parametrize("protocol", [2, 4])
def test_plain_values_beside_a_model_are_let_through(tmp_path: Path, protocol: int) -> None:
    zone = zoneinfo.ZoneInfo("UTC")
    values = {
        "saved": datetime.datetime(2024, 5, 1, 12, tzinfo=zone),
        "zone": zone,
        "local": time.gmtime(0),
        "words": re.compile(r"\w+|\d", re.IGNORECASE),
        "bytes": re.compile(b"[a-z]"),
    }
    torch.save(values, tmp_path / "model.pth", pickle_protocol=protocol)
    check_torch_file(tmp_path / "model.pth", Policy(vouched=False))
    assert load(tmp_path / "model.pth") == values
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    torch.save(scaler, tmp_path / "scaler.pth", pickle_protocol=protocol)
    assert load(tmp_path / "scaler.pth").state_dict() == scaler.state_dict()


@pytest.mark.filterwarnings("ignore")  # of a part of torch that moves elsewhere
def test_quantized_modules_are_let_through_and_other_objects_of_c_are_not(tmp_path: Path) -> None:
    from torch.ao.quantization import float_qparams_weight_only_qconfig, quantize_dynamic

    if "fbgemm" not in torch.backends.quantized.supported_engines:
        pytest.skip("this torch has no engine for quantized layers")
    layers = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.LSTM(4, 2)).eval()
    bag = torch.nn.Sequential(torch.nn.EmbeddingBag(10, 4)).eval()
    for model, wanted, kind, x in (
        (layers, {torch.nn.Linear, torch.nn.LSTM}, torch.qint8, torch.rand(5, 2, 3)),
        (bag, {torch.nn.EmbeddingBag: float_qparams_weight_only_qconfig}, torch.quint8, torch.tensor([[1, 2]])),
    ):
        quantized = quantize_dynamic(model, wanted, dtype=kind)
        torch.save(quantized, tmp_path / "model.pth")
        found = load(tmp_path / "model.pth")
        assert all(map(torch.equal, flat(found(x)), flat(quantized(x))))
    made = b"ctorch\nScriptObject\n)\x81"
    for state, refusal in (
        (b"(K\x01" + string("__torch__.torch.classes.dist_c10d.Store") + b"tb", "holds no weights of a quantized"),
        (b"(K\x01K\x02tb", "holds no weights of a quantized"),
        (b"", "holds nothing"),
    ):
        with pytest.raises(UnsafeContentError, match=rf"a torch\.ScriptObject that {refusal}"):
            load(zip_file(tmp_path / "attack.pth", made + state + b"."))


def flat(value: Any) -> list[Any]:
    return [one for part in value for one in flat(part)] if isinstance(value, tuple) else [value]


def test_data_loaders_beside_a_model_are_let_through_and_not_made_by_calls(tmp_path: Path) -> None:
    from torch.utils import data

    rows = data.TensorDataset(torch.arange(8.0))
    part = data.Subset(data.ConcatDataset([rows, rows]), [1, 3, 9])
    loaders = [data.DataLoader(part, batch_size=2), data.DataLoader(rows, sampler=data.WeightedRandomSampler([1.0], 3))]
    torch.save({"model": torch.nn.Linear(1, 1).state_dict(), "loaders": loaders}, tmp_path / "model.pth")
    check_torch_file(tmp_path / "model.pth", Policy(vouched=False))
    first, second = load(tmp_path / "model.pth")["loaders"]
    assert [batch[0].tolist() for batch in first] == [[1.0, 3.0], [1.0]]
    assert len(list(second)) == 3
    for called in (
        b"ctorch.utils.data.dataloader\nDataLoader\n(]tR.",
        b"ctorch.utils.data.dataloader\nExceptionWrapper\n)R.",
        b"ctorch.utils.data._utils.collate\ndefault_collate\n(]tR.",
        b"ctorch.utils.data.datapipes.iter.callable\nMapperIterDataPipe\n)R.",
        b"ctorch.utils.data.dataset\nrandom_split\n(]tR.",
    ):
        with pytest.raises(UnsafeContentError):
            load(zip_file(tmp_path / "called.pth", called))


@pytest.mark.parametrize("module", ["torch.nn.modules.linear", "torch.utils.data.dataset"])
def test_tensor_under_the_name_of_a_module_that_imports_it_gets_no_state(tmp_path: Path, module: str) -> None:
    state = b"(\x89Nccollections\nOrderedDict\n)Rt"  # requires_grad, and hooks
    path = zip_file(tmp_path / "model.pth", b"c" + module.encode() + b"\nTensor\n)\x81" + state + b"b.")
    with pytest.raises(UnsafeContentError, match=r"another name of torch\.Tensor"):
        load(path)


def test_pattern_is_made_of_text_and_nothing_else(tmp_path: Path) -> None:
    with pytest.raises(UnsafeContentError, match=r"re\._compile what does not belong there"):
        load(zip_file(tmp_path / "model.pth", b"cre\n_compile\n(ccollections\nOrderedDict\n)RK\x00tR."))
    with pytest.raises(UnsafeContentError, match=r"re\.compile"):
        load(zip_file(tmp_path / "model.pth", b"cre\ncompile\n(X\x01\x00\x00\x00atR."))


def test_times_of_pandas_are_made_by_functions_that_may_be_called() -> None:
    assert makes_again("pandas._libs.tslibs.timestamps", "_unpickle_timestamp")
    assert makes_again("pandas._libs.tslibs.timedeltas", "_timedelta_unpickle")
    assert makes_again("pandas._libs.tslibs.nattype", "_nat_unpickle")
    assert not makes_again("pandas._libs.tslibs.timestamps", "_unpickle_anything")


def test_functions_of_torch_in_a_module_are_let_through(tmp_path: Path) -> None:
    model = torch.nn.TransformerEncoderLayer(4, 2, 8, activation=torch.nn.functional.gelu)
    model.extra = torch.tanh
    torch.save(model, tmp_path / "model.pth")
    assert load(tmp_path / "model.pth").extra is torch.tanh


def test_arrays_of_all_types_are_let_through(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    inner = numpy.dtype([("a", "f4"), ("b", "O")])
    types = ["?", "i1", "<u2", ">f8", "c16", "U5", "S3", "V7", "O", "M8[ns]", "m8[D]", "(2,3)f4", inner]
    types += [
        [("x", "f4", (2,)), ("y", inner), ("z", "U2")],
        numpy.dtype({"names": ["p"], "formats": ["i4"], "offsets": [4], "itemsize": 16}),
        numpy.dtype([("a", "i1"), ("b", "f8")], align=True),
        numpy.dtype("i4", metadata={"a": 1}),
    ]
    for kind in types:
        value = [numpy.zeros(3, kind), numpy.zeros(1, kind)[0]]
        torch.save(value, tmp_path / "model.pth")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy's, about metadata
            found, wanted = load(tmp_path / "model.pth"), pickle.loads(pickle.dumps(value, 2))
        assert found[0].dtype == wanted[0].dtype and (found[0] == wanted[0]).all()
    for value in (numpy.rec.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]), numpy.random.default_rng(1)):
        torch.save(value, tmp_path / "model.pth")
        assert type(load(tmp_path / "model.pth")) is type(value)


def test_functions_of_packages_may_be_stored_and_not_called(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    model = torch.nn.Linear(2, 2)
    model.extra = [numpy.linalg.norm]
    torch.save(model, tmp_path / "model.pth")
    assert load(tmp_path / "model.pth").extra == [numpy.linalg.norm]
    called = b"cnumpy.linalg\nnorm\n((lK\x03aK\x04atR."
    with pytest.raises(UnsafeContentError, match=r"numpy\.linalg\.norm"):
        load(zip_file(tmp_path / "called.pth", called))
    assert load(zip_file(tmp_path / "called.pth", called), Trust.ALWAYS) == 5


def test_values_that_packages_make_by_functions_are_let_through(tmp_path: Path) -> None:
    neighbors = pytest.importorskip("sklearn.neighbors")
    numpy = pytest.importorskip("numpy")
    tree = neighbors.KDTree(numpy.eye(4))
    torch.save({"tree": tree, "masked": numpy.ma.masked_array([1, 2], [0, 1])}, tmp_path / "model.pth")
    found = load(tmp_path / "model.pth")
    assert found["tree"].query(numpy.eye(4)[:1])[0] == 0
    assert found["masked"].sum() == 1


def test_own_code_may_call_its_functions_and_values(tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "model_def.py").write_text(
        "class Scale:\n    def __call__(self, x): return 2 * x\ndef make(): return Scale()\n"
    )
    data = b"cmodel_def\nmake\n)R0cmodel_def\nScale\n)R(K\x03tR."
    assert read_file(zip_file(tmp_path / "a.pth", data), Reading(Permit(), sources_of(code))) == 6


@pytest.mark.parametrize("protocol", [2, 4])
def test_private_methods_that_a_module_keeps_as_hooks_are_let_through(tmp_path: Path, protocol: int) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "model_def.py").write_text("""
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self._register_load_state_dict_pre_hook(self._rename)
        self.layer.register_forward_hook(self._double)
        self.after, self.plain = self._negate, Net._identity
    def _rename(self, state, prefix, *_):
        state[prefix + "layer.weight"] = state.pop(prefix + "old.weight")
    def _double(self, layer, inputs, output):
        return 2 * output
    def _negate(self, x):
        return -x
    @staticmethod
    def _identity(x):
        return x
    def forward(self, x):
        return self.plain(self.after(self.layer(x)))
""")
    script = "import torch; from model_def import Net; torch.save(Net(), '../model.pth', pickle_protocol={})"
    subprocess.run([sys.executable, "-c", script.format(protocol)], check=True, cwd=code)
    model = read_file(tmp_path / "model.pth", Reading(Permit(), sources_of(code)))
    model.load_state_dict({"old.weight": torch.eye(2), "layer.bias": torch.zeros(2)})
    assert torch.equal(model(torch.ones(2)), torch.tensor([-2.0, -2.0]))
    for attribute in ("__init__", "_apply"):  # of torch's own class, and not of what somebody vouches for
        taken = b"cbuiltins\ngetattr\n(ctorch.nn.modules.linear\nLinear\n)R" + string(attribute) + b"tR."
        with pytest.raises(UnsafeContentError, match=f"takes the attribute '{attribute}'"):
            load(zip_file(tmp_path / "taken.pth", taken))


def test_trust_never_loads_weights_and_nothing_else(tmp_path: Path, trace: Path) -> None:
    model = torch.nn.Linear(2, 2)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    torch.save(model, tmp_path / "model.pth")
    assert load(tmp_path / "weights.pth", Trust.NEVER).keys() == {"weight", "bias"}
    with pytest.raises(UnsafeContentError, match="never"):
        load(tmp_path / "model.pth", Trust.NEVER)
    with pytest.raises(UnsafeContentError, match="never"):
        load(zip_file(tmp_path / "attack.pth", attack_system(trace)), Trust.NEVER)
    assert not trace.exists()


def test_dry_run_reads_exactly_one_pickle() -> None:
    stream = io.BytesIO(pickle.dumps(collections.OrderedDict(a=1), 2) + b"rest")
    names, _ = names_in(stream)
    assert names == [("collections", "OrderedDict")]
    assert stream.read() == b"rest"


def test_every_stdlib_name_outside_the_list_is_dangerous() -> None:
    for module, name in [
        ("os", "system"),
        ("shutil", "rmtree"),
        ("ctypes", "CDLL"),
        ("code", "interact"),
        ("io", "open"),
    ]:
        assert judge(module, name) is Verdict.DANGEROUS
    assert judge("collections", "OrderedDict") is Verdict.HARMLESS
    assert judge("timm.models.resnet", "ResNet") is Verdict.VOUCHED
    assert judge("torch.nn.modules.linear", "Linear") is Verdict.HARMLESS


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_attacks_are_pickles(attack: Callable[[Path], bytes], trace: Path) -> None:
    """Each can be disassembled up to what makes it bad, so none is refused for being garbage."""
    opcodes = []
    try:
        opcodes.extend(opcode.name for opcode, _, _ in pickletools.genops(attack(trace)))
    except ValueError:
        assert attack is attack_after_stop
    assert attack is attack_after_stop or opcodes[-1] == "STOP"


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_torchscript_that_writes_files_is_refused(tmp_path: Path, trace: Path) -> None:
    # In another process: the compiler is deprecated in today's torch, and wants the source in a file.
    (tmp_path / "make.py").write_text(f"""
import warnings; warnings.simplefilter("ignore")
import torch
class Harmless(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.ones(2)
    @torch.jit.export
    def __getstate__(self):
        return (self.weight, self.training)
    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]):
        self.weight = state[0]
        self.training = state[1]
    def forward(self, x):
        return x * self.weight
class Hostile(Harmless):
    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]):
        self.weight = state[0]
        self.training = state[1]
        torch.save(self.weight, {str(trace)!r})
torch.jit.script(Harmless()).save({str(tmp_path / "harmless.pth")!r})
torch.jit.script(Hostile()).save({str(tmp_path / "hostile.pth")!r})
""")
    subprocess.run([sys.executable, str(tmp_path / "make.py")], check=True)
    assert torch.equal(load(tmp_path / "harmless.pth")(torch.ones(2)), torch.ones(2))
    with pytest.raises(UnsafeContentError, match="save"):
        load(tmp_path / "hostile.pth")
    assert not trace.exists()
    load(tmp_path / "hostile.pth", Trust.ALWAYS)
    assert trace.exists()


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_torchscript_of_models_with_numbered_layers_loads(tmp_path: Path) -> None:
    (tmp_path / "make.py").write_text(f"""
import warnings; warnings.simplefilter("ignore")
import torch
from torch import nn
class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.down = nn.ModuleList([nn.Conv2d(width, width, 1)])
        self.save = True
    def forward(self, x):
        y = self.body(x)
        for layer in self.down:
            y = layer(y)
        save = x + y
        if bool(save.sum() > 0):
            save = save + 1
        return save
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(Block(2), nn.Sequential(Block(2), Block(2)))
        self.heads = nn.ModuleDict({{"a-1": nn.Linear(2, 2), "b c": nn.Linear(2, 2)}})
    def forward(self, x):
        x = self.layers(x).mean((2, 3))
        for head in self.heads.values():
            x = head(x)
        return x
model, x = Net().eval(), torch.rand(1, 2, 4, 4)
torch.jit.script(model).save({str(tmp_path / "scripted.pt")!r})
torch.jit.trace(model, x).save({str(tmp_path / "traced.pt")!r})
torch.jit.freeze(torch.jit.script(model)).save({str(tmp_path / "frozen.pt")!r})
torch.jit.script(nn.Sequential(nn.Linear(4, 3))).save({str(tmp_path / "sequential.pt")!r})
torch.save((x, model(x)), {str(tmp_path / "expected.pt")!r})
""")
    subprocess.run([sys.executable, str(tmp_path / "make.py")], check=True)
    x, expected = torch.load(tmp_path / "expected.pt")
    for name in ("scripted", "traced", "frozen"):
        assert torch.allclose(load(tmp_path / f"{name}.pt")(x), expected, atol=1e-6)
    assert load(tmp_path / "sequential.pt")(torch.rand(2, 4)).shape == (2, 3)
