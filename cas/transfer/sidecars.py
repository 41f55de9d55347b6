"""Where sidecars lie, and how they get there and from there."""

from __future__ import annotations

import logging
import posixpath
import re
from typing import Protocol, runtime_checkable

from cas.errors import CasError
from cas.index.sidecar import MAX_BYTES, Sidecar
from cas.transfer.remote import Listing

log = logging.getLogger("cas.transfer")

FOLDER = ".cas"
SUFFIX = ".sidecar"
_NAMES = re.compile(rf"{re.escape(FOLDER)}(/[^/]*{re.escape(SUFFIX)})?")


@runtime_checkable
class HasSidecars(Protocol):
    """A remote that a sidecar may lie beside: what an adapter adds to make use of it."""

    def read_sidecar(self, limit: int) -> bytes | None:
        """Return the sidecar of the place; None if there is none.

        Raises:
            RemoteError: it cannot be read, or has more bytes than the limit.
        """


@runtime_checkable
class KeepsSidecars(HasSidecars, Protocol):
    """A remote that one can be put beside, too."""

    def write_sidecar(self, data: bytes) -> str:
        """Put the sidecar of the place there, whole, instead of any other; return its URL.

        Raises:
            NotAllowedError: the credentials, or the folder's permissions, do not allow it.
        """


def sidecar_key(prefix: str) -> str:
    """Return where the sidecar of what lies below a prefix (or path) lies."""
    above, name = posixpath.split(prefix.rstrip("/"))
    return posixpath.join(above, FOLDER, f"{name}{SUFFIX}")


def read_sidecar(remote: object) -> Sidecar | None:
    """Return what was published of a checkpoint; whatever is wrong with it, it is as good as none."""
    if not isinstance(remote, HasSidecars):
        return None
    try:
        data = remote.read_sidecar(MAX_BYTES)
        return None if data is None else Sidecar.parse(data)
    except CasError as error:
        log.info("no sidecar is used: %s", error)
        return None


def without_sidecars(listing: Listing) -> Listing:
    """Leave out what was published beside checkpoints: it is no part of any."""
    files = tuple(file for file in listing.files if not _NAMES.fullmatch(file.path))
    kept = any(file.path.startswith(f"{FOLDER}/") for file in files)
    return Listing(files, tuple(one for one in listing.directories if kept or one != FOLDER))
