"""Values from outside as plain JSON: bounded in depth, with no NaN, no broken text, and no credential in them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any
from urllib.parse import urlsplit, urlunsplit

_PASSWORD = re.compile(r"(?<=://)[^\s/?#@]*:[^\s/?#@]*@")  # of a user, in a URL
MAX_DEPTH = 64  # levels; a configuration has fewer than ten, and a line of records may have 100 around them

# In checkpoint_storage and in environment variables anything that could be one is taken for a credential …
_LOOSE = re.compile(r"key|token|secret|passw|credential|connection_?string|signature|auth|(^|_)sas(_|$)", re.IGNORECASE)
# … elsewhere only what is certain, as text: `max_tokens`, `pad_token` and `key_size` are hyperparameters.
_STRICT = re.compile(
    r"(^|_)(passw(or)?d|secret|credentials?|connection_?string|(access|secret|api|private|account|sas)_?key"
    r"|(access|auth|api|session|refresh|bearer|sas|user)_?token)$"
)


def is_whole(value: object, least: int) -> bool:
    """Whether a value is a whole number (no boolean) of at least so much, that SQLite and JSON can hold."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 1 << 63


def is_name(value: object) -> bool:
    """Whether a value is text with something in it."""
    return isinstance(value, str) and value != ""


def plain(value: object, *, depth: int = MAX_DEPTH) -> Any:
    """Return a value as JSON can hold it: NaN and infinities as the strings that masters use, no lone surrogates.

    Raises:
        ValueError: it has no form in JSON, or is nested too deeply.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return _number(float(value))
    if depth <= 0:
        raise ValueError(f"more than {MAX_DEPTH} levels deep")
    if isinstance(value, Mapping):
        return {_key(key): plain(one, depth=depth - 1) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one, depth=depth - 1) for one in value]
    if isinstance(value, PurePath):
        return _text(str(value))
    number = as_number(value)
    if number is not value:
        return plain(number, depth=depth - 1)
    raise ValueError(f"JSON has no {type(value).__name__}")


def same(one: object, other: object) -> bool:
    """Whether two plain JSON values are the same; Python alone takes `true` for 1, and `false` for 0."""
    if one != other:
        return False
    return repr(one) == repr(other) or _same(one, other)


def _same(one: object, other: object) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return all(_same(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return all(map(_same, one, other))
    return isinstance(one, bool) == isinstance(other, bool)


def as_number(value: object) -> object:
    """Return Python's own number for one of numpy, or for what holds exactly one (a tensor); all else as it is."""
    try:
        return value.item()  # type: ignore[attr-defined]
    except (AttributeError, TypeError, ValueError, RuntimeError):
        return value


def _number(value: float) -> float | str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return value


def _text(value: str) -> str:
    return str(value) if value.isascii() else value.encode("utf-8", "replace").decode("utf-8")


def _key(key: object) -> str:
    if isinstance(key, str):
        return _text(key)
    if isinstance(key, int):
        return str(key)
    raise ValueError(f"JSON has no {type(key).__name__} as a name")


def without_credentials(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a configuration (or metadata) with no credential in it.

    The keys are left out: of `checkpoint_storage` everything that could be one, also inside URLs; of the
    environment `registry_auth` and variables with such names; elsewhere what is certainly one by its name.
    """
    kept: dict[str, Any] = {}
    for key, value in config.items():
        if key == "checkpoint_storage" and isinstance(value, Mapping):
            kept[key] = _storage(value)
        elif key == "environment_variables":
            kept[key] = _variables(value)
        elif key != "registry_auth" and not (_STRICT.search(_snake(key)) and isinstance(value, str)):
            kept[key] = _inside(value)
    return kept


def _inside(value: Any) -> Any:
    if isinstance(value, Mapping):
        name = value.get("name")
        if isinstance(name, str) and "value" in value and _STRICT.search(_snake(name)):
            return without_credentials({key: one for key, one in value.items() if key != "value"})
        return without_credentials(value)
    if isinstance(value, list):
        return [_inside(one) for one in value]
    return _PASSWORD.sub("", value) if isinstance(value, str) else value


def _storage(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _storage(one) for key, one in value.items() if not _LOOSE.search(_snake(key))}
    if isinstance(value, list):
        return [_storage(one) for one in value]
    return _bare_url(value) if isinstance(value, str) and "://" in value else value


def _bare_url(url: str) -> str | None:
    """A URL with no user, password, query (a signature) or fragment; None if it cannot be told apart."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _variables(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _variables(one) for key, one in value.items() if not _LOOSE.search(key)}
    if isinstance(value, list):
        return [one for one in value if not (isinstance(one, str) and _LOOSE.search(one.partition("=")[0]))]
    return value


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).replace("-", "_").lower()
