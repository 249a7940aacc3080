"""Arithmetic on sets of half-open intervals [start_ns, end_ns), per key, vectorised and exact in int64.

A *span frame* has int64 columns `start_ns` and `end_ns` and, where several sets lie in one frame, key columns `by`.
Rows may overlap, repeat and stand in any order; a row with end_ns <= start_ns covers nothing. Null is a key like any
other. *Islands* are what a set comes down to: disjoint, neither empty nor touching, sorted by (by, start_ns).

Every function is linear after one sort. None compares intervals pairwise. The sets of many keys are laid one after
another on one line and worked on as one set: a key costs nothing by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, overload

import numpy as np
import polars as pl

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Ints = NDArray[np.int64]

ENDS = ("start_ns", "end_ns")
_LINE_NS: Final = 2**62
"""Length of a line on which the sets of many keys are laid; what does not fit goes on another one."""


def spans(frame: pl.DataFrame, by: str | Sequence[str] = ()) -> pl.DataFrame:
    """Turn rows with `start_ns` and `dur_ns` (ns) into a span frame, row by row.

    Returns columns by…, start_ns, end_ns in the order of the rows.
    """
    return frame.select(
        *_keys(by),
        pl.col("start_ns").cast(pl.Int64),
        (pl.col("start_ns") + pl.col("dur_ns")).cast(pl.Int64).alias("end_ns"),
    )


def union(spans: pl.DataFrame, by: str | Sequence[str] = ()) -> pl.DataFrame:
    """Return the islands of each key's set (columns by…, start_ns, end_ns); touching intervals merge.

    With reach = the running maximum of ends, a row opens an island when it starts after the reach of all rows before
    it, and the island ends at the reach of the last row before the next opening.
    """
    keys, lines = _lines([spans], by)
    return _framed(keys, [line.cut(*_islands(*line.sets[0])) for line in lines])


def _islands(start: Ints, end: Ints) -> tuple[Ints, Ints]:
    """Return starts and ends of the islands of one set."""
    some = end > start
    if not some.all():
        start, end = start[some], end[some]
    if not len(start):
        return start, end
    if (start[1:] < start[:-1]).any():
        order = np.argsort(start, kind="stable")  # fast on rows that are nearly in order
        start, end = start[order], end[order]
    reach = np.maximum.accumulate(end)
    opens = np.flatnonzero(start[1:] > reach[:-1]) + 1
    return start[np.append(0, opens)], reach[np.append(opens - 1, len(reach) - 1)]


def intersect(a: pl.DataFrame, b: pl.DataFrame, by: str | Sequence[str] = ()) -> pl.DataFrame:
    """Return the islands of what both a and b cover, key by key."""
    return _sweep(a, b, by, covered_by_b=True)


def subtract(a: pl.DataFrame, b: pl.DataFrame, by: str | Sequence[str] = ()) -> pl.DataFrame:
    """Return the islands of what a covers and b does not, key by key."""
    return _sweep(a, b, by, covered_by_b=False)


def gaps(windows: pl.DataFrame, spans: pl.DataFrame, by: str | Sequence[str] = ()) -> pl.DataFrame:
    """Return the islands of the windows that no span covers, key by key."""
    return subtract(windows, spans, by)


@overload
def length(spans: pl.DataFrame, by: tuple[()] = ...) -> int: ...
@overload
def length(spans: pl.DataFrame, by: str | list[str] | tuple[str, *tuple[str, ...]]) -> pl.DataFrame: ...
def length(spans: pl.DataFrame, by: str | Sequence[str] = ()) -> int | pl.DataFrame:
    """Return the ns that the union covers: a number, or with keys a frame (by…, ns) with a row for every key.

    A key whose intervals are all empty has 0 ns.
    """
    keys, lines = _lines([spans], by)
    found = [line.cut(*_islands(*line.sets[0])) for line in lines]
    if keys is None:
        return sum(int((end - start).sum()) for _, start, end in found)
    ns = np.zeros(keys.height, np.int64)
    for key, start, end in found:
        np.add.at(ns, key, end - start)
    return keys.with_columns(ns=ns)


def covered(windows: pl.DataFrame, spans: pl.DataFrame, by: str | Sequence[str] = ()) -> pl.Series:
    """Return for each row of `windows`, in row order, how many ns of it the spans of its key cover.

    Windows may overlap each other: each is answered by itself. The Series is int64 and named `ns`.
    """
    ns = np.zeros(windows.height, np.int64)
    for line in _lines([windows, spans], by)[1]:
        start, end = line.sets[0]
        islands = _islands(*line.sets[1])
        ns[line.rows[0]] = _covered_before(islands, np.maximum(start, end)) - _covered_before(islands, start)
    return pl.Series("ns", ns, dtype=pl.Int64)


def cover(windows: pl.DataFrame, layers: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Cut every window into maximal segments by the first layer that covers them.

    `windows` is a span frame whose rows may overlap, `layers` are span frames in order of precedence. Returns columns
    window (row number in `windows`, UInt32), start_ns, end_ns, layer (Int32: index into `layers`, -1 where none
    covers), sorted by (window, start_ns). The segments of a window partition it; an empty window has none.
    """
    start, end = _ends(windows)
    cuts, labels = _labelled(start, end, layers)
    number = np.arange(windows.height, dtype=np.int64)
    keep = end > start
    start, end, number = start[keep], end[keep], number[keep]
    # segment i of the whole line is [cuts[i], cuts[i + 1]) and has labels[i]
    first = np.searchsorted(cuts, start, side="right") - 1
    count = np.searchsorted(cuts, end, side="left") - first
    row = np.repeat(np.arange(len(start)), count)
    offset = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
    segment = first[row] + offset
    return pl.DataFrame(
        {
            "window": pl.Series(number[row], dtype=pl.UInt32),
            "start_ns": np.maximum(cuts[segment], start[row]),
            "end_ns": np.minimum(cuts[segment + 1], end[row]),
            "layer": pl.Series(labels[segment], dtype=pl.Int32),
        }
    )


