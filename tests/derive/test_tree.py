"""Nesting against the stack one would keep by hand."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tracetool.derive import tree

Row = tuple[int, int, int, int]
"""track, start, end, level."""

ROW = st.tuples(st.integers(0, 2), st.integers(0, 9), st.integers(0, 9), st.integers(0, 2)).map(
    lambda row: (row[0], row[1] * 5_000, (row[1] + row[2]) * 5_000, row[3])
)


def by_stack(rows: list[Row]) -> list[int]:
    """Walk each thread with a stack; a range that outlasts its encloser hangs on the next one that holds it."""
    order = sorted(range(len(rows)), key=lambda i: (rows[i][0], rows[i][1], -rows[i][2], rows[i][3], i))
    parent = [-1] * len(rows)
    for place, i in enumerate(order):
        for j in reversed(order[:place]):
            same_track, still_open = rows[j][0] == rows[i][0], rows[j][2] > rows[i][1]
            if same_track and still_open and rows[i][2] <= rows[j][2] + tree.ROUNDING_NS:
                parent[i] = j
                break
    return parent


def parents(rows: list[Row], *, leaves: bool = False) -> list[int]:
    track, start, end, level = np.array(rows, np.int64).reshape(-1, 4).T
    return [int(i) for i in tree.parents(track, start, end, level, np.full(len(rows), leaves))]


@given(st.lists(ROW, max_size=14))
def test_parents_equal_a_stack(rows: list[Row]) -> None:
    rows.sort(key=lambda row: (row[1], -row[2]))
    assert parents(rows) == by_stack(rows)


@given(st.lists(ROW, max_size=14))
def test_depth_and_nearest_equal_a_walk(rows: list[Row]) -> None:
    rows.sort(key=lambda row: (row[1], -row[2]))
    parent = parents(rows)
    marked = [row[3] == 1 for row in rows]

    def walk(i: int) -> list[int]:
        return [] if i < 0 else [i, *walk(parent[i])]

    array = np.array(parent, np.int64)
    assert tree.depths(array).tolist() == [len(walk(i)) - 1 for i in range(len(rows))]
    expected = [next((j for j in walk(i) if marked[j]), -1) for i in range(len(rows))]
    assert tree.nearest(np.array(marked, np.bool_), array).tolist() == expected


def test_crossing_ranges_do_not_corrupt_the_rest() -> None:
    rows = [
        (0, 0, 10_000, 0),
        (0, 5_000, 15_000, 0),
        (0, 6_000, 7_000, 0),
        (0, 12_000, 13_000, 0),
        (0, 20_000, 21_000, 0),
    ]
    assert parents(rows) == [-1, -1, 1, 1, -1]


def test_a_long_staircase_of_crossing_ranges() -> None:
    n = 20_000
    rows = [(0, 2_000 * i, 2_000 * (n + i), 0) for i in range(n)] + [(0, 2_000 * n - 1_500, 2_000 * n - 1_000, 0)]
    assert parents(rows) == [*[-1] * n, n - 1]


def test_rounding_to_microseconds_is_no_crossing() -> None:
    rows = [(0, 0, 9_000, 0), (0, 1_000, 10_000, 0), (0, 2_000, 11_000, 0)]
    assert parents(rows) == [-1, 0, 1]


def test_a_call_needs_only_to_start_inside() -> None:
    rows = [(0, 0, 5_000, 0), (0, 4_000, 20_000, 0)]
    assert parents(rows) == [-1, -1]
    assert parents(rows, leaves=True) == [-1, 0]


def test_equal_extents_nest_by_level() -> None:
    rows = [(0, 0, 5_000, 2), (0, 0, 5_000, 0), (0, 0, 5_000, 1)]
    assert parents(rows) == [2, -1, 1]


def test_empty_ranges_enclose_nothing() -> None:
    rows = [(0, 0, 9_000, 0), (0, 3_000, 3_000, 0), (0, 3_000, 3_000, 1), (0, 3_000, 3_000, 2)]
    assert parents(rows) == [-1, 0, 0, 0]


def test_deep_and_wide_trees() -> None:
    n = 2_000
    rows = [(0, i, 10**6 - i, 0) for i in range(n)] + [(0, n + i, n + i + 1, 0) for i in range(n)]
    assert parents(rows) == [-1, *range(n - 1), *[n - 1] * n]
    depth = tree.depths(np.array(parents(rows), np.int64))
    assert depth[n - 1] == n - 1
    assert depth[-1] == n
