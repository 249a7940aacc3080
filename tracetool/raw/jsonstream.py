"""Reads a JSON document whose bulk is one long array of objects, chunk by chunk, whole or damaged.

The caller's decoder turns the text of a chunk into objects; this module knows no field of them. It finds the array
among the top-level keys, cuts chunks where one object ends and the next begins, and, where the text is damaged,
keeps every object that stands whole: the damaged one is left out and counted.

How a cut is proven: a chunk begins with an object of the array, so text up to some `}` decodes as a list of objects
only if that `}` closes an object of the array. A wrong guess fails to decode; nothing is ever cut silently wrong.
The array's end cannot be found by searching `]` from the back: other arrays may follow. The decoder finds it, by
complaining about what stands after it.

Text format: RFC 8259, plus the damage listed in `Repairs`.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from tracetool.raw.blocks import Blocks

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence
    from pathlib import Path

T = TypeVar("T")

CHUNK_BYTES: Final = 1 << 20
"""Measured: 1 MiB decodes with a sixth less CPU than 8 MiB: the text stays in the cache, its memory is used again."""
LONGEST_OBJECT_BYTES: Final = 16 << 20
"""One object of the array is given up beyond this: an unterminated string must not grow."""
LONGEST_VALUE_BYTES: Final = 64 << 20
"""The same of one top-level value, and of a header in which the array is looked for."""
BARREN_BYTES: Final = 1 << 30
"""Reading stops when this much text held no object at all: a packed bomb, not a trace."""
_FIRST_WINDOW: Final = 64
_MOST_JOINED: Final = 8
"""Pieces that may have to be put together again because a string or a nested list looked like a boundary."""

_STRING: Final = rb'"[^"\\]*(?:\\.[^"\\]*)*"'
_TOKEN: Final = re.compile(_STRING + rb"|[\[\]{}]", re.DOTALL)
_KEY: Final = re.compile(rb"\s*(" + _STRING + rb")\s*:\s*", re.DOTALL)
_SCALAR: Final = re.compile(rb"[^\s,\]}]+(?=[\s,\]}])")
_CLOSING: Final = {b"{": b"}", b"[": b"]"}
_SPACE: Final = re.compile(rb"\s*")
_NOT_A_NUMBER: Final = re.compile(
    rb'(?<!\\)("\s*:\s*)[-+]?(?:nan(?:\([^()"]*\))?|inf(?:inity)?)(?=\s*[,}\]])', re.IGNORECASE
)
_LISTED_NOT_A_NUMBER: Final = re.compile(
    rb"(" + _STRING + rb")|[-+]?(?:nan(?:\([^()]*\))?|inf(?:inity)?)(?=\s*[,}\]])", re.DOTALL | re.IGNORECASE
)
_SPELLED: Final = re.compile(rb"nan|inf", re.IGNORECASE)
_DAMAGED_KEY: Final = re.compile("[\x00-\x1f\ufffd]")
_WHOLE_STRING: Final = re.compile(_STRING, re.DOTALL)
_FIRST_KEY: Final = re.compile(rb'\{\s*"([^"\\]{1,64})"\s*:')
_COMMA: Final = re.compile(rb"\s*,\s*")
_CLOSED: Final = re.compile(rb"[\[},]\s*$")
"""What may stand before the `]` of an array of objects."""
_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")
"""Half a character: the decoder says of it, too, that its input was truncated."""
_NEAR_BYTES: Final = 1 << 13
_TRUNCATED: Final = "Input data was truncated"
_REPLACEMENT: Final = "\ufffd".encode()
_BYTE: Final = re.compile(r"\(byte (\d+)\)")
_AFTER_ARRAY: Final = re.compile(rb'\]\s*(?:,\s*"[^"\\]{1,64}"\s*:|\}\s*$)')


_PEEK_BYTES: Final = 4096
_EVENT_ARRAY: Final = re.compile(rb'\[\s*\{(?:[^"{}\[\]]|"(?!ph")[^"\\]*")*"ph"\s*:\s*"')
"""An array whose first object has a key `ph` before any nested value."""
_BROKEN: Final = (ValueError, RecursionError)


@dataclass
class Repairs:
    """What was wrong with the text and what was done about it."""

    dropped: int = 0
    """Objects left out because their text is broken."""
    replaced_bytes: int = 0
    """Places where bytes that are not UTF-8 were replaced by U+FFFD."""
    not_numbers: int = 0
    """NaN and Infinity, read as null."""
    trailing_commas: int = 0
    """Commas before a closing bracket, ignored."""
    complete: bool = False
    """The document was read to its proper end."""
    notes: list[str] = field(default_factory=list)
    first_damage: int | None = None
    """Byte of the unpacked text near which the first damage stands."""

    def at(self, byte: int) -> None:
        """Remember where damage stands; the first place is kept."""
        if self.first_damage is None:
            self.first_damage = byte


class ArrayStream(Generic[T]):
    """One pass over a document `{…, KEY: [{…}, …], …}` or a bare `[{…}, …]`.

    `decode` turns the bytes of a JSON array into a list of T, one an object; it raises ValueError (as msgspec's and
    Unicode's errors are) or RecursionError on broken text. `first_keys` are names with which an object may begin.
    Iterate for the lists of objects; afterwards `values` holds the raw text of the other top-level keys that are in
    `wanted` (in damaged text it may go on behind the value's end), `repairs` tells the damage, `array_found` whether
    there was an array, `size` how many bytes were read.
    """

    def __init__(
        self,
        path: Path,
        key: str,
        decode: Callable[[bytes], list[T]],
        *,
        first_keys: Sequence[str],
        wanted: frozenset[str],
    ) -> None:
        self.values: dict[str, bytes] = {}
        self.repairs = Repairs()
        self.array_found = False
        self.size = 0
        self._path = path
        self._key = key
        self._decode = decode
        self._first_keys = list(first_keys)
        self._wanted = wanted
        self._array_start = re.compile(rb'"' + re.escape(key.encode()) + rb'"\s*:\s*(?=\[)')
        self._boundary, self._object_start = _patterns(self._first_keys)
        self._text = b""  # what has been read and not yet used up to _at
        self._at = 0
        self._offset = 0  # byte of the document at which _text begins
        self._ended = False
        self._barren = 0
        self._after: int | None = None
        self._short = False
        self._forgetting = False

    def __iter__(self) -> Iterator[list[T]]:
        """Yield lists of objects in the order of the text. Raises OSError when the file cannot be opened."""
        with Blocks(self._path, CHUNK_BYTES) as blocks:
            self._blocks = iter(blocks)
            yield from self._document()
            if blocks.damage:
                self.repairs.complete = False
                self.repairs.notes.append(f"{blocks.damage} after byte {self.size:,} of the unpacked text")

    # ---- text ----

    def _more(self) -> bool:
        """Read one block behind the text that is left; say False at the end of the file."""
        block = next(self._blocks, b"")
        if not block:
            self._ended = True
            return False
        self.size += len(block)
        # before the array is found the text is kept: a damaged header is searched again from its beginning
        used = self._at if self.array_found or self._forgetting or len(self._text) > LONGEST_VALUE_BYTES else 0
        self._text = self._text[used:] + block if used < len(self._text) else block
        self._offset += used
        self._at -= used
        return True

    def _forget(self) -> None:
        """Let go of the text before this place, from now on: what was kept of a header is no use any more."""
        self._collect(self._text)
        self._offset += self._at
        self._text, self._at = self._text[self._at :], 0
        self._forgetting = True

    def _skip_space(self) -> bytes:
        """Move to the next character that is no white space and return it, b"" at the end."""
        while True:
            space = _SPACE.match(self._text, self._at)
            self._at = space.end() if space else self._at
            if self._at < len(self._text):
                return self._text[self._at : self._at + 1]
            if not self._more():
                return b""

    def _match(self, pattern: re.Pattern[bytes]) -> re.Match[bytes] | None:
        """Match here, reading on while the text is too short to tell."""
        while True:
            found = pattern.match(self._text, self._at)
            if found and (found.end() < len(self._text) or self._ended):
                return found
            if len(self._text) - self._at > LONGEST_VALUE_BYTES:
                return found
            twice = 2 * len(self._text)
            if not self._more():
                return found
            while len(self._text) < twice and self._more():
                pass

    def _value_end(self) -> int | None:
        """Return where the value that begins here ends; None when it does not."""
        while True:
            end = _value_end(self._text, self._at)
            if end is not None:
                return end
            if not self.array_found and self._array_start.search(self._text, self._at):
                return None  # this value would swallow the array: its text is damaged
            if len(self._text) - self._at > LONGEST_VALUE_BYTES:
                return None
            twice = 2 * len(self._text)  # looked at again from its beginning: seldom, then
            if not self._more():
                return None
            while len(self._text) < twice and self._more():
                pass

    # ---- document ----

    def _document(self) -> Iterator[list[T]]:
        self._more()
        if self._text.startswith(b"\xef\xbb\xbf"):
            self._at = 3
        first = self._skip_space()
        if first == b"[":
            yield from self._array()
            self.repairs.complete &= not self._skip_space()
        elif first == b"{":
            self._at += 1
            yield from self._members()
        elif first:
            yield from self._salvage()

    def _members(self) -> Iterator[list[T]]:
        while mark := self._skip_space():
            if mark == b"}":
                self._at += 1
                if not self.array_found and self._array_start.search(self._text):
                    yield from self._salvage()
                    return
                self.repairs.complete = True
                if self._skip_space():
                    self.repairs.complete = False
                    self._note("text follows the end of the document")
                return
            if mark == b",":
                self._at += 1
                continue
            found = self._match(_KEY)
            if found is None:
                break
            key = found[1][1:-1].decode("utf-8", "replace")
            if _DAMAGED_KEY.search(key):
                self.repairs.replaced_bytes += 1
                self._note("a top-level key is damaged: what it holds was not read")
            self._at = found.end()
            if self._skip_space() == b"[" and (key == self._key or self._holds_objects()):
                if key != self._key:
                    self._note(f'the events stand under the key "{key[:40]}" instead of "{self._key}"')
                yield from self._array()
                continue
            end = self._value_end()
            if end is None:
                break
            if key in self._wanted:
                self.values[key] = self._text[self._at : end]
            self._at = end
        else:
            if self.array_found and self.repairs.complete:
                self.repairs.complete = False
                self._note("the file ends behind its events, before the document does")
            if self.array_found or not self._array_start.search(self._text):
                return
        yield from self._salvage()

    def _holds_objects(self) -> bool:
        """Say whether the array here looks like the wanted one under a damaged key."""
        while len(self._text) - self._at < _PEEK_BYTES and self._more():
            pass
        return not self.array_found and bool(_EVENT_ARRAY.match(self._text, self._at, self._at + _PEEK_BYTES))

    def _salvage(self) -> Iterator[list[T]]:
        """Go on after broken text between top-level keys: find the array, else the wanted values, by their names."""
        if not self.array_found:
            self._note("the text before the events is damaged")
            self._at = 0
            while not (found := self._array_start.search(self._text, self._at)):
                self._at = max(0, len(self._text) - _PEEK_BYTES)
                if len(self._text) > LONGEST_VALUE_BYTES:
                    self._forget()
                if self._offset > BARREN_BYTES:
                    self._note(f"reading stopped: no event in the first {BARREN_BYTES >> 30} GiB of text")
                if self._offset > BARREN_BYTES or not self._more():
                    self._at = len(self._text)
                    return
            self._collect(self._text[: found.start()])
            self._at = found.end()
            yield from self._array()
            yield from self._members()
            self.repairs.complete = False
            return
        self._note("the text after the events is damaged")
        while len(self._text) - self._at < LONGEST_VALUE_BYTES and self._more():
            pass
        self._collect(self._text[self._at :])
        self.repairs.complete = False
        self._at = len(self._text)
        while self._more():
            self._at = len(self._text)

    def _collect(self, text: bytes) -> None:
        for key in sorted(self._wanted - set(self.values)):
            if found := re.search(rb'"' + re.escape(key.encode()) + rb'"\s*:\s*', text):
                # a number at the very end is whole; the beginning of a value is better than nothing
                self.values[key] = text[found.end() : _value_end(text + b" ", found.end())]

    def _note(self, what: str) -> None:
        self.repairs.at(self._offset + self._at)
        self.repairs.notes.append(f"{what} (near byte {self._offset + self._at:,})")

    # ---- the array ----

    def _array(self) -> Iterator[list[T]]:
        """Yield the objects of the array that begins here and move behind its end."""
        self.array_found = True
        self._at += 1
        if self._skip_space() == b"]":
            self._at += 1
            self.repairs.complete = True
            return
        self._learn_first_key()
        wanted = CHUNK_BYTES
        while True:
            while len(self._text) - self._at < wanted and self._more():
                pass
            self._offset += self._at
            self._text = self._text[self._at :]
            self._at = 0
            found = False
            for objects in self._objects():
                found = found or bool(objects)
                yield objects
            if self._short:
                self._short = False
                wanted = 2 * len(self._text)
                continue
            wanted = CHUNK_BYTES
            self._barren = 0 if found else self._barren + self._at
            after, self._after = self._after, None
            if after is not None:
                self._at = after
                self.repairs.complete = True
                return
            if self._ended:
                self._at = len(self._text)
                self._note("the file ends inside its events")
                return
            comma = _COMMA.match(self._text, self._at)
            self._at = comma.end() if comma else self._at
            if self._barren > BARREN_BYTES:
                self._note(f"reading stopped: no event in the last {BARREN_BYTES >> 30} GiB of text")
                return

    def _learn_first_key(self) -> None:
        """Add the name with which the first object begins to those that mark a boundary."""
        first = self._match(_FIRST_KEY)
        key = first[1].decode("utf-8", "replace") if first else ""
        if key and key not in self._first_keys:
            self._first_keys.append(key)
            self._boundary, self._object_start = _patterns(self._first_keys)

    def _cuts(self) -> Iterator[int]:
        """Yield where an object of the text may end: near the end first, then ever farther from it."""
        size = len(self._text)
        if self._ended:
            yield size
            return
        near = [match.start() + 1 for match in self._boundary.finditer(self._text, max(0, size - _NEAR_BYTES))]
        yield from near[:-3:-1]
        every = [match.start() + 1 for match in self._boundary.finditer(self._text)]
        back = 1
        while back < len(every):
            yield every[-back]
            back *= 2
        if every:
            yield every[0]

    def _objects(self) -> Iterator[list[T]]:
        """Yield the objects of the text up to a cut that decodes, and move there.

        Sets _after when the array ends in the text, _short when the text holds no whole object yet.
        """
        if (self._ended or not self._boundary.search(self._text)) and (
            end := self._guessed_end(self._text)
        ) is not None:
            try:
                objects = self._decode(_legible(_listed(self._text, end)))
            except _BROKEN:
                pass  # a wrong guess or damage: both are found below
            else:
                self._after = end + 1
                yield objects
                return
        self._at = 0
        for cut in self._cuts():
            self._at = cut
            try:
                objects = self._decode(_legible(_listed(self._text, cut)))
            except _BROKEN as error:
                if str(error) != _TRUNCATED:
                    break
            else:
                yield objects
                return
        else:
            # no cut decodes, and nothing is wrong but that something is missing
            surrogate = bool(_SURROGATE.search(self._text, 0, self._at))
            if not self._ended and not surrogate:
                if len(self._text) < LONGEST_OBJECT_BYTES:
                    self._short = True
                    self._at = 0
                    return
                if not self._at:
                    yield self._whole(self._text[:CHUNK_BYTES])
                    self._give_up()
                    return
        yield from self._recovered(self._text[: self._at])

    def _give_up(self) -> None:
        """Leave out an object that does not end, and go on behind the next boundary."""
        self._drop(0)
        self._note(f"an event longer than {LONGEST_OBJECT_BYTES >> 20} MiB was left out")
        while not self._ended:
            self._at = max(0, len(self._text) - _PEEK_BYTES)
            if self._more() and (found := self._boundary.search(self._text, self._at)):
                self._at = found.end()
                return
            self._barren += CHUNK_BYTES
            if self._barren > BARREN_BYTES:
                break
        self._at = len(self._text)

    def _guessed_end(self, text: bytes) -> int | None:
        """Return where the array most likely ends: at a `]` before another key or the end of the document."""
        for match in _AFTER_ARRAY.finditer(text, max(0, len(text) - (1 << 18))):
            if _CLOSED.search(text, max(0, match.start() - 64), match.start()):
                return match.start()
        return None

    # ---- damage ----

    def _drop(self, at: int) -> None:
        self.repairs.dropped += 1
        self.repairs.at(self._offset + at)

    def _recovered(self, text: bytes) -> Iterator[list[T]]:
        """Yield every object that stands whole in damaged text; set _after when the array ends in it."""
        rest = self._text[self._at :]
        text = self._mended(text)
        self._text, self._at = text + rest, len(text)
        starts, ends = self._pieces(text)
        piece, window = 0, len(starts)
        while piece < len(starts):
            stop = min(len(starts), piece + window)
            begin = starts[piece]
            try:
                objects = self._decode(b"[" + text[begin : ends[stop - 1]] + b"]")
            except _BROKEN as error:
                at = _error_at(error)
                if at is not None and "trailing" in str(error):
                    # "trailing characters" names the byte behind the first of them, "trailing comma" the bracket
                    comma = "comma" in str(error)
                    end = begin + at - 1 if comma else text.rfind(b"]", begin, begin + at - 2)
                    closed = self._closed(text[begin:end], comma=comma)
                    if closed is not None and self._boundary.search(text, end):
                        # a stray bracket, or the end of a list inside a broken object: the array goes on behind it
                        yield closed
                        self._drop(end)
                        piece, window = max(piece + 1, bisect_right(starts, end)), _FIRST_WINDOW
                        continue
                    if closed is not None:
                        yield closed
                        if end < len(text):
                            self.repairs.trailing_commas += comma
                            self._after = end + 1
                        return
                if stop - piece > 1:
                    # text up to the error decodes: take that first, then look at the piece that holds it
                    reached = bisect_right(starts, begin + at - 1) - 1 if at is not None else (piece + stop) // 2
                    window = max(1, min(reached, stop - 1) - piece)
                    continue
                piece += yield from self._one(text, starts, ends, piece)
                window = _FIRST_WINDOW
                if self._after is not None:
                    return
            else:
                yield objects
                piece = stop
                window = window * 4 if window > 1 else 1

    def _closed(self, body: bytes, *, comma: bool) -> list[T] | None:
        """Return the objects up to what seems to be the array's end; None when it closes something else."""
        try:
            return self._decode(b"[" + (body.rstrip()[:-1] if comma else body) + b"]")
        except _BROKEN:
            return None

    def _mended(self, text: bytes) -> bytes:
        """Replace bytes that are not UTF-8, and NaN and Infinity that stand as values."""
        try:
            text.decode()
        except UnicodeDecodeError as error:
            self.repairs.at(self._offset + error.start)
            before = text.count(_REPLACEMENT)
            text = text.decode("utf-8", "replace").encode()
            self.repairs.replaced_bytes += text.count(_REPLACEMENT) - before
        text, count = _NOT_A_NUMBER.subn(rb"\1null", text)
        self.repairs.not_numbers += count
        return text

    def _pieces(self, text: bytes) -> tuple[list[int], list[int]]:
        """Return where the objects of the text may begin and end."""
        space = _SPACE.match(text)
        starts, ends = [space.end() if space else 0], []
        for match in self._boundary.finditer(text):
            ends.append(match.start() + 1)
            starts.append(match.end())
        return starts, [*ends, len(text)]

    def _one(self, text: bytes, starts: list[int], ends: list[int], piece: int) -> Generator[list[T], None, int]:
        """Yield what can be had of one piece that does not decode; return how many pieces are done with."""
        begin, end = starts[piece], ends[piece]
        broken = text[begin:end]
        for more in range(1, min(_MOST_JOINED, len(starts) - piece)):  # what looked like a boundary may be none
            try:
                objects = self._decode(b"[" + text[begin : ends[piece + more]] + b"]")
            except _BROKEN as error:
                if str(error) != _TRUNCATED:
                    break
            else:
                yield objects
                return more + 1
        # the pattern that spares strings is dear: most broken text has neither word
        spelled = bool(_SPELLED.search(broken))
        numbers = sum(1 for match in _LISTED_NOT_A_NUMBER.finditer(broken) if not match[1]) if spelled else 0
        if numbers:
            mended = _LISTED_NOT_A_NUMBER.sub(lambda match: match[1] or b"null", broken)
            try:
                objects = self._decode(b"[" + mended + b"]")
            except _BROKEN:
                pass  # something else is broken too: the piece is looked at as it was
            else:
                self.repairs.not_numbers += numbers
                yield objects
                return 1
        if piece == len(starts) - 1 and (closing := self._closing(broken)) is not None:
            self._after = begin + closing + 1
            broken = broken[:closing]
        if broken.strip(b" \t\r\n,"):
            yield from self._parts(broken, begin)
        return 1

    def _closing(self, text: bytes) -> int | None:
        """Return where the array ends in the last, broken piece of the text."""
        for match in _AFTER_ARRAY.finditer(text):
            if _CLOSED.search(text, max(0, match.start() - 64), match.start()):
                return match.start()
        return None

    def _parts(self, text: bytes, begin: int) -> Iterator[list[T]]:
        """Yield the whole objects inside one broken piece: the text between two objects may be what is damaged."""
        inner = [match.start() for match in self._object_start.finditer(text)][:_FIRST_WINDOW]
        bounds = sorted({0, *inner})
        lost = 0
        for start, stop in zip(bounds, [*bounds[1:], len(text)], strict=True):
            objects = self._whole(text[start:stop])
            if objects:
                yield objects
            else:
                lost += 1
        # a whole object with something odd behind it: nothing but the odd text is lost
        self.repairs.dropped += max(lost, 1)
        self.repairs.at(self._offset + begin)

    def _whole(self, text: bytes) -> list[T]:
        """Return the object with which the text begins, whatever stands behind it; nothing when it is broken."""
        part = text[: text.rfind(b"}") + 1]
        for _ in range(_MOST_JOINED):
            if not part:
                break
            try:
                return self._decode(b"[" + part + b"]")
            except _BROKEN as error:
                at = _error_at(error)
                part = part[: part.rfind(b"}", 0, at - 1 if at else len(part) - 1) + 1]
        return []


def _listed(text: bytes, end: int) -> bytes:
    """Return the text up to `end` in brackets; joined from a view, so that it is copied once."""
    return b"".join((b"[", memoryview(text)[:end], b"]"))


def _legible(text: bytes) -> bytes:
    """Return the text unchanged; raises UnicodeDecodeError: a decoder does not look at what it passes over."""
    if not text.isascii():
        text.decode()
    return text


def _patterns(first_keys: Sequence[str]) -> tuple[re.Pattern[bytes], re.Pattern[bytes]]:
    """Return the patterns of the text between two objects (ends before the second) and of an object's beginning."""
    names = b"|".join(re.escape(name.encode()) for name in first_keys)
    start = rb'\{\s*"(?:' + names + rb')"\s*:'
    return re.compile(rb"\}\s*,\s*(?=" + start + rb")"), re.compile(start)


def _value_end(text: bytes, at: int) -> int | None:
    """Return where the JSON value that begins at `at` ends; None when the text ends first or does not fit."""
    first = text[at : at + 1]
    if first not in (b"{", b"["):
        found = (_WHOLE_STRING if first == b'"' else _SCALAR).match(text, at)
        return found.end() if found else None
    closing = []
    for token in _TOKEN.finditer(text, at):
        mark = token[0]
        if mark in _CLOSING:
            closing.append(_CLOSING[mark])
        elif mark in (b"}", b"]"):
            if mark != closing.pop():
                return None
            if not closing:
                return token.end()
    return None


def _error_at(error: BaseException) -> int | None:
    """Return the byte a decoder's message names."""
    found = _BYTE.search(str(error))
    return int(found[1]) if found else None
