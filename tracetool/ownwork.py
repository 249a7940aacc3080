"""What one rank does itself in each step: compute, gaps that its host left, and how much its operators were given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import polars as pl

from tracetool import intervals
from tracetool.join.blame import WORK

if TYPE_CHECKING:
    from tracetool.registry import RankView
    from tracetool.tables import Tables

_KERNELS_KEPT: Final = 400


def own_work(rank: RankView) -> Tables:
    """Return `work` (blame.WORK, a row a step) and `kernels` (name, count, ns of the compute that took longest).

    A gap of the host belongs to the step whose launch it came before.
    """
    windows = rank.table("steps", ["rank", "step", "start_ns", "end_ns", "range_start_ns"]).sort("start_ns", "end_ns")
    columns = ["event", "start_ns", "dur_ns", "kind", "name", "launch_start_ns", "launch_end_ns", "step", "op"]
    gpu = (
        rank.table("gpu", columns)
        .with_columns(end_ns=pl.col("start_ns") + pl.col("dur_ns"))
        .sort(["start_ns", "dur_ns", "event"], descending=[False, True, False])
    )
    compute = gpu.filter(pl.col("kind") == "compute")
    # before the first activity the host's own time counts from where the first step's range begins
    began = windows["range_start_ns"].min()
    dry = pl.col("end_ns").cum_max().shift(1).fill_null(pl.lit(began, pl.Int64))
    gaps = (
        gpu.select("start_ns", "launch_start_ns", "launch_end_ns", "step", dry=dry)
        .filter((pl.col("start_ns") > pl.col("dry")) & (pl.col("launch_start_ns") > pl.col("dry")))
        .select("step", pl.col("dry").alias("start_ns"), end_ns=pl.min_horizontal("start_ns", "launch_end_ns"))
    )
    longest = (
        gaps.with_columns(ns=pl.col("end_ns") - pl.col("start_ns"))
        .sort("ns", "start_ns", descending=[True, False])
        .group_by("step", maintain_order=True)
        .agg(host_ns=pl.col("ns").sum(), host_at_ns=pl.col("start_ns").first())
        .sort("step")
    )
    comms = rank.table("comms", ["step", "bytes"]).group_by("step").agg(pl.col("bytes").sum())
    work = (
        windows.with_columns(
            self_ns=intervals.covered(windows, compute.select("start_ns", "end_ns")),
        )
        .join(_longest(windows, compute.select("start_ns", "end_ns")), on="step", how="left", nulls_equal=True)
        .join(longest, on="step", how="left", nulls_equal=True)
        .join(comms, on="step", how="left", nulls_equal=True)
        .join(_elements(rank, compute), on="step", how="left", nulls_equal=True)
        .with_columns(pl.col("bytes", "host_ns").fill_null(0))
        .sort("start_ns")
        .select(pl.col(name).cast(dtype) for name, dtype in WORK.items())
    )
    kernels = (
        compute.group_by(pl.col("name").cast(pl.String))
        .agg(count=pl.len().cast(pl.Int64), ns=pl.col("dur_ns").sum())
        .sort("ns", "name", descending=[True, False])
        .head(_KERNELS_KEPT)
        .select(pl.lit(rank.rank, pl.Int32).alias("rank"), "name", "count", "ns")
    )
    return {"work": work, "kernels": kernels}


def _longest(windows: pl.DataFrame, spans: pl.DataFrame) -> pl.DataFrame:
    """Return where the longest island of the spans begins in each window, by step."""
    cut = intervals.cover(windows.select("start_ns", "end_ns"), [spans]).filter(pl.col("layer") == 0)
    first = cut.sort(pl.col("end_ns") - pl.col("start_ns"), "start_ns", descending=[True, False]).unique(
        "window", keep="first", maintain_order=True
    )
    numbered = windows.select("step").with_row_index("window")
    return first.join(numbered, on="window").select("step", at_ns="start_ns").sort("step")


def _elements(rank: RankView, compute: pl.DataFrame) -> pl.DataFrame:
    """Return the elements of the inputs of all operators that launched compute, by step; null without shapes."""
    ops = compute.filter(pl.col("op").is_not_null()).select("op", "step").unique()
    shapes = rank.table("op_shapes", ["event", "input_dims"]).filter(pl.col("input_dims").is_not_null())
    if not shapes.height or not ops.height:
        return pl.DataFrame(schema={"step": pl.Int32, "elements": pl.Int64})
    texts = shapes.select(pl.col("input_dims").cast(pl.String)).unique()
    # innermost brackets are tensors: their elements are the product of the numbers in them
    tensors = (
        texts.with_columns(tensor=pl.col("input_dims").str.extract_all(r"\[(\d[\d, ]*)\]"))
        .explode("tensor", empty_as_null=True, keep_nulls=False)
        .with_columns(
            elements=pl.col("tensor")
            .str.extract_all(r"\d+")
            .list.eval(pl.element().cast(pl.Float64, strict=False))
            .list.eval(pl.element().product())
            .list.first()
        )
        .group_by("input_dims")
        .agg(pl.col("elements").sum())
    )
    return (
        ops.join(shapes.with_columns(pl.col("input_dims").cast(pl.String)), left_on="op", right_on="event")
        .join(tensors, on="input_dims", how="left")
        .group_by("step")
        # damaged sizes may be beyond all numbers
        .agg(elements=pl.col("elements").fill_null(0.0).sum().round().clip(upper_bound=2.0**60).cast(pl.Int64))
        .sort("step")
    )
