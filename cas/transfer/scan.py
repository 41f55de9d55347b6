"""Reading a whole bucket's list of names in a stream: millions of keys, of which any may be hostile."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from cas.errors import UnsafeNameError
from cas.index.paths import RelativePath
from cas.transfer.remote import Remote, RemoteFile

LAST = "\U0010ffff"  # behind any character that a name may go on with


@dataclass(frozen=True, slots=True)
class Found:
    """One name of a scan, as the remote has it, below the place that was scanned.

    `file` is how its bytes are read; None of a folder (the name ends in `/`), and of what cannot be read: a name that
    no relative path can be made of, a pipe, a symbolic link that leads out.
    """

    name: str
    size: int = 0  # bytes
    modified: int | None = None  # nanoseconds since 1970
    file: RemoteFile | None = None


@runtime_checkable
class Scannable(Protocol):
    """A remote that can list its place in a stream. The one method that an adapter adds to be scanned well."""

    def scan(self, *, after: str = "", before: str = LAST) -> Iterator[Found]:
        """Yield every name below the place that is greater than `after` and less than `before`.

        Names are compared as the bytes of their UTF-8. Some servers list folder by folder (`a/x` before `a-b`): theirs
        is the order then, and what lies in one folder comes together either way. The memory it takes does not grow
        with the number of names. Nothing there: nothing is yielded. No name is an error.

        Raises:
            TransientRemoteError: worth another try, `after` the last name that came.
            NotAllowedError, RemoteError: as `Remote` says.
        """


def scan(remote: Remote, *, after: str = "", before: str = LAST) -> Iterator[Found]:
    """Scan a remote; one that cannot stream is listed as a whole, which takes memory and allows no odd name.

    Raises:
        CheckpointNotFoundError: there is nothing, in a remote that cannot stream.
        CasError: as `Scannable.scan`.
    """
    if isinstance(remote, Scannable):
        yield from remote.scan(after=after, before=before)
        return
    listing = remote.list()
    found = [Found(str(file.path), file.size, file.identity.modified, file) for file in listing.files]
    found += [Found(f"{folder}/") for folder in listing.directories]
    low, high = in_order(after), in_order(before)
    for one in sorted(found, key=lambda one: in_order(one.name)):
        if low < in_order(one.name) < high:
            yield one


def in_order(name: str) -> bytes:
    """Return what names are compared by."""
    return name.encode("utf-8", "surrogatepass")  # those of a disk may be no UTF-8


def path_of(name: str) -> RelativePath | None:
    """Return the relative path that a name is, if it is one."""
    try:
        return RelativePath(name)
    except UnsafeNameError:
        return None
