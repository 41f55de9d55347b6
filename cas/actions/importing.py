"""Importing checkpoints from an export file, of which nothing is believed."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cas.checkpoint import users_path
from cas.config import Settings
from cas.errors import ContentError, DigestMismatchError, NotFoundError, UsageError
from cas.index import disk
from cas.index.bundle import Exported, Head, Member, members, read_head, record_names, ref_names, said_of
from cas.index.digest import Digest
from cas.index.manifest import Manifest, digests_of
from cas.index.records import SeenRecord
from cas.index.space import Need, require_room
from cas.index.store import Store, explained, store_of
from cas.registry.catalog import LOCAL, Record
from cas.registry.records import CheckpointRecord, ExperimentRecord, State, TrialRecord, place_of
from cas.transfer.progress import Advance, drawer

log = logging.getLogger("cas.actions.importing")

STREAM = "-"  # stdin
IMPORTED = "imported:"  # registries of checkpoints that were added in another store: the first digits of its id follow


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What was read: blobs that came, blobs that were here already, and bytes of those that came."""

    checkpoints: tuple[Exported, ...]
    blobs: int
    here: int
    size: int
    records: int  # that were new


def import_file(file: str | Path, *, settings: Settings | None = None) -> ImportReport:
    """Bring the checkpoints of an export into the store; when this returns, they survive a power cut.

    Nothing in the file is believed. What is here already is passed over, so an import that was interrupted goes on.
    Checkpoints that were added in another store belong to the registry `imported:<its id>` here.

    Args:
        file: what `export` wrote; `-` is stdin.
        settings: default `Settings.load()`.

    Raises:
        NotFoundError: there is no such file.
        ContentError: it is no export, or damaged: what came whole before that is kept; or a checkpoint of it is here
            already, with other files.
        NoSpaceError: it will not fit, and nothing was written; or the disk became full, and the next call goes on.
    """
    chosen = settings or Settings.load()
    store = store_of(chosen)
    if str(file) == STREAM:
        with said_of("stdin"):
            return _Import(store, chosen).run(members(sys.stdin.buffer, seekable=False))
    path = users_path(file)
    try:
        source = open(path, "rb")  # noqa: SIM115
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no file {path}") from error
    except IsADirectoryError as error:
        raise UsageError(f"{path} is a folder; `cas add {path}` adds a checkpoint's folder") from error
    with source, said_of(str(path)):
        return _Import(store, chosen).run(members(source, seekable=source.seekable()))


