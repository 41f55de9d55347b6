"""`cas`: a content-addressed local store for machine-learning checkpoints, with the Determined client's API.

::

    import cas
    from cas.experimental import Determined, Checkpoint

    cas.add("model/", experiment=1, trial=2, steps=300, metrics={"accuracy": 0.97},
            searcher_metric="accuracy", smaller_is_better=False)
    checkpoint = Determined().get_experiment(1).top_checkpoint()
    model = checkpoint.load()

Importing it is cheap: the names below are loaded when they are first used, frameworks and cloud clients later still.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cas.actions.adding import add
    from cas.actions.mirroring import mirror
    from cas.actions.recovering import recover
    from cas.actions.trusting import trust
    from cas.checkpoint import Checkpoint
    from cas.client import Determined
    from cas.config import Settings
    from cas.errors import CasError
    from cas.references import ExperimentReference, TrialReference
    from cas.removing import pin, prune, remove, unpin

__version__ = "0.1.0"

__all__ = [
    "CasError",
    "Checkpoint",
    "Determined",
    "ExperimentReference",
    "Settings",
    "TrialReference",
    "__version__",
    "add",
    "mirror",
    "pin",
    "prune",
    "recover",
    "remove",
    "trust",
    "unpin",
]

_HOMES = {
    "CasError": "cas.errors",
    "Checkpoint": "cas.checkpoint",
    "Determined": "cas.client",
    "ExperimentReference": "cas.references",
    "Settings": "cas.config",
    "TrialReference": "cas.references",
    "add": "cas.actions.adding",
    "mirror": "cas.actions.mirroring",
    "pin": "cas.removing",
    "prune": "cas.removing",
    "recover": "cas.actions.recovering",
    "remove": "cas.removing",
    "trust": "cas.actions.trusting",
    "unpin": "cas.removing",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'cas' has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
