"""Checking and repairing a store: what is lost on this disk comes from other files here, or from its origin."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from cas.config import Settings
from cas.errors import CasError
from cas.index import check as quick
from cas.index import compaction, disk, stamps
from cas.index.check import Advance, CheckReport
from cas.index.copies import Copies, peek_manifest
from cas.index.digest import Digest
from cas.index.manifest import FileEntry, Manifest
from cas.index.problems import Kind, Problem
from cas.index.repair import Remedy, RepairPlan, Result, Step, execute_repair, plan_repair
from cas.index.store import Store
from cas.load.views import make_view
from cas.pull.origin import Origin
from cas.registry.catalog import Catalog
from cas.registry.lost import fitting_manifest, lost_refs
from cas.transfer.fetch import fetch_files
from cas.transfer.mending import MendReport, can_mend, mend
from cas.transfer.remote import Listing, Remote

log = logging.getLogger("cas.actions.repairing")

_BLOBS = (Kind.DAMAGED_BLOB, Kind.MISSING_BLOB)
_MANIFESTS = (Kind.DAMAGED_MANIFEST, Kind.MISSING_MANIFEST)


def check(
    store: Store,
    *,
    settings: Settings | None = None,
    deep: bool = False,
    rate: int | None = None,
    anew: bool = False,
    put_aside: bool = True,
    advance: Advance | None = None,
) -> CheckReport:
    """Check a store, records included; of what is lost, say what can be done about it.

    The arguments are those of `cas.index.check.check`, and the `settings` by which origins are found (default
    `Settings.load()`); none is asked.
    """
    report = quick.check(store, deep=deep, rate=rate, anew=anew, put_aside=put_aside, advance=advance)
    problems = (*report.problems, *lost_refs(store))
    if any(problem.kind in (*_BLOBS, *_MANIFESTS) for problem in problems):
        problems = tuple(_advised(store, problems, settings or Settings.load()))
    return replace(report, problems=problems)


def _advised(store: Store, problems: Iterable[Problem], settings: Settings) -> Iterator[Problem]:
    """Say of each lost blob and manifest where it can come from, or that nothing here has it."""
    found = list(problems)
    lost = [problem for problem in found if problem.kind in (*_BLOBS, *_MANIFESTS)]
    steps = {step.problem.digest: step for step in plan(store, lost, settings).steps}
    for problem in found:
        step = steps.get(problem.digest) if problem.kind in (*_BLOBS, *_MANIFESTS) else None
        yield problem if step is None else replace(problem, message=f"{problem.message}; {_advice(step)}")


def _advice(step: Step) -> str:
    if step.remedy is Remedy.KEEP:
        return step.source
    if step.remedy in (Remedy.FETCH, Remedy.ASK):
        return f"downloading it, or a repair, brings it back from {step.source}"
    return (
        f"a repair mends {step.source}" if step.remedy is Remedy.MEND else f"a repair brings it back from {step.source}"
    )


@dataclass(frozen=True, slots=True)
class RepairReport:
    """What was planned, what came of it, and what is still wrong."""

    plan: RepairPlan
    results: tuple[Result, ...]
    left: tuple[Problem, ...]


def plan(store: Store, problems: Iterable[Problem], settings: Settings) -> RepairPlan:
    """Say what repairing would do about problems; changes nothing, and asks no origin."""
    return _plan(store, list(problems), _Sources(store, settings))


def repair(store: Store, problems: Iterable[Problem], settings: Settings) -> RepairReport:
    """Repair what can be repaired. An only copy that is damaged is kept in `aside/`, and named.

    Raises:
        NoSpaceError: the disk is full; what was repaired by then stays, and the next call goes on.
        NotAllowedError: the home cannot be written.
    """
    sources = _Sources(store, settings)
    planned = _plan(store, list(problems), sources)
    results = execute_repair(store, planned, sources)
    # Manifests that are back may name blobs that are not here, and what was aside may be gone.
    left = check(store, settings=settings).damage
    again = [problem for problem in left if problem.kind in _BLOBS and _is_new(problem, planned)]
    if again:
        more = _plan(store, again, sources := _Sources(store, settings))
        results += execute_repair(store, more, sources)
        planned = RepairPlan((*planned.steps, *more.steps))
        left = check(store, settings=settings).damage
    _mend_views(store)
    return RepairReport(planned, tuple(results), left)


def _mend_views(store: Store) -> None:
    """Put files that are right again into views that somebody is inside of: those have no stamp any more."""
    for name in disk.names(store.layout.views):
        with contextlib.suppress(CasError, OSError):  # it is mended when it is wanted, then
            digest = Digest(name)
            manifest = None if (store.layout.view(digest) / stamps.NAME).exists() else store.refs.get(digest)
            if manifest is not None:
                make_view(store, manifest)
                store.leases.leave(digest)


def _is_new(problem: Problem, planned: RepairPlan) -> bool:
    return all(problem.digest != step.problem.digest for step in planned.steps)


def _plan(store: Store, problems: list[Problem], sources: _Sources) -> RepairPlan:
    sources.look_for({problem.digest for problem in problems if problem.digest is not None})
    copies, manifests, origins, fitting = {}, {}, {}, {}
    for problem in problems:
        digest = problem.digest
        if digest is not None and problem.kind in _BLOBS and (paths := sources.files(digest)):
            copies[digest] = str(paths[0])
        if digest is not None and problem.kind in _MANIFESTS and (known := sources.copies.manifest(digest)) is not None:
            manifests[digest] = str(known[1])
        if problem.kind in (*_BLOBS, *_MANIFESTS) and (url := sources.origin(problem)) is not None:
            origins[problem] = url
        if problem.kind is Kind.MISSING_REF and (found := sources.fitting(problem)) is not None:
            fitting[problem] = found
    mine = {problem.path: _is_mine(store, problem.path) for problem in problems if problem.kind is Kind.TORN_LINE}
    mendable = {problem.digest for problem in problems if problem.digest is not None and sources.can_mend(problem)}
    return plan_repair(
        problems, copies=copies, origins=origins, manifests=manifests, fitting=fitting, mine=mine, mendable=mendable
    )


def _is_mine(store: Store, path: Path) -> bool:
    return path in compaction.own_files(path.with_name(store.layout.facts.name))


def _how(done: MendReport) -> str:
    elsewhere = f"{done.donated} bytes came from other blobs, {done.fetched} from its origin"
    return f"mended: {done.kept} bytes of it were whole, {elsewhere}"


@dataclass(frozen=True, slots=True)
class _Place:
    """One file of one checkpoint."""

    registry: str
    uuid: str
    entry: FileEntry


class _Sources:
    """Where lost bytes can come from."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self._store = store
        self._settings = settings
        self._wanted: set[Digest] = set()
        self._remotes: dict[str, Remote | None] = {}
        self._listings: dict[str, Listing] = {}
        self.copies = Copies(store)

    def look_for(self, digests: set[Digest]) -> None:
        """Say which blobs will be asked for."""
        self._wanted = digests

    def files(self, digest: Digest) -> list[Path]:
        """Files of views and of downloads that had the bytes of a blob."""
        return self.copies.files(digest)

    def fitting(self, problem: Problem) -> Digest | None:
        """The one manifest that has exactly the files of a checkpoint's record."""
        return None if problem.checkpoint is None else fitting_manifest(self._store, problem.checkpoint[1])

    def origin(self, problem: Problem) -> str | None:
        """The URL of the first checkpoint with what is lost that has an origin."""
        remote = next((remote for uuid in self._uuids(problem) if (remote := self._remote(uuid)) is not None), None)
        return None if remote is None else remote.url

    def can_mend(self, problem: Problem) -> bool:
        """Whether a blob may be mended chunk by chunk."""
        size = self._size(problem)
        return problem.digest is not None and size is not None and can_mend(self._store, problem.digest, size)

    def mend(self, problem: Problem) -> str | None:
        """Mend a blob: with other blobs here alone if that will do, else with the origins of its checkpoints."""
        digest, size = problem.digest, self._size(problem)
        if digest is None or size is None:
            return None
        if (done := mend(self._store, digest, size)) is not None:
            return _how(done)
        for uuid in self._uuids(problem):
            remote = self._remote(uuid)
            try:
                found = None if remote is None else self._mend_from(problem, uuid, remote)
            except CasError as error:
                log.info("checkpoint %s does not help to mend %s: %s", uuid, digest, error)
                continue
            if found is not None:
                return found
        return None

    def _mend_from(self, problem: Problem, uuid: str, remote: Remote) -> str | None:
        digest, size = problem.digest, self._size(problem)
        if digest is None or size is None:
            return None
        paths = {place.entry.path for place in self._places.get(digest, []) if place.uuid == uuid}
        for file in self._listing(uuid, remote).files:
            if file.path in paths and file.size == size:
                done = mend(self._store, digest, size, remote=remote, file=file)
                return None if done is None else f"{_how(done)} ({file.identity.url})"
        return None

    def _size(self, problem: Problem) -> int | None:
        """The size that a blob should have, as manifests say: what is left of it may be shorter."""
        if problem.digest is None or problem.kind not in _BLOBS:
            return None
        return next((place.entry.size for place in self._places.get(problem.digest, [])), None)

    def fetch(self, problem: Problem) -> bool:
        """Bring a blob, or a manifest, from the origins of the checkpoints that need it.

        Raises:
            CasError: the last origin that was asked said no; or it has other bytes by now.
        """
        problems: list[CasError] = []
        for uuid in self._uuids(problem):
            remote = self._remote(uuid)
            if remote is None:
                continue
            try:
                if problem.kind in _BLOBS:
                    return self._fetch_blob(problem, uuid, remote)
                return self._fetch_manifest(problem, uuid, remote)
            except CasError as error:
                log.info("%s does not help: %s", remote.url, error)
                problems.append(error)
        if problems:
            raise problems[-1]
        return False

    # --- blobs -----------------------------------------------------------------------------------------------

    def _fetch_blob(self, problem: Problem, uuid: str, remote: Remote) -> bool:
        """Read one file anew; its bytes are stored under their own digest, whatever that is."""
        assert problem.digest is not None, "problems of blobs name their digest"
        if self._mend_from(problem, uuid, remote) is not None:  # a sidecar may know its chunks
            return True
        paths = {place.entry.path for place in self._places.get(problem.digest, []) if place.uuid == uuid}
        files = [file for file in self._listing(uuid, remote).files if file.path in paths and file.size == problem.size]
        if not files:
            raise CasError(f"{remote.url} has no file {min(paths)} of {problem.size} bytes any more")
        fetch_files(self._store, remote, files[:1], settings=self._settings)
        if not self._store.has(problem.digest):
            raise CasError(f"{files[0].identity.url} has other bytes by now")
        return True

    def _uuids(self, problem: Problem) -> list[str]:
        if problem.digest is not None and problem.kind in _BLOBS:
            return list(dict.fromkeys(place.uuid for place in self._places.get(problem.digest, [])))
        return [] if problem.checkpoint is None else [problem.checkpoint[1]]

    @cached_property
    def _places(self) -> Mapping[Digest, list[_Place]]:
        """Which files of which checkpoints have the bytes that are looked for."""
        found: dict[Digest, list[_Place]] = {}
        for place in self._all_places():
            if place.entry.digest in self._wanted and place.entry.digest is not None:
                found.setdefault(place.entry.digest, []).append(place)
        return found

    def _all_places(self) -> Iterator[_Place]:
        for registry, uuid, digests in self._store.refs.all():
            for digest in digests:
                try:
                    manifest = peek_manifest(self._store, digest)
                except (CasError, OSError):
                    continue
                for entry in manifest.files if manifest is not None else ():
                    yield _Place(registry, uuid, entry)

    def _remote(self, uuid: str) -> Remote | None:
        if uuid not in self._remotes:
            try:
                self._remotes[uuid] = self._find_remote(uuid)
            except CasError as error:
                log.info("checkpoint %s has no origin that can be asked: %s", uuid, error)
                self._remotes[uuid] = None
        return self._remotes[uuid]

    def _find_remote(self, uuid: str) -> Remote:
        return Origin(Catalog(self._store).checkpoint(uuid), self._settings).remote()

    def _listing(self, uuid: str, remote: Remote) -> Listing:
        if uuid not in self._listings:
            self._listings[uuid] = remote.list()
        return self._listings[uuid]

    # --- manifests -------------------------------------------------------------------------------------------

    def _fetch_manifest(self, problem: Problem, uuid: str, remote: Remote) -> bool:
        """Make a manifest of what the origin lists and what facts say of that; else fetch the checkpoint anew."""
        assert problem.digest is not None, "problems of manifests name their digest"
        listing = self._listing(uuid, remote)
        facts = self._store.facts.origins(file.identity for file in listing.files)
        if all(file.identity in facts for file in listing.files):
            entries = [
                FileEntry(file.path, file.size, facts[file.identity].digest, executable=file.executable)
                for file in listing.files
            ]
            manifest = Manifest.of(entries, listing.directories)
            if manifest.digest == problem.digest:
                with self._store.staging("manifest") as staging:
                    self._store.refs.put(manifest, staging.folder, durable=True)
                return True
        Origin(Catalog(self._store).checkpoint(uuid), self._settings).fetch(self._store)
        if self._store.refs.get(problem.digest) is None:
            raise CasError(f"{remote.url} was fetched anew, and has other files than the lost manifest named")
        return True
