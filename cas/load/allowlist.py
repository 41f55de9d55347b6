"""Which names in a pickle are harmless, which are dangerous, and which are somebody's code."""

from __future__ import annotations

import _compat_pickle
import functools
import re
import sys
from collections.abc import Callable
from enum import IntEnum


class Verdict(IntEnum):
    """What a name may do."""

    HARMLESS = 0
    VOUCHED = 1  # runs where somebody vouches for the checkpoint
    DANGEROUS = 2


def judge(module: str, name: str, *, own: Callable[[str], bool] = lambda module: False) -> Verdict:
    """Say what a name in a pickle may do; `own` tells which modules are the checkpoint's."""
    module, name = today(module, name)
    parts = name.split(".")
    if any(_is_special(part) or (len(parts) > 1 and part in TELLING) for part in parts) and not _is_harmless(
        module, name
    ):
        return Verdict.DANGEROUS
    if own(module):
        return Verdict.VOUCHED
    if _is_harmless(module, name):
        return Verdict.HARMLESS
    if module.partition(".")[0] in _STDLIB or _is_dangerous(module, name):
        return Verdict.DANGEROUS
    return Verdict.VOUCHED


def today(module: str, name: str) -> tuple[str, str]:
    """Return what every Python 3 calls a name of Python 2, as unpicklers do, or of a newer Python."""
    if (module, name) in _compat_pickle.NAME_MAPPING:
        return _compat_pickle.NAME_MAPPING[module, name]
    return MOVED.get(module) or _compat_pickle.IMPORT_MAPPING.get(module, module), name


def may_take_attribute(module: str, name: str, *, own: Callable[[str], bool] = lambda module: False) -> bool:
    """Whether a pickle may take attributes of values of this class: how protocols before 4 store bound methods.

    Not of plain values: `pathlib.Path("…").write_text` is harmless by its class, and writes a file.
    """
    return module.startswith("torch.nn.modules.") or judge(module, name, own=own) is Verdict.VOUCHED


def is_harmless_by_place(module: str, home: str, name: str) -> bool:
    """Whether a harmless name of a module is so for being in it, and not for itself; what it stands for, `name` of the
    module `home`, may be something that the module has imported, and is to be judged.
    """
    is_operation = home == module or (home == "torch" and name.startswith("_VariableFunctionsClass."))
    return has_plain_classes(module) or ("*" in _HARMLESS.get(module, frozenset()) and not is_operation)


def has_plain_classes(module: str) -> bool:
    """Whether the classes of a module are harmless, and pickled with no arguments: their values get a state."""
    return module.startswith(_HARMLESS_BELOW)


@functools.lru_cache(1024)  # asked for each tensor
def may_be_called(module: str, name: str) -> bool:
    """Whether a pickle may call a harmless name: what makes values again. Operations are only ever stored in values:
    some call what they are given, and others return it.
    """
    if module == "torch._utils":
        return name.startswith("_rebuild_")
    return name in _MAKERS.get(module, frozenset()) or (_is_class(name) and module not in _OPERATIONS)


def may_be_changed(module: str, name: str) -> bool:
    """Whether a pickle may give a state to what a harmless name has made."""
    return name in _CHANGED.get(module, frozenset()) or (_is_class(name) and module not in _OPERATIONS | _FIXED)


def may_be_filled(module: str, name: str) -> bool:
    """Whether a pickle may put items into what a harmless name has made."""
    return module == "collections" or (module, name) in _FILLED


def may_wait(module: str, name: str) -> bool:
    """Whether a pickle may store a call of a harmless name (`functools.partial`), which somebody makes later: an
    operation, or a module with its arguments.
    """
    return has_plain_classes(module) or (module in _OPERATIONS and not may_be_called(module, name))


def _is_class(name: str) -> bool:
    return name.lstrip("_")[:1].isupper() and "." not in name


def makes_again(module: str, name: str) -> bool:
    """Whether a pickle may call this function of an installed package: extension types name such ones to be made by."""
    return module.startswith(_MADE_BY_FUNCTIONS) and _MAKER.fullmatch(name) is not None


