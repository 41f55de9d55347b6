"""What a pull will do: pure, printable, with totals in bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from cas.index.digest import Digest
from cas.index.identity import RemoteIdentity
from cas.index.paths import RelativePath
from cas.index.ranges import Range
from cas.transfer.remote import Listing, RemoteFile

# Bytes per request: 8 to 32 MiB cost the same 1.1 to 1.2 CPU seconds per GiB. With the server's share (it has the same
# two cores), 16 to 64 MiB on 3 to 6 threads lie within the noise of each other. A kill loses one range a thread.
RANGE = 16 << 20
SMALL = 8 << 20  # bytes; smaller files are read whole, in batches: one lock and one group of facts for many
BATCH_BYTES = 64 << 20
BATCH_FILES = 1000


@dataclass(frozen=True, slots=True)
class Unit:
    """What one process does at once, alone: a large file, or a batch of small ones."""

    key: str  # names its lock and its staging folder, the same in every process
    files: tuple[RemoteFile, ...]

    @property
    def is_large(self) -> bool:
        """Whether it is one file that is read in ranges."""
        return len(self.files) == 1 and self.files[0].size >= SMALL

    @property
    def size(self) -> int:
        """The bytes of its files."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True, slots=True)
class PullPlan:
    """Which files are here, and which units fetch the others."""

    directories: tuple[RelativePath, ...]
    here: tuple[tuple[RemoteFile, Digest], ...]
    units: tuple[Unit, ...]
    bytes_here: int
    bytes_to_fetch: int
    requests: int  # for the bytes, if nothing is resumed; listing and checksums cost a few more

    @property
    def files_to_fetch(self) -> int:
        """How many files are not here."""
        return sum(len(unit.files) for unit in self.units)

    def __str__(self) -> str:
        return (
            f"{self.files_to_fetch} files ({self.bytes_to_fetch} bytes) to fetch with {self.requests} requests,"
            f" {len(self.here)} files ({self.bytes_here} bytes) already here"
        )


@dataclass(slots=True)
class _Batch:
    files: list[RemoteFile] = field(default_factory=list)
    wanted: list[RemoteFile] = field(default_factory=list)
    size: int = 0

    def takes(self, file: RemoteFile) -> bool:
        return len(self.files) < BATCH_FILES and (not self.files or self.size + file.size <= BATCH_BYTES)


def plan_pull(
    listing: Listing, known: Callable[[RemoteIdentity], Digest | None], have: Callable[[Digest], bool]
) -> PullPlan:
    """Decide what to fetch of a listing.

    Args:
        listing: what the remote has.
        known: the digest of a remote identity's bytes, if it was ever fetched.
        have: whether a blob is in the store and can be believed.

    Which small files share a batch follows from the listing alone, so that all processes name it alike.
    """
    here: list[tuple[RemoteFile, Digest]] = []
    large: list[Unit] = []
    batches: list[_Batch] = []
    for file in listing.files:
        digest = known(file.identity)
        is_here = digest is not None and have(digest)
        if digest is not None and is_here:
            here.append((file, digest))
        if file.size >= SMALL:
            if not is_here:
                large.append(unit_of(file))
            continue
        if not batches or not batches[-1].takes(file):
            batches.append(_Batch())
        batches[-1].files.append(file)
        batches[-1].size += file.size
        if not is_here:
            batches[-1].wanted.append(file)
    units = (*large, *_units(batches))
    return PullPlan(
        directories=listing.directories,
        here=tuple(here),
        units=units,
        bytes_here=sum(file.size for file, _ in here),
        bytes_to_fetch=sum(unit.size for unit in units),
        requests=sum(_requests(file) for unit in units for file in unit.files),
    )


def pull_key(registry: str, uuid: str, selection: object = "") -> str:
    """Name the work of pulling a checkpoint, or the selected files of it: its lock, and where it says how far it is."""
    return f"pull {registry} {uuid} {selection}"


def unit_of(file: RemoteFile) -> Unit:
    """Return the unit of one file alone."""
    return Unit(f"file {file.identity.key}", (file,))


def _units(batches: Iterable[_Batch]) -> Iterator[Unit]:
    for batch in batches:
        if batch.wanted:
            names = "\n".join(file.identity.key for file in batch.files)
            yield Unit(f"batch {Digest.of(names.encode()).hex}", tuple(batch.wanted))


def _requests(file: RemoteFile) -> int:
    if file.size < SMALL:
        return 1 if file.size else 0
    return len(split([Range(0, file.size)]))


def split(gaps: Iterable[Range], size: int = RANGE) -> list[Range]:
    """Cut ranges at the multiples of `size`: which requests read them.

    Cutting at multiples keeps ranges aligned to blocks, so that a resumed transfer can share them.
    """
    found = []
    for start, end in gaps:
        while start < end:
            cut = min(end, (start // size + 1) * size)
            found.append(Range(start, cut))
            start = cut
    return found
