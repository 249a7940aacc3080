"""Published op tables (one row an operation of a training job) as graphs for the replay."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import polars as pl

from tracetool.join.replay import Graph, graph

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

MEANS: Final = ("forward-compute", "backward-compute", "optimizer", "gc")
COMPUTE: Final = ("forward-compute", "backward-compute")
P2P: Final = {"forward-send": ("forward-recv", 1), "backward-send": ("backward-recv", -1)}
TAIL: Final = (
    "gc", "layernorm-grads-all-reduce", "embedding-grads-all-reduce", "grads-reduce-scatter",
    "optimizer-clip-main-grad", "optimizer",
)  # fmt: skip
MERGED: Final = {
    "forward-send": "forward-pp-comm", "forward-recv": "forward-pp-comm",
    "backward-send": "backward-pp-comm", "backward-recv": "backward-pp-comm",
}  # fmt: skip
NEGATIVE_S: Final = -0.010


@dataclass(frozen=True)
class OpTable:
    """One job: nodes are (dp_rank, stage, optype, seq_id), columns are steps; all times in seconds."""

    nodes: pl.DataFrame
    """dp_rank, stage, optype, seq_id, rank, group, in node order."""
    graph: Graph
    value: NDArray[np.float64]
    measured: NDArray[np.float64]
    """Measured time of every step."""

    def total(self, value: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the replayed time of each step."""
        last = (self.nodes["optype"] == "optimizer").to_numpy()
        return np.asarray(self.graph.replay(value).end[last].max(axis=0))

    def ideal(self) -> NDArray[np.float64]:
        """Return the values with each kind of operation at its mean (compute) or median (communication)."""
        optypes = self.nodes["optype"].to_numpy()
        answer = np.empty_like(self.value)
        for optype in np.unique(optypes):
            mine = optypes == optype
            answer[mine] = (np.mean if optype in MEANS else np.median)(self.value[mine])
        return answer


def load(folder: Path, name: str) -> OpTable:
    """Read trace-<name>.parquet."""
    rows = pl.read_parquet(folder / f"trace-{name}.parquet").with_columns(
        pl.col("optype").cast(pl.String),
        start=pl.col("start_ts").cast(pl.Float64),
        end=pl.col("start_ts").cast(pl.Float64) + pl.col("duration").cast(pl.Float64),
        duration=pl.col("duration").cast(pl.Float64),
    )
    return build(rows)


def build(rows: pl.DataFrame) -> OpTable:
    """Return the job of a table with dp_rank, stage, rank, step, optype, seq_id, start, end, duration (seconds)."""
    stages = int(rows["stage"].max()) + 1  # type: ignore[arg-type] # an integer column
    grouped = rows.with_columns(group=_group(stages)).with_columns(
        last=pl.when(pl.col("group").is_not_null()).then(pl.col("start").max().over("step", "group"))
    )
    transfer = pl.col("end") - pl.col("last")
    valued = grouped.with_columns(
        value=pl.when(pl.col("last").is_null())
        .then("duration")
        .when(transfer <= NEGATIVE_S)
        .then(0.0)
        .otherwise(transfer)
    )
    key = ["dp_rank", "stage", "optype", "seq_id"]
    nodes = valued.filter(pl.col("step") == pl.col("step").min()).sort(key).select(*key, "rank", "group")
    steps = valued["step"].unique().sort()
    value = valued.sort(*key, "step")["value"].to_numpy().reshape(nodes.height, steps.len())
    number = {tuple(row): at for at, row in enumerate(nodes.select(key).iter_rows())}
    first = valued.filter((pl.col("step") == steps[0]) & (pl.col("dp_rank") == nodes["dp_rank"].min()))
    pred, node = [], []
    for stage in range(stages):
        for before, after in _edges(first.filter(pl.col("stage") == stage)):
            for replica in nodes["dp_rank"].unique().sort().to_list():
                pred.append(number[replica, stage, *before])
                node.append(number[replica, stage, *after])
    names = nodes["group"].rank("dense").fill_null(0).cast(pl.Int64).to_numpy() - 1
    whole = rows.group_by("step").agg(ns=pl.col("end").max() - pl.col("start").min()).sort("step")["ns"].to_numpy()
    return OpTable(nodes, graph(nodes.height, np.array(pred), np.array(node), names), value, whole)


def _group(stages: int) -> pl.Expr:
    """Name the rendezvous of each row inside its step; null for local operations."""
    optype, stage = pl.col("optype"), pl.col("stage").cast(pl.Int64)
    found = pl.when(optype == "optimizer-clip-main-grad").then(pl.lit("clip")).when(pl.lit(False)).then(None)
    for send, (receive, way) in P2P.items():
        for name, offset in ((send, 0), (receive, way)):
            text = pl.format(send + " {} {} {}", pl.col("dp_rank"), stage - offset, pl.col("seq_id"))
            found = found.when(optype == name).then(text)
    everyone = optype.is_in(["params-all-gather", "grads-reduce-scatter"])
    ends = (optype == "embedding-grads-all-reduce") & stage.is_in([0, stages - 1])
    return (
        found.when(everyone)
        .then(pl.format("{} {} {}", optype, stage, pl.col("seq_id")))
        .when(ends)
        .then(pl.format("embedding {}", pl.col("dp_rank")))
    )


Op = tuple[str, int]


def _edges(rank: pl.DataFrame) -> Iterator[tuple[Op, Op]]:
    """Yield (before, after) of the operations of one rank in one step, as the published definition orders them."""
    compute = rank.filter(pl.col("optype").is_in(COMPUTE)).sort("start", "seq_id", "optype")
    chain: list[Op] = [(row[0], row[1]) for row in compute.select("optype", "seq_id").iter_rows()]
    there = {(row[0], row[1]) for row in rank.select("optype", "seq_id").iter_rows()}
    yield from itertools.pairwise(chain)
    for optype, k in sorted(there):
        way, _, what = optype.partition("-")
        if what in {"send", "recv"}:
            work = f"{way}-compute"
            if (optype, k + 1) in there:
                yield (optype, k), (optype, k + 1)
            if what == "send":
                yield (work, k), (optype, k)
            else:
                yield (optype, k), (work, k)
                if k:
                    yield (work, k - 1), (optype, k)
    place = next(at for at, (optype, _) in enumerate(chain) if optype == "backward-compute")
    if place >= 2:  # "at place 3 or later", counted from 1
        yield from ((chain[place - 2], (name, 0)) for name in ("backward-recv", "backward-send") if (name, 0) in there)
    gather = ("params-all-gather", 0)
    if gather in there:
        yield gather, ("forward-compute", 0)
        yield gather, ("grads-reduce-scatter", 0)
    last = compute.sort("end")["optype"][-1], int(compute.sort("end")["seq_id"][-1])
    tail = [last, *((name, 0) for name in TAIL if (name, 0) in there)]
    yield from itertools.pairwise(tail)
