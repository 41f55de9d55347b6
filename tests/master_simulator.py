"""A Determined master, simulated: a real HTTP server in a process of its own, with faults that a test scripts.

`Simulator` starts it on 127.0.0.1; what it answers follows the contract for 0.38.1 (`/api/v1`, `/info`, files as
archives), its paging and sorting quirks included. Faults are words, one for each request that comes: `ok`, a status
(`503`, `401`, …), `html`, `garbage`, `cut`, `empty`, `close`, `deep`, `slow:SECONDS`, `redirect:URL`. Run as a program
it reads its data from stdin and prints its port.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import json
import re
import secrets
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import archives

VERSION = "0.38.1"
SALT = "GubPEmmotfiK9TMD6Zdw"
STATES = ["UNSPECIFIED", "ACTIVE", "COMPLETED", "ERROR", "DELETED", "PARTIALLY_DELETED"]
SORT_BY = ["UNSPECIFIED", "UUID", "TRIAL_ID", "BATCH_NUMBER", "END_TIME", "STATE", "SEARCHER_METRIC"]
ORDER_BY = ["UNSPECIFIED", "ASC", "DESC"]
CODES = {
    400: (3, "InvalidArgument"),
    401: (16, "Unauthenticated"),
    403: (7, "PermissionDenied"),
    404: (5, "NotFound"),
    501: (12, "Unimplemented"),
    500: (13, "Internal"),
}


# --- the data, as tests make it ----------------------------------------------------------------------------------


@dataclass
class Data:
    """What the master knows. `users` maps names to passwords; an inactive user's begins with a `!`."""

    users: dict[str, str] = field(default_factory=lambda: {"determined": "", "alice": "wonder"})
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
        arguments = [sys.executable, __file__, str(self._certificate or ""), self._prefix]
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

    def add(self, **checkpoint: Any) -> None:
        """Add a checkpoint to the running server."""
        self._data.checkpoint(**checkpoint)
        self._control("add", self._data.checkpoints[-1])

    def _control(self, verb: str, value: Any) -> Any:
        context = ssl._create_unverified_context() if self._certificate else None
        request = urllib.request.Request(f"{self.url}/_control/{verb}", data=json.dumps(value).encode())
        with urllib.request.urlopen(request, timeout=10, context=context) as answer:
            return json.load(answer)


# --- the server --------------------------------------------------------------------------------------------------


