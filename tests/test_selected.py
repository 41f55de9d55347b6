"""A few records of a file of torch, fetched from its origin."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import pytest
from remotes import CountingRemote, MemoryRemote

from cas.config import Settings, Verify
from cas.errors import CasError, ContentError, DigestMismatchError
from cas.index.check import check
from cas.index.store import Store
from cas.transfer.fetch import pull
from cas.transfer.selected import selected_records
from cas.transfer.session import Session

RECORDS = {f"data/{number}": bytes([number]) * (1_500_000 + number) for number in range(1, 9)}


def archive(records: dict[str, bytes] = RECORDS, *, top: str = "archive", pickled: bytes = b"pickle") -> bytes:
    """What torch.save writes, as far as this is concerned: stored records, the pickle first."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as made:
        for name, data in {"data.pkl": pickled, "byteorder": b"little", **records, "version": b"3\n"}.items():
            made.writestr(f"{top}/{name}", data)
    return buffer.getvalue()


class Place:
    """A store, and a remote that holds one file."""

    def __init__(self, home: Path, data: bytes, **settings: Any) -> None:
        self.data = data
        self.store = Store(home)
        self.remote = CountingRemote(MemoryRemote({"state.pth": data}))
        self.settings = Settings.load(home=home, progress="off", **settings)

    def session(self) -> Session:
        return Session(self.store, self.remote, self.settings, None)

    def select(self, keys: set[str] | None) -> dict[str, bytes] | None:
        """Fetch these records, and read every record of what lies there as torch does: by its local header."""
        session = self.session()
        with selected_records(session, session.remote.list().files[0], lambda pickled: keys) as found:
            if found is None:
                return None
            self.fetched = found.fetched
            data = found.path.read_bytes()
            assert len(data) == found.size == len(self.data)
            return {one.filename.partition("/")[2]: content(data, one) for one in directory(data)}


def directory(data: bytes) -> list[zipfile.ZipInfo]:
    with zipfile.ZipFile(io.BytesIO(data)) as found:
        return found.infolist()


def content(data: bytes, one: zipfile.ZipInfo) -> bytes:
    header = data[one.header_offset : one.header_offset + 30]
    assert header[:4] == b"PK\3\4"
    start = one.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    return data[start : start + one.file_size]


def test_only_what_is_wanted_is_fetched_and_the_rest_can_be_mapped(tmp_path):
    place = Place(tmp_path / "home", archive())

    found = place.select({"2", "7"})

    assert found is not None
    assert found["data/2"] == RECORDS["data/2"]
    assert found["data/7"] == RECORDS["data/7"]
    assert found["data.pkl"] == b"pickle"
    assert len(found["data/5"]) == len(RECORDS["data/5"])  # where it would lie, there are zeros
    assert place.fetched < 2 * 1_500_100 + 200_000
    assert not list(place.store.home.glob("blobs/*/*"))


def test_a_full_pull_goes_on_from_there_and_a_second_selection_fetches_only_what_is_new(tmp_path):
    place = Place(tmp_path / "home", archive())
    place.select({"2", "7"})
    first = place.fetched

    place.select({"2", "7"})
    assert place.fetched == 0
    place.select({"2", "3"})
    assert place.fetched < 1_600_000
    report = pull(
        place.store,
        place.remote,
        registry="local",
        uuid="46985143-af68-4d48-ab91-a6447052ca49",
        settings=place.settings,
    )

    assert report.bytes_resumed >= first
    assert report.bytes_fetched < len(place.data) - first
    entry = report.manifest.files[0]
    assert entry.digest is not None
    assert place.store.blobs.read(entry.digest) == place.data
    assert check(place.store, deep=True).damage == ()


@pytest.mark.parametrize(
    "data",
    [b"no archive" * 200_000, archive()[:-100], archive({**RECORDS, "constants.pkl": b"x"}), b"PK\3\4" * 10],
    ids=["other bytes", "cut", "TorchScript", "short"],
)
def test_what_is_no_archive_of_torch_is_left_to_the_whole_pull(tmp_path, data):
    assert Place(tmp_path / "home", data).select({"1"}) is None


def test_where_all_is_needed_or_the_pickle_names_what_is_not_there_it_is_fetched_whole(tmp_path):
    assert Place(tmp_path / "a", archive()).select(None) is None
    assert Place(tmp_path / "b", archive()).select({"1", "77"}) is None


def test_a_record_with_other_bytes_than_the_directory_says_is_refused_and_not_resumed(tmp_path):
    data = bytearray(archive())
    spot = data.index(RECORDS["data/7"][:1000]) + 500
    data[spot] ^= 1
    place = Place(tmp_path / "home", bytes(data))

    with pytest.raises(DigestMismatchError, match="data/7"):
        place.select({"2", "7"})

    assert not list(place.store.home.glob("ingest/*/*/*.data"))
    assert place.select({"2"}) is not None


def test_without_a_checksum_strict_verification_refuses(tmp_path):
    data = bytearray(archive())
    at = data.rindex(b"PK\1\2", 0, data.rindex(b"archive/data/7"))
    data[at + 16 : at + 20] = bytes(4)  # as torch writes it with set_crc32_options(False)
    for place, works in (
        (Place(tmp_path / "a", bytes(data)), True),
        (Place(tmp_path / "b", bytes(data), verify=Verify.STRICT), False),
    ):
        if works:
            assert place.select({"7"}) is not None
        else:
            with pytest.raises(ContentError, match="no checksum vouches"):
                place.select({"7"})


@pytest.mark.torch
def test_torch_loads_the_model_from_it(tmp_path):
    import torch

    from cas.load.selecting import model_storages

    model = torch.nn.Linear(700, 900)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 700)).sum().backward()
    optimizer.step()
    buffer = io.BytesIO()
    torch.save({"optimizers_state_dict": [optimizer.state_dict()], "models_state_dict": [model.state_dict()]}, buffer)
    place = Place(tmp_path / "home", buffer.getvalue())
    session = place.session()

    with selected_records(session, session.remote.list().files[0], model_storages) as found:
        assert found is not None
        state = torch.load(found.path, mmap=True, weights_only=True)["models_state_dict"][0]
        assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
        assert found.fetched < 0.6 * found.size


def test_an_interrupted_selection_ends_with_the_error_and_keeps_what_is_whole(tmp_path):
    place = Place(tmp_path / "home", archive())
    session = place.session()

    with (
        pytest.raises(CasError, match="enough"),
        selected_records(session, session.remote.list().files[0], lambda pickled: {"3"}),
    ):
        raise CasError("enough")

    place.select({"3"})
    assert place.fetched == 0
