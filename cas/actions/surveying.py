"""What lies in a bucket of checkpoints: its names, in ranges and threads, and what each checkpoint's own files say."""

from __future__ import annotations

import logging
import queue
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cas.errors import CasError, ChangedError, NotAllowedError, RemoteError, TransientRemoteError, UsageError
from cas.index.records import Seen
from cas.index.store import Store
from cas.registry import recovery
from cas.registry.catalog import Catalog
from cas.registry.metric_tables import Row
from cas.registry.records import CheckpointRecord, State, canonical_uuid
from cas.registry.recovery import Contents, Finding
from cas.transfer.remote import Remote, RemoteFile
from cas.transfer.retry import RetryingRemote
from cas.transfer.scan import LAST
from cas.transfer.workers import Workers

log = logging.getLogger("cas.recovery")

SKIP = 1000  # names below a folder that is no checkpoint before the scan goes on behind it: one page of a listing
UNREADABLE = " cannot be read"  # how a problem ends that another try may solve
_WAITING = 64  # checkpoints that were read and not taken yet; each may have some MiB
_DIGITS = "0123456789abcdef"
RANGES = len(_DIGITS) + 2


@dataclass(frozen=True, slots=True)
class Earlier:
    """What is kept in memory of a checkpoint that was recovered before."""

    fingerprint: str  # of its files' list, and of what else its record was made of
    key: str  # of its experiment
    problems: tuple[str, ...]
    has_metrics: bool
    is_final: bool  # nothing but other files would change it

    @classmethod
    def of(cls, seen: Seen) -> Earlier:
        """Take it from the record."""
        found = seen.data.get("found")
        known: dict[str, Any] = found if isinstance(found, dict) else {}
        problems = tuple(sys.intern(str(one)) for one in known.get("problems") or ())
        experiment = known.get("experiment")
        key = sys.intern(str(experiment.get("key")) if isinstance(experiment, dict) else "")
        is_final = seen.data.get("state") != State.DELETED and not any(one.endswith(UNREADABLE) for one in problems)
        fingerprint = _fingerprint(known.get("stamp"), known.get("inputs"))
        return cls(fingerprint, key, problems, seen.data.get("validation") is not None, is_final)


@dataclass(frozen=True, slots=True)
class Unchanged:
    """A checkpoint that is as it was when it was recovered before."""

    uuid: str
    earlier: Earlier
    size: int  # bytes
    known: CheckpointRecord | None  # what another registry knows of it


@dataclass(frozen=True, slots=True)
class Fresh:
    """A checkpoint that was read."""

    finding: Finding
    contents: Contents
    inputs: str
    row: Row | None
    known: CheckpointRecord | None


@dataclass(frozen=True, slots=True)
class Other:
    """Names below one that is no UUID."""

    name: str
    count: int


_Item = Unchanged | Fresh | Other | BaseException | None  # None: one range of names is done