class Refusal(Exception):
    """An error of /api/v1."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Master:
    """The state, and what each endpoint answers."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data
        self.lock = threading.Lock()
        self.tokens: dict[str, str] = {}
        self.script: list[str] = []
        self.asked: list[dict[str, Any]] = []
        self.experiments = {one["id"]: one for one in data["experiments"]}
        self.trials = {one["id"]: one for one in data["trials"]}

    # --- beside the API ---

    def control(self, verb: str, value: Any) -> Any:
        with self.lock:
            if verb == "faults":
                self.script = value
            elif verb == "expire":
                self.tokens.clear()
            elif verb == "add":
                self.data["checkpoints"].append(value)
            elif verb == "requests":
                asked, self.asked = self.asked, []
                return asked
        return None

    # --- users ---

    def login(self, body: dict[str, Any]) -> dict[str, Any]:
        name, given = body.get("username", ""), body.get("password", "")
        if not name:
            raise Refusal(400, "missing argument: username")
        known = self.data["users"].get(name)
        password = (known or "").removeprefix("!")
        wanted = hashlib.sha512((SALT + password).encode()).hexdigest() if password else ""
        if not body.get("isHashed"):
            given = hashlib.sha512((SALT + given).encode()).hexdigest() if given else ""
        if known is None or given != wanted:
            raise Refusal(401, "invalid credentials")
        if known.startswith("!"):
            raise Refusal(403, "user is not active")
        token = f"v2.public.{secrets.token_urlsafe(24)}"
        with self.lock:
            self.tokens[token] = name
        return {"token": token, "user": self.user(name)}

    def user(self, name: str) -> dict[str, Any]:
        return {"id": 2, "username": name, "admin": False, "active": True, "agentUserGroup": None, "displayName": ""}

    def whoever(self, header: str | None) -> str:
        if not header:
            raise Refusal(401, "token missing")
        name = self.tokens.get(header.removeprefix("Bearer ")) if header.startswith("Bearer ") else None
        if name is None:
            raise Refusal(401, "invalid credentials")
        return name

    # --- experiments and trials ---

    def experiment(self, text: str) -> dict[str, Any]:
        id = _path_id(text)
        if id not in self.experiments:
            raise Refusal(404, f"experiment '{id}' not found")
        one = self.experiments[id]
        trials = sorted(trial["id"] for trial in self.trials.values() if trial["experimentId"] == id)
        body = {
            "id": id,
            "name": one["name"],
            "state": one.get("state", "STATE_COMPLETED"),
            "config": one["config"],
            "originalConfig": "",
            "startTime": "2024-03-01T13:00:00Z",
            "endTime": None,
            "archived": False,
            "numTrials": len(trials),
            "trialIds": trials,
            "labels": [],
            "description": "",
            "notes": "",
            "progress": 1,
            "username": "determined",
            "userId": 2,
            "searcherType": "grid",
            "searcherMetric": "",
            "forkedFrom": None,
            "unmanaged": False,
        }
        return {"experiment": body, "jobSummary": None, "config": one["config"]}

    def trial(self, text: str) -> dict[str, Any]:
        id = _path_id(text)
        if id not in self.trials:
            raise Refusal(404, f"trial '{id}' not found")
        one = self.trials[id]
        body = {
            "id": id,
            "experimentId": one["experimentId"],
            "state": "STATE_COMPLETED",
            "hparams": one["hparams"],
            "startTime": "2024-03-01T13:00:00Z",
            "endTime": None,
            "restarts": 0,
            "totalBatchesProcessed": 800,
            "bestValidation": None,
            "latestValidation": None,
            "bestCheckpoint": None,
            "summaryMetrics": {},
            "taskId": f"{one['experimentId']}.task-{id}",
            "taskIds": [],
            "warmStartCheckpointUuid": "",
        }
        return {"trial": body}

    # --- checkpoints ---

    def render(self, one: dict[str, Any]) -> dict[str, Any]:
        trial = self.trials.get(one["trial"])
        nothing = {"avgMetrics": None, "batchMetrics": []}
        training: dict[str, Any] = {"experimentConfig": None, "hparams": None, "trainingMetrics": nothing}
        training["validationMetrics"] = {"avgMetrics": one["metrics"], "batchMetrics": []}
        if trial is not None:
            config = self.experiments[trial["experimentId"]]["config"]
            training |= {"trialId": trial["id"], "experimentId": trial["experimentId"]}
            training |= {"experimentConfig": config, "hparams": trial["hparams"]}
            value = _searcher_value(one, config)
            if value is not None:
                training["searcherMetric"] = value
        metadata = {"determined_version": VERSION} | ({} if one["steps"] is None else {"steps_completed": one["steps"]})
        return {
            "taskId": "2.task-6",
            "allocationId": "2.task-6.1",
            "uuid": one["uuid"],
            "reportTime": one["time"],
            "resources": one.get("resources", {"metadata.json": "62", "code/": "0"}),
            "metadata": one.get("metadata", metadata),
            "state": f"STATE_{one['state']}",
            "training": training,
        }

    def checkpoint(self, text: str) -> dict[str, Any]:
        if not text:
            raise Refusal(501, "Not Implemented")
        bare = text.lower().removeprefix("urn:uuid:").strip("{}").replace("-", "")
        if len(text) not in (32, 36, 38, 45):
            raise Refusal(500, f"invalid UUID length: {len(text)}")
        if not re.fullmatch("[0-9a-f]{32}", bare):
            raise Refusal(500, "invalid UUID format")
        for one in self.data["checkpoints"]:
            if one["uuid"].replace("-", "") == bare:
                return {"checkpoint": self.render(one)}
        raise Refusal(404, f"checkpoint '{text}' not found")

    def experiment_checkpoints(self, text: str, query: dict[str, list[str]]) -> dict[str, Any]:
        config = self.experiment(text)["config"]
        mine = {trial["id"] for trial in self.trials.values() if trial["experimentId"] == int(text)}
        return self._list(mine, config, query, of_trial=False)

    def trial_checkpoints(self, text: str, query: dict[str, list[str]]) -> dict[str, Any]:
        trial = self.trial(text)["trial"]
        config = self.experiments[trial["experimentId"]]["config"]
        return self._list({trial["id"]}, config, query, of_trial=True)

    def _list(self, trials: set[int], config: dict[str, Any], query: dict[str, list[str]], *, of_trial: bool) -> Any:
        ask = _Query(query)
        states = {ask.enum("states", text, STATES, "STATE_") for text in ask.every("states")}
        rows = [one for one in self.data["checkpoints"] if one["trial"] in trials]
        rows = [one for one in rows if not states or one["state"] in states]
        rows.sort(key=lambda one: str(one["time"]), reverse=True)
        rows = _sorted(rows, ask, config, of_trial=of_trial)
        offset, limit, total = ask.number("offset"), ask.number("limit"), len(rows)
        start = offset if offset >= 0 else total + offset
        if not 0 <= start <= total:
            raise Refusal(400, "offset out of bounds")
        if limit < 0:
            raise Refusal(500, "reflect.Value.Slice: slice index out of bounds")
        end = total if limit == 0 else min(start + limit, total)
        pagination = {"offset": offset, "limit": limit, "startIndex": start, "endIndex": end, "total": total}
        return {"checkpoints": [self.render(one) for one in rows[start:end]], "pagination": pagination}


