"""FLOPs of one rank as small tables: what ran in its steps, how much of its kernel time that explains, who it is.

Shared by the questions about MFU and the roofline, so that both count the same operators.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import polars as pl

from tracetool import intervals
from tracetool.join.groups import role_by_name
from tracetool.mfu.executed import Executed, executed
from tracetool.mfu.op_arguments import items
from tracetool.store import StoredRank

if TYPE_CHECKING:
    from tracetool.registry import RankView
    from tracetool.settings import Settings

NOT_MODEL: Final = ("recompute", "optimizer")
"""Phases whose FLOPs are executed but are not the model's."""
FIGURES: Final = ("full", "causal", "model_full", "model_causal")

_TIME: Final = pl.when(pl.col("kernel_ns").count() > 0).then(pl.col("kernel_ns").sum())
"""Kernel time; null without GPU activity, where it is not known."""
_SOFTMAX: Final = r"^aten::(_softmax|_safe_softmax)$|^\w*MaskedSoftmax$"
"""PyTorch's own, and Megatron-LM's fused ones; innermost, once a call."""
_ROUTED: Final = re.compile(r"(?i)grouped_mm|grouped_gemm|groupedlinear|(?<![a-z])moe(?![a-z])|deep_ep|moe_")


@dataclass(frozen=True, eq=False)
class RankFlops:
    """One rank: `found` of the whole recording, `calls` only those launched in its steps."""

    found: Executed
    calls: pl.DataFrame
    gpu: pl.DataFrame
    steps: pl.DataFrame


def rank_flops(rank: RankView, settings: Settings) -> RankFlops:
    """Read a rank and count what ran.

    A call belongs to the step that launched it; what was launched outside all steps is not in `calls`. A recording
    without step ranges is one window that holds every call. FLOPs of a fused backward's recomputation, of
    checkpointing and of the optimizer are zero in the model's columns. The last answer for a stored rank is kept:
    several analyses ask the same of it, one after the other.
    """
    return _kept(rank, settings) if isinstance(rank, StoredRank) else _counted(rank, settings)


@lru_cache(maxsize=1)
def _kept(rank: RankView, settings: Settings) -> RankFlops:
    return _counted(rank, settings)


def _counted(rank: RankView, settings: Settings) -> RankFlops:
    steps = rank.table("steps", ["step", "start_ns", "end_ns"])
    gpu = rank.table("gpu", ["event", "start_ns", "dur_ns", "kind", "name", "launch", "op", "step", "phase"])
    if settings.steps is not None:  # orphans count where they run inside a step that was asked for
        chosen = pl.col("step").is_in(steps["step"].drop_nulls().implode())
        lone = pl.col("launch").is_null() & pl.col("op").is_null()
        inside = intervals.covered(intervals.spans(gpu), steps.select("start_ns", "end_ns")) > 0
        gpu = gpu.filter(chosen.fill_null(value=False) | (lone & inside))
    found = executed(
        rank.table("events", ["event", "name"]),
        rank.table("links", ["event", "parent", "step", "phase"]),
        gpu,
        rank.table("op_shapes"),
    )
    calls = found.calls
    if not _one_window(steps):
        calls = calls.filter(pl.col("step").is_in(steps["step"].drop_nulls().implode()).fill_null(value=False))
    else:
        calls = calls.with_columns(step=pl.lit(None, pl.Int32))
    useful = ~pl.col("phase").fill_null("other").is_in(NOT_MODEL)
    calls = calls.with_columns(
        (pl.when(useful).then(pl.col(name)).otherwise(0)).alias(name) for name in ("model_full", "model_causal")
    )
    return RankFlops(found, calls, gpu, steps)


def _one_window(steps: pl.DataFrame) -> bool:
    return steps.height == 1 and steps["step"][0] is None


