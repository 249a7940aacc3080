"""The tables of a post-mortem: who waits for whom, what is in flight, what the dumps cover.

Ranks in equal state share a row: a job of a thousand ranks makes a few rows, not a thousand.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final

import polars as pl

from tracetool.join.dumpsets import set_name
from tracetool.join.hangstate import rank_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tracetool.join.diagnose import Diagnosis
    from tracetool.join.hangstate import Operation, State

_CALL = {
    "group": pl.String, "group_desc": pl.String, "group_ranks": pl.String, "op": pl.String, "seq": pl.Int64,
    "in_sizes": pl.String, "out_sizes": pl.String, "dtype": pl.String, "bytes": pl.Int64,
}  # fmt: skip
_WAITING = {
    **_CALL,
    "ranks": pl.String, "count": pl.Int64, "waits_for": pl.String, "why": pl.String,
    "first_created_unix_ns": pl.Int64, "stack": pl.String,
}  # fmt: skip
_IN_FLIGHT = {
    **_CALL,
    "ranks": pl.String, "count": pl.Int64, "missing": pl.String, "first_created_unix_ns": pl.Int64,
    "last_created_unix_ns": pl.Int64, "age_ns": pl.Int64, "timeout_ns": pl.Int64,
}  # fmt: skip
_COVERAGE = {
    "state": pl.String, "ranks": pl.String, "count": pl.Int64, "files": pl.String, "kind": pl.String,
    "version": pl.String, "library": pl.String, "overwritten": pl.Boolean, "only_active": pl.Boolean,
    "stacks": pl.Boolean, "whole": pl.Boolean, "records": pl.Int64, "newest_unix_ns": pl.Int64,
}  # fmt: skip
_CULPRITS = {
    "rank": pl.Int32, "host": pl.String, "in_flight": pl.Int64, "last_op": pl.String,
    "last_group": pl.String, "last_seq": pl.Int64, "last_created_unix_ns": pl.Int64, "stack": pl.String,
}  # fmt: skip


_FILES: Final = 3
"""Ways of naming files that a row of the coverage names."""


def call(state: State, operation: Operation) -> dict[str, object]:
    """Return the columns that describe an operation, as one of the ranks that have it in flight called it."""
    group, is_p2p, number = operation
    told = state.groups[group]
    rows = state.ops.filter(
        pl.col("group_id") == group, pl.col("is_p2p") == is_p2p, pl.col("number") == number, pl.col("op") != "coalesced"
    ).sort("in_flight", "rank", "record", descending=[True, False, False])
    row = rows.row(0, named=True) if rows.height else {}
    return {
        "group": told.name,
        "group_desc": told.desc,
        "group_ranks": rank_text(told.ranks),
        "op": row.get("op"),
        "seq": number,
        **{name: row.get(name) for name in ("in_sizes", "out_sizes", "dtype", "bytes")},
    }


def waiting(state: State, verdict: Diagnosis, most_rows: int) -> pl.DataFrame:
    """Return one row an operation and set of ranks that are waited for; what hangs on the culprits first."""
    targets: dict[tuple[Operation, int], dict[int, str]] = defaultdict(dict)
    for edge in verdict.edges:
        if edge.why != "queued":
            targets[(edge.group, edge.is_p2p, edge.number), edge.waiter][edge.target] = edge.why
    alike: dict[tuple[Operation, tuple[tuple[int, str], ...]], list[int]] = defaultdict(list)
    for (operation, waiter), whys in targets.items():
        alike[operation, tuple(sorted(whys.items()))].append(waiter)
    created = _created(state)
    rows: list[dict[str, object]] = []
    named = set(verdict.culprits)
    # first what hangs on the culprits, then what most ranks share, then what was launched first
    order = sorted(
        alike.items(),
        key=lambda item: (
            named.isdisjoint(target for target, _ in item[0][1]),
            sum(target not in named for target, _ in item[0][1]) if named else 0,
            -len(item[1]),
            created.get(item[0][0]) or 0,
            item[0],
        ),
    )
    for (operation, asked), ranks in order[:most_rows]:
        rows.append(
            {
                **call(state, operation),
                "ranks": rank_text(ranks),
                "count": len(ranks),
                "waits_for": rank_text(target for target, _ in asked),
                "why": ", ".join(sorted({why for _, why in asked})),
                "first_created_unix_ns": created.get(operation),
                "stack": _stack(state, operation, min(ranks)),
            }
        )
    return pl.DataFrame(rows, schema=_WAITING)


def _created(state: State) -> dict[Operation, int]:
    rows = (
        state.ops.filter("in_flight", pl.col("group_id").is_not_null())
        .group_by("group_id", "is_p2p", "number")
        .agg(pl.col("created_unix_ns").min())
    )
    return {(group, is_p2p, number): at for group, is_p2p, number, at in rows.iter_rows()}


def _stack(state: State, operation: Operation, rank: int) -> str | None:
    group, is_p2p, number = operation
    rows = state.ops.filter(
        pl.col("rank") == rank, pl.col("group_id") == group, pl.col("is_p2p") == is_p2p, pl.col("number") == number
    ).drop_nulls("stack")
    return str(rows["stack"][0]) if rows.height else None


def in_flight(state: State, file_unix_ns: Mapping[int, int], most_rows: int) -> pl.DataFrame:
    """Return one row an operation that is the oldest in flight of its group on some rank, with who lacks it."""
    oldest = (
        state.ops.filter("in_flight", pl.col("place") == 0, pl.col("group_id").is_not_null())
        .group_by("group_id", "is_p2p", "number")
        .agg(
            pl.col("rank").unique().sort(),
            pl.col("created_unix_ns").min().alias("first"),
            pl.col("created_unix_ns").max().alias("last"),
            pl.col("timeout_ns").max(),
        )
        .sort(pl.col("rank").list.len(), "first", "group_id", "number", descending=[True, False, False, False])
        .head(most_rows)
    )
    rows = []
    for group, is_p2p, number, ranks, first, last, timeout in oldest.iter_rows():
        lanes = state.lanes.get(group, {})
        lacking = [
            rank
            for rank in state.groups[group].ranks
            if not is_p2p and (rank not in lanes or not lanes[rank].launched(number))
        ]
        written = [file_unix_ns[rank] for rank in ranks if rank in file_unix_ns]
        rows.append(
            {
                **call(state, (group, is_p2p, number)),
                "ranks": rank_text(ranks),
                "count": len(ranks),
                "missing": rank_text(lacking) or None,
                "first_created_unix_ns": first,
                "last_created_unix_ns": last,
                "age_ns": max(written) - first if written and first is not None and max(written) >= first else None,
                "timeout_ns": timeout,
            }
        )
    return pl.DataFrame(rows, schema=_IN_FLIGHT)


def coverage(state: State, dumps: pl.DataFrame, left: pl.DataFrame, incomplete: frozenset[str]) -> pl.DataFrame:
    """Return which ranks left what: one row a kind of dump, then the ranks without and those of an earlier start.

    `dumps` holds those that count, `left` those that were left aside.
    """
    both = [dumps.with_columns(state=pl.lit("read")), left.with_columns(state=pl.lit("earlier start"))]
    told = pl.concat(both).with_columns(
        files=pl.col("source").map_elements(set_name, return_dtype=pl.String),
        # a dump of active records alone begins late because the finished ones were left out
        overwritten=pl.when(pl.col("finished") > 0).then(pl.col("first_record") > 0),
        only_active=(pl.col("finished") == 0) & (pl.col("kind") == "recorder"),
        whole=~pl.col("source").is_in(incomplete),
    )
    alike = ["state", "kind", "version", "library", "overwritten", "only_active", "has_stacks", "whole"]
    grouped = (
        told.group_by(alike)
        .agg(
            pl.col("rank", "files").unique().sort(), pl.col("entries").sum(), pl.col("newest_unix_ns").max(),
        )
        .sort(alike, descending=[True, *[False] * (len(alike) - 1)], nulls_last=True)
    )  # fmt: skip
    rows: list[dict[str, object]] = [
        {
            **{
                name: row[name]
                for name in ("state", "kind", "version", "library", "overwritten", "only_active", "whole")
            },
            "ranks": rank_text(row["rank"]),
            "count": len(row["rank"]),
            "stacks": row["has_stacks"],
            "records": row["entries"],
            "newest_unix_ns": row["newest_unix_ns"],
            "files": ", ".join(row["files"][:_FILES]) + (", …" if len(row["files"]) > _FILES else ""),
        }
        for row in grouped.iter_rows(named=True)
    ]
    missing = set(state.world) - state.known
    if missing:
        rows.append({"state": "missing", "ranks": rank_text(missing), "count": len(missing)})
    return pl.DataFrame(rows, schema=_COVERAGE)


def culprits(state: State, verdict: Diagnosis, hosts: Mapping[int, str], most_rows: int) -> pl.DataFrame:
    """Return one row a culprit: where it ran, and what it launched last, or first of what it has in flight."""
    rows = []
    for rank in verdict.culprits[:most_rows]:
        own = state.ops.filter(pl.col("rank") == rank)
        flying = own.filter("in_flight")
        last = (flying.head(1) if flying.height else own.tail(1)).rows(named=True)
        row: dict[str, object] = last[0] if last else {}
        rows.append(
            {
                "rank": rank,
                "host": hosts.get(rank),
                "in_flight": flying.height if rank in state.known else None,
                "last_op": row.get("op"),
                "last_group": row.get("group"),
                "last_seq": row.get("number"),
                "last_created_unix_ns": row.get("created_unix_ns"),
                "stack": row.get("stack"),
            }
        )
    return pl.DataFrame(rows, schema=_CULPRITS)
