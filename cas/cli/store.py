"""`ls`, `du`, `view`, `check`, `rm`: what lies in the store."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from cas.cli import output
from cas.cli.parser import (
    add_command,
    add_form,
    add_registry,
    checkpoint_uuid,
    client,
    missing,
    number,
    settings,
    store,
)
from cas.errors import CasError, ContentError, UsageError

if TYPE_CHECKING:
    from cas.index.check import Advance, CheckReport, Problem
    from cas.index.remove import RemovePlan
    from cas.index.store import Store
    from cas.index.usage import CheckpointUsage
    from cas.registry.records import CheckpointRecord

_UUID = "46985143-af68-4d48-ab91-a6447052ca49"


def register(groups: Any) -> None:
    """Add the commands."""
    _register_ls(groups)
    _register_du(groups)
    _register_view(groups)
    _register_check(groups)
    _register_rm(groups)


# --- ls ----------------------------------------------------------------------------------------------------------


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
        "metric": {"name": name, "value": values[name]} if name in values else None,
    }


def _unlisted(used: CheckpointUsage) -> dict[str, Any]:
    absent = dict.fromkeys(("experiment", "trial", "batch"))
    known = {"registry": used.registries[0], **absent, "uuid": used.uuid, "state": None, "size": used.size}
    return {**known, "here": _here(used), "metric": None}


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
    return [row["registry"], row["experiment"], row["trial"], row["batch"], row["uuid"], size, here, shown]


def _place(row: dict[str, Any]) -> tuple[str, list[int], str]:
    """Where a row belongs: by registry, experiment, trial and batch, those that have none first."""
    numbers = [-1 if row[name] is None else row[name] for name in ("experiment", "trial", "batch")]
    return row["registry"], numbers, row["uuid"]


def _short(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


# --- du ----------------------------------------------------------------------------------------------------------


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
    rows = [(one.uuid, one.files, size(one.size), size(one.own), size(one.shared)) for one in found.checkpoints]
    headers = ("checkpoint", "files", "size", "only its own", "shared")
    if rows:
        output.say(output.table(headers, rows, right=headers[1:]) + "\n")
    output.say(f"only one checkpoint's: {size(found.own)}")
    output.say(f"shared, counted once:  {size(found.shared)}")
    output.say(f"no checkpoint's:       {size(found.unreferenced)}")
    output.say(f"total:                 {size(found.total)} (in a folder per checkpoint: {size(found.apart)})")


# --- view --------------------------------------------------------------------------------------------------------


def _register_view(groups: Any) -> None:
    parser = add_command(
        groups,
        "view",
        view,
        summary="print a read-only folder that looks like the checkpoint, for loaders of your own",
        what="make a view of the checkpoint",
        usage="UUID [OPTIONS]",
        example=f"$ view {_UUID}\nls $($ view {_UUID})",
    )
    parser.add_argument("uuid", metavar="UUID", type=checkpoint_uuid, nargs="?", help="the checkpoint")
    add_form(parser)


def view(args: argparse.Namespace) -> None:
    """Print the folder of a checkpoint's view."""
    if args.uuid is None:
        raise missing(args, "checkpoint", "<uuid>")
    path = str(client(args).get_checkpoint(args.uuid).view())
    if args.json:
        output.say_json(uuid=args.uuid, path=path)
    else:
        output.say(path)


# --- check -------------------------------------------------------------------------------------------------------


def _register_check(groups: Any) -> None:
    parser = add_command(
        groups,
        "check",
        check,
        summary="check that the store holds what its names say; what is damaged is put aside, nothing is deleted",
        what="check the store",
        usage="[--deep] [OPTIONS]",
        example="$ check\n$ check --deep          # reads every byte",
        again="run it again; it starts anew",
    )
    parser.add_argument(
        "--deep", action="store_true", help="read and hash every blob, not only those that look changed"
    )
    add_form(parser)


def check(args: argparse.Namespace) -> int:
    """Check the store; exit code 4 if anything is damaged."""
    from cas.index.check import check as check_store

    with _drawn(args) as advance:
        report = check_store(store(args), deep=args.deep, advance=advance if args.deep else None)
    if args.json:
        problems = [_problem(problem) for problem in report.problems]
        output.say_json(blobs=report.blobs, size=report.size, read=report.read, problems=problems)
    else:
        for problem in report.problems:
            output.say(output.printable(f"{problem.kind}: {problem.path}: {problem.message}"))
        output.say(_verdict(report))
    return ContentError.exit_code if report.damage else 0


