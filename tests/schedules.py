"""Seeded schedules of faults: what a server is like, what goes wrong with each answer, and what must hold afterwards.

Two families. What is *honest* can be told from what the server says: a validator, a length, a range. Then the bytes
that are committed are those of exactly one version, whether or not a checksum is declared. What is a *lie* gives other
bytes under the right validator, length and range: then only a checksum of the origin tells, and what one vouches for
must be right. A schedule has lies or not, and its faults come from its seed alone.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from container_files import zip_file
from proxy import Exchange, Fault, answer, error
from stores import UUID, lies

from cas.config import Progress, Settings, Verify
from cas.errors import CasError
from cas.index.store import Store
from cas.transfer import fetch
from cas.transfer.remote import Remote

BOUND = 60.0  # seconds within which every pull ends, however it ends, on a busy machine
TIMEOUT = 0.3  # seconds, as the setting
RANGE = 64 << 10  # bytes of a range, and from here on files are read in ranges: small, so that schedules are fast
SMALL = {"config.json": b'{"layers": 12}', "code/a.py": b"a = 1\n" * 500, "empty": b""}
LARGE = "model.pth"

Write = Callable[[str, bytes, bool], None]  # name, bytes, whether it replaces another version


@dataclass
class World:
    """The objects of one schedule: every version that each ever had."""

    rng: random.Random
    write: Write
    lying: bool
    declares: bool  # whether the server declares checksums
    validates: bool  # whether it tells versions apart
    versions: dict[str, list[bytes]] = field(default_factory=dict)
    elsewhere: dict[str, bytes] = field(default_factory=dict)  # what another host has under the same names
    untold: set[str] = field(default_factory=set)  # the names whose version was not told when it was listed
    lock: threading.RLock = field(default_factory=threading.RLock)

    def fill(self, *, large: bool) -> None:
        """Write the first version of each file, of which one may be large."""
        self._is_zip = self.rng.random() < 0.5
        for name in [*SMALL, *([LARGE] if large else [])]:
            self.replace(name, SMALL.get(name))
        self.elsewhere = {name: self.rng.randbytes(len(found[0])) for name, found in self.versions.items()}

    def replace(self, name: str, data: bytes | None = None) -> None:
        """Write another version, mostly of the same length."""
        with self.lock:
            found = self.versions.setdefault(name, [])
            if data is None:
                data = self._large(found) if name == LARGE else self._small(found)
            found.append(data)
            self.write(name, data, len(found) > 1)

    def _small(self, before: list[bytes]) -> bytes:
        return self.rng.randbytes(len(before[-1]) + (self.rng.random() < 0.2))

    def _large(self, before: list[bytes]) -> bytes:
        if not self._is_zip:
            return self.rng.randbytes(9 * RANGE + 777 + (1 if before and self.rng.random() < 0.2 else 0))
        if not before:
            self._records = {f"data/{number}": self.rng.randbytes(RANGE // 2 + 99) for number in range(15)}
        self._records[f"data/{self.rng.randrange(15)}"] = self.rng.randbytes(RANGE // 2 + 99)
        return zip_file(self._records)  # most of it is in the version before: a donor, once that is here

    def allowed(self, name: str) -> list[bytes]:
        """Every version that may be committed where nothing lies."""
        if self.validates and name not in self.untold:
            return self.versions[name]
        return [*self.versions[name], self.elsewhere[name]]


def settings_for(home: Path, rng: random.Random, *, strict: bool | None = None) -> Settings:
    is_strict = rng.random() < 0.4 if strict is None else strict
    verify = Verify.STRICT if is_strict else Verify.DEFAULT
    return Settings(home=home, progress=Progress.OFF, timeout=TIMEOUT, verify=verify, concurrency=rng.choice([1, 4]))


def run(remote: Remote, settings: Settings, world: World, *, calm: bool = False) -> str:
    """Pull, check what the store has then, and say how it ended: `committed`, or the name of an error.

    Args:
        remote: where from.
        settings: of the pull; its home is the store.
        world: what may be there.
        calm: there are no faults: it must be what is there now.
    """
    assert settings.home is not None
    store, began, ended = Store(settings.home), time.monotonic(), "committed"
    try:
        report = fetch.pull(store, remote, registry="pulled", uuid=UUID, settings=settings)
        for entry in report.manifest.files:
            assert entry.digest is not None
            _check(store.blobs.read(entry.digest), entry.path, report.proofs[entry.path], settings, world, calm=calm)
        if calm:
            assert {str(entry.path) for entry in report.manifest.files} == set(world.versions)
    except CasError as failure:
        assert "\n" not in str(failure)
        ended = type(failure).__name__
        unvouched = settings.verify is Verify.STRICT and not world.declares and ended == "ContentError"
        assert not calm or unvouched, f"with no fault any more: {failure}"
    finally:
        store.close()
    assert time.monotonic() - began < BOUND
    assert lies(settings.home) == []
    return ended


def _check(data: bytes, name: str, proof: str, settings: Settings, world: World, *, calm: bool) -> None:
    proven = proof.startswith("origin checksum")
    assert proven or settings.verify is not Verify.STRICT or not data, f"{name}: nothing vouched for it"
    if world.lying and not proven:
        assert len(data) in {len(version) for version in world.allowed(name)}
        return
    wanted = world.versions[name][-1:] if calm else world.allowed(name)
    assert data in wanted, f"{name} ({proof}): {_where(data, [*world.versions[name], world.elsewhere[name]])}"


def _where(data: bytes, versions: list[bytes]) -> str:
    """Say which version each block of wrong bytes is of."""

    def version(at: int) -> str:
        block = data[at : at + 4096]
        return "".join(str(number) for number, one in enumerate(versions) if one[at : at + 4096] == block) or "?"

    return f"{len(data)} bytes, blocks of versions {' '.join(version(at) for at in range(0, len(data), 4096))}"


# --- what goes wrong with an answer ----------------------------------------------------------------------------------


@dataclass
class Schedule:
    """The faults of one seed: each answer's follows from the seed, the request, and how often it was asked."""

    seed: int
    world: World
    prefix: str  # of the paths of objects
    other: str  # where another host has other objects under the same names
    always: Callable[[Exchange], Fault | None] = lambda exchange: None  # what the server is like: no fault of it
    kinds: tuple[str, ...] = ()  # of faults; else as the seed says
    calm_after: int = 60  # answers
    seen: Counter[str] = field(default_factory=Counter)
    share: float = field(init=False)  # of the answers with bytes that are spoiled; of others, an eighth of it
    used: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        rng, every = random.Random(self.seed), [*HONEST, *(LIES if self.world.lying else ())]
        # Few kinds in one schedule meet more often than many: each of their pairs gets its turn in some schedule.
        self.kinds = self.kinds or tuple(rng.sample(every, rng.choice([1, 2, 3, 5, len(every)])))
        self.share = rng.choice([0.15, 0.3, 0.5])

    def __call__(self, one: Exchange) -> Fault | None:
        with self.world.lock:  # while another version is written too: after `end` nothing changes any more
            return _both(self._fault(one), self.always(one))

    def end(self) -> None:
        """Let there be no more faults."""
        with self.world.lock:
            self.calm_after = 0

    def _fault(self, one: Exchange) -> Fault | None:
        asked, name = f"{one.method} {one.path} {one.headers.get('range', '')}", self._name(one)
        self.seen[asked] += 1
        rng = random.Random(f"{self.seed} {asked} {self.seen[asked]}")
        is_bytes = one.method == "GET" and name in self.world.versions
        if self.seen.total() > self.calm_after or rng.random() > (self.share if is_bytes else self.share / 8):
            return None
        kind = rng.choice(self.kinds)
        self.used[kind] += 1
        return {**HONEST, **LIES}[kind](_Asked(rng, one, self.world, name, self.other + name))

    def _name(self, one: Exchange) -> str:
        return one.path.partition("?")[0].removeprefix(self.prefix)


