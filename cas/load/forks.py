"""TensorFlow in forked processes.

Its threads do not come along with a fork. Where it was used before, what it computes in the child waits for them for
ever, so there is one clear error in place of a hang. Where it was only imported, all is well.
"""

from __future__ import annotations

import os
import sys

from cas.errors import CasError

_inherited = False  # whether this process got a TensorFlow in use from the one that it was forked from


def _note() -> None:
    global _inherited
    _inherited = _inherited or _is_in_use()


def _is_in_use() -> bool:
    module = sys.modules.get("tensorflow.python.eager.context")
    return bool(getattr(getattr(module, "_context", None), "_initialized", False))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note)


def require_working_tensorflow() -> None:
    """Check that TensorFlow can compute in this process.

    Raises:
        CasError: it was in use when this process was forked.
    """
    if _inherited:
        raise CasError(
            "TensorFlow was in use when this process was forked, and would hang here: start workers with"
            " multiprocessing.get_context('spawn'), or fork them before TensorFlow is used"
        )


__all__ = ["require_working_tensorflow"]
