import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cas.errors import UnsafeNameError
from cas.index.paths import MAX_PATH, RelativePath, check_distinct, check_tree, parents_of

HOSTILE = [
    "", ".", "..", "/", "/etc/passwd", "a/../b", "../a", "a/..", "./a", "a/.", "a//b", "a/", "//a", "a\\b", "..\\a",
    "C:\\a", "a\0b", "a\nb", "a\x1bb", "a\x7fb", "a\x85b", "a" * 256, "é" * 128, "\ud800", "a/\udcff",
    "x/" * 2100 + "x",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_refused(name: str) -> None:
    with pytest.raises(UnsafeNameError) as caught:
        RelativePath(name)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000
    str(caught.value).encode("utf-8")


@pytest.mark.parametrize("name", [None, 7, b"a", ["a"], {"a": 1}])
def test_what_is_no_text_is_refused(name: object) -> None:
    with pytest.raises(UnsafeNameError):
        RelativePath(name)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["a", "a/b", "a" * 255, "é" * 127, "...", "..a", "a b", "-rf", "~", "a:b", "日本/語"])
def test_ordinary_names_are_kept_as_they_are(name: str) -> None:
    assert RelativePath(name) == name
    assert RelativePath(RelativePath(name)) == name


def test_parents_are_the_folders_above() -> None:
    assert RelativePath("a/b/c").parents == ["a", "a/b"]
    assert RelativePath("a/b/c").name == "c"
    assert RelativePath("a").parents == []


part = st.one_of(st.sampled_from(["..", ".", "", "a", "\0", "\\", "C:", "ü" * 200]), st.text(max_size=300))


@given(st.lists(part, max_size=6).map("/".join) | st.text())
def test_an_accepted_name_stays_below_any_folder(name: str) -> None:
    try:
        path = RelativePath(name)
    except UnsafeNameError:
        return
    joined = os.path.normpath(os.path.join("/home/of/store", path))
    assert joined == f"/home/of/store/{path}"
    assert len(path.encode()) <= MAX_PATH
    assert all(0 < len(part.encode()) <= 255 for part in path.split("/"))


@given(st.text(alphabet="ab./\\\0é", max_size=8))
def test_an_accepted_name_can_be_created(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    try:
        path = RelativePath(name)
    except UnsafeNameError:
        return
    folder: Path = tmp_path_factory.mktemp("below")
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).touch()
    assert [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()] == [name]


@pytest.mark.parametrize(
    ("files", "folders"),
    [
        (["a", "a"], []),
        (["a", "a/b"], []),
        (["a/b/c", "a/b"], []),
        (["a"], ["a"]),
        (["a"], ["a/b"]),
        (["a/b", "a"], []),
    ],
)
def test_names_that_cannot_lie_in_one_tree_are_refused(files: list[str], folders: list[str]) -> None:
    with pytest.raises(UnsafeNameError):
        check_tree(map(RelativePath, files), map(RelativePath, folders))


def test_names_that_can_are_accepted() -> None:
    check_tree(map(RelativePath, ["a", "b/a", "ab", "b/c/d"]), map(RelativePath, ["b", "b/c", "e"]))


@pytest.mark.parametrize(
    ("paths", "fold", "normalize"),
    [(["a/B", "A/b"], True, False), (["A/x", "a/y"], True, False), (["e\u0301", "é"], False, True),
     (["E\u0301", "é"], True, True), (["ß", "ss"], True, False)],
)  # fmt: skip
def test_names_that_a_disk_cannot_tell_apart_are_refused(paths: list[str], fold: bool, normalize: bool) -> None:
    check_distinct(paths, fold_case=False, normalize=False)
    with pytest.raises(UnsafeNameError):
        check_distinct(paths, fold_case=fold, normalize=normalize)


@given(st.lists(st.text(alphabet="aAé\u0301eß", min_size=1, max_size=3), max_size=4), st.booleans(), st.booleans())
def test_a_disk_is_asked_of_all_names_what_it_would_be_asked_of_each(parts: list[str], fold: bool, norm: bool) -> None:
    paths = ["/".join(parts[:count]) for count in range(1, len(parts))] + parts
    files = sorted({*paths} - parents_of(paths))
    keys = {}
    for name in {*files, *parents_of(files)}:
        key = unicodedata.normalize("NFC", name) if norm else name
        keys.setdefault(key.casefold() if fold else key, set()).add(name)
    if any(len(same) > 1 for same in keys.values()):
        with pytest.raises(UnsafeNameError):
            check_distinct(files, fold_case=fold, normalize=norm)
    else:
        check_distinct(files, fold_case=fold, normalize=norm)


def test_names_that_it_can_tell_apart_are_accepted() -> None:
    check_distinct(["a/b", "a/c", "a/B2"], fold_case=True, normalize=True)
