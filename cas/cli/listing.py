"""`ls`, `registries`, `du`: which checkpoints are known here, who tells of them, and what they take."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from cas.cli import output
from cas.cli.parser import add_command, add_form, add_registry, count, number, settings, store

if TYPE_CHECKING:
    from cas.actions.listing import ListedCheckpoint
    from cas.index.usage import CheckpointUsage


def register(groups: Any) -> None:
    """Add the commands."""
    _register_ls(groups)
    _register_registries(groups)
    _register_du(groups)


# --- ls --------------------------------------------------------------------------------------------------------------
def _register_ls(groups: Any) -> None:
    parser = add_command(
        groups,
        "ls",
        ls,
        summary="list every checkpoint that is known here, and whether its files are on this disk",
        what="list checkpoints",
        usage="[OPTIONS]",
        example="$ ls\n$ ls --experiment 1 --metric 'accuracy>0.9' --sort accuracy --desc --limit 10\n"
        "$ ls --registry local --missing\n$ ls --trial 7 --json",
    )
    parser.add_argument("--experiment", metavar="ID", type=number, help="only those of this experiment")
    parser.add_argument("--trial", metavar="ID", type=number, help="only those of this trial")
    parser.add_argument("--state", metavar="STATE", action="append", help="only those in this state; repeatable")
    help = "only those that meet it, like 'accuracy>0.9' (also <, <=, >=, =, !=), or a name: has it; repeatable"
    parser.add_argument("--metric", metavar="CONDITION", action="append", help=help)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--here", action="store_true", help="only those that are wholly on this disk")
    where.add_argument("--missing", action="store_true", help="only those that are not")
    help = "in order of registry, experiment, trial, batch, uuid, state, size, time, or a metric; what lacks it is last"
    parser.add_argument("--sort", metavar="NAME", help=help)
    parser.add_argument("--desc", action="store_true", help="the largest first")
    parser.add_argument("--limit", metavar="N", type=count, help="only the first N")
    parser.add_argument("--all", action="store_true", help="deleted ones too")
    parser.add_argument("--registries", action="store_true", help="list the registries instead, as `registries` does")
    add_registry(parser)
    add_form(parser, quiet="print only the UUIDs", csv=True)


def ls(args: argparse.Namespace) -> None:
    """List checkpoints: those that registries told of, and those that only lie here."""
    if args.registries:
        registries(args)
        return
    from cas.actions.listing import checkpoints

    rows = checkpoints(
        registry=args.registry,
        experiment=args.experiment,
        trial=args.trial,
        state=args.state or (),
        metric=args.metric or (),
        here=True if args.here else False if args.missing else None,
        sort=args.sort,
        descending=args.desc,
        limit=args.limit,
        deleted_too=args.all,
        settings=settings(args),
    )
    if args.quiet:
        for row in rows:
            output.say(row.uuid)
    elif args.json:
        output.say_json(checkpoints=[_members(row, _shown_metric(args)) for row in rows])
    elif args.csv:
        members = [_members(row, _shown_metric(args)) for row in rows]
        output.say_csv(_COLUMNS, [[_cell(one, name) for name in _COLUMNS] for one in members])
    elif rows:
        headers = ("registry", "experiment", "trial", "batch", "checkpoint", "size", "here", "metric")
        shown = [_row(row, _shown_metric(args)) for row in rows]
        output.say(output.table(headers, shown, right=("experiment", "trial", "batch", "size")))
    else:
        output.note("no such checkpoint is known here; `add` brings some, `-m URL trial download` too")


_COLUMNS = ("registry", "experiment", "trial", "batch", "uuid", "state", "size", "here", "pinned", "metric", "value")


def _shown_metric(args: argparse.Namespace) -> str | None:
    """The metric that the options ask about; None: that of each experiment's searcher."""
    from cas.actions.listing import SORTS
    from cas.registry.filters import MetricFilter

    if args.sort and args.sort not in SORTS:
        return str(args.sort)
    return MetricFilter.parse(args.metric[0]).metric if args.metric else None


