"""`view`: a checkpoint's read-only folder."""

from __future__ import annotations

import argparse
from typing import Any

from cas.cli import output
from cas.cli.parser import add_command, add_form, checkpoint_or_name, client, missing

_UUID = "46985143-af68-4d48-ab91-a6447052ca49"


def register(groups: Any) -> None:
    """Add the commands."""
    _register_view(groups)


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
    parser.add_argument("uuid", metavar="UUID", type=checkpoint_or_name, nargs="?", help="the checkpoint")
    add_form(parser)


def view(args: argparse.Namespace) -> None:
    """Print the folder of a checkpoint's view."""
    if args.uuid is None:
        raise missing(args, "checkpoint", "<uuid>")
    from cas.index.remove import GRACE

    checkpoint = client(args).get_checkpoint(args.uuid)
    path = str(checkpoint.view())
    checkpoint.store.leases.linger(GRACE)  # for whoever is given the path now
    if args.json:
        output.say_json(uuid=checkpoint.uuid, path=path)
    else:
        output.say(path)
