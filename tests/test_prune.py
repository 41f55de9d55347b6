"""Prune: the plan by its rules, and what executing it leaves, whoever else works in the store."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import OTHER_UUID, UUID, damage, lies, tagged, uuid

from cas.errors import ProtectedError
from cas.index import disk
from cas.index.aside import held
from cas.index.check import check
from cas.index.digest import Digest
from cas.index.manifest import Manifest
from cas.index.prune import PrunePlan, PruneReport, Rules, execute, plan_prune
from cas.index.remove import GRACE, execute_remove, plan_remove
from cas.index.stock import Kind, Leftover, Stock, StoredBlob, StoredCheckpoint, StoredView, take_stock
from cas.index.store import Store
from cas.load.views import make_view

NOW = 10**18
DAY = 86_400
HERE = lambda uuid: False  # noqa: E731 - what lies elsewhere too


# --- the plan ----------------------------------------------------------------------------------------------------


def digest(number: int) -> Digest:
    return Digest.of(b"%d" % number)


def stored(number: int, blobs: list[int], *, days: float = 1, **more: object) -> StoredCheckpoint:
    return StoredCheckpoint(
        uuid=uuid(number),
        registries=("m",),
        manifests=frozenset({digest(1000 + number)}),
        blobs=frozenset(map(digest, blobs)),
        last_used=NOW - int(days * DAY * 1e9),
        **more,  # type: ignore[arg-type]
    )


def stock(*checkpoints: StoredCheckpoint, sizes: dict[int, int], **more: object) -> Stock:
    blobs = {digest(number): StoredBlob(size, inode=number) for number, size in sizes.items()}
    return Stock(NOW, checkpoints, blobs, **more)  # type: ignore[arg-type]


def going(plan: PrunePlan) -> list[str]:
    return [verdict.uuid for verdict in plan.going]


def staying(plan: PrunePlan) -> dict[str, str]:
    return {verdict.uuid: verdict.reason for verdict in plan.staying}


def test_without_a_rule_only_what_no_checkpoint_needs_goes() -> None:
    plan = plan_prune(stock(stored(1, [1], days=999), sizes={1: 10, 2: 5}), Rules())
    assert going(plan) == []
    assert plan.unreferenced == (digest(2),)
    assert (plan.size, plan.size_after, plan.frees) == (15, 10, 5)


def test_by_age_of_the_last_use() -> None:
    plan = plan_prune(
        stock(stored(1, [1], days=31), stored(2, [2], days=29), sizes={1: 10, 2: 5}), Rules(older_than=30 * DAY)
    )
    assert going(plan) == [uuid(1)]
    assert plan.going[0].reason == "last used 31 days ago"
    assert staying(plan) == {uuid(2): "it was used later than that"}
    assert plan.blobs == (digest(1),)


def test_by_size_the_least_recently_used_go_first() -> None:
    held_by = stock(stored(1, [1], days=1), stored(2, [2], days=3), stored(3, [3], days=2), sizes={1: 10, 2: 10, 3: 10})
    assert going(plan_prune(held_by, Rules(max_size=30))) == []
    assert going(plan_prune(held_by, Rules(max_size=29))) == [uuid(2)]
    assert going(plan_prune(held_by, Rules(max_size=19))) == [uuid(2), uuid(3)]
    assert going(plan_prune(held_by, Rules(max_size=0))) == [uuid(2), uuid(3), uuid(1)]


def test_what_would_free_nothing_need_not_go() -> None:
    shared = stock(stored(1, [1], days=9, pinned=True), stored(2, [1], days=8), stored(3, [3]), sizes={1: 10, 3: 10})
    plan = plan_prune(shared, Rules(max_size=10))
    assert going(plan) == [uuid(3)]
    assert staying(plan) == {uuid(1): "it is pinned", uuid(2): "the store fits with it"}


def test_bytes_that_two_share_go_with_both() -> None:
    plan = plan_prune(stock(stored(1, [1], days=9), stored(2, [1], days=8), sizes={1: 10}), Rules(max_size=5))
    assert going(plan) == [uuid(1), uuid(2)]
    assert [verdict.own for verdict in plan.going] == [0, 10]
    assert plan.frees == 10


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"pinned": True}, "it is pinned"),
        ({"users": "train.py (process 1 on h)"}, "it is in use by train.py (process 1 on h)"),
        ({"only_copy": True}, "it lies nowhere else"),
        ({"days": 5 / 1440}, "it was used just now"),
    ],
)
def test_what_is_protected_stays_and_says_why(more: dict[str, object], reason: str) -> None:
    found = stock(stored(1, [1], **more), sizes={1: 10})
    for rules in (Rules(max_size=0), Rules(older_than=0), Rules(registry="m"), Rules(names=("*",))):
        plan = plan_prune(found, rules)
        assert going(plan) == []
        assert staying(plan) == {uuid(1): reason}
        assert plan.blobs == ()


def test_at_once_what_was_used_just_now_goes_too() -> None:
    assert going(plan_prune(stock(stored(1, [1], days=0), sizes={1: 10}), Rules(max_size=0, at_once=True))) == [uuid(1)]


def test_an_only_copy_goes_when_it_is_named_in_full_and_asked_for() -> None:
    found = stock(stored(1, [1], only_copy=True), stored(2, [2], only_copy=True), sizes={1: 1, 2: 1})
    assert going(plan_prune(found, Rules(names=(uuid(1),)))) == []
    assert going(plan_prune(found, Rules(names=(uuid(1)[:-1] + "*",), only_copies=True))) == []
    assert going(plan_prune(found, Rules(names=(uuid(1),), only_copies=True))) == [uuid(1)]


def test_by_registry_and_by_pattern() -> None:
    found = stock(stored(1, [1]), replace(stored(2, [2]), registries=("other",)), sizes={1: 1, 2: 1})
    assert going(plan_prune(found, Rules(registry="other"))) == [uuid(2)]
    assert going(plan_prune(found, Rules(names=("*1",)))) == [uuid(1)]
    assert going(plan_prune(found, Rules(names=("*1",), registry="other"))) == []
    assert going(plan_prune(found, Rules(registry="m", older_than=2 * DAY))) == []


def test_what_comes_while_somebody_brings_a_checkpoint_stays() -> None:
    hour = 3600 * 10**9
    blobs = {digest(1): StoredBlob(1, NOW - 2 * hour), digest(2): StoredBlob(1, NOW - 4 * hour)}
    blobs[digest(3)] = StoredBlob(1, NOW - 10**9)  # it came just now: its ref may come
    found = Stock(NOW, (), blobs)
    assert set(plan_prune(found, Rules()).unreferenced) == {digest(1), digest(2)}
    assert plan_prune(replace(found, bringing_since=NOW - 3 * hour), Rules()).unreferenced == (digest(2),)
    assert len(plan_prune(found, Rules(at_once=True)).unreferenced) == 3


def test_links_elsewhere_keep_bytes_on_the_disk() -> None:
    one, two = stored(1, [1], days=9), stored(2, [2], days=9)
    found = stock(one, two, sizes={})
    blobs = {digest(1): StoredBlob(100, names=2, inode=1), digest(2): StoredBlob(10, names=3, inode=2)}
    (view_of_two,) = two.manifests
    found = replace(found, blobs=blobs, views={view_of_two: StoredView({2: 2}, 7, in_use=False)})
    plan = plan_prune(found, Rules(max_size=0))
    assert (plan.frees, plan.linked) == (17, 100)
    found = replace(found, views={view_of_two: StoredView({2: 2}, 7, in_use=True)})
    plan = plan_prune(found, Rules(max_size=0))
    assert (plan.frees, plan.linked) == (0, 110)


def test_leftovers_go_when_they_are_old_enough() -> None:
    def left(kind: Kind, seconds: float) -> Leftover:
        return Leftover(kind, Path("x", digest(1).hex), 5, NOW - int(seconds * 1e9))

    young = tuple(left(kind, 5) for kind in (Kind.TRANSFER, Kind.ASIDE, Kind.VIEW))
    old = tuple(left(kind, 2 * DAY) for kind in (Kind.TRANSFER, Kind.ASIDE, Kind.VIEW, Kind.LEASE))
    found = replace(stock(sizes={}), leftovers=young + old)
    assert plan_prune(found, Rules()).leftovers == old
    assert plan_prune(found, Rules(at_once=True)).leftovers == young + old
    used = {digest(1): StoredView({}, 0, in_use=True)}
    assert all(one.kind is not Kind.VIEW for one in plan_prune(replace(found, views=used), Rules()).leftovers)


def test_while_nobody_knows_what_a_checkpoint_needs_no_byte_goes() -> None:
    found = stock(stored(1, [1], days=99), sizes={1: 10, 2: 5}, unknown=(uuid(7),))
    plan = plan_prune(found, Rules(older_than=1))
    assert (plan.going, plan.blobs, plan.unreferenced, plan.frees) == ((), (), (), 0)
    assert plan.obstacle.startswith(f"the manifest of checkpoint {uuid(7)} cannot be read")
    assert staying(plan) == {uuid(1): "no bytes can be deleted"}


numbers = st.lists(st.integers(0, 7), max_size=4, unique=True)
checkpoints = st.builds(
    lambda blobs, days, pinned, users, only: (blobs, days, pinned, users, only),
    numbers,
    st.sampled_from([0.0, 0.001, 1, 2, 3, 5, 8]),
    st.booleans(),
    st.sampled_from(["", "", "somebody"]),
    st.booleans(),
)
stocks = st.builds(
    lambda rows, sizes, needed, since: Stock(
        NOW,
        tuple(
            stored(number, blobs, days=days, pinned=pinned, users=users, only_copy=only)
            for number, (blobs, days, pinned, users, only) in enumerate(rows)
        ),
        {digest(number): StoredBlob(size, NOW - age, inode=number) for number, (size, age) in enumerate(sizes)},
        needed=frozenset(map(digest, needed)),
        bringing_since=since,
    ),
    st.lists(checkpoints, max_size=7),
    st.lists(st.tuples(st.integers(0, 100), st.integers(0, 10**15)), min_size=8, max_size=8),
    numbers,
    st.none() | st.integers(NOW - 10**15, NOW),
)
sizes = st.none() | st.integers(0, 500)
rules_for = st.builds(
    lambda older, size, names, at_once: Rules(older_than=older, max_size=size, names=names, at_once=at_once),
    st.none() | st.sampled_from([0.0, DAY * 2.5, DAY * 6]),
    sizes,
    st.sampled_from([(), ("*",), ("*1", "*2"), (uuid(0),)]),
    st.booleans(),
)


def protected(one: StoredCheckpoint, rules: Rules) -> bool:
    recent = NOW - one.last_used < rules.grace * 1e9
    return one.pinned or bool(one.users) or one.only_copy or recent


@settings(max_examples=300, deadline=None)
@given(stocks, rules_for)
def test_no_plan_takes_what_is_protected(found: Stock, rules: Rules) -> None:
    plan = plan_prune(found, rules)
    gone = {verdict.uuid for verdict in plan.going}
    kept = [one for one in found.checkpoints if one.uuid not in gone]
    assert len(gone) + len(plan.staying) == len(found.checkpoints)
    assert not [one for one in found.checkpoints if one.uuid in gone and protected(one, rules)]
    needed = found.needed.union(*(one.blobs for one in kept))
    assert not needed & {*plan.blobs, *plan.unreferenced}
    assert plan.size_after == sum(
        blob.size for key, blob in found.blobs.items() if key not in {*plan.blobs, *plan.unreferenced}
    )
    if found.bringing_since is not None:
        assert all(found.blobs[one].since < found.bringing_since for one in plan.unreferenced)


@settings(max_examples=300, deadline=None)
@given(stocks, rules_for)
def test_a_size_is_kept_if_it_can_be_by_the_least_recently_used(found: Stock, rules: Rules) -> None:
    rules = replace(rules, max_size=rules.max_size if rules.max_size is not None else 50)
    plan = plan_prune(found, rules)
    gone = {verdict.uuid for verdict in plan.going}
    chosen = [one for one in found.checkpoints if not rules.names or any(_is_named(one, name) for name in rules.names)]
    free = [one for one in chosen if not protected(one, rules)]
    assert rules.max_size is not None
    if plan.size_after > rules.max_size:  # then all is gone that helps
        for one in free:
            if one.uuid not in gone:
                others = (two for two in found.checkpoints if two.uuid not in gone and two != one)
                assert one.blobs & found.blobs.keys() <= found.needed.union(*(two.blobs for two in others))
    old = [one for one in free if rules.older_than is not None and (NOW - one.last_used) / 1e9 > rules.older_than]
    by_size = [one for one in free if one.uuid in gone and one not in old]
    if by_size:
        last = max(by_size, key=lambda one: (one.last_used, one.uuid))
        for one in free:  # nobody was skipped, but those whose going frees nothing
            if one.uuid not in gone and (one.last_used, one.uuid) < (last.last_used, last.uuid):
                others = (two for two in found.checkpoints if two.uuid not in gone and two != one)
                assert one.blobs & found.blobs.keys() <= found.needed.union(*(two.blobs for two in others))
        with_last = plan.size_after + sum(found.blobs[key].size for key in last.blobs & set(plan.blobs))
        assert with_last > rules.max_size  # no more went than had to


def _is_named(one: StoredCheckpoint, name: str) -> bool:
    return one.uuid.endswith(name[1:]) if name.startswith("*") else one.uuid == name


# --- executing -----------------------------------------------------------------------------------------------------

FILES = {"a": b"a" * 5000, "shared": b"s" * 6000, "small": b"x"}
OTHER = {"b": b"b" * 5000, "shared": b"s" * 6000}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "home")
    yield made
    made.close()


def unused_for(store: Store, seconds: float, *uuids: str) -> None:
    """Make checkpoints look as if they were last used so long ago; blobs come of age as well."""
    for one in uuids:
        store.uses.note(one)
        path = store.layout.used(one)
        then = path.stat().st_mtime_ns - int(seconds * 1e9)
        os.utime(path, ns=(then, then))


def later(found: Stock, seconds: float = 2 * GRACE) -> Stock:
    """The same stock some time later."""
    return replace(found, now=found.now + int(seconds * 1e9))


def pruned(store: Store, rules: Rules) -> PruneReport:
    return execute(store, plan_prune(later(take_stock(store, HERE)), rules), HERE)


def names(store: Store) -> set[str]:
    return {path.parent.name + path.name for path in store.home.glob("blobs/??/*")}


def digests(*files: dict[str, bytes]) -> set[str]:
    return {Digest.of(data).hex for tree in files for data in tree.values()}


def test_what_goes_is_kept_for_the_grace_time_and_then_deleted(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    tagged(store, UUID, FILES)
    tagged(store, OTHER_UUID, OTHER)
    unused_for(store, 90 * DAY, UUID)
    report = pruned(store, Rules(older_than=30 * DAY))
    assert (report.gone, report.blobs, report.freed) == ((UUID,), 0, 0)
    assert report.waiting > 5001
    assert store.resolve("local", UUID) is None
    assert names(store) == digests(OTHER)
    assert {one.digest.hex for one in held(store) if one.digest} > digests({"a": FILES["a"], "small": b"x"})
    again = execute(store, plan_prune(take_stock(store, HERE), Rules()), HERE)
    assert (again.blobs, again.waiting) == (0, 0)  # not yet
    monkeypatch.setattr("cas.index.prune.GRACE", 0.0)
    assert pruned(store, Rules()).freed == 5001
    assert list(held(store)) == []
    assert not check(store, deep=True).problems


def test_what_is_brought_again_within_the_grace_time_comes_back(store: Store) -> None:
    manifest = tagged(store, UUID, FILES)
    unused_for(store, 90 * DAY, UUID)
    pruned(store, Rules(older_than=30 * DAY))
    inodes = {one.digest.hex: one.path.stat().st_ino for one in held(store) if one.digest}
    assert store.tag("local", UUID, manifest) == []
    assert names(store) == digests(FILES)
    big = Digest.of(FILES["a"])
    assert store.layout.blob(big).stat().st_ino == inodes[big.hex]  # nothing was written again
    assert pruned(store, Rules()).blobs == 0
    assert not check(store, deep=True).damage


def test_at_once_everything_is_deleted(store: Store) -> None:
    tagged(store, UUID, FILES)
    tagged(store, OTHER_UUID, OTHER)
    report = pruned(store, Rules(max_size=len(b"b" * 5000 + b"s" * 6000), at_once=True))
    assert report.gone in ((UUID,), (OTHER_UUID,))
    assert report.waiting == 0
    assert report.freed == (5001 if report.gone == (UUID,) else 5000)
    assert list(held(store)) == []
    assert not check(store, deep=True).problems


def test_at_once_is_refused_while_somebody_uses_the_store(store: Store) -> None:
    manifest = tagged(store, UUID, FILES)
    other = Store(store.home)
    make_view(other, manifest)
    with pytest.raises(ProtectedError, match=r"in use by .*; wait for them, or prune without --now"):
        pruned(store, Rules(at_once=True))
    other.leases.leave(manifest.digest)
    with other.leases.claim(OTHER_UUID), pytest.raises(ProtectedError):
        pruned(store, Rules(at_once=True))
    assert pruned(store, Rules(max_size=0, at_once=True)).gone == (UUID,)


def test_a_view_in_use_survives_prune_and_rm(store: Store) -> None:
    manifest = tagged(store, UUID, FILES)
    user = Store(store.home)
    view = make_view(user, manifest).path
    unused_for(store, 90 * DAY, UUID)
    plan = plan_prune(later(take_stock(store, HERE)), Rules(older_than=DAY))
    assert plan.going == ()
    with pytest.raises(ProtectedError, match="in use by"):
        execute_remove(store, plan_remove(store, UUID))
    report = execute_remove(store, plan_remove(store, UUID), force=True)
    assert (report.blobs, report.size, report.later) == (0, 0, 11_001)
    assert {name: (view / name).read_bytes() for name in FILES} == FILES
    pruned(store, Rules())
    assert {name: (view / name).read_bytes() for name in FILES} == FILES
    user.leases.leave(manifest.digest)
    report_after = pruned(store, Rules(at_once=True))
    assert report_after.freed == 11_001
    assert not view.exists() and names(store) == set()
    user.close()


def test_what_a_claim_needs_stays_when_its_checkpoint_is_removed_by_force(store: Store) -> None:
    manifest = tagged(store, UUID, FILES)
    user = Store(store.home)
    with user.leases.claim(UUID):
        report = execute_remove(store, plan_remove(store, UUID), force=True)
        assert (report.blobs, report.later) == (0, 11_001)
        assert store.resolve("local", UUID) is None and store.absent(manifest) == []
    assert pruned(store, Rules(at_once=True)).freed == 11_001
    user.close()


def test_who_claims_between_the_plan_and_its_execution_keeps_the_checkpoint(store: Store) -> None:
    tagged(store, UUID, FILES)
    unused_for(store, 90 * DAY, UUID)
    plan = plan_prune(later(take_stock(store, HERE)), Rules(older_than=DAY))
    with store.leases.claim(UUID):
        report = execute(store, plan, HERE)
    assert report.gone == () and report.stayed[0].reason.startswith("it is in use by")
    assert store.resolve("local", UUID) is not None and names(store) == digests(FILES)


@pytest.mark.parametrize("how", ["claim", "pin"])
def test_who_protects_while_the_refs_are_away_gets_them_back(how: str, store: Store) -> None:
    manifest = tagged(store, UUID, FILES)
    seen: list[Manifest | None] = []
    user, stack = Store(store.home), contextlib.ExitStack()
    plan = plan_remove(store, UUID)

    def protect(moment: str, step: str) -> None:
        if (moment, step) == ("after", "rename") and not seen:
            seen.append(None)
            if how == "pin":
                user.pins.add(UUID)
            else:
                stack.enter_context(user.leases.claim(UUID))
            seen[0] = user.resolve("local", UUID)

    disk.observe(protect)
    try:
        with pytest.raises(ProtectedError):
            execute_remove(store, plan)
    finally:
        disk.observe(None)
    assert seen == [None]
    assert store.resolve("local", UUID) == manifest and store.absent(manifest) == []
    stack.close()
    user.close()


def test_a_pinned_checkpoint_is_removed_by_nothing(store: Store) -> None:
    tagged(store, UUID, FILES)
    store.pins.add(UUID)
    for force in (False, True):
        with pytest.raises(ProtectedError, match=f"it is pinned; `cas unpin {UUID}` unpins it"):
            execute_remove(store, plan_remove(store, UUID), force=force)
    assert pruned(store, Rules(max_size=0, at_once=True)).gone == ()
    store.pins.remove(UUID)
    assert pruned(store, Rules(max_size=0, at_once=True)).gone == (UUID,)


def test_nothing_is_deleted_while_the_manifest_of_an_only_copy_cannot_be_read(store: Store) -> None:
    manifest = tagged(store, UUID, FILES)
    tagged(store, OTHER_UUID, OTHER)
    store.put(b"nobody's")
    damage(store.layout.manifest(manifest.digest), b"{}")
    report = execute_remove(store, plan_remove(store, OTHER_UUID))
    assert (report.blobs, report.size) == (0, 0)
    assert names(store) >= digests(FILES)
    plan = plan_prune(later(take_stock(store)), Rules(max_size=0))
    assert plan.obstacle and not plan.blobs and not plan.unreferenced
    tagged(store, UUID, FILES)  # brings it again
    assert pruned(store, Rules()).waiting > 0
    assert names(store) == digests(FILES)


def test_a_damaged_only_copy_is_kept(store: Store) -> None:
    tagged(store, UUID, FILES)
    bad = Digest.of(FILES["a"])
    damage(store.layout.blob(bad))
    assert not store.has(bad)
    pruned(store, Rules(at_once=True))
    assert [one.digest for one in held(store)] == [bad]
    execute_remove(store, plan_remove(store, UUID))
    pruned(store, Rules(at_once=True))
    assert list(held(store)) == []


def test_what_killed_removals_left_is_judged_again(store: Store) -> None:
    manifest = tagged(store, UUID, FILES)
    for entry in manifest.files:
        assert entry.digest is not None
        os.rename(store.layout.blob(entry.digest), store.layout.aside(entry.digest.hex))
    os.rename(store.layout.manifest(manifest.digest), store.layout.aside(f"{manifest.digest.hex}.json"))
    os.mkdir(store.layout.aside("view-" + "0" * 64))
    (store.home / "aside" / "what.is.this").touch()
    pruned(store, Rules(at_once=True))
    assert store.resolve("local", UUID) == manifest
    assert names(store) == digests(FILES)
    assert [path.name for path in (store.home / "aside").iterdir()] == ["what.is.this"]


def test_views_of_nothing_and_ended_leases_go(store: Store) -> None:
    manifest = tagged(store, UUID, FILES)
    user = Store(store.home)
    make_view(user, manifest)
    os.utime(store.layout.lease(user.leases.id or "") / "beat", (0, 0))
    execute_remove(store, plan_remove(store, UUID))
    tagged(store, OTHER_UUID, OTHER)
    make_view(store, tagged(store, OTHER_UUID, OTHER))
    store.close()
    pruned(store, Rules())
    assert list((store.home / "leases").iterdir()) == []
    assert [path.name for path in (store.home / "views").iterdir() if path.is_dir()] == [
        store.resolve("local", OTHER_UUID).digest.hex  # type: ignore[union-attr]
    ]
    user.close()


def test_an_expired_lease_protects_nothing(store: Store) -> None:
    manifest = tagged(store, UUID, FILES)
    user = Store(store.home)
    make_view(user, manifest)
    with user.leases.claim(UUID):
        os.utime(store.layout.lease(user.leases.id or "") / "beat", (0, 0))
        assert execute_remove(store, plan_remove(store, UUID)).size == 11_001
        assert names(store) == set()
    user.close()


def test_the_parts_of_a_dead_transfer_go_after_a_day(store: Store) -> None:
    staging = store.staging("key")
    with staging.ingest(100_000, source="s") as ingest:
        ingest.write_at(0, b"x" * 50_000)
        ingest.leave()
    pruned(store, Rules())
    assert staging.folder.exists()  # its process lives
    staging.abandon()
    pruned(store, Rules())
    assert staging.folder.exists()  # for whoever resumes it
    report = execute(store, plan_prune(later(take_stock(store), 2 * DAY), Rules()))
    assert not staging.folder.exists() and report.freed > 0


def test_where_locks_tell_nothing_a_transfer_that_is_silent_for_long_is_dead(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    monkeypatch.setattr(fcntl, "flock", lambda fd, operation: None)
    staging = store.staging("key")
    execute(store, plan_prune(later(take_stock(store), 2 * DAY), Rules(at_once=True)))
    assert staging.folder.exists()
    for path in (staging.folder / "claim", staging.folder):
        os.utime(path, (0, 0))
    pruned(store, Rules())
    assert not staging.folder.exists()


def test_chunk_lists_go_with_their_blobs(store: Store) -> None:
    tagged(store, UUID, FILES)
    path = store.layout.chunks(Digest.of(FILES["a"]))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    execute_remove(store, plan_remove(store, UUID))
    assert not path.exists()


def test_many_checkpoints_pruned_at_random_leave_what_the_rest_needs(store: Store) -> None:
    rng = random.Random(3)
    pool = [b"%d" % number * 300 for number in range(30)]
    trees = {uuid(n): {f"f{i}": data for i, data in enumerate(rng.sample(pool, 5))} for n in range(25)}
    for name, files in trees.items():
        tagged(store, name, files)
    for age, name in enumerate(rng.sample(sorted(trees), 25), 1):
        unused_for(store, age * DAY, name)
    for limit in (15_000, 9_000, 4_000):
        report = pruned(store, Rules(max_size=limit, at_once=True))
        for name in report.gone:
            del trees[name]
        assert names(store) == digests(*trees.values())
        assert sum(path.stat().st_size for path in store.home.glob("blobs/??/*")) <= limit
        assert not check(store, deep=True).problems
    assert lies(store.home) == []
