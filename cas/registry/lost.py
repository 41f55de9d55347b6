"""Checkpoints of which a record is here, but nothing that says what they consist of: somebody lost their refs."""

from __future__ import annotations

from collections.abc import Iterator

from cas.errors import CasError
from cas.index.copies import peek_manifest
from cas.index.digest import Digest
from cas.index.manifest import Manifest
from cas.index.problems import Kind, Problem
from cas.index.store import Store
from cas.registry.catalog import LOCAL, Catalog
from cas.registry.records import CheckpointRecord, State


def lost_refs(store: Store) -> Iterator[Problem]:
    """Yield a problem for each checkpoint that was added here, was not removed, and has no ref.

    Others need none: what was never fetched has none either, and comes from its origin.
    """
    for record in _lost(store):
        text = f"nothing says any more of which files checkpoint {record.uuid} consists, which was added here"
        path = store.layout.refs(LOCAL, record.uuid)
        yield Problem(Kind.MISSING_REF, path, text, checkpoint=(LOCAL, record.uuid))


def fitting_manifest(store: Store, uuid: str) -> Digest | None:
    """Return the one manifest without a ref that has exactly the files of a record; None if none or several have."""
    record = next((record for record in _lost(store) if record.uuid == uuid), None)
    if record is None or not record.resources:
        return None
    named = {digest for _, _, digests in store.refs.all() for digest in digests}
    found = [
        digest
        for digest in store.refs.manifests()
        if digest not in named
        and (manifest := _read(store, digest)) is not None
        and _sizes(manifest) == record.resources
    ]
    return found[0] if len(found) == 1 else None


def _lost(store: Store) -> Iterator[CheckpointRecord]:
    with_refs = {uuid for _, uuid, digests in store.refs.all() if digests}
    for record in Catalog(store, LOCAL).checkpoints():
        if record.uuid not in with_refs and record.state is not State.DELETED:
            yield record


def _read(store: Store, digest: Digest) -> Manifest | None:
    try:
        return peek_manifest(store, digest)
    except (CasError, OSError):
        return None


def _sizes(manifest: Manifest) -> dict[str, int]:
    """A manifest's files as a record lists them: folders that are empty end in `/`."""
    return {str(entry.path): entry.size for entry in manifest.files} | {f"{name}/": 0 for name in manifest.directories}
