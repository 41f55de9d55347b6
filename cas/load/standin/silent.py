"""What takes every call and does nothing: loggers and writers that a trial makes before it trains."""

from __future__ import annotations

from typing import Any


class Silent:
    """Takes every call, and gives itself for every attribute."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __call__(self, *_: Any, **__: Any) -> Silent:
        """Do nothing."""
        return self

    def __getattr__(self, name: str) -> Silent:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *_: object) -> None:
        pass


__all__ = ["Silent"]
