"""Matching: which communications of several ranks are one instance, within one group.

By the recorded sequence number where every row has one; else by order, step by step, and only where the members agree
on operations, sizes and counts: a step in which they do not is refused as a whole and told, never guessed. Sends are
paired with the mirrored receives of the peer by order. A rank whose window lacks a step does not take part in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import polars as pl

SYMMETRIC_OPS: Final = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "barrier")
"""Operations that no member can leave before all have come: the shortest stay is the transfer."""
_UNEVEN_OPS: Final = ("all_to_all", "gather", "scatter")
"""Operations whose members may carry different sizes, so that sizes prove nothing."""


@dataclass(frozen=True)
class Matched:
    """What matching a group gives: its rows with an instance each, and what was refused, as sentences."""

    rows: pl.DataFrame
    """The rows given, plus `instance` (Int64, null: unmatched) and `present` (members in it)."""
    notes: tuple[str, ...]


def match(rows: pl.DataFrame, name: str) -> Matched:
    """Match the communications of one group.

    `rows`: rank, event, op, seq, step, start_ns, dur_ns, bytes, peer of every member, any order; `name` is how to call
    the group in notes. The answer is sorted by (rank, start_ns, event).
    """
    ordered = rows.sort("rank", "start_ns", "event").with_columns(op=pl.col("op").cast(pl.String))
    p2p = pl.col("op").is_in(["send", "recv"]) & pl.col("peer").is_not_null()
    pairs = _pairs(ordered.filter(p2p))
    rest, notes = _collectives(ordered.filter(~p2p), name)
    both = pl.concat(
        [
            pairs.with_columns(instance=pl.col("instance") * 2),
            rest.with_columns(instance=pl.col("instance") * 2 + 1),
        ],
        how="diagonal",
    )
    present = pl.col("rank").n_unique().over("instance")
    return Matched(
        both.with_columns(present=pl.when(pl.col("instance").is_null()).then(1).otherwise(present).cast(pl.Int32)).sort(
            "rank", "start_ns", "event"
        ),
        tuple(notes),
    )


def _collectives(rows: pl.DataFrame, name: str) -> tuple[pl.DataFrame, list[str]]:
    unmatched = pl.lit(None, dtype=pl.Int64).alias("instance")
    if rows["rank"].n_unique() < 2:  # noqa: PLR2004 - nobody to match with
        return rows.with_columns(unmatched), []
    if rows["seq"].null_count() == 0:
        return _by_key(rows.with_columns(part=pl.col("seq"), place=_place("rank", "seq")), name, "sequence numbers")
    stepped = rows["step"].null_count() < rows.height
    in_step = rows.filter(pl.col("step").is_not_null()) if stepped else rows
    outside = rows.filter(pl.col("step").is_null()) if stepped else rows.clear()
    part = pl.col("step").fill_null(-1).cast(pl.Int64)
    keyed = in_step.with_columns(part=part).with_columns(place=_place("rank", "part"))
    answer, notes = _by_key(keyed, name, "steps" if stepped else "windows")
    if outside.height:
        answer = pl.concat([answer, outside.with_columns(unmatched)])
    return answer, notes


def _place(*keys: str) -> pl.Expr:
    return pl.int_range(pl.len(), dtype=pl.Int64).over(*keys)


def _by_key(keyed: pl.DataFrame, name: str, what: str) -> tuple[pl.DataFrame, list[str]]:
    """Give one instance number a (part, place); refuse every part whose members disagree."""
    known_bytes = pl.when(pl.col("op").is_in(_UNEVEN_OPS)).then(None).otherwise(pl.col("bytes"))
    cells = keyed.group_by("part", "place").agg(
        here=pl.col("rank").n_unique(),
        ops=pl.col("op").n_unique(),
        sizes=known_bytes.drop_nulls().n_unique(),
    )
    members = keyed.group_by("part").agg(members=pl.col("rank").n_unique())
    by_sequence = what == "sequence numbers"
    judged = cells.join(members, on="part").with_columns(
        bad=(pl.col("ops") > 1)
        | (pl.col("sizes") > 1)
        | (pl.lit(not by_sequence) & (pl.col("here") < pl.col("members")))
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
    notes = []
    if refused.len():
        shown = ", ".join(str(part) for part in refused.head(5)) + (", …" if refused.len() > 5 else "")  # noqa: PLR2004
        which = "the windows" if refused.to_list() == [-1] else f"{what} {shown}"
        notes.append(f"group {name}: its ranks disagree on operations, sizes or counts in {which}; not matched there")
    return numbered.drop("part", "place"), notes


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
