"""`trial download` and `trial describe`: find a checkpoint of a trial and bring its files into a folder."""

from __future__ import annotations

import argparse
from typing import Any

from cas.cli import output
from cas.cli.checkpoint import DOWNLOAD_AGAIN, add_download_options, bring
from cas.cli.listed import checkpoint_members, indented, say_rows
from cas.cli.parser import (
    WrongUsageError,
    add_boolean,
    add_command,
    add_form,
    add_group,
    add_registry,
    checkpoint_or_name,
    client,
    missing,
    number,
)
from cas.cli.planning import say_plan


def register(groups: Any) -> None:
    """Add the commands."""
    example = "$ trial download 1 --best"
    commands = add_group(groups, "trial", aliases=("t",), summary="checkpoints of a trial", example=example)
    parser = add_command(
        commands,
        "download",
        download,
        summary="download a checkpoint of a trial: its best, its latest, or the one of a UUID",
        what="download the checkpoint",
        usage="TRIAL_ID (--best | --latest | --uuid UUID) [OPTIONS]",
        example=f"{example}\n$ trial download 1 --best --sort-by accuracy --smaller-is-better no -o model\n"
        "path=$($ trial download 1 --latest -q)",
        again=DOWNLOAD_AGAIN,
    )
    parser.add_argument("trial_id", metavar="TRIAL_ID", type=number, nargs="?", help="the id of the trial")
    which = parser.add_argument_group("which checkpoint (one of these)").add_mutually_exclusive_group()
    which.add_argument("--best", action="store_true", help="the best by the searcher's metric, or by --sort-by")
    which.add_argument("--latest", action="store_true", help="the one with the most batches")
    which.add_argument("--uuid", metavar="UUID", type=checkpoint_or_name, help="this one")
    parser.add_argument("--sort-by", metavar="METRIC", help="with --best: best by this validation metric")
    add_boolean(
        parser,
        "--smaller-is-better",
        help="with --best: the metric's direction; n, no, f, false, off, 0 and '' (in any case) say no; y, yes, t,"
        " true, on, 1 say yes; anything else is an error (the older client took it as yes)",
    )
    add_download_options(parser)
    add_registry(parser)
    _register_describe(commands)


def download(args: argparse.Namespace) -> None:
    """Download the checkpoint of a trial that the options choose."""
    if args.trial_id is None:
        raise missing(args, "trial", "<trial_id>")
    if not (args.best or args.latest or args.uuid):
        raise _no_selector(args)
    if not args.best and (args.sort_by is not None or args.smaller_is_better is not None):
        option = "--sort-by" if args.sort_by is not None else "--smaller-is-better"
        raise WrongUsageError(args.parser.prog, f"{option} goes with --best only")
    trial = client(args, registry=args.registry).get_trial(args.trial_id)
    checkpoint = trial.select_checkpoint(
        latest=args.latest,
        best=args.best,
        uuid=args.uuid,
        sort_by=args.sort_by,
        smaller_is_better=args.smaller_is_better,
    )
    brought = say_plan(checkpoint.plan(), args) if args.dry_run else bring(checkpoint, args, folder=args.output_dir)
    if args.json:
        output.say_json(**brought)


def _register_describe(commands: Any) -> None:
    parser = add_command(
        commands,
        "describe",
        describe,
        summary="print what is known of a trial and its checkpoints",
        what="describe the trial",
        usage="TRIAL_ID [OPTIONS]",
        example="$ trial describe 1\n$ trial describe 1 --json",
    )
    parser.add_argument("trial_id", metavar="TRIAL_ID", type=number, nargs="?", help="the id of the trial")
    add_form(parser, csv=True)
    add_registry(parser)


def describe(args: argparse.Namespace) -> None:
    """Print what is known of a trial, and its checkpoints in order of steps."""
    from cas.registry.select import CheckpointSortBy

    if args.trial_id is None:
        raise missing(args, "trial", "<trial_id>")
    trial = client(args, registry=args.registry).get_trial(args.trial_id)
    checkpoints = trial.list_checkpoints(CheckpointSortBy.BATCH_NUMBER, "ASC")
    record, known = trial.record, trial.record.to_json()  # with no credential in it
    if args.json:
        members = [checkpoint_members(one) for one in checkpoints]
        output.say_json(trial={"id": record.id, "registry": record.registry, **known, "checkpoints": members})
        return
    headers = ["Experiment ID", "State", "H-Params", "Summary Metrics", "Started", "Ended"]
    summary = indented(record.summary_metrics)
    times = (record.start_time, record.end_time)
    say_rows(headers, [(record.experiment_id, record.state, indented(known["hparams"]), summary, *times)], args)
    output.say("" if args.csv else "\nCheckpoints:")
    headers = ["# of Batches", "Reported", "State", "Checkpoint UUID", "Validation Metrics"]
    rows = [
        (one.batch_number, one.report_time, str(one.state), one.uuid, indented(one.record.to_json()["validation"]))
        for one in checkpoints
    ]
    say_rows(headers, rows, args)


def _no_selector(args: argparse.Namespace) -> WrongUsageError:
    command = f"{args.parser.prog} {args.trial_id}"
    choices = f"`{command} --best`, `{command} --latest` or `{command} --uuid <uuid>`"
    return WrongUsageError(args.parser.prog, f"say which checkpoint: {choices}")
