"""Files that are built to be read differently by a scanner and by the framework, and files beside a model."""

from __future__ import annotations

import copyreg
import io
import json
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cas.errors import CasError, ContentError, NotFoundError, UnsafeContentError
from cas.load.allowlist import Verdict, judge
from cas.load.loading import load_folder

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """The file that an attack would make."""
    return tmp_path / "it-ran"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "c"
    made.mkdir()
    return made


def attack(trace: Path) -> bytes:
    return (
        b"\x80\x02cposix\nsystem\nX" + struct.pack("<I", len(f"touch {trace}")) + f"touch {trace}".encode() + b"\x85R."
    )


HARMLESS = pickle.dumps({"a": 1}, 2)


def zipped(*members: tuple[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytearray:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", compression) as archive:
        warnings.simplefilter("ignore")  # two files of one name
        for name, data in members:
            archive.writestr(name, data)
    return bytearray(buffer.getvalue())


def refused_or_harmless(folder: Path, data: bytes, trace: Path, name: str = "model.pth") -> object:
    """Load a file: whatever comes of it, the attack does not run. Returns the error, or what was loaded."""
    (folder / name).write_bytes(data)
    try:
        return load_folder(folder)
    except CasError as error:
        assert "\n" not in str(error)
        return error
    finally:
        assert not trace.exists()


# --- zip tricks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["harmless first", "attack first"])
def test_two_pickles_of_one_name(folder: Path, trace: Path, order: str) -> None:
    members = [("a/data.pkl", HARMLESS), ("a/data.pkl", attack(trace))]
    data = zipped(*(members if order == "harmless first" else reversed(members)), ("a/version", b"3\n"))
    refused_or_harmless(folder, data, trace)


@pytest.mark.parametrize("decoy", ["a/sub/data.pkl", "b/data.pkl", "data.pkl", "a/DATA.PKL", "a//data.pkl"])
def test_decoy_of_a_similar_name(folder: Path, trace: Path, decoy: str) -> None:
    for members in (
        [(decoy, HARMLESS), ("a/data.pkl", attack(trace))],
        [("a/data.pkl", attack(trace)), (decoy, HARMLESS)],
    ):
        refused_or_harmless(folder, zipped(*members, ("a/version", b"3\n")), trace)


def test_central_directory_that_tells_another_name_than_the_file(folder: Path, trace: Path) -> None:
    data = zipped(("a/other.pk", attack(trace)), ("a/version", b"3\n"))
    at = data.rindex(b"a/other.pk")
    data[at : at + 10] = b"a/data.pkl"
    assert isinstance(refused_or_harmless(folder, data, trace), CasError)


def test_central_directory_that_leads_to_another_file(folder: Path, trace: Path) -> None:
    data = zipped(("a/data.pkl", HARMLESS.ljust(len(attack(trace)), b"\0")), ("a/x", attack(trace)))
    first = data.index(b"PK\x01\x02")
    second = data.index(b"PK\x01\x02", first + 4)
    data[first + 42 : first + 46] = data[second + 42 : second + 46]  # where it begins
    data[first + 16 : first + 20] = data[second + 16 : second + 20]  # its CRC
    refused_or_harmless(folder, data, trace)


@pytest.mark.parametrize(
    ("field", "value"),
    [(8, b"\x01\x00"), (8, b"\x09\x00"), (8, b"\xff\xff"), (16, b"\0\0\0\0"), (10, b"\x63\x00"), (6, b"\xff\x00")],
    ids=["encrypted", "encrypted, with a descriptor", "all flags", "bad CRC", "unknown compression", "newer version"],
)
def test_headers_that_other_readers_give_up_on(folder: Path, trace: Path, field: int, value: bytes) -> None:
    data = zipped(("a/data.pkl", attack(trace)), ("a/version", b"3\n"))
    for signature, shift in ((b"PK\x01\x02", 0), (b"PK\x03\x04", -2)):
        changed = bytearray(data)
        at = changed.index(signature) + field + shift
        changed[at : at + len(value)] = value
        assert isinstance(refused_or_harmless(folder, changed, trace), CasError)


def test_compressed_pickle_is_scanned(folder: Path, trace: Path) -> None:
    data = zipped(("a/data.pkl", attack(trace)), ("a/version", b"3\n"), compression=zipfile.ZIP_DEFLATED)
    assert isinstance(refused_or_harmless(folder, data, trace), UnsafeContentError)


@pytest.mark.parametrize("start", [b"", b"\0" * 64, b"#!/bin/sh\n", b"7z\xbc\xaf\x27\x1c"])
def test_archive_behind_something_else_is_read_as_what_torch_reads(folder: Path, trace: Path, start: bytes) -> None:
    both = start + attack(trace) + zipped(("a/data.pkl", HARMLESS), ("a/version", b"3\n"))
    assert isinstance(refused_or_harmless(folder, both, trace), CasError)
    assert isinstance(refused_or_harmless(folder, start + zipped(("a/data.pkl", attack(trace))), trace), CasError)


@pytest.mark.parametrize("start", [b"7z\xbc\xaf\x27\x1c", b"\x1f\x8b\x08", b"Rar!\x1a\x07", b"BZh9", b"\xfd7zXZ\0"])
def test_other_archives_are_no_files_of_torch(folder: Path, trace: Path, start: bytes) -> None:
    for name in ("model.pth", "weights.pt", "any.bin"):
        error = refused_or_harmless(folder, start + attack(trace), trace, name)
        assert isinstance(error, ContentError | NotFoundError | UnsafeContentError)
        (folder / name).unlink()


def test_attack_in_a_record_that_nobody_reads_does_nothing(folder: Path, trace: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(1)}, buffer)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("archive/extra.pkl", attack(trace))
    found = refused_or_harmless(folder, buffer.getvalue(), trace)
    assert isinstance(found, dict)


# --- opcodes -----------------------------------------------------------------------------------------------------


@pytest.fixture
def extension() -> Iterator[int]:
    """A code that this process has registered for a name: what a pickle calls by number."""
    copyreg.add_extension("posix", "system", 0xF0)
    yield 0xF0
    copyreg.remove_extension("posix", "system", 0xF0)


def test_name_behind_a_registered_number_is_refused(folder: Path, trace: Path, extension: int) -> None:
    command = f"touch {trace}".encode()
    data = b"\x80\x02\x82" + bytes([extension]) + b"X" + struct.pack("<I", len(command)) + command + b"\x85R."
    error = refused_or_harmless(folder, zipped(("a/data.pkl", data), ("a/version", b"3\n")), trace)
    assert isinstance(error, UnsafeContentError) and "extension codes" in str(error)


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02\x82\xf1.",  # a number that nobody registered
        b"\x80\x05\x97.",  # a buffer from outside
        b"\x80\x05\x97\x98.",
        b"\x80\xff.",  # a protocol of the future
        b"\x80\x02(" * 10_000 + b".",
        b"\x80\x02]q\0h\0a.",  # a list in itself
        b"\x80\x02X\xff\xff\xff\x7f.",  # text that is not there
        b"",
        b".",
        b"\x80\x02N",
    ],
    ids=range(10),
)
def test_odd_pickles_end_in_one_line_or_a_value(folder: Path, trace: Path, data: bytes) -> None:
    refused_or_harmless(folder, zipped(("a/data.pkl", data), ("a/version", b"3\n")), trace)


