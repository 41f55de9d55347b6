"""Attacks that hide a value in another, to call it or change it where nobody sees what it is."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from assembled import Op, again, assembled, in_order, named, pickled

from cas.config import Trust
from cas.errors import ContentError, UnsafeContentError
from cas.load.loading import load_folder
from cas.load.permit import Permit

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

# A function of an installed package that gives anything's inner parts; a pickle may store it.
GIVER = named("torch.ao.quantization.utils", "getattr_from_fqn")
ITEM = named("operator", "getitem")
DTYPE = named("numpy", "dtype")
ARRAY = named("numpy", "ndarray")
LINEAR = named("torch.nn.modules.linear", "Linear")
PARTIAL = named("functools", "partial")


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """The file that an attack would make."""
    return tmp_path / "it-ran"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "c"
    path.mkdir()
    return path


def in_a_dict(value: Op) -> Op:
    return ITEM(named("collections", "OrderedDict")().filled("x", value), "x")


def in_a_defaultdict(value: Op) -> Op:
    return ITEM(named("collections", "defaultdict")().filled("x", value), "x")


def in_a_list(value: Op) -> Op:
    return ITEM([value], 0)


def in_a_module(value: Op) -> Op:
    module = named("torch.nn.modules.module", "Module").made().given({"x": value})
    return named("builtins", "getattr")(module, "x")


def in_a_scalar(value: Op) -> Op:
    return named("numpy._core.multiarray", "scalar")(DTYPE("O8"), value)


HIDING = [in_a_dict, in_a_defaultdict, in_a_list, in_a_module, in_a_scalar]


def by_torch(function: Op, *arguments: object) -> Op:
    """Torch's functions hand a call on to whoever says that he takes it."""
    tensors = (named("torch", "zeros")(1),)
    return named("torch.nn.functional", "handle_torch_function")(function, tensors, *arguments)


def by_a_tensor_like(function: Op, *arguments: object) -> Op:
    like = named("types", "SimpleNamespace")().given({"__torch_function__": function})
    return named("torch.nn.functional", "relu")(like)


def by_the_base_of_a_class(function: Op, *arguments: object) -> Op:
    base = named("types", "SimpleNamespace")().given({"__new__": function, "__init__": named("builtins", "slice")})
    return named("copyreg", "_reconstructor")(arguments[0], base, arguments[1])


def by_a_generator(function: Op, *arguments: object) -> Op:
    return named("numpy.random._pickle", "__generator_ctor")(arguments[0], function)


def by_the_keys_of_a_mapping(function: Op, *arguments: object) -> Op:
    mapping = named("types", "SimpleNamespace")().given({"keys": PARTIAL(function, *arguments)})
    return named("collections", "OrderedDict")(mapping)


def by_the_defaults_of_an_optimizer(function: Op, *arguments: object) -> Op:
    defaults = named("types", "SimpleNamespace")().given({"setdefault": function})
    return named("torch.optim.sgd", "SGD").made().given({"defaults": defaults})


def by_a_schedule(function: Op, *arguments: object) -> Op:
    return named("torch.optim.lr_scheduler", "LambdaLR")(named("torch.optim.sgd", "SGD").made(), function)


def by_the_state_of_a_partial(function: Op, *arguments: object) -> Op:
    return PARTIAL(named("math", "sqrt")).given((function, (), {}, None))


CALLING = [
    by_torch, by_a_tensor_like, by_the_base_of_a_class, by_a_generator, by_the_keys_of_a_mapping,
    by_the_defaults_of_an_optimizer, by_a_schedule, by_the_state_of_a_partial,
]  # fmt: skip


