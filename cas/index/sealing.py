"""Closing a store for images and read-only mounts: every blob looked at and synced, everything readable (F47).

Each step leaves a store that works; the one that seals it is the last, a rename of `format.json`. A call that was
killed goes on where it stopped: what has its seal is not looked at again.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cas.errors import CasError, ContentError, NotAllowedError
from cas.index import disk, leases
from cas.index.digest import Digest
from cas.index.disk import Signature
from cas.index.layout import FORMAT_BYTES
from cas.index.locks import is_abandoned
from cas.index.store import Store, explained, forget_store
from cas.index.usage import blobs_here

log = logging.getLogger("cas.index")

_GROUP = 500  # seals per write: what a kill loses is looked at again
_NOT_NEEDED = ("locks", "leases")  # in an image: of processes that are none there

Advance = Callable[[int, int], None]  # bytes done, bytes in all


@dataclass(frozen=True, slots=True)
class SealReport:
    """What sealing did: blobs in the store and their bytes, how many were read, whose files are not all here."""

    blobs: int
    size: int
    hashed: int
    incomplete: tuple[str, ...]  # UUIDs
    was_sealed: bool = False


def seal_store(store: Store, *, advance: Advance = lambda done, total: None) -> SealReport:
    """Close a store: from now on it is only read, also when it was copied into an image.

    Raises:
        NotAllowedError: it is not this user's, or cannot be written.
        ContentError: blobs are damaged; they are aside, and the store was not sealed.
        CasError: processes use it.
    """
    sizes = blobs_here(store)
    if store.about.format.sealed is not None:
        return SealReport(len(sizes), sum(sizes.values()), 0, (), was_sealed=True)
    _require_ours(store)
    _require_quiet(store)
    before = store.blobs.hashed
    with explained(f"cannot seal {store.home}"):
        while unsealed := {digest: size for digest, size in sizes.items() if not _has_seal(store, digest)}:
            _seal_blobs(store, unsealed, sum(sizes.values()), advance)
            sizes = blobs_here(store)  # another process may have added some
        incomplete = tuple(_incomplete(store))
        _tidy(store)
        _open_to_all(store.home)
        _set_sealed(store.home, disk.now())
    forget_store(store)
    return SealReport(len(sizes), sum(sizes.values()), store.blobs.hashed - before, incomplete)


def unseal_store(store: Store) -> bool:
    """Open a sealed store again; False if it was none. Modes stay as sealing made them, but for the home's own.

    Raises:
        NotAllowedError: it is another user's, or cannot be written.
    """
    if store.about.format.sealed is None:
        return False
    disk.thaw(store.home)
    try:
        with explained(f"cannot open {store.home}"):
            _set_sealed(store.home, None)
            if not store.about.shared:
                disk.change_mode(store.home, 0o700)
    except BaseException:
        disk.freeze(store.home)
        raise
    forget_store(store)
    return True


# --- may it be sealed ----------------------------------------------------------------------------------------------


def _require_ours(store: Store) -> None:
    store.about.require_writable("it cannot be sealed")
    if not disk.is_ours(store.home.stat()):
        raise NotAllowedError(f"the store {store.home} is another user's, who alone can seal it")


def _require_quiet(store: Store) -> None:
    living = leases.living(store.layout, disk.clock(store.home))
    users = [lease.who for id, lease in living.items() if id != store.leases.id]
    claims = [path for path in store.home.glob("ingest/*/*/claim") if not is_abandoned(path)]
    if users or claims:
        who = users[0] if users else f"a transfer in {claims[0].parent}"
        raise CasError(f"the store {store.home} is in use ({who}); seal it when nobody works with it")


def _incomplete(store: Store) -> Iterator[str]:
    for registry, uuid, _ in store.refs.all():
        manifest = store.resolve(registry, uuid)
        if manifest is None or not manifest.complete or store.absent(manifest):
            yield uuid


# --- blobs -----------------------------------------------------------------------------------------------------------


def _signature(store: Store, digest: Digest) -> Signature:
    return Signature.of(store.layout.blob(digest).lstat())


def _has_seal(store: Store, digest: Digest) -> bool:
    try:
        signature = _signature(store, digest)
    except FileNotFoundError:  # removed in between
        return True
    return store.facts.is_sealed(digest, signature) and store.blobs.is_trusted(digest, signature)


def _seal_blobs(store: Store, wanted: dict[Digest, int], total: int, advance: Advance) -> None:
    done = total - sum(wanted.values())
    seals: list[tuple[Digest, Signature]] = []
    bad: list[Digest] = []
    for digest, size in wanted.items():
        if store.blobs.locate_here(digest) is None:
            if store.layout.blob(digest).exists():
                raise NotAllowedError(f"blob {digest} cannot be read or moved away")
            bad.append(digest)
        else:
            store.blobs.seal(digest)
            seals.append((digest, _signature(store, digest)))
        if len(seals) >= _GROUP:
            store.facts.add_seals(seals)
            seals = []
        done += size
        advance(done, total)
    store.facts.add_seals(seals)
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise ContentError(f"{bad[0]}{more} in {store.home}: damaged, and aside now; `cas check --repair` heals")


# --- the rest of the home --------------------------------------------------------------------------------------------


def _tidy(store: Store) -> None:
    """Remove what is of no use in an image: views (their links would be copied as files), indexes, dead transfers."""
    store.close()
    for name in disk.names(store.layout.views):
        with contextlib.suppress(ContentError):
            store.drop_view(Digest(name))
    store.blobs.drop_healed()
    for folder in (store.home / "ingest").iterdir():
        if folder.is_dir():
            disk.remove_tree(folder)
    for name in _NOT_NEEDED:
        disk.remove_tree(store.home / name)
    for path in (*store.home.glob("index-*"), *store.home.glob("chunks-*")):
        disk.unlink(path)


def _open_to_all(home: Path) -> None:
    """Let every user read everything, and sync it: what is in an image is used by users who are not known yet."""
    for folder, _, names in os.walk(home, topdown=False):
        for name in names:
            _open_file(Path(folder, name))
        found = os.lstat(folder)
        if found.st_mode & 0o555 != 0o555 and _may_change(found):
            disk.change_mode(Path(folder), stat.S_IMODE(found.st_mode) | 0o555)
        disk.sync_folder(Path(folder))


def _open_file(path: Path) -> None:
    try:
        fd = disk.open_file(path)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ELOOP):
            raise
        log.info("%s is no file of the store", path)
        return
    try:
        found = os.fstat(fd)
        if found.st_mode & 0o444 != 0o444 and _may_change(found):
            disk.set_mode(fd, stat.S_IMODE(found.st_mode) | 0o444)
        disk.sync(fd)
    finally:
        os.close(fd)


def _may_change(found: os.stat_result) -> bool:
    return disk.is_ours(found) or os.geteuid() == 0  # in a group's store there are files of other members


def _set_sealed(home: Path, at: float | None) -> None:
    path = home / "format.json"
    document = json.loads(disk.read_file(path, FORMAT_BYTES))
    document.pop("sealed", None)
    if at is not None:
        document["sealed"] = at
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    fd = disk.create(new, 0o644)
    try:
        disk.write(fd, json.dumps(document, indent=1).encode() + b"\n")
        disk.set_mode(fd, 0o644)
        disk.sync(fd)
    finally:
        os.close(fd)
    disk.rename(new, path)
    disk.sync_folder(home)
