"""Arithmetic on sets of half-open intervals [start_ns, end_ns), per key, vectorised and exact in int64.

A *span frame* has int64 columns `start_ns` and `end_ns` and, where several sets lie in one frame, key columns `by`.
Rows may overlap, repeat and stand in any order; a row with end_ns <= start_ns covers nothing. Null is a key like any
other. *Islands* are what a set comes down to: disjoint, neither empty nor touching, sorted by (by, start_ns).

Every function is linear after one sort. None compares intervals pairwise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, overload

import numpy as np
import polars as pl

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Ints = NDArray[np.int64]

ENDS = ("start_ns", "end_ns")


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
    keys = _keys(by)
    if not keys:
        return pl.DataFrame(dict(zip(ENDS, _islands(*_ends(spans)), strict=True)))
    rows = (
        spans.lazy()
        .select(*keys, *ENDS)
        .filter(pl.col("end_ns") > pl.col("start_ns"))
        .sort(*keys, *ENDS)
        .with_columns(pl.col("end_ns").cum_max().over(keys))
    )
    opens = pl.col("start_ns") > pl.col("end_ns").shift(1)
    for key in keys:
        opens = opens | pl.col(key).ne_missing(pl.col(key).shift(1))
    return (
        rows.with_columns(opens.fill_null(True).alias("#opens"))
        .with_columns(pl.col("#opens").shift(-1, fill_value=True).alias("#closes"))
        .filter(pl.col("#opens") | pl.col("#closes"))
        # an island of several rows leaves two of them, the opening and the closing one
        .with_columns(pl.when("#closes").then("end_ns").otherwise(pl.col("end_ns").shift(-1)).alias("end_ns"))
        .filter("#opens")
        .select(*keys, *ENDS)
        .collect()
    )


def _islands(start: Ints, end: Ints) -> tuple[Ints, Ints]:
    """Return starts and ends of the islands of one set: `union` without keys, which most questions ask for."""
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
    keys = _keys(by)
    islands = union(spans, keys).with_columns((pl.col("end_ns") - pl.col("start_ns")).alias("ns"))
    if not keys:
        return int(islands["ns"].sum())
    return (
        pl.concat([islands.select(*keys, "ns"), spans.select(*keys, pl.lit(0, pl.Int64).alias("ns"))])
        .group_by(keys)
        .agg(pl.col("ns").sum())
        .sort(keys)
    )


def covered(windows: pl.DataFrame, spans: pl.DataFrame, by: str | Sequence[str] = ()) -> pl.Series:
    """Return for each row of `windows`, in row order, how many ns of it the spans of its key cover.

    Windows may overlap each other: each is answered by itself. The Series is int64 and named `ns`.
    """
    keys = _keys(by)
    islands = union(spans, keys)
    window_key, island_key = _key_numbers(windows, islands, keys)
    start, end = _ends(windows)
    end = np.maximum(start, end)
    if keys:
        order = np.lexsort((islands["start_ns"].to_numpy(), island_key))
        islands, island_key = islands[order], island_key[order]
    before_end = _covered_before(island_key, islands, window_key, end)
    before_start = _covered_before(island_key, islands, window_key, start)
    return pl.Series("ns", before_end - before_start, dtype=pl.Int64)


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
    """Return the islands where a covers and b does, or does not; #a and #b count the islands that are open."""
    keys = _keys(by)
    if not keys:
        return _sweep_one(_islands(*_ends(a)), _islands(*_ends(b)), covered_by_b=covered_by_b)
    wanted = pl.col("#b") > 0 if covered_by_b else pl.col("#b") == 0
    points = []
    for islands, column in ((union(a, keys), "#a"), (union(b, keys), "#b")):
        for edge, step in (("start_ns", 1), ("end_ns", -1)):
            points.append(
                islands.lazy().select(
                    *keys,
                    pl.col(edge).alias("start_ns"),
                    pl.lit(step if column == "#a" else 0, pl.Int64).alias("#a"),
                    pl.lit(step if column == "#b" else 0, pl.Int64).alias("#b"),
                )
            )
    return (
        pl.concat(points, how="vertical_relaxed")
        .sort(*keys, "start_ns")
        # both counts are 0 again where a key ends, so no sum needs a key
        .with_columns(pl.col("#a", "#b").cum_sum(), pl.col("start_ns").shift(-1).alias("end_ns"))
        .filter((pl.col("#a") > 0) & wanted & (pl.col("end_ns") > pl.col("start_ns")))
        .select(*keys, *ENDS)
        .collect()
    )


def _sweep_one(a: tuple[Ints, Ints], b: tuple[Ints, Ints], *, covered_by_b: bool) -> pl.DataFrame:
    """Do the same for one set without keys."""
    time = np.concatenate((*a, *b))
    order = np.argsort(time, kind="stable")
    time = time[order]
    size, other = len(a[0]), len(b[0])
    open_a = np.cumsum(np.repeat(np.array([1, -1, 0], np.int64), [size, size, 2 * other])[order])
    open_b = np.cumsum(np.repeat(np.array([0, 1, -1], np.int64), [2 * size, other, other])[order])
    good = (open_a > 0) & ((open_b > 0) == covered_by_b)
    good = good[:-1] & (time[1:] > time[:-1])
    return pl.DataFrame(dict(zip(ENDS, (time[:-1][good], time[1:][good]), strict=True)))


def _covered_before(island_key: Ints, islands: pl.DataFrame, key: Ints, at: Ints) -> Ints:
    """Return how many ns of islands lie before each (key, at), all islands of lower keys included."""
    start, end = _ends(islands)
    if not len(start):
        return np.zeros(len(at), np.int64)
    before = np.cumsum(end - start) - (end - start)
    if len(island_key) and island_key[0] != island_key[-1]:
        # islands are sorted by (key, start): merge the questions into that order and count the islands passed
        is_question = np.repeat([False, True], [len(start), len(at)])
        order = np.lexsort((is_question, np.append(start, at), np.append(island_key, key)))
        passed = np.empty(len(order), np.int64)
        passed[order] = np.cumsum(~is_question[order])
        last = passed[len(start) :] - 1
    else:
        last = np.searchsorted(start, at, side="right") - 1
        last = np.where(key < island_key[0], -1, np.where(key > island_key[0], len(start) - 1, last))
    found = np.maximum(last, 0)
    same = island_key[found] == key
    inside = np.where(same, np.minimum(at, end[found]), end[found]) - start[found]
    return np.where(last < 0, 0, before[found] + inside)


def _key_numbers(a: pl.DataFrame, b: pl.DataFrame, keys: list[str]) -> tuple[Ints, Ints]:
    """Give equal keys of both frames the same number."""
    if not keys:
        return np.zeros(a.height, np.int64), np.zeros(b.height, np.int64)
    both = pl.concat([a.select(keys), b.select(keys)], how="vertical_relaxed")
    numbered = both.unique(maintain_order=True).with_row_index("#key")
    numbers = both.join(numbered, on=keys, how="left", nulls_equal=True, maintain_order="left")["#key"]
    number = numbers.to_numpy().astype(np.int64)
    return number[: a.height], number[a.height :]


def _ends(frame: pl.DataFrame) -> tuple[Ints, Ints]:
    """Return start and end of each row as int64 arrays."""
    return tuple(frame[column].cast(pl.Int64).to_numpy() for column in ENDS)  # type: ignore[return-value]  # two columns


def _keys(by: str | Sequence[str]) -> list[str]:
    """Return the key columns as a list; a plain string is one column, not its letters."""
    return [by] if isinstance(by, str) else list(by)
