"""A pull by many hosts of one job: each reads its share from the origin, and the job's group exchanges the rest.

Every rank of the group takes part. Ranks that share a home are one host; the first of them does the host's work, the
others only listen. What a rank cannot do it tells at the end of each round, so that all fail together, and soon.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from cas.config import Settings
from cas.errors import CasError, ChangedError, ContentError, DigestMismatchError, PeerError
from cas.index.digest import Digest
from cas.index.identity import RemoteIdentity
from cas.index.ingest import Ingest, Staging
from cas.index.manifest import FileEntry, Manifest
from cas.index.paths import RelativePath
from cas.index.ranges import Range
from cas.index.store import Store, explained
from cas.transfer import checksums
from cas.transfer.checksums import LENGTH_ONLY, Verifier
from cas.transfer.exchange import Block, Held, Part, Round, plan_exchange
from cas.transfer.fetch import PullReport, pull
from cas.transfer.plan import split, unit_of
from cas.transfer.progress import drawer
from cas.transfer.remote import Checksum, RangesIgnoredError, Remote, RemoteFile
from cas.transfer.session import Session, unvouched
from cas.transfer.workers import Workers, wait_all

log = logging.getLogger("cas.transfer")

T = TypeVar("T")

BLOCK = 16 << 20  # bytes that a host sends at once; with many hosts less, so that a round stays below ROUND
ROUND = 256 << 20  # bytes that arrive in one round, at most
REQUEST = 4 << 20  # bytes per request: a block is read by several threads
ALONE = (ChangedError, DigestMismatchError, RangesIgnoredError)  # then each host pulls by itself what is left


class Group(Protocol):
    """The ranks of one job; every one makes the same calls in the same order."""

    rank: int
    size: int

    def gather(self, data: bytes) -> list[bytes]:
        """Return what every rank gave, in order of rank."""

    def broadcast(self, data: bytes | None, source: int) -> bytes:
        """Return what the rank `source` gave."""

    def swap(
        self, sends: Sequence[tuple[int, bytearray | memoryview]], receives: Sequence[tuple[int, memoryview]]
    ) -> None:
        """Send to some ranks while receiving from others."""


def pull_together(
    store: Store,
    remote: Remote | None,
    group: Group,
    *,
    registry: str,
    uuid: str,
    settings: Settings,
    expected_sizes: Mapping[str, int] | None = None,
    partial: bool = False,
) -> PullReport | None:
    """Bring a checkpoint into the stores of all hosts of a group; each byte leaves the origin once.

    Returns on every rank when every host has committed the same files. See `pull` for the arguments; with no `remote`
    the first rank's store must hold the checkpoint. Returns what this host's own pull reports, on the rank that did it.

    Raises:
        PeerError: another rank failed (the message says which, and how), or does not answer.
        CasError: this rank failed, as `pull` does; the others were told.
    """
    with explained(f"cannot write into {store.home}"):
        work = _Together(store, remote, group, settings)
        return work.run(registry, uuid, dict(expected_sizes or {}), partial=partial)


# --- what all ranks know ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Shared:
    """What the first rank tells all others of the checkpoint."""

    files: tuple[FileEntry, ...]  # with digests if its store holds the checkpoint, else with identities
    directories: tuple[RelativePath, ...]
    declared: tuple[Checksum | None, ...]

    @property
    def is_known(self) -> bool:
        """Whether all digests are known: the origin need not be asked."""
        return all(entry.digest is not None for entry in self.files)

    def encode(self) -> bytes:
        """Return it as bytes that `decode` reads."""
        files = [{**entry.to_json(), "executable": entry.executable} for entry in self.files]
        declared = [one and {"kind": one.kind, "value": one.value.hex(), "parts": one.parts} for one in self.declared]
        return json.dumps({"files": files, "directories": self.directories, "declared": declared}).encode()

    @classmethod
    def decode(cls, data: bytes) -> _Shared:
        """Read what `encode` wrote."""
        document = json.loads(data)
        declared = [
            one and Checksum(one["kind"], bytes.fromhex(one["value"]), tuple(one["parts"]))
            for one in document["declared"]
        ]
        files = tuple(map(_entry, document["files"]))
        return cls(files, tuple(map(RelativePath, document["directories"])), tuple(declared))


def _entry(data: Mapping[str, Any]) -> FileEntry:
    digest = Digest.parse(data["digest"]) if "digest" in data else None
    identity = RemoteIdentity.from_json(data["identity"]) if "identity" in data else None
    return FileEntry(RelativePath(data["path"]), data["size"], digest, identity, data["executable"])


class _AloneError(PeerError):
    """The exchange ends here; each host goes on by itself."""


class _Together:
    """One rank's part of the work."""

    def __init__(self, store: Store, remote: Remote | None, group: Group, settings: Settings) -> None:
        self._store = store
        self._remote = remote
        self._group = group
        self._settings = settings
        self._leaders: list[int] = []  # of each host the rank that does its work
        self._failure: Exception | None = None  # ours, which the others have not heard of yet

    def run(self, registry: str, uuid: str, sizes: dict[str, int], *, partial: bool) -> PullReport | None:
        """Do it."""
        leader = self._find_hosts()
        shared = self._tell(registry, uuid)
        host = self._leaders.index(leader)
        leads = leader == self._group.rank
        session = Session(self._store, self._remote or _NoRemote(), self._settings, None)
        files = _HostFiles(session, shared, self._known(registry, uuid, shared)) if leads else None
        try:
            self._exchange(files, host, shared, draw_label=uuid[:8])
        except _AloneError as error:
            log.warning("%s; each host fetches by itself what is left", error)
        finally:
            if files is not None:
                session.stop.set()
                files.close()
        report = None
        if leads:
            report = self._together(lambda: self._conclude(registry, uuid, sizes, shared, partial=partial))
        else:
            self._together(lambda: None)
        self._compare(registry, uuid, leads=leads)
        return report

    # --- telling -----------------------------------------------------------------------------------------------

    def _together(self, doing: Callable[[], T]) -> T:
        """Do something on every rank; if it fails on one, it fails on all."""
        failure: Exception | None = None
        try:
            value = doing()
        except Exception as error:  # whatever it is: the others must hear of it
            failure = error
        self._raise_first(failure)
        return value

    def _raise_first(self, failure: Exception | None) -> None:
        text = b"" if failure is None else _said(failure)
        answers = self._group.gather(text)
        if failure is not None and not isinstance(failure, ALONE):
            raise failure
        found = [(rank, answer.decode("utf-8", "replace")) for rank, answer in enumerate(answers) if answer]
        for rank, answer in found:
            if answer[0] == "!":
                raise PeerError(f"rank {rank} of the process group failed: {answer[1:]}")
        if found:
            raise _AloneError(found[0][1][1:])

    def _find_hosts(self) -> int:
        """Find out which ranks share a home, and return the one that does the work of ours.

        Each makes a folder in its home, and looks whose it sees: names of hosts and homes can lie about that.
        """
        key = self._group.broadcast(secrets.token_hex(16).encode(), 0).decode("ascii", "replace")
        staging = self._together(lambda: self._store.staging(f"group {key}"))
        try:
            names = [name.decode("ascii", "replace") for name in self._group.gather(staging.folder.name.encode())]
            seen = set(os.listdir(staging.folder.parent))
            mine = min(rank for rank, name in enumerate(names) if name in seen)
            told = self._group.gather(str(mine).encode())  # nobody leaves before all have looked
        finally:
            staging.close()
        self._leaders = sorted({int(one) for one in told})
        return mine

    def _tell(self, registry: str, uuid: str) -> _Shared:
        """Let the first rank look at the checkpoint, and tell."""
        found: bytes | None = None

        def look() -> None:
            nonlocal found
            if self._group.rank == 0:
                found = self._look(registry, uuid).encode()

        self._together(look)
        return _Shared.decode(self._group.broadcast(found, 0))

    def _look(self, registry: str, uuid: str) -> _Shared:
        manifest = self._store.resolve(registry, uuid)
        if manifest is not None and manifest.complete and not self._store.absent(manifest):
            return _Shared(manifest.files, manifest.directories, (None,) * len(manifest.files))
        if self._remote is None:
            raise ContentError(f"checkpoint {uuid} is not whole in the first rank's store {self._store.home}")
        session = Session(self._store, self._remote, self._settings, None)
        listing = session.remote.list()
        files = tuple(
            FileEntry(one.path, one.size, None, one.identity, executable=one.executable) for one in listing.files
        )
        return _Shared(files, listing.directories, tuple(map(_Declared(session).of, listing.files)))

    def _known(self, registry: str, uuid: str, shared: _Shared) -> dict[int, Digest]:
        """Return which files this host has already, by their place in the list."""
        manifest = self._store.resolve(registry, uuid)
        by_path = manifest.by_path if manifest is not None and self._remote is None else {}
        facts = self._store.facts.origins(entry.identity for entry in shared.files if entry.identity is not None)
        found = {}
        for number, entry in enumerate(shared.files):
            digest = entry.digest
            if digest is None and entry.identity in facts:
                digest = facts[entry.identity].digest
            if digest is None and entry.path in by_path:
                digest = by_path[entry.path].digest
            if digest is not None and self._store.has(digest):
                found[number] = digest
        return found

    # --- the rounds --------------------------------------------------------------------------------------------

    def _exchange(self, files: _HostFiles | None, host: int, shared: _Shared, *, draw_label: str) -> None:
        held = self._together(lambda: files.held() if files is not None else {})
        told = self._group.gather(json.dumps(held).encode() if files is not None else b"")
        all_held: list[Held] = [_held(told[rank]) for rank in self._leaders]
        sizes = [entry.size if _can_be_shared(entry) else 0 for entry in shared.files]
        block = min(BLOCK, max(ROUND // len(self._leaders), 1 << 20))
        rounds = plan_exchange(sizes, all_held, block=block)
        total = sum(one.size for blocks in rounds for one in blocks if host in one.lacking)
        log.info("%d hosts, %d rounds, %d bytes to bring here", len(self._leaders), len(rounds), total)
        draw = drawer(self._settings.progress, draw_label)
        with contextlib.ExitStack() as line:
            if files is not None:
                files.start(rounds, host, line.enter_context(draw(total, 0)))
            for blocks in rounds:
                self._round(files, host, blocks)
            self._together(lambda: self._finish(files))

    def _finish(self, files: _HostFiles | None) -> None:
        if self._failure is not None:
            raise self._failure
        if files is not None:
            files.finish_empty()

    def _round(self, files: _HostFiles | None, host: int, blocks: Round) -> None:
        """Exchange the blocks of one round. What arrived counts only when nobody failed: a host that did sent zeros."""
        arrived: list[tuple[Block, memoryview]] = []
        failure, self._failure = self._failure, None
        if files is not None:
            mine = next((one for one in blocks if one.owner == host), None)
            data = bytearray(mine.size if mine is not None else 0)
            try:
                if mine is not None and failure is None:
                    data = files.next_block()
            except Exception as error:  # the others wait for a block: they get one, and hear of it
                failure = error
            arrived = self._swap(host, blocks, data)
        self._raise_first(failure)
        try:
            for one, buffer in arrived:
                if files is not None and host in one.lacking:
                    files.write(one, buffer)
        except Exception as error:  # told with the next round: the others are in the middle of it
            self._failure = error

    def _swap(self, host: int, blocks: Round, data: bytearray) -> list[tuple[Block, memoryview]]:
        sends: list[tuple[int, bytearray | memoryview]] = []
        receives: list[tuple[int, memoryview]] = []
        arrived: list[tuple[Block, memoryview]] = []
        for one in blocks:
            if one.owner == host:
                sends += [(self._leaders[other], data) for other in one.lacking if other != host]
                arrived.append((one, memoryview(data)))
            elif host in one.lacking:
                buffer = memoryview(bytearray(one.size))
                receives.append((self._leaders[one.owner], buffer))
                arrived.append((one, buffer))
        self._group.swap(sends, receives)
        return arrived

    # --- the end -------------------------------------------------------------------------------------------------

    def _conclude(
        self, registry: str, uuid: str, sizes: dict[str, int], shared: _Shared, *, partial: bool
    ) -> PullReport | None:
        """Say what the checkpoint consists of; fetch what the exchange left out."""
        if shared.is_known:
            manifest = Manifest.of(shared.files, shared.directories)
            if absent := self._store.tag(registry, uuid, manifest):
                raise ContentError(f"{len(absent)} files of checkpoint {uuid} were removed while they arrived")
            return None
        assert self._remote is not None  # what has no digests was listed there
        return pull(
            self._store,
            self._remote,
            registry=registry,
            uuid=uuid,
            settings=self._settings,
            expected_sizes=sizes,
            partial=partial,
        )

    def _compare(self, registry: str, uuid: str, *, leads: bool) -> None:
        """See that all hosts have the same.

        Raises:
            ContentError: they do not: the checkpoint was replaced at its origin meanwhile.
        """

        def mine() -> bytes:
            manifest = self._store.resolve(registry, uuid) if leads else None
            return manifest.digest.hex.encode() if manifest is not None else b""

        told = self._group.gather(self._together(mine))
        if len({told[rank] for rank in self._leaders}) != 1:
            raise ContentError(f"the hosts of the job have different files of checkpoint {uuid}; load it again")


def _said(error: Exception) -> bytes:
    mark = "~" if isinstance(error, ALONE) else "!"
    text = str(error) if isinstance(error, CasError) else f"{type(error).__name__}: {error}"
    return f"{mark}{text:.2000}".encode("utf-8", "replace")


def _held(data: bytes) -> Held:
    return {int(file): [Range(*span) for span in spans] for file, spans in json.loads(data).items()}


def _can_be_shared(entry: FileEntry) -> bool:
    """Whether ranges of a file can be read one by one; of others each host reads its own."""
    return entry.digest is not None or (entry.identity is not None and entry.identity.has_validator)


class _Declared:
    """Asks for the checksum to verify a file by, if the listing does not suggest one."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def of(self, file: RemoteFile) -> Checksum | None:
        likely = checksums.choose(self._session.remote.likely_checksums(file), md5=True)
        return likely if likely is not None and file.size <= BLOCK else self._session.declared(file)


class _NoRemote:
    """The remote of a checkpoint that has no origin: nothing is ever asked of it."""

    url = "no origin"

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


# --- one host's files --------------------------------------------------------------------------------------------


class _HostFiles:
    """The files of one host: what it has, what it reads for others, and what arrives."""

    def __init__(self, session: Session, shared: _Shared, known: dict[int, Digest]) -> None:
        self._session = session
        self._shared = shared
        self._known = known
        self._open: dict[int, tuple[Staging, Ingest, Verifier | None]] = {}
        self._small: Staging | None = None
        self._loaded: list[Any] = []
        self._advance: Callable[[int], None] = lambda count: None

    def held(self) -> dict[int, list[tuple[int, int]]]:
        """Return which ranges of which files are here: whole files, and what an interrupted pull left."""
        found: dict[int, list[tuple[int, int]]] = {}
        for number, entry in enumerate(self._shared.files):
            if number in self._known:
                found[number] = [(0, entry.size)]
            elif entry.size > BLOCK and _can_be_shared(entry):
                gaps = self._opened(number)[1].missing
                found[number] = _without(entry.size, gaps)
        return {number: spans for number, spans in found.items() if spans}

    def start(self, rounds: Sequence[Round], host: int, advance: Callable[[int], None]) -> None:
        """Begin to read our blocks, in order, two ahead of the exchange."""
        self._advance = advance
        self._mine = iter([one for blocks in rounds for one in blocks if one.owner == host])
        self._loader = Workers(1, self._session.stop, "cas-block")
        self._readers = Workers(self._session.settings.concurrency, self._session.stop, "cas-share")
        self._loader.__enter__()
        self._readers.__enter__()
        for _ in range(2):
            self._load_ahead()

    def _load_ahead(self) -> None:
        if (block := next(self._mine, None)) is not None:
            self._loaded.append(self._loader.submit(self._read, block))

    def next_block(self) -> bytearray:
        """Return the bytes of our next block."""
        future = self._loaded.pop(0)
        data: bytearray = wait_all([future], self._session.stop)[0]
        self._load_ahead()
        return data

    def close(self) -> None:
        """Leave what is partial for whoever goes on."""
        for pool in (getattr(self, "_loader", None), getattr(self, "_readers", None)):
            if pool is not None:
                pool.__exit__(None)
                pool.join(1.0)
        for staging, ingest, _ in self._open.values():
            ingest.leave()
            staging.abandon()
        if self._small is not None:
            self._small.close()

    # --- reading ---------------------------------------------------------------------------------------------

    def _read(self, block: Block) -> bytearray:
        data = bytearray(block.size)
        view, at = memoryview(data), 0
        jobs = []
        for part in block.parts:
            for start, end in split([Range(part.start, part.end)], REQUEST):
                place = view[at : at + end - start]
                jobs.append(self._readers.submit(self._read_part, part.file, start, place))
                at += end - start
        wait_all(jobs, self._session.stop)
        return data

    def _read_part(self, number: int, start: int, place: memoryview) -> None:
        entry = self._shared.files[number]
        if number in self._known:
            path = self._session.store.blobs.locate(self._known[number])
            if path is None:
                raise ContentError(f"{entry.path} was removed while it was sent to other hosts")
            _read_file(os.fspath(path), start, place)
        elif number in self._open and not _overlaps(self._open[number][1].missing, start, start + len(place)):
            _read_file(os.fspath(self._open[number][1].path), start, place)
        else:
            self._fetch(_remote_file(entry), start, place)

    def _fetch(self, file: RemoteFile, start: int, place: memoryview) -> None:
        at = 0
        for piece in self._session.remote.read(file, start, start + len(place)):
            self._session.proceed()
            place[at : at + len(piece)] = piece
            at += len(piece)
        if at != len(place):
            raise ContentError(f"{file.identity.url}: {at} bytes came, and {len(place)} were asked for")

    # --- writing ---------------------------------------------------------------------------------------------

    def write(self, block: Block, data: memoryview) -> None:
        """Take what arrived; a file that is whole is checked and committed."""
        at = 0
        for part in block.parts:
            piece = data[at : at + part.length]
            at += part.length
            if part.file not in self._known:
                self._take(part, piece)
            self._advance(part.length)

    def _take(self, part: Part, data: memoryview) -> None:
        entry = self._shared.files[part.file]
        if part.length == entry.size and part.file not in self._open:
            self._put(part.file, bytes(data))
            return
        staging, ingest, verifier = self._opened(part.file)
        for gap in ingest.missing:
            start, end = max(gap.start, part.start), min(gap.end, part.end)
            if start < end:
                ingest.write_at(start, data[start - part.start : end - part.start])
        if not ingest.missing:
            self._commit(part.file, staging, ingest, verifier)

    def _opened(self, number: int) -> tuple[Staging, Ingest, Verifier | None]:
        if number not in self._open:
            entry, checksum = self._shared.files[number], self._shared.declared[number]
            if entry.identity is not None:
                key, source = unit_of(_remote_file(entry)).key, entry.identity.key
            else:
                key = source = f"blob {entry.digest}"
            verifier = Verifier(checksum) if checksum is not None else None
            staging = self._session.store.staging(key)
            ingest = staging.ingest(entry.size, source=source, followers=(verifier,) if verifier else ())
            self._open[number] = (staging, ingest, verifier)
        return self._open[number]

    def _commit(self, number: int, staging: Staging, ingest: Ingest, verifier: Verifier | None) -> None:
        entry = self._shared.files[number]
        del self._open[number]
        try:
            digest = ingest.digest()
            if verifier is not None and not verifier.matches:
                ingest.abort()
                expected, actual = str(verifier.checksum), f"{verifier.checksum.kind}:{verifier.value.hex()}"
                raise DigestMismatchError(str(entry.path), expected=expected, actual=actual)
            if verifier is None and entry.digest is None and self._session.strict:
                raise unvouched(_remote_file(entry))
            ingest.commit(entry.digest)
        except DigestMismatchError:
            ingest.abort()
            raise
        finally:
            staging.close()
        self._note(number, digest, verifier.proof if verifier is not None else LENGTH_ONLY)

    def _put(self, number: int, data: bytes) -> None:
        """Take a small file."""
        entry, checksum = self._shared.files[number], self._shared.declared[number]
        proof = LENGTH_ONLY
        if checksum is not None and checksums.matches(checksum, data):
            proof = checksums.proof(checksum)
        elif checksum is not None and checksum.kind != "md5":
            checksums.require(checksum, data, str(entry.path))
        elif entry.digest is None and (checksum is not None or self._session.strict):
            return  # an ETag that looks like an MD5 need not be one: this host's own pull looks closer
        if entry.digest is not None and (found := Digest.of(data)) != entry.digest:
            raise DigestMismatchError(str(entry.path), expected=str(entry.digest), actual=str(found))
        if self._small is None:
            self._small = self._session.store.staging("files from other hosts")
        self._note(number, self._small.put(data), proof)

    def _note(self, number: int, digest: Digest, proof: str) -> None:
        entry = self._shared.files[number]
        self._known[number] = digest
        if entry.identity is not None:
            self._session.committed(_remote_file(entry), digest, proof)

    def finish_empty(self) -> None:
        """Take the files that have no bytes: nobody sends them."""
        for number, entry in enumerate(self._shared.files):
            if not entry.size and number not in self._known and _can_be_shared(entry):
                self._put(number, b"")


def _remote_file(entry: FileEntry) -> RemoteFile:
    assert entry.identity is not None  # what has no identity is in somebody's store, and is not fetched
    return RemoteFile(entry.path, entry.size, entry.identity, entry.executable)


def _without(size: int, gaps: Sequence[Range]) -> list[tuple[int, int]]:
    found, at = [], 0
    for gap in (*gaps, Range(size, size)):
        if gap.start > at:
            found.append((at, gap.start))
        at = gap.end
    return found


def _overlaps(ranges: Sequence[Range], start: int, end: int) -> bool:
    return any(one.start < end and start < one.end for one in ranges)


def _read_file(path: str, start: int, place: memoryview) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        at = 0
        while at < len(place):
            count = os.preadv(fd, [place[at:]], start + at)
            if not count:
                raise ContentError(f"{path} became shorter while it was sent to other hosts")
            at += count
    finally:
        os.close(fd)
