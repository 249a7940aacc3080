"""What a matched group sends back: sums by operation and size, its worst instances, ends for the clocks."""

from __future__ import annotations

import polars as pl

from tracetool.join.clocks import SAMPLE_SCHEMA
from tracetool.join.match import SYMMETRIC_OPS


def sums(matched: pl.DataFrame, waits: pl.DataFrame, group_id: int) -> pl.DataFrame:
    """Return one row (group_id, op, bytes, step) with instances, members, wait_ns, move_ns, transfer_ns.

    wait_ns and move_ns sum over members; transfer_ns sums over instances the time in which data moved: for symmetric
    operations the shortest stay, for others the longest of the members' moving parts. Only matched rows count;
    sorted by its key.
    """
    split = _split(matched, waits)
    instances = split.group_by("op", "bytes", "step", "instance").agg(
        members=pl.len(),
        wait_ns=pl.col("wait_ns").sum(),
        move_ns=pl.col("move_ns").sum(),
        transfer_ns=pl.when(pl.col("op").first().is_in(SYMMETRIC_OPS))
        .then(pl.col("dur_ns").min())
        .otherwise(pl.col("move_ns").max()),
    )
    return (
        instances.group_by("op", "bytes", "step")
        .agg(
            instances=pl.len().cast(pl.Int64),
            members=pl.col("members").sum().cast(pl.Int64),
            wait_ns=pl.col("wait_ns").sum(),
            move_ns=pl.col("move_ns").sum(),
            transfer_ns=pl.col("transfer_ns").sum(),
        )
        .sort("op", "bytes", "step")
        .select(pl.lit(group_id, dtype=pl.Int32).alias("group_id"), pl.all())
    )


def worst(matched: pl.DataFrame, waits: pl.DataFrame, group_id: int, most: int) -> pl.DataFrame:
    """Return the instances with the largest summed wait, at most `most`: who came last, and how long the rest waited.

    Columns: group_id, instance, op, bytes, step, members, wait_ns (sum), transfer_ns, shortest_rank (the member with
    the shortest stay: for symmetric operations the one the others waited for), start_ns and rank of that member.
    """
    split = _split(matched, waits).sort("instance", "dur_ns", "rank")
    return (
        split.group_by("instance", maintain_order=True)
        .agg(
            op=pl.col("op").first(),
            bytes=pl.col("bytes").first(),
            step=pl.col("step").first(),
            members=pl.len().cast(pl.Int32),
            wait_ns=pl.col("wait_ns").sum(),
            transfer_ns=pl.col("dur_ns").first(),
            shortest_rank=pl.col("rank").first(),
            start_ns=pl.col("start_ns").first(),
        )
        .sort(["wait_ns", "instance"], descending=[True, False])
        .head(most)
        .select(pl.lit(group_id, dtype=pl.Int32).alias("group_id"), pl.all())
    )


def clock_samples(matched: pl.DataFrame, group_id: int, most: int) -> pl.DataFrame:
    """Return the ends of at most `most` symmetric instances, spread evenly, as clocks.SAMPLE_SCHEMA.

    all_to_all and barrier are left out: their members need not leave together.
    """
    usable = matched.filter(
        pl.col("instance").is_not_null()
        & (pl.col("present") > 1)
        & pl.col("op").is_in(["all_reduce", "all_gather", "reduce_scatter"])
    )
    order = usable.select(pl.col("instance").unique().sort())
    if not order.height or not most:
        return pl.DataFrame(schema=SAMPLE_SCHEMA)
    every = -(-order.height // most)
    return usable.join(order.gather_every(every), on="instance", how="semi", maintain_order="left").select(
        "rank",
        instance=pl.col("instance") + (group_id << 40),
        op="op",
        size=pl.col("present").cast(pl.Int32),
        end_ns=pl.col("start_ns") + pl.col("dur_ns"),
    )


def _split(matched: pl.DataFrame, waits: pl.DataFrame) -> pl.DataFrame:
    """Return matched rows with wait_ns and move_ns."""
    return (
        matched.filter(pl.col("instance").is_not_null())
        .join(waits.select("rank", "event", "wait_end_ns"), on=["rank", "event"], how="inner", maintain_order="left")
        .filter(pl.col("wait_end_ns").is_not_null())
        .with_columns(wait_ns=pl.col("wait_end_ns") - pl.col("start_ns"))
        .with_columns(move_ns=pl.col("dur_ns") - pl.col("wait_ns"))
    )
