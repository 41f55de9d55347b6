"""A master as a registry, against the simulator: a real server, with its quirks and with faults."""

from __future__ import annotations

import json
import logging
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from master_simulator import Data, Simulator

from cas import Determined
from cas.config import DeterminedEnvironment, Settings
from cas.errors import (
    AuthenticationError,
    MasterError,
    NotAllowedError,
    NotFoundError,
    OfflineError,
    UsageError,
)
from cas.registry import select, v1
from cas.registry.http import Http, canonical_url
from cas.registry.master import Master
from cas.registry.records import CheckpointRecord, State
from cas.registry.tls import Tls, ssl_context
from cas.registry.v1 import PAGE

pytestmark = pytest.mark.slow

LOSS = {
    "searcher": {"metric": "loss", "smaller_is_better": True},
    "checkpoint_storage": {"type": "s3", "bucket": "b", "access_key": "AK", "secret_key": "SECRET"},
}
ACC = {"searcher": {"metric": "acc", "smaller_is_better": False}, "hyperparameters": {"n": {"type": "const", "val": 4}}}


def uuid(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012x}"


def data() -> Data:
    """Two experiments; the first with odd metrics, ties, every state, and more than two pages."""
    made = Data(users={"determined": "", "alice": "wonder", "gone": "!left"})
    made.experiment(1, **LOSS)
    made.experiment(2, **ACC)
    made.experiment(3, **LOSS)
    made.trial(5, 1, lr=0.1, layers=4)
    made.trial(6, 1, lr=0.2)
    made.trial(7, 2)
    made.trial(8, 3)
    for n in range(2 * PAGE + 30):
        loss = ["NaN", "Infinity", "-Infinity", "text", True, None][n] if n < 6 else (n * 37) % 900
        metrics = None if n == 6 else {"acc": n} if n == 7 else {"loss": loss, "acc": n}
        state = State.DELETED if n % 900 < 40 else [*State][n % 5] if n % 11 == 0 else State.COMPLETED
        clock = f"2024-03-01T{n % 24:02}:00:37.{n % 1000:03}Z"
        made.checkpoint(uuid(n), trial=5 + n % 2, steps=n, metrics=metrics, state=state, time=clock)
    for n in range(3):
        made.checkpoint(uuid(9000 + n), trial=7, steps=100 * n, metrics={"acc": [0.5, 0.9, 0.7][n]})
    made.checkpoint(uuid(9500), trial=None, steps=None, metrics=None, metadata={"a": [1, {"b": "NaN"}]})
    return made


@pytest.fixture(scope="module")
def server() -> Iterator[Simulator]:
    with Simulator(data()) as running:
        yield running


@pytest.fixture
def quiet(server: Simulator) -> Simulator:
    server.faults("")
    server.requests()
    return server


@pytest.fixture
def environment(tmp_path: Path) -> DeterminedEnvironment:
    return DeterminedEnvironment(
        user=None,
        password=None,
        user_token=None,
        cert_file=None,
        cert_name=None,
        config_folder=tmp_path / "determined",
    )


@pytest.fixture
def ask(environment: DeterminedEnvironment, tmp_path: Path) -> Iterator[Callable[..., Master]]:
    made: list[Master] = []

    def make(url: str, *arguments: str, timeout: float = 10.0, **more: Any) -> Master:
        settings = Settings(home=tmp_path / "home", timeout=timeout)
        around = {"environment": environment, "backoff": 0.01} | more
        made.append(Master(url, *arguments, settings=settings, **around))
        return made[-1]

    yield make
    for one in made:
        one.close()


Ask = Callable[..., Master]

# --- answers -------------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_read_as_the_contract_says(quiet: Simulator, ask: Ask) -> None:
    found = ask(quiet.url).checkpoint(uuid(9001).replace("-", "").upper())
    assert found == CheckpointRecord(
        registry=quiet.url,
        uuid=uuid(9001),
        state=State.COMPLETED,
        experiment_id=2,
        trial_id=7,
        steps_completed=100,
        report_time="2024-03-01T13:00:37.250Z",
        resources={"metadata.json": 62, "code/": 0},
        metadata={"determined_version": "0.38.1", "steps_completed": 100},
        experiment_config=ACC,
        hparams={},
        validation_metrics={"acc": 0.9},
        training_metrics=None,
        task_id="2.task-6",
        allocation_id="2.task-6.1",
    )
    assert (found.searcher_metric, found.smaller_is_better) == ("acc", False)


