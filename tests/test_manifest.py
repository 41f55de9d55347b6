import json
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cas.errors import ContentError, UnsafeNameError
from cas.index.digest import Digest
from cas.index.identity import RemoteIdentity
from cas.index.manifest import MAX_SIZE, FileEntry, Manifest
from cas.index.paths import RelativePath

D = Digest.of(b"")
IDENTITY = RemoteIdentity("file:///x", 3, version="1")


def entry(path: str, size: int = 0, **more: Any) -> FileEntry:
    return FileEntry(RelativePath(path), size, **({"digest": D} | more))


def canonical(document: object) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode() + b"\n"


def test_the_bytes_are_as_the_format_says() -> None:  # F4
    manifest = Manifest.of(
        [entry("b"), entry("a/é", 3, digest=None, identity=IDENTITY), entry("a/run", 1, executable=True)],
        [RelativePath("a"), RelativePath("empty")],
    )
    assert manifest.encoded.decode() == (
        '{"cas":"manifest","directories":["empty"],"files":['
        f'{{"digest":"{D}","executable":true,"path":"a/run","size":1}},'
        '{"identity":{"size":3,"url":"file:///x","version":"1"},"path":"a/é","size":3},'
        f'{{"digest":"{D}","path":"b","size":0}}],"format":1}}\n'
    )
    assert manifest.digest == Digest.of(manifest.encoded)
    assert not manifest.complete
    assert manifest.size == 4


def test_order_of_entries_does_not_change_the_digest() -> None:
    entries = [entry(name) for name in ("b", "a", "Z", "é", "a-", "a/x"[:1] + "0")]
    assert Manifest.of(entries).digest == Manifest.of(reversed(entries)).digest


names = st.lists(st.text(alphabet="abé0 -", min_size=1, max_size=3), min_size=1, max_size=3).map("/".join)
identities = st.builds(
    RemoteIdentity, st.text(st.characters(exclude_categories=["Cs"])), st.just(5), st.none() | st.just('"e"')
)
entries = st.one_of(
    st.builds(entry, names, st.integers(0, MAX_SIZE), executable=st.booleans()),
    st.builds(lambda path, identity: entry(path, 5, digest=None, identity=identity), names, identities),
)


@given(st.lists(entries, max_size=6), st.lists(names.map(RelativePath), max_size=3))
def test_parse_reads_what_encoded_writes(files: list[FileEntry], folders: list[RelativePath]) -> None:
    try:
        manifest = Manifest.of(files, folders)
    except UnsafeNameError:
        return
    again = Manifest.parse(manifest.encoded)
    assert again == manifest
    assert again.by_path.keys() == {one.path for one in files}


PIECES = [b"", b"0", b"/", b"..", b'"', b"\\", b"\n", b" ", b"{}", b",", b"\x7f", b"\xc2\x85", b"F"]
plain = st.builds(
    entry,
    st.lists(st.text(st.characters(exclude_categories=["Cc", "Cs"], exclude_characters='"\\/'), min_size=1, max_size=70)
             .filter(lambda part: part not in (".", "..")), min_size=1, max_size=3).map("/".join),
    st.integers(0, MAX_SIZE), executable=st.booleans(),
)  # fmt: skip


@given(st.lists(plain, max_size=6), st.data())
def test_bytes_are_taken_exactly_when_they_are_what_would_be_written(
    files: list[FileEntry], data: st.DataObject
) -> None:
    """The usual kind of manifest has a quick reader of its own: whatever it is given, it takes nothing else."""
    try:
        good = Manifest.of(files).encoded
    except UnsafeNameError:
        return
    assert Manifest.parse(good).encoded == good
    assert Manifest.parse(good).files == Manifest.of(files).files
    start = data.draw(st.integers(0, len(good)))
    piece = data.draw(
        st.sampled_from([b"", b"0", b"/", b"..", b'"', b"\\", b"\n", b" ", b"{}", b",", b"\x7f", b"\xc2\x85", b"F"])
    )
    changed = good[:start] + piece + good[start + data.draw(st.integers(0, 3)) :]
    try:
        taken = Manifest.parse(changed)
    except (ContentError, UnsafeNameError):
        return
    again = Manifest(taken.files, taken.directories)  # knows nothing of the bytes
    assert again.encoded == changed
    assert Manifest.of(taken.files, taken.directories) == taken
    assert all(type(one.path) is RelativePath and RelativePath(str(one.path)) for one in taken.files)


ODD_PATHS = [
    ".", "..", "a/..", "../a", "./a", "a/./b", "a//b", "/a", "a/", "", "a\\b", "a\x7f", "a\x85b", "a\nb", "x" * 256,
    "é" * 128, "a/" * 2000 + "a",
]  # fmt: skip


@pytest.mark.parametrize("path", ODD_PATHS, ids=range(len(ODD_PATHS)))
def test_no_reader_takes_an_unsafe_path(path: str) -> None:
    with pytest.raises((ContentError, UnsafeNameError)):
        Manifest.parse(canonical(GOOD | {"files": [{"path": path, "size": 1, "digest": str(D)}]}))


def test_names_of_the_greatest_length_are_taken() -> None:
    sixty = ["x" * 63] * 62
    longest = ["x" * 255, "é" * 127, "/".join(sixty[:15]), "/".join(["y", *sixty]), "\U0001f600" * 63, "...", "a/..b"]
    files = [entry(path, MAX_SIZE) for path in longest]
    assert Manifest.parse(Manifest.of(files).encoded) == Manifest.of(files)


FILE = {"path": "a", "size": 1, "digest": str(D)}
GOOD = {"cas": "manifest", "format": 1, "files": [FILE]}