def _labelled(start: Ints, end: Ints, layers: Sequence[pl.DataFrame]) -> tuple[Ints, Ints]:
    """Cut the line from the first to the last window end where the first covering layer changes.

    Returns the cuts and, for each stretch between two of them, its layer.
    """
    if not (end > start).any():
        return np.zeros(1, np.int64), np.zeros(0, np.int64)
    lowest, highest = int(start.min()), int(end.max())
    islands = [union(layer) for layer in layers]
    times = [np.array([lowest, highest], dtype=np.int64)]
    steps = [np.zeros(2, np.int64)]
    for index, layer in enumerate(islands):
        times += list(_ends(layer))
        steps += [np.full(layer.height, index + 1), np.full(layer.height, -index - 1)]
    time, step = np.concatenate(times), np.concatenate(steps)
    order = np.argsort(time, kind="stable")
    time, step = time[order], step[order]
    label = np.full(len(time), -1, np.int64)
    for index in reversed(range(len(layers))):
        on = np.cumsum((step == index + 1).astype(np.int64) - (step == -index - 1).astype(np.int64)) > 0
        label[on] = index
    last_at_time = np.append(time[1:] > time[:-1], True)
    time, label = time[last_at_time], label[last_at_time]
    changes = np.append(True, label[1:] != label[:-1]) | (time == lowest) | (time == highest)
    inside = changes & (time >= lowest) & (time <= highest)
    return time[inside], label[inside][:-1]


def _sweep(a: pl.DataFrame, b: pl.DataFrame, by: str | Sequence[str], *, covered_by_b: bool) -> pl.DataFrame:
    """Return the islands of what a covers and b does, or does not."""
    keys, lines = _lines([a, b], by)
    found = []
    for line in lines:
        of_a, of_b = (_islands(*ends) for ends in line.sets)
        found.append(line.cut(*_sweep_one(of_a, of_b, covered_by_b=covered_by_b)))
    return _framed(keys, found)


def _sweep_one(a: tuple[Ints, Ints], b: tuple[Ints, Ints], *, covered_by_b: bool) -> tuple[Ints, Ints]:
    """Do so for islands of one set, counting those of a and of b that are open."""
    time = np.concatenate((*a, *b))
    order = np.argsort(time, kind="stable")
    time = time[order]
    size, other = len(a[0]), len(b[0])
    open_a = np.cumsum(np.repeat(np.array([1, -1, 0], np.int64), [size, size, 2 * other])[order])
    open_b = np.cumsum(np.repeat(np.array([0, 1, -1], np.int64), [2 * size, other, other])[order])
    good = (open_a > 0) & ((open_b > 0) == covered_by_b)
    good = good[:-1] & (time[1:] > time[:-1])
    return time[:-1][good], time[1:][good]


