"""Ways in which a trace file is damaged: each takes the text of a JSON trace and a source of chance."""

from __future__ import annotations

import gzip
import random
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    Damage = Callable[[bytes, random.Random], bytes]

BOUNDARY: Final = re.compile(rb'\},\s*(?=\{\s*"ph")')
_NUMBER: Final = re.compile(rb'("(?:External id|correlation|stream|device|dur|ts|Ev Idx|tid|pid)"\s*:\s*)-?[\d.]+')
_TEXT: Final = re.compile(rb'"name"\s*:\s*"')
_PROCESS: Final = re.compile(rb'"pid"\s*:\s*"?(\d{3,})')
_FOREIGN: Final = (
    b"<!doctype html>\n<title>404 Not Found</title>", b"rank,step,ns\n0,1,2\n", b"\x89PNG\r\n\x1a\n" + bytes(99),
    b'{"data": [{"ph": 1}, {"name": "x"}], "traceEvents": {}}', b"[1, 2, 3]", b'"text"', b"\xef\xbb\xbf",
    b"PK\x03\x04", b"SQLite format 3\0" + bytes(84), b"PAR1" + bytes(32), b"\x1f\x8b" + bytes(64), b"\0" * 5000,
    b"{" * 5000, b"[" * 5000,
)  # fmt: skip
_LOG_LINES: Final = (
    b"\nW1121 06:55:12.913000 140 torch/distributed/run.py:793] \n", b"\n[rank0]: Traceback (most recent call last):\n",
    b'\r 12%|###   | 3/25 [00:01<00:09,  2.4it/s, {"loss": 3.1}]\r',
)  # fmt: skip


def _place(text: bytes, pattern: re.Pattern[bytes], chance: random.Random) -> re.Match[bytes] | None:
    """Return a match near a place drawn at random."""
    at = chance.randrange(len(text))
    return pattern.search(text, at) or pattern.search(text)


def _number(text: bytes, chance: random.Random, *values: bytes) -> bytes:
    for _ in range(20):
        if found := _place(text, _NUMBER, chance):
            text = text[: found.end(1)] + chance.choice(values) + text[found.end() :]
    return text


def cut(text: bytes, chance: random.Random) -> bytes:
    """Return the text as a killed job leaves it."""
    return text[: chance.randrange(len(text))]


def cut_packed(text: bytes, chance: random.Random) -> bytes:
    """Return it packed, the end missing."""
    packed = gzip.compress(text, 1)
    return packed[: chance.randrange(20, len(packed))]


def flipped_packed(text: bytes, chance: random.Random) -> bytes:
    """Return it packed, with one bit of the packed bytes wrong."""
    packed = bytearray(gzip.compress(text, 1))
    packed[chance.randrange(20, len(packed))] ^= 1 << chance.randrange(8)
    return bytes(packed)


def flipped(text: bytes, chance: random.Random) -> bytes:
    """Return the text with one bit wrong."""
    whole = bytearray(text)
    whole[chance.randrange(len(text))] ^= 1 << chance.randrange(8)
    return bytes(whole)


def not_numbers(text: bytes, chance: random.Random) -> bytes:
    """Return it with NaN and Infinity as values."""
    return _number(text, chance, b"NaN", b"Infinity", b"-nan", b"inf")


def large_numbers(text: bytes, chance: random.Random) -> bytes:
    """Return it with integers beyond int64."""
    return _number(text, chance, b"18446744073709551615", b"99999999999999999999999", b"-1e300", b"1e19")


def odd_types(text: bytes, chance: random.Random) -> bytes:
    """Return it with texts, lists and nothing where numbers are meant."""
    return _number(text, chance, b'"Spans"', b'"stream 7"', b"[1, 2]", b'{"a": 1}', b"null", b"true", b"-1", b'""')


def bad_utf8(text: bytes, chance: random.Random) -> bytes:
    """Return it with bytes in names that are not UTF-8."""
    for _ in range(5):
        if found := _place(text, _TEXT, chance):
            text = text[: found.end()] + b"\xff\xc3\x28" + text[found.end() :]
    return text