def _members(row: ListedCheckpoint, metric: str | None) -> dict[str, Any]:
    experiment, trial, batch = row.numbers
    known = row.metric(metric)
    return {
        "registry": row.registry,
        "experiment": experiment,
        "trial": trial,
        "batch": batch,
        "uuid": row.uuid,
        "state": None if row.state is None else str(row.state),
        "size": row.size,
        "here": str(row.here),
        "pinned": row.pinned,
        "metric": None if known is None else {"name": known[0], "value": known[1]},
    }


def _cell(members: dict[str, Any], name: str) -> object:
    if name in ("metric", "value"):
        return (members["metric"] or {}).get("name" if name == "metric" else "value")
    return members[name]


def _row(row: ListedCheckpoint, metric: str | None) -> list[object]:
    known = row.metric(metric)
    size = output.size(row.size) if row.size is not None else None
    here = str(row.here) if row.state in (None, "COMPLETED") else f"{row.here} ({str(row.state).lower()})"
    here += ", pinned" if row.pinned else ""
    shown = f"{known[0]}={_short(known[1])}" if known else None
    return [row.registry, *row.numbers, row.uuid, size, here, shown]


def _short(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


# --- registries ------------------------------------------------------------------------------------------------------
def _register_registries(groups: Any) -> None:
    parser = add_command(
        groups,
        "registries",
        registries,
        summary="list the registries that are known here, what they tell of, and when they were last heard",
        what="list the registries",
        usage="[OPTIONS]",
        example="$ registries\n$ registries --json",
    )
    add_form(parser, quiet="print only their names", csv=True)


def registries(args: argparse.Namespace) -> None:
    """Print the registries of the catalog."""
    from cas.actions.listing import registries as known
    from cas.registry.catalog import ago

    found = known(settings=settings(args))
    headers = ("registry", "experiments", "trials", "checkpoints", "seen")
    if args.quiet:
        for one in found:
            output.say(one.name)
    elif args.json:
        output.say_json(registries=[{**one.counts, "name": one.name, "seen": one.seen} for one in found])
    elif args.csv:
        output.say_csv(headers, [[one.name, *one.counts.values(), one.seen] for one in found])
    elif found:
        rows = [[one.name, *one.counts.values(), None if one.seen is None else ago(one.seen)] for one in found]
        output.say(output.table(headers, rows, right=headers[1:4]))
    else:
        output.note("no registry is known here yet; `add` and every answer of a master make one, and `recover`")


# --- du --------------------------------------------------------------------------------------------------------------
def _register_du(groups: Any) -> None:
    parser = add_command(
        groups,
        "du",
        du,
        summary="say what the checkpoints take on this disk; what several share is counted once",
        what="measure the store",
        usage="[OPTIONS]",
        example="$ du\n$ du --json",
    )
    add_form(parser)


def du(args: argparse.Namespace) -> None:
    """Print bytes by checkpoint, shared ones once."""
    from dataclasses import asdict

    from cas.index.usage import usage

    found = usage(store(args))
    if args.json:
        output.say_json(**asdict(found))
        return
    size = output.size
    rows = [_used(one) for one in found.checkpoints]
    headers = ("checkpoint", "files", "size", "only its own", "shared", "last used")
    if rows:
        output.say(output.table(headers, rows, right=headers[1:5]) + "\n")
    output.say(f"only one checkpoint's: {size(found.own)}")
    output.say(f"shared, counted once:  {size(found.shared)}")
    output.say(f"no checkpoint's:       {size(found.unreferenced)}")
    if found.aside:
        output.say(f"put aside, not counted: {size(found.aside)} (`{args.program} prune` judges it)")
    output.say(f"total:                 {size(found.total)} (in a folder per checkpoint: {size(found.apart)})")


def _used(one: CheckpointUsage) -> tuple[object, ...]:
    from datetime import datetime

    size = output.size
    when = "" if one.last_used is None else datetime.fromtimestamp(one.last_used).strftime("%Y-%m-%d %H:%M")
    pinned = "pinned" if one.pinned else ""
    return one.uuid, one.files, size(one.size), size(one.own), size(one.shared), ", ".join(filter(None, (when, pinned)))
