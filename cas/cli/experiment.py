"""`experiment list-checkpoints`, `experiment download` and `experiment describe`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cas.cli import output
from cas.cli.checkpoint import DOWNLOAD_AGAIN, add_download_options, bring
from cas.cli.listed import indented, say_checkpoints, say_rows
from cas.cli.parser import (
    Parser,
    WrongUsageError,
    add_boolean,
    add_command,
    add_form,
    add_group,
    add_registry,
    client,
    count,
    missing,
    number,
)
from cas.cli.planning import say_plan

if TYPE_CHECKING:
    from cas.references import ExperimentReference, TrialReference

_HOW_BETTER = (
    "the metric's direction; n, no, f, false, off, 0 and '' say no; y, yes, t, true, on, 1 say yes; needed with"
    " --sort-by unless that is the searcher's metric"
)


def register(groups: Any) -> None:
    """Add the commands."""
    example = "$ experiment list-checkpoints 1 --best 3"
    commands = add_group(groups, "experiment", aliases=("e",), summary="checkpoints of an experiment", example=example)
    _register_list(commands, example)
    _register_download(commands)
    _register_describe(commands)


def _add_id(parser: Parser) -> None:
    parser.add_argument(
        "experiment_id", metavar="EXPERIMENT_ID", type=number, nargs="?", help="the id of the experiment"
    )


# --- list ------------------------------------------------------------------------------------------------------------


def _register_list(commands: Any, example: str) -> None:
    parser = add_command(
        commands,
        "list-checkpoints",
        list_checkpoints,
        aliases=("lc",),
        summary="list the checkpoints of an experiment in order of time, or its best ones",
        what="list the checkpoints",
        usage="EXPERIMENT_ID [OPTIONS]",
        example=f"$ experiment list-checkpoints 1 --csv\n{example}\n$ e lc 1 --best 1 -q",
    )
    _add_id(parser)
    parser.add_argument("--best", metavar="N", type=count, help="only the best N by the searcher's metric, best first")
    add_form(parser, quiet="print only the UUIDs", csv=True)
    add_registry(parser)


def list_checkpoints(args: argparse.Namespace) -> None:
    """List the checkpoints of an experiment."""
    experiment = _experiment(args)
    if args.best is not None:
        say_checkpoints(experiment.top_n_checkpoints(args.best), args)
    else:
        say_checkpoints(experiment.list_checkpoints(_by_time(), "ASC", every_state=True), args)


def _by_time() -> Any:
    from cas.registry.select import CheckpointSortBy

    return CheckpointSortBy.END_TIME


def _experiment(args: argparse.Namespace) -> ExperimentReference:
    if args.experiment_id is None:
        raise missing(args, "experiment", "<experiment_id>")
    return client(args, registry=args.registry).get_experiment(args.experiment_id)


# --- download --------------------------------------------------------------------------------------------------------


def _register_download(commands: Any) -> None:
    parser = add_command(
        commands,
        "download",
        download,
        summary="download the best checkpoints of an experiment",
        what="download the checkpoints",
        usage="EXPERIMENT_ID [OPTIONS]",
        example="$ experiment download 1 --top-n 3\n"
        "$ experiment download 1 --sort-by accuracy --smaller-is-better no -o models",
        again=DOWNLOAD_AGAIN,
    )
    _add_id(parser)
    parser.add_argument("--top-n", metavar="N", type=count, default=1, help="how many; default 1")
    parser.add_argument("--one-per-trial", action="store_true", help="only the best one of each trial")
    parser.add_argument("--sort-by", metavar="METRIC", help="best by this validation metric; default the searcher's")
    add_boolean(parser, "--smaller-is-better", help=_HOW_BETTER)
    folder = "the folder above them; default checkpoints: each goes to DIR/<uuid>"
    add_download_options(parser, folder=folder, quiet="print only the paths")
    add_registry(parser)


def download(args: argparse.Namespace) -> None:
    """Download the best checkpoints of an experiment, best first."""
    chosen = _experiment(args).top_n_checkpoints(
        args.top_n, args.sort_by, args.smaller_is_better, one_per_trial=args.one_per_trial
    )
    above = Path("checkpoints" if args.output_dir is None else args.output_dir)
    if args.output_dir == "":
        raise WrongUsageError(args.parser.prog, "the folder is empty; to mean the current one, say '.'")
    if args.dry_run:
        brought = [say_plan(one.plan(), args) for one in chosen]
    else:
        brought = [bring(one, args, folder=str(above / one.uuid)) for one in chosen]
    if args.json:
        output.say_json(checkpoints=brought)


# --- describe --------------------------------------------------------------------------------------------------------


def _register_describe(commands: Any) -> None:
    parser = add_command(
        commands,
        "describe",
        describe,
        summary="print what is known of experiments and their trials",
        what="describe the experiment",
        usage="EXPERIMENT_IDS [OPTIONS]",
        example="$ experiment describe 1\n$ experiment describe 1,2 --json",
    )
    parser.add_argument(
        "experiment_ids", metavar="EXPERIMENT_IDS", type=_numbers, nargs="?", help="ids, with commas in between"
    )
    add_form(parser, csv=True)
    add_registry(parser)


def describe(args: argparse.Namespace) -> None:
    """Print what is known of experiments."""
    if args.experiment_ids is None:
        raise missing(args, "experiment", "<experiment_id>")
    door = client(args, registry=args.registry)
    experiments = [door.get_experiment(id) for id in args.experiment_ids]
    trials = {experiment.id: experiment.list_trials() for experiment in experiments}
    if args.json:
        output.say_json(experiments=[_members(one, trials[one.id]) for one in experiments])
        return
    headers = ["Experiment ID", "State", "Started", "Ended", "Name", "Description", "Archived", "Labels"]
    if not args.csv:
        output.say("Experiment:")
    say_rows(headers, [_row(one) for one in experiments], args)
    output.say("" if args.csv else "\nTrials:")
    headers = ["Trial ID", "Experiment ID", "State", "Started", "Ended", "H-Params"]
    rows = [
        (one.id, one.experiment_id, one.state, one.record.start_time, one.record.end_time, _hparams(one))
        for experiment in experiments
        for one in trials[experiment.id]
    ]
    say_rows(headers, rows, args)


def _numbers(text: str) -> list[int]:
    return [number(word) for word in text.split(",")]


def _row(experiment: ExperimentReference) -> list[object]:
    record = experiment.record
    labels = ", ".join(sorted(record.labels))
    times = (record.start_time, record.end_time)
    return [record.id, record.state, *times, record.name, record.description, record.archived, labels]


def _hparams(trial: TrialReference) -> str:
    return indented(trial.record.to_json()["hparams"])


def _members(experiment: ExperimentReference, trials: list[TrialReference]) -> dict[str, Any]:
    record = experiment.record
    known = record.to_json()  # with no credential in it
    known["trials"] = [{"id": one.id, **one.record.to_json()} for one in trials]
    return {"id": record.id, "registry": record.registry, **known}
