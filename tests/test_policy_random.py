"""Pickles put together at random: what the policy lets through calls nothing that it must not, and changes nothing."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from assembled import Op, again, in_order, named, pickled
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_policy_values import CALLING, HIDING

from cas.load.allowlist import _CHANGED, _HARMLESS, _MAKERS
from cas.load.policy import Policy

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

SPY = "spied_package"  # stands for any package that is installed: its functions may be stored, and not called

_LISTED = {(module, name) for words in (_HARMLESS, _MAKERS, _CHANGED) for module in words for name in words[module]}
HARMLESS = sorted(pair for pair in _LISTED if pair[1] != "*")
MODULES = [
    ("torch.nn.modules.linear", "Linear"), ("torch.nn.modules.linear", "Identity"), ("torch.nn.modules.rnn", "LSTM"),
    ("torch.nn.modules.module", "Module"), ("torch.nn.modules.container", "Sequential"),
    ("torch.nn.modules.activation", "MultiheadAttention"), ("torch.optim.sgd", "SGD"),
    ("torch.optim.lr_scheduler", "LambdaLR"), ("torch.distributions.normal", "Normal"), ("torch", "FloatStorage"),
    ("torch.nn.functional", "relu"), ("torch.nn.functional", "gelu"), ("math", "sqrt"), ("numpy.dtypes", "ObjectDType"),
    ("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_parameter"), ("torch", "float32"),
    ("torch._utils", "_rebuild_parameter_with_state"),
]  # fmt: skip
SPIED = [(SPY, "function"), (SPY, "function"), (SPY, "Kind")]

STATEFUL = [
    named("argparse", "Namespace")(), named("collections", "UserList")(), named("collections", "UserDict")(),
    named(SPY, "Kind")(), named("torch.nn.modules.module", "Module").made(), named("torch.optim.sgd", "SGD").made(),
]  # fmt: skip

names = st.sampled_from(SPIED * 8 + MODULES * 2 + HARMLESS).map(lambda pair: named(*pair))
plain = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 20),
    st.sampled_from(["x", "O8", "u8", "V8", "f4", "latin1", "keys", "forward", "__new__", "__torch_function__", "a"]),
)  # fmt: skip
keys = st.sampled_from([
    "x", "keys", "values", "forward", "__new__", "__init__", "__torch_function__", "defaults", "setdefault",
    "__setstate__", "__class__", "append", "extend", "data", "discard", "register_parameter",
])  # fmt: skip


def larger(values: Any) -> Any:
    return st.one_of(
        st.lists(values, max_size=3).map(tuple),
        st.lists(values, max_size=2),
        st.dictionaries(keys, values, max_size=3),
        st.builds(lambda what, args: what(*args), ops(values), st.lists(values, max_size=4)),
        st.builds(lambda what, args: what.made(*args), ops(values), st.lists(values, max_size=1)),
        st.builds(lambda what, state: what.given(state), ops(values), values),
        st.builds(lambda what, slots: what.given((None, slots)), stateful, st.dictionaries(keys, values, max_size=2)),
        st.builds(lambda what, state, value: what.given(state).given(value), stateful, states(values), values),
        st.builds(lambda what, state, value: what.given(state).appended(value), stateful, states(values), values),
        st.builds(lambda what, key, value: what.filled(key, value), ops(values), plain, values),
        st.builds(lambda what, value: what.appended(value), ops(values), values),
        st.builds(lambda what, key: named("builtins", "getattr")(what, key), values, keys),
        st.builds(lambda hide, value: hide(op(value)), st.sampled_from(HIDING), st.one_of(names, values)),
        st.builds(lambda call, what: call(op(what), "x", "x"), st.sampled_from(CALLING), values),
        st.builds(lambda what, use: in_order(op(what).kept(1), use(again(1))), values, st.sampled_from(USES)),
    )


stateful = st.sampled_from(STATEFUL)


def states(values: Any) -> Any:
    return st.dictionaries(keys, values, min_size=1, max_size=3)


def op(value: Any) -> Op:
    return value if isinstance(value, Op) else named("builtins", "list")()


def ops(values: Any) -> Any:
    return st.one_of(names, values.map(op))


USES = [
    lambda value: value(),
    lambda value: value("x"),
    lambda value: value.given({"x": named(SPY, "function")}),
    lambda value: value.given((None, {"forward": named(SPY, "function")})),
    lambda value: value.filled("x", named(SPY, "function")),
    lambda value: named("functools", "partial")(value, named(SPY, "function")),
    lambda value: named("collections", "OrderedDict")(value),
    lambda value: named("builtins", "getattr")(value, "x"),
]
programs = st.recursive(st.one_of(names, plain), larger, max_leaves=14)


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[object]]:
    """The calls of the function that may only be stored."""
    folder = tmp_path_factory.mktemp("site")
    (folder / f"{SPY}.py").write_text(
        "CALLS = []\ndef function(*args, **named):\n    CALLS.append(args)\nclass Kind:\n    pass\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        torch.optim.SGD([torch.ones(1)])  # torch itself wraps a method of the class then
        yield __import__(SPY).CALLS
    del sys.modules[SPY]


def state_of_the_process() -> list[object]:
    watched = [torch.nn.Linear, torch.nn.Module, torch.optim.SGD, logging.getLogger("cas"), sys.modules[SPY].Kind]
    return [sorted((name, id(value)) for name, value in vars(one).items() if name != "_cache") for one in watched]


@settings(max_examples=1500, deadline=None, suppress_health_check=list(HealthCheck))
@given(programs)
def test_what_is_let_through_calls_nothing_and_changes_nothing(calls: list[object], program: Any) -> None:
    data = pickled({"w": program})
    policy = Policy()
    before = state_of_the_process()
    with contextlib.suppress(Exception):  # refusals, and calls with senseless arguments: what matters is what they did
        policy.check_pickle("model.pth", io.BytesIO(data))
        policy.unpickler("model.pth").load(io.BytesIO(data))
    assert not calls and state_of_the_process() == before


def test_attacks_are_found_where_nothing_is_judged(calls: list[object], tmp_path: Path) -> None:
    hidden = named("collections", "OrderedDict")().filled("x", named(SPY, "function"))
    taken = named("operator", "getitem")(hidden, "x")
    Policy().unpickler("x", guarded=False).load(io.BytesIO(pickled(taken("a"))))
    assert calls == [("a",)]
    calls.clear()
