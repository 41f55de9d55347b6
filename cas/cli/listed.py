"""Lists of checkpoints as `experiment list-checkpoints` and `checkpoint list` print them, and what describes them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cas.cli import output

if TYPE_CHECKING:
    from cas.checkpoint import Checkpoint

_HEADERS = ("Trial ID", "# of Batches", "State", "Validation Metric", "UUID", "Resources", "Size")


def say_checkpoints(checkpoints: Sequence[Checkpoint], args: argparse.Namespace) -> None:
    """Print a list of checkpoints in the form that the options choose."""
    if args.quiet:
        for one in checkpoints:
            output.say(one.uuid)
    elif args.json:
        output.say_json(checkpoints=[checkpoint_members(one) for one in checkpoints])
    else:
        say_rows(_HEADERS, [_row(one) for one in checkpoints], args)


def say_rows(headers: Sequence[str], rows: Iterable[Sequence[object]], args: argparse.Namespace) -> None:
    """Print a table as the documentation of the older client has it, or comma-separated values."""
    if args.csv:
        output.say_csv(headers, rows)
    else:
        output.say(output.documented_table(headers, [[_cell(value) for value in row] for row in rows]))


def indented(value: Mapping[str, Any] | None) -> str:
    """Return a JSON object for a cell of a table."""
    return json.dumps(value or {}, indent=4, default=str)


def _row(checkpoint: Checkpoint) -> list[object]:
    record = checkpoint.record
    names = "\n".join(sorted(record.resources))
    size = output.size(sum(record.resources.values())) if record.resources else None
    return [
        record.trial_id,
        record.steps_completed,
        str(record.state),
        _metric(checkpoint)["value"],
        record.uuid,
        names,
        size,
    ]


def checkpoint_members(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what is known of a checkpoint, for a list in JSON."""
    record = checkpoint.record
    data = record.to_json()  # with no credential in it
    return {
        "uuid": record.uuid,
        "registry": record.registry,
        "experiment": record.experiment_id,
        "trial": record.trial_id,
        "batch": record.steps_completed,
        "state": str(record.state),
        "report_time": record.report_time,
        "metric": _metric(checkpoint),
        "validation_metrics": data["validation"],
        "resources": data["resources"],
        "size": sum(record.resources.values()) if record.resources else None,
    }


def _metric(checkpoint: Checkpoint) -> dict[str, Any]:
    name = checkpoint.record.searcher_metric
    return {"name": name, "value": (checkpoint.record.validation_metrics or {}).get(name or "")}


def _cell(value: object) -> object:
    """A value as a cell of several lines that does nothing to a terminal."""
    if not isinstance(value, str):
        return value
    return "\n".join(output.printable(line) for line in value.split("\n"))
