"""Checkpoints from URLs: what is fetched, partial ones that know it, names, and what is written of credentials."""

from __future__ import annotations

import json
import os
import pickle
import threading
import uuid as uuids

import pytest
from stores import UUID, lies
from web_server import serving

from cas.actions.adding import add
from cas.checkpoint import Checkpoint
from cas.client import Determined
from cas.config import Progress, Settings
from cas.errors import (
    CasError,
    CheckpointNotFoundError,
    NotFoundError,
    RemoteError,
    UnsafeContentError,
    UsageError,
)
from cas.index.check import check
from cas.index.store import open_store
from cas.pull.urls import tag, tags
from cas.registry.names import check_name
from cas.removing import pin, remove, unpin
from cas.transfer.selection import Selection

FILES = {
    "config.json": b'{"a": 1}',
    "model-00001.safetensors": os.urandom(9 << 20),
    "model-00002.safetensors": os.urandom(70_000),
    "tokenizer/vocab.json": b"{}",
    "pytorch_model.bin": os.urandom(50_000),
}


@pytest.fixture
def settings(tmp_path):
    chosen = Settings(home=tmp_path / "home", progress=Progress.OFF, timeout=5)
    yield chosen
    assert lies(chosen.home) == []
    assert not check(open_store(chosen.home), deep=True).damage


@pytest.fixture
def site(tmp_path):
    (tmp_path / "site").mkdir()
    with serving(tmp_path / "site") as running:
        for name, data in FILES.items():
            running.write(f"here/{name}", data)
        yield running


@pytest.fixture
def url(site):
    return site.url + "here/"


def content(folder) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_lies_at_a_url_is_a_checkpoint_and_nothing_is_asked_before_its_files_are(site, url, settings, tmp_path):
    checkpoint = Checkpoint.from_url(url, settings=settings)
    assert site.asked == []
    assert content(checkpoint.view()) == FILES
    before = len(site.asked)
    again = Checkpoint.from_url(url, settings=settings)
    assert again.uuid == checkpoint.uuid == str(uuids.uuid5(uuids.NAMESPACE_URL, url))
    again.download(tmp_path / "out")
    assert content(tmp_path / "out") == FILES  # and no metadata.json that is not its own
    assert len(site.asked) == before
    assert again.record.registry == "pulled"


def test_a_folder_is_a_place_too_and_one_named_by_a_uuid_has_that(settings, tmp_path):
    place = tmp_path / "models" / UUID
    place.mkdir(parents=True)
    (place / "a").write_bytes(b"x")
    assert Checkpoint.from_url(str(place), settings=settings).uuid == UUID
    assert Checkpoint.from_url(place.as_uri(), settings=settings).uuid == UUID
    assert content(Checkpoint.from_url(str(place), settings=settings).view()) == {"a": b"x"}


def test_only_what_is_included_is_fetched_and_the_rest_is_known(site, url, settings, tmp_path):
    checkpoint = Checkpoint.from_url(url, include=["*.json"], settings=settings)
    assert set(content(checkpoint.view())) == {"config.json", "tokenizer/vocab.json"}
    assert site.count("GET", ".safetensors") == 0
    assert checkpoint.is_partial
    manifest = checkpoint.store.resolve("pulled", checkpoint.uuid)
    assert {str(entry.path) for entry in manifest.files} == set(FILES)
    absent = [entry for entry in manifest.files if entry.digest is None]
    assert {str(entry.path): entry.identity.size for entry in absent} == {
        name: len(data) for name, data in FILES.items() if not name.endswith(".json")
    }
    whole = Determined(settings=settings).get_checkpoint(checkpoint.uuid)  # known by its UUID, with its place
    jsons = site.count("GET", ".json")
    whole.download(tmp_path / "out")
    assert content(tmp_path / "out") == FILES
    assert site.count("GET", ".json") == jsons
    assert not whole.is_partial


def test_exclude_and_folders(url, settings, tmp_path):
    Checkpoint.from_url(url, exclude=["*.bin", "*.safetensors"], settings=settings).download(tmp_path / "a")
    assert set(content(tmp_path / "a")) == {"config.json", "tokenizer/vocab.json"}
    Checkpoint.from_url(url, include="tokenizer/", settings=settings).download(tmp_path / "b")
    assert set(content(tmp_path / "b")) == {"tokenizer/vocab.json"}


def test_what_two_fetched_adds_up(site, url, settings):
    patterns = ["*.json", "model-00001*", "model-00002*", "*.bin"]
    checkpoints = [Checkpoint.from_url(url, include=pattern, settings=settings) for pattern in patterns]
    threads = [threading.Thread(target=checkpoint.fetch) for checkpoint in checkpoints]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not checkpoints[0].is_partial
    before = site.count("GET")
    assert content(Determined(settings=settings).get_checkpoint(checkpoints[0].uuid).view()) == FILES
    assert site.count("GET") == before


