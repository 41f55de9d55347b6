"""What the simulated master of 0.13 to 0.38.1 answers under `/api/v1`."""

from __future__ import annotations

import functools
import hashlib
import re
import secrets
import threading
from typing import Any

SALT = "GubPEmmotfiK9TMD6Zdw"
STATES = ["UNSPECIFIED", "ACTIVE", "COMPLETED", "ERROR", "DELETED", "PARTIALLY_DELETED"]
SORT_BY = ["UNSPECIFIED", "UUID", "TRIAL_ID", "BATCH_NUMBER", "END_TIME", "STATE", "SEARCHER_METRIC"]
ORDER_BY = ["UNSPECIFIED", "ASC", "DESC"]


class Refusal(Exception):
    """An error of /api/v1."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def version_of(text: str) -> tuple[int, ...]:
    """A version as numbers; what is none counts as new."""
    found = re.match(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (99, 0)


def spoiled(value: Any) -> Any:
    """A free-form value after it went through Go's JSON: every number a double, `4.0` written as `4`."""
    if isinstance(value, dict):
        return {name: spoiled(one) for name, one in value.items()}
    if isinstance(value, list):
        return [spoiled(one) for one in value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    number = float(value)
    if number != number or number in (float("inf"), float("-inf")):
        return "NaN" if number != number else "Infinity" if number > 0 else "-Infinity"
    return int(number) if number.is_integer() and abs(number) < 1e21 else number


class Master:
    """The state, and what each endpoint answers."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.lock = threading.Lock()
        self.tokens: dict[str, str] = {}
        self.script: list[str] = []
        self.asked: list[dict[str, Any]] = []
        self.version = version_of(data["version"])
        self.know(data)

    def know(self, data: dict[str, Any]) -> None:
        self.data = data
        self.experiments = {one["id"]: one for one in data["experiments"]}
        self.trials = {one["id"]: one for one in data["trials"]}
        self.validations = {(one["trial"], one["steps"]): one["metrics"] for one in data["checkpoints"]}

    # --- beside the API ---

    def control(self, verb: str, value: Any) -> Any:
        with self.lock:
            if verb == "faults":
                self.script = value
            elif verb == "expire":
                self.tokens.clear()
            elif verb == "add":
                self.data["checkpoints"].append(value)
            elif verb == "remove":
                self.data["checkpoints"] = [one for one in self.data["checkpoints"] if one["uuid"] != value]
            elif verb == "replace":
                self.know(value)
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

    def log_out(self, header: str) -> dict[str, Any]:
        with self.lock:
            self.tokens.pop(header.removeprefix("Bearer "), None)
        return {}

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
            "config": spoiled(one["config"]),
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
            "projectId": 1,
            "projectName": "Uncategorized",
            "projectOwnerId": 1,
            "workspaceId": 1,
            "workspaceName": "Uncategorized",
            "jobId": f"job-{id}",
            "resourcePool": "default",
            "parentArchived": False,
            "searcherType": "grid",
            "searcherMetric": "",
            "forkedFrom": None,
            "unmanaged": False,
        }
        return {"experiment": body, "jobSummary": None, "config": spoiled(one["config"])}

    def list_experiments(self, query: dict[str, list[str]]) -> dict[str, Any]:
        """A limit of 0 means 100 here, and -1 all."""
        ask = _Query(query)
        every = sorted(self.experiments)
        limit = {0: 100, -1: 0}.get(ask.number("limit"), ask.number("limit"))
        start, end, pagination = _window(_Query({**query, "limit": [str(limit)]}), len(every))
        return {"experiments": [self._listed(id) for id in every[start:end]], "pagination": pagination}

    def _listed(self, id: int) -> dict[str, Any]:
        mine = {trial["id"] for trial in self.trials.values() if trial["experimentId"] == id}
        count = sum(one["trial"] in mine and one["state"] == "COMPLETED" for one in self.data["checkpoints"])
        return self.experiment(str(id))["experiment"] | {"checkpointCount": count, "checkpointSize": str(62 * count)}

    def trial(self, text: str) -> dict[str, Any]:
        id = _path_id(text)
        if id not in self.trials:
            raise Refusal(404, f"trial '{id}' not found")
        return {"trial": self.one_trial(self.trials[id])}

    def one_trial(self, one: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": one["id"],
            "experimentId": one["experimentId"],
            "state": "STATE_COMPLETED",
            "hparams": spoiled(one["hparams"]),
            "startTime": "2024-03-01T13:00:00Z",
            "endTime": None,
            "restarts": 0,
            "totalBatchesProcessed": 800,
            "bestValidation": None,
            "latestValidation": None,
            "bestCheckpoint": None,
            "summaryMetrics": {},
            "taskId": f"{one['experimentId']}.task-{one['id']}",
            "taskIds": [],
            "warmStartCheckpointUuid": "",
            "runnerState": "",
            "searcherMetricValue": None,
            "totalCheckpointSize": "0",
            "checkpointCount": 0,
            "wallClockTime": 0,
        }

    def experiment_trials(self, text: str, query: dict[str, list[str]]) -> dict[str, Any]:
        self.experiment(text)
        mine = sorted(
            (one for one in self.trials.values() if one["experimentId"] == int(text)), key=lambda one: one["id"]
        )
        start, end, pagination = _window(_Query(query), len(mine))
        return {"trials": [self.one_trial(one) for one in mine[start:end]], "pagination": pagination}

    # --- checkpoints ---

    def render(self, one: dict[str, Any]) -> dict[str, Any]:
        return self.nested(one) if self.version >= (0, 18) else self.flat(one)

    def flat(self, one: dict[str, Any]) -> dict[str, Any]:
        """As masters before 0.18 write it."""
        trial = self.trials[one["trial"]]
        metrics = None if one["metrics"] is None else {"numInputs": 100, "validationMetrics": spoiled(one["metrics"])}
        return {
            "uuid": one["uuid"],
            "experimentConfig": spoiled(self.experiments[trial["experimentId"]]["config"]),
            "experimentId": trial["experimentId"],
            "trialId": trial["id"],
            "hparams": spoiled(trial["hparams"]),
            "batchNumber": one["steps"] or 0,
            "startTime": one["time"],
            "endTime": one["time"],
            "resources": one.get("resources", {"metadata.json": "62", "code/": "0"}),
            "metadata": spoiled(one.get("metadata", {})),
            "framework": "",
            "format": "",
            "determinedVersion": self.data["version"],
            "metrics": metrics,
            "validationState": "STATE_UNSPECIFIED" if metrics is None else "STATE_COMPLETED",
            "state": f"STATE_{one['state']}",
        }

    def nested(self, one: dict[str, Any]) -> dict[str, Any]:
        trial = self.trials.get(one["trial"])
        nothing = {"avgMetrics": None, "batchMetrics": []}
        training: dict[str, Any] = {"experimentConfig": None, "hparams": None, "trainingMetrics": nothing}
        training["validationMetrics"] = {"avgMetrics": spoiled(one["metrics"]), "batchMetrics": []}
        if trial is not None:
            config = self.experiments[trial["experimentId"]]["config"]
            training |= {"trialId": trial["id"], "experimentId": trial["experimentId"]}
            training |= {"experimentConfig": spoiled(config), "hparams": spoiled(trial["hparams"])}
            value = _searcher_value(one, config)
            if value is not None:
                training["searcherMetric"] = spoiled(value)
        metadata = {"determined_version": self.data["version"]} | (
            {} if one["steps"] is None else {"steps_completed": one["steps"]}
        )
        return {
            "taskId": "2.task-6",
            "allocationId": "2.task-6.1",
            "uuid": one["uuid"],
            "reportTime": one["time"],
            "resources": one.get("resources", {"metadata.json": "62", "code/": "0"}),
            "metadata": spoiled(one.get("metadata", metadata)),
            "state": f"STATE_{one['state']}",
            "training": training,
        }

    def checkpoint(self, text: str) -> dict[str, Any]:
        return {"checkpoint": self.render(self.find(text))}

    def set_metadata(self, text: str, body: dict[str, Any]) -> dict[str, Any]:
        """Replace it all; a changed steps_completed links the checkpoint to another validation."""
        one, given = self.find(text), body["checkpoint"]
        if given["uuid"] != one["uuid"]:
            raise Refusal(400, "checkpoint UUID in path and body differ")
        with self.lock:
            steps = given["metadata"].get("steps_completed")
            if steps != one["steps"]:
                one["metrics"] = self.validations.get((one["trial"], steps))
            one["metadata"], one["steps"] = given["metadata"], steps
        return {"checkpoint": self.render(one)}

    def find(self, text: str) -> dict[str, Any]:
        if not text:
            raise Refusal(501, "Not Implemented")
        bare = text.lower().removeprefix("urn:uuid:").strip("{}").replace("-", "")
        if len(text) not in (32, 36, 38, 45):
            raise Refusal(500, f"invalid UUID length: {len(text)}")
        if not re.fullmatch("[0-9a-f]{32}", bare):
            raise Refusal(500, "invalid UUID format")
        for one in self.data["checkpoints"]:
            if one["uuid"].replace("-", "") == bare:
                return one
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
        states = {ask.enum("checkpointv1.State", text, self.states(), "STATE_") for text in ask.every("states")}
        rows = [one for one in self.data["checkpoints"] if one["trial"] in trials]
        rows = [one for one in rows if not states or one["state"] in states]
        rows.sort(key=lambda one: str(one["time"]), reverse=True)
        rows = _sorted(rows, ask, config, of_trial=of_trial)
        start, end, pagination = _window(ask, len(rows))
        return {"checkpoints": [self.render(one) for one in rows[start:end]], "pagination": pagination}

    def states(self) -> list[str]:
        return STATES if self.version >= (0, 21) else STATES[:-1]


def _window(ask: _Query, total: int) -> tuple[int, int, dict[str, int]]:
    """Which slice of a list is wanted: filtering and sorting come before."""
    offset, limit = ask.number("offset"), ask.number("limit")
    start = offset if offset >= 0 else total + offset
    if not 0 <= start <= total:
        raise Refusal(400, "offset out of bounds")
    if limit < 0:
        raise Refusal(500, "reflect.Value.Slice: slice index out of bounds")
    end = total if limit == 0 else min(start + limit, total)
    return start, end, {"offset": offset, "limit": limit, "startIndex": start, "endIndex": end, "total": total}


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
    """The searcher metric, if it is a number, or one of the texts that stand for one."""
    value = (one["metrics"] or {}).get(config.get("searcher", {}).get("metric"))
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if number or value in ("NaN", "Infinity", "-Infinity") else None


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
    known = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}
    return known.get(value) if isinstance(value, str) else None


def _path_id(text: str) -> int:
    if not re.fullmatch(r"-?\d+", text):
        reason = f'strconv.ParseInt: parsing "{text}": invalid syntax'
        raise Refusal(400, f"type mismatch, parameter: id, error: {reason}")
    return int(text)
