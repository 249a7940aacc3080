"""What a damaged trace must still hold: the events of the undamaged text, each with the byte at which it ends.

An oracle of its own: the text is read with the standard library's decoder and times with exact decimals. `judge` puts
a damaged text through a parser and compares.
"""

from __future__ import annotations

import gzip
import json
import zlib
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal
from typing import TYPE_CHECKING, Any, Final

import polars as pl
from damage import BOUNDARY, WHOLE

from tracetool.errors import UnreadableTrace

if TYPE_CHECKING:
    import random
    from collections.abc import Callable
    from pathlib import Path

    from tracetool.tables import Tables

KEY: Final = ("start_ns", "dur_ns", "name")
_GZIP: Final = b"\x1f\x8b"
_DECODER: Final = json.JSONDecoder(parse_float=Decimal)
_LEFT_OUT: Final = ("python_function", "Trace")
"""Categories that are no rows of table `events`: frames are counted, the profiler's span is the trace's window."""
_PACKED_PIECE: Final = 16


@dataclass(frozen=True)
class Intact:
    """An undamaged text and its events: `start_ns, dur_ns, name`, `end` = the byte behind the event's brace."""

    text: bytes
    events: pl.DataFrame

    def before(self, byte: int) -> pl.DataFrame:
        """Return the events that stand wholly before a byte."""
        return self.events.filter(pl.col("end") <= byte)

    def behind(self, byte: int) -> pl.DataFrame:
        """Return the events that stand wholly behind the first so many bytes."""
        return self.events.filter(pl.col("begin") >= byte)


def unpacked(path: Path) -> bytes:
    """Return the text of a trace."""
    content = path.read_bytes()
    return gzip.decompress(content) if content.startswith(_GZIP) else content


