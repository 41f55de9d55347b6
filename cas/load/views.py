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
import logging
import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from cas.errors import CasError, CheckpointNotFoundError, UnsafeNameError
from cas.index import disk, place, stamps
from cas.index.blobs import Located
from cas.index.digest import Digest
from cas.index.disk import Signature
from cas.index.doors import door
from cas.index.home import OVERLAYS
from cas.index.manifest import FileEntry, Manifest
from cas.index.mounts import file_system
from cas.index.paths import parents_of
from cas.index.stamps import Stamp, StampedFiles
from cas.index.store import Store, explained
from cas.load.names import check_names

log = logging.getLogger("cas.load")

# Files up to this size (bytes) are copied: one block each, and tiny files (an empty `__init__.py`) are the ones that
# thousands of checkpoints share, where ext4 stops at 65,000 names of one file. It takes a little longer: a view of
# 10,000 files of 400 bytes was made in 0.65 s where one of 10,000 links took 0.56 s.
SMALL = 4096

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
    stamp = Stamp.read(folder)
    if stamp is None or not stamp.usable or not _holds(store, stamp, folder, hashing=not stamp.this_boot):
        return None
    return _report(stamp, folder, reused=True)


def _holds(store: Store, stamp: Stamp, folder: Path, *, hashing: bool) -> bool:
    return stamp.holds(store.home, store.owners, folder / "tree", hashing=hashing)


def _report(stamp: Stamp, folder: Path, *, reused: bool) -> ViewReport:
    kinds = stamp.files.kinds
    mode = LinkMode.SYMLINK if {"symlink", "layer"} & set(kinds) else LinkMode.HARDLINK
    copied = kinds.count("copy")
    return ViewReport(folder / "tree", mode, len(kinds) - copied, copied, reused)


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


# --- building --------------------------------------------------------------------------------------------------


def _build(store: Store, manifest: Manifest, blobs: dict[Digest, Located], folder: Path) -> Stamp:
    """Make the whole view in a folder of ours, and its stamp."""
    tree = folder / "tree"
    disk.make_folder(tree, 0o755)
    check_names([*(entry.path for entry in manifest.files), *manifest.directories], folder)
    names = parents_of(entry.path for entry in manifest.files)
    names |= {*manifest.directories, *parents_of(manifest.directories)}
    for name in sorted(names):
        disk.make_folder(tree / name, 0o755)
    linker = _Linker(store, blobs, tree, store.layout.view(manifest.digest) / "tree", symlinks=_only_symlinks(store))
    files = StampedFiles.none()
    for entry in manifest.files:
        files.add(*linker.add(entry))
    folders = {}
    for name in sorted(names, reverse=True):  # the innermost first: in a closed folder nothing can be made
        folders[name] = _close(tree / name)
    folders["."] = _close(tree)
    stamp = Stamp(disk.boot_id(), _all_sealed(store, files), folders, files)
    stamp.write(folder)
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

    def add(self, entry: FileEntry) -> tuple[str, str, Digest, Signature]:
        """Put a file there; return what the stamp is to say of it."""
        assert entry.digest is not None  # _find_blobs has seen to it
        path = f"{self._tree}/{entry.path}"
        try:
            if entry.size <= SMALL:
                return entry.path, "copy", entry.digest, self._copy_small(entry, entry.digest, path)
            blob, signature = self._blobs[entry.digest]
            if entry.executable:
                return entry.path, "copy", entry.digest, self._copy_large(blob, path)
            kind = self._link(blob, path, entry.path)
            if signature.changed:  # another name is a change, too
                signature = self._store.owners.signature(os.stat(blob))
            return entry.path, kind, entry.digest, signature
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


def _all_sealed(store: Store, files: StampedFiles) -> bool:
    return store.blobs.are_sealed({Digest(hex): signature for hex, signature in files.linked()})


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
    old = Stamp.read(folder)
    if old is None or not _holds(store, old, folder, hashing=True):
        store.leases.leave(digest)
        return None
    stamp = Stamp(disk.boot_id(), _all_sealed(store, old.files), old.folders, old.files)
    stamp.write(scratch)
    try:
        disk.rename(scratch / stamps.NAME, folder / stamps.NAME)
    except OSError as error:
        log.info("cannot renew the stamp of %s: %s", folder, error)
    return _report(stamp, folder, reused=True)


def _mend(store: Store, digest: Digest, built: Path, stamp: Stamp) -> ViewReport | None:
    """Put files that were built anew into the places of wrong ones, in the view that has the name: somebody is inside.

    Return it, entered; None if it is closed, or has names that it should not have.
    """
    folder = store.layout.view(digest)
    if not store.leases.enter(digest):
        return None
    mended = None
    try:
        if _has_no_other_names(folder / "tree", stamp):
            mended = _put_right(store, folder, built, stamp)
    except OSError as error:  # somebody mends it too, or it is nothing that can be mended
        log.info("the view %s is not mended: %s", folder, error)
    if mended is None:
        store.leases.leave(digest)
        return None
    return _report(mended, folder, reused=False)


def _put_right(store: Store, folder: Path, built: Path, stamp: Stamp) -> Stamp:
    """Make the files of a view those of its new stamp; return the stamp as it is written there."""
    tree, files = folder / "tree", StampedFiles.none()
    for path, kind, hex, signature in stamp.files.rows():
        if not _is_right(tree / path, kind, hex, signature):
            _put(built / "tree" / path, tree / path)
        files.add(path, kind, Digest(hex), store.owners.signature(os.stat(tree / path)))
    folders = {name: _close(tree / name) for name in stamp.folders}
    mended = Stamp(stamp.boot, stamp.sealed, folders, files)
    disk.unlink(built / stamps.NAME)
    mended.write(built)
    disk.rename(built / stamps.NAME, folder / stamps.NAME)
    return mended


def _has_no_other_names(tree: Path, stamp: Stamp) -> bool:
    wanted = {*stamp.files.paths, *stamp.folders}
    above = len(os.fspath(tree)) + 1
    for folder, folders, names in os.walk(tree):
        if not all(f"{folder}/{name}"[above:] in wanted for name in (*folders, *names)):
            return False
    return True


def _is_right(path: Path, kind: str, hex: str, signature: Signature) -> bool:
    """Whether a file of an old view is what one that was built anew has there."""
    try:
        if kind != "copy":
            return path.stat().st_ino == signature.inode
        fd = disk.open_file(path)
    except OSError:
        return False
    try:
        return Digest.of_file(fd).hex == hex
    finally:
        os.close(fd)


def _put(new: Path, old: Path) -> None:
    """Put a file into the place of a wrong one. Both lie in folders that are closed."""
    for folder in (new.parent, old.parent):
        disk.change_mode(folder, 0o755)
    disk.rename(new, old)


def _publish(store: Store, digest: Digest, built: Path, stamp: Stamp) -> ViewReport:
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
                    return _report(stamp, folder, reused=False)
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                        raise
                found = use_view(store, digest)
                if found is not None:
                    store.leases.leave(digest)
                    return found
                if other is not None and other.inside() and (found := _mend(store, digest, built, stamp)) is not None:
                    store.leases.leave(digest)
                    return found
                if other is not None and other.close():  # it was closed, or is wrong
                    other.empty(store.layout.old_view(digest))
    except BaseException:
        store.leases.leave(digest)
        raise
    store.leases.leave(digest)
    raise CasError(f"{folder} is made and removed again and again by another process")
