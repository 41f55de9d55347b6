"""The one module that knows the disk's and the clock's quirks; every change that the store makes goes through it.

Each function that changes something is a *step*: a fault-injection run (tests/kills.py) counts the steps of
an operation and kills the process before and after each of them.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import platform
import secrets
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

from cas.errors import CasError, ContentError, NoSpaceError, NotAllowedError

P = ParamSpec("P")
R = TypeVar("R")

# Held while a thread imports something late, and while the process forks: a child that is forked in the middle of
# another thread's import would wait for that module for ever.
importing = threading.RLock()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=importing.acquire, after_in_parent=importing.release, after_in_child=importing.release)

Observer = Callable[[str, str], None]
_observer: Observer | None = None

COPY_WINDOW = 64 << 20  # bytes per copy_file_range call: long enough to be cheap, short enough for Ctrl-C
SHARED = 4096  # bytes of a block that two files can share: what xfs and btrfs have where nobody asked for another

_RACES = 20  # how often in a row a race with another process is tried again

_NOT_OURS = "is another user's, or no plain file; move it away"
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
_PRIVATE_TO_WRITERS = 0o750  # of a group's store: a folder that others may look into, and nothing more
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV, errno.ENOSYS}


def observe(observer: Observer | None) -> None:
    """Call `observer(moment, step)` with moment "before" and "after" each step from now on; None ends it."""
    global _observer
    _observer = observer


def _step(function: Callable[P, R]) -> Callable[P, R]:
    name = function.__name__

    @functools.wraps(function)
    def observed(*args: P.args, **kwargs: P.kwargs) -> R:
        if _frozen:
            _require_thawed(name, args)
        if _observer is None:
            return function(*args, **kwargs)
        _observer("before", name)
        result = function(*args, **kwargs)
        if _observer is not None:
            _observer("after", name)
        return result

    return observed


# --- what must not be changed ---------------------------------------------------------------------------------

_frozen: tuple[str, ...] = ()
_ONLY_LOOK = {"sync_folder"}
_FROM = {"reflink"}  # what only reads its first argument


def freeze(home: Path) -> None:
    """Let nothing below a home be changed by this process, as if its disk were mounted read-only."""
    global _frozen
    _frozen = tuple({*_frozen, f"{os.fspath(home)}/"})


def thaw(home: Path) -> None:
    """Let a home be changed again."""
    global _frozen
    _frozen = tuple(one for one in _frozen if one != f"{os.fspath(home)}/")


def _require_thawed(step: str, args: tuple[object, ...]) -> None:
    if step in _ONLY_LOOK:
        return
    for one in args[1:] if step in _FROM else args:
        if isinstance(one, Path) and os.fspath(one).startswith(_frozen):
            raise OSError(errno.EROFS, "the store is sealed", os.fspath(one))


# --- whose is what is made -----------------------------------------------------------------------------------
# In a group's home every folder is the group's, and every file can be read by it, whatever the umask of who makes them.

_shared: tuple[str, ...] = ()


def share(home: Path) -> None:
    """Let everything that is made below a home from now on belong to the home's group."""
    global _shared
    if not _is_shared(home / "x"):
        _shared = (*_shared, f"{os.fspath(home)}/")


def unshare(home: Path) -> None:
    """Let what is made below a home from now on be as the umask says."""
    global _shared
    _shared = tuple(one for one in _shared if one != f"{os.fspath(home)}/")


def _is_shared(path: Path | str) -> bool:
    return bool(_shared) and os.fspath(path).startswith(_shared)


def _make_shared(path: Path, mode: int) -> None:
    """Make a folder of a group's home. It appears with its mode: nobody ever meets one that is still closed."""
    try:
        found = path.stat()
    except FileNotFoundError:
        found = None
    if found is not None:
        if not stat.S_ISDIR(found.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), os.fspath(path))
        return
    if _is_shared(path.parent):
        _make_shared(path.parent, 0o777)
    wanted = 0o770 if mode == 0o777 else (mode | _PRIVATE_TO_WRITERS) & 0o777
    others = path.parent.stat().st_mode & (0o005 if wanted & 0o005 or mode == 0o777 else 0)
    made = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    made.mkdir(0o700)
    try:
        made.chmod(wanted | others | stat.S_ISGID)
        made.rename(path)
    except OSError as error:
        with contextlib.suppress(FileNotFoundError):  # somebody removed the folder above in between
            made.rmdir()
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # somebody else was quicker
            raise


