"""What the simulated master of 0.12 answers: `/login`, `/checkpoints?…`, and what only its commands asked for."""

from __future__ import annotations

import hashlib
import json
import secrets
from typing import Any

from master_v1 import SALT, Master

NULL = 'sql: Scan error on column index 9, name "validation_state": converting NULL to string is unsupported'


def answer(
    master: Master, method: str, path: str, query: dict[str, list[str]], body: bytes, header: str | None
) -> tuple[int, Any]:
    if (method, path) == ("POST", "/login"):
        return _log_in(master, json.loads(body))
    if not header:
        return 401, {"message": "Unauthorized"}
    name = master.tokens.get(header.removeprefix("Bearer "))
    if name is None:
        return 403, {"message": "Forbidden"}
    if (method, path) == ("POST", "/logout"):
        master.log_out(header)
        return 200, {}
    if method != "GET":
        return 405, {"message": "Method Not Allowed"}
    if path == "/users/me":
        return 200, {"id": 2, "username": name, "admin": False, "active": True}
    return _get(master, path.strip("/").split("/"), query)


def _log_in(master: Master, body: dict[str, Any]) -> tuple[int, Any]:
    name = body["username"].lower()
    known = master.data["users"].get(name)
    password = (known or "").removeprefix("!")
    wanted = hashlib.sha512((SALT + password).encode()).hexdigest() if password else ""
    if known is None or known.startswith("!") or body["password"] != wanted:
        return 403, {"message": "invalid credentials"}
    token = f"v2.public.{secrets.token_urlsafe(24)}"
    with master.lock:
        master.tokens[token] = name
    return 200, {"token": token}


def _get(master: Master, parts: list[str], query: dict[str, list[str]]) -> tuple[int, Any]:
    commands = master.data["commands"]
    match parts:
        case ["checkpoints"]:
            return _list(master, query)
        case ["checkpoints", uuid]:
            found = [one for one in master.data["checkpoints"] if one["uuid"] == uuid]
            if not found:
                return 500, {"message": "record not found"}
            return _scanned(master, found, one=True)
        case ["experiments", id, "checkpoints"] if commands and int(id) in master.experiments:
            return 200, _listed(master, int(id), query)
        case ["experiments", id, "config"] if commands and int(id) in master.experiments:
            return 200, master.experiments[int(id)]["config"]
        case ["trials", id] if commands and int(id) in master.trials:
            trial = master.trials[int(id)]
            known = {"id": trial["id"], "experiment_id": trial["experimentId"], "hparams": trial["hparams"]}
            return 200, known | {
                "state": "COMPLETED",
                "start_time": "2020-06-12T09:00:00Z",
                "end_time": None,
                "steps": [],
            }
    return 404, {"message": "Not Found"}


def _list(master: Master, query: dict[str, list[str]]) -> tuple[int, Any]:
    every = sorted(master.data["checkpoints"], key=lambda one: str(one["time"]), reverse=True)
    if "experiment_id" in query:
        id = int(query["experiment_id"][0])
        trials = {one["id"] for one in master.trials.values() if one["experimentId"] == id}
        wanted = [one for one in every if one["trial"] in trials and one["state"] == "COMPLETED"]
        return _scanned(master, [one for one in wanted if one["metrics"] is not None])
    if "trial_id" in query:
        return _scanned(master, [one for one in every if one["trial"] == int(query["trial_id"][0])])
    return 500, {"message": "neither experiment_id nor trial_id"}


def _scanned(master: Master, rows: list[dict[str, Any]], *, one: bool = False) -> tuple[int, Any]:
    if master.data["null_is_500"] and any(row["metrics"] is None for row in rows):
        return 500, {"message": NULL}
    found = [_render(master, row) for row in rows]
    return 200, found[0] if one else found


def _render(master: Master, one: dict[str, Any]) -> dict[str, Any]:
    config = master.experiments[master.trials[one["trial"]]["experimentId"]]["config"]
    searcher = config.get("searcher", {})
    metrics = None if one["metrics"] is None else {"num_inputs": 1000, "validation_metrics": one["metrics"]}
    return {
        "uuid": one["uuid"],
        "smaller_is_better": searcher.get("smaller_is_better", True),
        "metric": searcher.get("metric"),
        "checkpoint_storage": config.get("checkpoint_storage"),
        "batch_number": one["steps"],
        "start_time": one["time"],
        "end_time": None if one["state"] == "ACTIVE" else one["time"],
        "resources": {name: int(size) for name, size in one.get("resources", {"metadata.json": 62}).items()},
        "metrics": metrics,
        "validation_state": "" if metrics is None else "COMPLETED",
    }


def _listed(master: Master, experiment: int, query: dict[str, list[str]]) -> dict[str, Any]:
    trials = {one["id"] for one in master.trials.values() if one["experimentId"] == experiment}
    metric = master.experiments[experiment]["config"].get("searcher", {}).get("metric")
    rows = [_row(one) for one in master.data["checkpoints"] if one["trial"] in trials]
    if "best" in query:
        sign = 1 if master.experiments[experiment]["config"]["searcher"].get("smaller_is_better", True) else -1
        able = [row for row in rows if row["step"]["validation"]]
        able.sort(key=lambda row: sign * row["step"]["validation"]["metrics"]["validation_metrics"][metric])
        rows = able[: int(query["best"][0])]
    return {"metric_name": metric, "checkpoints": rows}


def _row(one: dict[str, Any]) -> dict[str, Any]:
    metrics = None if one["metrics"] is None else {"num_inputs": 1000, "validation_metrics": one["metrics"]}
    validation = None if metrics is None else {"id": 1, "state": "COMPLETED", "metrics": metrics}
    return {
        "id": 1,
        "trial_id": one["trial"],
        "step_id": (one["steps"] or 0) // 100,
        "state": one["state"],
        "start_time": one["time"],
        "end_time": None if one["state"] == "ACTIVE" else one["time"],
        "uuid": one["uuid"],
        "resources": {name: int(size) for name, size in one.get("resources", {"metadata.json": 62}).items()},
        "labels": [],
        "step": {"id": (one["steps"] or 0) // 100, "validation": validation},
    }
