"""Remote identity: which version of which object some bytes came from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Self

from cas.errors import ContentError

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class RemoteIdentity:
    """Where an object lies and which version of it was seen.

    `url` is endpoint, bucket and key in one string (`s3+http://127.0.0.1:8333/bucket/key`, `file:///…`), with no
    credentials. `etag` is as the server gives it, with its quotes. `modified` is in nanoseconds since 1970.
    """

    url: str
    size: int
    etag: str | None = None
    version: str | None = None  # S3 version id, GCS generation, inode of a local file
    modified: int | None = None

    @property
    def has_validator(self) -> bool:
        """Whether a later read can prove that it sees this same version."""
        return self.version is not None or (self.etag is not None and not self.etag.startswith("W/"))

    def to_json(self) -> dict[str, Any]:
        """Return the members that are set, as JSON."""
        return {name: value for name in self.__slots__ if (value := getattr(self, name)) is not None}

    @classmethod
    def from_json(cls, data: object) -> Self:
        """Read what `to_json` wrote.

        Raises:
            ContentError: anything else.
        """
        if not isinstance(data, dict) or not data.keys() <= set(cls.__slots__):
            raise ContentError(f"not a remote identity: {data!r:.120}")
        for name, value in data.items():
            if not _is_whole(value) if name in ("size", "modified") else not _is_text(value):
                raise ContentError(f"not a remote identity: {name} is {value!r:.80}")
        if "url" not in data or data.get("size", -1) < 0:
            raise ContentError(f"not a remote identity: {data!r:.120}")
        return cls(**data)

    @property
    def key(self) -> str:
        """One canonical string: equal exactly when the identities are."""
        return _ENCODER.encode(self.to_json())


def _is_whole(value: object) -> bool:
    return type(value) is int and abs(value) < 1 << 63


def _is_text(value: object) -> bool:
    if type(value) is not str:
        return False
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can say and UTF-8 cannot
        return False
    return True
