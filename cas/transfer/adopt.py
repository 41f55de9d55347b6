"""Adding a folder of this host's: every file is copied into the store, hashed and synced."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cas.config import Settings
from cas.errors import ChangedError, NotFoundError
from cas.index.digest import Digest
from cas.index.disk import Signature
from cas.index.ingest import Staging
from cas.index.manifest import FileEntry, Manifest
from cas.index.store import Store, explained
from cas.transfer.folder import FolderRemote
from cas.transfer.remote import Listing, RemoteFile


def ingest_folder(store: Store, path: Path, *, settings: Settings) -> Manifest:
    """Copy a folder (or a single file) into the store; its blobs survive a power cut when this returns.

    Raises:
        NotFoundError: there is nothing at that path.
        UnsafeNameError: a name in it cannot be kept.
        ChangedError: a file was written to while it was copied.
    """
    if not path.exists():
        raise NotFoundError(f"there is no folder {path}")
    remote = FolderRemote(path if path.is_dir() else path.parent)
    listing = remote.list()
    if not path.is_dir():
        listing = Listing(tuple(file for file in listing.files if file.path == path.name))

    def copy(file: RemoteFile) -> FileEntry:
        digest = _copy(staging, file, remote.local_path(file))
        return FileEntry(file.path, file.size, digest, executable=file.executable)

    with explained(f"cannot add {path} to {store.home}"):
        staging = store.staging(f"add {os.getpid()}")
        try:
            with ThreadPoolExecutor(settings.concurrency) as pool:
                return Manifest.of(pool.map(copy, listing.files), listing.directories)
        finally:
            staging.close()


def _copy(staging: Staging, file: RemoteFile, path: str) -> Digest:
    source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        before = Signature.of(os.fstat(source))
        with staging.ingest(before.size) as ingest:
            ingest.copy_from(source)
            if before.size != file.size or Signature.of(os.fstat(source)) != before:
                raise ChangedError(f"{path} was written to while it was added; add it again when it is finished")
            return ingest.commit(durable=True)
    finally:
        os.close(source)