DANGEROUS = """
    os.system posix.system nt.system subprocess.Popen subprocess.run builtins.eval builtins.exec builtins.compile
    builtins.__import__ builtins.open builtins.map builtins.globals builtins.vars builtins.setattr
    builtins.delattr operator.attrgetter operator.methodcaller operator.call operator.setitem functools.reduce
    functools.partialmethod importlib.import_module runpy.run_module runpy._run_code pickle.loads _pickle.loads
    pickle.Unpickler marshal.loads types.CodeType types.FunctionType types.MethodType code.InteractiveInterpreter
    timeit.timeit cProfile.run profile.run bdb.Bdb.run pdb.run trace.Trace.runctx doctest.debug_script
    pydoc.pipepager pty.spawn ensurepip._run_pip asyncio.create_subprocess_shell
    asyncio.unix_events._UnixSubprocessTransport._start idlelib.calltip.get_entity
    idlelib.pyshell.ModifiedInterpreter.runcode lib2to3.pgen2.grammar.Grammar.loads
    lib2to3.pgen2.pgen.ParserGenerator test.support.script_helper.assert_python_ok _aix_support._read_cmd_output
    _osx_support._read_output webbrowser.open logging.config.listen logging.FileHandler shutil.rmtree shelve.open
    sqlite3.connect socket.socket smtplib.SMTP imaplib.IMAP4_stream http.client.HTTPConnection
    urllib.request.urlopen ssl.get_server_certificate ctypes.CDLL ctypes.util.find_library zipimport.zipimporter
    pkgutil.resolve_name site.addsitedir multiprocessing.Process codecs.open io.FileIO tempfile.NamedTemporaryFile
    threading.Thread weakref.finalize atexit.register signal.signal xml.etree.ElementTree.parse
    distutils.spawn.spawn venv.create zipfile.ZipFile tarfile.open gc.get_objects inspect.getattr_static
    sys.settrace sys.modules faulthandler.dump_traceback numpy.load numpy.testing._private.utils.runstring
    numpy.f2py.crackfortran.getlincoef numpy.f2py.crackfortran._eval_length numpy.lib.npyio.load
    numpy.lib.format.read_array numpy.distutils.exec_command.exec_command numpy.memmap numpy.fromfile
    numpy.ctypeslib.load_library pandas.read_pickle pandas.eval pandas.io.pickle.read_pickle joblib.load
    joblib.numpy_pickle.load dill.loads cloudpickle.loads yaml.load yaml.unsafe_load ruamel.yaml.YAML
    jsonpickle.decode torch.load torch.hub.load torch.jit.load torch.jit.unsupported_tensor_ops.execWrapper
    torch.package.PackageImporter torch.utils.collect_env.run torch.utils.bottleneck.__main__.run_cprofile
    torch.utils._config_module.ConfigModule torch.utils.cpp_extension.load_inline
    torch.utils.data.datapipes.utils.decoder.basichandlers torch.fx.experimental.symbolic_shapes.ShapeEnv
    torch.fx.graph_module._exec_with_source torch._inductor.codecache.PyCodeCache
    torch._dynamo.guards.GuardBuilder.get torch.distributed.rpc.internal._internal_rpc_pickler
    torch.storage._load_from_bytes torch.serialization.load torch.serialization._load torch.ops.load_library
    torch.classes.load_library torch.onnx.export torch.multiprocessing.spawn torch.library.Library
    torch._utils_internal.log_export_usage torch.save torch.compile tensorflow.io.write_file
    tensorflow.saved_model.load keras.models.load_model keras.saving.load_model
    keras.src.saving.saving_lib.load_model h5py.File IPython.utils.process.system pip.main
    setuptools.sandbox.run_setup sympy.parsing.sympy_parser.eval_expr jinja2.Template numexpr.evaluate numba.jit
    cffi.FFI fsspec.open huggingface_hub.hf_hub_download ray.remote dask.delayed cas.index.disk.remove_tree
    cas.load.policy.Policy
"""


