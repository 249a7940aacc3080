"""Why a pipeline idles: the same order of slots replayed with ever more of the truth, and with changes made to it.

Rungs, each a replay of the observed order (a slot starts when the one before it on its rank and the one that makes its
input have ended) over values of one step:
  even        every stage the mean of the stages: the schedule's own bubble
  stages      each stage its median over replicas and micro-batches: + stage_imbalance
  ranks       each rank its own median: + slow_rank
  real        every slot as it was: + jitter
  moved       + the time its input took to arrive: + transfer
The first two, and ranks in stages where none is slow, leave out what a slot waited for the other ranks of its stage:
one slow tensor-parallel rank makes the slots of all its peers as long as its own. A rank is slow that computes more
than 5 % longer than the median of its stage (of two the shorter). Where half of a stage or more is slow, the others
alone tell how long the stage takes: two replicas of which one is slow are no heavy stage.
The idle of a rung is p·T − the durations used; a cause is the difference between two rungs, so that causes add up and
single ones may be negative. What is left to the measured bubble is host_and_rest. Medians let one slow rank stand out
from a slow stage. Method: arXiv 2505.05713, with medians over replicas in place of means.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from tracetool.join.replay import graph

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracetool.join.replay import Replayed
    from tracetool.join.schedule import Order

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

CAUSES: Final = ("schedule", "stage_imbalance", "slow_rank", "jitter", "transfer", "host_and_rest")
RUNGS: Final = ("even", "stages", "ranks", "real", "moved")
SLOW: Final = 0.05
_KEY: Final = ["virtual", "kind", "microbatch"]


@dataclass(frozen=True)
class Plan:
    """An order of slots on every stage."""

    nodes: pl.DataFrame
    """node, stage, virtual, kind, microbatch; sorted by node, numbered from 0."""
    order: tuple[Ints, ...]
    """Nodes of each stage in order."""

    @property
    def stages(self) -> int:
        """Number of pipeline ranks."""
        return len(self.order)

    @property
    def receives(self) -> Bools:
        """Whether the input of each node comes from another rank; shape (nodes, 1)."""
        _, target, data = self.edges()
        answer = np.zeros((self.nodes.height, 1), np.bool_)
        answer[target[data]] = True
        return answer

    def edges(self) -> tuple[Ints, Ints, Bools]:
        """Return source and target of each edge, and whether data moves along it to another rank."""
        before = np.concatenate([mine[:-1] for mine in self.order])
        after = np.concatenate([mine[1:] for mine in self.order])
        made, needs = flow(self.nodes)
        stage = self.nodes["stage"].to_numpy()
        return (
            np.concatenate([before, made]),
            np.concatenate([after, needs]),
            np.append(np.zeros(len(before), bool), stage[made] != stage[needs]),
        )

    def times(self, value: Floats, moves: Floats | None = None, serial: Bools | None = None) -> Replayed:
        """Return when each slot starts and ends; all arrays are (nodes, columns).

        `value`: how long it lasts; `moves`: how long its input moves; `serial`: it moves only once the slot before it
        on the rank has ended, so that a slot whose input was made early waits for it too.
        """
        source, target, data = self.edges()
        if moves is None:
            return graph(self.nodes.height, source, target).replay(value)
        also = np.zeros_like(moves, dtype=np.bool_) if serial is None else serial
        lag = np.where(data[:, None] | also[target], moves[target], 0.0)
        return graph(self.nodes.height, source, target).replay(value, lag)

    def window(self, value: Floats, moves: Floats | None = None, serial: Bools | None = None) -> Floats:
        """Return T of each column, as `times` takes it."""
        return np.asarray(self.times(value, moves, serial).end.max(axis=0))


@dataclass(frozen=True)
class Slots:
    """Slots of steps and replicas that have the same order, as arrays: one row a slot, one column a (replica, step)."""

    plan: Plan
    columns: pl.DataFrame
    """replica, iteration."""
    start: Floats
    """Relative to the start of the column's window, ns."""
    dur: Floats
    transfer: Floats
    """How long the slot's input moved; 0 where it is not known."""
    serial: Bools
    """It moved only after the slot before on the rank had ended."""
    own: Floats
    """How long the slot lasted without waiting for the other ranks of its stage."""
    work: Floats
    """How long it computed; its length without waiting where that is not known."""
    products: Floats
    """How long it multiplied matrices; NaN where that is not known."""

    @property
    def measured(self) -> Floats:
        """Length of each column's window."""
        return np.asarray((self.start + self.dur).max(axis=0))


