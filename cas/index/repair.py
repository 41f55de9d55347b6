"""Repair: plan what to do about problems, and do it, with what is on this disk. Nothing is rewritten in place.

What the origins of checkpoints can give is the caller's to bring (cas/actions/repairing.py): `Sources` says what there
is, and is asked for it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from stat import S_ISREG
from typing import Protocol

from cas.errors import CasError, ContentError, DigestMismatchError
from cas.index import compaction, disk, lines
from cas.index.copies import Copies
from cas.index.digest import Digest
from cas.index.locks import is_abandoned
from cas.index.problems import Kind, Problem
from cas.index.store import Store

log = logging.getLogger("cas.index")


class Remedy(StrEnum):
    """What is done about a problem."""

    COPY = "copy"  # the bytes of a blob, from a file on this disk
    MEND = "mend"  # a blob's damaged chunks, from other blobs here or an origin
    FETCH = "fetch"  # the bytes of a blob, from an origin
    REBUILD = "rebuild"  # a manifest, from what says the same
    ASK = "ask"  # for a manifest: list the origin
    RETAG = "retag"  # a ref, to the one manifest that fits its record
    PROTECT = "protect"
    MOVE = "move aside"
    REMOVE = "remove"
    REWRITE = "rewrite"
    KEEP = "keep"  # nothing can be done now; what is there stays, and is named


@dataclass(frozen=True, slots=True)
class Step:
    """One problem, and what is done about it; `source` says with what (a path, a URL), or why nothing can be done."""

    remedy: Remedy
    problem: Problem
    source: str = ""


@dataclass(frozen=True, slots=True)
class RepairPlan:
    """What repair will do, in order."""

    steps: tuple[Step, ...]

    @property
    def fetched(self) -> int:
        """The bytes that come from origins."""
        return sum(step.problem.size for step in self.steps if step.remedy is Remedy.FETCH)


@dataclass(frozen=True, slots=True)
class Result:
    """What happened to one problem: whether it is solved, and in words how, or why not."""

    step: Step
    solved: bool
    text: str


class Sources(Protocol):
    """Where lost bytes can come from: files of this host, and origins."""

    def files(self, digest: Digest) -> Iterable[Path]:
        """Files that should have these bytes; each is hashed before it is believed."""

    def origin(self, problem: Problem) -> str | None:
        """Name the origin that could be asked about a problem; None if there is none."""

    def mend(self, problem: Problem) -> str | None:
        """Bring a blob back, with only its damaged chunks from elsewhere; say how, if it is here now."""

    def fetch(self, problem: Problem) -> bool:
        """Bring a blob, or the manifest of a checkpoint, from its origin; whether that is here now."""

    def fitting(self, problem: Problem) -> Digest | None:
        """The one manifest here that has exactly the files of a checkpoint's record."""


# --- the plan --------------------------------------------------------------------------------------------------


