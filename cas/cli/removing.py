"""`rm`, `prune`, `pin`, `unpin`: taking checkpoints off this disk, and keeping them on it."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from cas.cli import output
from cas.cli.parser import add_command, add_form, add_registry, checkpoint_or_name, missing, settings, store
from cas.errors import CasError, NotAllowedError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from cas.config import Settings
    from cas.index.prune import PrunePlan, PruneReport, Verdict
    from cas.index.store import Store

_UUID = "46985143-af68-4d48-ab91-a6447052ca49"


def register(groups: Any) -> None:
    """Add the commands."""
    _register_rm(groups)
    _register_prune(groups)
    _register_pin(groups)
    _register_unpin(groups)


# --- rm --------------------------------------------------------------------------------------------------------------
def _register_rm(groups: Any) -> None:
    parser = add_command(
        groups,
        "rm",
        rm,
        summary="remove checkpoints from this disk; bytes that other checkpoints need stay",
        what="remove the checkpoint",
        usage="UUID... [--yes] [--force]",
        example=f"$ rm {_UUID}",
        again="run the same command again to go on",
    )
    parser.add_argument("uuids", metavar="UUID", type=checkpoint_or_name, nargs="*", help="the checkpoints")
    parser.add_argument("--yes", action="store_true", help="also what was added here and lies nowhere else")
    parser.add_argument("--force", action="store_true", help="also what a process uses; that process keeps its files")
    add_form(parser)


def rm(args: argparse.Namespace) -> int:
    """Remove checkpoints; an only copy when that is confirmed. One that cannot be removed does not stop the others."""
    if not args.uuids:
        raise missing(args, "checkpoint", "<uuid>")
    from cas.registry.names import uuid_of
    from cas.removing import remove

    chosen, opened, removed = settings(args), store(args), []
    closed: list[Path] = []

    def remove_one(which: str) -> None:
        uuid = uuid_of(opened, which)
        _confirm(opened, uuid, args)
        report = remove(uuid, force=args.force, settings=chosen)
        closed.extend(report.closed)
        removed.append({"uuid": uuid, "blobs": report.blobs, "freed": report.size, "later": report.later})
        if not args.json:
            later = f", {output.size(report.later)} more by a later `{args.program} prune`" if report.later else ""
            output.say(f"{uuid}  removed: {output.size(report.size)} freed{later}")

    code = _each(args, remove_one, "remove")
    if args.json:
        output.say_json(removed=removed, closed=[str(path) for path in closed])
    return code or _name_closed(closed)


def _name_closed(closed: Iterable[Path]) -> int:
    """Name the files that only another user can remove; return the exit code."""
    code = 0
    for path in closed:
        output.note(f"{path} stays: another user closed its folder, and can remove it")
        code = NotAllowedError.exit_code
    return code


def _each(args: argparse.Namespace, act: Callable[[str], None], verb: str) -> int:
    """Do something with each UUID; of several, one that fails does not stop the others."""
    code, uuids = 0, list(dict.fromkeys(args.uuids))
    for uuid in uuids:
        try:
            act(uuid)
        except CasError as error:
            if len(uuids) == 1:
                raise
            output.note(f"Failed to {verb} {uuid}: {error}")
            code = code or error.exit_code
    return code


def _confirm(opened: Store, uuid: str, args: argparse.Namespace) -> None:
    """Ask before an only copy goes.

    Raises:
        UsageError: it was not confirmed.
    """
    from cas.index.remove import plan_remove
    from cas.removing import is_only_copy

    plan = plan_remove(opened, uuid)
    if args.yes or not is_only_copy(opened, uuid):
        return
    question = f"checkpoint {uuid} was added here and lies nowhere else (removing it frees {output.size(plan.size)})"
    if sys.stdin.isatty() and sys.stderr.isatty():
        print(f"{question}. Remove it for good? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() in ("y", "yes"):
            return
        raise UsageError("not confirmed, so it stays")
    raise UsageError(f"{question}; to remove it for good: {args.program} rm {uuid} --yes")


# --- prune -----------------------------------------------------------------------------------------------------------
def _register_prune(groups: Any) -> None:
    parser = add_command(
        groups,
        "prune",
        prune,
        summary="make room: remove checkpoints by age, size or name, and what no checkpoint needs",
        what="prune the store",
        usage="[UUID|PATTERN...] [--older-than TIME] [--max-size SIZE] [--dry-run] [--now] [OPTIONS]",
        example=(
            "$ prune                        # only what no checkpoint needs\n"
            "$ prune --older-than 30d --dry-run\n"
            "$ prune --max-size 200GiB\n"
            "$ prune --registry https://master.example.org --older-than 1w\n"
            "$ prune --max-size 50GiB --now # the disk is full, and nothing else uses the store"
        ),
        again="run the same command again to go on",
    )
    parser.add_argument(
        "names", metavar="UUID", nargs="*", help="only these checkpoints; a pattern like '46985143-*' names several"
    )
    parser.add_argument("--older-than", metavar="TIME", type=_duration, help="what was not used for so long: 30d, 12h")
    parser.add_argument(
        "--max-size", metavar="SIZE", type=_size, help="the least recently used, until the rest fits: 200GiB"
    )
    add_registry(parser)
    parser.add_argument("--yes", action="store_true", help="also what lies nowhere else, if its full UUID is named")
    parser.add_argument("--now", action="store_true", help="delete at once; refused while anything uses the store")
    parser.add_argument("--dry-run", action="store_true", help="say what would go, what would stay, and why")
    add_form(parser)


def _size(text: str) -> int:
    from cas.config import size_of

    try:
        return size_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}, not {text!r:.40}") from error


def _duration(text: str) -> float:
    from cas.config import seconds_of

    try:
        return seconds_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}, not {text!r:.40}") from error


def prune(args: argparse.Namespace) -> int:
    """Plan, and execute the plan or print it."""
    from cas.removing import execute_plan, plan

    if args.yes and not args.names:
        raise UsageError("--yes is for checkpoints that lie nowhere else: name them, each by its full UUID")
    chosen = settings(args)
    planned = plan(
        *args.names,
        older_than=args.older_than,
        max_size=args.max_size,
        registry=args.registry,
        only_copies=args.yes,
        now=args.now,
        settings=chosen,
    )
    if args.dry_run:
        _show(planned, args)
        return 0
    report = execute_plan(planned, settings=chosen)
    if args.json:
        output.say_json(
            removed=list(report.gone),
            stayed=[_verdict(one) for one in report.stayed],
            blobs=report.blobs,
            freed=report.freed,
            waiting=report.waiting,
            closed=[str(path) for path in report.closed],
        )
        return _name_closed(report.closed)
    for one in report.stayed:
        output.note(f"{one.uuid} stays: {one.reason}")
    for uuid in report.gone:
        output.say(f"{uuid}  removed")
    output.say(_summary(report, planned, args))
    return _name_closed(report.closed)


def _summary(report: PruneReport, planned: PrunePlan, args: argparse.Namespace) -> str:
    from cas.index.remove import GRACE

    count = len(report.gone)
    said = [f"{count} checkpoint{'' if count == 1 else 's'} removed, {output.size(report.freed)} freed"]
    if report.waiting:
        said.append(
            f"{output.size(report.waiting)} more are kept for {GRACE / 60:.0f} minutes, in case that somebody needs"
            f" them: the next `{args.program} prune` deletes them then"
        )
    if planned.linked:
        said.append(f"{output.size(planned.linked)} of what goes have links elsewhere, which keep them on the disk")
    if planned.obstacle:
        said.append(planned.obstacle)
    protected = [one for one in planned.staying if one.chosen]
    if protected:
        said.append(f"{len(protected)} stay though the rules name them: `--dry-run` says why")
    return "; ".join(said)


def _verdict(one: Verdict) -> dict[str, Any]:
    return {"uuid": one.uuid, "reason": one.reason, "own": one.own, "last_used": one.last_used / 1e9 or None}


def _show(planned: PrunePlan, args: argparse.Namespace) -> None:
    if args.json:
        output.say_json(
            going=[_verdict(one) for one in planned.going],
            staying=[{**_verdict(one), "chosen": one.chosen} for one in planned.staying],
            unreferenced=list(map(str, planned.unreferenced)),
            leftovers=[{"kind": str(one.kind), "path": str(one.path), "size": one.size} for one in planned.leftovers],
            size=planned.size,
            size_after=planned.size_after,
            frees=planned.frees,
            linked=planned.linked,
            obstacle=planned.obstacle or None,
        )
        return
    size = output.size
    rows: list[tuple[object, ...]] = [(one.uuid, "goes", size(one.own), one.reason) for one in planned.going]
    rows += [(one.uuid, "stays", None, one.reason) for one in planned.staying if one.chosen]
    if rows:
        headers = ("checkpoint", "", "only its own", "because")
        output.say(output.table(headers, rows, right=("only its own",)) + "\n")
    for one in planned.leftovers:
        output.say(output.printable(f"{one.kind}: {one.path} ({size(one.size)})"))
    others = sum(not one.chosen for one in planned.staying)
    output.say(f"checkpoints:      {len(planned.going)} go, {len(planned.staying)} stay, {others} of them by the rules")
    output.say(f"no checkpoint's:  {output.count(len(planned.unreferenced), 'blob')} to go")
    output.say(f"freed:            {size(planned.frees)} (of {size(planned.size)})")
    if planned.linked:
        output.say(f"not freed:        {size(planned.linked)} that go, but have links elsewhere")
    if planned.obstacle:
        output.say(output.printable(planned.obstacle))


# --- pin, unpin ------------------------------------------------------------------------------------------------------
def _register_pin(groups: Any) -> None:
    parser = add_command(
        groups,
        "pin",
        pin,
        summary="keep checkpoints on this disk, whatever prune and rm are told; with no UUID, list them",
        what="pin the checkpoint",
        usage="[UUID...]",
        example=f"$ pin {_UUID}\n$ pin",
    )
    parser.add_argument("uuids", metavar="UUID", type=checkpoint_or_name, nargs="*", help="the checkpoints")
    add_form(parser)


def pin(args: argparse.Namespace) -> int:
    """Pin checkpoints, or list those that are."""
    from cas import removing

    chosen = settings(args)
    code = _each(args, lambda uuid: removing.pin(uuid, settings=chosen), "pin")
    return _say_pins(args, chosen, code, listing=not args.uuids)


def _register_unpin(groups: Any) -> None:
    parser = add_command(
        groups,
        "unpin",
        unpin,
        summary="let prune and rm take checkpoints again",
        what="unpin the checkpoint",
        usage="UUID...",
        example=f"$ unpin {_UUID}",
    )
    parser.add_argument("uuids", metavar="UUID", type=checkpoint_or_name, nargs="*", help="the checkpoints")
    add_form(parser)


def unpin(args: argparse.Namespace) -> int:
    """Unpin checkpoints."""
    if not args.uuids:
        raise missing(args, "checkpoint", "<uuid>")
    from cas import removing

    chosen = settings(args)
    code = _each(args, lambda uuid: removing.unpin(uuid, settings=chosen), "unpin")
    return _say_pins(args, chosen, code, listing=False)


def _say_pins(args: argparse.Namespace, chosen: Settings, code: int, *, listing: bool) -> int:
    from cas.removing import pinned

    found = pinned(settings=chosen)
    if args.json:
        output.say_json(pinned=list(found))
    elif listing:
        for uuid in found:
            output.say(uuid)
        if not found:
            output.note("no checkpoint is pinned")
    return code
