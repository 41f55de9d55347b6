"""`user login`, `user logout` and `user whoami`: the session at a master, shared with the `det` command of others."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from cas.cli import output
from cas.cli.parser import WrongUsageError, add_command, add_form, add_group, settings

if TYPE_CHECKING:
    from cas.client import Determined


def register(groups: Any) -> None:
    """Add the commands."""
    example = "$ -m https://master.example.org user login alice"
    commands = add_group(groups, "user", aliases=("u",), summary="who asks the master", example=example)
    parser = add_command(
        commands,
        "login",
        login,
        summary="log in to the master, and become the user that is meant where nobody is named",
        what="log in",
        usage="[NAME] [OPTIONS]",
        example=f"{example}\ncat password-file | $ user login alice",
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help="default: -u, DET_USER, else it is asked for")
    parser = add_command(
        commands,
        "logout",
        logout,
        summary="end the session at the master, and forget its token",
        what="log out",
        usage="[OPTIONS]",
        example="$ user logout\n$ -u alice user logout\n$ user logout --all",
    )
    parser.add_argument("-a", "--all", action="store_true", help="the sessions of everyone who has a token here")
    parser = add_command(
        commands,
        "whoami",
        whoami,
        summary="print the user that the master takes you for",
        what="find out who you are",
        usage="[OPTIONS]",
        example="$ user whoami\n$ user whoami -q",
    )
    add_form(parser, quiet="print only the name")


def login(args: argparse.Namespace) -> None:
    """Log in with a password that is asked for, or read from stdin where that is no terminal."""
    from cas.config import DeterminedEnvironment

    environment = DeterminedEnvironment.load()
    name = args.name or args.user or environment.user or _asked_name(args)
    door = _door(args, name, _given_password(name, environment.user, environment.password))
    output.note(f"logged in to {door.master_url} as {door.login()}")


def logout(args: argparse.Namespace) -> None:
    """End sessions."""
    door = _door(args, args.user, None)
    ended = door.logout(everyone=args.all)
    if not ended:
        output.note(f"nobody was logged in to {door.master_url} here")
    for name in ended:
        output.note(f"logged {name} out of {door.master_url}")


def whoami(args: argparse.Namespace) -> None:
    """Print who the master takes us for."""
    name = _door(args, args.user, None).whoami().username
    if args.json:
        output.say_json(username=name)
    else:
        output.say(name if args.quiet else f"You are logged in as user '{output.printable(name)}'")


def _door(args: argparse.Namespace, name: str | None, password: str | None) -> Determined:
    from cas.client import Determined

    chosen = settings(args)
    if not chosen.master:
        raise WrongUsageError(args.parser.prog, "no master is named: say which, by -m URL or DET_MASTER")
    return Determined(user=name, password=password, settings=chosen)


def _asked_name(args: argparse.Namespace) -> str:
    if sys.stdin is None or not sys.stdin.isatty():
        raise WrongUsageError(args.parser.prog, "say who logs in: `user login NAME`")
    return input("Username: ")


def _given_password(name: str, user: str | None, password: str | None) -> str | None:
    """The password from the environment or from stdin; None: it is asked for on the terminal."""
    if user == name and password is not None:
        return password
    if sys.stdin is None or sys.stdin.isatty():
        return None
    line = sys.stdin.readline()
    return line.rstrip("\r\n") if line else None
