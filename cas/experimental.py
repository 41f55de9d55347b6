"""The documented import path: `from cas.experimental import Determined, Checkpoint`."""

from __future__ import annotations

from cas.checkpoint import Checkpoint
from cas.client import Determined, ExperimentReference, TrialReference

__all__ = ["Checkpoint", "Determined", "ExperimentReference", "TrialReference"]
