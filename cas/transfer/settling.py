"""Small files of a job whose bytes have another checksum than the listing suggests: one host looks closer, for all.

An ETag that looks like an MD5 is none where a key encrypts the objects. Every host keeps the bytes that came, and says
of no file that it has them, until it is told what they are: by a host that has the file already, or by the one that
listed the origin (it alone knows what a listing declared) and looks there.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterable
from typing import TypeAlias

from cas.index.digest import Digest
from cas.transfer import checksums
from cas.transfer.checksums import LENGTH_ONLY
from cas.transfer.remote import RemoteFile
from cas.transfer.session import Session
from cas.transfer.shared_files import SharedFiles, remote_file
from cas.transfer.small import ROOMY, SMALL_AT_ONCE
from cas.transfer.vouching import declared_proof, read_twice
from cas.transfer.workers import Workers, wait_all

log = logging.getLogger("cas.transfer")

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
        """Look closer: ask what the origin declares; of those for which it declares nothing, read one again.

        If that gives the same bytes, and no file of this origin has the checksum that is suggested of it, these are no
        checksums of the bytes, and the others are not read again.

        Raises:
            ContentError: two reads gave different bytes, or strict verification was asked for and nothing vouches.
            DigestMismatchError: bytes have not what is declared, twice.
        """
        wanted = [number for number in numbers if number in self._digests]
        words = self._each(self._declared, wanted)
        told = {number for number, _, _ in words}
        silent = sorted(set(wanted) - told, key=lambda number: self._shared.files[number].size)
        words += self._each(self._again, silent[:1])
        if silent[1:] and words[-1][2] == LENGTH_ONLY and not self._is_suggested_right():
            log.info("%s: its ETags are no checksums of the bytes", self._session.remote.url)
            return [*words, *((number, str(self._digests[number]), LENGTH_ONLY) for number in silent[1:])]
        return [*words, *self._each(self._again, silent[1:])]

    def take(self, words: Iterable[Word]) -> list[tuple[int, Digest, str]]:
        """Return which files are here, by what was told: those whose bytes are the same as where they are known."""
        found = {
            number: (number, self._digests[number], proof)
            for number, digest, proof in words
            if number in self._digests and str(self._digests[number]) == digest
        }
        return list(found.values())

    def _each(self, look: Callable[[RemoteFile, bytes], tuple[bytes, str] | None], numbers: list[int]) -> list[Word]:
        count = min(len(numbers), self._session.settings.concurrency * SMALL_AT_ONCE)
        with Workers(count, self._session.stop, "cas-judge") as workers:
            work = [workers.submit(self._look, look, number) for number in numbers]
            return [word for word in wait_all(work, self._session.stop) if word is not None]

    def _look(self, look: Callable[[RemoteFile, bytes], tuple[bytes, str] | None], number: int) -> Word | None:
        entry, store = self._shared.files[number], self._session.store
        with self._roomy if entry.size > ROOMY else contextlib.nullcontext():
            data = store.blobs.read(self._digests[number])
            found = look(remote_file(entry), data)
            if found is None:
                return None
            if found[0] != data:
                self._digests[number] = store.put(found[0])
        return number, str(self._digests[number]), found[1]

    def _declared(self, file: RemoteFile, data: bytes) -> tuple[bytes, str] | None:
        return declared_proof(self._session, file, data)

    def _again(self, file: RemoteFile, data: bytes) -> tuple[bytes, str] | None:
        return read_twice(self._session, file, data)

    def _is_suggested_right(self) -> bool:
        """Whether any file of this origin is known to have the checksum that the listing suggests of it."""
        suggested = {
            self._shared.files[number].identity: checksum
            for number, checksum in enumerate(self._shared.declared)
            if number in self._shared.likely and checksum is not None
        }
        facts = self._session.store.facts.origins(identity for identity in suggested if identity is not None)
        return any(fact.proof == checksums.proof(suggested[identity]) for identity, fact in facts.items())
