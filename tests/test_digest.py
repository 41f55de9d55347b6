import contextlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cas.errors import ContentError
from cas.index.digest import Digest


def counting(length: int) -> bytes:
    """The input of BLAKE3's official test vectors: 0, 1, … 250, 0, 1, …"""
    return bytes(number % 251 for number in range(length))


# From the reference implementation's test_vectors.json: the first 32 bytes of "hash".
VECTORS = {
    0: "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262",
    1: "2d3adedff11b61f14c886e35afa036736dcd87a74d27b5c1510225d0f592e213",
    1024: "42214739f095a406f3fc83deb889744ac00df831c10daa55189b5d121c855af7",
    1025: "d00278ae47eb27b34faecf67b4fe263f82d5412916c1ffd97c8cb7fb814b8444",
}


@pytest.mark.parametrize("length", VECTORS)
def test_digest_is_the_hex_that_the_reference_gives(length: int, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(counting(length))
    assert Digest.of(counting(length)).hex == VECTORS[length]
    assert Digest.of_file(path).hex == VECTORS[length]
    assert str(Digest.of_file(os.fspath(path))) == f"blake3:{VECTORS[length]}"


@pytest.mark.parametrize("length", [(1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3_000_001])
def test_file_longer_than_the_window_has_the_digest_of_its_bytes(length: int, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(counting(length))
    assert Digest.of_file(path) == Digest.of(counting(length))


def test_descriptor_is_hashed_from_its_start_and_left_open(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    with open(path, "rb") as file:
        file.seek(2)
        assert Digest.of_file(file.fileno()) == Digest.of(b"abc")
        assert file.read() == b"c"


def test_parse_reads_what_str_writes() -> None:
    digest = Digest.of(b"x")
    assert Digest.parse(str(digest)) == digest


HEX = "ab" * 32


@pytest.mark.parametrize(
    "text",
    ["", HEX, "blake3:", f"blake3:{HEX[:-1]}", f"blake3:{HEX}0", f"blake3:{HEX.upper()}", f"blake3:{HEX}\n",
     f"sha256:{HEX}", f" blake3:{HEX}", "blake3:" + "٣" * 64, "blake3:" + "../" * 21 + "a",
     None, 7, ["blake3:"], b"blake3:"],
)  # fmt: skip
def test_anything_else_is_refused(text: object) -> None:
    with pytest.raises(ContentError):
        Digest.parse(text)  # type: ignore[arg-type]


@given(st.text())
def test_parse_never_raises_another_error(text: str) -> None:
    for candidate in (text, f"blake3:{text}"):
        with contextlib.suppress(ContentError):
            assert str(Digest.parse(candidate)) == candidate
