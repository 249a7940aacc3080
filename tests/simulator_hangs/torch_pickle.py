"""Writes plain data the way torch's C++ pickler does (torch/csrc/jit/serialization/pickler.cpp, protocol 2).

Text is stored in the memo once and fetched afterwards; lists and dicts are not stored; integers take the smallest
of BININT1, BININT2, BININT and LONG1.
"""

from __future__ import annotations

import struct


def dumps(value: object) -> bytes:
    """Return the pickle of numbers, text, lists, dicts and pairs."""
    out = bytearray(b"\x80\x02")
    _push(out, {}, value)
    return bytes(out + b".")


def _push(out: bytearray, memo: dict[str, int], value: object) -> None:
    if value is None:
        out += b"N"
    elif value is True:
        out += b"\x88"
    elif value is False:
        out += b"\x89"
    elif isinstance(value, int):
        out += _integer(value)
    elif isinstance(value, float):
        out += b"G" + struct.pack(">d", value)
    elif isinstance(value, str):
        _text(out, memo, value)
    elif isinstance(value, tuple):
        first, second = value
        _push(out, memo, first)
        _push(out, memo, second)
        out += b"\x86"
    elif isinstance(value, dict):
        out += b"}("
        for key, item in value.items():
            _push(out, memo, key)
            _push(out, memo, item)
        out += b"u"
    elif isinstance(value, list):
        out += b"](" if value else b"]"
        for item in value:
            _push(out, memo, item)
        if value:
            out += b"e"
    else:
        raise TypeError(type(value))


def _integer(value: int) -> bytes:
    if 0 <= value < 1 << 8:
        return b"K" + bytes([value])
    if 0 <= value < 1 << 16:
        return b"M" + value.to_bytes(2, "little")
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + value.to_bytes(4, "little", signed=True)
    return b"\x8a\x08" + value.to_bytes(8, "little", signed=True)


def _text(out: bytearray, memo: dict[str, int], value: str) -> None:
    index = memo.get(value)
    if index is None:
        index = memo[value] = len(memo)
        raw = value.encode()
        out += b"X" + struct.pack("<I", len(raw)) + raw
        out += b"q" + bytes([index]) if index < 1 << 8 else b"r" + struct.pack("<I", index)
    else:
        out += b"h" + bytes([index]) if index < 1 << 8 else b"j" + struct.pack("<I", index)
