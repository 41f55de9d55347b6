"""A pull: list the remote, plan, fetch what is not here, checked, and say what the checkpoint consists of."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from cas.config import Settings, Verify
from cas.errors import (
    ChangedError,
    CheckpointNotFoundError,
    ContentError,
    DigestMismatchError,
    RemoteError,
    TransientRemoteError,
)
from cas.index.digest import Digest
from cas.index.facts import OriginFact
from cas.index.identity import RemoteIdentity
from cas.index.ingest import Ingest, RangeWriter, Staging
from cas.index.manifest import FileEntry, Manifest
from cas.index.ranges import Range
from cas.index.store import Store, explained
from cas.transfer import checksums, forks
from cas.transfer.checksums import LENGTH_ONLY, Verifier
from cas.transfer.folder import require_same
from cas.transfer.plan import PullPlan, Unit, plan_pull, split, unit_of
from cas.transfer.progress import Advance, Drawer, drawer
from cas.transfer.remote import Checksum, Listing, Piece, RangesIgnoredError, Remote, RemoteFile
from cas.transfer.retry import RetryingRemote
from cas.transfer.workers import StoppedError, Workers, wait_all

log = logging.getLogger("cas.transfer")

OnFile = Callable[[FileEntry], None]

UNITS_AT_ONCE = 2  # while one unit is hashed to its end and committed, the next one keeps the line busy
SMALL_AT_ONCE = 3  # small files wait for the server, not for bytes: this many times the setting's requests
ROOMY = 1 << 20  # bytes; of larger files that are read whole, only as many as the setting says are in memory
LEAVING = 1.0  # seconds that an interrupted pull gives its threads to leave tidily
YOUNG = 2_000_000_000  # nanoseconds: a local file this young may change again within one tick of its clock
COPY = 8 << 20  # bytes between two looks at whether to stop, while a local file is copied
_ROUNDS = 3  # how often blobs that somebody removes meanwhile are brought again


@dataclass(frozen=True, slots=True)
class PullReport:
    """What a pull did."""

    manifest: Manifest
    proofs: Mapping[str, str]  # path -> what vouched for its bytes: `origin checksum (kind)`, `length only`
    files_fetched: int
    bytes_fetched: int  # read from the remote, again where it had to be
    bytes_resumed: int  # taken over from an interrupted pull
    bytes_here: int
    seconds: float


def pull(
    store: Store,
    remote: Remote,
    *,
    registry: str,
    uuid: str,
    settings: Settings,
    expected_sizes: Mapping[str, int] | None = None,
    partial: bool = False,
    progress: Drawer | None = None,
    on_file: OnFile | None = None,
) -> PullReport:
    """Bring a checkpoint's files into the store and say what it consists of.

    Args:
        store: where to.
        remote: where from: everything below it is the checkpoint.
        registry: who knows the checkpoint.
        uuid: its UUID.
        settings: `concurrency`, `verify` and `progress` count here.
        expected_sizes: path -> bytes as the registry has it; names that end in `/` are folders.
        partial: files that the registry names may be missing: the checkpoint was deleted in part.
        progress: what draws; default: as the settings say.
        on_file: called once for each file as soon as it is in the store, from any thread, possibly several at once.

    Raises:
        CheckpointNotFoundError: there are no files.
        ContentError: sizes differ from the registry's, or a file is missing.
        DigestMismatchError: bytes differ twice from the checksum that the origin declares; they were not kept.
        ChangedError: a file was replaced while it was read, and once more while it was read again.
        TransientRemoteError: the remote failed too often; what was fetched is resumed by the next pull.
        NotAllowedError: credentials or permissions are missing.
        NoSpaceError: the disk is full.
    """
    draw = progress or drawer(settings.progress, uuid[:8])
    if forks.must_spawn() and (recipe := remote.recipe()) is not None:
        from cas.transfer.spawned import pull_elsewhere

        return pull_elsewhere(
            store,
            recipe,
            registry=registry,
            uuid=uuid,
            settings=settings,
            expected_sizes=expected_sizes,
            partial=partial,
            draw=draw,
            on_file=on_file,
        )
    with explained(f"cannot write into {store.home}"):
        return _Pull(store, remote, settings, expected_sizes or {}, partial, draw, on_file).run(registry, uuid)


class _Pull:
    """One pull: what its threads share."""

    def __init__(
        self,
        store: Store,
        remote: Remote,
        settings: Settings,
        expected: Mapping[str, int],
        partial: bool,  # noqa: FBT001 - the only caller is above
        draw: Drawer,
        on_file: OnFile | None,
    ) -> None:
        self._store = store
        self._stop = threading.Event()
        self._remote = RetryingRemote(remote, stop=self._stop)
        self._settings = settings
        self._expected = expected
        self._partial = partial
        self._draw = draw
        self._on_file = on_file
        self._ranged = True  # until the remote shows that it ignores ranges
        self._strict = settings.verify is Verify.STRICT
        self._lock = threading.Lock()
        self._relisting = threading.Lock()
        self._second_listing: Listing | None = None
        self._facts: Mapping[RemoteIdentity, OriginFact] = {}
        self._entries: dict[str, FileEntry] = {}
        self._proofs: dict[str, str] = {}
        self._told: set[str] = set()
        self._roomy = threading.Semaphore(settings.concurrency)  # as many medium-sized files are in memory at once
        self._fetched = self._fetched_files = self._resumed = 0

    def run(self, registry: str, uuid: str) -> PullReport:
        began = time.monotonic()
        listing = self._list()
        first = plan = self._plan(listing)
        for _ in range(_ROUNDS):
            log.info("%s: %s", self._remote.url, plan)
            self._execute(plan)
            manifest = Manifest.of(self._entries.values(), listing.directories)
            if not self._store.tag(registry, uuid, manifest):
                break
            self._second_listing, plan = None, self._plan(listing)
        self._store.seal_later(entry.digest for entry in manifest.files if entry.digest is not None)
        return PullReport(
            manifest=manifest,
            proofs=self._proofs,
            files_fetched=self._fetched_files,
            bytes_fetched=self._fetched,
            bytes_resumed=self._resumed,
            bytes_here=first.bytes_here,
            seconds=time.monotonic() - began,
        )

    # --- what there is to do -----------------------------------------------------------------------------------

    def _list(self) -> Listing:
        listing = self._remote.list()
        if not listing.files and not listing.directories:
            raise CheckpointNotFoundError(f"there are no files at {self._remote.url}")
        check_sizes(listing, self._expected, url=self._remote.url, partial=self._partial)
        return listing

    def _plan(self, listing: Listing) -> PullPlan:
        facts = self._facts = self._store.facts.origins(file.identity for file in listing.files)

        def known(identity: RemoteIdentity) -> Digest | None:
            return facts[identity].digest if identity in facts else None

        return plan_pull(listing, known, self._store.has)

    def _execute(self, plan: PullPlan) -> None:
        for file, digest in plan.here:
            self._take(file, digest, self._facts[file.identity].proof)
        units = Workers(UNITS_AT_ONCE, self._stop, "cas-unit")
        self._workers = Workers(self._settings.concurrency, self._stop, "cas-fetch")
        self._small_workers = Workers(self._settings.concurrency * SMALL_AT_ONCE, self._stop, "cas-small")
        with self._draw(plan.bytes_to_fetch, plan.bytes_here) as advance, self._store.facts.grouped():
            self._advance: Advance = advance
            try:
                with units, self._workers, self._small_workers:
                    wait_all([units.submit(self._unit, unit) for unit in plan.units], self._stop)
            except BaseException:
                self._stop.set()
                units.join(LEAVING)
                raise

    # --- a unit ------------------------------------------------------------------------------------------------

    def _unit(self, unit: Unit, *, again: bool = False) -> None:
        with self._store.exclusive(unit.key):
            self._continue()
            wanted = self._look_again(unit)
            if not wanted:
                return
            changed = self._fetch_large(unit.key, wanted[0]) if unit.is_large else self._fetch_batch(unit.key, wanted)
            self._store.facts.flush()  # before others get the lock, and look
        for file in changed:
            if again:
                raise ChangedError(f"{file.identity.url} was replaced twice while it was read; try again later")
            self._unit(unit_of(self._now(file)), again=True)

    def _continue(self) -> None:
        if self._stop.is_set():
            raise StoppedError

    def _look_again(self, unit: Unit) -> list[RemoteFile]:
        """Return what is still to be fetched: another process may have done the work while we waited."""
        facts = self._store.facts.origins(file.identity for file in unit.files)
        wanted = []
        for file in unit.files:
            fact = facts.get(file.identity)
            if fact is not None and self._store.has(fact.digest):
                self._take(file, fact.digest, fact.proof)
                self._advance(file.size)
            else:
                wanted.append(file)
        return wanted

    def _now(self, file: RemoteFile) -> RemoteFile:
        """Return a file that was replaced as it is listed now; the remote is listed a second time at most."""
        with self._relisting:
            if self._second_listing is None:
                log.info("%s was replaced while it was read; listing again", file.identity.url)
                self._second_listing = self._list()
            for found in self._second_listing.files:
                if found.path == file.path:
                    return found
        raise ChangedError(f"{file.identity.url} was removed while it was read")

    def _take(self, file: RemoteFile, digest: Digest, proof: str) -> None:
        """A file is in the store."""
        entry = FileEntry(file.path, file.size, digest, executable=file.executable)
        with self._lock:
            self._entries[file.path] = entry
            self._proofs[file.path] = proof
            is_new = file.path not in self._told
            self._told.add(file.path)
        if is_new and self._on_file is not None:
            self._on_file(entry)

    def _committed(self, file: RemoteFile, digest: Digest, proof: str) -> None:
        if _is_settled(file):
            self._store.facts.add_origin(file.identity, digest, proof)
        with self._lock:
            self._fetched_files += 1
        self._take(file, digest, proof)

    def _got(self, count: int) -> None:
        with self._lock:
            self._fetched += count
        self._advance(count)

    # --- a large file --------------------------------------------------------------------------------------------

    def _fetch_large(self, key: str, file: RemoteFile) -> list[RemoteFile]:
        """Fetch a file in ranges, twice if its checksum says so; return it if it was replaced meanwhile."""
        with self._store.staging(key) as staging:
            checksum, mismatches = self._declared(file), 0
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

    def _declared(self, file: RemoteFile) -> Checksum | None:
        try:
            declared = self._remote.checksums(file)
        except (TransientRemoteError, ChangedError):
            raise
        except RemoteError as error:  # a gateway that knows no HEAD, say: the bytes can be read all the same
            log.info("no checksums of %s: %s", file.identity.url, error)
            declared = ()
        return checksums.choose(declared, md5=self._strict)

    def _fetch_checked(
        self, staging: Staging, file: RemoteFile, checksum: Checksum | None, *, resume: bool
    ) -> str | None:
        """Fetch and commit; if the bytes do not have the checksum, commit nothing and return which they have."""
        if checksum is None and self._strict:
            raise _unvouched(file)
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
        self._committed(file, digest, verifier.proof if verifier is not None else LENGTH_ONLY)
        return None

    def _has_other_parts(self, file: RemoteFile, ingest: Ingest, checksum: Checksum) -> bool:
        """Whether the bytes are right after all: the parts of the upload were not all as large as the first."""
        if not checksum.parts:
            return False
        for exact in self._remote.checksums(file, thorough=True):
            if exact.kind == checksum.kind and exact.parts not in ((), checksum.parts):
                verifier = Verifier(exact)
                for piece in ingest.pieces():
                    verifier.update(piece)
                return verifier.matches
        return False

    def _fill(self, file: RemoteFile, ingest: Ingest, *, ranged: bool) -> None:
        with self._lock:
            self._resumed += ingest.written
        self._advance(ingest.written)
        path = self._remote.local_path(file)
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

        wait_all([self._workers.submit(one, span) for span in split(ingest.missing)], self._stop)

    def _read_range(self, file: RemoteFile, out: RangeWriter, start: int, end: int, halt: threading.Event) -> None:
        for piece in self._remote.read(file, start, end):
            self._continue()
            if halt.is_set():
                raise StoppedError
            out.write(piece)
            self._got(len(piece))

    def _copy_range(self, file: RemoteFile, path: str, out: RangeWriter) -> None:
        try:
            source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise ChangedError(f"{path} is gone since it was listed") from error
        try:
            require_same(file, path, source)
            while out.left:
                self._continue()
                count = min(COPY, out.left)
                out.copy_from(source, count)
                self._got(count)
            require_same(file, path, source)
        except EOFError as error:
            raise ChangedError(f"{path} became shorter while it was read") from error
        finally:
            os.close(source)

    def _stream(self, file: RemoteFile, ingest: Ingest) -> None:
        with ingest.range(0, file.size) as out:
            for piece in self._remote.stream(file):
                self._continue()
                out.write(piece)
                self._got(len(piece))

    # --- small files -----------------------------------------------------------------------------------------------

    def _fetch_batch(self, key: str, files: list[RemoteFile]) -> list[RemoteFile]:
        """Fetch small files; return those that were replaced meanwhile."""
        changed: list[RemoteFile] = []
        queue = iter(files)
        with self._store.staging(key) as staging:
            count = min(len(files), self._settings.concurrency * SMALL_AT_ONCE)
            work = [self._small_workers.submit(self._fetch_some, staging, queue, changed) for _ in range(count)]
            wait_all(work, self._stop)
        return changed

    def _fetch_some(self, staging: Staging, queue: Iterator[RemoteFile], changed: list[RemoteFile]) -> None:
        while True:
            self._continue()
            with self._lock:
                file = next(queue, None)
            if file is None:
                return
            with self._roomy if file.size > ROOMY else contextlib.nullcontext():
                try:
                    data, proof = self._checked_bytes(file)
                except ChangedError as error:
                    log.info("%s", error)
                    changed.append(file)
                    continue
                digest = staging.put(data)
                del data
            self._committed(file, digest, proof)

    def _checked_bytes(self, file: RemoteFile) -> tuple[bytes, str]:
        """Return a small file's bytes, and what vouched for them."""
        data = self._bytes(file)
        if proof := self._likely_proof(file, data):
            return data, proof
        checksum = self._declared(file)
        if checksum is not None:
            if not checksums.matches(checksum, data):
                log.warning("%s: bytes differ from the declared %s; fetching again", file.identity.url, checksum)
                data = self._bytes(file)
                checksums.require(checksum, data, file.identity.url)
            return data, checksums.proof(checksum)
        if self._strict:
            raise _unvouched(file)
        if not self._remote.likely_checksums(file):
            return data, LENGTH_ONLY
        again = self._bytes(file)
        if proof := self._likely_proof(file, again):
            return again, proof
        if again != data:
            raise ContentError(f"{file.identity.url}: two reads gave different bytes; nothing of it was kept")
        return data, LENGTH_ONLY

    def _likely_proof(self, file: RemoteFile, data: bytes) -> str | None:
        for likely in self._remote.likely_checksums(file):
            if checksums.matches(likely, data):
                return checksums.proof(likely)
        return None

    def _bytes(self, file: RemoteFile) -> bytes:
        if not file.size:
            return b""
        data = b"".join(map(bytes, self._whole(file)))
        if len(data) != file.size:
            raise RemoteError(f"{file.identity.url}: {len(data)} bytes, but {file.size} were listed")
        self._got(len(data))
        return data

    def _whole(self, file: RemoteFile) -> Iterator[Piece]:
        return self._remote.read(file, 0, file.size) if file.identity.has_validator else self._remote.stream(file)


