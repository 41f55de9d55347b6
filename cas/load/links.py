"""Files in a user's folder: reflinked, copied, hard-linked or symlinked from blobs; whole or not at all.

::

    with Materializer(store, target, link=Link.AUTO) as materializer:
        materializer.add(entry)                        # as soon as its blob is here; from any thread
        report = materializer.finish(manifest)         # now the target is complete

A target that does not exist is built beside its place (`.<name>.<random>.part`) and renamed. Into one that exists,
files are renamed one by one, after everything that is there has been compared; nothing of the user's is replaced.
What was written is recorded in the store's facts, so that the next call finds it complete without hashing.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import secrets
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import Enum, auto
from pathlib import Path
from typing import Self

from cas.config import Link
from cas.errors import CasError, CheckpointNotFoundError, ContentError, ForeignContentError
from cas.index import disk
from cas.index.digest import Digest
from cas.index.locks import Claim, is_abandoned
from cas.index.manifest import FileEntry, Manifest
from cas.index.paths import RelativePath
from cas.index.store import Store, explained
from cas.load.names import check_names

log = logging.getLogger("cas.load")

METADATA = "metadata.json"
_WINDOW = 1 << 20  # bytes per read while an interrupted copy is compared
_NAME = 200  # bytes of the target's name that the folder beside it repeats: with the rest it stays below 255
_PART = re.compile(r"\.[0-9a-f]{16}\.part\Z")
_UNCLAIMED = 3600  # seconds after which a folder beside a target that nobody has claimed is a dead process's


@dataclass(frozen=True, slots=True)
class LinkReport:
    """What happened in a user's folder: how many files got there how, and how many bytes were copied."""

    reflinked: int = 0
    copied: int = 0
    hardlinked: int = 0
    symlinked: int = 0
    kept: int = 0  # were there already, and right
    bytes: int = 0  # that were copied
    extra: int = 0  # files that are not the checkpoint's, left alone
    only_copies: int = 0  # were to be hard links, and were not, because they would be the only copy's

    @property
    def mode(self) -> Link | None:
        """How the most files got there; None if all were there already."""
        counts = {
            Link.REFLINK: self.reflinked,
            Link.HARDLINK: self.hardlinked,
            Link.SYMLINK: self.symlinked,
            Link.COPY: self.copied,
        }
        best = max(counts, key=lambda link: counts[link])
        return best if counts[best] else None

    @classmethod
    def unchanged(cls, manifest: Manifest) -> Self:
        """The report of a target that was complete."""
        return cls(kept=len(manifest.files))

    def __str__(self) -> str:
        words = [f"{getattr(self, name)} {name}" for name in ("reflinked", "copied", "hardlinked", "symlinked", "kept")]
        return ", ".join(word for word in words if not word.startswith("0 ")) or "nothing to do"


class _State(Enum):
    """What lies in the target where a file of the checkpoint belongs."""

    MISSING = auto()
    RIGHT = auto()
    SHORT = auto()  # an interrupted copy: the right bytes, and too few


# --- what was recorded -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Written:
    """A file as it was left in a target: what it is, its digest, and its lstat then."""

    kind: str  # file, hardlink, symlink
    hex: str
    signature: tuple[int, ...]

    @classmethod
    def of(cls, path: str, digest: Digest, blob: Path) -> _Written:
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
class _Record:
    """What facts say of a target."""

    manifest: str
    files: dict[str, _Written]

    @classmethod
    def read(cls, store: Store, target: Path) -> _Record:
        data = store.facts.target(target) or {}
        try:
            files = {path: _Written(kind, hex, tuple(rest)) for path, (kind, hex, *rest) in data["files"].items()}
            return cls(str(data["manifest"]), files)
        except (KeyError, ValueError, TypeError, AttributeError):
            return cls("", {})

    def write(self, store: Store, target: Path) -> None:
        files = {path: [one.kind, one.hex, *one.signature] for path, one in self.files.items()}
        store.facts.add_target(target, {"manifest": self.manifest, "files": files})


def is_complete(store: Store, target: Path, manifest: Manifest, extra: bytes | None = None) -> bool:
    """Whether a target holds all of a manifest, judged by what was recorded of it: nothing is hashed.

    False also where hashing would find it right: the Materializer tells.
    """
    place = _place_of(target)
    if not place.is_dir():
        return False
    record = _Record.read(store, place)
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
        if written.kind != "file" and not _is_blob(store, f"{root}/{path}", digest):
            return False
    return all((place / folder).is_dir() for folder in manifest.directories)


