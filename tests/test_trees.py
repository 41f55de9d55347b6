"""What the index keeps of manifests: every answer is as if they had been read, whatever became of them or of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from stores import damage, tagged, uuid

from cas.index import disk
from cas.index.digest import Digest
from cas.index.identity import RemoteIdentity
from cas.index.manifest import FileEntry, Manifest
from cas.index.paths import RelativePath
from cas.index.prune import Rules, execute, plan_prune
from cas.index.stock import Stock, take_stock
from cas.index.store import Store
from cas.index.trees import Tree
from cas.index.usage import presence, usage


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "home")
    tagged(made, uuid(1), {"a": b"common", "b": b"1", "c/d": b"common"})
    tagged(made, uuid(2), {"a": b"common", "b": b"22"})
    tagged(made, uuid(3), {"e": b"333"})
    far = FileEntry(RelativePath("far"), 50, identity=RemoteIdentity("s3://b/far", 50, etag='"x"'))
    made.tag("http://m:8080", uuid(3), Manifest.of([far]))  # two refs of one checkpoint
    yield made
    made.close()


def stock(store: Store) -> Stock:
    return replace(take_stock(store), now=0, leftovers=())


def answers(store: Store) -> list[object]:
    found = stock(store)
    return [usage(store), presence(store), found.checkpoints, found.unknown, found.orphans, found.needed]


def path_of(store: Store, which: int) -> Path:
    (digest,) = store.refs.of("local", uuid(which))
    return store.layout.manifest(digest)


def test_a_tree_says_what_its_manifest_does(store: Store) -> None:
    (digest,) = store.refs.of("local", uuid(1))
    manifest = store.refs.get(digest)
    assert manifest is not None
    read = store.trees.read([digest, Digest.of(b"no manifest")])
    assert read == {digest: Tree.of(manifest)} == store.trees.read([digest])
    assert read[digest].blobs == tuple(entry.digest.hex for entry in manifest.files if entry.digest)
    assert (read[digest].files, read[digest].size) == (3, 13)


def test_sums_of_any_size_are_kept() -> None:
    signature = disk.Signature(1, 2**62, 2**64 - 1, 5)
    for tree in (Tree(0, 0, ()), Tree(2, 2 << 60, ("ab" * 32,)), Tree(1 << 40, 1 << 90, ("0" * 64, "f" * 64))):
        assert Tree.from_bytes(tree.to_bytes(signature)) == (signature, tree)


def test_a_kept_tree_is_used_and_no_manifest_is_read(store: Store) -> None:
    answers(store)
    (digest,) = store.refs.of("local", uuid(1))
    expected = store.trees.read([digest])
    path = path_of(store, 1)
    before = path.stat()
    damage(path)  # and nothing shows it
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    fresh = Store(store.home)
    assert fresh.trees.read([digest]) == expected  # its digest says so: it was never anything else
    assert path.exists()
    fresh.close()


FATES: dict[str, Callable[[Store], object]] = {
    "nothing happens": lambda store: None,
    "a manifest is removed": lambda store: path_of(store, 1).unlink(),
    "a manifest is damaged": lambda store: damage(path_of(store, 1)),
    "a manifest is damaged and keeps its size": lambda store: damage(
        path_of(store, 1), bytes(path_of(store, 1).stat().st_size)
    ),
    "a manifest is emptied": lambda store: damage(path_of(store, 2), b""),
    "a manifest is taken for another": lambda store: shutil.copy(path_of(store, 2), path_of(store, 1)),
    "a folder is in its place": lambda store: (path_of(store, 1).unlink(), path_of(store, 1).mkdir()),
    "a removal was killed": lambda store: path_of(store, 1).rename(
        store.home / "aside" / f"{path_of(store, 1).parent.name}{path_of(store, 1).stem}.json.1a2b"
    ),
    "a checkpoint is removed": lambda store: store.refs.untag("local", uuid(1)),
    "a checkpoint comes": lambda store: tagged(store, uuid(4), {"x": b"new", "y": b"common"}),
    "a blob is removed": lambda store: store.layout.blob(Digest.of(b"common")).unlink(),
    "a manifest is written again": lambda store: damage(path_of(store, 1), path_of(store, 1).read_bytes()),
}


@pytest.mark.parametrize("fate", FATES.values(), ids=FATES.keys())
@pytest.mark.parametrize("opened", [True, False], ids=["open", "closed"])
def test_answers_are_those_of_a_store_without_an_index(
    fate: Callable[[Store], object], opened: bool, store: Store, tmp_path: Path
) -> None:
    answers(store)  # now everything is kept
    if not opened:
        store.close()
    fate(store)
    plain = tmp_path / "plain"
    shutil.copytree(store.home, plain, symlinks=True, ignore=shutil.ignore_patterns("index-*"))
    for source in (store.home / "used").glob("*"):
        shutil.copystat(source, plain / "used" / source.name)
    other = Store(plain)
    expected = [usage(other), presence(other)]
    assert [usage(store), presence(store)] == expected
    assert [usage(store), presence(store)] == expected  # kept again
    assert {(one.uuid, one.manifests, one.blobs) for one in take_stock(store).checkpoints} == {
        (one.uuid, one.manifests, one.blobs) for one in take_stock(other).checkpoints
    }
    other.close()


def test_an_index_that_is_deleted_or_damaged_changes_nothing(store: Store) -> None:
    expected = answers(store)
    for change in (lambda path: path.unlink(), lambda path: path.write_bytes(b"garbage" * 2000)):
        (path,) = store.home.glob("index-*.sqlite3")
        change(path)
        assert answers(store) == expected
        fresh = Store(store.home)
        assert answers(fresh) == answers(fresh) == expected
        fresh.close()


def test_a_home_that_is_only_read_answers_the_same(store: Store) -> None:
    expected = [usage(store), presence(store)]
    store.close()
    layer = Store(store.home, layer=True)
    assert [usage(layer), presence(layer)] == expected
    path = path_of(layer, 1)
    damage(path)
    assert [one.uuid for one in usage(layer).checkpoints] == [uuid(2), uuid(3)]
    assert path.exists()  # nothing is moved in a home that is only read
    layer.close()


def test_what_is_kept_of_manifests_that_are_gone_is_forgotten(store: Store) -> None:
    assert store.index.trees() == {}  # opens it
    store.index.keep_trees({Digest.of(b"%d" % number).hex: b"1 2 3 0 0 0\n" for number in range(1100)})
    assert len(store.index.trees()) == 1100
    assert len(usage(store).checkpoints) == 3
    assert len(store.index.trees()) == 4


def test_deleting_believes_manifests_and_not_what_is_kept_of_them(store: Store) -> None:
    """A plan may be made from the index; what it says is needed by nobody is looked for in the manifests first."""
    answers(store)
    for which in (1, 2, 3):
        path = path_of(store, which)
        wrong = Tree(0, 0, ()).to_bytes(store.owners.signature(path.lstat()))
        store.index.keep_trees({path.parent.name + path.stem: wrong})
    store.leases.release()
    plan = plan_prune(take_stock(store), Rules(at_once=True))
    assert len(plan.unreferenced) == 4  # the plan believed it
    execute(store, plan)
    fresh = Store(store.home)
    for which in (1, 2, 3):
        manifest = fresh.refs.get(Digest(path_of(fresh, which).parent.name + path_of(fresh, which).stem))
        assert manifest is not None
        assert fresh.absent(manifest) == []
    fresh.close()
