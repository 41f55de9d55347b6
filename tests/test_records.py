"""Records: parsed strictly, written with no credential in them."""

from __future__ import annotations

import contextlib
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cas.errors import ContentError, UsageError
from cas.registry.records import CheckpointRecord, ExperimentRecord, State, TrialRecord, canonical_uuid
from cas.registry.values import MAX_DEPTH, plain, without_credentials

UUID = "46985143-af68-4d48-ab91-a6447052ca49"

CONFIG = {
    "name": "mnist",
    "searcher": {"metric": "accuracy", "smaller_is_better": False, "name": "grid"},
    "checkpoint_storage": {
        "type": "s3",
        "bucket": "models",
        "prefix": "a/b",
        "access_key": "AKIA-SECRET-1",
        "secret_key": "SECRET-2",
        "endpoint_url": "http://user:SECRET-3@minio:9000/?sig=SECRET-4",
        "save_trial_best": 1,
        "nested": {"sas_token": "SECRET-5", "connectionString": "SECRET-6", "kept": [1, {"password": "SECRET-7"}]},
    },
    "hyperparameters": {"max_tokens": 5, "pad_token": "<pad>", "key_size": 8, "lr": 0.1},
    "environment": {
        "registry_auth": {"username": "u", "password": "SECRET-8"},
        "environment_variables": {"cpu": ["AWS_SECRET_ACCESS_KEY=SECRET-9", "LANG=C"], "cuda": ["HF_TOKEN=SECRET-10"]},
        "pod_spec": {"env": [{"name": "DB_PASSWORD", "value": "SECRET-11"}, {"name": "MODE", "value": "fast"}]},
    },
    "data": {"url": "postgres://user:SECRET-14@host/db", "mirrors": ["x https://:SECRET-15@a https://a/b:c@d"]},
    "integrations": {"wandb": {"api_key": "SECRET-12", "accessToken": "SECRET-13"}},
}


def record(**changes: object) -> CheckpointRecord:
    values: dict[str, object] = {
        "registry": "local",
        "uuid": UUID,
        "experiment_id": 1,
        "trial_id": 2,
        "steps_completed": 300,
        "report_time": "2024-03-01T14:04:24.500Z",
        "resources": {"model.pth": 62, "code/": 0},
        "metadata": {"steps_completed": 300},
        "hparams": {"lr": 0.5},
        "validation_metrics": {"loss": 0.5, "odd": "NaN", "flag": True},
        "training_metrics": None,
    }
    return CheckpointRecord(**(values | changes))  # type: ignore[arg-type]


def test_no_credential_of_a_configuration_is_written() -> None:  # F15
    written = json.dumps(
        [
            ExperimentRecord(registry="r", id=1, config=CONFIG).to_json(),
            record(experiment_id=None, trial_id=None, experiment_config=CONFIG).to_json(),
            record(metadata={"experiment_config": CONFIG}, hparams=CONFIG).to_json(),
            TrialRecord(registry="r", id=1, experiment_id=1, hparams=CONFIG).to_json(),
        ]
    )
    assert "SECRET" not in written


def test_what_is_no_credential_is_kept() -> None:
    kept = without_credentials(CONFIG)
    assert kept["checkpoint_storage"]["bucket"] == "models"
    assert kept["checkpoint_storage"]["prefix"] == "a/b"
    assert kept["checkpoint_storage"]["endpoint_url"] == "http://minio:9000/"
    assert kept["checkpoint_storage"]["nested"] == {"kept": [1, {}]}
    assert kept["hyperparameters"] == CONFIG["hyperparameters"]
    assert kept["environment"]["environment_variables"] == {"cpu": ["LANG=C"], "cuda": []}
    assert kept["environment"]["pod_spec"]["env"] == [{"name": "DB_PASSWORD"}, {"name": "MODE", "value": "fast"}]
    assert kept["searcher"] == CONFIG["searcher"]
    assert kept["data"] == {"url": "postgres://host/db", "mirrors": ["x https://a https://a/b:c@d"]}


def test_credentials_are_not_in_repr() -> None:
    assert "SECRET" not in repr(record(experiment_config=CONFIG))
    assert "SECRET" not in repr(ExperimentRecord(registry="r", id=1, config=CONFIG))


def test_a_record_comes_back_as_it_was_written() -> None:
    before = record()
    data = json.loads(json.dumps(before.to_json(), allow_nan=False))
    assert CheckpointRecord.from_json(data, registry="local", uuid=UUID) == before
    assert "config" not in data


def test_the_configuration_is_joined_or_the_records_own() -> None:
    data = record(experiment_config=CONFIG).to_json()
    joined = CheckpointRecord.from_json(data, registry="local", uuid=UUID, config={"searcher": {"metric": "x"}})
    assert joined.searcher_metric == "x"
    alone = record(experiment_id=None, trial_id=None, experiment_config={"a": 1}).to_json()
    assert CheckpointRecord.from_json(alone, registry="local", uuid=UUID).experiment_config == {"a": 1}


