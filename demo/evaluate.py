"""Loads a checkpoint in a process that never saw the training script, and evaluates it.

Usage: evaluate.py best | evaluate.py path FOLDER. Prints the accuracy and the seconds that loading took, as JSON.
"""

from __future__ import annotations

import json
import sys
import time

import torch
from sklearn.datasets import load_digits

from cas.experimental import Checkpoint, Determined


def main(how: str, *rest: str) -> None:
    """Load, evaluate, print."""
    started = time.perf_counter()
    if how == "best":
        checkpoint = Determined().get_experiment(1).top_checkpoint(sort_by="accuracy", smaller_is_better=False)
        model = checkpoint.load()
    else:
        model = Checkpoint.load_from_path(rest[0])
    seconds = time.perf_counter() - started
    digits = load_digits()
    held = torch.arange(len(digits.target)) % 5 == 0
    pixels, labels = torch.tensor(digits.data, dtype=torch.float32)[held] / 16, torch.tensor(digits.target)[held]
    model.eval()
    with torch.no_grad():
        accuracy = float((model(pixels).argmax(1) == labels).float().mean())
    print(json.dumps({"accuracy": accuracy, "seconds": seconds, "type": type(model).__name__}))


if __name__ == "__main__":
    main(*sys.argv[1:])
