"""Many hosts, one job: real torch.distributed ranks with homes of their own, and a real S3 server that is counted."""

from __future__ import annotations

import base64
import io
import json
import os
import platform
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from master_simulator import Data, Simulator
from mounts import loop, tmpfs
from proxy import Exchange, Fault, Proxy, counting, relaying
from s3_server import S3Server, free_ports
from stores import OTHER_UUID, ROOT, UUID, damage, lies, uuid
from web_server import Site, serving

from cas.index.check import check
from cas.index.store import Store

pytestmark = [pytest.mark.s3, pytest.mark.torch, pytest.mark.slow]

MIB = 1 << 20
REGISTRY = "http://m"
RANK = """
import json, os, sys, time
from datetime import timedelta
from pathlib import Path
rank, size, port, home, storage, scenario, folder, timeout = sys.argv[1:]
rank, size, folder = int(rank), int(size), Path(folder)
import torch.distributed as dist
from cas.checkpoint import Checkpoint
from cas.config import Settings
from cas.errors import CasError
from cas.registry.records import CheckpointRecord
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
settings = Settings.load(home=home, timeout=timeout, progress="off")

def checkpoint(uuid, stored=True, **more):
    if isinstance(json.loads(storage), str):
        return Checkpoint.from_url(json.loads(storage), settings=settings, **more)
    config = {"checkpoint_storage": json.loads(storage)} if stored else {}
    record = CheckpointRecord(registry="http://m", uuid=uuid, experiment_config=config)
    return Checkpoint(record, settings=settings, **more)

def say(**told):
    print(json.dumps(told), flush=True)

began = time.monotonic()
try:
    exec(scenario)
except CasError as error:
    say(error=type(error).__name__, text=str(error), seconds=time.monotonic() - began)
os._exit(0)  # without waiting for peers that are gone
"""


class Job:
    """The ranks of one job; `homes` gives each rank's."""

    def __init__(
        self, homes: list[Path], storage: dict[str, Any] | str, scenario: str, folder: Path, timeout: int
    ) -> None:
        port = free_ports(1)[0]
        path = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
        self.children = []
        for rank, home in enumerate(homes):
            words = [rank, len(homes), port, home, json.dumps(storage), scenario, folder, timeout]
            self.children.append(
                subprocess.Popen(
                    [sys.executable, "-c", RANK, *map(str, words)],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
                )
            )

    def told(self, rank: int, *, timeout: float = 120) -> list[dict[str, Any]]:
        """What a rank said, once it has ended."""
        out, err = self.children[rank].communicate(timeout=timeout)
        assert self.children[rank].returncode == 0, err
        return [json.loads(line) for line in out.splitlines() if line.startswith("{")]

    def end(self) -> None:
        for child in self.children:
            if child.poll() is None:
                child.kill()
            child.communicate()


Start = Callable[..., Job]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    jobs: list[Job] = []

    def run(homes: list[Path], storage: dict[str, Any] | str, scenario: str, *, timeout: int = 2) -> Job:
        jobs.append(Job(homes, storage, scenario, tmp_path, timeout))
        return jobs[-1]

    yield run
    for job in jobs:
        job.end()


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[Proxy]:
    with counting(s3_server) as running:
        yield running


@pytest.fixture
def files() -> dict[str, bytes]:
    rng = random.Random(3)
    small = {f"code/{number}.py": rng.randbytes(number * 37) for number in range(20)}
    return {"model.pth": rng.randbytes(50 * MIB + 11), "optimizer.pth": rng.randbytes(17 * MIB + 5), **small}


@pytest.fixture
def storage(
    proxy: Proxy, bucket: str, upload: Callable[..., None], files: dict[str, bytes]
) -> Callable[[], dict[str, Any]]:
    upload({f"{UUID}/{name}": data for name, data in files.items()})
    return lambda: proxy.server.storage(bucket)


TOGETHER = f"""
shared = checkpoint("{UUID}")
shared.share()
dist.barrier()
report = shared.pull_report
say(uuid=shared.uuid, files=len(list(shared.view().rglob("*.p*"))), leads=report is not None)
other = checkpoint("{UUID}" if rank == 0 else "{OTHER_UUID}")  # the ranks chose differently
other.share(dist.group.WORLD)
say(uuid=other.uuid, again=other.pull_report.files_fetched if other.pull_report else 0)
"""


