"""Ranges that nest on a thread: which range a point lies in; names as PyTorch writes them into ranges.

One sweep a thread instead of an interval join, which does not scale: opening and closing a range add and take away
one level; the level at a point and the latest range opened at that level name the innermost range. Cost is that of
one sort. Where ranges cross (NVTX domains are stacks of their own) every domain is swept alone.
"""

from __future__ import annotations

from typing import Final

import polars as pl

_CLOSE: Final = 0
_OPEN: Final = 1
_POINT: Final = 2


def innermost(ranges: pl.DataFrame, points: pl.DataFrame) -> pl.Series:
    """Return for each point, in row order, the row number of the innermost range [start, end) around it, or null.

    `ranges` has `thread, start_ns, end_ns` and optionally `domain`; `points` has `thread, at_ns`. Threads are equal
    integers. Empty ranges hold nothing.
    """
    ranges = ranges.select("thread", "start_ns", "end_ns", *(["domain"] if "domain" in ranges.columns else []))
    found = _sweep(ranges.with_columns(lane=pl.lit(0, pl.Int64)), points)
    if "domain" not in ranges.columns or not _cross(ranges):
        return found
    domains = ranges.select("thread", lane="domain").unique()
    points = points.select("thread", "at_ns")
    numbered = points.with_row_index("point").join(domains, on="thread").sort("point", "lane", maintain_order=True)
    hits = _sweep(ranges.rename({"domain": "lane"}), numbered)
    best = (
        numbered.select("point", range=hits)
        .drop_nulls("range")
        .with_columns(start_ns=pl.col("range").map_batches(ranges["start_ns"].gather))
        .sort("point", "start_ns", "range")
        .group_by("point", maintain_order=True)
        .last()
    )
    return points.with_row_index("point").join(best, on="point", how="left", maintain_order="left")["range"]


def nest(ranges: pl.DataFrame) -> pl.DataFrame:
    """Return `parent` (row number of the range around each range's start that opened before it, or null) and `depth`.

    One row a range, in row order; empty ranges have neither parent nor depth. Columns as for `innermost`.
    """
    sequence = _sequence(ranges.with_columns(lane=pl.lit(0, pl.Int64)), None)
    opened = sequence.filter(pl.col("what") == _OPEN)
    inner = opened.select("thread", "lane", "position", "row", level=pl.col("level") - 1)
    outer = opened.select("thread", "lane", "level", "position", parent="row")
    found = _latest(inner, outer).select("row", "parent", depth=pl.col("level").cast(pl.Int32))
    return (
        ranges.with_row_index("row")
        .select("row")
        .join(found, on="row", how="left", maintain_order="left")
        .select("parent", "depth")
    )


def torch_names(names: pl.Series) -> pl.DataFrame:
    """Split names as torch.autograd.profiler.emit_nvtx writes them: `name, sequence, input_dims, is_op`, in row order.

    `aten::mul, seq = 7, op_id = 9, sizes = [[2, 3], []]` is the operator `aten::mul` with sequence 7 and those sizes
    (pytorch/pytorch torch/csrc/profiler/util.cpp, getNvtxStr and shapesToStr). Operators and user ranges are written
    alike: one with a sequence number, or of the form namespace::name, is an operator; the rest are annotations.
    """
    unique = names.unique(maintain_order=True)
    text = pl.col("full")
    has_suffix = text.str.contains(r", (?:seq|op_id|sizes) = ")
    name = pl.when(has_suffix).then(text.str.replace(r"(?s), (?:seq|op_id|sizes) = .*$", "")).otherwise(text)
    operator = (
        pl.col("name").str.contains(r"^(?:\w+::)+[\w.~]+$|^autograd::engine::evaluate_function: |^\w+_$|Backward\d*$")
        & ~pl.col("name").str.contains(r"^FSDP::")
    ) | (pl.col("name") == "record_param_comms")
    split = (
        pl.DataFrame({"full": unique})
        .with_columns(
            name=name,
            sequence=text.str.extract(r", seq = (\d+)").cast(pl.Int64, strict=False),
            input_dims=text.str.extract(r", sizes = (\[.*?\])(?:, input_op_ids|$)"),
            has_suffix=has_suffix,
        )
        .with_columns(is_op=pl.col("has_suffix") & (pl.col("sequence").is_not_null() | operator))
    )
    return (
        pl.DataFrame({"full": names})
        .join(split, on="full", how="left", maintain_order="left", nulls_equal=True)
        .select("name", "sequence", "input_dims", pl.col("is_op").fill_null(False))
    )


def _sweep(ranges: pl.DataFrame, points: pl.DataFrame) -> pl.Series:
    lane = pl.col("lane") if "lane" in points.columns else pl.lit(0, pl.Int64)
    sequence = _sequence(ranges, points.select("thread", "at_ns", lane=lane))
    asked = sequence.filter(pl.col("what") == _POINT).select("thread", "lane", "level", "position", "row", "at_ns")
    opened = sequence.filter(pl.col("what") == _OPEN).select("thread", "lane", "level", "position", found="row")
    hits = _latest(asked, opened)
    ends = ranges.select("end_ns").with_row_index("found")
    # ranges that cross leave a level to one that has ended: that is no answer
    hits = hits.join(ends, on="found", how="left").select(
        "row", range=pl.when(pl.col("end_ns") > pl.col("at_ns")).then(pl.col("found"))
    )
    numbered = pl.DataFrame({"row": pl.arange(0, points.height, dtype=pl.UInt32, eager=True)})
    return numbered.join(hits, on="row", how="left", maintain_order="left")["range"]


def _sequence(ranges: pl.DataFrame, points: pl.DataFrame | None) -> pl.DataFrame:
    """Return openings, closings and points in order of time, each with its level after it and its place."""
    spans = ranges.select("thread", "lane", "start_ns", "end_ns")
    real = spans.with_row_index("row").filter(pl.col("end_ns") > pl.col("start_ns"))
    parts = [
        real.select("thread", "lane", "row", at_ns="start_ns", what=pl.lit(_OPEN, pl.Int8), tie=-pl.col("end_ns")),
        real.select("thread", "lane", "row", at_ns="end_ns", what=pl.lit(_CLOSE, pl.Int8), tie=pl.lit(0, pl.Int64)),
    ]
    if points is not None:
        parts.append(
            points.select("thread", "lane", "at_ns")
            .with_row_index("row")
            .select("thread", "lane", "row", "at_ns", what=pl.lit(_POINT, pl.Int8), tie=pl.lit(0, pl.Int64))
        )
    step = pl.when(pl.col("what") == _OPEN).then(1).when(pl.col("what") == _CLOSE).then(-1).otherwise(0)
    return (
        pl.concat(parts)
        .sort("thread", "lane", "at_ns", "what", "tie", "row")
        .drop("tie")
        .with_columns(level=step.cast(pl.Int32).cum_sum())  # every thread and lane ends at level 0
        .with_row_index("position")
    )


def _latest(asked: pl.DataFrame, opened: pl.DataFrame) -> pl.DataFrame:
    """Join to each row the latest opening of its thread, lane and level that stands before it."""
    return asked.sort("position").join_asof(
        opened.sort("position"),
        on="position",
        by=["thread", "lane", "level"],
        strategy="backward",
        check_sortedness=False,  # polars cannot check it per group; both are sorted just above
    )


def _cross(ranges: pl.DataFrame) -> bool:
    """Say whether some range ends after the one it began in."""
    parents = nest(ranges)["parent"]
    return bool((ranges["end_ns"] > ranges["end_ns"].gather(parents)).any())
