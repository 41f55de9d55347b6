"""`determined.keras.callbacks`: classes that trials inherit from; none of them is called here."""

from __future__ import annotations

from typing import Any

from cas.load.standin.lacking import lacks
from cas.load.standin.silent import Silent


class Callback(Silent):
    """The class that users' callbacks inherit from."""


class EarlyStopping(Callback):
    """Stops nothing."""


class ReduceLROnPlateau(Callback):
    """Reduces nothing."""


class TensorBoard(Callback):
    """Writes nothing."""


def __getattr__(name: str) -> Any:
    return lacks("determined.keras.callbacks", name)