def test_three_hosts_cost_the_origin_one_checkpoint(
    start: Start, storage: Callable[[], dict[str, Any]], proxy: Proxy, files: dict[str, bytes], tmp_path: Path
) -> None:
    homes = [tmp_path / name for name in ("a", "a", "b", "c")]  # the first two ranks share a host
    job = start(homes, storage(), TOGETHER)

    told = [job.told(rank) for rank in range(4)]

    assert [one[0] for one in told] == [
        {"uuid": UUID, "files": len(files), "leads": leads} for leads in (True, False, True, True)
    ]
    assert [one[1] for one in told] == [{"uuid": UUID, "again": 0}] * 4  # the first rank's choice is everybody's
    assert proxy.bodies() == sum(map(len, files.values()))
    assert sum("list-type" in one.path for one in proxy.exchanges) == 1
    for home in set(homes):
        store = Store(home)
        manifest = store.resolve(REGISTRY, UUID)
        assert manifest is not None
        assert {str(one.path): store.blobs.read(one.digest) for one in manifest.files if one.digest} == files
        assert check(store, deep=True).damage == ()
        assert not list(home.glob("ingest/*/*/*.data"))


def test_what_one_host_has_is_sent_to_the_others_and_a_choice_is_made_once(
    start: Start, storage: Callable[[], dict[str, Any]], proxy: Proxy, files: dict[str, bytes], tmp_path: Path
) -> None:
    """An interrupted pull's ranges, a whole checkpoint, and one that was added locally and has no origin."""
    scenario = f"""
import cas
if rank == 1:
    checkpoint("{UUID}").view()
    (folder / "mine").mkdir()
    (folder / "mine" / "weights").write_bytes(b"w" * 3_000_000)
dist.barrier()
checkpoint("{UUID}").share()
say(here=len(os.listdir(checkpoint("{UUID}").view())))
if rank == 0:
    (folder / "own").mkdir()
    (folder / "own" / "weights").write_bytes(b"w" * 3_000_000)
    cas.add(folder / "own", uuid="{uuid(7)}", settings=settings)
dist.barrier()
def choose():
    assert rank == 0
    return cas.Determined(settings=settings).get_checkpoint("{uuid(7)}")
agreed = Checkpoint.agreed(choose, settings=settings)
agreed.share()
used = agreed.uuid in agreed.store.uses.all()
say(uuid=agreed.uuid, used=used, size=(agreed.view() / "weights").stat().st_size)
try:
    Checkpoint.agreed(lambda: cas.Determined(settings=settings).get_checkpoint("{uuid(8)}"), settings=settings)
except CasError as error:
    say(error=type(error).__name__, text=str(error))
try:
    Checkpoint.agreed(lambda: [][0], settings=settings)
except Exception as error:
    say(error=type(error).__name__, text=str(error))
    dist.barrier()  # nobody has gone
"""
    job = start([tmp_path / "a", tmp_path / "b"], storage(), scenario)

    told = [job.told(rank) for rank in range(2)]

    assert proxy.bodies() == sum(map(len, files.values()))
    for one in told:
        assert one[0] == {"here": 3}
        assert one[1] == {"uuid": uuid(7), "used": True, "size": 3_000_000}
        assert uuid(8) in one[2]["text"]
        assert one[3]["text"].endswith("list index out of range")
    assert [one[2]["error"] for one in told] == ["NotFoundError", "PeerError"]
    assert [one[3]["error"] for one in told] == ["IndexError", "PeerError"]


