"""From a folder to a model: look at what it is, and call the framework's own loader."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cas.errors import CasError, NotFoundError, UsageError
from cas.index.disk import translate
from cas.load import forks as forks  # early: it has to see every fork
from cas.load.layouts import ACCEPTED, Kind, Layout, UnrecognizedError, companions, recognize
from cas.load.permit import Permit

if TYPE_CHECKING:
    from cas.load.sources import Sources
    from cas.load.verdicts import Scanned


def load_folder(
    folder: Path,
    *,
    tags: Sequence[str] | str | None = None,
    metadata: Mapping[str, Any] | None = None,
    permit: Permit | None = None,
    from_store: bool = False,
    scanned: Scanned | None = None,
    whole: bool = False,
    **kwargs: Any,
) -> Any:
    """Load the model in a checkpoint folder, which is only read.

    Args:
        folder: a view, or a folder of the user's.
        tags: of the graph in a SavedModel; default `["serve"]`.
        metadata: what a registry knows beyond the folder's own `metadata.json`.
        permit: which pickles and code may run; default: what a scan lets through.
        from_store: the folder is a view of blobs: nobody changes them, so tensors are memory-mapped.
        scanned: the verdicts of earlier scans of these files.
        whole: return the trial with its models, not the model.
        kwargs: see `cas.load.options`; what is left is for the framework's loader (`torch.load`, `load_weights`, …).

    Raises:
        UsageError: an argument that this kind of checkpoint does not take.
        NotFoundError: no model is in it, or its code needs a module or file that it does not find.
        ContentError: it is damaged, or its parts do not fit.
        UnsafeContentError: the trust policy does not allow what would run.
        CasError: the framework is not installed.
    """
    # Late, because whoever only downloads needs none of it: 15 ms of a command's start.
    from cas.load import keras_models, saved_models
    from cas.load.options import parse
    from cas.load.pytorch import load_torch
    from cas.load.sources import sources_of
    from cas.load.torch_files import Reading

    permit = permit or Permit()
    if isinstance(tags, str):  # whoever says one tag means one, not its letters
        tags = [tags]
    layout = recognize(folder, metadata)
    options = parse(layout.kind, kwargs)
    if tags is not None and layout.kind is not Kind.SAVED_MODEL:
        raise UsageError(f"tags choose a graph of a SavedModel, and this is {layout.kind}")
    sources = sources_of(layout.code) if layout.code is not None and not permit.safe_only else None
    with _relative_files_explained(layout, sources, from_store=from_store):
        if layout.kind is Kind.SAVED_MODEL:
            return saved_models.load_saved_model(layout, tags, options, permit, whole=whole)
        if layout.kind in (Kind.KERAS_TRIAL, Kind.KERAS_FILE, Kind.TF_WEIGHTS):
            return keras_models.load_keras(layout, sources, options, permit, whole=whole)
        reading = Reading(permit, sources, from_store, options.loader, scanned)
        return load_torch(layout, reading, options, whole=whole)


@contextmanager
def _relative_files_explained(layout: Layout, sources: Sources | None, *, from_store: bool) -> Iterator[None]:
    """Say what is wrong where code opens a file of `code/` by a relative path, as it could when it trained.

    Threads share the current folder, so nothing is changed for the code's sake.

    Raises:
        NotFoundError: the code's own current folder was `code/`, and that file is there.
    """
    from cas.load.torch_files import is_of_code

    try:
        yield
    except FileNotFoundError as error:
        name = os.path.normpath(error.filename) if isinstance(error.filename, str) else ""
        below = name and not os.path.isabs(name) and name.partition(os.sep)[0] != os.pardir  # noqa: PTH117
        if layout.code is None or not below or not is_of_code(error, sources) or not (layout.code / name).exists():
            raise
        where = "Checkpoint.view() / 'code'" if from_store else os.path.realpath(layout.code)
        raise NotFoundError(
            f"{layout.folder}: its code looks for {name} in the current folder, which was code/ where it trained, and"
            f" has that file: change to {where} (os.chdir), and load it there"
        ) from error


@contextmanager
def user_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary view of a user's folder: symlinks, so that no loader writes beside the files.

    Of one file that is named, the view holds that and what belongs to it (the parts of an index).

    Raises:
        NotFoundError: there is no such folder or file.
        NotAllowedError: something in it cannot be read.
    """
    source = Path(os.path.abspath(path))  # noqa: PTH100 - links stay as they are
    files = companions(source)
    if files is None:
        raise NotFoundError(f"{path}: no such folder or file")
    with tempfile.TemporaryDirectory(prefix="cas-view-", ignore_cleanup_errors=True) as temporary:
        view = Path(temporary, "view")
        view.mkdir()
        shown = str(source if source.is_dir() else source.parent)  # the user knows the folder, not its view
        try:
            if source.is_dir():
                _mirror(source, view)
            for file in files:
                (view / file.name).symlink_to(file)
            yield view
        except CasError as error:
            if isinstance(error, UnrecognizedError) and not source.is_dir():
                raise NotFoundError(f"{source.parent}/{error.found}: no model; cas loads {ACCEPTED}") from error
            error.args = (str(error).replace(str(view), shown),)
            raise
        except OSError as error:
            if (clear := translate(error, f"cannot load {path}")) is None:
                raise
            raise type(clear)(str(clear).replace(str(view), shown)) from error


def _mirror(source: Path, view: Path) -> None:
    for entry in os.scandir(source):
        # code/ is one link: its modules remember where they lie, and this view is gone when they read data files.
        if not entry.is_symlink() and entry.is_dir() and entry.name != "code":
            (view / entry.name).mkdir()
            _mirror(Path(entry.path), view / entry.name)
        else:
            (view / entry.name).symlink_to(entry.path)


__all__ = ["load_folder", "user_folder"]
