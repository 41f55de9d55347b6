"""`determined.keras`, as far as building a trial's model needs it."""

from __future__ import annotations

from typing import Any, NamedTuple

from cas.load.standin import Trial
from cas.load.standin.context import TrialContext
from cas.load.standin.lacking import lacks, placeholders
from cas.load.standin.silent import Silent

_MODULE = "determined.keras"


class TFKerasTrialContext(TrialContext):
    """Returns what a trial wraps as it is."""

    def wrap_model(self, model: Any) -> Any:
        """Return the model."""
        return model

    def wrap_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        """Return the data set."""
        return dataset

    def wrap_optimizer(self, optimizer: Any, *_: Any, **__: Any) -> Any:
        """Return the optimizer."""
        return optimizer

    def configure_fit(self, *_: Any, **__: Any) -> None:
        """Do nothing: nothing is trained."""

    @property
    def experimental(self) -> Silent:
        """What caches data sets: takes every call."""
        return Silent()


class TFKerasTrial(Trial):
    """The class that users' trials inherit from."""

    def __init__(self, context: TFKerasTrialContext) -> None:
        self.context = context


class TFKerasTrainConfig(NamedTuple):
    """What `configure_fit` collects."""

    training_data: Any = None
    validation_data: Any = None
    callbacks: Any = None


class SequenceAdapter(Silent):
    """Feeds nothing."""


class TFKerasTensorBoard(Silent):
    """Writes nothing."""


ArrayLike = Any
TFKerasContext = TFKerasNativeContext = TFKerasTrialContext
TFKerasExperimentalContext = Silent
globals().update(placeholders(_MODULE, "DeterminedCallback InMemorySequence"))
InputData = Any


def __getattr__(name: str) -> Any:
    return lacks(_MODULE, name)
