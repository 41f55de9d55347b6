"""Declared checksums: known values, composites, odd cuts."""

from __future__ import annotations

import hashlib
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cas.transfer import checksums
from cas.transfer.checksums import Verifier
from cas.transfer.remote import Checksum

CHECK = b"123456789"  # the check values of the CRC catalogue are of these bytes
KNOWN = {
    "crc32": "cbf43926",
    "crc32c": "e3069283",
    "crc64nvme": "ae8b14860a799888",
    "sha1": hashlib.sha1(CHECK).hexdigest(),
    "sha256": hashlib.sha256(CHECK).hexdigest(),
    "md5": hashlib.md5(CHECK).hexdigest(),
}


@pytest.mark.parametrize("kind", KNOWN)
def test_check_values(kind):
    checksum = Checksum(kind, bytes.fromhex(KNOWN[kind]))
    assert checksums.matches(checksum, CHECK)
    assert not checksums.matches(checksum, CHECK[:-1])
    assert not checksums.matches(checksum, CHECK + b"\0")


@given(st.binary(max_size=300), st.lists(st.integers(1, 40), max_size=20), st.integers(1, 60))
def test_the_cut_of_the_pieces_does_not_matter(data, cuts, part):
    sizes = [part] * (len(data) // part) + ([len(data) % part] if len(data) % part else [])
    parts, at = [], 0
    for size in sizes:
        parts.append(zlib.crc32(data[at : at + size]).to_bytes(4, "big"))
        at += size
    whole = zlib.crc32(b"".join(parts)).to_bytes(4, "big")
    verifier = Verifier(Checksum("crc32", whole, tuple(sizes)) if sizes else Checksum("crc32", b"\0" * 4))
    at = 0
    for cut in cuts:
        verifier.update(memoryview(data)[at : at + cut])
        at += cut
    verifier.update(memoryview(data)[at:])
    assert verifier.matches


def test_parts_of_other_sizes_do_not_match():
    data = b"abcdef"
    value = zlib.crc32(b"".join(zlib.crc32(p).to_bytes(4, "big") for p in (b"abc", b"def"))).to_bytes(4, "big")
    assert checksums.matches(Checksum("crc32", value, (3, 3)), data)
    assert not checksums.matches(Checksum("crc32", value, (4, 2)), data)


def test_the_strongest_declared_checksum_is_chosen_and_md5_only_if_asked():
    md5, crc, sha = (Checksum(kind, b"") for kind in ("md5", "crc32", "sha256"))
    assert checksums.choose([md5, crc, sha]) == sha
    assert checksums.choose([md5, crc]) == crc
    assert checksums.choose([md5]) is None
    assert checksums.choose([md5], md5=True) == md5
    assert checksums.choose([md5, crc], md5=True) == crc
    assert checksums.choose([Checksum("rot13", b"")]) is None