def test_the_files_that_the_first_rank_wants_are_fetched_and_no_others(
    start: Start, storage: Callable[[], dict[str, Any]], proxy: Proxy, files: dict[str, bytes], tmp_path: Path
) -> None:
    code = sum(len(data) for name, data in files.items() if name.startswith("code/"))
    scenario = f"""
whole = checkpoint("{UUID}")
chosen = whole.only("code/") if rank == 0 else whole
chosen.share()
say(found=sorted(path.name for path in chosen.view().iterdir()), partial=whole.is_partial)
agreed = Checkpoint.agreed(lambda: whole.only(exclude="model.pth"), settings=settings)
agreed.share()
say(found=sorted(path.name for path in agreed.view().iterdir()), partial=whole.is_partial)
"""
    homes = [tmp_path / "a", tmp_path / "b"]
    job = start(homes, storage(), scenario)
    told = [job.told(rank) for rank in range(2)]

    assert (
        told[0]
        == told[1]
        == [
            {"found": ["code"], "partial": True},
            {"found": ["code", "optimizer.pth"], "partial": True},
        ]
    )
    assert proxy.bodies() == code + len(files["optimizer.pth"])

    # A host that has none of it gets it from another, and knows where the rest lies: also of one that has the rest.
    only = f'checkpoint("{UUID}").only("code/").share(); say(done=True)'
    for first, name in (("", "c"), (f'if rank == 0: checkpoint("{UUID}").view()\n', "d")):
        again = start([homes[0], tmp_path / name], storage(), first + only)
        assert [again.told(rank)[0] for rank in range(2)] == [{"done": True}] * 2
        store = Store(tmp_path / name)
        manifest = store.resolve(REGISTRY, UUID)
        assert manifest is not None
        assert {str(entry.path): entry.digest is not None for entry in manifest.files} == {
            path: path.startswith("code/") for path in files
        }
        assert check(store, deep=True).problems == ()
    assert proxy.bodies() == sum(map(len, files.values()))


def test_storage_options_of_the_first_rank_reach_the_others_and_no_disk(start: Start, tmp_path: Path) -> None:
    data = random.Random(4).randbytes(3 * MIB)
    with serving(tmp_path / "site", password="Bearer s3cret-word") as site:
        site.write("model/weights.bin", data)
        scenario = f"""
def found():
    options = {{"headers": {{"Authorization": "Bearer s3cret-word"}}}}
    return Checkpoint.from_url("{site.url}model/", storage_options=options, settings=settings)
agreed = Checkpoint.agreed(found, settings=settings)
agreed.share()
say(size=(agreed.view() / "weights.bin").stat().st_size)
"""
        job = start([tmp_path / "a", tmp_path / "b"], {}, scenario)
        told = [job.told(rank) for rank in range(2)]

    assert told == [[{"size": len(data)}]] * 2
    for home in (tmp_path / "a", tmp_path / "b"):
        assert not [path for path in home.rglob("*") if path.is_file() and b"s3cret" in path.read_bytes()]


