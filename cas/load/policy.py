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

What is harmless is used as pickles of frameworks use it, and not otherwise: classes are made, with no arguments where
their values get a state; operations are stored, and never called, for some call what they are given and some return it;
nothing gets a state, or items, of which the dry run does not know what it is.

Then the real run, where every name is judged once more, by what it turns out to be: another name of a dangerous
function (`model_def.system`) is found out here. This is no sandbox: code that somebody vouches for can do anything.
"""

from __future__ import annotations

import _codecs
import builtins
import io
import logging
import pickle
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import IO, Any

from cas.errors import ContentError, NotFoundError, UnsafeContentError
from cas.load.allowlist import (
    MOVED,
    Verdict,
    has_plain_classes,
    is_harmless_by_place,
    judge,
    makes_again,
    may_take_attribute,
    today,
)
from cas.load.dry_run import Inner, Judged, Name, dry_run, encode, is_plain_attribute
from cas.load.mending import name_today, receptive
from cas.load.nesting import require_shallow
from cas.load.sources import Sources

log = logging.getLogger("cas.load")


# --- the policy ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Policy:
    """What the pickles of one checkpoint may name.

    `sources` are the modules of its `code/`; `vouched` says whether they, and installed packages, may run. `inner` are
    functions that load bytes within a pickle, each with what judges those bytes and what loads them in its place.
    `only` knows the names that a file of some kind has at all; where nobody vouches, the fewer the better.
    """

    sources: Sources | None = None
    vouched: bool = True
    inner: Mapping[Name, Inner] = field(default_factory=dict, repr=False, compare=False)
    only: Callable[[str, str], bool] | None = None
    _stored: set[tuple[str, str]] = field(default_factory=set, init=False, repr=False, compare=False)

    def check_pickle(self, subject: str, stream: IO[bytes], **options: Any) -> object:
        """Judge one pickle, which is read from the stream; return its value if that is a plain one.

        Raises:
            UnsafeContentError: it would call something that it must not; says what.
            ContentError: it is no whole pickle.
        """
        start = stream.tell()
        try:
            require_shallow(stream)
            unpickler, value = dry_run(stream, self.owns, options, self.inner)
        except UnsafeContentError as error:
            remedy = "" if REMEDY in str(error) else f". {REMEDY}"
            raise UnsafeContentError(f"{subject}: {error}{remedy}") from error
        except ContentError as error:
            raise ContentError(f"{subject}: {error}") from error
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
                raise UnsafeContentError(refusal(subject, f"{module}.{name}", "picklescan calls it dangerous"))

    @property
    def stored(self) -> list[tuple[str, str]]:
        """The names that pickles only put into values, and call nothing of; for a verdict."""
        return sorted(self._stored)

    def recall(self, stored: object) -> bool:
        """Take over what another scan of the same bytes saw; False if that is no such list."""
        if not isinstance(stored, list):
            return False
        pairs = [tuple(pair) for pair in stored if isinstance(pair, list) and len(pair) == 2]
        if len(pairs) != len(stored) or not all(isinstance(text, str) for pair in pairs for text in pair):
            return False
        self._stored.update((module, name) for module, name in pairs)
        return True

    def owns(self, module: str) -> bool:
        """Whether a module is the checkpoint's."""
        return self.sources is not None and self.sources.owns(module)

    def _require(self, subject: str, module: str, name: str) -> None:
        verdict = judge(module, name, own=self.owns)
        if self.only is not None and not self.only(*today(module, name)):
            raise UnsafeContentError(refusal(subject, f"{module}.{name}", "files of this kind have no such thing"))
        if verdict is Verdict.DANGEROUS:
            raise UnsafeContentError(refusal(subject, f"{module}.{name}", "that can do anything"))
        if verdict is Verdict.VOUCHED and not self.vouched:
            raise UnsafeContentError(refusal(subject, f"{module}.{name}", "nobody vouches for this checkpoint's code"))

    # --- the real run --------------------------------------------------------------------------------------

    def unpickler(self, subject: str, *, guarded: bool = True) -> ModuleType:
        """Return a module like `pickle` for `torch.load`: finds the checkpoint's modules, and judges every name."""
        policy = self if guarded else None
        sources, inner = self.sources, self.inner

        class Unpickler(_GuardedUnpickler):
            def __init__(self, stream: IO[bytes], **options: Any) -> None:
                super().__init__(stream, policy=policy, sources=sources, inner=inner, subject=subject, **options)

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
            raise UnsafeContentError(refusal(subject, ".".join(asked), f"it is the module {value.__name__}"))
        self._require_stored(subject, asked, value)
        if not isinstance(value, type | FunctionType | BuiltinFunctionType | MethodType):
            return
        home, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
        if not isinstance(home, str) or not isinstance(name, str) or "<" in name:
            return
        by_place = is_harmless_by_place(today(*asked)[0], home, name)
        at_home = judge(home, name, own=self.owns)
        if judge(*asked, own=self.owns) is Verdict.HARMLESS and not by_place:
            return
        if at_home is Verdict.DANGEROUS or (at_home is Verdict.VOUCHED and not self.vouched):
            raise UnsafeContentError(refusal(subject, ".".join(asked), f"it is {home}.{name}"))
        if isinstance(value, type) and at_home is Verdict.HARMLESS and self._is_alias(asked, (home, name)):
            raise UnsafeContentError(refusal(subject, ".".join(asked), f"another name of {home}.{name}"))

    def _is_alias(self, asked: tuple[str, str], home: tuple[str, str]) -> bool:
        """Whether a harmless class was asked for under another name, by which the dry run could not watch its use."""
        if today(*asked) == home or self.owns(asked[0]):
            return False
        alike = home[0].startswith("torch.nn.modules.") or has_plain_classes(today(*asked)[0])
        return not (alike and has_plain_classes(home[0]))  # packages bring back layers that torch has taken over

    def _require_stored(self, subject: str, asked: tuple[str, str], value: object) -> None:
        """Refuse a function of an installed package that the dry run did not see as a mere part of a value."""
        if isinstance(value, type) or not callable(value) or asked in self._stored or self.owns(asked[0]):
            return
        if judge(*asked, own=self.owns) is Verdict.VOUCHED and not makes_again(*asked):
            why = "a function of an installed package that is none of those known to make values again"
            raise UnsafeContentError(refusal(subject, ".".join(asked), why))


