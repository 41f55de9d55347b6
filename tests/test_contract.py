"""The simulated master against the contract, sentence by sentence, and what the registry makes of its big data set."""

from __future__ import annotations

import gzip
import json
import logging
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import master_data
import pytest
from master_data import ACCURACY, CLEAN, EMPTY, NO_METRIC, SILENT, big
from master_simulator import Data, Simulator

from cas import Determined
from cas.errors import CasError
from cas.registry.select import CheckpointSortBy

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server() -> Iterator[Simulator]:
    with Simulator(big()) as running:
        yield running


@pytest.fixture(scope="module")
def token(server: Simulator) -> str:
    return str(send(server, "POST", "/api/v1/auth/login", {"username": "alice", "password": "wonder"})[1]["token"])


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("CAS_OFFLINE", "CAS_MASTER", "DET_MASTER", "DET_MASTER_ADDR", "DET_USER", "DET_PASS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CAS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CAS_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.setenv("DET_DEBUG_CONFIG_PATH", str(tmp_path / "determined"))


def send(
    server: Simulator, method: str, path: str, body: Any = None, *, token: str | None = None, **headers: str
) -> tuple[int, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(server.url + path, data=data, method=method, headers=headers)
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            raw = answer.read()
            return answer.status, json.loads(gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw)
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def listed(server: Simulator, token: str, path: str, **query: Any) -> list[dict[str, Any]]:
    status, answer = send(server, "GET", f"/api/v1{path}/checkpoints?{urlencode(query, doseq=True)}", token=token)
    assert status == 200, answer
    return list(answer["checkpoints"])


def metric(one: dict[str, Any], name: str) -> Any:
    return (one["training"]["validationMetrics"]["avgMetrics"] or {}).get(name)


# --- transport -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "status", "code", "text"),
    [
        ("/experiments/999", 404, 5, "experiment '999' not found"),
        ("/trials/999", 404, 5, "trial '999' not found"),
        (
            "/experiments/x",
            400,
            3,
            'type mismatch, parameter: id, error: strconv.ParseInt: parsing "x": invalid syntax',
        ),
        ("/experiments/10/checkpoints?limit=", 400, 3, 'strconv.ParseInt: parsing "": invalid syntax'),
        ("/experiments/10/checkpoints?sortByAttr=FOO", 400, 3, "FOO is not a valid checkpointv1.SortBy"),
        ("/experiments/10/checkpoints?sortByAttr=1&sortByMetric=loss", 400, 3, "cannot sort by both"),
        ("/experiments/10/checkpoints?offset=100000", 400, 3, "offset out of bounds"),
        ("/experiments/10/checkpoints?limit=-1", 500, 13, "slice index out of bounds"),
        ("/checkpoints/", 501, 12, "Not Implemented"),
        ("/checkpoints/abc", 500, 13, "invalid UUID length: 3"),
        (f"/checkpoints/{'z' * 36}", 500, 13, "invalid UUID format"),
        ("/nonsense", 501, 12, "Not Implemented"),
    ],
)
def test_errors_have_the_form_of_the_gateway(
    server: Simulator, token: str, path: str, status: int, code: int, text: str
) -> None:
    found, answer = send(server, "GET", f"/api/v1{path}", token=token)
    assert (found, answer["error"]["code"]) == (status, code)
    assert text in answer["error"]["error"]


def test_tokens_are_asked_for_and_refused(server: Simulator) -> None:
    assert send(server, "GET", "/api/v1/me")[1]["error"]["error"] == "token missing"
    assert send(server, "GET", "/api/v1/me", token="no")[1]["error"]["error"] == "invalid credentials"
    assert send(server, "GET", "/elsewhere")[0] == 404
    for user, password, status in (
        ("alice", "no", 401),
        ("Alice", "wonder", 401),
        ("gone", "left", 403),
        ("", "", 400),
    ):
        assert send(server, "POST", "/api/v1/auth/login", {"username": user, "password": password})[0] == status


def test_a_token_counts_as_bearer_as_cookie_and_for_tasks(server: Simulator, token: str) -> None:
    for headers in ({"Cookie": f"auth={token}"}, {"Grpc-Metadata-x-allocation-token": f"Bearer {token}"}):
        assert send(server, "GET", "/api/v1/me", **headers)[1]["user"]["username"] == "alice"


def test_numbers_are_spoiled_as_json_of_go_spoils_them(server: Simulator, token: str) -> None:
    config = send(server, "GET", "/api/v1/experiments/10", token=token)[1]["config"]
    assert config["hyperparameters"]["large"]["val"] == 2**53  # one less
    assert json.dumps(config["hyperparameters"]["lr"]["val"]) == "4"


def test_parameters_may_be_in_snake_case_and_the_first_of_two_counts(server: Simulator, token: str) -> None:
    camel = listed(server, token, "/trials/100", sortByAttr="SORT_BY_UUID", orderBy="ORDER_BY_DESC")
    assert camel == listed(server, token, "/trials/100", sort_by_attr=1, order_by=["2", "1"], unknown="x")


def test_pages_are_slices_of_one_list(server: Simulator, token: str) -> None:
    whole = listed(server, token, "/experiments/10", sortByAttr="SORT_BY_UUID")
    assert len(whole) == 90
    pages = [listed(server, token, "/experiments/10", sortByAttr=1, offset=at, limit=40) for at in (0, 40, 80)]
    assert [one for page in pages for one in page] == whole
    assert listed(server, token, "/experiments/10", sortByAttr=1, offset=-10) == whole[-10:]
    assert listed(server, token, "/experiments/10", offset=90) == []
    _, answer = send(server, "GET", "/api/v1/experiments/10/checkpoints?offset=80&limit=40", token=token)
    assert answer["pagination"] == {"offset": 80, "limit": 40, "startIndex": 80, "endIndex": 90, "total": 90}
    assert listed(server, token, f"/experiments/{EMPTY}") == []


def test_states_filter_and_none_means_all(server: Simulator, token: str) -> None:
    whole = listed(server, token, "/experiments/10")
    assert len({one["state"] for one in whole}) == 5
    some = listed(server, token, "/experiments/10", states=["STATE_COMPLETED", "5"])
    assert {one["state"] for one in some} == {"STATE_COMPLETED", "STATE_PARTIALLY_DELETED"}


# --- the server's own order, with its quirks -------------------------------------------------------------------------


@pytest.mark.parametrize(("experiment", "better_is"), [(CLEAN, "ASC"), (ACCURACY, "DESC"), (SILENT, "ASC")])
def test_an_experiments_list_by_searcher_metric_is_better_first_and_lacking_ones_last(
    server: Simulator, token: str, experiment: int, better_is: str
) -> None:
    found = [
        one["training"].get("searcherMetric")
        for one in listed(server, token, f"/experiments/{experiment}", sortByAttr="SORT_BY_SEARCHER_METRIC")
    ]
    having = [value for value in found if value is not None]
    assert found == having + [None] * (len(found) - len(having))
    if experiment == CLEAN:
        assert having == sorted(having, reverse=better_is == "DESC")
        backwards = listed(server, token, "/experiments/10", sortByAttr="SORT_BY_SEARCHER_METRIC", orderBy=2)
        assert backwards[-1]["training"].get("searcherMetric") is None  # last in both directions


def test_a_trials_list_by_searcher_metric_ascends_with_lacking_ones_first(server: Simulator, token: str) -> None:
    found = [
        one["training"].get("searcherMetric")
        for one in listed(server, token, "/trials/100", sortByAttr="SORT_BY_SEARCHER_METRIC")
    ]
    having = [value for value in found if value is not None]
    assert found == [None] * (len(found) - len(having)) + sorted(having)
    downward = listed(server, token, "/trials/100", sortByAttr="SORT_BY_SEARCHER_METRIC", orderBy="ORDER_BY_DESC")
    assert downward[-1]["training"].get("searcherMetric") is None


def test_a_list_by_metric_ascends_with_lacking_ones_first_and_breaks_on_text(server: Simulator, token: str) -> None:
    found = [metric(one, "loss") for one in listed(server, token, "/experiments/10", sortByMetric="loss")]
    having = [value for value in found if value is not None]
    assert found == [None] * (len(found) - len(having)) + sorted(having)
    status, answer = send(server, "GET", f"/api/v1/experiments/{ACCURACY}/checkpoints?sortByMetric=loss", token=token)
    assert status == 500
    assert "interface conversion: interface {} is" in answer["error"]["error"]


def test_ties_are_older_first_upward_and_newer_first_downward() -> None:
    data = Data()
    data.experiment(1, searcher={"metric": "loss"})
    data.trial(1, 1)
    for n in (2, 1, 3):
        data.checkpoint(master_data.uuid(n), trial=1, metrics={"loss": 1}, time=f"2024-03-01T13:00:0{n}Z")
    with Simulator(data) as server:
        token = send(server, "POST", "/api/v1/auth/login", {"username": "alice", "password": "wonder"})[1]["token"]
        for order, expected in (("ORDER_BY_ASC", [1, 2, 3]), ("ORDER_BY_DESC", [3, 2, 1])):
            found = listed(server, token, "/trials/1", sortByMetric="loss", orderBy=order)
            assert [one["uuid"] for one in found] == [master_data.uuid(n) for n in expected]


# --- what we make of it ----------------------------------------------------------------------------------------------


def plainly(data: Data, trials: set[int], name: str, *, smaller: bool) -> list[str]:
    """The best first, by a definition of its own: straight from the data, with nothing of ours."""
    able = []
    for one in data.checkpoints:
        value = (one["metrics"] or {}).get(name)
        if one["trial"] not in trials or one["state"] != "COMPLETED" or type(value) not in (int, float):
            continue
        clock, _, fraction = one["time"].removesuffix("Z").partition(".")
        able.append((value if smaller else -value, clock, fraction.ljust(9, "0"), one["uuid"]))
    return [uuid for *_, uuid in sorted(able)]


@pytest.fixture(scope="module")
def _seen(server: Simulator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home that has seen every list of the master."""
    return tmp_path_factory.mktemp("seen")


@pytest.mark.parametrize("offline", [False, True])
def test_best_top_n_and_latest_are_the_plain_definition_online_and_offline(
    server: Simulator, _seen: Path, monkeypatch: pytest.MonkeyPatch, offline: bool
) -> None:
    monkeypatch.setenv("CAS_HOME", str(_seen / "home"))
    data = big()
    server.faults("503 " * 999 if offline else "")
    determined = Determined(server.url, offline=offline)
    for experiment, name, smaller in (
        (CLEAN, "loss", True),
        (ACCURACY, "acc", False),
        (SILENT, "loss", True),
        (NO_METRIC, "always", False),
    ):
        trials = {experiment * 10 + n for n in range(3)}
        said: dict[str, Any] = {"sort_by": name, "smaller_is_better": smaller} if experiment == NO_METRIC else {}
        reference = determined.get_experiment(experiment)
        expected = plainly(data, trials, name, smaller=smaller)
        assert reference.top_checkpoint(**said).uuid == expected[0]
        assert [one.uuid for one in reference.top_n_checkpoints(99, **said)] == expected
        trial_of = {one["uuid"]: one["trial"] for one in data.checkpoints}
        first = list({trial_of[uuid]: uuid for uuid in reversed(expected)}.values())
        found = reference.top_n_checkpoints(99, **said, one_per_trial=True)
        assert [one.uuid for one in found] == sorted(first, key=expected.index)
        for trial in trials:
            best = determined.get_trial(trial).select_checkpoint(best=True, **said)
            assert best.uuid == plainly(data, {trial}, name, smaller=smaller)[0]
            latest = determined.get_trial(trial).select_checkpoint(latest=True)
            mine = [one for one in data.checkpoints if one["trial"] == trial and one["state"] == "COMPLETED"]
            assert latest.batch_number == max(one["steps"] or -1 for one in mine)
        every = reference.list_checkpoints(CheckpointSortBy.UUID, "ASC", every_state=True)
        assert [one.uuid for one in every] == sorted(one["uuid"] for one in data.checkpoints if one["trial"] in trials)
    server.faults("")


def test_no_key_of_a_storage_and_no_token_is_in_any_file_of_a_home_or_in_any_word(
    server: Simulator, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    determined = Determined(server.url, "alice", "wonder")
    said = []
    for experiment in (CLEAN, ACCURACY):
        reference = determined.get_experiment(experiment)
        for one in reference.list_checkpoints(every_state=True)[:5]:
            said += [repr(one), one._repr_html_(), repr(one.record), repr(one.training), repr(reference.record)]
            one.add_metadata({"secret_key": "PLANTED-IN-METADATA"})
    with pytest.raises(CasError) as refused:
        reference.top_checkpoint().download(tmp_path / "there", mode="direct")  # nobody answers: what does it say?
    said += [str(refused.value), repr(refused.value.__cause__), repr(refused.value.__context__)]
    token = json.loads((tmp_path / "determined" / "auth.json").read_text())["masters"][server.url]["tokens"]["alice"]
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"PLANTED" in path.read_bytes()]
    holders = [path.name for path in tmp_path.rglob("*") if path.is_file() and token.encode() in path.read_bytes()]
    assert holders == ["auth.json"]
    everything = "\n".join([*said, caplog.text, *capsys.readouterr()])
    assert "PLANTED" not in everything and token not in everything and "wonder" not in everything
