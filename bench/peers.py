"""What ours is measured beside: each peer does the same download as its users have it do.

They lie in `.venv-peers`, which `make bench` makes; of a peer that is not there the table says so.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.floor import THREADS
from bench.ground import Ground, Uploaded
from bench.harness import Contender, Goal, job, process

FOLDER = Path(__file__).parent.parent / ".venv-peers" / "bin"
_HASH = """\
import pathlib, sys, blake3
for path in pathlib.Path(sys.argv[1]).rglob("*"):
    if path.is_file():
        hasher = blake3.blake3(max_threads=blake3.blake3.AUTO)
        _ = hasher.update_mmap(path) if path.stat().st_size >= 1 << 20 else hasher.update(path.read_bytes())
        print(hasher.hexdigest(), path)
"""
_S3FS = """\
import sys, s3fs
url, source, target = sys.argv[1:]
s3fs.S3FileSystem(endpoint_url=url).get(source, target, recursive=True)
"""


def floor(ground: Ground, work: Uploaded) -> Contender:
    """The server drained with the bytes thrown away, one copy, BLAKE3; see `bench/floor.py`."""
    task = ground.folder / f"floor-{work.uuid}.json"

    def url(name: str) -> str:
        wanted = {"Bucket": "bench", "Key": f"{work.uuid}/{name}"}
        return str(ground.client.generate_presigned_url("get_object", Params=wanted, ExpiresIn=36_000))

    task.write_text(json.dumps([ground.server.port, [(url(name), size) for name, size in work.sizes.items()]]))
    command = [sys.executable, "-m", "bench.floor", str(task), str(ground.target)]
    name = f"the floor: drained by {THREADS} plain sockets, one copy, BLAKE3"
    return Contender(name, process(command), ground.clean)


def s5cmd(
    ground: Ground,
    work: Uploaded,
    name: str = "s5cmd, unchecked",
    *,
    then: Sequence[str] | None = None,
    goal: Goal | None = None,
) -> Contender:
    """s5cmd, the fastest; and then something with what it got."""
    copy = ["--endpoint-url", ground.server.endpoint, "cp", f"s3://bench/{work.uuid}/*", f"{ground.target}/"]
    return _peer("s5cmd", copy, ground, work, name, then=then, goal=goal)


def then_hashed(ground: Ground, work: Uploaded, *, goal: Goal | None = None) -> Contender:
    """s5cmd, then BLAKE3 of every file: the same work as ours."""
    command = [sys.executable, "-c", _HASH, str(ground.target)]
    return s5cmd(ground, work, "s5cmd, then BLAKE3 on all cores", then=command, goal=goal)


def then_copied(ground: Ground, work: Uploaded, *, goal: Goal | None = None) -> Contender:
    """s5cmd, then `cp` into the folder where it is wanted."""
    return s5cmd(ground, work, "s5cmd, then cp", then=["cp", "-r", str(ground.target), str(ground.copy)], goal=goal)


def aws(ground: Ground, work: Uploaded, *, rounds: int) -> Contender:
    """The AWS CLI with its defaults."""
    source, target = f"s3://bench/{work.uuid}/", str(ground.target)
    copy = ["--endpoint-url", ground.server.endpoint, "s3", "cp", "--recursive", source, target]
    return _peer("aws", copy, ground, work, "AWS CLI", rounds=rounds)


def s3fs(ground: Ground, work: Uploaded, *, rounds: int) -> Contender:
    """s3fs, which people use through fsspec."""
    copy = ["-c", _S3FS, ground.server.endpoint, f"bench/{work.uuid}/", f"{ground.target}/"]
    return _peer("s3fs", copy, ground, work, "s3fs", program="python", rounds=rounds)


def boto3(ground: Ground, work: Uploaded, *, rounds: int | None = None, goal: Goal | None = None) -> Contender:
    """boto3 as the Determined client uses it: one object after the other."""
    command = process(job("sdk", ground.storage, work.uuid, ground.target))
    name = "boto3 as the Determined client"
    return Contender(name, command, ground.clean, goal, rounds, lambda: ground.require_fetched(work, ground.target))


def _peer(
    package: str,
    words: Sequence[str],
    ground: Ground,
    work: Uploaded,
    name: str,
    *,
    program: str | None = None,
    then: Sequence[str] | None = None,
    goal: Goal | None = None,
    rounds: int | None = None,
) -> Contender:
    keys = {
        "AWS_ACCESS_KEY_ID": ground.server.access_key,
        "AWS_SECRET_ACCESS_KEY": ground.server.secret_key,
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }
    commands = [[str(FOLDER / (program or package)), *words], *([then] if then else [])]
    return Contender(
        name,
        process(*commands, environment={**os.environ, **keys}),
        ground.clean,
        goal,
        rounds,
        lambda: ground.require_fetched(work, ground.target),
        missing="" if versions().get(package) else "not here: `make bench` brings it into .venv-peers",
    )


def versions() -> dict[str, str]:
    """Return which peers are there, and their versions."""
    if not (FOLDER / "python").exists():
        return {}
    listed = "import importlib.metadata as m, json; print(json.dumps({d.name: d.version for d in m.distributions()}))"
    found = json.loads(subprocess.check_output([FOLDER / "python", "-c", listed]))
    return {"aws" if name == "awscli" else name: found[name] for name in ("s5cmd", "awscli", "s3fs") if name in found}