@pytest.mark.parametrize(
    "storage", [{"type": "shared_fs", "host_path": "/not/mounted/here"}, None], ids=["gone", "none"]
)
@pytest.mark.parametrize("mode", ["auto", "master", "direct"])
def test_where_the_storage_is_closed_one_host_goes_through_the_master_for_all(
    mode: str, storage: dict[str, Any] | None, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DET_DEBUG_CONFIG_PATH", str(tmp_path / "determined"))
    content = {"state_dict.pth": random.Random(5).randbytes(20 * MIB), "code/model_def.py": b"x = 1\n", "empty": b""}
    for name, data in content.items():
        (tmp_path / "only the master mounts this" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "only the master mounts this" / name).write_bytes(data)
    known = Data()
    known.experiment(1, checkpoint_storage=storage)
    known.trial(2, 1)
    sizes = {name: str(len(data)) for name, data in content.items()}
    known.checkpoint(UUID, trial=2, folder=str(tmp_path / "only the master mounts this"), resources=sizes)
    with Simulator(known) as master:
        scenario = f"""
from cas.client import Determined
settings = settings.but(mode="{mode}")
def choose():
    return Determined("{master.url}", settings=settings).get_checkpoint("{UUID}")
shared = Checkpoint.agreed(choose, settings=settings)
shared.share()
came = shared.pull_report.files_fetched
say(came=came, files=sorted(path.name for path in shared.view().rglob("*") if path.is_file()))
"""
        job = start([tmp_path / "a", tmp_path / "b"], {}, scenario)
        told = [job.told(rank)[0] for rank in range(2)]
        asked = [one["path"] for one in master.requests()].count(f"/checkpoints/{UUID}")

    if mode == "direct":
        assert [one["error"] for one in told] == ["CheckpointNotFoundError", "PeerError"]
        assert asked == 0
    else:
        assert told == [{"files": ["empty", "model_def.py", "state_dict.pth"], "came": 3}] * 2
        assert asked == 1
        assert lies(tmp_path / "b") == []


def test_a_host_that_can_reach_nothing_is_sent_what_another_has(
    start: Start, storage: Callable[[], dict[str, Any]], proxy: Proxy, files: dict[str, bytes], tmp_path: Path
) -> None:
    """Whichever rank it is; what all have needs no network; what all lack is one error, with its reason."""
    scenario = f"""
if rank == 1:
    checkpoint("{UUID}").view()
dist.barrier()
settings = settings.but(offline=True)
shared = checkpoint("{UUID}")
shared.share()
say(came=shared.pull_report.files_fetched)
shared.share()
say(came=shared.pull_report.files_fetched)
settings = settings.but(offline=rank == 1)
checkpoint("{OTHER_UUID}").share()
"""
    job = start([tmp_path / "a", tmp_path / "b"], storage(), scenario)
    told = [job.told(rank) for rank in range(2)]

    assert [one[:2] for one in told] == [[{"came": len(files)}, {"came": 0}], [{"came": 0}, {"came": 0}]]
    assert proxy.bodies() == sum(map(len, files.values()))
    assert [one[2]["error"] for one in told] == ["CheckpointNotFoundError", "PeerError"]


def test_what_is_damaged_on_the_host_that_tells_is_fetched_again(
    start: Start, storage: Callable[[], dict[str, Any]], proxy: Proxy, files: dict[str, bytes], tmp_path: Path
) -> None:
    scenario = f'checkpoint("{UUID}").share(); say(done=True)'
    assert start([tmp_path / "a"], storage(), scenario).told(0) == [{"done": True}]
    damage(max((tmp_path / "a").glob("blobs/??/*"), key=lambda path: path.stat().st_size))
    before = proxy.bodies()

    job = start([tmp_path / "a", tmp_path / "b"], storage(), scenario)

    assert [job.told(rank) for rank in range(2)] == [[{"done": True}]] * 2
    assert proxy.bodies() - before == len(files["model.pth"])
    assert lies(tmp_path / "a") == lies(tmp_path / "b") == []


def test_what_one_rank_cannot_open_all_hear_of_at_once(
    start: Start, storage: Callable[[], dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "b").write_bytes(b"no folder")
    job = start([tmp_path / "a", tmp_path / "b"], storage(), f'checkpoint("{UUID}").share()', timeout=30)
    home = [job.told(rank)[0] for rank in range(2)]
    scenario = f'settings = settings.but(offline=rank == 1); checkpoint("{UUID}").share()'
    job = start([tmp_path / "a", tmp_path / "c"], storage(), scenario, timeout=30)
    remote = [job.told(rank)[0] for rank in range(2)]

    assert home[1]["error"] == "UsageError" and str(tmp_path / "b") in home[1]["text"]
    assert remote[1]["error"] == "OfflineError"
    for told in (home, remote):
        assert told[0]["error"] == "PeerError"
        assert told[0]["text"] == f"rank 1 of the process group (on {platform.node()}) failed: {told[1]['text']}"
        assert told[0]["seconds"] < 20


def test_a_folder_is_no_network_for_a_job_either(start: Start, tmp_path: Path) -> None:
    (tmp_path / "shared" / UUID).mkdir(parents=True)
    (tmp_path / "shared" / UUID / "weights").write_bytes(b"w" * 3_000_000)
    place = {"type": "shared_fs", "host_path": str(tmp_path / "shared")}
    scenario = f"""
settings = settings.but(offline=True)
checkpoint("{UUID}").share()
say(size=(checkpoint("{UUID}").view() / "weights").stat().st_size)
"""
    job = start([tmp_path / "a", tmp_path / "b"], place, scenario)
    assert [job.told(rank) for rank in range(2)] == [[{"size": 3_000_000}]] * 2


@pytest.mark.parametrize(("names", "most"), [("aaa", 0.4), ("ab", 1.01)], ids=["one host", "two hosts"])
def test_a_model_alone_is_fetched_once_on_one_host_and_with_its_file_on_several(
    names: str, most: float, start: Start, proxy: Proxy, bucket: str, upload: Callable[..., None], tmp_path: Path
) -> None:
    import torch

    model = torch.nn.Linear(1000, 1500)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(4, 1000)).sum().backward()
    optimizer.step()
    saved = io.BytesIO()
    torch.save({"model_state_dict": model.state_dict(), "optimizer_state_dict": optimizer.state_dict()}, saved)
    upload({f"{UUID}/state_dict.pth": saved.getvalue(), f"{UUID}/notes.txt": b"hello"})
    scenario = f"""
shared = checkpoint("{UUID}" if rank == 0 else "{OTHER_UUID}")
state = shared.load(only="model", process_group=True)
say(uuid=shared.uuid, row=state["weight"][7].tolist())
"""
    job = start([tmp_path / name for name in names], proxy.server.storage(bucket), scenario, timeout=10)

    expected = {"uuid": UUID, "row": model.weight[7].tolist()}
    assert [job.told(rank) for rank in range(len(names))] == [[expected]] * len(names)
    assert proxy.bodies() < most * len(saved.getvalue())


def test_donors_are_used_where_all_hosts_have_them(
    start: Start, proxy: Proxy, bucket: str, upload: Callable[..., None], tmp_path: Path
) -> None:
    """A checkpoint that shares nearly all its tensors with one that is here costs its new bytes, for each host."""
    import torch

    tensors = {f"layer{number}": torch.randn(512, 512) for number in range(16)}
    for name in (OTHER_UUID, UUID):
        saved = io.BytesIO()
        torch.save(tensors, saved)
        upload({f"{name}/state_dict.pth": saved.getvalue()})
        tensors["layer3"] = torch.randn(512, 512)
    storage, size = proxy.server.storage(bucket), len(saved.getvalue())
    earlier = start([tmp_path / name for name in "abd"], storage, f'checkpoint("{OTHER_UUID}").share(); say(done=True)')
    assert [earlier.told(rank) for rank in range(3)] == [[{"done": True}]] * 3

    scenario = f'checkpoint("{UUID}").share(); say(done=True)'
    for names, least, most in (("aab", 0.1, 0.3), ("dc", 0.99, 1.01)):  # the last host has none
        before = proxy.bodies()
        job = start([tmp_path / name for name in names], storage, scenario)
        assert [job.told(rank) for rank in range(len(names))] == [[{"done": True}]] * len(names)
        assert least * size < proxy.bodies() - before < most * size
        assert lies(tmp_path / "b") == lies(tmp_path / "c") == []


def test_every_host_keeps_its_size(
    start: Start, storage: Callable[[], dict[str, Any]], upload: Callable[..., None], tmp_path: Path
) -> None:
    upload({f"{OTHER_UUID}/weights": b"w" * 3_000_000})
    scenario = f"""
settings = settings.but(max_size=60_000_000)
first = checkpoint("{OTHER_UUID}")
first.share()
path = first.store.layout.used(first.uuid)
os.utime(path, (path.stat().st_mtime - 5000,) * 2)
second = checkpoint("{UUID}")
second.share()
say(here=[name for name in (first.uuid, second.uuid) if second.store.refs.registries(name)])
first.share()  # it can be fetched again
say(size=(first.view() / "weights").stat().st_size)
"""
    job = start([tmp_path / "a", tmp_path / "b"], storage(), scenario)
    assert [job.told(rank) for rank in range(2)] == [[{"here": [UUID]}, {"size": 3_000_000}]] * 2


@pytest.mark.parametrize("check_space", [True, False])
def test_a_host_with_a_full_disk_ends_it_for_every_rank(
    check_space: bool, start: Start, storage: Callable[[], dict[str, Any]], proxy: Proxy, tmp_path: Path
) -> None:
    """Before anything is fetched, if it may be looked at."""
    scenario = f'settings = settings.but(check_space={check_space}); checkpoint("{UUID}").share()'
    with tmpfs(tmp_path / "small", size="30m") as small:
        job = start([tmp_path / "a", small / "home", tmp_path / "c"], storage(), scenario)
        told = [job.told(rank)[0] for rank in range(3)]

        assert [one["error"] for one in told] == ["PeerError", "NoSpaceError", "PeerError"]
        assert str(small / "home") in told[1]["text"]
        assert told[0]["text"] == f"rank 1 of the process group (on {platform.node()}) failed: {told[1]['text']}"
        assert all(one["seconds"] < 60 for one in told)
        assert lies(tmp_path / "a") == lies(small / "home") == []
        assert (proxy.bodies() == 0) is check_space
        assert ("MiB are missing" in told[1]["text"]) is check_space


def blocks(path: Path) -> int:
    """Return how many blocks of a file are written; small ones come and go while they are looked for."""
    try:
        return path.stat().st_blocks
    except FileNotFoundError:
        return 0


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_host_that_dies_or_hangs_ends_it_for_the_others_and_the_next_job_goes_on(
    how: signal.Signals,
    start: Start,
    storage: Callable[[], dict[str, Any]],
    proxy: Proxy,
    files: dict[str, bytes],
    tmp_path: Path,
) -> None:
    proxy.pause = 0.05
    homes = [tmp_path / "a", tmp_path / "b", tmp_path / "c"]
    job = start(homes, storage(), f'checkpoint("{UUID}").share()', timeout=1)
    end = time.monotonic() + 90
    while not any(blocks(path) > 2048 for path in homes[0].glob("ingest/*/*/*.data")):
        assert time.monotonic() < end and job.children[0].poll() is None, job.children[0].communicate()
        time.sleep(0.01)

    os.kill(job.children[2].pid, how)
    told = [job.told(rank)[0] for rank in range(2)]

    assert [one["error"] for one in told] == ["PeerError"] * 2
    assert "process group" in told[0]["text"]
    job.end()
    if how is signal.SIGKILL:
        spent, proxy.pause = proxy.bodies(), 0.0
        again = start(homes, storage(), f'checkpoint("{UUID}").share(); say(done=True)')
        assert [again.told(rank)[0] for rank in range(3)] == [{"done": True}] * 3
        assert proxy.bodies() - spent < sum(map(len, files.values())) - 16 * MIB  # what had arrived was used


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Site, Proxy]]:
    """A web site, and what relays its bytes."""
    (tmp_path / "site").mkdir()
    with serving(tmp_path / "site") as site, relaying(site.port) as proxy:
        yield site, proxy


