"""Which names the disk of a folder can tell apart."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cas.errors import UnsafeNameError
from cas.index import disk
from cas.index.paths import check_distinct

_probed: dict[tuple[int, Path], Folding] = {}  # the device, and the folder: a disk may fold in some folders only


@dataclass(frozen=True, slots=True)
class Folding:
    """How a disk makes one name of two: by case, by Unicode normalization."""

    case: bool
    normalization: bool


def check_names(paths: Iterable[str], folder: Path) -> None:
    """Check that files with these names can lie beside each other in an existing folder of ours.

    Raises:
        UnsafeNameError: two names would be one on its disk.
    """
    names = list(paths)
    try:
        check_distinct(names, fold_case=True, normalize=True)
    except UnsafeNameError:  # nearly never; only now does it matter what this disk does
        folding = probe(folder)
        check_distinct(names, fold_case=folding.case, normalize=folding.normalization)


def probe(folder: Path) -> Folding:
    """Find out, once, what the disk does with names: makes a file in the folder and asks for it by others."""
    key = (os.stat(folder).st_dev, folder.parent)
    if key not in _probed:
        token = secrets.token_hex(4)
        path = folder / f"probe-a\u00e9-{token}"
        os.close(disk.create(path))
        try:
            case = path.with_name(f"PROBE-A\u00c9-{token}").exists()
            normalization = path.with_name(f"probe-ae\u0301-{token}").exists()
        finally:
            with contextlib.suppress(OSError):
                disk.unlink(path)
        _probed[key] = Folding(case, normalization)
    return _probed[key]
