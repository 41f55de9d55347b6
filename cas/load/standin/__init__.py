"""Stands in for the `determined` package while the code of a checkpoint is imported and its model is built.

Only the modules of a checkpoint see it (cas/load/sources.py), and only where the real package is not installed. It has
what loading needs, and no training: what it lacks fails with one line that names it.
"""

from __future__ import annotations

from typing import Any

from cas.load.standin import core as core  # those of its modules that `import determined` alone gives
from cas.load.standin import util as util
from cas.load.standin.context import TrialContext
from cas.load.standin.lacking import lacks, placeholders
from cas.load.standin.silent import Silent

LOG_FORMAT = "%(asctime)s:%(levelname)s [%(process)s]: %(name)s: %(message)s"
__version__ = "0.38.1"  # the last release: what code that looks at it was written for


def get_cluster_info() -> None:
    """Tell that this is no task of a cluster."""


def __getattr__(name: str) -> Any:
    return lacks("determined", name)


class InvalidHP(Exception):
    """What a trial raises to say that its hyperparameters make no sense."""


class Trial:
    """The class that trials of every framework inherit from."""


class Constant(Silent):
    """A hyperparameter of a configuration that code of 2020 has in it; nothing is searched here."""


Categorical = Double = Integer = Log = Constant
# What is written beside an argument, or looked at in a running task.
_TYPES = "ClusterInfo EnvContext ExperimentConfig NativeContext RendezvousInfo ResourcesInfo TrialController TrialInfo"
globals().update(placeholders("determined", _TYPES))

__all__ = ["LOG_FORMAT", "InvalidHP", "Trial", "TrialContext", "get_cluster_info"]
