"""What donors on this disk may give of a remote's files. Hints: nothing here is believed without a checksum.

A file with any byte that did not come from its origin must match a checksum that the origin declares of the whole
object: MD5 or SHA, or a CRC if the donors came from the same registry and storage. Without one, there are no hints.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass

from cas.errors import ContentError, RemoteError
from cas.index import containers
from cas.index.containers import Record
from cas.index.digest import Digest
from cas.transfer import checksums
from cas.transfer.donations import Donation
from cas.transfer.remote import Checksum, Remote, RemoteFile
from cas.transfer.session import Session
from cas.transfer.workers import Workers
from cas.transfer.ziphints import DonorFiles, zip_donations

log = logging.getLogger("cas.transfer")


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

    def __init__(self, session: Session, domain: str | None) -> None:
        self._session = session
        self._store = session.store
        self._remote = session.remote
        self.domain = domain
        self._lock = threading.Lock()
        self._are_any: bool | None = None
        self._failed = False

    @property
    def are_worth_looking(self) -> bool:
        """Whether any blob here could give anything, and nothing was wrong so far."""
        with self._lock:
            if self._are_any is None:
                self._are_any = self._store.chunks.index.has_parts()
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

    def offer(self, file: RemoteFile, declared: Iterable[Checksum], known: Known) -> tuple[Offer | None, Known]:
        """Return what donors may give, and all that is known of the file's end by then.

        Args:
            file: what is wanted.
            declared: the checksums that its origin declares.
            known: its end.
        """
        strong, weak = checksums.of_whole(declared)
        domain = self.domain
        if strong is None and (weak is None or domain is None):
            return None, known
        try:
            records, known = self._records(file, known)
        except ContentError as error:
            log.debug("%s gives no hints: %s", file.identity.url, error)
            return None, known
        except RemoteError as error:
            log.info("%s: no hints: %s", file.identity.url, error)
            return None, known

        def may_give(blob: Digest) -> bool:
            return strong is not None or (domain is not None and self._store.facts.came_from(blob, domain))

        with DonorFiles(self._store) as files:
            found = tuple(zip_donations(self._store, files, records, may_give))
        checksum = strong or weak
        return (Offer(checksum, found) if found and checksum is not None else None), known

    def _records(self, file: RemoteFile, known: Known) -> tuple[list[Record], Known]:
        place = containers.find_directory(known.data, file.size)
        if place.start < known.start:
            start = place.start // 4096 * 4096  # so that what follows can still be cut at blocks
            before = b"".join(map(bytes, self._remote.read(file, start, known.start)))
            self._session.looked(len(before))
            known = Known(start, before + known.data)
        inside = known.data[place.start - known.start : place.end - known.start]
        return containers.parse_directory(inside, place), known


def domain_of(registry: str, uuid: str, remote: Remote) -> str:
    """Name who may vouch for each other by CRC alone: the checkpoints of one registry in one storage."""
    url = remote.url.rstrip("/")
    return f"{registry} {url.removesuffix(uuid).rstrip('/')}"
