"""Building a trial: its class is found in the checkpoint's `code/` and made with a context of ours."""

from __future__ import annotations

from typing import Any

from cas.errors import CasError, ContentError, NotFoundError
from cas.load.layouts import Layout
from cas.load.sources import Sources
from cas.load.standin.lacking import Lacking


def build_trial(layout: Layout, sources: Sources | None, context: Any) -> Any:
    """Import a trial class and make a trial of it.

    Raises:
        NotFoundError: the code needs a module that is neither in `code/` nor installed.
        ContentError: `code/` does not have the class.
        CasError: the code uses something of `determined` that the stand-in lacks.
    """
    if sources is None or layout.entrypoint is None:
        raise ContentError(f"{layout.folder}: holds no code/ that builds its model")
    module, _, name = layout.entrypoint.partition(":")
    if module == "__main__":  # the script that trained
        module = sources.defines(name.partition(".")[0]) or module
    try:
        found: Any = sources.load(module)
        for part in name.split("."):
            found = getattr(found, part)
    except Lacking:
        raise
    except ImportError as error:
        raise _explain(layout, error) from error
    except AttributeError as error:
        raise ContentError(f"{layout.folder}: code/ does not have the trial class {layout.entrypoint}") from error
    return found(context)


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
