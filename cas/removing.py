"""Taking checkpoints off this disk, and keeping them on it: remove, prune, pin, unpin.

The index does the work; what lies nowhere else is known to the registries' records, so it is told from here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import TypeVar

from cas.config import Settings, seconds_of, size_of
from cas.errors import CasError, NotFoundError, UsageError
from cas.index.aside import held
from cas.index.prune import PrunePlan, PruneReport, Rules, execute, plan_prune
from cas.index.remove import RemoveReport, execute_remove, plan_remove
from cas.index.stock import take_stock
from cas.index.store import Store, store_of
from cas.index.usage import blobs_here
from cas.registry.catalog import Catalog
from cas.registry.local import LOCAL, record_removed
from cas.registry.names import is_uuid, uuid_of
from cas.registry.records import CheckpointRecord, State

log = logging.getLogger("cas.removing")


# --- what lies elsewhere -----------------------------------------------------------------------------------------


def only_copies_of(store: Store) -> Callable[[str], bool]:
    """Return what tells whether a checkpoint lies nowhere else, as the records are now."""
    elsewhere = {record.uuid for record in Catalog(store).checkpoints() if _lies_elsewhere(record)}
    return lambda uuid: uuid not in elsewhere or _is_ours_alone(store, uuid)


def is_only_copy(store: Store, uuid: str) -> bool:
    """Whether a checkpoint lies nowhere else."""
    names = store.records.registries_with("checkpoint", uuid)
    records = [Catalog(store, name).checkpoint(uuid) for name in names]
    return not any(map(_lies_elsewhere, records)) or _is_ours_alone(store, uuid)


def _lies_elsewhere(record: CheckpointRecord) -> bool:
    """Whether a registry says where the files could be fetched again, all of them."""
    storage = record.experiment_config.get("checkpoint_storage")
    return record.registry != LOCAL and record.state is State.COMPLETED and bool(storage)


def _is_ours_alone(store: Store, uuid: str) -> bool:
    """Whether files were added here that no other registry's refs name: an origin would have others."""
    others = [name for name in store.refs.registries(uuid) if name != LOCAL]
    return not {*store.refs.of(LOCAL, uuid)} <= {digest for name in others for digest in store.refs.of(name, uuid)}


# --- rm ------------------------------------------------------------------------------------------------------------


def remove(uuid: str, *, force: bool = False, settings: Settings | None = None) -> RemoveReport:
    """Remove a checkpoint's files from this disk; bytes that other checkpoints need stay.

    What was added locally is gone then: it has no origin. The record of a master's checkpoint stays.

    Args:
        uuid: the checkpoint's, or a name of it.
        force: also if a process uses it. What that process uses stays until it has ended, and goes with a `prune` then.
        settings: default: `Settings.load()`.

    Raises:
        UsageError: it is neither a UUID nor a name.
        NotFoundError: the store holds no such checkpoint.
        ProtectedError: it is pinned; or a process uses it, and `force` was not said.
    """
    store = _store(settings)
    planned = plan_remove(store, uuid_of(store, uuid))
    report = execute_remove(store, planned, force=force, is_only_copy=lambda one: is_only_copy(store, one))
    if LOCAL in planned.registries:
        record_removed(store, planned.uuid)
    return report


# --- prune ---------------------------------------------------------------------------------------------------------


def plan(
    *names: str,
    older_than: str | float | None = None,
    max_size: str | int | None = None,
    registry: str | None = None,
    only_copies: bool = False,
    now: bool = False,
    settings: Settings | None = None,
) -> PrunePlan:
    """Say what a prune would do; changes nothing.

    With no name, age, size or registry, no checkpoint goes, only what no checkpoint needs.

    Args:
        names: UUIDs, names of the user's own, or patterns of UUIDs with `*`: the checkpoints that may go; default all.
        older_than: not used for so long: seconds, or text like `30d`.
        max_size: how large the store may be: bytes, or text like `200GiB`; the least recently used go first.
        registry: only checkpoints that this registry knows.
        only_copies: also what lies nowhere else, if its full UUID is named.
        now: delete at once, with no grace time; nothing else may use the store.
        settings: default: `Settings.load()`.

    Raises:
        UsageError: an age or a size is none; or there is no such registry, and the message lists those there are.
        NotFoundError: a full UUID or a name is named that the store does not hold.
    """
    store = _store(settings)
    if registry is not None:
        Catalog(store, registry).require_known()
    known = tuple(_uuid_or_pattern(store, name) for name in names)
    here = {uuid for _, uuid, manifests in store.refs.all() if manifests}
    for name in known:
        if is_uuid(name) and name not in here:
            raise NotFoundError(f"checkpoint {name} is not in the store {store.home}; `cas ls` lists what is")
        if not any(fnmatchcase(uuid, name) for uuid in here):
            raise NotFoundError(
                f"no checkpoint in the store {store.home} is named by {name!r:.50}; try {name + '*'!r:.50}"
                " (`cas ls` lists the UUIDs, `cas tag` the names)"
            )
    rules = Rules(
        names=known,
        registry=registry,
        older_than=_number(older_than, seconds_of, "older_than"),
        max_size=_number(max_size, size_of, "max_size"),
        only_copies=only_copies,
        at_once=now,
    )
    return plan_prune(take_stock(store, only_copies_of(store)), rules)


