"""Until when sends and receives without a recorded peer waited, as the slots around them tell.

A send or receive waits until the input that it brings has been sent. Which slot that is follows from where it was
launched (join.sends); when it had been made, from the slot's end on the rank that made it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import polars as pl

from tracetool.join.sends import brings, pieces

if TYPE_CHECKING:
    from collections.abc import Mapping

_SLOTS_ONLY: Final = ("unknown", "unmatched")
"""Bases of waits that slots tell better."""


def slot_waits(
    placed: pl.DataFrame, linked: pl.DataFrame, transfers: pl.DataFrame, *, trusted: bool
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return until when sends and receives without a peer waited, and how long each slot's input moved.

    The first has rank, event, wait_end_ns and, not clamped to the kernel, sent_ns (when the last of the slots had ended
    whose output it brings) in the rank's own clock, and sent_by, the rank of that slot; the second rank, iteration,
    kind, microbatch, virtual, transfer_ns, received_ns (start of the receive in the rank's own clock).
    """
    waits: list[pl.DataFrame] = []
    moved: list[pl.DataFrame] = []
    if trusted:
        last = int(linked["virtual"].to_numpy().max())
        owner = dict(linked.select("virtual", "rank").unique().sort("virtual").iter_rows())
        good = linked["iteration"].unique().to_list()
        sent = linked.select("rank", "iteration", "piece", "kind", "microbatch", "virtual", "source_rank", "own_sent")
        for (rank,), mine in placed.partition_by("rank", as_dict=True, maintain_order=True).items():
            theirs = transfers.filter(pl.col("rank") == rank).sort("launch_start_ns", "event")
            found, held = _of_rank(
                mine, theirs, sent.filter(pl.col("rank") == rank), owner, good=good, last_virtual=last
            )
            waits.append(found)
            moved.append(held)
    schema = {"rank": pl.Int32, "event": pl.Int64, "wait_end_ns": pl.Int64}
    schema |= {"sent_ns": pl.Int64, "sent_by": pl.Int32}
    keys = {name: linked.schema[name] for name in ("rank", "iteration", "kind", "microbatch", "virtual")}
    return (
        pl.concat(waits).sort("rank", "event") if waits else pl.DataFrame(schema=schema),
        pl.concat(moved) if moved else pl.DataFrame(schema={**keys, "transfer_ns": pl.Int64, "received_ns": pl.Int64}),
    )


def _of_rank(
    slots: pl.DataFrame,
    transfers: pl.DataFrame,
    sent: pl.DataFrame,
    owner: Mapping[int, int],
    *,
    good: list[int],
    last_virtual: int,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return both answers of `slot_waits` for one rank; `transfers` are sorted by launch."""
    kind, virtual = pl.col("kind"), pl.col("virtual")
    after = pl.when(kind == "F").then(virtual + 1).when(kind == "B").then(virtual - 1)
    before = pl.when(kind == "F").then(virtual - 1).when(kind == "B").then(virtual + 1)
    ranked = slots.with_columns(
        target_rank=after.replace_strict(owner, default=None, return_dtype=pl.Int64),
        source_rank=before.replace_strict(owner, default=None, return_dtype=pl.Int64),
    )
    made = pieces(ranked, good, last_virtual)
    piece, which = brings(made, transfers["launch_start_ns"].to_numpy())
    # the pieces' own numbers, and of each piece the slots that receive, in order of their launch
    order = ranked.group_by("iteration", "piece").agg(pl.col("launch_start_ns").min()).sort("launch_start_ns")
    receiving = (
        ranked.filter(
            (((kind == "F") & (virtual > 0)) | ((kind == "B") & (virtual < last_virtual)))
            & (pl.col("source_rank").fill_null(-1) != pl.col("rank"))
        )
        .join(order.select("iteration", "piece").with_row_index("at"), on=["iteration", "piece"], how="inner")
        .sort("at", "launch_start_ns", "kind")
        .with_columns(nth=pl.int_range(pl.len(), dtype=pl.Int64).over("at"), received=pl.len().over("at"))
        .select("at", "nth", "received", "iteration", "piece", "kind", "microbatch", "virtual")
        .join(
            sent.drop("rank"),
            on=["iteration", "piece", "kind", "microbatch", "virtual"],
            how="left",
            maintain_order="left",
        )
    )
    told = transfers.with_columns(at=pl.Series(piece, dtype=pl.UInt32), which=pl.Series(which, dtype=pl.Int64))
    agrees = (
        pl.when(pl.col("op") == "send")
        .then(pl.col("which") < 0)
        .when(pl.col("op") == "recv")
        .then(pl.col("which") >= 0)
        .otherwise(pl.lit(True))
    )
    brought = (
        told.filter(agrees & (pl.col("which") >= 0))
        .join(receiving, on="at", how="inner", maintain_order="left")
        .filter((pl.col("which") == pl.col("nth")) | (pl.col("which") == pl.col("received")))
        .with_columns(w=pl.col("own_sent").clip(pl.col("start_ns"), pl.col("end_ns")))
    )
    waits = (
        brought.filter(pl.col("basis").is_in(_SLOTS_ONLY))
        .group_by("rank", "event")
        .agg(
            wait_end_ns=pl.when(pl.col("w").is_not_null().all()).then(pl.col("w").max()),
            sent_ns=pl.col("own_sent").max(),
            sent_by=pl.col("source_rank").sort_by("own_sent", nulls_last=False).last().cast(pl.Int32),
        )
        .drop_nulls("wait_end_ns")
        .sort("event")
    )
    moved = (
        brought.drop_nulls("w")
        .group_by("rank", "iteration", "kind", "microbatch", "virtual")
        .agg(transfer_ns=(pl.col("end_ns") - pl.col("w")).min(), received_ns=pl.col("start_ns").min())
        .sort("iteration", "kind", "virtual", "microbatch")
    )
    return waits, moved
