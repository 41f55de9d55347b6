"""The dialect of masters from 0.13 to 0.38.1: `/api/v1`, lists in pages, and what it answers read into records."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from cas.errors import AuthenticationError, ContentError, MasterError, NotAllowedError, UsageError
from cas.registry.dialect import Ask, Listed, Tell
from cas.registry.http import Http, Parameters
from cas.registry.reading import Reader
from cas.registry.records import CheckpointRecord, ExperimentRecord, State, TrialRecord

T = TypeVar("T")

PAGE = 1000  # checkpoints per request: each brings its experiment's whole configuration along
_RESTARTS = 3  # of a list that shrinks while its pages are read
_API = "/api/v1"
# By UUID: what is added meanwhile moves others to later pages, where they are seen twice at worst. Masters before 0.19
# know the parameter as sortBy; each passes over the other's.
_IN_ORDER: Parameters = (
    ("sortByAttr", "SORT_BY_UUID"),
    ("sortBy", "SORT_BY_UUID"),
    ("orderBy", "ORDER_BY_ASC"),
)
_EVERY_STATE: Parameters = tuple(("states", f"STATE_{state}") for state in State)
_BY_ID: Parameters = (("sortBy", "SORT_BY_ID"), ("orderBy", "ORDER_BY_ASC"))


class V1Entrance:
    """Login at `/api/v1/auth/login`; 401 is for tokens, 403 for what is not permitted."""

    def log_in(self, http: Http, user: str, password: str) -> Any:
        """Send a user's name and hashed password; see `Entrance`."""
        return http.post(f"{_API}/auth/login", {"username": user, "password": password, "isHashed": True})

    def whoever(self, http: Http, token: str) -> Any:
        """Ask whose token this is; see `Entrance`."""
        return http.get(f"{_API}/me", token=token)

    def log_out(self, http: Http, token: str) -> None:
        """End a token's session; see `Entrance`."""
        http.post(f"{_API}/auth/logout", {}, token=token)

    def is_stale(self, error: NotAllowedError) -> bool:
        """Whether a refusal may mean that the token has expired; see `Entrance`."""
        return isinstance(error, AuthenticationError)


class V1:
    """The questions of a registry, asked over `/api/v1`."""

    lists_are_complete = True

    def __init__(self, registry: str, ask: Ask, tell: Tell) -> None:
        self._registry = registry
        self._ask = ask
        self._tell = tell
        self._states = _EVERY_STATE

    def experiments(self) -> list[Listed]:
        """Return what the master lists of all experiments that it shows to this user, in order of id."""
        parse: Callable[[Any], Page[Listed]] = lambda answer: _page(answer, "experiments", listed)  # noqa: E731
        found = self._all_pages("/experiments", _BY_ID, parse, lambda one: one.id)
        return sorted(found, key=lambda one: one.id)

    def experiment(self, id: int) -> ExperimentRecord:
        """Return an experiment."""
        return self._read(f"/experiments/{id}", lambda answer: experiment(self._registry, answer))

    def trial(self, id: int) -> TrialRecord:
        """Return a trial."""
        return self._read(f"/trials/{id}", lambda answer: trial(self._registry, Reader(answer, "answer").raw("trial")))

    def checkpoint(self, uuid: str) -> CheckpointRecord:
        """Return a checkpoint."""
        return self._read(f"/checkpoints/{uuid}", Checkpoints(self._registry).one)

    def experiment_trials(self, id: int) -> list[TrialRecord]:
        """Return all trials of an experiment, in order of id."""
        path, parameters = f"/experiments/{id}/trials", _BY_ID
        found = self._all_pages(path, parameters, lambda answer: trials(self._registry, answer), lambda one: one.id)
        return sorted(found, key=lambda one: one.id)

    def experiment_checkpoints(self, id: int) -> list[CheckpointRecord]:
        """Return all checkpoints of an experiment, from all pages."""
        return self._checkpoints(f"/experiments/{id}/checkpoints")

    def trial_checkpoints(self, id: int) -> list[CheckpointRecord]:
        """Return all checkpoints of a trial, from all pages."""
        return self._checkpoints(f"/trials/{id}/checkpoints")

    def set_metadata(self, uuid: str, metadata: Mapping[str, Any]) -> CheckpointRecord:
        """Replace all metadata of a checkpoint; return it as the master has it then."""
        checkpoint = {"uuid": uuid, "metadata": dict(metadata), "resources": {}, "training": {}}
        answer = self._tell(f"{_API}/checkpoints/{uuid}/metadata", {"checkpoint": checkpoint | {"state": _NO_STATE}})
        return understood(self._registry, Checkpoints(self._registry).one, answer)

    # --- requests --------------------------------------------------------------------------------------------

    def _checkpoints(self, path: str) -> list[CheckpointRecord]:
        reader = Checkpoints(self._registry)
        try:
            return self._all_pages(path, (*self._states, *_IN_ORDER), reader.page, lambda one: one.uuid)
        except MasterError as error:
            if error.status != 400 or not self._states:
                raise
        # An older master does not know all of today's states; with none named it lists every one that it has.
        self._states = ()
        return self._all_pages(path, _IN_ORDER, reader.page, lambda one: one.uuid)

    def _all_pages(
        self, path: str, parameters: Parameters, parse: Callable[[Any], Page[T]], key: Callable[[T], object]
    ) -> list[T]:
        for _ in range(_RESTARTS):
            found = self._pages(path, parameters, parse, key)
            if found is not None:
                return found
        raise MasterError(f"{self._registry}: its list of {path[1:]} changes again and again; try again later")

    def _pages(
        self, path: str, parameters: Parameters, parse: Callable[[Any], Page[T]], key: Callable[[T], object]
    ) -> list[T] | None:
        """Everything, or None if the list shrank in between, so that something may have been passed over."""
        found: dict[object, T] = {}
        offset, total = 0, 0
        while True:
            page = self._read(path, parse, (*parameters, ("offset", offset), ("limit", PAGE)))
            if page.total < total:
                return None
            total = page.total
            found.update((key(one), one) for one in page.items)
            if page.end >= total:
                return list(found.values())
            if page.end <= offset or not page.items:
                raise MasterError(f"{self._registry}: a page of {path[1:]} ends where it began")
            offset = page.end

    def _read(self, path: str, parse: Callable[[Any], T], parameters: Parameters = ()) -> T:
        return understood(self._registry, parse, self._ask(_API + path, parameters))


