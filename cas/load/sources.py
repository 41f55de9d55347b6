"""The Python modules of a checkpoint's `code/`, kept apart from everybody else's.

Two checkpoints have a `model_def.py` each, and so has the user. So the modules of one `code/` live in a scope of
their own, and nothing of `sys.path` or of the plain names in `sys.modules` is touched:

- Their `import` statements (also those that run later, inside `forward`) go through an `__import__` of the scope, which
  knows `code/` and its direct sub-folders, and leaves every other name to Python. Sources are read once, and nothing is
  written, so a scope works from a read-only folder, and after the folder has gone.
- Their `__name__`, and with it the `__module__` of their classes, is a `ScopedName`: a string that reads like the
  plain name and hashes differently. `sys.modules` holds the module under it, so `inspect`, `dataclasses` and `pickle`
  find the right module by `__module__`, and a pickle of a loaded model contains the plain name.
- Scopes are told apart by what their sources say: the checkpoints of one experiment share their classes.
- Spawned processes get the modules with what is sent to them (cas/load/spawning.py).
"""

from __future__ import annotations

import ast
import builtins
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any, cast

from cas.errors import ContentError
from cas.index.digest import Digest
from cas.load.parts import is_installed, stand_in, stands_in

_MAX_SOURCES = 256 << 20  # bytes of all .py files of one code/; Determined itself takes 96 MB of context
PACKAGES = ("/", "/__init__.py")  # how the files of packages end
# What a file in code/ never stands for: the standard library, and the packages that loading itself works with.
_NEVER = frozenset(sys.stdlib_module_names) | {"cas", "keras", "numpy", "tensorflow", "torch"}


class _Recent(threading.local):
    """The module that a thread looked for last, with the frame and the instruction that did it."""

    hashed: tuple[ScopedName, int, int] | None = None


recent = _Recent()


class ScopedName(str):
    """The name of a module in one scope: equal to the plain text, but another key of `sys.modules`."""

    __slots__ = ("_scope",)
    _scope: str

    def __new__(cls, text: str, scope: str) -> ScopedName:
        """Name a module `text` in the scope with this key."""
        self = super().__new__(cls, text)
        self._scope = scope
        return self

    @property
    def scope(self) -> str:
        """The key of the scope."""
        return self._scope

    def __hash__(self) -> int:
        # Pickling looks for a class's module in sys.modules, and right after that for the package above it.
        if (asking := sys._getframe().f_back) is not None:
            recent.hashed = self, id(asking), asking.f_lasti
        return hash((str(self), self._scope))

    def __eq__(self, other: object) -> bool:
        return str.__eq__(self, other) if isinstance(other, str) else NotImplemented

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        from cas.load import spawning

        # Whoever sends to workers with a pickler of his own says so by the module that pickles.
        if spawning.sends_to_workers(sys._getframe(1)):
            return spawning.reduce_name(self)
        return str, (str(self),)