@dataclass(frozen=True)
class _Asked:
    """One request, and what it is about."""

    rng: random.Random
    exchange: Exchange
    world: World
    name: str
    other: str

    @property
    def is_object(self) -> bool:
        return self.name in self.world.versions

    @property
    def size(self) -> int:
        return len(self.world.versions[self.name][-1]) if self.is_object else 500

    @property
    def range(self) -> tuple[int, int] | None:
        """What is asked for: the first byte, and that behind the last."""
        first, _, last = self.exchange.headers.get("range", "").removeprefix("bytes=").partition("-")
        return (int(first), int(last) + 1) if last else None

    def replace(self) -> None:
        if self.is_object:
            self.world.replace(self.name)

    def tells_nothing(self) -> None:
        """The answer has no validator of the object, or another object's."""
        if self.exchange.method == "HEAD" or self.exchange.headers.get("range") == "bytes=0-0":
            self.world.untold.add(self.name)


CONDITIONS = ("if-match", "if-unmodified-since")


def _both(fault: Fault | None, always: Fault | None) -> Fault | None:
    if fault is not None and always is not None:
        fault.drop, fault.without = fault.drop + always.drop, fault.without + always.without
    return fault or always


def _busy(asked: _Asked) -> Fault:
    status = asked.rng.choice(["500 Oops", "503 Slow Down", "429 Busy"])
    return Fault(answer=answer(status, **({"Retry_After": "0"} if asked.rng.random() < 0.5 else {})))


def _denied(asked: _Asked) -> Fault:
    expired = error("400 Bad Request", "ExpiredToken")
    return Fault(answer=asked.rng.choice([answer("403 Forbidden"), answer("401 Unauthorized"), expired]))


def _said_range(asked: _Asked) -> Fault:
    """The right bytes, said to be others, or of another length."""
    start, end = asked.range or (0, asked.size)
    shift = asked.rng.choice([1, RANGE, -1])
    total = asked.size + asked.rng.choice([0, 1])
    return Fault(headers={"Content-Range": f"bytes {max(start + shift, 0)}-{end - 1 + shift}/{total}"})


