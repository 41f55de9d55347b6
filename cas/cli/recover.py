"""`recover`: a registry of what lies in a bucket, after the master is gone."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from cas.cli import output
from cas.cli.parser import add_command, add_form, missing, settings

if TYPE_CHECKING:
    from cas.actions.recovering import RecoveredExperiment, RecoveryReport


def register(groups: Any) -> None:
    """Add the command."""
    parser = add_command(
        groups,
        "recover",
        recover,
        summary="build a registry from the checkpoints that lie in a bucket or folder, when no master knows them",
        what="recover the checkpoints",
        usage="URL [--metrics FILE] [OPTIONS]",
        example="$ recover s3://bucket/prefix\n$ recover s3://bucket/prefix --metrics metrics.csv\n"
        "$ recover /mnt/checkpoints --json",
        again="what was understood is kept: run the same command again to go on",
    )
    help = "the place that holds <uuid>/…: s3://bucket/prefix, another URL, or a folder"
    parser.add_argument("url", metavar="URL", nargs="?", help=help)
    help = (
        "CSV or JSON: a column uuid, one for each metric; experiment_id, trial_id and steps_completed if the"
        " checkpoints do not say them"
    )
    parser.add_argument("--metrics", metavar="FILE", help=help)
    add_form(parser, quiet="print only the name of the registry")


def recover(args: argparse.Namespace) -> int:
    """Recover, and say what was found and what could not be understood; 1 if a file could not be read."""
    if args.url is None:
        raise missing(args, "place", "<url>")
    from cas.actions.recovering import recover as run

    report = run(args.url, metrics=args.metrics, settings=settings(args))
    if args.quiet:
        output.say(report.registry)
    elif args.json:
        output.say_json(**_plain(report))
    else:
        _print(report, args.program)
    return 1 if report.unreadable else 0


def _print(report: RecoveryReport, program: str) -> None:
    size = output.size(report.size)
    trials = sum(one.trials for one in report.experiments)
    output.say(
        f"{report.registry}: {_count(report.checkpoints, 'checkpoint')} ({size}),"
        f" {_count(len(report.experiments), 'experiment')}, {_count(trials, 'trial')};"
        f" {report.new} new, {report.changed} changed, {report.gone} gone\n"
    )
    headers = ("experiment", "checkpoints", "trials", "name", "class", "best by", "what the id stands for")
    output.say(output.table(headers, map(_row, report.experiments), right=headers[:3]))
    lacking = report.checkpoints - report.with_metrics
    if lacking:
        hint = "; --metrics FILE brings some" if not report.with_metrics else ""
        output.note(f"{_count(lacking, 'checkpoint')} without metrics{hint}")
    if report.unused_rows:
        output.note(f"{_count(report.unused_rows, 'row')} of the file of metrics: no such checkpoint lies there")
    for text, count in report.problems.most_common():
        some = report.examples[text]
        output.note(f"{_count(count, 'checkpoint')}: {text} ({', '.join(some[:3])}{', …' if count > 3 else ''})")
    if report.others:
        names = ", ".join(f"{name} ({count})" for name, count in report.others.most_common(5))
        more = len(report.others) + report.others_left_out - 5
        output.note(f"no checkpoints, so left out: {names}{f', and {more} more' if more > 0 else ''}")
    first = next(iter(report.experiments), None)
    if first is not None:
        output.note(f"to ask it: {program} ls --registry {report.registry} --experiment {first.id}")


def _row(one: RecoveredExperiment) -> list[object]:
    stands_for = "; ".join((one.key, *one.also))
    return [one.id, one.checkpoints, one.trials, one.name, one.trial_class, one.searcher, stands_for]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _plain(report: RecoveryReport) -> dict[str, Any]:
    from dataclasses import asdict

    plain = {name: getattr(report, name) for name in report.__slots__}
    plain |= {name: dict(plain[name]) for name in ("others", "problems")}
    return plain | {"experiments": [asdict(one) for one in report.experiments]}
