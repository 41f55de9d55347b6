"""Facts: what this host has proven, appended to a file of its own and never changed."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from cas.errors import ContentError
from cas.index import disk, lines
from cas.index.digest import Digest
from cas.index.disk import Signature
from cas.index.identity import RemoteIdentity
from cas.index.layout import Layout
from cas.index.sqlindex import SqlIndex

GROUP = 500  # facts per write while a group is open; what a kill loses is hashed or fetched again


class BlobFact(NamedTuple):
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
        data = {
            "kind": "blob",
            "key": str(self.digest),
            "size": self.signature.size,
            "mtime": self.signature.mtime_ns,
            "inode": self.signature.inode,
            "boot": self.boot,
            "sealed": self.sealed,
            "at": disk.now(),
        }
        return data | ({"changed": self.signature.changed} if self.signature.changed else {})


@dataclass(frozen=True, slots=True)
class OriginFact:
    """The bytes of a remote identity have this digest; `proof` says what vouched for them on the way."""

    digest: Digest
    proof: str


@dataclass(frozen=True, slots=True)
class DeepCheck:
    """How far this host's user has read all blobs, in order of digest: up to this hex (empty: all), since when."""

    after: str
    begun: float
    boot: str | None


@dataclass(slots=True)
class _Group:
    """Facts of one process that wait to be appended together."""

    pid: int
    lock: threading.Lock = field(default_factory=threading.Lock)
    depth: int = 0
    waiting: list[dict[str, Any]] = field(default_factory=list)


