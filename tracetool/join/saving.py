"""The saving rows of a finding made real in the replay: the time they name is taken out where it was spent.

A row says that `ns` could be saved in a step of a rank, and names one time, `at_ns`, at which it is lost. What runs on
the rank then says what is shortened: its compute, the moving of its communications, its copies, or, where nothing
runs, the host's own time. If a gap of the host holds all of `ns`, that gap is cut; in all other cases the time is taken
evenly from everything of that kind in the step. Waiting cannot be taken out: it ends when its cause does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import polars as pl

from tracetool.join.segments import COMM, COMPUTE, COPY, HOST

if TYPE_CHECKING:
    from tracetool.join.job import Job, Values
    from tracetool.join.replay import Floats

_WAITING: Final = -2
_NEARLY: Final = 0.9


def without(job: Job, saving: pl.DataFrame, steps: pl.DataFrame, values: Values | None = None) -> Values | None:
    """Return the job's values with a finding's savings made; None where replay cannot tell (waiting, other ranks).

    `saving` is results.SAVING_SCHEMA, `steps` that table of all ranks; `values`: savings of other ranks made before.
    """
    rows = saving.filter(pl.col("ns") > 0)
    if not rows.height or not set(rows["rank"].to_list()) <= set(job.ranks):
        return None
    kind = what_runs(job, rows)
    if (kind == _WAITING).any():
        return None
    place = {step: at for at, step in enumerate(job.steps)}
    step = np.array([place.get(number, -1) for number in rows["step"].to_list()])
    rank = np.searchsorted(np.array(job.ranks), rows["rank"].to_numpy())
    ns = rows["ns"].to_numpy().astype(np.float64)
    factor = np.ones(len(job.kind))
    for number in (COMPUTE, COMM, COPY):
        mine = (kind == number) & (step >= 0)
        if mine.any():
            wanted = np.zeros((len(job.ranks), len(job.steps)))
            np.add.at(wanted, (rank[mine], step[mine]), ns[mine])
            factor *= _shortened(job, number, wanted)
    values = job.with_compute(factor, values)
    host = (kind == HOST) & (step >= 0)
    return _host_cut(job, rows.filter(pl.Series(host)), steps, values) if host.any() else values


def _shortened(job: Job, kind: int, wanted: Floats) -> Floats:
    """Return the factor of each node that takes the wanted ns out of all nodes of a kind in each rank-step."""
    mine = np.flatnonzero((job.kind == kind) & (job.step >= 0))
    there = np.zeros(wanted.shape)
    np.add.at(there, (job.rank[mine], job.step[mine]), job.values.value[mine])
    left = 1 - np.minimum(1.0, wanted / np.where(there > 0, there, np.inf))
    factor = np.ones(len(job.kind))
    factor[mine] = left[job.rank[mine], job.step[mine]]
    return factor


def what_runs(job: Job, rows: pl.DataFrame) -> np.ndarray:
    """Return the kind of node that runs on the rank at `at_ns` of each row; HOST where none does, −2 in waiting."""
    at = rows.select("rank", "at_ns").with_row_index("row").sort("at_ns")
    answer = np.full(rows.height, HOST)
    for kind in (COPY, COMM, COMPUTE):  # later ones win
        nodes = (
            job.nodes.filter(pl.col("kind") == kind)
            .select("rank", "start_ns", "end_ns", "value_ns")
            .sort("start_ns", "end_ns")
        )
        found = at.join_asof(
            nodes, left_on="at_ns", right_on="start_ns", by="rank", strategy="backward", check_sortedness=False
        ).filter(pl.col("at_ns") < pl.col("end_ns"))
        row = found["row"].to_numpy()
        answer[row] = kind
        if kind == COMM:
            waits = (found["at_ns"] < found["end_ns"] - found["value_ns"]).to_numpy()
            answer[row[waits]] = _WAITING
    return answer


def _host_cut(job: Job, rows: pl.DataFrame, steps: pl.DataFrame, values: Values) -> Values:
    """Return values with the host's own time cut: the gap at `at_ns` where it holds `ns`, else evenly over the step."""
    at_end, at_edge = job.host_clock
    value, host = values.value.copy(), values.host.copy()
    windows = {(r, k): (a, b) for r, k, a, b in steps.select("rank", "step", "start_ns", "end_ns").iter_rows()}
    for (rank,), mine in rows.partition_by("rank", as_dict=True, maintain_order=True).items():
        place = job.ranks.index(rank)
        own = np.flatnonzero(job.rank == place)
        hosts, gpu = own[job.kind[own] == HOST], own[job.kind[own] != HOST]
        ends = job.nodes["end_ns"].gather(hosts).to_numpy()
        starts = np.sort(job.nodes["start_ns"].gather(gpu).to_numpy())

        def own_time(at: int, hosts: np.ndarray = hosts, ends: np.ndarray = ends) -> float:
            base = max(0, int(np.searchsorted(ends, at, side="right")) - 1)
            return float(at_end[hosts[base]] + at - ends[base])

        cuts = []
        for step, at, ns in mine.select("step", "at_ns", "ns").iter_rows():
            following = int(np.searchsorted(starts, at, side="right"))
            gap = int(starts[following]) - at if following < len(starts) else 0
            low, high = (at, at + gap) if gap >= _NEARLY * ns else windows.get((rank, step), (at, at + ns))
            a, b = own_time(low), own_time(high)
            if b > a:
                cuts.append((a, b, min(ns, b - a)))

        def moved(at: Floats, cuts: list[tuple[float, float, float]] = cuts) -> Floats:
            gone = [ns * np.clip((at - a) / (b - a), 0.0, 1.0) for a, b, ns in cuts]
            return at - np.sum(gone, axis=0) if gone else at

        edges = np.flatnonzero(np.isfinite(at_edge) & (job.rank[job.node] == place))
        host[edges] = np.maximum(0.0, moved(at_edge[edges]) - moved(at_end[job.pred[edges]]))
        before = at_end[hosts] - job.values.value[hosts]
        value[hosts] = np.maximum(0.0, moved(at_end[hosts]) - moved(before))
    return values._replace(value=value, host=host)
