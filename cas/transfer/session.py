"""What the threads of one pull share: where from, where to, whether to stop, and what is done so far."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import TypeVar, cast

from cas.config import Settings, Verify
from cas.errors import ChangedError, ContentError, RemoteError, TransientRemoteError
from cas.index.digest import Digest
from cas.index.identity import RemoteIdentity
from cas.index.manifest import FileEntry
from cas.index.store import Store
from cas.index.twin import BeginTwin, Twin
from cas.transfer import checksums
from cas.transfer.limits import LimitedRemote, Rate
from cas.transfer.progress import Advance
from cas.transfer.remote import Checksum, Remote, RemoteFile
from cas.transfer.retry import RetryingRemote
from cas.transfer.watched import Watch, WatchedRemote
from cas.transfer.workers import StoppedError, wait_all

log = logging.getLogger("cas.transfer")

T = TypeVar("T")

OnFile = Callable[[FileEntry], None]

YOUNG = 2_000_000_000  # nanoseconds: a local file this young may change again within one tick of its clock


class Session:
    """One pull's remote, store and counters; safe for its threads."""

    def __init__(
        self, store: Store, remote: Remote, settings: Settings, on_file: OnFile | None, watch: Watch | None = None
    ) -> None:
        self.store = store
        self.stop = threading.Event()
        self.origin = remote
        watched = remote if watch is None else cast(Remote, WatchedRemote(remote, watch))
        self.remote = RetryingRemote(watched, stop=self.stop)
        if settings.bandwidth is not None:  # it has the same face
            self.remote = cast(RetryingRemote, LimitedRemote(self.remote, Rate(settings.bandwidth, self.stop)))
        self.settings = settings
        self.strict = settings.verify is Verify.STRICT
        self.lock = threading.Lock()
        self.advance: Advance = lambda count: None
        self.entries: dict[str, FileEntry] = {}
        self.proofs: dict[str, str] = {}
        self.files_fetched = self.bytes_fetched = self.bytes_resumed = self.bytes_reused = 0
        self.begin_twin: BeginTwin | None = None
        self._on_file = on_file
        self._told: set[str] = set()

    def proceed(self) -> None:
        """Go on, unless the pull was told to stop."""
        if self.stop.is_set():
            raise StoppedError

    def got(self, count: int) -> None:
        """Bytes came from the remote."""
        with self.lock:
            self.bytes_fetched += count
        self.advance(count)

    def resumed(self, count: int) -> None:
        """Bytes were taken over from an interrupted pull."""
        with self.lock:
            self.bytes_resumed += count
        self.advance(count)

    def reused(self, count: int) -> None:
        """Bytes were copied from a donor on this disk."""
        with self.lock:
            self.bytes_reused += count
        self.advance(count)

    def looked(self, count: int) -> None:
        """Bytes came from the remote that are not in their place yet."""
        with self.lock:
            self.bytes_fetched += count

    def wait(self, future: Future[T]) -> T:
        """Return a result, unless the pull was told to stop."""
        return wait_all([future], self.stop)[0]

    @contextlib.contextmanager
    def twin(self, file: RemoteFile) -> Iterator[Twin | None]:
        """Begin the user's copy of a file, if there is to be one; removed at the end unless it was kept."""
        with contextlib.ExitStack() as stack:
            twin = None
            if self.begin_twin is not None:
                twin = self.begin_twin(file.path, file.size, executable=file.executable)
            yield stack.enter_context(twin) if twin is not None else None

    def take(self, file: RemoteFile, digest: Digest, proof: str) -> None:
        """A file is in the store."""
        entry = FileEntry(file.path, file.size, digest, executable=file.executable)
        with self.lock:
            self.entries[file.path] = entry
            self.proofs[file.path] = proof
            is_new = file.path not in self._told
            self._told.add(file.path)
        if is_new and self._on_file is not None:
            self._on_file(entry)

    def committed(self, file: RemoteFile, digest: Digest, proof: str, *, domain: str | None = None) -> None:
        """A file was fetched, and is in the store; of a large one, `domain` says which registry and storage have it."""
        # With no validator the fact tells what was proven, and is never taken for knowing the bytes.
        known = file.identity if _is_settled(file) else RemoteIdentity(file.identity.url, file.size)
        self.store.facts.add_origin(known, digest, proof)
        if domain is not None:
            self.store.facts.add_domain(digest, domain)
        with self.lock:
            self.files_fetched += 1
        self.take(file, digest, proof)

    def declarations(self, file: RemoteFile) -> tuple[Checksum, ...]:
        """Return the checksums that the origin declares of a file."""
        try:
            return self.remote.checksums(file)
        except (TransientRemoteError, ChangedError):
            raise
        except RemoteError as error:  # a gateway that knows no HEAD, say: the bytes can be read all the same
            log.info("no checksums of %s: %s", file.identity.url, error)
            return ()

    def declared(self, file: RemoteFile) -> Checksum | None:
        """Return the checksum to verify a file by; None if the origin declares none that is worth its cost."""
        return checksums.choose(self.declarations(file), md5=self.strict)


def _is_settled(file: RemoteFile) -> bool:
    """Whether a later look would see a change: a local file that is very young can change with no new time."""
    if not file.identity.has_validator:
        return False
    if not file.identity.url.startswith("file:") or file.identity.modified is None:
        return True
    return time.time_ns() - file.identity.modified > YOUNG


def unvouched(file: RemoteFile) -> ContentError:
    """Return the error of a file that strict verification refuses."""
    return ContentError(f"{file.identity.url}: no checksum vouches for its bytes, and CAS_VERIFY is strict")
