"""Pickles put together by hand: what a hostile file can do and `pickle.dump` never would."""

from __future__ import annotations

import struct
from typing import Any


class Op:
    """A part of a pickle: it leaves one value on the unpickler's stack."""

    def __init__(self, code: bytes) -> None:
        self.code = code

    def __call__(self, *arguments: Any) -> Op:
        """Call the value."""
        return Op(self.code + assembled(arguments) + b"R")

    def made(self, *arguments: Any) -> Op:
        """Make a value of the class without calling it."""
        return Op(self.code + assembled(arguments) + b"\x81")

    def given(self, state: Any) -> Op:
        """Give the value a state."""
        return Op(self.code + assembled(state) + b"b")

    def filled(self, key: Any, value: Any) -> Op:
        """Put an item into the value."""
        return Op(self.code + assembled(key) + assembled(value) + b"s")

    def appended(self, value: Any) -> Op:
        """Append an item to the value."""
        return Op(self.code + assembled(value) + b"a")

    def kept(self, number: int) -> Op:
        """Note the value, for `again`."""
        return Op(self.code + b"r" + struct.pack("<I", number))


def named(module: str, name: str) -> Op:
    """What a module has under a name."""
    return Op(f"c{module}\n{name}\n".encode())


def again(number: int) -> Op:
    """The value that was noted."""
    return Op(b"j" + struct.pack("<I", number))


def in_order(*values: Any) -> Op:
    """Make all values, and leave the last one."""
    return Op(b"0".join(assembled(value) for value in values))


def assembled(value: Any) -> bytes:
    """Return the code that makes a value."""
    if isinstance(value, Op):
        return value.code
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        data = value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)
        return b"\x8a" + bytes([len(data)]) + data
    if isinstance(value, str):
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
    if isinstance(value, tuple):
        return b"(" + b"".join(map(assembled, value)) + b"t"
    if isinstance(value, list):
        return b"](" + b"".join(map(assembled, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(assembled(key) + assembled(item) for key, item in value.items()) + b"u"
    raise TypeError(f"no code for a {type(value).__name__}")


def pickled(value: Any) -> bytes:
    """Return the whole pickle of a value."""
    return b"\x80\x02" + assembled(value) + b"."
