"""Progress of a transfer: one line on stderr. The only module that draws.

A bar in a terminal and in a notebook; elsewhere (a log file) a line now and then. Of several processes that write to
the same place, ranks of a job or not, one draws.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from cas.config import Progress, local_rank

Advance = Callable[[int], None]
Drawer = Callable[[int, int], AbstractContextManager[Advance]]

FIRST_LINE = 10.0  # seconds after which a transfer whose log is a file says how far it is: shorter ones say nothing
LATER_LINES = 30.0  # seconds


def drawer(progress: Progress, label: str) -> Drawer:
    """Return what opens a line for a transfer, given the bytes to fetch and the bytes that are here already."""

    @contextlib.contextmanager
    def draw(to_fetch: int, already_here: int) -> Iterator[Advance]:
        if not to_fetch or progress is Progress.OFF or local_rank() or sys.stderr is None:
            yield lambda count: None
            return
        note = f"{_size(already_here)} already here" if already_here else ""
        with _alone() as alone:
            if not alone:
                yield lambda count: None
            elif _is_live():
                with _bar(label, to_fetch, note) as advance:
                    yield advance
            else:
                lines = _Lines(label, to_fetch, note, short=progress is Progress.ON)
                yield lines.advance
                lines.end()

    return draw


@contextlib.contextmanager
def _alone() -> Iterator[bool]:
    """Take the right to draw where stderr leads; False if another process, or another transfer, draws there."""
    with contextlib.ExitStack() as stack:
        try:
            import fcntl

            # Opened anew: what was inherited is one with the parent's, and so would be the lock.
            fd = os.open(
                f"/proc/self/fd/{sys.stderr.fileno()}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            )
            stack.callback(os.close, fd)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except (ImportError, OSError, ValueError, AttributeError):  # no such thing here: better two lines than none
            pass
        yield True


class _Lines:
    """Whole lines for a log: how far it is, now and then, and in the end if it took long (or `short` ones count)."""

    def __init__(self, label: str, total: int, note: str, *, short: bool) -> None:
        self._label = label
        self._total = total
        self._note = note
        self._short = short
        self._done = 0
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._next = self._began + FIRST_LINE

    def advance(self, count: int) -> None:
        with self._lock:
            self._done += count
            if time.monotonic() >= self._next:
                self._say()

    def end(self) -> None:
        with self._lock:
            if self._short or self._next > self._began + FIRST_LINE:
                self._say()

    def _say(self) -> None:
        from tqdm import tqdm  # late: `import cas` must stay fast

        now = time.monotonic()
        self._next = now + LATER_LINES
        text = tqdm.format_meter(
            self._done,
            self._total,
            now - self._began,
            ncols=100,
            prefix=self._label,
            unit="B",
            unit_scale=True,
            unit_divisor=1024,
            postfix=self._note or None,
        )
        print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def counter(progress: Progress, label: str, unit: str, total: int | None = None) -> Iterator[Advance]:
    """Draw how many things were done, of so many if that is known."""
    if not _wanted(progress):
        yield lambda count: None
        return
    with _tqdm()(desc=label, total=total, unit=f" {unit}", file=sys.stderr, mininterval=0.2, **_width()) as bar:

        def advance(count: int) -> None:
            bar.update(count)

        yield advance


@contextlib.contextmanager
def reaching(progress: Progress, label: str) -> Iterator[Callable[[int, int], None]]:
    """Open a line for work that says how far it is: bytes done, bytes in all, which are known with the first call."""
    with contextlib.ExitStack() as stack:
        line: list[Advance] = []
        reached = 0

        def advance(done: int, total: int) -> None:
            nonlocal reached
            if not line:
                line.append(stack.enter_context(drawer(progress, label)(total, 0)))
            line[0](done - reached)
            reached = done

        yield advance


@contextlib.contextmanager
def _bar(label: str, to_fetch: int, note: str) -> Iterator[Advance]:
    lock = threading.Lock()
    bar = _tqdm()(
        desc=label,
        total=to_fetch,
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        file=sys.stderr,
        postfix=note or None,
        mininterval=0.2,
        **_width(),
    )

    def advance(count: int) -> None:
        with lock:  # tqdm's counter is not safe for threads
            bar.update(count)

    try:
        yield advance
    finally:
        bar.close()


def _width() -> dict[str, Any]:
    """How wide the line is: as the terminal, if that knows it."""
    try:
        known = os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except (OSError, ValueError, AttributeError):
        known = False
    return {"dynamic_ncols": True} if known else {"ncols": 100, "nrows": 20}


def _tqdm() -> Any:
    """The bar: a widget in a notebook that can show widgets, else text."""
    if _in_notebook() and importlib.util.find_spec("ipywidgets") is not None:
        from tqdm.notebook import tqdm as widget

        return widget
    from tqdm import tqdm

    return tqdm


def _wanted(progress: Progress) -> bool:
    """Whether a bar is drawn that only says how many things were done."""
    if local_rank() or sys.stderr is None:
        return False
    return progress is Progress.ON or (progress is Progress.AUTO and _is_live())


def _is_live() -> bool:
    """Whether what is drawn can be drawn again: a terminal, or a notebook."""
    return _in_notebook() or sys.stderr.isatty()


def _in_notebook() -> bool:
    shell = sys.modules.get("IPython")
    return shell is not None and "IPKernelApp" in getattr(shell.get_ipython(), "config", ())


def _size(count: int) -> str:
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
