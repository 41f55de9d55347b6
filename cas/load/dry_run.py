"""Following a pickle to its end with CPython's own unpickler, in which every name gives an inert stand-in.

It sees exactly the names that the real run would see, however they are spelled (memo tricks, protocol 0, old module
names), and calls nothing. cas/load/policy.py judges what it saw.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Mapping
from typing import IO, Any

from cas.errors import UnsafeContentError
from cas.load import dtypes
from cas.load.allowlist import TELLING, Verdict, judge, may_take_attribute, today


class _InertClass(type):
    """The class of stand-ins for classes: a pickle may make values of them, and not change them."""

    names: tuple[str, str] = ("", "")
    is_own: bool = False  # of the checkpoint's own code
    is_called: bool = False  # by the pickle, or given to something that could

    @property
    def __setstate__(cls) -> None:
        raise UnsafeContentError(f"it changes {'.'.join(cls.names)} itself")


class _Inert(metaclass=_InertClass):
    """Stands for whatever a name would give: takes every call of an unpickler, and does nothing."""

    array_type: dtypes.ArrayType | None = None  # of a numpy.dtype

    def __new__(cls, *arguments: Any, **named: Any) -> Any:
        cls.is_called = True
        if today(*cls.names) == ("builtins", "str") and [type(one) for one in arguments] == [str]:
            return arguments[0]  # how the name of a module in a scope is pickled (cas/load/sources.py)
        if named and judge(*cls.names) is Verdict.HARMLESS:  # addresses of memory are given so, and nothing else
            raise UnsafeContentError(f"it makes a {'.'.join(cls.names)} with the argument {min(named)}")
        if cls.names in _SETTERS and any(isinstance(one, _InertClass) for one in arguments[:1]):
            raise UnsafeContentError(f"it changes {'.'.join(arguments[0].names)} itself")
        if _calls_its_first(cls.names) and any(_is_foreign_value(one) for one in arguments[:1]):
            raise UnsafeContentError(f"it gives {'.'.join(cls.names)} a value to call")
        if _hand_over([arguments, named]) and cls.names[0] in ("operator", "_operator"):
            raise UnsafeContentError(f"it gives a name to {'.'.join(cls.names)}")  # and gets what it may not change
        inert = object.__new__(cls)
        if cls.names == _DTYPE:
            inert.array_type = dtypes.made(_record_as_void(arguments))
        return inert

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __call__(self, *arguments: Any, **named: Any) -> _Inert:
        if not type(self).is_own:
            raise UnsafeContentError(f"it calls a value ({'.'.join(type(self).names).strip('.') or 'of a call'})")
        _hand_over([arguments, named])
        return _Inert()

    def __setstate__(self, state: Any) -> None:
        if type(self).names == _DTYPE:
            start = self.array_type or dtypes.ArrayType(0, objects=False)
            self.array_type = dtypes.told(start, state, lambda value: getattr(value, "array_type", None))
        if not isinstance(state, dict) or type(self).names == ("functools", "partial"):
            _hand_over(state)

    def _take(self, *_: Any) -> None:
        pass

    append = extend = add = __setitem__ = _take


def _hand_over(value: object) -> bool:
    """Note the names in what is given to a call: it may call them. Return whether there are any."""
    waiting, seen, found = [value], set(), False
    while waiting:
        one = waiting.pop()
        if isinstance(one, _InertClass):
            one.is_called = found = True
        elif isinstance(one, list | tuple | set | frozenset | dict) and id(one) not in seen:
            seen.add(id(one))
            waiting += [*one, *one.values()] if isinstance(one, dict) else one
    return found


def _calls_its_first(names: tuple[str, str]) -> bool:
    """Whether something harmless calls what it is given first, at once or later."""
    return names in _CALLERS or names[0].startswith("torch.optim.")


def _record_as_void(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the arguments of a `numpy.dtype`; of a record's, whose size its state tells, those of nothing yet."""
    first = arguments[0] if arguments else None
    is_record = isinstance(first, _InertClass) and first.names[0].startswith("numpy") and first.names[1] == "record"
    return ("V0", *arguments[1:]) if is_record else arguments


def _is_foreign_value(value: object) -> bool:
    return isinstance(value, _Inert) and not type(value).is_own


_SETTERS = {("torch._utils", "_set_obj_state")}
_DTYPE = ("numpy", "dtype")
_CALLERS = {("functools", "partial"), ("collections", "defaultdict"), ("torch._tensor", "_rebuild_from_type_v2")}


Name = tuple[str, str]
Inner = tuple[Callable[..., object], Callable[..., Any]]  # judges bytes within a pickle, and loads them
NONE: Mapping[Name, Inner] = {}


