"""`determined.tensorboard.metric_writers`: nothing is written."""

from __future__ import annotations
