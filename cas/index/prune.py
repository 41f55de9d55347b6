"""Prune: what goes to make room, by rules, and what stays and why. The plan is pure; executing it decides nothing.

::

    plan = plan_prune(take_stock(store), Rules(max_size=200 << 30))
    report = execute(store, plan)

A prune has two steps. The first moves what goes to `aside/`; the second, by any later prune once the grace time is
over, judges that again and deletes it. `at_once` does both, when nobody else uses the store.
"""

from __future__ import annotations

import fnmatch
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cas.errors import ProtectedError
from cas.index import aside, disk
from cas.index.digest import Digest
from cas.index.leases import bury
from cas.index.needs import Needs, Watch
from cas.index.remove import GRACE, Removal, remove_view
from cas.index.stock import Kind, Leftover, Stock, StoredCheckpoint, abandoned
from cas.index.store import Store, explained

log = logging.getLogger("cas.index")

ABANDONED = 86_400.0  # seconds that the parts of an interrupted transfer are kept, for whoever resumes it


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Which checkpoints go. With none of these no checkpoint goes, only what no checkpoint needs.

    `names` (UUIDs, or patterns with `*`) and `registry` choose among which; `older_than` (seconds since the last use)
    and `max_size` (bytes that blobs may take; the least recently used go first) say which of these. Without an age or
    a size all that were chosen go. What lies nowhere else goes only if `only_copies` are asked for, by their full UUID.
    """

    names: tuple[str, ...] = ()
    registry: str | None = None
    older_than: float | None = None
    max_size: int | None = None
    only_copies: bool = False
    at_once: bool = False  # no grace time

    @property
    def grace(self) -> float:
        """How long (seconds) things are left alone, and what was put aside is kept."""
        return 0.0 if self.at_once else GRACE


@dataclass(frozen=True, slots=True)
class Verdict:
    """What happens to one checkpoint, and why; `own`: the bytes that it alone needs of what would be left."""

    uuid: str
    reason: str
    last_used: int
    own: int = 0
    chosen: bool = True  # by the rules; it may stay all the same


@dataclass(frozen=True, slots=True)
class PrunePlan:
    """What a prune will do. Sizes are in bytes."""

    rules: Rules
    going: tuple[Verdict, ...]  # in the order in which they go
    staying: tuple[Verdict, ...]  # by UUID
    blobs: tuple[Digest, ...]  # that only those need which go
    unreferenced: tuple[Digest, ...]  # that no checkpoint needs
    orphans: tuple[Digest, ...]  # manifests that no ref names
    leftovers: tuple[Leftover, ...]
    size: int  # of all blobs now
    size_after: int  # of those that stay
    frees: int  # what the disk gets back in the end
    linked: int  # of what goes: bytes that stay because their files have names elsewhere, or in a view that is in use
    obstacle: str = ""  # why no blob can go at all

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.going or self.unreferenced or self.orphans or self.leftovers)


def plan_prune(stock: Stock, rules: Rules) -> PrunePlan:
    """Say what a prune would do; pure."""
    obstacle = _obstacle(stock)
    going, staying = _judge_all(stock, rules, obstacle)
    left = {verdict.uuid for verdict in going}
    kept = [one for one in stock.checkpoints if one.uuid not in left]
    needed = stock.needed.union(*(one.blobs for one in kept))
    theirs = {digest for one in stock.checkpoints for digest in one.blobs}
    blobs = () if obstacle else tuple(sorted(theirs & stock.blobs.keys() - needed))
    unreferenced = () if obstacle else tuple(sorted(_unreferenced(stock, theirs, rules)))
    leftovers = tuple(_leftovers(stock, rules, kept))
    gone = {*blobs, *unreferenced}
    frees, linked = _freed(stock, gone, leftovers, kept)
    size = sum(blob.size for blob in stock.blobs.values())
    return PrunePlan(
        rules=rules,
        going=going,
        staying=staying,
        blobs=blobs,
        unreferenced=unreferenced,
        orphans=tuple(sorted(one for one, since in stock.orphans.items() if since <= _latest(stock, rules))),
        leftovers=leftovers,
        size=size,
        size_after=size - sum(stock.blobs[digest].size for digest in gone),
        frees=frees,
        linked=linked,
        obstacle=obstacle,
    )


def _obstacle(stock: Stock) -> str:
    if not stock.unknown:
        return ""
    more = f" and of {len(stock.unknown) - 1} more" if len(stock.unknown) > 1 else ""
    return (
        f"the manifest of checkpoint {stock.unknown[0]}{more} cannot be read, and it lies nowhere else: nobody knows"
        " which bytes it needs, so none are deleted; add it again, or remove it with `cas rm`"
    )


# --- checkpoints -----------------------------------------------------------------------------------------------


def _judge_all(stock: Stock, rules: Rules, obstacle: str) -> tuple[tuple[Verdict, ...], tuple[Verdict, ...]]:
    """Return who goes, in that order, and who stays."""
    staying: list[Verdict] = []
    free: list[StoredCheckpoint] = []
    for one in stock.checkpoints:
        if not _is_chosen(one, rules):
            staying.append(Verdict(one.uuid, "no rule names it", one.last_used, chosen=False))
        elif reason := _protection(one, stock, rules) or (obstacle and "no bytes can be deleted"):
            staying.append(Verdict(one.uuid, reason, one.last_used))
        else:
            free.append(one)
    free.sort(key=lambda one: (one.last_used, one.uuid))
    going = _too_old(stock, rules, free)
    if rules.max_size is not None:
        going += _until_it_fits(stock, rules, going, free[len(going) :])
    elif rules.older_than is None:
        going = free
    left = {one.uuid for one in going}
    stays = [one for one in free if one.uuid not in left]
    staying += [Verdict(one.uuid, _why_it_fits(rules), one.last_used, chosen=False) for one in stays]
    return tuple(_verdicts(stock, rules, going)), tuple(sorted(staying, key=lambda verdict: verdict.uuid))


def _too_old(stock: Stock, rules: Rules, free: list[StoredCheckpoint]) -> list[StoredCheckpoint]:
    return [one for one in free if rules.older_than is not None and _age(one, stock) > rules.older_than]


def _verdicts(stock: Stock, rules: Rules, going: Iterable[StoredCheckpoint]) -> Iterator[Verdict]:
    uses = Counter(digest for one in stock.checkpoints for digest in one.blobs)
    named = rules.older_than is None and rules.max_size is None
    for one in going:
        own = sum(stock.blobs[digest].size for digest in one.blobs if uses[digest] == 1 and digest in stock.blobs)
        uses.subtract(one.blobs)
        reason = "it is named" if named else f"last used {ago(_age(one, stock))}"
        yield Verdict(one.uuid, reason, one.last_used, own)


def _is_chosen(one: StoredCheckpoint, rules: Rules) -> bool:
    if not (rules.names or rules.registry is not None or rules.older_than is not None or rules.max_size is not None):
        return False
    if rules.registry is not None and rules.registry not in one.registries:
        return False
    return not rules.names or any(fnmatch.fnmatchcase(one.uuid, name) for name in rules.names)


def _protection(one: StoredCheckpoint, stock: Stock, rules: Rules) -> str:
    """Say why a checkpoint stays whatever the rules say; nothing if it may go."""
    if one.pinned:
        return "it is pinned"
    if one.users:
        return f"it is in use by {one.users}"
    if one.only_copy and not (rules.only_copies and one.uuid in rules.names):
        return "it lies nowhere else"
    if _age(one, stock) < rules.grace:
        return "it was used just now"
    return ""


def _age(one: StoredCheckpoint, stock: Stock) -> float:
    """How long ago (seconds) a checkpoint was last used."""
    return (stock.now - one.last_used) / 1e9


def _until_it_fits(
    stock: Stock, rules: Rules, gone: Iterable[StoredCheckpoint], free: Iterable[StoredCheckpoint]
) -> list[StoredCheckpoint]:
    """Return which must go besides, the least recently used first, until the rest fits; none that frees nothing."""
    assert rules.max_size is not None, "the caller has looked"
    theirs = {digest for one in stock.checkpoints for digest in one.blobs}
    uses = Counter(digest for one in stock.checkpoints for digest in one.blobs)
    uses.update(stock.needed)
    size = sum(blob.size for blob in stock.blobs.values())
    size -= sum(stock.blobs[digest].size for digest in _unreferenced(stock, theirs, rules))

    def drop(one: StoredCheckpoint) -> int:
        uses.subtract(one.blobs)
        return sum(stock.blobs[digest].size for digest in one.blobs if not uses[digest] and digest in stock.blobs)

    size -= sum(drop(one) for one in gone)
    going = []
    for one in free:
        if size <= rules.max_size:
            break
        size -= drop(one)
        going.append(one)
    useless = set()  # those whose every blob is needed by others that stay
    for one in reversed(going):
        if all(uses[digest] or digest not in stock.blobs for digest in one.blobs):
            uses.update(one.blobs)
            useless.add(one.uuid)
    return [one for one in going if one.uuid not in useless]


def _why_it_fits(rules: Rules) -> str:
    if rules.max_size is None:
        return "it was used later than that"
    return "the store fits with it" if rules.older_than is None else "it was used later than that, and the store fits"


def ago(seconds: float) -> str:
    """Return an age for people."""
    for length, unit in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * length:
            return f"{int(seconds // length)} {unit} ago"
    return "just now"


# --- everything else -------------------------------------------------------------------------------------------


def _unreferenced(stock: Stock, theirs: set[Digest], rules: Rules) -> Iterator[Digest]:
    """Yield the blobs that no checkpoint needs, but those that somebody may be bringing."""
    latest = _latest(stock, rules)
    for digest, blob in stock.blobs.items():
        if digest not in theirs and digest not in stock.needed and blob.since <= latest:
            yield digest


def _latest(stock: Stock, rules: Rules) -> int:
    """When something that no checkpoint needs must have come (ns) to be nobody's who is at work now."""
    latest = stock.now - int(rules.grace * 1e9)
    return latest if stock.bringing_since is None else min(latest, stock.bringing_since - 1)