def _is_blob(store: Store, path: str, digest: Digest) -> bool:
    """Whether a path leads to the very inode of a blob that can be believed."""
    blob = store.blobs.locate(digest)
    try:
        return blob is not None and os.path.samestat(os.stat(path), os.stat(blob))
    except OSError:
        return False


def _place_of(target: Path) -> Path:
    """The target's one absolute name: the parent's links resolved, and its own if it leads to a folder."""
    return Path(os.path.realpath(target)) if target.is_dir() else Path(os.path.realpath(target.parent)) / target.name


# --- the work --------------------------------------------------------------------------------------------------


class Materializer:
    """Puts one checkpoint's files into one folder of the user's. `add` may be called from several threads.

    Args:
        target: the folder; made if it does not exist.
        link: how. A hard link or reflink that was asked for and cannot be made is an error.
        is_only_copy: tells which blobs have no origin: those are never hard-linked, because whoever writes to the
            user's file would destroy them.

    Raises:
        ForeignContentError: the target is there, and is no folder.
        NotAllowedError: the folder above the target cannot be written.
    """

    def __init__(
        self,
        store: Store,
        target: Path,
        *,
        link: Link = Link.AUTO,
        is_only_copy: Callable[[Digest], bool] = lambda digest: False,
    ) -> None:
        self._store = store
        self._target = _place_of(Path(os.path.abspath(target)))  # noqa: PTH100 - absolute() keeps `..`
        self._linker = _Linker(store, self._target, link, is_only_copy)
        self._lock = threading.Lock()
        self._scratch: _Scratch | None = None
        self._added: dict[str, tuple[FileEntry, _State]] = {}
        self._kept: set[str] = set()
        self._exists = os.path.lexists(self._target)
        if self._exists and not self._target.is_dir():
            raise ForeignContentError(self._target, "is there already, and is not a folder")
        self._record = _Record.read(store, self._target) if self._exists else _Record("", {})
        for folder in (self._target.parent, self._target) if self._exists else (self._target.parent,):
            _sweep(folder, _prefix_of(self._target.name))

    def add(self, entry: FileEntry) -> None:
        """Take one file whose blob is in the store. Where the target exists, it is only compared now.

        Raises:
            ForeignContentError: the target holds something else under its name.
            CheckpointNotFoundError: there is no such blob.
        """
        with _explained(self._target):
            if self._exists:
                state = self._compare(entry)
                with self._lock:
                    self._added[entry.path] = (entry, state)
                return
            with self._lock:
                known = self._added.get(entry.path)
                self._added[entry.path] = (entry, _State.MISSING)
                scratch = self._open_scratch()
            if known is None:
                self._linker.place(entry, scratch.path_for(entry.path))
            elif known[0].digest != entry.digest:  # the origin changed while it was read
                disk.unlink(scratch.path_for(entry.path))
                self._linker.place(entry, scratch.path_for(entry.path))

    def finish(self, manifest: Manifest, *, extra: bytes | None = None) -> LinkReport:
        """Complete the target and record it.

        Args:
            manifest: all files; those that were not added are now.
            extra: `metadata.json`, written if the manifest has none and the user has none there.

        Raises:
            ForeignContentError: the target holds something else under a name of the checkpoint's; it is untouched.
            UnsafeNameError: the target's disk cannot tell two of the names apart.
        """
        if METADATA in manifest.by_path:
            extra = None
        with _explained(self._target):
            for entry in manifest.files:
                if entry.path not in self._added or self._added[entry.path][0].digest != entry.digest:
                    self.add(entry)
            if not self._exists and not self._appear(manifest, extra):
                # Somebody else made the target in between: look at what they put there.
                self._exists, self._record = True, _Record.read(self._store, self._target)
                for entry in manifest.files:
                    self.add(entry)
            if self._exists:
                self._fill(manifest, extra)
            self._write_record(manifest)
            return replace(self._linker.report, kept=len(self._kept), extra=self._count_extra(manifest))

    def abort(self) -> None:
        """Remove what was built; a target that existed keeps what was there."""
        if self._scratch is not None:
            self._scratch.close()
            self._scratch = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()

    def _open_scratch(self) -> _Scratch:
        if self._scratch is None:
            parent = self._target if self._exists else self._target.parent
            self._scratch = _Scratch(parent, self._target.name)
            self._linker.adopt_mode(self._scratch.tree)
        return self._scratch

    # --- a target that is not there ------------------------------------------------------------------------

    def _appear(self, manifest: Manifest, extra: bytes | None) -> bool:
        """Rename what was built into its place; False if somebody else was quicker."""
        scratch = self._open_scratch()
        check_names([*manifest.by_path, *manifest.directories], scratch.folder)
        for folder in manifest.directories:
            disk.make_folder(scratch.tree / folder)
        for path in self._added.keys() - manifest.by_path.keys():
            disk.unlink(scratch.path_for(path))
        if extra is not None:
            self._linker.write(extra, scratch.path_for(METADATA))
        try:
            disk.rename(scratch.tree, self._target)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                return False
            if error.errno == errno.ENOTDIR:
                raise ForeignContentError(self._target, "is there already, and is not a folder") from error
            raise
        self.abort()
        return True

    # --- a target that is there ----------------------------------------------------------------------------

    def _compare(self, entry: FileEntry) -> _State:
        """Judge what lies where a file belongs; never follows a symlink out of the target."""
        path = self._target / entry.path
        for parent in entry.path.parents:
            if self._folder_state(parent) is _State.MISSING:
                return _State.MISSING
        try:
            found = path.lstat()
        except FileNotFoundError:
            return _State.MISSING
        assert entry.digest is not None  # it was added, so it is in the store
        if stat.S_ISLNK(found.st_mode) and _is_blob(self._store, os.fspath(path), entry.digest):
            return _State.RIGHT
        if not stat.S_ISREG(found.st_mode):
            raise ForeignContentError(path, "is not a plain file")
        written = self._record.files.get(entry.path)
        if found.st_size == entry.size:
            if written is not None and written.kind == "file" and written.matches(os.fspath(path), entry.digest):
                return _State.RIGHT
            if Digest.of_file(path) == entry.digest:
                return _State.RIGHT
        elif found.st_size < entry.size and not self._is_ours(path, written) and self._is_prefix(path, entry.digest):
            return _State.SHORT
        raise ForeignContentError(path, "has other content than the checkpoint's file")

    def _is_ours(self, path: Path, written: _Written | None) -> bool:
        """Whether a file is a whole one that we wrote, of another checkpoint: no interrupted copy of this one."""
        return written is not None and written.matches(os.fspath(path), Digest(written.hex))

    def _folder_state(self, folder: str) -> _State:
        path = self._target / folder
        try:
            found = path.lstat()
        except FileNotFoundError:
            return _State.MISSING
        if not stat.S_ISDIR(found.st_mode):
            raise ForeignContentError(path, "is where a folder of the checkpoint belongs")
        return _State.RIGHT

    def _is_prefix(self, path: Path, digest: Digest) -> bool:
        blob = _blob_of(self._store, digest, path.name)
        with open(path, "rb", buffering=0) as short, open(blob, "rb", buffering=0) as whole:
            while part := short.read(_WINDOW):
                if whole.read(len(part)) != part:
                    return False
        return True

    def _fill(self, manifest: Manifest, extra: bytes | None) -> None:
        """Put what is missing into a target that exists, `metadata.json` last."""
        check_names([*manifest.by_path, *manifest.directories], self._target)
        for folder in manifest.directories:
            for name in (*folder.parents, folder):
                self._folder_state(name)
        self._linker.forget()
        self._kept = {entry.path for entry in manifest.files if self._added[entry.path][1] is _State.RIGHT}
        write_extra = extra is not None and self._wants_extra(extra)
        missing = [entry for entry in manifest.files if entry.path not in self._kept]
        for entry in sorted(missing, key=lambda entry: entry.path == METADATA):
            self._put(entry, self._added[entry.path][1])
        for folder in manifest.directories:
            with self._opened([*folder.parents, folder]):
                pass
        if write_extra and extra is not None:
            built = self._open_scratch().new_path()
            self._linker.write(extra, built)
            disk.rename(built, self._target / METADATA)
        self.abort()

    def _put(self, entry: FileEntry, state: _State) -> None:
        path = self._target / entry.path
        built = self._open_scratch().new_path()
        self._linker.place(entry, built)
        for parent in entry.path.parents:
            self._folder_state(parent)
        with self._opened(entry.path.parents) as folder:
            if state is _State.MISSING and os.path.lexists(path) and self._compare(entry) is _State.RIGHT:
                return  # another process put it there
            disk.rename(built, entry.path.name if folder is not None else path, into=folder)

    @contextlib.contextmanager
    def _opened(self, folders: list[str]) -> Iterator[int | None]:
        """Make folders below the target, each within the one before; yield the last one, open.

        By descriptors, so that none of them can become a symbolic link in between. None where a system has no such
        calls: then they are only made.
        """
        if os.rename not in os.supports_dir_fd or not hasattr(os, "O_NOFOLLOW"):
            disk.make_folder(self._target.joinpath(*folders[-1:]))
            yield None
            return
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        opened = os.open(self._target, flags)
        try:
            for path in folders:
                name = path.rpartition("/")[2]
                disk.make_folder_in(opened, name)
                try:
                    inner = os.open(name, flags | os.O_NOFOLLOW, dir_fd=opened)
                except OSError as error:
                    if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                        raise
                    message = "is where a folder of the checkpoint belongs"
                    raise ForeignContentError(self._target / path, message) from error
                os.close(opened)
                opened = inner
            yield opened
        finally:
            os.close(opened)

    def _wants_extra(self, extra: bytes) -> bool:
        """Whether `metadata.json` is to be written: it is missing, torn, or an older one that we wrote."""
        path = self._target / METADATA
        try:
            found = path.lstat()
        except FileNotFoundError:
            return True
        if not stat.S_ISREG(found.st_mode):
            raise ForeignContentError(path, "is not a plain file")
        data = path.read_bytes()
        if data == extra:
            return False
        written = self._record.files.get(METADATA)
        if extra.startswith(data) or self._is_ours(path, written):
            return True
        try:
            json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ForeignContentError(path, "is not JSON") from error
        return False  # what another client, or the user, wrote stays

    # --- the end -------------------------------------------------------------------------------------------

    def _write_record(self, manifest: Manifest) -> None:
        root = os.fspath(self._target)
        files = {}
        for entry in manifest.files:
            if entry.digest is not None:
                blob = self._store.layout.blob(entry.digest)
                files[str(entry.path)] = _Written.of(f"{root}/{entry.path}", entry.digest, blob)
        path = self._target / METADATA
        if METADATA not in files and path.is_file():
            files[METADATA] = _Written.of(os.fspath(path), Digest.of_file(path), path.with_name("no blob"))
        try:
            _Record(manifest.digest.hex, files).write(self._store, self._target)
        except OSError as error:  # the files are there; the next call will hash them
            log.info("cannot record %s: %s", self._target, error)

    def _count_extra(self, manifest: Manifest) -> int:
        if not self._exists:
            return 0
        wanted = {*manifest.by_path, METADATA}
        count = sum(1 for name in _files_below(self._target) if name not in wanted)
        if count:
            log.warning(
                "%s also holds %d files that are not the checkpoint's; they were left alone", self._target, count
            )
        return count


