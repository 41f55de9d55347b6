"""Many hosts, one job: real torch.distributed ranks with homes of their own, and a real S3 server that is counted."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jobs import IN_THREE_SECONDS, MIB, REGISTRY, Start, content
from master_simulator import Data, Simulator
from proxy import Exchange, Fault, Proxy
from stores import OTHER_UUID, UUID, damage, lies, uuid
from web_server import serving

from cas.index.check import check
from cas.index.store import Store

pytestmark = [pytest.mark.s3, pytest.mark.torch, pytest.mark.slow]


@pytest.fixture
def files() -> dict[str, bytes]:
    return content()


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


@pytest.fixture
def trained() -> tuple[Any, bytes]:
    """A model, and the file that has its optimizer's state too: two thirds of its bytes."""
    import torch

    model = torch.nn.Sequential(torch.nn.Linear(1000, 1500), torch.nn.Linear(1500, 2500))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(4, 1000)).sum().backward()
    optimizer.step()
    saved = io.BytesIO()
    torch.save({"model_state_dict": model.state_dict(), "optimizer_state_dict": optimizer.state_dict()}, saved)
    return model, saved.getvalue()


@pytest.mark.parametrize(("names", "others"), [("aaa", 1), ("ab", 0), ("abb", 1), ("abc", 1)])
def test_a_model_alone_is_fetched_once_and_the_rest_when_it_is_wanted(
    names: str,
    others: int,
    start: Start,
    proxy: Proxy,
    bucket: str,
    upload: Callable[..., None],
    trained: tuple[Any, bytes],
    tmp_path: Path,
) -> None:
    model, saved = trained
    upload({f"{UUID}/state_dict.pth": saved, **{f"{UUID}/{number}": b"hello" for number in range(others)}})
    storage, homes = proxy.server.storage(bucket), [tmp_path / name for name in names]
    scenario = f"""
shared = checkpoint("{UUID}" if rank == 0 else "{OTHER_UUID}")
state = shared.load(only="model", process_group=True)
say(uuid=shared.uuid, row=state["1.weight"][7].tolist())
"""
    expected = [{"uuid": UUID, "row": model[1].weight[7].tolist()}]

    job = start(homes, storage, scenario, timeout=10)
    assert [job.told(rank) for rank in range(len(names))] == [expected] * len(names)
    assert proxy.bodies() < 0.36 * len(saved)
    before = proxy.bodies()
    for home in set(homes):  # every host has what it would have brought by itself
        alone = start([home], storage, scenario.replace(", process_group=True", ""))
        assert alone.told(0) == expected
    assert proxy.bodies() == before

    scenario = f'shared = checkpoint("{UUID}"); shared.share(); say(files=len(os.listdir(shared.view())))'
    job = start(homes, storage, scenario, timeout=10)
    assert [job.told(rank) for rank in range(len(names))] == [[{"files": 1 + others}]] * len(names)
    assert proxy.bodies() < 1.01 * len(saved)  # what all have in part is read again by the block
    for home in set(homes):
        assert lies(home) == []


def test_a_tensor_that_came_wrong_ends_it_for_all_and_the_next_load_reads_it_again(
    start: Start, proxy: Proxy, bucket: str, upload: Callable[..., None], trained: tuple[Any, bytes], tmp_path: Path
) -> None:
    model, saved = trained
    upload({f"{UUID}/state_dict.pth": saved})
    asked: list[str] = []

    def garble_first(asking: Exchange) -> Fault | None:
        start, _, end = asking.headers.get("range", "").removeprefix("bytes=").partition("-")
        if not end or int(end) - int(start) < MIB:
            return None
        asked.append(asking.path)
        return Fault(garble=500_000) if len(asked) == 1 else None

    proxy.faults = garble_first
    scenario = f"""
try:
    checkpoint("{UUID}").load(only="model", process_group=True)
except CasError as error:
    say(error=type(error).__name__, text=str(error))
state = checkpoint("{UUID}").load(only="model", process_group=True)
say(row=state["1.weight"][7].tolist())
"""
    job = start([tmp_path / "a", tmp_path / "b"], proxy.server.storage(bucket), scenario, timeout=10)

    for one in [job.told(rank) for rank in range(2)]:
        assert one[0]["error"] in ("DigestMismatchError", "PeerError")
        assert "expected crc32:" in one[0]["text"]
        assert one[1] == {"row": model[1].weight[7].tolist()}


def test_donors_are_used_whichever_hosts_have_them(
    start: Start, proxy: Proxy, bucket: str, upload: Callable[..., None], tmp_path: Path
) -> None:
    """A checkpoint that shares nearly all its tensors with one that is here costs its new bytes, for each host; where
    only one has that one, it sends what it has put together to the others.
    """
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
    for names, least, most in (("aab", 0.1, 0.3), ("cde", 0.03, 0.15)):  # the first and the last host have none
        before = proxy.bodies()
        job = start([tmp_path / name for name in names], storage, scenario)
        assert [job.told(rank) for rank in range(len(names))] == [[{"done": True}]] * len(names)
        assert least * size < proxy.bodies() - before < most * size
        assert lies(tmp_path / names[0]) == lies(tmp_path / names[2]) == []


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
