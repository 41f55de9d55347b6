"""What all ranks of a job know of a checkpoint: its files, as the first rank tells them to the others."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cas.index.digest import Digest
from cas.index.identity import RemoteIdentity
from cas.index.manifest import FileEntry
from cas.index.paths import RelativePath
from cas.transfer.remote import Checksum


@dataclass(frozen=True, slots=True)
class SharedFiles:
    """What the first rank tells all others of the checkpoint."""

    files: tuple[FileEntry, ...]  # with digests if its store holds the checkpoint, else with identities
    directories: tuple[RelativePath, ...]
    declared: tuple[Checksum | None, ...]

    @property
    def is_known(self) -> bool:
        """Whether all digests are known: the origin need not be asked."""
        return all(entry.digest is not None for entry in self.files)

    def encode(self) -> bytes:
        """Return it as bytes that `decode` reads."""
        files = [{**entry.to_json(), "executable": entry.executable} for entry in self.files]
        declared = [one and {"kind": one.kind, "value": one.value.hex(), "parts": one.parts} for one in self.declared]
        return json.dumps({"files": files, "directories": self.directories, "declared": declared}).encode()

    @classmethod
    def decode(cls, data: bytes) -> SharedFiles:
        """Read what `encode` wrote."""
        document = json.loads(data)
        declared = [
            one and Checksum(one["kind"], bytes.fromhex(one["value"]), tuple(one["parts"]))
            for one in document["declared"]
        ]
        files = tuple(map(_entry, document["files"]))
        return cls(files, tuple(map(RelativePath, document["directories"])), tuple(declared))


def _entry(data: Mapping[str, Any]) -> FileEntry:
    digest = Digest.parse(data["digest"]) if "digest" in data else None
    identity = RemoteIdentity.from_json(data["identity"]) if "identity" in data else None
    return FileEntry(RelativePath(data["path"]), data["size"], digest, identity, data["executable"])


def can_be_shared(entry: FileEntry) -> bool:
    """Whether ranges of a file can be read one by one; of others each host reads its own."""
    return entry.digest is not None or (entry.identity is not None and entry.identity.has_validator)
