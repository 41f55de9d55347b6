"""Threads that fetch: daemons, so that a server which keeps silent cannot keep the process from ending."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from typing import ParamSpec, Self, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

TICK = 0.2  # seconds between two looks at whether to stop: Ctrl-C ends a transfer within a second


class StoppedError(Exception):
    """The transfer was told to stop; nobody's fault, and never shown."""


class Workers:
    """A number of threads that do what is submitted, in order. Leaving the context waits for nobody."""

    def __init__(self, count: int, stop: threading.Event, name: str) -> None:
        self._count = count
        self._name = name
        self._stop = stop
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    def submit(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Queue a call."""
        future: Future[R] = Future()

        def call() -> None:
            if self._stop.is_set() or not future.set_running_or_notify_cancel():
                future.cancel()
                return
            try:
                future.set_result(function(*args, **kwargs))
            except BaseException as error:
                future.set_exception(error)

        self._queue.put(call)
        if len(self._threads) < self._count:
            number = len(self._threads)
            self._threads.append(threading.Thread(target=self._run, name=f"{self._name}-{number}", daemon=True))
            self._threads[-1].start()
        return future

    def _run(self) -> None:
        while (call := self._queue.get()) is not None:
            call()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for _thread in self._threads:
            self._queue.put(None)

    def join(self, timeout: float) -> None:
        """Wait some seconds for the threads to end; call after the context is left."""
        for thread in self._threads:
            thread.join(timeout)


def wait_all(futures: Iterable[Future[R]], stop: threading.Event) -> list[R]:
    """Return all results; the first error, or `stop`, ends the wait and cancels what has not begun.

    Raises:
        StoppedError: `stop` was set.
    """
    pending = list(futures)
    try:
        left: set[Future[R]] = set(pending)
        while left:
            done, left = wait(left, timeout=TICK, return_when=FIRST_EXCEPTION)
            for future in done:
                if not future.cancelled() and (error := future.exception()) is not None:
                    raise error
            if stop.is_set() and left:
                raise StoppedError
        return [future.result() for future in pending]
    except BaseException:
        for future in pending:
            future.cancel()
        raise