def _files_below(root: Path) -> Iterator[str]:
    prefix = len(os.fspath(root)) + 1
    for folder, folders, files in os.walk(root):
        if len(folder) < prefix:
            folders[:] = [name for name in folders if not _is_part(name)]
        for name in files:
            yield f"{folder}/{name}"[prefix:]


# --- placing one file ------------------------------------------------------------------------------------------


class _Linker:
    """Makes files out of blobs, in the way that was asked for, and counts. Safe to call from several threads."""

    def __init__(self, store: Store, target: Path, link: Link, is_only_copy: Callable[[Digest], bool]) -> None:
        self._store = store
        self._target = target  # for messages
        self._link = link
        self._is_only_copy = is_only_copy
        self._lock = threading.Lock()
        self._reflinks = True  # until one fails: then the two places cannot share bytes
        self._mode = 0o644
        self.report = LinkReport()

    def adopt_mode(self, folder: Path) -> None:
        """Take the umask from a folder that was just made."""
        self._mode = stat.S_IMODE(folder.stat().st_mode) & 0o777

    def forget(self) -> None:
        """Count from the beginning: what was built is not used."""
        self.report = LinkReport()

    def place(self, entry: FileEntry, path: Path) -> None:
        """Make one file, which must not exist."""
        assert entry.digest is not None  # entries are added when their blob is in the store
        blob = _blob_of(self._store, entry.digest, entry.path)
        disk.make_folder(path.parent)
        if self._link is Link.SYMLINK and not entry.executable:
            disk.symlink(os.fspath(blob), path)
            self._count(symlinked=1)
        elif self._link is Link.HARDLINK and not entry.executable and self._hardlink(blob, path, entry.digest):
            self._count(hardlinked=1)
        elif self._link is not Link.COPY and self._reflink(blob, path, entry):
            self._count(reflinked=1)
        elif self._link is Link.REFLINK and entry.size:
            raise CasError(
                f"{self._target}: files cannot share bytes with the store in {self._store.home} (no reflink between the"
                " two); use link=auto or link=copy"
            )
        else:
            self._copy(blob, path, entry)
            self._count(copied=1, bytes=entry.size)

    def _hardlink(self, blob: Path, path: Path, digest: Digest) -> bool:
        if self._is_only_copy(digest):
            self._count(only_copies=1)
            return False
        try:
            disk.link(blob, path)
        except OSError as error:
            if error.errno == errno.EMLINK:  # this one blob has all the names it can have
                return False
            if not disk.is_link_refusal(error):
                raise
            raise CasError(
                f"{self._target}: no hard links to the store in {self._store.home} can be made ({error.strerror});"
                " use link=auto or link=copy"
            ) from error
        return True

    def _reflink(self, blob: Path, path: Path, entry: FileEntry) -> bool:
        if not self._reflinks or not entry.size:
            return False
        if not disk.reflink(blob, path):
            self._reflinks = False
            with contextlib.suppress(FileNotFoundError):
                disk.unlink(path)
            return False
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            disk.set_mode(fd, self._mode_of(entry))
        finally:
            os.close(fd)
        return True

    def _copy(self, blob: Path, path: Path, entry: FileEntry) -> None:
        source = os.open(blob, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fd = disk.create(path, 0o777 if entry.executable else 0o666)
            try:
                for start in range(0, entry.size, disk.COPY_WINDOW):
                    disk.copy_range(source, fd, start, min(disk.COPY_WINDOW, entry.size - start))
            finally:
                os.close(fd)
        except EOFError as error:
            raise ContentError(f"blob {entry.digest} changed while it was copied; try again") from error
        finally:
            os.close(source)

    def _mode_of(self, entry: FileEntry) -> int:
        return self._mode if entry.executable else self._mode & 0o666

    def write(self, data: bytes, path: Path) -> None:
        """Make a file that is no blob."""
        fd = disk.create(path, 0o666)
        try:
            disk.write(fd, data)
        finally:
            os.close(fd)

    def _count(self, **counts: int) -> None:
        with self._lock:
            changes = {name: getattr(self.report, name) + count for name, count in counts.items()}
            self.report = replace(self.report, **changes)


@contextlib.contextmanager
def _explained(target: Path) -> Iterator[None]:
    """Turn errors of the disk into one clear line: in a user's folder anything can go wrong."""
    doing = f"cannot write into {target}"
    try:
        with explained(doing):
            yield
    except OSError as error:
        raise CasError(f"{doing}: {error.strerror or error}: {error.filename or ''}".rstrip(": ")) from error


def _blob_of(store: Store, digest: Digest, name: str) -> Path:
    path = store.blobs.locate(digest)
    if path is None:
        raise CheckpointNotFoundError(f"{name}: its bytes ({digest}) are not in the store; download it again")
    return path


class _Scratch:
    """A folder of ours beside (or in) a target: what is built lies in `tree` until it is renamed."""

    def __init__(self, parent: Path, name: str) -> None:
        self.folder = parent / f"{_prefix_of(name)}{secrets.token_hex(8)}.part"
        self.tree = self.folder / "tree"
        self._numbers = 0
        disk.make_folder(self.folder)
        try:
            self._claim = Claim(self.folder / "claim")
            disk.make_folder(self.tree)
        except BaseException:  # a full disk
            disk.remove_tree(self.folder)
            raise

    def path_for(self, path: str) -> Path:
        """Where a file is built for a target that appears as a whole."""
        return self.tree / path

    def new_path(self) -> Path:
        """A name for one file that is renamed on its own."""
        self._numbers += 1
        return self.tree / str(self._numbers)

    def close(self) -> None:
        """Remove it, and what is left in it."""
        self._claim.release()
        disk.remove_tree(self.folder)


def _prefix_of(name: str) -> str:
    stem = name.encode("utf-8", "surrogateescape")[:_NAME].decode("utf-8", "ignore")
    return f".{stem}."


def _is_part(name: str) -> bool:
    return name.startswith(".") and _PART.search(name) is not None


def _is_part_of(name: str, prefix: str) -> bool:
    """Whether a name is one that `_Scratch` gives, and no user's: what is deleted is decided by it."""
    return name.startswith(prefix) and _PART.match(name, len(prefix) - 1) is not None


def _sweep(parent: Path, prefix: str) -> None:
    """Remove what dead processes left of the same target."""
    try:
        names = os.listdir(parent)
    except OSError:
        return
    for name in names:
        if _is_part_of(name, prefix) and _is_left(parent / name):
            log.info("removing %s, which a dead process left", parent / name)
            disk.remove_tree(parent / name)


def _is_left(folder: Path) -> bool:
    claim = folder / "claim"
    if claim.exists():
        return is_abandoned(claim)
    try:
        return disk.now() - folder.stat().st_mtime > _UNCLAIMED
    except OSError:
        return False


__all__ = ["METADATA", "LinkReport", "Materializer", "is_complete"]
