"""AWS' signature of a request, version 4, for requests with no body.

(https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html. botocore has it too, but loading that
part of botocore takes longer than listing a checkpoint; tests compare the two.)
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import quote

EMPTY = hashlib.sha256(b"").hexdigest()
_SAFE = "-_.~"


@dataclass(frozen=True, slots=True)
class Credentials:
    """What requests are signed with."""

    access_key: str
    secret_key: str
    token: str | None = None

    def __repr__(self) -> str:
        return "Credentials(…)"


def encode_path(path: str) -> str:
    """Return a path as it is sent, and signed."""
    return quote(path, safe="/" + _SAFE)


def encode_query(query: Mapping[str, str]) -> str:
    """Return a query as it is sent, and signed."""
    return "&".join(f"{quote(name, safe=_SAFE)}={quote(query[name], safe=_SAFE)}" for name in sorted(query))


def sign(
    method: str,
    *,
    host: str,
    path: str,
    query: str,
    headers: Mapping[str, str],
    credentials: Credentials,
    region: str,
    now: datetime,
) -> dict[str, str]:
    """Return the headers to send, signature included.

    Args:
        method: GET or HEAD.
        host: the host, with its port if that is not the scheme's.
        path: the path, encoded.
        query: the query, encoded and sorted; may be empty.
        headers: more headers, to be signed too.
        credentials: whose signature it is.
        region: of the bucket.
        now: the time in UTC.
    """
    time = now.strftime("%Y%m%dT%H%M%SZ")
    wanted = {**headers, "host": host, "x-amz-content-sha256": EMPTY, "x-amz-date": time}
    if credentials.token is not None:
        wanted["x-amz-security-token"] = credentials.token
    signed = {name.lower(): " ".join(value.split()) for name, value in wanted.items()}
    names = ";".join(sorted(signed))
    lines = [method, path, query, *(f"{name}:{signed[name]}" for name in sorted(signed)), "", names, EMPTY]
    request = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    scope = f"{time[:8]}/{region}/s3/aws4_request"
    key = f"AWS4{credentials.secret_key}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, f"AWS4-HMAC-SHA256\n{time}\n{scope}\n{request}".encode(), "sha256").hex()
    said = f"Credential={credentials.access_key}/{scope}, SignedHeaders={names}, Signature={signature}"
    return {**wanted, "Authorization": f"AWS4-HMAC-SHA256 {said}"}
