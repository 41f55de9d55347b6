"""A pull in a process of its own, for forked children of a process that used obstore: its threads would hang here.

The parent writes one JSON line (credentials travel over this pipe, never on a command line) and reads JSON lines:
`plan`, `bytes` and `file` as they come, and at the end `report` or `error`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import IO, Any

from cas import errors
from cas.config import Settings
from cas.errors import CasError, RemoteError
from cas.index.digest import Digest
from cas.index.manifest import FileEntry
from cas.index.paths import RelativePath
from cas.index.space import Destination
from cas.index.store import Store, store_of
from cas.transfer.fetch import PullReport, pull
from cas.transfer.progress import Advance, Drawer
from cas.transfer.selection import Selection
from cas.transfer.session import OnFile
from cas.transfer.urls import remote_for_recipe

log = logging.getLogger("cas.transfer")

LEAVING = 2.0  # seconds that the spawned process gets to leave tidily when we are interrupted
GATHER = 4 << 20  # bytes of progress per line
_START = (
    "import json, sys; task = json.loads(sys.stdin.readline()); sys.path[:] = task['path'];"
    " from cas.transfer import spawned; spawned.work(task)"
)


# --- in the forked child ---------------------------------------------------------------------------------------


def pull_elsewhere(
    store: Store,
    recipe: Mapping[str, Any],
    *,
    registry: str,
    uuid: str,
    settings: Settings,
    expected_sizes: Mapping[str, int] | None,
    partial: bool,
    selection: Selection,
    destination: Destination | None,
    draw: Drawer,
    on_file: OnFile | None,
) -> PullReport:
    """Pull as `fetch.pull` does, in a process that shares no threads with ours.

    Raises:
        CasError: what the pull raised there.
    """
    if not sys.executable:
        raise RemoteError("a forked process cannot fetch here: no Python to start; fetch before the fork")
    task = {
        "path": sys.path,
        "recipe": dict(recipe),
        "settings": _settings_to_json(settings.but(home=store.home)),
        "pull": {"registry": registry, "uuid": uuid, "partial": partial, "expected_sizes": dict(expected_sizes or {})},
        "selection": [list(selection.include), list(selection.exclude)],
        "destination": None if destination is None else [str(destination.folder), destination.may_share],
    }
    command = [sys.executable, "-P", "-c", _START]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")
    try:
        return _follow(child, task, store, draw, on_file)
    except BaseException:
        child.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(LEAVING)
        raise
    finally:
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def _follow(
    child: subprocess.Popen[str], task: Mapping[str, Any], store: Store, draw: Drawer, on_file: OnFile | None
) -> PullReport:
    assert child.stdin is not None and child.stdout is not None
    with contextlib.suppress(BrokenPipeError):  # then there is no answer either
        child.stdin.write(json.dumps(task) + "\n")
        child.stdin.flush()
    with contextlib.ExitStack() as line:
        advance: Advance = lambda count: None  # noqa: E731 - until the plan is told
        for text in child.stdout:
            message = json.loads(text)
            if "plan" in message:
                advance = line.enter_context(draw(*message["plan"]))
            elif "bytes" in message:
                advance(message["bytes"])
            elif "file" in message and on_file is not None:
                on_file(_entry(message["file"]))
            elif "report" in message:
                return _report(message["report"], store)
            elif "error" in message:
                raise _error(message["error"])
    raise RemoteError(f"the process that fetches for this one ended with code {child.wait()} and no answer")


def _entry(data: Mapping[str, Any]) -> FileEntry:
    path, digest = RelativePath(data["path"]), Digest.parse(data["digest"])
    return FileEntry(path, data["size"], digest, executable=data.get("executable") is True)


def _report(data: dict[str, Any], store: Store) -> PullReport:
    manifest = store.refs.get(Digest.parse(data.pop("manifest")))
    if manifest is None:
        raise RemoteError("what was fetched was removed again by another process; try again")
    return PullReport(manifest=manifest, **data)


def _error(data: Mapping[str, Any]) -> CasError:
    """Make the same error again: its class, its fields, its message."""
    kind = getattr(errors, data["type"], CasError)
    error: CasError = kind.__new__(kind)
    Exception.__init__(error, data["message"])
    for name, value in data["fields"].items():
        setattr(error, name, value)
    return error


def _settings_to_json(settings: Settings) -> dict[str, Any]:
    values = {one.name: getattr(settings, one.name) for one in fields(settings)}
    return {name: _plain(value) for name, value in values.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


# --- in the spawned process --------------------------------------------------------------------------------------


def work(task: Mapping[str, Any]) -> None:
    """Pull what the task says and tell of it on stdout."""
    relay = _Relay(sys.stdout)
    sys.stdout = sys.stderr
    logging.basicConfig(level=task["settings"]["log_level"])
    settings = Settings(home=Path(task["settings"]["home"])).but(**task["settings"])
    remote = remote_for_recipe(task["recipe"], settings)
    store = store_of(settings)
    there = task["destination"] and Destination(Path(task["destination"][0]), task["destination"][1])
    options: dict[str, Any] = {
        "settings": settings,
        "destination": there,
        "selection": Selection.of(*task["selection"]),
        "progress": relay.draw,
        "on_file": relay.file,
    }
    try:
        done = pull(store, remote, **options, **task["pull"])
    except KeyboardInterrupt:
        sys.exit(130)
    except CasError as error:
        plain = {name: value for name, value in vars(error).items() if isinstance(value, str | int | float | None)}
        kind = next(one.__name__ for one in type(error).__mro__ if hasattr(errors, one.__name__))
        relay.say(error={"type": kind, "message": str(error), "fields": plain})
        return
    values = {one.name: getattr(done, one.name) for one in fields(done)}
    relay.say(report={**values, "proofs": dict(done.proofs), "manifest": str(done.manifest.digest)})


class _Relay:
    """Writes messages, one line at a time, from several threads."""

    def __init__(self, out: IO[str]) -> None:
        self._out = out
        self._lock = threading.Lock()
        self._counting = threading.Lock()
        self._waiting = 0

    def say(self, **message: Any) -> None:
        with self._lock:
            self._out.write(json.dumps(message) + "\n")
            self._out.flush()

    def file(self, entry: FileEntry) -> None:
        self.say(file=entry.to_json())

    @contextlib.contextmanager
    def draw(self, to_fetch: int, already_here: int) -> Iterator[Advance]:
        self.say(plan=[to_fetch, already_here])
        yield self._advance
        self.say(bytes=self._take(least=0))

    def _advance(self, count: int) -> None:
        with self._counting:
            self._waiting += count
        if (ready := self._take(least=GATHER)) != 0:
            self.say(bytes=ready)

    def _take(self, *, least: int) -> int:
        with self._counting:
            if self._waiting < least:
                return 0
            ready, self._waiting = self._waiting, 0
            return ready