def flow(nodes: pl.DataFrame) -> tuple[Ints, Ints]:
    """Return (maker, taker) of every input: forwards go up the virtual stages, backwards come down from the last."""
    last = int(nodes["virtual"].to_numpy().max())
    kind, virtual = pl.col("kind"), pl.col("virtual")
    wanted = nodes.select(
        "microbatch",
        taker="node",
        kind=pl.when((kind == "B") & (virtual == last))
        .then(pl.lit("F"))
        .when(kind == "W")
        .then(pl.lit("B"))
        .otherwise(kind),
        virtual=pl.when(kind == "F")
        .then(virtual - 1)
        .when((kind == "B") & (virtual < last))
        .then(virtual + 1)
        .otherwise(virtual),
    )
    both = wanted.join(nodes.select(*_KEY, maker="node"), on=_KEY, how="inner").sort("taker", "maker")
    return both["maker"].to_numpy().astype(np.int64), both["taker"].to_numpy().astype(np.int64)


def alike(slots: pl.DataFrame) -> list[Slots]:
    """Return the slots of a run (of join.slotwork.added, all of them numbered), put together where orders are equal.

    Steps that lack a slot that others have are left out.
    """
    numbered = slots.drop_nulls(["virtual", "microbatch"])
    if not numbered.height:
        return []
    nodes = numbered.select("stage", *_KEY).unique().sort("stage", *_KEY).with_row_index("node")
    nodes = nodes.with_columns(pl.col("node").cast(pl.Int64))
    placed = (
        numbered.join(nodes, on=["stage", *_KEY], how="left")
        .with_columns(dur=pl.col("end_ns") - pl.col("start_ns"))
        .sort("replica", "iteration", "stage", "start_ns", "end_ns", "node")
    )
    found: dict[bytes, list[pl.DataFrame]] = {}
    for part in placed.partition_by("replica", "iteration", maintain_order=True):
        if part.height == nodes.height:
            found.setdefault(part["node"].to_numpy().tobytes(), []).append(part)
    return [_arrays(nodes, parts) for parts in found.values()]


def _arrays(nodes: pl.DataFrame, parts: list[pl.DataFrame]) -> Slots:
    node = parts[0]["node"].to_numpy()
    stage = nodes["stage"].to_numpy()
    shape = (nodes.height, len(parts))
    start, dur, transfer, serial = np.empty(shape), np.empty(shape), np.zeros(shape), np.zeros(shape, np.bool_)
    own, work, products = np.empty(shape), np.empty(shape), np.empty(shape)
    for column, part in enumerate(parts):
        begins = part["start_ns"].to_numpy()
        start[node, column] = begins - begins.min()
        dur[node, column] = part["dur"].to_numpy()
        transfer[node, column] = part["transfer_ns"].fill_null(0).to_numpy()
        serial[node, column] = part["serial"].fill_null(False).to_numpy()
        lasted = part["dur"] - part["wait_ns"].fill_null(0)
        own[node, column] = lasted.to_numpy()
        work[node, column] = part["work_ns"].fill_null(lasted).to_numpy()
        products[node, column] = part["products_ns"].cast(pl.Float64).fill_null(np.nan).to_numpy()
    return Slots(
        plan=Plan(nodes, tuple(node[stage[node] == s] for s in np.unique(stage))),
        columns=pl.concat([part.select("replica", "iteration").head(1) for part in parts]),
        start=start,
        dur=dur,
        transfer=transfer,
        serial=serial,
        own=own,
        work=work,
        products=products,
    )


def slow(slots: Slots) -> Bools:
    """Say which ranks compute longer than their stage's median by more than SLOW: (stages, columns), in each step."""
    stage = slots.plan.nodes["stage"].to_numpy()
    iteration = slots.columns["iteration"].to_numpy()
    work = np.stack([slots.work[stage == s].sum(axis=0) for s in np.unique(stage)])
    answer = np.zeros(work.shape, np.bool_)
    for t in np.unique(iteration):
        mine = iteration == t
        typical = np.quantile(work[:, mine], 0.5, axis=1, method="lower", keepdims=True)
        answer[:, mine] = work[:, mine] > (1 + SLOW) * typical
    return answer


