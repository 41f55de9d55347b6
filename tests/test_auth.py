"""Identities and the token cache that the `det` command shares."""

from __future__ import annotations

import json
import os
import pty
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from master_simulator import Data, Simulator

from cas.config import DeterminedEnvironment
from cas.errors import AuthenticationError, MasterError
from cas.registry.auth import Identity, Login, TokenCache, hashed
from cas.registry.http import Http
from cas.registry.v1 import V1Entrance

URL = "http://h:8080"
NOBODY = DeterminedEnvironment(
    user=None,
    password=None,
    user_token=None,
    cert_file=None,
    cert_name=None,
    config_folder=Path("/nonexistent"),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "determined"
    made.mkdir()
    return made


def written(folder: Path) -> Any:
    return json.loads((folder / "auth.json").read_text())


# --- identities ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "environment", "active", "expected"),
    [
        (("bob", "p"), ("eve", "q"), "amy", ("bob", "p", True)),
        (("bob", None), ("eve", "q"), "amy", ("bob", None, False)),
        (("bob", ""), ("eve", "q"), "amy", ("bob", "", True)),
        ((None, "p"), ("eve", "q"), "amy", ("eve", "q", True)),
        ((None, None), ("eve", ""), "amy", ("eve", "", True)),
        ((None, None), ("eve", None), "amy", ("amy", None, False)),
        ((None, None), (None, "q"), "amy", ("amy", None, False)),
        ((None, "p"), (None, None), "amy", ("amy", "p", True)),
        ((None, None), (None, None), None, ("determined", "", False)),
        ((None, "p"), ("eve", None), None, ("determined", "p", True)),
    ],
)
def test_who_logs_in_is_chosen_by_precedence(
    arguments: tuple[str | None, str | None],
    environment: tuple[str | None, str | None],
    active: str | None,
    expected: tuple[str, str | None, bool],
) -> None:
    around = replace(NOBODY, user=environment[0], password=environment[1])
    found = Identity.choose(*arguments, around, active)
    assert (found.user, found.password, found.explicit) == expected


def test_passwords_are_hashed_as_masters_expect_and_empty_ones_stay_empty() -> None:
    assert hashed("") == ""
    assert len(hashed("wonder")) == 128
    assert hashed("wonder") != hashed("wonder ")
    assert "wonder" not in repr(Identity("alice", "wonder", True))


# --- the token cache -------------------------------------------------------------------------------------------------


def test_a_token_is_kept_in_version_2_and_private(folder: Path) -> None:
    (folder / "auth.json").write_text('{"version": 1, "masters": {}}')
    (folder / "auth.json").chmod(0o644)
    (folder / "auth.json.temp").write_text("left by a crash")
    cache = TokenCache(folder, URL)
    cache.keep("alice", "v2.a")
    assert written(folder) == {"version": 2, "masters": {URL: {"tokens": {"alice": "v2.a"}}}}
    assert stat.S_IMODE((folder / "auth.json").stat().st_mode) == 0o600
    assert not (folder / "auth.json.temp").exists()
    assert cache.token("alice") == "v2.a"
    assert cache.token("bob") is None
    assert cache.active_user is None


def test_the_folder_is_made_private(tmp_path: Path) -> None:
    TokenCache(tmp_path / "a" / "determined", URL).keep("alice", "v2.a")
    assert stat.S_IMODE((tmp_path / "a" / "determined").stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "document",
    [
        {"active_user": "amy", "tokens": {"amy": "v2.old"}},
        {"version": 1, "masters": {"h": {"active_user": "amy", "tokens": {"amy": "v2.old"}}}},
        {
            "version": 1,
            "masters": {"h:8080/": {"active_user": "amy", "tokens": {"amy": "v2.old"}}, "g": {"tokens": {}}},
        },
        {"version": 2, "masters": {URL: {"active_user": "amy", "tokens": {"amy": "v2.old"}}}},
    ],
)
def test_every_version_is_read_and_what_was_there_is_kept(folder: Path, document: Any) -> None:
    (folder / "auth.json").write_text(json.dumps(document))
    cache = TokenCache(folder, URL)
    assert (cache.active_user, cache.token("amy")) == ("amy", "v2.old")
    cache.keep("bob", "v2.new")
    entry = written(folder)["masters"][URL]
    assert entry == {"active_user": "amy", "tokens": {"amy": "v2.old", "bob": "v2.new"}}
    assert written(folder)["version"] == 2


def test_other_masters_entries_are_kept(folder: Path) -> None:
    other = {"active_user": "x", "tokens": {"x": "v2.x"}}
    (folder / "auth.json").write_text(json.dumps({"version": 2, "masters": {"http://other:80": other}}))
    TokenCache(folder, URL).keep("bob", "v2.new")
    TokenCache(folder, URL).drop("bob", "v2.new")
    assert written(folder)["masters"] == {"http://other:80": other, URL: {"tokens": {}}}


