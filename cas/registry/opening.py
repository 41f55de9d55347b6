"""Who answers for a registry: its master, whose answers are remembered, or the catalog."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from cas.config import DeterminedEnvironment, Settings
from cas.errors import OfflineError
from cas.index.store import Store
from cas.registry.catalog import LOCAL, Catalog
from cas.registry.master import Master
from cas.registry.records import CheckpointRecord, Registry
from cas.registry.remembering import Remembering, remember
from cas.registry.tls import Tls


def is_master(registry: str) -> bool:
    """Whether a registry's name is that of a master: its address."""
    return registry.startswith(("http://", "https://"))


def open_registry(store: Store, name: str, settings: Settings) -> Registry:
    """Return who answers for a registry: a master for itself; offline, and for all others, the catalog."""
    if settings.offline or not is_master(name):
        return Catalog(store, name)
    return Remembering(open_master(name, settings), store)


def open_master(
    url: str,
    settings: Settings,
    *,
    user: str | None = None,
    password: str | None = None,
    cert_path: str | os.PathLike[str] | None = None,
    cert_name: str | None = None,
    noverify: bool = False,
) -> Master:
    """Return the master of an address, with the certificates and the user that arguments or the environment name.

    Raises:
        UsageError: the address is none, or arguments contradict each other.
    """
    environment = DeterminedEnvironment.load()
    tls = Tls.choose(url, environment, cert_path=cert_path, cert_name=cert_name, noverify=noverify)
    return Master(url, user, password, settings=settings, environment=environment, tls=tls)


# --- metadata --------------------------------------------------------------------------------------------------


def add_metadata(
    store: Store, registry: Registry, record: CheckpointRecord, new: Mapping[str, Any]
) -> CheckpointRecord:
    """Add members to a checkpoint's metadata, as its registry has it now; return the record as it is then.

    A master keeps it (read, changed and written with no lock, as its own client does); what has no master is changed
    in the catalog.

    Raises:
        OfflineError: the master does not answer, or the network is off; nothing is changed.
        NotFoundError: the registry does not have it any more.
    """
    return _change(store, registry, record, lambda metadata: {**metadata, **new})


def remove_metadata(store: Store, registry: Registry, record: CheckpointRecord, names: set[str]) -> CheckpointRecord:
    """Remove members from a checkpoint's metadata; see `add_metadata`.

    Raises:
        OfflineError: the master does not answer, or the network is off; nothing is changed.
        NotFoundError: the registry does not have it any more.
    """
    return _change(
        store, registry, record, lambda metadata: {name: one for name, one in metadata.items() if name not in names}
    )


def _change(
    store: Store,
    registry: Registry,
    record: CheckpointRecord,
    change: Callable[[Mapping[str, Any]], dict[str, Any]],
) -> CheckpointRecord:
    if isinstance(registry, Remembering):
        now = registry.checkpoint(record.uuid)
        wanted = change(now.metadata)
        return now if wanted == now.metadata else registry.set_metadata(record.uuid, wanted)
    if is_master(record.registry):
        raise OfflineError(
            f"the metadata of checkpoint {record.uuid} is kept by {record.registry}, and the network is off"
        )
    with store.exclusive(f"records of {record.registry}"):  # as adding does: no change is lost
        now = Catalog(store, record.registry).checkpoint(record.uuid)
        changed = replace(now, metadata=change(now.metadata))
        if changed.metadata != now.metadata:
            remember(store, record.registry, [changed], durable=record.registry == LOCAL)
        return changed
