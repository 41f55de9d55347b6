"""Metrics that a user has in a file: CSV or JSON, one row for each checkpoint.

CSV: a line of names, then a line for each checkpoint; separated by commas, semicolons or tabs. JSON: a list of objects,
or an object that maps UUIDs to objects. The column `uuid` is needed. `experiment_id`, `trial_id` and `steps_completed`
say where a checkpoint belongs and how far its training was; every other column is a metric. An empty cell says nothing.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cas.errors import ContentError, NotFoundError, UsageError
from cas.registry.records import canonical_uuid

MAX_BYTES = 1 << 30  # of a file of metrics; 100,000 checkpoints with 50 metrics take 100 MB
_PLACES = {
    "experiment_id": "experiment_id",
    "experiment": "experiment_id",
    "trial_id": "trial_id",
    "trial": "trial_id",
    "steps_completed": "steps_completed",
    "steps": "steps_completed",
    "batches": "steps_completed",
    "batch_number": "steps_completed",
}
_UUIDS = ("uuid", "checkpoint_uuid", "checkpoint")


@dataclass(slots=True)
class Row:
    """What the file says of one checkpoint; `metrics` as masters write them ("NaN", "Infinity", "-Infinity")."""

    metrics: dict[str, Any] = field(default_factory=dict)
    experiment_id: int | None = None
    trial_id: int | None = None
    steps_completed: int | None = None


def read(path: str | Path) -> dict[str, Row]:
    """Return the rows of a file by UUID; what is in it decides between CSV and JSON, not its name.

    Raises:
        NotFoundError: there is no such file.
        ContentError: it is neither, or a value is not what it must be; the message names line and column.
    """
    file = Path(path)
    try:
        if file.stat().st_size > MAX_BYTES:
            raise ContentError(f"{file} has more than {MAX_BYTES >> 30} GiB; a file of metrics is smaller")
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no file {file}") from error
    except IsADirectoryError as error:
        raise UsageError(f"{file} is a folder; name the file of metrics in it") from error
    except UnicodeDecodeError as error:
        raise ContentError(f"{file}: byte {error.start} is no UTF-8; save the file as UTF-8") from error
    found = _json(file, text) if text.lstrip()[:1] in ("[", "{") else _csv(file, text)
    rows: dict[str, Row] = {}
    places: dict[str, str] = {}
    for place, uuid, values in found:
        row = _row(place, values)
        if uuid in rows and rows[uuid] != row:
            raise ContentError(f"{place}: checkpoint {uuid} has other values at {places[uuid]}")
        rows[uuid], places[uuid] = row, place
    return rows


def _csv(file: Path, text: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    head = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=head.count), strict=True)
    try:
        names = [name.strip() for name in next(reader, [])]
        if double := [name for name in names if name and names.count(name) > 1]:
            raise ContentError(f"{file}, line 1: two columns are called {double[0]!r:.60}")
        key = _uuid_name(names)
        if key is None:
            shown = ", ".join(filter(None, names[:10])) or "nothing"
            raise ContentError(f"{file}, line 1: no column is called uuid; there is {shown:.200}")
        for cells in reader:
            place = f"{file}, line {reader.line_num}"
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) > len(names):
                raise ContentError(f"{place}, column {len(names) + 1}: line 1 names only {len(names)} columns")
            values = {name: cell.strip() for name, cell in zip(names, cells, strict=False) if name}
            yield place, _uuid(f"{place}, column {key!r}", values.pop(key, "")), _without_empty(values)
    except csv.Error as error:
        raise ContentError(f"{file}, line {reader.line_num}: {error}") from error


def _without_empty(values: Mapping[str, str]) -> dict[str, str]:
    return {name: cell for name, cell in values.items() if cell}


def _json(file: Path, text: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise ContentError(f"{file}, line {error.lineno}, column {error.colno}: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise ContentError(f"{file}: {error}") from error
    entries = document.items() if isinstance(document, dict) else ((None, entry) for entry in document)
    for number, (uuid, entry) in enumerate(entries, 1):
        place = f"{file}, entry {number}"
        if not isinstance(entry, dict):
            raise ContentError(f"{place}: must be an object with uuid and metrics, not {entry!r:.60}")
        values = {name: value for name, value in entry.items() if value is not None}
        key = _uuid_name(list(values))
        if uuid is None and key is None:
            raise ContentError(f"{place}: it has no uuid")
        inner = values.pop("metrics", {})
        if not isinstance(inner, dict):
            raise ContentError(f"{place}, 'metrics': must be an object, not {inner!r:.60}")
        given = values.pop(key) if key is not None else uuid
        yield place, _uuid(f"{place}, 'uuid'", given if uuid is None else uuid), {**values, **inner}


def _uuid_name(names: list[str]) -> str | None:
    return next((name for wanted in _UUIDS for name in names if name.lower() == wanted), None)


def _uuid(place: str, text: object) -> str:
    try:
        return canonical_uuid(text)
    except UsageError as error:
        raise ContentError(f"{place}: {error}") from error


def _row(place: str, values: Mapping[str, Any]) -> Row:
    row = Row()
    for name, value in values.items():
        where = f"{place}, column {name!r:.60}" if ", line " in place else f"{place}, {name!r:.60}"
        if (known := _PLACES.get(name.lower())) is not None:
            setattr(row, known, _whole(where, value, least=0 if known == "steps_completed" else 1))
        else:
            row.metrics[name] = _metric(where, value)
    return row


def _whole(where: str, value: Any, *, least: int) -> int:
    number = _number(value)
    if number is None or not math.isfinite(number) or number != int(number) or not least <= number < 1 << 53:
        raise ContentError(f"{where}: must be a whole number of {least} or more, not {value!r:.60}")
    return int(number)


def _metric(where: str, value: Any) -> int | float | str:
    number = _number(value)
    if number is None:
        raise ContentError(f"{where}: {value!r:.60} is no number; leave out columns that are no metrics")
    if math.isnan(number):
        return "NaN"
    if math.isinf(number):
        return "Infinity" if number > 0 else "-Infinity"
    return number


def _number(value: Any) -> int | float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return value if not isinstance(value, int) or abs(value) < 1 << 1000 else None
    if not isinstance(value, str) or "_" in value or not value.isascii():
        return None
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return None