# The bound is the group's own timeout, which is less than what follows of the settings.
IN_THREE_SECONDS = f"""
group = dist.new_group(timeout=timedelta(seconds=3))
checkpoint("{UUID}").share(group)
say(done=True)
"""


@pytest.mark.parametrize("etag", ["strong", "none"])
def test_slow_work_is_waited_for_as_long_as_it_gets_on(
    etag: str, start: Start, site: tuple[Site, Proxy], tmp_path: Path
) -> None:
    """With an ETag one host reads a block while the other waits for it, without one each pulls by itself."""
    pages, proxy = site
    pages.etag, pages.modified = etag, etag != "none"
    data = random.Random(4).randbytes(16 * MIB)
    pages.write(f"{UUID}/model.pth", data)
    proxy.pause = 0.2 if etag == "none" else 0.7  # after 256 KiB, of one connection or of four
    homes = [tmp_path / name for name in ("a", "a", "b")]

    job = start(homes, f"http://127.0.0.1:{proxy.port}/{UUID}/", IN_THREE_SECONDS, timeout=30)
    began = time.monotonic()

    assert [job.told(rank)[0] for rank in range(3)] == [{"done": True}] * 3
    assert time.monotonic() - began > 10  # which is far above the bound
    assert proxy.bodies("model.pth") <= len(data) * (1 if etag == "strong" else 2)