def _leftovers(stock: Stock, rules: Rules, kept: Iterable[StoredCheckpoint]) -> Iterator[Leftover]:
    for one in stock.leftovers:
        age = (stock.now - one.since) / 1e9
        least = (
            0.0 if rules.at_once else {Kind.TRANSFER: ABANDONED, Kind.ASIDE: GRACE, Kind.VIEW: GRACE}.get(one.kind, 0)
        )
        if age >= least and not (one.kind is Kind.VIEW and _is_in_use(stock, one)):
            yield one


def _is_in_use(stock: Stock, view: Leftover) -> bool:
    found = stock.views.get(_manifest_of(view))
    return found is not None and found.in_use


def _manifest_of(view: Leftover) -> Digest:
    return Digest(view.path.name)


def _freed(
    stock: Stock, gone: set[Digest], leftovers: Iterable[Leftover], kept: Iterable[StoredCheckpoint]
) -> tuple[int, int]:
    """Return the bytes that come back, and those that do not because a file has other names."""
    stays = {manifest for one in kept for manifest in one.manifests}
    names: Counter[int] = Counter()
    frees = sum(one.size for one in leftovers)
    going = {manifest for one in stock.checkpoints for manifest in one.manifests} - stays
    going |= {_manifest_of(one) for one in leftovers if one.kind is Kind.VIEW}
    for manifest, view in stock.views.items():
        if manifest in going and not view.in_use:
            names.update(view.links)
            frees += view.copied
    linked = 0
    for digest in gone:
        blob = stock.blobs[digest]
        if blob.names > 1 + names[blob.inode]:
            linked += blob.size
        else:
            frees += blob.size
    return frees, linked


