"""`determined.core`: can be imported; what it does needs a cluster."""

from __future__ import annotations

from typing import Any

from cas.load.standin.context import Distributed
from cas.load.standin.lacking import Lacking, lacks, placeholder

_MODULE = "determined.core"

Context = placeholder(f"{_MODULE}.Context")
DistributedContext = Distributed


def init(*_: Any, **__: Any) -> Any:
    """Fail: this starts a task.

    Raises:
        Lacking: always.
    """
    raise Lacking(f"{_MODULE}.init")


def __getattr__(name: str) -> Any:
    return lacks(_MODULE, name)
