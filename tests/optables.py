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
        """Return the replayed time of each step: to the end of the optimizer, where there is one."""
        last = (self.nodes["optype"] == "optimizer").to_numpy()
        last |= not last.any()
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
    return build(pl.read_parquet(folder / f"trace-{name}.parquet"))


KEY: Final = ("dp_rank", "stage", "optype", "seq_id")


def plain(rows: pl.DataFrame) -> pl.DataFrame:
    """Return the rows as 64-bit numbers, in order, one rank of each stage and replica, whole steps only.

    Of several ranks of a stage and replica (tensor parallel ones) the lowest stands for all. A step in which some
    operation of the job is missing is left out. Raises ValueError where no step is whole.
    """
    chunk = pl.col("mc") if "mc" in rows.columns else pl.lit(0)
    found = rows.select(
        *(pl.col(name).cast(pl.Int64) for name in ("dp_rank", "stage", "rank", "step", "seq_id")),
        pl.col("optype").cast(pl.String),
        mc=chunk.cast(pl.Int64),
        start=pl.col("start_ts").cast(pl.Float64),
        duration=pl.col("duration").cast(pl.Float64),
    ).with_columns(end=pl.col("start") + pl.col("duration"))
    found = found.filter(pl.col("rank") == pl.col("rank").min().over("dp_rank", "stage"))
    operations = found.select(KEY).unique().height
    whole = found.filter(pl.struct(KEY).n_unique().over("step") == operations)
    if not whole.height:
        raise ValueError("no step of the table holds every operation")
    return whole.sort("step", *KEY)


def build(rows: pl.DataFrame) -> OpTable:
    """Return the job of a table with columns as published; start_ts and duration in seconds."""
    table = plain(rows)
    stages = table["stage"].n_unique()
    table = table.with_columns(pl.col("stage").rank("dense").cast(pl.Int64) - 1)
    grouped = table.with_columns(group=_group(stages)).with_columns(
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
    nodes = valued.filter(pl.col("step") == pl.col("step").min()).sort(KEY).select(*KEY, "rank", "group")
    steps = valued["step"].unique().sort()
    value = valued.sort(*KEY, "step")["value"].to_numpy().reshape(nodes.height, steps.len())
    number = {tuple(row): at for at, row in enumerate(nodes.select(KEY).iter_rows())}
    first = valued.filter((pl.col("step") == steps[0]) & (pl.col("dp_rank") == nodes["dp_rank"].min()))
    pred, node = [], []
    for stage in range(stages):
        for before, after in _edges(first.filter(pl.col("stage") == stage), stage, stages):
            for replica in nodes["dp_rank"].unique().sort().to_list():
                pred.append(number[replica, stage, *before])
                node.append(number[replica, stage, *after])
    names = nodes["group"].rank("dense").fill_null(0).cast(pl.Int64).to_numpy() - 1
    whole = table.group_by("step").agg(ns=pl.col("end").max() - pl.col("start").min()).sort("step")["ns"].to_numpy()
    made = graph(nodes.height, np.array(pred, np.int64), np.array(node, np.int64), names)
    return OpTable(nodes, made, value, whole)


def _group(stages: int) -> pl.Expr:
    """Name the rendezvous of each row inside its step; null for local operations."""
    optype, stage = pl.col("optype"), pl.col("stage")
    found = pl.when(optype == "optimizer-clip-main-grad").then(pl.lit("clip")).when(pl.lit(False)).then(None)
    for send, (receive, way) in P2P.items():
        for name, offset in ((send, 0), (receive, way)):
            # with several chunks a stage the last one sends to the first
            source = (stage - offset + stages) % stages
            text = pl.format(send + " {} {} {}", pl.col("dp_rank"), source, pl.col("seq_id"))
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


def _edges(rank: pl.DataFrame, stage: int, stages: int) -> Iterator[tuple[Op, Op]]:
    """Yield (before, after) of the operations of one rank in one step, as the published definition orders them.

    The k-th send of a direction follows the k-th compute that sends, the k-th receive comes before the k-th that
    receives. With one chunk a stage that is every compute; of several chunks the model's ends have no neighbour.
    """
    compute = rank.filter(pl.col("optype").is_in(COMPUTE)).sort("start", "seq_id", "optype")
    chain: list[Op] = [(row[0], row[1]) for row in compute.select("optype", "seq_id").iter_rows()]
    there = {(row[0], row[1]) for row in rank.select("optype", "seq_id").iter_rows()}
    last_chunk = max(rank["mc"].to_list())
    yield from itertools.pairwise(chain)
    for direction in ("forward", "backward"):
        mine = rank.filter(pl.col("optype") == f"{direction}-compute").sort("seq_id")
        begins = (pl.col("mc") == 0) & (stage == 0)
        ends = (pl.col("mc") == last_chunk) & (stage == stages - 1)
        first, last = (begins, ends) if direction == "forward" else (ends, begins)
        numbers = mine["seq_id"].to_list()
        for what, able in (("recv", mine.filter(~first)), ("send", mine.filter(~last))):
            name = f"{direction}-{what}"
            for k, at in enumerate(able["seq_id"].to_list()):
                if (name, k) not in there:
                    continue
                if (name, k + 1) in there:
                    yield (name, k), (name, k + 1)
                if what == "send":
                    yield (f"{direction}-compute", at), (name, k)
                    continue
                yield (name, k), (f"{direction}-compute", at)
                before = numbers.index(at)
                if before:
                    yield (f"{direction}-compute", numbers[before - 1]), (name, k)
    place = next((at for at, (optype, _) in enumerate(chain) if optype == "backward-compute"), 0)
    if place >= 2:  # "at place 3 or later", counted from 1
        yield from ((chain[place - 2], (name, 0)) for name in ("backward-recv", "backward-send") if (name, 0) in there)
    forwards = rank.filter(pl.col("optype") == "forward-compute").sort("seq_id")
    for k in sorted(k for name, k in there if name == "params-all-gather"):
        of_chunk = forwards.filter(pl.col("mc") == k)["seq_id"].to_list()
        if of_chunk:
            yield ("params-all-gather", k), ("forward-compute", of_chunk[0])
        if ("grads-reduce-scatter", k) in there:
            yield ("params-all-gather", k), ("grads-reduce-scatter", k)
    ending = compute.sort("end", "seq_id", "optype").select("optype", "seq_id").rows()[-1:]
    tail = [*ending, *((name, k) for name in TAIL for k in sorted(n for op, n in there if op == name))]
    yield from itertools.pairwise(tail)
