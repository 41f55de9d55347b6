"""Scans that were done before: of the same bytes, with the same code beside them, under the same rules."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import logging
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cas.index.digest import Digest
from cas.index.trust import Verdicts
from cas.load.policy import Policy

log = logging.getLogger("cas.load")

_RULES = (
    "allowlist.py",
    "dry_run.py",
    "dtypes.py",
    "nesting.py",
    "pickles.py",
    "policy.py",
    "scanning.py",
)  # another version of these judges anew


@dataclass(frozen=True, slots=True)
class Scanned:
    """The verdicts on the files of one view; `digest_of` knows the digest of a file by its path in the view."""

    folder: Path
    verdicts: Verdicts
    digest_of: Callable[[str], Digest | None]

    def check(
        self, path: Path, policy: Policy, options: Mapping[str, Any], scan: Callable[[], object], *, kind: str
    ) -> None:
        """Judge a file with `scan`, unless that was done before; `kind` tells one way to read a file from another.

        Raises:
            UnsafeContentError: it would call something that it must not.
        """
        key = self._key(path, policy, options, kind)
        if key is None:
            scan()
            return
        if (known := self.verdicts.get(key)) is not None and policy.recall(known.get("stored")):
            log.debug("%s was scanned before", path)
            return
        scan()
        self.verdicts.put(key, {"stored": policy.stored})

    def _key(self, path: Path, policy: Policy, options: Mapping[str, Any], kind: str) -> Digest | None:
        try:
            digest = self.digest_of(path.relative_to(self.folder).as_posix())
        except ValueError:
            return None
        if digest is None:
            return None
        code = policy.sources.key if policy.sources is not None else None
        how = sorted((name, repr(one)) for name, one in options.items())
        told = [_rules(), kind, digest.hex, code, policy.vouched, how]
        return Digest.of(json.dumps(told).encode("utf-8"))


@functools.cache
def _rules() -> str:
    """What tells one set of rules from another."""
    here = Path(__file__).parent
    texts = [Digest.of((here / name).read_bytes()).hex for name in _RULES]
    try:
        scanner = importlib.metadata.version("picklescan")
    except importlib.metadata.PackageNotFoundError:
        scanner = "none"
    return " ".join([*texts, scanner, platform.python_version()])


__all__ = ["Scanned"]
