"""Which files of a checkpoint may hold a model beside other things, and are worth looking into."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cas.index.manifest import Manifest
from cas.index.store import Store
from cas.transfer.plan import SMALL
from cas.transfer.remote import RemoteFile

_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")  # of files that torch.save writes


def files_of_models(store: Store, files: Sequence[RemoteFile], known: Manifest | None) -> Iterator[RemoteFile]:
    """Yield the files that may hold more than a model, and are not here."""
    facts = store.facts.origins(file.identity for file in files)
    for file in files:
        fact = facts.get(file.identity)
        entry = known.by_path.get(file.path) if known is not None else None
        digest = fact.digest if fact is not None else entry.digest if entry is not None else None
        if file.size >= SMALL and file.path.endswith(_SUFFIXES) and not (digest is not None and store.has(digest)):
            yield file