def _show_to_group(fd: int, path: Path | str, mode: int) -> None:
    if _is_shared(path):
        with contextlib.suppress(PermissionError):  # a colleague's
            os.fchmod(fd, mode | (mode & 0o400) >> 3)


# --- what changes the disk -----------------------------------------------------------------------------------


@_step
def make_folder(path: Path, mode: int = 0o777) -> None:
    """Make a folder and those above it; an existing one is fine."""
    for attempt in range(_RACES):
        try:
            if _is_shared(path):
                _make_shared(path, mode)
            else:
                path.mkdir(mode=mode, parents=True, exist_ok=True)
            return
        except (FileNotFoundError, FileExistsError):  # another process removed, or made, a folder above in between
            if attempt == _RACES - 1:
                raise


@_step
def create(path: Path | str, mode: int = 0o600) -> int:
    """Create a new file, which must not exist, for reading and writing; return its descriptor."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    _show_to_group(fd, path, mode)
    return fd


@_step
def open_append(path: Path, mode: int = 0o644) -> int:
    """Open a plain file of ours for appending (and reading), created if absent; return its descriptor.

    Raises:
        PermissionError: another user put something under that name.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | _NO_FOLLOW
    try:
        fd = os.open(path, flags, mode)
    except FileNotFoundError:
        if _is_shared(path):
            _make_shared(path.parent, 0o777)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, flags, mode)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise PermissionError(errno.EPERM, _NOT_OURS, os.fspath(path)) from error
        raise
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or not is_ours(found):
        os.close(fd)
        raise PermissionError(errno.EPERM, _NOT_OURS, os.fspath(path))
    _show_to_group(fd, path, mode)
    return fd


@_step
def write(fd: int, data: bytes | memoryview) -> None:
    """Write all of the data at the descriptor's position."""
    view = memoryview(data).cast("B")
    while view:
        view = view[os.write(fd, view) :]


@_step
def write_once(fd: int, data: bytes | memoryview) -> int:
    """Write at the descriptor's position with one call; return how many bytes were written."""
    return os.write(fd, data)