class Survey:
    """Reads the place in ranges of names, each in a thread; yields what it finds."""

    def __init__(
        self,
        store: Store,
        remote: Remote,
        registry: str,
        *,
        table: Mapping[str, Row],
        earlier: Mapping[str, Earlier],
    ) -> None:
        self._store = store
        self._earlier = earlier
        self._stop = threading.Event()
        self._remote = RetryingRemote(remote, stop=self._stop)
        self._registry = registry
        self._table = table
        self._has_others = any(name != registry for name in store.records.registries())
        self._found: queue.Queue[_Item] = queue.Queue(maxsize=_WAITING)

    def run(self, threads: int) -> Iterator[Unchanged | Fresh | Other]:
        """Yield everything, in no order.

        Raises:
            CasError: the place cannot be listed.
        """
        edges = ["", *(chr(ord(digit) - 1) + LAST for digit in _DIGITS), "f" + LAST]
        ranges = list(zip(edges, [*edges[1:], LAST], strict=True))
        try:
            with Workers(threads, self._stop, "cas-recover") as workers:
                for after, before in ranges:
                    workers.submit(self._range, after, before)
                left = len(ranges)
                while left:
                    item = self._found.get()
                    if isinstance(item, BaseException):
                        raise item
                    if item is None:
                        left -= 1
                    else:
                        yield item
        finally:
            self._stop.set()

    def _put(self, item: _Item) -> None:
        while not self._stop.is_set():
            try:
                self._found.put(item, timeout=0.2)
                return
            except queue.Full:
                continue

    def _range(self, after: str, before: str) -> None:
        try:
            while not self._stop.is_set():
                skipped = self._walk(after, before)
                if skipped is None:
                    break
                after = f"{skipped}/{LAST}"
            self._put(None)
        except BaseException as error:
            self._put(error)

    def _walk(self, after: str, before: str) -> str | None:
        """Take names in order; return the folder that is no checkpoint and too large to read on, or None at the end."""
        top: tuple[str, str] = ("", "")  # with or without a slash: an object may be called like a folder
        contents: Contents | None = None
        documents: dict[str, RemoteFile] = {}
        count = 0
        for found in self._remote.scan(after=after, before=before):
            if self._stop.is_set():
                return None
            first, slash, rest = found.name.partition("/")
            if (first, slash) != top:
                self._finish(top[0], contents, documents, count)
                top, count, documents = (first, slash), 0, {}
                contents = Contents(first) if slash and _is_uuid(first) else None
            count += 1
            if contents is None and slash and count >= SKIP:
                self._finish(first, None, documents, count)
                return first
            if contents is not None and rest:
                contents.add(rest, found.size, found.modified, is_file=found.file is not None)
                if rest in recovery.DOCUMENTS and found.file is not None:
                    documents[rest] = found.file
                    contents.stamps[rest] = found.file.identity.key
        self._finish(top[0], contents, documents, count)
        return None

    def _finish(self, top: str, contents: Contents | None, documents: Mapping[str, RemoteFile], count: int) -> None:
        if not top and not count:
            return
        if contents is None or not contents.count:
            self._put(Other(top if contents is None else f"{top} (empty)", count))
            return
        row, known = self._table.get(top), self._known_elsewhere(top)
        inputs = recovery.inputs_of(row, known)
        earlier = self._earlier.get(top)
        if earlier is not None and earlier.is_final and earlier.fingerprint == _fingerprint(contents.stamp, inputs):
            self._put(Unchanged(top, earlier, contents.size, known))
            return
        read, problems = self._read(documents)
        finding = recovery.understand(contents, read, problems)
        if known is not None and finding.config is None and known.experiment_config:
            finding.config = _own_config(known)
        if known is not None and finding.hparams is None and known.hparams:
            finding.hparams = dict(known.hparams)
        self._put(Fresh(finding, contents, inputs, row, known))

    def _read(self, documents: Mapping[str, RemoteFile]) -> tuple[dict[str, bytes], list[str]]:
        read, problems = {}, []
        for name, file in documents.items():
            if file.size > recovery.MAX_DOCUMENT:
                problems.append(f"{name} has more than {recovery.MAX_DOCUMENT >> 20} MiB")
                continue
            try:
                read[name] = b"".join(map(bytes, self._remote.read(file, 0, file.size))) if file.size else b""
            except TransientRemoteError:
                raise
            except (NotAllowedError, ChangedError, RemoteError) as error:
                log.info("%s: %s", file.identity.url, error)
                problems.append(f"{name}{UNREADABLE}")
        return read, problems

    def _known_elsewhere(self, uuid: str) -> CheckpointRecord | None:
        """What another registry knows of a checkpoint: the one that counts most among those that know metrics."""
        if not self._has_others:
            return None
        names = self._store.records.registries_with("checkpoint", uuid)
        found = []
        for name in names:
            if name != self._registry and not name.startswith(recovery.PREFIX):
                try:
                    found.append(Catalog(self._store, name).checkpoint(uuid))
                except CasError as error:
                    log.info("not used: %s", error)
        found.sort(key=lambda record: (record.validation_metrics is None, not record.registry.startswith("http")))
        return found[0] if found else None


def _own_config(known: CheckpointRecord) -> dict[str, Any] | None:
    config = {name: value for name, value in known.experiment_config.items() if name != "checkpoint_storage"}
    return config or None


def _is_uuid(text: str) -> bool:
    try:
        return canonical_uuid(text) == text
    except UsageError:
        return False


def _fingerprint(stamp: object, inputs: object) -> str:
    return f"{stamp} {inputs}"
