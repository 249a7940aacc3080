"""Nesting of ranges on threads, vectorised: who encloses whom, how deep, and the nearest ancestor of a sort.

Arrays run over the ranges; -1 is nobody. A parallel form of the stack one would keep while walking a thread: every
range starts with the one before it as candidate parent and jumps to its candidate's candidate until that one is still
open. It gives what the stack gives also where ranges cross, which a count of open ranges does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]
    Bools = NDArray[np.bool_]

ROUNDING_NS = 1_000
"""How far a range may outlast the one it is nested in: traces in whole µs cut start and duration separately."""


def parents(track: Ints, start: Ints, end: Ints, level: Ints, leaf: Bools) -> Ints:
    """Return the index of the innermost range of the same track that encloses each range, or -1.

    Rows must be sorted by start, longer first. Of ranges with equal extent the one of lower `level` is outside, then
    the earlier row. An empty range encloses nothing. A range that outlasts another by more than ROUNDING_NS is not
    nested in it, although it began there; of a `leaf` (an API call) only the start must lie inside, because the
    tracer takes its times from another clock.
    """
    order = _depth_first(track, start, end, level)
    track, start, end, leaf = track[order], start[order], end[order], leaf[order]
    began_in = np.arange(-1, len(order) - 1)
    began_in[np.flatnonzero(track[1:] != track[:-1]) + 1] = -1
    rows = np.flatnonzero(began_in >= 0)
    rows = rows[end[began_in[rows]] <= start[rows]]
    while len(rows):
        began_in[rows] = began_in[began_in[rows]]
        rows = rows[began_in[rows] >= 0]
        rows = rows[end[began_in[rows]] <= start[rows]]
    inside = began_in.copy()
    rows = np.flatnonzero((began_in >= 0) & ~leaf)
    rows = rows[end[rows] > end[inside[rows]] + ROUNDING_NS]
    while len(rows):
        # whatever the encloser itself outlasts ends still earlier: its own candidate is the next one to try
        inside[rows] = inside[inside[rows]]
        rows = rows[inside[rows] >= 0]
        rows = rows[end[rows] > end[inside[rows]] + ROUNDING_NS]
    parent = np.full(len(order), -1, np.int64)
    parent[order] = np.where(inside >= 0, order[inside], -1)
    return parent


def depths(parent: Ints) -> Ints:
    """Return how many ancestors each range has."""
    depth = (parent >= 0).astype(np.int64)
    ancestor = parent.copy()
    rows = np.flatnonzero(ancestor >= 0)
    while len(rows):
        # both right sides are read in full before anything is written: every round doubles the distance
        depth[rows] += depth[ancestor[rows]]
        ancestor[rows] = ancestor[ancestor[rows]]
        rows = rows[ancestor[rows] >= 0]
    return depth


def nearest(marked: Bools, parent: Ints) -> Ints:
    """Return for each range itself if it is marked, else its nearest marked ancestor, else -1."""
    found = np.where(marked, np.arange(len(parent)), parent)
    rows = np.flatnonzero((found >= 0) & ~marked)
    rows = rows[~marked[found[rows]]]
    while len(rows):
        found[rows] = found[found[rows]]
        rows = rows[found[rows] >= 0]
        rows = rows[~marked[found[rows]]]
    return found


def _depth_first(track: Ints, start: Ints, end: Ints, level: Ints) -> Ints:
    """Return the order by track, then start, longer first, then level; rows are already sorted by the middle two."""
    if len(track) and track.min() >= 0 and track.max() < 1 << 16:
        track = track.astype(np.uint16)  # numpy sorts 16 bits by radix
    order = np.argsort(track, kind="stable")
    track, start, end, level = track[order], start[order], end[order], level[order]
    differs = (track[1:] != track[:-1]) | (start[1:] != start[:-1]) | (end[1:] != end[:-1])
    if not (~differs & (level[1:] < level[:-1])).any():
        return order
    extent = np.append(0, np.cumsum(differs))
    return order[np.argsort(extent * (int(level.max()) + 1) + level, kind="stable")]
