"""Trees: which blobs a manifest names and how much they are in all, without its names.

Lists of ten thousand checkpoints need no more than that, and would read ten thousand manifests for it. So the SQLite
index keeps the tree of each manifest that was read, with the signature of its file: a tree counts as long as the file
is as it was. A manifest that is gone, damaged or written anew is read again, and its reader says what is wrong with it.
Whoever deletes something reads the manifests themselves.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

from cas.errors import CasError
from cas.index.digest import Digest
from cas.index.disk import Signature
from cas.index.layout import Layout
from cas.index.manifest import Manifest
from cas.index.owners import Owners
from cas.index.refs import Refs
from cas.index.sqlindex import SqlIndex

log = logging.getLogger("cas.index")

_HEX = 64  # digits of a digest
_SPARE = 1000  # trees that are kept in the index for manifests that may be gone, before anybody looks


@dataclass(frozen=True, slots=True)
class Tree:
    """What a manifest says but for its names: `blobs` has the hex of each file's digest, equal files as often as they
    are there, files that were not fetched yet not at all; `size` is in bytes, of all files.
    """

    files: int
    size: int
    blobs: tuple[str, ...]

    @classmethod
    def of(cls, manifest: Manifest) -> Self:
        """Take it from a manifest."""
        blobs = tuple(entry.digest.hex for entry in manifest.files if entry.digest is not None)
        return cls(len(manifest.files), manifest.size, blobs)

    def to_bytes(self, signature: Signature) -> bytes:
        """Return the tree as it stands in the index, behind the signature of its manifest's file."""
        numbers = (*signature, self.files, self.size)
        return " ".join(map(str, numbers)).encode("ascii") + b"\n" + bytes.fromhex("".join(self.blobs))

    @classmethod
    def from_bytes(cls, data: bytes) -> tuple[Signature, Self]:
        """Read what `to_bytes` wrote."""
        numbers, _, blobs = data.partition(b"\n")
        *signature, files, size = map(int, numbers.split())
        hex = blobs.hex()
        return Signature(*signature), cls(files, size, tuple([hex[at : at + _HEX] for at in range(0, len(hex), _HEX)]))


class Trees:
    """The trees of the manifests in one home."""

    def __init__(self, layout: Layout, owners: Owners, refs: Refs, index: SqlIndex) -> None:
        self._root = f"{layout.root}/manifests/"
        self._owners = owners
        self._refs = refs
        self._index = index

    def read(self, manifests: Iterable[Digest]) -> dict[Digest, Tree]:
        """Return the trees of manifests; those that cannot be read are left out."""
        wanted = dict.fromkeys(manifests)
        kept = self._index.trees()
        found: dict[Digest, Tree] = {}
        new: dict[str, bytes] = {}
        for digest in wanted:
            path = f"{self._root}{digest.hex[:2]}/{digest.hex[2:]}.json"
            before = _stat(path)
            if before is not None and (row := kept.get(digest.hex)) is not None:
                signature, tree = Tree.from_bytes(row)
                if self._owners.matches(signature, before):
                    found[digest] = tree
                    continue
            try:
                manifest = self._refs.get(digest)
            except CasError:  # `check` says what is wrong with it
                continue
            if manifest is not None:
                found[digest] = tree = Tree.of(manifest)
                after = _stat(path)
                if before is not None and after is not None:
                    signature = self._owners.signature(before)
                    if signature == self._owners.signature(after):
                        new[digest.hex] = tree.to_bytes(signature)
        if new:
            self._index.keep_trees(new, forget=self._gone(kept, wanted))
        return found

    def _gone(self, kept: Mapping[str, bytes], wanted: Mapping[Digest, None]) -> list[str]:
        """Return whose trees are kept for nothing."""
        if len(kept) < 2 * len(wanted) + _SPARE:
            return []
        return [hex for hex in kept if not os.path.lexists(f"{self._root}{hex[:2]}/{hex[2:]}.json")]


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except OSError:
        return None