def unescaped(text: bytes, chance: random.Random) -> bytes:
    """Return it with quotes, control characters and backslashes in names, as written without escaping."""
    for _ in range(5):
        if found := _place(text, _TEXT, chance):
            text = (
                text[: found.end()]
                + chance.choice([b'a"b', b"a\nb\x01", b"C:\\x\\q", b"\\ud800"])
                + text[found.end() :]
            )
    return text


def repeated_keys(text: bytes, chance: random.Random) -> bytes:
    """Return it with keys that come twice in one event."""
    for _ in range(5):
        if found := _place(text, _TEXT, chance):
            text = text[: found.start()] + b'"ts": 5, "args": {}, ' + text[found.start() :]
    return text


def hole(text: bytes, chance: random.Random) -> bytes:
    """Return it without a stretch in the middle."""
    at = chance.randrange(len(text))
    return text[:at] + text[at + chance.randrange(1, 1 + len(text) // 10) :]


def zeros(text: bytes, chance: random.Random) -> bytes:
    """Return it with a block of zeros, as a full disk or a lost page leaves it."""
    at = chance.randrange(len(text))
    size = min(chance.choice([1, 4096]), len(text) - at)
    return text[:at] + bytes(size) + text[at + size :]


def stuttered(text: bytes, chance: random.Random) -> bytes:
    """Return it with a stretch written twice."""
    at = chance.randrange(len(text))
    return text[: at + min(20_000, len(text) - at)] + text[at:]


def shuffled(text: bytes, chance: random.Random) -> bytes:
    """Return it with its events in another order."""
    first, ends = BOUNDARY.search(text), [match.start() for match in BOUNDARY.finditer(text)]
    if first is None or len(ends) == 1:
        return text
    events = BOUNDARY.split(text[first.end() : ends[-1]])
    random.Random(chance.getrandbits(32)).shuffle(events)  # noqa: S311 - a test; one draw, not one an event
    return text[: first.end()] + b"},".join(events) + text[ends[-1] :]


def repeated(text: bytes, chance: random.Random) -> bytes:
    """Return the whole document twice, one behind the other."""
    del chance
    return text + text


def merged(text: bytes, chance: random.Random) -> bytes:
    """Return it with the events of a second process behind its own, as tools that merge ranks write them."""
    first, ends = BOUNDARY.search(text), [match.start() for match in BOUNDARY.finditer(text)]
    if first is None or len(ends) == 1:
        return text
    other = b"%d" % chance.randrange(1, 10)
    events = _PROCESS.sub(lambda match: match[0] + other, text[first.end() : ends[-1]])
    return text[: ends[-1]] + b"}," + events + text[ends[-1] :]


def interleaved(text: bytes, chance: random.Random) -> bytes:
    """Return it with lines of a log between and inside its events, as two writers of one file leave it."""
    for _ in range(3):
        at = chance.randrange(len(text))
        text = text[:at] + chance.choice(_LOG_LINES) + text[at:]
    return text


def foreign(text: bytes, chance: random.Random) -> bytes:
    """Return something else, or its beginning with something else behind it."""
    return text[: chance.choice([0, 0, chance.randrange(len(text))])] + chance.choice(_FOREIGN)


def emptied(text: bytes, chance: random.Random) -> bytes:
    """Return nothing, or a document without events."""
    opening = text.index(b"[", text.index(b'"traceEvents"')) + 1
    return chance.choice([b"", b"\n", b"{}", b"[]", text[:opening] + b"]}", text[:opening], gzip.compress(b"")])


KINDS: Final[dict[str, Damage]] = {
    kind.__name__: kind
    for kind in (
        cut, cut_packed, flipped_packed, flipped, not_numbers, large_numbers, odd_types, bad_utf8, unescaped,
        repeated_keys, hole, zeros, stuttered, shuffled, repeated, merged, interleaved, foreign, emptied,
    )
}  # fmt: skip
WHOLE: Final = frozenset({"shuffled", "repeated"})
"""Kinds after which every event of the text must still be there."""
