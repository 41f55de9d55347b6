"""Signatures, compared with botocore's own for requests of all kinds."""

from __future__ import annotations

from datetime import UTC, datetime
from urllib.parse import urlsplit

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as Signer
from hypothesis import given
from hypothesis import strategies as st

from cas.transfer.sigv4 import Credentials, encode_path, encode_query, sign

NOW = datetime(2024, 2, 29, 23, 59, 59, tzinfo=UTC)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
plain = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=20)


@given(
    st.sampled_from(["GET", "HEAD"]),
    text,
    st.dictionaries(st.sampled_from(["prefix", "list-type", "continuation-token", "partNumber"]), text),
    st.sampled_from(["127.0.0.1:9000", "bucket.s3.eu-west-1.amazonaws.com"]),
    plain,
    st.one_of(st.none(), plain),
    st.booleans(),
)
def test_signatures_are_botocores(method, key, query, host, secret, token, checksums):
    path, encoded = encode_path(f"/bucket/{key}"), encode_query(query)
    headers = {"x-amz-checksum-mode": "ENABLED"} if checksums else {}
    ours = sign(
        method,
        host=host,
        path=path,
        query=encoded,
        headers=headers,
        credentials=Credentials("AKID", secret, token),
        region="eu-west-1",
        now=NOW,
    )
    request = AWSRequest(
        method=method, url=f"http://{host}{path}" + (f"?{encoded}" if encoded else ""), headers=headers
    )
    auth = S3SigV4Auth(Signer("AKID", secret, token), "s3", "eu-west-1")
    request.context["timestamp"] = ours["x-amz-date"]
    request.headers["X-Amz-Date"] = ours["x-amz-date"]
    request.headers["x-amz-content-sha256"] = ours["x-amz-content-sha256"]
    if token is not None:
        request.headers["x-amz-security-token"] = token
    signed = auth.headers_to_sign(request)
    expected = auth.signature(auth.string_to_sign(request, auth.canonical_request(request)), request)
    assert ours["Authorization"].endswith(f"Signature={expected}")
    assert f"SignedHeaders={auth.signed_headers(signed)}" in ours["Authorization"]
    assert urlsplit(request.url).path == path
