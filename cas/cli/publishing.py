"""`publish`: the sidecar of a checkpoint in a bucket or a folder."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from cas.cli import output
from cas.cli.parser import add_command, add_form, client, missing, settings
from cas.cli.planning import place

_UUID = "46985143-af68-4d48-ab91-a6447052ca49"


def register(groups: Any) -> None:
    """Add the commands."""
    parser = add_command(
        groups,
        "publish",
        publish,
        summary="publish which chunks a checkpoint has, beside it, so that others fetch only what is new to them",
        what="publish the checkpoint's sidecar",
        usage="URL|UUID [OPTIONS]",
        example=f"$ publish s3://bucket/models/{_UUID}\n$ publish {_UUID}",
    )
    help = "where the checkpoint lies (s3://bucket/prefix, file:///folder), or its UUID or name"
    parser.add_argument("place", metavar="URL|UUID", nargs="?", type=place, help=help)
    add_form(parser, quiet="print only the sidecar's URL")


def publish(args: argparse.Namespace) -> None:
    """Publish a sidecar, and print where."""
    from cas.actions.publishing import publish as publish_sidecar

    if args.place is None:
        raise missing(args, "checkpoint", "<url|uuid>")
    what = args.place if "://" in args.place else client(args).get_checkpoint(args.place)
    report = publish_sidecar(what, settings=settings(args))
    if args.json:
        output.say_json(**asdict(report))
    elif args.quiet:
        output.say(report.url)
    else:
        output.say(f"Published {report.url}")
        chunks = output.count(report.chunks, "chunk")
        what = f"{output.count(report.files, 'file')}, {output.size(report.size)} in {chunks}"
        fetched = f"; {output.size(report.bytes_fetched)} had to be fetched first" if report.bytes_fetched else ""
        output.note(f"{what}, in a sidecar of {output.size(report.published)}{fetched}")
