"""What a pull would do, donors included: asks the remote, changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from cas.config import Settings
from cas.errors import CheckpointNotFoundError
from cas.index.digest import Digest
from cas.index.manifest import Manifest
from cas.index.store import Store
from cas.transfer.donations import plan_file
from cas.transfer.hints import Hints, domain_of
from cas.transfer.large import LargeFiles
from cas.transfer.plan import plan_pull, split
from cas.transfer.remote import Remote, RemoteFile
from cas.transfer.selection import EVERYTHING, Selection
from cas.transfer.session import Session
from cas.transfer.sidecars import without_sidecars
from cas.transfer.small import SmallFiles
from cas.transfer.watched import Watch
from cas.transfer.workers import Workers, wait_all


@dataclass(frozen=True, slots=True)
class FilePreview:
    """How one file would come: what is read from its origin, and what is copied from which blobs here."""

    path: str
    size: int
    fetch: int = 0  # bytes; what is left of an interrupted transfer is not taken off
    requests: int = 0
    donors: Mapping[Digest, int] = field(default_factory=dict)  # bytes of each; the file itself, if it is here
    told: int = 0  # bytes that the sidecar carries, or that are made of the directory

    @property
    def here(self) -> int:
        """The bytes that need not be fetched."""
        return self.size - self.fetch


@dataclass(frozen=True, slots=True)
class Preview:
    """What a pull would do."""

    url: str
    files: tuple[FilePreview, ...]

    @property
    def size(self) -> int:
        """The bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def fetch(self) -> int:
        """The bytes to fetch."""
        return sum(file.fetch for file in self.files)

    @property
    def requests(self) -> int:
        """The requests that read them; listing and asking for checksums cost a few more."""
        return sum(file.requests for file in self.files)

    @property
    def donors(self) -> dict[Digest, int]:
        """The bytes that blobs here give, most first."""
        found: dict[Digest, int] = {}
        for file in self.files:
            for blob, count in file.donors.items():
                found[blob] = found.get(blob, 0) + count
        return dict(sorted(found.items(), key=lambda one: (-one[1], one[0])))

    @classmethod
    def of_manifest(cls, url: str, manifest: Manifest) -> Preview:
        """Return that of a checkpoint that is here."""
        found = [
            FilePreview(str(entry.path), entry.size, donors={entry.digest: entry.size})
            for entry in manifest.files
            if entry.digest is not None
        ]
        return cls(url, tuple(found))


def preview(
    store: Store,
    remote: Remote,
    *,
    registry: str,
    uuid: str,
    settings: Settings,
    selection: Selection = EVERYTHING,
    watch: Watch | None = None,
) -> Preview:
    """Say what `pull` would do. Blobs are not cut to look for chunks in them, as `pull` may do.

    Raises:
        CheckpointNotFoundError: there are no files.
        NotFoundError: none of them is selected.
        CasError: as `pull`, of what is asked of the remote.
    """
    session = Session(store, remote, settings, None, watch)
    hints = Hints(session, domain_of(registry, uuid, remote), may_cut=False)
    workers = Workers(settings.concurrency, session.stop, "cas-plan")
    try:
        with workers:
            hints.begin()
            return _Preview(session, hints, workers).run(selection)
    finally:
        session.stop.set()


class _Preview:
    def __init__(self, session: Session, hints: Hints, workers: Workers) -> None:
        self._session = session
        self._workers = workers
        reading = Workers(session.settings.concurrency, session.stop, "cas-look")
        self._large, self._small = LargeFiles(session, reading, hints), SmallFiles(session, workers, hints)
        self._reading = reading

    def run(self, selection: Selection) -> Preview:
        remote, store = self._session.remote, self._session.store
        listing = without_sidecars(remote.list())
        if not listing.files and not listing.directories:
            raise CheckpointNotFoundError(f"there are no files at {remote.url}")
        listing = selection.of_listing(listing)
        facts = store.facts.origins(file.identity for file in listing.files)
        known = {identity: fact.digest for identity, fact in facts.items()}
        plan = plan_pull(listing, known.get, store.has)
        here = [FilePreview(str(file.path), file.size, donors={digest: file.size}) for file, digest in plan.here]
        with self._reading:
            work = [self._workers.submit(self._large_file, unit.files[0]) for unit in plan.units if unit.is_large]
            small = [self._small_file(file) for unit in plan.units if not unit.is_large for file in unit.files]
            found = [*here, *small, *wait_all(work, self._session.stop)]
        return Preview(remote.url, tuple(sorted(found, key=lambda one: one.path)))

    def _large_file(self, file: RemoteFile) -> FilePreview:
        attempt = self._large.prepare(file)
        plan = plan_file(file.size, attempt.donations)
        donors: dict[Digest, int] = {}
        for copy in plan.copies:
            if copy.donation.donor is not None:
                donors[copy.donation.donor] = donors.get(copy.donation.donor, 0) + copy.end - copy.start
        fetch, told = plan.bytes_to_fetch, plan.bytes_copied - sum(donors.values())
        return FilePreview(str(file.path), file.size, fetch, len(split(plan.fetch)), donors, told)

    def _small_file(self, file: RemoteFile) -> FilePreview:
        given = self._small.given(file)
        if given is None:
            return FilePreview(str(file.path), file.size, file.size, 1 if file.size else 0)
        if self._small.is_told(file):
            return FilePreview(str(file.path), file.size, told=file.size)
        return FilePreview(str(file.path), file.size, donors={Digest.of(given[0]): file.size})


def holders(store: Store, blobs: Mapping[Digest, int]) -> Iterator[tuple[str, str, int]]:
    """Yield registry and UUID of checkpoints that have blobs, each blob's bytes once, with the first that has it."""
    left = dict(blobs)
    for registry, uuid, digests in store.refs.all():
        if not left:
            return
        found = [manifest for digest in digests if (manifest := store.refs.get(digest)) is not None]
        names = {entry.digest for manifest in found for entry in manifest.files if entry.digest is not None}
        count = sum(left.pop(blob) for blob in names & left.keys())
        if count:
            yield registry, uuid, count
