"""`determined.pytorch.lightning`: trials around a LightningModule."""

from __future__ import annotations

from typing import Any

from cas.load.standin.lacking import lacks
from cas.load.standin.pytorch import PyTorchTrial, PyTorchTrialContext


class LightningAdapter(PyTorchTrial):
    """A trial whose one model is a LightningModule."""

    def __init__(self, context: PyTorchTrialContext, lightning_module: Any, *_: Any, **__: Any) -> None:
        super().__init__(context)
        self.lightning_module = context.wrap_model(lightning_module)


def __getattr__(name: str) -> Any:
    return lacks("determined.pytorch.lightning", name)