def plan_repair(
    problems: Iterable[Problem],
    *,
    copies: Mapping[Digest, str],
    origins: Mapping[Problem, str],
    manifests: Mapping[Digest, str],
    fitting: Mapping[Problem, Digest],
    mine: Mapping[Path, bool],
    mendable: Collection[Digest] = (),
) -> RepairPlan:
    """Decide what to do about each problem; looks at nothing else.

    Args:
        problems: what check found.
        copies: blobs of which a file on this disk should have the bytes, and which.
        origins: problems about which an origin can be asked, and its URL.
        manifests: manifests that something on this disk says, and what.
        fitting: problems of lost refs, and the manifest that fits.
        mine: files of lines, and whether they are this user's of this host.
        mendable: blobs whose remains are here, and whose chunks are known from before the damage.
    """
    steps: list[Step] = []
    planned: set[Digest] = set()
    for problem in problems:
        digest = problem.digest
        if problem.kind in (Kind.DAMAGED_BLOB, Kind.MISSING_BLOB):
            if digest is None or digest in planned:
                continue
            planned.add(digest)
            steps.append(_bring(problem, copies.get(digest), origins.get(problem), may_mend=digest in mendable))
        elif problem.kind in (Kind.DAMAGED_MANIFEST, Kind.MISSING_MANIFEST):
            known = manifests.get(digest) if digest is not None else None
            steps.append(_rebuild(problem, known, origins.get(problem)))
        elif problem.kind is Kind.MISSING_REF:
            found = fitting.get(problem)
            reason = "no manifest here has exactly the files of its record"
            steps.append(Step(Remedy.RETAG, problem, str(found)) if found else Step(Remedy.KEEP, problem, reason))
        elif problem.kind is Kind.TORN_LINE:
            steps.append(_rewrite(problem, is_mine=mine.get(problem.path, False)))
        elif (remedy := _ALWAYS.get(problem.kind)) is not None:
            steps.append(Step(remedy, problem))
    return RepairPlan(tuple(sorted(steps, key=lambda step: _ORDER.index(step.remedy))))


_ALWAYS = {
    Kind.WRITABLE: Remedy.PROTECT,
    Kind.STRAY_FILE: Remedy.MOVE,
    Kind.ABANDONED: Remedy.REMOVE,
    Kind.ASIDE: Remedy.REMOVE,
    Kind.DAMAGED_VIEW: Remedy.REMOVE,
}

# Manifests first: what they name is known then. What is aside last: what it was may be here again by then.
_ORDER = [
    Remedy.RETAG,
    Remedy.REBUILD,
    Remedy.ASK,
    Remedy.PROTECT,
    Remedy.COPY,
    Remedy.MEND,
    Remedy.FETCH,
    Remedy.REWRITE,
    Remedy.MOVE,
    Remedy.REMOVE,
    Remedy.KEEP,
]


def _bring(problem: Problem, copy: str | None, origin: str | None, *, may_mend: bool) -> Step:
    if copy is not None:
        return Step(Remedy.COPY, problem, copy)
    if may_mend:
        return Step(Remedy.MEND, problem, f"its damaged chunks, from blobs here{f' or {origin}' if origin else ''}")
    if origin is not None:
        return Step(Remedy.FETCH, problem, origin)
    kept = "; what is left of it is kept in aside/" if problem.kind is Kind.DAMAGED_BLOB else ""
    return Step(Remedy.KEEP, problem, f"it was the only copy: no file here has its bytes, and it has no origin{kept}")


def _rebuild(problem: Problem, known: str | None, origin: str | None) -> Step:
    if known is not None:
        return Step(Remedy.REBUILD, problem, known)
    if origin is not None:
        return Step(Remedy.ASK, problem, origin)
    return Step(Remedy.KEEP, problem, "nothing here says what was in it, and the checkpoint has no origin")


def _rewrite(problem: Problem, *, is_mine: bool) -> Step:
    if is_mine:
        return Step(Remedy.REWRITE, problem)
    return Step(Remedy.KEEP, problem, "it is another user's or another host's, who alone may write it anew")


# --- doing it --------------------------------------------------------------------------------------------------


def execute_repair(store: Store, plan: RepairPlan, sources: Sources) -> list[Result]:
    """Do what was planned, one problem after the other; one that cannot be solved does not stop the others.

    Raises:
        NoSpaceError, NotAllowedError: the home cannot be written; what was done by then is done.
    """
    results = []
    for step in plan.steps:
        try:
            text = _DO[step.remedy](store, step, sources)
        except (CasError, OSError) as error:
            known = disk.translate(error, f"cannot repair {store.home}") if isinstance(error, OSError) else None
            if known is not None:
                raise known from error
            results.append(Result(step, False, str(error)))
            continue
        results.append(Result(step, text is not None, _why_not(step) if text is None else text))
    store.blobs.drop_healed()
    return results


