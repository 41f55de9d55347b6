"""Publishing: the sidecar of a checkpoint that lies in a bucket or a folder, so that others fetch only what is new."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from cas.actions.places import Place, place_of
from cas.checkpoint import Checkpoint
from cas.config import Settings
from cas.errors import ChangedError, UsageError
from cas.index.cutting import cut_file
from cas.index.digest import Digest
from cas.index.sidecar import Described, Sidecar, describe, version_of
from cas.index.store import Store, store_of
from cas.transfer.fetch import pull
from cas.transfer.progress import drawer
from cas.transfer.remote import Remote, RemoteFile
from cas.transfer.retry import RetryingRemote
from cas.transfer.sidecars import without_sidecars

log = logging.getLogger("cas.actions.publishing")

LEAST_KEPT = 1 << 20  # bytes; chunk lists of smaller files find nothing that the sidecar does not


@dataclass(frozen=True, slots=True)
class PublishReport:
    """What was published, and where."""

    url: str
    files: int
    chunks: int
    size: int  # of the checkpoint, in bytes
    published: int  # bytes of the sidecar
    bytes_fetched: int  # that were not here before


def publish(what: str | Checkpoint, *, settings: Settings | None = None) -> PublishReport:
    """Publish the sidecar of a checkpoint; what is not in the store yet is fetched first.

    Args:
        what: a URL (`s3://bucket/prefix`, `file:///…`), or a checkpoint that lies at one, its UUID, or a name of it.
        settings: default: `Settings.load()`.

    Raises:
        UsageError: nothing can be published there, or the objects have no versions.
        ChangedError: files were replaced meanwhile, or are so young that they may still change.
        NotAllowedError: the sidecar may not be written.
        CasError: as `pull`.
    """
    chosen = settings or Settings.load()
    store = store_of(chosen)
    return publish_place(store, place_of(what, chosen), settings=chosen)


def publish_place(store: Store, place: Place, *, settings: Settings) -> PublishReport:
    """Publish the sidecar of a checkpoint at its origin; see `publish`."""
    fetched = 0
    with store.leases.claim(place.uuid):
        listed = _listed(place.remote)
        if absent := _unknown(store, listed):
            log.info("%d files of %s are not here", len(absent), place.remote.url)
            report = pull(store, place.remote, registry=place.registry, uuid=place.uuid, settings=settings)
            fetched, listed = report.bytes_fetched, _listed(place.remote)
        total = sum(file.size for file in listed)
        with drawer(settings.progress, "cutting")(total, 0) as advance:
            described = _describe_all(store, listed, advance)
        data = Sidecar.of(described).encode()
        url = RetryingRemote(place.remote).write_sidecar(data)
    chunks = sum(len(one.chunks) for one in described)
    return PublishReport(url, len(described), chunks, total, len(data), fetched)


def _listed(remote: Remote) -> tuple[RemoteFile, ...]:
    listed = without_sidecars(RetryingRemote(remote).list()).files
    if nameless := [file for file in listed if not version_of(file.identity)]:
        raise UsageError(
            f"{nameless[0].identity.url} has no version that tells it from another; it cannot be published"
        )
    return listed


def _unknown(store: Store, files: Iterable[RemoteFile]) -> list[RemoteFile]:
    """Return the files whose bytes are not here, or not known to be those of this version."""
    facts = store.facts.origins(file.identity for file in files)
    return [file for file in files if file.identity not in facts or not store.has(facts[file.identity].digest)]


def _describe_all(store: Store, files: tuple[RemoteFile, ...], advance: Callable[[int], None]) -> list[Described]:
    facts = store.facts.origins(file.identity for file in files)
    found = []
    with store.staging("publish") as staging:
        for file in files:
            path = store.blobs.locate(facts[file.identity].digest, file.size) if file.identity in facts else None
            if path is None:
                raise ChangedError(
                    f"{file.identity.url} was replaced meanwhile, or is so young that it may still change; try again"
                )
            found.append(_describe(store, file, facts[file.identity].digest, path, staging.folder))
            advance(file.size)
    return found


def _describe(store: Store, file: RemoteFile, digest: Digest, path: Path, scratch: Path) -> Described:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        chunks = store.chunks.get(digest, file.size)
        if chunks is None:
            chunks = cut_file(fd)
            if file.size >= LEAST_KEPT:
                store.chunks.put(digest, chunks, scratch)
        return describe(fd, file.path, digest, chunks, file.identity)
    finally:
        os.close(fd)
