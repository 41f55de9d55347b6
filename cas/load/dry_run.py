"""Following a pickle to its end with CPython's own unpickler, in which every name gives an inert stand-in.

It sees exactly the names that the real run would see, however they are spelled (memo tricks, protocol 0, old module
names), and calls nothing. cas/load/policy.py judges what it saw.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Iterable, Mapping
from typing import IO, Any

from cas.errors import ContentError, UnsafeContentError
from cas.load import dtypes
from cas.load.allowlist import (
    TELLING,
    Verdict,
    has_plain_classes,
    judge,
    may_be_called,
    may_be_changed,
    may_be_filled,
    may_take_attribute,
    may_wait,
    today,
)


class _InertClass(type):
    """The class of stand-ins for what names give: a pickle may make values of them, and not change them."""

    names: tuple[str, str] = ("", "")  # none: it stands for what a call or an attribute gave, whatever that is
    home: tuple[str, str] = ("", "")  # what Python 3 calls it
    is_own: bool = False  # of the checkpoint's own code
    is_harmless: bool = False  # let through by its name, and so to be used as pickles use it
    is_called: bool = False  # by the pickle, or given to something that could
    run: DryUnpickler

    @property
    def label(cls) -> str:
        """What a refusal calls it."""
        return ".".join(cls.names).strip(".") or "value of a call"

    def _refuse(cls, *_: Any) -> Any:
        raise UnsafeContentError(f"it changes {cls.label} itself")

    __setstate__ = append = extend = add = property(_refuse)
    __setitem__ = _refuse


class _Inert(metaclass=_InertClass):
    """Stands for a value: takes what an unpickler does with it, does nothing, and keeps what was put into it."""

    contents: list[object]
    is_whole: bool = False  # it has its state, which is the last thing that a pickle gives to a value
    array_type: dtypes.ArrayType | None = None  # of a numpy.dtype
    step: int = 0  # when it was made

    def __new__(cls, *arguments: Any, **named: Any) -> Any:
        if cls.home == _TEXT and [type(one) for one in arguments] == [str]:
            return arguments[0]  # how the name of a module in a scope is pickled (cas/load/sources.py)
        cls.is_called = True
        cls.run.handed += [arguments, named]
        if cls.is_harmless:
            return _call_harmless(cls, arguments, named)
        if cls.home[0].startswith("numpy") and any(_has_objects(one) for one in arguments):
            raise UnsafeContentError(f"it makes a {cls.label} of objects")  # other kinds of arrays: `_reconstruct` does
        return cls.stand_in(arguments, named)

    @classmethod
    def stand_in(cls, *contents: object) -> _Inert:
        """Return what stands for a value of this class."""
        made = object.__new__(cls)
        made.contents = list(contents)
        if cls.home == _SCRIPT:
            cls.run.packed.append(made)
        if cls.home != _DTYPE:
            cls.run.step += 1
        made.step = cls.run.step
        return made

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __call__(self, *arguments: Any, **named: Any) -> _Inert:
        kind = type(self)
        if not kind.is_own:
            raise UnsafeContentError(f"it calls a value ({kind.label})")
        kind.run.handed += [arguments, named]
        return kind.run.unknown(self, own=True)

    def __setstate__(self, state: Any) -> None:
        kind = type(self)
        self._require_open()
        self.is_whole = True
        if not kind.is_own and not kind.names[0]:
            raise UnsafeContentError("it changes a value that it did not make")  # nobody knows what it is
        if kind.is_harmless:
            if not may_be_changed(*kind.home):
                raise UnsafeContentError(f"it changes a value of {kind.label}")
            self._require_state(kind.home, state)
        if not isinstance(state, dict) or _calls_its_state(kind.home):
            kind.run.handed.append(state)
        else:
            kind.run.handed += [state[name] for name in _OF_MAPPINGS & state.keys()]
        self.contents.append(state)

    def _require_open(self) -> None:
        """Refuse what comes after a state: Python would give it to whatever the state calls `__setstate__`, `extend`
        or `__class__`.
        """
        if self.is_whole:
            raise UnsafeContentError(f"it changes a {type(self).label} that has its state")

    def _require_state(self, home: tuple[str, str], state: Any) -> None:
        if home == _DTYPE:
            if self.step != type(self).run.step:
                raise UnsafeContentError(f"it changes a {type(self).label} that may be in use")
            start = self.array_type or dtypes.ArrayType(0, objects=False)
            self.array_type = dtypes.told(start, state, _part)
        if home == _PARTIAL and not (isinstance(state, tuple) and len(state) == 4 and _may_be_called_later(state[0])):
            raise UnsafeContentError(f"it gives {type(self).label} a value to call")
        if home == _SCRIPT and not _is_packed(state):
            raise UnsafeContentError(f"it makes a {type(self).label} that holds no weights of a quantized layer")

    def _take(self, *values: Any) -> None:
        kind = type(self)
        self._require_open()
        unknown = not kind.names[0] and not kind.is_own
        if unknown or (kind.is_harmless and not may_be_filled(*kind.home)):
            raise UnsafeContentError(f"it puts items into a {kind.label}")
        self.contents += values

    append = extend = add = __setitem__ = _take


def _call_harmless(cls: Any, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
    """Do what a call of a harmless name does, as far as it matters for what comes later."""
    home = cls.home
    if named:  # addresses of memory are given so, and nothing else
        raise UnsafeContentError(f"it makes a {cls.label} with the argument {min(named)}")
    if not may_be_called(*home):
        raise UnsafeContentError(f"it calls {cls.label}")
    if has_plain_classes(home[0]) and arguments:
        raise UnsafeContentError(f"it makes a {cls.label} with arguments")
    if home in _OF_ITS_FIRST:
        return _make_its_first(cls, home, arguments)
    if home == _PARTIAL and not (arguments and _may_be_called_later(arguments[0])):
        raise UnsafeContentError(f"it gives {cls.label} a value to call")
    if home == _DEFAULTS and any(_is_foreign_value(one) for one in arguments[:1]):
        raise UnsafeContentError(f"it gives {cls.label} a value to call")
    if not _are_plain_arguments(home, arguments):
        raise UnsafeContentError(f"it gives {cls.label} what does not belong there")
    inert = cls.stand_in(arguments)
    if home == _DTYPE:
        inert.array_type = dtypes.made(_record_as_void(arguments))
    return inert


def _make_its_first(cls: Any, home: tuple[str, str], arguments: tuple[Any, ...]) -> Any:
    """Make a value of what is given first, which is a class or what makes a tensor again."""
    if not arguments or not isinstance(arguments[0], _InertClass):
        raise UnsafeContentError(f"it gives {cls.label} a value to call")
    first: Any = arguments[0]
    others = arguments[1:]
    if home == ("copyreg", "__newobj__"):
        return first(*others)
    if home == ("copyreg", "_reconstructor"):
        base = others[0].home if others and isinstance(others[0], _InertClass) else None
        if base not in _BASES:
            raise UnsafeContentError(f"it gives {cls.label} a base that is none")
        return first.stand_in(others) if first.is_harmless and base == _OBJECT else first(*others[1:])
    kind, values = others[0] if others else None, others[1] if len(others) > 1 else None
    is_tensor = isinstance(kind, _InertClass) and (not kind.is_harmless or kind.home[1] in _TENSORS)
    if first.home[0] != "torch._utils" or not is_tensor or not isinstance(values, tuple):
        raise UnsafeContentError(f"it gives {cls.label} what does not belong there")
    first(*values)
    return cls.stand_in(arguments)


def _are_plain_arguments(home: tuple[str, str], values: tuple[Any, ...]) -> bool:
    """Whether arguments are of the kind that pickles give where others would be called, or looked up."""
    if home[1] == "itemgetter":
        return all(isinstance(value, int | str) for value in values)
    if home == ("re", "_compile"):
        return all(isinstance(value, int | str | bytes) for value in values)
    if home == _ARRAY:  # not of memory that is there already: numpy takes any bytes for objects
        return len(values) <= 2
    if home[1] == "scalar":
        return _is_of_its_type(values)
    if home[0].startswith("numpy.random"):  # calls what makes its generator
        named = [value for value in values if isinstance(value, _InertClass)]
        return all(value.names[0].startswith("numpy.random") for value in named)
    return True


def _is_packed(state: object) -> bool:
    """Whether the state of an object of C++ is that of a quantized layer's weights: values, and what they are."""
    return isinstance(state, tuple) and len(state) == 2 and type(state[1]) is str and bool(_PACKED.fullmatch(state[1]))