def _why_not(step: Step) -> str:
    """Say why a step that was tried solved nothing."""
    return _IN_VAIN[step.remedy].format(step.source) if step.remedy in _IN_VAIN else step.source


_IN_VAIN = {
    Remedy.COPY: "{} has other bytes by now",
    Remedy.MEND: "it was the only copy: not enough of it is left here to mend it; what is left is kept in aside/",
    Remedy.FETCH: "{} does not have it",
    Remedy.REBUILD: "{} says something else by now",
    Remedy.ASK: "{} does not have it",
    Remedy.RETAG: "the manifest {} fits no longer",
    Remedy.PROTECT: "it is gone, or damaged, by now",
    Remedy.REMOVE: "it stays: what it was is not here again, whole, and this may be the only copy",
}


def repair_blob(store: Store, digest: Digest, files: Iterable[Path]) -> Path | None:
    """Bring the bytes of a blob back from files that should have them; return the one that had, or None.

    Each is copied (its blocks shared where the disk can) and hashed on the way in; other bytes are not kept.
    """
    for path in files:
        try:
            if _bring_from(store, digest, path):
                return path
        except (OSError, ContentError) as error:
            if isinstance(error, OSError) and disk.translate(error, "") is not None and _is_of_home(store, error):
                raise
            log.info("%s does not bring %s back: %s", path, digest, error)
    return None


def _is_of_home(store: Store, error: OSError) -> bool:
    """Whether the store's own disk is full or closed to us: then no other source will do."""
    return error.filename is None or str(error.filename).startswith(os.fspath(store.home))


def _bring_from(store: Store, digest: Digest, path: Path) -> bool:
    if path.is_relative_to(store.layout.views) and _link_from(store, digest, path):
        return True
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
    try:
        found = os.fstat(fd)
        if not S_ISREG(found.st_mode):
            return False
        with store.staging(f"repair {digest}") as staging, staging.ingest(found.st_size) as ingest:
            with ingest.range(0, found.st_size) as out:
                while out.left:
                    out.copy_from(fd, min(disk.COPY_WINDOW, out.left))
            ingest.commit(digest, durable=True)
    except (EOFError, DigestMismatchError) as error:
        log.info("%s has other bytes by now: %s", path, error)
        return False
    finally:
        os.close(fd)
    return True


def _link_from(store: Store, digest: Digest, path: Path) -> bool:
    """Give a view's own link to a blob whose name is gone that name back: not a byte is copied."""
    found = path.lstat()
    if not S_ISREG(found.st_mode) or found.st_mode & 0o777 != 0o444:
        return False
    held = store.layout.aside(digest.hex)
    disk.make_folder(held.parent)
    try:
        disk.link(path, held)
    except OSError as error:
        if not disk.is_link_refusal(error):
            raise
        return False
    return store.has(digest)  # hashes what is held in aside/ before it links it back


def _copy(store: Store, step: Step, sources: Sources) -> str | None:
    digest = _digest(step)
    if store.has(digest):  # another process, or a copy in aside/
        return "it is here again"
    found = repair_blob(store, digest, sources.files(digest))
    if found is not None:
        return f"brought back from {found}"
    return _fetch(store, step, sources) if sources.origin(step.problem) is not None else None


def _mend(store: Store, step: Step, sources: Sources) -> str | None:
    if store.has(_digest(step)):
        return "it is here again"
    found = sources.mend(step.problem)
    return found or (_fetch(store, step, sources) if sources.origin(step.problem) is not None else None)


def _fetch(store: Store, step: Step, sources: Sources) -> str | None:
    if store.has(_digest(step)):
        return "it is here again"
    origin = sources.origin(step.problem)
    return f"fetched from {origin}" if sources.fetch(step.problem) else None


