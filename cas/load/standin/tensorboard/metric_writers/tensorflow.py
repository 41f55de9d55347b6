"""`determined.tensorboard.metric_writers.tensorflow`: what trials make in their constructor to log with."""

from __future__ import annotations

from typing import Any

from cas.load.standin.lacking import lacks
from cas.load.standin.silent import Silent


class TFWriter(Silent):
    """Writes nothing; its `writer` takes every call."""


def __getattr__(name: str) -> Any:
    return lacks("determined.tensorboard.metric_writers.tensorflow", name)
