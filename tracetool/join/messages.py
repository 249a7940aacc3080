"""Sends and receives whose peers nobody recorded, brought together by what they carry.

The slots of a pipeline tell of a receive which slot's output it brings, and so when and where that had been made. The
node that ended then on that rank is the sender's; the send that follows it is the receive's other
side. A kernel may send one message and receive another: kernels that share messages meet as one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import polars as pl

from tracetool.join.segments import COMM, COMPUTE

if TYPE_CHECKING:
    from tracetool.join.replay import Floats, Ints

_SAME_NS: Final = 1_000
"""Times that were brought from one clock to another and back differ by rounding only."""
_MOST_MEET: Final = 4
"""More kernels than these do not share messages: then only what was made is waited for."""


class Messages(NamedTuple):
    """What receives wait for: edges (source, receive), and pairs (send, receive) that meet; node numbers."""

    source: Ints
    receive: Ints
    meeting: Ints
    """By node: number of the meeting it belongs to, −1 for none."""


def messages(nodes: pl.DataFrame, ends: Floats, edges: tuple[Ints, Ints]) -> Messages:
    """Return who brings what.

    `nodes`: rank, kind, op, instance, sent_aligned_ns, sent_by in order of their numbers; `ends`: their ends on the
    same clock; `edges`: (pred, node).
    """
    numbered = nodes.select(
        *("rank", "kind", "op", "instance", "sent_by"),
        number=pl.int_range(pl.len(), dtype=pl.Int64),
        end=pl.Series(ends),
        sent=pl.col("sent_aligned_ns").cast(pl.Float64),
    )
    brought = pl.col("sent").is_not_null() & pl.col("sent_by").is_not_null() & pl.col("instance").is_null()
    receives = numbered.filter(brought).sort("sent")
    made = numbered.filter(pl.col("kind") == COMPUTE).sort("end")
    found = (
        receives.select("number", "sent", maker="sent_by")
        .join_asof(
            made.select("end", source="number", maker="rank"), left_on="sent", right_on="end", by="maker",
            strategy="nearest", tolerance=float(_SAME_NS), check_sortedness=False,
        )
        .filter(pl.col("source").is_not_null())
        .sort("number")
    )  # fmt: skip
    follows = pl.DataFrame({"source": edges[0], "send": edges[1]})
    sends = numbered.filter(
        (pl.col("kind") == COMM) & pl.col("op").is_in(["send", "send_recv"]) & pl.col("instance").is_null()
    ).select(send="number")
    sides = found.join(follows.join(sends, on="send", how="semi"), on="source", how="inner").sort("number", "send")
    sure = sides.filter(pl.len().over("number") == 1)
    return Messages(
        found["source"].to_numpy(),
        found["number"].to_numpy(),
        _meetings(nodes.height, sure["send"].to_numpy(), sure["number"].to_numpy()),
    )


def _meetings(nodes: int, send: Ints, receive: Ints) -> Ints:
    """Return the number of each node's set of kernels that share messages; −1 for others and for sets too large."""
    lowest = np.arange(nodes)
    while True:
        low = lowest.copy()
        np.minimum.at(low, send, lowest[receive])
        np.minimum.at(low, receive, lowest[send])
        low = low[low]
        if np.array_equal(low, lowest):
            break
        lowest = low
    size = np.bincount(lowest, minlength=nodes)[lowest]
    return np.where((size > 1) & (size <= _MOST_MEET), lowest, -1)
