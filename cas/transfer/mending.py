"""Mending a damaged blob chunk by chunk: what is whole of it is kept, the rest comes from other blobs or the origin.

What was known of its chunks before the damage says which are whole: its chunk list, or a sidecar. Nothing is rewritten
in place: the blob is made anew beside what lies in `aside/`, and must have the digest of its name.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cas.errors import DigestMismatchError
from cas.index import disk
from cas.index.chunkindex import LEAST
from cas.index.chunks import Chunk, ChunkList
from cas.index.digest import Digest
from cas.index.ingest import Ingest
from cas.index.ranges import Ranges
from cas.index.sidecar import Described
from cas.index.store import Store, explained
from cas.transfer.donations import plan_file
from cas.transfer.plan import split
from cas.transfer.remote import Remote, RemoteFile
from cas.transfer.retry import RetryingRemote
from cas.transfer.sidecars import read_sidecar
from cas.transfer.ziphints import DonorFiles

log = logging.getLogger("cas.transfer")


@dataclass(frozen=True, slots=True)
class MendReport:
    """Where a mended blob's bytes came from."""

    kept: int  # bytes that were whole
    donated: int  # from other blobs here, or the sidecar
    fetched: int  # from the origin


def can_mend(store: Store, digest: Digest, size: int) -> bool:
    """Whether what is left of a blob lies in `aside/`, and its chunks are known."""
    return bool(_remains(store, digest)) and store.chunks.get(digest, size) is not None


def mend(
    store: Store,
    digest: Digest,
    size: int,
    *,
    remote: Remote | None = None,
    file: RemoteFile | None = None,
) -> MendReport | None:
    """Bring a damaged blob back, reading only its damaged chunks; None if that cannot be done.

    Args:
        store: whose `aside/` has what is left of it.
        digest: its digest.
        size: its size in bytes.
        remote: where the same file lies, with `file` as it is listed there now.
        file: that file.

    Raises:
        RemoteError: the origin cannot be read.
        NoSpaceError, NotAllowedError: the home cannot be written.
    """
    if not (remains := _remains(store, digest)):
        return None
    described = _described(remote, file, digest) if remote is not None and file is not None else None
    chunks = store.chunks.get(digest, size) or (described.chunks if described is not None else None)
    if chunks is None:
        return None
    with (
        explained(f"cannot write into {store.home}"),
        store.staging(f"mend {digest}") as staging,
        staging.ingest(size) as ingest,
    ):
        work = _Mending(store, chunks, ingest)
        for path in remains:
            work.keep_from(path)
        kept = ingest.written
        work.take_told(described)
        work.take_from_blobs()
        donated = ingest.written - kept
        if ingest.missing and remote is not None and file is not None and file.size == size:
            work.fetch(RetryingRemote(remote), file)
        if ingest.missing:
            return None
        try:
            ingest.commit(digest, durable=True)
        except DigestMismatchError as error:
            log.info("%s cannot be mended: %s", digest, error)
            return None
    return MendReport(kept, donated, size - kept - donated)


def _remains(store: Store, digest: Digest) -> list[Path]:
    folder = store.home / "aside"
    return [folder / name for name in disk.names(folder) if name.startswith(f"{digest.hex}.")]


def _described(remote: Remote, file: RemoteFile, digest: Digest) -> Described | None:
    sidecar = read_sidecar(remote)
    files = sidecar.files if sidecar is not None else ()
    return next(
        (one for one in files if one.path == file.path and one.digest == digest and one.size == file.size), None
    )


class _Mending:
    """One blob that is made anew."""

    def __init__(self, store: Store, chunks: ChunkList, ingest: Ingest) -> None:
        self._store = store
        self._chunks = chunks
        self._ingest = ingest

    def keep_from(self, path: Path) -> None:
        """Take the chunks that are whole in a file."""
        try:
            fd = disk.open_file(path)  # a pipe would keep us waiting
        except OSError as error:
            log.info("%s cannot be read: %s", path, error)
            return
        try:
            for start, end in _runs(chunk for chunk in self._missing() if self._holds(fd, chunk, chunk.start)):
                with contextlib.suppress(EOFError):
                    self._ingest.copy_in(start, end, fd, start)
        finally:
            os.close(fd)

    def take_told(self, described: Described | None) -> None:
        """Take what the sidecar carries."""
        if described is None or described.chunks.entries != self._chunks.entries:
            return
        missing = {chunk.start for chunk in self._missing()}
        for chunk, data in described.pieces():
            if data and chunk.start in missing and chunk.holds(data):
                self._ingest.put_in(chunk.start, data)

    def take_from_blobs(self) -> None:
        """Take chunks from any blob that has them."""
        missing = list(self._missing())
        holders = self._store.chunks.holders(chunk.digest for chunk in missing if chunk.length >= LEAST)
        with DonorFiles(self._store) as files:
            for chunk in missing:
                for holder in holders.get(chunk.digest, ()):
                    fd = files.open(holder.blob)
                    if fd is not None and self._holds(fd, chunk, holder.place):
                        self._ingest.copy_in(chunk.start, chunk.start + chunk.length, fd, holder.place)
                        break

    def fetch(self, remote: RetryingRemote, file: RemoteFile) -> None:
        """Read what is still missing from the origin, in few requests."""
        for start, end in split(plan_file(file.size, (), self._ingest.written_ranges).fetch):
            with self._ingest.range(start, end) as out:
                for piece in remote.read(file, start, end):
                    out.write(piece)

    def _missing(self) -> Iterator[Chunk]:
        gaps = self._ingest.missing
        at = 0
        for chunk in self._chunks:
            while at < len(gaps) and gaps[at].end <= chunk.start:
                at += 1
            if at < len(gaps) and gaps[at].start < chunk.start + chunk.length:
                yield chunk

    @staticmethod
    def _holds(fd: int, chunk: Chunk, place: int) -> bool:
        try:
            return chunk.holds(os.pread(fd, chunk.length, place))
        except OSError:  # a sector that the disk lost
            return False


def _runs(chunks: Iterable[Chunk]) -> Ranges:
    """Return the ranges that chunks cover."""
    found = Ranges()
    for chunk in chunks:
        found.add(chunk.start, chunk.start + chunk.length)
    return found
