"""Writing our own files of records anew when most of their lines no longer count.

Nothing here depends on a lock, and no reader and no other writer stops. The file that lines are appended to is
renamed first. Who appended to it looks afterwards whether it still has its name, and appends once more if not
(`lines.append`): so each line is in what is read here, or is written again. What counts is then copied, synced and
named, and only then do the copied files go. A kill leaves some lines twice, and that says nothing new.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import time
from pathlib import Path

from cas.index import disk, lines

log = logging.getLogger("cas.index")

WORTH = 4 << 20  # bytes; smaller files are left alone
LOOK = 1 << 20  # bytes between two looks at how much still counts, at least
_SUFFIX = ".jsonl"

Place = tuple[int, int]  # which file, and where in it a line starts


def is_time_to_look(before: int, after: int) -> bool:
    """Whether a file that grew from one size to another may hold enough that no longer counts.

    A look takes time with the file's size, so it is looked at each time that it grew by a sixteenth to an eighth: all
    looks together take as long as a few at the end.
    """
    step = max(LOOK, 1 << after.bit_length() >> 4)
    return after >= WORTH and before // step != after // step


def own_files(current: Path) -> list[Path]:
    """Return the files that one writer has: those that were renamed or written anew, in order, then the current one."""
    mark = f"{current.name.removesuffix(_SUFFIX)}+"
    names = [name for name in disk.names(current.parent) if name.startswith(mark) and name.endswith(_SUFFIX)]
    return [current.parent / name for name in names] + ([current] if current.exists() else [])


def compact(current: Path) -> None:
    """Write a writer's files of one registry anew, with the lines that count.

    Raises:
        OSError: the disk is full, or cannot be written; nothing was lost.
    """
    with contextlib.suppress(FileNotFoundError):  # there is none, or another process does the same
        disk.rename(current, _new_name(current))
    olds = [path for path in own_files(current) if path != current]
    new = current.with_name(f".{secrets.token_hex(8)}.new")
    try:
        _copy(olds, new)
    except FileNotFoundError:  # another process was faster, and has copied the same
        log.info("somebody else compacts %s", current.parent)
        disk.unlink(new)
        return
    except BaseException:
        with contextlib.suppress(OSError):
            disk.unlink(new)
        raise
    disk.rename(new, _new_name(current))
    disk.sync_folder(current.parent)
    for old in olds:
        disk.unlink(old)


def _new_name(current: Path) -> Path:
    """Return a name that is later than those there, and earlier than the current file's: `+` comes before `.`."""
    stem = current.name.removesuffix(_SUFFIX)
    known = [path.name[len(stem) + 1 :].partition(".")[0] for path in own_files(current) if path != current]
    last = max((int(digits, 16) for digits in known if _is_hex(digits)), default=0)
    return current.with_name(f"{stem}+{max(last + 1, time.time_ns()):016x}.{secrets.token_hex(4)}{_SUFFIX}")


def _is_hex(digits: str) -> bool:
    try:
        int(digits, 16)
    except ValueError:
        return False
    return True


def _copy(olds: list[Path], new: Path) -> None:
    wanted = _what_counts(olds)
    fd = disk.create(new, 0o644)
    try:
        for number, old in enumerate(olds):
            batch: list[bytes] = []
            for line in lines.read(old):
                if (number, line.end) in wanted:
                    batch.append(line.raw)
                if len(batch) >= 1000:
                    disk.write(fd, b"".join(batch))
                    batch = []
            if batch:
                disk.write(fd, b"".join(batch))
        disk.sync(fd)
    finally:
        os.close(fd)


def _what_counts(olds: list[Path]) -> set[Place]:
    """Find the lines that count: of each thing the one with the largest time; of equal ones, the later."""
    last: dict[tuple[str, str], tuple[float, Place]] = {}
    others: set[Place] = set()
    for number, old in enumerate(olds):
        for line in lines.read(old):
            kind, id, seen = (line.payload.get(name) for name in ("kind", "id", "seen"))
            place = (number, line.end)
            if not isinstance(kind, str) or not isinstance(id, str) or not isinstance(seen, int | float):
                others.add(place)  # no record that we know: somebody else may
            elif (known := last.get((kind, id))) is None or seen >= known[0]:
                last[kind, id] = (seen, place)
    return others | {place for _, place in last.values()}
