"""Cold downloads from S3 beside peers, and second ones: four kinds of checkpoints, in memory and on disk."""

from __future__ import annotations

import json
import statistics
import subprocess
from collections.abc import Callable

from bench import peers
from bench.ground import MIB, Files, Ground, Uploaded, random_files, remove, saved, state_dict
from bench.harness import Contender, Goal, job, process

FETCHED = {"hashed": Goal(1.0), "unchecked": Goal(1.15), "sdk": Goal(0.55)}  # of large files
SLOW = 2  # rounds of the peers that take several times as long, in memory; of others 1, for the time of all
DISK_ROUNDS = 3
_PAGE_CACHE = (
    "On disk everybody writes into the page cache, and the kernel to the disk behind them: nobody waits for that,\n"
    "and what is hashed or copied next comes from memory. Before each run the disk is let come to rest (sync)."
)


def cold(ground: Ground) -> None:
    """One file of 1 GiB, cold: pulled, and downloaded into a folder."""
    size = ground.size.gib
    work = ground.upload(random_files({"state_dict.pth": size}))
    pulled(ground, work, f"one file of {size // MIB} MiB", FETCHED)
    copied(ground, work, f"one file of {size // MIB} MiB")


def eight(ground: Ground) -> None:
    """8 files of 256 MiB, cold: pulled."""
    size = ground.size.gib // 4
    work = ground.upload(random_files({f"model-{number}-of-8.bin": size for number in range(8)}))
    pulled(ground, work, f"8 files of {size // MIB} MiB", FETCHED, rounds=3, slow=1)


def small(ground: Ground) -> None:
    """5,000 files of 200 B to 20 kB, cold: pulled."""
    count = ground.size.of(5000)
    work = ground.upload(random_files(small_sizes(count)))
    goals = {"unchecked": Goal(1.2), "sdk": Goal(0.12)}
    pulled(ground, work, f"{count} files of 200 B to 20 kB", goals, rounds=3, slow=1)


def mixed(ground: Ground) -> None:
    """A checkpoint as trials leave it, 1.1 GiB: weights, optimizer shards, code, hundreds of small files; cold."""
    work = ground.upload(mixed_files(ground))
    what = f"a checkpoint of {len(work.sizes)} files, {work.size // MIB} MiB"
    pulled(ground, work, what, FETCHED, rounds=3)
    copied(ground, work, what, rounds=3)


def small_sizes(count: int) -> dict[str, int]:
    """Return names and sizes of small files; the sizes are spread evenly."""
    return {f"part-{number // 100}/{number}.bin": 200 + (number * 7919) % 19800 for number in range(count)}


def mixed_files(ground: Ground) -> Files:
    """Yield the files of a mixed checkpoint; the weights are a stock `torch.save` file of 700 MiB."""
    yield "state_dict.pth", saved(state_dict(ground.size.of(175, least=4)))
    yield from random_files({f"optimizer/rank-{rank}.bin": ground.size.of(48 * MIB) for rank in range(8)})
    yield from random_files(small_sizes(ground.size.of(400, least=20)))
    yield "metadata.json", json.dumps({"steps_completed": 1000, "framework": "torch-2.0"}).encode()
    for number in range(30):
        yield f"code/part{number}.py", f"VALUE = {number}\n".encode() * 100


def pulled(
    ground: Ground, work: Uploaded, what: str, goals: dict[str, Goal], *, rounds: int = 5, slow: int = SLOW
) -> None:
    """Compare cold pulls: ours ends with what is hashed, checked, committed, and has a view."""
    rounds, slow = (min(rounds, DISK_ROUNDS), 1) if ground.is_on_disk else (rounds, slow)
    command = process(job("pull", ground.home, ground.storage, work.uuid))
    ours = Contender("cas: pull, hash, commit, view", command, ground.clean)
    ours.after_first = lambda: ground.require_stored(work)
    others = [
        peers.floor(ground, work),
        peers.then_hashed(ground, work, goal=goals.get("hashed")),
        peers.s5cmd(ground, work, goal=goals.get("unchecked")),
        peers.boto3(ground, work, goal=goals.get("sdk"), rounds=slow),
        peers.aws(ground, work, rounds=slow),
        peers.s3fs(ground, work, rounds=slow),
    ]
    ground.report.compare(
        f"Cold pull from S3, {what}", [ours, *others], rounds=rounds, note=_PAGE_CACHE if ground.is_on_disk else ""
    )
    ground.clean()


def copied(ground: Ground, work: Uploaded, what: str, *, rounds: int = 5) -> None:
    """Compare cold downloads into a folder that is to have files of its own."""
    rounds = min(rounds, DISK_ROUNDS) if ground.is_on_disk else rounds
    command = process(job("download", ground.home, ground.storage, work.uuid, ground.copy, "copy"))
    ours = Contender("cas: download() that is a copy", command, ground.clean)
    ours.after_first = lambda: ground.require_fetched(work, ground.copy)
    others = [peers.then_copied(ground, work, goal=Goal(1.0))]
    ground.report.compare(f"Cold download into a folder, {what}", [ours, *others], rounds=rounds)
    ground.clean()


def again(ground: Ground) -> None:
    """Download 1 GiB that is in the store, in process."""
    work = ground.upload(random_files({"state_dict.pth": ground.size.gib}))
    subprocess.run(job("download", ground.home, ground.storage, work.uuid, ground.target), check=True)

    def measured(link: str) -> Callable[[], float]:
        command = job("again", ground.home, ground.storage, work.uuid, ground.folder, link)
        return lambda: statistics.median(json.loads(subprocess.check_output(command)))

    for link, goal in {"copy": Goal(1.1), "hardlink": Goal(0.1)}.items():
        plain = process(["cp", "-r", str(ground.target), str(ground.copy)])
        peer = Contender("cp -r", plain, lambda: remove(ground.copy), goal)
        ours = Contender(f"cas: {link}", measured(link))
        ground.report.compare(f"Second download of {work.size // MIB} MiB, in process: {link}", [ours, peer])
