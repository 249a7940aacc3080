"""What a matched group sends back: sums by operation and size, its worst instances, ends for the clocks."""

from __future__ import annotations

from typing import Final

import polars as pl

from tracetool.join.clocks import PAIR_SCHEMA, SAMPLE_SCHEMA
from tracetool.join.match import P2P_OPS, SYMMETRIC_OPS

_KNOWN: Final = ("symmetric", "arrival", "slots", "partial")
_KEY: Final = ("op", "bytes", "step", "low_rank", "high_rank")
_MOST_SIZES: Final = 64
"""Sizes an operation of a group keeps apart; with more of them they are put together by powers of two."""
_PAIRS_KEPT: Final = 256
"""Tightest sends and receives of each direction between two ranks that come back for the clocks."""


def sums(matched: pl.DataFrame, waits: pl.DataFrame, group_id: int) -> pl.DataFrame:
    """Return one row a (group_id, op, bytes, step, pair of ranks for sends and receives), sorted by it.

    instances, members, partial (instances that lack a member), bytes_total; wait_ns and move_ns sum over members;
    transfer_ns sums over instances the time in which data moved: for symmetric operations the shortest stay, for
    others the longest of the members' moving parts; transfer_p50_ns, transfer_min_ns, transfer_max_ns are of one
    instance. untold, untold_ns: communications whose waiting is not known, and their duration; they are in none of
    the others. bytes: of an instance, the largest of its members'; operations with many sizes are put together by
    powers of two. A send and its receive are one instance of op send_recv.
    """
    rows = _split(matched, waits).with_columns(
        op=pl.when(pl.col("op").is_in(["send", "recv"])).then(pl.lit("send_recv")).otherwise("op"),
        low_rank=pl.when(pl.col("op").is_in(P2P_OPS)).then(pl.min_horizontal("rank", "peer")),
        high_rank=pl.when(pl.col("op").is_in(P2P_OPS)).then(pl.max_horizontal("rank", "peer")),
    )
    told = rows.filter("told")
    instances = told.group_by("instance").agg(
        *(pl.col(name).first() for name in ("op", "step", "low_rank", "high_rank")),
        pl.col("bytes").max(),
        members=pl.len().cast(pl.Int64),
        partial=(pl.col("basis") == "partial").any(),
        wait_ns=pl.col("wait_ns").sum(),
        move_ns=pl.col("move_ns").sum(),
        transfer_ns=_transfer(),
    )
    untold = rows.filter(~pl.col("told"))
    sizes = pl.concat([instances.select("op", "bytes"), untold.select("op", "bytes")])
    counts = sizes.group_by("op").agg(n=pl.col("bytes").n_unique())
    many = counts.filter(pl.col("n") > _MOST_SIZES)["op"].to_list()
    cells = (
        instances.with_columns(size=_size(many))
        .group_by("op", "size", "step", "low_rank", "high_rank")
        .agg(
            instances=pl.len().cast(pl.Int64),
            members=pl.col("members").sum(),
            partial=pl.col("partial").sum().cast(pl.Int64),
            bytes_total=pl.col("bytes").sum(),
            wait_ns=pl.col("wait_ns").sum(),
            move_ns=pl.col("move_ns").sum(),
            transfer_ns=pl.col("transfer_ns").sum(),
            transfer_p50_ns=pl.col("transfer_ns").median().round().cast(pl.Int64),
            transfer_min_ns=pl.col("transfer_ns").min(),
            transfer_max_ns=pl.col("transfer_ns").max(),
        )
    )
    rest = (
        untold.with_columns(size=_size(many))
        .group_by("op", "size", "step", "low_rank", "high_rank")
        .agg(untold=pl.len().cast(pl.Int64), untold_ns=pl.col("dur_ns").sum())
    )
    key = ["op", "size", "step", "low_rank", "high_rank"]
    return (
        cells.join(rest, on=key, how="full", coalesce=True, nulls_equal=True)
        .with_columns(
            pl.col("instances", "members", "partial", "bytes_total", "wait_ns", "move_ns", "transfer_ns").fill_null(0),
            pl.col("untold", "untold_ns").fill_null(0),
        )
        .rename({"size": "bytes"})
        .sort(_KEY)
        .select(pl.lit(group_id, dtype=pl.Int32).alias("group_id"), *_KEY, pl.exclude("group_id", *_KEY))
    )


def _size(many: list[str]) -> pl.Expr:
    """Return an expression: bytes, rounded up to a power of two for the operations named."""
    power = pl.lit(2, pl.Int64) ** pl.col("bytes").clip(1).log(2).ceil().cast(pl.Int64)
    return pl.when(pl.col("op").is_in(many)).then(power.cast(pl.Int64)).otherwise("bytes")


