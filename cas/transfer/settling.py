"""Small files of a job whose bytes have another checksum than the listing suggests: one host looks closer, for all.

An ETag that looks like an MD5 is none where a key encrypts the objects. Every host keeps the bytes that came, and says
of no file that it has them, until it is told what they are: by a host that has the file already, or by the one that
listed the origin (it alone knows what a listing declared) and looks there.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable
from typing import TypeAlias

from cas.index.digest import Digest
from cas.transfer.session import Session
from cas.transfer.shared_files import SharedFiles, remote_file
from cas.transfer.small import ROOMY, SMALL_AT_ONCE
from cas.transfer.vouching import looked_closer
from cas.transfer.workers import Workers, wait_all

Word: TypeAlias = tuple[int, str, str]  # a file's place in the list, its digest, what vouches for it


class Unclear:
    """The files of one host that came, and whose bytes nothing vouches for yet."""

    def __init__(self, session: Session, shared: SharedFiles) -> None:
        self._session = session
        self._shared = shared
        self._digests: dict[int, Digest] = {}
        # as many medium-sized files are in memory at once
        self._roomy = threading.Semaphore(session.settings.concurrency)

    def add(self, number: int, digest: Digest) -> None:
        """A file came with bytes that are in the store."""
        self._digests[number] = digest

    def numbers(self) -> list[int]:
        """Return which files these are, by their place in the list."""
        return sorted(self._digests)

    def judge(self, numbers: Iterable[int]) -> list[Word]:
        """Look closer, as a host does that pulls by itself.

        Raises:
            ContentError: two reads gave different bytes, or strict verification was asked for and nothing vouches.
            DigestMismatchError: bytes have not what is declared, twice.
        """
        wanted = [number for number in numbers if number in self._digests]
        count = min(len(wanted), self._session.settings.concurrency * SMALL_AT_ONCE)
        with Workers(count, self._session.stop, "cas-judge") as workers:
            return wait_all([workers.submit(self._look, number) for number in wanted], self._session.stop)

    def _look(self, number: int) -> Word:
        entry, store = self._shared.files[number], self._session.store
        with self._roomy if entry.size > ROOMY else contextlib.nullcontext():
            data = store.blobs.read(self._digests[number])
            right, proof = looked_closer(self._session, remote_file(entry), data)
            if right != data:
                self._digests[number] = store.put(right)
        return number, str(self._digests[number]), proof

    def take(self, words: Iterable[Word]) -> list[tuple[int, Digest, str]]:
        """Return which files are here, by what was told: those whose bytes are the same as where they are known."""
        found = {
            number: (number, self._digests[number], proof)
            for number, digest, proof in words
            if number in self._digests and str(self._digests[number]) == digest
        }
        return list(found.values())
