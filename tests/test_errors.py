import inspect
import re
from pathlib import Path

import pytest

from cas import errors

CLASSES = {name: one for name, one in vars(errors).items() if inspect.isclass(one) and issubclass(one, errors.CasError)}


def tree() -> list[tuple[int, str, int]]:
    """The drawing in the docstring: depth, name, exit code."""
    found = []
    for line in (errors.__doc__ or "").splitlines():
        if drawn := re.match(r"    ([│├└─ ]*)(\w+Error)\b.*?\s(\d+)  ", line):
            found.append((len(drawn[1]) // 4, drawn[2], int(drawn[3])))
    return found


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = tree()
    assert {name for _, name, _ in drawn} == CLASSES.keys()
    above: list[str] = []
    for depth, name, code in drawn:
        above[depth:] = [name]
        assert CLASSES[name].exit_code == code
        if depth:
            assert CLASSES[above[depth - 1]] in CLASSES[name].__bases__


def test_everything_is_exported() -> None:
    assert sorted(errors.__all__) == sorted(CLASSES)


@pytest.mark.parametrize(("kind", "builtin"), [(errors.UsageError, ValueError), (errors.NotFoundError, LookupError)])
def test_errors_are_also_what_callers_expect(kind: type[Exception], builtin: type[Exception]) -> None:
    assert issubclass(kind, builtin)


def test_errors_carry_data() -> None:
    mismatch = errors.DigestMismatchError("file", expected="a", actual="b")
    assert (mismatch.subject, mismatch.expected, mismatch.actual) == ("file", "a", "b")
    assert str(mismatch) == "file: expected a, but the bytes have b"
    unsafe = errors.UnsafeNameError("a\n\x1b", "has a control character")
    assert unsafe.name == "a\n\x1b" and "\n" not in str(unsafe) and "\x1b" not in str(unsafe)
    foreign = errors.ForeignContentError(Path("/x"), "holds other files")
    assert foreign.path == Path("/x") and "choose another folder" in str(foreign)
    assert errors.TransientRemoteError("slow", retry_after=2.0).retry_after == 2.0
