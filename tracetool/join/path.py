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
    now = float(replayed.end[node])
    found: list[tuple[float, float, int, str, int]] = []

    def piece(start: float, bucket: str, at: int) -> float:
        if start < now:
            found.append((start, now, int(job.rank[at]), bucket, at))
        return min(start, now)

    while True:
        # a communication moves data from when its last member came; that member is what was waited for
        came = int(arriver[node])
        edge = int(held[came])
        work_before = float(job.values.before[edge]) if edge >= 0 and came == node else 0.0
        own = float(replayed.start[came]) + work_before
        now = piece(own, _BUCKETS.get(int(job.kind[node]), "memcpy"), node)
        if edge < 0:
            now = piece(0.0, "idle", came)
            break
        node = int(job.pred[edge])
        # between the end of what came before and the launch lies the host's own time
        now = piece(float(replayed.end[node]), "host_bound", came)
    path = pl.DataFrame(found[::-1], schema=["start_ns", "end_ns", "place", "bucket", "node"], orient="row")
    return _by_step(job, path)


def _by_step(job: Job, path: pl.DataFrame) -> pl.DataFrame:
    """Cut the path at the boundaries of the steps; what lies before the first is left out."""
    replayed = job.base
    times = job.step_ns(replayed.start, replayed.end)
    last = replayed.end[job.kind != HOST].max()
    edges = last - np.append(np.cumsum(times[::-1])[::-1], 0.0)
    parts = []
    for number, step in enumerate(job.steps):
        low, high = edges[number], edges[number + 1]
        inside = path.with_columns(
            start_ns=pl.col("start_ns").clip(lower_bound=low), end_ns=pl.col("end_ns").clip(upper_bound=high)
        ).filter(pl.col("end_ns") > pl.col("start_ns"))
        parts.append(inside.with_columns(step=pl.lit(step, pl.Int32)))
    ranks = pl.Series("rank", job.ranks, dtype=pl.Int32)
    return (
        pl.concat(parts)
        .with_columns(rank=ranks.gather(pl.concat(parts)["place"].cast(pl.UInt32)))
        .select(pl.col(name).cast(dtype) for name, dtype in PIECES.items())
    )
