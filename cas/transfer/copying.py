"""Copying what donors give into a file that is fetched: looked at before it is used, shared where the disk can."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import blake3

from cas.index import disk
from cas.index.ingest import Ingest
from cas.transfer import checksums
from cas.transfer.donations import Copy, Donation
from cas.transfer.session import Session
from cas.transfer.workers import StoppedError
from cas.transfer.ziphints import DonorFiles

log = logging.getLogger("cas.transfer")

_WINDOW = 1 << 20  # bytes per read


class _Run(NamedTuple):
    """A range of the file that lies `away` bytes further on in a donor."""

    start: int
    end: int
    fd: int
    away: int


class Copier:
    """Copies donations into one ingest, from one thread."""

    def __init__(self, session: Session, ingest: Ingest, halt: threading.Event) -> None:
        self._session = session
        self._ingest = ingest
        self._halt = halt
        self._held: _Run | None = None
        self._buffer = memoryview(bytearray(_WINDOW))

    def copy(self, copies: Iterable[Copy]) -> None:
        """Copy what donors have; what they turn out not to have stays missing."""
        right: dict[int, bool] = {}  # of donations that are used in several pieces
        with DonorFiles(self._session.store) as files:
            for copy in copies:
                self._proceed()
                donation = copy.donation
                if donation.donor is None:
                    self._put(copy)
                elif (fd := files.open(donation.donor)) is not None:
                    if id(donation) not in right:
                        right[id(donation)] = self._holds(fd, donation)
                    if right[id(donation)]:
                        self._copy(_Run(copy.start, copy.end, fd, donation.offset - donation.start))
            self._flush()

    def _put(self, copy: Copy) -> None:
        first = copy.donation.start
        self._ingest.put_in(copy.start, copy.donation.data[copy.start - first : copy.end - first])
        self._session.reused(copy.end - copy.start)

    def _copy(self, run: _Run) -> None:
        """Copy what was looked at, together with what lies beside it in both files: long runs share more blocks."""
        held = self._held
        if held is not None and (held.fd, held.away, held.end) == (run.fd, run.away, run.start):
            run = _Run(held.start, run.end, run.fd, run.away)
        else:
            self._flush()
        self._held = run
        if run.end - run.start >= disk.COPY_WINDOW:
            self._flush()

    def _flush(self) -> None:
        run, self._held = self._held, None
        if run is None:
            return
        for start in range(run.start, run.end, disk.COPY_WINDOW):
            self._proceed()
            end = min(start + disk.COPY_WINDOW, run.end)
            try:
                self._ingest.copy_in(start, end, run.fd, start + run.away)
            except EOFError:
                return
            self._session.reused(end - start)

    def _holds(self, fd: int, donation: Donation) -> bool:
        """Whether a donor has what is said of it."""
        if donation.crc is None and not donation.digest:
            return False
        crc, hasher = checksums.start("crc32"), blake3.blake3()
        assert crc is not None, "zlib has it"
        length = 0
        for piece in self._pieces(fd, donation):
            length += len(piece)
            if donation.crc is not None:
                crc.update(piece)
            if donation.digest:
                hasher.update(piece)
        if length != donation.length:
            return False
        fits = donation.crc is None or crc.digest() == donation.crc.to_bytes(4, "big")
        if not (fits and donation.digest in (b"", hasher.digest())):
            log.info("%s has other bytes at %d than was thought", donation.donor, donation.offset)
            return False
        return True

    def _pieces(self, fd: int, donation: Donation) -> Iterator[memoryview]:
        at, end = donation.offset, donation.offset + donation.length
        while at < end and (count := os.preadv(fd, [self._buffer[: end - at]], at)):
            self._proceed()
            yield self._buffer[:count]
            at += count

    def _proceed(self) -> None:
        self._session.proceed()
        if self._halt.is_set():
            raise StoppedError
