"""What commands print: results on stdout, all else on stderr."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

SCHEMA = 1  # of every --json output; grows when a member changes its meaning or goes away

_PADDING = 4  # the padding of the documented tables; tabulate's own is 2


def say(text: str = "") -> None:
    """Print one result."""
    print(text, file=sys.stdout)


def note(text: str) -> None:
    """Print one line that is no result."""
    print(printable(text), file=sys.stderr)


def say_json(**members: Any) -> None:
    """Print one JSON object with the number of its schema."""
    say(json.dumps({"schema": SCHEMA, **members}, indent=2, default=str))


def say_csv(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print comma-separated values, a line of names first."""
    import csv

    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(headers)
    writer.writerows(rows)


def printable(text: object) -> str:
    """Return text as one line that does nothing to a terminal: names from outside may hold anything."""
    return "".join(_shown(character) for character in str(text))


def _shown(character: str) -> str:
    if character in "\n\r\t":
        return " "
    if unicodedata.category(character) in ("Cc", "Cs", "Co") or character in "\u2028\u2029\u202a\u202b\u202d\u202e":
        return repr(character)[1:-1]
    return character


def size(count: int) -> str:
    """Return a number of bytes for people."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if amount < 1000 or unit == "TiB":
            break
        amount /= 1024
    return f"{count} B" if unit == "B" else f"{amount:.1f} {unit}"


def count(number: int, what: str) -> str:
    """Return `1 file`, `2 files`: the last word takes an `s`."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def table(headers: Sequence[str], rows: Iterable[Sequence[object]], *, right: Sequence[str] = ()) -> str:
    """Return rows in columns; those named in `right` are aligned to the right."""
    from tabulate import tabulate

    shown = [["" if cell is None else printable(cell) for cell in row] for row in rows]
    align = ["right" if header in right else "left" for header in headers]
    return tabulate(shown, headers, tablefmt="simple", disable_numparse=True, colalign=align if shown else None)


def documented_table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table as the documentation of the older client prints it; cells may have several lines."""
    import tabulate

    before = tabulate.MIN_PADDING
    tabulate.MIN_PADDING = _PADDING  # the only way to say it
    try:
        return tabulate.tabulate(list(rows), headers, tablefmt="presto")
    finally:
        tabulate.MIN_PADDING = before
