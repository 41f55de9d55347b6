"""`ls`, `du`: which checkpoints are known here, and what they take."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from cas.cli import output
from cas.cli.parser import add_command, add_form, add_registry, number, store

if TYPE_CHECKING:
    from cas.index.usage import CheckpointUsage
    from cas.registry.records import CheckpointRecord


def register(groups: Any) -> None:
    """Add the commands."""
    _register_ls(groups)
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
        example="$ ls\n$ ls --experiment 1\n$ ls --trial 7 --json",
    )
    parser.add_argument("--experiment", metavar="ID", type=number, help="only those of this experiment")
    parser.add_argument("--trial", metavar="ID", type=number, help="only those of this trial")
    parser.add_argument("--all", action="store_true", help="deleted ones too")
    add_registry(parser)
    add_form(parser)


def ls(args: argparse.Namespace) -> None:
    """List checkpoints: those that registries told of, and those that only lie here."""
    from cas.index.usage import usage
    from cas.registry.catalog import Catalog

    opened = store(args)
    used = {one.uuid: one for one in usage(opened).checkpoints}
    records = Catalog(opened, args.registry).checkpoints()
    rows = [_listed(record, used.get(record.uuid)) for record in records]
    told = {record.uuid for record in records}
    rows += [
        _unlisted(one) for uuid, one in used.items() if uuid not in told and args.registry in (None, *one.registries)
    ]
    rows = sorted((row for row in rows if _is_wanted(row, args)), key=_place)
    if args.json:
        output.say_json(checkpoints=rows)
        return
    if not rows:
        output.note("no such checkpoint is known here; `add` brings some, `-m URL trial download` too")
        return
    headers = ("registry", "experiment", "trial", "batch", "checkpoint", "size", "here", "metric")
    output.say(output.table(headers, map(_row, rows), right=("experiment", "trial", "batch", "size")))


def _listed(record: CheckpointRecord, used: CheckpointUsage | None) -> dict[str, Any]:
    name = record.searcher_metric
    values = (record.validation_metrics or {}).get("validation_metrics", record.validation_metrics) or {}
    return {
        "registry": record.registry,
        "experiment": record.experiment_id,
        "trial": record.trial_id,
        "batch": record.steps_completed,
        "uuid": record.uuid,
        "state": str(record.state),
        "size": used.size if used else sum(record.resources.values()) if record.resources else None,
        "here": _here(used),
        "pinned": used is not None and used.pinned,
        "metric": {"name": name, "value": values[name]} if name in values else None,
    }


def _unlisted(used: CheckpointUsage) -> dict[str, Any]:
    absent = dict.fromkeys(("experiment", "trial", "batch"))
    known = {"registry": used.registries[0], **absent, "uuid": used.uuid, "state": None, "size": used.size}
    return {**known, "here": _here(used), "pinned": used.pinned, "metric": None}


def _here(used: CheckpointUsage | None) -> str:
    if used is None or (used.files and used.missing == used.files):
        return "no"
    return "part" if used.missing else "yes"


def _is_wanted(row: dict[str, Any], args: argparse.Namespace) -> bool:
    if row["state"] == "DELETED" and row["here"] == "no" and not args.all:
        return False
    return args.experiment in (None, row["experiment"]) and args.trial in (None, row["trial"])


def _row(row: dict[str, Any]) -> list[object]:
    metric = row["metric"]
    shown = f"{metric['name']}={_short(metric['value'])}" if metric else None
    size = output.size(row["size"]) if row["size"] is not None else None
    here = row["here"] if row["state"] in (None, "COMPLETED") else f"{row['here']} ({row['state'].lower()})"
    here += ", pinned" if row["pinned"] else ""
    return [row["registry"], row["experiment"], row["trial"], row["batch"], row["uuid"], size, here, shown]


def _place(row: dict[str, Any]) -> tuple[str, list[int], str]:
    """Where a row belongs: by registry, experiment, trial and batch, those that have none first."""
    numbers = [-1 if row[name] is None else row[name] for name in ("experiment", "trial", "batch")]
    return row["registry"], numbers, row["uuid"]


def _short(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


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
