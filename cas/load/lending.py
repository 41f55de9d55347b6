"""Modules of `code/` for those who import by plain name, and cannot say which scope they mean.

Those are picklers and unpicklers, and libraries that import what the checkpoint's code names (hydra, for one). Python
imports by name through `sys.modules`, where the plain names are everybody's. So they get *loans*: what stands there
under a plain name is gone when it was used, and an `import` of the user's own never finds it.
"""

from __future__ import annotations

import dis
import importlib.abc
import importlib.machinery
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from cas.load.sources import PACKAGES, Folders, ScopedName, Sources, recent, scope_of, scopes

_IMPORT_NAME = dis.opmap["IMPORT_NAME"]
_BOOTSTRAP = "<frozen importlib._bootstrap"  # the import system; importlib.util can be frozen, too
_OURS = (__name__, Sources.__module__)


# --- finding ---------------------------------------------------------------------------------------------------


class _Below(importlib.abc.MetaPathFinder):
    """Finds what lies in a scope's packages. First of all finders: Python's own would import it again from the disk."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        scope = scope_of(path.key) if isinstance(path, Folders) else None
        return None if scope is None else _lend(scope, fullname, _Asking.now(fullname))


class _LastResort(importlib.abc.MetaPathFinder):
    """Finds modules of scopes by plain name, where nobody else does, for those who cannot say which scope they mean.

    Those are pickling, which imports the package above a class's module by its name, unpickling, and what imports by a
    name on behalf of a checkpoint's code. An `import` statement of anybody else is not answered.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        _take_back()  # what is left where loading failed
        if path is not None or fullname == "determined":  # whether that is installed is asked here, too
            return None
        asking = _Asking.now(fullname)
        scope = asking.scope_of_them(scopes())
        return None if scope is None else _lend(scope, fullname, asking)


@dataclass(frozen=True, slots=True)
class _Asking:
    """Who imports by name right now, as the frames on the stack tell.

    `name` is what is wanted in the end: `a.b` also while its package `a` is asked for, which is the `step` then.
    `caller` is who wants it. `through` are the functions of `importlib` and `pkgutil` between, if any: they take what
    they get, while C code (of pickling) and `__import__` look into `sys.modules` for it afterwards.
    """

    name: str
    step: str
    caller: FrameType | None
    through: frozenset[str]

    @classmethod
    def now(cls, fullname: str) -> _Asking:
        frame: FrameType | None = sys._getframe(2)
        step = fullname
        through = set()
        while frame is not None:
            if frame.f_code.co_filename.startswith(_BOOTSTRAP):
                if frame.f_code.co_name == "_find_and_load":
                    fullname = frame.f_locals["name"]
            elif _module_of(frame).partition(".")[0] in ("importlib", "pkgutil"):
                through.add(frame.f_code.co_name)
            elif _module_of(frame) not in _OURS:
                break
            frame = frame.f_back
        return cls(fullname, step, frame, frozenset(through))

    def scope_of_them(self, known: list[Sources]) -> Sources | None:
        """Return the scope that is meant.

        Raises:
            ModuleNotFoundError: it can be several.
        """
        if self.caller is None:
            return None
        if (own := _scope_that_runs(self.caller, known)) is not None:
            return own if own.owns(self.name) else None
        if (pickled := self.pickled) is not None:
            return scope_of(pickled.scope)
        if self.through or _calls_import(self.caller):
            # Whoever asks whether something is installed must not see it, nor who imports for himself.
            allowed = not self.through or "import_module" in self.through
            scope = _scope_on_whose_behalf(self.caller, known) if allowed else None
            # A library that tries where the path of a class ends wants a name that is none; its package is found.
            return scope if scope is not None and (scope.has(self.name) or scope.has(self.step)) else None
        instruction = self.caller.f_code.co_code[self.caller.f_lasti] if self.caller.f_lasti >= 0 else _IMPORT_NAME
        if instruction == _IMPORT_NAME:
            return None
        found = [scope for scope in known if scope.has_loaded(self.name)]
        found = found or [scope for scope in known if scope.has(self.name)]
        if any(scope.reach(self.name) != found[0].reach(self.name) for scope in found[1:]):
            where = ", ".join(sorted(os.fspath(scope.code) for scope in found))
            raise ModuleNotFoundError(
                f"{self.name} is a module of {len(found)} checkpoints that were loaded here, and a pickle does not say"
                f" of which ({where}): load it with cas from a folder with the right code/ beside it, or in a process"
                " that loaded only one",
                name=self.name,
            )
        return found[0] if found else None

    @property
    def pickled(self) -> ScopedName | None:
        """The module whose class is being pickled, where the package above it is asked for on that account."""
        if self.caller is None or recent.hashed is None:
            return None
        name, frame, instruction = recent.hashed
        same = (frame, instruction) == (id(self.caller), self.caller.f_lasti)
        return name if same and name.startswith(f"{self.name}.") else None