def _problem(problem: Problem) -> dict[str, Any]:
    digest = str(problem.digest) if problem.digest else None
    known = {"kind": str(problem.kind), "severity": str(problem.severity), "path": str(problem.path)}
    return {**known, "digest": digest, "size": problem.size, "message": problem.message}


def _verdict(report: CheckReport) -> str:
    seen = f"{report.blobs} blobs, {output.size(report.size)}, {report.read} of them read"
    later = f"; {report.unproven} will be read before they are used" if report.unproven else ""
    debris = len(report.problems) - len(report.damage)
    found = f"{len(report.damage)} damaged" if report.damage else "nothing is damaged"
    return f"{found} ({seen}{later})" + (f"; leftovers that take room: {debris}" if debris else "")


@contextlib.contextmanager
def _drawn(args: argparse.Namespace) -> Iterator[Advance]:
    """Draw progress on stderr, where the settings want that; the total is known with the first call."""
    from cas.transfer.progress import drawer

    draw = drawer(settings(args).progress, "checked")
    with contextlib.ExitStack() as stack:
        line: list[Callable[[int], None]] = []
        reached = 0

        def advance(done: int, total: int) -> None:
            nonlocal reached
            if not line:
                line.append(stack.enter_context(draw(total, 0)))
            line[0](done - reached)
            reached = done

        yield advance


# --- rm ----------------------------------------------------------------------------------------------------------


def _register_rm(groups: Any) -> None:
    parser = add_command(
        groups,
        "rm",
        rm,
        summary="remove checkpoints from this disk; bytes that other checkpoints need stay",
        what="remove the checkpoint",
        usage="UUID... [--yes]",
        example=f"$ rm {_UUID}",
        again="run the same command again to go on",
    )
    parser.add_argument("uuids", metavar="UUID", type=checkpoint_uuid, nargs="*", help="the checkpoints")
    parser.add_argument("--yes", action="store_true", help="also what was added here and lies nowhere else")
    add_form(parser)


def rm(args: argparse.Namespace) -> int:
    """Remove checkpoints; an only copy when that is confirmed. One that cannot be removed does not stop the others."""
    if not args.uuids:
        raise missing(args, "checkpoint", "<uuid>")
    from cas.adding import remove

    chosen, opened, removed, code = settings(args), store(args), [], 0
    for uuid in dict.fromkeys(args.uuids):
        try:
            _confirm(opened, uuid, args)
            report = remove(uuid, settings=chosen)
        except CasError as error:
            if len(args.uuids) == 1:
                raise
            output.note(f"Failed to remove {uuid}: {error}")
            code = code or error.exit_code
            continue
        removed.append({"uuid": uuid, "blobs": report.blobs, "freed": report.size})
        if not args.json:
            output.say(f"{uuid}  removed: {output.size(report.size)} freed")
    if args.json:
        output.say_json(removed=removed)
    return code


def _confirm(opened: Store, uuid: str, args: argparse.Namespace) -> None:
    """Ask before an only copy goes.

    Raises:
        UsageError: it was not confirmed.
    """
    from cas.index.remove import plan_remove

    plan = plan_remove(opened, uuid)
    if args.yes or not _is_only_copy(opened, plan):
        return
    question = f"checkpoint {uuid} was added here and lies nowhere else (removing it frees {output.size(plan.size)})"
    if sys.stdin.isatty() and sys.stderr.isatty():
        print(f"{question}. Remove it for good? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() in ("y", "yes"):
            return
        raise UsageError("not confirmed, so it stays")
    raise UsageError(f"{question}; to remove it for good: {args.program} rm {uuid} --yes")


def _is_only_copy(opened: Store, plan: RemovePlan) -> bool:
    """Whether no registry says where its files could be fetched again."""
    from cas.registry.catalog import Catalog
    from cas.registry.records import State

    names = opened.records.registries_with("checkpoint", plan.uuid)
    records = [Catalog(opened, name).checkpoint(plan.uuid) for name in names]
    alive = [record for record in records if record.state is not State.DELETED]
    return not any(record.experiment_config.get("checkpoint_storage") for record in alive)
