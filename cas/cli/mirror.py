"""`mirror`: everything that a master knows, kept here while it still lives."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from cas.cli import output
from cas.cli.parser import WrongUsageError, add_command, add_form, number, settings

if TYPE_CHECKING:
    from cas.actions.mirroring import MirrorReport


def register(groups: Any) -> None:
    """Add the command."""
    parser = add_command(
        groups,
        "mirror",
        mirror,
        summary="keep everything that a master knows of experiments here, and their checkpoints with --files",
        what="mirror the master",
        usage="(--experiment ID | --trial ID | --all) [--files] [OPTIONS]",
        example="$ -m https://master.example.org mirror --all\n$ mirror --experiment 7 --experiment 9 --files\n"
        "$ mirror --all --files --dry-run",
        again="what was written and fetched is kept: run the same command again to go on",
    )
    what = parser.add_argument_group("what to mirror")
    what.add_argument("--experiment", metavar="ID", type=number, action="append", help="this experiment; repeatable")
    what.add_argument("--trial", metavar="ID", type=number, action="append", help="this trial; repeatable")
    what.add_argument("--all", action="store_true", help="every experiment that the master shows")
    parser.add_argument("--files", action="store_true", help="fetch the checkpoints into the store, too")
    help = "with --all: also what has ended and has not changed"
    parser.add_argument("--again", action="store_true", dest="unchanged_too", help=help)  # `again` is the hint of main
    parser.add_argument("--dry-run", action="store_true", help="say what would be fetched, and write nothing")
    add_form(parser)


def mirror(args: argparse.Namespace) -> int:
    """Mirror, and say what could not be got; 1 if there is such."""
    if not (args.experiment or args.trial or args.all):
        raise WrongUsageError(args.parser.prog, "say what to mirror: --experiment ID, --trial ID, or --all")
    if args.unchanged_too and not args.all:
        raise WrongUsageError(args.parser.prog, "--again goes with --all: what is named is always asked for")
    from cas.actions.mirroring import mirror as run

    report = run(
        experiments=args.experiment or (),
        trials=args.trial or (),
        everything=args.all,
        files=args.files,
        again=args.unchanged_too,
        dry_run=args.dry_run,
        user=args.user,
        settings=settings(args),
    )
    if args.json:
        output.say_json(**_plain(report))
    else:
        _print(report, files=args.files)
    return 1 if report.missing else 0


def _print(report: MirrorReport, *, files: bool) -> None:
    would = "would be " if report.dry_run else ""
    unchanged = f", {report.unchanged} unchanged since the last time" if report.unchanged else ""
    output.say(
        f"{report.registry}: {report.asked} asked for{unchanged}; {output.count(report.checkpoints, 'checkpoint')},"
        f" {report.new} {would}new in the catalog"
    )
    if files:
        came = output.size(report.bytes_fetched)
        nothing = f", {report.without_files} in a state without files" if report.without_files else ""
        output.say(f"files: {report.here} here already, {report.fetched} {would}fetched ({came}){nothing}")
    if report.missing:
        output.note(f"{len(report.missing)} could not be got:")
        for one in report.missing:
            output.note(f"  {one.what}: {one.why}")


def _plain(report: MirrorReport) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(report)