@_step
def write_at(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of the data at an offset."""
    view = memoryview(data).cast("B")
    while view:
        count = os.pwrite(fd, view, offset)
        view, offset = view[count:], offset + count


@_step
def copy_range(source: int, target: int, offset: int, length: int, *, to: int | None = None) -> None:
    """Copy a range between two descriptors, in the kernel where it can, to the same offset or another (`to`).

    What lies alike in the blocks of both files is shared between them, where the disk can.

    Raises:
        EOFError: the source ended before the range did.
    """
    to = offset if to is None else to
    head = -to % SHARED if (to - offset) % SHARED == 0 else 0  # only whole blocks can be shared
    if 0 < head < length - SHARED:
        _copy(source, target, offset, to, head)
        offset, to, length = offset + head, to + head, length - head
    _copy(source, target, offset, to, length)


def _copy(source: int, target: int, offset: int, to: int, length: int) -> None:
    end = offset + length
    while offset < end:
        wanted = min(end - offset, COPY_WINDOW)
        try:
            count = os.copy_file_range(source, target, wanted, offset, to)
        except (OSError, AttributeError) as error:
            if isinstance(error, OSError) and error.errno not in _NO_LINKS | {errno.EINVAL, errno.EBADF}:
                raise
            data = os.pread(source, min(wanted, 1 << 20), offset)
            count = len(data)
            written = 0
            while written < count:
                written += os.pwrite(target, data[written:], to + written)
        if not count:
            raise EOFError(f"the source ends at byte {offset}")
        offset, to = offset + count, to + count


@_step
def truncate(fd: int, size: int) -> None:
    """Set a file's length; what is new reads as zeros."""
    os.ftruncate(fd, size)


@_step
def set_mode(fd: int, mode: int) -> None:
    """Change the permissions of an open file."""
    os.fchmod(fd, mode)


@_step
def change_mode(path: Path, mode: int) -> None:
    """Change the permissions of a folder or file; never through a link."""
    if not path.is_symlink():
        path.chmod(mode)


@_step
def give_to_group(path: Path, group: int, mode: int) -> None:
    """Let a file, folder or link belong to a group, and give it (but no link) its permissions."""
    os.chown(path, -1, group, follow_symlinks=False)
    if not path.is_symlink():
        path.chmod(mode)  # after the change of its group, which takes setgid away


@_step
def set_time(path: Path, mtime_ns: int) -> None:
    """Set a file's modification time."""
    os.utime(path, ns=(mtime_ns, mtime_ns), follow_symlinks=False)


@_step
def touch(path: Path) -> None:
    """Set a file's modification time to the disk's own present: on a network file system, the server's."""
    os.utime(path)


@_step
def sync(fd: int) -> None:
    """Return when the file's bytes and metadata will survive a power cut."""
    os.fsync(fd)


@_step
def sync_folder(path: Path) -> None:
    """Return when the names in a folder will survive a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_DIRECTORY", 0))
    try:
        os.fsync(fd)
    except OSError as error:  # some network file systems cannot sync a folder, and need not
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(fd)


def sync_names(folder: Path, root: Path) -> None:
    """Return when the names in a folder, and in those above it up to `root`, will survive a power cut."""
    for one in (folder, *folder.parents):
        sync_folder(one)
        if one == root:
            return


@_step
def link(source: Path | str, target: Path | str) -> None:
    """Give a file a second name, which must not exist.

    Raises:
        FileExistsError: the name is taken.
        OSError: `is_link_refusal(error)` tells whether this file system (or this file) has no links.
    """
    os.link(source, target, follow_symlinks=False)


@_step
def rename(source: Path | str, target: Path | str, *, within: int | None = None, into: int | None = None) -> None:
    """Rename; an existing target file is replaced, at no moment absent.

    `within`, `into`: the open folders of the old and of the new name.
    """
    os.rename(source, target, src_dir_fd=within, dst_dir_fd=into)


@_step
def make_folder_in(folder: int, name: str) -> None:
    """Make one folder in an open one; an existing one is fine."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, dir_fd=folder)


@_step
def unlink(path: Path | str, *, within: int | None = None) -> None:
    """Remove a name (in the open folder `within`, if given); one that is gone already is fine."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path, dir_fd=within)


@_step
def remove_folder(path: Path | str, *, within: int | None = None) -> bool:
    """Remove an empty folder (in the open folder `within`, if given); False if it is not empty. Gone is fine."""
    try:
        os.rmdir(path, dir_fd=within)
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


@_step
def symlink(target: str, path: Path | str) -> None:
    """Make a symbolic link at `path` that says `target`."""
    os.symlink(target, path)


@_step
def reflink(source: Path, target: Path) -> bool:
    """Make `target`, which must not exist, share the bytes of `source` copy-on-write; False if it cannot.

    Raises:
        FileExistsError: the target exists.
    """
    with importing:
        import reflink_copy  # Rust; loaded late because `import cas` must stay fast

    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    try:
        reflink_copy.reflink(os.fspath(source), os.fspath(target))
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        return False
    return True


def _open_up(path: Path) -> None:
    """Let the owner remove what is in a folder: those of views are read-only. Follows no link."""
    waiting = [os.fspath(path)]
    while waiting:
        folder = waiting.pop()
        with contextlib.suppress(OSError):
            if (mode := stat.S_IMODE(os.lstat(folder).st_mode)) & 0o700 != 0o700:
                os.chmod(folder, mode | 0o700)
            with os.scandir(folder) as entries:
                waiting += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]


@_step
def remove_tree(path: Path) -> None:
    """Remove a folder of the store with all that is in it; one that is gone already is fine.

    Raises:
        OSError: something in it is another user's.
    """
    if path.is_symlink() or (path.exists() and not path.is_dir()):  # that somebody put in its place
        path.unlink(missing_ok=True)
        return
    _open_up(path)

    def allow(function: Callable[[str], object], name: str, error: BaseException) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    if sys.version_info >= (3, 12):
        shutil.rmtree(path, onexc=allow)
    else:
        shutil.rmtree(path, onerror=lambda function, name, exc: allow(function, name, exc[1]))


def step(name: str) -> None:
    """Mark a step that is not a call of this module (a commit of the SQLite index)."""
    if _observer is not None:
        _observer("before", name)


# --- what only looks -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Signature:
    """What a file's stat says of its content: a blob with another signature than its fact's is hashed again."""

    size: int
    mtime_ns: int
    inode: int
    changed: int = 0  # time of the last change (ns), of a file whose owner could set the others back; else 0

    @classmethod
    def of(cls, stat: os.stat_result, *, changed: bool = False) -> Signature:
        """Take the signature from a stat result; with `changed`, no owner can write and hide it."""
        return cls(stat.st_size, stat.st_mtime_ns, stat.st_ino, stat.st_ctime_ns if changed else 0)


def open_file(path: Path, *, writing: bool = False) -> int:
    """Open a plain file for reading (or both): never a link, and never a pipe or device, which could keep us waiting.

    Raises:
        OSError: it is something else (EINVAL, ELOOP), or cannot be read.
    """
    access = os.O_RDWR if writing else os.O_RDONLY
    fd = os.open(path, access | os.O_CLOEXEC | _NO_FOLLOW | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "is no plain file", os.fspath(path))
    return fd


def read_file(path: Path, at_most: int) -> bytes:
    """Return the bytes of a plain file.

    Raises:
        OSError: it has more than `at_most` (EFBIG), is something else, or cannot be read.
    """
    with open(open_file(path), "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if size > at_most:
            raise OSError(errno.EFBIG, f"has {size} bytes, more than {at_most}", os.fspath(path))
        return file.read()


def is_ours(found: os.stat_result) -> bool:
    """Whether a file is this process's user's."""
    return not hasattr(os, "geteuid") or found.st_uid == os.geteuid()


def is_writable(folder: Path) -> bool:
    """Whether names can be made in a folder: by its mode and by how its disk is mounted."""
    effective = os.access in os.supports_effective_ids
    return os.access(folder, os.W_OK | os.X_OK, effective_ids=effective)


def forget_cached(fd: int) -> None:
    """Let the next read of a file come from the disk: what is in memory, written and unused, is dropped."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def names(folder: Path) -> list[str]:
    """Return the names in a folder, sorted; none of one that is not there, cannot be read, or is a symbolic link.

    A link in a store may lead anywhere: what lies there is not the store's.
    """
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0))
    except OSError:
        return []
    try:
        return sorted(os.listdir(fd))
    except OSError:
        return []
    finally:
        os.close(fd)


