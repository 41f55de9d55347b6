"""A job's own process group (`torch.distributed`) as a way to tell and to send: gloo, nccl, and what is like them."""

from __future__ import annotations

import textwrap
from collections import deque
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NamedTuple

from cas.errors import PeerError, UsageError

PIECE = 1 << 20  # bytes that two ranks exchange before they look whether the other still answers
AHEAD = 2  # pieces under way besides
MOST = 1 << 32  # bytes that a rank tells at once: a size above it is part of another message, and no size


class _Piece(NamedTuple):
    """A piece of what some ranks exchange, under way."""

    operations: list[Any]  # which hold the tensors
    works: list[Any]
    arriving: list[tuple[Any, Any]]  # where the bytes belong, and where they come


class TorchGroup:
    """One rank's place in a process group. Every rank of the group makes the same calls in the same order.

    Args:
        group: a `torch.distributed.ProcessGroup`; True or None: the default one.
        bound: seconds after which a rank that does not answer is given up; the group's own timeout, if that is less.

    Raises:
        UsageError: torch.distributed is not initialized, that is no group, or this process is not in the group.
    """

    def __init__(self, group: Any, *, bound: float) -> None:
        import torch
        import torch.distributed as dist

        if not dist.is_available() or not dist.is_initialized():
            raise UsageError("process_group=… needs torch.distributed.init_process_group() to be called first")
        self._torch = torch
        self._dist = dist
        self._group = dist.group.WORLD if group is None or group is True else group
        if not isinstance(self._group, dist.ProcessGroup) and self._group is not dist.GroupMember.NON_GROUP_MEMBER:
            raise UsageError(f"process_group takes True or a group of torch.distributed, and not {group!r:.100}")
        self.rank: int = dist.get_rank(self._group)
        self.size: int = dist.get_world_size(self._group)
        if self.rank < 0:
            raise UsageError("this process is not in the process group")
        by_device = "nccl" in str(dist.get_backend(self._group)) and "cpu" not in str(dist.get_backend(self._group))
        self._device = torch.device("cuda", torch.cuda.current_device()) if by_device else torch.device("cpu")
        self.bound = min(bound, self._timeout())

    def _timeout(self) -> float:
        """Return the seconds after which the group itself gives up, where it tells."""
        try:
            told: timedelta = self._group._get_backend(self._device).options._timeout
        except (AttributeError, RuntimeError):  # another version of torch, or another backend
            return float("inf")
        return max(told.total_seconds(), 1.0)

    def gather(self, data: bytes) -> list[bytes]:
        """Return what every rank gave, in order of rank.

        Raises:
            PeerError: a rank does not answer.
        """
        sizes = [int(one.item()) for one in self._all_gather(self._torch.tensor([len(data)], dtype=self._torch.int64))]
        longest = max(map(_size, sizes))
        if not longest:
            return [b""] * self.size
        mine = self._torch.zeros(longest, dtype=self._torch.uint8)
        if data:
            mine[: len(data)] = self._torch.frombuffer(bytearray(data), dtype=self._torch.uint8)
        found = self._all_gather(mine)
        return [bytes(one[:size].cpu().numpy()) for one, size in zip(found, sizes, strict=True)]

    def broadcast(self, data: bytes | None, source: int) -> bytes:
        """Return what the rank `source` gave; what others give does not count.

        Raises:
            PeerError: a rank does not answer.
        """
        mine = data if self.rank == source and data is not None else b""
        size = self._torch.tensor([len(mine)], dtype=self._torch.int64).to(self._device)
        origin = self._dist.get_global_rank(self._group, source)
        self._finish([self._dist.broadcast(size, src=origin, group=self._group, async_op=True)])
        if not _size(int(size.item())):
            return b""
        body = self._torch.zeros(int(size.item()), dtype=self._torch.uint8)
        if mine:
            body[:] = self._torch.frombuffer(bytearray(mine), dtype=self._torch.uint8)
        body = body.to(self._device)
        self._finish([self._dist.broadcast(body, src=origin, group=self._group, async_op=True)])
        return bytes(body.cpu().numpy())

    def swap(
        self, sends: Sequence[tuple[int, bytearray | memoryview]], receives: Sequence[tuple[int, memoryview]]
    ) -> None:
        """Send bytes to some ranks while receiving from some; each has to call it with the counterpart.

        Goes on as long as pieces of it arrive: over a slow line all of it may take longer than the bound.

        Raises:
            PeerError: a rank does not answer.
        """
        longest = max((len(data) for _, data in (*sends, *receives)), default=0)
        under_way: deque[_Piece] = deque()
        for start in range(0, longest, PIECE):
            under_way.append(self._begin(_cut(sends, start), _cut(receives, start)))
            if len(under_way) > AHEAD:
                self._end(under_way.popleft())
        for piece in under_way:
            self._end(piece)

    def _begin(self, sends: Sequence[tuple[int, memoryview]], receives: Sequence[tuple[int, memoryview]]) -> _Piece:
        operations, arriving = [], []
        for rank, data in sends:
            tensor = self._torch.frombuffer(data, dtype=self._torch.uint8).to(self._device)
            operations.append(self._operation(self._dist.isend, tensor, rank))
        for rank, buffer in receives:
            place = self._torch.frombuffer(buffer, dtype=self._torch.uint8)
            tensor = place if self._device.type == "cpu" else self._torch.empty_like(place, device=self._device)
            operations.append(self._operation(self._dist.irecv, tensor, rank))
            arriving.append((place, tensor))
        try:
            return _Piece(operations, self._dist.batch_isend_irecv(operations), arriving)
        except RuntimeError as error:
            raise self._lost(error) from error

    def _end(self, piece: _Piece) -> None:
        self._finish(piece.works)
        for place, tensor in piece.arriving:
            if tensor is not place:
                place.copy_(tensor)

    def _operation(self, kind: Any, tensor: Any, rank: int) -> Any:
        return self._dist.P2POp(kind, tensor, self._dist.get_global_rank(self._group, rank), self._group)

    def _all_gather(self, tensor: Any) -> list[Any]:
        mine = tensor.to(self._device)
        found = [self._torch.empty_like(mine) for _ in range(self.size)]
        self._finish([self._dist.all_gather(found, mine, group=self._group, async_op=True)])
        return found

    def _finish(self, works: Sequence[Any]) -> None:
        try:
            for work in works:
                if work.wait(timedelta(seconds=self.bound)) is False:
                    raise RuntimeError("timed out")
            if self._device.type != "cpu":
                self._torch.cuda.synchronize(self._device)
        except RuntimeError as error:
            raise self._lost(error) from error

    def _lost(self, error: RuntimeError) -> PeerError:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        reason = textwrap.shorten(first, 200, placeholder=" …")
        return PeerError(
            f"another rank of the process group is gone, or has not answered for {self.bound:.0f} s: {reason}"
        )


def _size(told: int) -> int:
    if not 0 <= told <= MOST:
        raise PeerError(
            "the ranks of the process group do not make the same calls in the same order: one does other work"
        )
    return told


def _cut(pairs: Sequence[tuple[int, bytearray | memoryview]], start: int) -> list[tuple[int, memoryview]]:
    """Return the piece of each that begins there."""
    return [(rank, memoryview(data)[start : start + PIECE]) for rank, data in pairs if start < len(data)]
