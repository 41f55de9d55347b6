"""From the keys of a bucket to a file tree: empty objects whose key ends in `/` are folders."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cas.errors import CheckpointNotFoundError, RemoteError, UnsafeNameError
from cas.index.identity import RemoteIdentity
from cas.index.paths import RelativePath, check_tree
from cas.transfer.remote import Listing, RemoteFile


@dataclass(frozen=True, slots=True)
class Key:
    """One object of a listing; `is_folder`: the storage itself says that it stands for a folder."""

    key: str
    size: int
    identity: RemoteIdentity
    is_folder: bool = False


def prefix_of(place: str) -> str:
    """Return what the keys below a place begin with: of `…/<uuid>`, never what is below `…/<uuid>-other`."""
    return f"{place}/" if place else ""


def listing_of(keys: Iterable[Key], place: str, *, url: str) -> Listing:
    """Return the tree below a place in a bucket.

    Raises:
        CheckpointNotFoundError: there is nothing.
        UnsafeNameError: a key that no relative path can be made of.
        RemoteError: a key that does not lie there.
    """
    prefix = prefix_of(place)
    files: list[RemoteFile] = []
    directories: list[RelativePath] = []
    is_empty = True
    for found in keys:
        is_empty = False
        if not found.key.startswith(prefix):
            raise RemoteError(f"{url}: the server listed {found.key!r:.200}, which does not lie there")
        name = found.key[len(prefix) :]
        if found.is_folder or (name.endswith("/") and not found.size):
            if name.rstrip("/"):
                directories.append(RelativePath(name.removesuffix("/")))
        elif name.endswith("/"):
            raise UnsafeNameError(name, f"names a folder, but has {found.size} bytes")
        elif name or found.size:
            files.append(RemoteFile(RelativePath(name), found.size, found.identity))
    if is_empty:
        raise CheckpointNotFoundError(f"there are no files at {url}")
    check_tree((file.path for file in files), directories)
    return Listing(tuple(files), tuple(directories))
