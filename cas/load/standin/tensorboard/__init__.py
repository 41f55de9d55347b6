"""`determined.tensorboard`: nothing is written."""

from __future__ import annotations

from typing import Any

from cas.load.standin.lacking import lacks
from cas.load.standin.silent import Silent


class MetricWriter(Silent):
    """Writes nothing."""


def __getattr__(name: str) -> Any:
    return lacks("determined.tensorboard", name)
