"""Leases: what living processes protect from removal.

A process that brings, copies or reads a checkpoint has a folder `leases/<id>/` with a heartbeat: a file that a daemon
thread touches. It *claims* checkpoints by empty files beside it, and *enters* views by an empty file in the view. A
lease whose heartbeat is too old has ended, whatever its process thinks: numbers of processes and clocks of hosts mean
nothing where several share a home, so its age is measured by the disk's own clock alone.

Nothing here may fail where a home can only be read, or is full: then there is no protection, and no error.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import json
import logging
import os
import platform
import secrets
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cas.index import disk
from cas.index.digest import Digest
from cas.index.layout import Layout
from cas.index.locks import ThreadLock
from cas.index.marks import is_uuid

log = logging.getLogger("cas.index")

BEAT = 20.0  # seconds between two heartbeats
TTL = 120.0  # seconds without one after which a lease has ended; other hosts may see a heartbeat 60 s late (NFS)
_BEAT = "beat"
_SAID = 4096  # bytes of a heartbeat that says who it is


@dataclass(frozen=True, slots=True)
class Lease:
    """Somebody's lease, as others see it."""

    id: str
    who: str  # for people: command, process, host
    claims: dict[str, int]  # UUID -> since when (ns, by the disk's clock)


# --- everybody's -----------------------------------------------------------------------------------------------


def living(layout: Layout, now: int) -> dict[str, Lease]:
    """Return the leases that have not ended, by id; `now` is the disk's clock."""
    folder = layout.root / "leases"
    return {id: _read(folder / id) for id in disk.names(folder) if is_alive(folder / id, now)}


def ended(layout: Layout, now: int) -> list[str]:
    """Return the ids of the leases that have ended and were left behind."""
    folder = layout.root / "leases"
    return [id for id in disk.names(folder) if (folder / id).is_dir() and not is_alive(folder / id, now)]


def bury(layout: Layout, id: str, now: int) -> None:
    """Remove a lease that has ended: rename it away, and look once more at what is held."""
    held = layout.aside(f"lease-{id}")
    try:
        disk.make_folder(held.parent)
        disk.rename(layout.lease(id), held)
        if is_alive(held, now):  # it beat in between
            disk.rename(held, layout.lease(id))
        else:
            disk.remove_tree(held)
    except OSError as error:  # ended leases count for nothing anyway
        log.info("the lease %s, which has ended, cannot be removed: %s", id, error)


def is_alive(folder: Path, now: int) -> bool:
    """Whether a lease's heartbeat is young enough."""
    for path in (folder / _BEAT, folder):  # the folder's own time: it was made just now, or its maker was killed
        with contextlib.suppress(OSError):
            return now - path.stat().st_mtime_ns <= TTL * 1e9
    return False


def _read(folder: Path) -> Lease:
    claims = {}
    for name in disk.names(folder):
        if is_uuid(name):
            with contextlib.suppress(OSError):
                claims[name] = (folder / name).stat().st_mtime_ns
    return Lease(folder.name, _who(folder / _BEAT), claims)


def _who(beat: Path) -> str:
    try:
        said = json.loads(disk.read_file(beat, _SAID))
        return f"{said['command']} (process {said['pid']} on {said['host']})"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "a process that does not say who it is"


# --- our own ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Mark:
    """One thing that we protect: a checkpoint that we claimed, or a view that we entered."""

    uuid: str | None = None
    view: Digest | None = None

    def path(self, layout: Layout, id: str) -> Path:
        if self.view is not None:
            return layout.users(self.view) / id
        assert self.uuid is not None, "a mark is of a checkpoint or of a view"
        return layout.lease(id) / self.uuid


@dataclass(slots=True)
class _Own:
    """The lease of this process; without an id there is none on the disk."""

    pid: int
    id: str | None = None
    marks: Counter[_Mark] = field(default_factory=Counter)
    beat: float = 0.0  # when the heartbeat was last set, by `disk.awake`
    inherited: bool = False  # through a fork, by a child that has no lease of its own yet
    forked: bool = False  # a child may read what we entered, so at our end the lease is left to end by itself


