"""How long each member of a matched communication waited before data moved: w of the definition.

Every communication is split once, in its own rank's clock, into waiting [start, w) and moving [w, end). Symmetric
operations need no common clock: w = end − the shortest stay of any member. Others need one: w = the last arrival,
brought into this rank's clock, rounded once, not before the start and not after the end. With members missing the
waiting is what those present show, a lower bound; an unmatched communication is all moving and flagged, except the
sends and receives of a pipeline whose peers nobody recorded: those are all waiting, flagged, until slots tell better.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from tracetool.join.match import P2P_OPS, SYMMETRIC_OPS

if TYPE_CHECKING:
    from tracetool.join.clocks import Clocks

SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "rank": pl.Int32,
    "event": pl.Int64,
    "wait_end_ns": pl.Int64,
    "basis": pl.String,
}


def symmetric_waits(matched: pl.DataFrame, size: int | None, *, pipeline: bool = False) -> pl.DataFrame:
    """Return (rank, event, wait_end_ns, basis) of the rows of symmetric operations, and of all unmatched rows.

    `matched` is Matched.rows of a group of `size` members (None: unknown). A row without an instance, or alone in
    one of a group of several, has a null wait_end_ns. `pipeline`: sends and receives without a recorded peer are those
    of a pipeline all of whose ranks are here; they count as waiting, with basis `unknown`.
    """
    alone = (pl.col("present") < 2) & pl.lit(size != 1)  # noqa: PLR2004 - nobody to compare with
    shortest = pl.col("dur_ns").min().over("instance")
    partial = pl.lit(size is None) | (pl.col("present") < (size or 0))
    peerless = pl.lit(pipeline) & pl.col("op").is_in(P2P_OPS) & pl.col("peer").is_null()
    return (
        matched.filter(pl.col("instance").is_null() | alone | pl.col("op").is_in(SYMMETRIC_OPS))
        .with_columns(unmatched=(pl.col("instance").is_null() & pl.lit(size != 1)) | alone, peerless=peerless)
        .select(
            "rank",
            "event",
            wait_end_ns=pl.when("peerless")
            .then(pl.col("start_ns") + pl.col("dur_ns"))
            .when("unmatched")
            .then(None)
            .when(pl.col("instance").is_null())
            .then("start_ns")
            .otherwise(pl.col("start_ns") + pl.col("dur_ns") - shortest),
            basis=pl.when("peerless")
            .then(pl.lit("unknown"))
            .when("unmatched")
            .then(pl.lit("unmatched"))
            .when(partial)
            .then(pl.lit("partial"))
            .otherwise(pl.lit("symmetric")),
        )
    )


def arrival_waits(matched: pl.DataFrame, clocks: Clocks, size: int | None) -> pl.DataFrame:
    """Return (rank, event, wait_end_ns, basis) of matched rows whose operation is not symmetric.

    Members whose clocks nothing connects cannot be compared: their rows have a null wait_end_ns and basis `unknown`.
    """
    rows = matched.filter(
        pl.col("instance").is_not_null() & ~pl.col("op").is_in(SYMMETRIC_OPS) & (pl.col("present") > 1)
    )
    if not rows.height:
        return pl.DataFrame(schema=SCHEMA)
    aligned = clocks.align(rows, "start_ns").with_columns(
        last=pl.col("aligned_ns").max().over("instance"),
        comparable=pl.col("component").n_unique().over("instance") == 1,
        # a pair is complete with two; rooted operations with all members
        whole=pl.col("op").is_in(P2P_OPS) | (pl.col("present") == (size or -1)),
    )
    own = clocks.own_time(aligned, "last")
    end = pl.col("start_ns") + pl.col("dur_ns")
    return aligned.with_columns(own=own).select(
        "rank",
        "event",
        wait_end_ns=pl.when("comparable").then(pl.max_horizontal("start_ns", pl.min_horizontal("own", end))),
        basis=pl.when(~pl.col("comparable"))
        .then(pl.lit("unknown"))
        .when("whole")
        .then(pl.lit("arrival"))
        .otherwise(pl.lit("partial")),
    )
