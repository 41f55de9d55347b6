"""The pickle policy: what a pickle may name, judged before anything in it runs, and again while it runs.

A pickle is a list of calls of functions that it names. So it is read twice. First a *dry run* with CPython's own
unpickler, in which every name gives an inert stand-in: it sees exactly the names that the real run would see, however
they are spelled (memo tricks, protocol 0, old module names), and calls nothing. Every name is judged:

- what the framework itself needs is harmless;
- the standard library (but for plain values), other ways to run code, and what `picklescan` calls dangerous is refused;
- what is left belongs to the checkpoint's own `code/` or to installed packages. It may run when somebody vouches for
  the checkpoint: it came from a registry that the user configured, was added by the user, or lies at a path that the
  user named. Of installed packages, the pickle may make values of classes, and may store functions in them; it may not
  call a function, nor hand one to something that could: nobody can list all the functions of all packages that
  evaluate text, load a library or write a file, and what real models call to be made again are a few.

Then the real run, where every name is judged once more, by what it turns out to be: another name of a dangerous
function (`model_def.system`) is found out here. This is no sandbox: code that somebody vouches for can do anything.
"""

from __future__ import annotations

import builtins
import contextlib
import io
import logging
import pickle
import re
import tarfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import IO, Any

from cas.errors import ContentError, UnsafeContentError
from cas.load.allowlist import TELLING, Verdict, judge, makes_again, may_take_attribute, today
from cas.load.sources import Sources

log = logging.getLogger("cas.load")

MAGIC = 0x1950A86A20F9469CFC6C  # what files of torch before 1.6 begin with (torch.serialization)


# --- the dry run -----------------------------------------------------------------------------------------------


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

    def __new__(cls, *arguments: Any, **named: Any) -> _Inert:
        cls.is_called = True
        if _calls_its_first(cls.names) and any(_is_foreign_value(one) for one in arguments[:1]):
            raise UnsafeContentError(f"it gives {'.'.join(cls.names)} a value to call")
        if _hand_over([arguments, named]) and cls.names[0] in ("operator", "_operator"):
            raise UnsafeContentError(f"it gives a name to {'.'.join(cls.names)}")  # and gets what it may not change
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __call__(self, *arguments: Any, **named: Any) -> _Inert:
        if not type(self).is_own:
            raise UnsafeContentError(f"it calls a value ({'.'.join(type(self).names).strip('.') or 'of a call'})")
        _hand_over([arguments, named])
        return _Inert()

    def __setstate__(self, state: Any) -> None:
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


def _is_foreign_value(value: object) -> bool:
    return isinstance(value, _Inert) and not type(value).is_own


_CALLERS = {("functools", "partial"), ("collections", "defaultdict"), ("torch._tensor", "_rebuild_from_type_v2")}


class _DryUnpickler(pickle.Unpickler):
    """Runs a pickle with inert stand-ins, and notes the names."""

    def __init__(self, stream: IO[bytes], *, own: Callable[[str], bool], **options: Any) -> None:
        super().__init__(stream, **options)
        self._own = own
        self.names: dict[tuple[str, str], _InertClass] = {}

    def find_class(self, module: str, name: str) -> Any:
        found = self._note(module, name)
        return self._getattr if today(module, name) == ("builtins", "getattr") else found

    def _note(self, module: str, name: str) -> _InertClass:
        if (module, name) not in self.names:
            made = _InertClass("inert", (_Inert,), {})
            made.names, made.is_own, made.is_called = (module, name), self._own(module), False
            self.names[module, name] = made
        return self.names[module, name]

    def persistent_load(self, pid: Any) -> Any:
        if isinstance(pid, tuple) and len(pid) > 1 and pid[0] in ("module", b"module"):
            return pid[1]  # a class with its source text, as torch before 1.6 wrote it
        return _Inert()

    def _getattr(self, value: object, name: object) -> Any:
        """How protocols before 4 name a nested class or a method."""
        if isinstance(name, str) and _is_plain_attribute(name):
            if isinstance(value, _InertClass) and value.names[0]:
                module, outer = value.names
                return self._note(module, f"{outer}.{name}")
            if isinstance(value, _Inert) and may_take_attribute(*type(value).names, own=self._own):
                return _Inert()
        raise UnsafeContentError(f"it takes the attribute {str(name)[:80]!r} of a value")


