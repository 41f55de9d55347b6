import json
import multiprocessing
import os
import sys
from pathlib import Path

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from stores import run_python

from cas.errors import ContentError
from cas.index import disk, lines


def payloads(path: Path, start: int = 0) -> list[dict[str, object]]:
    return [line.payload for line in lines.read(path, start)]


def checked(body: bytes) -> bytes:
    """A line whose checksum is right, whatever it says."""
    return b"%s %s\n" % (xxhash.xxh3_64_hexdigest(body).encode(), body)


def test_a_line_is_as_the_format_says() -> None:  # F8
    assert lines.encode({"a": "é", "b": [1, None]}) == checked('{"a":"é","b":[1,null]}'.encode())


def test_lines_are_read_back_in_order_with_their_ends(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "x.jsonl"
    lines.append(path, [{"n": 1}, {"n": 2}])
    lines.append(path, [])
    lines.append(path, [{"n": 3}], durable=True)
    read = list(lines.read(path))
    assert [line.payload["n"] for line in read] == [1, 2, 3]
    assert read[-1].end == path.stat().st_size
    assert payloads(path, read[0].end) == [{"n": 2}, {"n": 3}]


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters()) | st.floats(-1e300, 1e300),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)  # fmt: skip


@given(st.dictionaries(st.text(max_size=5), values, max_size=4))
def test_any_json_object_is_read_back(payload: dict[str, object]) -> None:
    line = lines.encode(payload)
    assert line.count(b"\n") == 1
    line.decode("utf-8")
    assert lines.decode(line) == payload


def test_numbers_that_json_does_not_have_become_text() -> None:
    line = lines.encode({"a": float("nan"), "b": [float("inf"), {"c": -float("inf")}], "d": 1.5, "e": (1, 2)})
    assert lines.decode(line) == {"a": "NaN", "b": ["Infinity", {"c": "-Infinity"}], "d": 1.5, "e": [1, 2]}


def test_half_a_surrogate_pair_is_kept() -> None:
    assert lines.decode(lines.encode({"\udc80": "a\ud800é"})) == {"\udc80": "a\ud800é"}


