"""`determined.core`: can be imported; what it does needs a cluster."""

from __future__ import annotations

from typing import Any

from cas.load.standin.context import Distributed
from cas.load.standin.lacking import Lacking, lacks, placeholders

_MODULE = "determined.core"

DistributedContext = Distributed
_TYPES = (
    "CheckpointContext Context PreemptContext PreemptMode ProfilerContext SearcherContext SearcherMode"
    " SearcherOperation TensorboardMode TrainContext"
)
globals().update(placeholders(_MODULE, _TYPES))


def init(*_: Any, **__: Any) -> Any:
    """Fail: this starts a task.

    Raises:
        Lacking: always.
    """
    raise Lacking(f"{_MODULE}.init")


def __getattr__(name: str) -> Any:
    return lacks(_MODULE, name)