def _module_of(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _calls_import(frame: FrameType) -> bool:
    """Whether a function calls `__import__`. (That of Python's own unpickler does, and is one.)"""
    return "__import__" in frame.f_code.co_names and _module_of(frame) != "pickle"


def _scope_that_runs(frame: FrameType, known: list[Sources]) -> Sources | None:
    return next((scope for scope in known if scope.is_code_of(frame)), None)


def _scope_on_whose_behalf(frame: FrameType | None, known: list[Sources]) -> Sources | None:
    """Return the scope whose code called this function, directly or not; but not what imported its module."""
    while frame is not None and not frame.f_code.co_filename.startswith(_BOOTSTRAP):
        if (scope := _scope_that_runs(frame, known)) is not None:
            return scope
        frame = frame.f_back
    return None


# --- lending ---------------------------------------------------------------------------------------------------


_loans: dict[str, _Loan] = {}


class _Loan(ModuleType):
    """Stands for a module under its plain name in `sys.modules`, until whoever asked for it has what he wants.

    That is an attribute of it or, while a module below is imported, to set that as an attribute.
    """

    def __init__(self, module: ModuleType, *, until_set: bool) -> None:
        super().__init__(str(module.__name__))
        self.__dict__.update(_module=module, _until_set=until_set)

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("__"):
            _take_back()
        return getattr(self._module, name)

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        if self._until_set and not name.startswith("__"):
            _take_back(self)


def _lend(scope: Sources, fullname: str, asking: _Asking) -> importlib.machinery.ModuleSpec | None:
    """Return how the import system gets a module of a scope: itself or, where `sys.modules` is looked into, a loan."""
    if fullname == asking.name and (asking.through or asking.pickled is not None):
        return _spec_of(scope, fullname)
    try:
        scope.load(asking.name)  # all of it now, so that nothing runs while there are loans
        module = scope.load(fullname)
    except BaseException as error:
        _take_back()
        if isinstance(error, ModuleNotFoundError) and error.name == fullname == asking.name:
            return None
        raise
    loan = _Loan(module, until_set=bool(asking.through))
    _loans[fullname] = loan
    spec = importlib.machinery.ModuleSpec(fullname, _Lender(scope, fullname, loan))
    spec.submodule_search_locations = getattr(loan, "__path__", None)
    return spec


def _spec_of(scope: Sources, fullname: str) -> importlib.machinery.ModuleSpec | None:
    """Return how the import system gets a module itself: by another name, so that it leaves the plain one alone."""
    if (file := scope.locate(fullname)) is None:
        _take_back()
        return None
    path = os.fspath(scope.code / file)
    spec = importlib.machinery.ModuleSpec(ScopedName(fullname, scope.key), _Lender(scope, fullname), origin=path)
    if file.endswith(PACKAGES):
        spec.submodule_search_locations = Folders(path.removesuffix("/__init__.py"), scope.key)
    return spec


def _take_back(*loans: _Loan) -> None:
    """Remove loans from `sys.modules`: all of them, if none are given, but what another thread is importing now."""
    for loan in loans or tuple(_loans.values()):
        if _top(loan.__name__) not in map(_top, _imported_elsewhere()):
            for known in (sys.modules, _loans):
                if known.get(loan.__name__) is loan:
                    known.pop(loan.__name__, None)  # another thread may be faster


def _top(name: str) -> str:
    return name.partition(".")[0]


def _imported_elsewhere() -> Iterator[str]:
    """Yield the names that other threads are importing: they look into `sys.modules` when they have got them."""
    here = threading.get_ident()
    for thread, top in sys._current_frames().items():
        frame: FrameType | None = top if thread != here else None
        while frame is not None:
            if frame.f_code.co_name == "_find_and_load":
                yield str(frame.f_locals.get("name"))
            frame = frame.f_back


class _Lender(importlib.abc.Loader):
    """Hands out a module of a scope, or a loan of it."""

    def __init__(self, scope: Sources, name: str, loan: _Loan | None = None) -> None:
        self._scope = scope
        self._name = name
        self._loan = loan
        self._spec: importlib.machinery.ModuleSpec | None = None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        if self._loan is not None:
            return self._loan
        module = self._scope.load(self._name)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing but undo: it runs already, and the import system has given it the lender's spec."""
        if self._spec is not None:
            module.__spec__ = self._spec

    def get_data(self, path: str) -> bytes:
        """Read a file; for `pkgutil`."""
        return Path(path).read_bytes()


_below, _last_resort = _Below(), _LastResort()


def register() -> bool:
    """Let the import system ask us; return whether it did not yet."""
    if _last_resort in sys.meta_path:
        return False
    sys.meta_path.insert(0, _below)
    sys.meta_path.append(_last_resort)
    return True


__all__ = ["register"]