def test_a_host_whose_disk_hangs_ends_it_for_the_others(
    start: Start, storage: Callable[[], dict[str, Any]], proxy: Proxy, tmp_path: Path
) -> None:
    proxy.pause = 0.05
    with loop(tmp_path / "hung", size=160 * MIB) as hung:
        job = start([tmp_path / "a", hung / "home", tmp_path / "c"], storage(), IN_THREE_SECONDS, timeout=30)
        end = time.monotonic() + 90
        while not any(blocks(path) > 2048 for path in hung.glob("home/ingest/*/*/*.data")):
            assert time.monotonic() < end and job.children[1].poll() is None, job.children[1].communicate()
            time.sleep(0.01)
        subprocess.run(["fsfreeze", "--freeze", hung], check=True)  # whoever writes there waits
        try:
            told = [job.told(rank, timeout=60)[0] for rank in (0, 2)]
        finally:
            subprocess.run(["fsfreeze", "--unfreeze", hung], check=True)
        job.end()

    for one in told:
        assert one["error"] == "PeerError"
        assert one["text"].startswith(
            f"rank 1 of the process group (on {platform.node()}) failed: nothing was read or "
        )
        assert str(hung) in one["text"]


def test_the_first_rank_asks_for_many_checksums_at_once(
    start: Start, s3_server: S3Server, bucket: str, proxy: Proxy, tmp_path: Path
) -> None:
    client = s3_server.client()
    for number in range(40):  # in parts: no ETag spares the question
        place = {"Bucket": bucket, "Key": f"{UUID}/{number}"}
        begun = place | {"UploadId": client.create_multipart_upload(**place)["UploadId"]}
        part = client.upload_part(**begun, PartNumber=1, Body=b"%d" % number)
        client.complete_multipart_upload(**begun, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]})
    client.close()
    asked: list[float] = []
    proxy.delay = 0.2
    proxy.faults = lambda asking: asked.append(time.monotonic()) if asking.method == "HEAD" else None

    job = start([tmp_path / "a", tmp_path / "b"], proxy.server.storage(bucket), IN_THREE_SECONDS, timeout=30)

    assert [job.told(rank)[0] for rank in range(2)] == [{"done": True}] * 2
    assert len(asked) >= 40
    assert asked[-1] - asked[0] < 40 * proxy.delay / 2


