import multiprocessing
import os
from pathlib import Path

import pytest
from stores import OTHER_UUID, UUID, damage, manifest_of, tagged

from cas.errors import ContentError, UsageError
from cas.index.digest import Digest
from cas.index.identity import RemoteIdentity
from cas.index.manifest import FileEntry, Manifest
from cas.index.paths import RelativePath
from cas.index.refs import Refs, union
from cas.index.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


def put(store: Store, manifest: Manifest) -> Digest:
    with store.staging("test") as staging:
        return store.refs.put(manifest, staging.folder)


def test_a_manifest_is_stored_read_only_under_its_digest(store: Store) -> None:  # F1
    manifest = manifest_of({"a": b"1"})
    assert put(store, manifest) == manifest.digest
    path = store.layout.manifest(manifest.digest)
    assert Digest.of_file(path) == manifest.digest
    assert path.stat().st_mode & 0o777 == 0o444
    assert store.refs.get(manifest.digest) == manifest
    assert list(store.refs.manifests()) == [manifest.digest]


@pytest.mark.parametrize("content", [b"", b"\0" * 200, b"{}", None])
def test_a_damaged_manifest_goes_aside_and_is_not_here(content: bytes | None, store: Store) -> None:
    manifest = manifest_of({"a": b"1"})
    digest = put(store, manifest)
    damage(store.layout.manifest(digest), content)
    assert store.refs.get(digest) is None
    assert not store.layout.manifest(digest).exists()
    assert len(list((store.home / "aside").iterdir())) == 1
    put(store, manifest)
    assert store.refs.get(digest) == manifest
    store.blobs.drop_healed()
    assert list((store.home / "aside").iterdir()) == []


def test_a_right_manifest_of_a_newer_format_is_one_clear_error(store: Store) -> None:
    data = b'{"cas":"manifest","files":[],"format":2}\n'
    path = store.layout.manifest(Digest.of(data))
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    with pytest.raises(ContentError, match="format 2"):
        store.refs.get(Digest.of(data))
    assert path.exists()


def test_a_manifest_left_aside_by_a_killed_removal_comes_back(store: Store) -> None:
    manifest = tagged(store, UUID, {"a": b"1"})
    held = store.layout.aside(f"{manifest.digest.hex}.json")
    held.parent.mkdir(exist_ok=True)
    os.rename(store.layout.manifest(manifest.digest), held)
    assert store.resolve("local", UUID) == manifest
    assert store.layout.manifest(manifest.digest).exists() and not held.exists()


def test_a_ref_is_an_empty_file_whose_name_says_all(store: Store) -> None:  # F10
    manifest = manifest_of({"a": b"1"})
    path = store.refs.tag("http://m", UUID, manifest.digest, durable=True)
    assert path == store.home / "refs" / "http%3A%2F%2Fm" / UUID / manifest.digest.hex
    assert path.read_bytes() == b""
    assert store.refs.tag("http://m", UUID, manifest.digest, durable=True) == path
    assert store.refs.of("http://m", UUID) == [manifest.digest]
    assert store.refs.registries(UUID) == ["http://m"]
    assert list(store.refs.all()) == [("http://m", UUID, [manifest.digest])]


def test_refs_are_told_in_the_order_they_were_made(store: Store) -> None:
    digests = [Digest.of(bytes([n])) for n in range(5)]
    for age, digest in enumerate(digests):
        os.utime(store.refs.tag("local", UUID, digest), ns=(0, 10**9 * (100 - age)))
    assert store.refs.of("local", UUID) == digests[::-1]


def test_what_is_no_ref_is_passed_over(store: Store) -> None:
    manifest = tagged(store, UUID, {"a": b"1"})
    folder = store.layout.refs("local", UUID)
    for name in (".DS_Store", manifest.digest.hex.upper(), manifest.digest.hex + "~", "x"):
        (folder / name).touch()
    (store.home / "refs" / "stray").touch()
    (store.home / "refs" / "local" / "stray").touch()
    assert store.refs.of("local", UUID) == [manifest.digest]
    assert [digests for _, uuid, digests in store.refs.all() if uuid == UUID] == [[manifest.digest]]
    assert store.resolve("local", UUID) == manifest


def test_untagged_is_unknown(store: Store) -> None:
    tagged(store, UUID, {"a": b"1"})
    tagged(store, OTHER_UUID, {"b": b"2"})
    assert store.refs.untag("local", UUID) == 1
    assert store.refs.untag("local", UUID) == 0
    assert store.resolve("local", UUID) is None
    assert [uuid for _, uuid, _ in store.refs.all()] == [OTHER_UUID]


@pytest.mark.parametrize("bad", ["..", "../../..", "", UUID.upper(), UUID + "/x", UUID + "\n"])
def test_what_is_no_uuid_reaches_no_folder(bad: str, store: Store) -> None:
    for call in (store.refs.of, store.refs.untag):
        with pytest.raises(UsageError):
            call("local", bad)
    with pytest.raises(UsageError):
        store.refs.registries(bad)
    with pytest.raises(UsageError):
        store.refs.tag("local", bad, Digest.of(b""))


def entry(path: str, content: bytes | None) -> FileEntry:
    if content is None:
        return FileEntry(RelativePath(path), 3, None, RemoteIdentity(f"file:///{path}", 3))
    return FileEntry(RelativePath(path), len(content), Digest.of(content))


def test_of_several_refs_a_digest_beats_an_identity_and_a_later_ref_an_earlier() -> None:
    first = Manifest.of([entry("a", b"1"), entry("b", None), entry("c", b"1")])
    second = Manifest.of([entry("a", None), entry("b", b"22"), entry("c", b"2")], [RelativePath("e")])
    joined = union([first, second])
    assert joined == Manifest.of([entry("a", b"1"), entry("b", b"22"), entry("c", b"2")], [RelativePath("e")])
    assert union([]) is None
    assert union([first]) is first


@pytest.mark.parametrize(("earlier", "later"), [(["a"], ["a/b"]), (["a/b"], ["a"]), (["a/b/c", "d"], ["a/b", "d/e"])])
def test_trees_that_do_not_fit_together_give_the_later_one(earlier: list[str], later: list[str]) -> None:
    joined = union([Manifest.of(entry(name, b"1") for name in names) for names in (earlier, later)])
    assert joined is not None and [one.path for one in joined.files] == later


def _tag_and_untag(home: Path, number: int) -> None:
    store = Store(home)
    for _ in range(200):
        if number % 2:
            store.refs.untag("local", UUID)
        else:
            store.refs.tag("local", UUID, Digest.of(bytes([number])))
            store.refs.of("local", UUID)
            list(store.refs.all())


def test_tagging_while_others_untag_raises_nothing(store: Store) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_tag_and_untag, args=(store.home, number)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert isinstance(Refs(store.layout, store.owners).of("local", UUID), list)
