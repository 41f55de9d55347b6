"""What all commands share: the parser with its one-line errors, the options that every command takes, value types."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from cas.errors import UsageError

if TYPE_CHECKING:
    from cas.client import Determined
    from cas.config import Settings
    from cas.index.store import Store

Command = Callable[[argparse.Namespace], "int | None"]
MODES = ("auto", "direct", "master")
LINKS = ("auto", "reflink", "hardlink", "symlink", "copy")
_MAX_DIGITS = 18  # fits into 64 bits
AGAIN = "run the same command again to go on"


class WrongUsageError(UsageError):
    """The command line is wrong; `program` is the command as far as it was understood (`cas trial download`)."""

    def __init__(self, program: str, message: str) -> None:
        self.program = program
        super().__init__(message)


class Parser(argparse.ArgumentParser):
    """A parser that raises `WrongUsageError` and takes no abbreviated options."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        options.setdefault("allow_abbrev", False)
        super().__init__(**options)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Refuse what is unknown where it stands, so that the error names the right command."""
        found, extras = super().parse_known_args(args, namespace)
        if extras:
            self.error(f"unrecognized arguments: {' '.join(extras)}")
        return found, extras

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and exiting."""
        raise WrongUsageError(self.prog, message)


def add_group(groups: Any, name: str, *, summary: str, example: str, aliases: Sequence[str] = ()) -> Any:
    """Add a command that has commands of its own, and return where they are added."""
    prog = f"{groups._prog_prefix} {name}"
    parser: Parser = groups.add_parser(
        name,
        aliases=list(aliases),
        prog=prog,
        usage=f"{prog} COMMAND …",
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=examples(example, groups._prog_prefix),
    )
    return parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=Parser, prog=prog)


def add_command(
    groups: Any,
    name: str,
    run: Command,
    *,
    summary: str,
    what: str,
    example: str,
    usage: str,
    aliases: Sequence[str] = (),
    again: str = AGAIN,
) -> Parser:
    """Add one command: `what` completes "Failed to …", `again` is what to do after an interrupt."""
    prog = f"{groups._prog_prefix} {name}"
    parser: Parser = groups.add_parser(
        name,
        aliases=list(aliases),
        prog=prog,
        usage=f"{prog} {usage}",
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=examples(example, groups._prog_prefix.split()[0]),
    )
    parser.set_defaults(run=run, what=what, again=again, parser=parser)
    return parser


def examples(text: str, program: str) -> str:
    """Return the end of a help text: examples, with the name of the program in place of `$ `."""
    lines = [f"  {line}" for line in text.replace("$ ", f"{program} ").splitlines()]
    return "\n".join(["examples:" if len(lines) > 1 else "example:", *lines])


def add_common(parser: argparse.ArgumentParser, *, after: bool) -> None:
    """Add the options that are taken before the command, and `after` it as well."""
    absent: Any = argparse.SUPPRESS if after else None  # what stands before the command must stay
    group = parser.add_argument_group("options of every command")
    group.add_argument("-m", "--master", metavar="URL", default=absent, help="ask this master, not the catalog")
    group.add_argument("-u", "--user", metavar="NAME", default=absent, help="log in to the master as this user")
    group.add_argument("--home", metavar="DIR", default=absent, help="the folder of the store")
    offline = absent if after else False
    group.add_argument("--offline", action="store_true", default=offline, help="never use the network")
    group.add_argument(
        "-v",
        "--verbose",
        action="count",
        default=0,
        dest="verbose_after" if after else "verbose",
        help="say more on stderr; twice: everything",
    )


# --- values ------------------------------------------------------------------------------------------------------


def boolean(text: str) -> bool:
    """Parse a truth value: the words that mean false are those of the older client, and so is the empty text."""
    word = text.strip().lower()
    if word in ("n", "no", "f", "false", "off", "0", ""):
        return False
    if word in ("y", "yes", "t", "true", "on", "1"):
        return True
    raise argparse.ArgumentTypeError(f"must be true or false, not {text!r:.80}")


def number(text: str) -> int:
    """Parse the id of an experiment or a trial, or a count of steps."""
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS):
        raise argparse.ArgumentTypeError(f"must be a whole number, not {text!r:.80}")
    return int(text)


def count(text: str) -> int:
    """Parse how many of something: 1 or more."""
    found = number(text)
    if found < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {text!r:.80}")
    return found


def checkpoint_uuid(text: str) -> str:
    """Parse a checkpoint's UUID, in any usual spelling, into the canonical one."""
    from cas.registry.records import canonical_uuid

    try:
        return canonical_uuid(text)
    except UsageError:
        raise argparse.ArgumentTypeError(f"must be a checkpoint UUID, not {text!r:.80}") from None


