"""Trusting what came from a bare URL: until then, nothing of it runs."""

from __future__ import annotations

import re
from dataclasses import dataclass

from cas.config import Settings
from cas.errors import ContentError, NotFoundError, UsageError
from cas.index.digest import Digest
from cas.index.refs import PULLED
from cas.index.store import Store, store_of
from cas.index.trust import Trusted
from cas.registry.names import uuid_of

_HEX = re.compile("[0-9a-f]{64}")  # of a digest


@dataclass(frozen=True, slots=True)
class TrustReport:
    """What is trusted now, or no longer: a checkpoint's digest, and how many files that stands for."""

    digest: Digest
    files: int
    trusted: bool
    changed: bool


def trust(which: str, *, revoke: bool = False, settings: Settings | None = None) -> TrustReport:
    """Let the code and pickles of a checkpoint run that was pulled from a bare URL; recorded for this user.

    What is trusted is the digest of its files: other files under the same UUID or URL are not.

    Args:
        which: the UUID of a checkpoint that is here, a name of it, or the digest of its manifest (`blake3:…`).
        revoke: trust it no longer.
        settings: default: `Settings.load()`.

    Raises:
        NotFoundError: no such checkpoint is here.
        UsageError: it is neither a UUID nor a name nor a digest.
        NotAllowedError: the home cannot be written.
    """
    store = store_of(settings or Settings.load())
    digest = _digest_of(store, which)
    manifest = store.refs.get(digest)
    decisions = Trusted(store.layout)
    if revoke:
        changed = decisions.remove(digest)
    elif manifest is None:
        raise NotFoundError(f"{digest} is no checkpoint that is here; what is trusted is looked at first: pull it")
    else:
        changed = not decisions.holds(digest)
        decisions.add(digest)
    return TrustReport(digest, len(manifest.files) if manifest is not None else 0, not revoke, changed)


def trusted(*, settings: Settings | None = None) -> list[Digest]:
    """Return the digests that this user trusts."""
    return Trusted(store_of(settings or Settings.load()).layout).all()


def _digest_of(store: Store, which: str) -> Digest:
    text = which.strip().lower()
    if text.startswith("blake3:") or _HEX.fullmatch(text):
        try:
            return Digest.parse(text if ":" in text else f"blake3:{text}")
        except ContentError as error:
            raise UsageError(str(error)) from error
    uuid = uuid_of(store, which.strip())
    manifest = store.resolve(PULLED, uuid)
    if manifest is None or not manifest.complete:
        raise NotFoundError(f"checkpoint {uuid} is not in the store {store.home}; pull it first")
    return manifest.digest


__all__ = ["TrustReport", "trust", "trusted"]
