"""Ways in which a trace file is damaged: each takes the text of a JSON trace and a source of chance."""

from __future__ import annotations

import gzip
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    Damage = Callable[[bytes, random.Random], bytes]

BOUNDARY: Final = re.compile(rb'\},\s*(?=\{\s*"ph")')
_NUMBER: Final = re.compile(rb'("(?:External id|correlation|stream|device|dur|ts|Ev Idx|tid|pid)"\s*:\s*)-?[\d.]+')
_TEXT: Final = re.compile(rb'"name"\s*:\s*"')


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
    chance.shuffle(events)
    return text[: first.end()] + b"},".join(events) + text[ends[-1] :]


def repeated(text: bytes, chance: random.Random) -> bytes:
    """Return the whole document twice, one behind the other."""
    del chance
    return text + text


KINDS: Final[dict[str, Damage]] = {
    kind.__name__: kind
    for kind in (
        cut, cut_packed, flipped_packed, flipped, not_numbers, large_numbers, odd_types, bad_utf8, unescaped,
        repeated_keys, hole, zeros, stuttered, shuffled, repeated,
    )
}  # fmt: skip
