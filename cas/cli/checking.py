"""`check`: does the store hold what its names say, and bringing back what it does not."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from cas.cli import output
from cas.cli.parser import WrongUsageError, add_command, add_form, settings, store, transfer_rate
from cas.errors import ContentError

if TYPE_CHECKING:
    from cas.actions.repairing import RepairReport
    from cas.index.check import CheckReport, Problem
    from cas.index.repair import RepairPlan, Result, Step


def register(groups: Any) -> None:
    """Add the commands."""
    _register_check(groups)


def _register_check(groups: Any) -> None:
    parser = add_command(
        groups,
        "check",
        check,
        summary="check that the store holds what its names say; what is damaged is put aside, nothing is deleted."
        " Exit code 4 says that something is damaged (with --repair: still damaged)",
        what="check the store",
        usage="[--deep] [--repair] [OPTIONS]",
        example="$ check\n$ check --deep --rate 200MiB/s    # reads every byte\n"
        "$ check --repair --dry-run        # says what would be done\n$ check --deep --repair",
        again="run it again: a deep check goes on where it was, and what is repaired stays so",
    )
    parser.add_argument(
        "--deep",
        action="store_true",
        help="read and hash every blob, not only those that look changed; goes on where one was interrupted",
    )
    parser.add_argument("--rate", type=transfer_rate, metavar="BYTES", help="read no faster: 200MiB/s")
    parser.add_argument("--anew", action="store_true", help="with --deep: begin anew, wherever the last one stopped")
    parser.add_argument(
        "--repair",
        action="store_true",
        help="bring back what is lost, from other files on this disk or from its origin, and clear away what is left",
    )
    parser.add_argument("--dry-run", action="store_true", help="change nothing; with --repair, say what it would do")
    add_form(parser)


def check(args: argparse.Namespace) -> int:
    """Check the store, and repair it if that is asked for."""
    from cas.actions import repairing
    from cas.transfer.progress import reaching

    if not args.deep and (args.rate or args.anew):
        raise WrongUsageError(args.parser.prog, f"{'--rate' if args.rate else '--anew'} goes with --deep")
    opened, chosen = store(args), settings(args)
    with reaching(chosen.progress, "checked") as advance:
        report = repairing.check(
            opened,
            settings=chosen,
            deep=args.deep,
            rate=args.rate,
            anew=args.anew,
            put_aside=not args.dry_run,
            advance=advance if args.deep else None,
        )
    if not args.repair:
        _say(args, report, None)
    elif args.dry_run:
        _say(args, report, repairing.plan(opened, report.problems, chosen))
    else:
        done = repairing.repair(opened, report.problems, chosen)
        _say_repaired(args, report, done)
        return ContentError.exit_code if done.left else 0
    return ContentError.exit_code if report.damage else 0


# --- what is printed -------------------------------------------------------------------------------------------------


def _say(args: argparse.Namespace, report: CheckReport, plan: RepairPlan | None) -> None:
    if args.json:
        members = {} if plan is None else {"plan": [_step(step) for step in plan.steps], "fetched": plan.fetched}
        output.say_json(**_seen(report), **members)
        return
    for problem in report.problems:
        output.say(output.printable(f"{problem.kind}: {problem.path}: {problem.message}"))
        if plan is None:
            output.say(f"  repair {problem.remedy}")
    for step in plan.steps if plan is not None else ():
        output.say(output.printable(f"would {_words(step)}: {step.problem.path}"))
    if plan is not None and plan.fetched:
        output.say(f"up to {output.size(plan.fetched)} would be fetched")
    output.say(_verdict(report))


def _say_repaired(args: argparse.Namespace, report: CheckReport, done: RepairReport) -> None:
    if args.json:
        left = [_problem(problem) for problem in done.left]
        output.say_json(**_seen(report), repaired=[_result(result) for result in done.results], left=left)
        return
    for result in done.results:
        problem, word = result.step.problem, "repaired" if result.solved else "not repaired"
        output.say(output.printable(f"{word}: {problem.kind}: {problem.path}: {result.text}"))
    for problem in done.left:
        output.say(output.printable(f"still {problem.kind}: {problem.path}: {problem.message}"))
    solved = sum(result.solved for result in done.results)
    output.say(f"{solved} repaired; " + (f"{len(done.left)} still damaged" if done.left else "nothing is damaged"))


def _words(step: Step) -> str:
    verb = "keep, because" if step.remedy == "keep" else f"{step.remedy} from" if step.source else str(step.remedy)
    return f"{verb} {step.source}".rstrip()


def _seen(report: CheckReport) -> dict[str, Any]:
    problems = [_problem(problem) for problem in report.problems]
    counts = {"blobs": report.blobs, "size": report.size, "read": report.read, "read_before": report.read_before}
    return {**counts, "problems": problems}


def _problem(problem: Problem) -> dict[str, Any]:
    digest = str(problem.digest) if problem.digest else None
    known = {"kind": str(problem.kind), "severity": str(problem.severity), "path": str(problem.path)}
    return {**known, "digest": digest, "size": problem.size, "message": problem.message, "remedy": problem.remedy}


def _step(step: Step) -> dict[str, Any]:
    return {"remedy": str(step.remedy), "source": step.source, "problem": _problem(step.problem)}


def _result(result: Result) -> dict[str, Any]:
    return {"solved": result.solved, "text": result.text, **_step(result.step)}


def _verdict(report: CheckReport) -> str:
    seen = f"{output.count(report.blobs, 'blob')}, {output.size(report.size)}, {report.read} of them read"
    before = f" and {report.read_before} before it was interrupted" if report.read_before else ""
    later = f"; {report.unproven} will be read before they are used" if report.unproven else ""
    debris = len(report.problems) - len(report.damage)
    found = f"{len(report.damage)} damaged" if report.damage else "nothing is damaged"
    return f"{found} ({seen}{before}{later})" + (f"; leftovers that take room: {debris}" if debris else "")