def by_step(rank: int, calls: pl.DataFrame) -> pl.DataFrame:
    """Return FLOPs by step, phase and number format, sorted by all of them."""
    keys = ["step", "phase", "dtype", "peak_dtype"]
    return (
        calls.group_by(keys)
        .agg(
            *(pl.col(name).sum() for name in FIGURES),
            calls=pl.len().cast(pl.Int64),
            kernel_ns=_TIME,
        )
        .sort(keys)
        .select(pl.lit(rank, pl.Int32).alias("rank"), *keys, *FIGURES, "calls", "kernel_ns")
    )


OP_KEYS: Final = ("op", "family", "shape", "dtype", "peak_dtype", "backward")


def by_shape(rank: int, calls: pl.DataFrame) -> pl.DataFrame:
    """Return count, FLOPs, bytes and kernel time by operator and shape, the most FLOPs first."""
    return (
        calls.with_columns(op="name", flags=pl.col("flags").list.join(", "))
        .group_by(OP_KEYS)
        .agg(
            count=pl.len().cast(pl.Int64),
            flops=pl.col("full").sum(),
            flops_causal=pl.col("causal").sum(),
            model_flops=pl.col("model_full").sum(),
            moved_bytes=pl.col("moved_bytes").sum(),
            kernel_ns=_TIME,
            flags=pl.col("flags").max(),
        )
        .sort("flops", *OP_KEYS, descending=[True] + [False] * len(OP_KEYS))
        .select(pl.lit(rank, pl.Int32).alias("rank"), pl.all())
    )


def by_phase(rank: int, data: RankFlops) -> pl.DataFrame:
    """Return the time at least one compute kernel of a phase ran, by step and phase (union, ns)."""
    busy = data.gpu.filter((pl.col("kind") == "compute") & pl.col("launch").is_not_null())
    if not _one_window(data.steps):
        busy = busy.filter(pl.col("step").is_in(data.steps["step"].drop_nulls().implode()).fill_null(value=False))
    spans = intervals.spans(busy.with_columns(pl.col("phase").cast(pl.String)), by=["step", "phase"])
    found = intervals.length(spans, by=["step", "phase"]).rename({"ns": "gpu_ns"})
    return found.sort("step", "phase").select(pl.lit(rank, pl.Int32).alias("rank"), "step", "phase", "gpu_ns")


def traits(rank: RankView, data: RankFlops) -> pl.DataFrame:
    """Return one row: the rank's place in the pipeline, whether it routes tokens, lengths seen, what was left out."""
    stage, stages, expert = _place(rank)
    names = rank.table("events", ["name"])["name"].unique().cast(pl.String)
    routed = expert or any(_ROUTED.search(name) for name in names.drop_nulls())
    sequence, tokens = _tokens(rank, data)
    found = data.found
    return pl.DataFrame(
        {
            "rank": [rank.rank],
            "stage": [stage],
            "stages": [stages],
            "experts": [routed],
            "sequence": [sequence],
            "tokens": [tokens],
            "gpu_events": [data.gpu.height],
            "calls": [data.calls.height],
            "outside_calls": [found.calls.height - data.calls.height],
            "phantom_calls": [found.phantom.height],
            "phantom_flops": [found.phantom["full"].sum()],
            "square_softmax": [_square_softmax(rank, data)],
        },
        schema={
            "rank": pl.Int32, "stage": pl.Int32, "stages": pl.Int32, "experts": pl.Boolean, "sequence": pl.Int64,
            "tokens": pl.Int64, "gpu_events": pl.Int64, "calls": pl.Int64, "outside_calls": pl.Int64,
            "phantom_calls": pl.Int64, "phantom_flops": pl.Int64, "square_softmax": pl.Int64,
        },
    )  # fmt: skip


def _place(rank: RankView) -> tuple[int | None, int, bool]:
    """Return (stage, number of stages, experts are spread) from the process groups that this rank lists."""
    listed = rank.table("process_groups", ["group", "desc", "ranks"]).rename({"group": "name"})
    roles = [role_by_name(row["desc"]) or role_by_name(row["name"]) for row in listed.iter_rows(named=True)]
    groups = listed.select("ranks", role=pl.Series(roles, dtype=pl.String))
    return place(groups, rank.rank)


