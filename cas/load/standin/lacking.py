"""How the stand-in says what it does not have."""

from __future__ import annotations

from typing import Any, NoReturn

from cas.errors import CasError


class Lacking(CasError, AttributeError):
    """Code of a checkpoint uses something of `determined` that loading without that package does not offer.

    It is an AttributeError as well, so that `hasattr` answers and `from … import` fails.
    """

    def __init__(self, name: str) -> None:
        self.missing = name
        super().__init__(
            f"the checkpoint's code uses {name}, which cas' stand-in for the determined package does not have;"
            " install determined to load it"
        )


def lacks(module: str, name: str) -> NoReturn:
    """Fail for a name that a module of the stand-in does not have; as `__getattr__` of a module.

    Raises:
        Lacking: always, but for the names that the import system itself asks for: AttributeError.
    """
    if name.startswith("__"):
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    raise Lacking(f"{module}.{name}")


def placeholder(name: str) -> type:
    """Return a class that can be imported and inherited from, and fails when it is used."""

    def fail(self: object, *_: Any, **__: Any) -> None:
        raise Lacking(name)

    return type(name.rpartition(".")[2], (), {"__init__": fail, "__doc__": f"Stands for {name}; it cannot be used."})


def placeholders(module: str, names: str) -> dict[str, type]:
    """Return a placeholder for each of these names, which blanks part, of a module."""
    return {name: placeholder(f"{module}.{name}") for name in names.split()}


class Part:
    """Stands for a part that can be imported; what is taken out of it is lacking."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return lacks(self._name, name)
