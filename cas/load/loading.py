"""From a folder to a model: look at what it is, and call the framework's own loader."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cas.config import Trust
from cas.errors import CasError, NotFoundError
from cas.index.disk import translate
from cas.load.layouts import Kind, recognize


def load_folder(
    folder: Path,
    *,
    tags: Sequence[str] | None = None,
    metadata: Mapping[str, Any] | None = None,
    trust: Trust = Trust.SCAN,
    from_store: bool = False,
    **kwargs: Any,
) -> Any:
    """Load the model in a checkpoint folder, which is only read.

    Args:
        folder: a view, or a folder of the user's.
        tags: of the graph in a SavedModel; default `["serve"]`.
        metadata: what a registry knows beyond the folder's own `metadata.json`.
        trust: which pickles and code may run.
        from_store: the folder is a view of blobs: nobody changes them, so tensors are memory-mapped.
        kwargs: for the framework's loader (`torch.load`, `tf.saved_model.load`).

    Raises:
        NotFoundError: no model is in it, or its code needs a module that is not installed.
        ContentError: it is damaged, or its parts do not fit.
        UnsafeContentError: the trust policy does not allow what would run.
        CasError: the framework is not installed.
    """
    # Late, because whoever only downloads needs none of it: 15 ms of a command's start.
    from cas.load.pytorch import Reading, load_torch
    from cas.load.sources import sources_of
    from cas.load.tf_models import load_keras_trial, load_saved_model, refuse_callback_weights

    layout = recognize(folder, metadata)
    sources = sources_of(layout.code) if layout.code is not None and trust is not Trust.NEVER else None
    if layout.kind is Kind.SAVED_MODEL:
        return load_saved_model(layout, tags, kwargs, trust)
    if layout.kind is Kind.KERAS_TRIAL:
        return load_keras_trial(layout, sources, trust)
    if layout.kind is Kind.KERAS_CALLBACK:
        raise refuse_callback_weights(layout)
    return load_torch(layout, Reading(trust, sources, from_store, kwargs))


@contextmanager
def user_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary view of a user's folder (or of one file): symlinks, so that no loader writes beside the files.

    Raises:
        NotFoundError: there is no such folder or file.
        NotAllowedError: something in it cannot be read.
    """
    source = Path(os.path.abspath(path))  # noqa: PTH100 - links stay as they are
    if not source.exists():
        raise NotFoundError(f"{path}: no such folder")
    with tempfile.TemporaryDirectory(prefix="cas-view-", ignore_cleanup_errors=True) as temporary:
        view = Path(temporary, "view")
        view.mkdir()
        shown = str(source if source.is_dir() else source.parent)  # the user knows the folder, not its view
        try:
            if source.is_dir():
                _mirror(source, view)
            else:
                (view / source.name).symlink_to(source)
            yield view
        except CasError as error:
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
