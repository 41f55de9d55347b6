"""Check: does the store hold what its names say? Quick by facts, deep by reading everything.

What is found wrong is put aside at once, so that nobody is served it; nothing is deleted.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from stat import S_ISREG
from typing import NamedTuple, TypeVar

from cas.errors import CasError, ContentError
from cas.index import disk, lines
from cas.index.copies import peek_manifest, stamped_views
from cas.index.deep import Cursor, Pace
from cas.index.digest import Digest
from cas.index.disk import Signature
from cas.index.facts import BlobFact
from cas.index.locks import is_abandoned
from cas.index.problems import Kind as Kind
from cas.index.problems import Problem as Problem
from cas.index.problems import Severity as Severity
from cas.index.store import Store

log = logging.getLogger("cas.index")

T = TypeVar("T")

_BATCH = 1000  # blobs whose facts are asked for at once


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What check saw: the problems, how many blobs and bytes, how many of them were read in full."""

    problems: tuple[Problem, ...]
    blobs: int
    size: int
    read: int
    read_before: int  # not read now: a deep check that was interrupted had read them
    unproven: int  # not read, and without a usable fact: they will be hashed before they are used

    @property
    def damage(self) -> tuple[Problem, ...]:
        """The problems that are more than debris."""
        return tuple(problem for problem in self.problems if problem.severity is Severity.DAMAGE)


Advance = Callable[[int, int], None]  # bytes done, bytes in all


def check(
    store: Store,
    *,
    deep: bool = False,
    rate: int | None = None,
    anew: bool = False,
    put_aside: bool = True,
    advance: Advance | None = None,
) -> CheckReport:
    """Check a store.

    Args:
        store: which.
        deep: read every blob, else only those whose stat is not what a fact says. Goes on where a deep check of this
            host's user was interrupted less than a week ago, in the same boot.
        rate: read no more than so many bytes a second.
        anew: read every blob, wherever an earlier check stopped.
        put_aside: move damaged blobs away; else they are only named.
        advance: called with the bytes done and the bytes in all.
    """
    blobs = _Blobs(store, deep=deep, put_aside=put_aside)
    with _noting(store):
        problems = list(blobs.problems(rate, anew=anew, advance=advance))
    if deep:
        problems += _views(store, put_aside=put_aside)
    problems += _checkpoints(store, blobs)
    problems += _stray_manifests(store)
    problems += _lines(store)
    problems += _debris(store)
    counts = (blobs.read, blobs.read_before, blobs.unproven)
    return CheckReport(tuple(problems), len(blobs.sizes), sum(blobs.sizes.values()), *counts)


@contextlib.contextmanager
def _noting(store: Store) -> Iterator[None]:
    """Within, what is found right is noted many at a time; in a home that we may only read, not at all."""
    done = False
    try:
        with store.facts.grouped():
            yield
            done = True
    except OSError as error:
        if not done:
            raise
        log.info("what was found right is not noted: %s", error)


class _File(NamedTuple):
    """A file below `blobs/`; its digest, if its name is one."""

    path: str
    digest: Digest | None
    stat: os.stat_result


