"""Which of a checkpoint's files are wanted: patterns, as shells have them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from cas.errors import NotFoundError, UsageError
from cas.index.manifest import Manifest
from cas.transfer.remote import Listing

_SPECIAL = re.compile(r"([*?[])")
_SHOWN = 5  # names in the message, where nothing matches


@dataclass(frozen=True, slots=True)
class Selection:
    """Files whose path matches one of `include` (none: every file) and none of `exclude`.

    `*` stands for anything, slashes too, `?` for one character, `[ab]` for one of these; `folder/` for all below it.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    @classmethod
    def of(cls, include: str | Iterable[str] | None = None, exclude: str | Iterable[str] | None = None) -> Selection:
        """Take one pattern or several of each.

        Raises:
            UsageError: one is empty, or no text.
        """
        return cls(_patterns("include", include), _patterns("exclude", exclude))

    @property
    def is_everything(self) -> bool:
        """Whether nothing is left out."""
        return not self.include and not self.exclude

    def takes(self, path: str) -> bool:
        """Whether a file is wanted."""
        wanted = not self.include or any(_matches(path, pattern) for pattern in self.include)
        return wanted and not any(_matches(path, pattern) for pattern in self.exclude)

    def require(self, paths: Iterable[str]) -> None:
        """Check that something of a checkpoint is wanted.

        Raises:
            NotFoundError: no path matches.
        """
        every = list(paths)
        if not self.is_everything and not any(map(self.takes, every)):
            names = ", ".join(every[:_SHOWN]) + (", …" if len(every) > _SHOWN else "")
            raise NotFoundError(f"no file is wanted: none of {names} matches {self}")

    def of_listing(self, listing: Listing) -> Listing:
        """Return what is wanted of a listing.

        Raises:
            NotFoundError: no file matches.
        """
        self.require(file.path for file in listing.files)
        return Listing(tuple(file for file in listing.files if self.takes(file.path)), listing.directories)

    def part_of(self, manifest: Manifest) -> Manifest:
        """Return what is wanted of a manifest; empty folders only with everything.

        Raises:
            NotFoundError: no file matches.
        """
        if self.is_everything:
            return manifest
        self.require(entry.path for entry in manifest.files)
        return Manifest.of(entry for entry in manifest.files if self.takes(entry.path))

    def __str__(self) -> str:
        words = [f"--include {pattern!r}" for pattern in self.include]
        return " ".join([*words, *(f"--exclude {pattern!r}" for pattern in self.exclude)]) or "everything"


EVERYTHING = Selection()


def literal(path: str) -> str:
    """Return the pattern that matches this path and no other."""
    return _SPECIAL.sub(r"[\1]", path)


def _patterns(name: str, given: str | Iterable[str] | None) -> tuple[str, ...]:
    found = (given,) if isinstance(given, str) else tuple(map(str, given or ()))
    for pattern in found:
        if not pattern:
            raise UsageError(f"{name} takes patterns like '*.json' or 'folder/', not {pattern!r:.80}")
    return found


def _matches(path: str, pattern: str) -> bool:
    return fnmatchcase(path, f"{pattern}*" if pattern.endswith("/") else pattern)
