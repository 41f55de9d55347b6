"""Large files: read in parallel ranges into place, journaled, checked while they are hashed."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from cas.errors import ChangedError, DigestMismatchError
from cas.index.digest import Digest
from cas.index.ingest import Ingest
from cas.index.range_writer import RangeWriter
from cas.index.ranges import Range
from cas.index.staging import Staging
from cas.transfer.checksums import LENGTH_ONLY, Verifier, choose
from cas.transfer.copying import Copier
from cas.transfer.donations import Donation, plan_file
from cas.transfer.folder import require_same
from cas.transfer.hints import Hints, Known
from cas.transfer.plan import split
from cas.transfer.remote import Checksum, RangesIgnoredError, RemoteFile
from cas.transfer.retry import STREAMS, BrokenOffError
from cas.transfer.session import Session, unvouched
from cas.transfer.workers import StoppedError, Workers, wait_all

log = logging.getLogger("cas.transfer")

COPY = 8 << 20  # bytes between two looks at whether to stop, while a local file is copied


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try to fetch a file: what it must match, and what is used besides the origin."""

    checksums: tuple[Checksum, ...]
    resume: bool = True
    known: Known | None = None  # bytes of the origin that were read while looking for hints
    donations: tuple[Donation, ...] = ()
    mismatch: Digest | None = None  # which bytes came before, all from the origin, without the right checksums
    streams: int = 1  # how often one stream was begun, if it takes one

    def without_donors(self) -> Attempt:
        """Return the same with nothing but the origin."""
        return Attempt(self.checksums, resume=self.resume, mismatch=self.mismatch)

    def shows_that_no_md5_is(self, wrong: list[Verifier], digest: Digest, *, strict: bool) -> bool:
        """Whether an ETag only looks like an MD5: bytes of the origin have another, and another checksum vouches for
        them, or they came twice. (By default the MD5 of large files is verified only where donors gave something.)
        """
        if strict or self.donations or any(one.checksum.kind != "md5" for one in wrong):
            return False
        return len(self.checksums) > len(wrong) or self.mismatch == digest


