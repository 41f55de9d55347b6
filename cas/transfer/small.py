"""Small files: read whole, many at once, in batches that share one lock and one group of facts."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import NamedTuple

from cas.errors import ChangedError
from cas.index.staging import Staging
from cas.transfer.hints import Hints
from cas.transfer.remote import RemoteFile
from cas.transfer.session import Session
from cas.transfer.vouching import likely_proof, looked_closer, read_whole
from cas.transfer.workers import TICK, Workers

log = logging.getLogger("cas.transfer")

SMALL_AT_ONCE = 3  # small files wait for the server, not for bytes: this many times the setting's requests
ROOMY = 1 << 20  # bytes; of larger files that are read whole, only as many as the setting says are in memory
WAITING = 64  # files that wait to be stored; where there are more, the disk is what is slow, and all threads store


class _Fetched(NamedTuple):
    """A file's bytes, and what vouched for them."""

    file: RemoteFile
    data: bytes
    proof: str


_Brought = queue.SimpleQueue[_Fetched | Future[None]]  # what threads fetched; at its end, each one's own result


class SmallFiles:
    """Fetches the small files of one pull.

    Many threads wait for the server, and the caller's stores what they bring. Storing takes five calls of the system,
    each of which lets go of Python's lock: where all threads make them, half of the time goes into handing it round.
    Where one thread cannot keep up (a disk across a network), each stores what it fetched.
    """

    def __init__(self, session: Session, workers: Workers, hints: Hints) -> None:
        self._session = session
        self._workers = workers
        self._hints = hints
        # as many medium-sized files are in memory at once
        self._roomy = threading.Semaphore(session.settings.concurrency)

    def fetch(self, key: str, files: list[RemoteFile]) -> list[RemoteFile]:
        """Fetch small files; return those that were replaced meanwhile."""
        changed: list[RemoteFile] = []
        wanted, brought = iter(files), _Brought()
        with self._session.store.staging(key) as staging:
            count = min(len(files), self._session.settings.concurrency * SMALL_AT_ONCE)
            for _ in range(count):
                work = self._workers.submit(self._fetch_some, staging, wanted, brought, changed)
                work.add_done_callback(brought.put)
            self._store_all(staging, brought, count)
        return changed

    def _fetch_some(
        self, staging: Staging, wanted: Iterator[RemoteFile], brought: _Brought, changed: list[RemoteFile]
    ) -> None:
        while True:
            self._session.proceed()
            with self._session.lock:
                file = next(wanted, None)
            if file is None:
                return
            with self._roomy if file.size > ROOMY else contextlib.nullcontext():
                try:
                    fetched = _Fetched(file, *self._checked_bytes(file))
                except ChangedError as error:
                    log.info("%s", error)
                    changed.append(file)
                    continue
                if file.size <= ROOMY and brought.qsize() < WAITING:
                    brought.put(fetched)
                else:
                    self._store(staging, fetched)
                del fetched

    def _store_all(self, staging: Staging, brought: _Brought, working: int) -> None:
        """Store what so many threads bring, until all have come to their end; the first one's error ends it."""
        while working:
            self._session.proceed()
            try:
                one = brought.get(timeout=TICK)
            except queue.Empty:
                continue
            if isinstance(one, _Fetched):
                self._store(staging, one)
            else:
                one.result()
                working -= 1

    def _store(self, staging: Staging, fetched: _Fetched) -> None:
        self._session.committed(fetched.file, staging.put(fetched.data), fetched.proof)

    def _checked_bytes(self, file: RemoteFile) -> tuple[bytes, str]:
        """Return a small file's bytes, and what vouched for them."""
        if (given := self.given(file)) is not None:
            self._session.reused(file.size)
            return given
        data = read_whole(self._session, file)
        if proof := likely_proof(self._session, file, data):
            return data, proof
        return looked_closer(self._session, file, data)

    def given(self, file: RemoteFile) -> tuple[bytes, str] | None:
        """Return the bytes that need not be fetched, and what vouches for them: the object's ETag."""
        data = self._hints.whole(file)
        proof = likely_proof(self._session, file, data) if data is not None else None
        return (data, proof) if data is not None and proof is not None else None

    def is_told(self, file: RemoteFile) -> bool:
        """Whether the sidecar carries the file."""
        described = self._hints.described(file)
        return described is not None and described.whole is not None
