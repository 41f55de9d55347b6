"""How a home stands: whose it is, who may write to it, where what it cannot hold lies, and how much of it is proven."""

from __future__ import annotations

import itertools
import logging
import stat
from dataclasses import dataclass
from pathlib import Path

from cas.config import Network
from cas.errors import CasError
from cas.index import disk, place
from cas.index.digest import Digest
from cas.index.layout import GROUPS_HOME, is_groups, read_format
from cas.index.mounts import file_system, is_network
from cas.index.store import Store
from cas.index.usage import blobs_here

log = logging.getLogger("cas.index")

_LOOKED_AT = 2000  # blobs of which it is asked whether they are sealed: enough to tell, in tenths of a second


@dataclass(frozen=True, slots=True)
class Standing:
    """One home, looked at; nothing in it was changed."""

    path: Path
    store: bool  # it is one; else it is not there yet, or `error` says what is wrong
    error: str | None = None
    owner: int | None = None
    group: str | None = None  # of a group's home: its name
    exposed: str | None = None  # a mode that lets in more than is meant: what is wrong with it
    writable: bool = False
    sealed: bool = False
    lock_kind: str | None = None  # flock or lease
    on_network: bool = False
    index: Path | None = None  # where the index lies; None: in memory
    views: Path | None = None
    blobs: int = 0
    proven: float | None = None  # the share of blobs that are believed after a reboot too; None where there are none


def examine(path: Path, *, network: Network = Network.AUTO, layer: bool = False) -> Standing:
    """Look at a home, as it is used, or as a layer would be. Raises nothing."""
    try:
        return _examine(path, network, layer=layer)
    except FileNotFoundError:
        return Standing(path, store=False, on_network=_on_network(path, network))
    except (CasError, OSError) as error:
        return Standing(path, store=False, error=str(error), on_network=_on_network(path, network))


def _examine(path: Path, network: Network, *, layer: bool) -> Standing:
    form = read_format(path)
    found = path.stat()
    writable = disk.is_writable(path)
    on_network = _on_network(path, network)
    only_read = layer or not writable or form.sealed is not None
    apart = only_read or is_groups(path) or on_network
    store = Store(path, layer=True)
    try:
        blobs = list(blobs_here(store))
        proven = _share(store, blobs)
    finally:
        store.close()
    views = store.layout.views if only_read else path / "views"
    return Standing(
        path,
        store=True,
        owner=found.st_uid if hasattr(found, "st_uid") else None,
        group=_name(found.st_gid) if is_groups(path) else None,
        exposed=_exposed(found.st_mode),
        writable=writable,
        sealed=form.sealed is not None,
        lock_kind="lease" if on_network else form.locks,
        on_network=on_network,
        index=place.kept(form.store, path) if apart else path,
        views=views,
        blobs=len(blobs),
        proven=proven,
    )


def _on_network(path: Path, network: Network) -> bool:
    return is_network(file_system(path)) if network is Network.AUTO else network is Network.YES


def _exposed(mode: int) -> str | None:
    if mode & stat.S_IWOTH:
        return "everybody can write to it"
    if mode & stat.S_IWGRP and not mode & stat.S_ISGID:
        return "its group can write to it, but what is made in it is not the group's"
    if mode & stat.S_IWGRP and mode & GROUPS_HOME != GROUPS_HOME:
        return "members of its group can replace each other's folders in it"
    return None


def _share(store: Store, blobs: list[Digest]) -> float | None:
    """Return how many of (the first) blobs are believed wherever this store is mounted and after every reboot."""
    looked = list(itertools.islice(blobs, _LOOKED_AT))
    if not looked:
        return None
    return sum(_is_proven(store, digest) for digest in looked) / len(looked)


def _is_proven(store: Store, digest: Digest) -> bool:
    try:
        signature = store.owners.signature(store.layout.blob(digest).lstat())
    except OSError:
        return False
    sealed = any(fact.sealed and fact.signature == signature for fact in store.facts.blob(digest))
    return sealed or (store.about.is_image and store.facts.is_sealed(digest, signature))


def _name(group: int) -> str:
    try:
        import grp

        return grp.getgrgid(group).gr_name
    except (ImportError, KeyError):
        return str(group)
