"""Views: a read-only folder that looks like a checkpoint, made of links to blobs.

::

    views/<manifest>/
      stamp.json     what the files' stat said when the view was made, in which boot, and whether the blobs were sealed
      tree/          what is handed out: folders 0555, files 0444 (0555 if executable)
      users/         the door: who is inside

A view is built in a folder of our own in `ingest/` and published with one rename. It is used again as long as every
file's stat is as in the stamp: that needs neither SQLite nor a lock nor a hash. Who is given a view is inside of it, so
it stays, until that process ends or leaves it (`store.leases.leave`).
"""

from __future__ import annotations

import errno
import json
import logging
import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from cas.errors import CasError, CheckpointNotFoundError, UnsafeNameError
from cas.index import disk, place
from cas.index.blobs import Located
from cas.index.digest import Digest
from cas.index.disk import Signature
from cas.index.doors import door
from cas.index.home import OVERLAYS
from cas.index.manifest import MAX_BYTES, FileEntry, Manifest
from cas.index.mounts import file_system
from cas.index.paths import parents_of
from cas.index.store import Store, explained
from cas.load.names import check_names

log = logging.getLogger("cas.load")

# Files up to this size (bytes) are copied: one block each, and tiny files (an empty `__init__.py`) are the ones that
# thousands of checkpoints share, where ext4 stops at 65,000 names of one file. It takes a little longer: a view of
# 10,000 files of 400 bytes was made in 0.65 s where one of 10,000 links took 0.56 s.
SMALL = 4096

_FORMAT = 1
_ATTEMPTS = 5  # to publish, while other processes publish and remove the same view


class LinkMode(StrEnum):
    """How a view's larger files are linked."""

    HARDLINK = "hardlink"
    SYMLINK = "symlink"  # where this disk, or this user, gives a blob no second name


@dataclass(frozen=True, slots=True)
class ViewReport:
    """A view that can be handed out, and what it is made of."""

    path: Path
    mode: LinkMode
    linked: int
    copied: int
    reused: bool = False


class AbsentBlobsError(CheckpointNotFoundError):
    """Blobs that a view needs are not in the store: `digests` names them; fetch them and try again."""

    def __init__(self, digests: tuple[Digest, ...], paths: tuple[str, ...]) -> None:
        self.digests = digests
        self.paths = paths
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        super().__init__(f"{paths[0]}{more}: not in the store")


def make_view(store: Store, manifest: Manifest) -> ViewReport:
    """Return the view of a manifest, entered: the one that is there, if it can be believed, else a new one.

    Raises:
        AbsentBlobsError: blobs are not here, or were damaged and are aside now.
        UnsafeNameError: this disk cannot tell two of the names apart.
    """
    found = use_view(store, manifest.digest)
    if found is not None:
        return found
    with explained(f"cannot make a view in {store.home}"):
        try:
            return _make(store, manifest)
        except AbsentBlobsError:
            _find_blobs(store, manifest)  # this one names all of them
            raise
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            longest = max((entry.path for entry in manifest.files), key=len, default="")
            raise UnsafeNameError(longest[:200], f"too long below {store.home}; choose a shorter CAS_HOME") from error


def _make(store: Store, manifest: Manifest) -> ViewReport:
    blobs = _find_blobs(store, manifest, larger_than=SMALL)  # the others are read, which proves more
    staging = store.building(manifest.digest)
    try:
        found = _renew(store, manifest.digest, staging.folder)
        if found is None:
            stamp = _build(store, manifest, blobs, staging.folder / "view")
            found = _publish(store, manifest.digest, staging.folder / "view", stamp)
            if store.layout.views_outside:
                place.sweep(store.layout.views)
        return found
    finally:
        staging.close()


def use_view(store: Store, digest: Digest) -> ViewReport | None:
    """Return the view of a manifest, entered, if it is there and can be believed by its stamp."""
    if not store.leases.enter(digest):
        return None
    found = find_view(store, digest)
    if found is None:
        store.leases.leave(digest)
    elif store.layout.views_outside:
        place.note_use(store.layout.view(digest))
    return found


