"""What a user has decided and found about code: files of their own, which nobody else can speak through."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cas.errors import NotAllowedError
from cas.index import lines
from cas.index.digest import Digest
from cas.index.layout import Layout
from cas.index.trust import Trusted, Verdicts

A, B = Digest.of(b"a"), Digest.of(b"b")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path)


def test_what_is_trusted_is_trusted_until_it_is_revoked(layout: Layout) -> None:
    trusted = Trusted(layout)
    assert not trusted.holds(A) and trusted.all() == []
    trusted.add(A)
    trusted.add(A)
    assert trusted.holds(A) and not trusted.holds(B)
    assert Trusted(layout).all() == [A]
    assert trusted.remove(A) and not trusted.remove(A)
    assert not trusted.holds(A)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 200,
        lines.encode({"kind": "trusted", "digest": str(A)})[:-5],
        lines.encode({"kind": "trusted", "digest": str(B)}),  # another decision under this name
        lines.encode({"kind": "trusted"}),
        b"x" * (2 << 20),
    ],
)
def test_damaged_decision_is_none(layout: Layout, content: bytes) -> None:
    path = layout.trusted(os.getuid(), A)
    path.parent.mkdir()
    path.write_bytes(content)
    assert not Trusted(layout).holds(A)
    Trusted(layout).add(A)
    assert Trusted(layout).holds(A)


def test_a_link_a_folder_and_a_pipe_decide_nothing(layout: Layout, tmp_path: Path) -> None:
    Trusted(layout).add(A)
    path = layout.trusted(os.getuid(), A)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert not Trusted(layout).holds(A)
    path.unlink()
    path.mkdir()
    assert not Trusted(layout).holds(A)
    path.rmdir()
    os.mkfifo(path)
    assert not Trusted(layout).holds(A)


@pytest.mark.root
@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to write as somebody else")
def test_another_users_file_decides_nothing_and_roots_does(layout: Layout, tmp_path: Path) -> None:
    own = layout.trusted(0, A)
    Trusted(layout).add(A)
    Verdicts(layout).put(A, {"stored": []})
    for path in (own, layout.verdict(0, A)):
        os.chown(path, 12345, -1)
    assert not Trusted(layout).holds(A)
    assert Verdicts(layout).get(A) is None
    os.chown(own, 0, -1)
    tmp_path.chmod(0o755)
    for folder in tmp_path.parents:
        if folder.owner() == "root" and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o011)
    child = os.fork()
    if child == 0:
        try:
            os.setuid(12345)
            trusted = Trusted(layout)
            right = trusted.holds(A) and trusted.all() == [A]
            try:
                trusted.remove(A)
            except (NotAllowedError, PermissionError):
                os._exit(0 if right and trusted.holds(A) else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_home_that_cannot_be_written_takes_no_decision_and_no_verdict(layout: Layout) -> None:
    (layout.root / "trusted").write_bytes(b"")  # where the folder would be
    (layout.root / "verdicts").write_bytes(b"")
    with pytest.raises(NotAllowedError, match="cannot record what you trust"):
        Trusted(layout).add(A)
    Verdicts(layout).put(A, {"stored": []})
    assert Verdicts(layout).get(A) is None


def test_verdicts_are_found_again_and_do_not_grow_for_ever(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    verdicts = Verdicts(layout)
    verdicts.put(A, {"stored": [["math", "sqrt"]]})
    found = verdicts.get(A)
    assert found is not None and found["stored"] == [["math", "sqrt"]]
    monkeypatch.setattr("cas.index.trust._MAX_VERDICTS", 3)
    for number in range(10):
        verdicts.put(Digest.of(bytes([number])), {"stored": []})
    assert len(os.listdir(layout.root / "verdicts")) <= 3
    assert verdicts.get(Digest.of(bytes([9]))) is not None
