"""How deep tuples lie within tuples in a pickle: hashing one goes as deep on the stack of C, which has no limit of its
own and ends the process where the stack ends.
"""

from __future__ import annotations

import pickletools
from typing import IO

from cas.errors import ContentError

_DEEPEST = 20_000  # 2 MB of a stack, which has 8; real pickles have a few
_TUPLES = {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}
_CODES = (b"t", b"\x85", b"\x86", b"\x87")
_WINDOW = 1 << 20  # bytes in which codes are counted: most pickles are shorter, and have too few tuples to be deep


def require_shallow(stream: IO[bytes]) -> None:
    """Look at the pickle that comes next in a stream, and go back to where it begins; nothing of it is made.

    Raises:
        ContentError: tuples lie too deep within each other.
    """
    start = stream.tell()
    head = stream.read(_WINDOW)
    stream.seek(start)
    if len(head) == _WINDOW or sum(head.count(code) for code in _CODES) > _DEEPEST:
        depth = _depth(stream)
        stream.seek(start)
        if depth > _DEEPEST:
            raise ContentError("not a pickle of any framework: thousands of tuples within each other")


def _depth(stream: IO[bytes]) -> int:
    """Return how deep tuples lie within each other; all there is to know of a value is how deep it is."""
    mark = -1
    stack: list[int] = []
    memo: dict[int, int] = {}
    deepest = 0
    try:
        for code, argument, _ in pickletools.genops(stream):
            if "PUT" in code.name or code.name == "MEMOIZE":
                memo[len(memo) if argument is None else int(argument)] = stack[-1]
                continue
            if "GET" in code.name:
                stack.append(memo[int(argument or 0)])
                continue
            taken = []
            if pickletools.markobject in code.stack_before:
                while (value := stack.pop()) != mark:
                    taken.append(value)
                below = code.stack_before.index(pickletools.markobject)
            else:
                below = len(code.stack_before)
            taken += [stack.pop() for _ in range(below)]
            depth = max(taken, default=0) + (code.name in _TUPLES)
            deepest = max(deepest, depth)
            stack += [mark if one is pickletools.markobject else depth for one in code.stack_after]
    except Exception:  # whoever reads it says what is wrong with it
        return deepest
    return deepest
