"""Sealing: making what was pulled survive a power cut, in the background."""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Iterable

from cas.errors import CasError
from cas.index.blobs import Blobs
from cas.index.digest import Digest
from cas.index.locks import ThreadLock

log = logging.getLogger("cas.index")

DELAY = 5.0  # seconds: a command that ends first does not wait for the disk; its blobs are hashed after a reboot


class Sealer:
    """A low-priority thread that syncs blobs, one after the other."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._queue: queue.SimpleQueue[Digest] = queue.SimpleQueue()
        self._lock = ThreadLock()
        self._pid = os.getpid()
        self._running = False

    def add(self, digests: Iterable[Digest]) -> None:
        """Seal these blobs some time later, if this process lives on."""
        with self._lock:
            if self._pid != os.getpid():  # after a fork: the thread is the parent's, and so is what it waits for
                self._pid, self._running, self._queue = os.getpid(), False, queue.SimpleQueue()
            for digest in digests:
                self._queue.put(digest)
            if not self._running:
                self._running = True
                threading.Thread(target=self._run, name="cas-seal", daemon=True).start()

    def _run(self) -> None:
        if hasattr(os, "PRIO_PROCESS") and hasattr(threading, "get_native_id"):
            try:
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)  # on Linux, of this thread alone
            except OSError as error:
                log.debug("cannot lower the priority of sealing: %s", error)
        while True:
            digest = self._queue.get()
            time.sleep(DELAY)
            while True:
                self._seal(digest)
                try:
                    digest = self._queue.get_nowait()
                except queue.Empty:
                    break

    def _seal(self, digest: Digest) -> None:
        try:
            self._blobs.seal(digest)
        except (OSError, CasError) as error:
            log.info("not sealed, so it will be hashed after a reboot: %s: %s", digest, error)
