"""Facts: what this host has proven, appended to a file of its own and never changed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cas.index import disk, lines
from cas.index.digest import Digest
from cas.index.disk import Signature
from cas.index.identity import RemoteIdentity
from cas.index.layout import Layout
from cas.index.sqlindex import SqlIndex


@dataclass(frozen=True, slots=True)
class BlobFact:
    """A blob with this signature had this digest, in this boot; sealed: it will survive a power cut."""

    digest: Digest
    signature: Signature
    boot: str | None
    sealed: bool

    @property
    def usable(self) -> bool:
        """Whether it holds now: sealed, or of this same boot."""
        return self.sealed or (self.boot is not None and self.boot == disk.boot_id())

    def to_json(self) -> dict[str, Any]:
        """Return the fact as a line's payload."""
        return {
            "kind": "blob",
            "key": str(self.digest),
            "size": self.signature.size,
            "mtime": self.signature.mtime_ns,
            "inode": self.signature.inode,
            "boot": self.boot,
            "sealed": self.sealed,
            "at": disk.now(),
        }


@dataclass(frozen=True, slots=True)
class OriginFact:
    """The bytes of a remote identity have this digest; `proof` says what vouched for them on the way."""

    digest: Digest
    proof: str


class Facts:
    """Everything that was proven about blobs, origins and download targets."""

    def __init__(self, layout: Layout, index: SqlIndex) -> None:
        self._layout = layout
        self._index = index

    def add_blob(self, fact: BlobFact, *, durable: bool = False) -> None:
        """Record a fact about a blob."""
        self.add([fact.to_json()], durable=durable)

    def add(self, payloads: list[dict[str, Any]], *, durable: bool = False) -> None:
        """Append facts with one write."""
        lines.append(self._layout.facts, payloads, durable=durable)

    def blob(self, digest: Digest) -> list[BlobFact]:
        """Return each host's last fact about a blob."""
        found = []
        for payload in self._index.facts("blob", str(digest)):
            values = [payload.get(name) for name in ("size", "mtime", "inode")]
            if all(isinstance(value, int) for value in values):
                signature = Signature(*values)  # type: ignore[arg-type]  # checked in the line above
                found.append(BlobFact(digest, signature, payload.get("boot"), payload.get("sealed") is True))
        return found

    def origin(self, identity: RemoteIdentity) -> OriginFact | None:
        """Return what is known of a remote identity's bytes; only identities with a validator, or local, count."""
        for payload in self._index.facts("origin", identity.key):
            return OriginFact(Digest.parse(payload.get("digest", "")), str(payload.get("proof", "")))
        return None

    def add_origin(self, identity: RemoteIdentity, digest: Digest, proof: str) -> None:
        """Record which digest the bytes of a remote identity have, and what proved it."""
        payload = {"kind": "origin", "key": identity.key, "digest": str(digest), "proof": proof, "at": disk.now()}
        self.add([payload])

    def target(self, path: Path) -> dict[str, Any] | None:
        """Return what was last written about a download target, named by its absolute path."""
        found = self._index.facts("target", str(path))
        return max(found, key=lambda payload: payload.get("at", 0), default=None)

    def add_target(self, path: Path, data: dict[str, Any]) -> None:
        """Record what was materialized in a user's folder."""
        self.add([{"kind": "target", "key": str(path), "at": disk.now(), **data}])