class Sources:
    """The modules of one `code/` folder. Get it from `sources_of`; safe to use from several threads."""

    def __init__(self, code: Path, files: Mapping[str, bytes], key: str) -> None:
        self.code = code
        self.key = key
        self.parcel: Any = None  # how it goes to another process
        self.files = files
        self._folders = {path[: end + 1] for path in files for end, letter in enumerate(path) if letter == "/"}
        # code/ itself first, then its direct sub-folders, as Determined searched them
        self._roots = ["", *sorted(folder for folder in self._folders if folder.count("/") == 1)]
        self._modules: dict[str, ModuleType] = {}
        self._prefixes: dict[str, str] = {}  # of packages: where their submodules lie
        self._reached: dict[str, Mapping[str, bytes]] = {}
        self._lock = threading.RLock()
        self._builtins = {**vars(builtins), "__import__": self._import}

    # --- what is there -------------------------------------------------------------------------------------

    def owns(self, name: str) -> bool:
        """Whether a module of this name is the checkpoint's (or, for `determined`, the stand-in's)."""
        top = name.partition(".")[0]
        if top == "determined":
            return stands_in(name)
        return top not in _NEVER and any(self._find(root, top) is not None for root in self._roots)

    def has(self, name: str) -> bool:
        """Whether a module of this full name lies in `code/`; nothing is imported to know it."""
        return self.owns(name) and self.locate(name) is not None

    def has_loaded(self, name: str) -> bool:
        """Whether a module of this full name was imported."""
        return name in self._modules and self.owns(name)

    def defining(self, name: str) -> dict[str, str]:
        """Return the files that define a class or function of this name at their top, each with its module's name."""
        found = {}
        for path in sorted(self.files):
            body = getattr(_parse(self.files[path]), "body", [])
            if any(isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name for node in body):
                whole = path.removesuffix(".py").removesuffix("/__init__")
                names = (way.replace("/", ".") for way in (whole, whole.partition("/")[2]))
                if (module := next((name for name in names if self.locate(name) == path), None)) is not None:
                    found[path] = module
        return found

    def defines(self, name: str) -> str | None:
        """Return the module of `code/` that defines a class or function of this name at its top, if one does.

        Raises:
            ContentError: several do.
        """
        found = self.defining(name)
        if len(found) > 1:
            raise ContentError(
                f"{name} was defined in the script that trained, and in {self.code} {len(found)} files define it"
                f" ({', '.join(found)}): leave the right one there"
            )
        return next(iter(found.values()), None)

    def reach(self, name: str) -> Mapping[str, bytes]:
        """Return the sources of a module and of what it imports out of `code/`, by path: what it does rests on them.

        It is all there is, where one of them imports by names that are not in its text.
        """
        if (known := self._reached.get(name)) is not None:
            return known
        found: dict[str, bytes] = {}
        waiting = [name]
        while waiting:
            parts = waiting.pop().split(".")
            for module in (".".join(parts[: count + 1]) for count in range(len(parts))):
                if (path := self.locate(module)) is not None and path not in found:
                    found[path] = self.files.get(path, b"")
                    waiting += _imports(found[path], module if path.endswith(PACKAGES) else module.rpartition(".")[0])
        by_name = any(b"import_module" in source or b"__import__" in source for source in found.values())
        return self._reached.setdefault(name, self.files if by_name else found)

    def locate(self, name: str) -> str | None:
        """Return the file of a module, or the folder of a namespace package, by its full name."""
        top, *parts = name.split(".")
        found = next((found for root in self._roots if (found := self._find(root, top)) is not None), None)
        for part in parts:
            if found is None or not found[1]:
                return None
            found = self._find(found[0].removesuffix("__init__.py"), part)
        return found[0] if found is not None else None

    def _find(self, prefix: str, name: str) -> tuple[str, bool] | None:
        """Return a module's file (of a namespace package: its folder) and whether it is a package."""
        if f"{prefix}{name}/__init__.py" in self.files:
            return f"{prefix}{name}/__init__.py", True
        if f"{prefix}{name}.py" in self.files:
            return f"{prefix}{name}.py", False
        for suffix in importlib.machinery.EXTENSION_SUFFIXES:
            if (self.code / f"{prefix}{name}{suffix}").is_file():
                return f"{prefix}{name}{suffix}", False
        return (f"{prefix}{name}/", True) if f"{prefix}{name}/" in self._folders else None

    # --- importing -----------------------------------------------------------------------------------------

    def load(self, name: str) -> ModuleType:
        """Import a module of the checkpoint by its full name.

        Raises:
            ModuleNotFoundError: there is none.
        """
        with self._lock:
            name = str(name)
            if (known := self._modules.get(name)) is not None:
                return known
            parent, _, last = name.rpartition(".")
            if name.partition(".")[0] == "determined" and self.owns(name):
                return self._remember(name, stand_in(name), parent, last)
            if parent:
                self.load(parent)
                if name in self._modules:  # the package imported it
                    return self._modules[name]
            roots = [self._prefixes[parent]] if parent in self._prefixes else self._roots if not parent else []
            for root in roots:
                if (found := self._find(root, last)) is not None:
                    return self._execute(name, *found, parent=parent, last=last)
            raise ModuleNotFoundError(f"No module named {name!r} in {self.code}", name=name)

    def _remember(self, name: str, module: ModuleType, parent: str, last: str) -> ModuleType:
        self._modules[name] = module
        if parent == "determined" and not self.owns(parent):  # only parts of it are the stand-in's
            setattr(self._modules.setdefault(parent, stand_in(parent)), last, module)
        elif parent:
            self.load(parent)
        return module

    def _execute(self, name: str, file: str, package: bool, *, parent: str, last: str) -> ModuleType:  # noqa: FBT001
        scoped = ScopedName(name, self.key)
        path = os.fspath(self.code / file)
        loader = _Loader(self.files.get(file), path, package=package)
        spec = importlib.machinery.ModuleSpec(scoped, loader, origin=path, is_package=package)
        if file.endswith(tuple(importlib.machinery.EXTENSION_SUFFIXES)):
            return self._load_extension(name, path, parent, last)
        module = ModuleType(scoped)
        module.__dict__.update(__name__=scoped, __spec__=spec, __loader__=loader, __builtins__=self._builtins)
        module.__package__ = name if package else parent
        if package:
            folder = file.removesuffix("__init__.py")
            module.__path__ = Folders(os.fspath(self.code / folder), self.key)
            self._prefixes[name] = folder
        if not file.endswith("/"):
            module.__file__ = path
        self._modules[name] = sys.modules[scoped] = module
        if parent:  # before it runs, so that a circular `from . import x` finds it
            setattr(self._modules[parent], last, module)
        try:
            if (code := loader.get_code(name)) is not None:
                exec(code, module.__dict__)
        except BaseException:
            del self._modules[name], sys.modules[scoped]
            if parent:
                vars(self._modules[parent]).pop(last, None)
            raise
        return module

    def _load_extension(self, name: str, path: str, parent: str, last: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise ModuleNotFoundError(f"cannot load {path}", name=name)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self._modules[name] = module
        if parent:
            setattr(self._modules[parent], last, module)
        return module

    def _import(
        self,
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        """What `import` means in the modules of this scope."""
        package = str((globals or {}).get("__package__") or "")
        absolute = importlib.util.resolve_name("." * level + name, package) if level else name
        # C code that imports by name (an unpickler) passes an empty list, and looks into sys.modules afterwards.
        by_name = isinstance(fromlist, list) and not fromlist and not isinstance(name, ScopedName)
        if absolute == "determined" and (parts := [part for part in fromlist or () if self._is_stand_in(part)]):
            rest = [part for part in fromlist or () if part not in parts]
            builtins.__import__(name, globals, locals, rest, level)
            return self._modules[absolute]
        if by_name or not self.owns(absolute):
            return builtins.__import__(name, globals, locals, fromlist or (), level)
        module = self.load(absolute)
        if not fromlist:
            return module if level else self._modules[str(absolute).partition(".")[0]]
        wanted = getattr(module, "__all__", ()) if "*" in fromlist else fromlist
        for item in wanted:
            if not hasattr(module, item) and hasattr(module, "__path__"):
                self._load_if_there(f"{absolute}.{item}")
        return module

    def _is_stand_in(self, part: str) -> bool:
        """Whether a part of the real package is the stand-in's; it is loaded then."""
        return is_installed("determined") and stands_in(f"determined.{part}") and bool(self.load(f"determined.{part}"))

    def _load_if_there(self, name: str) -> None:
        try:
            self.load(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise

    def is_code_of(self, frame: FrameType) -> bool:
        """Whether a frame runs a function of this scope's modules."""
        return frame.f_globals.get("__builtins__") is self._builtins


def _parse(source: bytes) -> ast.Module | None:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return None


def _imports(source: bytes, package: str) -> Iterator[str]:
    """Yield the modules that the `import` statements of a source may mean."""
    for node in ast.walk(_parse(source) or ast.Module([], [])):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.rsplit(".", node.level - 1)[0] if node.level else ""
            base = ".".join(filter(None, (above, node.module)))
            yield from (base, *(f"{base}.{alias.name}" for alias in node.names))


class Folders(list[str]):
    """The `__path__` of a scope's package: the import system shows it to finders, which know the scope by it."""

    def __init__(self, folder: str, key: str) -> None:
        super().__init__([folder])
        self.key = key


class _Loader(importlib.abc.InspectLoader):
    """Knows a module's source, for `inspect` and tracebacks, and the files beside it."""

    def __init__(self, source: bytes | None, path: str, *, package: bool) -> None:
        self._source = source
        self._package = package
        self.path = f"{path}/__init__.py" if package and source is None else path

    def get_source(self, fullname: str) -> str | None:
        return None if self._source is None else importlib.util.decode_source(self._source)

    def get_code(self, fullname: str) -> CodeType | None:
        return None if self._source is None else compile(self._source, self.path, "exec", dont_inherit=True)

    def get_data(self, path: str) -> bytes:
        """Read a file; for `pkgutil`."""
        return Path(path).read_bytes()

    def get_resource_reader(self, fullname: str) -> Any:
        """Return what reads a package's data files; for `importlib.resources`."""
        from importlib.readers import FileReader

        return FileReader(cast("Any", self)) if self._package else None


# --- which scopes there are ------------------------------------------------------------------------------------

_lock = threading.Lock()
_scopes: dict[str, Sources] = {}  # by the digest of the sources; the last one that was used is the last


def sources_of(code: Path) -> Sources:
    """Return the scope of a `code/` folder: the same for every folder with the same sources.

    Raises:
        ContentError: the sources are larger than any real ones.
    """
    code = Path(os.path.realpath(code))
    files = _read(code)
    listing = "".join(f"{name}\0{Digest.of(data).hex}\n" for name, data in sorted(files.items()))
    key = Digest.of(listing.encode("utf-8", "surrogateescape")).hex
    return keep(scope_of(key) or Sources(code, files, key))


def scope_of(key: str) -> Sources | None:
    """Return the scope with this key, if this process has it."""
    return _scopes.get(key)


def keep(scope: Sources) -> Sources:
    """Make a scope known in this process, as the last one that was used; return it, or the one known before."""
    from cas.load import lending, spawning

    with _lock:
        scope = _scopes.pop(scope.key, scope)
        _scopes[scope.key] = scope
        is_first = lending.register()
    if is_first:
        spawning.register()
    return scope


def scopes() -> list[Sources]:
    """Return the scopes of this process; the one that was used last comes first."""
    with _lock:
        return list(reversed(_scopes.values()))


def _renew_locks() -> None:
    """In a forked child: another thread may have held a lock in the parent, and is not here to release it."""
    global _lock
    _lock = threading.Lock()
    for scope in _scopes.values():
        scope._lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)


def _read(code: Path) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    total = 0
    for folder, folders, names in os.walk(code):
        # A direct sub-folder is searched for modules, whatever it is called (`my-lib`); a deeper one is a package.
        direct = Path(folder) == code
        folders[:] = sorted(
            name for name in folders if name != "__pycache__" and (name.isidentifier() or (direct and name[0] != "."))
        )
        for name in names:
            if name.endswith(".py") and name[0] != ".":  # `train-det.py`: the script that trained
                path = Path(folder, name)
                if not path.is_file():  # a link to nothing, a pipe, a device
                    continue
                with open(path, "rb") as file:
                    data = file.read(_MAX_SOURCES - total + 1)
                total += len(data)
                if total > _MAX_SOURCES:
                    raise ContentError(f"the sources in {code} have more than {_MAX_SOURCES} bytes")
                files[path.relative_to(code).as_posix()] = data
    return files