def _shifted(asked: _Asked) -> tuple[int, int]:
    """Another range, of the same length where there is room."""
    start, end = asked.range or (0, asked.size)
    for shift in asked.rng.sample([1, -1, RANGE, -RANGE, 77], 5):
        if start + shift >= 0 and end + shift <= asked.size:
            return start + shift, end + shift
    return (0, 1) if (start, end) != (0, 1) else (0, 2)


def _other_range(asked: _Asked) -> Fault | None:
    """Other bytes, and the server says which."""
    return Fault(range=_shifted(asked)) if asked.is_object and asked.exchange.method == "GET" else None


def _replaced(asked: _Asked) -> Fault | None:
    """Another version from now on."""
    asked.replace()
    return None


def _replaced_unseen(asked: _Asked) -> Fault | None:
    """Another version, and the server ignores the condition."""
    asked.replace()
    return Fault(drop=CONDITIONS)


def _elsewhere(asked: _Asked) -> Fault:
    asked.tells_nothing()
    return Fault(answer=answer("302 Found", Location=asked.other))


def _no_tag(asked: _Asked) -> Fault:
    asked.tells_nothing()
    return Fault(without=("etag", "last-modified", "date"))


def _junk(asked: _Asked) -> Fault:
    """A page in place of the object, as portals send it: never as long as the object."""
    asked.tells_nothing()
    return Fault(answer=answer("200 OK", b"?" * (asked.size + asked.rng.randrange(1, 99))))


HONEST: dict[str, Callable[[_Asked], Fault | None]] = {
    "cut": lambda asked: Fault(cut=asked.rng.randrange(max(asked.size, 1))),
    "stall": lambda asked: Fault(stall=2 * TIMEOUT),
    "trickle": lambda asked: Fault(trickle=0.02, block=3),
    "closed": lambda asked: Fault(answer=b""),
    "busy": _busy,
    "busy again": _busy,
    "short": lambda asked: Fault(headers={"Content-Length": str(asked.rng.randrange(max(asked.size, 1)))}),
    "long": lambda asked: Fault(headers={"Content-Length": str(asked.size + asked.rng.randrange(1, 9999))}),
    "said range": _said_range,
    "other range": _other_range,
    "whole": lambda asked: Fault(drop=("range",)),
    "unconditional": lambda asked: Fault(drop=CONDITIONS),
    "replaced": _replaced,
    "replaced, unseen": _replaced_unseen,
    "replaced, whole": lambda asked: (asked.replace(), Fault(drop=("range", *CONDITIONS)))[1],
    "refused": lambda asked: Fault(answer=answer("412 Precondition Failed")),
    "no such range": lambda asked: Fault(answer=answer("416 Range Not Satisfiable")),
    "other tag": lambda asked: Fault(headers={"ETag": f'"another{asked.rng.random()}"'}),
    "no tag": _no_tag,
    "elsewhere": _elsewhere,
    "denied": _denied,
    "junk": _junk,
}


# What would mix versions or ranges, if a check were missing.
MIXING = ("other range", "said range", "whole", "replaced", "replaced, unseen", "replaced, whole", "elsewhere", "short")
OPEN = 0.4  # of the schedules have a server whose bytes nothing vouches for, and one of these faults


def mixing(rng: random.Random) -> tuple[str, ...]:
    return (rng.choice(MIXING),) if rng.random() < 0.8 else ()


def _other_bytes(asked: _Asked) -> Fault | None:
    """Other bytes of the object, said to be those that were asked for."""
    if not asked.is_object or asked.range is None or asked.exchange.method != "GET":
        return None
    start, end = asked.range
    return Fault(range=_shifted(asked), headers={"Content-Range": f"bytes {start}-{end - 1}/{asked.size}"})


def _old_tag(asked: _Asked) -> Fault | None:
    """Another version under the old one's validator."""
    listed = asked.exchange.headers.get("if-match")
    asked.replace()
    return Fault(drop=CONDITIONS, headers={"ETag": listed} if listed else {})


LIES: dict[str, Callable[[_Asked], Fault | None]] = {
    "flip": lambda asked: Fault(flip=True),
    "garbled": lambda asked: Fault(garble=asked.rng.randrange(max(asked.size, 1))),
    "other bytes": _other_bytes,
    "old tag": _old_tag,
    "junk of the right length": lambda asked: Fault(answer=answer("200 OK", b"?" * asked.size)),
}


# --- many of them ------------------------------------------------------------------------------------------------


def each_seed(first: int, count: int, schedule: Callable[[int], str], *, failures: int = 5) -> Counter[str]:
    """Run schedules; return how they ended. So many failures end it; each is named, with how to run it again."""
    ends: Counter[str] = Counter()
    found: list[Exception] = []
    for seed in range(first, first + count):
        try:
            ends[schedule(seed)] += 1
        except Exception as failure:
            failure.add_note(f"seed {seed}: CAS_FAULT_FIRST={seed} CAS_FAULT_SCHEDULES=1 runs it again")
            found.append(failure)
            if len(found) == failures:
                break
    if found:
        raise ExceptionGroup(f"{len(found)} of {ends.total() + len(found)} schedules failed", found)
    return ends
