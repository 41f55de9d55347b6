"""How fast files are cut into chunks, and what an index of many chunks costs."""

from __future__ import annotations

import os
import secrets
import statistics
import time
from collections.abc import Callable

import blake3

from bench.ground import MIB, Ground
from bench.harness import Contender, Goal
from cas.index.chunks import ChunkList
from cas.index.cutting import AIM, BLOCK, LEAST, MOST, cut_file
from cas.index.digest import Digest
from cas.index.store import Store

GOOD = 4  # GB/s of one core: tensors are cut at the speed of their hash
ALONE = Goal(1.1)  # times what the library takes that cuts, and the hash that every chunk needs
CHUNKS = 5_000_000  # in the index
LISTS = 1000  # that name them
LOOKUPS = 100_000


def cutting(ground: Ground) -> None:
    """Cut one large tensor, and bytes that are no container, beside hashing them and beside the library."""
    size = ground.size.of(512 * MIB)
    tensor, plain = ground.folder / "tensor.safetensors", ground.folder / "plain"
    head = b'{"t":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}' % (size, size)
    content = os.urandom(size)
    tensor.write_bytes(len(head).to_bytes(8, "little") + head + content)
    plain.write_bytes(content)
    data = memoryview(content)

    def timed(work: Callable[[], object]) -> Callable[[], float]:
        def measured() -> float:
            started = time.perf_counter()
            work()
            return time.perf_counter() - started

        return measured

    blocks = Contender(f"cas: a tensor in blocks of {BLOCK >> 10} KiB", timed(lambda: cut_file(tensor)))
    whole = Contender("BLAKE3 of the whole file, one thread", timed(lambda: Digest.of_file(tensor)))
    title = f"Cutting {size // MIB} MiB into chunks"
    sizes = [
        Contender(f"BLAKE3 of blocks of {block >> 10} KiB in memory", timed(_hashing(data, block)))
        for block in (64 << 10, BLOCK, 1 * MIB)
    ]
    ground.report.compare(f"{title}: a tensor", [blocks, whole, *sizes])
    by_content = Contender("cas: by content, each chunk hashed", timed(lambda: cut_file(plain)))
    library = Contender("FastCDC and BLAKE3 of each chunk, in memory", timed(_library(data, hashed=True)), goal=ALONE)
    alone = Contender("FastCDC alone, in memory", timed(_library(data, hashed=False)))
    ground.report.compare(f"{title}: what is no container", [by_content, library, alone])
    rates = {one.name: size / statistics.median(one.seconds) / 1e9 for one in (blocks, by_content, library, alone)}
    ground.report.values(
        f"{title}: GB/s of one core",
        [
            ground.report.value(title, name, rate, "GB/s", at_least=GOOD if name == blocks.name else None)
            for name, rate in rates.items()
        ],
    )
    tensor.unlink()
    plain.unlink()


def _hashing(data: memoryview, block: int) -> Callable[[], object]:
    def work() -> None:
        for start in range(0, len(data), block):
            blake3.blake3(data[start : start + block]).digest()

    return work


def _library(data: memoryview, *, hashed: bool) -> Callable[[], object]:
    from pyfastcdc import FastCDC

    chunker = FastCDC(AIM, min_size=LEAST, max_size=MOST, normalized_chunking=1, seed=0)

    def work() -> None:
        for chunk in chunker.cut_buf(data):
            if hashed:
                blake3.blake3(data[chunk.offset : chunk.offset + chunk.length]).digest()

    return work


def index(ground: Ground) -> None:
    """Make an index of 5 million chunks, look 100,000 digests up, and say how large it is."""
    lists = ground.size.of(LISTS, least=10)
    count, lookups = ground.size.of(CHUNKS) // lists, ground.size.of(LOOKUPS)
    store = Store(ground.home)
    wanted = []
    with store.staging("bench") as staging:
        for _ in range(lists):
            digests = [secrets.token_bytes(32) for _ in range(count)]
            wanted += digests[: lookups // 2 // lists]
            chunks = ChunkList.of("bench-1", [(BLOCK, digest) for digest in digests])
            store.chunks.put(Digest(secrets.token_hex(32)), chunks, staging.folder)
    known = len(wanted)
    wanted += [secrets.token_bytes(32) for _ in range(lookups - known)]
    found = store.chunks.index.chunks(wanted[:1])
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        found = store.chunks.index.chunks(wanted)
        seconds.append(time.perf_counter() - started)
    if len(found) != known:
        raise RuntimeError(f"the index knows {len(found)} of {known} chunks")
    path = store.chunks.index.path
    assert path is not None, "a store of this user's has a place for it"
    value, title = ground.report.value, f"An index of {lists * count} chunks of {lists} blobs"
    ground.report.values(
        title,
        [
            value(title, f"looking {lookups} digests up, half of them known: median", statistics.median(seconds), "s"),
            value(title, "its size", path.stat().st_size / (lists * count), "bytes per chunk"),
        ],
    )
    store.close()