class _Blobs:
    def __init__(self, store: Store, *, deep: bool, put_aside: bool) -> None:
        self.store = store
        self.deep = deep
        self.put_aside = put_aside
        self.sizes: dict[Digest, int] = {}
        self.read = 0
        self.read_before = 0
        self.unproven = 0

    def problems(self, rate: int | None, *, anew: bool, advance: Advance | None) -> Iterator[Problem]:
        found = list(_blobs(self.store))
        total, done, reached = sum(file.stat.st_size for file in found), 0, 0
        start = Cursor.anew if anew else Cursor.resume
        cursor = start(self.store) if self.deep else None

        def tell(count: int) -> None:
            nonlocal reached
            reached = min(reached + count, total)
            if advance is not None:
                advance(reached, total)

        try:
            for batch in _batches(found, _BATCH):
                facts = self.store.facts.blobs(file.digest for file in batch if file.digest is not None)
                for file in batch:
                    reading = Pace(rate, tell)
                    yield from self._problems(file, facts.get(file.digest, []) if file.digest else [], cursor, reading)
                    done += file.stat.st_size
                    tell(max(done - reached, 0))
        except BaseException:
            if cursor is not None:
                cursor.save()
            raise
        if cursor is not None:
            cursor.done()

    def _problems(self, file: _File, facts: list[BlobFact], cursor: Cursor | None, pace: Pace) -> Iterator[Problem]:
        path, digest, stat = Path(file.path), file.digest, file.stat
        if digest is None:
            yield Problem(Kind.STRAY_FILE, path, "no blob: its name is no digest; move it away", size=stat.st_size)
            return
        self.sizes[digest] = stat.st_size
        try:
            wrong = self._is_wrong(digest, self.store.owners.signature(stat), facts, cursor, pace)
        except FileNotFoundError:  # removed in between: whether it is missed is seen with the checkpoints
            del self.sizes[digest]
            return
        except OSError as error:  # not ours to read
            self.unproven += 1
            log.warning("blob %s cannot be read: %s", digest, error)
            return
        if wrong:
            del self.sizes[digest]
            yield Problem(Kind.DAMAGED_BLOB, path, self._take_away(digest), digest, stat.st_size)
        elif stat.st_mode & 0o222:
            yield Problem(Kind.WRITABLE, path, "should be read-only: chmod a-w", digest, stat.st_size)

    def _is_wrong(
        self, digest: Digest, signature: Signature, facts: list[BlobFact], cursor: Cursor | None, pace: Pace
    ) -> bool:
        matching = [fact for fact in facts if fact.signature == signature]
        is_usable = any(fact.usable for fact in matching)
        if cursor is None:
            if is_usable:
                return False
            if matching or not facts:
                self.unproven += 1
                return False
        elif is_usable and cursor.passed(digest):
            self.read_before += 1
            return False
        self.read += 1
        is_right = self.store.blobs.verify(digest, pace)
        if cursor is not None:
            cursor.reached(digest)
        return not is_right

    def has(self, digest: Digest) -> bool:
        """Whether a blob that a checkpoint needs is here: one that came meanwhile, or comes back from `aside/`, too."""
        if digest in self.sizes:
            return True
        return self.store.has(digest) if self.put_aside else _is_held(self.store, digest)

    def _take_away(self, digest: Digest) -> str:
        text = "its bytes are not those of its name"
        if not self.put_aside:
            return text
        try:
            held = self.store.blobs.put_aside(digest)
        except OSError as error:
            log.warning("cannot move the damaged blob %s away: %s", digest, error)
            held = None
        where = f"it lies in {held} now" if held else "it could not be moved away"
        return f"{text}; {where}"


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    left = iter(items)
    while batch := list(islice(left, size)):
        yield batch


def _blobs(store: Store) -> Iterator[_File]:
    """Yield everything below `blobs/`, in order of digest."""
    root = os.fspath(store.home / "blobs")
    for path, stat in _files(root):
        above, _, name = path[len(root) + 1 :].rpartition("/")
        try:
            yield _File(path, Digest(above + name) if len(above) == 2 else None, stat)
        except ContentError:
            yield _File(path, None, stat)


def _checkpoints(store: Store, blobs: _Blobs) -> Iterator[Problem]:
    needed: set[Digest] = set()
    for registry, uuid, digests in store.refs.all():
        for digest in digests:
            path = store.layout.manifest(digest)
            existed = path.exists()
            try:
                manifest = store.refs.get(digest) if blobs.put_aside else peek_manifest(store, digest)
            except CasError as error:
                text = f"{error} (checkpoint {uuid})"
                yield Problem(Kind.DAMAGED_MANIFEST, path, text, digest, checkpoint=(registry, uuid))
                continue
            except OSError as error:
                text = f"cannot be read: {error.strerror} (checkpoint {uuid})"
                yield Problem(Kind.DAMAGED_MANIFEST, path, text, digest, checkpoint=(registry, uuid))
                continue
            if manifest is None:
                kind = Kind.DAMAGED_MANIFEST if existed else Kind.MISSING_MANIFEST
                text = f"checkpoint {uuid} of {registry} cannot be listed without it"
                yield Problem(kind, path, text, digest, checkpoint=(registry, uuid))
                continue
            for entry in manifest.files:
                if entry.digest is None or entry.digest in needed:
                    continue
                needed.add(entry.digest)
                if not blobs.has(entry.digest):
                    text = f"{entry.path} of checkpoint {uuid} of {registry} is not here"
                    where = store.layout.blob(entry.digest)
                    yield Problem(Kind.MISSING_BLOB, where, text, entry.digest, entry.size, (registry, uuid))
    for digest, size in blobs.sizes.items():
        if digest not in needed:
            yield Problem(Kind.UNREFERENCED, store.layout.blob(digest), "no checkpoint needs it", digest, size)


