"""The clock's quirks: the disk's present, this host's, and which boot of which host this is."""

from __future__ import annotations

import functools
import os
import platform
import socket
import subprocess
import time
from pathlib import Path

from cas.index.disk.naming import touch


def clock(folder: Path) -> int:
    """Return the disk's own present (ns since 1970), by touching a folder; hosts' clocks differ, this one is shared.

    Of a disk that may only be read, this host's.
    """
    try:
        touch(folder)
        return folder.stat().st_mtime_ns
    except OSError:
        return time.time_ns()


@functools.cache
def boot_id() -> str | None:
    """Name this boot of this host; None where the system does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip() or None
    except OSError:
        pass
    if platform.system() == "Darwin":
        command = ["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"]
        try:
            found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=5)
        except (OSError, subprocess.SubprocessError):
            return None
        return found.stdout.strip() or None
    return None


def writer_name() -> str:
    """Name this host and user, as a file name: nobody appends to a file that is another's."""
    name = "".join(c if c.isalnum() or c in "-_." else "_" for c in socket.gethostname())
    host = name.lstrip(".")[:100] or "host"
    return f"{host}.{os.geteuid()}" if hasattr(os, "geteuid") else host


def now() -> float:
    """Return the time in seconds since 1970, as it is written into facts and records."""
    return round(time.time(), 3)


def monotonic() -> float:
    """Return seconds that only ever grow, to measure waits with."""
    return time.monotonic()


def awake() -> float:
    """Return seconds that only ever grow, also while this process is stopped or the host sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()
