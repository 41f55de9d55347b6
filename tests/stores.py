"""Small stores, manifests and blobs for tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from cas.index.digest import Digest
from cas.index.manifest import FileEntry, Manifest
from cas.index.paths import RelativePath
from cas.index.store import Store

UUID = "46985143-af68-4d48-ab91-a6447052ca49"
OTHER_UUID = "00000000-0000-4000-8000-000000000001"
ROOT = Path(__file__).parent.parent


def uuid(number: int) -> str:
    """Return the UUID of a number."""
    return f"00000000-0000-4000-8000-{number:012x}"


def manifest_of(files: dict[str, bytes], store: Store | None = None, *, durable: bool = False) -> Manifest:
    """Return the manifest of files given by name and content; with a store, put them into it."""
    entries = []
    for name, data in files.items():
        digest = store.put(data, durable=durable) if store is not None else Digest.of(data)
        entries.append(FileEntry(RelativePath(name), len(data), digest))
    return Manifest.of(entries)


def tagged(store: Store, uuid: str, files: dict[str, bytes], *, durable: bool = False) -> Manifest:
    """Put files into a store as a checkpoint."""
    manifest = manifest_of(files, store, durable=durable)
    assert store.tag("local", uuid, manifest, durable=durable) == []
    return manifest


def damage(path: Path, data: bytes | None = None) -> None:
    """Write into a file of the store, as a program with too much power does; its time changes."""
    old = path.stat().st_mtime_ns
    path.chmod(0o644)
    if data is None:
        data = bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]
    path.write_bytes(data)
    path.chmod(0o444)
    if path.stat().st_mtime_ns == old:  # written within one tick of the file system's clock
        os.utime(path, ns=(old + 1, old + 1))


def lies(home: Path) -> list[Path]:
    """Return every name in `blobs/` and `manifests/` that is not the digest of its bytes."""
    found = [path for path in home.glob("blobs/??/*") if Digest.of_file(path).hex != path.parent.name + path.name]
    found += [path for path in home.glob("manifests/??/*") if Digest.of_file(path).hex != path.parent.name + path.stem]
    return found


def run_python(code: str, *arguments: object, boot: str | None = None, timeout: float = 60) -> str:
    """Run code in a fresh process, in another boot if one is given, and return what it prints."""
    done = subprocess.run(
        [*in_boot(boot), sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def in_boot(boot: str | None) -> list[str]:
    """Return the start of a command line that runs the rest in a boot with another id (a file that holds it)."""
    if boot is None:
        return []
    script = 'mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@"'
    return ["unshare", "-m", "sh", "-c", script, boot]


def cannot_reboot() -> str | None:
    """Say why no other boot can be made here; None if it can."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "needs root on Linux"
    try:
        tried = subprocess.run([*in_boot("/proc/version"), "true"], capture_output=True, text=True, timeout=10)
    except OSError as error:
        return str(error)
    return None if tried.returncode == 0 else f"cannot mount: {tried.stderr.strip()}"