def find_view(store: Store, digest: Digest) -> ViewReport | None:
    """Return the view of a manifest if it is there and can be believed by its stamp; only looks."""
    folder = store.layout.view(digest)
    stamp = _Stamp.read(folder / "stamp.json")
    if stamp is None or not stamp.usable or not stamp.holds(store, folder / "tree", hashing=not stamp.this_boot):
        return None
    return stamp.report(folder / "tree", reused=True)


def _find_blobs(store: Store, manifest: Manifest, *, larger_than: int = -1) -> dict[Digest, Located]:
    """Return where the blobs of a manifest that are larger than so many bytes lie, each looked at.

    Raises:
        AbsentBlobsError: some are not here.
    """
    wanted = {entry.digest: entry.size for entry in manifest.files if entry.digest and entry.size > larger_than}
    found = store.blobs.locate_all(wanted)
    if len(found) < len(wanted) or not manifest.complete:
        absent: dict[Digest, str] = {}
        unknown: list[str] = []
        for entry in manifest.files:
            if entry.digest is None:
                unknown.append(entry.path)
            elif entry.digest in wanted and entry.digest not in found:
                absent.setdefault(entry.digest, entry.path)
        raise AbsentBlobsError(tuple(absent), (*absent.values(), *unknown))
    return found


# --- the stamp -------------------------------------------------------------------------------------------------


# What a stamp says of one file: its path; link, symlink, copy, or layer (a symlink out of the home); the signature
# (size, modification time, inode); the hex of its digest; maybe the time of its last change. Lists as they stand in the
# JSON: ten thousand of them are read in milliseconds.
_Row = list[Any]
_PATH, _KIND, _HEX, _CHANGED = 0, 1, 5, 6


def _row(path: str, kind: str, signature: Signature, digest: Digest) -> _Row:
    changed = [signature.changed] if signature.changed else []
    return [path, kind, signature.size, signature.mtime_ns, signature.inode, digest.hex, *changed]


def _signature_of(row: _Row) -> Signature:
    return Signature(*row[2:5], *row[_CHANGED:])


@dataclass(frozen=True, slots=True)
class _Stamp:
    boot: str | None
    sealed: bool  # the linked blobs were, so their signatures count in later boots too
    folders: dict[str, int]  # relative path -> mtime_ns: tells of names that were added
    files: list[_Row]

    @classmethod
    def read(cls, path: Path) -> _Stamp | None:
        """Return a stamp, or None if there is none that is whole."""
        try:
            data = json.loads(disk.read_file(path, MAX_BYTES))
            if data["format"] != _FORMAT:
                return None
            return cls(data["boot"], data["sealed"], dict(data["folders"]), list(data["files"]))
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def write(self, path: Path) -> None:
        data = {"cas": "view", "format": _FORMAT, "boot": self.boot, "sealed": self.sealed}
        text = json.dumps({**data, "folders": self.folders, "files": self.files}, separators=(",", ":"))
        fd = disk.create(path, 0o644)
        try:
            disk.write(fd, text.encode("utf-8"))
        finally:
            os.close(fd)

    @property
    def this_boot(self) -> bool:
        return self.boot is not None and self.boot == disk.boot_id()

    @property
    def usable(self) -> bool:
        return self.this_boot or self.sealed is True

    def holds(self, store: Store, tree: Path, *, hashing: bool) -> bool:
        """Whether every file is as the stamp says, and links lead to the blobs that have their names now.

        `hashing`: the copies, which are small and were never synced, are read too.
        """
        blobs, trust = os.fspath(store.home / "blobs"), store.owners.trust
        root = None
        try:
            root = os.open(tree, os.O_RDONLY | os.O_CLOEXEC)  # ten thousand names below it need not be walked to
            for folder, mtime in self.folders.items():
                if os.stat(folder, dir_fd=root, follow_symlinks=False).st_mtime_ns != mtime:
                    return False
            for path, kind, size, mtime, inode, hex, *changed in self.files:
                found = os.stat(path, dir_fd=root)
                if found.st_ino != inode or found.st_mtime_ns != mtime or found.st_size != size:
                    return False
                if changed != ([] if trust(found) else [found.st_ctime_ns]):
                    return False
                if kind == "copy":
                    if hashing and Digest.of_file(f"{tree}/{path}").hex != hex:
                        return False
                elif kind != "layer" and os.stat(f"{blobs}/{hex[:2]}/{hex[2:]}").st_ino != inode:
                    return False  # the blob was damaged and repaired: this is the bad one's inode
        except (OSError, ValueError, TypeError):  # it is gone, or the stamp makes no sense
            return False
        finally:
            if root is not None:
                os.close(root)
        return True

    def report(self, tree: Path, *, reused: bool) -> ViewReport:
        kinds = [row[_KIND] for row in self.files]
        mode = LinkMode.SYMLINK if {"symlink", "layer"} & set(kinds) else LinkMode.HARDLINK
        copied = kinds.count("copy")
        return ViewReport(tree, mode, len(kinds) - copied, copied, reused)


