"""What all ranks of a job know of a checkpoint: its files, as the first rank tells them to the others."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cas.errors import ContentError
from cas.index.digest import Digest
from cas.index.identity import RemoteIdentity
from cas.index.manifest import FileEntry
from cas.index.paths import RelativePath
from cas.index.ranges import Range
from cas.index.store import Store
from cas.transfer.remote import Checksum, RemoteFile


@dataclass(frozen=True, slots=True)
class SharedFiles:
    """What one rank tells all others of the checkpoint."""

    files: tuple[FileEntry, ...]  # those that are wanted: with digests if its store holds them, else with identities
    directories: tuple[RelativePath, ...]
    declared: tuple[Checksum | None, ...]
    likely: frozenset[int] = frozenset()  # of these it is suggested only: a match proves the bytes, a mismatch nothing
    parts: Mapping[int, tuple[Range, ...]] = field(default_factory=dict)  # of files that are not wanted whole, what is
    others: tuple[FileEntry, ...] = ()  # with digests: what a manifest says of the files that are not wanted

    @property
    def is_known(self) -> bool:
        """Whether all digests are known: the origin need not be asked."""
        return all(entry.digest is not None for entry in self.files)

    def wanted(self, number: int) -> Sequence[Range]:
        """Return which bytes of a file the hosts exchange, by its place in the list."""
        entry = self.files[number]
        if number in self.parts:
            return self.parts[number]
        return [Range(0, entry.size)] if can_be_shared(entry) else []

    def here(self, store: Store) -> dict[int, Digest]:
        """Return which files a store has, whole, by their place in the list."""
        facts = store.facts.origins(entry.identity for entry in self.files if entry.identity is not None)
        found = {}
        for number, entry in enumerate(self.files):
            digest = entry.digest
            if digest is None and entry.identity in facts:
                digest = facts[entry.identity].digest
            if digest is not None and store.has(digest):
                found[number] = digest
        return found

    def encode(self) -> bytes:
        """Return it as bytes that `decode` reads."""
        declared = [one and {"kind": one.kind, "value": one.value.hex(), "parts": one.parts} for one in self.declared]
        document = {
            "files": [entry.to_json() for entry in self.files],
            "directories": self.directories,
            "declared": declared,
            "likely": sorted(self.likely),
            "parts": list(self.parts.items()),
            "others": [entry.to_json() for entry in self.others],
        }
        return json.dumps(document).encode()

    @classmethod
    def decode(cls, data: bytes) -> SharedFiles:
        """Read what `encode` wrote."""
        document = json.loads(data)
        declared = [
            one and Checksum(one["kind"], bytes.fromhex(one["value"]), tuple(one["parts"]))
            for one in document["declared"]
        ]
        files, others = tuple(map(_entry, document["files"])), tuple(map(_entry, document["others"]))
        directories = tuple(map(RelativePath, document["directories"]))
        parts = {number: tuple(Range(*span) for span in spans) for number, spans in document["parts"]}
        return cls(files, directories, tuple(declared), frozenset(document["likely"]), parts, others)


def _entry(data: Mapping[str, Any]) -> FileEntry:
    digest = Digest.parse(data["digest"]) if "digest" in data else None
    identity = RemoteIdentity.from_json(data["identity"]) if "identity" in data else None
    return FileEntry(RelativePath(data["path"]), data["size"], digest, identity, data.get("executable") is True)


def can_be_shared(entry: FileEntry) -> bool:
    """Whether ranges of a file can be read one by one; of others each host reads its own."""
    return entry.digest is not None or (entry.identity is not None and entry.identity.has_validator)


def remote_file(entry: FileEntry) -> RemoteFile:
    """Return a file as its origin listed it.

    Raises:
        ContentError: it lay in somebody's store, and no origin is known.
    """
    if entry.identity is None:
        raise ContentError(f"{entry.path} was removed, or found damaged, before it could be sent to the other hosts")
    return RemoteFile(entry.path, entry.size, entry.identity, entry.executable)