def test_what_is_here_needs_no_network_though_the_rest_does(site, url, settings):
    checkpoint = Checkpoint.from_url(url, include="*.json", settings=settings)
    checkpoint.fetch()
    before = len(site.asked)
    offline = Checkpoint.from_url(url, include="config.json", settings=settings.but(offline=True))
    assert set(content(offline.view())) == {"config.json"}
    assert len(site.asked) == before


def test_a_file_that_changed_meanwhile_is_fetched_as_it_is_now(site, url, settings):
    Checkpoint.from_url(url, include="config.json", settings=settings).fetch()
    site.write("here/config.json", b'{"a": 2}', age=1800)
    assert content(Checkpoint.from_url(url, settings=settings).view())["config.json"] == b'{"a": 2}'


def test_patterns_that_match_nothing_say_what_there_is(url, settings):
    with pytest.raises(NotFoundError, match=r"none of config\.json.* matches --include '\*\.pth'"):
        Checkpoint.from_url(url, include="*.pth", settings=settings).fetch()
    with pytest.raises(UsageError, match="patterns"):
        Checkpoint.from_url(url, include=[""], settings=settings)


def test_patterns_of_a_checkpoint_that_was_added(settings, tmp_path):
    (tmp_path / "mine").mkdir()
    for name in ("a.json", "b.bin"):
        (tmp_path / "mine" / name).write_bytes(name.encode())
    checkpoint = add(tmp_path / "mine", settings=settings)
    checkpoint.only("*.json").download(tmp_path / "out")
    assert set(content(tmp_path / "out")) == {"a.json"}
    assert set(content(checkpoint.only(exclude="*.json").view())) == {"b.bin"}


def test_files_that_are_named_make_a_checkpoint_of_their_own(site, url, settings):
    site.index = "none"
    checkpoint = Checkpoint.from_url(url, files=["config.json", "tokenizer/vocab.json"], settings=settings)
    assert set(content(checkpoint.view())) == {"config.json", "tokenizer/vocab.json"}
    assert checkpoint.uuid != Checkpoint.from_url(url, settings=settings).uuid
    again = Determined(settings=settings).get_checkpoint(checkpoint.uuid)
    next(settings.home.glob("blobs/*/*")).unlink()
    again.fetch()
    assert set(content(again.view())) == {"config.json", "tokenizer/vocab.json"}
    with pytest.raises(UsageError, match="for HTTP only"):
        Checkpoint.from_url("s3://b/p", files=["x"], settings=settings)


def test_signatures_and_options_are_written_nowhere(site, settings):
    site.password = "Bearer hidden-header"
    options = {"headers": {"Authorization": "Bearer hidden-header"}}
    signed = Checkpoint.from_url(
        site.url + "here/config.json?sig=hidden-query", storage_options=options, settings=settings
    )
    assert content(signed.view()) == {"config.json": FILES["config.json"]}
    assert "hidden" not in repr(signed)
    for path in settings.home.rglob("*"):
        assert not path.is_file() or b"hidden" not in path.read_bytes(), path
    assert content(pickle.loads(pickle.dumps(signed)).view()) == {"config.json": FILES["config.json"]}
    next(settings.home.glob("blobs/*/*")).unlink()
    with pytest.raises(CheckpointNotFoundError):  # nothing says where it lies: the signature is not kept
        Determined(settings=settings).get_checkpoint(signed.uuid).fetch()
    signed.fetch()


def test_the_same_url_with_another_query_is_another_checkpoint(url, settings):
    made = {Checkpoint.from_url(f"{url}f{query}", settings=settings).uuid for query in ("", "?a=1", "?a=2")}
    assert len(made) == 3


def test_a_pickle_from_a_url_does_not_run(tmp_path, settings):
    torch = pytest.importorskip("torch")
    (tmp_path / "place").mkdir()
    torch.save(torch.nn.Linear(2, 2), tmp_path / "place" / "model.pth")
    with pytest.raises(UnsafeContentError, match="cas trust"):
        Checkpoint.from_url(str(tmp_path / "place"), settings=settings).load()


def test_a_url_that_pretends_to_be_a_masters_checkpoint_is_not_taken_for_it(tmp_path, settings):
    from cas.registry.records import CheckpointRecord

    place = tmp_path / "evil" / UUID
    place.mkdir(parents=True)
    (place / "model.pth").write_bytes(b"evil")
    Checkpoint.from_url(str(place), settings=settings).fetch()
    known = Checkpoint(CheckpointRecord(registry="http://master:8080", uuid=UUID), settings=settings.but(offline=True))
    with pytest.raises(Exception, match=r"CAS_OFFLINE|no registry says"):
        known.view()


@pytest.mark.parametrize("url", ["", "nonsense://x", "s3://", "https://user:password@host/x", "/no/such/folder"])
def test_places_that_mean_nothing(url, settings):
    with pytest.raises((UsageError, CheckpointNotFoundError)) as caught:
        Checkpoint.from_url(url, settings=settings).fetch()
    assert "\n" not in str(caught.value) and "password" not in str(caught.value)


