"""A store under everything at once, against a model that is a dictionary; `check` is the oracle at the end."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from stores import damage, lies, manifest_of, uuid

from cas.actions.adding import add
from cas.config import Progress, Settings
from cas.errors import ProtectedError
from cas.index import lines
from cas.index.check import Kind, check
from cas.index.digest import Digest
from cas.index.records import NewRecord
from cas.index.store import Store
from cas.load.views import make_view
from cas.removing import pin, prune, remove, unpin
from cas.transfer.fetch import pull
from cas.transfer.folder import FolderRemote

CONTENTS = [b"", b"a", b"bb" * 5000, b"ccc" * 40_000, b"d" * 70_000]
trees = st.dictionaries(
    st.sampled_from(["model", "code/a.py", "code/b.py", "x/y/z", "metadata.json"]),
    st.integers(0, len(CONTENTS) - 1).map(lambda number: CONTENTS[number]),
    min_size=1,
    max_size=4,
)
numbers = st.integers(0, 4)
chances = st.integers(0, 10_000)


class StoreMachine(RuleBasedStateMachine):
    """`self.model` says what every checkpoint consists of; `self.spoiled`, which blobs were damaged since."""

    @initialize()
    def start(self) -> None:
        memory = Path("/dev/shm")
        self.base = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
        self.home = self.base / "home"
        self.model: dict[str, dict[str, bytes]] = {}
        self.records: dict[str, int] = {}
        self.spoiled: set[Digest] = set()
        self.lost: set[str] = set()  # checkpoints whose manifest was damaged
        self.store = Store(self.home)
        self.settings = Settings(home=self.home, progress=Progress.OFF, concurrency=2)

    def teardown(self) -> None:
        if hasattr(self, "base"):
            try:
                self.judge()
            finally:
                shutil.rmtree(self.base)

    # --- what users do ---------------------------------------------------------------------------------------

    @rule(number=numbers, files=trees)
    def put_and_tag(self, number: int, files: dict[str, bytes]) -> None:
        name = uuid(number)
        if name in self.model:
            files = self.model[name]
        manifest = manifest_of(files, self.store)
        assert self.store.tag("local", name, manifest) == []
        self.has_now(name, files)

    @rule(number=numbers, files=trees)
    def add(self, number: int, files: dict[str, bytes]) -> None:
        name = uuid(number)
        if name not in self.model:
            add(self.folder(files), uuid=name, settings=self.settings)
            self.has_now(name, files)

    @rule(number=numbers, files=trees)
    def pull(self, number: int, files: dict[str, bytes]) -> None:
        name = uuid(number)
        files = self.model.get(name, files)
        remote = FolderRemote(self.folder(files))
        report = pull(self.store, remote, registry="local", uuid=name, settings=self.settings)
        assert report.manifest.digest == manifest_of(files).digest
        self.has_now(name, files)

    @precondition(lambda self: self.model)
    @rule(chance=chances)
    def remove(self, chance: int) -> None:
        name = self.pick(chance)
        if name not in self.lost:
            remove(name, settings=self.settings)
            del self.model[name]
            assert self.store.resolve("local", name) is None

    @precondition(lambda self: self.model)
    @rule(chance=chances, pinned=st.booleans())
    def prune(self, chance: int, pinned: bool) -> None:
        name = self.pick(chance)
        if pinned:
            pin(name, settings=self.settings)
        report = prune(name, only_copies=True, now=True, settings=self.settings)
        assert report.gone == (() if pinned or self.lost else (name,))
        if pinned:
            unpin(name, settings=self.settings)
        for gone in report.gone:
            del self.model[gone]
            assert self.store.resolve("local", gone) is None

    @precondition(lambda self: self.model)
    @rule(chance=chances)
    def view(self, chance: int) -> None:
        name = self.pick(chance)
        files = self.model[name]
        manifest = self.store.resolve("local", name)
        if manifest is None or any(self.served(data) is None for data in files.values()):
            return
        path = make_view(self.store, manifest).path
        assert {found: (path / found).read_bytes() for found in files} == files
        with pytest.raises(ProtectedError):
            remove(name, settings=self.settings)
        self.store.leases.leave(manifest.digest)

    @rule(number=numbers, n=st.integers(0, 9))
    def record(self, number: int, n: int) -> None:
        self.store.records.add("m", [NewRecord("note", uuid(number), {"n": n}, ("trial/1",))])
        self.records[uuid(number)] = n

    # --- what happens to it ----------------------------------------------------------------------------------

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = Store(self.home)

    @rule(how=st.sampled_from(["delete", "truncate", "garbage"]), chance=chances)
    def spoil_the_index(self, how: str, chance: int) -> None:
        for path in self.home.glob("index-*.sqlite3"):
            if how == "delete":
                path.unlink()
            elif how == "truncate":
                os.truncate(path, chance % path.stat().st_size)
            else:
                with open(path, "r+b") as file:
                    file.seek(chance % path.stat().st_size)
                    file.write(b"garbage" * 20)

    @rule()
    def reboot(self) -> None:
        """Make every fact one of another boot, as a reboot does."""
        self.store.close()
        for path in self.home.glob("facts/*.jsonl"):
            payloads = [line.payload for line in lines.read(path)]
            path.unlink()
            lines.append(path, [payload | ({"boot": "other"} if "boot" in payload else {}) for payload in payloads])
        self.store = Store(self.home)

    @rule(chance=chances)
    def spoil_a_fact(self, chance: int) -> None:
        for path in self.home.glob("facts/*.jsonl"):
            data = bytearray(path.read_bytes())
            data[chance % len(data)] ^= 1 << chance % 8
            path.write_bytes(data)

    @precondition(lambda self: any(self.home.glob("blobs/??/*")))
    @rule(how=st.sampled_from(["flip", "cut", "empty", "zeros", "delete"]), chance=chances)
    def spoil_a_blob(self, how: str, chance: int) -> None:
        found = sorted(self.home.glob("blobs/??/*"))
        path = found[chance % len(found)]
        size = path.stat().st_size
        if not size and how != "delete":
            damage(path, b"no longer empty")
        elif how == "flip":
            damage(path)
        elif how == "delete":
            path.unlink()
        else:
            damage(path, {"cut": path.read_bytes()[: size // 2], "empty": b"", "zeros": bytes(size)}[how])
        self.spoiled.add(Digest(path.parent.name + path.name))

    @precondition(lambda self: any(self.home.glob("manifests/??/*")))
    @rule(chance=chances)
    def spoil_a_manifest(self, chance: int) -> None:
        found = sorted(self.home.glob("manifests/??/*"))
        path = found[chance % len(found)]
        damage(path)
        digest = Digest(path.parent.name + path.stem)
        self.lost |= {name for name in self.model if manifest_of(self.model[name]).digest == digest}

    @precondition(lambda self: self.model)
    @rule(chance=chances)
    def spoil_a_ref(self, chance: int) -> None:
        name = self.pick(chance)
        for path in self.store.layout.refs("local", name).iterdir():
            path.write_text("a ref says nothing inside")

    @rule()
    def check_now(self) -> None:
        report = check(self.store, deep=True)
        assert all(problem.digest in self.spoiled for problem in report.damage if problem.kind is Kind.DAMAGED_BLOB)

    # --- what must hold --------------------------------------------------------------------------------------

    @invariant()
    def every_answer_is_right(self) -> None:
        if not hasattr(self, "model"):
            return
        for number in range(5):
            name = uuid(number)
            found = self.store.resolve("local", name)
            if name in self.lost or name not in self.model:
                assert found is None
                continue
            assert found is not None and found.digest == manifest_of(self.model[name]).digest
            for data in self.model[name].values():
                self.served(data)
        seen = {seen.id: seen.data["n"] for seen in self.store.records.find("note", parent="trial/1")}
        assert seen == self.records

    def served(self, data: bytes) -> bytes | None:
        digest = Digest.of(data)
        path = self.store.blobs.locate(digest)
        if path is None:
            assert digest in self.spoiled, "a blob that nobody damaged is gone"
            return None
        assert path.read_bytes() == data, "other bytes are served"
        return data

    def judge(self) -> None:
        report = check(self.store, deep=True)
        assert lies(self.home) == []
        for problem in report.damage:
            if problem.kind in (Kind.DAMAGED_BLOB, Kind.MISSING_BLOB):
                assert problem.digest in self.spoiled, problem
            elif problem.kind in (Kind.DAMAGED_MANIFEST, Kind.MISSING_MANIFEST):
                assert self.lost, problem
            else:
                assert problem.kind is Kind.TORN_LINE, problem
        for name, files in list(self.model.items()):
            assert self.store.tag("local", name, manifest_of(files, self.store)) == []  # all bytes are put again
            self.has_now(name, files)
        self.every_answer_is_right()
        assert not self.lost
        assert {problem.kind for problem in check(self.store, deep=True).damage} <= {Kind.TORN_LINE}

    # --- the model ---------------------------------------------------------------------------------------------

    def pick(self, chance: int) -> str:
        return sorted(self.model)[chance % len(self.model)]

    def has_now(self, name: str, files: dict[str, bytes]) -> None:
        self.model[name] = files
        healed = manifest_of(files).digest
        self.lost -= {other for other in self.lost if manifest_of(self.model[other]).digest == healed}
        self.spoiled -= {Digest.of(data) for data in files.values()}

    def folder(self, files: dict[str, bytes]) -> Path:
        folder = Path(tempfile.mkdtemp(dir=self.base))
        for path, data in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
        return folder


StoreMachine.TestCase.settings = settings(
    max_examples=80, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
TestStore = pytest.mark.slow(StoreMachine.TestCase)