def refusal(subject: str, what: str, why: str) -> str:
    """Return the message of a refusal: the file, what it would call, why that is refused, and what to do."""
    return f"{subject}: loading it would call {what[:200]} ({why}). {REMEDY}"


REMEDY = "If you trust whoever made it, load it with trust='always' (CAS_TRUST=always)"


class _GuardedUnpickler(pickle.Unpickler):
    """Finds names in the checkpoint's own modules first, and judges what they are."""

    def __init__(
        self,
        stream: IO[bytes],
        *,
        policy: Policy | None,
        sources: Sources | None,
        inner: Mapping[Name, Inner],
        subject: str,
        **options: Any,
    ) -> None:
        super().__init__(stream, **options)
        self._policy = policy
        self._sources = sources
        self._inner = inner
        self._subject = subject

    def persistent_load(self, pid: Any) -> Any:
        """Give what torch gives; of a class whose source text lies beside it (before 1.6), the class.

        torch compares that text with today's, and only warns. On the way it parses whole modules, which threads of
        Python 3.11 cannot do at once. (Newer Pythons go to torch's function directly, and can.)
        """
        if isinstance(pid, tuple) and len(pid) > 1 and pid[0] in ("module", b"module"):
            return pid[1]
        given = vars(self).get("persistent_load")  # torch sets it on the unpickler that it makes
        if given is None:
            raise pickle.UnpicklingError("it refers to something outside of it")
        return given(pid)

    def find_class(self, module: str, name: str) -> Any:
        if today(module, name) in self._inner:
            return Judged(self._inner[today(module, name)][1])
        if self._policy is not None:
            self._policy._require(self._subject, module, name)
        value = self._find(module, name)
        if self._policy is not None:
            asked = today(module, name)  # the dry run knows these two by name
            if value is builtins.getattr and asked == ("builtins", "getattr"):
                return Judged(self._getattr)
            if value is _codecs.encode and asked == ("_codecs", "encode"):
                return Judged(encode)
            self._policy.require_value(self._subject, (module, name), value)
        return value

    def _find(self, module: str, name: str) -> Any:
        try:
            return receptive(self._find_there(*name_today(MOVED.get(module, module), name)))
        except ModuleNotFoundError:
            if module.partition(".")[0] in _NOT_NEEDED:
                return _absent(module, name)
            raise
        except AttributeError as error:
            own = self._sources is not None and self._sources.owns(module)
            if own or module not in sys.modules or hasattr(sys.modules[module], name.partition(".")[0]):
                raise  # of what a module does when it is imported
            raise NotFoundError(f"{self._subject}: needs {module}.{name}, {_why_absent(module)}") from error

    def _find_there(self, module: str, name: str) -> Any:
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
        if not is_plain_attribute(pair, name, own):
            allowed = False
        elif isinstance(value, type):
            allowed = judge(pair[0], f"{pair[1]}.{name}", own=own) is not Verdict.DANGEROUS
        else:
            allowed = may_take_attribute(*pair, own=own)
        if not allowed:
            raise UnsafeContentError(refusal(self._subject, f"{'.'.join(pair)}.{name}", "that can do anything"))
        found = getattr(value, name)
        if isinstance(value, type):  # the dry run lets nobody call a method of a value
            self._policy.require_value(self._subject, (pair[0], f"{pair[1]}.{name}"), found)
        return found


def _why_absent(module: str) -> str:
    if module == "__main__":
        return (
            "of the script that saved it: define or import it in yours first, or put that script into code/ beside it"
        )
    return f"which the {module.partition('.')[0]} that is installed does not have: another version of it wrote this"


# Packages whose values lie beside the weights (hyperparameters, callbacks) and are not needed to use them.
_NOT_NEEDED = frozenset({"lightning", "lightning_fabric", "lightning_utilities", "pytorch_lightning"})


def _absent(module: str, name: str) -> type:
    """Return what stands for a class that is not installed: a dict that takes any state."""

    def take(self: object, *_: Any, **__: Any) -> None:
        pass

    members = {"__module__": module, "__qualname__": name, "__setstate__": take, "__call__": take}
    return type(name.rpartition(".")[2], (dict,), members)


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


__all__ = ["REMEDY", "Policy", "refusal"]
