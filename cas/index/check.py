"""Check: does the store hold what its names say? Quick by facts, deep by reading everything.

What is found wrong is put aside at once, so that nobody is served it; nothing is deleted.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from cas.errors import CasError, ContentError
from cas.index import lines
from cas.index.digest import Digest
from cas.index.disk import Signature
from cas.index.locks import is_abandoned
from cas.index.store import Store

log = logging.getLogger("cas.index")


class Kind(StrEnum):
    """What is wrong."""

    DAMAGED_BLOB = "damaged blob"  # other bytes than its name says; it is in aside/ now
    DAMAGED_MANIFEST = "damaged manifest"
    MISSING_MANIFEST = "missing manifest"  # a ref names it
    MISSING_BLOB = "missing blob"  # a manifest names it: legal, but the checkpoint cannot be loaded without its origin
    TORN_LINE = "torn line"  # in facts or records
    STRAY_FILE = "stray file"  # a name in blobs/ or manifests/ that is no digest
    WRITABLE = "writable blob"
    UNREFERENCED = "unreferenced blob"  # no checkpoint needs it
    ABANDONED = "abandoned transfer"
    ASIDE = "put aside"


class Severity(StrEnum):
    """How bad it is."""

    DAMAGE = "damage"  # bytes are wrong or gone
    DEBRIS = "debris"  # takes room, harms nobody


_DEBRIS = {Kind.UNREFERENCED, Kind.ABANDONED, Kind.ASIDE}


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that check found wrong, with what it means and what can be done."""

    kind: Kind
    path: Path
    message: str
    digest: Digest | None = None
    size: int = 0

    @property
    def severity(self) -> Severity:
        """How bad it is."""
        return Severity.DEBRIS if self.kind in _DEBRIS else Severity.DAMAGE


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What check saw: the problems, how many blobs and bytes, how many of them were read in full."""

    problems: tuple[Problem, ...]
    blobs: int
    size: int
    read: int
    unproven: int  # not read, and without a usable fact: they will be hashed before they are used

    @property
    def damage(self) -> tuple[Problem, ...]:
        """The problems that are more than debris."""
        return tuple(problem for problem in self.problems if problem.severity is Severity.DAMAGE)


Advance = Callable[[int, int], None]  # bytes done, bytes in all


def check(store: Store, *, deep: bool = False, advance: Advance | None = None) -> CheckReport:
    """Check a store; `deep` reads every blob, else only those whose stat is not what a fact says."""
    blobs = _Blobs(store, deep=deep)
    problems = list(blobs.problems(advance))
    problems += _checkpoints(store, blobs)
    problems += _lines(store)
    problems += _debris(store)
    return CheckReport(tuple(problems), len(blobs.sizes), sum(blobs.sizes.values()), blobs.read, blobs.unproven)


class _Blobs:
    def __init__(self, store: Store, *, deep: bool) -> None:
        self.store = store
        self.deep = deep
        self.sizes: dict[Digest, int] = {}
        self.read = 0
        self.unproven = 0

    def problems(self, advance: Advance | None) -> Iterator[Problem]:
        found = list(_files(self.store.home / "blobs"))
        total, done = sum(stat.st_size for _, stat in found), 0
        for path, stat in found:
            yield from self._problems(path, stat)
            done += stat.st_size
            if advance is not None:
                advance(done, total)

    def _problems(self, path: Path, stat: os.stat_result) -> Iterator[Problem]:
        try:
            digest = Digest(path.parent.name + path.name)
        except ContentError:
            yield Problem(Kind.STRAY_FILE, path, "no blob: its name is no digest; move it away", size=stat.st_size)
            return
        self.sizes[digest] = stat.st_size
        try:
            wrong = self._is_wrong(digest, path, self.store.owners.signature(stat))
        except FileNotFoundError:  # removed in between: whether it is missed is seen with the checkpoints
            del self.sizes[digest]
            return
        if wrong:
            del self.sizes[digest]
            held = _put_aside(self.store, digest)
            where = f"it lies in {held} now" if held else "it could not be moved away"
            text = f"its bytes are not those of its name; {where}; the next download of a checkpoint with it heals it"
            yield Problem(Kind.DAMAGED_BLOB, path, text, digest, stat.st_size)
        elif stat.st_mode & 0o222:
            yield Problem(Kind.WRITABLE, path, "should be read-only: chmod a-w", digest, stat.st_size)

    def _is_wrong(self, digest: Digest, path: Path, signature: Signature) -> bool:
        facts = self.store.facts.blob(digest)
        matching = [fact for fact in facts if fact.signature == signature]
        if not self.deep:
            if any(fact.usable for fact in matching):
                return False
            if matching or not facts:
                self.unproven += 1
                return False
        self.read += 1
        return Digest.of_file(path) != digest


def _put_aside(store: Store, digest: Digest) -> Path | None:
    try:
        return store.blobs.put_aside(digest)
    except OSError as error:
        log.warning("cannot move the damaged blob %s away: %s", digest, error)
        return None


def _checkpoints(store: Store, blobs: _Blobs) -> Iterator[Problem]:
    needed: set[Digest] = set()
    for registry, uuid, digests in store.refs.all():
        for digest in digests:
            path = store.layout.manifest(digest)
            existed = path.exists()
            try:
                manifest = store.refs.get(digest)
            except CasError as error:
                yield Problem(Kind.DAMAGED_MANIFEST, path, f"{error} (checkpoint {uuid})", digest)
                continue
            if manifest is None:
                kind = Kind.DAMAGED_MANIFEST if existed else Kind.MISSING_MANIFEST
                text = f"checkpoint {uuid} of {registry} cannot be listed without it; download it again"
                yield Problem(kind, path, text, digest)
                continue
            for entry in manifest.files:
                if entry.digest is None or entry.digest in needed:
                    continue
                needed.add(entry.digest)
                if entry.digest not in blobs.sizes and not store.has(entry.digest):
                    text = f"{entry.path} of checkpoint {uuid} of {registry} is not here; downloading it brings it back"
                    yield Problem(Kind.MISSING_BLOB, store.layout.blob(entry.digest), text, entry.digest, entry.size)
    for digest, size in blobs.sizes.items():
        if digest not in needed:
            yield Problem(Kind.UNREFERENCED, store.layout.blob(digest), "no checkpoint needs it", digest, size)


def _lines(store: Store) -> Iterator[Problem]:
    for pattern in ("facts/*.jsonl", "records/*/*.jsonl"):
        for path in sorted(store.home.glob(pattern)):
            torn = lines.Torn()
            with contextlib.suppress(FileNotFoundError):  # of records that were written anew meanwhile
                for _ in lines.read(path, torn=torn):
                    pass
            if torn.count:
                text = f"{torn.count} lines are damaged and are skipped by every reader"
                yield Problem(Kind.TORN_LINE, path, text)


def _debris(store: Store) -> Iterator[Problem]:
    for path, stat in _files(store.home / "aside"):
        yield Problem(Kind.ASIDE, path, "was damaged, or on its way out, and is used by nobody", size=stat.st_size)
    for claim, _ in _files(store.home / "ingest"):
        if claim.name == "claim" and is_abandoned(claim):
            size = sum(stat.st_size for _, stat in _files(claim.parent))
            text = "of a process that was killed; downloading the same again resumes it"
            yield Problem(Kind.ABANDONED, claim.parent, text, size=size)


def _files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    # Not by Path.rglob: folders that somebody removes meanwhile are errors to it.
    for path in sorted(Path(above, name) for above, _, names in os.walk(folder) for name in names):
        with contextlib.suppress(FileNotFoundError):
            yield path, path.lstat()
