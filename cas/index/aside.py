"""What lies in `aside/`: under suspicion or on its way out, and judged once more before it is deleted (F6)."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from cas.errors import ContentError
from cas.index import disk
from cas.index.digest import Digest
from cas.index.layout import quote_registry
from cas.index.leases import is_alive
from cas.index.marks import is_uuid
from cas.index.needs import Needs
from cas.index.store import Store


class What(StrEnum):
    """What something in `aside/` was."""

    BLOB = "blob"
    MANIFEST = "manifest"
    VIEW = "view"
    REFS = "refs"
    LEASE = "lease"


@dataclass(frozen=True, slots=True)
class Held:
    """One thing in `aside/`; sizes are in bytes, `since` in ns by the disk's clock."""

    path: Path
    what: What
    size: int
    since: int
    digest: Digest | None = None
    uuid: str | None = None
    names: int = 1  # of the file, anywhere


def held(store: Store) -> Iterator[Held]:
    """Yield what lies in `aside/`; names that say nothing to us are passed over."""
    folder = store.home / "aside"
    for name in disk.names(folder):
        with contextlib.suppress(OSError):
            found = _parse(folder / name)
            if found is not None:
                yield found


def _parse(path: Path) -> Held | None:
    stat = path.lstat()
    first, _, rest = path.name.partition(".")
    since = stat.st_ctime_ns
    kind, dash, name = first.partition("-")
    if dash and kind == "refs":
        return Held(path, What.REFS, 0, since, uuid=name) if is_uuid(name) else None
    if dash:
        return Held(path, What(kind), 0, since) if kind in (What.VIEW, What.LEASE) else None
    try:
        digest = Digest(first)
    except ContentError:
        return None
    what = What.MANIFEST if rest.startswith("json.") else What.BLOB
    return Held(path, what, stat.st_size, since, digest, names=stat.st_nlink)


# --- putting things there ----------------------------------------------------------------------------------------


def take_refs(store: Store, uuid: str) -> list[Held]:
    """Rename all refs of a checkpoint away.

    Raises:
        PermissionError: another user closed a folder of them; none was taken.
    """
    taken: list[Held] = []
    for registry in store.refs.registries(uuid):
        target = store.layout.aside(f"refs-{uuid}.{_key(quote_registry(registry))}")
        try:
            is_taken = _move(store.layout.refs(registry, uuid), target)
        except PermissionError:  # of a colleague, who closed the folder
            for one in taken:
                give_refs_back(store, one)
            raise
        if is_taken:
            taken.append(Held(target, What.REFS, 0, 0, uuid=uuid))
    return taken


def take_blob(store: Store, digest: Digest) -> Held | None:
    """Rename a blob away; None if it is not here."""
    target = store.layout.aside(digest.hex)
    if not _move(store.layout.blob(digest), target):
        return None
    store.blobs.forget(digest)
    return Held(target, What.BLOB, _size(target), 0, digest)


def take_manifest(store: Store, digest: Digest) -> Held | None:
    """Rename a manifest away; None if it is not here."""
    target = store.layout.aside(f"{digest.hex}.json")
    if not _move(store.layout.manifest(digest), target):
        return None
    return Held(target, What.MANIFEST, _size(target), 0, digest)


def _move(source: Path, target: Path) -> bool:
    try:
        try:
            disk.rename(source, target)
        except FileNotFoundError:
            if target.parent.exists():
                raise
            disk.make_folder(target.parent)
            disk.rename(source, target)
    except FileNotFoundError:
        return False
    return True


def _key(quoted: str) -> str:
    return Digest.of(quoted.encode()).hex[:32]


# --- and back ------------------------------------------------------------------------------------------------------


def give_refs_back(store: Store, one: Held) -> None:
    """Give refs their place back, beside any that were added since."""
    key = one.path.name.split(".")[1]
    assert one.uuid is not None, "refs are a checkpoint's"
    for quoted in disk.names(store.home / "refs"):
        if _key(quoted) == key:
            target = store.home / "refs" / quoted / one.uuid
            break
    else:
        return
    with contextlib.suppress(FileNotFoundError):  # another process gave them back, or deleted them
        try:
            disk.rename(one.path, target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            for name in disk.names(one.path):
                disk.rename(one.path / name, target / name)
            disk.remove_folder(one.path)


def give_back(store: Store, one: Held) -> None:
    """Give a blob or a manifest its name back if its bytes are right; a wrong one stays where it is."""
    assert one.digest is not None, "what has a name in the store has a digest"
    if one.what is What.MANIFEST:
        if store.refs.get(one.digest) is not None and store.layout.manifest(one.digest).exists():
            disk.unlink(one.path)
        return
    store.blobs.locate(one.digest)


# --- judging -------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Freed:
    """What was deleted for good."""

    blobs: int = 0
    size: int = 0  # bytes that came back: of a blob that has another name, none


def judge(
    store: Store, found: Iterable[Held], needs: Callable[[], Needs], *, claimed: Iterable[str], due: int
) -> Freed:
    """Give back what is needed; delete what is not, and was put aside at the time `due` (ns) or before.

    Refs first: what is needed is read (by `needs`) when those have their place again that somebody claims.
    """
    freed, claims, healed = Freed(), frozenset(claimed), False
    bytes_held = []
    for one in found:
        if one.what in (What.BLOB, What.MANIFEST):
            bytes_held.append(one)
        elif one.what is What.REFS and one.uuid in claims:
            give_refs_back(store, one)
        elif one.what is What.VIEW or (one.since <= due and not (one.what is What.LEASE and is_alive(one.path, due))):
            disk.remove_tree(one.path)
    wanted = needs()
    for one in bytes_held:
        if _is_needed(one, wanted):
            give_back(store, one)
            healed = healed or one.since <= due
        elif one.since <= due:
            _delete(store, one, freed)
    if healed:
        store.blobs.drop_healed()  # damaged copies of what is here, whole
    return freed


def _is_needed(one: Held, needs: Needs) -> bool:
    if one.what is What.MANIFEST:
        return one.digest in needs.manifests
    return one.digest in needs.digests or bool(needs.unknown)


def _delete(store: Store, one: Held, freed: Freed) -> None:
    try:
        links = one.path.lstat().st_nlink
    except FileNotFoundError:  # another process brought it back, or deleted it
        return
    disk.unlink(one.path)
    assert one.digest is not None, "blobs and manifests have a digest"
    if one.what is What.BLOB:
        freed.blobs += 1
        freed.size += one.size if links == 1 else 0
        if not store.layout.blob(one.digest).exists():
            store.chunks.forget(one.digest)


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):
        return os.stat(path).st_size
    return 0
