"""Records on this disk: what was seen of each registry, with the time, as JSON that is opaque here.

Appended to `records/<registry>/<writer>.jsonl`; for each thing, what was seen last wins.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cas.index import compaction, disk, lines
from cas.index.layout import Layout, unquote_registry
from cas.index.sqlindex import SqlIndex

log = logging.getLogger("cas.index")

_PAGE = 500  # records read at once by who reads all of them


@dataclass(frozen=True, slots=True)
class Seen:
    """What was last seen of a thing: its data, and when (seconds since 1970)."""

    registry: str
    id: str
    data: dict[str, Any]
    at: float


@dataclass(frozen=True, slots=True)
class NewRecord:
    """A thing to record: `parents` are what it can be found by, like `experiment/1`."""

    kind: str
    id: str
    data: Mapping[str, Any]
    parents: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SeenRecord:
    """A thing that somebody else saw, and when (seconds since 1970)."""

    kind: str
    id: str
    data: Mapping[str, Any]
    parents: tuple[str, ...]
    at: float


class Records:
    """The records of every registry that this store has seen, and its layers: of each thing what was seen last."""

    def __init__(self, layout: Layout, index: SqlIndex) -> None:
        self._layout = layout
        self._index = index
        self.layers: tuple[Records, ...] = ()

    def add(self, registry: str, records: Iterable[NewRecord], *, durable: bool = False) -> None:
        """Append what was seen just now, with one write."""
        seen = disk.now()
        self.merge(
            registry, (SeenRecord(one.kind, one.id, one.data, one.parents, seen) for one in records), durable=durable
        )

    def merge(self, registry: str, records: Iterable[SeenRecord], *, durable: bool = False) -> None:
        """Append what was seen elsewhere, with the times it was seen there; what was seen last counts, as ever."""
        payloads = [
            {"kind": one.kind, "id": one.id, "seen": one.at, "parents": list(one.parents), "data": dict(one.data)}
            for one in records
        ]
        if not payloads:
            return
        path = self._layout.records(registry)
        before = _size(path)
        lines.append(path, payloads, durable=durable, may_move=True)
        if durable:
            disk.sync_names(path.parent, self._layout.notes)
        if compaction.is_time_to_look(before, _size(path)):
            self.compact(registry, unless_needed=True)

    def compact(self, registry: str, *, unless_needed: bool = False) -> None:
        """Write our own files of a registry anew, without what no longer counts; `unless_needed`: if that is most."""
        path = self._layout.records(registry)
        try:
            mine = compaction.own_files(path)
            if unless_needed and sum(map(_size, mine)) < 2 * self._index.live_bytes(mine):
                return
            compaction.compact(path)
        except OSError as error:  # what was to be written is written
            log.info("the records of %s are not compacted: %s", registry, error)

    def get(self, registry: str, kind: str, id: str) -> Seen | None:
        """Return what was last seen of one thing."""
        payload = self._index.record(registry, kind, id)
        found = [] if payload is None else [_seen(registry, payload)]
        found += [seen for layer in self.layers if (seen := layer.get(registry, kind, id)) is not None]
        return max(found, key=lambda seen: seen.at, default=None)

    def find(self, kind: str, *, registry: str | None = None, parent: str | None = None) -> list[Seen]:
        """Return everything of a kind, of one registry and below one parent if given, by registry and id."""
        found = self._index.records(kind, registry=registry, parent=parent)
        mine = [_seen(name, payload) for name, payload in found]
        if not self.layers:
            return mine
        last: dict[tuple[str, str], Seen] = {}
        for every in (mine, *(layer.find(kind, registry=registry, parent=parent) for layer in self.layers)):
            for seen in every:
                key = (seen.registry, seen.id)
                if key not in last or last[key].at < seen.at:
                    last[key] = seen
        return [last[key] for key in sorted(last)]

    def each(self, kind: str, *, registry: str) -> Iterator[Seen]:
        """Yield everything of a kind of one registry, in order of id; the memory it takes does not grow with it."""
        after = ""
        while page := self._index.page(kind, registry=registry, after=after, limit=_PAGE):
            yield from (_seen(registry, payload) for payload in page)
            after = page[-1]["id"]

    def ids(self, kind: str, *, registry: str, parent: str) -> list[str]:
        """Return the ids of a registry's things of a kind below a parent, in order."""
        found = self._index.ids(kind, registry=registry, parent=parent)
        if not self.layers:
            return found
        return sorted({*found, *(id for one in self.layers for id in one.ids(kind, registry=registry, parent=parent))})

    def briefs(self, kind: str, *, registry: str, parent: str) -> list[list[Any]]:
        """Return of everything of a kind below a parent what choices are made by: `[id, …]`, then `BRIEF`'s members."""
        found = self._index.briefs(kind, registry=registry, parent=parent)
        if not self.layers:
            return found
        known = {row[0] for row in found}
        for layer in self.layers:
            more = [row for row in layer.briefs(kind, registry=registry, parent=parent) if row[0] not in known]
            known.update(row[0] for row in more)
            found += more
        return found

    def counts(self) -> dict[str, dict[str, tuple[int, float]]]:
        """Return of each registry and kind how many things there are, and when the last was seen."""
        return self._index.counts()

    def registries_with(self, kind: str, id: str) -> list[str]:
        """Return the registries that know a thing, in order of name."""
        found = self._index.registries_with(kind, id)
        return sorted({*found, *(name for layer in self.layers for name in layer.registries_with(kind, id))})

    def registries(self) -> list[str]:
        """Return every registry that has records here, in order of name."""
        names = {name for layer in self.layers for name in layer.registries()}
        for base in dict.fromkeys((self._layout.root, self._layout.notes)):
            folder = base / "records"
            names.update(unquote_registry(name) for name in disk.names(folder) if (folder / name).is_dir())
        return sorted(names)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _seen(registry: str, payload: dict[str, Any]) -> Seen:
    data = payload.get("data")
    return Seen(registry, payload["id"], data if isinstance(data, dict) else {}, float(payload["seen"]))
