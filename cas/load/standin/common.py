"""`determined.common`: its parts can be imported; what they do is for training."""

from __future__ import annotations

from typing import Any

from cas.load.standin.lacking import Part, lacks

_MODULE = "determined.common"

api = Part(f"{_MODULE}.api")
check = Part(f"{_MODULE}.check")
constants = Part(f"{_MODULE}.constants")
experimental = Part(f"{_MODULE}.experimental")
storage = Part(f"{_MODULE}.storage")
util = Part(f"{_MODULE}.util")


def __getattr__(name: str) -> Any:
    return lacks(_MODULE, name)
