"""The files of one host of a job: what it has, what it reads for others, and what arrives from them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from cas.errors import ContentError, DigestMismatchError
from cas.index.digest import Digest
from cas.index.ingest import Ingest
from cas.index.ranges import Range
from cas.index.space import Need, left_over, require_room
from cas.index.staging import Staging
from cas.transfer import checksums
from cas.transfer.checksums import LENGTH_ONLY, Verifier
from cas.transfer.exchange import Block, Part, Round
from cas.transfer.plan import split, unit_of
from cas.transfer.remote import RemoteFile
from cas.transfer.session import Session, unvouched
from cas.transfer.settling import Unclear, Word
from cas.transfer.shared_files import SharedFiles, can_be_shared, remote_file
from cas.transfer.watched import Watch
from cas.transfer.workers import Workers, wait_all

BLOCK = 16 << 20  # bytes that a host sends at once; with many hosts less, so that a round stays below rounds.ROUND
_SMALL = "files from other hosts"
REQUEST = 4 << 20  # bytes per request: a block is read by several threads


class HostFiles:
    """The files of one host: what it has, what it reads for others, and what arrives."""

    def __init__(self, session: Session, shared: SharedFiles, known: dict[int, Digest], watch: Watch) -> None:
        self._session = session
        self._watch = watch
        self._shared = shared
        # What this Python cannot compute vouches for nothing here: all hosts compare their digests at the end.
        self._declared = [
            one if one is not None and checksums.start(one.kind) is not None else None for one in shared.declared
        ]
        self._known = known
        self.unclear = Unclear(session, shared)
        self._open: dict[int, tuple[Staging, Ingest, Verifier | None]] = {}
        self._small: Staging | None = None
        self._loaded: list[Any] = []
        self._advance: Callable[[int], None] = lambda count: None

    def require_room(self, doing: str) -> None:
        """Refuse what will not fit, before anything is written; `doing` is what cannot be done then.

        Raises:
            NoSpaceError: what is missing has no room in this home.
        """
        store = self._session.store
        wanted = self._lacking()
        size = sum(
            max(self._size(number) - (left_over(store.layout, self._key(number)) if self._is_resumed(number) else 0), 0)
            for number in wanted
        )
        require_room(store, Need(store.home, size, len(wanted)), doing)

    def folders(self) -> list[Path]:
        """Return where in the store what is missing is written as it arrives."""
        layout = self._session.store.layout
        keys = [self._key(number) for number in self._lacking() if self._is_resumed(number)]
        return [layout.ingest(key) for key in (_SMALL, *keys)]

    def _lacking(self) -> list[int]:
        return [number for number in range(len(self._shared.files)) if number not in self._known]

    def _size(self, number: int) -> int:
        """Return how many bytes of a file are wanted here; of one that each host pulls by itself, all."""
        parts = self._shared.parts.get(number)
        return self._shared.files[number].size if parts is None else sum(one.length for one in parts)

    def _is_resumed(self, number: int) -> bool:
        """Whether a file comes in several parts, and those that an interrupted pull left are used."""
        return self._shared.files[number].size > BLOCK or number in self._shared.parts

    def held(self) -> dict[int, list[tuple[int, int]]]:
        """Return which ranges of which files are here: whole files, and what an interrupted pull left."""
        found: dict[int, list[tuple[int, int]]] = {}
        for number, entry in enumerate(self._shared.files):
            if number in self._known:
                found[number] = [(0, entry.size)]
            elif self._is_resumed(number) and can_be_shared(entry):
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
        """Stop what is being read, and leave what is partial for whoever goes on."""
        self._session.stop.set()
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
            self._fetch(remote_file(entry), start, place)
        self._watch.notice()

    def _fetch(self, file: RemoteFile, start: int, place: memoryview) -> None:
        at = 0
        for piece in self._session.remote.read(file, start, start + len(place)):
            self._session.proceed()
            self._session.looked(len(piece))
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
            self._watch.notice()
            self._advance(part.length)

    def _take(self, part: Part, data: memoryview) -> None:
        entry = self._shared.files[part.file]
        if part.length == entry.size and not self._is_resumed(part.file) and part.file not in self._open:
            self._put(part.file, bytes(data))
            return
        staging, ingest, verifier = self._opened(part.file)
        for gap in ingest.missing:
            start, end = max(gap.start, part.start), min(gap.end, part.end)
            if start < end:
                ingest.write_at(start, data[start - part.start : end - part.start])
        if not ingest.missing and part.file not in self._shared.parts:  # whoever wants all of it checks it
            self._commit(part.file, staging, ingest, verifier)

    def _opened(self, number: int) -> tuple[Staging, Ingest, Verifier | None]:
        if number not in self._open:
            entry, checksum = self._shared.files[number], self._declared[number]
            key = self._key(number)
            source = entry.identity.key if entry.identity is not None else key
            verifier = Verifier(checksum) if checksum is not None else None
            staging = self._session.store.staging(key)
            ingest = staging.ingest(entry.size, source=source, followers=(verifier,) if verifier else ())
            self._open[number] = (staging, ingest, verifier)
        return self._open[number]

    def _key(self, number: int) -> str:
        """Name the folder of a file that comes in several parts: as any pull names it."""
        entry = self._shared.files[number]
        return unit_of(remote_file(entry)).key if entry.identity is not None else f"blob {entry.digest}"

    def _commit(self, number: int, staging: Staging, ingest: Ingest, verifier: Verifier | None) -> None:
        entry = self._shared.files[number]
        del self._open[number]
        try:
            digest = ingest.digest()
            if verifier is not None and not verifier.matches:
                expected, actual = str(verifier.checksum), f"{verifier.checksum.kind}:{verifier.value.hex()}"
                raise DigestMismatchError(str(entry.path), expected=expected, actual=actual)
            if verifier is None and entry.digest is None and self._session.strict:
                raise unvouched(remote_file(entry))
            ingest.commit(entry.digest)
        except BaseException:
            ingest.abort()
            raise
        finally:
            staging.close()
        self._note(number, digest, verifier.proof if verifier is not None else LENGTH_ONLY)

    def _put(self, number: int, data: bytes) -> None:
        """Take a small file."""
        entry, checksum = self._shared.files[number], self._declared[number]
        if entry.digest is not None and (found := Digest.of(data)) != entry.digest:
            raise DigestMismatchError(str(entry.path), expected=str(entry.digest), actual=str(found))
        is_right = checksum is not None and checksums.matches(checksum, data)
        is_unclear = number in self._shared.likely and not is_right
        if checksum is not None and not is_right and not is_unclear:
            checksums.require(checksum, data, str(entry.path))
        if checksum is None and entry.digest is None and self._session.strict and not is_unclear:
            return  # this host's own pull says what is missing
        if self._small is None:
            self._small = self._session.store.staging(_SMALL)
        digest = self._small.put(data)
        if is_unclear:
            self.unclear.add(number, digest)
        else:
            self._note(number, digest, checksums.proof(checksum) if checksum is not None else LENGTH_ONLY)

    def _note(self, number: int, digest: Digest, proof: str) -> None:
        entry = self._shared.files[number]
        self._known[number] = digest
        if entry.identity is not None:
            self._session.committed(remote_file(entry), digest, proof)

    def known_of(self, numbers: Iterable[int]) -> list[Word]:
        """Say what is known here of files that are unclear to some host."""
        known = {number: self._known[number] for number in numbers if number in self._known}
        identities = {number: self._shared.files[number].identity for number in known}
        facts = self._session.store.facts.origins(one for one in identities.values() if one is not None)
        return [
            (number, str(digest), facts[identity].proof)
            for number, digest in known.items()
            if (identity := identities[number]) in facts and facts[identity].digest == digest
        ]

    def settle(self, words: Iterable[Word]) -> None:
        """Take the files that are clear by what hosts told of them."""
        for number, digest, proof in self.unclear.take(words):
            self._note(number, digest, proof)

    def finish_empty(self) -> None:
        """Take the files that have no bytes: nobody sends them."""
        for number, entry in enumerate(self._shared.files):
            if not entry.size and number not in self._known and can_be_shared(entry):
                self._put(number, b"")


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