def checkpoint_or_name(text: str) -> str:
    """Parse a checkpoint's UUID into the canonical one, or a name that `tag` may have given it."""
    from cas.registry.names import check_name, is_uuid

    if is_uuid(text):
        return checkpoint_uuid(text)
    try:
        return check_name(text)
    except UsageError:
        raise argparse.ArgumentTypeError(f"must be a checkpoint UUID, or a name, not {text!r:.80}") from None


def transfer_rate(text: str) -> int:
    """Parse how many bytes a second: `200MiB/s`, `200M`."""
    from cas.config import size_of

    try:
        rate = size_of(text.removesuffix("/s"))
    except ValueError:
        rate = 0
    if not rate:
        raise argparse.ArgumentTypeError(f"must be bytes a second, like 200MiB/s, not {text!r:.80}")
    return rate


def metric(text: str) -> tuple[str, float]:
    """Parse `NAME=VALUE`, with a number as value (`nan` and `inf` too)."""
    name, sign, value = text.partition("=")
    if not name or not sign:
        raise argparse.ArgumentTypeError(f"must be NAME=VALUE, not {text!r:.80}")
    for kind in (int, float):
        try:
            return name, kind(value)
        except ValueError:
            continue
    raise argparse.ArgumentTypeError(f"the value of {name} must be a number, not {value!r:.80}")


def members(text: str) -> dict[str, Any]:
    """Parse a JSON object, or `NAME=VALUE` with JSON or plain text as value."""
    if text.lstrip().startswith("{"):
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise argparse.ArgumentTypeError(f"is no JSON: {error}") from None
        return dict(found)
    name, sign, value = text.partition("=")
    if not name or not sign:
        raise argparse.ArgumentTypeError(f"must be a JSON object or NAME=VALUE, not {text!r:.80}")
    try:
        return {name: json.loads(value)}
    except (ValueError, RecursionError):
        return {name: value}


def add_boolean(parser: argparse._ActionsContainer, option: str, *, help: str) -> None:
    """Add an option that takes a truth value."""
    parser.add_argument(option, type=boolean, metavar="BOOL", default=None, help=help)


def add_form(parser: argparse._ActionsContainer, *, quiet: str | None = None, csv: bool = False) -> None:
    """Add the options that choose the form of the output: `--json`, `--csv`, and `-q` where `quiet` says what it is."""
    forms = parser.add_mutually_exclusive_group()
    if quiet:
        forms.add_argument("-q", "--quiet", action="store_true", help=quiet)
    if csv:
        forms.add_argument("--csv", action="store_true", help="print comma-separated values, with a line of names")
    forms.add_argument("--json", action="store_true", help="print one JSON object")


def add_patterns(parser: argparse._ActionsContainer) -> None:
    """Add the options that choose files."""
    of = "'*.json', 'folder/'; repeatable"
    parser.add_argument("--include", metavar="PATTERN", action="append", default=[], help=f"only such files: {of}")
    parser.add_argument("--exclude", metavar="PATTERN", action="append", default=[], help=f"no such files: {of}")


def add_registry(parser: argparse._ActionsContainer) -> None:
    """Add the option that names the registry whose ids are meant."""
    help = "whose ids these are, where several have them: local, or a master's URL as `ls` shows it"
    parser.add_argument("--registry", metavar="NAME", help=help)


# --- from arguments to the library -------------------------------------------------------------------------------


def settings(args: argparse.Namespace) -> Settings:
    """Load the settings, with what the command line says."""
    from cas.config import Settings

    level = {0: None, 1: "INFO"}.get(verbosity(args), "DEBUG")
    offline = True if args.offline else None
    return Settings.load(home=args.home, master=args.master, offline=offline, log_level=level)


def client(args: argparse.Namespace, *, registry: str | None = None) -> Determined:
    """Return what answers queries: the master that is configured, else the catalog, or one registry of it."""
    from cas.client import Determined

    if args.master and registry:
        message = "--master asks a master, --registry the catalog: give one of them"
        raise WrongUsageError(args.parser.prog, message)
    if registry:
        from cas.registry.catalog import Catalog

        Catalog(store(args), registry).require_known()
    return Determined(user=args.user, registry=registry, settings=settings(args))


def store(args: argparse.Namespace) -> Store:
    """Open the store."""
    from cas.index.store import store_of

    return store_of(settings(args))


def verbosity(args: argparse.Namespace) -> int:
    """How often `-v` was given, before the command and after it."""
    return int(args.verbose) + int(getattr(args, "verbose_after", 0))


def missing(args: argparse.Namespace, which: str, placeholder: str) -> WrongUsageError:
    """Return the error for an argument that was left out, with the corrected command."""
    import shlex

    words = list(args.argv)
    words.insert(args.command_end, placeholder)
    command = " ".join(word if word == placeholder else shlex.quote(word) for word in words)
    return WrongUsageError(args.parser.prog, f"say which {which}: {args.program} {command}")