class Leases:
    """What this process protects in one home; for threads, and after a fork."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._lock = ThreadLock()
        self._own = _Own(os.getpid())
        self.lost = 0  # how often this process found that its lease had ended: it was stopped for too long
        with _known_lock:
            _known.add(self)

    @contextlib.contextmanager
    def claim(self, uuid: str) -> Iterator[None]:
        """Protect a checkpoint while this is open. Read its refs only then."""
        mark = _Mark(uuid=uuid)
        with self._lock:
            self._add(mark)
        pid = os.getpid()
        try:
            yield
        finally:
            if pid == os.getpid():  # else we are the child of a fork, and the claim is the parent's
                with self._lock:
                    self._drop(mark)

    def enter(self, manifest: Digest, *, built: Path | None = None) -> bool:
        """Enter a view, and stay inside until `leave` or the end of this process; look at its stamp only then.

        Args:
            manifest: the view's.
            built: the folder in which it was built, if it has not got its name yet.

        Returns:
            False if there is no such view, or it is closed.
        """
        mark = _Mark(view=manifest)
        with self._lock:
            return self._add(mark, users=None if built is None else built / "users")

    def leave(self, manifest: Digest) -> None:
        """Leave a view, once for each time that it was entered."""
        with self._lock:
            self._drop(_Mark(view=manifest))

    @property
    def id(self) -> str | None:
        """The id of this process's lease; None while it protects nothing."""
        return self._own.id if self._own.pid == os.getpid() else None

    def linger(self, seconds: float) -> None:
        """Leave what we are inside protected for some time after this process has ended."""
        with self._lock:
            own = self._here()
            if own.id is None:
                return
            later = disk.clock(self._layout.root) + int((seconds - TTL) * 1e9)
            with contextlib.suppress(OSError):
                disk.set_time(self._layout.lease(own.id) / _BEAT, later)
            own.id, own.marks = None, Counter()

    def release(self) -> None:
        """End the lease."""
        with self._lock:
            own = self._here()
            if own.forked:  # a child of ours may read what we are inside
                own.id, own.marks = None, Counter()
                return
            for mark in list(own.marks):
                own.marks[mark] = 1
                self._drop(mark)

    # --- marks ---------------------------------------------------------------------------------------------

    def _here(self) -> _Own:
        if self._own.pid != os.getpid():  # where nothing told us of the fork
            self._own = _Own(os.getpid())
        return self._own

    def _add(self, mark: _Mark, *, users: Path | None = None) -> bool:
        """Make a mark; False if it is of a view that is closed or not there."""
        own = self._here()
        try:
            self._require_lease(own)
            assert own.id is not None, "there is a lease now"
            _make(mark.path(self._layout, own.id) if users is None else users / own.id)
            own.marks[mark] += 1
        except OSError as error:
            self._end_if_idle(own)
            if mark.view is not None and error.errno in (errno.ENOENT, errno.ENOTDIR):
                return False
            log.info("nothing protects what is used here: %s", error)
        return True

    def _drop(self, mark: _Mark) -> None:
        own = self._here()
        if not own.marks[mark]:
            del own.marks[mark]
            return
        own.marks[mark] -= 1
        if not own.marks[mark]:
            del own.marks[mark]
            if own.id is not None:
                with contextlib.suppress(OSError):
                    disk.unlink(mark.path(self._layout, own.id))
        self._end_if_idle(own)

    def _end_if_idle(self, own: _Own) -> None:
        if own.id is not None and not own.marks:
            _remove(self._layout.lease(own.id))
            own.id = None

    # --- the lease -----------------------------------------------------------------------------------------

    def _require_lease(self, own: _Own) -> None:
        """See to it that there is a lease, and that it has not ended while we were stopped."""
        if own.id is not None and disk.awake() - own.beat > 2 * BEAT:
            self._beat(own)
        if own.id is None:
            self._begin(own)

    def _begin(self, own: _Own) -> None:
        """Take a lease, with all that we protect."""
        id = secrets.token_hex(8)
        folder = self._layout.lease(id)
        if not folder.parent.exists():
            os.stat(self._layout.root)  # a home that was deleted is not made again for this
            disk.make_folder(folder.parent)
        disk.make_folder(folder)
        fd = disk.create(folder / _BEAT, 0o644)
        try:
            disk.write(fd, json.dumps(_about_us()).encode())
        finally:
            os.close(fd)
        own.id, own.beat, own.inherited = id, disk.awake(), False
        for mark in list(own.marks):
            try:
                _make(mark.path(self._layout, id))
            except OSError as error:
                del own.marks[mark]
                if mark.view is not None:
                    path = self._layout.view(mark.view)
                    log.warning("%s was removed while nothing protected it: make the view again (%s)", path, error)
        _start_heart()

    def beat(self) -> bool:
        """Tell that we live; take another lease if ours has ended. Return whether there is anything to protect."""
        with self._lock:
            own = self._here()
            if own.inherited and own.marks:
                with contextlib.suppress(OSError):
                    self._begin(own)
            elif own.id is not None:
                self._beat(own)
            return bool(own.marks)

    def _beat(self, own: _Own) -> None:
        assert own.id is not None, "the caller has looked"
        beat = self._layout.lease(own.id) / _BEAT
        try:
            before = beat.stat().st_mtime_ns
            disk.touch(beat)
            silent = (beat.stat().st_mtime_ns - before) / 1e9
        except FileNotFoundError:
            silent = float("inf")  # somebody removed it: it had ended
        except OSError as error:
            log.info("no heartbeat: %s", error)
            return
        own.beat = disk.awake()
        if silent > TTL:
            self._begin_again(own)

    def _begin_again(self, own: _Own) -> None:
        """Take another lease: somebody may have removed what this one protected."""
        assert own.id is not None, "it was the one that ended"
        old = own.id
        self.lost += 1
        log.info("the lease %s ended while this process was stopped", old)
        for mark in own.marks:
            with contextlib.suppress(OSError):
                disk.unlink(mark.path(self._layout, old))
        _remove(self._layout.lease(old))
        own.id = None
        with contextlib.suppress(OSError):
            self._begin(own)

    def after_fork(self, *, in_child: bool) -> None:
        """What the parent is inside of, the child may read as well: it takes a lease of its own, a little later."""
        if not in_child:
            self._own.forked = self._own.forked or self._own.id is not None
            return
        views = Counter({mark: 1 for mark in self._own.marks if mark.view is not None})
        self._own = _Own(os.getpid(), marks=views, inherited=bool(views))
        if views:
            _start_heart()


