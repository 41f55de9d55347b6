"""`rm`: taking checkpoints off this disk."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from cas.cli import output
from cas.cli.parser import add_command, add_form, checkpoint_uuid, missing, settings, store
from cas.errors import CasError, UsageError

if TYPE_CHECKING:
    from cas.index.remove import RemovePlan
    from cas.index.store import Store

_UUID = "46985143-af68-4d48-ab91-a6447052ca49"


def register(groups: Any) -> None:
    """Add the commands."""
    _register_rm(groups)


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