def with_file(**changes: object) -> dict[str, object]:
    return GOOD | {"files": [FILE | changes]}


def test_the_good_one_is_good() -> None:
    assert Manifest.parse(canonical(GOOD)).files[0].path == "a"


HOSTILE: list[object] = [
    None, 7, "manifest", [], {}, {"cas": "manifest"}, GOOD | {"cas": "store"}, GOOD | {"format": 2},
    GOOD | {"format": True}, GOOD | {"format": 1.0}, GOOD | {"format": "1"}, GOOD | {"more": 1}, GOOD | {"files": {}},
    GOOD | {"files": None}, GOOD | {"files": [7]}, GOOD | {"files": [[]]}, GOOD | {"files": [None]},
    GOOD | {"directories": []}, GOOD | {"directories": ["a"]}, GOOD | {"directories": ["b", "b"]},
    GOOD | {"directories": [7]}, GOOD | {"directories": ["b/c", "b"]}, GOOD | {"directories": [["b"]]},
    with_file(size=True), with_file(size=-1), with_file(size=1.0), with_file(size="1"), with_file(size=None),
    with_file(size=MAX_SIZE + 1), with_file(size=10**400), with_file(path=7), with_file(path="../a"),
    with_file(path=["a"]), with_file(path={"a": 1}), with_file(digest=None), with_file(digest="x"), with_file(digest=7),
    with_file(executable=False), with_file(executable=1), with_file(executable=None), with_file(more=1),
    with_file(identity=IDENTITY.to_json()), with_file(identity=None),
    GOOD | {"files": [{"path": "a", "size": 1}]},
    GOOD | {"files": [{"path": "a", "size": 4, "identity": IDENTITY.to_json()}]},
    GOOD | {"files": [{"path": "a", "size": 1, "identity": {"url": "\ud800", "size": 1}}]},
    GOOD | {"files": [{"path": "a", "size": 1, "identity": {"url": "u", "size": 1, "modified": True}}]},
    GOOD | {"files": [FILE, FILE]}, GOOD | {"files": [FILE, FILE | {"path": "a/b"}]},
    GOOD | {"files": [FILE | {"path": "b"}, FILE]},
]  # fmt: skip


@pytest.mark.parametrize("document", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_documents_are_refused(document: object) -> None:
    data = json.dumps(document, ensure_ascii=True, separators=(",", ":"), sort_keys=True).encode() + b"\n"
    with pytest.raises((ContentError, UnsafeNameError)):
        Manifest.parse(data)


TEXT = canonical(GOOD)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\0" * 4096, TEXT[:-1], TEXT + b"\n", b" " + TEXT, b"\xef\xbb\xbf" + TEXT, TEXT.decode().encode("utf-16"),
        TEXT.replace(b'"size":1', b'"size":1,"size":1'), TEXT.replace(b'"size":1', b'"size":1e0'),
        TEXT.replace(b'"size":1', b'"size":NaN'), TEXT.replace(b'"size":1', b'"size":Infinity'),
        TEXT.replace(b'"size":1', b'"size":' + b"9" * 5000), TEXT.replace(b'"a"', b'"\\u0061"'),
        TEXT.replace(b'"a"', b'"\xff"'), TEXT.replace(b'"a"', b'"\\ud800"'), TEXT.replace(b":1}", b": 1}"),
        b'{"cas":"manifest",' + TEXT[1:],
    ],
)  # fmt: skip
def test_bytes_that_are_not_canonical_are_refused(data: bytes) -> None:
    with pytest.raises(ContentError):
        Manifest.parse(data)


NESTED = [
    b"%s",
    b'{"cas":"manifest","files":[%s],"format":1}',
    b'{"cas":"manifest","files":[{"path":%s}],"format":1}',
    b'{"cas":"manifest","directories":[%s],"files":[],"format":1}',
]


@pytest.mark.parametrize("where", NESTED)
def test_nesting_of_any_depth_is_refused(where: bytes) -> None:
    # Around the interpreter's own limit as well, where reading the JSON succeeds and printing it does not.
    limit = sys.getrecursionlimit()
    for depth in [10, *range(limit - 150, limit + 20, 3), 20_000, 2_000_000]:
        with pytest.raises((ContentError, UnsafeNameError)):
            Manifest.parse(where % (b"[" * depth + b"]" * depth))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.just(str(D)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["path", "size", "digest", "identity", "executable", "url", "etag"]), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=200)
@given(json_values, st.binary(max_size=30))
def test_hostile_json_raises_one_kind_of_error(value: object, junk: bytes) -> None:
    documents = [value, GOOD | {"files": [value]}, GOOD | {"directories": [value]}, with_file(identity=value)]
    for data in [junk, *(json.dumps(document, sort_keys=True).encode() for document in documents)]:
        with pytest.raises((ContentError, UnsafeNameError)):
            Manifest.parse(data)


def test_an_entry_has_a_digest_or_an_identity_of_its_size() -> None:
    with pytest.raises(ContentError):
        FileEntry(RelativePath("a"), 3)
    with pytest.raises(ContentError):
        FileEntry(RelativePath("a"), 4, None, IDENTITY)
    both = FileEntry(RelativePath("a"), 3, D, IDENTITY)
    assert Manifest.of([both]).encoded == Manifest.of([FileEntry(RelativePath("a"), 3, D)]).encoded


def test_folders_that_hold_a_file_are_dropped() -> None:
    folders = [RelativePath(name) for name in ("a", "b", "b/c", "d")]
    assert Manifest.of([entry("a/x")], folders).directories == ("b/c", "d")
