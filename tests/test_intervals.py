"""Interval arithmetic against tables one can check by eye and against sets of single nanoseconds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracetool import intervals

if TYPE_CHECKING:
    from collections.abc import Sequence

Pairs = list[tuple[int, int]]
Keyed = list[tuple[str | None, int, int]]

BIG = 1_669_783_687_389_324_007
"""An epoch time in ns that no float64 holds."""


def frame(pairs: Sequence[tuple[int, int]]) -> pl.DataFrame:
    return pl.DataFrame(pairs, schema={"start_ns": pl.Int64, "end_ns": pl.Int64}, orient="row")


def keyed(rows: Sequence[tuple[str | None, int, int]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema={"k": pl.String, "start_ns": pl.Int64, "end_ns": pl.Int64}, orient="row")


def instants(pairs: Sequence[tuple[int, int]]) -> set[int]:
    return {t for start, end in pairs for t in range(start, end)}


def of_key(rows: Sequence[tuple[str | None, int, int]], key: str | None) -> Pairs:
    return [(start, end) for k, start, end in rows if k == key]


def islands_of(points: set[int]) -> Pairs:
    starts = sorted(t for t in points if t - 1 not in points)
    ends = sorted(t + 1 for t in points if t + 1 not in points)
    return list(zip(starts, ends, strict=True))


def by_key(points: dict[str | None, set[int]]) -> Keyed:
    order = sorted(points, key=lambda key: (key is not None, key or ""))
    return [(key, *pair) for key in order for pair in islands_of(points[key])]


TIMES = st.integers(-12, 12)
PAIRS = st.lists(st.tuples(TIMES, TIMES), max_size=9)
ROWS = st.lists(st.tuples(st.sampled_from([None, "a", "b", "c"]), TIMES, TIMES), max_size=12)


@pytest.mark.parametrize(
    ("given_pairs", "expected"),
    [
        pytest.param([], [], id="empty"),
        pytest.param([(3, 3)], [], id="zero duration"),
        pytest.param([(5, 2)], [], id="end before start"),
        pytest.param([(0, 5), (5, 9)], [(0, 9)], id="adjacent"),
        pytest.param([(0, 9), (2, 4), (3, 5)], [(0, 9)], id="nested"),
        pytest.param([(1, 4), (1, 4)], [(1, 4)], id="identical"),
        pytest.param([(6, 8), (0, 2)], [(0, 2), (6, 8)], id="unsorted, apart"),
        pytest.param([(0, 2), (4, 4), (6, 8)], [(0, 2), (6, 8)], id="zero duration between"),
        pytest.param([(BIG, BIG + 1), (BIG + 2, BIG + 3)], [(BIG, BIG + 1), (BIG + 2, BIG + 3)], id="exact at epoch"),
    ],
)
def test_union_by_eye(given_pairs: Pairs, expected: Pairs) -> None:
    assert intervals.union(frame(given_pairs)).rows() == expected
    assert intervals.length(frame(given_pairs)) == sum(end - start for start, end in expected)


def test_a_key_in_only_one_of_two_frames() -> None:
    a = keyed([("a", 0, 10), ("b", 0, 10)])
    b = keyed([("b", 4, 6), ("c", 0, 10)])
    assert intervals.intersect(a, b, "k").rows() == [("b", 4, 6)]
    assert intervals.subtract(a, b, "k").rows() == [("a", 0, 10), ("b", 0, 4), ("b", 6, 10)]
    assert intervals.gaps(a, b, ["k"]).equals(intervals.subtract(a, b, ["k"]))
    assert intervals.covered(a, b, "k").to_list() == [0, 2]
    assert intervals.covered(b, a, "k").to_list() == [2, 0]


def test_touching_sets_share_nothing() -> None:
    a, b = frame([(0, 5)]), frame([(5, 9)])
    assert intervals.intersect(a, b).rows() == []
    assert intervals.subtract(a, b).rows() == [(0, 5)]


def test_spans_keep_rows_and_keys() -> None:
    rows = pl.DataFrame({"track": [2, 1], "start_ns": [5, BIG], "dur_ns": [0, 3]})
    assert intervals.spans(rows, "track").rows() == [(2, 5, 5), (1, BIG, BIG + 3)]
    assert intervals.spans(rows).columns == ["start_ns", "end_ns"]


def test_length_names_every_key() -> None:
    rows = keyed([("b", 0, 4), (None, 1, 3), ("a", 2, 2), ("b", 2, 6)])
    assert intervals.length(rows, "k").rows() == [(None, 2), ("a", 0), ("b", 6)]


def test_several_key_columns_and_types() -> None:
    rows = pl.DataFrame({"r": [1, 0, 1], "k": ["x", "x", "x"], "start_ns": [0, 0, 2], "end_ns": [3, 1, 5]})
    expected = [(0, "x", 0, 1), (1, "x", 0, 5)]
    assert intervals.union(rows, ["r", "k"]).rows() == expected
    narrow = rows.with_columns(pl.col("r").cast(pl.Int32))
    assert intervals.intersect(rows, narrow, ["r", "k"]).rows() == expected
    assert intervals.covered(rows, narrow, ["r", "k"]).to_list() == [3, 1, 3]


def test_cover_by_eye() -> None:
    windows = frame([(0, 20), (4, 4), (8, 30)])
    layers = [frame([(2, 5)]), frame([(4, 9), (9, 10)])]
    assert intervals.cover(windows, layers).rows() == [
        (0, 0, 2, -1),
        (0, 2, 5, 0),
        (0, 5, 10, 1),
        (0, 10, 20, -1),
        (2, 8, 10, 1),
        (2, 10, 30, -1),
    ]


def test_cover_without_windows_or_layers() -> None:
    assert intervals.cover(frame([]), [frame([(0, 1)])]).height == 0
    assert intervals.cover(frame([(1, 3)]), []).rows() == [(0, 1, 3, -1)]
    assert intervals.cover(frame([(1, 3)]), [frame([])]).rows() == [(0, 1, 3, -1)]
    assert intervals.cover(frame([]), []).schema == {
        "window": pl.UInt32,
        "start_ns": pl.Int64,
        "end_ns": pl.Int64,
        "layer": pl.Int32,
    }


@given(PAIRS, PAIRS)
def test_two_sets_equal_brute_force(a: Pairs, b: Pairs) -> None:
    left, right = instants(a), instants(b)
    assert intervals.union(frame(a)).rows() == islands_of(left)
    assert intervals.intersect(frame(a), frame(b)).rows() == islands_of(left & right)
    assert intervals.subtract(frame(a), frame(b)).rows() == islands_of(left - right)
    assert intervals.covered(frame(a), frame(b)).to_list() == [len(instants([pair]) & right) for pair in a]


@given(ROWS, ROWS)
def test_keyed_sets_equal_brute_force(a: Keyed, b: Keyed) -> None:
    keys = {row[0] for row in a + b}
    left = {key: instants(of_key(a, key)) for key in keys}
    right = {key: instants(of_key(b, key)) for key in keys}
    both = {key: left[key] & right[key] for key in keys}
    rest = {key: left[key] - right[key] for key in keys}
    assert intervals.union(keyed(a), "k").rows() == by_key(left)
    assert intervals.intersect(keyed(a), keyed(b), "k").rows() == by_key(both)
    assert intervals.subtract(keyed(a), keyed(b), "k").rows() == by_key(rest)
    assert dict(intervals.length(keyed(a), "k").rows()) == {key: len(left[key]) for key in {row[0] for row in a}}
    expected = [len(instants([(start, end)]) & right[key]) for key, start, end in a]
    assert intervals.covered(keyed(a), keyed(b), "k").to_list() == expected


@given(PAIRS, st.lists(PAIRS, max_size=4))
def test_cover_equals_brute_force(windows: Pairs, layers: list[Pairs]) -> None:
    sets = [instants(layer) for layer in layers]

    def first(t: int) -> int:
        return next((index for index, points in enumerate(sets) if t in points), -1)

    expected = []
    for number, (start, end) in enumerate(windows):
        for label in range(-1, len(layers)):
            points = {t for t in range(start, end) if first(t) == label}
            expected += [(number, *pair, label) for pair in islands_of(points)]
    assert intervals.cover(frame(windows), [frame(layer) for layer in layers]).rows() == sorted(expected)


@pytest.mark.parametrize("far", [2**60, 2**61, 2**62 - 1], ids=["three keys a line", "one", "no room at all"])
def test_sets_that_do_not_fit_on_one_line(far: int) -> None:
    a = keyed([(key, start, start + 10) for key in ("a", "b", "c", None) for start in (-far, far - 10)])
    b = keyed([("a", far - 4, far), ("c", -far, 5 - far), ("d", -far, far)])
    assert intervals.union(a, "k").rows() == [
        (key, start, start + 10) for key in (None, "a", "b", "c") for start in (-far, far - 10)
    ]
    assert intervals.length(a, ["k"]).rows() == [(None, 20), ("a", 20), ("b", 20), ("c", 20)]
    assert intervals.intersect(a, b, "k").rows() == [("a", far - 4, far), ("c", -far, 5 - far)]
    assert intervals.subtract(b, a, "k").rows() == [("d", -far, far)]
    assert intervals.covered(a, b, "k").to_list() == [0, 4, 0, 0, 5, 0, 0, 0]
