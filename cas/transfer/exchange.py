"""Who reads what when several hosts want the same files: pure, the same on every rank of a job.

Files are cut into blocks. A block that some host has is sent by a host that has it; any other is read from the origin
by one host, and sent to all that lack it. In each round every host sends at most one block.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from cas.index.ranges import Range
from cas.transfer.plan import split


@dataclass(frozen=True, slots=True)
class Part:
    """Some bytes of a file, which is named by its place in the list."""

    file: int
    start: int
    end: int

    @property
    def length(self) -> int:
        """How many bytes it has."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Block:
    """What one host sends at once: who, what, from where, and to whom."""

    owner: int  # the host that has it, or reads it
    parts: tuple[Part, ...]
    lacking: tuple[int, ...]  # the hosts that want it; the owner among them if it comes from the origin

    @property
    def size(self) -> int:
        """How many bytes it has."""
        return sum(part.length for part in self.parts)

    @property
    def from_origin(self) -> bool:
        """Whether its owner has to read it from the origin."""
        return self.owner in self.lacking


Round = tuple[Block, ...]
Held = Mapping[int, Sequence[Range]]  # file → ranges of it that a host has, in order, none touching the next


def plan_exchange(wanted: Sequence[Sequence[Range]], held: Sequence[Held], *, block: int) -> list[Round]:
    """Return the rounds after which every host has every byte that is wanted.

    Args:
        wanted: of each file, the ranges that are wanted, in order.
        held: what each host has.
        block: bytes in a block, at most; files are cut at its multiples.
    """
    queues: list[deque[Block]] = [deque() for _ in held]
    loads = [0] * len(held)
    for parts, lacking in _blocks(wanted, held, block):
        size = sum(part.length for part in parts)
        able = [host for host in range(len(held)) if host not in lacking] or list(range(len(held)))
        owner = min(able, key=lambda host: (loads[host], host))
        loads[owner] += size
        queues[owner].append(Block(owner, parts, lacking))
    return [tuple(block for block in blocks if block is not None) for blocks in zip_longest(*queues)]


def _blocks(
    wanted: Sequence[Sequence[Range]], held: Sequence[Held], block: int
) -> list[tuple[tuple[Part, ...], tuple[int, ...]]]:
    """Cut the files into blocks whose parts are lacking to the same hosts; small files share a block."""
    found: list[tuple[tuple[Part, ...], tuple[int, ...]]] = []
    waiting: dict[tuple[int, ...], list[Part]] = {}
    for file, ranges in enumerate(wanted):
        for span in split(ranges, block):
            lacking = tuple(host for host, has in enumerate(held) if not _covers(has.get(file, ()), span))
            if not lacking:
                continue
            parts = waiting.setdefault(lacking, [])
            if sum(part.length for part in parts) + span.length > block:
                found.append((tuple(parts), lacking))
                parts.clear()
            parts.append(Part(file, *span))
    found += [(tuple(parts), lacking) for lacking, parts in waiting.items() if parts]
    return found


def _covers(ranges: Sequence[Range], span: Range) -> bool:
    return any(one.start <= span.start and span.end <= one.end for one in ranges)
