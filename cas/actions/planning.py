"""Planning: what a download would fetch, and which checkpoints here have the rest."""

from __future__ import annotations

from cas.actions.places import place_of
from cas.checkpoint import Checkpoint
from cas.config import Settings
from cas.index.store import store_of
from cas.registry.catalog import Catalog
from cas.registry.names import uuid_of
from cas.transfer.preview import Preview, preview


def plan(what: str | Checkpoint, *, settings: Settings | None = None) -> Preview:
    """Say what bringing a checkpoint here would fetch; changes nothing.

    Args:
        what: a URL (`s3://bucket/prefix`, `file:///…`), or a checkpoint, or its UUID or a name of it.
        settings: default: `Settings.load()`.

    Raises:
        UsageError: it is none of these.
        NotFoundError: nobody knows it, or its files are neither here nor at the origin.
        CasError: as the origin answers.
    """
    if isinstance(what, Checkpoint):
        return what.plan()
    chosen = settings or Settings.load()
    store = store_of(chosen)
    if "://" not in what:
        return Checkpoint(Catalog(store).checkpoint(uuid_of(store, what)), settings=chosen).plan()
    place = place_of(what, chosen)
    return preview(store, place.remote, registry=place.registry, uuid=place.uuid, settings=chosen)