def test_a_checkpoint_with_no_trial_is_read(quiet: Simulator, ask: Ask) -> None:
    found = ask(quiet.url).checkpoint(uuid(9500))
    assert (found.experiment_id, found.trial_id, found.steps_completed) == (None, None, None)
    assert found.validation_metrics is None
    assert found.metadata == {"a": [1, {"b": "NaN"}]}


def test_experiments_and_trials_are_read(quiet: Simulator, ask: Ask) -> None:
    experiment = ask(quiet.url).experiment(1)
    assert (experiment.registry, experiment.name, experiment.state) == (quiet.url, "experiment-1", "COMPLETED")
    assert (experiment.trial_ids, experiment.searcher_metric) == ((5, 6), "loss")
    assert experiment.config["checkpoint_storage"]["secret_key"] == "SECRET"
    assert "SECRET" not in repr(experiment)
    trial = ask(quiet.url).trial(5)
    assert (trial.experiment_id, trial.hparams, trial.state) == (1, {"lr": 0.1, "layers": 4}, "COMPLETED")


def test_a_list_is_complete_over_all_pages_and_states(quiet: Simulator, ask: Ask) -> None:
    records = ask(quiet.url).experiment_checkpoints(1)
    assert {one.uuid for one in records} == {uuid(n) for n in range(2 * PAGE + 30)}
    assert {one.state for one in records} == set(State)
    assert records[0].experiment_config is records[-1].experiment_config
    asked = [one for one in quiet.requests() if one["path"].endswith("/checkpoints")]
    assert [one["query"]["offset"] for one in asked] == [["0"], [str(PAGE)], [str(2 * PAGE)]]
    for one in asked:
        assert one["query"]["states"] == [f"STATE_{state}" for state in State]
        assert one["query"]["orderBy"] == ["ORDER_BY_ASC"]
    trial = ask(quiet.url).trial_checkpoints(6)
    assert {one.uuid for one in trial} == {uuid(n) for n in range(1, 2 * PAGE + 30, 2)}
    assert ask(quiet.url).experiment_checkpoints(3) == []


def test_the_best_is_right_where_the_servers_own_order_is_not(quiet: Simulator, ask: Ask) -> None:
    records = ask(quiet.url).experiment_checkpoints(1)
    finite = [one for one in data().checkpoints if one["trial"] in (5, 6) and one["state"] == "COMPLETED"]
    finite = [one for one in finite if type((one["metrics"] or {}).get("loss")) is int]
    expected = min(finite, key=lambda one: (one["metrics"]["loss"], one["time"], one["uuid"]))
    assert select.best(records).uuid == expected["uuid"]
    assert select.best(ask(quiet.url).trial_checkpoints(7)).uuid == uuid(9001)


def test_what_is_added_while_pages_are_read_does_not_hide_others(environment: DeterminedEnvironment, ask: Ask) -> None:
    some = Data()
    some.experiment(1, **LOSS)
    some.trial(1, 1)
    for n in range(10, PAGE + 20):
        some.checkpoint(uuid(n), trial=1)
    with Simulator(some) as server:
        registry = ask(server.url)
        registry.experiment(1)  # logs in
        server.faults("ok slow:0.5")

        def add_at_the_front() -> None:
            for _ in range(100):
                if sum(one["path"].endswith("checkpoints") for one in server.requests()):
                    break
                time.sleep(0.01)
            for n in range(5):
                server.add(uuid=uuid(n), trial=1)

        adding = threading.Thread(target=add_at_the_front)
        adding.start()
        found = {one.uuid for one in registry.experiment_checkpoints(1)}
        adding.join()
    assert found >= {uuid(n) for n in range(10, PAGE + 20)}


