"""`check`: does the store hold what its names say?"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from cas.cli import output
from cas.cli.parser import add_command, add_form, settings, store
from cas.errors import ContentError

if TYPE_CHECKING:
    from cas.index.check import Advance, CheckReport, Problem


def register(groups: Any) -> None:
    """Add the commands."""
    _register_check(groups)


def _register_check(groups: Any) -> None:
    parser = add_command(
        groups,
        "check",
        check,
        summary="check that the store holds what its names say; what is damaged is put aside, nothing is deleted",
        what="check the store",
        usage="[--deep] [OPTIONS]",
        example="$ check\n$ check --deep          # reads every byte",
        again="run it again; it starts anew",
    )
    parser.add_argument(
        "--deep", action="store_true", help="read and hash every blob, not only those that look changed"
    )
    add_form(parser)


def check(args: argparse.Namespace) -> int:
    """Check the store; exit code 4 if anything is damaged."""
    from cas.index.check import check as check_store

    with _drawn(args) as advance:
        report = check_store(store(args), deep=args.deep, advance=advance if args.deep else None)
    if args.json:
        problems = [_problem(problem) for problem in report.problems]
        output.say_json(blobs=report.blobs, size=report.size, read=report.read, problems=problems)
    else:
        for problem in report.problems:
            output.say(output.printable(f"{problem.kind}: {problem.path}: {problem.message}"))
        output.say(_verdict(report))
    return ContentError.exit_code if report.damage else 0


def _problem(problem: Problem) -> dict[str, Any]:
    digest = str(problem.digest) if problem.digest else None
    known = {"kind": str(problem.kind), "severity": str(problem.severity), "path": str(problem.path)}
    return {**known, "digest": digest, "size": problem.size, "message": problem.message}


def _verdict(report: CheckReport) -> str:
    seen = f"{report.blobs} blobs, {output.size(report.size)}, {report.read} of them read"
    later = f"; {report.unproven} will be read before they are used" if report.unproven else ""
    debris = len(report.problems) - len(report.damage)
    found = f"{len(report.damage)} damaged" if report.damage else "nothing is damaged"
    return f"{found} ({seen}{later})" + (f"; leftovers that take room: {debris}" if debris else "")


@contextlib.contextmanager
def _drawn(args: argparse.Namespace) -> Iterator[Advance]:
    """Draw progress on stderr, where the settings want that; the total is known with the first call."""
    from cas.transfer.progress import drawer

    draw = drawer(settings(args).progress, "checked")
    with contextlib.ExitStack() as stack:
        line: list[Callable[[int], None]] = []
        reached = 0

        def advance(done: int, total: int) -> None:
            nonlocal reached
            if not line:
                line.append(stack.enter_context(draw(total, 0)))
            line[0](done - reached)
            reached = done

        yield advance
