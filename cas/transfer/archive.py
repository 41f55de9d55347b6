"""A master's own proxy as a remote: one archive of all files, unpacked into a folder of ours and read from there.

What an archive holds is hostile until it was looked at: plain files only, under relative names, each once, of the
sizes that the checkpoint's record says. An archive that broke off is never taken for a whole one.
"""

from __future__ import annotations

import contextlib
import os
import tarfile
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from enum import StrEnum
from pathlib import Path
from typing import IO, Any, Protocol, Self
from urllib.parse import quote

from cas.errors import ContentError, TransientRemoteError, UnsafeNameError
from cas.index import disk
from cas.index.identity import RemoteIdentity
from cas.index.paths import RelativePath, check_tree
from cas.transfer.pace import Pace, TooSlowError
from cas.transfer.progress import Advance
from cas.transfer.remote import Checksum, Listing, Piece, RemoteFile

_PIECE = 1 << 20  # bytes per read
_MAX_HEADER = 1 << 20  # bytes of one name or extended header of a tar: tarfile reads them into memory
_MAX_FILES = 2_000_000
_MAX_PADDING = 64 << 20  # bytes behind the end of a tar
_BLOCK = 512  # bytes; a tar is made of them
_END = bytes(2 * _BLOCK)


class Kind(StrEnum):
    """An archive's type, as `Accept` names it: the master compares the whole text."""

    TAR = "application/x-tar"
    GZIP = "application/gzip"
    ZIP = "application/zip"


class Stream(Protocol):
    """An archive as it comes."""

    def read(self, count: int, /) -> bytes:
        """Return the next bytes, as many as there are, at most so many; no bytes at the end."""


Opener = Callable[[], AbstractContextManager[tuple[str, Stream]]]
Drawing = Callable[[], AbstractContextManager[Advance]]


class ArchiveRemote:
    """A checkpoint's files, from one archive, which is fetched once, when it is listed.

    Args:
        url: a name for messages, and of what the files' URLs begin with.
        opened: opens the archive and tells its type (a `Kind`).
        scratch: an empty folder of ours; whoever made it removes it.
        sizes: path → bytes as the record has it; names that end in `/` are folders, which archives lose.
        partial: files that the record names may be missing: the checkpoint was deleted in part.
        timeout: in so many seconds of waiting for the master, something must come (see pace.py).
        drawing: opens a line of progress.
    """

    def __init__(
        self,
        url: str,
        opened: Opener,
        scratch: Path,
        *,
        sizes: Mapping[str, int],
        partial: bool = False,
        timeout: float = 30.0,
        drawing: Drawing | None = None,
    ) -> None:
        self.url = url
        self._timeout = timeout
        self._opened = opened
        self._scratch = scratch
        self._sizes = sizes
        self._partial = partial
        self._drawing = drawing or (lambda: contextlib.nullcontext(lambda count: None))
        self._lock = threading.Lock()
        self._found: _Unpacked | None = None

    def list(self) -> Listing:
        """Fetch and unpack the archive, if that was not done; list what was in it, and the folders of the record.

        Raises:
            ContentError: a file is missing, of another size than the record's, or is no plain file.
            UnsafeNameError: a name in it cannot be kept.
            TransientRemoteError: the archive broke off.
        """
        with self._lock:
            if self._found is None:
                self._found = self._fetch()
        files = tuple(self._file(name, size) for name, size in sorted(self._found.sizes.items()))
        folders = {RelativePath(name.rstrip("/")) for name in self._sizes if name.endswith("/")}
        check_tree((file.path for file in files), folders)
        return Listing(files, tuple(sorted(folders)))

    def _file(self, name: RelativePath, size: int) -> RemoteFile:
        # With no validator: the next archive may hold other bytes, and nothing in it would say so.
        return RemoteFile(name, size, RemoteIdentity(f"{self.url}/{quote(name)}", size))

    def _fetch(self) -> _Unpacked:
        with self._drawing() as advance, self._opened() as (kind, stream):
            return self._unpack(Kind(kind), _Coming(stream, advance, Pace(self._timeout), self.url))

    def _unpack(self, kind: Kind, stream: _Coming) -> _Unpacked:
        disk.remove_tree(self._scratch / "files")
        disk.make_folder(self._scratch / "files")
        unpacked = _Unpacked(self._scratch / "files", self._sizes, self.url)
        if kind is Kind.ZIP:
            _unpack_zip(stream, self._scratch / "archive.zip", unpacked)
        else:
            _unpack_tar(stream, unpacked, gzipped=kind is Kind.GZIP)
        unpacked.require_complete(partial=self._partial)
        return unpacked

    def read(self, file: RemoteFile, start: int, end: int) -> Iterator[Piece]:
        """Yield a range of an unpacked file."""
        assert self._found is not None, "files come from a listing"
        fd = os.open(self._found.path(file.path), os.O_RDONLY | os.O_CLOEXEC)
        try:
            buffer = memoryview(bytearray(min(_PIECE, end - start)))
            while start < end:
                count = os.preadv(fd, [buffer[: end - start]], start)
                if not count:
                    raise ContentError(f"{self.url}: {file.path} was cut short after it was unpacked")
                start += count
                yield buffer[:count]
        finally:
            os.close(fd)

    def stream(self, file: RemoteFile) -> Iterator[Piece]:
        """Yield all bytes."""
        return self.read(file, 0, file.size)

    def likely_checksums(self, file: RemoteFile) -> tuple[Checksum, ...]:
        """An archive suggests none."""
        return ()

    def checksums(self, file: RemoteFile, *, thorough: bool = False) -> tuple[Checksum, ...]:
        """Return the CRC-32 that a zip has of each file; other archives have none."""
        value = None if self._found is None else self._found.crcs.get(file.path)
        return () if value is None else (Checksum("crc32", value.to_bytes(4, "big")),)

    def local_path(self, file: RemoteFile) -> None:
        """None: the unpacked files are ours, and go away."""

    def recipe(self) -> None:
        """None: a folder is read after a fork as before it."""


