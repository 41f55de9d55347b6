"""Remote identity: which version of which object some bytes came from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Self

from cas.errors import ContentError


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
        url, size = data.get("url"), data.get("size")
        if not isinstance(url, str) or not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise ContentError(f"not a remote identity: {data!r:.120}")
        for name, kind in (("etag", str), ("version", str), ("modified", int)):
            if not isinstance(data.get(name), kind | None):
                raise ContentError(f"not a remote identity: {name} is {data[name]!r:.80}")
        return cls(**data)

    @property
    def key(self) -> str:
        """One canonical string: equal exactly when the identities are."""
        return json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