def _is_harmless(module: str, name: str) -> bool:
    if "." in name and name in _HARMLESS.get(module, frozenset()):
        return True
    if "." in name:  # the operations of torch, which are attributes of one class
        outer, _, inner = name.partition(".")
        return module == "torch._C" and outer == "_VariableFunctionsClass" and inner in _HARMLESS["torch"]
    names = _HARMLESS.get(module, frozenset())
    if name in names or ("*" in names and not name.startswith("_")):
        return True
    if module == "torch":
        return name.endswith("Storage") or _DTYPE.fullmatch(name) is not None
    if module == "torch.cuda":
        return name.endswith("Storage")
    if module == "torch._utils":
        return name.startswith("_rebuild_")
    return module.startswith(_HARMLESS_BELOW) and name[:1].isupper()


def _is_special(part: str) -> bool:
    return part.startswith("__") and part.endswith("__")


def _is_dangerous(module: str, name: str) -> bool:
    if module.endswith(".__main__"):  # importing it runs a command
        return True
    if module in _DANGEROUS_BUT_FOR_LISTED or ("." in name and module in _HARMLESS):
        return True
    if name in _DANGEROUS_NAMES.get(module, frozenset()):
        return True
    if "cloudpickle" in module:  # also the copies of it in joblib, ray, pyspark: it makes functions out of their code
        return True
    parts = [*module.split("."), *name.split(".")[:-1]]  # `models.load_model` of `keras` is `keras.models`' own
    if parts[0] == "cas" and parts[:3] != ["cas", "load", "standin"]:  # this package reads and writes files
        return True
    if module.startswith("torch._"):  # its inner modules compile, load libraries and run commands
        return True
    return any(".".join(parts[:count]) in _DANGEROUS for count in range(1, len(parts) + 1))


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


MOVED = {"pathlib._local": "pathlib"}  # by Python 3.13, which names a path's class so

# Python's own list leaves out its tests, which start programs, and what newer ones lack (packages bring it back).
_STDLIB = sys.stdlib_module_names | _words(
    "aifc asynchat asyncore audioop cgi cgitb chunk crypt distutils imghdr imp lib2to3 mailcap msilib nis nntplib"
    " ossaudiodev pipes smtpd sndhdr spwd sunau telnetlib test uu xdrlib"
)

_OPERATORS = _words(
    "add and_ eq floordiv ge getitem gt itemgetter le lt matmul mod mul ne neg not_ or_ pow pos sub truediv xor"
)

