"""Which slot's input each send or receive of a pipeline brings, by where it was launched.

Between two pieces of work a rank launches the sends of what it has made and the receives of what comes next. Their
number tells how they were put into kernels: one each; or the last send together with the first receive, where both go
to one neighbour and one of them is a forward's, the other a backward's; or everything in one kernel. Any other number
tells nothing, and nothing is said.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import polars as pl

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]

NOT_KNOWN: Final = -2
NOTHING: Final = -1


class Pieces(NamedTuple):
    """Pieces of one rank in order of their launch, as arrays; a piece holds one slot or two."""

    launch_start: Ints
    sends: Ints
    """Messages that leave it for other ranks; NOT_KNOWN where its slots were not told."""
    receives: Ints
    """Messages that come to it from other ranks; NOT_KNOWN likewise."""
    last_kind: Ints
    """Kind of its last slot, as any number."""
    last_target: Ints
    """Rank that the last slot's output goes to; negative: none, or not known."""
    first_kind: Ints
    first_source: Ints


def pieces(slots: pl.DataFrame, trusted: list[int], last_virtual: int) -> Pieces:
    """Return the pieces of one rank.

    `slots`: iteration, piece, kind, virtual, launch_start_ns, rank, target_rank, source_rank (null: not traced) of the
    rank; `trusted`: iterations whose slots may be believed.
    """
    kind, virtual = pl.col("kind"), pl.col("virtual")
    leaves = ((kind == "F") & (virtual < last_virtual)) | ((kind == "B") & (virtual > 0))
    comes = ((kind == "F") & (virtual > 0)) | ((kind == "B") & (virtual < last_virtual))
    number = kind.replace_strict({"F": 0, "B": 1, "W": 2}, return_dtype=pl.Int64)
    made = (
        slots.sort("launch_start_ns", "kind")
        .with_columns(
            number=number,
            leaves=leaves & (pl.col("target_rank").fill_null(NOTHING) != pl.col("rank")),
            comes=comes & (pl.col("source_rank").fill_null(NOTHING) != pl.col("rank")),
        )
        .group_by("iteration", "piece", maintain_order=True)
        .agg(
            pl.col("launch_start_ns").min(),
            sends=pl.col("leaves").sum().cast(pl.Int64),
            receives=pl.col("comes").sum().cast(pl.Int64),
            last_kind=pl.col("number").last(),
            last_target=pl.col("target_rank").last().fill_null(NOTHING).cast(pl.Int64),
            first_kind=pl.col("number").first(),
            first_source=pl.col("source_rank").first().fill_null(NOTHING).cast(pl.Int64),
        )
        .sort("launch_start_ns")
    )
    believed = pl.col("iteration").is_in(trusted)
    told = made.with_columns(
        pl.when(believed).then(pl.col(name)).otherwise(NOT_KNOWN).alias(name) for name in ("sends", "receives")
    )
    names = ("launch_start_ns", *Pieces._fields[1:])
    return Pieces(*(told[name].cast(pl.Int64).to_numpy() for name in names))


def brings(made: Pieces, launched: Ints) -> tuple[Ints, Ints]:
    """Return for each send or receive of the rank (piece, which): whose input it brings.

    `launched`: starts of their launch calls, ascending. `which`: number of the message among those the piece receives;
    NOTHING: it only sends; NOT_KNOWN: not to be told; the number of messages received: it brings them all.
    """
    pieces_ = len(made.launch_start)
    gap = np.searchsorted(made.launch_start, launched, side="right")
    count = np.bincount(gap, minlength=pieces_ + 1)
    first = np.cumsum(count) - count
    place = np.arange(len(launched)) - first[gap]
    sends = np.concatenate([[0], made.sends])
    receives = np.append(made.receives, 0)
    kinds_differ = np.concatenate([[-1], made.last_kind]) != np.append(made.first_kind, -1)
    target, source = np.concatenate([[NOTHING], made.last_target]), np.append(made.first_source, NOTHING)
    may_share = kinds_differ & (target == source) & (target >= 0) & (sends > 0) & (receives > 0)
    known = (sends >= 0) & (receives >= 0)
    apart = count == sends + receives
    shared = may_share & (count == sends + receives - 1)
    together = (count == 1) & (sends + receives > 0)
    s, r = sends[gap], receives[gap]
    by_place = np.where(apart[gap], place - s, place - s + 1)
    which = np.where(by_place < 0, NOTHING, by_place)
    lone = ~apart[gap] & ~shared[gap]
    which = np.where(lone, np.where(together[gap], np.where(r > 0, r, NOTHING), NOT_KNOWN), which)
    return gap, np.where(known[gap], which, NOT_KNOWN)
