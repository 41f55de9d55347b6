"""Every command's help, and how the words of a command are found."""

from __future__ import annotations

import argparse
import re
import shlex

import pytest

from cas.cli.commands import build, find_words, parse

PARSER, NAMES = build("cas")


def parsers(parser: argparse.ArgumentParser):
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in dict.fromkeys(action.choices.values()):
                yield from parsers(child)


@pytest.mark.parametrize("parser", list(parsers(PARSER)), ids=lambda parser: parser.prog)
def test_every_help_ends_with_an_example(parser):
    text = parser.format_help()

    assert text.startswith(f"usage: {parser.prog} ")
    last = text[text.rindex("\nexample") :]
    assert f"  {parser.prog.split()[0]} " in last and "$ " not in last
    for action in parser._actions:
        children = isinstance(action, argparse._SubParsersAction)
        assert children or action.help, f"{parser.prog}: {action.option_strings or action.dest} is not explained"


@pytest.mark.parametrize("program", ["cas", "det"])
def test_every_example_is_a_right_command(program):
    lines = [line for parser in parsers(build(program)[0]) for line in parser.epilog.splitlines()[1:]]
    commands = [re.search(rf"(?<![/\w]){program} ([^#)]*)", line)[1] for line in lines]

    assert len(commands) > 20
    for command in commands:
        assert parse(shlex.split(command), program).run


def test_the_documented_commands_are_there_with_their_aliases():
    assert {"trial", "t", "checkpoint", "c", "experiment", "e", "user", "u"} <= set(NAMES)
    assert {"add", "ls", "du", "view", "check", "rm", "trust", "doctor"} <= set(NAMES)
    assert NAMES["trial"] == NAMES["t"] == ("download", "describe")
    assert NAMES["checkpoint"] == NAMES["c"] == ("download", "describe", "list")
    assert NAMES["experiment"] == NAMES["e"] == ("list-checkpoints", "lc", "download", "describe")
    assert NAMES["user"] == NAMES["u"] == ("login", "logout", "whoami")


@pytest.mark.parametrize(
    ("line", "command", "end"),
    [
        ("", (), 0),
        ("-v", (), 1),
        ("ls", ("ls",), 1),
        ("ls --json", ("ls",), 1),
        ("-m trial t download 1", ("t", "download"), 4),
        ("--master=trial -v -u ls --home du c describe x", ("c", "describe"), 8),
        ("trial --best download", ("trial",), 1),
        ("rm download", ("rm",), 1),
        ("unknown words", ("unknown",), 1),
    ],
)
def test_the_words_of_the_command_are_found_behind_options(line, command, end):
    found = find_words(line.split(), NAMES)

    assert (found.command, found.end) == (command, end)
