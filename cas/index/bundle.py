"""Export files: checkpoints as one plain tar, for sites with no network (docs/format.md says the bytes).

Written and read as a stream. Extracted by tar(1), it is a home. Who reads one believes nothing of it: names, order,
sizes and digests are those that were announced, or reading ends.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, NoReturn, Self

import blake3

from cas.errors import ContentError, DigestMismatchError, UsageError
from cas.index import lines
from cas.index.digest import Digest
from cas.index.layout import FORMAT as STORE_FORMAT
from cas.index.layout import check_uuid, quote_registry
from cas.index.manifest import MAX_BYTES, MAX_SIZE, Manifest

FORMAT = 1
WINDOW = 1 << 20  # bytes per read
HEAD = "export.json"
_WRITER = "export.0"  # of records: no host is called so, and nobody appends to them
_MAX_HEAD = 64 << 20  # bytes of export.json: about 300,000 checkpoints
_MAX_RECORDS = 1 << 30  # bytes of one registry's records
_MAX_EXTENSION = 64 << 10  # bytes of a pax header, which tarfile reads into memory
_ORDER = ("export.json", "format.json", "manifests", "blobs", "refs", "records")
_BLOB = re.compile(r"blobs/([0-9a-f]{2})/([0-9a-f]{62})", re.ASCII)
_MANIFEST = re.compile(r"manifests/([0-9a-f]{2})/([0-9a-f]{62})\.json", re.ASCII)


@dataclass(frozen=True, slots=True, order=True)
class Exported:
    """One checkpoint of an export."""

    registry: str
    uuid: str
    manifest: Digest


@dataclass(frozen=True, slots=True)
class Head:
    """What an export says of itself, first: the store that wrote it, its checkpoints, how many blobs and bytes."""

    store: str
    checkpoints: tuple[Exported, ...]
    blobs: int
    size: int
    records: Mapping[str, int]  # registry -> lines

    @property
    def encoded(self) -> bytes:
        """The bytes of `export.json`."""
        checkpoints = [
            {"registry": one.registry, "uuid": one.uuid, "manifest": str(one.manifest)} for one in self.checkpoints
        ]
        data = {"cas": "export", "format": FORMAT, "store": self.store, "checkpoints": checkpoints}
        data |= {"blobs": self.blobs, "size": self.size, "records": dict(sorted(self.records.items()))}
        return json.dumps(data, sort_keys=True, separators=(",", ":")).encode() + b"\n"

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read `export.json` strictly.

        Raises:
            ContentError: it is not that, or of a newer format.
        """
        try:
            document = json.loads(data)
            if document["cas"] != "export":
                raise ContentError("it is no export")
            if document["format"] != FORMAT:
                raise ContentError(f"it has export format {document['format']!r:.20}, and this cas reads {FORMAT}")
            checkpoints = tuple(_exported(one) for one in document["checkpoints"])
            records = {_registry(name): _count(number) for name, number in document["records"].items()}
            store = document["store"]
            if not isinstance(store, str) or not re.fullmatch(r"[0-9a-f]{32}", store, re.ASCII):
                raise ContentError("its store has no id")
            blobs, size = _count(document["blobs"]), _count(document["size"])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, UsageError) as error:
            raise ContentError(f"its {HEAD} is damaged: {error!r:.200}") from error
        if len({(one.registry, one.uuid) for one in checkpoints}) != len(checkpoints) or not checkpoints:
            raise ContentError(f"its {HEAD} names a checkpoint twice, or none")
        return cls(store, checkpoints, blobs, size, records)


def _exported(data: Mapping[str, Any]) -> Exported:
    return Exported(_registry(data["registry"]), check_uuid(data["uuid"]), Digest.parse(data["manifest"]))


def _registry(name: object) -> str:
    if not isinstance(name, str):
        raise ContentError(f"no name of a registry: {name!r:.60}")
    quote_registry(name)
    return name


def _count(number: object) -> int:
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 1 << 63:
        raise ContentError(f"no number: {number!r:.40}")
    return number


# --- writing ---------------------------------------------------------------------------------------------------


