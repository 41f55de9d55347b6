"""Removing, pruning and pinning from Python, and the size that is kept after pulls."""

from __future__ import annotations

import logging
import os
import random
from dataclasses import replace
from pathlib import Path

import pytest
from stores import UUID, uuid

import cas
from cas.actions.adding import add
from cas.checkpoint import Checkpoint
from cas.config import Progress, Settings, seconds_of
from cas.errors import NotFoundError, ProtectedError, UsageError
from cas.index.store import store_of
from cas.registry.catalog import LOCAL, Catalog
from cas.registry.records import CheckpointRecord, State
from cas.registry.remembering import remember
from cas.removing import is_only_copy, only_copies_of, pin, pinned, plan, prune, remove, unpin

MASTER = "http://m:8080"


@pytest.fixture
def chosen(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", progress=Progress.OFF)


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    for number in range(5):
        folder = tmp_path / "origin" / uuid(number)
        folder.mkdir(parents=True)
        (folder / "model").write_bytes(random.Random(number).randbytes(100_000))
    return tmp_path / "origin"


def of_master(origin: Path, number: int, chosen: Settings, *, state: State = State.COMPLETED) -> Checkpoint:
    """A checkpoint that a master told of, and whose files lie in a folder."""
    config = {"checkpoint_storage": {"type": "shared_fs", "host_path": str(origin)}}
    record = CheckpointRecord(registry=MASTER, uuid=uuid(number), experiment_config=config, state=state)
    remember(store_of(chosen), MASTER, [record])
    return Checkpoint(record, settings=chosen)


def last_used(chosen: Settings, number: int, ago: float) -> None:
    path = store_of(chosen).layout.used(uuid(number))
    then = path.stat().st_mtime_ns - int(ago * 1e9)
    os.utime(path, ns=(then, then))


def here(chosen: Settings) -> list[int]:
    store = store_of(chosen)
    return [number for number in range(5) if store.refs.registries(uuid(number))]


def pull(origin: Path, number: int, chosen: Settings) -> None:
    checkpoint = of_master(origin, number, chosen)
    checkpoint.view()
    checkpoint.release()


def test_the_names_are_public() -> None:
    assert (cas.remove, cas.prune, cas.pin, cas.unpin) == (remove, prune, pin, unpin)


def test_what_was_used_counts_as_used(origin: Path, chosen: Settings, tmp_path: Path) -> None:
    checkpoint = of_master(origin, 0, chosen)
    uses = store_of(chosen).uses
    checkpoint.view()
    for use in (
        checkpoint.view,
        lambda: checkpoint.download(tmp_path / "target"),
        lambda: checkpoint.download(tmp_path / "target"),
    ):
        last_used(chosen, 0, 5000)
        before = uses.all()[uuid(0)]
        use()
        assert uses.all()[uuid(0)] - before > 4000 * 10**9


def test_a_size_is_kept_after_pulls(origin: Path, chosen: Settings) -> None:
    small = replace(chosen, max_size=250_000)
    pull(origin, 0, small)
    pull(origin, 1, small)
    last_used(chosen, 0, 900)
    last_used(chosen, 1, 1000)
    pull(origin, 2, small)
    assert here(chosen) == [0, 2]
    pin(uuid(0), settings=chosen)
    last_used(chosen, 2, 800)
    pull(origin, 3, small)
    assert here(chosen) == [0, 3]


def test_a_pull_never_drops_what_it_brought_and_says_what_does_not_fit(
    origin: Path, chosen: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    tiny = replace(chosen, max_size=1000)
    with caplog.at_level(logging.WARNING):
        pull(origin, 0, tiny)
    assert here(chosen) == [0]
    assert "the store takes 100000 bytes, 99000 more than max_size, and nothing else may go" in caplog.text


def test_without_the_setting_nothing_goes(origin: Path, chosen: Settings) -> None:
    for number in range(3):
        pull(origin, number, chosen)
        last_used(chosen, number, 10**8)
    assert here(chosen) == [0, 1, 2]


def test_what_lies_elsewhere_is_known_from_the_records(origin: Path, chosen: Settings) -> None:
    pull(origin, 0, chosen)
    store = store_of(chosen)

    def only(number: int) -> bool:
        assert is_only_copy(store, uuid(number)) is only_copies_of(store)(uuid(number))
        return is_only_copy(store, uuid(number))

    assert not only(0)
    for state in (State.DELETED, State.PARTIALLY_DELETED, State.ERROR):  # the origin no longer has all of it
        of_master(origin, 0, chosen, state=state)
        assert only(0)
    assert only(4)  # nobody knows it
    of_master(origin, 0, chosen)
    (origin / uuid(0) / "model").write_bytes(b"other files")
    add(origin / uuid(0), uuid=uuid(0), settings=chosen)  # under the same name
    assert only(0)


def test_by_registry(origin: Path, chosen: Settings) -> None:
    for number in range(2):
        pull(origin, number, chosen)
        last_used(chosen, number, 5000)
    with pytest.raises(UsageError, match="no registry is called 'http://other' here"):
        prune(registry="http://other", settings=chosen)
    assert prune(registry=MASTER, older_than="1h", settings=chosen).gone == (uuid(0), uuid(1))
    pull(origin, 0, chosen)  # it comes again: its bytes are in aside/
    assert here(chosen) == [0]


def test_a_removed_local_checkpoint_is_recorded_as_deleted(origin: Path, chosen: Settings) -> None:
    add(origin / uuid(0), uuid=UUID, settings=chosen)
    assert prune(UUID, only_copies=True, now=True, settings=chosen).gone == (UUID,)
    assert Catalog(store_of(chosen), LOCAL).checkpoint(UUID).state is State.DELETED


def test_pins_are_for_checkpoints_that_are_here(origin: Path, chosen: Settings) -> None:
    with pytest.raises(NotFoundError, match="download it, and pin it then"):
        pin(uuid(0), settings=chosen)
    assert pinned(settings=chosen) == ()
    pull(origin, 0, chosen)
    pin(uuid(0).upper(), settings=chosen)
    pin(uuid(0), settings=chosen)
    assert pinned(settings=chosen) == (uuid(0),)
    with pytest.raises(ProtectedError) as caught:
        remove(uuid(0), force=True, settings=chosen)
    assert (caught.value.uuid, caught.value.exit_code) == (uuid(0), 10)
    unpin(uuid(0), settings=chosen)
    with pytest.raises(NotFoundError, match="is not pinned"):
        unpin(uuid(0), settings=chosen)


@pytest.mark.parametrize("wrong", [{"older_than": "soon"}, {"max_size": "many"}, {"max_size": ""}])
def test_ages_and_sizes_are_checked(wrong: dict[str, str], chosen: Settings) -> None:
    with pytest.raises(UsageError, match="must be"):
        plan(settings=chosen, **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "seconds"), [("45s", 45), ("90m", 5400), ("12 h", 43_200), ("1.5d", 129_600), ("2W", 1_209_600)]
)
def test_lengths_of_time(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "d", "5", "-1d", "1d2h", "\u0661d", "1e3s", None])
def test_what_is_no_length_of_time(text: object) -> None:
    with pytest.raises(ValueError, match="must be a length of time"):
        seconds_of(text)


def test_a_loaded_model_protects_its_files_until_it_is_garbage(chosen: Settings, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    folder = tmp_path / "model"
    folder.mkdir()
    torch.save(torch.nn.Linear(64, 64), folder / "model.pth")
    checkpoint = add(folder, uuid=UUID, settings=chosen)
    model = checkpoint.load(trust="always")
    with pytest.raises(ProtectedError):
        remove(UUID, settings=chosen)
    del model
    assert remove(UUID, settings=chosen).blobs == 1