@pytest.mark.parametrize("payload", [{"a": {1, 2}}, {"a": b"x"}, {("a",): 1}])
def test_what_is_no_json_is_refused(payload: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(ContentError):
        lines.append(tmp_path / "x", [{"fine": 1}, payload])
    assert not (tmp_path / "x").exists()


def test_nesting_that_a_reader_could_not_take_is_refused() -> None:
    nested: dict[str, object] = {}
    for _ in range(lines.MAX_DEPTH - 1):
        nested = {"a": nested}
    assert lines.decode(lines.encode(nested)) == nested
    with pytest.raises(ContentError):
        lines.encode({"a": nested})
    endless: dict[str, object] = {}
    endless["a"] = endless
    with pytest.raises(ContentError):
        lines.encode(endless)


@pytest.mark.parametrize(
    "body",
    [b"", b"7", b"[]", b"null", b'"a"', b"{", b"{}}", b'{"a":NaN}', b'{"a":-Infinity}', b"\xff", b"{\0}",
     b'{"a":' + b"9" * 5000 + b"}"],
)  # fmt: skip
def test_right_checksums_over_wrong_bodies_are_skipped(body: bytes, tmp_path: Path) -> None:
    assert lines.decode(checked(body)) is None
    (tmp_path / "x").write_bytes(checked(body) + lines.encode({"a": 1}))
    assert payloads(tmp_path / "x") == [{"a": 1}]


def test_deep_json_under_a_right_checksum_does_not_stop_a_reader(tmp_path: Path) -> None:
    limit = sys.getrecursionlimit()
    depths = [*range(limit - 100, limit + 20), 20_000, 1_000_000]
    bad = b"".join(checked(b'{"a":' + b"[" * depth + b"]" * depth + b"}") for depth in depths)
    (tmp_path / "x").write_bytes(bad + lines.encode({"a": 1}))
    assert payloads(tmp_path / "x")[-1] == {"a": 1}


def test_no_flipped_bit_is_read(tmp_path: Path) -> None:
    first, second, third = (lines.encode({"n": n, "text": "some"}) for n in range(3))
    for place in range(len(second)):
        for bit in (1, 64):
            bad = bytearray(second)
            bad[place] ^= bit
            (tmp_path / "x").write_bytes(first + bad + third)
            found = [payload["n"] for payload in payloads(tmp_path / "x")]
            if place == len(second) - 1:  # the newline: the line and the next one are one damaged line
                assert found == [0]
            else:
                assert found == [0, 2]


def test_a_torn_tail_is_not_read_and_the_next_writer_starts_on_a_fresh_line(tmp_path: Path) -> None:  # F9
    path = tmp_path / "x"
    whole = lines.encode({"n": 2})
    for length in range(1, len(whole)):
        path.write_bytes(lines.encode({"n": 1}) + whole[:length])
        assert payloads(path) == [{"n": 1}]
        lines.append(path, [{"n": 3}])
        torn = lines.Torn()
        assert [line.payload["n"] for line in lines.read(path, torn=torn)] in ([1, 3], [1, 2, 3])
        assert torn.count == (0 if length == len(whole) - 1 else 1)  # without its newline alone, it is whole


def test_a_line_behind_another_process_half_line_is_written_again(tmp_path: Path) -> None:  # F9
    path, half = tmp_path / "x", lines.encode({"n": 2})[:20]
    lines.append(path, [{"n": 1}])

    def killed_meanwhile(moment: str, step: str) -> None:
        if (moment, step) == ("before", "write_once"):
            disk.observe(None)
            with open(path, "ab") as file:
                file.write(half)

    disk.observe(killed_meanwhile)
    try:
        lines.append(path, [{"n": 3}, {"n": 4}])
    finally:
        disk.observe(None)
    found = [payload["n"] for payload in payloads(path)]
    assert set(found) == {1, 3, 4}
    lines.append(path, [{"n": 5}])
    assert payloads(path)[-1] == {"n": 5}


SHORT = """
import resource, sys
from pathlib import Path
from cas.index import lines
path = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 70, resource.RLIM_INFINITY))
try:
    lines.append(path, [{"n": n} for n in range(10)])
except OSError:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    lines.append(path, [{"n": n} for n in range(20, 30)])
"""


def test_a_write_that_was_cut_short_spoils_no_later_line(tmp_path: Path) -> None:
    path = tmp_path / "x"
    lines.append(path, [{"n": -1}])
    run_python(SHORT, path)
    torn = lines.Torn()
    found = [line.payload["n"] for line in lines.read(path, torn=torn)]
    assert found == [-1, 0, 1, *range(20, 30)]
    assert torn.count == 0  # what there was of the next one is empty lines


def test_a_file_that_was_renamed_while_it_was_appended_to_is_appended_to_again(tmp_path: Path) -> None:
    path = tmp_path / "x"

    def renamed_meanwhile(moment: str, step: str) -> None:
        if (moment, step) == ("after", "write_once"):
            disk.observe(None)
            path.rename(tmp_path / "elsewhere")

    for may_move in (False, True):
        disk.observe(renamed_meanwhile)
        lines.append(path, [{"n": 1}], may_move=may_move)
        assert path.exists() is may_move


def test_a_reader_goes_on_where_a_torn_tail_began(tmp_path: Path) -> None:
    path, whole = tmp_path / "x", lines.encode({"n": 2})
    path.write_bytes(lines.encode({"n": 1}) + whole[:9])
    end = list(lines.read(path))[-1].end
    with open(path, "ab") as file:
        file.write(whole[9:])
    assert payloads(path, end) == [{"n": 2}]


def test_zeros_that_a_power_cut_left_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(lines.encode({"n": 1}) + b"\0" * 10_000)
    assert payloads(path) == [{"n": 1}]
    lines.append(path, [{"n": 2}])
    assert payloads(path) == [{"n": 1}, {"n": 2}]


def test_a_run_without_newline_longer_than_any_line_is_passed(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with open(path, "wb") as file:
        file.truncate(lines.MAX_LINE + 5000)  # zeros that take no room
    lines.append(path, [{"n": 1}])
    assert payloads(path) == [{"n": 1}]


def test_a_file_that_is_not_there_is_an_error_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(lines.read(tmp_path / "x"))


def _append_many(path: Path, who: int, count: int) -> None:
    for number in range(count):
        lines.append(path, [{"who": who, "n": number, "pad": "x" * (number % 400)}, {"who": who, "n": -number}])


def test_appending_processes_lose_nothing(tmp_path: Path) -> None:
    path, count = tmp_path / "x", 300
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_append_many, args=(path, who, count)) for who in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    torn = lines.Torn()
    found = [line.payload for line in lines.read(path, torn=torn)]
    assert torn.count == 0
    for who in range(4):
        mine = [payload["n"] for payload in found if payload["who"] == who]
        assert mine == [n for number in range(count) for n in (number, -number)]


def test_a_line_can_be_checked_with_the_checksum_tool_alone(tmp_path: Path) -> None:
    lines.append(tmp_path / "x", [{"a": 1}])
    check, _, body = (tmp_path / "x").read_bytes().rstrip(b"\n").partition(b" ")
    assert xxhash.xxh3_64(body).hexdigest() == check.decode()
    assert json.loads(body) == {"a": 1}
    assert os.stat(tmp_path / "x").st_mode & 0o777 & ~0o644 == 0
