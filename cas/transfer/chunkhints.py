"""Hints from a sidecar: which chunks of a file some local blob may have."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping

from cas.errors import ContentError
from cas.index.chunkindex import LEAST, Holder
from cas.index.cutting import cut_file
from cas.index.digest import Digest
from cas.index.sidecar import Described
from cas.index.store import Store
from cas.transfer.donations import Donation

log = logging.getLogger("cas.transfer")

RECENT = 64  # checkpoints whose files may be cut to find chunks in them
LEAST_CUT = 1 << 20  # bytes of a blob that is worth cutting
CUT = 2  # times a file's size: so many bytes of other files are cut for it, at most; cutting runs at 2 GB/s and more


def chunk_donations(
    store: Store,
    described: Described,
    may_give: Callable[[Digest], bool],
    others: Iterable[Donation],
    *,
    may_cut: bool,
) -> list[Donation]:
    """Return what the sidecar and local blobs may give of a file.

    Args:
        store: whose blobs.
        described: what the sidecar says.
        may_give: which blobs may give at all.
        others: what is offered already; only where that is little, blobs are cut to look for chunks in them.
        may_cut: whether blobs may be cut at all.
    """
    if store.has(described.digest, described.size) and may_give(described.digest):
        whole = Donation(0, described.size, described.digest, 0, digest=bytes.fromhex(described.digest.hex))
        return [whole]
    found = list(_of_holders(described, _holders(store, described), may_give))
    here = sum(one.length for one in itertools.chain(found, others))
    if may_cut and here < described.size // 2 and _cut_siblings(store, described):
        found = list(_of_holders(described, _holders(store, described), may_give))
    return found


def _holders(store: Store, described: Described) -> Mapping[bytes, list[Holder]]:
    return store.chunks.holders(chunk.digest for chunk in described.chunks if chunk.length >= LEAST)


def _of_holders(
    described: Described, holders: Mapping[bytes, list[Holder]], may_give: Callable[[Digest], bool]
) -> Iterator[Donation]:
    """Yield donations; of several holders, the one that goes on where the chunk before was found."""
    allowed: dict[Digest, bool] = {}
    following: Holder | None = None
    for chunk, data in described.pieces():
        end = chunk.start + chunk.length
        if data:
            if chunk.holds(data):
                yield Donation(chunk.start, end, data=data)
            continue
        usable = []
        for holder in holders.get(chunk.digest, ()):
            if holder.blob not in allowed:
                allowed[holder.blob] = may_give(holder.blob)
            if allowed[holder.blob]:
                usable.append(holder)
        if not usable:
            following = None
            continue
        chosen = following if following in usable and following is not None else usable[0]
        following = Holder(chosen.blob, chosen.place + chunk.length)
        yield Donation(chunk.start, end, chosen.blob, chosen.place, digest=chunk.digest)


def _cut_siblings(store: Store, described: Described) -> bool:
    """Cut blobs that are likely to have chunks of a file: those of its name, or about its size, latest first."""
    budget, cut = CUT * described.size, False
    with store.staging("cut") as staging:
        for blob, size in _siblings(store, described):
            if size > budget:
                continue
            path = store.blobs.locate(blob, size)
            if path is None:
                continue
            try:
                store.chunks.put(blob, cut_file(path), staging.folder)
            except (OSError, ContentError) as error:
                log.info("%s is not cut: %s", blob, error)
                continue
            budget -= size
            cut = True
    return cut


def _siblings(store: Store, described: Described) -> Iterator[tuple[Digest, int]]:
    named: dict[Digest, int] = {}
    alike: dict[Digest, int] = {}
    for digest in itertools.islice(store.refs.latest(), RECENT):
        try:
            manifest = store.refs.get(digest)
        except ContentError:
            continue
        for entry in manifest.files if manifest is not None else ():
            if entry.digest is None or entry.size < LEAST_CUT or store.chunks.has(entry.digest):
                continue
            if entry.path.name == described.path.name:
                named.setdefault(entry.digest, entry.size)
            elif abs(entry.size - described.size) <= described.size // 4:
                alike.setdefault(entry.digest, entry.size)
    yield from (named | {blob: size for blob, size in alike.items() if blob not in named}).items()
