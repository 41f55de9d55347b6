from pathlib import Path

import pytest

from cas.config import DeterminedEnvironment, Link, Progress, Settings, Trust, Verify, config_file, explain, size_of
from cas.errors import UsageError


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An environment without settings, and a configuration file of our own."""
    import os

    for name in list(os.environ):
        if name.startswith(("CAS_", "DET_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("CAS_CONFIG", str(tmp_path / "config.toml"))


def write(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.toml").write_text(text, encoding="utf-8")


def test_defaults() -> None:
    settings = Settings.load()
    assert settings.home.is_absolute() and settings.home.name == "cas"
    assert settings.master is None and settings.offline is False
    assert (settings.link, settings.trust, settings.verify) == (Link.AUTO, Trust.SCAN, Verify.DEFAULT)
    assert settings.concurrency == 6 and settings.progress is Progress.AUTO and settings.log_level == "WARNING"


def test_arguments_beat_the_environment_beats_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 'concurrency = 1\nlink = "copy"\ntrust = "never"\n')
    monkeypatch.setenv("CAS_CONCURRENCY", "2")
    monkeypatch.setenv("CAS_LINK", "symlink")
    settings = Settings.load(concurrency=3)
    assert (settings.concurrency, settings.link, settings.trust) == (3, Link.SYMLINK, Trust.NEVER)
    assert Settings.load(concurrency=None).concurrency == 2
    monkeypatch.setenv("CAS_CONCURRENCY", "")
    assert Settings.load().concurrency == 1


@pytest.mark.parametrize("variable", ["CAS_MASTER", "DET_MASTER", "DET_MASTER_ADDR"])
def test_the_master_is_named_by_any_of_three_variables(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "http://m:8080")
    assert Settings.load().master == "http://m:8080"
    monkeypatch.setenv("CAS_MASTER", "http://mine")
    assert Settings.load().master == "http://mine"


def test_an_empty_master_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DET_MASTER", "")
    assert Settings.load().master is None


@pytest.mark.parametrize(
    ("name", "value"),
    [("CAS_LINK", "hard"), ("CAS_TRUST", "yes"), ("CAS_CONCURRENCY", "0"), ("CAS_CONCURRENCY", "many"),
     ("CAS_LOCK_STALL", "-1"), ("CAS_LOCK_STALL", "nan"), ("CAS_TIMEOUT", "soon"), ("CAS_OFFLINE", "perhaps"),
     ("CAS_PROGRESS", "loud"), ("CAS_LOG_LEVEL", "chatty"), ("CAS_VERIFY", "never")],
)  # fmt: skip
def test_a_value_that_is_not_allowed_names_the_setting(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError) as caught:
        Settings.load()
    assert name in str(caught.value) and value in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"), [("1", True), ("true", True), ("YES", True), ("on", True), ("0", False), ("False", False)]
)
def test_truth_is_written_in_several_ways(text: str, value: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAS_OFFLINE", text)
    assert Settings.load().offline is value


@pytest.mark.parametrize("text", ["colour = 1\n", "= 1", "link = \n", 'link = "hard"\n', "concurrency = 0\n"])
def test_a_wrong_file_is_one_clear_error(text: str, tmp_path: Path) -> None:
    write(tmp_path, text)
    with pytest.raises(UsageError, match=r"config\.toml"):
        Settings.load()


def test_a_home_is_absolute_and_tilde_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CAS_HOME", "~/store")
    assert Settings.load().home == tmp_path / "store"
    monkeypatch.chdir(tmp_path)
    assert Settings.load(home="relative").home == tmp_path / "relative"


def test_the_file_lies_in_the_users_config_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CAS_CONFIG")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert config_file().name == "config.toml"


def test_but_changes_what_is_given() -> None:
    settings = Settings.load(concurrency=3)
    changed = settings.but(concurrency=None, link="copy")
    assert (changed.concurrency, changed.link) == (3, Link.COPY)
    with pytest.raises(UsageError):
        settings.but(link="hard")


def test_a_name_that_is_no_setting_is_refused_not_dropped() -> None:
    with pytest.raises(UsageError, match="no setting is called 'ofline'; there are home, master, "):
        Settings.load(ofline=True)
    with pytest.raises(UsageError, match="'lnik'"):
        Settings.load().but(lnik="copy")


def test_settings_made_by_hand_name_their_home() -> None:
    with pytest.raises(TypeError, match="home"):
        Settings(offline=True)


@pytest.mark.parametrize("text", ['home = ["x"]\n', "home = 5\n", "master = 5\n", "region = []\n"])
def test_text_in_the_file_is_text(text: str, tmp_path: Path) -> None:
    write(tmp_path, text)
    with pytest.raises(UsageError, match=r"config\.toml: .* must be"):
        Settings.load()


@pytest.mark.parametrize(("name", "value"), [("CAS_CONCURRENCY", "many"), ("CAS_TIMEOUT", "soon")])
def test_a_number_that_is_none_is_said_in_words_of_users(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=f"{name}: '{value}' must be a (whole )?number"):
        Settings.load()


def test_explain_says_where_every_value_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "concurrency = 1\n")
    monkeypatch.setenv("CAS_LINK", "hard")
    monkeypatch.setenv("DET_MASTER", "http://m")
    found = {one.name: one for one in explain(timeout=5)}
    assert found["concurrency"].value == 1 and "config.toml" in found["concurrency"].source
    assert found["link"].error is not None and found["link"].source == "CAS_LINK"
    assert (found["master"].value, found["master"].source) == ("http://m", "DET_MASTER")
    assert (found["timeout"].value, found["timeout"].source) == (5.0, "argument")
    assert found["trust"].source == "default"
    write(tmp_path, "= 1")
    assert [one for one in explain() if one.error and one.source == "file"]


def test_passwords_are_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DET_PASS", "DET_USER_TOKEN"):
        monkeypatch.setenv(name, "secret-word")
    found = DeterminedEnvironment.load()
    assert (found.password, found.user_token) == ("secret-word",) * 2
    assert "secret-word" not in repr(found)


@pytest.mark.parametrize(
    ("text", "size"),
    [("4096", 4096), ("200MiB", 200 << 20), ("1.5 G", 3 << 29), ("2kB", 2000), ("3TB", 3 * 10**12), ("1gib", 1 << 30)],
)
def test_numbers_of_bytes(text: str, size: int) -> None:
    assert size_of(text) == size


@pytest.mark.parametrize("text", ["", "much", "-1", "1e9", "5 XB", "1.2.3", "MiB", None])
def test_what_is_no_number_of_bytes(text: object) -> None:
    with pytest.raises(ValueError, match="must be a number of bytes, like 500GiB"):
        size_of(text)