_NO_STATE = "STATE_UNSPECIFIED"


def understood(registry: str, parse: Callable[[Any], T], answer: object) -> T:
    """Return what an answer says.

    Raises:
        MasterError: it cannot be understood.
    """
    try:
        return parse(answer)
    except (ContentError, UsageError, ValueError) as error:
        raise MasterError(f"{registry} answered with something that cannot be understood: {error}") from error


# --- answers ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of a list: `end` of `total` things have been listed after it."""

    items: tuple[T, ...]
    end: int
    total: int


def experiment(registry: str, answer: object) -> ExperimentRecord:
    """Read `GET /experiments/{id}`.

    Raises:
        ContentError: it is not what a master answers.
    """
    whole = Reader(answer, "answer")
    read = whole.inner("experiment")
    id = read.whole("id")
    if id is None:
        raise read.error("it has no id")
    return ExperimentRecord(
        registry=registry,
        id=id,
        name=read.text("name") or "",
        state=(read.text("state") or "").removeprefix("STATE_"),
        config=read.mapping("config") or whole.mapping("config") or {},
        trial_ids=read.ids("trialIds"),
        start_time=read.text("startTime"),
        end_time=read.text("endTime"),
        description=read.text("description"),
        labels=read.names("labels"),
        archived=read.truth("archived"),
    )


def listed(value: object) -> Listed:
    """Read one experiment of `GET /experiments`.

    Raises:
        ContentError: it is not what a master answers.
    """
    read = Reader(value, "experiment")
    id, state = read.whole("id"), (read.text("state") or "").removeprefix("STATE_")
    if id is None:
        raise read.error("it has no id")
    seen = [state, *(str(read.raw(name)) for name in _CHANGING)]
    return Listed(id, state in _ENDED, "; ".join(seen))


_ENDED = ("COMPLETED", "CANCELED", "ERROR")
_CHANGING = ("endTime", "numTrials", "checkpointCount", "checkpointSize", "name", "archived", "labels", "description")


def trial(registry: str, value: object) -> TrialRecord:
    """Read one trial object.

    Raises:
        ContentError: it is not what a master answers.
    """
    read = Reader(value, "trial")
    id, experiment_id = read.whole("id"), read.whole("experimentId")
    if id is None or experiment_id is None:
        raise read.error("it has no id, or no experimentId")
    return TrialRecord(
        registry=registry,
        id=id,
        experiment_id=experiment_id,
        state=(read.text("state") or "").removeprefix("STATE_"),
        hparams=read.mapping("hparams") or {},
        start_time=read.text("startTime"),
        end_time=read.text("endTime"),
        steps_completed=read.whole("totalBatchesProcessed"),
        summary_metrics=read.mapping("summaryMetrics") or {},
    )


