"""The hosts of a job, and the rounds in which they send each other what each of them reads or has."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
from collections.abc import Callable
from typing import Any, TypeAlias

from cas.config import Settings
from cas.index.ranges import Range
from cas.index.staging import Staging
from cas.index.store import Store
from cas.transfer.exchange import Block, Held, Round, plan_exchange
from cas.transfer.host_files import BLOCK, HostFiles
from cas.transfer.progress import Drawer
from cas.transfer.shared_files import SharedFiles
from cas.transfer.telling import Group, Rank

log = logging.getLogger("cas.transfer")

Arrived: TypeAlias = list[tuple[Block, memoryview]]

ROUND = 256 << 20  # bytes that arrive in one round, at most


class Hosts:
    """The hosts of a job, as one of its ranks sees them. What gets `files` gets None where this rank only listens."""

    def __init__(self, group: Group, rank: Rank, settings: Settings) -> None:
        self._group = group
        self._rank = rank
        self._settings = settings
        self.leaders: list[int] = []  # of each host the rank that does its work
        self._leader = 0  # of ours
        self._shown: Staging | None = None  # by which others see that we get on

    @property
    def leads(self) -> bool:
        """Whether this rank does the work of its host."""
        return self._leader == self._group.rank

    @property
    def block(self) -> int:
        """How many bytes a host sends at once."""
        return min(BLOCK, max(ROUND // len(self.leaders), 1 << 20))

    def lock(self, store: Store, key: str, locked: contextlib.ExitStack) -> None:
        """Wait for others that bring the same into the first rank's home, and let others wait for us.

        One lock for all hosts: jobs that have the same hosts in another order would wait for each other.
        """

        def wait() -> None:
            locked.enter_context(store.exclusive(key))
            self._shown = locked.enter_context(contextlib.closing(store.staging(key)))

        self._rank.together(lambda: wait() if self._group.rank == 0 else None)

    def find(self, store: Store) -> None:
        """Find out which ranks share a home: the first of them does the work of all.

        Each makes a folder in its home, and looks whose it sees: names of hosts and homes can lie about that.
        """
        key = self._group.broadcast(secrets.token_hex(16).encode(), 0).decode("ascii", "replace")
        staging = self._rank.together(lambda: store.staging(f"group {key}"))
        try:
            names = [name.decode("ascii", "replace") for name in self._group.gather(staging.folder.name.encode())]
            seen = set(self._rank.together(os.listdir, staging.folder.parent))
            self._leader = min(rank for rank, name in enumerate(names) if name in seen)
            told = self._group.gather(str(self._leader).encode())  # nobody leaves before all have looked
        finally:
            staging.close()
        self.leaders = sorted({int(one) for one in told})

    def make_ready(self, files: HostFiles | None, uuid: str) -> None:
        """See that there is room, and show whoever waits for us where we get on."""

        def ready() -> None:
            if files is not None and self._settings.check_space:
                files.require_room(f"cannot fetch checkpoint {uuid}")
            if files is not None and self._shown is not None:
                self._shown.name_parts(files.folders())

        self._rank.together(ready)

    def exchange(self, files: HostFiles | None, shared: SharedFiles, draw: Drawer) -> None:
        """Bring what is wanted to all hosts, block by block."""
        host = self.leaders.index(self._leader)
        all_held: list[Held] = [_held(one) for one in self.hear(files.held if files is not None else None)]
        wanted = [shared.wanted(number) for number in range(len(shared.files))]
        rounds = plan_exchange(wanted, all_held, block=self.block)
        total = sum(one.size for blocks in rounds for one in blocks if host in one.lacking)
        log.info("%d hosts, %d rounds, %d bytes to bring here", len(self.leaders), len(rounds), total)
        with contextlib.ExitStack() as line:
            if files is not None:
                files.start(rounds, host, line.enter_context(draw(total, 0)))
            arrived: Arrived = []
            for blocks in rounds:
                data = self._rank.together(self._begin_round, files, host, blocks, arrived)
                arrived = self._swap(host, blocks, data) if files is not None else []
            self._rank.together(self._finish, files, host, arrived)

    def hear(self, doing: Callable[[], Any] | None) -> list[Any]:
        """Let every host do something, and return what each tells of it."""
        found = self._rank.together(lambda: doing() if doing is not None else None)
        told = self._group.gather(json.dumps(found).encode() if doing is not None else b"")
        return [json.loads(told[rank]) for rank in self.leaders]

    def _begin_round(self, files: HostFiles | None, host: int, blocks: Round, arrived: Arrived) -> bytearray:
        """Write what the round before brought, and return our own block of this one."""
        if files is None:
            return bytearray()
        self._write(files, host, arrived)
        return files.next_block() if any(one.owner == host for one in blocks) else bytearray()

    def _finish(self, files: HostFiles | None, host: int, arrived: Arrived) -> None:
        if files is not None:
            self._write(files, host, arrived)
            files.finish_empty()

    def _write(self, files: HostFiles, host: int, arrived: Arrived) -> None:
        for one, buffer in arrived:
            if host in one.lacking:
                files.write(one, buffer)

    def _swap(self, host: int, blocks: Round, data: bytearray) -> Arrived:
        sends: list[tuple[int, bytearray | memoryview]] = []
        receives: list[tuple[int, memoryview]] = []
        arrived: Arrived = []
        for one in blocks:
            if one.owner == host:
                sends += [(self.leaders[other], data) for other in one.lacking if other != host]
                arrived.append((one, memoryview(data)))
            elif host in one.lacking:
                buffer = memoryview(bytearray(one.size))
                receives.append((self.leaders[one.owner], buffer))
                arrived.append((one, buffer))
        self._group.swap(sends, receives)
        return arrived


def _held(data: dict[str, list[tuple[int, int]]]) -> Held:
    return {int(file): [Range(*span) for span in spans] for file, spans in data.items()}
