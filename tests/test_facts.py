import os
from dataclasses import replace
from pathlib import Path

import pytest

from cas.index import disk, lines
from cas.index.digest import Digest
from cas.index.disk import Signature
from cas.index.facts import BlobFact
from cas.index.identity import RemoteIdentity
from cas.index.store import Store

D = Digest.of(b"x")
SIGNATURE = Signature(1, 2**62, 2**64 - 1)  # inodes have up to 64 bits
IDENTITY = RemoteIdentity("s3+https://h/b/k", 1, '"e"')


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


def test_the_last_fact_about_a_blob_counts(store: Store) -> None:
    fact = BlobFact(D, SIGNATURE, disk.boot_id(), sealed=False)
    store.facts.add_blob(fact)
    assert store.facts.blob(D) == [fact]
    store.facts.add_blob(fact._replace(sealed=True), durable=True)
    assert store.facts.blob(D) == [fact._replace(sealed=True)]
    assert store.facts.blob(Digest.of(b"y")) == []


def test_a_fact_is_usable_in_its_boot_or_sealed() -> None:  # F12
    assert BlobFact(D, SIGNATURE, disk.boot_id(), sealed=False).usable
    assert not BlobFact(D, SIGNATURE, "another", sealed=False).usable
    assert not BlobFact(D, SIGNATURE, None, sealed=False).usable
    assert BlobFact(D, SIGNATURE, "another", sealed=True).usable
    assert BlobFact(D, SIGNATURE, None, sealed=True).usable


def test_each_hosts_last_fact_is_told(store: Store) -> None:
    fact = BlobFact(D, SIGNATURE, "b", sealed=True)
    store.facts.add_blob(fact)
    lines.append(store.home / "facts" / "another.jsonl", [fact._replace(boot="c").to_json()])
    assert sorted(str(one.boot) for one in store.facts.blob(D)) == ["b", "c"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root to give a file away")
@pytest.mark.root
def test_what_another_user_wrote_proves_nothing(store: Store) -> None:  # F12
    lines.append(store.home / "facts" / "another.jsonl", [BlobFact(D, SIGNATURE, "b", sealed=True).to_json()])
    os.chown(store.home / "facts" / "another.jsonl", 12345, 12345)
    assert store.facts.blob(D) == []
    os.chown(store.home / "facts" / "another.jsonl", 0, 0)
    assert len(Store(store.home).facts.blob(D)) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"size": "1"},
        {"size": None},
        {"mtime": []},
        {"inode": 1.5},
        {"key": None},
        {"key": 7},
        {"kind": 3},
        {"key": "\ud800"},
    ],
)
def test_lines_that_are_no_facts_are_passed_over(changes: dict[str, object], store: Store) -> None:
    fact = BlobFact(D, SIGNATURE, disk.boot_id(), sealed=True)
    lines.append(store.home / "facts" / "b.jsonl", [fact.to_json() | changes])
    lines.append(store.home / "facts" / "a.jsonl", [fact.to_json()])
    assert store.facts.blob(D) == [fact]


def test_the_origin_that_was_proven_last_counts(store: Store) -> None:
    assert store.facts.origin(IDENTITY) is None
    store.facts.add_origin(IDENTITY, D, "length only")
    store.facts.add_origin(IDENTITY, Digest.of(b"z"), "origin checksum (md5)")
    found = store.facts.origin(IDENTITY)
    assert found is not None and found.digest == Digest.of(b"z") and found.proof == "origin checksum (md5)"
    assert store.facts.origin(replace(IDENTITY, etag='"other"')) is None


def test_an_identity_without_a_validator_proves_nothing(store: Store) -> None:
    weak = replace(IDENTITY, etag='W/"e"', modified=5)
    store.facts.add_origin(weak, D, "length only")
    assert store.facts.origin(weak) is None


def test_what_was_said_of_an_origin_can_be_withdrawn(store: Store) -> None:
    store.facts.add_origin(IDENTITY, D, "length only")
    store.facts.withdraw_origins([IDENTITY])
    assert store.facts.origin(IDENTITY) is None
    assert store.facts.origins([IDENTITY]) == {}
    store.facts.add_origin(IDENTITY, D, "origin checksum (md5)")
    assert store.facts.origins([IDENTITY])[IDENTITY].digest == D


def test_a_damaged_origin_is_passed_over(store: Store) -> None:
    store.facts.add([{"kind": "origin", "key": IDENTITY.key, "digest": 7, "at": 10**11}])
    lines.append(store.home / "facts" / "a.jsonl", [{"kind": "origin", "key": IDENTITY.key, "digest": str(D)}])
    found = store.facts.origin(IDENTITY)
    assert found is not None and found.digest == D


def test_targets_are_known_by_their_path_even_if_it_is_not_utf8(store: Store, tmp_path: Path) -> None:
    for path in (tmp_path / "a", Path(os.fsdecode(b"/tmp/\xff\xfe")), tmp_path / "é"):
        assert store.facts.target(path) is None
        store.facts.add_target(path, {"n": 1})
        store.facts.add_target(path, {"n": 2})
        found = store.facts.target(path)
        assert found is not None and found["n"] == 2
