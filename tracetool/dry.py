"""What a GPU that does not compute waits for: data, other ranks, or its host."""

from __future__ import annotations

from typing import Final

import polars as pl

_TOLD: Final = ("symmetric", "arrival", "slots", "partial")
"""Bases of waits that tell waiting from moving."""


def split(comm: pl.DataFrame, waits: pl.DataFrame | None) -> pl.DataFrame:
    """Add to each communication `moves_ns` (w, clamped to it), `pipeline` (its role is pp) and `told` (w is known).

    `comm` has event, start_ns, end_ns; `waits` is the fact of that name, None before the join. Row order is kept.
    """
    if waits is None:
        return comm.with_columns(moves_ns=pl.col("start_ns"), pipeline=pl.lit(False), told=pl.lit(False))
    known = waits.select("event", "wait_end_ns", "role", "basis").unique("event", keep="first", maintain_order=True)
    return comm.join(known, on="event", how="left", maintain_order="left").with_columns(
        moves_ns=pl.col("wait_end_ns").fill_null(pl.col("start_ns")).clip(pl.col("start_ns"), pl.col("end_ns")),
        pipeline=(pl.col("role") == "pp").fill_null(False),
        told=(pl.col("wait_end_ns").is_not_null() & pl.col("basis").is_in(_TOLD)).fill_null(False),
    )


def host_stretches(gpu: pl.DataFrame) -> pl.DataFrame:
    """Return the dry stretches that end with the launch call of the next activity and began before it: host_bound.

    `gpu` has start_ns, end_ns, launch_start_ns, launch_end_ns, sorted by start and longer first. Half-open, disjoint.
    """
    dry = pl.col("end_ns").cum_max().shift(1)
    return (
        gpu.select("start_ns", "launch_start_ns", "launch_end_ns", dry=dry)
        .filter((pl.col("start_ns") > pl.col("dry")) & (pl.col("launch_start_ns") > pl.col("dry")))
        .select(pl.col("dry").alias("start_ns"), end_ns=pl.min_horizontal("start_ns", "launch_end_ns"))
    )
