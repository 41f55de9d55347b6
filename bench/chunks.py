"""How fast files are cut into chunks, and what an index of many chunks costs: run with `python -m bench chunks`."""

from __future__ import annotations

import os
import secrets
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import blake3
from tabulate import tabulate

from bench.harness import QUICK, ROUNDS
from cas.index.chunks import ChunkList
from cas.index.cutting import BLOCK, cut_file
from cas.index.digest import Digest
from cas.index.store import Store

MIB = 1 << 20
SIZE = 8 * MIB if QUICK else 512 * MIB
CHUNKS = 20_000 if QUICK else 5_000_000  # in the index
LISTS = 10 if QUICK else 1000  # that name them
LOOKUPS = 1000 if QUICK else 100_000


def cutting(folder: Path) -> None:
    """Cut one large tensor, and bytes that are no container, beside hashing them at once."""
    tensor, plain = folder / "tensor.safetensors", folder / "plain"
    head = b'{"t":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}' % (SIZE, SIZE)
    tensor.write_bytes(len(head).to_bytes(8, "little") + head + os.urandom(SIZE))
    plain.write_bytes(os.urandom(SIZE))
    rows = []
    for name, work in {
        "BLAKE3 of the whole file, one thread": lambda: Digest.of_file(tensor),
        f"tensors, blocks of {BLOCK >> 10} KiB": lambda: cut_file(tensor),
        "by content (FastCDC), then BLAKE3": lambda: cut_file(plain),
    }.items():
        rows.append([name, f"{SIZE / _median(work) / 1e9:.2f}"])
    data = memoryview(tensor.read_bytes())
    for block in (16 << 10, 64 << 10, BLOCK, 1 * MIB):
        rows.append(
            [f"BLAKE3 of blocks of {block >> 10} KiB in memory", f"{SIZE / _median(_hashing(data, block)) / 1e9:.2f}"]
        )
    print(f"\nCutting {SIZE // MIB} MiB into chunks")
    print(tabulate(rows, headers=["", "median GB/s"], disable_numparse=True))
    tensor.unlink()
    plain.unlink()


def _hashing(data: memoryview, block: int) -> Callable[[], object]:
    def work() -> None:
        for start in range(0, len(data), block):
            blake3.blake3(data[start : start + block]).digest()

    return work


def index(folder: Path) -> None:
    """Make an index of many chunks, look many up, and say how large it is."""
    store, count = Store(folder / "home"), CHUNKS // LISTS
    wanted = []
    with store.staging("bench") as staging:
        for _ in range(LISTS):
            digests = [secrets.token_bytes(32) for _ in range(count)]
            wanted += digests[: LOOKUPS // 2 // LISTS]
            chunks = ChunkList.of("bench-1", [(BLOCK, digest) for digest in digests])
            store.chunks.put(Digest(secrets.token_hex(32)), chunks, staging.folder)
    wanted += [secrets.token_bytes(32) for _ in range(LOOKUPS - len(wanted))]
    started = time.perf_counter()
    store.chunks.index.chunks(wanted[:1])
    made = time.perf_counter() - started
    seconds = _median(lambda: store.chunks.index.chunks(wanted))
    assert store.chunks.index.path is not None
    size = store.chunks.index.path.stat().st_size
    print(f"\nAn index of {CHUNKS} chunks of {LISTS} blobs: made in {made:.1f} s, {size / CHUNKS:.1f} bytes per chunk;")
    print(f"median of looking {LOOKUPS} digests up, half of them known: {seconds:.2f} s")


def _median(work: Callable[[], object]) -> float:
    seconds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)
