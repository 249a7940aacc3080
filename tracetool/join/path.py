"""The critical path of a job: what each instant of a step waited for, from the last activity back to the first.

In the replay every start is the latest of its causes, so going back from the end of the last activity to what held it,
and from a communication to its last member to arrive, covers the time without gaps: the pieces of a step sum to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import polars as pl

from tracetool.join.replay import binding
from tracetool.join.segments import COMM, COMPUTE, HOST

if TYPE_CHECKING:
    from tracetool.join.job import Job
    from tracetool.join.replay import Ints

PIECES: Final[dict[str, pl.DataType | type[pl.DataType]]] = {
    "step": pl.Int32,
    "start_ns": pl.Int64,
    "end_ns": pl.Int64,
    "rank": pl.Int32,
    "bucket": pl.String,
    "node": pl.Int64,
}
"""Pieces of the path in replayed time. bucket: compute, exposed_comm, memcpy, host_bound (the host's own time before a
launch) or idle (before the first activity of a rank); node: row of Job.nodes."""
_BUCKETS: Final = {COMPUTE: "compute", COMM: "exposed_comm", HOST: "host_bound"}


def critical_path(job: Job) -> pl.DataFrame:
    """Return the pieces of the path through all steps (PIECES), in order; those of one step sum to its time."""
    replayed = job.base
    lag = job.values.host - job.values.before
    arriver, held = binding(job.graph, replayed, lag)
    on_gpu = np.flatnonzero(job.kind != HOST)
    if not len(on_gpu):
        return pl.DataFrame(schema=PIECES)
    node = int(on_gpu[np.argmax(replayed.end[on_gpu])])
    return _by_step(job, _back(job, node, arriver, held).reverse())


def _back(job: Job, node: int, arriver: Ints, held: Ints) -> pl.DataFrame:
    """Return the pieces of the path that ends with a node, the last one first: start_ns, end_ns, bucket, node.

    One step back hangs on the one before: a plain loop over the nodes of the path, on lists.
    """
    replayed = job.base
    held_by, source = held.tolist(), job.pred.tolist()
    start, end, came_last = replayed.start.tolist(), replayed.end.tolist(), arriver.tolist()
    before, bucket = job.values.before.tolist(), [_BUCKETS.get(kind, "memcpy") for kind in job.kind.tolist()]
    starts: list[float] = []
    ends: list[float] = []
    buckets: list[str] = []
    nodes: list[int] = []
    now: float = end[node]

    def piece(begin: float, kind: str, at: int) -> float:
        if begin >= now:
            return now
        starts.append(begin)
        ends.append(now)
        buckets.append(kind)
        nodes.append(at)
        return begin

    while True:
        # a communication moves data from when its last member came; that member is what was waited for
        came = came_last[node]
        edge = held_by[came]
        work_before = before[edge] if edge >= 0 and came == node else 0.0
        now = piece(start[came] + work_before, bucket[node], node)
        if edge < 0:
            piece(0.0, "idle", came)
            columns = {"start_ns": starts, "end_ns": ends, "bucket": buckets, "node": nodes}
            return pl.DataFrame(columns, schema_overrides={"bucket": pl.String})
        node = source[edge]
        # between the end of what came before and the launch lies the host's own time
        now = piece(end[node], "host_bound", came)


def _by_step(job: Job, path: pl.DataFrame) -> pl.DataFrame:
    """Cut the path at the boundaries of the steps; what lies before the first is left out."""
    replayed = job.base
    times = job.step_ns(replayed.start, replayed.end)
    last = replayed.end[job.kind != HOST].max()
    edges = last - np.append(np.cumsum(times[::-1])[::-1], 0.0)
    start, end = path["start_ns"].to_numpy(), path["end_ns"].to_numpy()
    # the pieces follow one another without a gap: those of a step stand side by side
    first = np.searchsorted(end, edges[:-1], side="right")
    count = np.maximum(0, np.searchsorted(start, edges[1:], side="left") - first)
    step = np.repeat(np.arange(len(count)), count)
    row = np.arange(len(step)) + np.repeat(first - np.cumsum(count) + count, count)
    low, high = np.maximum(start[row], edges[step]), np.minimum(end[row], edges[step + 1])
    inside = high > low
    row, step = row[inside], step[inside]
    node = path["node"].to_numpy()[row]
    return pl.DataFrame(
        {
            "step": pl.Series(job.steps, dtype=pl.Int32).gather(step),
            "start_ns": low[inside],
            "end_ns": high[inside],
            "rank": np.array(job.ranks)[job.rank[node]],
            "bucket": path["bucket"].gather(row),
            "node": node,
        }
    ).select(pl.col(name).cast(dtype) for name, dtype in PIECES.items())