def _is_plain_attribute(name: str) -> bool:
    return name.isidentifier() and not name.startswith("_") and name not in TELLING


def names_in(
    stream: IO[bytes], *, own: Callable[[str], bool] = lambda module: False, **options: Any
) -> tuple[list[tuple[str, str]], object]:
    """Return the (module, name) pairs that one pickle would import, and its value if that is a plain one.

    Reads exactly one pickle from the stream, and calls nothing that it names.

    Raises:
        UnsafeContentError: it cannot be followed to its end.
    """
    unpickler, value = _dry_run(stream, own, options)
    return list(unpickler.names), value


def _dry_run(stream: IO[bytes], own: Callable[[str], bool], options: Mapping[str, Any]) -> tuple[_DryUnpickler, object]:
    import copyreg

    if copyreg._inverted_registry:  # type: ignore[attr-defined]  # codes that stand for names: nobody uses them
        raise UnsafeContentError("this process has registered pickle extension codes, which hide names")
    unpickler = _DryUnpickler(stream, own=own, **options)
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


# --- the policy ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Policy:
    """What the pickles of one checkpoint may name.

    `sources` are the modules of its `code/`; `vouched` says whether they, and installed packages, may run.
    """

    sources: Sources | None = None
    vouched: bool = True
    _stored: set[tuple[str, str]] = field(default_factory=set, init=False, repr=False, compare=False)

    def check_pickle(self, subject: str, stream: IO[bytes], **options: Any) -> object:
        """Judge one pickle, which is read from the stream; return its value if that is a plain one.

        Raises:
            UnsafeContentError: it would call something that it must not; says what.
        """
        start = stream.tell()
        unpickler, value = _dry_run(stream, self.owns, options)
        end = stream.tell()
        stream.seek(start)
        self.check(subject, unpickler.names, stream.read(end - start))
        called = {pair for pair, stand_in in unpickler.names.items() if stand_in.is_called}
        self._stored.update(unpickler.names.keys() - called)
        self._stored.difference_update(called)  # several pickles lie in one file
        return value

    def check(self, subject: str, names: Iterable[tuple[str, str]], data: bytes | None = None) -> None:
        """Judge the names of one pickle; `data` are its bytes, for the scanner's opinion.

        Raises:
            UnsafeContentError: it would call something that it must not; says what.
        """
        names = list(names)
        for module, name in names:
            self._require(subject, module, name)
        unclear = {pair for pair in names if judge(*pair, own=self.owns) is not Verdict.HARMLESS}
        if data is not None and unclear:
            for module, name in sorted(unclear & _called_dangerous(data)):
                raise UnsafeContentError(_refusal(subject, f"{module}.{name}", "picklescan calls it dangerous"))

    def owns(self, module: str) -> bool:
        """Whether a module is the checkpoint's."""
        return self.sources is not None and self.sources.owns(module)

    def _require(self, subject: str, module: str, name: str) -> None:
        verdict = judge(module, name, own=self.owns)
        if verdict is Verdict.DANGEROUS:
            raise UnsafeContentError(_refusal(subject, f"{module}.{name}", "that can do anything"))
        if verdict is Verdict.VOUCHED and not self.vouched:
            raise UnsafeContentError(_refusal(subject, f"{module}.{name}", "nobody vouches for this checkpoint's code"))

    # --- the real run --------------------------------------------------------------------------------------

    def unpickler(self, subject: str, *, guarded: bool = True) -> ModuleType:
        """Return a module like `pickle` for `torch.load`: finds the checkpoint's modules, and judges every name."""
        policy = self if guarded else None
        sources = self.sources

        class Unpickler(_GuardedUnpickler):
            def __init__(self, stream: IO[bytes], **options: Any) -> None:
                super().__init__(stream, policy=policy, sources=sources, subject=subject, **options)

        def load(stream: IO[bytes], **options: Any) -> Any:
            return Unpickler(stream, **options).load()

        module = ModuleType("cas_pickle")
        module.__dict__.update(vars(pickle), __name__="cas_pickle", Unpickler=Unpickler, load=load)
        return module

    def require_value(self, subject: str, asked: tuple[str, str], value: object) -> None:
        """Judge what a name turned out to be.

        Raises:
            UnsafeContentError: it is a module, or something dangerous under another name.
        """
        if isinstance(value, ModuleType):
            raise UnsafeContentError(_refusal(subject, ".".join(asked), f"it is the module {value.__name__}"))
        self._require_stored(subject, asked, value)
        if not isinstance(value, type | FunctionType | BuiltinFunctionType | MethodType):
            return
        home, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
        if not isinstance(home, str) or not isinstance(name, str) or "<" in name:
            return
        if judge(*asked, own=self.owns) is Verdict.VOUCHED and judge(home, name, own=self.owns) is Verdict.DANGEROUS:
            raise UnsafeContentError(_refusal(subject, ".".join(asked), f"it is {home}.{name}"))

    def _require_stored(self, subject: str, asked: tuple[str, str], value: object) -> None:
        """Refuse a function of an installed package that the dry run did not see as a mere part of a value."""
        if isinstance(value, type) or not callable(value) or asked in self._stored or self.owns(asked[0]):
            return
        if judge(*asked, own=self.owns) is Verdict.VOUCHED and not makes_again(*asked):
            why = "a function of an installed package that is none of those known to make values again"
            raise UnsafeContentError(_refusal(subject, ".".join(asked), why))