def _is_settled(file: RemoteFile) -> bool:
    """Whether a later look would see a change: a local file that is very young can change with no new time."""
    if not file.identity.has_validator:
        return False
    if not file.identity.url.startswith("file:") or file.identity.modified is None:
        return True
    return time.time_ns() - file.identity.modified > YOUNG


def _unvouched(file: RemoteFile) -> ContentError:
    return ContentError(f"{file.identity.url}: no checksum vouches for its bytes, and CAS_VERIFY is strict")


def check_sizes(listing: Listing, expected: Mapping[str, int], *, url: str, partial: bool) -> None:
    """Compare a listing with what a registry knows of the checkpoint's files.

    Raises:
        ContentError: a size differs, or a file is missing and may not be.
    """
    found = {str(file.path): file.size for file in listing.files}
    for name, size in expected.items():
        if name.endswith("/"):
            continue
        if name in found and found[name] != size:
            raise ContentError(f"{url}: {name} has {found[name]} bytes, but its record says {size}")
        if name not in found and not partial:
            raise ContentError(
                f"{url}: {name} is missing, but the checkpoint's record names it{_more(expected, found)}"
            )


def _more(expected: Mapping[str, int], found: Iterable[str]) -> str:
    count = len({name for name in expected if not name.endswith("/")} - set(found)) - 1
    return f" ({count} more are missing too)" if count else ""
