"""Where a benchmark lies: a folder in memory or on a disk, a real S3 server, and the checkpoints in it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import stat
import tempfile
import uuid as uuids
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bench.harness import Report
from tests import s3_server

MIB, GIB = 1 << 20, 1 << 30
QUICK = 16 * MIB  # what stands for 1 GiB where only is to be seen whether the benchmarks work
_MEMORY = Path("/dev/shm")
_AT_ONCE = 8  # uploads of small files

Files = Iterable[tuple[str, bytes]]


@dataclass(frozen=True, slots=True)
class Size:
    """How large everything is: so many bytes stand for 1 GiB, and all that is counted shrinks alike."""

    gib: int = GIB

    @property
    def is_full(self) -> bool:
        """Whether nothing is scaled down."""
        return self.gib == GIB

    def of(self, count: int, least: int = 1) -> int:
        """Return how many there are of what are `count` at full size."""
        return max(least, count * self.gib // GIB)


@dataclass(frozen=True, slots=True)
class Uploaded:
    """A checkpoint in the bucket."""

    uuid: str
    sizes: Mapping[str, int]  # name → bytes

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(self.sizes.values())


class Ground:
    """A folder for a benchmark, and a server that has its checkpoints in the bucket `bench`.

    The server runs from its first use on (which takes seconds, and not each benchmark has one) until `stack` ends it.
    """

    def __init__(self, folder: Path, stack: contextlib.ExitStack, size: Size, report: Report) -> None:
        self.folder = folder
        self.size = size
        self.report = report
        self._stack = stack
        self.home = folder / "home"  # the store
        self.target = folder / "target"  # where peers put what they get
        self.copy = folder / "copy"  # where it is to lie besides

    @cached_property
    def server(self) -> s3_server.S3Server:
        """The server; its objects lie in memory, if there is any."""
        return self._stack.enter_context(s3_server.running(folder_of("memory")))

    @cached_property
    def client(self) -> Any:
        """A client of it, which made the bucket."""
        made = self.server.client()
        made.create_bucket(Bucket="bench")
        return made

    def upload(self, files: Files, config: Any = None) -> Uploaded:
        """Upload a checkpoint as boto3 does by default (what is large in parts of 8 MiB), or as `config` says."""
        uuid = str(uuids.uuid4())
        sizes: dict[str, int] = {}

        client = self.client  # made here, by one thread: each of the others would start a server

        def put(name: str, data: bytes) -> None:
            client.upload_fileobj(io.BytesIO(data), "bench", f"{uuid}/{name}", Config=config)

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            waiting = []
            for name, data in files:
                sizes[name] = len(data)
                if len(data) < MIB:
                    waiting.append(pool.submit(put, name, data))
                else:  # it takes all threads by itself
                    put(name, data)
            for one in waiting:
                one.result()
        return Uploaded(uuid, sizes)

    @property
    def is_on_disk(self) -> bool:
        """Whether the folder is on a disk, as far as anybody tells."""
        return file_system_of(self.folder) != "tmpfs"

    @property
    def storage(self) -> str:
        """The storage's configuration, as JSON."""
        return json.dumps(self.server.storage("bench"))

    def clean(self) -> None:
        """Remove the store and the targets, so that the next run is cold, and let the disk come to rest."""
        for path in (self.home, self.target, self.copy):
            remove(path)
        if self.is_on_disk:
            os.sync()  # nobody pays for what another wrote

    def require_fetched(self, uploaded: Uploaded, folder: Path) -> None:
        """Look whether a folder has all files of a checkpoint, each with its length.

        Raises:
            RuntimeError: it has not.
        """
        paths = {name: folder / name for name in uploaded.sizes}
        wrong = [
            name for name, path in paths.items() if not path.is_file() or path.stat().st_size != uploaded.sizes[name]
        ]
        if wrong:
            raise RuntimeError(f"it did not bring {wrong[0]}, or not all of it ({len(wrong)} such files)")

    def require_stored(self, uploaded: Uploaded) -> None:
        """Look whether the store has the bytes of a checkpoint with no two files alike.

        Raises:
            RuntimeError: it has not.
        """
        found = sum(path.stat().st_size for path in self.home.glob("blobs/??/*"))
        if found != uploaded.size:
            raise RuntimeError(f"the store has {found} bytes of {uploaded.size}")


def remove(path: Path) -> None:
    """Remove a folder, also one with folders in which nothing may be written; nothing is done if there is none."""
    for name, folders, _ in os.walk(path):
        for folder in (name, *(os.path.join(name, one) for one in folders)):  # noqa: PTH118
            if not os.path.islink(folder):  # noqa: PTH114
                os.chmod(folder, stat.S_IRWXU)  # noqa: PTH101
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path)


@contextlib.contextmanager
def ground_in(place: str, size: Size, report: Report) -> Iterator[Ground]:
    """Make a ground in `memory`, on `disk`, or in a folder."""
    report.place = place
    folder = Path(tempfile.mkdtemp(prefix="cas-bench-", dir=folder_of(place)))
    try:
        with contextlib.ExitStack() as stack:
            yield Ground(folder, stack, size, report)
    finally:
        remove(folder)


def folder_of(place: str) -> Path:
    """Return the folder that a place means; without a file system in memory that is the disk's."""
    if place == "memory" and _MEMORY.is_dir():
        return _MEMORY
    if place in ("memory", "disk"):  # /tmp is often in memory, /var/tmp is not
        return next(path for path in (Path("/var/tmp"), Path(tempfile.gettempdir())) if path.is_dir())
    return Path(place)


def file_system_of(folder: Path) -> str:
    """Return the kind of file system on which a folder lies, like `ext4`; `?` where nobody tells."""
    try:
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()]
    except OSError:
        return "?"
    path = folder.resolve()
    above = [mount for mount in mounts if path.is_relative_to(mount[1])]
    return max(above, key=lambda mount: len(mount[1]))[2] if above else "?"


def random_files(sizes: Mapping[str, int]) -> Iterator[tuple[str, bytes]]:
    """Yield files of random bytes, one at a time in memory."""
    for name, size in sizes.items():
        yield name, os.urandom(size)


def saved(content: Any) -> bytes:
    """Return what `torch.save` writes."""
    import torch

    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def state_dict(layers: int, side: int = 1024) -> dict[str, Any]:
    """Return layers of `side` by `side` random float32 values: 4 MiB each."""
    import torch

    return {f"layer{number}.weight": torch.randn(side, side) for number in range(layers)}
