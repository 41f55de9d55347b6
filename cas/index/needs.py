"""What must stay: the bytes that refs, pins and living processes need, as it is at one moment."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cas.errors import CasError, ContentError
from cas.index import disk
from cas.index.digest import Digest
from cas.index.leases import Lease, living
from cas.index.store import Store

_DIGEST_LENGTH = 64


@dataclass(frozen=True, slots=True)
class Needs:
    """What must stay.

    `unknown` names checkpoints with no origin whose manifest cannot be read: while there are any, every blob may be
    theirs.
    """

    manifests: frozenset[Digest]
    digests: frozenset[Digest]
    unknown: tuple[str, ...]


class Watch:
    """Reads again and again what must stay; a manifest is read once, because it never changes.

    Args:
        store: the store.
        is_only_copy: whether a checkpoint lies nowhere else. By default every one counts as such.
        planning: nothing is deleted by what is read here, so what the index keeps of manifests will do.
    """

    def __init__(
        self, store: Store, is_only_copy: Callable[[str], bool] = lambda uuid: True, *, planning: bool = False
    ) -> None:
        self._store = store
        self._planning = planning
        self._is_only_copy = is_only_copy
        self._trees: dict[Digest, frozenset[Digest]] = {}
        self._kept: set[Digest] = set()

    def keep(self, manifests: Iterable[Digest]) -> None:
        """Count manifests, and what they name, as needed, whatever refs say."""
        self._kept.update(manifests)

    def tree(self, manifest: Digest) -> frozenset[Digest] | None:
        """Return the blobs that a manifest names; None if it cannot be read."""
        known = self._trees.get(manifest)
        if known is None:
            try:
                found = self._store.refs.get(manifest)
            except CasError:  # of a newer format: `check` says so
                return None
            if found is None:
                return None
            known = frozenset(entry.digest for entry in found.files if entry.digest is not None)
            self._trees[manifest] = known
        return known

    def _read_kept(self, manifests: Iterable[Digest]) -> None:
        known: dict[str, Digest] = {}  # a blob that many share is one object
        for manifest, tree in self._store.trees.read(manifests).items():
            blobs = [known.get(hex) or known.setdefault(hex, Digest(hex)) for hex in tree.blobs]
            self._trees[manifest] = frozenset(blobs)

    def living(self) -> dict[str, Lease]:
        """Return the leases that have not ended."""
        return living(self._store.layout, disk.clock(self._store.home))

    def viewed(self, alive: Mapping[str, Lease]) -> dict[Digest, list[Lease]]:
        """Return the manifests whose view somebody is inside of, and who."""
        found: dict[Digest, list[Lease]] = defaultdict(list)
        if not alive:
            return found
        for manifest, view in views(self._store):
            for id in disk.names(view / "users"):
                if id in alive:
                    found[manifest].append(alive[id])
        return found

    def needs(self) -> Needs:
        """Return what must stay now."""
        wanted: dict[Digest, list[str]] = {digest: [] for digest in (*self._kept, *self.viewed(self.living()))}
        for _, uuid, manifests in self._store.refs.all():
            for manifest in manifests:
                wanted.setdefault(manifest, []).append(uuid)
        if self._planning:
            self._read_kept(manifest for manifest in wanted if manifest not in self._trees)
        digests: set[Digest] = set()
        unknown: dict[str, None] = {}
        for manifest, uuids in wanted.items():
            tree = self.tree(manifest)
            if tree is not None:
                digests.update(tree)
            else:
                unknown.update(dict.fromkeys(uuid for uuid in uuids if self._is_only_copy(uuid)))
        return Needs(frozenset(wanted), frozenset(digests), tuple(unknown))


def views(store: Store) -> Iterator[tuple[Digest, Path]]:
    """Yield the views in a home, by their manifests: in a group's store, those of every member."""
    folder = store.home / "views"
    for name in disk.names(folder):
        if name.isdecimal() and len(name) < _DIGEST_LENGTH:
            yield from _views_in(folder / name)
    yield from _views_in(folder)
    if store.layout.views_apart and not store.layout.views.is_relative_to(folder):
        yield from _views_in(store.layout.views)


def _views_in(folder: Path) -> Iterator[tuple[Digest, Path]]:
    for name in disk.names(folder):
        try:
            yield Digest(name), folder / name
        except ContentError:
            continue