def test_what_ends_it_after_the_exchange_is_raised_as_what_it_is(
    start: Start, site: tuple[Site, Proxy], tmp_path: Path
) -> None:
    """Of a file with no validator each host reads its own, and all that comes is wrong."""
    pages, proxy = site
    pages.etag, pages.modified, pages.digest = "none", False, True
    pages.write(f"{UUID}/model.pth", random.Random(4).randbytes(MIB))
    proxy.faults = lambda asking: Fault(flip=True) if asking.path.endswith("model.pth") else None
    job = start(
        [tmp_path / "a", tmp_path / "b"], f"http://127.0.0.1:{proxy.port}/{UUID}/", IN_THREE_SECONDS, timeout=30
    )

    told = [job.told(rank)[0] for rank in range(2)]

    assert {one["error"] for one in told} <= {"DigestMismatchError", "PeerError"}
    assert "DigestMismatchError" in {one["error"] for one in told}
    assert all("model.pth: expected sha256:" in one["text"] for one in told)


def test_a_host_that_cannot_compute_the_declared_checksum_takes_part(
    start: Start, site: tuple[Site, Proxy], tmp_path: Path
) -> None:
    crc32c = pytest.importorskip("awscrt.checksums").crc32c
    pages, proxy = site
    content = {"small": b"hello", "model.pth": random.Random(4).randbytes(20 * MIB)}
    for name, data in content.items():
        pages.write(f"{UUID}/{name}", data)
    told = {name: base64.b64encode(crc32c(data).to_bytes(4, "big")).decode() for name, data in content.items()}

    def declare(asking: Exchange) -> Fault | None:
        name = asking.path.rpartition("/")[2]
        return Fault(headers={"Digest": f"crc32c={told[name]}"}) if name in told else None

    proxy.faults = declare
    scenario = f"""
if rank == 1:
    sys.modules["awscrt"] = None  # not installed there
shared = checkpoint("{UUID}")
shared.share()
say(proofs=dict(shared.proofs))
"""
    job = start([tmp_path / "a", tmp_path / "b"], f"http://127.0.0.1:{proxy.port}/{UUID}/", scenario)

    proofs = [job.told(rank)[0]["proofs"] for rank in range(2)]
    assert proofs == [dict.fromkeys(content, proof) for proof in ("origin checksum (crc32c)", "length only")]


