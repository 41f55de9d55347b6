"""What may run while a checkpoint is loaded, and why something may not."""

from __future__ import annotations

from dataclasses import dataclass

from cas.config import Trust
from cas.errors import UnsafeContentError


@dataclass(frozen=True, slots=True)
class Permit:
    """The trust policy for one checkpoint.

    `unvouched` is why nobody vouches for it (with what to do about that), or None if somebody does: it came from a
    registry that the user configured, was added by the user, or lies at a path that the user named.
    """

    trust: Trust = Trust.SCAN
    unvouched: str | None = None

    @property
    def safe_only(self) -> bool:
        """Whether only formats that run nothing may be loaded."""
        return self.trust is Trust.NEVER or (self.trust is Trust.SCAN and self.unvouched is not None)

    @property
    def scans(self) -> bool:
        """Whether what would run is judged first."""
        return self.trust is not Trust.ALWAYS

    def refusal(self, what: str) -> UnsafeContentError:
        """Return the error for something that is no safe format; `what` says which file, and what it is."""
        why = "CAS_TRUST=never lets nothing else load" if self.trust is Trust.NEVER else self.unvouched
        return UnsafeContentError(f"{what}, and {why}")


__all__ = ["Permit"]