def trials(registry: str, answer: object) -> Page[TrialRecord]:
    """Read one page of `GET /experiments/{id}/trials`.

    Raises:
        ContentError: it is not what a master answers.
    """
    return _page(answer, "trials", lambda one: trial(registry, one))


def _page(answer: object, name: str, read_one: Callable[[object], T]) -> Page[T]:
    read = Reader(answer, "answer")
    listed = read.raw(name)
    pagination = read.inner("pagination")
    end, total = pagination.whole("endIndex"), pagination.whole("total")
    if not isinstance(listed, list) or end is None or total is None:
        raise read.error(f"it is no page of {name}")
    return Page(tuple(read_one(one) for one in listed), end, total)


class Checkpoints:
    """Reads checkpoints; what many of them have in common (the configuration of their experiment) is kept once."""

    def __init__(self, registry: str) -> None:
        self._registry = registry
        self._configs: dict[int | None, tuple[Any, dict[str, Any]]] = {}

    def page(self, answer: object) -> Page[CheckpointRecord]:
        """Read one page of `GET /experiments/{id}/checkpoints` or `GET /trials/{id}/checkpoints`.

        Raises:
            ContentError: it is not what a master answers.
        """
        return _page(answer, "checkpoints", self.read)

    def one(self, answer: object) -> CheckpointRecord:
        """Read `GET /checkpoints/{uuid}`.

        Raises:
            ContentError: it is not what a master answers.
        """
        return self.read(Reader(answer, "answer").raw("checkpoint"))

    def read(self, value: object) -> CheckpointRecord:
        """Read one checkpoint object, as masters since 0.18 write it, or flat as those before.

        Raises:
            ContentError: it is not what a master answers.
        """
        read = Reader(value, "checkpoint")
        return self._flat(read) if "batchNumber" in read else self._nested(read)

    def _nested(self, read: Reader) -> CheckpointRecord:
        training = read.inner("training")
        experiment_id = training.whole("experimentId")
        metadata = read.mapping("metadata") or {}
        return CheckpointRecord(
            registry=self._registry,
            uuid=read.uuid("uuid"),
            state=read.state("state"),
            experiment_id=experiment_id,
            trial_id=training.whole("trialId"),
            steps_completed=_steps(metadata.get("steps_completed")),
            report_time=read.text("reportTime"),
            resources=read.sizes("resources"),
            metadata=metadata,
            experiment_config=self._config(experiment_id, training),
            hparams=training.mapping("hparams") or {},
            validation_metrics=training.inner("validationMetrics").mapping("avgMetrics"),
            training_metrics=training.inner("trainingMetrics").mapping("avgMetrics"),
            task_id=read.text("taskId") or None,
            allocation_id=read.text("allocationId") or None,
        )

    def _flat(self, read: Reader) -> CheckpointRecord:
        experiment_id = read.whole("experimentId") or None
        return CheckpointRecord(
            registry=self._registry,
            uuid=read.uuid("uuid"),
            state=read.state("state"),
            experiment_id=experiment_id,
            trial_id=read.whole("trialId") or None,
            steps_completed=_steps(read.raw("batchNumber")),
            report_time=read.text("endTime"),
            resources=read.sizes("resources"),
            metadata=read.mapping("metadata") or {},
            experiment_config=self._config(experiment_id, read),
            hparams=read.mapping("hparams") or {},
            validation_metrics=read.inner("metrics").mapping("validationMetrics"),
            start_time=read.text("startTime"),
        )

    def _config(self, experiment_id: int | None, read: Reader) -> dict[str, Any]:
        raw = read.raw("experimentConfig")
        known = self._configs.get(experiment_id)
        if known is None or known[0] != raw:
            known = (raw, read.mapping("experimentConfig") or {})
            self._configs[experiment_id] = known
        return known[1]


def _steps(steps: object) -> int | None:
    """A number of steps that a checkpoint names; what is none counts as none."""
    if isinstance(steps, bool) or not isinstance(steps, int | float) or not 0 <= steps < 1 << 63:
        return None
    return int(steps)
