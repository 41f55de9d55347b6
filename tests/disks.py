"""Real disks for tests: small ones, full ones, with few inodes, with quotas; each mounted below `tmp_path`."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


def run(*words: object) -> str:
    """Run a command; skip the test where it is missing or not allowed."""
    try:
        done = subprocess.run(list(map(str, words)), check=True, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"{words[0]}: {error} {getattr(error, 'stderr', '')}".strip())
    return done.stdout


def need_root() -> None:
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("needs root on Linux")


@contextlib.contextmanager
def tmpfs(point: Path, options: str) -> Iterator[Path]:
    """Mount a file system in memory: `size=8m`, `nr_inodes=100`."""
    need_root()
    point.mkdir(parents=True)
    run("mount", "-t", "tmpfs", "-o", options, "none", point)
    try:
        yield point
    finally:
        subprocess.run(["umount", "-l", point], check=True)


@contextlib.contextmanager
def loop(point: Path, kind: str, megabytes: int, *make: str) -> Iterator[Path]:
    """Mount a new file system of a kind (ext4, xfs, btrfs) that lies in a file."""
    need_root()
    point.mkdir(parents=True)
    image = point.with_name(f"{point.name}.image")
    image.touch()
    os.truncate(image, megabytes << 20)
    quiet = ("-F",) if kind == "ext4" else ("-f",)
    run(f"mkfs.{kind}", "-q", *quiet, *make, image)
    run("mount", "-o", "loop", image, point)
    try:
        yield point
    finally:
        subprocess.run(["umount", "-l", point], check=True)
        image.unlink()


def fill(folder: Path, *, leaving: int = 0) -> Path:
    """Take all of a disk's room but some bytes; return the file that takes it."""
    path = folder / "ballast"
    window = bytes(1 << 16)
    with open(path, "ab", buffering=0) as file:
        with contextlib.suppress(OSError):
            while file.write(window) == len(window):
                pass
        file.truncate(max(file.tell() - leaving, 0))
        os.fsync(file.fileno())
    return path
