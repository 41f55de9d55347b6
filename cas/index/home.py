"""One home as it is for this process: what it is, what we may do there, and where what it cannot hold lies."""

from __future__ import annotations

import contextlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path

from cas.config import Network
from cas.errors import NotAllowedError, NotFoundError
from cas.index import disk, place
from cas.index.layout import Format, Layout, is_groups, prepare, read_format
from cas.index.mounts import file_system, is_network
from cas.index.owners import Owners

log = logging.getLogger("cas.index")

OVERLAYS = ("overlay", "fuse.fuse-overlayfs")  # the disk of a container: its image, and a layer for what is written


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """What was found out when a home was opened."""

    path: Path
    format: Format
    shared: bool  # it is a group's
    read_only: bool  # nothing in it is changed: we may not, or it is sealed, or it is used as a layer
    on_network: bool
    owners: Owners
    layout: Layout
    index_folder: Path | None  # None: in memory

    @classmethod
    def open(cls, path: Path, *, shared: bool = False, network: Network = Network.AUTO) -> Home:
        """Open a home, which is made if it does not exist.

        Raises:
            NotAllowedError: it cannot be made or read.
            UsageError: it is something else than a store.
            ContentError: it is a newer cas' store.
        """
        on_network = _is_on_network(path, network)
        return cls._of(path, prepare(path, shared=shared, network=on_network), on_network=on_network)

    @classmethod
    def open_layer(cls, path: Path) -> Home:
        """Open a home of which nothing is to be changed.

        Raises:
            NotFoundError: there is no store.
            CasError: what `open` raises.
        """
        try:
            found = read_format(path)
        except FileNotFoundError as error:
            raise NotFoundError(f"there is no store in {path}") from error
        return cls._of(path, found, on_network=is_network(file_system(path)), layer=True)

    @classmethod
    def _of(cls, path: Path, found: Format, *, on_network: bool, layer: bool = False) -> Home:
        is_sealed = found.sealed is not None
        read_only = layer or is_sealed or not disk.is_writable(path)
        shared = is_groups(path)
        if is_sealed:
            disk.freeze(path)
        elif shared and not read_only:
            disk.share(path)
        apart = read_only or shared or on_network  # where another user could touch the index, or another host
        return cls(
            path=path,
            format=found,
            shared=shared,
            read_only=read_only,
            on_network=on_network,
            owners=Owners.of(path),
            layout=_lay_out(path, found.store, read_only=read_only, shared=shared),
            index_folder=place.kept(found.store, path) if apart else path,
        )

    @property
    def locks_are_leases(self) -> bool:
        """Whether flock tells nothing of other processes here."""
        return self.on_network or self.format.locks == "lease"

    @property
    def is_image(self) -> bool:
        """Whether what was sealed counts though its inodes have changed (F47)."""
        if self.format.sealed is None:
            return False
        return not disk.is_writable(self.path) or file_system(self.path) in OVERLAYS

    def require_writable(self, doing: str) -> None:
        """Go on only where something may be changed.

        Raises:
            NotAllowedError: this home is only read; the message says what to set.
        """
        if not self.read_only:
            return
        why, undo = ("is sealed", "; `cas seal --undo` opens it") if self.format.sealed else ("cannot be written", "")
        raise NotAllowedError(
            f"{doing}: the store {self.path} {why}; set CAS_HOME to a folder of yours, and"
            f" CAS_READ_ONLY_STORES={self.path} to use what is in this one too{undo}"
        )


def _lay_out(path: Path, store: str, *, read_only: bool, shared: bool) -> Layout:
    if read_only:
        kept, temporary = place.kept(store, path), place.temporary(store, path)
        return Layout(path, kept or path, path / "views" if temporary is None else temporary / "views")
    if shared:  # what another member made proves nothing: everybody has views of their own
        return Layout(path, views=_own_views(path, store))
    return Layout(path)


def _own_views(path: Path, store: str) -> Path:
    views = path / "views" / str(os.geteuid())
    with contextlib.suppress(OSError):
        if place.is_private(views, make=True, mode=0o755):
            return views
    temporary = place.temporary(store, path)
    log.warning("%s is another user's, or others may write there: views are made in %s", views, temporary)
    return temporary / "views" if temporary is not None else views


def _is_on_network(home: Path, network: Network) -> bool:
    if network is not Network.AUTO:
        return network is Network.YES
    kind = file_system(home)
    if is_network(kind):
        known = kind or "an unknown file system"
        advice = "put CAS_HOME on a local disk, or say CAS_NETWORK=yes (so it is meant), or no (only this host uses it)"
        log.warning("the store %s is on %s, which counts as a network file system: %s", home, known, advice)
    return is_network(kind)
