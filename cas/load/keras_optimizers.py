"""Optimizers as the code of 2020 makes them, while that code builds its model.

Loading needs no optimizer, but `build_model()` makes one to compile the model with.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

# Classes of Keras are changed meanwhile, which all threads see: two at once would put back each other's changes.
_building = threading.RLock()
# One folder of Keras, by the names under which code imports it: each is a module of its own.
_LEGACY = (
    "keras.optimizers.legacy",
    "keras._tf_keras.keras.optimizers.legacy",
    "tensorflow.keras.optimizers.legacy",
)


@contextmanager
def old_optimizers() -> Iterator[None]:
    """Let optimizers of Keras 3 take `lr=`, and be found in `keras.optimizers.legacy`, as in Keras 2."""
    import keras

    if not keras.__version__.startswith("3"):
        yield
        return
    kind = keras.optimizers.Optimizer
    todays = kind.__init__

    def make(self: Any, *args: Any, lr: Any = None, **said: Any) -> None:
        if lr is not None:  # learning_rate is the default of the class that was called
            said["learning_rate"], args = lr, args[1:]
        todays(self, *args, **said)

    with _building, ExitStack() as until_built:
        _set(kind, "__init__", make, until_built)
        for title in _LEGACY:
            with suppress(ImportError):
                legacy = importlib.import_module(title)
                for name in [name for name in vars(legacy) if not name.startswith("_")]:
                    if hasattr(keras.optimizers, name):
                        _set(legacy, name, getattr(keras.optimizers, name), until_built)
        yield


def _set(owner: Any, name: str, value: Any, until: ExitStack) -> None:
    if name in vars(owner):
        until.callback(setattr, owner, name, vars(owner)[name])
    else:
        until.callback(delattr, owner, name)
    setattr(owner, name, value)


__all__ = ["old_optimizers"]
