"""`pull` and `tag`, as users type them."""

from __future__ import annotations

import json

import pytest
from cli import UUIDS, Shell, stocked_shell
from stores import UUID, tagged
from web_server import serving

from cas import Determined, removing
from cas.actions import exporting, planning, publishing, trusting
from cas.config import Progress, Settings
from cas.errors import CheckpointNotFoundError
from cas.index.store import Store
from cas.pull import urls
from cas.registry.local import record_local

pytestmark = pytest.mark.slow


@pytest.fixture
def shell(tmp_path):
    return Shell(tmp_path)


@pytest.fixture
def place(tmp_path):
    folder = tmp_path / "site"
    folder.mkdir()
    with serving(folder) as site:
        site.write("m/config.json", b"{}")
        site.write("m/weights.bin", b"w" * 5000)
        yield site.url + "m/"


def test_pull_tag_view_describe_rm(shell, place, tmp_path):
    first = shell.run("pull", place, "--include", "*.json", "--name", "tiny/one").ok
    uuid = first.out.split()[0]
    assert first.out == f"{uuid}  tiny/one  1 file, 2 B; it has others, which were not pulled\n"
    assert (shell.run("tag").ok.out.split()[-2:]) == ["tiny/one", uuid]
    found = json.loads(shell.run("checkpoint", "describe", "tiny/one", "--json").ok.out)
    assert [(one["path"], one["here"]) for one in found["files"]] == [("config.json", True), ("weights.bin", False)]
    assert [one["proof"] for one in found["files"]] == ["length only", None]
    assert "length only" in shell.run("checkpoint", "describe", "tiny/one").ok.out
    assert shell.run("pull", place, "-q").ok.out == f"{uuid}\n"
    assert sorted(path.name for path in (shell.folder / shell.run("view", "tiny/one").ok.out.strip()).iterdir()) == [
        "config.json",
        "weights.bin",
    ]
    assert shell.run("checkpoint", "download", "tiny/one", "--exclude", "*.bin", "-o", "out", "-q").ok.out == "out\n"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["config.json"]
    assert uuid in shell.run("ls").ok.out
    assert shell.run("rm", "--force", "tiny/one").ok.out.startswith(f"{uuid}  removed")
    assert shell.run("tag", "--remove", "tiny/one").ok.out == f"tiny/one no longer names {uuid}\n"
    assert shell.run("tag").line == "no checkpoint has a name"


def test_a_name_is_taken_wherever_a_uuid_is(tmp_path):
    shell = stocked_shell(tmp_path)
    shell.prepare("tag", "best/one", UUIDS[0])
    assert "here already: 1.0 KiB" in shell.run("plan", "best/one").ok.out
    assert UUIDS[0] in shell.run("publish", "best/one").line  # it was added: there is nowhere to publish
    shell.prepare("export", "best/one", "one.tar")
    assert "  trusted: 2 files" in shell.run("trust", "best/one").ok.out
    assert shell.run("trial", "download", "1", "--uuid", "best/one", "-o", "a", "-q").ok.out == "a\n"
    assert "belongs to trial 1" in shell.run("trial", "download", "2", "--uuid", "best/one").line
    for command in (("plan",), ("publish",), ("trust",), ("view",), ("checkpoint", "download"), ("rm",), ("pin",)):
        ended = shell.run(*command, "best/two")
        assert (ended.code, "no checkpoint is called 'best/two'" in ended.line) == (3, True), ended


def test_a_name_is_taken_by_every_function_that_takes_a_uuid(tmp_path):
    store = Store(tmp_path / "home")
    tagged(store, UUID, {"a": b"a"}, durable=True)
    record_local(store, uuid=UUID, experiment=1, trial=2, steps=3)
    settings = Settings.load(home=tmp_path / "home", progress=Progress.OFF)
    urls.tag("best/one", UUID, settings=settings)
    trial = Determined(settings=settings).get_trial(2)
    assert trial.select_checkpoint(uuid="best/one").uuid == UUID
    assert Determined(settings=settings).get_checkpoint("best/one").uuid == UUID
    assert planning.plan("best/one", settings=settings).size == 1
    with pytest.raises(CheckpointNotFoundError, match=UUID):
        publishing.publish("best/one", settings=settings)
    assert exporting.export(["best/one", UUID], tmp_path / "one.tar", settings=settings).checkpoints == 1
    assert trusting.trust("best/one", settings=settings).trusted
    planned = removing.plan("best/one", settings=settings)
    assert [one.uuid for one in (*planned.going, *planned.staying) if one in planned.going or one.chosen] == [UUID]
    removing.pin("best/one", settings=settings)
    removing.unpin("best/one", settings=settings)
    assert removing.remove("best/one", force=True, settings=settings).uuid == UUID


def test_a_dry_run_fetches_nothing(shell, place):
    said = shell.run("pull", place, "--include", "*.bin", "--dry-run").ok.out
    assert "1 file, 4.9 KiB" in said and "weights.bin" in said and "config.json" not in said
    assert not list((shell.home / "blobs").glob("*/*"))


def test_json_says_all(shell, place):
    found = json.loads(shell.run("pull", place, "-o", "out", "--json").ok.out)
    assert (found["files"], found["size"], found["partial"], found["path"]) == (2, 5002, False, "out")
    assert found["url"] == place
    assert set(found["proofs"]) == {"config.json", "weights.bin"}


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((), 2, "say which place: cas pull '<url>'"),
        (("nonsense://x",), 2, "the scheme 'nonsense' is not supported"),
        (("s3://key:hidden@b/x",), 2, "credentials do not belong into a URL"),
        (("/no/such/folder",), 3, "there is no folder"),
        (("http://127.0.0.1:9/x/", "--name", "a b"), 2, "not a name"),
        (("http://127.0.0.1:9/x/", "--include", ""), 2, "patterns"),
        (("http://127.0.0.1:9/x/", "--link", "copy"), 2, "--link goes with -o"),
        (("http://127.0.0.1:9/x/", "--storage-option", "nonsense"), 2, "NAME=VALUE"),
        (("http://127.0.0.1:9/x/", "--storage-option", "key=hidden"), 2, "over HTTP there is only 'headers'"),
    ],
)
def test_wrong_words_are_one_clear_line(shell, words, code, said):
    ended = shell.run("pull", *words)
    assert (ended.code, said in ended.line.replace("<url>", "'<url>'").replace("''", "'")) == (code, True), ended
    assert "hidden" not in ended.err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("best",), 2, "say which checkpoint: cas tag best <uuid>"),
        (("--remove",), 2, "say which name"),
        (("best", "46985143-af68-4d48-ab91-a6447052ca49"), 3, "is not known here"),
        (("best", "no such"), 2, "must be a checkpoint UUID, or a name"),
        (("best", "other"), 3, "no checkpoint is called 'other'"),
        (("--remove", "best"), 3, "no checkpoint is called 'best'"),
        (("46985143-af68-4d48-ab91-a6447052ca49", "x"), 2, "is a UUID"),
    ],
)
def test_wrong_tags_are_one_clear_line(shell, words, code, said):
    ended = shell.run("tag", *words)
    assert (ended.code, said in ended.line) == (code, True), ended