def _rebuild_manifest(store: Store, step: Step, sources: Sources) -> str | None:
    digest = _digest(step)
    if store.refs.get(digest) is not None:
        return "it is here again"
    found = Copies(store).manifest(digest)
    if found is None:
        return _ask(store, step, sources) if sources.origin(step.problem) is not None else None
    manifest, source = found
    with store.staging("manifest") as staging:
        store.refs.put(manifest, staging.folder, durable=True)
    return f"made again from {source}"


def _ask(store: Store, step: Step, sources: Sources) -> str | None:
    if store.refs.get(_digest(step)) is not None:
        return "it is here again"
    return f"made again from {sources.origin(step.problem)}" if sources.fetch(step.problem) else None


def _retag(store: Store, step: Step, sources: Sources) -> str | None:
    found = sources.fitting(step.problem)
    if found is None or step.problem.checkpoint is None:
        return None
    manifest = store.refs.get(found)
    if manifest is None:
        return None
    store.tag(*step.problem.checkpoint, manifest, durable=True)
    return f"it consists of the manifest {found} again"


def _protect(store: Store, step: Step, _: Sources) -> str | None:
    digest = _digest(step)
    if not store.has(digest):
        return None
    fd = os.open(store.layout.blob(digest), os.O_RDONLY | os.O_CLOEXEC)
    try:
        if Digest.of_file(fd) != digest:
            store.blobs.put_aside(digest)
            raise ContentError(f"blob {digest} had other bytes than its name says; it is in aside/ now")
        disk.set_mode(fd, 0o444)
    finally:
        os.close(fd)
    return "hashed, and read-only now"


def _move(store: Store, step: Step, _: Sources) -> str | None:
    held = store.home / "aside" / f"stray.{secrets.token_hex(4)}"
    disk.make_folder(held.parent)
    disk.rename(step.problem.path, held)
    return f"it lies in {held} now"


def _remove(store: Store, step: Step, _: Sources) -> str | None:
    problem = step.problem
    if problem.kind is Kind.ABANDONED:
        if not is_abandoned(problem.path / "claim"):
            return "it is gone, or in use, by now"
        disk.remove_tree(problem.path)
        return "removed"
    if problem.kind is Kind.DAMAGED_VIEW:
        store.doubt_view(_digest(step), ())
        return "taken away, unless it is in use; it is made again when it is wanted"
    store.blobs.drop_healed()
    if not problem.path.exists():
        return "removed: what it was is here, whole"
    return None


def _keep(*_: object) -> None:
    return None


def _rewrite_lines(store: Store, step: Step, _: Sources) -> str | None:
    """Write all files of this writer in one folder anew; what was damaged in them is kept in `aside/`."""
    current = step.problem.path.with_name(store.layout.facts.name)
    torn = lines.Torn(kept=[])
    for path in compaction.own_files(current):
        with contextlib.suppress(FileNotFoundError):
            for _line in lines.read(path, torn=torn):
                pass
    if not torn.kept:
        return "written anew already"
    held = store.home / "aside" / f"torn.{secrets.token_hex(4)}"
    disk.make_folder(held.parent)
    fd = disk.create(held)
    try:
        disk.write(fd, b"".join(torn.kept))
        disk.sync(fd)
    finally:
        os.close(fd)
    compaction.compact(current)
    return f"written anew without them; they lie in {held}"


def _digest(step: Step) -> Digest:
    assert step.problem.digest is not None, "only problems of a blob or a manifest get such a step"
    return step.problem.digest


_DO: dict[Remedy, Callable[[Store, Step, Sources], str | None]] = {
    Remedy.COPY: _copy,
    Remedy.MEND: _mend,
    Remedy.FETCH: _fetch,
    Remedy.REBUILD: _rebuild_manifest,
    Remedy.ASK: _ask,
    Remedy.RETAG: _retag,
    Remedy.PROTECT: _protect,
    Remedy.MOVE: _move,
    Remedy.REMOVE: _remove,
    Remedy.REWRITE: _rewrite_lines,
    Remedy.KEEP: _keep,
}
