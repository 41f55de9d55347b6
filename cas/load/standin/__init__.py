"""Stands in for the `determined` package while the code of a checkpoint is imported and its model is built.

Only the modules of a checkpoint see it (cas/load/sources.py), and only where the real package is not installed. It has
what loading needs, and no training: what it lacks fails with one line that names it.
"""

from __future__ import annotations

from typing import Any

from cas.load.standin.lacking import lacks

LOG_FORMAT = "%(asctime)s:%(levelname)s [%(process)s]: %(name)s: %(message)s"
__version__ = "0.38.1"  # the last release: what code that looks at it was written for


def get_cluster_info() -> None:
    """Tell that this is no task of a cluster."""


def __getattr__(name: str) -> Any:
    return lacks("determined", name)


class InvalidHP(Exception):
    """What a trial raises to say that its hyperparameters make no sense."""


__all__ = ["LOG_FORMAT", "InvalidHP", "get_cluster_info"]