class _Query:
    """Parameters, in camelCase or snake_case; of a scalar given twice the first counts."""

    def __init__(self, query: dict[str, list[str]]) -> None:
        self._values: dict[str, list[str]] = {}
        for name, values in query.items():
            camel = re.sub(r"_(.)", lambda found: found.group(1).upper(), name)
            self._values.setdefault(camel, []).extend(values)

    def every(self, name: str) -> list[str]:
        return self._values.get(name, [])

    def text(self, name: str) -> str:
        return self._values.get(name, [""])[0]

    def number(self, name: str) -> int:
        if name not in self._values:
            return 0
        text = self.text(name)
        if not re.fullmatch(r"[+-]?\d+", text):
            raise Refusal(400, f'strconv.ParseInt: parsing "{text}": invalid syntax')
        return int(text)

    def enum(self, name: str, text: str, names: list[str], prefix: str) -> str:
        if not text:
            return names[0]
        if text.isdigit() and int(text) < len(names):
            return names[int(text)]
        if text.removeprefix(prefix) not in names or not text.startswith(prefix):
            raise Refusal(400, f"{text} is not a valid {name}")
        return text.removeprefix(prefix)


def _searcher_value(one: dict[str, Any], config: dict[str, Any]) -> Any:
    return (one["metrics"] or {}).get(config.get("searcher", {}).get("metric"))