class _Coming:
    """A stream that tells how many bytes came, and that must keep a pace."""

    def __init__(self, stream: Stream, advance: Advance, pace: Pace, url: str) -> None:
        self._stream = stream
        self._advance = advance
        self._pace = pace
        self._url = url

    def read(self, count: int, /) -> bytes:
        began = time.monotonic()
        data = self._stream.read(count)
        try:
            self._pace.note(len(data), time.monotonic() - began)
        except TooSlowError as error:
            raise TransientRemoteError(f"{self._url}: {error}") from error
        self._advance(len(data))
        return data


class _Unpacked:
    """The files of an archive, in a folder under numbers: no name from outside is ever a path."""

    def __init__(self, folder: Path, sizes: Mapping[str, int], url: str) -> None:
        self.url = url
        self.sizes: dict[RelativePath, int] = {}
        self.crcs: dict[RelativePath, int] = {}
        self._numbers: dict[RelativePath, int] = {}
        self._folder = folder
        self._expected = sizes

    def path(self, name: RelativePath) -> Path:
        return self._folder / str(self._numbers[name])

    @contextlib.contextmanager
    def member(self, text: str, size: int) -> Iterator[IO[bytes]]:
        """Open a new file for a member, whose name and size are checked first."""
        name = RelativePath(text)
        if name in self.sizes:
            raise UnsafeNameError(name, "is twice in the archive")
        if len(self.sizes) >= _MAX_FILES:
            raise ContentError(f"{self.url}: more than {_MAX_FILES} files")
        if (expected := self._expected.get(name, size)) != size:
            raise ContentError(f"{self.url}: {name} has {size} bytes, but its record says {expected}")
        self.sizes[name], self._numbers[name] = size, len(self._numbers)
        with os.fdopen(disk.create(self.path(name)), "wb", buffering=0) as out:
            yield out

    def require_complete(self, *, partial: bool) -> None:
        check_tree(self.sizes)
        if partial:
            return
        missing = [name for name in self._expected if not name.endswith("/") and name not in self.sizes]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ContentError(f"{self.url}: {missing[0]}{more} is missing, but the checkpoint's record names it")