@pytest.mark.parametrize("name", DANGEROUS.split())
def test_names_that_run_code_or_touch_files_are_dangerous(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    for split in {(module, attribute), (name.partition(".")[0], name.partition(".")[2])}:
        assert judge(*split) is Verdict.DANGEROUS, split


# --- harmless names with senseless arguments ---------------------------------------------------------------------


def rebuilt(arguments: bytes, *, key: bytes = b"0", count: int = 1) -> bytes:
    """A tensor over the storage of an archive's record."""
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x00" + key + b"X\x03\x00\x00\x00cpu"
    number = b"\x8a\x08" + count.to_bytes(8, "little", signed=True)
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number + b"tQ" + arguments + b"tR."


SENSELESS = {
    "larger than its memory": rebuilt(b"K\x00(M\x10\x27t(K\x01t\x89}"),
    "before its memory": rebuilt(b"J\xff\xff\xff\xff(K\x01t(K\x01t\x89}"),
    "behind its memory": rebuilt(b"M\x10\x27(K\x01t(K\x01t\x89}"),
    "backwards": rebuilt(b"K\x00(K\x02t(J\xff\xff\xff\xfft\x89}"),
    "of no numbers": rebuilt(b"N(NtNN}"),
    "a record that is not there": rebuilt(b"K\x00(K\x01t(K\x01t\x89}", key=b"7"),
    "a record with more than it has": rebuilt(b"K\x00(K\x01t(K\x01t\x89}", count=1 << 40),
    "a record with fewer than none": rebuilt(b"K\x00(K\x01t(K\x01t\x89}", count=-5),
    "a parameter of a number": b"\x80\x02ctorch._utils\n_rebuild_parameter\n(K\x01\x88}tR.",
    "a tensor of too many": b"\x80\x02ctorch\nzeros\n(\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x0ftR.",
    "a state that does not fit": b"\x80\x02ctorch.nn.modules.linear\nLinear\n)\x81K\x05b.",
    "text that is too long": b"\x80\x02coperator\nmul\n(X\x01\x00\x00\x00a\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x0ftR.",
    "a class that needs arguments": b"\x80\x02cuuid\nUUID\n(X\x01\x00\x00\x00xtR.",
    "an attribute that is not there": b"cbuiltins\ngetattr\n(ctorch.nn.modules.linear\nLinear\nX\x03\x00\x00\x00foptR.",
}


@pytest.mark.parametrize("what", SENSELESS)
@pytest.mark.parametrize("mapped", [False, True])
def test_harmless_names_with_senseless_arguments_end_in_one_line(
    folder: Path, trace: Path, what: str, mapped: bool
) -> None:
    members = [("a/data.pkl", SENSELESS[what]), ("a/version", b"3\n"), ("a/data/0", b"\0\0\0\0")]
    (folder / "model.pth").write_bytes(zipped(*members))
    if mapped and what == "a record with more than it has":  # the mapping ends where the file does
        assert load_folder(folder, from_store=mapped).shape == (1,)
        return
    with pytest.raises(CasError) as caught:
        load_folder(folder, from_store=mapped)
    assert "\n" not in str(caught.value) and "model.pth" in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.parametrize("name", ["version", "byteorder", ".format_version", ".storage_alignment"])
def test_senseless_records_of_an_archive_end_in_one_line_or_do_not_matter(folder: Path, trace: Path, name: str) -> None:
    data = zipped(("a/data.pkl", HARMLESS), ("a/version", b"3\n"), (f"a/{name}", b"nonsense"))
    refused_or_harmless(folder, data, trace)


def test_archive_of_torch_export_is_said_to_be_none_that_loads(folder: Path, trace: Path) -> None:
    members = [("a/archive_format", b"pt2"), ("a/models/model.json", b"{}"), ("a/data/weights/w.pt", attack(trace))]
    members += [("a/data/aotinductor/model/lib.so", b"\x7fELF"), ("a/version", b"0")]
    for name in ("model.pt2", "model.pt"):
        error = refused_or_harmless(folder, zipped(*members), trace, name)
        assert isinstance(error, ContentError | NotFoundError)
        (folder / name).unlink()


@pytest.mark.parametrize(
    "line",
    [
        "x = torch.from_file('/tmp/x', True, 8)",
        "x = ops.image.write_file('/tmp/x', y)",
        "s = __torch__.torch.classes.dist_c10d.TCPStore.__new__(__torch__.torch.classes.dist_c10d.TCPStore)",
        "x = getattr(torch, 'from' + '_file')",
        'x = getattr(torch, "from_file")("/tmp/x", True, 8)',
        'x = getattr(torch, "0" "from_file")',
        r'x = getattr(torch, "\163ave")',
        'x = getattr(torch, """0""")',
        'x = getattr(getattr(ops, "aten"), "0")',
        'x = "getattr(self, "; torch.save(y, "f"); z = ")"',
        "x = " + 101 * "getattr(" + "self" + 101 * ', "0")',
        "torch.save(x, '/tmp/x')",
        "x.save('/tmp/x')",
        "f = ops.aten.save",
        "(torch. # (\n    save)(x, '/tmp/x')",
        "torch.\\\n    save(x, '/tmp/x')",
        "torch.\rsave(x, '/tmp/x')",
    ],
)
def test_program_of_torchscript_that_touches_files_or_the_network_is_refused(folder: Path, line: str) -> None:
    code = f"class M(Module):\n  def __setstate__(self, state):\n    {line}\n".encode()
    members = [("a/data.pkl", HARMLESS), ("a/constants.pkl", HARMLESS), ("a/version", b"3\n")]
    (folder / "model.pt").write_bytes(zipped(*members, ("a/code/__torch__/m.py", code)))
    with pytest.raises(UnsafeContentError, match="program that writes files or leaves the model"):
        load_folder(folder)


def test_program_of_torchscript_in_the_place_of_a_value_is_refused(folder: Path, trace: Path) -> None:
    """Torch's loader runs one wherever it finds one; here it lies in a distributed checkpoint."""
    from torch.distributed import checkpoint

    program = "def __setstate__(self, state: int):\n    self.x = torch.from_file(PATH, shared=True, size=4)\n"
    program += "    self.training = False\n"
    module = torch.nn.Module()
    module.x = torch.ones(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch is about to take its compiler of programs out
        script = torch.jit.script(module)
        script.define("def __getstate__(self):\n    return 1\n")
        script.define(program.replace("PATH", repr(str(trace))))
        torch.jit.save(script, data := io.BytesIO())
    trace.unlink(missing_ok=True)

    class Planner(checkpoint.DefaultSavePlanner):  # type: ignore[misc]
        def resolve_data(self, write_item: Any) -> Any:
            return data if write_item.index.fqn == "value" else super().resolve_data(write_item)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is one process
        checkpoint.save({"w": torch.ones(2), "value": 1}, checkpoint_id=folder, planner=Planner(), no_dist=True)
    with pytest.raises(UnsafeContentError, match="value: holds a TorchScript program") as caught:
        load_folder(folder)
    assert "\n" not in str(caught.value)
    assert not trace.exists()


@pytest.mark.parametrize("constants", [True, False])
def test_torchscript_whose_programs_have_other_names_is_refused(folder: Path, trace: Path, constants: bool) -> None:
    """In the format before torch 1.4, model.json says in which records they are."""
    members = [("a/data.pkl", HARMLESS), ("a/version", b"1\n"), ("a/model.json", b"{}"), ("a/code/m.txt", b"")]
    members += [("a/constants.pkl", HARMLESS)] if constants else []
    (folder / "model.pt").write_bytes(zipped(*members))
    with pytest.raises(UnsafeContentError, match=r"in the format before torch 1\.4, which cannot be checked") as caught:
        load_folder(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_torchscript_that_is_none_is_an_error_of_one_line(folder: Path) -> None:
    members = [("a/data.pkl", HARMLESS), ("a/constants.pkl", HARMLESS), ("a/version", b"3\n")]
    (folder / "model.pt").write_bytes(zipped(*members))
    with pytest.raises(ContentError) as caught:
        load_folder(folder)
    assert "\n" not in str(caught.value)


# --- safetensors -------------------------------------------------------------------------------------------------


def header(document: object, *, length: int | None = None, data: bytes = b"\0" * 8) -> bytes:
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(dtype: str = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, Any]:
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


HEADERS = {
    "longer than the file": header({}, length=1 << 62),
    "of no length": header(b"", length=0),
    "of negative length": header({}, length=(1 << 64) - 1),
    "a list": header([]),
    "deep": header(b"[" * 100_000),
    "not JSON": header(b"\xff\xfe{}"),
    "a type of tomorrow": header(tensor("F1024")),
    "a shape that is too large": header(tensor(shape=[1 << 62, 1 << 62])),
    "a negative shape": header(tensor(shape=[-2])),
    "offsets behind the end": header(tensor(offsets=[0, 1 << 40])),
    "offsets backwards": header(tensor(offsets=[8, 0])),
    "offsets of another size": header(tensor(offsets=[0, 4])),
    "a hole": header(tensor(shape=[1], offsets=[4, 8])),
    "two of one place": header({**tensor(), "b": tensor()["a"]}),
    "metadata of numbers": header({"__metadata__": {"a": 1}, **tensor()}),
}


@pytest.mark.parametrize("what", HEADERS)
def test_hostile_header_of_safetensors_is_an_error_of_one_line(folder: Path, what: str) -> None:
    pytest.importorskip("safetensors")
    (folder / "model.safetensors").write_bytes(HEADERS[what])
    for mapped in (False, True):
        with pytest.raises(ContentError, match=r"model\.safetensors: not a whole file of safetensors") as caught:
            load_folder(folder, from_store=mapped)
        assert "\n" not in str(caught.value)


# --- beside a model ----------------------------------------------------------------------------------------------


class Call:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        import os

        return os.system, (f"touch {self.trace}",)


def arrays(folder: Path, trace: Path) -> None:
    numpy = pytest.importorskip("numpy")
    numpy.save(folder / "weights.npy", numpy.array([Call(trace)], dtype=object), allow_pickle=True)
    numpy.savez(folder / "weights.npz", a=numpy.array([Call(trace)], dtype=object))


def joblib_file(folder: Path, trace: Path) -> None:
    pytest.importorskip("joblib").dump({"model": Call(trace)}, folder / "model.joblib")


def plain_pickles(folder: Path, trace: Path) -> None:
    for name in ("trial_state.pkl", "callback.pickle", "rng_state.dat"):
        (folder / name).write_bytes(attack(trace))


def yaml_files(folder: Path, trace: Path) -> None:
    text = f"!!python/object/apply:os.system ['touch {trace}']\n"
    for name in ("MLmodel", "hparams.yaml", "conda.yaml", "config.yaml"):
        (folder / name).write_text(text)
    for name in ("load_data.json", "metadata.json", "config.json"):
        (folder / name).write_text(text)


def python_files(folder: Path, trace: Path) -> None:
    for name in ("__init__.py", "setup.py", "conftest.py", "sitecustomize.py", "torch.py", "modeling.py"):
        (folder / name).write_text(f"open({str(trace)!r}, 'w').close()\n")


BESIDE = [arrays, joblib_file, plain_pickles, yaml_files, python_files]


@pytest.mark.parametrize("add", BESIDE, ids=lambda add: add.__name__)
def test_files_beside_a_model_are_not_run(
    add: Callable[[Path, Path], None], folder: Path, trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(folder, trace)
    monkeypatch.chdir(folder)
    # The one file there is may be a pickle under any name, and is judged as one.
    with pytest.raises((NotFoundError, UnsafeContentError), match=r"no model in|posix\.system"):
        load_folder(folder)
    (folder / "data").mkdir()
    torch.save(torch.nn.Linear(2, 2), folder / "data" / "model.pth")
    assert isinstance(load_folder(folder), torch.nn.Linear)
    assert not trace.exists()


def test_object_array_in_a_file_of_torch_is_scanned_like_the_rest(folder: Path, trace: Path) -> None:
    numpy = pytest.importorskip("numpy")
    torch.save({"a": numpy.array([Call(trace)], dtype=object)}, folder / "model.pth")
    with pytest.raises(UnsafeContentError, match=r"posix\.system"):
        load_folder(folder)
    inner = pickle.dumps(Call(trace))
    torch.save({"a": numpy.frombuffer(inner, dtype="u1"), "b": inner}, folder / "model.pth")  # a pickle as mere data
    assert load_folder(folder)["b"] == inner
    assert not trace.exists()
