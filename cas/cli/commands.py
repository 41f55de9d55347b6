"""All commands by name, and what happens to words that are none of them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cas import __version__
from cas.cli import (
    add,
    checking,
    checkpoint,
    doctor,
    experiment,
    exporting,
    listing,
    mirror,
    planning,
    publishing,
    pulling,
    recover,
    removing,
    sharing,
    trial,
    trusting,
    user,
    viewing,
)
from cas.cli.parser import AGAIN, Parser, WrongUsageError, add_common, examples

_DESCRIPTION = {
    "cas": "A content-addressed local store for checkpoints: find them, download them once, load them fast.",
    "det": "The documented checkpoint commands of Determined, over the store of `cas` (`det` and `cas` do the same).",
}
_EXAMPLES = """\
$ add model/ --experiment 1 --trial 1 --steps 300 --metric accuracy=0.97
$ trial download 1 --best
$ -m https://master.example.org checkpoint download 46985143-af68-4d48-ab91-a6447052ca49
$ ls
$ doctor"""

_WITH_VALUE = ("-m", "--master", "-u", "--user", "--home")


@dataclass(frozen=True, slots=True)
class Words:
    """Which words of a command line name the command, and where they end."""

    command: tuple[str, ...]
    end: int


def parse(argv: Sequence[str], program: str) -> argparse.Namespace:
    """Parse a command line; `run` of what it returns does the work.

    Raises:
        WrongUsageError: it is wrong.
    """
    parser, names = build(program)
    words = find_words(argv, names)
    if _is_unknown(words, names):
        if program == "det":
            return _hand_over(argv, words, names)
        raise _unknown_command(words, names, program)
    args = parser.parse_args(list(argv))
    if not hasattr(args, "run"):
        group = " ".join([program, *words.command])
        choices = ", ".join(names[words.command[0]]) if words.command else "add, ls, trial download, doctor, …"
        raise WrongUsageError(group, f"say what to do: {choices}")
    args.argv, args.program, args.command_end = list(argv), program, words.end
    return args


def _hand_over(argv: Sequence[str], words: Words, names: dict[str, tuple[str, ...]]) -> argparse.Namespace:
    """Let the vendor's `det` run words that ours does not have.

    Raises:
        WrongUsageError: the vendor's package is not installed.
    """
    from cas.cli import vendor

    command = " ".join(words.command)
    if not vendor.is_installed():
        if _guess(words, names, cutoff=0.75):  # surely a slip: the vendor's commands are not that close to ours
            raise _unknown_command(words, names, "det")
        ours = "trial download, checkpoint download, checkpoint describe, and what `cas` does"
        raise WrongUsageError(
            "det", f"this det does {ours}; for `det {command}` install the vendor's package, determined"
        )
    return argparse.Namespace(
        run=lambda _: vendor.run(argv), what=f"run the vendor's `det {command}`", again=AGAIN, verbose=0
    )


def build(program: str) -> tuple[Parser, dict[str, tuple[str, ...]]]:
    """Return the parser of everything, and the commands: of each group its own, of the others none."""
    parser = Parser(
        prog=program,
        usage=f"{program} [OPTIONS] COMMAND …",
        description=_DESCRIPTION[program],
        epilog=examples(_EXAMPLES, program),
    )
    version = f"{program} (checkpoint-cas) {__version__}"
    parser.add_argument("--version", action="version", version=version, help="print the version")
    add_common(parser, after=False)
    groups = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=Parser, prog=program)
    for module in (
        trial,
        checkpoint,
        experiment,
        user,
        add,
        pulling,
        listing,
        mirror,
        recover,
        viewing,
        planning,
        publishing,
        checking,
        removing,
        exporting,
        sharing,
        trusting,
        doctor,
    ):
        module.register(groups)
    for command in _leaves(parser):
        add_common(command, after=True)
    return parser, _names(parser)


def find_words(argv: Sequence[str], names: dict[str, tuple[str, ...]]) -> Words:
    """Find the command's words in a command line, behind the options of every command."""
    at = 0
    while at < len(argv) and argv[at].startswith("-"):
        at += 2 if argv[at] in _WITH_VALUE else 1
    if at >= len(argv):
        return Words((), len(argv))
    found = [argv[at]]
    if names.get(argv[at]) and at + 1 < len(argv) and not argv[at + 1].startswith("-"):
        found.append(argv[at + 1])
    return Words(tuple(found), at + len(found))


def _names(parser: argparse.ArgumentParser) -> dict[str, tuple[str, ...]]:
    return {name: tuple(_choices(command)) for name, command in _choices(parser).items()}


def _leaves(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """Return the parsers of all commands that do something."""
    children = dict.fromkeys(_choices(parser).values())  # aliases name the same parser again
    return [leaf for child in children for leaf in _leaves(child)] if children else [parser]


def _choices(parser: argparse.ArgumentParser) -> dict[str, Any]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _is_unknown(words: Words, names: dict[str, tuple[str, ...]]) -> bool:
    if not words.command:
        return False
    first, *rest = words.command
    return first not in names or bool(rest and rest[0] not in names[first])


def _unknown_command(words: Words, names: dict[str, tuple[str, ...]], program: str) -> WrongUsageError:
    *group, word = words.command
    close = _guess(words, names)
    guess = f"; did you mean `{' '.join([program, *group, *close])}`?" if close else ""
    return WrongUsageError(" ".join([program, *group]), f"no command is called {word!r:.40}{guess}")


def _guess(words: Words, names: dict[str, tuple[str, ...]], *, cutoff: float = 0.6) -> list[str]:
    """Return the command that may have been meant, if there is one."""
    import difflib

    *group, word = words.command
    return difflib.get_close_matches(word, names[group[0]] if group else tuple(names), n=1, cutoff=cutoff)
