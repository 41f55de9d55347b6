"""`trust`: letting the code of what came from a bare URL run."""

from __future__ import annotations

import argparse
from typing import Any

from cas.cli import output
from cas.cli.parser import WrongUsageError, add_command, add_form, missing, settings

_UUID = "46985143-af68-4d48-ab91-a6447052ca49"


def register(groups: Any) -> None:
    """Add the command."""
    parser = add_command(
        groups,
        "trust",
        trust,
        summary="let the code and pickles run of a checkpoint that was pulled from a bare URL",
        what="trust the checkpoint",
        usage="UUID|DIGEST [--revoke] | --list",
        example=f"$ trust {_UUID}\n$ trust {_UUID} --revoke\n$ trust --list",
    )
    parser.add_argument("which", metavar="UUID|DIGEST", nargs="?", help="the checkpoint, or the digest of its manifest")
    parser.add_argument("--revoke", action="store_true", help="trust it no longer")
    parser.add_argument("--list", action="store_true", help="print the digests that you trust")
    add_form(parser)


def trust(args: argparse.Namespace) -> None:
    """Record that a checkpoint is trusted, or no longer; or print what is."""
    from cas.actions import trusting

    if args.list:
        if args.which or args.revoke:
            raise WrongUsageError(args.parser.prog, "--list takes nothing else")
        found = [str(digest) for digest in trusting.trusted(settings=settings(args))]
        if args.json:
            output.say_json(trusted=found)
        else:
            for digest in found:
                output.say(digest)
        return
    if args.which is None:
        raise missing(args, "checkpoint", "<uuid>")
    report = trusting.trust(args.which, revoke=args.revoke, settings=settings(args))
    if args.json:
        output.say_json(digest=str(report.digest), trusted=report.trusted, changed=report.changed)
    elif report.trusted:
        output.say(
            f"{report.digest}  trusted{'' if report.changed else ' already'}: {output.count(report.files, 'file')}"
        )
    else:
        output.say(f"{report.digest}  {'no longer trusted' if report.changed else 'was not trusted'}")
