"""A big data set for the simulated master: ties, odd and missing metrics, every state, deep and spoiled values."""

from __future__ import annotations

import random
from typing import Any

from master_simulator import VERSION, Data

STATES = ("COMPLETED", "COMPLETED", "COMPLETED", "COMPLETED", "DELETED", "ERROR", "ACTIVE", "PARTIALLY_DELETED")
ODD = ("NaN", "Infinity", "-Infinity", "text", True, None, {"deep": 1}, [1.5])
SECRETS = {"access_key": "AKIA-PLANTED-KEY", "secret_key": "PLANTED/SECRET+KEY", "credential": "PLANTED-SAS"}

CLEAN, ACCURACY, SILENT, NO_METRIC, EMPTY, GENERIC = range(10, 16)


def uuid(number: int) -> str:
    return f"{number:08x}-0000-4000-8000-{number:012x}"


def deep(levels: int) -> Any:
    return {"level": deep(levels - 1), "n": levels} if levels else "bottom"


def big(version: str = VERSION, *, seed: int = 7, each: int = 90) -> Data:
    """Six experiments with their trials and hundreds of checkpoints; `CLEAN` has metrics that the vendor sorts, too."""
    chance = random.Random(seed)
    made = Data(version=version, users={"determined": "", "alice": "wonder", "gone": "!left"})
    storage = {"type": "s3", "bucket": "b", "prefix": "p", "endpoint_url": "http://localhost:9", **SECRETS}
    shared: dict[str, Any] = {
        "checkpoint_storage": storage,
        "hyperparameters": {"lr": {"type": "const", "val": 4.0}, "large": {"val": 2**53 + 1}, "nothing": None},
        "deep": deep(30),
        "environment": {
            "environment_variables": ["TOKEN=PLANTED-VARIABLE", "FINE=1"],
            "registry_auth": {"p": "PLANTED"},
        },
        "labels": ["a", "é"],
    }
    made.experiment(CLEAN, **shared, searcher={"metric": "loss", "smaller_is_better": True})
    made.experiment(ACCURACY, **shared, searcher={"metric": "acc", "smaller_is_better": False})
    made.experiment(SILENT, **shared, searcher={"metric": "loss"})  # it does not say the direction
    made.experiment(NO_METRIC, **shared, searcher={"name": "single"})
    made.experiment(EMPTY, **shared, searcher={"metric": "loss", "smaller_is_better": True})
    for experiment in (CLEAN, ACCURACY, SILENT, NO_METRIC, EMPTY):
        for number in range(3):
            made.trial(experiment * 10 + number, experiment, lr=4.0, width=2**53 + 1, rate=0.1 + number)
    number = 0
    for experiment in (CLEAN, ACCURACY, SILENT, NO_METRIC):
        for _ in range(each):
            number += 1
            clean = experiment == CLEAN
            made.checkpoint(
                uuid(chance.getrandbits(21) * 1000 + number),
                trial=experiment * 10 + chance.randrange(3),
                steps=None if not clean and chance.random() < 0.05 else 100 * chance.randrange(1, 20),
                metrics=None if chance.random() < 0.1 else _metrics(chance, clean=clean),
                state=chance.choice(STATES),
                time=_time(chance),
                resources={"state_dict.pth": str(chance.randrange(1 << 40)), "code/": "0", "code/model.py": "62"},
            )
    for _ in range(3):
        number += 1
        metadata = {"steps_completed": 4.0, "odd": ["NaN", 2**60 + 1], "text": "é\u2028"}
        made.checkpoint(uuid(number), trial=None, steps=None, metrics=None, metadata=metadata)
    return made


def _metrics(chance: random.Random, *, clean: bool) -> dict[str, Any]:
    def value() -> Any:
        return chance.choice(ODD) if not clean and chance.random() < 0.3 else chance.randrange(-8, 8) / 4

    found = {"loss": value(), "acc": value(), "always": chance.randrange(9) / 8}
    return {name: one for name, one in found.items() if clean or chance.random() > 0.1}


def _time(chance: random.Random) -> str:
    """Seconds that tie often, with 0, 3, 6 or 9 digits of fractions."""
    fraction = chance.choice(["", ".250", ".969136", ".000000001"])
    return f"2024-03-01T13:{chance.randrange(4):02}:{chance.randrange(10):02}{fraction}Z"