def _sorted(rows: list[dict[str, Any]], ask: _Query, config: dict[str, Any], *, of_trial: bool) -> list[dict[str, Any]]:
    metric = ask.text("sortByMetric")
    attribute = ask.enum("checkpointv1.SortBy", ask.text("sortByAttr"), SORT_BY, "SORT_BY_")
    order = ask.enum("checkpointv1.OrderBy", ask.text("orderBy"), ORDER_BY, "ORDER_BY_")
    if metric and attribute != "UNSPECIFIED":
        raise Refusal(400, "cannot sort by both an attribute and a metric")
    lacking_last = False
    if metric:
        key = functools.partial(_metric, metric=metric, strict=len(rows) > 1)
    elif attribute == "SEARCHER_METRIC":
        key = functools.partial(_metric, metric=config.get("searcher", {}).get("metric", ""), strict=False)
        lacking_last = not of_trial
        if not of_trial and order == "UNSPECIFIED":
            smaller = config.get("searcher", {}).get("smaller_is_better", True) is not False
            order = "ASC" if smaller else "DESC"
    else:
        key = {
            "UUID": lambda one: one["uuid"],
            "BATCH_NUMBER": lambda one: one["steps"],
            "END_TIME": lambda one: one["time"],
            "STATE": lambda one: STATES.index(one["state"]),
        }.get(attribute, lambda one: one["trial"])
    descending = order == "DESC"

    def before(a: dict[str, Any], b: dict[str, Any]) -> bool:
        """The comparator; it is false both ways where NaN takes part, as the real one is."""
        x, y = key(a), key(b)
        if (x is None) != (y is None):
            if lacking_last:
                return y is None
            return (x is None) != descending
        if x == y:
            return bool((a["time"] > b["time"]) if descending else (a["time"] < b["time"]))
        return bool((x > y) if descending else (x < y))

    return sorted(rows, key=functools.cmp_to_key(lambda a, b: -1 if before(a, b) else 1 if before(b, a) else 0))


def _metric(one: dict[str, Any], *, metric: str, strict: bool) -> float | None:
    value = (one["metrics"] or {}).get(metric)
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if strict:
        kind = {str: "string", bool: "bool"}.get(type(value), "map[string]interface {}")
        raise Refusal(500, f"interface conversion: interface {{}} is {kind}, not float64")
    return float(value.replace("Infinity", "inf")) if isinstance(value, str) else None


