"""Large files: read in parallel ranges into place, journaled, checked while they are hashed."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable

from cas.errors import ChangedError, DigestMismatchError
from cas.index.ingest import Ingest, RangeWriter, Staging
from cas.index.ranges import Range
from cas.transfer.checksums import LENGTH_ONLY, Verifier
from cas.transfer.folder import require_same
from cas.transfer.plan import split
from cas.transfer.remote import Checksum, RangesIgnoredError, RemoteFile
from cas.transfer.session import Session, unvouched
from cas.transfer.workers import StoppedError, Workers, wait_all

log = logging.getLogger("cas.transfer")

COPY = 8 << 20  # bytes between two looks at whether to stop, while a local file is copied


class LargeFiles:
    """Fetches the large files of one pull."""

    def __init__(self, session: Session, workers: Workers) -> None:
        self._session = session
        self._workers = workers
        self._ranged = True  # until the remote shows that it ignores ranges

    def fetch(self, key: str, file: RemoteFile) -> list[RemoteFile]:
        """Fetch a file in ranges, twice if its checksum says so; return it if it was replaced meanwhile."""
        with self._session.store.staging(key) as staging:
            checksum, mismatches = self._session.declared(file), 0
            while True:
                try:
                    actual = self._fetch_checked(staging, file, checksum, resume=not mismatches)
                except ChangedError as error:
                    log.info("%s", error)
                    return [file]
                except RangesIgnoredError as error:
                    log.info("%s; reading whole files", error)
                    self._ranged = False
                    continue
                if actual is None:
                    return []
                if mismatches:
                    raise DigestMismatchError(file.identity.url, expected=str(checksum), actual=actual)
                log.warning("%s: bytes differ from the declared %s; fetching again", file.identity.url, checksum)
                mismatches += 1

    def _fetch_checked(
        self, staging: Staging, file: RemoteFile, checksum: Checksum | None, *, resume: bool
    ) -> str | None:
        """Fetch and commit; if the bytes do not have the checksum, commit nothing and return which they have."""
        if checksum is None and self._session.strict:
            raise unvouched(file)
        verifier = Verifier(checksum) if checksum is not None else None
        followers = (verifier,) if verifier is not None else ()
        ranged = self._ranged and file.identity.has_validator
        source = file.identity.key if ranged else None
        with staging.ingest(file.size, source=source, followers=followers, resume=resume) as ingest:
            try:
                self._fill(file, ingest, ranged=ranged)
                digest = ingest.digest()
            except ChangedError:
                ingest.abort()
                raise
            if verifier is not None and not (
                verifier.matches or self._has_other_parts(file, ingest, verifier.checksum)
            ):
                ingest.abort()
                return f"{verifier.checksum.kind}:{verifier.value.hex()}"
            ingest.commit()
        self._session.committed(file, digest, verifier.proof if verifier is not None else LENGTH_ONLY)
        return None

    def _has_other_parts(self, file: RemoteFile, ingest: Ingest, checksum: Checksum) -> bool:
        """Whether the bytes are right after all: the parts of the upload were not all as large as the first."""
        if not checksum.parts:
            return False
        for exact in self._session.remote.checksums(file, thorough=True):
            if exact.kind == checksum.kind and exact.parts not in ((), checksum.parts):
                verifier = Verifier(exact)
                for piece in ingest.pieces():
                    verifier.update(piece)
                return verifier.matches
        return False

    def _fill(self, file: RemoteFile, ingest: Ingest, *, ranged: bool) -> None:
        self._session.resumed(ingest.written)
        path = self._session.remote.local_path(file)
        halt = threading.Event()
        try:
            if path is not None:
                self._ranges(lambda out, start, end: self._copy_range(file, path, out), ingest, halt)
            elif ranged:
                self._ranges(lambda out, start, end: self._read_range(file, out, start, end, halt), ingest, halt)
            else:
                self._stream(file, ingest)
        finally:
            halt.set()  # what is still under way for this file writes for nobody

    def _ranges(self, read: Callable[[RangeWriter, int, int], None], ingest: Ingest, halt: threading.Event) -> None:
        def one(span: Range) -> None:
            if halt.is_set():
                raise StoppedError
            with ingest.range(*span) as out:
                read(out, *span)

        wait_all([self._workers.submit(one, span) for span in split(ingest.missing)], self._session.stop)

    def _read_range(self, file: RemoteFile, out: RangeWriter, start: int, end: int, halt: threading.Event) -> None:
        for piece in self._session.remote.read(file, start, end):
            self._session.proceed()
            if halt.is_set():
                raise StoppedError
            out.write(piece)
            self._session.got(len(piece))

    def _copy_range(self, file: RemoteFile, path: str, out: RangeWriter) -> None:
        try:
            source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise ChangedError(f"{path} is gone since it was listed") from error
        try:
            require_same(file, path, source)
            while out.left:
                self._session.proceed()
                count = min(COPY, out.left)
                out.copy_from(source, count)
                self._session.got(count)
            require_same(file, path, source)
        except EOFError as error:
            raise ChangedError(f"{path} became shorter while it was read") from error
        finally:
            os.close(source)

    def _stream(self, file: RemoteFile, ingest: Ingest) -> None:
        with ingest.range(0, file.size) as out:
            for piece in self._session.remote.stream(file):
                self._session.proceed()
                out.write(piece)
                self._session.got(len(piece))
