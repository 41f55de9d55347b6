"""What donors on this disk may give of a remote's files. Hints: nothing here is believed without a checksum.

A file with any byte that did not come from its origin must match a checksum that the origin declares of the whole
object: MD5 or SHA, or a CRC if the donors came from the same registry and storage. Without one, there are no hints.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from pathlib import Path

from cas.errors import ChangedError, ContentError, RemoteError, TransientRemoteError
from cas.index import containers
from cas.index.containers import Record
from cas.index.digest import Digest
from cas.index.sidecar import Described, Sidecar
from cas.transfer import checksums
from cas.transfer.chunkhints import chunk_donations
from cas.transfer.donations import Donation
from cas.transfer.folder import FolderRemote
from cas.transfer.remote import Checksum, Remote, RemoteFile
from cas.transfer.session import Session
from cas.transfer.sidecars import HasSidecars, read_sidecar
from cas.transfer.workers import Workers
from cas.transfer.ziphints import DonorFiles, zip_donations

log = logging.getLogger("cas.transfer")

SIDECAR_WAIT = 5.0  # seconds after the listing, at most: what a sidecar says is worth no more
# Donors must give at least this part of a file, for all of it must then be hashed with MD5, at 0.7 GB/s. Two models of
# one kind always share some records of a few bytes (bench/siblings.py: 1.5 x the time with them, for nothing).
WORTH = 32


@dataclass(frozen=True, slots=True)
class Known:
    """Bytes of a file that were read from its origin to look for hints: its end."""

    start: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Offer:
    """What donors may give of one file, and the checksum that decides whether it was right."""

    checksum: Checksum
    donations: tuple[Donation, ...]


class Hints:
    """Finds hints for the files of one pull; safe for its threads."""

    def __init__(self, session: Session, domain: str | None, *, may_cut: bool = True) -> None:
        self._session = session
        self._store = session.store
        self._remote = session.remote
        self.domain = domain
        self._may_cut = may_cut
        self._lock = threading.Lock()
        self._are_any: bool | None = None
        self._failed = False
        self._reading: Future[Sidecar | None] | None = None
        self._described: dict[str, Described] = {}

    # --- sidecars --------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Begin to read the sidecar, while the remote is listed. Of a folder none is read: it declares no checksums."""
        origin = self._session.origin
        if isinstance(origin, HasSidecars) and not isinstance(origin, FolderRemote):
            with Workers(1, self._session.stop, "cas-sidecar") as worker:
                self._reading = worker.submit(read_sidecar, origin)

    def described(self, file: RemoteFile) -> Described | None:
        """Return what the sidecar says of this very version of a file."""
        if self._reading is None and not self._described:  # without the lock: every small file comes by here
            return None
        with self._lock:
            if self._reading is not None:
                try:
                    sidecar = self._reading.result(SIDECAR_WAIT)
                except (TimeoutError, CancelledError):
                    log.info("%s: the sidecar takes too long; going on without", self._remote.url)
                    sidecar = None
                self._described = {one.path: one for one in sidecar.files} if sidecar is not None else {}
                self._reading = None
            if self._failed:
                return None
            found = self._described.get(file.path)
        return found if found is not None and found.is_of(file.identity) else None

    def whole(self, file: RemoteFile) -> bytes | None:
        """Return the bytes that a small file should have: carried in the sidecar, or those of a blob that is here."""
        found = self.described(file)
        if found is None:
            return None
        if found.whole is not None:
            return found.whole
        try:
            return self._store.blobs.read(found.digest) if self._store.has(found.digest, found.size) else None
        except (ContentError, OSError):  # removed in between
            return None

    def keep(self, file: RemoteFile, digest: Digest, scratch: Path) -> None:
        """Keep the chunk list that the sidecar has of a file that turned out to be the one it describes."""
        found = self.described(file)
        if found is not None and found.digest == digest and self._store.chunks.get(digest, file.size) is None:
            try:
                self._store.chunks.put(digest, found.chunks, scratch)
            except OSError as error:
                log.info("the chunk list of %s is not kept: %s", file.path, error)

    # --- the end of a zip archive ------------------------------------------------------------------------------

    @property
    def are_worth_looking(self) -> bool:
        """Whether any blob here could give anything, and nothing was wrong so far."""
        with self._lock:
            if self._are_any is None:
                self._are_any = self._store.chunks.has_parts()
            return self._are_any and not self._failed

    def give_up(self) -> None:
        """A file that donors had given to was wrong: use no hints any more in this pull."""
        with self._lock:
            self._failed = True

    def look(self, file: RemoteFile, workers: Workers) -> Future[Known] | None:
        """Begin to read the end of a file, where a zip archive's directory lies, if that may tell anything."""
        if not file.identity.has_validator or not self.are_worth_looking or self._remote.local_path(file) is not None:
            return None
        return workers.submit(self._read, file, max(0, file.size - containers.TAIL))

    def _read(self, file: RemoteFile, start: int) -> Known:
        data = b"".join(map(bytes, self._remote.read(file, start, file.size)))
        self._session.looked(len(data))
        return Known(start, data)

    def offer(
        self, file: RemoteFile, declared: Iterable[Checksum], known: Known | None
    ) -> tuple[Offer | None, Known | None]:
        """Return what donors may give, and all that is known of the file's end by then.

        Args:
            file: what is wanted.
            declared: the checksums that its origin declares.
            known: its end, if it was read.
        """
        strong, weak = checksums.of_whole(declared)
        domain = self.domain
        checksum = strong or (weak if domain is not None else None)
        if checksum is None:
            return None, known

        def may_give(blob: Digest) -> bool:
            return strong is not None or (domain is not None and self._store.facts.came_from(blob, domain))

        found: list[Donation] = []
        if known is not None:
            records, known = self._records(file, known)
            with DonorFiles(self._store) as files:
                found += zip_donations(self._store, files, records, may_give)
        if (described := self.described(file)) is not None:
            found += chunk_donations(self._store, described, may_give, found, may_cut=self._may_cut)
        given = sum(donation.length for donation in found)
        if not found or (strong is not None and given * WORTH < file.size):
            return None, known
        return Offer(checksum, tuple(found)), known

    def _records(self, file: RemoteFile, known: Known) -> tuple[list[Record], Known]:
        """Return the records of a zip archive, none of anything else."""
        try:
            place = containers.find_directory(known.data, file.size)
            if place.start < known.start:
                before = b"".join(map(bytes, self._remote.read(file, place.start, known.start)))
                self._session.looked(len(before))
                known = Known(place.start, before + known.data)
            inside = known.data[place.start - known.start : place.end - known.start]
            return containers.parse_directory(inside, place), known
        except ContentError as error:
            log.debug("%s gives no hints: %s", file.identity.url, error)
        except (ChangedError, TransientRemoteError):
            raise
        except RemoteError as error:
            log.info("%s gives no hints: %s", file.identity.url, error)
        return [], known


def domain_of(registry: str, uuid: str, remote: Remote) -> str:
    """Name who may vouch for each other by CRC alone: the checkpoints of one registry in one storage."""
    url = remote.url.rstrip("/")
    return f"{registry} {url.removesuffix(uuid).rstrip('/')}"