def _make(path: Path) -> None:
    """Make an empty file; one that is there is fine."""
    with contextlib.suppress(FileExistsError):
        os.close(disk.create(path, 0o666))


def _remove(folder: Path) -> None:
    """Remove a lease of ours, its heartbeat last: whoever looks meanwhile sees one that lives and claims less."""
    with contextlib.suppress(OSError):
        for name in disk.names(folder):
            if name != _BEAT:
                disk.unlink(folder / name)
        disk.unlink(folder / _BEAT)
        disk.remove_folder(folder)


def _about_us() -> dict[str, Any]:
    # No arguments of the command: there may be a password in them.
    script = Path(sys.argv[0] if sys.argv and sys.argv[0] not in ("", "-c", "-m") else "python")
    command = script.parent.name if script.name == "__main__.py" else script.name
    return {"cas": "lease", "command": command[:100], "pid": os.getpid(), "host": platform.node()[:100]}


# --- the heart -------------------------------------------------------------------------------------------------

_known: weakref.WeakSet[Leases] = weakref.WeakSet()
_known_lock = ThreadLock()
_heart: threading.Thread | None = None
_heart_lock = ThreadLock()


def _everyone() -> list[Leases]:
    """Return the leases of this process; other threads open stores meanwhile."""
    with _known_lock:
        return list(_known)


def _start_heart() -> None:
    """Let a daemon thread beat for all leases of this process, while there are any."""
    global _heart
    with _heart_lock:
        if _heart is None:
            _heart = threading.Thread(target=_live, name="cas-lease", daemon=True)
            _heart.start()


def _live() -> None:
    global _heart
    pause = threading.Event()
    while True:
        pause.wait(BEAT)
        living = [leases.beat() for leases in _everyone()]
        with _heart_lock:
            if not any(living):
                _heart = None
                break
    for leases in _everyone():  # one that began in between found us alive
        if leases.id is not None:
            _start_heart()


def _after_fork_in_parent() -> None:
    for leases in _everyone():
        leases.after_fork(in_child=False)


def _after_fork_in_child() -> None:
    global _heart
    _heart = None
    for leases in _everyone():
        leases.after_fork(in_child=True)


@atexit.register
def _release_all() -> None:
    for leases in _everyone():
        with contextlib.suppress(Exception):
            leases.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