def test_what_is_removed_while_pages_are_read_does_not_hide_others(ask: Ask) -> None:
    some = Data()
    some.experiment(1, **LOSS)
    some.trial(1, 1)
    for n in range(PAGE + 20):
        some.checkpoint(uuid(n), trial=1)
    with Simulator(some) as server:
        registry = ask(server.url)
        registry.experiment(1)  # logs in
        server.faults("ok slow:1")
        found: list[CheckpointRecord] = []
        reading = threading.Thread(target=lambda: found.extend(registry.experiment_checkpoints(1)))
        reading.start()
        while sum(one["path"].endswith("checkpoints") for one in server.requests()) < 1:
            time.sleep(0.01)
        server.remove(uuid(0))  # all later ones move to an earlier place: one of them between the pages
        reading.join()
    assert {one.uuid for one in found} == {uuid(n) for n in range(1, PAGE + 20)}


def test_unknown_ids_are_not_found_and_the_master_is_named(quiet: Simulator, ask: Ask) -> None:
    registry = ask(quiet.url)
    for question, text in (
        (lambda: registry.experiment(999), "experiment '999' not found"),
        (lambda: registry.trial(999), "trial '999' not found"),
        (lambda: registry.experiment_checkpoints(999), "experiment '999' not found"),
        (lambda: registry.checkpoint(uuid(99999)), f"checkpoint '{uuid(99999)}' not found"),
    ):
        with pytest.raises(NotFoundError) as caught:
            question()
        assert str(caught.value) == f"{quiet.url}: {text}"


@pytest.mark.parametrize("id", [0, -1, True, "1/checkpoints", 1.0, None])
def test_what_is_no_id_is_never_sent(quiet: Simulator, ask: Ask, id: Any) -> None:
    with pytest.raises(UsageError):
        ask(quiet.url).experiment(id)
    with pytest.raises(UsageError):
        ask(quiet.url).checkpoint(str(id))
    assert quiet.requests() == []


def test_the_version_is_told_with_no_login(quiet: Simulator, ask: Ask) -> None:
    assert ask(quiet.url).version() == "0.38.1"
    assert [one["path"] for one in quiet.requests()] == ["/info"]


def test_a_master_behind_a_path_prefix(ask: Ask) -> None:
    with Simulator(data(), prefix="/det/one") as server:
        registry = ask(server.url + "/")
        assert registry.name == server.url
        assert registry.experiment(2).id == 2


# --- faults --------------------------------------------------------------------------------------------------------


def test_what_is_transient_is_tried_again(quiet: Simulator, ask: Ask) -> None:
    registry = ask(quiet.url)
    registry.experiment(2)
    for script in ("503 503", "502 504 503 503 503", "close", "cut cut", "close 503 cut"):
        quiet.faults(script)
        assert len(registry.experiment_checkpoints(2)) == 3, script


def test_a_gateway_whose_master_is_gone_is_offline(quiet: Simulator, ask: Ask) -> None:
    registry = ask(quiet.url)
    registry.experiment(2)
    quiet.requests()
    quiet.faults("503 " * 6)
    with pytest.raises(OfflineError, match="does not answer: HTTP 503"):
        registry.experiment(2)
    assert len(quiet.requests()) == 6
    quiet.faults("cut " * 6)
    with pytest.raises(OfflineError, match="break off"):
        registry.experiment(2)


def test_who_does_not_wait_long_for_an_answer_does_not_wait_long_between_two_tries(quiet: Simulator) -> None:
    http = Http(quiet.url, timeout=0.4)
    quiet.requests()
    quiet.faults("503 " * 6)
    started = time.monotonic()
    with pytest.raises(OfflineError, match="does not answer: HTTP 503"):
        http.get("/info")
    assert time.monotonic() - started < 10  # five pauses of a tenth of a second, not 15 s
    assert len(quiet.requests()) == 6
    http.close()


def test_the_login_is_sent_once(quiet: Simulator, ask: Ask) -> None:
    quiet.faults("ok 503")
    with pytest.raises(OfflineError):
        ask(quiet.url).experiment(2)
    assert [one["path"] for one in quiet.requests()] == ["/info", "/api/v1/auth/login"]


def test_an_unreachable_master_is_offline_and_named(ask: Ask) -> None:
    with Simulator(Data()) as server:
        url = server.url
    with pytest.raises(OfflineError, match=f"the master {url} does not answer: Connection refused"):
        ask(url).experiment(1)
    with pytest.raises(OfflineError, match=r"http://no-such-host.invalid:8080 does not answer"):
        ask("no-such-host.invalid").experiment(1)