# Names with which a pickle makes plain values; `*` stands for all that do not begin with an underscore. Of the
# standard library nothing else is let through.
_HARMLESS: dict[str, frozenset[str]] = {
    "builtins": _words(
        "bool bytearray bytes complex dict Ellipsis float frozenset getattr int list NotImplemented object range set"
        " slice str tuple"
    ),
    "collections": _words("Counter OrderedDict UserDict UserList defaultdict deque"),
    "copyreg": _words("_reconstructor __newobj__"),
    "_codecs": _words("encode"),
    "argparse": _words("Namespace"),
    "array": _words("_array_reconstructor array"),
    "datetime": _words("date datetime time timedelta timezone"),
    "decimal": _words("Decimal"),
    "fractions": _words("Fraction"),
    "functools": _words("partial"),
    "logging": _words("getLogger"),
    "math": _words("*"),
    "operator": _OPERATORS,
    "_operator": _OPERATORS,
    "pathlib": _words("Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath"),
    "random": _words("Random"),
    "re": _words("_compile"),  # how a pattern is pickled: its text and flags, which nothing is matched with
    "time": _words("struct_time"),
    "types": _words("SimpleNamespace"),
    "typing": _words("Any Callable Dict List Optional Set Tuple Union"),
    "uuid": _words("SafeUUID UUID"),
    "zoneinfo": _words("ZoneInfo ZoneInfo._unpickle"),  # the one that the class itself would make of a zone's name
    "numpy": _words("bool_ dtype float16 float32 float64 int16 int32 int64 int8 ndarray uint16 uint32 uint64 uint8"),
    "numpy.core.multiarray": _words("_reconstruct scalar"),
    "numpy._core.multiarray": _words("_reconstruct scalar"),
    "numpy.core.numeric": _words("_frombuffer"),
    "numpy._core.numeric": _words("_frombuffer"),
    "numpy.random": _words("Generator RandomState"),
    "numpy.random.bit_generator": _words("SeedSequence __pyx_unpickle_SeedSequence"),
    "numpy.random._pickle": _words("__bit_generator_ctor __generator_ctor __randomstate_ctor"),
    "numpy.random._mt19937": _words("MT19937"),
    "numpy.random._pcg64": _words("PCG64 PCG64DXSM"),
    "numpy.dtypes": _words("*"),
    "torch": _words(
        "Generator ScriptObject Size Tensor"
        " abs add bmm cat celu clamp cos device div dtype einsum elu erf exp gelu hardshrink"
        " layout log log_softmax logsumexp matmul max mean memory_format min mm mul neg norm ones per_channel_affine"
        " per_channel_symmetric per_tensor_affine per_tensor_symmetric pow prelu relu relu_ rsqrt selu sigmoid sign sin"
        " sinh softmax sqrt square stack sub sum tan tanh tensor threshold where zeros"
    ),
    "torch._C": _words("Generator _VariableFunctionsClass"),
    "torch._C._nn": _words("*"),
    "torch._tensor": _words("_rebuild_from_type_v2"),
    "torch.amp.grad_scaler": _words("_refresh_per_optimizer_state"),  # makes a dict: a scaler's default
    "torch.cuda.amp.grad_scaler": _words("_refresh_per_optimizer_state"),
    "torch.distributed._shard.sharded_tensor.metadata": _words("MEM_FORMAT_ENCODING TensorProperties"),
    "torch.distributed.checkpoint.filesystem": _words("_StorageInfo _StoragePrefix"),
    "torch.distributed.checkpoint.metadata": _words(
        "BytesStorageMetadata ChunkStorageMetadata Metadata MetadataIndex StorageMeta TensorProperties"
        " TensorStorageMetadata _MEM_FORMAT_ENCODING"
    ),
    "torch.nn.backends.thnn": _words("_get_thnn_function_backend"),  # does nothing; in each module from before 1.3
    "torch.nn.functional": _words("*"),
    "torch.nn.parameter": _words("Buffer Parameter UninitializedBuffer UninitializedParameter"),
    "torch.serialization": _words("_get_layout"),
    "torch.storage": _words("TypedStorage UntypedStorage"),
    "torch.utils.data._utils.collate": _words("default_collate"),
    "torch.utils.hooks": _words("BackwardHook RemovableHandle unserializable_hook"),
}
_DTYPE = re.compile(
    r"bool|chalf|double|half|long|short|(?:bfloat|complex|float|q?u?int|bits)\d*|(?:float[48]_e|(?:quint|bits)\dx)\w+"
)