class _Import:
    """One import."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self._store = store
        self._settings = settings
        self._blobs = self._here = self._size = 0

    def run(self, incoming: Iterator[Member]) -> ImportReport:
        """Import."""
        head = read_head(next(incoming, None))
        checkpoints = tuple(replace(one, registry=self._registry(one.registry, head)) for one in head.checkpoints)
        with contextlib.ExitStack() as claims, explained(f"cannot write into {self._store.home}"):
            for one in checkpoints:
                claims.enter_context(self._store.leases.claim(one.uuid))
            manifests, member = self._read_manifests(incoming, head)
            self._refuse_others(checkpoints, manifests)
            wanted = _wanted(manifests, head)
            member = self._read_blobs(member, incoming, wanted)
            records = self._read_rest(member, incoming, head)
            self._tag(checkpoints, manifests)
            count = sum(self._merge(head, registry, payloads) for registry, payloads in records.items())
        return ImportReport(checkpoints, self._blobs, self._here, self._size, count)

    def _registry(self, name: str, head: Head) -> str:
        """Return the registry that a checkpoint belongs to here: ids of `local` are another store's own."""
        if name == LOCAL and head.store != self._store.id:
            return f"{IMPORTED}{head.store[:8]}"
        return LOCAL if name == f"{IMPORTED}{self._store.id[:8]}" else name

    def _read_manifests(self, incoming: Iterator[Member], head: Head) -> tuple[dict[Digest, Manifest], Member | None]:
        named = {one.manifest for one in head.checkpoints}
        found: dict[Digest, Manifest] = {}
        member = next(incoming, None)
        while member is not None and member.section in ("format.json", "manifests"):
            if member.digest is not None:
                if member.digest not in named:
                    raise ContentError(f"it holds a manifest that it does not name, {member.digest}")
                found[member.digest] = member.manifest()
                if not found[member.digest].complete:
                    raise ContentError(f"its manifest {member.digest} does not name the bytes of every file")
            member = next(incoming, None)
        if missing := named - found.keys():
            raise ContentError(f"it ends early: the manifest {min(missing)} is missing, and all that follows")
        return found, member

    def _refuse_others(self, checkpoints: Iterable[Exported], manifests: Mapping[Digest, Manifest]) -> None:
        """Refuse to change what a checkpoint consists of that is here."""
        for one in checkpoints:
            known = self._store.resolve(one.registry, one.uuid)
            if known is not None and not _agree(known, manifests[one.manifest]):
                text = f"checkpoint {one.uuid} is in this store already, with other files; `cas rm {one.uuid}` removes"
                raise ContentError(f"{text} it; nothing was imported")

    def _read_blobs(
        self, member: Member | None, incoming: Iterator[Member], wanted: dict[Digest, int]
    ) -> Member | None:
        absent = {digest for digest in wanted if not self._store.has(digest)}
        if self._settings.check_space:
            size = sum(wanted[digest] for digest in absent)
            require_room(self._store, Need(self._store.home, size, len(absent)), "cannot import")
        missing, to_come = set(wanted), sum(wanted[digest] for digest in absent)
        here = sum(wanted.values()) - to_come
        with drawer(self._settings.progress, "imported")(to_come, here) as advance:
            while member is not None and member.section == "blobs":
                assert member.digest is not None, "its name says it"
                if wanted.get(member.digest) != member.size:
                    raise ContentError(f"it holds a blob that no manifest of it names, {member.digest}")
                self._take(member, member.digest, advance, is_here=member.digest not in absent)
                missing.discard(member.digest)
                member = next(incoming, None)
        if missing:
            kept = "what came is kept; import the whole file, and it goes on"
            raise ContentError(f"it ends early: {len(missing)} of {len(wanted)} blobs are missing; {kept}")
        return member

    def _take(self, member: Member, digest: Digest, advance: Advance, *, is_here: bool) -> None:
        if is_here and self._store.has(digest):
            self._here += 1
            return
        with self._store.ingest(expected_size=member.size) as ingest:
            for piece in member.pieces():
                ingest.write(piece)
                advance(len(piece))
            try:
                ingest.commit(digest, durable=True)
            except DigestMismatchError as error:
                said = f"its member {member.name}"
                raise DigestMismatchError(said, expected=error.expected, actual=error.actual) from None
        self._blobs += 1
        self._size += member.size

    def _read_rest(
        self, member: Member | None, incoming: Iterator[Member], head: Head
    ) -> dict[str, list[dict[str, Any]]]:
        """Read refs, which say nothing that was not announced, and records."""
        refs, files = ref_names(head), record_names(head)
        found: dict[str, list[dict[str, Any]]] = {}
        while member is not None:
            if member.name in files:
                found[files[member.name]] = list(member.payloads())
            elif member.name not in refs or member.size:
                raise ContentError(f"it holds {member.name!r:.200}, which it did not announce")
            member = next(incoming, None)
        counts = {registry: len(payloads) for registry, payloads in found.items()}
        if counts != dict(head.records):
            raise ContentError("it ends early: records are missing; what came is kept; import the whole file again")
        return found

    def _tag(self, checkpoints: Iterable[Exported], manifests: Mapping[Digest, Manifest]) -> None:
        for one in checkpoints:
            if self._store.tag(one.registry, one.uuid, manifests[one.manifest], durable=True):
                raise ContentError(
                    f"blobs of checkpoint {one.uuid} were removed while it was imported; import it again"
                )
            self._store.uses.note(one.uuid)

    # --- records ---------------------------------------------------------------------------------------------

    def _merge(self, head: Head, registry: str, payloads: Iterable[Mapping[str, Any]]) -> int:
        """Write down what is new, or newer than what is known; return how much that is."""
        name = self._registry(registry, head)
        uuids = {one.uuid for one in head.checkpoints if one.registry == registry}
        read = [_read_record(payload, name) for payload in payloads]
        needed = {f"checkpoint/{uuid}" for uuid in uuids}
        for one, _ in read:
            if isinstance(one, CheckpointRecord):
                needed |= {f"trial/{one.trial_id}", f"experiment/{one.experiment_id}"}
        new = []
        for record, at in read:
            kind, id, parents = place_of(record)
            if f"{kind}/{id}" not in needed:
                raise ContentError(f"it holds a record of {kind} {id}, which is of no checkpoint in it")
            known = self._store.records.get(name, kind, id)
            if known is None or known.at < at:
                new.append(SeenRecord(kind, id, record.to_json(), parents, at))
            elif kind == "checkpoint" and name == LOCAL and known.data.get("state") == State.DELETED:
                new.append(SeenRecord(kind, id, record.to_json(), parents, disk.now()))  # it is back
        self._store.records.merge(name, new, durable=True)
        return len(new)


def _wanted(manifests: Mapping[Digest, Manifest], head: Head) -> dict[Digest, int]:
    """Return the sizes of all blobs that an export must hold."""
    wanted: dict[Digest, int] = {}
    for manifest in manifests.values():
        for entry in manifest.files:
            if entry.digest is not None and wanted.setdefault(entry.digest, entry.size) != entry.size:
                raise ContentError(f"it names two sizes of one blob, {entry.digest}")
    if (len(wanted), sum(wanted.values())) != (head.blobs, head.size):
        raise ContentError("it does not hold what it says: its manifests name other blobs")
    return wanted


def _agree(known: Manifest, other: Manifest) -> bool:
    """Whether two manifests say nothing different of any file."""
    if known.complete:
        return set(digests_of(known)) == set(digests_of(other)) and _paths(known) == _paths(other)
    mine, theirs = _paths(known), _paths(other)
    return mine.keys() == theirs.keys() and all(digest in (None, theirs[path]) for path, digest in mine.items())


def _paths(manifest: Manifest) -> dict[str, Digest | None]:
    return {str(entry.path): entry.digest for entry in manifest.files}


def _read_record(payload: Mapping[str, Any], registry: str) -> tuple[Record, float]:
    """Read a line of records strictly; a time that is yet to come is now.

    Raises:
        ContentError: it is nothing that `export` writes.
    """
    kind, id, seen, data = (payload.get(name) for name in ("kind", "id", "seen", "data"))
    if not isinstance(id, str) or not isinstance(seen, int | float) or isinstance(seen, bool):
        raise ContentError(f"it holds a record that is damaged: {payload!r:.200}")
    if not isinstance(data, dict):
        raise ContentError(f"it holds a record that is damaged: {payload!r:.200}")
    at = min(max(float(seen), 0.0), disk.now())
    if kind == "checkpoint":
        return CheckpointRecord.from_json(data, registry=registry, uuid=id), at
    if kind in ("trial", "experiment") and id.isascii() and id.isdigit() and len(id) < 19 and str(int(id)) == id:
        if kind == "trial":
            return TrialRecord.from_json(data, registry=registry, id=int(id)), at
        return ExperimentRecord.from_json(data, registry=registry, id=int(id)), at
    raise ContentError(f"it holds a record of {kind!r:.40} {id!r:.60}, which no export has")