def unpacked_beginning(path: Path, most: int) -> bytes:
    """Return the text of a trace; of a long one its first `most` bytes, up to a whole event and closed behind it."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
        text: bytes = stream.read(most)
        if not stream.read(1):
            return text
    *_, last = BOUNDARY.finditer(text)
    return text[: last.start() + 1] + b"]}"


def sliced(text: bytes, ends: list[int], at: int, count: int) -> bytes:
    """Return the trace with only `count` of its events, from the one numbered `at` on, and all that stands around them.

    `ends` are the places of BOUNDARY in the text.
    """
    opening = text.index(b"[", text.index(b'"traceEvents"')) + 1
    first = BOUNDARY.search(text, ends[at]) if at else None
    begin = first.end() if first else opening
    last = min(at + count, len(ends) - 1)
    tail = BOUNDARY.search(text, ends[-1])
    rest = text[tail.end() :] if tail else b""
    return text[:opening] + text[begin : ends[last] + 1] + b"," + rest


def read(text: bytes) -> Intact:
    """Read an undamaged text event by event."""
    # one character a byte: places in the text are bytes
    plain = text.decode("latin-1")
    at = plain.index("[", plain.index('"traceEvents"')) + 1
    rows: list[tuple[int, int, int, int, str]] = []
    while True:
        while plain[at] in " \t\r\n,":
            at += 1
        if plain[at] == "]":
            break
        begin = at
        event, at = _DECODER.raw_decode(plain, at)
        row = _row(event)
        if row is not None:
            rows.append((begin, at, *row))
    schema = {"begin": pl.Int64, "end": pl.Int64, "start_ns": pl.Int64, "dur_ns": pl.Int64, "name": pl.String}
    return Intact(text, pl.DataFrame(rows, schema=schema, orient="row"))


def _row(event: dict[str, Any]) -> tuple[int, int, str] | None:
    name = str(event.get("name", "")).encode("latin-1").decode()
    if event["ph"] == "i" and name != "[memory]":
        return _ns(event["ts"]), 0, name
    if event["ph"] != "X" or event.get("cat") in _LEFT_OUT or "dur" not in event or event["dur"] < 0:
        return None
    return _ns(event["ts"]), _ns(event["dur"]), name


def _ns(us: Decimal | int) -> int:
    return int((Decimal(us) * 1000).to_integral_value(ROUND_HALF_EVEN))


def common(whole: bytes, damaged: bytes) -> int:
    """Return how many bytes two texts have in common at their beginning."""
    low, high = 0, min(len(whole), len(damaged))
    while low < high:
        middle = (low + high + 1) // 2
        if whole[:middle] == damaged[:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def common_end(whole: bytes, damaged: bytes) -> int:
    """Return how many bytes two texts have in common at their end."""
    low, high = 0, min(len(whole), len(damaged))
    while low < high:
        middle = (low + high + 1) // 2
        if whole[-middle:] == damaged[-middle:]:
            low = middle
        else:
            high = middle - 1
    return low


def readable(content: bytes) -> bytes:
    """Return the text of a damaged file: packed content as far as it can be unpacked."""
    if not content.startswith(_GZIP):
        return content
    unpacker, text = zlib.decompressobj(wbits=31), []
    for at in range(0, len(content), _PACKED_PIECE):
        try:
            text.append(unpacker.decompress(content[at : at + _PACKED_PIECE]))
        except zlib.error:
            break
    return b"".join(text)


def lost(expected: pl.DataFrame, events: pl.DataFrame | None) -> pl.DataFrame:
    """Return the events that are missing from table `events`, with how many times; None for a table: all of them."""
    wanted = expected.group_by(KEY).len("wanted")
    if events is None:
        return wanted.with_columns(there=pl.lit(0))
    there = events.select("start_ns", "dur_ns", pl.col("name").cast(pl.String).fill_null("")).group_by(KEY).len("there")
    both = wanted.join(there, on=KEY, how="left").with_columns(pl.col("there").fill_null(0))
    return both.filter(pl.col("there") < pl.col("wanted")).sort(KEY)


def slice_of(text: bytes, ends: list[int], chance: random.Random, count: int) -> Intact:
    """Return a slice of a trace at a place drawn at random; places where most events are rows are looked for."""
    best = read(sliced(text, ends, chance.randrange(max(1, len(ends) - count)), count))
    for _ in range(6):
        if best.events.height >= min(count, len(ends)) // 2:
            break
        other = read(sliced(text, ends, chance.randrange(max(1, len(ends) - count)), count))
        best = max(best, other, key=lambda drawn: drawn.events.height)
    return best


@dataclass(frozen=True)
class Judged:
    """What came of one damaged file: `wrong` is empty when all is well; events behind the damage, wanted and lost."""

    wrong: str
    behind: int = 0
    behind_lost: int = 0


def judge(intact: Intact, kind: str, content: bytes, parse: Callable[[bytes], Tables]) -> Judged:
    """Say what is wrong with how a damaged file was read, if anything.

    Nothing but UnreadableTrace may be raised, and that only when no event stands before the damage or when several
    processes are mixed; what stood before the damage is there; text that is no JSON and changed a table is told in
    `sources`.
    """
    text = readable(content)
    same = len(text) if kind in WHOLE else common(intact.text, text)
    before = intact.events if kind in WHOLE else intact.before(same)
    try:
        tables = parse(content)
    except UnreadableTrace as error:
        refused = kind == "merged" and "merged traces" in error.reason
        return Judged("" if refused or not before.height else f"refused although {before.height} events stand: {error}")
    missing = lost(before, tables["events"])
    if missing.height:
        return Judged(f"{missing.height} of {before.height} events before byte {same:,} are lost: {missing.row(0)}")
    source = tables["sources"].row(0, named=True)
    told = not source["complete"] or source["dropped"] or source["repaired"]
    if not told and not _is_json(text) and not _same(tables, parse(intact.text)):
        return Judged("nothing is told of the damage, and tables differ from those of the undamaged text")
    behind = intact.behind(len(intact.text) - common_end(intact.text, text))
    return Judged("", behind.height, lost(behind, tables["events"]).height)


def _same(tables: Tables, others: Tables) -> bool:
    return set(tables) == set(others) and all(tables[name].equals(others[name]) for name in tables if name != "sources")


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