def _part(value: object) -> dtypes.ArrayType | None:
    """Return what is known of a type that becomes a part of another, and is not changed from now on."""
    if not isinstance(value, _Inert):
        return None
    value.is_whole = True
    return value.array_type


def _has_objects(value: object) -> bool:
    return isinstance(value, _Inert) and value.array_type is not None and value.array_type.objects


def _is_of_its_type(values: tuple[Any, ...]) -> bool:
    """Whether a scalar of numpy with objects in it is given as an array of its own type: older ones take any array's
    bytes for objects.
    """
    if not values or not _has_objects(values[0]) or values[0].array_type.kind == "O":
        return True
    held = values[1].contents if len(values) == 2 and isinstance(values[1], _Inert) else []
    state = held[-1] if held else None
    return isinstance(state, tuple) and len(state) == 5 and state[1:3] == ((), values[0])


def _may_be_called_later(value: object) -> bool:
    """Whether a value may be called by whoever uses what was loaded."""
    if isinstance(value, _InertClass):
        return not value.is_harmless or may_wait(*value.home)
    return isinstance(value, _Inert) and type(value).is_own


def _calls_its_state(home: tuple[str, str]) -> bool:
    """Whether a value may call what is in its state as soon as it has it."""
    return home == _PARTIAL or home[0].startswith("torch.optim.")


