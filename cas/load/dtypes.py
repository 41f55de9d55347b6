"""Types of arrays of numpy in a pickle: whether what one says of itself can be true.

numpy believes it. A type that holds objects and denies it makes objects out of bytes, that is, of any address; a field
that lies behind the end of its element reads and writes memory that is somebody else's.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cas.errors import UnsafeContentError

_CODE = re.compile(r"[<>|=]?([biufcmMOSUV])(\d{1,9})\Z")  # as numpy writes it: a letter alone has a size of its own
_REFERENCES = 0x01 | 0x02  # flags: its items are counted references, and pickled as a list
_CLEARED = 0x08  # and its memory is cleared first: else what lay there is taken for objects
_SIZED = "SUV"  # kinds whose state tells their size
_POINTER = struct.calcsize("P")


@dataclass(frozen=True, slots=True)
class ArrayType:
    """What is known of a type: bytes of one element, and whether there are objects in it."""

    size: int
    objects: bool
    kind: str = "V"


def made(arguments: tuple[Any, ...]) -> ArrayType:
    """Return what `numpy.dtype(…)` makes of the arguments of a pickle.

    Raises:
        UnsafeContentError: they are none that numpy pickles.
    """
    code = arguments[0] if arguments else None
    found = _CODE.match(code) if isinstance(code, str) else None
    if found is None:
        raise UnsafeContentError(f"it makes a numpy.dtype of {code!r:.40}")
    kind, number = found[1], int(found[2])
    size = {"O": _POINTER, "U": 4 * number}.get(kind, number)  # whatever a pickle of 32 bits says of objects
    return ArrayType(size, kind == "O", kind)


def told(start: ArrayType, state: object, of: Callable[[object], ArrayType | None]) -> ArrayType:
    """Return a type after its state was set; `of` knows the types that the state refers to.

    Raises:
        UnsafeContentError: the state denies what it consists of.
    """
    if not isinstance(state, tuple) or len(state) not in (8, 9):
        raise _refusal("is not what numpy writes")
    _, _, array, names, fields, size, _, flags = state[:8]
    if not isinstance(size, int) or not isinstance(flags, int) or size < -1:
        raise _refusal("is not what numpy writes")
    if start.kind not in _SIZED or size == -1:
        size = start.size  # as numpy has it, whatever the state says
    parts = _fields(names, fields, size, of)
    if array is not None:
        inner = of(array[0]) if isinstance(array, tuple) and len(array) == 2 else None
        if inner is None or inner.size * _count(array[1]) > size:
            raise _refusal("has elements that are larger than it is")
        parts = [*parts, inner]
    if parts and start.kind != "V":
        raise _refusal("has parts, and is a number")
    objects = start.objects or any(part.objects for part in parts)
    if (flags & _REFERENCES) != (_REFERENCES if objects else 0):
        raise _refusal("makes objects out of bytes, or bytes out of objects")
    if objects and not flags & _CLEARED:
        raise _refusal("takes memory for objects that it has not cleared")
    return ArrayType(size, objects, start.kind)


def _count(shape: object) -> int:
    """Return how many elements there are in a type that is an array itself."""
    sides = shape if isinstance(shape, tuple) else (shape,)
    if not all(isinstance(side, int) and side >= 0 for side in sides):
        raise _refusal("has elements in a shape that is none")
    return math.prod(sides)


def _fields(names: object, fields: object, size: int, of: Callable[[object], ArrayType | None]) -> list[ArrayType]:
    if fields is None and names is None:
        return []
    if not isinstance(fields, Mapping):
        raise _refusal("has fields that are none")
    parts = {}
    for name, field in fields.items():
        inner = of(field[0]) if isinstance(field, tuple) and len(field) in (2, 3) else None
        at = field[1] if inner is not None else None
        if inner is None or not isinstance(at, int) or at < 0 or at + inner.size > size:
            raise _refusal("has a field that lies outside of it")
        parts[name] = (at, inner)
    titles = {name for name, field in fields.items() if len(field) == 3 and field[2] == name}  # other names of fields
    if not all(fields[title] in [fields[name] for name in fields.keys() - titles] for title in titles):
        raise _refusal("has a title of no field")
    _require_apart([part for name, part in parts.items() if name not in titles])
    return [inner for _, inner in parts.values()]


def _require_apart(parts: list[tuple[int, ArrayType]]) -> None:
    """Refuse fields that lie where an object lies: writing to one of them would make an object out of a number."""
    reached, objects = 0, False
    for at, inner in sorted(parts, key=lambda part: part[0]):
        if at < reached and (objects or inner.objects):
            raise _refusal("has an object and something else in one place")
        reached, objects = max(reached, at + inner.size), inner.objects or (objects and at < reached)


def _refusal(why: str) -> UnsafeContentError:
    return UnsafeContentError(f"it makes a numpy.dtype that {why}")


__all__ = ["ArrayType", "made", "told"]