def _views(store: Store, *, put_aside: bool) -> Iterator[Problem]:
    """Read the copies in views: the links are blobs, which were read."""
    for name, tree, files in stamped_views(store):
        bad = [path for path, hex in files.copies() if not _holds(tree, path, hex)]
        if bad and _is_digest(name):
            text = f"its file {bad[0]!r:.100} has other bytes than the checkpoint's; it is made again when it is wanted"
            if put_aside:
                with contextlib.suppress(OSError):
                    store.doubt_view(Digest(name), bad)
            yield Problem(Kind.DAMAGED_VIEW, tree.parent, text, Digest(name))


def _holds(tree: Path, path: object, hex: object) -> bool:
    try:
        fd = disk.open_file(tree / str(path))
    except OSError:
        return False  # gone, or something else: no loader is given such a view
    try:
        return Digest.of_file(fd).hex == hex
    finally:
        os.close(fd)


def _stray_manifests(store: Store) -> Iterator[Problem]:
    root = os.fspath(store.home / "manifests")
    for path, stat in _files(root):
        above, _, name = path[len(root) + 1 :].rpartition("/")
        if not (len(above) == 2 and name.endswith(".json") and _is_digest(above + name.removesuffix(".json"))):
            text = "no manifest: its name is no digest; move it away"
            yield Problem(Kind.STRAY_FILE, Path(path), text, size=stat.st_size)


def _is_digest(hex: str) -> bool:
    with contextlib.suppress(ContentError):
        Digest(hex)
        return True
    return False


def _lines(store: Store) -> Iterator[Problem]:
    for pattern in ("facts/*.jsonl", "records/*/*.jsonl"):
        for path in sorted(store.home.glob(pattern)):
            torn = lines.Torn()
            try:
                for _ in lines.read(path, torn=torn):
                    pass
            except FileNotFoundError:  # written anew meanwhile
                continue
            except OSError as error:
                is_file = S_ISREG(path.lstat().st_mode)
                text = f"cannot be read: {error.strerror or error}; every reader passes over it"
                yield Problem(Kind.TORN_LINE if is_file else Kind.STRAY_FILE, path, text)
                continue
            if torn.count:
                text = f"{torn.count} lines are damaged and are skipped by every reader"
                yield Problem(Kind.TORN_LINE, path, text)


def _debris(store: Store) -> Iterator[Problem]:
    for path, stat in _files(os.fspath(store.home / "aside")):
        digest = _digest_aside(Path(path).name)
        text = "was damaged, or on its way out, and is used by nobody"
        yield Problem(Kind.ASIDE, Path(path), text, digest, stat.st_size)
    for name, _ in _files(os.fspath(store.home / "ingest")):
        claim = Path(name)
        if claim.name == "claim" and is_abandoned(claim):
            size = sum(stat.st_size for _, stat in _files(os.fspath(claim.parent)))
            text = "of a process that was killed; downloading the same again resumes it"
            yield Problem(Kind.ABANDONED, claim.parent, text, size=size)


def _is_held(store: Store, digest: Digest) -> bool:
    """Whether the bytes of a blob lie in `aside/`, from where the next reader brings them back."""
    for name in disk.names(store.home / "aside"):
        if name.startswith(f"{digest.hex}."):
            with contextlib.suppress(OSError):
                fd = disk.open_file(store.home / "aside" / name)
                try:
                    if Digest.of_file(fd) == digest:
                        return True
                finally:
                    os.close(fd)
    return False


def _digest_aside(name: str) -> Digest | None:
    """The digest of what is held under a name in `aside/`, if it is a blob or a manifest."""
    with contextlib.suppress(ContentError):
        return Digest(name.partition(".")[0])
    return None


def _files(folder: str) -> Iterator[tuple[str, os.stat_result]]:
    # Not by Path.rglob: folders that somebody removes meanwhile are errors to it.
    for path in sorted(f"{above}/{name}" for above, _, names in os.walk(folder) for name in names):
        with contextlib.suppress(FileNotFoundError):
            yield path, os.lstat(path)
