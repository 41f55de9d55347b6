"""Manifests: a checkpoint's file tree, as canonical JSON that is stored under its own digest."""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from cas.errors import ContentError
from cas.index.digest import Digest
from cas.index.identity import RemoteIdentity
from cas.index.once import once
from cas.index.paths import RelativePath, check_tree, parents_of

FORMAT = 1
MAX_BYTES = 512 << 20  # a manifest is read into memory: about two million files
MAX_SIZE = 1 << 60  # of one file, in bytes

# How a manifest begins and ends, and an entry, where no folder is empty, every file has a digest and no name is long:
# nearly all of them. Every text that an entry here can match is canonical; what is not like this, `_parse` judges.
_HEAD, _TAIL = '{"cas":"manifest","files":[', f'],"format":{FORMAT}}}\n'
_PART = r'(?!\.\.?[/"])[^"\\/\x00-\x1f\x7f-\x9f]{1,63}'  # at most 252 bytes
_PLAIN = re.compile(
    rf'\{{"digest":"blake3:([0-9a-f]{{64}})"(,"executable":true)?,"path":"({_PART}(?:/{_PART}){{0,14}})",'
    r'"size":(0|[1-9][0-9]{0,17})\}',
)


class _Fields(NamedTuple):  # made in C: a manifest has thousands
    path: RelativePath
    size: int
    digest: Digest | None
    identity: RemoteIdentity | None
    executable: bool


class FileEntry(_Fields):
    """One file of a checkpoint: its digest, or, of a file not fetched yet, its remote identity.

    In memory it may have both; a manifest holds the digest then, and no identity.

    Raises:
        ContentError: it has neither, or its size is not that of its identity.
    """

    __slots__ = ()

    def __new__(  # noqa: D102 - the class's docstring says it
        cls,
        path: RelativePath,
        size: int,
        digest: Digest | None = None,
        identity: RemoteIdentity | None = None,
        executable: bool = False,  # noqa: FBT001, FBT002 - a tuple is copied and unpickled by position
    ) -> Self:
        if digest is None and identity is None:
            raise ContentError(f"file {path!r:.200} has neither a digest nor a remote identity")
        if identity is not None and identity.size != size:
            raise ContentError(f"file {path!r:.200}: {size} bytes, but {identity.size} at its origin")
        return super().__new__(cls, path, size, digest, identity, executable)

    def to_json(self) -> dict[str, Any]:
        """Return this entry as it stands in a manifest."""
        data: dict[str, Any] = {"path": str(self.path), "size": self.size}
        if self.digest is not None:
            data["digest"] = str(self.digest)
        elif self.identity is not None:
            data["identity"] = self.identity.to_json()
        if self.executable:
            data["executable"] = True
        return data


@dataclass(frozen=True)
class Manifest:
    """A checkpoint's file tree; `files` and `directories` are sorted by path (code points).

    `directories` holds the folders that no file implies, that is, empty ones.
    """

    files: tuple[FileEntry, ...]
    directories: tuple[RelativePath, ...] = ()

    @classmethod
    def of(cls, files: Iterable[FileEntry], directories: Iterable[RelativePath] = ()) -> Self:
        """Make a manifest of entries in any order; folders that hold a file are dropped.

        Raises:
            UnsafeNameError: a name is there twice, or is a file and also a folder.
        """
        entries = tuple(sorted(files, key=lambda entry: entry.path))
        wanted = set(directories)
        check_tree((entry.path for entry in entries), wanted)
        implied = parents_of(entry.path for entry in entries)
        implied |= {parent for folder in wanted for parent in folder.parents}
        return cls(entries, tuple(sorted(folder for folder in wanted if folder not in implied)))

    @once
    def encoded(self) -> bytes:
        """The canonical bytes (docs/format.md): what is stored, and what the digest is of."""
        data: dict[str, Any] = {"cas": "manifest", "format": FORMAT}
        data["files"] = [entry.to_json() for entry in self.files]
        if self.directories:
            data["directories"] = [str(folder) for folder in self.directories]
        text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
        return text.encode("utf-8") + b"\n"

    @once
    def digest(self) -> Digest:
        """The digest of the canonical bytes."""
        return Digest.of(self.encoded)

    @once
    def by_path(self) -> dict[str, FileEntry]:
        """The entries by their path."""
        return {entry.path: entry for entry in self.files}

    @property
    def complete(self) -> bool:
        """Whether every file has a digest."""
        return all(entry.digest is not None for entry in self.files)

    @property
    def size(self) -> int:
        """The bytes of all files."""
        return sum(entry.size for entry in self.files)

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read the canonical bytes of a manifest; bytes that are not canonical are refused.

        Raises:
            ContentError: not a manifest of this format, or not canonical.
            UnsafeNameError: a hostile name.
        """
        if len(data) > MAX_BYTES:
            raise ContentError(f"manifest of {len(data)} bytes: more than {MAX_BYTES}")
        plain = cls._parse_plain(data)
        if plain is not None:
            return plain
        try:
            return cls._parse(json.loads(data), data)
        except (ValueError, RecursionError) as error:
            raise ContentError(f"not a manifest: {error}") from error

    @classmethod
    def _parse_plain(cls, data: bytes) -> Self | None:
        """Read a manifest of the usual kind, in a quarter of the time; None: let `_parse` judge it.

        It is strict in the same way: what was read, written again, is what was there.
        """
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            return None
        rows = _PLAIN.findall(text)
        written = [
            f'{{"digest":"blake3:{hex}"{executable},"path":"{path}","size":{size}}}'
            for hex, executable, path, size in rows
        ]
        if f"{_HEAD}{','.join(written)}{_TAIL}" != text:
            return None
        paths = [path for _, _, path, _ in rows]
        folders = parents_of(paths)
        if not all(map(operator.lt, paths, paths[1:])) or not folders.isdisjoint(paths):
            return None
        proven, digest = RelativePath.proven, Digest.proven
        manifest = cls(
            tuple(
                [
                    FileEntry(proven(path), int(size), digest(hex), None, executable != "")
                    for hex, executable, path, size in rows
                ]
            )
        )
        manifest.__dict__["encoded"] = data
        return manifest

    @classmethod
    def _parse(cls, document: object, data: bytes) -> Self:
        if not isinstance(document, dict) or document.get("cas") != "manifest":
            raise ContentError("not a manifest")
        if document.get("format") != FORMAT:
            raise ContentError(f"manifest format {document.get('format')!r:.20}: this cas reads {FORMAT}")
        files, folders = document.get("files"), document.get("directories", [])
        if not isinstance(files, list) or not isinstance(folders, list):
            raise ContentError("not a manifest: files and directories must be lists")
        manifest = cls.of(map(_parse_entry, files), map(RelativePath, folders))
        if manifest.encoded != data:
            raise ContentError("manifest is not in canonical form")
        return manifest


def _parse_entry(data: object) -> FileEntry:
    if not isinstance(data, dict):
        raise ContentError(f"not a file of a manifest: {data!r:.120}")
    path = RelativePath(data.get("path", ""))
    size = data.get("size")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= MAX_SIZE:
        raise ContentError(f"manifest: size of {path!r} is {size!r:.40}")
    digest = Digest.parse(data["digest"]) if "digest" in data else None
    identity = RemoteIdentity.from_json(data["identity"]) if "identity" in data else None
    return FileEntry(path, size, digest, identity, data.get("executable") is True)


def digests_of(manifest: Manifest) -> Iterator[Digest]:
    """Yield the digests of a manifest's files, each once."""
    yield from dict.fromkeys(entry.digest for entry in manifest.files if entry.digest is not None)
