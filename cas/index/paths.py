"""The one strict parser for names that come from outside: keys, tar members, manifests, records.

Holding a `RelativePath` is the proof that a name is safe to create below a folder.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Self

from cas.errors import UnsafeNameError

MAX_PART = 255  # bytes: what ext4, xfs, btrfs and APFS allow for one name
MAX_PATH = 4000  # bytes: below Linux' PATH_MAX of 4096, with room for nothing else, so the target must be short


_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")  # Unicode's category Cc


class RelativePath(str):
    """A relative POSIX path: no empty part, no `.` or `..`, no NUL, backslash or control character.

    Raises:
        UnsafeNameError: the text is none.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> Self:  # noqa: D102 - the class's docstring says it
        if type(text) is cls:
            return text
        if reason := _flaw(text):
            raise UnsafeNameError(_shown(text), reason)
        return super().__new__(cls, text)

    @classmethod
    def proven(cls, text: str) -> Self:
        """Take a text that the caller has shown to be such a path."""
        return super().__new__(cls, text)

    @property
    def name(self) -> str:
        """The last part."""
        return self.rpartition("/")[2]

    @property
    def parents(self) -> list[str]:
        """Every folder above, the outermost first: `a/b/c` has `a` and `a/b`."""
        parts = self.split("/")
        return ["/".join(parts[:count]) for count in range(1, len(parts))]


def _shown(text: object) -> str:
    return text[:200] if isinstance(text, str) else type(text).__name__


def _flaw(text: object) -> str | None:
    if not isinstance(text, str) or not text:
        return "empty, or not text"
    try:
        encoded = text.encode("utf-8")
    except UnicodeEncodeError:
        return "not valid Unicode"
    if len(encoded) > MAX_PATH:
        return f"longer than {MAX_PATH} bytes"
    if text.startswith("/"):
        return "absolute"
    if "\\" in text:
        return "has a backslash"
    if _CONTROL.search(text):
        return "has a control character"
    for part in text.split("/"):
        if not part:
            return "has an empty part"
        if part in (".", ".."):
            return f"has a part {part!r}"
        if len(part.encode("utf-8")) > MAX_PART:
            return f"has a part of more than {MAX_PART} bytes"
    return None


def parents_of(paths: Iterable[str]) -> set[str]:
    """Return every folder above some paths; each is looked at once, however many files it has."""
    found: set[str] = set()
    for folder in {path.rpartition("/")[0] for path in paths}:
        above = folder
        while above and above not in found:
            found.add(above)
            above = above.rpartition("/")[0]
    return found


def check_tree(files: Iterable[RelativePath], directories: Iterable[RelativePath] = ()) -> None:
    """Check that the names can lie in one tree: no name twice, and no file that is also a folder.

    Raises:
        UnsafeNameError: the first name that cannot.
    """
    seen: set[str] = set()
    for path in files:
        if path in seen:
            raise UnsafeNameError(path, "is there twice")
        seen.add(path)
    above: set[str] = {*directories}
    folders = above | parents_of((*seen, *above))
    if both := seen & folders:
        raise UnsafeNameError(min(both), "is a file and also a folder")


def check_distinct(paths: Iterable[str], *, fold_case: bool, normalize: bool) -> None:
    """Check that a disk which folds case or normalizes Unicode can tell the names apart.

    Raises:
        UnsafeNameError: two names (or two folders above them) would be one on that disk.
    """
    if not (fold_case or normalize):
        return
    every = list(paths)
    if _are_distinct({*every, *parents_of(every)}, fold_case=fold_case, normalize=normalize):
        return
    first: dict[str, str] = {}
    for path in every:
        prefix = ""
        for part in path.split("/"):
            prefix = f"{prefix}/{part}" if prefix else part
            key = unicodedata.normalize("NFC", prefix) if normalize else prefix
            key = key.casefold() if fold_case else key
            other = first.setdefault(key, prefix)
            if other != prefix:
                raise UnsafeNameError(prefix, f"this disk cannot tell it from {other!r}")


def _are_distinct(names: set[str], *, fold_case: bool, normalize: bool) -> bool:
    """Whether all names stay different: asked of all at once, because none has a newline, which nothing changes."""
    text = "\n".join(names)
    text = unicodedata.normalize("NFC", text) if normalize else text
    text = text.casefold() if fold_case else text
    return len(set(text.split("\n"))) == len(names)