class LargeFiles:
    """Fetches the large files of one pull."""

    def __init__(self, session: Session, workers: Workers, hints: Hints) -> None:
        self._session = session
        self._workers = workers
        self._hints = hints
        self._ranged = True  # until the remote shows that it ignores ranges

    def fetch(self, key: str, file: RemoteFile) -> list[RemoteFile]:
        """Fetch a file in ranges, again if its checksums say so; return it if it was replaced meanwhile."""
        with self._session.store.staging(key) as staging:
            try:
                attempt: Attempt | None = self.prepare(file)
                while attempt is not None:
                    attempt = self._try(staging, file, attempt)
            except ChangedError as error:
                log.info("%s", error)
                return [file]
        return []

    def prepare(self, file: RemoteFile) -> Attempt:
        """Ask for the checksums and look for hints, both at once: what to try first.

        Raises:
            ContentError: nothing vouches for the file, and strict verification was asked for.
        """
        looking = self._hints.look(file, self._workers) if self._ranged else None
        declared = self._session.declarations(file)
        checksum = choose(declared, md5=self._session.strict)
        if checksum is None and self._session.strict:
            raise unvouched(file)
        wanted = () if checksum is None else (checksum,)
        try:
            known = None if looking is None else self._session.wait(looking)
            may = self._ranged and file.identity.has_validator
            offer, known = self._hints.offer(file, declared, known) if may else (None, known)
        except RangesIgnoredError:
            return Attempt(wanted)
        if offer is None:
            return Attempt(wanted, known=known)
        both = wanted if offer.checksum in wanted else (offer.checksum, *wanted)
        return Attempt(both, known=known, donations=offer.donations)

    def _try(self, staging: Staging, file: RemoteFile, attempt: Attempt) -> Attempt | None:
        """Fetch and commit; if the bytes do not have the checksums, return what to try next."""
        ranged = self._ranged and file.identity.has_validator
        verifiers = tuple(map(Verifier, attempt.checksums))
        source = file.identity.key if ranged else None
        with (
            self._session.twin(file) as twin,
            staging.ingest(
                file.size,
                source=source,
                followers=verifiers if twin is None else (*verifiers, twin),
                resume=attempt.resume,
            ) as ingest,
        ):
            try:
                self._fill(file, ingest, attempt, ranged=ranged)
                digest = ingest.digest()
            except ChangedError:
                ingest.abort()
                raise
            except RangesIgnoredError as error:
                if not ranged:
                    raise
                log.info("%s; reading whole files", error)
                self._ranged = False
                return attempt.without_donors()
            except BrokenOffError as error:
                if attempt.streams >= STREAMS or self._session.stop.is_set():
                    raise
                log.info("%s; reading it from its start", error)
                ingest.abort()
                return replace(attempt, resume=False, streams=attempt.streams + 1)
            wrong = [one for one in verifiers if not (one.matches or self._has_other_parts(file, ingest, one.checksum))]
            if wrong and not attempt.shows_that_no_md5_is(wrong, digest, strict=self._session.strict):
                return self._again(file, ingest, attempt, wrong[0], digest)
            ingest.commit()
            if twin is not None:
                twin.keep(digest)
        self._hints.keep(file, digest, staging.folder)
        proof = next((one.proof for one in verifiers if one not in wrong), LENGTH_ONLY)
        self._session.committed(file, digest, proof, domain=self._hints.domain)
        return None

    def _again(self, file: RemoteFile, ingest: Ingest, attempt: Attempt, wrong: Verifier, digest: Digest) -> Attempt:
        """Say what follows on a mismatch: without donors, then once more without what is left of anything."""
        if attempt.donations:
            log.warning("%s: what donors gave does not fit; fetching that as well", file.identity.url)
            self._hints.give_up()
            ingest.leave()  # the next attempt takes over what came from the origin
            return attempt.without_donors()
        ingest.abort()
        if attempt.mismatch is not None:
            actual = f"{wrong.checksum.kind}:{wrong.value.hex()}"
            raise DigestMismatchError(file.identity.url, expected=str(wrong.checksum), actual=actual)
        log.warning("%s: bytes differ from the declared %s; fetching again", file.identity.url, wrong.checksum)
        return Attempt(attempt.checksums, resume=False, mismatch=digest)

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

    def _fill(self, file: RemoteFile, ingest: Ingest, attempt: Attempt, *, ranged: bool) -> None:
        self._session.resumed(ingest.written)
        path = self._session.remote.local_path(file)
        halt = threading.Event()
        try:
            if path is not None:
                self._ranges(lambda out, start, end: self._copy_range(file, path, out), ingest, halt)
            elif ranged:
                self._write_known(ingest, attempt.known)
                self._read_and_copy(file, ingest, attempt.donations, halt)
            else:
                self._stream(file, ingest)
        finally:
            halt.set()  # what is still under way for this file writes for nobody

    def _write_known(self, ingest: Ingest, known: Known | None) -> None:
        for start, end in ingest.missing if known is not None else ():
            if known is not None and end > known.start:
                start = max(start, known.start)
                ingest.write_at(start, known.data[start - known.start : end - known.start])
                self._session.advance(end - start)

    def _read_and_copy(
        self, file: RemoteFile, ingest: Ingest, donations: tuple[Donation, ...], halt: threading.Event
    ) -> None:
        """Copy what donors give while the rest is fetched; fetch what they turn out not to have."""

        def read(out: RangeWriter, start: int, end: int) -> None:
            self._read_range(file, out, start, end, halt)

        if donations:
            plan = plan_file(file.size, donations, ingest.written_ranges)
            log.info("%s: %d bytes from donors, %d to fetch", file.path, plan.bytes_copied, plan.bytes_to_fetch)
            copier = Copier(self._session, ingest, halt)
            copying = self._workers.submit(copier.copy, plan.copies)
            self._ranges(read, ingest, halt, plan.fetch)
            self._session.wait(copying)
        self._ranges(read, ingest, halt)

    def _ranges(
        self,
        read: Callable[[RangeWriter, int, int], None],
        ingest: Ingest,
        halt: threading.Event,
        spans: Sequence[Range] | None = None,
    ) -> None:
        """Read these ranges, or all that are missing."""

        def one(span: Range) -> None:
            if halt.is_set():
                raise StoppedError
            with ingest.range(*span) as out:
                read(out, *span)

        wanted = split(ingest.missing if spans is None else spans)
        wait_all([self._workers.submit(one, span) for span in wanted], self._session.stop)

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