def test_a_silent_master_is_offline_after_the_timeout(quiet: Simulator, ask: Ask) -> None:
    registry = ask(quiet.url, timeout=0.2)
    registry.experiment(2)
    quiet.faults("slow:1 " * 6)
    with pytest.raises(OfflineError, match="no answer in time"):
        registry.experiment(2)


@pytest.mark.parametrize("fault", ["drip:0.05", "drip-head:0.05"])
def test_an_answer_that_comes_drop_by_drop_has_an_end(quiet: Simulator, ask: Ask, fault: str) -> None:
    registry = ask(quiet.url, timeout=2.0, patience=1.0)
    registry.experiment(2)
    quiet.faults(f"{fault} " * 9)
    start = time.monotonic()
    with pytest.raises(OfflineError, match="no whole answer in 1 seconds"):
        registry.experiment(2)
    assert time.monotonic() - start < 30
    quiet.faults("")


def test_a_master_that_did_not_answer_just_now_is_asked_once_not_six_times(quiet: Simulator, ask: Ask) -> None:
    registry = ask(quiet.url)
    registry.experiment(2)
    quiet.faults("503 " * 7)
    quiet.requests()
    for _ in range(2):
        with pytest.raises(OfflineError):
            registry.experiment(2)
    assert len(quiet.requests()) == 7
    assert registry.experiment(2).id == 2  # and when it is back, it is heard


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("html", r"no JSON \(text/html, \d+ bytes\); is it the address"),
        ("garbage", "no JSON"),
        ("empty", "no JSON"),
        ("deep", "no JSON"),
        ("json:[]", "cannot be understood: answer: it is no object"),
        ("json:null", "cannot be understood"),
        ('json:{"experiment":{"id":"x"}}', "id is 'x'"),
        ('json:{"experiment":{}}', "it has no id"),
        ('json:{"experiment":{"id":1,"config":[1]}}', "config is"),
        ("redirect:http://[::1/x", "Invalid IPv6 URL"),
        ("redirect:file:///etc/passwd", "No connection adapters"),
        ("500", "scripted 500"),
        ("418", "scripted 418"),
        ("501", "scripted 501"),
    ],
)
def test_what_is_no_answer_is_one_line(quiet: Simulator, ask: Ask, fault: str, text: str) -> None:
    registry = ask(quiet.url)
    registry.version()
    registry.experiment(2)
    quiet.faults(fault)
    with pytest.raises(MasterError, match=text) as caught:
        registry.experiment(1)
    assert "\n" not in str(caught.value)
    assert quiet.url in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "answer",
    [
        '{"checkpoints":[{"uuid":"../../x","state":"STATE_COMPLETED"}],"pagination":{"endIndex":1,"total":1}}',
        '{"checkpoints":[{"uuid":"00000000-0000-4000-8000-000000000001","state":"ODD"}],"pagination":{"endIndex":1,"total":1}}',
        '{"checkpoints":[{"uuid":"00000000-0000-4000-8000-000000000001","state":"STATE_COMPLETED","resources":{"a":"-3"}}],"pagination":{"endIndex":1,"total":1}}',
        '{"checkpoints":[7],"pagination":{"endIndex":1,"total":1}}',
        '{"checkpoints":[]}',
        '{"checkpoints":[],"pagination":{"endIndex":0,"total":5}}',
        '{"checkpoints":{},"pagination":{"endIndex":0,"total":0}}',
    ],
)
def test_a_hostile_page_is_refused(quiet: Simulator, ask: Ask, answer: str) -> None:
    registry = ask(quiet.url)
    registry.experiment(2)
    quiet.faults("json:" + answer)
    with pytest.raises(MasterError, match=quiet.url):
        registry.experiment_checkpoints(2)


def test_odd_numbers_of_steps_count_as_none(quiet: Simulator, ask: Ask) -> None:
    registry = ask(quiet.url)
    registry.experiment(2)
    for steps, expected in (('"5"', None), ("true", None), ("-1", None), ("1e400", None), ("800.0", 800), ("{}", None)):
        body = f'{{"uuid":"{uuid(1)}","state":"STATE_COMPLETED","metadata":{{"steps_completed":{steps}}}}}'
        quiet.faults(f'json:{{"checkpoint":{body}}}')
        assert registry.checkpoint(uuid(1)).steps_completed == expected


