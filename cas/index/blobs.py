"""Blobs: whole files under the digest of their bytes, and which of them can be believed.

Nothing here judges a name in `blobs/`: a blob that is wrong, or on its way out, is renamed to `aside/` first, and
what is held there is judged.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from stat import S_IMODE
from typing import NamedTuple

from cas.errors import CasError, ContentError
from cas.index import disk
from cas.index.digest import Digest
from cas.index.disk import Signature
from cas.index.facts import BlobFact, Facts
from cas.index.layout import Layout
from cas.index.locks import ThreadLock
from cas.index.manifest import MAX_BYTES
from cas.index.owners import Owners

log = logging.getLogger("cas.index")

# The disk lost it, or somebody closed it to us, or put something else there: as bad as wrong.
_UNREADABLE = {
    errno.EIO,
    getattr(errno, "EUCLEAN", errno.EIO),
    errno.EACCES,
    errno.EPERM,
    errno.EINVAL,
    errno.ELOOP,
    errno.ENXIO,
}


class Located(NamedTuple):
    """Where a blob lies, and the signature by which it can be believed."""

    path: str
    signature: Signature


class Blobs:
    """The blobs of one home.

    Args:
        layout: of the home.
        facts: about its blobs.
        owners: whose word counts there.
        network: bytes that are not synced may be lost with another host, of which no boot id tells.
        read_only: nothing in the home is ever changed.
        image: it is sealed, and in an image or on a disk that we may not write to (F47).
    """

    def __init__(
        self,
        layout: Layout,
        facts: Facts,
        owners: Owners,
        *,
        network: bool = False,
        read_only: bool = False,
        image: bool = False,
    ) -> None:
        self._layout = layout
        self._facts = facts
        self._owners = owners
        self._must_sync = (
            network or disk.boot_id() is None
        )  # nothing could tell later that bytes are lost (invariant 4)
        self._read_only = read_only
        self._image = image
        self._refused: set[Digest] = set()  # wrong ones in a home that is only read
        self.layers: tuple[Blobs, ...] = ()
        self._lock = ThreadLock()
        self._known: dict[Digest, Signature] = {}  # trusted by this process
        self._sealed: dict[Digest, Signature] = {}  # as facts said that this process has read
        self._hashed = 0
        self._when_bad: list[Callable[[Digest], None]] = []
        self._when_new: list[Callable[[Digest, int, int, Path], None]] = []

    def on_bad(self, call: Callable[[Digest], None]) -> None:
        """Call this with the digest of every blob that goes aside because it is wrong."""
        self._when_bad.append(call)

    def on_new(self, call: Callable[[Digest, int, int, Path], None]) -> None:
        """Call this with the digest of every new blob, its open file, its size, and a folder of ours in `ingest/`."""
        self._when_new.append(call)

    @property
    def hashed(self) -> int:
        """How many blobs this process read in full because no usable fact matched."""
        return self._hashed

    # --- in ------------------------------------------------------------------------------------------------

    def publish(self, path: Path, fd: int, digest: Digest, *, durable: bool) -> None:
        """Give a finished file, whose bytes were hashed through `fd`, its name in `blobs/`."""
        target = self._layout.blob(digest)
        stat = os.fstat(fd)
        if S_IMODE(stat.st_mode) != 0o444:
            disk.set_mode(fd, 0o444)
        sync = durable or self._must_sync
        if sync:
            disk.sync(fd)
        while not self._place(path, target, digest, stat.st_size):
            try:
                if sync:
                    self.seal(digest)
                return
            except (FileNotFoundError, ContentError):  # somebody took the other one away in between: place ours
                log.debug("blob %s was here, and is gone", digest)
        self._believe(digest, self._owners.signature(stat), sealed=sync)
        for call in self._when_new:
            call(digest, fd, stat.st_size, path.parent)

    def _place(self, path: Path, target: Path, digest: Digest, size: int) -> bool:
        """Link or rename a file to its name; False if a trusted blob is there already."""
        for _ in range(2):
            try:
                disk.link(path, target)
                return True
            except FileNotFoundError:
                disk.make_folder(target.parent)
            except FileExistsError:
                if self._is_there(target, digest, size):
                    return False
                break  # it was wrong, and is aside now; or another process was quicker: ours is as good
            except OSError as error:
                if not disk.is_link_refusal(error):
                    raise
                break
        disk.rename(path, target)
        return True

    def _is_there(self, target: Path, digest: Digest, size: int) -> bool:
        """Whether the file under a name that is taken can be believed; one of another size is not even read."""
        try:
            found = target.lstat()
        except FileNotFoundError:
            return False
        return self._judge(target, digest, found, size) is not None

    def _believe(self, digest: Digest, signature: Signature, *, sealed: bool) -> None:
        self._facts.add_blob(BlobFact(digest, signature, disk.boot_id(), sealed))
        with self._lock:
            self._known[digest] = signature

    # --- out -----------------------------------------------------------------------------------------------

    def locate(self, digest: Digest, size: int | None = None) -> Path | None:
        """Return the path of a blob that can be believed, or None if there is none (of this size, if one is given).

        A blob without a usable fact is hashed first. A wrong one goes aside; a right one in `aside/` comes back. What
        is not in this home is looked for in its layers.
        """
        found = self.locate_here(digest, size)
        for layer in self.layers:
            if found is not None:
                break
            try:
                found = layer.locate_here(digest, size)
            except OSError as error:  # what a layer cannot give is fetched
                log.warning("blob %s cannot be read in %s: %s", digest, layer._layout.root, error)
        return found

    def locate_all(self, wanted: Mapping[Digest, int]) -> dict[Digest, Located]:
        """Return where many blobs lie, each of a size; those that `locate` finds none of are left out.

        What facts say is asked once for all of them, and each is looked at once.
        """
        self._learn(wanted)
        root, known, matches = f"{self._layout.root}/blobs/", self._known, self._owners.matches
        located = {}
        for digest, size in wanted.items():
            hex, signature = digest.hex, None if digest in self._refused else known.get(digest)
            path = f"{root}{hex[:2]}/{hex[2:]}"
            try:
                if signature is not None and signature.size == size and matches(signature, os.lstat(path)):
                    located[digest] = Located(path, signature)
                    continue
            except OSError:
                log.debug("blob %s is not where it was", digest)
            found = self.locate(digest, size)
            if found is not None:
                with contextlib.suppress(FileNotFoundError):  # somebody removed it in between
                    located[digest] = Located(os.fspath(found), self._owners.signature(found.lstat()))
        return located

    def _learn(self, digests: Iterable[Digest]) -> None:
        """Trust those blobs for which a usable fact speaks."""
        unknown = [digest for digest in digests if digest not in self._known]
        found = self._facts.blobs(unknown)
        with self._lock:  # what is known is compared with the file's signature before it counts
            for digest, facts in found.items():
                for fact in facts:
                    if fact.usable:
                        self._known.setdefault(digest, fact.signature)
                    if fact.sealed:
                        self._sealed[digest] = fact.signature

    def locate_here(self, digest: Digest, size: int | None = None) -> Path | None:
        """Do what `locate` does, in this home alone."""
        if digest in self._refused:
            return None
        path = self._layout.blob(digest)
        try:
            found = path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return self._bring_back(digest)
        except PermissionError as error:  # a folder that a colleague closed
            log.warning("blob %s cannot be looked at: %s: %s", digest, error.strerror, error.filename)
            return None
        if size is not None and found.st_size != size:
            return None
        return self._judge(path, digest, found, None)

    def _judge(self, path: Path, digest: Digest, found: os.stat_result, size: int | None) -> Path | None:
        if self.is_trusted(digest, self._owners.signature(found)) or self._matches(path, digest, size):
            return path
        if self._read_only:
            self._refuse_here(digest)
            return None
        try:
            self.put_aside(digest, size)
        except OSError as error:  # a home that we may only read
            log.warning("blob %s has other bytes than its name says, and cannot be moved away: %s", digest, error)
            return None
        return path if path.exists() else None

    def refuse(self, digest: Digest, path: Path) -> None:
        """Take a blob, which was located, for wrong from now on: it goes aside, unless its home is only read."""
        for one in (self, *self.layers):
            if path == one._layout.blob(digest):
                if one._read_only:
                    one._refuse_here(digest)
                else:
                    one.put_aside(digest)

    def _refuse_here(self, digest: Digest) -> None:
        log.warning("blob %s has other bytes than its name says, in %s", digest, self._layout.root)
        with self._lock:
            self._refused.add(digest)
            self._known.pop(digest, None)

    def is_trusted(self, digest: Digest, signature: Signature) -> bool:
        """Whether a usable fact says that a blob with this signature has this digest."""
        with self._lock:
            if self._known.get(digest) == signature:
                return True
        is_sealed = self._image and not signature.changed and self._facts.is_sealed(digest, signature)
        if is_sealed or any(fact.signature == signature and fact.usable for fact in self._facts.blob(digest)):
            with self._lock:
                self._known[digest] = signature
            return True
        return False

    def are_sealed(self, signatures: Mapping[Digest, Signature]) -> bool:
        """Whether facts say of all blobs with these signatures that they will survive a power cut."""
        unknown = [digest for digest, signature in signatures.items() if self._sealed.get(digest) != signature]
        for some in (unknown[:1], unknown[1:]):  # mostly all of a checkpoint is sealed, or nothing
            facts = self._facts.blobs(some)
            for digest in some:
                if not any(fact.sealed and fact.signature == signatures[digest] for fact in facts.get(digest, ())):
                    return False
        return True

    def verify(self, digest: Digest, pace: Callable[[int], None]) -> bool:
        """Read a blob in full, from the disk where it can, whatever facts say; believe it if it is right.

        Raises:
            FileNotFoundError: it is not here.
        """
        path = self._layout.blob(digest)
        is_known = self.is_trusted(digest, self._owners.signature(path.lstat()))
        is_right = self._matches(path, digest, pace=pace, note=not is_known)
        path.lstat()  # if it was taken away meanwhile, it is not wrong
        return is_right

    def _matches(
        self,
        path: Path,
        digest: Digest,
        size: int | None = None,
        *,
        pace: Callable[[int], None] | None = None,
        note: bool = True,
    ) -> bool:
        """Hash a file of the store; if it is right, `note` that, and believe it from now on.

        With a `pace`, it is read from the disk, where that can be had.
        """
        try:
            fd = disk.open_file(path)
        except FileNotFoundError:
            return False
        except OSError as error:
            if error.errno not in _UNREADABLE:
                raise
            log.warning("blob %s cannot be read: %s", digest, error)
            return False
        try:
            stat = os.fstat(fd)
            if size is not None and stat.st_size != size:
                return False
            before = self._owners.signature(stat)
            if pace is not None:
                disk.forget_cached(fd)
            found = Digest.of_file(fd, pace)
            after = self._owners.signature(os.fstat(fd))
        except OSError as error:
            if error.errno not in _UNREADABLE:
                raise
            log.warning("blob %s cannot be read: %s", digest, error)
            return False
        finally:
            os.close(fd)
        self._hashed += 1
        if found != digest or before != after:
            return False
        if not note:
            return True
        # Another boot's fact with the same signature: the bytes have survived, which is what sealed means.
        survived = any(
            fact.signature == before and fact.boot not in (None, disk.boot_id()) for fact in self._facts.blob(digest)
        )
        try:
            self._believe(digest, before, sealed=survived)
        except OSError as error:
            log.info("cannot note that %s is right: %s", digest, error)
        return True

    def read(self, digest: Digest) -> bytes:
        """Return the bytes of a (small) blob.

        Raises:
            ContentError: there is no such blob that can be believed.
        """
        path = self.locate(digest)
        if path is None:
            raise ContentError(f"no blob {digest} in the store")
        return path.read_bytes()

    # --- aside ---------------------------------------------------------------------------------------------

    def put_aside(self, digest: Digest, size: int | None = None) -> Path | None:
        """Rename a blob away and judge what is held: a right one is linked back. Return what stays aside.

        With `size`, the size that its digest is known to have, one of another size is wrong unread.
        """
        path = self._layout.blob(digest)
        held = self._layout.aside(digest.hex)
        disk.make_folder(held.parent)
        try:
            disk.rename(path, held)
        except FileNotFoundError:
            return None
        except PermissionError:  # a colleague's folder, which may only be renamed where it is
            held = path.with_name(f".{held.name}")
            disk.rename(path, held)
        self.forget(digest)
        if self._matches(held, digest, size):
            self.link_back(held, digest)
            return None
        if not os.path.lexists(held):  # another process judged it first, and linked it back or removed it
            return None
        held = self._give_to_its_own(held, digest) or self._name_bad(held, digest)
        log.warning("blob %s has other bytes than its name says; it lies in %s now", digest, held)
        for call in self._when_bad:
            call(digest)
        return held

    def _give_to_its_own(self, held: Path, digest: Digest) -> Path | None:
        """Give a file of ours whose bytes are another blob's that was here to that one: it may be the only copy."""
        try:
            fd = disk.open_file(held)
        except OSError:
            return None
        try:
            own = Digest.of_file(fd) if disk.is_ours(os.fstat(fd)) else digest
            if own == digest or not self._facts.blob(own):
                return None
            disk.rename(held, moved := self._layout.aside(own.hex))
        except OSError as error:
            log.info("%s is not given to the blob whose bytes it has: %s", held, error)
            return None
        finally:
            os.close(fd)
        path = self._layout.blob(own)
        if os.path.lexists(path):  # it is here, or as wrong as this one was
            return moved
        self.link_back(moved, own)
        return path

    def _name_bad(self, held: Path, digest: Digest) -> Path:
        """Say in the name that it was hashed and found wrong: its signature may still be the one that facts name."""
        if not held.name.startswith("."):
            with contextlib.suppress(OSError):
                disk.rename(held, bad := self._layout.aside(f"{digest.hex}.bad"))
                return bad
        return held

    def forget(self, digest: Digest) -> None:
        """No longer believe a blob without looking at what facts say."""
        with self._lock:
            self._known.pop(digest, None)
            self._sealed.pop(digest, None)

    def link_back(self, held: Path, digest: Digest) -> None:
        """Give what is held in `aside/` its name back; fine if another process did, or took it away."""
        path = self._layout.blob(digest)
        try:
            disk.make_folder(path.parent)
            disk.link(held, path)
        except FileExistsError:
            pass
        except FileNotFoundError:
            return
        except OSError as error:
            if not disk.is_link_refusal(error):
                raise
            disk.rename(held, path)
        disk.unlink(held)

    def _bring_back(self, digest: Digest) -> Path | None:
        folder = self._layout.root / "aside"
        for name in disk.names(folder):
            is_candidate = name.startswith(f"{digest.hex}.") and not name.startswith(f"{digest.hex}.bad.")
            if is_candidate and self._matches(folder / name, digest):  # by its signature, rot would come back
                if self._read_only:
                    return folder / name
                try:
                    self.link_back(folder / name, digest)
                except OSError as error:
                    log.info("blob %s cannot be brought back from aside/: %s", digest, error)
                path = self._layout.blob(digest)
                return path if path.exists() else None
        return None

    def drop_healed(self) -> None:
        """Delete what lies in `aside/` for no reason: copies of what is here again, whole, and views."""
        folder = self._layout.root / "aside"
        for name in disk.names(folder):
            hex, _, rest = name.partition(".")
            with contextlib.suppress(ContentError, OSError):
                if hex.startswith("view-"):
                    disk.remove_tree(folder / name)
                elif self._is_healed(Digest(hex), is_manifest=rest.startswith("json.")):
                    disk.unlink(folder / name)

    def _is_healed(self, digest: Digest, *, is_manifest: bool) -> bool:
        if is_manifest:
            return Digest.of(disk.read_file(self._layout.manifest(digest), MAX_BYTES)) == digest
        return self._layout.blob(digest).exists() and self.locate_here(digest) is not None

    # --- durability ------------------------------------------------------------------------------------------

    def seal(self, digest: Digest) -> None:
        """Return when a trusted blob's bytes will survive a power cut, and note it."""
        path = self._layout.blob(digest)
        fd = disk.open_file(path)
        try:
            signature = self._owners.signature(os.fstat(fd))
            if not self.is_trusted(digest, signature):
                raise ContentError(f"blob {digest} changed before it was sealed")
            disk.sync(fd)
        finally:
            os.close(fd)
        self._facts.add_blob(BlobFact(digest, signature, disk.boot_id(), sealed=True))

    def folders(self, digest: Digest) -> list[Path]:
        """The folders whose names a blob needs, the innermost first."""
        path = self._layout.blob(digest)
        return [path.parent, path.parent.parent]


def explain(error: OSError, doing: str) -> CasError | OSError:
    """Return the error as one clear line where a user can do something about it."""
    if error.errno == errno.EMFILE:
        return CasError(f"{doing}: too many open files; raise the limit (`ulimit -n`) or lower `concurrency`")
    return disk.translate(error, doing) or error
