"""Adding a folder of this host's: every file is copied into the store, hashed and synced."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from cas.config import Settings
from cas.errors import ChangedError, NotFoundError, UsageError
from cas.index.digest import Digest
from cas.index.disk import Signature
from cas.index.ingest import Ingest
from cas.index.manifest import FileEntry, Manifest
from cas.index.staging import Staging
from cas.index.store import Store, explained
from cas.transfer.folder import FolderRemote, one_file
from cas.transfer.progress import Advance, drawer
from cas.transfer.remote import Listing, RemoteFile
from cas.transfer.workers import StoppedError, Workers, wait_all

_PIECE = 8 << 20  # bytes between two looks at whether to stop
_LEAVING = 2.0  # seconds that an interrupted call gives its threads to leave tidily


def ingest_folder(store: Store, path: Path, *, settings: Settings) -> Manifest:
    """Copy a folder (or a single file) into the store; its blobs survive a power cut when this returns.

    Raises:
        NotFoundError: there is nothing at that path.
        UsageError: there are no files in it.
        UnsafeNameError: a name in it cannot be kept.
        ChangedError: a file was written to while it was copied.
    """
    listing, remote = _list(path)
    size = sum(file.size for file in listing.files)
    stop = threading.Event()
    workers = Workers(settings.concurrency, stop, "cas-add")
    with explained(f"cannot add {path} to {store.home}"), drawer(settings.progress, path.name)(size, 0) as advance:
        staging = store.staging(f"add {os.getpid()} {threading.get_ident()}")
        copier = _Copier(staging, remote, stop, advance)
        try:
            with workers:
                return Manifest.of(
                    wait_all([workers.submit(copier.copy, file) for file in listing.files], stop), listing.directories
                )
        except BaseException:
            stop.set()
            workers.join(_LEAVING)
            raise
        finally:
            staging.close()


def hash_folder(path: Path) -> Manifest:
    """Return the manifest that `ingest_folder` would make; copies nothing.

    Raises:
        NotFoundError: there is nothing at that path.
        UnsafeNameError: a name in it cannot be kept.
    """
    listing, remote = _list(path)

    def entry(file: RemoteFile) -> FileEntry:
        digest = Digest.of_file(remote.local_path(file))
        return FileEntry(file.path, file.size, digest, executable=file.executable)

    with explained(f"cannot read {path}"):
        return Manifest.of(map(entry, listing.files), listing.directories)


def _list(path: Path) -> tuple[Listing, FolderRemote]:
    if not path.exists():
        raise NotFoundError(f"there is no folder or file {path}")
    if not path.is_dir():
        return Listing((one_file(path),)), FolderRemote(path.parent)
    remote = FolderRemote(path)
    listing = remote.list()
    if not listing.files:
        raise UsageError(f"there are no files in {path}")
    return listing, remote


class _Copier:
    """Copies files into one staging folder, from several threads."""

    def __init__(self, staging: Staging, remote: FolderRemote, stop: threading.Event, advance: Advance) -> None:
        self._staging = staging
        self._remote = remote
        self._stop = stop
        self._advance = advance

    def copy(self, file: RemoteFile) -> FileEntry:
        """Copy one file and commit it."""
        path = self._remote.local_path(file)
        source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            before = Signature.of(os.fstat(source))
            with self._staging.ingest(before.size) as ingest:
                self._fill(ingest, source, before.size)
                if before.size != file.size or Signature.of(os.fstat(source)) != before:
                    raise ChangedError(f"{path} was written to while it was added; add it again when it is finished")
                digest: Digest = ingest.commit(durable=True)
        except EOFError as error:
            raise ChangedError(f"{path} became shorter while it was added") from error
        finally:
            os.close(source)
        return FileEntry(file.path, file.size, digest, executable=file.executable)

    def _fill(self, ingest: Ingest, source: int, size: int) -> None:
        with ingest.range(0, size) as out:
            while out.left:
                if self._stop.is_set():
                    raise StoppedError
                count = min(_PIECE, out.left)
                out.copy_from(source, count)
                self._advance(count)