def test_a_body_larger_than_the_bound_is_refused(quiet: Simulator) -> None:
    http = Http(quiet.url, max_body=1 << 20)
    quiet.faults("garbage")
    with pytest.raises(MasterError, match="more than 1 MiB"):
        http.get("/info")
    assert http.get("/info")["version"] == "0.38.1"
    http.close()


def test_another_checkpoint_than_asked_for_is_refused(quiet: Simulator, ask: Ask) -> None:
    registry = ask(quiet.url)
    registry.experiment(2)
    quiet.faults(f'json:{{"checkpoint":{{"uuid":"{uuid(2)}","state":"STATE_COMPLETED"}}}}')
    with pytest.raises(MasterError, match="it answered with"):
        registry.checkpoint(uuid(1))


def test_a_redirect_to_another_host_does_not_take_the_token_along(quiet: Simulator, ask: Ask) -> None:
    registry = ask(quiet.url)
    registry.experiment(2)
    with Simulator(data()) as other:
        there = f"redirect:{other.url.replace('127.0.0.1', 'localhost')}/api/v1/experiments/2"
        quiet.faults(f"{there} ok {there}")  # in between it logs in again
        with pytest.raises(AuthenticationError):
            registry.experiment(2)
        asked = other.requests()
    assert len(asked) == 2
    assert all("Authorization" not in one["headers"] for one in asked)


# --- login ---------------------------------------------------------------------------------------------------------


def test_a_wrong_password_is_an_error_even_while_a_cached_token_lives(quiet: Simulator, ask: Ask) -> None:
    ask(quiet.url, "alice", "wonder").experiment(2)
    assert ask(quiet.url, "alice").experiment(2).id == 2
    with pytest.raises(AuthenticationError, match=r"refuses 'alice'.*det user login alice.*DET_USER"):
        ask(quiet.url, "alice", "wrong").experiment(2)


@pytest.mark.parametrize("user", ["nobody", "Alice"])
def test_an_unknown_user_is_refused(quiet: Simulator, ask: Ask, user: str) -> None:
    with pytest.raises(AuthenticationError, match=f"refuses '{user}'"):
        ask(quiet.url, user, "wonder").experiment(2)


def test_an_inactive_user_is_told_so(quiet: Simulator, ask: Ask) -> None:
    with pytest.raises(AuthenticationError, match="user is not active"):
        ask(quiet.url, "gone", "left").experiment(2)


def test_the_password_goes_over_the_wire_only_hashed(quiet: Simulator, ask: Ask) -> None:
    ask(quiet.url, "alice", "wonder").experiment(2)
    bodies = [one["body"] for one in quiet.requests()]
    assert "alice" in bodies[1]
    assert not any("wonder" in body for body in bodies)


def test_an_expired_token_is_renewed_once_and_silently(quiet: Simulator, ask: Ask) -> None:
    registry = ask(quiet.url, "alice", "wonder")
    registry.experiment(2)
    quiet.expire_tokens()
    quiet.requests()
    assert registry.experiment(2).id == 2
    paths = [one["path"] for one in quiet.requests()]
    assert paths == ["/api/v1/experiments/2", "/api/v1/auth/login", "/api/v1/experiments/2"]
    quiet.faults("401 ok 401")
    with pytest.raises(AuthenticationError):
        registry.experiment(2)
    assert len(quiet.requests()) == 3


def test_a_401_in_the_middle_of_a_list_is_renewed(quiet: Simulator, ask: Ask) -> None:
    registry = ask(quiet.url)
    registry.experiment(2)
    quiet.faults("ok 401")
    assert len(registry.experiment_checkpoints(1)) == 2 * PAGE + 30


def test_an_expired_token_with_no_password_says_what_to_do(quiet: Simulator, ask: Ask) -> None:
    ask(quiet.url, "alice", "wonder").experiment(2)
    registry = ask(quiet.url, "alice")
    registry.experiment(2)
    quiet.expire_tokens()
    with pytest.raises(AuthenticationError, match=r"token has expired.*det user login alice"):
        registry.experiment(2)