def _transfer() -> pl.Expr:
    return (
        pl.when(pl.col("op").first().is_in(SYMMETRIC_OPS))
        .then(pl.col("dur_ns").min())
        .otherwise(pl.col("move_ns").max())
    )


def worst(matched: pl.DataFrame, waits: pl.DataFrame, group_id: int, most: int) -> pl.DataFrame:
    """Return the instances with the largest summed wait and those whose transfer was longest beside its like.

    At most `most` of each. Columns: group_id, instance, op, bytes, step, members, wait_ns (sum), transfer_ns,
    excess_ns (transfer beyond the median of that operation and size in the group), last_rank (the member that waited
    least: the one the others waited for), start_ns (its start, in its own clock). Sorted by wait, longest first.
    """
    told = _split(matched, waits).filter("told").sort("instance", "wait_ns", "dur_ns", "rank")
    found = (
        told.group_by("instance", maintain_order=True)
        .agg(
            op=pl.col("op").first(),
            bytes=pl.col("bytes").max(),
            step=pl.col("step").first(),
            members=pl.len().cast(pl.Int32),
            wait_ns=pl.col("wait_ns").sum(),
            transfer_ns=_transfer(),
            last_rank=pl.col("rank").first(),
            start_ns=pl.col("start_ns").first(),
        )
        .with_columns(op=pl.when(pl.col("op").is_in(["send", "recv"])).then(pl.lit("send_recv")).otherwise("op"))
        .with_columns(
            excess_ns=pl.col("transfer_ns") - pl.col("transfer_ns").median().over("op", "bytes").round().cast(pl.Int64)
        )
    )
    longest = found.sort("wait_ns", "instance", descending=[True, False]).head(most)
    slowest = found.sort("excess_ns", "instance", descending=[True, False]).head(most)
    kept = pl.concat([longest, slowest]).unique("instance", keep="first", maintain_order=True)
    return kept.sort("wait_ns", "instance", descending=[True, False]).select(
        pl.lit(group_id, dtype=pl.Int32).alias("group_id"), pl.all()
    )


def clock_samples(matched: pl.DataFrame, group_id: int, most: int) -> pl.DataFrame:
    """Return starts and ends of at most `most` symmetric instances, spread evenly, as clocks.SAMPLE_SCHEMA.

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
        start_ns="start_ns",
        end_ns=pl.col("start_ns") + pl.col("dur_ns"),
    )


def clock_pairs(matched: pl.DataFrame, bases: dict[int, int]) -> pl.DataFrame:
    """Return the sends and receives that bound the clocks most tightly, as clocks.PAIR_SCHEMA.

    Of each pair of ranks and direction those whose receive ended soonest after the send's start. `bases`: Unix time
    of clock value 0 of each rank.
    """
    paired = matched.filter(pl.col("instance").is_not_null() & pl.col("op").is_in(["send", "recv"]))
    if not paired.height:
        return pl.DataFrame(schema=PAIR_SCHEMA)
    base = pl.col("rank").cast(pl.Int64).replace_strict(bases, default=0, return_dtype=pl.Int64)
    unix = paired.with_columns(
        start_unix=pl.col("start_ns") + base, end_unix=pl.col("start_ns") + pl.col("dur_ns") + base
    )
    sends = unix.filter(pl.col("op") == "send").select("instance", source="rank", send_start_unix_ns="start_unix")
    receives = unix.filter(pl.col("op") == "recv").select("instance", target="rank", recv_end_unix_ns="end_unix")
    both = sends.join(receives, on="instance", how="inner", maintain_order="left")
    return (
        both.with_columns(slack=pl.col("recv_end_unix_ns") - pl.col("send_start_unix_ns"))
        .sort("source", "target", "slack", "instance")
        .group_by("source", "target", maintain_order=True)
        .head(_PAIRS_KEPT)
        .select(*PAIR_SCHEMA)
    )


def _split(matched: pl.DataFrame, waits: pl.DataFrame) -> pl.DataFrame:
    """Return the matched rows that `waits` tells of, with basis, told (waiting is known), wait_ns and move_ns."""
    return (
        matched.join(
            waits.select("rank", "event", "wait_end_ns", "basis"),
            on=["rank", "event"],
            how="inner",
            maintain_order="left",
        )
        .with_columns(
            told=pl.col("wait_end_ns").is_not_null()
            & pl.col("basis").is_in(_KNOWN)
            # a group of one has nobody to match and nothing to wait for
            & (pl.col("instance").is_not_null() | (pl.col("basis") == "symmetric"))
        )
        .with_columns(
            wait_ns=pl.col("wait_end_ns") - pl.col("start_ns"),
            instance=pl.col("instance").fill_null(-1 - pl.int_range(pl.len(), dtype=pl.Int64)),
        )
        .with_columns(move_ns=pl.col("dur_ns") - pl.col("wait_ns"))
    )
