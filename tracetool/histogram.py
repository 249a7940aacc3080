"""Durations counted instead of kept: quantiles over the events of all ranks from what little each rank hands over."""

from __future__ import annotations

import polars as pl


def histogram(durations: pl.DataFrame, limit: int) -> tuple[pl.DataFrame, int]:
    """Count the durations of each key in at most `limit` pairs.

    Returns (key, dur_ns, count) sorted by (key, dur_ns), and the number of leading binary digits that were kept, 0
    when durations are exact. A rounded duration stands in the middle of the range it stands for.
    """
    for bits in (0, 12, 10, 8, 6, 4):
        found = durations
        if bits:
            # a double holds integers below 2^53 exactly, so frexp by logarithm may only be off by one digit
            digits = (pl.col("dur_ns").clip(1).log(2).floor().cast(pl.Int64) + 1 - bits).clip(0)
            width = pl.lit(2, pl.Int64).pow(digits).cast(pl.Int64)
            found = durations.with_columns(dur_ns=pl.col("dur_ns") // width * width + (width - 1) // 2)
        counted = found.group_by("key", "dur_ns").agg(count=pl.len().cast(pl.Int64)).sort("key", "dur_ns")
        if counted.height <= limit:
            return counted, bits
    return counted, bits


def quantiles(counted: pl.DataFrame, key: str) -> pl.DataFrame:
    """Return (key, p50_ns, p99_ns) from (key, dur_ns, count): type 7 of Hyndman and Fan, whole ns; by key."""
    ordered = counted.group_by(key, "dur_ns").agg(pl.col("count").sum()).sort(key, "dur_ns")
    upto = pl.col("count").cum_sum()
    found = []
    for name, percentile in (("p50_ns", 50), ("p99_ns", 99)):
        # in hundredths of a position, so that no float decides which order statistic it is
        place = (pl.col("count").sum() - 1) * percentile
        low = pl.col("dur_ns").filter(upto > place // 100).first()
        high = pl.col("dur_ns").filter(upto > (place + 99) // 100).first()
        found.append((low + (high - low) * (place % 100) / 100).round().cast(pl.Int64).alias(name))
    return ordered.group_by(key).agg(found).sort(key)