CORRUPT = [
    "",
    "{",
    "[]",
    "null",
    '{"version": 3, "masters": {}}',
    '{"version": true, "masters": {}}',
    '{"version": 2}',
    '{"version": 2, "masters": {}, "more": 1}',
    '{"version": 2, "masters": {"h": {"tokens": {}}}}',
    '{"version": 2, "masters": {"http://h:8080": {"tokens": {"a": 1}}}}',
    '{"version": 2, "masters": {"http://h:8080": []}}',
    '{"version": 1, "masters": {"ftp://h": {}}}',
    '{"tokens": {"a": "TOKEN-1"}, "odd": 1}',
    '{"active_user": 7, "tokens": {}}',
    "[" * 100_000,
    '{"tokens": {"a": "TOKEN-1"',
    "\udcff\udcfe",
]


@pytest.mark.parametrize("text", CORRUPT)
def test_a_corrupt_file_is_set_aside_and_said_and_never_deleted(
    folder: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    data = text.encode("utf-8", "surrogateescape")
    (folder / "auth.json").write_bytes(data)
    cache = TokenCache(folder, URL)
    assert cache.token("a") is None
    assert cache.active_user is None
    aside = list(folder.glob("auth.json.corrupt-*"))
    assert [path.read_bytes() for path in aside] == [data]
    assert stat.S_IMODE(aside[0].stat().st_mode) == 0o600
    assert str(aside[0]) in caplog.text
    assert "TOKEN-1" not in caplog.text
    cache.keep("a", "v2.a")
    assert cache.token("a") == "v2.a"
    assert len(list(folder.glob("auth.json.corrupt-*"))) == 1


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from([URL, "h"]),
        lambda inner: (
            st.lists(inner, max_size=2)
            | st.dictionaries(
                st.sampled_from(["version", "masters", "tokens", "active_user", URL, "h", "a"]), inner, max_size=3
            )
        ),
        max_leaves=6,
    )
)
def test_no_json_in_the_file_is_a_traceback(folder: Path, document: Any) -> None:
    (folder / "auth.json").write_text(json.dumps(document))
    cache = TokenCache(folder, URL)
    assert cache.token("a") is None or isinstance(cache.token("a"), str)
    cache.keep("b", "v2.b")
    assert cache.token("b") == "v2.b"


def test_a_token_that_another_process_renewed_is_not_dropped(folder: Path) -> None:
    cache = TokenCache(folder, URL)
    cache.keep("alice", "v2.new")
    cache.drop("alice", "v2.old")
    assert cache.token("alice") == "v2.new"
    cache.drop("alice", "v2.new")
    assert cache.token("alice") is None


def test_a_cache_that_cannot_be_written_is_said_and_is_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    cache = TokenCache(tmp_path / "file", URL)
    cache.keep("alice", "v2.secret")
    assert "not kept" in caplog.text
    assert "v2.secret" not in caplog.text
    assert cache.token("alice") is None


KEEPER = """
import sys
from pathlib import Path
from cas.registry.auth import TokenCache
folder, number = Path(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
sys.stdin.readline()
for step in range(12):
    master = f"http://h{number}:8080" if step % 2 else "http://shared:8080"
    TokenCache(folder, master).keep(f"user-{number}-{step}", f"v2.{number}.{step}")
"""