def values(slots: Slots) -> dict[str, Floats]:
    """Return the durations that each rung uses, same shape as `slots.dur`; rungs real and moved use the same."""
    nodes = slots.plan.nodes
    virtual, kind = nodes["virtual"].to_numpy(), nodes["kind"].to_numpy()
    iteration = slots.columns["iteration"].to_numpy()
    place = np.unique(nodes["stage"].to_numpy(), return_inverse=True)[1]
    late = slow(slots)
    even, stages, ranks = (np.empty_like(slots.dur) for _ in range(3))
    for k in np.unique(kind):
        held = [np.flatnonzero((kind == k) & (virtual == u)) for u in np.unique(virtual[kind == k])]
        for t in np.unique(iteration):
            columns = np.flatnonzero(iteration == t)
            medians = []
            for rows in held:
                here = late[place[rows[0]], columns]
                tell = columns[~here] if 2 * here.sum() >= len(columns) else columns
                medians.append(float(np.median(slots.own[np.ix_(rows, tell)])))
                seen = slots.dur if here.any() else slots.own
                ranks[np.ix_(rows, columns)] = np.median(seen[np.ix_(rows, columns)], axis=0)
            for rows, median in zip(held, medians, strict=True):
                stages[np.ix_(rows, columns)] = median
                even[np.ix_(rows, columns)] = np.mean(medians)
    return {"even": even, "stages": stages, "ranks": ranks, "real": slots.dur, "moved": slots.dur}


def stage_work(parts: Sequence[Slots]) -> pl.DataFrame:
    """Return stage and work_ns, what its slots take in the mean step as rung `stages` has them; sorted by stage."""
    found = []
    for slots in parts:
        value, stage = values(slots)["stages"], slots.plan.nodes["stage"].to_numpy()
        found += [(int(s), float(ns)) for s in np.unique(stage) for ns in value[stage == s].sum(axis=0)]
    schema = {"stage": pl.Int32, "work_ns": pl.Float64}
    rows = pl.DataFrame(found, schema=schema, orient="row").sort("stage", "work_ns")
    means = rows.group_by("stage", maintain_order=True).agg(pl.col("work_ns").mean())
    return means.with_columns(pl.col("work_ns").round().cast(pl.Int64)).sort("stage")


def rungs(slots: Slots) -> pl.DataFrame:
    """Return one row a (replica, iteration): T of each rung and its idle as <rung>_ns and <rung>_idle_ns, float ns."""
    columns = dict[str, Floats]()
    for name, value in values(slots).items():
        length = slots.plan.window(value, slots.transfer, slots.serial) if name == "moved" else slots.plan.window(value)
        columns[f"{name}_ns"] = length
        columns[f"{name}_idle_ns"] = slots.plan.stages * length - value.sum(axis=0)
    return slots.columns.with_columns(
        measured_ns=pl.Series(slots.measured), **{name: pl.Series(value) for name, value in columns.items()}
    )


def ladder(rows: pl.DataFrame, bubble_ns: int) -> pl.DataFrame:
    """Return one row a cause and `total`: cause, ns, share of the bubble; parts sum to `bubble_ns` exactly.

    `rows`: what `rungs` returned of the steps that `bubble_ns` is the bubble of, summed over ranks.
    """
    idle = [float(rows[f"{rung}_idle_ns"].sum()) for rung in RUNGS]
    steps = [idle[0], *(after - before for before, after in pairwise(idle))]
    parts = [round(step) for step in steps]
    parts.append(bubble_ns - sum(parts))
    return pl.DataFrame(
        {"cause": [*CAUSES, "total"], "ns": [*parts, bubble_ns]}, schema={"cause": pl.String, "ns": pl.Int64}
    ).with_columns(share=pl.col("ns") / bubble_ns if bubble_ns else pl.lit(None, pl.Float64))


def planned(orders: Sequence[Order], virtual: Sequence[Sequence[int]]) -> Plan:
    """Return the plan of some orders, one a stage; `virtual`: of each stage the virtual stage of each chunk."""
    rows = [
        (stage, virtual[stage][chunk], kind, microbatch)
        for stage, order in enumerate(orders)
        for kind, microbatch, chunk in order
    ]
    schema = {"stage": pl.Int32, "virtual": pl.Int32, "kind": pl.String, "microbatch": pl.Int32}
    nodes = pl.DataFrame(rows, schema=schema, orient="row").with_row_index("node")
    ends = np.cumsum([len(order) for order in orders])
    order = tuple(np.arange(end - len(mine), end) for end, mine in zip(ends, orders, strict=True))
    return Plan(nodes.with_columns(pl.col("node").cast(pl.Int64)), order)


def even_window(orders: Sequence[Order], virtual: Sequence[Sequence[int]], length: dict[str, float]) -> float:
    """Return T of a schedule with the same length for every slot of a kind, free transfers and no gaps.

    `orders`, `virtual`: as for `planned`; `length`: of each kind.
    """
    plan = planned(orders, virtual)
    value = plan.nodes["kind"].replace_strict(length, return_dtype=pl.Float64).to_numpy()
    return float(plan.window(value[:, None])[0])
