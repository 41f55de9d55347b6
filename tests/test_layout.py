import json
import multiprocessing
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stores import UUID

from cas.errors import ContentError, NotAllowedError, UsageError
from cas.index.digest import Digest
from cas.index.layout import Layout, check_uuid, prepare, quote_registry, unquote_registry

D = Digest("ab" + "cd" * 31)


def test_names_are_as_the_format_says(tmp_path: Path) -> None:  # F1, F2
    layout = Layout(tmp_path)
    assert layout.blob(D) == tmp_path / "blobs" / "ab" / ("cd" * 31)
    assert layout.manifest(D) == tmp_path / "manifests" / "ab" / ("cd" * 31 + ".json")
    assert layout.refs("https://host:8080", UUID) == tmp_path / "refs" / "https%3A%2F%2Fhost%3A8080" / UUID
    assert layout.records("local").parent == tmp_path / "records" / "local"
    assert layout.view(D) == tmp_path / "views" / D.hex
    assert layout.aside("x").parent == tmp_path / "aside"
    assert layout.aside("x") != layout.aside("x")
    assert layout.facts.parent == tmp_path / "facts"


@pytest.mark.parametrize(
    "name", ["..", ".", "../../etc", "a/b", "https://[::1]:80/x?y#z", "local", "%2E", "...", "é\0"]
)
def test_a_registry_is_one_part_of_a_path_and_is_read_back(name: str) -> None:
    quoted = quote_registry(name)
    assert "/" not in quoted and "\0" not in quoted and not quoted.startswith(".")
    assert unquote_registry(quoted) == name


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20))
def test_different_registries_have_different_names(name: str) -> None:
    assert unquote_registry(quote_registry(name)) == name


@pytest.mark.parametrize("name", ["", "x" * 241, "é" * 100, "\ud800"])
def test_a_registry_that_cannot_be_a_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError):
        quote_registry(name)


@pytest.mark.parametrize(
    "text", ["", "..", UUID.upper(), UUID + "\n", UUID[:-1], f"{{{UUID}}}", "../" + UUID, "é" * 36]
)
def test_what_is_no_uuid_names_no_folder(text: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        check_uuid(text)
    with pytest.raises(UsageError):
        Layout(tmp_path).refs("local", text)


def test_a_home_is_made_once(tmp_path: Path) -> None:
    home = tmp_path / "new" / "home"
    first = prepare(home).store
    assert prepare(home).store == first
    assert json.loads((home / "format.json").read_text()) == {
        "cas": "store", "format": 1, "store": first, "locks": "flock"
    }  # fmt: skip
    assert home.stat().st_mode & 0o777 == 0o700
    tags = sorted(path.relative_to(home).as_posix() for path in home.rglob("CACHEDIR.TAG"))
    assert tags == ["ingest/CACHEDIR.TAG", "views/CACHEDIR.TAG"]
    assert (home / "views/CACHEDIR.TAG").read_text().startswith("Signature: 8a477f597d28d172789f06886806bc55")
    assert not list(home.rglob(".*"))


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"{", b"[]", b"7", b'{"format":1}', b"[" * 5000])
def test_a_damaged_format_file_of_a_store_is_made_again(content: bytes, tmp_path: Path) -> None:
    prepare(tmp_path / "home")
    (tmp_path / "home" / "blobs").mkdir()
    (tmp_path / "home" / "format.json").write_bytes(content)
    store = prepare(tmp_path / "home").store
    assert prepare(tmp_path / "home").store == store


def test_a_damaged_format_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "format.json").write_text("{}")
    with pytest.raises(ContentError, match="damaged"):
        prepare(tmp_path)
    assert os.listdir(tmp_path) == ["format.json"]


def test_the_store_of_a_newer_cas_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "format.json").write_text('{"format": 2, "store": "x"}')
    with pytest.raises(ContentError, match="newer"):
        prepare(tmp_path)
    assert os.listdir(tmp_path) == ["format.json"]


def test_a_home_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for home in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises((UsageError, NotAllowedError), match="home"):
            prepare(home)


def _prepare(home: Path, start: object, out: object) -> None:
    start.wait()  # type: ignore[attr-defined]
    out.put(prepare(home))  # type: ignore[attr-defined]


def test_processes_that_make_one_home_at_once_agree(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for attempt in range(5):
        start, out = context.Barrier(4), context.Queue()
        racers = [context.Process(target=_prepare, args=(tmp_path / f"home{attempt}", start, out)) for _ in range(4)]
        for racer in racers:
            racer.start()
        assert len({out.get(timeout=30) for _ in racers}) == 1
        for racer in racers:
            racer.join()