@pytest.mark.parametrize(
    ("config", "metric", "smaller"),
    [
        ({}, None, True),
        ({"searcher": None}, None, True),
        ({"searcher": "grid"}, None, True),
        ({"searcher": {"metric": "loss"}}, "loss", True),
        ({"searcher": {"metric": "loss", "smaller_is_better": None}}, "loss", True),
        ({"searcher": {"metric": "acc", "smaller_is_better": False}}, "acc", False),
        ({"searcher": {"metric": 3}}, None, True),
    ],
)
def test_searcher_metric_and_direction(config: dict[str, object], metric: str | None, smaller: bool) -> None:
    assert record(experiment_config=config).searcher_metric == metric
    assert record(experiment_config=config).smaller_is_better is smaller
    assert ExperimentRecord(registry="r", id=1, config=config).searcher_metric == metric


@pytest.mark.parametrize(
    "damage",
    [
        {"state": "FINE"},
        {"state": None},
        {"state": 3},
        {"experiment": "one"},
        {"experiment": True},
        {"trial": -2},
        {"steps": 1.5},
        {"steps": 1 << 70},
        {"report_time": 7},
        {"resources": []},
        {"resources": {"a": -1}},
        {"resources": {"a": "12e3"}},
        {"resources": {"a": None}},
        {"metadata": "text"},
        {"validation": [1]},
        {"config": 1},
    ],
)
def test_a_damaged_record_is_a_content_error(damage: dict[str, object]) -> None:
    with pytest.raises(ContentError, match="record of checkpoint"):
        CheckpointRecord.from_json(record().to_json() | damage, registry="local", uuid=UUID)


@pytest.mark.parametrize("uuid", ["", "../../etc/passwd", UUID.upper(), UUID + "\n", UUID[:-1] + "é"])
def test_a_record_whose_id_is_no_uuid_is_a_content_error(uuid: str) -> None:
    with pytest.raises(ContentError):
        CheckpointRecord.from_json(record().to_json(), registry="local", uuid=uuid)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(), max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
fields = st.sampled_from(
    ["state", "experiment", "trial", "steps", "report_time", "resources", "metadata", "config", "hparams", "name"]
)


@settings(deadline=None)
@given(st.dictionaries(fields, json_values))
def test_any_json_is_a_record_or_a_content_error(data: dict[str, object]) -> None:
    for read in (
        lambda: CheckpointRecord.from_json(data, registry="r", uuid=UUID),
        lambda: ExperimentRecord.from_json(data, registry="r", id=1),
        lambda: TrialRecord.from_json(data, registry="r", id=1),
    ):
        with contextlib.suppress(ContentError):
            json.dumps(read().to_json(), allow_nan=False, ensure_ascii=False).encode("utf-8")


@settings(deadline=None)
@given(json_values)
def test_plain_values_survive_json(value: object) -> None:
    made = plain(value)
    assert json.loads(json.dumps(made, allow_nan=False, ensure_ascii=False).encode("utf-8")) == made


def test_plain_writes_odd_numbers_as_masters_do() -> None:
    assert plain([math.nan, math.inf, -math.inf, 1.5, (2,)]) == ["NaN", "Infinity", "-Infinity", 1.5, [2]]


def test_plain_takes_numbers_of_numpy() -> None:
    numpy = pytest.importorskip("numpy")
    made = plain({"a": numpy.float32(0.5), "b": numpy.int64(3), "c": numpy.float64("nan"), "d": numpy.bool_(True)})
    assert made == {"a": 0.5, "b": 3, "c": "NaN", "d": True}
    with pytest.raises(ValueError, match="ndarray"):
        plain(numpy.zeros(3))


def test_plain_refuses_what_json_has_not_and_what_is_too_deep() -> None:
    with pytest.raises(ValueError, match="set"):
        plain({"a": {1}})
    with pytest.raises(ValueError, match="bytes"):
        plain(b"")
    with pytest.raises(ValueError, match="tuple"):
        plain({(1, 2): 3})
    deep: object = 1
    for _ in range(MAX_DEPTH + 1):
        deep = [deep]
    with pytest.raises(ValueError, match="deep"):
        plain(deep)


@pytest.mark.parametrize(
    "text",
    [
        UUID,
        UUID.upper(),
        UUID.replace("-", ""),
        "{" + UUID + "}",
        "urn:uuid:" + UUID,
        "URN:UUID:" + UUID.upper(),
        f" {UUID} ",
    ],
)
def test_every_form_of_a_uuid_is_understood(text: str) -> None:
    assert canonical_uuid(text) == UUID


@pytest.mark.parametrize(
    "text", ["", "abc", UUID[:-1], UUID + "0", "{" + UUID, UUID.replace("-", "_"), None, 7, "\u0661" * 32]
)
def test_what_is_no_uuid_is_a_usage_error(text: object) -> None:
    with pytest.raises(UsageError, match="not a checkpoint UUID"):
        canonical_uuid(text)


def test_states_are_named_as_determined_names_them() -> None:
    assert {str(state) for state in State} == {"ACTIVE", "COMPLETED", "ERROR", "DELETED", "PARTIALLY_DELETED"}