# --- executing -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PruneReport:
    """What a prune did. Sizes are in bytes."""

    gone: tuple[str, ...]  # checkpoints
    stayed: tuple[Verdict, ...]  # that the plan named, and that somebody began to use
    blobs: int  # deleted for good
    freed: int
    waiting: int  # in `aside/` until the grace time is over, and then deleted by the next prune
    closed: tuple[Path, ...] = ()  # files that stay: they lie in folders that another user closed


def execute(store: Store, plan: PrunePlan, is_only_copy: Callable[[str], bool] = lambda uuid: True) -> PruneReport:
    """Do what a plan says; what somebody needs by now stays.

    Raises:
        ProtectedError: it is to be done at once, and somebody uses the store.
    """
    with explained(f"cannot prune {store.home}"):
        if plan.rules.at_once:
            _require_alone(store)
        watch = Watch(store, is_only_copy)
        needs = watch.needs()
        freed = sum(_remove_leftover(store, one, needs) for one in plan.leftovers)
        first = _judge_aside(store, watch, plan.rules)
        removal = Removal(store, watch, at_once=plan.rules.at_once)
        stayed = removal.take_checkpoints([verdict.uuid for verdict in plan.going])
        removal.take_bytes(plan.blobs, may_be_new=plan.unreferenced, manifests=plan.orphans)
        second = removal.finish()
    return PruneReport(
        gone=tuple(verdict.uuid for verdict in plan.going if verdict.uuid not in stayed),
        stayed=tuple(Verdict(uuid, reason, 0) for uuid, reason in sorted(stayed.items())),
        blobs=first.blobs + second.blobs,
        freed=freed + first.size + second.size,
        waiting=removal.waiting,
        closed=removal.closed,
    )


def _require_alone(store: Store) -> None:
    alive = users_of_store(store)
    if alive:
        more = f" and {len(alive) - 2} more" if len(alive) > 2 else ""
        raise ProtectedError(
            None, f"the store is in use by {', '.join(alive[:2])}{more}; wait for them, or prune without --now"
        )


def users_of_store(store: Store) -> list[str]:
    """Return who else uses the store now."""
    watch = Watch(store)
    alive = watch.living()
    users = {lease.id: lease.who for lease in alive.values() if lease.claims}
    users |= {lease.id: lease.who for leases in watch.viewed(alive).values() for lease in leases}
    users.pop(store.leases.id or "", None)
    return sorted(users.values())


def _remove_leftover(store: Store, one: Leftover, needs: Needs) -> int:
    """Remove one leftover if it still is one; what lies in `aside/` is judged by itself. Return the bytes freed."""
    now = disk.clock(store.home)
    try:
        if one.kind is Kind.LEASE:
            bury(store.layout, one.path.name, now)
        elif one.kind is Kind.VIEW and (_manifest_of(one) not in needs.manifests or not (one.path / "users").exists()):
            remove_view(store, _manifest_of(one))
        elif one.kind is Kind.TRANSFER and (found := abandoned(one.path, now)) is not None:
            disk.remove_tree(one.path)
            disk.remove_folder(one.path.parent)
            return found.size
    except OSError as error:  # another user's
        log.warning("cannot remove %s: %s", one.path, error)
    return 0


def _judge_aside(store: Store, watch: Watch, rules: Rules) -> aside.Freed:
    due = disk.clock(store.home) - int(rules.grace * 1e9)
    protected = store.pins.all().union(*(lease.claims for lease in watch.living().values()))
    return aside.judge(store, list(aside.held(store)), watch.needs, claimed=protected, due=due)