def test_what_hosts_have_read_differently_is_read_again(start: Start, site: tuple[Site, Proxy], tmp_path: Path) -> None:
    """With no validator each host reads its own, and no checksum tells which of them is right."""
    pages, proxy = site
    pages.etag, pages.modified = "none", False
    data = random.Random(4).randbytes(MIB)
    pages.write(f"{UUID}/model.pth", data)
    pages.write(f"{UUID}/notes.txt", b"hello")
    asked: list[str] = []

    def flip_first(asking: Exchange) -> Fault | None:
        if asking.method != "GET" or not asking.path.endswith("model.pth"):
            return None
        asked.append(asking.path)
        return Fault(flip=len(asked) == 1)

    proxy.faults = flip_first
    scenario = f"""
try:
    checkpoint("{UUID}").share()
except CasError as error:
    say(error=type(error).__name__, text=str(error))
shared = checkpoint("{UUID}")
shared.share()
say(first=(shared.view() / "model.pth").read_bytes()[0])
"""
    job = start([tmp_path / "a", tmp_path / "b"], f"http://127.0.0.1:{proxy.port}/{UUID}/", scenario)
    told = [job.told(rank) for rank in range(2)]

    for one in told:
        assert one[0]["error"] == "ContentError" and one[0]["text"].startswith("model.pth of checkpoint")
        assert one[1] == {"first": data[0]}
    assert len(asked) == 4


def test_two_jobs_of_the_same_hosts_cost_the_origin_one_checkpoint(
    start: Start, storage: Callable[[], dict[str, Any]], proxy: Proxy, files: dict[str, bytes], tmp_path: Path
) -> None:
    """The second job waits for longer than the bound, for it sees that the first gets on."""
    proxy.pause = 0.25
    homes = [tmp_path / "a", tmp_path / "b"]
    jobs = [start(homes, storage(), IN_THREE_SECONDS, timeout=30) for _ in range(2)]

    assert [job.told(rank)[0] for job in jobs for rank in range(2)] == [{"done": True}] * 4
    assert proxy.bodies() <= sum(map(len, files.values()))


def test_wrong_groups_and_other_calls_are_named(
    start: Start, storage: Callable[[], dict[str, Any]], tmp_path: Path
) -> None:
    scenario = f"""
import torch
for wrong in ("gloo", 0, [0, 1]):
    try:
        checkpoint("{UUID}").share(wrong)
    except CasError as error:
        say(error=type(error).__name__, text=str(error))
if rank == 0:
    dist.broadcast(torch.full((1,), 3.5, dtype=torch.float64), 0)  # which the other takes for the size of a message
checkpoint("{UUID}").share()
"""
    job = start([tmp_path / "a", tmp_path / "b"], storage(), scenario)
    told = [job.told(rank) for rank in range(2)]

    for one in told:
        assert [wrong["error"] for wrong in one[:3]] == ["UsageError"] * 3
        assert "True or a group of torch.distributed, and not [0, 1]" in one[2]["text"]
    assert [one[3]["error"] for one in told] == ["PeerError"] * 2
    assert "do not make the same calls in the same order" in told[1][3]["text"]
    assert told[0][3]["text"].endswith((" …", ".", "!"))  # and not in the middle of a word


def test_without_a_process_group_it_says_what_is_missing(tmp_path: Path) -> None:
    from cas.checkpoint import Checkpoint
    from cas.config import Settings
    from cas.errors import UsageError
    from cas.registry.records import CheckpointRecord

    checkpoint = Checkpoint(CheckpointRecord(registry=REGISTRY, uuid=UUID), settings=Settings.load(home=tmp_path / "h"))
    for call in (checkpoint.load, checkpoint.load_trial):
        with pytest.raises(UsageError, match="init_process_group"):
            call(process_group=True)
