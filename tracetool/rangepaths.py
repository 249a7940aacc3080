"""Ranges by the names of the ranges around them, and the span of GPU work launched in each.

A path is the names of the annotations around a range and its own, outermost first: `forward / layer 3 / mlp`.
Operators, calls and other events between them do not count.

Projection of a range: first start … last end of the GPU operations whose launch call begins inside the range, on the
range's own thread. It is what NVIDIA's nsys calls the projection of NVTX ranges (Nsight Systems User Guide,
nvtx_gpu_proj_trace), so figures can be compared; time in which the GPU idles between them is inside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import polars as pl

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]

SEPARATOR: Final = " / "


@dataclass(frozen=True)
class Paths:
    """Which path each range has. `rows` are row numbers of events, `number` for each of them a row of `texts`."""

    rows: Ints
    number: Ints
    texts: pl.DataFrame
    """`path` and its `depth`, 0 for the outermost; one row a path."""


def paths(names: pl.Series, parent: Ints, chosen: NDArray[np.bool_]) -> Paths:
    """Return the paths of the events of which `chosen` is true; they are the ranges that count.

    `names` are those of all events (Categorical or String), `parent` the row of the event around each, or -1.
    """
    rows = np.flatnonzero(chosen)
    up = np.append(parent, -1)  # -1 leads to -1
    is_range = np.append(chosen, True)
    around = parent[rows]
    while not is_range[around].all():  # one turn a level of nesting
        around = np.where(is_range[around], around, up[around])
    place = np.full(len(up), -1, np.int64)
    place[rows] = np.arange(len(rows))
    above = place[around]
    depth, at = np.zeros(len(rows), np.int64), above
    while (at >= 0).any():
        depth += at >= 0
        at = np.where(at >= 0, np.append(above, -1)[at], -1)
    own = names.gather(rows).cast(pl.String)
    known = own.unique(maintain_order=True)
    code = own.replace_strict(known, pl.int_range(len(known), eager=True), return_dtype=pl.Int64).to_numpy()
    number = np.full(len(rows) + 1, -1, np.int64)
    texts: list[str] = []
    depths: list[int] = []
    for level in range(int(depth.max(initial=-1)) + 1):
        mine = np.flatnonzero(depth == level)
        keys, which = np.unique(number[above[mine]] * len(known) + code[mine], return_inverse=True)
        number[mine] = len(texts) + which
        outer = [f"{texts[key // len(known)]}{SEPARATOR}" if level else "" for key in keys.tolist()]
        texts += [a + b for a, b in zip(outer, known.gather(keys % len(known)).to_list(), strict=True)]
        depths += [level] * len(keys)
    found = pl.DataFrame({"path": texts, "depth": depths}, schema={"path": pl.String, "depth": pl.Int32})
    return Paths(rows, number[:-1], found)


def projections(ranges: pl.DataFrame, gpu: pl.DataFrame) -> pl.DataFrame:
    """Return `projected_ns` (null: nothing was launched inside) and `operations` of each range, in row order.

    `ranges` has `track, start_ns, end_ns`; `gpu` has `launch_track, launch_start_ns, start_ns, end_ns`.
    """
    ordered = gpu.sort("launch_track", "launch_start_ns", "start_ns", "end_ns")
    first = np.zeros(ranges.height, np.int64)
    last = first.copy()
    launched, tracks = ordered["launch_start_ns"].to_numpy(), ordered["launch_track"].to_numpy()
    for track in ranges["track"].unique().sort():
        begin, end = np.searchsorted(tracks, [track, track + 1])
        mine = (ranges["track"] == track).to_numpy()
        for place, column in ((first, "start_ns"), (last, "end_ns")):
            place[mine] = begin + np.searchsorted(launched[begin:end], ranges[column].to_numpy()[mine])
    last = np.maximum(last, first)
    some = last > first
    # of each pair of places the segment between them counts; in order of the first, what lies between pairs is short
    filled = np.flatnonzero(some)
    filled = filled[np.argsort(first[filled], kind="stable")]
    bounds = np.stack([first[filled], last[filled]], axis=1).ravel()
    spans = np.zeros(ranges.height, np.int64)
    if len(bounds):  # the appended row is one past the end
        starts, ends = (np.append(ordered[column].to_numpy(), 0) for column in ("start_ns", "end_ns"))
        spans[filled] = np.maximum.reduceat(ends, bounds)[::2] - np.minimum.reduceat(starts, bounds)[::2]
    return pl.DataFrame(
        {"projected_ns": pl.Series(spans).set(pl.Series(~some), None), "operations": pl.Series(last - first)}
    )
