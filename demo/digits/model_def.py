"""The model of the demo: a small network on scikit-learn's 8x8 digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn


class Digits(nn.Module):
    """64 pixels in, 10 digits out; `backbone` is what one of the trials keeps frozen."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.head = nn.Linear(width, 10)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """`(n, 64)` pixels from 0 to 1 → `(n, 10)` scores."""
        return self.head(self.backbone(pixels))


class DigitsTrial:
    """What rebuilds the model from a checkpoint: `cas` calls `build_model()` and fills in the weights."""

    def __init__(self, context: Any) -> None:
        self.width = int(context.get_hparam("width"))

    def build_model(self) -> nn.Module:
        """Build the untrained model, or one on the frozen backbone that lies beside this file."""
        model = Digits(self.width)
        frozen = Path(__file__).with_name("backbone.pth")
        if frozen.exists():
            model.backbone.load_state_dict(torch.load(frozen, weights_only=True))
        return model
