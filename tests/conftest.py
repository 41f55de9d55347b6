"""What more than one test file needs: a real S3 server, once for all tests, and buckets in it."""

from __future__ import annotations

import signal
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from jobs import Start, starting
from proxy import Proxy, counting
from s3_server import S3Server, running
from users import folder_for_all

# They fork for every step of an operation: first, while the process that forks is small, and because they take longest.
FORKING = ("test_kills", "test_hints_disk", "test_power_cut", "test_prune_faults", "test_interleave", "test_repair")


# A run that a shell started in the background ignores Ctrl-C, and so would all processes that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the files that fork most, and take longest, first."""
    items.sort(key=lambda item: item.path.stem not in FORKING)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    shared = Path("/dev/shm")
    with running(shared if shared.is_dir() else None) as server:
        yield server


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory, where syncing costs nothing: what a power cut leaves is shown elsewhere."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as name:
        yield Path(name)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder for tests with several users; what the interpreter imports late, it has imported."""
    from stores import UUID, tagged

    from cas.index.check import check
    from cas.index.store import Store
    from cas.load.views import make_view

    with folder_for_all() as folder:
        warm = Store(folder / "warm")  # the interpreter may lie where other users cannot import from
        manifest = tagged(warm, UUID, {"a": b"x" * 5000, "b": b""})
        make_view(warm, manifest)
        with warm.exclusive("warm"):
            check(warm, deep=True)
        warm.close()
        yield folder


@pytest.fixture
def bucket(s3_server: S3Server) -> str:
    """A new, empty bucket."""
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    client = s3_server.client()
    client.create_bucket(Bucket=name)
    client.close()
    return name


@pytest.fixture
def upload(s3_server: S3Server, bucket: str) -> Callable[..., None]:
    """`upload({key: bytes}, part_size=None)`: put objects into the bucket; larger ones in parts if a size is given."""

    def put(objects: dict[str, bytes], part_size: int | None = None, **options: str) -> None:
        import io

        from boto3.s3.transfer import TransferConfig

        client = s3_server.client()
        for key, data in objects.items():
            if part_size is None:
                client.put_object(Bucket=bucket, Key=key, Body=data, **options)
            else:
                config = TransferConfig(multipart_threshold=part_size, multipart_chunksize=part_size)
                client.upload_fileobj(io.BytesIO(data), bucket, key, Config=config)
        client.close()

    return put


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[Proxy]:
    """A proxy in front of the S3 server, which counts and spoils what goes through it."""
    with counting(s3_server) as running:
        yield running


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """`start(homes, storage, scenario)`: a job of real ranks, which ends with the test."""
    with starting(tmp_path) as start:
        yield start
