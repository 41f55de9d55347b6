"""Trains three trials of one experiment and adds a checkpoint of each epoch to the store.

The folder this runs in is moved away afterwards: the checkpoints carry all that loading needs.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from model_def import Digits
from sklearn.datasets import load_digits
from torch import nn

import cas

EXPERIMENT = 1
EPOCHS = 5
HERE = Path(__file__).parent


def data() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return training pixels and digits, then those to validate on: every fifth image."""
    digits = load_digits()
    pixels = torch.tensor(digits.data, dtype=torch.float32) / 16
    labels = torch.tensor(digits.target)
    held = torch.arange(len(labels)) % 5 == 0
    return pixels[~held], labels[~held], pixels[held], labels[held]


def accuracy(model: nn.Module, pixels: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the share of digits that are right."""
    with torch.no_grad():
        return float((model(pixels).argmax(1) == labels).float().mean())


def write_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, hparams: Any
) -> None:
    """Write the files of a checkpoint as Determined 0.12.5 laid them out."""
    folder.mkdir(parents=True)
    shutil.copytree(HERE, folder / "code", ignore=shutil.ignore_patterns("__pycache__", "checkpoints"))
    torch.save(
        {"model_state_dict": model.state_dict(), "optimizer_state_dict": optimizer.state_dict()},
        folder / "state_dict.pth",
    )
    metadata = {
        "steps_completed": steps,
        "torch_version": torch.__version__,
        "hparams": hparams,
        "experiment_config": {"entrypoint": "model_def:DigitsTrial"},
    }
    (folder / "metadata.json").write_text(json.dumps(metadata, indent=2))


def add_from_shell(folder: Path, trial: int, steps: int, metrics: dict[str, float]) -> None:
    """Add a checkpoint as a shell script would."""
    command = [sys.executable, "-m", "cas.cli.main", "add", str(folder), "-q"]
    command += ["--experiment", str(EXPERIMENT), "--trial", str(trial), "--steps", str(steps)]
    for name, value in metrics.items():
        command += ["--metric", f"{name}={value!r}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def train(trial: int, *, width: int, rate: float, frozen: Path | None = None) -> None:
    """Train one trial; a trial with a frozen backbone trains its head alone."""
    torch.manual_seed(trial)
    pixels, labels, held_pixels, held_labels = data()
    model = Digits(width)
    if frozen is not None:
        shutil.copy(frozen, HERE / "backbone.pth")
        model.backbone.load_state_dict(torch.load(frozen, weights_only=True))
        model.backbone.requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=rate)
    steps = 0
    for epoch in range(1, EPOCHS + 1):
        for batch in torch.randperm(len(labels)).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(pixels[batch]), labels[batch]).backward()
            optimizer.step()
            steps += 1
        with torch.no_grad():
            loss = float(nn.functional.cross_entropy(model(held_pixels), held_labels))
        metrics = {"loss": loss, "accuracy": accuracy(model, held_pixels, held_labels)}
        folder = HERE / "checkpoints" / f"trial-{trial}-epoch-{epoch}"
        hparams = {"width": width, "learning_rate": rate}
        write_checkpoint(folder, model, optimizer, steps, hparams)
        if trial == 2:
            add_from_shell(folder, trial, steps, metrics)
        else:
            cas.add(
                folder,
                experiment=EXPERIMENT,
                trial=trial,
                steps=steps,
                metrics=metrics,
                searcher_metric="accuracy",
                smaller_is_better=False,
                hparams=hparams,
            )
        print(f"  trial {trial}, epoch {epoch}: loss {loss:.4f}, accuracy {metrics['accuracy']:.4f}")
    if trial == 1:
        torch.save(model.backbone.state_dict(), HERE.parent / "backbone.pth")


if __name__ == "__main__":
    started = time.perf_counter()
    train(1, width=384, rate=1e-3)
    train(2, width=384, rate=3e-4)
    train(3, width=384, rate=1e-3, frozen=HERE.parent / "backbone.pth")
    print(f"  {3 * EPOCHS} checkpoints in {time.perf_counter() - started:.1f} s")