def test_no_permission_is_not_allowed(quiet: Simulator, ask: Ask) -> None:
    registry = ask(quiet.url)
    registry.experiment(2)
    quiet.faults("403")
    with pytest.raises(NotAllowedError, match="scripted 403"):
        registry.experiment(2)


def test_tokens_and_passwords_are_in_no_repr_error_or_log(
    quiet: Simulator, ask: Ask, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    registry = ask(quiet.url, "alice", "wonder")
    registry.experiment(2)
    token = registry.login.token()
    said = [repr(registry), repr(registry.login), repr(registry.login._who()), repr(registry.login._cache)]
    quiet.faults("echo")
    with pytest.raises(MasterError, match="bad header Bearer … again") as caught:
        registry.experiment(2)
    said.append(repr(caught.value))
    with Simulator(Data()) as server:
        url = server.url
    with pytest.raises(OfflineError) as refused:
        ask(url, "alice", "wonder").experiment(1)
    assert getattr(refused.value.__cause__, "request", None) is None
    said += [repr(refused.value), repr(refused.value.__cause__), *caplog.messages]
    for text in said:
        assert token not in text
        assert "wonder" not in text


def test_a_login_is_not_sent_on_to_where_a_redirect_leads(quiet: Simulator, ask: Ask) -> None:
    with Simulator(data()) as other:
        quiet.faults(f"ok redirect:{other.url}/api/v1/auth/login")
        with pytest.raises(MasterError, match=r"sends logins on to 'http://127.*give the master's own address"):
            ask(quiet.url, "alice", "wonder").experiment(2)
        assert other.requests() == []


def test_inside_the_cluster_the_tasks_token_is_used_and_goes_to_no_other_host(
    quiet: Simulator, ask: Ask, environment: DeterminedEnvironment
) -> None:
    token = str(ask(quiet.url, "alice", "wonder").login.token())
    inside = replace(environment, session_token=token, config_folder=environment.config_folder / "none")
    registry = ask(quiet.url, environment=inside)
    quiet.requests()
    assert registry.experiment(2).id == 2
    asked = quiet.requests()
    assert [one["path"] for one in asked] == ["/info", "/api/v1/experiments/2"]  # nobody logs in
    assert asked[1]["headers"]["Grpc-Metadata-x-allocation-token"] == f"Bearer {token}"
    assert "Authorization" not in asked[1]["headers"]
    with Simulator(data()) as other:
        quiet.faults(f"redirect:{other.url.replace('127.0.0.1', 'localhost')}/api/v1/experiments/2")
        with pytest.raises(AuthenticationError):
            registry.experiment(2)
        assert all(token not in json.dumps(one) for one in other.requests())
    quiet.expire_tokens()
    with pytest.raises(AuthenticationError, match="the token has expired"):
        registry.experiment(2)


# --- addresses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("localhost", "http://localhost:8080"),
        ("h:99/base/", "http://h:99/base"),
        ("http://h", "http://h:80"),
        ("https://h", "https://h:443"),
        ("https://H.example:8443/a/b//", "https://h.example:8443/a/b"),
        (" http://h:8080/ ", "http://h:8080"),
        ("[::1]:8080", "http://[::1]:8080"),
    ],
)
def test_addresses_have_one_canonical_form(text: str, url: str) -> None:
    assert canonical_url(text) == url
    assert canonical_url(url) == url


@pytest.mark.parametrize(
    "text",
    [
        "",
        "http://",
        "ftp://h",
        "http://u:hunter2@h",
        "u@h",
        "http://h?a=1",
        "http://h#x",
        "h:port",
        "http://h:99999",
        "a b",
        ":80",
    ],
)
def test_what_is_no_address_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        canonical_url(text)
    assert "hunter2" not in str(caught.value)