def _refusal(subject: str, what: str, why: str) -> str:
    return f"{subject}: loading it would call {what[:200]} ({why}). {_REMEDY}"


_REMEDY = "If you trust whoever made it, load it with trust='always' (CAS_TRUST=always)"


class _GuardedUnpickler(pickle.Unpickler):
    """Finds names in the checkpoint's own modules first, and judges what they are."""

    def __init__(
        self, stream: IO[bytes], *, policy: Policy | None, sources: Sources | None, subject: str, **options: Any
    ) -> None:
        super().__init__(stream, **options)
        self._policy = policy
        self._sources = sources
        self._subject = subject

    def find_class(self, module: str, name: str) -> Any:
        if self._policy is not None:
            self._policy._require(self._subject, module, name)
        value = self._find(module, name)
        if self._policy is not None:
            if value is builtins.getattr:
                return self._getattr
            self._policy.require_value(self._subject, (module, name), value)
        return value

    def _find(self, module: str, name: str) -> Any:
        if self._sources is None:
            return super().find_class(module, name)
        if module == "__main__" and (home := self._sources.defines(name.partition(".")[0])):
            module = home
        if not self._sources.owns(module):
            return super().find_class(module, name)
        value: Any = self._sources.load(module)
        for part in name.split("."):
            value = getattr(value, part)
        return value

    def _getattr(self, value: object, name: str) -> Any:
        """Take an attribute, as the dry run has allowed it, of what the value really is."""
        assert self._policy is not None  # find_class gives this out under a policy only
        own = self._policy.owns
        home = value if isinstance(value, type) else type(value)
        pair = (home.__module__, home.__qualname__)
        if not _is_plain_attribute(name):
            allowed = False
        elif isinstance(value, type):
            allowed = judge(pair[0], f"{pair[1]}.{name}", own=own) is not Verdict.DANGEROUS
        else:
            allowed = may_take_attribute(*pair, own=own)
        if not allowed:
            raise UnsafeContentError(_refusal(self._subject, f"{'.'.join(pair)}.{name}", "that can do anything"))
        found = getattr(value, name)
        if isinstance(value, type):  # the dry run lets nobody call a method of a value
            self._policy.require_value(self._subject, (pair[0], f"{pair[1]}.{name}"), found)
        return found


