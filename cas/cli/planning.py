"""`plan`, and what `--dry-run` of downloads prints."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from cas.cli import output
from cas.cli.parser import add_command, add_form, checkpoint_or_name, client, missing, settings, store

if TYPE_CHECKING:
    from cas.transfer.preview import Preview

_UUID = "46985143-af68-4d48-ab91-a6447052ca49"


def register(groups: Any) -> None:
    """Add the commands."""
    parser = add_command(
        groups,
        "plan",
        plan,
        summary="print what downloading a checkpoint would fetch, and what of it is here already, and where",
        what="plan the download",
        usage="URL|UUID [OPTIONS]",
        example=f"$ plan {_UUID}\n$ plan s3://bucket/models/{_UUID} --json",
    )
    help = "where the checkpoint lies (s3://bucket/prefix, file:///folder), or its UUID or name"
    parser.add_argument("place", metavar="URL|UUID", nargs="?", type=place, help=help)
    add_form(parser, quiet="print only the number of bytes to fetch")


def place(text: str) -> str:
    """Parse a URL, or a checkpoint's UUID or name."""
    return text if "://" in text else checkpoint_or_name(text)


def plan(args: argparse.Namespace) -> None:
    """Print a plan."""
    from cas.actions.planning import plan as plan_download

    if args.place is None:
        raise missing(args, "checkpoint", "<url|uuid>")
    what = args.place if "://" in args.place else client(args).get_checkpoint(args.place)
    planned = say_plan(plan_download(what, settings=settings(args)), args)
    if args.json:
        output.say_json(**planned)


def say_plan(preview: Preview, args: argparse.Namespace) -> dict[str, Any]:
    """Print a plan unless as JSON, and return what is printed then."""
    from cas.transfer.preview import holders

    here = preview.size - preview.fetch
    donors = list(holders(store(args), preview.donors))
    if args.quiet:
        output.say(str(preview.fetch))
    elif not args.json:
        output.say(
            output.printable(f"{preview.url}: {output.count(len(preview.files), 'file')}, {output.size(preview.size)}")
        )
        output.say(f"to fetch: {output.size(preview.fetch)} with {output.count(preview.requests, 'request')}")
        output.say(f"here already: {output.size(here)}")
        for registry, uuid, count in donors:
            output.say(output.printable(f"  {output.size(count)} in checkpoint {uuid} of {registry}"))
        rows = [(output.size(one.fetch), output.size(one.here), one.path) for one in preview.files]
        output.say(output.table(("to fetch", "here", "path"), rows, right=("to fetch", "here")))
    return {
        "url": preview.url,
        "size": preview.size,
        "fetch": preview.fetch,
        "requests": preview.requests,
        "here": here,
        "from_checkpoints": [{"uuid": uuid, "registry": name, "bytes": count} for name, uuid, count in donors],
        "files": [
            {"path": one.path, "size": one.size, "fetch": one.fetch, "requests": one.requests} for one in preview.files
        ],
    }
