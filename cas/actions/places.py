"""Where a checkpoint lies: of a URL, of a UUID, or of a `Checkpoint`."""

from __future__ import annotations

from dataclasses import dataclass

from cas.checkpoint import Checkpoint
from cas.config import Settings
from cas.errors import OfflineError
from cas.index.store import store_of
from cas.pull.origin import Origin
from cas.registry.catalog import Catalog
from cas.registry.names import uuid_of
from cas.registry.records import PULLED, uuid_of_url
from cas.transfer.folder import FolderRemote
from cas.transfer.remote import Remote
from cas.transfer.urls import remote_for_url


@dataclass(frozen=True, slots=True)
class Place:
    """A checkpoint at its origin."""

    registry: str
    uuid: str
    remote: Remote


def place_of(what: str | Checkpoint, settings: Settings) -> Place:
    """Return where a checkpoint lies; a UUID (or a name that stands for one) is one that the catalog knows.

    Raises:
        UsageError: it is neither a URL nor a UUID nor a name, or its scheme is not supported.
        NotFoundError: nobody knows the UUID, or has given the name.
        CheckpointNotFoundError: no registry says where its files lie.
        OfflineError: it is somewhere else, and the network is off.
    """
    if isinstance(what, Checkpoint):
        return Place(what.record.registry, what.uuid, Origin(what.record, settings).remote())
    if "://" not in what:
        store = store_of(settings)
        record = Catalog(store).checkpoint(uuid_of(store, what))
        return Place(record.registry, record.uuid, Origin(record, settings).remote())
    remote = remote_for_url(what, settings)
    if settings.offline and not isinstance(remote, FolderRemote):
        raise OfflineError(f"{remote.url} is not on this host, and CAS_OFFLINE is set")
    return Place(PULLED, uuid_of_url(remote.url), remote)
