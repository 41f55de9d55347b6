"""`determined.experimental`: can be imported; to find and load checkpoints, there is `cas.experimental`."""

from __future__ import annotations

from typing import Any

from cas.load.standin.experimental import client as client
from cas.load.standin.lacking import lacks, placeholders

_MODULE = "determined.experimental"

globals().update(placeholders(_MODULE, "Checkpoint Determined ExperimentReference TrialReference create"))


def __getattr__(name: str) -> Any:
    return lacks(_MODULE, name)
