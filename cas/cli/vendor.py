"""The vendor's own `det`, for the commands that ours does not have."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence

_MODULE = "determined.cli.__main__"


def is_installed() -> bool:
    """Whether the vendor's command is there."""
    try:
        return importlib.util.find_spec(_MODULE) is not None
    except (ImportError, ValueError):
        return False


def run(argv: Sequence[str]) -> int:
    """Run the vendor's command on the same words and return its exit code."""
    sys.argv = ["det", *argv]  # before the import: some releases read it there
    code = importlib.import_module(_MODULE).main()
    return code if isinstance(code, int) else 0
