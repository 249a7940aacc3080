"""How events of a rank belong together: GPU activity → launch call → operator, and nesting on CPU threads.

Source of the rules: docs of Kineto's output (correlation, External id), github.com/pytorch/kineto, libkineto 2021-2026.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tracetool.derive import tree
from tracetool.derive.columns import CODE, numbers
from tracetool.tables import GPU_ACTIVITY

if TYPE_CHECKING:
    import polars as pl
    from numpy.typing import NDArray

    from tracetool.derive.columns import Events

    Ints = NDArray[np.int64]
    Bools = NDArray[np.bool_]

NESTED = ("annotation", "cpu_op", "runtime")
"""Categories that nest on CPU threads, outermost first among ranges of equal extent."""


@dataclass(frozen=True)
class Links:
    """Who belongs to whom; arrays over all events, -1 is nobody."""

    activity: Ints
    """Event ids of GPU activity, ascending."""
    nested: Bools
    """The event takes part in the nesting of a CPU thread."""
    parent: Ints
    launch: Ints
    op: Ints


def link(events: Events, tracks: pl.DataFrame) -> Links:
    """Find parents, launches and operators.

    Launch: the API call with the correlation of the GPU activity (of several, as with a driver call inside a runtime
    call, the outer one); one launch may have many activities. Operator of an API call: its innermost enclosing one.
    Operator of a GPU activity that has a launch: the one its external id names if that is one operator's alone and its
    range holds the launch (ids of another numbering hit by chance), else the operator of its launch.
    """
    gpu_tracks = tracks.filter(tracks["kind"] == "gpu")["track"].to_numpy()
    nested = events.are(*NESTED)
    if len(gpu_tracks):
        nested &= ~np.isin(events.track, gpu_tracks)
    rows = np.flatnonzero(nested)
    level = np.zeros(len(CODE), np.int64)
    level[[CODE[category] for category in NESTED]] = range(len(NESTED))
    calls = events.are("runtime")
    inside = tree.parents(
        events.track[rows], events.start[rows], events.end[rows], level[events.category[rows]], calls[rows]
    )
    parent = np.full(len(nested), -1, np.int64)
    parent[rows] = np.where(inside >= 0, rows[inside], -1)

    activity = np.flatnonzero(events.are(*GPU_ACTIVITY))
    launch = np.full(len(nested), -1, np.int64)
    launch[activity] = _launches(events, activity, np.flatnonzero(calls))

    operators = events.are("cpu_op") & nested
    op = np.where(calls & nested, tree.nearest(operators, parent), -1)
    launched = activity[launch[activity] >= 0]
    by_id = _named_by_external_id(events, launched, np.flatnonzero(operators))
    at = events.start[launch[launched]]
    holds = (by_id >= 0) & (events.start[by_id] <= at) & (at < events.end[by_id])
    op[launched] = np.where(holds, by_id, op[launch[launched]])
    return Links(activity, nested, parent, launch, op)


def _launches(events: Events, activity: Ints, calls: Ints) -> Ints:
    """Return for each GPU activity the first call with its correlation, or -1."""
    correlation, known = numbers(events.frame, "correlation")
    return _first_with(correlation, known, activity, calls[known[calls]])


def _named_by_external_id(events: Events, activity: Ints, operators: Ints) -> Ints:
    """Return for each GPU activity the operator with its external id where exactly one has it, or -1."""
    number, known = numbers(events.frame, "external_id")
    candidates = operators[known[operators]]
    ids, count = np.unique(number[candidates], return_counts=True)
    alone = candidates[count[np.searchsorted(ids, number[candidates])] == 1] if len(ids) else candidates
    return _first_with(number, known, activity, alone)


def _first_with(number: Ints, known: Bools, rows: Ints, among: Ints) -> Ints:
    """Return for each of `rows` the first of `among` with the same number, or -1."""
    if not len(among):
        return np.full(len(rows), -1, np.int64)
    order = np.argsort(number[among], kind="stable")
    ranked = number[among][order]
    place = np.minimum(np.searchsorted(ranked, number[rows]), len(ranked) - 1)
    hit = known[rows] & (ranked[place] == number[rows])
    return np.where(hit, among[order[place]], -1)