def place(groups: pl.DataFrame, rank: int) -> tuple[int | None, int, bool]:
    """Return (stage, number of stages, experts are spread) of a rank from groups (columns ranks, role).

    The stage is the rank's position in the smallest pipeline group that has it; stages are counted even where no
    group has it, because then its stage is not known.
    """
    several = groups.filter(pl.col("ranks").list.len().fill_null(0) > 1)
    expert = "ep" in several["role"].to_list()
    pipelines = sorted(several.filter(pl.col("role") == "pp")["ranks"].to_list(), key=lambda ranks: (len(ranks), ranks))
    own = next((ranks for ranks in pipelines if rank in ranks), None)
    if own is not None:
        return own.index(rank), len(own), expert
    return None, len(pipelines[0]) if pipelines else 1, expert


def _tokens(rank: RankView, data: RankFlops) -> tuple[int | None, int | None]:
    """Return (sequence length, tokens a step) as the embedding and attention of this rank saw them.

    The embedding with the most rows is the vocabulary's (others embed positions); attention's keys tell the length
    better where tokens of one sequence are spread over ranks.
    """
    keys = (
        data.calls.filter(pl.col("family") == "attention")["shape"].str.extract(r"×(\d+), width").cast(pl.Int64).max()
    )
    shapes = rank.table("op_shapes", ["event", "input_dims"])
    names = rank.table("events", ["event", "name"])
    about = rank.table("links", ["event", "step", "phase"])
    looked = (
        names.filter(pl.col("name").cast(pl.String) == "aten::embedding")
        .join(shapes, on="event")
        .join(about, on="event")
        .filter(pl.col("phase").cast(pl.String).fill_null("forward") == "forward")
    )
    if not _one_window(data.steps):
        looked = looked.filter(pl.col("step").is_in(data.steps["step"].drop_nulls().implode()).fill_null(value=False))
    counts = looked.group_by(pl.col("input_dims").cast(pl.String)).agg(pl.len()).sort("input_dims")
    found = []
    for text, calls in counts.iter_rows():
        dims = items(text)
        if len(dims) < 2 or not all(isinstance(size, list) and size for size in dims[:2]):  # noqa: PLR2004
            continue
        weight, index = dims[0], dims[1]
        if isinstance(weight, list) and isinstance(index, list) and all(isinstance(n, int) for n in [*weight, *index]):
            found.append((weight[0], index, calls))
    rows = max((row for row, _, _ in found), default=0)
    chosen = [(index, calls) for row, index, calls in found if row == rows]
    lengths = [index[-1] for index, _ in chosen if len(index) > 1]
    total = sum(_product(index) * calls for index, calls in chosen)
    steps = max(data.steps.height, 1)
    tokens = total // steps if total and total % steps == 0 else None
    return (keys if isinstance(keys, int) else max(lengths, default=None)), tokens


def _square_softmax(rank: RankView, data: RankFlops) -> int:
    """Return how often a softmax ran over scores […, S, S]: attention as plain products, causal or not."""
    names = rank.table("events", ["event", "name"])
    looked = (
        names.filter(pl.col("name").cast(pl.String).str.contains(_SOFTMAX))
        .join(rank.table("op_shapes", ["event", "input_dims"]), on="event")
        .join(rank.table("links", ["event", "step"]), on="event")
    )
    if not _one_window(data.steps):
        looked = looked.filter(pl.col("step").is_in(data.steps["step"].drop_nulls().implode()).fill_null(value=False))
    counts = looked.group_by(pl.col("input_dims").cast(pl.String)).agg(pl.len())
    return sum(calls for text, calls in counts.sort("input_dims").iter_rows() if _is_square(items(text)))


def _is_square(dims: tuple[object, ...]) -> bool:
    """Say whether the first tensor is […, S, S] with at least one size before."""
    scores = dims[0] if dims else None
    return isinstance(scores, list) and len(scores) > 2 and scores[-1] == scores[-2] != 1  # noqa: PLR2004


def _product(sizes: list[int]) -> int:
    result = 1
    for size in sizes:
        result *= size
    return result
