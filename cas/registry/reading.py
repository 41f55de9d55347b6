"""What comes from outside, read strictly: UUIDs in every form that a master takes, and JSON objects field by field."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from cas.errors import ContentError, UsageError
from cas.registry.values import plain

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.ASCII)
_UUID_HEX = re.compile(r"[0-9a-f]{32}", re.ASCII)


class State(StrEnum):
    """A checkpoint's state, as Determined names it."""

    ACTIVE = "ACTIVE"
    COMPLETED = "COMPLETED"
    ERROR = "ERROR"
    DELETED = "DELETED"
    PARTIALLY_DELETED = "PARTIALLY_DELETED"


def is_uuid(text: str) -> bool:
    """Whether a text is a UUID in canonical form."""
    return _UUID.fullmatch(text) is not None


def canonical_uuid(text: object) -> str:
    """Return a UUID in its canonical form (36 characters, lower case), from any form that a master takes.

    Those are 36 characters in any case, 32 hex digits, and 36 in `{…}` or after `urn:uuid:`.

    Raises:
        UsageError: it is none of them.
    """
    lower = str(text).strip().lower()
    if _UUID_HEX.fullmatch(lower):
        return "-".join((lower[:8], lower[8:12], lower[12:16], lower[16:20], lower[20:]))
    if lower.startswith("{") and lower.endswith("}"):
        lower = lower[1:-1]
    lower = lower.removeprefix("urn:uuid:")
    if not _UUID.fullmatch(lower):
        raise UsageError(f"not a checkpoint UUID: {str(text)!r:.80}")
    return lower


class Reader:
    """One JSON object from outside, read strictly: a field has its type, or the whole object is refused.

    Raises:
        ContentError: the value is no object, or a field is not what it must be.
    """

    def __init__(self, value: object, subject: str) -> None:
        self._subject = subject
        if not isinstance(value, Mapping):
            raise self.error("it is no object")
        self._value: Mapping[str, Any] = value

    def error(self, reason: str) -> ContentError:
        """Return the error that says what is wrong with it."""
        return ContentError(f"{self._subject}: {reason}")

    def _wrong(self, name: str) -> ContentError:
        return self.error(f"{name} is {self._value.get(name)!r:.60}")

    def __contains__(self, name: str) -> bool:
        return name in self._value

    def raw(self, name: str) -> Any:
        """Return a field as it is; None if it is absent."""
        return self._value.get(name)

    def inner(self, name: str) -> Reader:
        """Return a field that is an object; an absent one reads as empty. It is read only as far as it is asked for."""
        value = self._value.get(name)
        if value is not None and not isinstance(value, Mapping):
            raise self._wrong(name)
        return Reader(value or {}, f"{self._subject}: {name}")

    def text(self, name: str) -> str | None:
        """Return a field that is text."""
        value = self._value.get(name)
        if value is not None and not isinstance(value, str):
            raise self._wrong(name)
        return plain(value)  # type: ignore[no-any-return]

    def mapping(self, name: str) -> dict[str, Any] | None:
        """Return a field that is an object, as plain JSON."""
        value = self._value.get(name)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self._wrong(name)
        try:
            return plain(value)  # type: ignore[no-any-return]
        except ValueError as error:
            raise self.error(f"{name} is {error}") from error

    def whole(self, name: str) -> int | None:
        """Return a field that is a whole number of 0 or more; masters write some as text, or as doubles."""
        value = self._value.get(name)
        if value is None:
            return None
        found = _whole(value)
        if found is None:
            raise self._wrong(name)
        return found

    def ids(self, name: str) -> tuple[int, ...]:
        """Return a field that is a list of ids."""
        values = self._value.get(name) or []
        found = [_whole(value) for value in values] if isinstance(values, list) else [None]
        if None in found:
            raise self._wrong(name)
        return tuple(one for one in found if one is not None)

    def names(self, name: str) -> tuple[str, ...]:
        """Return a field that is a list of texts."""
        values = self._value.get(name) or []
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise self._wrong(name)
        return tuple(plain(value) for value in values)

    def truth(self, name: str) -> bool | None:
        """Return a field that is true or false."""
        value = self._value.get(name)
        if value is not None and not isinstance(value, bool):
            raise self._wrong(name)
        return value

    def sizes(self, name: str) -> dict[str, int]:
        """Return a field that maps names to sizes in bytes."""
        values = self._value.get(name)
        if values is None:
            return {}
        if not isinstance(values, Mapping):
            raise self._wrong(name)
        found: dict[str, int] = {}
        for key, value in values.items():
            size = _whole(value)
            if size is None:
                raise self.error(f"{name}: the size of {key!r:.60} is {value!r:.40}")
            found[plain(key)] = size
        return found

    def uuid(self, name: str) -> str:
        """Return a field that is the UUID of a checkpoint, in canonical form."""
        value = self._value.get(name)
        if not isinstance(value, str) or not _UUID.fullmatch(value):
            raise self._wrong(name)
        return value

    def state(self, name: str) -> State:
        """Return a field that is the state of a checkpoint, with or without the master's prefix."""
        value = self.text(name) or ""
        try:
            return State(value.removeprefix("STATE_"))
        except ValueError as error:
            raise self._wrong(name) from error


def _whole(value: object) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        value = int(value) if value.isascii() and value.isdigit() and len(value) < 20 else None
    if isinstance(value, float):
        value = int(value) if value.is_integer() else None
    return value if isinstance(value, int) and 0 <= value < 1 << 63 else None
