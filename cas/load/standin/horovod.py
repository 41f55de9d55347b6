"""`determined.horovod`: one process that trains alone."""

from __future__ import annotations

from typing import Any

from cas.load.standin.lacking import lacks

_MODULE = "determined.horovod"


class _Horovod:
    """Stands for the module of Horovod: says which process this is, and lacks what training calls."""

    def __getattr__(self, name: str) -> Any:
        return lacks(f"{_MODULE}.hvd", name)

    def require_horovod_type(self, *_: Any, **__: Any) -> None:
        """Do nothing."""

    def init(self, *_: Any, **__: Any) -> None:
        """Do nothing."""

    def is_initialized(self) -> bool:
        """Return True: it can be asked."""
        return True

    def rank(self) -> int:
        """Return 0."""
        return 0

    local_rank = cross_rank = rank

    def size(self) -> int:
        """Return 1."""
        return 1

    local_size = cross_size = size


hvd = _Horovod()


def __getattr__(name: str) -> Any:
    return lacks(_MODULE, name)
