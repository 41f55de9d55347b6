"""Exporting checkpoints into one file, for sites with no network between them."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from cas.checkpoint import Checkpoint, users_path
from cas.config import Settings
from cas.errors import ContentError, NotFoundError, UsageError
from cas.index import disk
from cas.index.bundle import WINDOW, Exported, Head, Writer
from cas.index.digest import Digest
from cas.index.manifest import Manifest
from cas.index.space import Need, require_room
from cas.index.store import Store, explained, store_of
from cas.registry.catalog import Catalog, Record
from cas.registry.names import uuid_of
from cas.registry.records import CheckpointRecord, place_of
from cas.transfer.progress import Advance, drawer

log = logging.getLogger("cas.actions.exporting")

STREAM = "-"  # stdin or stdout


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written."""

    path: str
    checkpoints: int
    blobs: int
    size: int  # bytes of the blobs


@dataclass(frozen=True, slots=True)
class _Content:
    """What goes into an export."""

    head: Head
    manifests: tuple[Manifest, ...]
    blobs: Mapping[Digest, int]
    records: Mapping[str, Sequence[Mapping[str, Any]]]


def export(uuids: Iterable[str], file: str | Path, *, settings: Settings | None = None) -> ExportReport:
    """Write checkpoints into one file, which appears whole or not at all; what is not here is fetched first.

    The file is a plain tar. Extracted by tar(1), it is a home of its own. The same content gives the same bytes.

    Args:
        uuids: of the checkpoints, or names of them.
        file: which must not exist; `-` is stdout.
        settings: default `Settings.load()`.

    Raises:
        UsageError: the file exists, or a UUID is none, and no name.
        NotFoundError: nothing here knows such a checkpoint, or its files are nowhere; there is no such folder.
        NoSpaceError: it will not fit, or the disk became full; nothing is left of it.
        ContentError: a blob turned out to be damaged; it is aside now, and nothing is left of the file.
    """
    chosen = settings or Settings.load()
    store = store_of(chosen)
    wanted = list(dict.fromkeys(uuid_of(store, uuid) for uuid in uuids))
    if not wanted:
        raise UsageError("say which checkpoints")
    path = None if str(file) == STREAM else users_path(file)
    if path is not None and os.path.lexists(path):
        raise UsageError(f"{path} exists already; remove it, or choose another name")
    if path is not None and not path.absolute().parent.is_dir():
        raise NotFoundError(f"there is no folder {path.absolute().parent} to write {path.name} into")
    with contextlib.ExitStack() as claims:
        for uuid in wanted:
            claims.enter_context(store.leases.claim(uuid))
        content = _gather(store, [_bring(store, uuid, chosen) for uuid in wanted])
        with drawer(chosen.progress, "exported")(content.head.size, 0) as advance:
            if path is None:
                _write(store, content, sys.stdout.buffer, advance)
            else:
                _write_file(store, content, path, advance, check_space=chosen.check_space)
    for uuid in wanted:
        store.uses.note(uuid)
    return ExportReport(str(file), len(wanted), content.head.blobs, content.head.size)


def _bring(store: Store, uuid: str, settings: Settings) -> tuple[CheckpointRecord, Manifest, bool]:
    """Return a checkpoint's record, its files, all here, and whether any registry knows it."""
    try:
        record, is_known = Catalog(store).checkpoint(uuid), True
    except NotFoundError:
        registries = store.refs.registries(uuid)
        if not registries:
            raise
        record, is_known = CheckpointRecord(registry=registries[0], uuid=uuid), False
    return record, Checkpoint(record, settings=settings).fetch(), is_known


def _gather(store: Store, found: Sequence[tuple[CheckpointRecord, Manifest, bool]]) -> _Content:
    checkpoints = sorted(Exported(record.registry, record.uuid, manifest.digest) for record, manifest, _ in found)
    blobs = {
        entry.digest: entry.size for _, manifest, _ in found for entry in manifest.files if entry.digest is not None
    }
    records: dict[str, list[Mapping[str, Any]]] = {}
    for payloads in (_payloads(store, record) for record, _, is_known in found if is_known):
        for registry, payload in payloads:
            if payload not in records.setdefault(registry, []):
                records[registry].append(payload)
    for payloads_of in records.values():
        payloads_of.sort(key=lambda payload: (payload["kind"], payload["id"]))
    counts = {registry: len(payloads_of) for registry, payloads_of in records.items()}
    head = Head(store.id, tuple(checkpoints), len(blobs), sum(blobs.values()), counts)
    manifests = {manifest.digest: manifest for _, manifest, _ in found}
    return _Content(head, tuple(manifests[digest] for digest in sorted(manifests)), blobs, records)


def _payloads(store: Store, record: CheckpointRecord) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the records of a checkpoint, its trial and its experiment, with the times they were seen, as written."""
    catalog = Catalog(store, record.registry)
    things: list[Record] = [record]
    for read, id in ((catalog.trial, record.trial_id), (catalog.experiment, record.experiment_id)):
        with contextlib.suppress(NotFoundError, ContentError):
            if id is not None:
                things.append(read(id))
    for thing in things:
        kind, name, parents = place_of(thing)
        seen = store.records.get(record.registry, kind, name)
        if seen is not None:
            data = {"kind": kind, "id": name, "seen": seen.at, "parents": list(parents), "data": thing.to_json()}
            yield record.registry, data


def _write(store: Store, content: _Content, out: IO[bytes], advance: Advance) -> None:
    writer = Writer(out)
    writer.head(content.head)
    for manifest in content.manifests:
        writer.manifest(manifest)
    for digest in sorted(content.blobs):
        path = store.blobs.locate(digest)
        if path is None:
            raise ContentError(f"blob {digest} was removed, or damaged, while it was exported; try again")
        try:
            with open(path, "rb", buffering=0) as source:
                writer.blob(digest, content.blobs[digest], source, advance)
        except ContentError:
            store.blobs.put_aside(digest)
            raise
    writer.end(content.head, content.records)


def _write_file(store: Store, content: _Content, path: Path, advance: Advance, *, check_space: bool) -> None:
    if check_space:
        require_room(store, Need(path.absolute().parent, content.head.size, 1), f"cannot write {path}")
    part = path.with_name(f".{path.name[:200]}.{secrets.token_hex(8)}.part")
    with explained(f"cannot write {path}"):
        fd = disk.create(part, 0o666)
        try:
            with open(fd, "wb", buffering=WINDOW) as out:
                _write(store, content, out, advance)
                out.flush()
                disk.sync(fd)
            disk.link(part, path)  # not renamed: what appeared under the name meanwhile stays
        except FileExistsError as error:
            raise UsageError(f"{path} exists already; remove it, or choose another name") from error
        except OSError as error:
            if not disk.is_link_refusal(error) or os.path.lexists(path):
                raise
            disk.rename(part, path)
        finally:
            with contextlib.suppress(OSError):
                disk.unlink(part)
