"""Progress of a transfer: one line on stderr. The only module that draws."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from cas.config import Progress

Advance = Callable[[int], None]
Drawer = Callable[[int, int], AbstractContextManager[Advance]]


def drawer(progress: Progress, label: str) -> Drawer:
    """Return what opens a line for a transfer, given the bytes to fetch and the bytes that are here already."""

    @contextlib.contextmanager
    def draw(to_fetch: int, already_here: int) -> Iterator[Advance]:
        if not to_fetch or not _wanted(progress):
            yield lambda count: None
            return
        with _line(label, to_fetch, already_here) as advance:
            yield advance

    return draw


@contextlib.contextmanager
def counter(progress: Progress, label: str, unit: str, total: int | None = None) -> Iterator[Advance]:
    """Draw how many things were done, of so many if that is known."""
    if not _wanted(progress):
        yield lambda count: None
        return
    from tqdm.auto import tqdm

    with tqdm(desc=label, total=total, unit=f" {unit}", file=sys.stderr, mininterval=0.2, dynamic_ncols=True) as bar:

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
def _line(label: str, to_fetch: int, already_here: int) -> Iterator[Advance]:
    from tqdm.auto import tqdm  # late: `import cas` must stay fast; auto: a widget in notebooks

    lock = threading.Lock()
    note = f"{_size(already_here)} already here" if already_here else ""
    bar = tqdm(
        desc=label,
        total=to_fetch,
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        file=sys.stderr,
        postfix=note or None,
        mininterval=0.2,
        dynamic_ncols=True,
    )

    def advance(count: int) -> None:
        with lock:  # tqdm's counter is not safe for threads
            bar.update(count)

    try:
        yield advance
    finally:
        bar.close()


def _wanted(progress: Progress) -> bool:
    if progress is Progress.AUTO:
        return sys.stderr.isatty() or _in_notebook()
    return progress is Progress.ON


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