# --- building --------------------------------------------------------------------------------------------------


def _build(store: Store, manifest: Manifest, blobs: dict[Digest, Located], folder: Path) -> _Stamp:
    """Make the whole view in a folder of ours, and its stamp."""
    tree = folder / "tree"
    disk.make_folder(tree, 0o755)
    check_names([*(entry.path for entry in manifest.files), *manifest.directories], folder)
    names = parents_of(entry.path for entry in manifest.files)
    names |= {*manifest.directories, *parents_of(manifest.directories)}
    for name in sorted(names):
        disk.make_folder(tree / name, 0o755)
    linker = _Linker(store, blobs, tree, store.layout.view(manifest.digest) / "tree", symlinks=_only_symlinks(store))
    files = [linker.add(entry) for entry in manifest.files]
    folders = {}
    for name in sorted(names, reverse=True):  # the innermost first: in a closed folder nothing can be made
        folders[name] = _close(tree / name)
    folders["."] = _close(tree)
    stamp = _Stamp(disk.boot_id(), _all_sealed(store, files), folders, files)
    stamp.write(folder / "stamp.json")
    return stamp


def _close(folder: Path) -> int:
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        disk.set_mode(fd, 0o555)
        return os.fstat(fd).st_mtime_ns
    finally:
        os.close(fd)