def _covered_before(islands: tuple[Ints, Ints], at: Ints) -> Ints:
    """Return how many ns of the islands of one set lie before each time."""
    start, end = islands
    if not len(start):
        return np.zeros(len(at), np.int64)
    before = np.cumsum(end - start) - (end - start)
    last = np.searchsorted(start, at, side="right") - 1
    found = np.maximum(last, 0)
    return np.where(last < 0, 0, before[found] + np.minimum(at, end[found]) - start[found])


class _Line(NamedTuple):
    """Sets of several keys, one after another: the one of key i is moved by (i − first) · width − origin."""

    first: int
    width: int
    """0 where the line holds one key, whose times are left as they are."""
    origin: int
    rows: list[NDArray[np.bool_] | slice]
    """Rows of each frame that lie on this line."""
    sets: list[tuple[Ints, Ints]]

    def cut(self, start: Ints, end: Ints) -> tuple[Ints, Ints, Ints]:
        """Return the key of each interval on the line, and its ends in the time of its key."""
        if not self.width:
            return np.full(len(start), self.first), start, end
        place = start // self.width
        back = self.origin - place * self.width
        return self.first + place, start + back, end + back


def _lines(frames: Sequence[pl.DataFrame], by: str | Sequence[str]) -> tuple[pl.DataFrame | None, list[_Line]]:
    """Return the distinct keys of the frames, sorted, null first, and their sets on as few lines as hold them.

    Keys is None where there are none: then one line holds the frames as they are.
    """
    columns = _keys(by)
    ends = [_ends(frame) for frame in frames]
    if not columns:
        return None, [_Line(0, 0, 0, [slice(None)] * len(frames), ends)]
    keys, numbers = _numbered(frames, columns)
    times = [times for pair in ends for times in pair if len(times)]
    origin = min((int(some.min()) for some in times), default=0)
    # one more than the longest set, so that the sets of two keys never touch
    width = max((int(some.max()) for some in times), default=0) - origin + 1
    together = _LINE_NS // width
    lines = []
    for first in range(0, keys.height, max(together, 1)):
        rows: list[NDArray[np.bool_] | slice] = [slice(None)] * len(frames)
        if together < keys.height:
            rows = [(number >= first) & (number < first + max(together, 1)) for number in numbers]
        sets = [(start[row], end[row]) for row, (start, end) in zip(rows, ends, strict=True)]
        if together:
            moved = [(number[row] - first) * width - origin for row, number in zip(rows, numbers, strict=True)]
            sets = [(start + by, end + by) for by, (start, end) in zip(moved, sets, strict=True)]
        lines.append(_Line(first, width if together else 0, origin, rows, sets))
    return keys, lines


def _numbered(frames: Sequence[pl.DataFrame], columns: list[str]) -> tuple[pl.DataFrame, list[Ints]]:
    """Return the distinct keys, sorted, and for each frame the place of each row's key among them."""
    every = pl.concat([frame.select(columns) for frame in frames], how="vertical_relaxed")
    keys = every.unique().sort(columns)
    place = every.join(keys.with_row_index("#key"), on=columns, how="left", nulls_equal=True, maintain_order="left")[
        "#key"
    ]
    places = place.to_numpy().astype(np.int64)
    return keys, np.split(places, np.cumsum([frame.height for frame in frames])[:-1])


def _framed(keys: pl.DataFrame | None, found: Sequence[tuple[Ints, Ints, Ints]]) -> pl.DataFrame:
    """Return (key, start, end) of all lines as a span frame."""
    if not found:
        found = [(np.zeros(0, np.int64),) * 3]
    key, start, end = (np.concatenate(part) for part in zip(*found, strict=True)) if len(found) > 1 else found[0]
    ends = pl.DataFrame(dict(zip(ENDS, (start, end), strict=True)))
    return ends if keys is None else keys[key].hstack(ends)


def _ends(frame: pl.DataFrame) -> tuple[Ints, Ints]:
    """Return start and end of each row as int64 arrays."""
    return tuple(frame[column].cast(pl.Int64).to_numpy() for column in ENDS)  # type: ignore[return-value]  # two columns


def _keys(by: str | Sequence[str]) -> list[str]:
    """Return the key columns as a list; a plain string is one column, not its letters."""
    return [by] if isinstance(by, str) else list(by)