def keepers(folder: Path, count: int) -> list[subprocess.Popen[str]]:
    made = [
        subprocess.Popen(
            [sys.executable, "-c", KEEPER, folder, str(n)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for n in range(count)
    ]
    for child in made:
        assert child.stdout is not None
        child.stdout.readline()
    for child in made:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    return made


def test_eight_processes_share_the_file_without_losing_an_entry(folder: Path) -> None:
    (folder / "auth.json").write_text(json.dumps({"active_user": "amy", "tokens": {"amy": "v2.amy"}}))
    for child in keepers(folder, 8):
        child.communicate(timeout=120)
        assert child.returncode == 0
    masters = written(folder)["masters"]
    kept = {(url, user): token for url, entry in masters.items() for user, token in entry["tokens"].items()}
    expected = {
        (f"http://h{n}:8080" if step % 2 else "http://shared:8080", f"user-{n}-{step}"): f"v2.{n}.{step}"
        for n in range(8)
        for step in range(12)
    }
    assert expected.items() <= kept.items()
    assert "v2.amy" in kept.values()
    assert not list(folder.glob("auth.json.corrupt-*"))


@pytest.mark.slow
def test_kills_lose_no_entry_that_was_kept_before(folder: Path) -> None:
    TokenCache(folder, URL).keep("alice", "v2.a")
    for round in range(6):
        children = keepers(folder, 3)
        threading.Event().wait(0.01 * round)
        for child in children:
            child.kill()
            child.communicate()
        assert TokenCache(folder, URL).token("alice") == "v2.a"
        TokenCache(folder, URL).keep(f"after-{round}", "v2.b")
    assert not list(folder.glob("auth.json.corrupt-*"))
    assert [TokenCache(folder, URL).token(f"after-{round}") for round in range(6)] == ["v2.b"] * 6


# --- the login ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def running() -> Iterator[Simulator]:
    with Simulator(Data(users={"determined": "", "alice": "wonder", "bob": "builder"})) as server:
        yield server


@pytest.fixture
def server(running: Simulator) -> Simulator:
    running.faults("")
    running.requests()
    return running


@pytest.fixture
def login(server: Simulator, folder: Path) -> Iterator[Callable[..., Login]]:
    opened: list[Http] = []

    def make(user: str | None = None, password: str | None = None, **environment: str) -> Login:
        opened.append(Http(server.url, backoff=0.01))
        around = replace(NOBODY, config_folder=folder, **environment)  # type: ignore[arg-type]
        return Login(opened[-1], V1Entrance, user=user, password=password, environment=around)

    yield make
    for http in opened:
        http.close()


Logs = Callable[..., Login]


def paths(server: Simulator) -> list[str]:
    return [one["path"].removeprefix("/api/v1/") for one in server.requests()]


def test_a_login_is_cached_but_makes_nobody_active(server: Simulator, folder: Path, login: Logs) -> None:
    token = login("alice", "wonder").token()
    assert written(folder)["masters"][server.url] == {"tokens": {"alice": token}}
    assert login("alice").token() == token
    assert paths(server) == ["auth/login", "me"]


def test_with_nothing_given_it_is_the_stock_account(server: Simulator, folder: Path, login: Logs) -> None:
    login().token()
    assert list(written(folder)["masters"][server.url]["tokens"]) == ["determined"]


def test_the_environment_names_user_and_password(server: Simulator, folder: Path, login: Logs) -> None:
    login(user="bob", password="builder").token()
    (folder / "auth.json").unlink()
    around = {"user": "alice", "password": "wonder"}
    made = Login(
        Http(server.url),
        V1Entrance,
        user=None,
        password=None,
        environment=replace(NOBODY, config_folder=folder, **around),
    )
    made.token()
    assert list(written(folder)["masters"][server.url]["tokens"]) == ["alice"]
    made._http.close()


def test_the_active_user_is_taken_from_the_file(server: Simulator, folder: Path, login: Logs) -> None:
    token = login("alice", "wonder").token()
    entry = {"active_user": "alice", "tokens": {"alice": token}}
    (folder / "auth.json").write_text(json.dumps({"version": 2, "masters": {server.url: entry}}))
    assert login().token() == token


def test_a_cached_token_that_fails_is_dropped_and_the_stock_account_logs_in(
    server: Simulator, folder: Path, login: Logs
) -> None:
    TokenCache(folder, server.url).keep("determined", "v2.stale")
    token = login().token()
    assert token != "v2.stale"
    assert TokenCache(folder, server.url).token("determined") == token
    assert paths(server) == ["me", "auth/login"]


def test_a_token_in_the_environment_is_used_unchecked_for_its_user(server: Simulator, folder: Path) -> None:
    def ask(name: str | None, **around: str) -> str:
        http = Http(server.url)
        environment = replace(NOBODY, config_folder=folder, **around)  # type: ignore[arg-type]
        made = Login(http, V1Entrance, user=name, password=None, environment=environment)
        try:
            token = made.token()
            if token == "v2.env":
                with pytest.raises(AuthenticationError, match="refuses 'alice'"):
                    made.renew(token)  # never as somebody else
            return token
        finally:
            http.close()

    assert ask(None, user="alice", user_token="v2.env") == "v2.env"
    assert ask("alice", user="alice", user_token="v2.env") == "v2.env"
    assert paths(server) == []
    assert ask(None, user_token="v2.env") != "v2.env"  # alone it does nothing
    with pytest.raises(AuthenticationError, match="no terminal"):
        ask("bob", user="alice", user_token="v2.env")


def test_with_no_password_and_no_terminal_it_says_what_to_do(server: Simulator, login: Logs) -> None:
    with pytest.raises(AuthenticationError, match=r"no terminal to ask on.*det user login alice.*DET_PASS"):
        login("alice").token()
    assert paths(server) == []


def test_an_answer_with_no_token_is_no_master(server: Simulator, login: Logs) -> None:
    for answer in ("{}", "[]", '{"token":""}', '{"token":5}', '{"token":"a\\nb"}', "html"):
        server.faults(answer if answer == "html" else "json:" + answer)
        with pytest.raises(MasterError):
            login("alice", "wonder").token()


def test_threads_log_in_once(server: Simulator, login: Logs) -> None:
    shared = login("alice", "wonder")
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(shared.token())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert paths(server) == ["auth/login"]


def test_renewing_takes_the_token_that_another_process_got(server: Simulator, folder: Path, login: Logs) -> None:
    first = login("alice", "wonder").token()
    waiting = login("alice")
    assert waiting.token() == first
    second = login("alice", "wonder").token()
    server.requests()
    assert waiting.renew(first) == second
    assert paths(server) == []
    with pytest.raises(AuthenticationError, match="token has expired"):
        waiting.renew(second)


PROMPT = """
import sys
from dataclasses import replace
from pathlib import Path
from cas.config import DeterminedEnvironment
from cas.registry.auth import Login
from cas.registry.http import Http
from cas.registry.v1 import V1Entrance
folder, url = Path(sys.argv[1]), sys.argv[2]
environment = DeterminedEnvironment(None, None, None, None, None, folder)
http = Http(url)
token = Login(http, V1Entrance, user="alice", password=None, environment=environment).token()
print("got a token" if token else "nothing")
"""


def test_on_a_terminal_the_password_is_asked_and_not_echoed(server: Simulator, folder: Path) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", PROMPT, str(folder), server.url])
    said = b""
    while b"Password for user 'alice': " not in said:
        said += os.read(terminal, 1024)
    os.write(terminal, b"wonder\n")
    try:
        while chunk := os.read(terminal, 1024):
            said += chunk
    except OSError:  # the terminal ends with its last process
        pass
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert b"got a token" in said
    assert b"wonder" not in said


def test_the_environment_is_read_as_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DET_DEBUG_CONFIG_PATH", str(tmp_path))
    monkeypatch.setenv("DET_USER", "alice")
    monkeypatch.setenv("DET_PASS", "")
    monkeypatch.delenv("DET_USER_TOKEN", raising=False)
    found = DeterminedEnvironment.load()
    assert (found.user, found.password, found.user_token, found.config_folder) == ("alice", "", None, tmp_path)


NOTEBOOK = """
import getpass, sys, types
from pathlib import Path
from cas.config import DeterminedEnvironment
from cas.errors import AuthenticationError
from cas.registry.auth import Login
from cas.registry.http import Http
from cas.registry.v1 import V1Entrance

folder, url, attended = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "attended"
sys.modules["ipykernel"] = types.ModuleType("ipykernel")


class StdinNotImplementedError(NotImplementedError):
    pass


def ask(prompt):  # what ipykernel puts in the place of getpass.getpass
    if not attended:
        raise StdinNotImplementedError("raw_input was called, but this frontend does not support input requests")
    print("asked:", prompt)
    return "wonder"


getpass.getpass = ask
environment = DeterminedEnvironment(None, None, None, None, None, folder)
try:
    print(Login(Http(url), V1Entrance, user="alice", password=None, environment=environment).token()[:3])
except AuthenticationError as error:
    print("refused:", error)
"""


@pytest.mark.parametrize(
    ("attended", "expected"),
    [("attended", "asked: Password for user 'alice': \nv2.\n"), ("unattended", "no password was given")],
)
def test_in_a_notebook_the_password_is_asked_in_the_notebook(
    server: Simulator, folder: Path, attended: str, expected: str
) -> None:
    command = [sys.executable, "-c", NOTEBOOK, str(folder), server.url, attended]
    found = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stderr
    assert expected in found.stdout


def test_a_users_token_of_the_environment_counts_before_the_tasks(server: Simulator, folder: Path) -> None:
    http = Http(server.url)
    around = {"user": "alice", "user_token": "v2.user", "session_token": "v2.task"}
    environment = replace(NOBODY, config_folder=folder, **around)
    assert Login(http, V1Entrance, user=None, password=None, environment=environment).token() == "v2.user"
    environment = replace(environment, user_token=None)
    assert Login(http, V1Entrance, user=None, password=None, environment=environment).token() == "v2.task"
    explicit = Login(http, V1Entrance, user="alice", password="wonder", environment=environment)
    assert explicit.token() not in ("v2.user", "v2.task")
    assert "v2.task" not in repr(environment)
    http.close()


def test_a_session_ends_here_even_where_the_master_does_not_end_it(
    server: Simulator, folder: Path, login: Logs, caplog: pytest.LogCaptureFixture
) -> None:
    assert login("alice", "wonder").start_session() == "alice"
    assert written(folder)["masters"][server.url]["active_user"] == "alice"
    server.faults("500")
    assert login().end_session() == ("alice",)
    assert written(folder)["masters"][server.url] == {"tokens": {}}
    assert "its session goes on" in caplog.text
    assert login().end_session() == ()
