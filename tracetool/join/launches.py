"""Who launches last: stragglers from creation times alone, without any timing of the GPU.

For each collective that all members of its group recorded, the lateness of a rank is its launch minus the first
one. True as far as the clocks agree: on one host always, between hosts only if lateness is far above their error.
A constant error of a clock looks the same, which is why this names nobody by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

if TYPE_CHECKING:
    from tracetool.join.hangstate import State

SCHEMA = {
    "rank": pl.Int32, "operations": pl.Int64, "last": pl.Int64, "share": pl.Float64, "median_lateness_ns": pl.Int64,
}  # fmt: skip


def launch_order(state: State, launches: pl.DataFrame) -> pl.DataFrame:
    """Return, per rank, in how many collectives it took part and launched last; the most frequent last one first.

    `launches` has rank, group (name), number and created_unix_ns of the collectives that each rank recorded.
    Groups of one member and collectives that a member did not record do not count.
    """
    sizes = pl.DataFrame(
        {
            "group_id": pl.Series(range(len(state.groups)), dtype=pl.Int32),
            "size": pl.Series([len(group.ranks) for group in state.groups], dtype=pl.UInt32),
        }
    )
    key = ["group_id", "number"]
    rows = (
        launches.join(state.keys, on=["rank", "group"])
        .join(sizes, on="group_id")
        .filter((pl.col("size") > 1) & (pl.len().over(key) == pl.col("size")))
        .sort(*key, "created_unix_ns", "rank")
        .with_columns(
            late=pl.col("created_unix_ns") - pl.col("created_unix_ns").min().over(key),
            last=pl.col("rank") == pl.col("rank").last().over(key),
        )
    )
    return (
        rows.group_by("rank")
        .agg(
            pl.len().cast(pl.Int64).alias("operations"),
            pl.col("last").sum().cast(pl.Int64),
            pl.col("late").median().round().cast(pl.Int64).alias("median_lateness_ns"),
        )
        .with_columns(share=pl.col("last") / pl.col("operations"))
        .select(pl.col(name).cast(dtype) for name, dtype in SCHEMA.items())
        .sort("last", "rank", descending=[True, False])
    )
