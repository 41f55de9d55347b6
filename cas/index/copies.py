"""Where else on this disk the bytes of blobs, and what manifests say, may be found: views, and folders of users.

Nothing here is believed: who uses it hashes.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import Any

from cas.errors import CasError
from cas.index import disk, lines
from cas.index.digest import Digest
from cas.index.manifest import MAX_BYTES, FileEntry, Manifest
from cas.index.once import once
from cas.index.paths import RelativePath
from cas.index.stamps import Stamp, StampedFiles
from cas.index.store import Store

_EXTRA = "metadata.json"  # may be in a download without being in the manifest


def peek_manifest(store: Store, digest: Digest) -> Manifest | None:
    """Return a manifest if it is here and right; one that is damaged is left where it is.

    Raises:
        ContentError: it is no manifest of this format, under the right digest.
        OSError: it cannot be read.
    """
    try:
        data = disk.read_file(store.layout.manifest(digest), MAX_BYTES)
    except FileNotFoundError:
        return None
    return Manifest.parse(data) if Digest.of(data) == digest else None


def stamped_views(store: Store) -> Iterator[tuple[str, Path, StampedFiles]]:
    """Yield of each view its name, its tree, and what its stamp says of files; not believed."""
    views = store.layout.views
    for name in disk.names(views):
        stamp = Stamp.read(views / name)
        if stamp is not None:
            yield name, views / name / "tree", stamp.files


@dataclass(frozen=True, slots=True)
class _Tree:
    """A folder that had the files of a manifest: relative path -> size and hex of the digest."""

    manifest: str
    root: Path
    files: dict[str, tuple[int, str]]

    def manifests(self) -> Iterator[Manifest]:
        """Yield what the manifest may have been."""
        entries, folders = self._entries(self.files), self._folders()
        without = [entry for entry in entries if entry.path != _EXTRA]
        for files in (entries, without):
            for directories in ([], folders):
                yield Manifest.of(files, directories)

    def _entries(self, files: dict[str, tuple[int, str]]) -> list[FileEntry]:
        return [
            FileEntry(RelativePath(path), size, Digest(hex), executable=self._is_executable(path))
            for path, (size, hex) in files.items()
        ]

    def _is_executable(self, path: str) -> bool:
        try:
            return bool((self.root / path).lstat().st_mode & 0o100)
        except OSError:
            return False

    def _folders(self) -> list[RelativePath]:
        root = os.fspath(self.root)
        found = [above[len(root) + 1 :] for above, folders, names in os.walk(root) if not folders and not names]
        return [RelativePath(path) for path in found if path]


class Copies:
    """What views and recorded downloads say of the files that lie in them."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def files(self, digest: Digest) -> list[Path]:
        """Return files that had the bytes of a blob, those in the store first; other names of its own file are none."""
        blob = _inode(self._store.layout.blob(digest))
        known = self._by_digest.get(digest.hex, [])
        return [path for path in known if (found := _inode(path)) is not None and found != blob]

    def manifest(self, digest: Digest) -> tuple[Manifest, Path] | None:
        """Return a manifest of this digest, and the folder that it was made again from."""
        for tree in self._trees:
            if tree.manifest == digest.hex:
                try:
                    for manifest in tree.manifests():
                        if manifest.digest == digest:
                            return manifest, tree.root
                except (CasError, OSError):
                    continue
        return None

    @once
    def _by_digest(self) -> dict[str, list[Path]]:
        found: dict[str, list[Path]] = defaultdict(list)
        for tree in self._trees:
            for path, (_, hex) in tree.files.items():
                found[hex].append(tree.root / path)
        return found

    @once
    def _trees(self) -> list[_Tree]:
        return [*self._views(), *self._targets()]

    def _views(self) -> Iterator[_Tree]:
        for name, folder, said in stamped_views(self._store):
            if (files := _plain(zip(said.paths, said.sizes, said.digests, strict=True))) is not None:
                yield _Tree(name, folder, files)

    def _targets(self) -> Iterator[_Tree]:
        last: dict[str, dict[str, Any]] = {}
        layout = self._store.layout
        homes = dict.fromkeys((layout.root, layout.notes))
        for path in sorted(path for home in homes for path in (home / "facts").glob("*.jsonl")):
            try:
                for line in lines.read(path):
                    if line.payload.get("kind") == "target" and isinstance(line.payload.get("key"), str):
                        last[line.payload["key"]] = line.payload
            except OSError:
                continue
        for key, payload in last.items():
            try:
                root = Path(os.fsdecode(bytes.fromhex(key[4:]))) if key.startswith("hex:") else Path(key)
                rows = [(path, size, hex) for path, (_, hex, size, *_) in payload["files"].items()]
                manifest = str(payload["manifest"])
            except (ValueError, KeyError, TypeError, AttributeError):
                continue
            if (files := _plain(rows)) is not None:
                yield _Tree(manifest, root, files)


def _inode(path: Path) -> tuple[int, int] | None:
    """Name a plain file, whatever path leads to it; None if there is none."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if S_ISREG(found.st_mode) else None


def _plain(rows: Iterable[tuple[object, object, object]]) -> dict[str, tuple[int, str]] | None:
    """Return rows of path, size and hex if they are that, and if no path leads out of its folder."""
    found = {}
    for path, size, hex in rows:
        try:
            name = RelativePath(path)  # type: ignore[arg-type]  # it says itself if it is no text
            Digest(hex)  # type: ignore[arg-type]
        except (CasError, TypeError):
            return None
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            return None
        found[str(name)] = (size, str(hex))
    return found