class Writer:
    """Writes one export: `head`, every manifest, every blob, then `end`. The same content gives the same bytes."""

    def __init__(self, out: IO[bytes]) -> None:
        # Not "w|": what tarfile puts in between writes on when it is collected, whatever happened before.
        self._tar = tarfile.TarFile(fileobj=_Appended(out), mode="w", format=tarfile.PAX_FORMAT, copybufsize=WINDOW)  # type: ignore[arg-type]  # all that it needs

    def head(self, head: Head) -> None:
        """Write what the export holds, and what makes the extracted folder a home."""
        self._put(HEAD, head.encoded)
        store = Digest.of(head.encoded).hex[:32]  # the same content, the same name
        document = {"cas": "store", "format": STORE_FORMAT, "store": store, "locks": "flock"}
        self._put("format.json", json.dumps(document, indent=1).encode() + b"\n")

    def manifest(self, manifest: Manifest) -> None:
        """Write a manifest; in order of digest."""
        hex = manifest.digest.hex
        self._put(f"manifests/{hex[:2]}/{hex[2:]}.json", manifest.encoded)

    def blob(self, digest: Digest, size: int, source: IO[bytes], tell: Callable[[int], None]) -> None:
        """Write a blob, hashed as it goes; in order of digest.

        Raises:
            DigestMismatchError: it has other bytes; the export is spoiled.
        """
        hashing = _Hashing(source, tell)
        try:
            self._tar.addfile(_member(f"blobs/{digest.hex[:2]}/{digest.hex[2:]}", size), hashing)
        except OSError as error:
            if error.errno is None:  # tarfile's own word for a file that ends early
                raise ContentError(f"blob {digest} became shorter while it was exported") from error
            raise
        if (actual := Digest(hashing.hasher.hexdigest())) != digest:
            raise DigestMismatchError(f"blob {digest}", expected=str(digest), actual=str(actual))

    def end(self, head: Head, records: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        """Write refs and records, and close."""
        for one in sorted(head.checkpoints):
            self._put(f"refs/{quote_registry(one.registry)}/{one.uuid}/{one.manifest.hex}", b"")
        for registry in sorted(records):
            data = b"".join(map(lines.encode, records[registry]))
            self._put(f"records/{quote_registry(registry)}/{_WRITER}.jsonl", data, mode=0o644)
        self._tar.close()

    def _put(self, name: str, data: bytes, mode: int = 0o444) -> None:
        self._tar.addfile(_member(name, len(data), mode), io.BytesIO(data))


def _member(name: str, size: int, mode: int = 0o444) -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.size, found.mode = size, mode
    return found


class _Appended:
    """A file, or a pipe, that is only written to."""

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out
        self._written = 0

    def write(self, data: bytes) -> int:
        self._out.write(data)
        self._written += len(data)
        return len(data)

    def tell(self) -> int:
        return self._written


class _Hashing(io.RawIOBase):
    """A file whose bytes are hashed as they are read."""

    def __init__(self, source: IO[bytes], tell: Callable[[int], None]) -> None:
        self._source = source
        self._tell = tell
        self.hasher = blake3.blake3()

    def read(self, size: int = -1) -> bytes:
        data = self._source.read(size)
        self.hasher.update(data)
        self._tell(len(data))
        return data


# --- reading ---------------------------------------------------------------------------------------------------


def _refuse(*_: object) -> NoReturn:
    raise ContentError("it holds a sparse file, which no export does")


class _StrictInfo(tarfile.TarInfo):
    """A member's header, refused before tarfile acts on it if it is nothing that an export has."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str | None, errors: str) -> Self:
        found = super().frombuf(buf, encoding, errors)  # type: ignore[arg-type]  # typeshed lacks the None
        if found.type == tarfile.XHDTYPE:
            if not 0 <= found.size <= _MAX_EXTENSION:
                raise ContentError(f"a header in it has {found.size} bytes")
        elif found.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            raise ContentError(f"{found.name!r:.100} in it is no plain file")
        elif not 0 <= found.size <= MAX_SIZE:
            raise ContentError(f"{found.name!r:.100} in it has {found.size} bytes")
        return found

    _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _refuse


@dataclass(slots=True)
class Member:
    """One file of an export; read its bytes before the next one is asked for."""

    name: str
    size: int
    section: str  # the first part of its name
    digest: Digest | None  # that its name says, of a blob or a manifest
    _file: IO[bytes]

    def pieces(self) -> Iterator[bytes]:
        """Yield its bytes.

        Raises:
            ContentError: the file ends before they do.
        """
        left = self.size
        while left:
            try:
                data = self._file.read(min(WINDOW, left))
            except tarfile.TarError as error:
                raise ContentError(f"it ends in the middle of {self.name}") from error
            if not data:
                raise ContentError(f"it ends in the middle of {self.name}")
            left -= len(data)
            yield data

    def read(self, at_most: int) -> bytes:
        """Return its bytes.

        Raises:
            ContentError: they are more than `at_most`, or the file ends before they do.
        """
        if self.size > at_most:
            raise ContentError(f"{self.name} has {self.size} bytes, more than {at_most}")
        return b"".join(self.pieces())

    def manifest(self) -> Manifest:
        """Return the manifest in it.

        Raises:
            ContentError: it has other bytes than its name says, or is none.
        """
        data = self.read(MAX_BYTES)
        if Digest.of(data) != self.digest:
            said = f"its member {self.name}"
            raise DigestMismatchError(said, expected=str(self.digest), actual=str(Digest.of(data)))
        return Manifest.parse(data)

    def payloads(self) -> Iterator[dict[str, Any]]:
        """Yield the lines of a file of records.

        Raises:
            ContentError: one is damaged.
        """
        for line in self.read(_MAX_RECORDS).splitlines(keepends=True):
            payload = lines.decode(line)
            if payload is None or not line.endswith(b"\n"):
                raise ContentError(f"{self.name} has a damaged line")
            yield payload


def members(file: IO[bytes], *, seekable: bool) -> Iterator[Member]:
    """Yield the members of an export, in their order, each once.

    Raises:
        ContentError: it is no tar, or holds what no export does: links, devices, sparse files, other names, another
            order.
    """
    last = (0, "")
    try:
        with tarfile.open(fileobj=file, mode="r:" if seekable else "r|", bufsize=WINDOW, tarinfo=_StrictInfo) as tar:
            while (info := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # else tarfile keeps every header
                member = _open(tar, info)
                place = (_ORDER.index(member.section), member.name)
                if place <= last:
                    raise ContentError(f"{member.name} is there twice, or not in its place")
                last = place
                yield member
    except (tarfile.TarError, RecursionError, UnicodeError, EOFError) as error:
        raise ContentError(f"it is no tar, or damaged: {error}") from error


def _open(tar: tarfile.TarFile, info: tarfile.TarInfo) -> Member:
    name = info.name
    section = name.partition("/")[0]
    if not info.isreg() or info.issparse() or section not in _ORDER or not 0 <= info.size <= MAX_SIZE:
        raise ContentError(f"{name!r:.200} is nothing that an export has")
    digest = None
    if section in ("blobs", "manifests"):
        found = (_BLOB if section == "blobs" else _MANIFEST).fullmatch(name)
        if found is None:
            raise ContentError(f"{name!r:.200} is no name of {section}")
        digest = Digest("".join(found.groups()))
    elif section in (HEAD, "format.json") and name != section:
        raise ContentError(f"{name!r:.200} is nothing that an export has")
    file = tar.extractfile(info)
    assert file is not None, "it is a plain file"
    return Member(name, info.size, section, digest, file)


def read_head(member: Member | None) -> Head:
    """Return what an export says of itself; its first member says it.

    Raises:
        ContentError: it is no export.
    """
    if member is None or member.name != HEAD:
        raise ContentError(f"it is no export: it does not begin with {HEAD}")
    return Head.parse(member.read(_MAX_HEAD))


def ref_names(head: Head) -> set[str]:
    """Return the names of all refs of an export."""
    return {f"refs/{quote_registry(one.registry)}/{one.uuid}/{one.manifest.hex}" for one in head.checkpoints}


def record_names(head: Head) -> dict[str, str]:
    """Return the registries of an export's records by the names of the members that hold them."""
    return {f"records/{quote_registry(name)}/{_WRITER}.jsonl": name for name in head.records}


@contextlib.contextmanager
def said_of(name: str) -> Iterator[None]:
    """Begin the messages of what is wrong with an export with its name."""
    try:
        yield
    except ContentError as error:
        if str(error).startswith(("it ", "its ")):
            error.args = (f"{name}: {error}",)
        raise
