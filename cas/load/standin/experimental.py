"""`determined.experimental`: can be imported; to find and load checkpoints, there is `cas.experimental`."""

from __future__ import annotations

from typing import Any

from cas.load.standin.lacking import lacks, placeholder

_MODULE = "determined.experimental"

Determined = placeholder(f"{_MODULE}.Determined")
Checkpoint = placeholder(f"{_MODULE}.Checkpoint")


class _Client:
    """Stands for `determined.experimental.client`; fails when it is used."""

    def __getattr__(self, name: str) -> Any:
        return lacks(f"{_MODULE}.client", name)


client = _Client()


def __getattr__(name: str) -> Any:
    return lacks(_MODULE, name)