def _uuid_or_pattern(store: Store, text: str) -> str:
    """Return the UUID that a text is or stands for; else it is a pattern of UUIDs, in small letters as they are."""
    try:
        return uuid_of(store, text)
    except (UsageError, NotFoundError):
        return text.lower()


T = TypeVar("T", int, float)


def _number(value: str | T | None, parse: Callable[[str], T], name: str) -> T | None:
    if not isinstance(value, str):
        return value
    try:
        return parse(value)
    except ValueError as error:
        raise UsageError(f"{name}: {value!r:.40} {error}") from error


def prune(
    *names: str,
    older_than: str | float | None = None,
    max_size: str | int | None = None,
    registry: str | None = None,
    only_copies: bool = False,
    now: bool = False,
    settings: Settings | None = None,
) -> PruneReport:
    """Make room: plan, and do what the plan says. The arguments are those of `plan`.

    Raises:
        UsageError: an age or a size is none.
        NotFoundError: a full UUID is named that the store does not hold.
        ProtectedError: it is to be done `now`, and a process uses the store.
    """
    planned = plan(
        *names,
        older_than=older_than,
        max_size=max_size,
        registry=registry,
        only_copies=only_copies,
        now=now,
        settings=settings,
    )
    return execute_plan(planned, settings=settings)


def execute_plan(planned: PrunePlan, *, settings: Settings | None = None) -> PruneReport:
    """Do what a plan says; what somebody needs by now stays.

    Raises:
        ProtectedError: it is to be done at once, and a process uses the store.
    """
    store = _store(settings)
    ours = [one.uuid for one in planned.going if store.refs.of(LOCAL, one.uuid)]
    report = execute(store, planned, only_copies_of(store))
    for uuid in ours:
        if uuid in report.gone:
            record_removed(store, uuid)
    return report


def keep_small(store: Store, max_size: int) -> PruneReport | None:
    """Keep the store below a size, after a pull; what was used lately stays. Never fails; None if there was no need.

    What earlier calls put aside is deleted, once its grace time is over.
    """
    try:
        if sum(blobs_here(store).values()) <= max_size and not any(held(store)):
            return None
        known = only_copies_of(store)
        planned = plan_prune(take_stock(store, known), Rules(max_size=max_size))
        if planned.size_after > max_size:
            log.warning(
                "the store takes %d bytes, %d more than max_size, and nothing else may go: `cas prune --max-size %d"
                " --dry-run` says why",
                planned.size_after,
                planned.size_after - max_size,
                max_size,
            )
        return execute(store, planned, known)
    except (CasError, OSError) as error:
        log.warning("the store could not be kept below max_size: %s", error)
        return None


# --- pins ----------------------------------------------------------------------------------------------------------


def pin(uuid: str, *, settings: Settings | None = None) -> None:
    """Keep a checkpoint on this disk, whatever `prune` and `remove` are told, until it is unpinned.

    Raises:
        UsageError: it is neither a UUID nor a name.
        NotFoundError: the store holds no such checkpoint.
    """
    store = _store(settings)
    name = uuid_of(store, uuid)
    was_pinned = name in store.pins.all()
    store.pins.add(name)
    if not store.refs.registries(name):  # after pinning, so that whoever removes it sees the pin, or we see that
        if not was_pinned:
            store.pins.remove(name)
        raise NotFoundError(f"checkpoint {name} is not in the store {store.home}; download it, and pin it then")


def unpin(uuid: str, *, settings: Settings | None = None) -> None:
    """Let `prune` and `remove` take a checkpoint again.

    Raises:
        UsageError: it is neither a UUID nor a name.
        NotFoundError: it is not pinned.
    """
    store = _store(settings)
    name = uuid_of(store, uuid)
    if not store.pins.remove(name):
        raise NotFoundError(f"checkpoint {name} is not pinned")


def pinned(*, settings: Settings | None = None) -> tuple[str, ...]:
    """Return the UUIDs that are pinned."""
    return tuple(sorted(_store(settings).pins.all()))


def _store(settings: Settings | None) -> Store:
    return store_of(settings or Settings.load())
