"""Disks of every kind, mounted for a test: loop files, tmpfs, overlays, read-only ones, and one with faults (FUSE).

Each is a context manager that yields a folder and unmounts it again; where this machine cannot mount it, the test skips
with the reason. What is opened below one must be closed before it ends.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

_FUSE = 15.0  # seconds that a FUSE disk may take to appear


def cannot_mount() -> str | None:
    """Say why nothing can be mounted here; None if something can."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "needs root on Linux, to mount"
    return None


@contextlib.contextmanager
def mounted(point: Path, *words: object) -> Iterator[Path]:
    """`mount WORDS… POINT`, for a while."""
    if reason := cannot_mount():
        pytest.skip(reason)
    point.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", *map(str, words), str(point)], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"cannot mount {' '.join(map(str, words))}: {done.stderr.strip()}")
    try:
        yield point
    finally:
        unmount(point)


def unmount(point: Path) -> None:
    """Unmount; what a process that is just ending still holds is waited for."""
    for attempt in range(50):
        done = subprocess.run(["umount", str(point)], capture_output=True, text=True)
        if done.returncode == 0:
            return
        time.sleep(0.02 * attempt)
    subprocess.run(["umount", "-l", str(point)], check=False)
    raise AssertionError(f"cannot unmount {point}: {done.stderr.strip()}")


def tmpfs(point: Path, *, size: str = "64m", inodes: int | None = None) -> contextlib.AbstractContextManager[Path]:
    """A disk in memory: `size` and `inodes` are limits (ENOSPC)."""
    options = f"size={size},mode=1777" + (f",nr_inodes={inodes}" if inodes is not None else "")
    return mounted(point, "-t", "tmpfs", "-o", options, "none")


@contextlib.contextmanager
def loop(point: Path, kind: str = "ext4", *, size: int = 64 << 20, make: tuple[str, ...] = ()) -> Iterator[Path]:
    """A file system in a file beside the mount: ext4, xfs (300 MiB at least), btrfs (110 MiB)."""
    if reason := cannot_mount():
        pytest.skip(reason)
    image = point.with_name(f"{point.name}.image")
    image.parent.mkdir(parents=True, exist_ok=True)
    with open(image, "wb") as file:
        file.truncate(size)
    try:
        made = subprocess.run([f"mkfs.{kind}", "-q", *make, str(image)], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip(f"there is no mkfs.{kind}")
    if made.returncode != 0:
        pytest.skip(f"mkfs.{kind}: {made.stderr.strip()}")
    try:
        with mounted(point, "-o", "loop", image) as folder:
            folder.chmod(0o1777)
            yield folder
    finally:
        image.unlink()


@contextlib.contextmanager
def case_folding(point: Path) -> Iterator[Path]:
    """An ext4 with a folder that cannot tell names apart that differ by case."""
    with loop(point, make=("-O", "casefold")) as disk:
        folder = disk / "folding"
        folder.mkdir()
        if subprocess.run(["chattr", "+F", str(folder)], capture_output=True).returncode != 0:
            pytest.skip("this kernel has no case folding")
        yield folder


@contextlib.contextmanager
def overlay(point: Path, lower: Path) -> Iterator[Path]:
    """A writable layer (in memory) over a folder, as a container's disk is; `point.layers/upper` is that layer."""
    with tmpfs(point.with_name(f"{point.name}.layers")) as layers:
        for name in ("upper", "work"):
            (layers / name).mkdir()
        options = f"lowerdir={lower},upperdir={layers}/upper,workdir={layers}/work"
        with mounted(point, "-t", "overlay", "-o", options, "overlay") as merged:
            yield merged


@contextlib.contextmanager
def read_only(folder: Path, point: Path | None = None) -> Iterator[Path]:
    """A folder, seen at `point` (default: where it is), that nobody can write to, root neither."""
    with mounted(point or folder, "--bind", folder) as seen:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(seen)], check=True)
        yield seen


@contextlib.contextmanager
def faulty(point: Path, *faults: str) -> Iterator[Path]:
    """A disk with faults (tests/fuse_disk.py); what is written lies in `point.source`."""
    if reason := cannot_mount() or _cannot_fuse():
        pytest.skip(reason)
    source = point.with_name(f"{point.name}.source")
    for folder in (source, point):
        folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(Path(__file__).with_name("fuse_disk.py")), str(source), str(point), *faults]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        _wait_for(process, point)
        try:
            yield point
        finally:
            unmount(point)
    finally:
        process.terminate()
        process.communicate(timeout=_FUSE)


def _wait_for(process: subprocess.Popen[str], point: Path) -> None:
    until = time.monotonic() + _FUSE
    while not os.path.ismount(point):
        if process.poll() is not None or time.monotonic() > until:
            process.kill()
            pytest.skip(f"no FUSE disk: {process.communicate()[0].strip()[-300:]}")
        time.sleep(0.02)


def _cannot_fuse() -> str | None:
    if not Path("/dev/fuse").exists():
        return "there is no /dev/fuse"
    try:
        import mfusepy  # noqa: F401
    except ImportError:
        return "mfusepy is not installed"
    except OSError as error:  # it looks for the library when it is imported
        return f"mfusepy: {error}"
    return None
