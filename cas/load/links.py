"""Files in a user's folder: reflinked, copied, hard-linked or symlinked from blobs; whole or not at all.

::

    with Materializer(store, target, link=Link.AUTO) as materializer:
        twin = materializer.begin(path, size, …)       # what must be a copy may begin while it is fetched
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
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from enum import Enum, auto
from pathlib import Path
from typing import Self

from cas.config import Link
from cas.errors import CasError, CheckpointNotFoundError, ForeignContentError
from cas.index import disk
from cas.index.digest import Digest
from cas.index.manifest import FileEntry, Manifest
from cas.index.paths import RelativePath
from cas.index.store import Store, explained
from cas.index.twin import Twin
from cas.load.names import check_names
from cas.load.placing import LinkReport, Placer, blob_of
from cas.load.scratch import Scratch, is_part, prefix_of, sweep
from cas.load.targets import METADATA, TargetRecord, Written, is_blob, is_complete, place_of

log = logging.getLogger("cas.load")

_WINDOW = 1 << 20  # bytes per read while an interrupted copy is compared


class _State(Enum):
    """What lies in the target where a file of the checkpoint belongs."""

    MISSING = auto()
    RIGHT = auto()
    SHORT = auto()  # an interrupted copy: the right bytes, and too few
    LINKED = auto()  # a link into the store, where the user asks for a file of their own


# --- what was recorded -----------------------------------------------------------------------------------------


class Materializer:
    """Puts one checkpoint's files into one folder of the user's. `add` may be called from several threads.

    Args:
        target: the folder; made if it does not exist.
        link: how. A hard link or reflink that was asked for and cannot be made is an error.
        is_only_copy: tells which blobs have no origin: those are never hard-linked, because whoever writes to the
            user's file would destroy them.
        giving: the store is made for this target alone: its very files become the user's.

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
        giving: bool = False,
    ) -> None:
        self._store = store
        self._target = place_of(Path(os.path.abspath(target)))  # noqa: PTH100 - absolute() keeps `..`
        self._placer = Placer(store, self._target, link, is_only_copy, giving=giving)
        self._lock = threading.Lock()
        self._scratch: Scratch | None = None
        self._added: dict[str, tuple[FileEntry, _State]] = {}
        self._twins: dict[str, Twin] = {}
        self._kept: set[str] = set()
        self._exists = os.path.lexists(self._target)
        if self._exists and not self._target.is_dir():
            raise ForeignContentError(self._target, "is there already, and is not a folder")
        self._record = TargetRecord.read(store, self._target) if self._exists else TargetRecord("", {})
        for folder in (self._target.parent, self._target) if self._exists else (self._target.parent,):
            sweep(folder, prefix_of(self._target.name))

    def begin(self, path: RelativePath, size: int, *, executable: bool) -> Twin | None:
        """Begin one file while its bytes are fetched, if it must be a copy, and nothing is there.

        It takes its place when a file with the same digest is added. Where it cannot be made, none is: what hinders it
        is said when that file is made of its blob.
        """
        if self._exists and os.path.lexists(self._target / path):
            return None
        try:
            with self._lock:
                scratch = self._open_scratch()
                if not self._placer.copies(scratch.folder):
                    return None
                twin = self._twins[path] = Twin(scratch.path_aside(), size, executable=executable)
                return twin
        except OSError as error:
            log.info("%s is copied when it is here: %s", path, error)
            return None

    def add(self, entry: FileEntry) -> None:
        """Take one file whose blob is in the store. Where the target exists, it is only compared now.

        A blob that another process removed in between is left to `finish`: until the checkpoint has its ref, nothing
        protects what was here before.

        Raises:
            ForeignContentError: the target holds something else under its name.
        """
        try:
            self._add(entry)
        except CheckpointNotFoundError:
            with self._lock:
                self._added.pop(entry.path, None)

    def _add(self, entry: FileEntry) -> None:
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
            if known is not None and known[0].digest != entry.digest:  # the origin changed while it was read
                disk.unlink(scratch.path_for(entry.path))
            if known is None or known[0].digest != entry.digest:
                self._placer.place(entry, scratch.path_for(entry.path), self._twins.get(entry.path))

    def finish(self, manifest: Manifest, *, extra: bytes | None = None) -> LinkReport:
        """Complete the target and record it.

        Args:
            manifest: all files; those that were not added are now.
            extra: `metadata.json`, written if the manifest has none and the user has none there.

        Raises:
            CheckpointNotFoundError: a blob is not in the store.
            ForeignContentError: the target holds something else under a name of the checkpoint's; it is untouched.
            UnsafeNameError: the target's disk cannot tell two of the names apart.
        """
        if METADATA in manifest.by_path:
            extra = None
        with _explained(self._target):
            for entry in manifest.files:
                if entry.path not in self._added or self._added[entry.path][0].digest != entry.digest:
                    self._add(entry)
            if not self._exists and not self._appear(manifest, extra):
                # Somebody else made the target in between: look at what they put there.
                self._exists, self._record = True, TargetRecord.read(self._store, self._target)
                for entry in manifest.files:
                    self._add(entry)
            if self._exists:
                self._fill(manifest, extra)
            self._write_record(manifest)
            return replace(self._placer.report, kept=len(self._kept), extra=self._count_extra(manifest))

    def abort(self) -> None:
        """Remove what was built; a target that existed keeps what was there."""
        if self._scratch is not None:
            self._scratch.close()
            self._scratch = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()

    def _open_scratch(self) -> Scratch:
        if self._scratch is None:
            parent = self._target if self._exists else self._target.parent
            self._scratch = Scratch(parent, self._target.name)
            self._placer.adopt_mode(self._scratch.tree)
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
            self._placer.write(extra, scratch.path_for(METADATA))
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
        if stat.S_ISLNK(found.st_mode) and is_blob(self._store, os.fspath(path), entry.digest):
            return _State.LINKED if self._placer.owns else _State.RIGHT
        if not stat.S_ISREG(found.st_mode):
            raise ForeignContentError(path, "is not a plain file")
        written = self._record.files.get(entry.path)
        if self._placer.owns and found.st_nlink > 1 and is_blob(self._store, os.fspath(path), entry.digest):
            return _State.LINKED
        if found.st_size == entry.size:
            if written is not None and written.kind == "file" and written.matches(os.fspath(path), entry.digest):
                return _State.RIGHT
            if Digest.of_file(path) == entry.digest:
                return _State.RIGHT
        elif found.st_size < entry.size and not self._is_ours(path, written) and self._is_prefix(path, entry.digest):
            return _State.SHORT
        raise ForeignContentError(path, "has other content than the checkpoint's file")

    def _is_ours(self, path: Path, written: Written | None) -> bool:
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
        blob = blob_of(self._store, digest, path.name)
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
        self._placer.forget()
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
            self._placer.write(extra, built)
            disk.rename(built, self._target / METADATA)
        self.abort()

    def _put(self, entry: FileEntry, state: _State) -> None:
        path = self._target / entry.path
        built = self._open_scratch().new_path()
        self._placer.place(entry, built, self._twins.get(entry.path))
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
                files[str(entry.path)] = Written.of(f"{root}/{entry.path}", entry.digest, blob)
        path = self._target / METADATA
        if METADATA not in files and path.is_file():
            files[METADATA] = Written.of(os.fspath(path), Digest.of_file(path), path.with_name("no blob"))
        try:
            TargetRecord(manifest.digest.hex, files).write(self._store, self._target)
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
            folders[:] = [name for name in folders if not is_part(name)]
        for name in files:
            yield f"{folder}/{name}"[prefix:]


# --- placing one file ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _explained(target: Path) -> Iterator[None]:
    """Turn errors of the disk into one clear line: in a user's folder anything can go wrong."""
    doing = f"cannot write into {target}"
    try:
        with explained(doing):
            try:
                yield
            except OSError as error:
                if isinstance(error.filename, str) and any(map(is_part, Path(error.filename).parts)):
                    error.filename = None  # a name that nobody but us gave, and that is gone
                raise
    except OSError as error:
        raise CasError(f"{doing}: {error.strerror or error}: {error.filename or ''}".rstrip(": ")) from error


__all__ = ["LinkReport", "Materializer", "is_complete"]
