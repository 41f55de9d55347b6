"""A folder of this host, or of a file system that it mounts, as a remote."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from cas.errors import (
    ChangedError,
    CheckpointNotFoundError,
    ContentError,
    NotAllowedError,
    RemoteError,
    TransientRemoteError,
    UnsafeNameError,
)
from cas.index import disk
from cas.index.identity import RemoteIdentity
from cas.index.paths import RelativePath, check_tree
from cas.transfer.remote import Checksum, Listing, Piece, RemoteFile
from cas.transfer.scan import LAST, Found, in_order, path_of
from cas.transfer.sidecars import sidecar_key

_PIECE = 1 << 20  # bytes per read: stays in the processor's cache until it is hashed
_PASSING = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EINTR, errno.EAGAIN}  # as network file systems have them


class FolderRemote:
    """Everything below a folder. Symbolic links are followed as long as they stay below it.

    `also` names other paths at which the same folder was looked for, for the message if it is not there.
    """

    def __init__(self, path: Path, *, also: tuple[Path, ...] = ()) -> None:
        self.path = path.absolute()
        self._also = also

    @property
    def url(self) -> str:
        """`file:///…`."""
        return "file://" + quote(os.fsencode(self.path))

    def list(self) -> Listing:
        """List all files, and all folders.

        Raises:
            CheckpointNotFoundError: there is no such folder.
            UnsafeNameError: a name that cannot be kept, or a symbolic link that leads out.
            ContentError: something that is neither a file nor a folder.
        """
        try:
            root = self.path.resolve(strict=True)
            files, directories = _Walk(root).run()
        except OSError as error:
            raise self._translate(error) from error
        check_tree((file.path for file in files), directories)
        return Listing(tuple(files), tuple(directories))

    def scan(self, *, after: str = "", before: str = LAST) -> Iterator[Found]:
        """Yield every name between two, folder by folder; see `Scannable`.

        Symbolic links to files below the folder are followed; of other links, pipes and unreadable folders only the
        name is told.
        """
        try:
            root = self.path.resolve(strict=True)
            if not root.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(root))
            yield from _scan(root, root, "", in_order(after), in_order(before))
        except OSError as error:
            raise self._translate(error) from error

    def _translate(self, error: OSError) -> Exception:
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            places = " nor ".join(map(str, (self.path, *self._also)))
            return CheckpointNotFoundError(f"there is no folder {places} on this host")
        return _explain(error)

    def read(self, file: RemoteFile, start: int, end: int) -> Iterator[Piece]:
        """Yield the bytes of a range; see `Remote`."""
        try:
            fd = os.open(self.local_path(file), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError as error:
            raise ChangedError(f"{self.local_path(file)} is gone since it was listed") from error
        except OSError as error:
            raise _explain(error) from error
        try:
            require_same(file, self.local_path(file), fd)
            buffer = memoryview(bytearray(min(_PIECE, max(end - start, 1))))
            while start < end:
                count = os.preadv(fd, [buffer[: end - start]], start)
                if not count:
                    raise ChangedError(f"{self.local_path(file)} became shorter while it was read")
                start += count
                if start == end:
                    require_same(file, self.local_path(file), fd)
                yield buffer[:count]
        except OSError as error:
            raise _explain(error) from error
        finally:
            os.close(fd)

    def stream(self, file: RemoteFile) -> Iterator[Piece]:
        """Yield all bytes."""
        return self.read(file, 0, file.size)

    def likely_checksums(self, file: RemoteFile) -> tuple[Checksum, ...]:
        """A folder suggests none."""
        return ()

    def checksums(self, file: RemoteFile, *, thorough: bool = False) -> tuple[Checksum, ...]:
        """A folder declares none."""
        return ()

    def local_path(self, file: RemoteFile) -> str:
        """The file's path on this host."""
        return f"{self.path}/{file.path}"

    def read_sidecar(self, limit: int) -> bytes | None:
        """Return what was published of the folder; see `KeepsSidecars`."""
        path = sidecar_key(os.fspath(self.path))
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _explain(error) from error
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode) or found.st_size > limit:
                raise RemoteError(f"{path} is no sidecar: it is no file, or has more than {limit} bytes")
            data = os.pread(fd, found.st_size, 0)
        except OSError as error:
            raise _explain(error) from error
        finally:
            os.close(fd)
        return data

    def write_sidecar(self, data: bytes) -> str:
        """Publish the folder's sidecar; see `KeepsSidecars`."""
        path = Path(sidecar_key(os.fspath(self.path)))
        new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            disk.make_folder(path.parent)
            try:
                fd = disk.create(new, 0o644)
                try:
                    disk.write(fd, data)
                    disk.sync(fd)
                finally:
                    os.close(fd)
                disk.rename(new, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    disk.unlink(new)
                raise
        except OSError as error:
            raise disk.translate(error, f"cannot publish {path}") or _explain(error) from error
        return "file://" + quote(os.fsencode(path))

    def recipe(self) -> None:
        """None: a folder is read after a fork as before it."""


def require_same(file: RemoteFile, path: str, fd: int) -> None:
    """Check that an open file is the one that was listed, unchanged.

    Raises:
        ChangedError: it is not.
    """
    if _identity(file.identity.url, os.fstat(fd)) != file.identity:
        raise ChangedError(f"{path} was written to since it was listed")


def one_file(path: Path) -> RemoteFile:
    """Return a file as a listing of its folder would have it; its neighbours are not looked at.

    Raises:
        ContentError: it is no plain file.
        UnsafeNameError: its name cannot be kept.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ContentError(f"{path} is neither a file nor a folder ({_kind(found.st_mode)})")
    return _listed(RelativePath(path.name), path.absolute(), found)


def _scan(root: Path, folder: Path, prefix: str, low: bytes, high: bytes) -> Iterator[Found]:
    """Yield what lies below a folder, in order of whole names: `a.b` comes before `a/b`, as in a bucket."""
    wanted = []
    with os.scandir(folder) as entries:
        for entry in entries:
            name = f"{prefix}{entry.name}{'/' if entry.is_dir(follow_symlinks=False) else ''}"
            key = in_order(name)
            if key < high and (low < key or low.startswith(key)):  # the others may be many: they are not kept
                wanted.append((key, name, entry.path, entry if key > low else None))
    for _, name, path, found in sorted(wanted, key=lambda one: one[0]):
        if found is not None:
            yield _found(root, name, found)
        if name.endswith("/"):
            try:
                yield from _scan(root, Path(path), name, low, high)
            except PermissionError:
                yield Found(f"{name}?")


def _found(root: Path, name: str, entry: os.DirEntry[str]) -> Found:
    if name.endswith("/"):
        return Found(name)
    try:
        if entry.is_symlink() and not Path(entry.path).resolve(strict=True).is_relative_to(root):
            return Found(name)
        found, path = entry.stat(), path_of(name)
    except (OSError, RuntimeError):  # a link to nowhere, or to itself; or the file is gone meanwhile
        return Found(name)
    file = _listed(path, Path(entry.path), found) if path and stat.S_ISREG(found.st_mode) else None
    return Found(name, found.st_size if file else 0, found.st_mtime_ns, file)


class _Walk:
    """Reads a folder, the folders below it, and what symbolic links in it lead to."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._files: list[RemoteFile] = []
        self._directories: list[RelativePath] = []

    def run(self) -> tuple[list[RemoteFile], list[RelativePath]]:
        if not self._root.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(self._root))
        self._folder(self._root, "", (_key(self._root.stat()),))
        return self._files, self._directories

    def _folder(self, folder: Path, prefix: str, above: tuple[tuple[int, int], ...]) -> None:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                name = RelativePath(prefix + entry.name)
                path = self._inside(Path(entry.path), name) if entry.is_symlink() else Path(entry.path)
                found = path.stat()
                if stat.S_ISREG(found.st_mode):
                    self._files.append(_listed(name, path, found))
                elif not stat.S_ISDIR(found.st_mode):
                    raise ContentError(f"{entry.path} is neither a file nor a folder ({_kind(found.st_mode)})")
                elif _key(found) in above:
                    raise UnsafeNameError(name, "a symbolic link to a folder above it")
                else:
                    self._directories.append(name)
                    self._folder(path, f"{name}/", (*above, _key(found)))

    def _inside(self, path: Path, name: RelativePath) -> Path:
        try:
            target = path.resolve(strict=True)
        except FileNotFoundError as error:
            raise ContentError(f"{path} is a symbolic link to nothing") from error
        except (OSError, RuntimeError) as error:
            raise ContentError(f"{path} is a symbolic link that leads nowhere: {error}") from error
        if not target.is_relative_to(self._root):
            raise UnsafeNameError(name, f"a symbolic link that leads out of {self._root}")
        return target


def _listed(name: RelativePath, path: Path, found: os.stat_result) -> RemoteFile:
    identity = _identity("file://" + quote(os.fsencode(path)), found)
    return RemoteFile(name, found.st_size, identity, executable=bool(found.st_mode & stat.S_IXUSR))


def _identity(url: str, found: os.stat_result) -> RemoteIdentity:
    return RemoteIdentity(url, found.st_size, version=str(found.st_ino), modified=found.st_mtime_ns)


def _key(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _kind(mode: int) -> str:
    kinds = {stat.S_IFSOCK: "a socket", stat.S_IFIFO: "a pipe", stat.S_IFBLK: "a device", stat.S_IFCHR: "a device"}
    return kinds.get(stat.S_IFMT(mode), "something else")


def _explain(error: OSError) -> Exception:
    line = f"cannot read {error.filename or 'a file'}: {error.strerror or error}"
    if error.errno in (errno.EACCES, errno.EPERM):
        return NotAllowedError(f"{line}; ask its owner for permission to read it")
    return TransientRemoteError(line) if error.errno in _PASSING else RemoteError(line)
