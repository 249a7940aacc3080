"""Matching: which communications of several ranks are one instance, within one group.

By the recorded sequence number where a row has one; else by order, step by step, and only where the members agree on
operations, sizes and counts and, on one common clock, nobody left before the last had come: a step in which they do not
is refused as a whole and told, never guessed. Sends are paired with the mirrored receives of the peer by order; sends
and receives whose peer nobody recorded are not paired. A rank whose window lacks a step does not take part in it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import polars as pl

if TYPE_CHECKING:
    from collections.abc import Mapping

SYMMETRIC_OPS: Final = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "barrier")
"""Operations that no member can leave before all have come: the shortest stay is the transfer."""
P2P_OPS: Final = ("send", "recv", "send_recv")
UNEVEN_OPS: Final = ("all_to_all", "gather", "scatter")
"""Operations whose members may carry different sizes, so that sizes prove nothing."""
_CLOCK_NOISE_NS: Final = 100_000
"""How far two devices of one host may be apart on the host's clock (25 µs were measured between two GPUs)."""

_COLUMNS: Final[dict[str, pl.DataType | type[pl.DataType]]] = {
    "name": pl.String,
    "common_ns": pl.Int64,
    "launch_ns": pl.Int64,
}


@dataclass(frozen=True)
class Matched:
    """What matching a group gives: its rows with an instance each, and what was refused."""

    rows: pl.DataFrame
    """The rows given, plus `instance` (Int64, null: unmatched) and `present` (members in it)."""
    refused: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Why → the steps or sequence numbers (−1: the whole window) in which the members disagree."""
    order_only: int = 0
    """Communications that were matched by order and name alone, their arguments not being recorded."""


def match(rows: pl.DataFrame) -> Matched:
    """Match the communications of one group.

    `rows`: rank, event, op, seq, step, start_ns, dur_ns, bytes, peer of every member, any order; `name` (kernel, to be
    compared where no arguments were recorded), `common_ns` (start on a clock that all members share) and `launch_ns`
    (start of the launch call) may be null or absent. Order is that of the launches, which a communicator wants alike on
    all members: on several streams their starts may overtake each other. The answer is sorted by
    (rank, start_ns, event).
    """
    whole = rows.with_columns(pl.lit(None, dtype=t).alias(n) for n, t in _COLUMNS.items() if n not in rows.columns)
    ordered = whole.sort("rank", pl.coalesce("launch_ns", "start_ns"), "start_ns", "event").with_columns(
        op=pl.col("op").cast(pl.String)
    )
    p2p = pl.col("op").is_in(P2P_OPS)
    paired = p2p & pl.col("peer").is_not_null() & (pl.col("op") != "send_recv")
    numbered = ~p2p & pl.col("seq").is_not_null()
    bare = ~p2p & pl.col("seq").is_null() & pl.col("name").is_not_null()
    parts = [
        _pairs(ordered.filter(paired)),
        ordered.filter(p2p & ~paired).with_columns(instance=pl.lit(None, dtype=pl.Int64)),
    ]
    refused: dict[str, tuple[int, ...]] = {}
    for these in (numbered, ~p2p & ~numbered & ~bare, bare):
        part, why, where = _collectives(ordered.filter(these))
        parts.append(part)
        if where:
            refused[why] = (*refused.get(why, ()), *where)
    # every part counts its instances from 0: interleave them
    both = pl.concat(
        [part.with_columns(instance=pl.col("instance") * len(parts) + place) for place, part in enumerate(parts)],
        how="diagonal",
    )
    present = pl.col("rank").n_unique().over("instance")
    answer = both.with_columns(
        present=pl.when(pl.col("instance").is_null()).then(1).otherwise(present).cast(pl.Int32)
    ).sort("rank", "start_ns", "event")
    order_only = answer.filter(pl.col("name").is_not_null() & pl.col("instance").is_not_null()).height
    return Matched(answer.drop(*_COLUMNS), refused, order_only)


def _collectives(rows: pl.DataFrame) -> tuple[pl.DataFrame, str, tuple[int, ...]]:
    """Return the rows with instances, what their parts are called, and the parts refused."""
    unmatched = pl.lit(None, dtype=pl.Int64).alias("instance")
    if rows["rank"].n_unique() < 2:  # noqa: PLR2004 - nobody to match with
        return rows.with_columns(unmatched), "", ()
    if rows["seq"].null_count() == 0:
        keyed = rows.with_columns(part=pl.col("seq"), place=_place("rank", "seq"))
        return _by_key(keyed, "sequence numbers")
    stepped = rows["step"].null_count() < rows.height
    in_step = rows.filter(pl.col("step").is_not_null()) if stepped else rows
    outside = rows.filter(pl.col("step").is_null()) if stepped else rows.clear()
    keyed = in_step.with_columns(part=pl.col("step").fill_null(-1).cast(pl.Int64)).with_columns(
        place=_place("rank", "part")
    )
    answer, why, where = _by_key(keyed, "steps")
    return pl.concat([answer, outside.with_columns(unmatched)]), why, where


def _place(*keys: str) -> pl.Expr:
    return pl.int_range(pl.len(), dtype=pl.Int64).over(*keys)


def _by_key(keyed: pl.DataFrame, what: str) -> tuple[pl.DataFrame, str, tuple[int, ...]]:
    """Give one instance number a (part, place); refuse every part whose members disagree."""
    known_bytes = pl.when(pl.col("op").is_in(UNEVEN_OPS)).then(None).otherwise(pl.col("bytes"))
    left_early = pl.col("common_ns").max() - (pl.col("common_ns") + pl.col("dur_ns")).min()
    cells = keyed.group_by("part", "place").agg(
        here=pl.col("rank").n_unique(),
        ops=pl.col("op").n_unique(),
        sizes=known_bytes.drop_nulls().n_unique(),
        names=pl.col("name").n_unique(),
        left_early=pl.when(pl.col("op").is_in(SYMMETRIC_OPS).all() & pl.col("common_ns").is_not_null().all()).then(
            left_early
        ),
    )
    members = keyed.group_by("part").agg(members=pl.col("rank").n_unique())
    by_order = pl.lit(what != "sequence numbers")
    judged = cells.join(members, on="part").with_columns(
        bad=(pl.col("ops") > 1)
        | (pl.col("sizes") > 1)
        | (pl.col("names") > 1)
        | (by_order & (pl.col("here") < pl.col("members")))
        | (by_order & (pl.col("left_early").fill_null(0) > _CLOCK_NOISE_NS))
    )
    refused = judged.filter("bad")["part"].unique().sort()
    numbered = keyed.join(
        keyed.select("part", "place").unique().sort("part", "place").with_row_index("instance"),
        on=["part", "place"],
        how="left",
        maintain_order="left",
    ).with_columns(
        instance=pl.when(pl.col("part").is_in(refused.implode()))
        .then(None)
        .otherwise(pl.col("instance").cast(pl.Int64))
    )
    return numbered.drop("part", "place"), what, tuple(refused.to_list())


def _pairs(rows: pl.DataFrame) -> pl.DataFrame:
    """Pair the k-th send from a to b with the k-th receive of b from a, step by step, where both sides count alike."""
    is_send = pl.col("op") == "send"
    keyed = rows.with_columns(
        source=pl.when(is_send).then("rank").otherwise("peer"),
        target=pl.when(is_send).then("peer").otherwise("rank"),
        part=pl.col("step").fill_null(-1),
    ).with_columns(place=_place("source", "target", "part", "op"))
    link = ["source", "target", "part"]
    counts = keyed.group_by(link).agg(sends=is_send.sum(), receives=(~is_send).sum())
    numbered = (
        keyed.join(counts, on=link, how="left", maintain_order="left")
        .join(
            keyed.select(*link, "place").unique().sort(*link, "place").with_row_index("instance"),
            on=[*link, "place"],
            how="left",
            maintain_order="left",
        )
        .with_columns(instance=pl.when(pl.col("sends") == pl.col("receives")).then(pl.col("instance").cast(pl.Int64)))
    )
    return numbered.drop(*link, "place", "sends", "receives")
