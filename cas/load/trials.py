"""Building a trial: its class is found in the checkpoint's `code/` and made with a context.

The context is the real one where that part of the `determined` package is installed and works: the class inherits from
it then. Else it is ours.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from cas.errors import CasError, ContentError, NotFoundError, UsageError
from cas.load.layouts import Layout
from cas.load.options import Options
from cas.load.parts import stands_in
from cas.load.sources import Sources
from cas.load.standin.lacking import Lacking

log = logging.getLogger("cas.load")


def build_trial(layout: Layout, sources: Sources | None, context: Any, options: Options) -> Any:
    """Import a trial class and make a trial of it.

    Raises:
        NotFoundError: the code needs a module that is neither in `code/` nor installed.
        ContentError: `code/` does not have the class.
        UsageError: the class does not take the arguments that the caller gave for it.
        CasError: the code uses something of `determined` that the stand-in lacks.
    """
    kind = options.trial_class or _find_class(layout, sources)
    _require_arguments(kind, options.trial_kwargs)
    return kind(context, **options.trial_kwargs)


def _find_class(layout: Layout, sources: Sources | None) -> Any:
    if sources is None or layout.entrypoint is None:
        raise ContentError(f"{layout.folder}: holds no code/ that builds its model")
    module, _, name = layout.entrypoint.partition(":")
    if module in ("__main__", ""):  # the script that trained
        module = _find_script(layout, sources, name)
    try:
        found: Any = sources.load(module)
    except Lacking:
        raise
    except ImportError as error:
        raise _explain(layout, error) from error
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise ContentError(f"{layout.folder}: code/ does not have the trial class {layout.entrypoint}")
    return found


def _find_script(layout: Layout, sources: Sources, name: str) -> str:
    """Return the module that the script which trained is: it defines the trial class.

    Raises:
        ContentError: no file does, or several, and the entrypoint names none of them.
    """
    found = sources.defining(name.partition(".")[0])
    scripts = (script & found.keys() for script in _scripts(sources, layout.experiment_config.get("entrypoint")))
    chosen = sorted(next(filter(None, scripts), found))
    if len(chosen) == 1:
        return found[chosen[0]]
    many = f"{len(chosen)} files in code/ define it ({', '.join(chosen)})" if chosen else "no file in code/ defines it"
    raise ContentError(
        f"{layout.folder}: its trial class {name} was defined in the script that trained, and {many}; give the class as"
        " trial_class="
    )


def _scripts(sources: Sources, entrypoint: object) -> Iterator[set[str]]:
    """Yield which files of `code/` each word of an entrypoint can mean: `python3 train.py`, `python3 -m pkg.train`."""
    words = [str(word) for word in entrypoint] if isinstance(entrypoint, list) else [str(entrypoint or "")]
    before = ""
    for word in (word.strip("\"'") for word in " ".join(words).split()):
        if before == "-m":
            yield {f"{word.replace('.', '/')}/__main__.py", sources.locate(word) or ""}
        elif word.endswith(".py"):
            parts = PurePosixPath(word).parts
            tails = ["/".join(parts[start:]) for start in range(len(parts))]  # of a path in the container
            exact = next(({tail} for tail in tails if tail in sources.files), None)
            yield exact or {path for path in sources.files if path.endswith(f"/{word}")}  # after a `cd`
        before = word


def _require_arguments(kind: Any, said: Mapping[str, Any]) -> None:
    """Refuse arguments that a trial class does not take before it is called: what it raises itself is its own.

    Raises:
        UsageError: it takes others.
    """
    import inspect

    try:
        signature = inspect.signature(kind)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(None, **said)
    except TypeError as error:
        name = getattr(kind, "__name__", "trial_class")
        raise UsageError(f"{name}{signature} cannot be called with the context and trial_kwargs: {error}") from error


def _explain(layout: Layout, error: ImportError) -> CasError:
    name = error.name or ""
    if name.startswith(("determined", "cas.load.standin")):
        missing = str(error).partition("'")[2].partition("'")[0]
        module = name.replace("cas.load.standin", "determined")
        return Lacking(module if isinstance(error, ModuleNotFoundError) else f"{module}.{missing}")
    if isinstance(error, ModuleNotFoundError):
        return NotFoundError(
            f"{layout.folder}: its code needs the module {name}, which is neither in code/ nor installed"
        )
    return ContentError(f"{layout.folder}: its code cannot be imported: {error}")


# --- contexts ----------------------------------------------------------------------------------------------------


def torch_context(layout: Layout) -> Any:
    """Return a context for a trial of torch."""
    hparams, config = dict(layout.hparams), dict(layout.experiment_config)
    if stands_in("determined.pytorch"):
        from cas.load.standin.pytorch import PyTorchTrialContext

        return PyTorchTrialContext(hparams, config)
    make = getattr(importlib.import_module("determined.pytorch"), "CheckpointLoadContext", None)
    if make is None:
        raise CasError("the determined package that is installed is older than 0.21: upgrade or remove it")
    return make(hparams=hparams, exp_conf=config or None)


def keras_context(layout: Layout) -> Any:
    """Return a context for a trial of Keras."""
    hparams, config = dict(layout.hparams), dict(layout.experiment_config)
    if stands_in("determined.keras"):
        from cas.load.standin.keras import TFKerasTrialContext

        return TFKerasTrialContext(hparams, config)
    # How hyperparameters are written in a configuration, from which this context reads them.
    config["hyperparameters"] = {name: {"type": "const", "val": value} for name, value in hparams.items()}
    return importlib.import_module("determined.keras").TFKerasTrialContext.from_config(config)


__all__ = ["build_trial", "keras_context", "torch_context"]