def load(folder: Path, data: bytes, trust: Trust = Trust.SCAN) -> None:
    with zipfile.ZipFile(folder / "model.pth", "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("a/data.pkl", data)
        archive.writestr("a/version", "3\n")
    load_folder(folder, permit=Permit(trust))


@pytest.mark.parametrize("call", CALLING, ids=lambda call: call.__name__)
@pytest.mark.parametrize("hide", HIDING, ids=lambda hide: hide.__name__)
def test_function_hidden_in_a_value_is_not_called(
    folder: Path, hide: Callable[[Op], Op], call: Callable[..., Op]
) -> None:
    with pytest.raises(UnsafeContentError):
        load(folder, pickled({"w": call(hide(GIVER), hide(GIVER), "__globals__")}))


def test_what_these_attacks_do_where_everything_is_trusted(folder: Path, trace: Path) -> None:
    found = by_torch(in_a_dict(GIVER), in_a_dict(GIVER), "__globals__")
    run = ITEM(ITEM(found, "__builtins__"), "exec")
    data = pickled({"w": by_torch(run, f"open({str(trace)!r}, 'w').close()")})
    with pytest.raises(UnsafeContentError):
        load(folder, data)
    assert not trace.exists()
    load(folder, data, Trust.ALWAYS)
    assert trace.exists()


@pytest.mark.parametrize("call", CALLING, ids=lambda call: call.__name__)
def test_function_is_not_called_by_what_is_harmless_itself(folder: Path, call: Callable[..., Op]) -> None:
    with pytest.raises(UnsafeContentError):
        load(folder, pickled({"w": call(GIVER, "x", "__globals__")}))


def test_function_that_comes_into_a_list_after_it_was_handed_over_counts_as_called(folder: Path) -> None:
    later = in_order(Op(assembled([])).kept(1), PARTIAL(named("math", "fsum"), again(1)), again(1).appended(GIVER))
    with pytest.raises(UnsafeContentError, match="getattr_from_fqn"):
        load(folder, pickled({"w": later}))


SPACE = named("argparse", "Namespace")


@pytest.mark.parametrize(
    "value",
    [
        SPACE().given({"__setstate__": GIVER}).given("x"),
        named("numpy.polynomial.polynomial", "Polynomial").made().given({"__setstate__": GIVER}).given("x"),
        named("collections", "UserList")().given({"extend": GIVER}).appended("x"),
        named("collections", "UserList")().given({"data": SPACE().given({"extend": GIVER})}).appended("x"),
        named("numpy.polynomial.polynomial", "Polynomial").made().given({"extend": GIVER}).appended("x"),
        SPACE()
        .given((None, {"__class__": named("torch.optim.sgd", "SGD")}))
        .given({"defaults": SPACE().given({"setdefault": GIVER})}),
    ],
    ids=range(6),
)
def test_what_comes_after_a_state_is_given_to_no_function_in_it(folder: Path, value: Op) -> None:
    with pytest.raises(UnsafeContentError, match="that has its state"):
        load(folder, pickled({"w": value}))


@pytest.mark.parametrize("name", ["get", "items", "keys", "values"])
@pytest.mark.parametrize(
    "mapping", [named("collections", "OrderedDict"), named("torch.ao.quantization.qconfig_mapping", "QConfigMapping")]
)
def test_loading_calls_no_function_that_a_mapping_has_for_its_values(folder: Path, mapping: Op, name: str) -> None:
    with pytest.raises(UnsafeContentError, match="getattr_from_fqn"):
        load(folder, pickled({"w": mapping().given({name: GIVER})}))


# --- changes ------------------------------------------------------------------------------------------------------


LYING = (3, "|", None, ("a",), {"a": (DTYPE("O8"), 0)}, 8, 1, 0)  # objects, and it says that there are none


@pytest.mark.parametrize("hide", HIDING, ids=lambda hide: hide.__name__)
def test_hidden_type_of_numpy_is_not_changed(folder: Path, hide: Callable[[Op], Op]) -> None:
    with pytest.raises(UnsafeContentError):
        load(folder, pickled({"w": hide(DTYPE("V8")).given(LYING)}))


@pytest.mark.parametrize(
    "value",
    [
        named("numpy._core.multiarray", "dtype")("V8").given(LYING),
        named("numpy._core.multiarray", "ndarray")((1,), DTYPE("O8"), named("_codecs", "encode")("AAAAAAAA", "latin1")),
        named("torch.nn.modules.linear", "Parameter")().given((1, 2, 3)),
        named("torch.optim.optimizer", "defaultdict")(),
    ],
    ids=range(4),
)
def test_class_under_another_name_is_no_way_around_its_rules(folder: Path, value: Op) -> None:
    with pytest.raises(UnsafeContentError):
        load(folder, pickled({"w": value}))


def state_of(size: int, *, flags: int = 0, array: object = None, **fields: object) -> tuple[object, ...]:
    return (3, "|", array, tuple(fields) or None, fields or None, size, 1, flags)


OBJECTS = DTYPE("V8").given(state_of(8, flags=27, o=(DTYPE("O8"), 0)))


@pytest.mark.parametrize(
    "value",
    [
        DTYPE("V8").given(state_of(8, array=(DTYPE("f8"), (1000,)))),
        DTYPE("V8").given(state_of(8, array=(DTYPE("f8"), 1000))),
        DTYPE("V8").given(state_of(8, array=(DTYPE("f8"), (-1,)))),
        DTYPE("V8").given(state_of(8, flags=27, array=(DTYPE("O8"), (1000,)))),
        DTYPE("V8").given(state_of(8, f=(DTYPE("d"), 7))),
        DTYPE("V8").given(state_of(8, f=(DTYPE("f8").given(state_of(1)), 7))),
        DTYPE("V8").given(state_of(8, flags=27, o=(DTYPE("O4"), 4))),
        DTYPE("f8").given(state_of(8, flags=27, o=(DTYPE("O8"), 0))),
        DTYPE("V8").given(state_of(8, flags=3, o=(DTYPE("O8"), 0))),
        DTYPE("V8").given(state_of(8)).given(state_of(8000)),
        in_order(DTYPE("V8").kept(1), ARRAY((1,), again(1)), again(1).given(state_of(8000))),
        in_order(DTYPE("V8").kept(1), DTYPE("V8").given(state_of(8, f=(again(1), 0))), again(1).given(state_of(8000))),
        ARRAY((1,), DTYPE("O8"), "AAAAAAAA"),
        ARRAY.made((1,), DTYPE("O8"), "AAAAAAAA"),
        named("numpy._core.multiarray", "scalar")(OBJECTS, ARRAY((), DTYPE("u8"))),
        named("numpy", "recarray")((1,), OBJECTS, named("_codecs", "encode")("AAAAAAAA", "latin1")),
    ],
    ids=range(16),
)
def test_type_of_numpy_that_is_not_what_it_says_is_refused(folder: Path, value: Op) -> None:
    with pytest.raises(UnsafeContentError, match="numpy"):
        load(folder, pickled({"w": value}))


def two_fields(second: Op, at: int) -> tuple[object, ...]:
    fields = {"o": (DTYPE("O8"), 0), "u": (second, at)}
    return (3, "|", None, ("o", "u"), fields, 16, 1, 3)


@pytest.mark.parametrize(
    "value",
    [
        DTYPE("V16").given(two_fields(DTYPE("u8"), 0)),
        DTYPE("V16").given(two_fields(DTYPE("u8"), 4)),
        DTYPE("V16").given(two_fields(DTYPE("O8"), 0)),
        DTYPE("V8").given((3, "|", None, ("u",), {"u": (DTYPE("u8"), 0), "t": (DTYPE("O8"), 0, "t")}, 8, 1, 3)),
        named("numpy.dtypes", "ObjectDType")().given((3, "|", None, None, None, 8, 1, 0)),
        ARRAY((1,), DTYPE("O8")).filled(0, 4096),
        named("logging", "getLogger")("cas.load").given({"disabled": True}),
        in_a_dict(LINEAR).given((None, {"forward": named("math", "sqrt")})),
        named("torch._utils", "_set_obj_state")(in_a_dict(LINEAR), {"forward": named("math", "sqrt")}),
        named("torch._tensor", "_rebuild_from_type_v2")(DTYPE, DTYPE, ("V8",), LYING),
        PARTIAL(named("torch._tensor", "_rebuild_from_type_v2"), DTYPE, DTYPE, ("V8",), LYING),
        PARTIAL(named("torch", "Tensor")),
        LINEAR(1 << 20, 1 << 20),
        named("operator", "pow")(9, 9**9),
        named("torch.nn.functional", "boolean_dispatch"),
    ],
    ids=range(15),
)
def test_nothing_is_changed_or_made_that_pickles_do_not_make(folder: Path, value: Op) -> None:
    with pytest.raises(UnsafeContentError):
        load(folder, pickled({"w": value}))
    assert not logging.getLogger("cas.load").disabled
    assert torch.nn.Linear.forward.__module__ == "torch.nn.modules.linear"


# --- what ends the process ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.pkl", "model.pth", ".metadata"])
def test_tuples_deeper_than_the_stack_are_an_error_of_one_line(folder: Path, name: str) -> None:
    deep = b"\x80\x02})" + b"\x85" * 300_000 + b"Ns."
    (folder / "__0_0.distcp").write_bytes(b"")
    if name != ".metadata":
        (folder / "__0_0.distcp").unlink()
    if name == "model.pth":
        with pytest.raises(ContentError, match="thousands of tuples"):
            load(folder, deep)
        return
    (folder / name).write_bytes(deep)
    with pytest.raises(ContentError, match="thousands of tuples"):
        load_folder(folder)


def test_many_tuples_beside_each_other_are_not_deep(folder: Path) -> None:
    state = {f"layer.{number}.weight": (torch.ones(1), (number, (number,))) for number in range(12_000)}
    torch.save(state, folder / "model.pth")
    assert load_folder(folder).keys() == state.keys()


# --- where nobody vouches -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("trust", list(Trust))
@pytest.mark.parametrize(
    "value",
    [
        named("numpy", "dtype")("V8"),
        named("operator", "itemgetter")(1),
        named("builtins", "getattr"),
        named("torch.nn.functional", "relu"),
        named("torch.nn.modules.linear", "Identity").made(),
        named("logging", "getLogger")("a"),
    ],
    ids=range(6),
)
def test_what_describes_a_distributed_checkpoint_names_nothing_else(folder: Path, value: Op, trust: Trust) -> None:
    (folder / ".metadata").write_bytes(pickled({"w": value}))
    (folder / "__0_0.distcp").write_bytes(b"")
    with pytest.raises(UnsafeContentError, match="files of this kind have no such thing"):
        load_folder(folder, permit=Permit(trust))


@pytest.mark.parametrize("value", [named("torch", "Size")(-1), named("torch", "Size")("a" * 9), 1], ids=range(3))
def test_description_that_cannot_be_made_is_an_error_of_one_line(folder: Path, value: Op) -> None:
    (folder / ".metadata").write_bytes(pickled(value))
    (folder / "__0_0.distcp").write_bytes(b"")
    with pytest.raises(ContentError) as caught:
        load_folder(folder)
    assert "\n" not in str(caught.value)


# --- what is safe for torch is safe here --------------------------------------------------------------------------


def test_weights_that_load_where_nothing_may_run_load_by_default(
    folder: Path, recwarn: pytest.WarningsRecorder
) -> None:
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)
    for value in (torch.ones(2).to(torch.float8_e4m3fn), nested):
        torch.save({"w": value}, folder / "model.pth")
        for trust in Trust:
            found = load_folder(folder, permit=Permit(trust))["w"]
            assert (type(found), found.dtype) == (type(value), value.dtype)


def test_path_that_a_newer_python_pickled_loads(folder: Path) -> None:
    load(folder, pickled({"w": named("pathlib._local", "PosixPath")("a", "b")}))
    assert load_folder(folder)["w"] == Path("a/b")


@pytest.mark.parametrize("data", [b"<html>not found</html>", b"\x80\x02}X", b"version https://git-lfs"], ids=range(3))
def test_damaged_file_is_called_damaged_and_not_unsafe(folder: Path, data: bytes) -> None:
    for name in ("model.pkl", "state_dict.pth"):
        (folder / name).write_bytes(data)
        with pytest.raises(ContentError) as caught:
            load_folder(folder)
        assert name in str(caught.value) and "\n" not in str(caught.value) and "trust" not in str(caught.value)
        (folder / name).unlink()
