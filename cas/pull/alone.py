"""A model alone: fetched without its optimizer's state, from a checkpoint that is not (wholly) here."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from cas.errors import CasError
from cas.index.manifest import Manifest
from cas.index.store import Store
from cas.load.selecting import model_storages
from cas.pull.models import files_of_models
from cas.pull.origin import Origin
from cas.transfer.selected import Selected, selected_records
from cas.transfer.selection import literal
from cas.transfer.session import Session

log = logging.getLogger("cas.checkpoint")


ViewOfRest = Callable[[list[str]], Path]  # patterns of the files to leave out → a view of all others


@contextlib.contextmanager
def model_alone(store: Store, origin: Origin, known: Manifest | None, view: ViewOfRest) -> Iterator[Path | None]:
    """Yield a folder that looks like the checkpoint, in which large files of torch hold their models and no more.

    What was fetched of those stays in `ingest/`, where a pull of the whole checkpoint goes on, and cuts it short as it
    does: nothing of it may stay mapped when the folder is left. Yields None where there
    is nothing to save: such files are here already, or hold nothing beside their models, or are none.

    Raises:
        DigestMismatchError: a tensor does not have the CRC-32 that its file says.
        CasError: what the transfer raised.
    """
    try:
        session = Session(store, origin.remote(), origin.settings, None)
        files = [file for file in session.remote.list().files if origin.selection.takes(file.path)]
    except CasError as error:  # the ordinary way says what is wrong, or finds another way round
        log.info("nothing is chosen from the origin: %s", error)
        yield None
        return
    with contextlib.ExitStack() as stack:
        found: dict[str, Selected] = {}
        for file in files_of_models(store, files, known):
            selected = stack.enter_context(selected_records(session, file, model_storages))
            if selected is not None:
                found[file.path] = selected
                log.info("%s: %d of %d bytes are its models'", file.path, selected.kept, selected.size)
        if not found:
            yield None
            return
        temporary = stack.enter_context(tempfile.TemporaryDirectory(prefix="cas-model-", ignore_cleanup_errors=True))
        folder = Path(temporary, "view")
        folder.mkdir()
        if len(found) < len(files):
            _link_all(view(list(map(literal, found))), folder)
        for path, one in found.items():
            _link(one.path, folder / path)
        yield folder


def _link_all(view: Path, folder: Path) -> None:
    for path in sorted(view.rglob("*")):
        place = folder / path.relative_to(view)
        if path.is_dir():
            place.mkdir(parents=True, exist_ok=True)
        else:
            _link(path, place)


def _link(path: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(path)
