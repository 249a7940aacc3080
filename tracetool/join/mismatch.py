"""Members of a group that called the same operation, by its number, with different arguments.

Compared are the operation, the size that NCCL needs to be equal, and the element type. The size is what a rank
puts in for all_reduce, reduce, all_gather and gather, and what it gets out for broadcast, reduce_scatter and
scatter. An all_to_all may be uneven: there the members' totals in and out must agree, and only if most members
pass exactly the same can one that does not be told.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import polars as pl

from tracetool.join.waitfor import minority

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracetool.join.hangstate import State

_BY_INPUT: Final = ("all_reduce", "reduce", "all_gather", "gather")
_BY_OUTPUT: Final = ("broadcast", "reduce_scatter", "scatter")
_NOT_COMPARED: Final = ("coalesced", "barrier")
_MOST: Final = 2 / 3


@dataclass(frozen=True)
class Mismatch:
    """One operation that members called differently."""

    group: int
    number: int
    what: str
    """operation, size or type."""
    sides: tuple[tuple[str, tuple[int, ...]], ...]
    """What was called, and by whom; the largest side first."""
    culprits: tuple[int, ...]
    tie: bool
    clear: bool
    """More than two thirds, and at least three, called the same."""


def mismatches(state: State) -> list[Mismatch]:
    """Return the mismatched operations that someone has in flight and waits on, the first launched first."""
    ops = state.ops.filter(
        ~pl.col("is_p2p"), pl.col("group_id").is_not_null(), ~pl.col("op").is_in(_NOT_COMPARED)
    ).with_columns(
        size=pl.when(pl.col("op").is_in(_BY_INPUT))
        .then(pl.coalesce("in_elems", "out_elems"))
        .when(pl.col("op").is_in(_BY_OUTPUT))
        .then(pl.coalesce("out_elems", "in_elems"))
    )
    key = ["group_id", "number"]
    suspects = (
        ops.group_by(key)
        .agg(
            pl.len().alias("records"),
            (pl.col("in_flight") & (pl.col("place") == 0)).any().alias("waited"),
            *(pl.col(name).drop_nulls().n_unique().alias(f"{name}_kinds") for name in ("op", "size", "dtype")),
            (pl.col("op") == "all_to_all").any().alias("uneven"),
            pl.col("created_unix_ns").min().alias("created"),
        )
        .filter(
            "waited",
            (pl.col("op_kinds") > 1) | (pl.col("size_kinds") > 1) | (pl.col("dtype_kinds") > 1) | pl.col("uneven"),
        )
        .sort("created", *key, nulls_last=True)
    )
    found = []
    for group, number in suspects.select(key).iter_rows():
        rows = ops.filter(pl.col("group_id") == group, pl.col("number") == number).sort("rank")
        mismatch = _one(rows, group, number, len(state.groups[group].ranks))
        if mismatch:
            found.append(mismatch)
    return found


def _one(rows: pl.DataFrame, group: int, number: int, members: int) -> Mismatch | None:
    for what, column in (("operation", "op"), ("size", "size"), ("type", "dtype")):
        if what == "size" and rows["op"].to_list().count("all_to_all"):
            sides = _uneven(rows, members)
        else:
            sides = _sides(rows.drop_nulls(column), column)
        if len(sides) > 1:
            culprits, tie = minority(sides)
            largest = max(len(ranks) for ranks in sides.values())
            told = sorted(sides.items(), key=lambda side: (-len(side[1]), side[1]))
            clear = largest >= 3 and largest > _MOST * rows.height  # noqa: PLR2004 - as documented
            named = tuple((name, tuple(ranks)) for name, ranks in told)
            return Mismatch(group, number, what, named, tuple(culprits), tie, clear)
    return None


def _sides(rows: pl.DataFrame, column: str) -> dict[str, list[int]]:
    sides: dict[str, list[int]] = defaultdict(list)
    for rank, value, op in rows.select("rank", value=column, called="op").iter_rows():
        called = {"op": str(op), "size": f"{op} of {value} elements", "dtype": f"{op} of {value}"}[column]
        sides[called].append(rank)
    return dict(sides) if rows[column].n_unique() > 1 else {}


def _uneven(rows: pl.DataFrame, members: int) -> dict[str, list[int]]:
    """Tell who passes other sizes to an all_to_all whose totals do not agree; empty when that cannot be told."""
    sizes: Sequence[tuple[int, int | None, int | None]] = rows.select("rank", "in_elems", "out_elems").rows()
    totals = [sum(size[place] or 0 for size in sizes) for place in (1, 2)]
    if len(sizes) < members or totals[0] == totals[1] or rows["in_elems"].null_count():
        return {}
    sides: dict[str, list[int]] = defaultdict(list)
    for rank, ins, outs in sizes:
        sides[f"all_to_all of {ins} to {outs} elements"].append(rank)
    return dict(sides) if max(map(len, sides.values())) > len(sizes) / 2 else {}