# --- TLS -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for `master.example`, with its key."""
    folder = tmp_path_factory.mktemp("tls")
    key, cert, both = folder / "key.pem", folder / "cert.pem", folder / "both.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=master.example"]
    command += ["-addext", "subjectAltName=DNS:master.example", "-keyout", str(key), "-out", str(cert)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("no openssl command on this machine")
    both.write_bytes(key.read_bytes() + cert.read_bytes())
    return both


@pytest.fixture(scope="module")
def secure(certificate: Path) -> Iterator[Simulator]:
    with Simulator(data(), certificate=certificate) as running:
        yield running


def test_an_unknown_certificate_is_refused_at_once_with_what_to_do(secure: Simulator) -> None:
    started = time.monotonic()
    http = Http(secure.url, backoff=2.0)
    with pytest.raises(MasterError, match=r"certificate is refused.*self.signed.*DET_MASTER_CERT_FILE"):
        http.get("/info")
    assert time.monotonic() - started < 15  # retries would sleep for 27 seconds
    http.close()


def test_a_certificate_and_a_name_that_were_given_are_trusted(secure: Simulator, ask: Ask, certificate: Path) -> None:
    pem = certificate.with_name("cert.pem").read_text()
    assert ask(secure.url, tls=Tls(certificates=pem, name="master.example")).experiment(2).id == 2
    with pytest.raises(MasterError, match="certificate is refused"):
        ask(secure.url, tls=Tls(certificates=pem)).version()  # it is not for 127.0.0.1
    with pytest.raises(MasterError, match="certificate is refused"):
        ask(secure.url, tls=Tls(certificates=pem, name="other.example")).version()


def test_the_arguments_of_the_client_are_those_of_the_other_one_in_its_order(
    secure: Simulator, certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DET_DEBUG_CONFIG_PATH", str(tmp_path / "determined"))
    pem = str(certificate.with_name("cert.pem"))
    assert Determined(secure.url, "alice", "wonder", pem, "master.example").get_experiment(2).id == 2
    assert Determined(secure.url, "alice", "wonder", None, None, True).get_experiment(2).id == 2
    with pytest.raises(UsageError, match="contradict"):
        Determined(secure.url, cert_path=pem, noverify=True)


def test_noverify_asks_with_no_warning(secure: Simulator, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask(secure.url, tls=Tls(verify=False)).experiment(2).id == 2
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", ssl.get_default_verify_paths().openssl_cafile)
    assert ask(secure.url, tls=Tls(verify=False)).experiment(2).id == 2


def test_usual_authorities_count_beside_the_given_ones(certificate: Path) -> None:
    pem = certificate.with_name("cert.pem").read_text()
    with_ours = ssl_context("https://h", Tls(certificates=pem)).cert_store_stats()["x509_ca"]
    assert with_ours == ssl_context("https://h", Tls()).cert_store_stats()["x509_ca"] + 1


def test_tls_settings_have_the_documented_precedence(
    environment: DeterminedEnvironment, certificate: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import json
    from dataclasses import replace

    pem = certificate.with_name("cert.pem")
    folder = environment.config_folder
    folder.mkdir()
    (folder / "certs.json").write_text(json.dumps({"https://h:443": "STORED"}))
    url = "https://h:443"
    assert Tls.choose(url, environment) == Tls(certificates="STORED")
    assert Tls.choose("https://other:443", environment) == Tls()
    named = replace(environment, cert_file=str(pem), cert_name="n")
    assert Tls.choose(url, named) == Tls(certificates=pem.read_text(), name="n")
    assert Tls.choose(url, replace(environment, cert_file="NoVerify")) == Tls(verify=False)
    assert Tls.choose(url, replace(environment, cert_file=str(tmp_path / "none"))) == Tls()
    assert "does not exist" in caplog.text
    assert Tls.choose(url, named, cert_name="x") == Tls(name="x")
    assert Tls.choose(url, named, noverify=True) == Tls(verify=False)
    assert Tls.choose(url, environment, cert_path=pem) == Tls(certificates=pem.read_text())
    with pytest.raises(UsageError, match="contradict"):
        Tls.choose(url, named, cert_path=pem, noverify=True)
    with pytest.raises(UsageError, match="cannot read"):
        Tls.choose(url, environment, cert_path=tmp_path / "none")
    (folder / "certs.json").write_text("{")
    assert Tls.choose(url, environment) == Tls()


def test_certificates_that_are_no_pem_are_one_line(secure: Simulator) -> None:
    http = Http(secure.url, tls=Tls(certificates="nonsense"), backoff=0.01)
    with pytest.raises(UsageError, match="no PEM"):
        http.get("/info")
    http.close()


def test_the_page_size_is_what_this_file_assumes() -> None:
    assert v1.PAGE == PAGE < 2 * PAGE + 30