class Judged:
    """Stands for a function that loads bytes within a pickle; nothing of it can be changed."""

    __slots__ = ("_take",)

    def __init__(self, take: Callable[..., Any]) -> None:
        self._take = take

    def __call__(self, *arguments: object) -> Any:
        """Judge, or load, the bytes."""
        found = self._take(*arguments)
        return _Inert() if found is None else found

    def __setstate__(self, state: object) -> None:
        raise UnsafeContentError("it changes what loads its tensors")


class DryUnpickler(pickle.Unpickler):
    """Runs a pickle with inert stand-ins, and notes the names."""

    def __init__(
        self, stream: IO[bytes], *, own: Callable[[str], bool], inner: Mapping[Name, Inner] = NONE, **options: Any
    ) -> None:
        super().__init__(stream, **options)
        self._own = own
        self._inner = inner
        self.names: dict[tuple[str, str], _InertClass] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Note a name, and give what stands for it."""
        if "cloudpickle" in module and not self._own(module):
            why = "it holds code of its own or modules, which cannot be judged"
            raise UnsafeContentError(f"loading it would call {module}.{name} ({why})")
        if today(module, name) in self._inner:
            return Judged(self._inner[today(module, name)][0])
        found = self._note(module, name)
        return self._getattr if today(module, name) == ("builtins", "getattr") else found

    def _note(self, module: str, name: str) -> _InertClass:
        if (module, name) not in self.names:
            made = _InertClass("inert", (_Inert,), {})
            made.names, made.is_own, made.is_called = (module, name), self._own(module), False
            self.names[module, name] = made
        return self.names[module, name]

    def persistent_load(self, pid: Any) -> Any:
        """Give what stands for a tensor's memory."""
        if isinstance(pid, tuple) and len(pid) > 1 and pid[0] in ("module", b"module"):
            return pid[1]  # a class with its source text, as torch before 1.6 wrote it
        return _Inert()

    def _getattr(self, value: object, name: object) -> Any:
        """How protocols before 4 name a nested class or a method."""
        if isinstance(name, str) and is_plain_attribute(name):
            if isinstance(value, _InertClass) and value.names[0]:
                module, outer = value.names
                return self._note(module, f"{outer}.{name}")
            if isinstance(value, _Inert) and may_take_attribute(*type(value).names, own=self._own):
                return _Inert()
        raise UnsafeContentError(f"it takes the attribute {str(name)[:80]!r} of a value")


def is_plain_attribute(name: str) -> bool:
    """Whether an attribute of this name leads to no inner parts of Python."""
    return name.isidentifier() and not name.startswith("_") and name not in TELLING


def names_in(
    stream: IO[bytes], *, own: Callable[[str], bool] = lambda module: False, **options: Any
) -> tuple[list[tuple[str, str]], object]:
    """Return the (module, name) pairs that one pickle would import, and its value if that is a plain one.

    Reads exactly one pickle from the stream, and calls nothing that it names.

    Raises:
        UnsafeContentError: it cannot be followed to its end.
    """
    unpickler, value = dry_run(stream, own, options)
    return list(unpickler.names), value


def dry_run(
    stream: IO[bytes], own: Callable[[str], bool], options: Mapping[str, Any], inner: Mapping[Name, Inner] = NONE
) -> tuple[DryUnpickler, object]:
    """Follow one pickle; return who followed it, with the names, and the pickle's value if that is a plain one.

    `inner` are functions that load bytes within the pickle: those bytes are judged by what is given for them.

    Raises:
        UnsafeContentError: it cannot be followed to its end.
    """
    import copyreg

    if copyreg._inverted_registry:  # type: ignore[attr-defined]  # codes that stand for names: nobody uses them
        raise UnsafeContentError("this process has registered pickle extension codes, which hide names")
    unpickler = DryUnpickler(stream, own=own, inner=inner, **options)
    try:
        value = unpickler.load()
    except UnsafeContentError:
        raise
    except Exception as error:  # hostile bytes can raise nearly anything
        found = _worst(unpickler.names, own)
        named = f"it names {found}, and " if found else ""
        raise UnsafeContentError(f"{named}it is not a pickle that can be followed to its end: {error}") from error
    return unpickler, value


def _worst(names: Iterable[tuple[str, str]], own: Callable[[str], bool]) -> str | None:
    return next((f"{m}.{n}" for m, n in names if judge(m, n, own=own) is Verdict.DANGEROUS), None)


__all__ = ["NONE", "DryUnpickler", "Inner", "Judged", "Name", "dry_run", "is_plain_attribute", "names_in"]