class Facts:
    """Everything that was proven about blobs, origins and download targets."""

    def __init__(self, layout: Layout, index: SqlIndex) -> None:
        self._layout = layout
        self._index = index
        self._group = _Group(os.getpid())
        self.layers: tuple[Facts, ...] = ()

    def add_blob(self, fact: BlobFact, *, durable: bool = False) -> None:
        """Record a fact about a blob; with others of an open group, if it need not be durable."""
        if durable:
            self.add([fact.to_json()], durable=True)
        else:
            self._add_soon(fact.to_json())

    def add(self, payloads: list[dict[str, Any]], *, durable: bool = False) -> None:
        """Append facts with one write."""
        path = self._layout.facts
        lines.append(path, payloads, durable=durable, may_move=True)
        if durable:
            disk.sync_names(path.parent, self._layout.notes)

    def _add_soon(self, payload: dict[str, Any]) -> None:
        group = self._here()
        if not group.depth:
            self.add([payload])
            return
        with group.lock:
            group.waiting.append(payload)
        if len(group.waiting) >= GROUP:
            self.flush()

    @contextlib.contextmanager
    def grouped(self) -> Iterator[None]:
        """Within, facts about blobs and origins (of all threads) are appended many at a time."""
        group = self._here()
        with group.lock:
            group.depth += 1
        try:
            yield
        finally:
            with group.lock:
                group.depth -= 1
            self.flush()

    def flush(self) -> None:
        """Append the facts that wait."""
        group = self._here()
        with group.lock:
            waiting, group.waiting = group.waiting, []
        try:
            lines.append(self._layout.facts, waiting, may_move=True)
        except OSError:  # a full disk, which may have room again when the work ends: what was fetched stays known
            with group.lock:
                group.waiting[:0] = waiting
            raise

    def make_file(self) -> None:
        """Make the file that facts are appended to, before there is much to say: a full disk has no inode for it.

        Raises:
            OSError: it cannot be made.
        """
        lines.make(self._layout.facts)

    def settle(self) -> None:
        """Append what earlier work of this process could not, if there is room again; before facts are asked for."""
        with contextlib.suppress(OSError):
            self.flush()

    def _here(self) -> _Group:
        if self._group.pid != os.getpid():
            self._group = _Group(os.getpid())  # after a fork: the parent appends what waits there
        return self._group

    def blob(self, digest: Digest) -> list[BlobFact]:
        """Return each host's last fact about a blob."""
        return _blob_facts(digest, self._index.facts("blob", str(digest)))

    def blobs(self, digests: Iterable[Digest]) -> dict[Digest, list[BlobFact]]:
        """Return what `blob` does, of many blobs; those with no fact are left out."""
        keys = {str(digest): digest for digest in digests}
        found = self._index.facts_of("blob", keys)
        return {keys[key]: _blob_facts(keys[key], payloads) for key, payloads in found.items()}

    def add_seals(self, seals: Iterable[tuple[Digest, Signature]]) -> None:
        """Record blobs of a store that is being sealed, in a way that survives being copied into an image (F47)."""
        common = {"kind": "seal", "at": disk.now()}
        self.add([common | {"key": str(digest), "size": one.size, "mtime": one.mtime_ns} for digest, one in seals])

    def is_sealed(self, digest: Digest, signature: Signature) -> bool:
        """Whether a seal is of a blob with this size and this time, in whole seconds."""
        seconds = 1_000_000_000
        for payload in self._index.facts("seal", str(digest)):
            size, mtime = payload.get("size"), payload.get("mtime")
            if size == signature.size and isinstance(mtime, int) and mtime // seconds == signature.mtime_ns // seconds:
                return True
        return False

    def origin(self, identity: RemoteIdentity) -> OriginFact | None:
        """Return what was last proven of a remote identity's bytes; one without a validator proves nothing."""
        if not identity.has_validator:
            return None
        found = _last_origin(self._index.facts("origin", identity.key))
        of_layers = (fact for layer in self.layers if (fact := layer.origin(identity)) is not None)
        return found or next(of_layers, None)

    def origins(self, identities: Iterable[RemoteIdentity]) -> dict[RemoteIdentity, OriginFact]:
        """Return what `origin` does, of many remote identities at once."""
        keys = {identity: identity.key for identity in identities if identity.has_validator}
        payloads = self._index.facts_of("origin", keys.values())
        said = {identity: _last_origin(payloads[key]) for identity, key in keys.items() if key in payloads}
        found = {identity: fact for identity, fact in said.items() if fact is not None}
        for layer in self.layers:
            found |= layer.origins(identity for identity in keys if identity not in found)
        return found

    def add_origin(self, identity: RemoteIdentity, digest: Digest, proof: str) -> None:
        """Record which digest the bytes of a remote identity have, and what proved it."""
        payload = {"kind": "origin", "key": identity.key, "digest": str(digest), "proof": proof, "at": disk.now()}
        self._add_soon(payload)

    def withdraw_origins(self, identities: Iterable[RemoteIdentity]) -> None:
        """Record that nothing is known of the bytes of some remote identities: what was proven of them was wrong."""
        self.add([{"kind": "origin", "key": one.key, "digest": None, "at": disk.now()} for one in identities])

    def proofs(self, digests: Iterable[Digest]) -> dict[Digest, str]:
        """Return what best vouched for blobs' bytes when they were fetched; of what was added here, nothing.

        Reads all facts about origins: for people who look at one checkpoint.
        """
        wanted = {str(digest): digest for digest in digests}
        found: dict[Digest, str] = {}
        for payload in self._index.facts_with("origin", wanted):
            digest, proof = wanted.get(str(payload.get("digest"))), payload.get("proof")
            if digest is not None and isinstance(proof, str) and _strength(proof) > _strength(found.get(digest, "")):
                found[digest] = proof
        for layer in self.layers:
            found = {**layer.proofs(digest for digest in wanted.values() if digest not in found), **found}
        return found

    def came_from(self, digest: Digest, domain: str) -> bool:
        """Whether a blob's bytes were ever fetched from somewhere in a domain: a registry and a storage."""
        known = bool(self._index.facts("domain", f"{digest} {domain}"))
        return known or any(layer.came_from(digest, domain) for layer in self.layers)

    def add_domain(self, digest: Digest, domain: str) -> None:
        """Record that a blob's bytes lie somewhere in a domain."""
        self._add_soon({"kind": "domain", "key": f"{digest} {domain}", "at": disk.now()})

    def target(self, path: Path) -> dict[str, Any] | None:
        """Return what was last written about a download target, named by its absolute path."""
        return max(self._index.facts("target", _target_key(path)), key=_at, default=None)

    def add_target(self, path: Path, data: dict[str, Any]) -> None:
        """Record what was materialized in a user's folder."""
        self.add([{"kind": "target", "key": _target_key(path), "at": disk.now(), **data}])

    # --- how far a check has come -----------------------------------------------------------------------------

    def deep_check(self) -> DeepCheck | None:
        """Return how far this host's user last came with reading all blobs."""
        last = max(self._index.facts("check", f"deep {disk.writer_name()}"), key=_at, default=None)
        if last is None or not isinstance(last.get("after"), str) or not isinstance(last.get("begun"), int | float):
            return None
        return DeepCheck(last["after"], float(last["begun"]), last.get("boot"))

    def add_deep_check(self, after: str, begun: float) -> None:
        """Record how far it is."""
        key = f"deep {disk.writer_name()}"
        said = {"after": after, "begun": begun, "boot": disk.boot_id(), "at": disk.now()}
        self.add([{"kind": "check", "key": key, **said}])


def _blob_facts(digest: Digest, payloads: list[dict[str, Any]]) -> list[BlobFact]:
    found = []
    for payload in payloads:
        get = payload.get
        size, mtime, inode, changed = get("size"), get("mtime"), get("inode"), get("changed", 0)
        if type(size) is type(mtime) is type(inode) is type(changed) is int:
            found.append(BlobFact(digest, Signature(size, mtime, inode, changed), get("boot"), get("sealed") is True))
    return found


def _strength(proof: str) -> int:
    """How much a proof says: a checksum of the origin's most, a length least."""
    return 3 if proof.startswith("origin checksum") else 2 if "crc" in proof else 1 if proof else 0


def _last_origin(payloads: list[dict[str, Any]]) -> OriginFact | None:
    for payload in sorted(payloads, key=_at, reverse=True):
        if payload.get("digest", "") is None:
            return None
        try:
            return OriginFact(Digest.parse(payload.get("digest", "")), str(payload.get("proof", "")))
        except ContentError:
            continue
    return None


def _at(payload: dict[str, Any]) -> float:
    at = payload.get("at")
    return at if isinstance(at, int | float) else 0.0


def _target_key(path: Path) -> str:
    """Name a folder, also one whose name is not UTF-8, as text that is."""
    try:
        os.fspath(path).encode("utf-8")
    except UnicodeEncodeError:
        return f"hex:{os.fsencode(path).hex()}"
    return os.fspath(path)
