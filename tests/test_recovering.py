"""Recovering: what lies in a bucket becomes a registry on which every documented call works, whatever lies there."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import plain_choice
import pytest
from buckets import SEARCHER, lay, uuid
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from s3_server import S3Server
from stores import ROOT

import cas
from cas.actions.recovering import RecoveryReport, recover
from cas.client import Determined
from cas.config import Progress, Settings
from cas.errors import NotFoundError, OfflineError, UsageError
from cas.index.store import open_store
from cas.registry.catalog import LOCAL, Catalog
from cas.registry.local import record_local
from cas.registry.records import CheckpointRecord, State
from cas.registry.recovery import FIRST_DERIVED, Claim, Ids, derived
from cas.registry.remembering import remember

CONFIG = {"name": "mnist", "searcher": SEARCHER, "hyperparameters": {"lr": {"type": "log"}}}
MASTER = "http://h:8080"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.load(home=tmp_path / "home", progress=Progress.OFF)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "bucket").mkdir()
    return tmp_path / "bucket"


def records(report: RecoveryReport, settings: Settings) -> dict[str, CheckpointRecord]:
    every = Catalog(open_store(settings.home), report.registry).checkpoints()
    return {one.uuid: one for one in every}


def groups(report: RecoveryReport, settings: Settings) -> dict[str, tuple[int | None, int | None]]:
    return {uuid: (one.experiment_id, one.trial_id) for uuid, one in records(report, settings).items()}


# --- what is found -----------------------------------------------------------------------------------------------


def test_real_checkpoints_of_all_ages_are_found_with_what_they_say(place: Path, settings: Settings) -> None:
    places = {}
    for number, folder in enumerate(sorted((ROOT / "tests/data/checkpoints").iterdir())):
        shutil.copytree(folder, place / uuid(number))
        places[folder.name] = uuid(number)
    report = recover(place, settings=settings)
    found = records(report, settings)
    assert report.checkpoints == report.new == len(places) == 6
    newest, oldest = found[places["a_two_models"]], found[places["g_legacy_0_12_5_model_state_dict"]]
    assert (newest.steps_completed, newest.metadata["trial_cls_spec"]) == (16, "model_def:TwoModelTrial")
    assert newest.resources["code/layers/blocks.py"] == (place / newest.uuid / "code/layers/blocks.py").stat().st_size
    assert "code/layers/" in newest.resources
    assert (oldest.experiment_id, oldest.trial_id) == (7, 9)
    assert (oldest.searcher_metric, oldest.hparams["hidden"]) == (
        "validation_loss",
        6,
    )  # of two, the one of lesser digest
    (legacy,) = [one for one in report.experiments if one.id == 7]
    assert (legacy.trial_class, legacy.trials) == ("model_def:OldTrial", 1)
    assert "cluster c-1" in legacy.key
    unnamed = {groups(report, settings)[places[name]] for name in ("a_two_models", "c_core_api", "d_keras_callback")}
    assert len({experiment for experiment, _ in unnamed}) == 1  # nothing in them says which: a trial each
    assert len({trial for _, trial in unnamed}) == 3


def test_equal_configurations_make_an_experiment_and_equal_hyperparameters_a_trial(
    place: Path, settings: Settings
) -> None:
    lay(place, 1, config=CONFIG, hparams={"lr": 1})
    lay(place, 2, config=CONFIG, hparams={"lr": 1.0}, steps=200)  # a master writes 1.0 as 1
    lay(place, 3, config={**CONFIG, "checkpoint_storage": {"type": "s3", "bucket": "old"}}, hparams={"lr": 2})
    lay(place, 4, config={**CONFIG, "seed": 7}, hparams={"lr": 1})
    report = recover(place, settings=settings)
    found = groups(report, settings)
    one, same, sibling, other = (found[uuid(n)] for n in (1, 2, 3, 4))
    assert one == same
    assert sibling[0] == one[0] and sibling[1] != one[1]
    assert other[0] != one[0] and other[1] != one[1]
    assert all(id is not None and id >= FIRST_DERIVED for place in found.values() for id in place)
    assert {(e.id, e.checkpoints, e.trials) for e in report.experiments} == {(one[0], 3, 2), (other[0], 1, 1)}


def test_ids_are_the_same_on_every_machine_whatever_else_lies_there(tmp_path: Path, settings: Settings) -> None:
    for name, numbers in (("a", [1, 2, 3]), ("b", [3, 9, 1])):
        for n in numbers:
            lay(tmp_path / name, n, config={**CONFIG, "seed": n}, hparams={"lr": n})
    first = groups(recover(tmp_path / "a", settings=settings), settings)
    other = settings.but(home=tmp_path / "other")
    second = groups(recover(tmp_path / "b", settings=other), other)
    assert first[uuid(1)] == second[uuid(1)]
    assert first[uuid(3)] == second[uuid(3)]


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 2, 1)])
def test_an_id_that_two_clusters_gave_is_neithers(order: tuple[int, ...], place: Path, settings: Settings) -> None:
    for n in order:  # one after the other, as they arrive
        said = {"experiment_id": 7, "trial_id": 9, "cluster_id": "c-2" if n == 3 else "c-1"}
        lay(place, n, metadata=said | {"experiment_config": {**CONFIG, "of": said["cluster_id"]}, "hparams": {"lr": n}})
        report = recover(place, settings=settings)
    found = groups(report, settings)
    assert found[uuid(1)] == found[uuid(2)]
    assert found[uuid(3)][0] != found[uuid(1)][0] and found[uuid(3)][1] != found[uuid(1)][1]
    assert found[uuid(1)][0] == derived("experiment 7 of cluster c-1")
    determined = Determined(registry=report.registry, settings=settings)
    with pytest.raises(NotFoundError):
        determined.get_experiment(7)
    configs = {determined.get_experiment(found[uuid(n)][0]).record.config["of"] for n in (1, 3)}  # type: ignore[arg-type]
    assert configs == {"c-1", "c-2"}
    assert sorted(one.checkpoints for one in report.experiments) == [1, 2]
    again = recover(place, settings=settings)
    assert groups(again, settings) == found


@given(st.lists(st.tuples(st.integers(1, 3), st.sampled_from(["a", "b", "?"])), max_size=8))
def test_who_claims_first_decides_nothing(claims: list[tuple[int, str]]) -> None:
    made = [Claim(f"{said} of {owner}", owner, said) for said, owner in claims]
    final = []
    for order in itertools.islice(itertools.permutations(made), 6):
        ids = Ids({})
        given_ids = {claim: ids.give(claim) for claim in order}
        final.append({claim.key: ids.again(id, claim) for claim, id in given_ids.items()})
    assert all(one == final[0] for one in final)
    for key, id in (final or [{}])[0].items():
        owners = {owner for said, owner in claims if f"{said} " == key[:2] and owner != "?"}
        assert (id < FIRST_DERIVED) == (len(owners) < 2)


# --- metrics -----------------------------------------------------------------------------------------------------


def test_with_a_file_of_metrics_every_documented_call_works(
    place: Path, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n, lr in ((1, 1), (2, 1), (3, 2)):
        lay(place, n, config=CONFIG, hparams={"lr": lr}, steps=n * 100)
    lines = [f"{uuid(n)},{loss},{acc}" for n, loss, acc in ((1, 0.5, 0.1), (2, 0.4, 0.9), (3, 0.45, 0.5))]
    (tmp_path / "m.csv").write_text("\n".join(["uuid,loss,accuracy", *lines, f"{uuid(99)},1,1"]))
    report = cas.recover(place, metrics=tmp_path / "m.csv", settings=settings)
    assert (report.with_metrics, report.unused_rows) == (3, 1)
    experiment_id = report.experiments[0].id

    determined = Determined(registry=report.registry, settings=settings)
    experiment = determined.get_experiment(experiment_id)
    assert experiment.top_checkpoint().uuid == uuid(2)
    assert [one.uuid for one in experiment.top_n_checkpoints(9, one_per_trial=True)] == [uuid(2), uuid(3)]
    assert experiment.top_checkpoint(sort_by="accuracy", smaller_is_better=True).uuid == uuid(1)
    trial_id = experiment.top_checkpoint().trial_id
    assert trial_id is not None
    unnamed = Determined(settings=settings)  # the ids are unambiguous
    assert unnamed.get_trial(trial_id).select_checkpoint(latest=True).uuid == uuid(2)
    assert unnamed.get_experiment(experiment_id).top_checkpoint().uuid == uuid(2)
    monkeypatch.chdir(tmp_path)
    path = Path(unnamed.get_checkpoint(uuid(2)).download())
    assert (path / "state_dict.pth").read_bytes() == b"s"
    assert (path / "metadata.json").read_bytes() == (place / uuid(2) / "metadata.json").read_bytes()
    with pytest.raises(NotFoundError, match="belongs to trial"):
        unnamed.get_trial(trial_id).select_checkpoint(uuid=uuid(3))


def test_a_file_of_metrics_may_say_where_checkpoints_belong(place: Path, settings: Settings, tmp_path: Path) -> None:
    for n in (1, 2, 3):
        lay(place, n, steps=None)
    rows = {uuid(n): {"experiment_id": 4, "trial_id": 5 + n // 3, "steps_completed": n, "loss": n} for n in (1, 2, 3)}
    (tmp_path / "m.json").write_text(json.dumps(rows))
    report = recover(place, metrics=tmp_path / "m.json", settings=settings)
    assert groups(report, settings) == {uuid(1): (4, 5), uuid(2): (4, 5), uuid(3): (4, 6)}
    assert Determined(settings=settings).get_trial(5).select_checkpoint(latest=True).uuid == uuid(2)


def test_what_the_catalog_knows_of_a_checkpoint_is_used(place: Path, settings: Settings) -> None:
    lay(place, 1, config=CONFIG, hparams={"lr": 1})
    lay(place, 2, steps=None)
    lay(place, 3)
    store = open_store(settings.home)
    common: dict[str, Any] = {"registry": MASTER, "experiment_id": 7, "trial_id": 8, "experiment_config": CONFIG}
    known = [
        CheckpointRecord(uuid=uuid(1), validation_metrics={"loss": 1}, report_time="2024-03-01T13:00:37Z", **common),
        CheckpointRecord(
            uuid=uuid(2), validation_metrics={"loss": "NaN"}, steps_completed=5, hparams={"lr": 1},
            resources={"metadata.json": 2, "gone.pth": 5}, **common,
        ),
    ]  # fmt: skip
    remember(store, MASTER, known)
    record_local(store, uuid=uuid(3), metrics={"f1": 0.5})
    report = recover(place, settings=settings)
    found = records(report, settings)
    assert [found[uuid(n)].validation_metrics for n in (1, 2, 3)] == [{"loss": 1}, {"loss": "NaN"}, {"f1": 0.5}]
    assert found[uuid(1)].report_time == "2024-03-01T13:00:37Z"
    assert (found[uuid(2)].experiment_id, found[uuid(2)].trial_id) == (
        found[uuid(1)].experiment_id,
        found[uuid(1)].trial_id,
    )
    assert (found[uuid(2)].steps_completed, found[uuid(2)].state) == (5, State.PARTIALLY_DELETED)
    (one,) = [one for one in report.experiments if one.name == "mnist"]
    assert one.also == (f"experiment 7 of {MASTER}",)
    assert recover(place, settings=settings).experiments == report.experiments  # nothing new, and the same is said
    assert Catalog(store).checkpoint(uuid(1)).registry == MASTER
    assert Catalog(store, LOCAL).checkpoint(uuid(3)).experiment_id is None


@hypothesis_settings(deadline=None, max_examples=25)
@given(plain_choice.lists(), st.sampled_from(plain_choice.QUESTIONS))
def test_choices_of_a_recovered_registry_are_the_plain_definition(
    drawn: list[CheckpointRecord], question: tuple[str | None, bool | None]
) -> None:
    sort_by, smaller = question
    with tempfile.TemporaryDirectory(prefix="cas-recover-") as folder:
        place, settings = Path(folder) / "bucket", Settings.load(home=Path(folder) / "home", progress=Progress.OFF)
        place.mkdir()
        rows, kept = [], []
        for record in drawn:
            numbers = {
                name: value for name, value in (record.validation_metrics or {}).items() if type(value) in (int, float)
            }
            kept.append(replace(record, validation_metrics=numbers, state=State.COMPLETED))
            rows.append({"uuid": record.uuid, **numbers})
            lay(
                place,
                0,
                name=record.uuid,
                steps=record.steps_completed,
                config=dict(record.experiment_config),
                hparams={"trial": record.trial_id},
                moment=1_709_251_200 * 10**9 + round(plain_choice.moment(record.report_time)) * 1000,
            )
        (Path(folder) / "m.json").write_text(json.dumps(rows))
        if not drawn:
            return
        report = recover(place, metrics=Path(folder) / "m.json", settings=settings)
        experiment = Determined(registry=report.registry, settings=settings).get_experiment(report.experiments[0].id)
        for one_per_trial in (False, True):
            expected = plain_choice.best_first(kept, sort_by, smaller, one_per_trial=one_per_trial)
            try:
                top = experiment.top_n_checkpoints(99, sort_by, smaller, one_per_trial=one_per_trial)
            except NotFoundError:
                top = []
            assert [one.uuid for one in top] == expected
        for trial in {record.trial_id for record in kept}:
            mine = [record for record in kept if record.trial_id == trial]
            id = records(report, settings)[mine[0].uuid].trial_id
            latest = Determined(settings=settings).get_trial(id).select_checkpoint(latest=True)  # type: ignore[arg-type]
            assert latest.uuid == plain_choice.latest(mine)


# --- hostile content ---------------------------------------------------------------------------------------------

DOCUMENTS: dict[str, tuple[bytes, str | None]] = {
    "no JSON": (b"{]", "no JSON"),
    "empty": (b"", "no JSON"),
    "garbage": (os.urandom(1000) + b"\xff", "no JSON"),
    "a list": (b"[1]", "no object"),
    "null": (b"null", "no object"),
    "deep": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "too deeply"),
    "deep but readable": (b'{"a":' * 80 + b"1" + b"}" * 80, "too deeply"),
    "too large": (b'{"a":"' + b"x" * (5 << 20) + b'"}', "MiB"),
    "a number of 10,000 digits": (b'{"steps_completed":' + b"9" * 10_000 + b"}", "no JSON"),
    "NaN steps": (b'{"steps_completed":NaN,"x":Infinity}', None),
    "negative steps": (b'{"steps_completed":-1,"experiment_id":0,"trial_id":true}', None),
    "text for steps": (b'{"steps_completed":"100","experiment_id":"7","cluster_id":[1]}', None),
    "odd keys": (b'{"":1,"\\u0000":2,"\\ud800":3,"a\\nb":"\\ud800","__proto__":{},"..":"../.."}', None),
    "odd objects": (b'{"experiment_config":[1],"hparams":"x"}', None),
    "a huge id": (b'{"experiment_id":99999999999999999999,"trial_id":1e400}', None),
}


@pytest.mark.parametrize("document", DOCUMENTS.values(), ids=DOCUMENTS.keys())
@pytest.mark.parametrize("name", ["metadata.json", "load_data.json"])
def test_hostile_documents_are_counted_and_do_no_harm(
    name: str, document: tuple[bytes, str | None], place: Path, settings: Settings
) -> None:
    data, problem = document
    lay(place, 1, files={name: data})
    lay(place, 2, config=CONFIG, hparams={"lr": 1})
    report = recover(place, settings=settings)
    assert report.checkpoints == 2
    assert [text for text in report.problems if problem and problem in text] == list(report.problems)
    assert bool(report.problems) == (problem is not None)
    if problem:
        assert list(report.examples.values()) == [[uuid(1)]]
    found = records(report, settings)
    assert found[uuid(1)].steps_completed in (None, 100)
    assert len(report.experiments) == 2
    again = recover(place, settings=settings)
    assert (again.new, again.changed, again.problems) == (0, 0, report.problems)


def test_odd_names_are_counted_and_left_out(place: Path, settings: Settings) -> None:
    lay(place, 1)
    for name in ("tensorboard/x", "loose", uuid(2).upper() + "/metadata.json", "not-a-uuid/metadata.json"):
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text("{}")
    (place / uuid(3)).mkdir()
    (place / uuid(4)).write_text("a file that is called like a checkpoint")
    (place / uuid(1) / "back\\slash").write_text("x")
    (place / uuid(1) / "link").symlink_to("/etc/passwd")
    report = recover(place, settings=settings)
    assert report.checkpoints == 1
    wanted = {"tensorboard", "loose", uuid(2).upper(), "not-a-uuid", uuid(4), f"{uuid(3)} (empty)"}
    assert set(report.others) == wanted
    assert report.problems == {"names that no file can have": 1}
    (record,) = records(report, settings).values()
    assert set(record.resources) == {"metadata.json", "state_dict.pth"}


def test_a_large_folder_that_is_no_checkpoint_is_not_read_to_its_end(place: Path, settings: Settings) -> None:
    (place / "data").mkdir()
    for n in range(1300):
        (place / "data" / f"{n:05}").touch()
    lay(place, 1)
    report = recover(place, settings=settings)
    assert report.checkpoints == 1
    assert report.others == {"data": 1000}


def test_a_checkpoint_of_too_many_files_keeps_no_list(
    place: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cas.registry.recovery.MAX_FILES", 50)
    lay(place, 1, files={f"f/{n}": b"x" for n in range(60)})
    report = recover(place, settings=settings)
    (record,) = records(report, settings).values()
    assert record.resources == {}
    assert report.size == 60 + 1 + (place / uuid(1) / "metadata.json").stat().st_size
    assert any("more than 50 files" in text for text in report.problems)


def test_no_credential_reaches_the_disk(place: Path, settings: Settings, tmp_path: Path) -> None:
    storage = {"type": "s3", "bucket": "b", "access_key": "SECRET-1", "secret_key": "SECRET-2"}
    environment = {
        "environment_variables": ["AWS_SECRET_ACCESS_KEY=SECRET-3"],
        "registry_auth": {"password": "SECRET-4"},
    }
    config = {**CONFIG, "checkpoint_storage": storage, "environment": environment}
    lay(place, 1, config=config, hparams={"api_key": "SECRET-5"})
    lay(place, 2, metadata={"experiment_config": config, "url": "https://u:SECRET-6@h/", "password": "SECRET-7"})
    report = recover(place, settings=settings)
    for path in settings.home.rglob("*"):
        if path.is_file():
            assert b"SECRET" not in path.read_bytes(), path
    for record in records(report, settings).values():
        assert record.experiment_config["checkpoint_storage"] == {"type": "url", "url": place.as_uri()}


def test_a_place_with_no_checkpoint_says_what_is_there(place: Path, settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="there is nothing at"):
        recover(place, settings=settings)
    lay(place / "deeper", 1)
    with pytest.raises(NotFoundError, match=r"\(deeper\), nothing is called by a UUID"):
        recover(place, settings=settings)
    with pytest.raises(NotFoundError, match="no folder"):
        recover(tmp_path / "no", settings=settings)
    with pytest.raises(UsageError, match="say which"):
        recover("", settings=settings)
    with pytest.raises(OfflineError, match="CAS_OFFLINE"):
        recover("s3://place/x", settings=settings.but(offline=True))
    assert recover(place / "deeper", settings=settings.but(offline=True)).checkpoints == 1


@pytest.mark.root
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root")
def test_a_file_that_cannot_be_read_is_told_and_tried_again() -> None:
    code = (
        "import os, sys; from pathlib import Path; from cas.actions.recovering import recover\n"
        "from cas.config import Settings\n"
        "bucket, home = map(Path, sys.argv[1:])\n"
        "recover(bucket, settings=Settings.load(home=home.parent / 'as root'))  # loads every module: others may not\n"
        "os.setuid(65534); report = recover(bucket, settings=Settings.load(home=home))\n"
        "print(report.checkpoints, report.unreadable, len(report.experiments))"
    )
    with tempfile.TemporaryDirectory(prefix="cas-recover-") as folder:  # pytest's own is closed to other users
        open_folder, home = Path(folder), Path(folder) / "home"
        open_folder.chmod(0o755)
        home.mkdir()
        os.chown(home, 65534, 65534)
        document = open_folder / "bucket" / lay(open_folder / "bucket", 1, config=CONFIG) / "load_data.json"
        said = []
        for mode in (0o000, 0o644):
            document.chmod(mode)
            done = subprocess.run(
                [sys.executable, "-c", code, open_folder / "bucket", home],
                capture_output=True,
                text=True,
                env=os.environ | {"PYTHONPATH": str(ROOT), "HOME": folder},
            )
            assert done.returncode == 0, done.stderr
            said.append(done.stdout.split())
    assert said == [["1", "1", "1"], ["1", "0", "1"]]


# --- again, and after a kill -------------------------------------------------------------------------------------


def test_the_same_again_reads_nothing_and_writes_next_to_nothing(place: Path, settings: Settings) -> None:
    for n in range(30):
        lay(place, n, config=CONFIG, hparams={"lr": n % 3})
    first = recover(place, settings=settings)
    size = _bytes(settings.home)
    for n in range(30):  # other bytes, which nothing but reading them would show
        _spoil_unseen(place / uuid(n) / "load_data.json")
    again = recover(place, settings=settings)
    assert (again.new, again.changed, again.gone) == (0, 0, 0)
    assert again.experiments == first.experiments
    assert _bytes(settings.home) - size < 500


def _bytes(home: Path) -> int:
    return sum(path.stat().st_size for path in home.glob("records/*/*"))


def _spoil_unseen(path: Path) -> None:
    stat = path.stat()
    with open(path, "r+b") as file:
        file.write(b"[")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_what_is_new_changed_and_gone_is_noticed(place: Path, settings: Settings, tmp_path: Path) -> None:
    for n in (1, 2, 3):
        lay(place, n, config=CONFIG, hparams={"lr": 1}, steps=n)
    recover(place, settings=settings)
    shutil.rmtree(place / uuid(1))
    lay(place, 2, config=CONFIG, hparams={"lr": 1}, steps=22)
    lay(place, 4, config=CONFIG, hparams={"lr": 1}, steps=4)
    report = recover(place, settings=settings)
    assert (report.checkpoints, report.new, report.changed, report.gone) == (3, 1, 1, 1)
    found = records(report, settings)
    assert found[uuid(1)].state is State.DELETED
    assert found[uuid(2)].steps_completed == 22
    (tmp_path / "m.csv").write_text(f"uuid,loss\n{uuid(3)},0.5\n")
    report = recover(place, metrics=tmp_path / "m.csv", settings=settings)
    assert (report.new, report.changed, report.gone) == (0, 1, 0)
    shutil.rmtree(place)
    place.mkdir()
    assert recover(place, settings=settings).gone == 3
    lay(place, 1, config=CONFIG, hparams={"lr": 1}, steps=1)
    assert records(recover(place, settings=settings), settings)[uuid(1)].state is State.COMPLETED


@pytest.mark.slow
def test_a_killed_recovery_goes_on_where_it_was(place: Path, settings: Settings, tmp_path: Path) -> None:
    count = 700
    for n in range(count):
        lay(place, n, config={**CONFIG, "seed": n % 7}, hparams={"lr": n % 50}, steps=n)
    command = [sys.executable, "-m", "cas.cli.main", "--home", str(settings.home), "recover", str(place)]
    child = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL)
    while not list(settings.home.glob("records/*/*.jsonl")) and child.poll() is None:
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    child.wait()
    store = open_store(settings.home)
    (registry,) = store.records.registries()
    done = {seen.id for seen in store.records.each("checkpoint", registry=registry)}
    if len(done) == count:
        pytest.skip("it was done before it was killed")
    for one in done:
        _spoil_unseen(place / one / "load_data.json")
    report = recover(place, settings=settings)
    fresh = settings.but(home=tmp_path / "fresh")
    for one in done:
        path = place / one / "load_data.json"
        path.write_bytes(b"{" + path.read_bytes()[1:])
    assert (report.checkpoints, report.new) == (count, count - len(done))
    assert groups(report, settings) == groups(recover(place, settings=fresh), fresh)


# --- a real bucket -----------------------------------------------------------------------------------------------


@pytest.fixture
def keys(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.secret_key)


@pytest.mark.s3
@pytest.mark.usefixtures("keys")
def test_a_bucket_of_s3_is_recovered_and_downloaded_from(
    s3_server: S3Server, tmp_path: Path, settings: Settings, upload: Callable[..., None], bucket: str
) -> None:
    for n in range(20):
        lay(tmp_path / "local", n, config=CONFIG, hparams={"lr": n % 4}, steps=n, metadata={"n": n})
    objects = {
        f"team/ckpts/{path.relative_to(tmp_path / 'local')}": path.read_bytes()
        for path in (tmp_path / "local").rglob("*")
        if path.is_file()
    }
    upload(objects | {"team/ckpts/tensorboard/x": b"x", "team/ckpts-other/y": b"y", "team/ckpts/loose": b"z"})
    url = f"s3+{s3_server.endpoint}/{bucket}/team/ckpts"
    report = recover(f"{url}/", settings=settings)
    assert (report.url, report.registry) == (url, f"recovered:{url}")
    assert (report.checkpoints, set(report.others)) == (20, {"tensorboard", "loose"})
    assert [(one.checkpoints, one.trials) for one in report.experiments] == [(20, 4)]
    checkpoint = Determined(registry=report.registry, settings=settings).get_checkpoint(uuid(7))
    path = Path(checkpoint.download(tmp_path / "target"))
    assert json.loads((path / "metadata.json").read_bytes())["n"] == 7
    again = recover(url, settings=settings)
    assert (again.new, again.changed, again.gone) == (0, 0, 0)