def _path_id(text: str) -> int:
    if not re.fullmatch(r"-?\d+", text):
        reason = f'strconv.ParseInt: parsing "{text}": invalid syntax'
        raise Refusal(400, f"type mismatch, parameter: id, error: {reason}")
    return int(text)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    master: Master
    prefix: str

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        path = parts.path.removeprefix(self.prefix) if parts.path.startswith(self.prefix) else "/elsewhere"
        if path.startswith("/_control/"):
            self._send(200, json.dumps(self.master.control(path.rpartition("/")[2], json.loads(body))).encode())
            return
        query = parse_qs(parts.query, keep_blank_values=True)
        seen = {"method": self.command, "path": path, "query": query, "headers": dict(self.headers)}
        with self.master.lock:
            self.master.asked.append(seen | {"body": body.decode("utf-8", "replace")})
            fault = self.master.script.pop(0) if self.master.script else "ok"
        if fault.startswith("slow:"):
            time.sleep(float(fault.partition(":")[2]))
            fault = "ok"
        if path.startswith("/checkpoints/") and fault in ("ok", "cut"):
            self._send_files(path.rpartition("/")[2], cut=fault == "cut")
        elif fault == "ok" or fault == "cut":
            status, answer = self._ask(path, query, body)
            self._send(status, json.dumps(answer).encode(), cut=fault == "cut")
        else:
            self._fail(fault)

    def _ask(self, path: str, query: dict[str, list[str]], body: bytes) -> tuple[int, Any]:
        if path == "/info":
            return 200, {"version": VERSION, "master_id": "m", "cluster_id": "c", "cluster_name": "", "telemetry": {}}
        if not path.startswith("/api/v1/"):
            return 404, {"message": "Not Found"}
        try:
            return 200, self._api(path.removeprefix("/api/v1/"), query, body)
        except Refusal as refusal:
            code, reason = CODES[refusal.status]
            return refusal.status, {"error": {"code": code, "reason": reason, "error": str(refusal)}}

    def _api(self, path: str, query: dict[str, list[str]], body: bytes) -> Any:
        if (self.command, path) == ("POST", "auth/login"):
            return self.master.login(json.loads(body))
        user = self.master.whoever(self.headers.get("Authorization"))
        if self.command != "GET":
            raise Refusal(501, "Not Implemented")
        if path == "me":
            return {"user": self.master.user(user)}
        kind, _, rest = path.partition("/")
        id, _, more = rest.partition("/")
        if kind == "experiments":
            return (
                self.master.experiment_checkpoints(id, query) if more == "checkpoints" else self.master.experiment(id)
            )
        if kind == "trials":
            return self.master.trial_checkpoints(id, query) if more == "checkpoints" else self.master.trial(id)
        if kind == "checkpoints":
            return self.master.checkpoint(id)
        raise Refusal(501, "Not Implemented")

    def _send_files(self, uuid: str, *, cut: bool) -> None:
        """Send a checkpoint's `folder` as the archive that `Accept` names as a whole."""
        accept = self.headers.get("Accept", "")
        found = [one for one in self.master.data["checkpoints"] if one["uuid"] == uuid]
        kind = archives.TYPES[0] if accept in ("", "*/*", "application/*") else accept
        if not self.master.tokens.get(self.headers.get("Authorization", "").removeprefix("Bearer ")):
            self._send(401, b'{"message": "Unauthorized"}')
        elif kind not in archives.TYPES or (found and kind not in found[0].get("kinds", archives.TYPES)):
            text = f"unsupported media type to download a checkpoint: '{accept}'"
            self._send(415, json.dumps({"message": text}).encode())
        elif not found:
            self._send(404, json.dumps({"message": f"checkpoint '{uuid}' not found"}).encode())
        elif not Path(found[0].get("folder", "/nowhere")).is_dir():
            text = f"unable to download checkpoint {uuid}: checkpoint archive failed, please verify that file system"
            self._send(500, json.dumps({"message": text}).encode())
        else:
            body = archives.archive(archives.files_of(Path(found[0]["folder"])), kind)
            self._send_archive(body, kind, cut=cut)

    def _send_archive(self, body: bytes, kind: str, *, cut: bool) -> None:
        """A tar with its length, the others in chunks, as the master does."""
        self.send_response(200)
        self.send_header("Content-Type", kind)
        whole = kind == archives.TYPES[0]
        self.send_header(*(("Content-Length", str(len(body))) if whole else ("Transfer-Encoding", "chunked")))
        self.end_headers()
        sent = body[: len(body) // 2] if cut else body
        for at in range(0, len(sent), 50_000):
            block = sent[at : at + 50_000]
            self.wfile.write(block if whole else b"%x\r\n%s\r\n" % (len(block), block))
        if not whole and not cut:
            self.wfile.write(b"0\r\n\r\n")
        self.close_connection = cut

    def _fail(self, fault: str) -> None:
        if fault.startswith("redirect:"):
            self.send_response(302)
            self.send_header("Location", fault.partition(":")[2])
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif fault == "html":
            self._send(200, b"<html><body>Please log in to the proxy</body></html>", kind="text/html")
        elif fault == "html-401":
            self._send(401, b"<html>no</html>", kind="text/html")
        elif fault == "garbage":
            self._send(200, secrets.token_bytes(10 << 20))
        elif fault == "empty":
            self._send(200, b"")
        elif fault == "deep":
            self._send(200, b"[" * 200_000 + b"]" * 200_000)
        elif fault == "echo":  # an error that quotes the request
            self._send(400, json.dumps({"message": f"bad header {self.headers.get('Authorization')}\nagain"}).encode())
        elif fault == "close":
            self.close_connection = True
            self.connection.close()
        elif fault.startswith("json:"):
            self._send(200, fault.partition(":")[2].encode())
        else:
            code, reason = CODES.get(int(fault), (14, "Unavailable"))
            body = {"error": {"code": code, "reason": reason, "error": f"scripted {fault}"}}
            self._send(int(fault), json.dumps(body).encode())

    def _send(self, status: int, body: bytes, *, kind: str = "application/json", cut: bool = False) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if "gzip" in self.headers.get("Accept-Encoding", ""):
            body = gzip.compress(body, 1)
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.wfile.flush()
            self.close_connection = True


def main(certificate: str, prefix: str) -> None:
    """Serve until killed, or until stdin ends."""
    Handler.master = Master(json.loads(sys.stdin.readline()))
    Handler.prefix = prefix
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_address[1], flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
