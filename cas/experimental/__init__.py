"""The documented import path: `from cas.experimental import Determined, Checkpoint`, or `client` of the newer API."""

from __future__ import annotations

from cas.checkpoint import Checkpoint
from cas.client import Determined
from cas.config import DownloadMode
from cas.experimental import client
from cas.references import ExperimentReference, TrialReference
from cas.registry.select import CheckpointSortBy, OrderBy

Experiment = ExperimentReference  # the names of the newer API
Trial = TrialReference

__all__ = [
    "Checkpoint",
    "CheckpointSortBy",
    "Determined",
    "DownloadMode",
    "Experiment",
    "ExperimentReference",
    "OrderBy",
    "Trial",
    "TrialReference",
    "client",
]