def test_a_page_that_is_gone_is_one_clear_line(site, settings):
    with pytest.raises((CheckpointNotFoundError, RemoteError)) as caught:
        Checkpoint.from_url(site.url + "gone/", settings=settings).fetch()
    assert "\n" not in str(caught.value)


def test_what_vouched_for_each_file_is_kept_and_the_best_of_it_shown(site, url, settings, tmp_path):
    checkpoint = Checkpoint.from_url(url, settings=settings)
    checkpoint.fetch()
    assert set(checkpoint.proofs.values()) == {"length only"}
    assert set(checkpoint.proofs) == set(FILES)
    site.digest = True
    site.write("there/model-00001.safetensors", FILES["model-00001.safetensors"])
    site.write("there/config.json", FILES["config.json"], age=1)
    site.etag = "none"  # a file with no validator is never known, and what was proven of it all the same is
    Checkpoint.from_url(site.url + "there/", settings=settings).fetch()
    assert checkpoint.proofs["model-00001.safetensors"] == "origin checksum (sha256)"
    assert checkpoint.proofs["config.json"] == "origin checksum (sha256)"
    assert checkpoint.proofs["tokenizer/vocab.json"] == "length only"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "own").write_bytes(b"my own")
    assert add(tmp_path / "mine", settings=settings).proofs == {}


# --- patterns ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("include", "exclude", "taken"),
    [
        ([], [], {"a.json", "d/b.json", "d/c.bin"}),
        (["*.json"], [], {"a.json", "d/b.json"}),
        (["d/"], [], {"d/b.json", "d/c.bin"}),
        (["d/*.json", "a.*"], [], {"a.json", "d/b.json"}),
        ([], ["*.bin"], {"a.json", "d/b.json"}),
        (["*"], ["d/"], {"a.json"}),
        (["[ab].json"], [], {"a.json"}),
    ],
)
def test_patterns(include, exclude, taken):
    selection = Selection.of(include, exclude)
    assert {path for path in ("a.json", "d/b.json", "d/c.bin") if selection.takes(path)} == taken


# --- names ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def two(tmp_path, settings):
    found = []
    for number in range(2):
        (tmp_path / f"m{number}").mkdir()
        (tmp_path / f"m{number}" / "f").write_bytes(b"%d" % number)
        found.append(add(tmp_path / f"m{number}", settings=settings).uuid)
    return found


def test_a_name_is_taken_wherever_a_uuid_is(two, settings, tmp_path):
    assert tag("llama/8b", two[0], settings=settings) is None
    door = Determined(settings=settings)
    assert door.get_checkpoint("llama/8b").uuid == two[0]
    door.get_checkpoint("llama/8b").download(tmp_path / "out")
    pin("llama/8b", settings=settings)
    unpin("llama/8b", settings=settings)
    remove("llama/8b", settings=settings)
    assert open_store(settings.home).refs.registries(two[0]) == []


def test_names_move_list_and_go(two, settings):
    tag("best", two[0], settings=settings)
    assert tag("best", two[1], settings=settings) == two[0]
    tag("again", "best", settings=settings)
    assert tags(settings=settings) == {"again": two[1], "best": two[1]}
    assert tag("best", None, settings=settings) == two[1]
    assert tags(settings=settings) == {"again": two[1]}
    with pytest.raises(NotFoundError, match="no checkpoint is called 'best'"):
        Determined(settings=settings).get_checkpoint("best")
    with pytest.raises(NotFoundError):
        tag("best", None, settings=settings)


def test_names_survive_the_loss_of_the_index(two, settings):
    tag("best", two[0], settings=settings)
    for path in settings.home.glob("index-*"):
        path.unlink()
    assert tags(settings=settings) == {"best": two[0]}


@pytest.mark.parametrize("name", ["", " ", "a b", "12", "../x", "/x", "x/", "a//b", "-x", UUID, "x" * 300, "ü", "a\nb"])
def test_what_is_no_name(name, settings):
    with pytest.raises(UsageError):
        check_name(name)
    with pytest.raises(UsageError):
        tag(name, UUID, settings=settings)


def test_what_nobody_knows_gets_no_name(settings):
    with pytest.raises(NotFoundError, match="is not known here"):
        tag("best", UUID, settings=settings)


def test_the_record_of_a_pull_holds_its_place(url, settings):
    checkpoint = Checkpoint.from_url(url, settings=settings)
    checkpoint.view()
    lines = "".join(path.read_text() for path in (settings.home / "records" / "pulled").glob("*.jsonl"))
    assert json.loads(lines.splitlines()[0][17:])["data"]["metadata"] == {"url": url}
    assert checkpoint.metadata == {"url": url}


def test_a_place_with_nothing_in_it_leaves_no_checkpoint_behind(settings, tmp_path):
    with pytest.raises(CasError):
        Checkpoint.from_url((tmp_path / "typo").as_uri(), settings=settings).view()

    assert not list((settings.home / "records").glob("pulled/*"))
