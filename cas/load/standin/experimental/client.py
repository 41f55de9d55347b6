"""`determined.experimental.client`: can be imported; what it does needs a cluster."""

from __future__ import annotations

from typing import Any

from cas.load.standin.lacking import lacks, placeholders

_MODULE = "determined.experimental.client"

_TYPES = "Checkpoint Determined Experiment ExperimentReference Model ModelVersion Trial TrialReference"
_CALLS = "create_experiment get_checkpoint get_experiment get_model get_trial login"
globals().update(placeholders(_MODULE, f"{_TYPES} {_CALLS}"))


def __getattr__(name: str) -> Any:
    return lacks(_MODULE, name)
