"""A Determined master, simulated: a real HTTP server in a process of its own, with faults that a test scripts.

`Simulator` starts it on 127.0.0.1; what it answers follows the contract: that of 0.38.1 (`/api/v1`, `/info`), its
paging and sorting quirks included, that of the flat checkpoints before 0.18, or that of 0.12, by the version of its
`Data`. Faults are words, one for each request that comes: `ok`, a status (`503`, `401`, …), `html`, `garbage`, `cut`,
`empty`, `close`, `deep`, `slow:SECONDS`, `drip:SECONDS` (the body byte by byte), `drip-head:SECONDS` (no end of the
headers), `type` (a wrong content type), `redirect:URL`.
"""

from __future__ import annotations

import json
import ssl
import subprocess
import sys
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

VERSION = "0.38.1"
SERVER = Path(__file__).with_name("master_server.py")


# --- the data, as tests make it ----------------------------------------------------------------------------------


@dataclass
class Data:
    """What the master knows. `users` maps names to passwords; an inactive user's begins with a `!`."""

    version: str = VERSION
    users: dict[str, str] = field(default_factory=lambda: {"determined": "", "alice": "wonder"})
    commands: bool = True  # of 0.12: whether it answers what only its commands ask for
    null_is_500: bool = True  # of 0.12: whether one checkpoint with no validation makes a list an error
    experiments: list[dict[str, Any]] = field(default_factory=list)
    trials: list[dict[str, Any]] = field(default_factory=list)
    checkpoints: list[dict[str, Any]] = field(default_factory=list)

    def experiment(self, id: int, **config: Any) -> None:
        """Add an experiment."""
        self.experiments.append({"id": id, "name": f"experiment-{id}", "config": config})

    def trial(self, id: int, experiment: int, **hparams: Any) -> None:
        """Add a trial."""
        self.trials.append({"id": id, "experimentId": experiment, "hparams": hparams})

    def checkpoint(
        self,
        uuid: str,
        *,
        trial: int | None,
        steps: int | None = 100,
        metrics: dict[str, Any] | None = None,
        state: str = "COMPLETED",
        time: str = "2024-03-01T13:00:37.250Z",
        **more: Any,
    ) -> None:
        """Add a checkpoint; metrics that are NaN or infinite are written as the strings that masters write."""
        self.checkpoints.append(
            {"uuid": uuid, "trial": trial, "steps": steps, "metrics": metrics, "state": state, "time": time, **more}
        )


class Simulator:
    """Starts the server and talks to it beside the API: `with Simulator(data) as master: master.url`."""

    def __init__(self, data: Data, *, certificate: Path | None = None, prefix: str = "") -> None:
        self._data = data
        self._certificate = certificate  # PEM with key and certificate; then it speaks HTTPS
        self._prefix = prefix
        self._child: subprocess.Popen[str] | None = None
        self.port = 0

    def __enter__(self) -> Self:
        arguments = [sys.executable, str(SERVER), str(self._certificate or ""), self._prefix]
        self._child = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(json.dumps(self._data.__dict__) + "\n")
        self._child.stdin.flush()
        self.port = int(self._child.stdout.readline())
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """Kill the server."""
        if self._child is None:
            return
        self._child.kill()
        self._child.wait()
        for stream in (self._child.stdin, self._child.stdout):
            if stream is not None:
                stream.close()
        self._child = None

    @property
    def url(self) -> str:
        """Its canonical URL."""
        return f"{'https' if self._certificate else 'http'}://127.0.0.1:{self.port}{self._prefix}"

    def faults(self, script: str) -> None:
        """Do this with the next requests, one word each."""
        self._control("faults", script.split())

    def requests(self) -> list[dict[str, Any]]:
        """Return what was asked since the last time: method, path, query, headers, body."""
        found: list[dict[str, Any]] = self._control("requests", None)
        return found

    def expire_tokens(self) -> None:
        """Let every session end, as after seven days."""
        self._control("expire", None)

    def remove(self, uuid: str) -> None:
        """Remove a checkpoint from the running server."""
        self._control("remove", uuid)

    def add(self, **checkpoint: Any) -> None:
        """Add a checkpoint to the running server."""
        self._data.checkpoint(**checkpoint)
        self._control("add", self._data.checkpoints[-1])

    def replace(self, data: Data) -> None:
        """Let the running server know this instead; its users stay."""
        self._control("replace", data.__dict__)

    def _control(self, verb: str, value: Any) -> Any:
        context = ssl._create_unverified_context() if self._certificate else None
        request = urllib.request.Request(f"{self.url}/_control/{verb}", data=json.dumps(value).encode())
        with urllib.request.urlopen(request, timeout=10, context=context) as answer:
            return json.load(answer)