def _copy(source: Any, out: IO[bytes], size: int, what: str) -> None:
    left = size
    while left:
        data = source.read(min(_PIECE, left))
        if not data:
            raise TransientRemoteError(f"{what} broke off")
        disk.write(out.fileno(), data)
        left -= len(data)


# --- tar ---------------------------------------------------------------------------------------------------------


class _Header(tarfile.TarInfo):
    """A member's header; one whose extra headers would fill the memory is refused."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        found = super().frombuf(buf, encoding, errors)
        extra = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
        if found.type in (*extra, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK) and found.size > _MAX_HEADER:
            raise ContentError(f"an archive with a header of {found.size} bytes")
        return found


class _Blocks:
    """The bytes of a tar, unpacked if it is gzipped; knows whether its end came."""

    def __init__(self, stream: _Coming, *, gzipped: bool) -> None:
        self._stream = stream
        self._gzip = zlib.decompressobj(wbits=31) if gzipped else None
        self._tail = b""
        self._total = 0

    def read(self, count: int) -> bytes:
        found = self._next(count)
        self._tail = (self._tail + found)[-len(_END) :]
        self._total += len(found)
        return found

    def _next(self, count: int) -> bytes:
        if self._gzip is None:
            return self._stream.read(count)
        parts, size = [], 0
        while size < count and not self._gzip.eof:
            data = self._gzip.unconsumed_tail or self._stream.read(_PIECE)
            if not data:
                break
            parts.append(self._gzip.decompress(data, count - size))
            size += len(parts[-1])
        return b"".join(parts)

    def ends_after(self, last: int) -> bool:
        """Whether all came: two empty blocks behind the last member, and the end of what is compressed."""
        begun = self._total
        while self._total - begun < _MAX_PADDING and self.read(_PIECE):
            pass
        return self._tail == _END and self._total >= last + len(_END) and (self._gzip is None or self._gzip.eof)


def _unpack_tar(stream: _Coming, unpacked: _Unpacked, *, gzipped: bool) -> None:
    blocks, what, last = _Blocks(stream, gzipped=gzipped), f"{unpacked.url}: the archive", 0
    try:
        with tarfile.open(fileobj=blocks, mode="r|", tarinfo=_Header) as archive:  # type: ignore[call-overload]
            for member in archive:
                archive.members = []  # else it keeps every header
                last = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    raise ContentError(f"{what} has something that is no plain file: {member.name!r:.200}")
                with unpacked.member(member.name, member.size) as out:
                    _copy(archive.extractfile(member), out, member.size, what)
    except (tarfile.TarError, zlib.error, EOFError) as error:
        raise TransientRemoteError(f"{what} broke off, or is none: {error}") from error
    if not blocks.ends_after(last):
        raise TransientRemoteError(f"{what} broke off")


# --- zip ---------------------------------------------------------------------------------------------------------


def _unpack_zip(stream: _Coming, path: Path, unpacked: _Unpacked) -> None:
    what = f"{unpacked.url}: the archive"
    disk.unlink(path)
    with os.fdopen(disk.create(path), "wb", buffering=0) as out:
        while data := stream.read(_PIECE):
            disk.write(out.fileno(), data)
    try:
        with zipfile.ZipFile(path) as archive:  # the directory at its end says that it is whole
            for member in archive.infolist():
                if member.is_dir():
                    continue
                if _is_link(member):
                    raise ContentError(f"{what} has something that is no plain file: {member.filename!r:.200}")
                with unpacked.member(member.filename, member.file_size) as out, archive.open(member) as source:
                    _copy(source, out, member.file_size, what)
                unpacked.crcs[RelativePath(member.filename)] = member.CRC
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise TransientRemoteError(f"{what} broke off, or is none: {error}") from error
    finally:
        disk.unlink(path)


def _is_link(member: zipfile.ZipInfo) -> bool:
    kind = (member.external_attr >> 16) & 0o170000
    return kind not in (0, 0o100000)