def _record_as_void(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the arguments of a `numpy.dtype`; of a record's, whose size its state tells, those of nothing yet."""
    first = arguments[0] if arguments else None
    is_record = isinstance(first, _InertClass) and first.names[0].startswith("numpy") and first.names[1] == "record"
    return ("V0", *arguments[1:]) if is_record else arguments


def _is_foreign_value(value: object) -> bool:
    return isinstance(value, _Inert) and not type(value).is_own


_OF_MAPPINGS = {"get", "items", "keys", "values"}  # what whoever looks at a mapping that was loaded calls
_DTYPE = ("numpy", "dtype")
_ARRAY = ("numpy", "ndarray")
_TEXT = ("builtins", "str")
_PARTIAL = ("functools", "partial")
_DEFAULTS = ("collections", "defaultdict")
_OBJECT = ("builtins", "object")
# An object of C++, by what its state names. Others than the weights of quantized layers can do anything.
_SCRIPT = ("torch", "ScriptObject")
_PACKED = re.compile(
    r"__torch__\.torch\.classes\.(?:quantized\.(?:Linear|Conv[23]d|Embedding)PackedParamsBase|rnn\.CellParamsBase)"
)
_BASES = {
    ("builtins", name)
    for name in ("bytes", "complex", "dict", "float", "frozenset", "int", "list", "object", "set", "str", "tuple")
}
_OF_ITS_FIRST = {("copyreg", "__newobj__"), ("copyreg", "_reconstructor"), ("torch._tensor", "_rebuild_from_type_v2")}
_TENSORS = {"Tensor", "Parameter", "Buffer"}

Name = tuple[str, str]
Inner = tuple[Callable[..., object], Callable[..., Any]]  # judges bytes within a pickle, and loads them
NONE: Mapping[Name, Inner] = {}


class Judged:
    """Stands for a function that is called in the place of another; nothing of it can be changed."""

    __slots__ = ("_take",)

    def __init__(self, take: Callable[..., Any]) -> None:
        self._take = take

    def __call__(self, *arguments: object) -> Any:
        """Judge, or do, what the function does."""
        return self._take(*arguments)

    def __setstate__(self, state: object) -> None:
        raise UnsafeContentError("it changes a function")


class DryUnpickler(pickle.Unpickler):
    """Runs a pickle with inert stand-ins, and notes the names."""

    def __init__(
        self, stream: IO[bytes], *, own: Callable[[str], bool], inner: Mapping[Name, Inner] = NONE, **options: Any
    ) -> None:
        super().__init__(stream, **options)
        self._own = own
        self._inner = inner
        self._unknown = {is_own: self._stand_in("", "", own=is_own) for is_own in (False, True)}
        self.names: dict[tuple[str, str], _InertClass] = {}
        self.step = 0  # how many values were made, types of numpy aside
        self.handed: list[object] = []  # what was given to calls, which may call what is in it, now or later
        self.packed: list[_Inert] = []  # objects of C++

    def find_class(self, module: str, name: str) -> Any:
        """Note a name, and give what stands for it."""
        if "cloudpickle" in module and not self._own(module):
            why = "it holds code of its own or modules, which cannot be judged"
            raise UnsafeContentError(f"loading it would call {module}.{name} ({why})")
        home = today(module, name)
        if home in self._inner:
            judges = self._inner[home][0]
            return Judged(lambda *arguments: self._or_unknown(judges(*arguments)))
        if home == _ENCODE:
            return Judged(encode)
        found = self._note(module, name)
        return Judged(self._getattr) if home == ("builtins", "getattr") else found

    def _note(self, module: str, name: str) -> _InertClass:
        if (module, name) not in self.names:
            self.names[module, name] = self._stand_in(module, name, own=self._own(module))
        return self.names[module, name]

    def _stand_in(self, module: str, name: str, *, own: bool) -> Any:
        made = _InertClass("inert", (_Inert,), {})
        made.names, made.home, made.is_own, made.run = (module, name), today(module, name), own, self
        made.is_harmless = bool(module) and not own and judge(module, name) is Verdict.HARMLESS
        return made

    def unknown(self, *contents: object, own: bool = False) -> _Inert:
        """Return what stands for a value of a kind that nobody knows, with what it may hold."""
        found: _Inert = self._unknown[own].stand_in(*contents)
        return found

    def _or_unknown(self, value: Any) -> Any:
        return self.unknown() if value is None else value

    def persistent_load(self, pid: Any) -> Any:
        """Give what stands for a tensor's memory."""
        if isinstance(pid, tuple) and len(pid) > 1 and pid[0] in ("module", b"module"):
            return pid[1]  # a class with its source text, as torch before 1.6 wrote it
        return self.unknown(pid)

    def _getattr(self, value: object, name: object) -> Any:
        """How protocols before 4 name a nested class or a method."""
        kind: type = value if isinstance(value, _InertClass) else type(value)
        if isinstance(kind, _InertClass) and isinstance(name, str) and is_plain_attribute(kind.names, name, self._own):
            if isinstance(value, _InertClass) and value.names[0]:
                module, outer = value.names
                return self._note(module, f"{outer}.{name}")
            if isinstance(value, _Inert) and may_take_attribute(*kind.names, own=self._own):
                return self.unknown(value)
        raise UnsafeContentError(f"it takes the attribute {str(name)[:80]!r} of a value")

    def finish(self) -> None:
        """Note the names in what was given to calls: they may be called, whenever they came to be there.

        Raises:
            UnsafeContentError: an object of C++ got no state; whoever looks at such a one kills the process.
        """
        if any(len(one.contents) == 1 for one in self.packed):
            raise UnsafeContentError("it makes a torch.ScriptObject that holds nothing")
        waiting, seen = self.handed, set()
        while waiting:
            one = waiting.pop()
            if isinstance(one, _InertClass):
                one.is_called = True
            elif id(one) in seen:
                continue
            elif isinstance(one, _Inert):
                seen.add(id(one))
                waiting += one.contents
            elif isinstance(one, list | tuple | set | frozenset | dict):
                seen.add(id(one))
                waiting += [*one, *one.values()] if isinstance(one, dict) else one


def encode(text: object, encoding: object = "latin1") -> bytes:
    """Make bytes out of a text as pickles of protocols before 3 do.

    Raises:
        UnsafeContentError: with another encoding than theirs; there are some that do more.
    """
    if not isinstance(text, str) or encoding != "latin1":
        raise UnsafeContentError(f"it makes bytes in the encoding {encoding!r:.40}")
    return text.encode("latin1")


_ENCODE = ("_codecs", "encode")


def is_plain_attribute(home: tuple[str, str], name: str, own: Callable[[str], bool]) -> bool:
    """Whether an attribute of this name, of a class or its values, leads to no inner parts of Python.

    With one underscore, of code that somebody vouches for: the hooks of a module are mostly private methods of it.
    """
    if not name.isidentifier() or name.startswith("__") or name in TELLING:
        return False
    if not name.startswith("_") or judge(*home, own=own) is Verdict.VOUCHED:
        return True
    return judge(home[0], f"{home[1]}.{name}") is Verdict.HARMLESS  # which is listed by itself


def names_in(
    stream: IO[bytes], *, own: Callable[[str], bool] = lambda module: False, **options: Any
) -> tuple[list[tuple[str, str]], object]:
    """Return the (module, name) pairs that one pickle would import, and its value if that is a plain one.

    Reads exactly one pickle from the stream, and calls nothing that it names.

    Raises:
        UnsafeContentError: it does what no framework's pickles do.
        ContentError: it cannot be followed to its end.
    """
    unpickler, value = dry_run(stream, own, options)
    return list(unpickler.names), value


def dry_run(
    stream: IO[bytes], own: Callable[[str], bool], options: Mapping[str, Any], inner: Mapping[Name, Inner] = NONE
) -> tuple[DryUnpickler, object]:
    """Follow one pickle; return who followed it, with the names, and the pickle's value if that is a plain one.

    `inner` are functions that load bytes within the pickle: those bytes are judged by what is given for them.

    Raises:
        UnsafeContentError: it does what no framework's pickles do.
        ContentError: it cannot be followed to its end.
    """
    import copyreg

    if copyreg._inverted_registry:  # type: ignore[attr-defined]  # codes that stand for names: nobody uses them
        raise UnsafeContentError("this process has registered pickle extension codes, which hide names")
    unpickler = DryUnpickler(stream, own=own, inner=inner, **options)
    try:
        value = unpickler.load()
        unpickler.finish()
    except UnsafeContentError:
        raise
    except Exception as error:  # hostile bytes can raise nearly anything
        found = _worst(unpickler.names, own)
        if found is None:
            raise ContentError(f"not a pickle that can be read to its end: {error}") from error
        if found.startswith("joblib.numpy_pickle."):  # arrays lie between its opcodes: trust would not help
            raise ContentError("joblib wrote it, in a format that cas does not load (joblib.load does)") from error
        raise UnsafeContentError(f"it names {found}, and is not a pickle that can be followed to its end") from error
    return unpickler, value


def _worst(names: Iterable[tuple[str, str]], own: Callable[[str], bool]) -> str | None:
    return next((f"{m}.{n}" for m, n in names if judge(m, n, own=own) is Verdict.DANGEROUS), None)


__all__ = ["NONE", "DryUnpickler", "Inner", "Judged", "Name", "dry_run", "encode", "is_plain_attribute", "names_in"]
