"""Checkpoints that no registry knows: pulled from a URL, and named by the user."""

from __future__ import annotations

import uuid as uuids
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cas.config import Settings
from cas.errors import NotFoundError, UsageError
from cas.index.paths import RelativePath
from cas.index.store import Store, store_of
from cas.registry import names
from cas.registry.records import PULLED, CheckpointRecord
from cas.registry.remembering import remember
from cas.transfer.urls import PLACE, remote_for_url

_UUID_LENGTH = 36  # folders are named in the canonical form


def record_for_url(
    url: str,
    *,
    files: Iterable[str] = (),
    options: Mapping[str, Any] | None = None,
    settings: Settings,
) -> CheckpointRecord:
    """Return the record of what lies at a URL. Nothing is asked, and nothing written: that comes with the files.

    Its UUID is the last part of the path, if that is one; else one made of the URL (and of the files, if they are
    named): the same place has the same UUID everywhere.

    Raises:
        UsageError: the URL means nothing.
    """
    named = tuple(RelativePath(name) for name in files)
    place = url if "://" in url else _folder_url(url)
    remote = remote_for_url(place, settings, options=options, names=named)
    last = remote.url.rpartition("/")[2]
    if len(last) == _UUID_LENGTH and names.is_uuid(last) and not named:
        uuid = last.lower()
    else:
        uuid = str(uuids.uuid5(uuids.NAMESPACE_URL, "\n".join([remote.url, *named])))
    config = _config(place, named)
    return CheckpointRecord(registry=PULLED, uuid=uuid, metadata={"url": remote.url}, experiment_config=config)


def note_pulled(store: Store, record: CheckpointRecord) -> None:
    """Write down, without credentials, that what lies at a URL was fetched.

    A query may be a signature, and options may hold keys: they stay in memory. What is written is the place without
    them, where that is the same place.
    """
    url = str(record.metadata.get("url", ""))
    storage = record.experiment_config.get("checkpoint_storage") or {}
    kept = url if "#" not in url and "?" not in url else None
    named = tuple(map(RelativePath, storage.get("files", ())))
    remember(store, PULLED, [replace(record, experiment_config=_config(kept, named))])


def _config(url: str | None, files: tuple[RelativePath, ...]) -> dict[str, Any]:
    if url is None:
        return {}
    return {"checkpoint_storage": {"type": PLACE, "url": url, **({"files": list(files)} if files else {})}}


def _folder_url(path: str) -> str:
    if not path or "\0" in path:
        raise UsageError(f"not a URL, and no folder: {path!r:.80}")
    return Path(path).expanduser().absolute().as_uri()


# --- names -----------------------------------------------------------------------------------------------------------


def tag(name: str, which: str | None, *, settings: Settings | None = None) -> str | None:
    """Give a checkpoint a name of your own, which is taken wherever its UUID is; return whose it was before, if any.

    Args:
        name: letters, digits and `._+-`, with slashes between parts.
        which: a checkpoint's UUID, or another of its names; None takes the name away.
        settings: default: `Settings.load()`.

    Raises:
        UsageError: it is no name.
        NotFoundError: there is no such checkpoint, or (to be taken away) no such name.
    """
    store = store_of(settings or Settings.load())
    names.check_name(name)
    if which is None:
        names.uuid_of(store, name)
        return names.set_name(store, name, None)
    uuid = names.uuid_of(store, which)
    if not _is_known(store, uuid):
        raise NotFoundError(f"checkpoint {uuid} is not known here; `cas ls` lists those that are")
    return names.set_name(store, name, uuid)


def tags(*, settings: Settings | None = None) -> dict[str, str]:
    """Return every name with the UUID that it stands for."""
    return names.names(store_of(settings or Settings.load()))


def _is_known(store: Store, uuid: str) -> bool:
    return bool(store.refs.registries(uuid) or store.records.registries_with("checkpoint", uuid))


__all__ = ["note_pulled", "record_for_url", "tag", "tags"]
