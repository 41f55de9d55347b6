"""The documented import path: `from cas.experimental import Determined, Checkpoint`."""

from __future__ import annotations

from cas.checkpoint import Checkpoint
from cas.client import Determined, ExperimentReference, TrialReference
from cas.config import DownloadMode
from cas.registry.select import CheckpointSortBy, OrderBy

__all__ = [
    "Checkpoint",
    "CheckpointSortBy",
    "Determined",
    "DownloadMode",
    "ExperimentReference",
    "OrderBy",
    "TrialReference",
]
