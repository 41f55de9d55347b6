from pathlib import Path

import pytest
from stores import UUID

from cas.index import lines
from cas.index.records import NewRecord
from cas.index.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


def add(store: Store, registry: str, id: str, data: dict[str, object], *parents: str) -> None:
    store.records.add(registry, [NewRecord("checkpoint", id, data, parents)])


def test_what_was_seen_last_wins(store: Store) -> None:
    add(store, "local", UUID, {"n": 1}, "trial/1")
    add(store, "local", UUID, {"n": 2}, "trial/2")
    found = store.records.get("local", "checkpoint", UUID)
    assert found is not None and found.data == {"n": 2} and found.registry == "local" and found.id == UUID
    assert store.records.find("checkpoint", parent="trial/1") == []
    assert [seen.data for seen in store.records.find("checkpoint", parent="trial/2")] == [{"n": 2}]


def test_questions_by_registry_kind_and_parent(store: Store) -> None:
    add(store, "local", "b", {}, "trial/1", "experiment/1")
    add(store, "local", "a", {}, "trial/2", "experiment/1")
    add(store, "http://m", "a", {}, "trial/1")
    store.records.add("local", [NewRecord("trial", "1", {"t": 1})], durable=True)

    def ids(**terms: str) -> list[tuple[str, str]]:
        return [(seen.registry, seen.id) for seen in store.records.find("checkpoint", **terms)]

    assert ids() == [("http://m", "a"), ("local", "a"), ("local", "b")]
    assert ids(registry="local") == [("local", "a"), ("local", "b")]
    assert ids(parent="trial/1") == [("http://m", "a"), ("local", "b")]
    assert ids(registry="local", parent="trial/1") == [("local", "b")]
    assert store.records.registries_with("checkpoint", "a") == ["http://m", "local"]
    assert store.records.registries() == ["http://m", "local"]
    assert store.records.get("local", "trial", "2") is None
    assert store.records.get("local", "checkpoint", "\udcff") is None


def host_file(store: Store, host: str) -> Path:
    return store.home / "records" / "local" / f"{host}.jsonl"


def line(n: int, seen: object, **more: object) -> dict[str, object]:
    return {"kind": "checkpoint", "id": "a", "seen": seen, "parents": [], "data": {"n": n}} | more


@pytest.mark.parametrize("order", [("b", "a"), ("a", "b")])
def test_the_order_of_reading_decides_nothing(order: tuple[str, str], store: Store) -> None:
    contents = {"a": [line(1, 5.0), line(2, 7.0)], "b": [line(3, 7.0), line(4, 6.0)]}
    for host in order:
        lines.append(host_file(store, host), contents[host])
        store.records.find("checkpoint")
    found = store.records.get("local", "checkpoint", "a")
    again = Store(store.home).records.get("local", "checkpoint", "a")
    assert found is not None and found.data == {"n": 3}  # as late as 2, in the file with the later name
    assert again == found


def test_a_file_that_is_gone_takes_only_what_it_said(store: Store) -> None:
    lines.append(host_file(store, "a"), [line(1, 5.0)])
    lines.append(host_file(store, "b"), [line(2, 6.0)])
    lines.append(host_file(store, "c"), [line(3, 4.0, id="c")])
    assert [seen.data["n"] for seen in store.records.find("checkpoint")] == [2, 3]
    host_file(store, "b").unlink()
    assert [seen.data["n"] for seen in store.records.find("checkpoint")] == [1, 3]
    host_file(store, "c").write_bytes(b"")
    lines.append(host_file(store, "d"), [line(4, 1.0, id="d")])
    assert [seen.data["n"] for seen in store.records.find("checkpoint")] == [1, 4]


@pytest.mark.parametrize(
    "bad",
    [line(9, None), line(9, "7"), line(9, 10**400), line(9, 9.0, id=7), line(9, 9.0, id=None), line(9, 9.0, kind=[]),
     line(9, 9.0, id="\ud800"), {}, {"kind": "checkpoint"}],
)  # fmt: skip
def test_lines_that_are_no_records_are_passed_over(bad: dict[str, object], store: Store) -> None:
    lines.append(host_file(store, "a"), [line(1, 5.0), bad, line(2, 5.5, id="b")])
    assert [seen.data["n"] for seen in store.records.find("checkpoint")] == [1, 2]


@pytest.mark.parametrize("parents", [None, 7, "trial/1", [None, "trial/1", 7], {"trial/1": 1}])
def test_odd_parents_do_no_harm(parents: object, store: Store) -> None:
    lines.append(host_file(store, "a"), [line(1, 5.0, parents=parents)])
    found = store.records.find("checkpoint", parent="trial/1")
    assert len(found) == (1 if isinstance(parents, list) else 0)
    assert len(store.records.find("checkpoint")) == 1


def test_data_that_is_no_object_reads_as_empty(store: Store) -> None:
    lines.append(host_file(store, "a"), [line(1, 5.0, data=[7])])
    assert store.records.find("checkpoint")[0].data == {}


def test_a_line_torn_by_a_crash_hides_nothing_else(store: Store) -> None:
    add(store, "local", "a", {"n": 1})
    path = next((store.home / "records" / "local").iterdir())
    with open(path, "ab") as file:
        file.write(lines.encode(line(2, 10.0**10))[:-5])
    assert store.records.find("checkpoint")[0].data == {"n": 1}
    add(store, "local", "a", {"n": 3})
    assert store.records.find("checkpoint")[0].data == {"n": 3}
    assert Store(store.home).records.find("checkpoint")[0].data == {"n": 3}
