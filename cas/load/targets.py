"""What was left in a user's folder, and whether it is still there: the facts about download targets."""

from __future__ import annotations

import contextlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from cas.index.digest import Digest
from cas.index.manifest import Manifest
from cas.index.paths import RelativePath
from cas.index.store import Store

METADATA = "metadata.json"


@dataclass(frozen=True, slots=True)
class Written:
    """A file as it was left in a target: what it is, its digest, and its lstat then."""

    kind: str  # file, hardlink, symlink
    hex: str
    signature: tuple[int, ...]

    @classmethod
    def of(cls, path: str, digest: Digest, blob: Path) -> Written:
        """Look at a file; `blob` is where the blob of this digest lies, if it is there."""
        found = os.lstat(path)
        kind = "symlink" if stat.S_ISLNK(found.st_mode) else "file"
        with contextlib.suppress(OSError):
            if kind == "file" and os.path.samestat(found, blob.stat()):
                kind = "hardlink"
        return cls(kind, digest.hex, _signature(found, kind))

    def matches(self, path: str, digest: Digest) -> bool:
        """Whether the file is as it was left, with this digest."""
        try:
            found = os.lstat(path)
        except OSError:
            return False
        return (
            digest.hex == self.hex
            and stat.S_ISLNK(found.st_mode) == (self.kind == "symlink")
            and self.signature == _signature(found, self.kind)
        )


def _signature(found: os.stat_result, kind: str) -> tuple[int, ...]:
    # Each further link to the same blob moves the change time of this one: of those the blob itself is judged.
    changed = 0 if kind == "hardlink" else found.st_ctime_ns
    return found.st_size, found.st_mtime_ns, found.st_ino, changed


@dataclass(frozen=True, slots=True)
class TargetRecord:
    """What facts say of a target."""

    manifest: str
    files: dict[str, Written]

    @classmethod
    def read(cls, store: Store, target: Path) -> TargetRecord:
        """Return what was recorded last; an empty record if there is none, or it makes no sense."""
        data = store.facts.target(target) or {}
        try:
            files = {path: Written(kind, hex, tuple(rest)) for path, (kind, hex, *rest) in data["files"].items()}
            return cls(str(data["manifest"]), files)
        except (KeyError, ValueError, TypeError, AttributeError):
            return cls("", {})

    def write(self, store: Store, target: Path) -> None:
        """Record it."""
        files = {path: [one.kind, one.hex, *one.signature] for path, one in self.files.items()}
        store.facts.add_target(target, {"manifest": self.manifest, "files": files})


def is_complete(
    store: Store, target: Path, manifest: Manifest, extra: bytes | None = None, *, owned: bool = False
) -> bool:
    """Whether a target holds all of a manifest, judged by what was recorded of it: nothing is hashed.

    With `owned`, links into the store do not count. False also where hashing would find it right: the Materializer
    tells.
    """
    place = place_of(target)
    if not place.is_dir():
        return False
    record = TargetRecord.read(store, place)
    if record.manifest != manifest.digest.hex:
        return False
    wanted = {entry.path: entry.digest for entry in manifest.files}
    if extra is not None and METADATA not in wanted:
        wanted[RelativePath(METADATA)] = Digest.of(extra)
    root = os.fspath(place)
    for path, digest in wanted.items():
        written = record.files.get(path)
        if written is None or digest is None or not written.matches(f"{root}/{path}", digest):
            return False
        if written.kind != "file" and owned:
            return False
        if written.kind != "file" and not is_blob(store, f"{root}/{path}", digest):
            return False
    return all((place / folder).is_dir() for folder in manifest.directories)


def is_blob(store: Store, path: str, digest: Digest) -> bool:
    """Whether a path leads to the very inode of a blob that can be believed."""
    blob = store.blobs.locate(digest)
    try:
        return blob is not None and os.path.samestat(os.stat(path), os.stat(blob))
    except OSError:
        return False


def place_of(target: Path) -> Path:
    """The target's one absolute name: the parent's links resolved, and its own if it leads to a folder."""
    return Path(os.path.realpath(target)) if target.is_dir() else Path(os.path.realpath(target.parent)) / target.name


# --- the work --------------------------------------------------------------------------------------------------