class _Linker:
    """Puts files into a view, each in the way that this disk allows."""

    def __init__(self, store: Store, blobs: dict[Digest, Located], tree: Path, final: Path, *, symlinks: bool) -> None:
        self._store = store
        self._blobs = blobs
        self._tree = os.fspath(tree)
        self._final = final  # where the tree will lie
        self._home = os.fspath(store.home) + os.sep
        self._names = os.fspath(store.home / "blobs")
        self._symlinks = symlinks

    def add(self, entry: FileEntry) -> _Row:
        assert entry.digest is not None  # _find_blobs has seen to it
        path = f"{self._tree}/{entry.path}"
        try:
            if entry.size <= SMALL:
                return _row(entry.path, "copy", self._copy_small(entry, entry.digest, path), entry.digest)
            blob, signature = self._blobs[entry.digest]
            if entry.executable:
                return _row(entry.path, "copy", self._copy_large(blob, path), entry.digest)
            kind = self._link(blob, path, entry.path)
            if signature.changed:  # another name is a change, too
                signature = self._store.owners.signature(os.stat(blob))
            return _row(entry.path, kind, signature, entry.digest)
        except FileNotFoundError as error:
            raise AbsentBlobsError((entry.digest,), (entry.path,)) from error

    def _copy_small(self, entry: FileEntry, digest: Digest, path: str) -> Signature:
        data = self._read_small(digest, entry.size)
        return self._store.owners.signature(disk.write_new(path, data, 0o555 if entry.executable else 0o444))

    def _read_small(self, digest: Digest, size: int) -> bytes:
        """Return the bytes of a small blob; only one that is not where it should be, or is wrong, is looked for."""
        hex = digest.hex
        try:
            data = disk.read_start(f"{self._names}/{hex[:2]}/{hex[2:]}", SMALL + 1)
            if digest.fits(data):
                return data
        except OSError:
            log.debug("blob %s is not where it should be", digest)
        path = self._store.blobs.locate(digest, size)
        if path is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), digest.hex)
        data = disk.read_file(path, SMALL)
        if not digest.fits(data):
            self._store.blobs.refuse(digest, path)
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(path))
        return data

    def _copy_large(self, blob: str, path: str) -> Signature:
        if not disk.reflink(Path(blob), Path(path)):
            source = disk.open_file(blob)
            try:
                fd = disk.create(path)
                try:
                    disk.copy_range(source, fd, 0, os.fstat(source).st_size)
                finally:
                    os.close(fd)
            finally:
                os.close(source)
        fd = disk.open_file(path)
        try:
            disk.set_mode(fd, 0o555)
            return self._store.owners.signature(os.fstat(fd))
        finally:
            os.close(fd)

    def _link(self, blob: str, path: str, name: str) -> str:
        if not blob.startswith(self._home):  # a layer's: not even its number of names is changed
            disk.symlink(blob, path)
            return "layer"
        if not self._symlinks:
            try:
                disk.link(blob, path)
                return "link"
            except OSError as error:
                if not disk.is_link_refusal(error):
                    raise
                # One blob's limit, or one colleague's blob (fs.protected_hardlinks), says nothing of the next.
                self._symlinks = error.errno not in (errno.EMLINK, errno.EPERM)
        disk.symlink(self._way(blob, self._final / name), path)
        return "symlink"

    def _way(self, blob: str, final: Path) -> str:
        """Return what a symlink to a blob says: within a home the relative way, so that the home can be moved."""
        return os.path.relpath(blob, final.parent) if final.is_relative_to(self._store.home) else blob


def _all_sealed(store: Store, files: list[_Row]) -> bool:
    return store.blobs.are_sealed({Digest(row[_HEX]): _signature_of(row) for row in files if row[_KIND] != "copy"})


def _only_symlinks(store: Store) -> bool:
    """Whether hard links are not even tried: where we may only read, and on an overlay, where linking to a lower
    layer's file copies it.
    """
    return store.read_only or file_system(store.home) in OVERLAYS


# --- publishing ------------------------------------------------------------------------------------------------


def _renew(store: Store, digest: Digest, scratch: Path) -> ViewReport | None:
    """Use a view of an earlier boot whose files are right, now that its blobs have been looked at."""
    folder = store.layout.view(digest)
    if not store.leases.enter(digest):
        return None
    old = _Stamp.read(folder / "stamp.json")
    if old is None or not old.holds(store, folder / "tree", hashing=True):
        store.leases.leave(digest)
        return None
    stamp = _Stamp(disk.boot_id(), _all_sealed(store, old.files), old.folders, old.files)
    stamp.write(scratch / "stamp.json")
    try:
        disk.rename(scratch / "stamp.json", folder / "stamp.json")
    except OSError as error:
        log.info("cannot renew the stamp of %s: %s", folder, error)
    return stamp.report(folder / "tree", reused=True)


def _publish(store: Store, digest: Digest, built: Path, stamp: _Stamp) -> ViewReport:
    """Give a built view its name; one that another process published in between is used instead of ours."""
    folder = store.layout.view(digest)
    disk.make_folder(folder.parent)
    disk.make_folder(built / "users")
    store.leases.enter(digest, built=built)  # so that it is protected as soon as it has its name
    try:
        for _ in range(_ATTEMPTS):
            with door(folder) as other:
                try:
                    disk.rename(built, folder)
                    return stamp.report(folder / "tree", reused=False)
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                        raise
                found = use_view(store, digest)
                if found is not None:
                    store.leases.leave(digest)
                    return found
                if other is not None and other.close():  # it was closed, or is wrong
                    other.empty(store.layout.old_view(digest))
    except BaseException:
        store.leases.leave(digest)
        raise
    store.leases.leave(digest)
    raise CasError(f"{folder} is made and removed again and again by another process")
