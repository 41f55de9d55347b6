"""What `check` finds wrong: each kind with what it means and what `repair` would do about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from cas.index.digest import Digest


class Kind(StrEnum):
    """What is wrong."""

    DAMAGED_BLOB = "damaged blob"  # other bytes than its name says; it is in aside/ now
    MISSING_BLOB = "missing blob"  # a manifest names it: legal, but the checkpoint cannot be loaded without its origin
    DAMAGED_MANIFEST = "damaged manifest"
    MISSING_MANIFEST = "missing manifest"  # a ref names it
    DAMAGED_VIEW = "damaged view"  # a copy in it has other bytes; it is taken away
    MISSING_REF = "missing ref"  # of a checkpoint that was added here, and of which nothing says what it consists of
    TORN_LINE = "torn line"  # in facts or records
    STRAY_FILE = "stray file"  # a name in blobs/ or manifests/ that is no digest; no file where lines belong
    WRITABLE = "writable blob"
    UNREFERENCED = "unreferenced blob"  # no checkpoint needs it
    ABANDONED = "abandoned transfer"
    ASIDE = "put aside"


class Severity(StrEnum):
    """How bad it is."""

    DAMAGE = "damage"  # bytes are wrong or gone
    DEBRIS = "debris"  # takes room, harms nobody


_DEBRIS = {Kind.UNREFERENCED, Kind.ABANDONED, Kind.ASIDE, Kind.DAMAGED_VIEW}

REMEDIES = {
    Kind.DAMAGED_BLOB: "brings the bytes back, from a copy on this disk or from the origin; the damaged file goes then",
    Kind.MISSING_BLOB: "brings the bytes back, from a copy on this disk or from the origin",
    Kind.DAMAGED_MANIFEST: "makes it again, from a view, a downloaded folder or the origin, where its digest comes out",
    Kind.MISSING_MANIFEST: "makes it again, from a view, a downloaded folder or the origin, where its digest comes out",
    Kind.DAMAGED_VIEW: "takes it away; it is made again when it is wanted",
    Kind.MISSING_REF: "makes it again, if one manifest here has exactly the files of the checkpoint's record",
    Kind.TORN_LINE: "writes the file anew without them, if it is yours",
    Kind.STRAY_FILE: "moves it into aside/",
    Kind.WRITABLE: "hashes it, and makes it read-only",
    Kind.UNREFERENCED: "leaves it: `cas prune` removes it",
    Kind.ABANDONED: "removes it",
    Kind.ASIDE: "removes it if what it was is here again, whole; else it stays: it may be the only copy",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that check found wrong, with what it means; `checkpoint` is `(registry, UUID)` where it is one's."""

    kind: Kind
    path: Path
    message: str
    digest: Digest | None = None
    size: int = 0
    checkpoint: tuple[str, str] | None = None

    @property
    def severity(self) -> Severity:
        """How bad it is."""
        return Severity.DEBRIS if self.kind in _DEBRIS else Severity.DAMAGE

    @property
    def remedy(self) -> str:
        """What repair does about problems of this kind."""
        return REMEDIES[self.kind]