def _called_dangerous(data: bytes) -> set[tuple[str, str]]:
    """The names that picklescan, where it is installed, calls dangerous."""
    try:
        from picklescan.scanner import SafetyLevel, scan_pickle_bytes
    except ImportError:
        log.debug("picklescan is not installed; the own list decides")
        return set()
    logger = logging.getLogger("picklescan")
    before, logger.disabled = logger.disabled, True  # it logs every finding as a warning
    try:
        result = scan_pickle_bytes(io.BytesIO(data), "pickle")
    except Exception as error:  # its parser is not ours; the dry run has followed the pickle to its end
        log.debug("picklescan cannot read it: %s", error)
        return set()
    finally:
        logger.disabled = before
    return {(found.module, found.name) for found in result.globals if found.safety is SafetyLevel.Dangerous}


# --- files -----------------------------------------------------------------------------------------------------


def check_torch_file(path: Path, policy: Policy, *, subject: str | None = None, **options: Any) -> None:
    """Judge every pickle that `torch.load` would run of a file, in today's format or in that from before 1.6.

    Raises:
        UnsafeContentError: one of them would call something that it must not.
        ContentError: it is no file of torch.
    """
    name = subject or str(path)
    try:
        with open(path, "rb") as file:
            if file.read(4) == b"PK\x03\x04":
                _check_zip(path, policy, name, options)
            else:
                file.seek(0)
                _check_legacy(file, policy, name, options)
    except UnsafeContentError as error:
        if str(error).startswith(name):
            raise
        raise UnsafeContentError(f"{name}: {error}. {_REMEDY}") from error


def check_torchscript(path: Path) -> None:
    """Judge the program in a file of TorchScript: it runs while it is loaded, and two operations write files.

    Raises:
        UnsafeContentError: it uses one of them.
    """
    import torch

    reader = torch._C.PyTorchFileReader(str(path))
    for name in reader.get_all_records():
        if name.endswith(".py") and (found := _WRITES_FILES.search(reader.get_record(name))):
            raise UnsafeContentError(_refusal(str(path), found[0].decode("ascii"), "it is a program that writes files"))


# Also `getattr`, which can spell the others; what TorchScript itself writes has none of these words.
_WRITES_FILES = re.compile(rb"\b(?:from_file|getattr|save)\b")


def _check_zip(path: Path, policy: Policy, subject: str, options: dict[str, Any]) -> None:
    # Torch's own reader: another zip parser could be shown other bytes than torch will run.
    import torch

    try:
        data = torch._C.PyTorchFileReader(str(path)).get_record("data.pkl")
    except RuntimeError as error:
        raise ContentError(f"{subject}: not a whole file of torch: {str(error).splitlines()[0]}") from error
    policy.check_pickle(subject, io.BytesIO(data), **options)


def _check_legacy(file: IO[bytes], policy: Policy, subject: str, options: dict[str, Any]) -> None:
    with contextlib.suppress(tarfile.TarError), tarfile.open(fileobj=file, mode="r:", format=tarfile.PAX_FORMAT):
        raise UnsafeContentError("it is in the tar format of torch before 0.2, which cannot be checked")
    file.seek(0)
    # The magic number, the protocol, the system's sizes, the object, the keys of the storages whose bytes follow.
    for number in range(5):
        value = policy.check_pickle(subject, file, **options)
        if number == 0 and value != MAGIC:
            raise ContentError(f"{subject}: a plain pickle, not a file of torch")


__all__ = ["Policy", "check_torch_file", "check_torchscript", "names_in"]