# What is called by pickles, of harmless names that are no classes by their looks.
_MAKERS: dict[str, frozenset[str]] = {
    "builtins": _words("bool bytearray bytes complex dict float frozenset int list object range set slice str tuple"),
    "collections": _words("defaultdict deque"),
    "copyreg": _words("_reconstructor __newobj__"),
    "_codecs": _words("encode"),
    "array": _words("_array_reconstructor array"),
    "datetime": _words("date datetime time timedelta timezone"),
    "functools": _words("partial"),
    "logging": _words("getLogger"),
    "operator": _words("itemgetter"),
    "_operator": _words("itemgetter"),
    "re": _words("_compile"),
    "time": _words("struct_time"),
    "zoneinfo": _words("ZoneInfo._unpickle"),
    "numpy": _words("dtype ndarray"),
    "numpy.core.multiarray": _words("_reconstruct scalar"),
    "numpy._core.multiarray": _words("_reconstruct scalar"),
    "numpy.core.numeric": _words("_frombuffer"),
    "numpy._core.numeric": _words("_frombuffer"),
    "numpy.random.bit_generator": _words("__pyx_unpickle_SeedSequence"),
    "numpy.random._pickle": _words("__bit_generator_ctor __generator_ctor __randomstate_ctor"),
    "torch": _words("Generator ScriptObject Size Tensor device"),
    "torch._C": _words("Generator"),
    "torch._tensor": _words("_rebuild_from_type_v2"),
    "torch.nn.backends.thnn": _words("_get_thnn_function_backend"),
    "torch.serialization": _words("_get_layout"),
}
# Where names are operations, or stand for types: a class among them is another module's.
_OPERATIONS = _words("_operator math operator torch torch._C torch._C._nn torch.nn.functional typing")
# Classes whose values are whole when they are made; tensors and their memory, and types of numpy, believe a state.
_FIXED = _words("datetime decimal fractions numpy.dtypes pathlib torch.cuda torch.nn.parameter torch.storage zoneinfo")
_CHANGED = {
    "collections": _words("defaultdict deque"),
    "functools": _words("partial"),
    "numpy": _words("dtype ndarray"),
    "numpy.core.multiarray": _words("_reconstruct"),
    "numpy._core.multiarray": _words("_reconstruct"),
    "numpy.random.bit_generator": _words("__pyx_unpickle_SeedSequence"),
    "numpy.random._pickle": _words("__bit_generator_ctor __generator_ctor __randomstate_ctor"),
    "torch": _words("Generator ScriptObject"),
    "torch._C": _words("Generator"),
}
_FILLED = {("builtins", "dict"), ("builtins", "list"), ("builtins", "set")}
_MADE_BY_FUNCTIONS = ("numpy.", "pandas.", "scipy.", "sklearn.", "torchvision.", "xgboost.", "lightgbm.", "catboost.")
_MAKER = re.compile(
    r"newObj|__pyx_unpickle_\w+|_unpickle_(?:block|timestamp)|_(?:nat|timedelta)_unpickle|_new_[A-Z]\w+|_mareconstruct"
)
_HARMLESS_BELOW = (  # their classes
    "torch.nn.modules.",
    "torch.optim.",
    "torch.distributions.",
    "torch.utils.data.dataloader",
    "torch.utils.data.dataset",
    "torch.utils.data.distributed",
    "torch.utils.data.sampler",
)

# Modules of packages that many people have, with other ways to run code, or to read and write files.
_DANGEROUS = _words(
    "_pytest aiohttp awscrt boto3 botocore"
    " cffi cloudpickle dask dill distributed django docker fabric filelock fsspec gunicorn h5py httpx huggingface_hub"
    " invoke ipykernel IPython jinja2 joblib jsonpickle jupyter keras.models keras.saving keras.src.saving mpmath"
    " networkx nltk numba numexpr numpy._pytesttester numpy.ctypeslib numpy.distutils numpy.f2py numpy.lib"
    " numpy.testing obstore pandas.compat.pickle_compat pandas.core.computation pandas.io paramiko pexpect picklescan"
    " PIL.ImageMath pip pkg_resources plumbum psutil ptyprocess pyarrow pytest ray reflink_copy requests ruamel"
    " s3transfer scipy._lib._testutils scipy.io setuptools sh sklearn.datasets sympy tensorflow torch.backends"
    " torch.classes torch.compiler torch.cuda.memory torch.distributed torch.export torch.fx torch.hub torch.jit"
    " torch.library torch.multiprocessing torch.onnx torch.ops torch.overrides torch.package torch.profiler"
    " torch.serialization torch.storage torch.testing torch.utils tqdm typing_extensions urllib3 wheel yaml zarr zmq"
)
_DANGEROUS_BUT_FOR_LISTED = _words("cas torch torch._C torch._utils torch._tensor")
_DANGEROUS_NAMES = {
    "numpy": _words(
        "DataSource f2py fromfile fromregex genfromtxt lib load loads loadtxt memmap save savetxt savez"
        " savez_compressed testing"
    ),
    "pandas": _words("HDFStore eval read_hdf read_pickle to_pickle"),
}

# Parts of a dotted name (an attribute of an attribute) that lead out of the package it begins in.
TELLING = _words("builtins ctypes eval exec f_globals gi_frame importlib os popen posix subprocess sys system")

__all__ = [
    "MOVED", "TELLING", "Verdict", "has_plain_classes", "is_harmless_by_place", "judge", "makes_again", "may_be_called",
    "may_be_changed", "may_be_filled", "may_take_attribute", "may_wait", "today",
]  # fmt: skip