def folders(folder: Path) -> list[Path]:
    """Return the folders in a folder, sorted; symbolic links are none."""
    found = [folder / name for name in names(folder)]
    return [path for path in found if path.is_dir() and not path.is_symlink()]


def refuse_links(home: Path, inside: Iterable[str]) -> None:
    """Look for symbolic links where the folders of a group's store lie, and in these folders.

    Raises:
        ContentError: there is one: whoever put it there can make others write and delete somewhere else.
    """
    for place in (home, *(home / name for name in inside)):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(place) as entries:
            for entry in entries:
                if entry.is_symlink():
                    raise ContentError(f"{entry.path} is a symbolic link, and a store has none there: remove it first")


def clock(folder: Path) -> int:
    """Return the disk's own present (ns since 1970), by touching a folder; hosts' clocks differ, this one is shared.

    Of a disk that may only be read, this host's.
    """
    try:
        touch(folder)
        return folder.stat().st_mtime_ns
    except OSError:
        return time.time_ns()


def is_link_refusal(error: OSError) -> bool:
    """Whether the error says that a hard link cannot be made here, by anybody or by us."""
    return error.errno in _NO_LINKS


@functools.cache
def boot_id() -> str | None:
    """Name this boot of this host; None where the system does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip() or None
    except OSError:
        pass
    if platform.system() == "Darwin":
        command = ["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"]
        try:
            found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=5)
        except (OSError, subprocess.SubprocessError):
            return None
        return found.stdout.strip() or None
    return None


def writer_name() -> str:
    """Name this host and user, as a file name: nobody appends to a file that is another's."""
    name = "".join(c if c.isalnum() or c in "-_." else "_" for c in socket.gethostname())
    host = name.lstrip(".")[:100] or "host"
    return f"{host}.{os.geteuid()}" if hasattr(os, "geteuid") else host


def now() -> float:
    """Return the time in seconds since 1970, as it is written into facts and records."""
    return round(time.time(), 3)


def monotonic() -> float:
    """Return seconds that only ever grow, to measure waits with."""
    return time.monotonic()


def awake() -> float:
    """Return seconds that only ever grow, also while this process is stopped or the host sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def translate(error: OSError, doing: str) -> CasError | None:
    """Turn an error of the disk into one clear line, if a user can do something about it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        reason = "the disk is full" if error.errno == errno.ENOSPC else "your quota is used up"
        return NoSpaceError(f"{doing}: {reason}; make room (`cas du` shows what the store holds) and try again")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return NotAllowedError(f"{doing}: {error.strerror}: {error.filename or ''}".rstrip(": "))
    if error.errno == errno.EXDEV:
        where = f"{error.filename or ''} and {error.filename2 or ''}"
        return CasError(f"{doing}: {where} are on different disks; all of a store must be on one")
    return None
