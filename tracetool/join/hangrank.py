"""One rank's part of a post-mortem: what it has in flight, what it finished last, what its counters say.

A rank may have left several flight-recorder dumps: each is reduced by itself and carries its source in column `dump`,
so that dumps of one moment can be chosen over all ranks (join/dumpsets.py). Without any, everything its logs tell is
taken together, and `dump` is "".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import polars as pl

from tracetool.join import disagree, rascounts
from tracetool.join.hangstate import by_order, rank_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tracetool.tables import Tables

_OLDEST_KEPT: Final = 16
_NEWEST_KEPT: Final = 8
_P2P_KEPT: Final = 64
_LAUNCHES_KEPT: Final = 64

_OPS: Final = (
    "rank", "source", "record", "group", "seq", "p2p_seq", "is_p2p", "op", "name", "peer", "in_sizes", "out_sizes",
    "in_elems", "out_elems", "bytes", "dtype", "in_flight", "created_unix_ns", "timeout_ns", "duration_ns", "stack",
    "thread",
)  # fmt: skip


def reduce_rank(table: Callable[..., pl.DataFrame]) -> Tables:
    """Return a rank's small tables; none when it left no dump or log.

    `table` returns the rank's tables by name, and only some columns when given.
    """
    text = pl.col(pl.Categorical).cast(pl.String)
    every = table("dumps").with_columns(text)
    if every.is_empty():
        return {}
    dumps = _used(every)
    recorders = dumps.filter(kind="recorder")["source"].to_list()
    dump = pl.col("source") if recorders else pl.lit("")
    used = pl.col("source").is_in(dumps["source"].to_list())
    records = table("collectives", _OPS).with_columns(text).filter(used).with_columns(dump=dump)
    records = records.with_columns(
        number=pl.when("is_p2p").then("p2p_seq").otherwise("seq"), finished=~pl.col("in_flight")
    ).sort("record", maintain_order=True)
    # a log tells of launches and no more: neither in flight nor finished
    records = records.with_columns(pl.col("in_flight", "finished").fill_null(False))
    groups = table("process_groups").with_columns(text)
    status = table("group_status").with_columns(text).filter(used).with_columns(dump=dump)
    views = []
    for view in recorders or [""]:
        mine = _groups(groups, view, [other for other in recorders if other != view])
        own = records.filter(dump=view) if len(recorders) > 1 else records
        views.append(
            {
                "ops": _kept(own),
                "lanes": _lanes(own),
                "launches": _launches(own),
                "status": _status(status.filter(dump=view), mine),
                "groups": mine,
            }
        )
    return {
        **{name: pl.concat([view[name] for view in views]) for name in views[0]},
        "dumps": _starts(dumps.with_columns(dump=dump), records),
        "ras": _ras(table, every),
        "told": disagree.told(table),
    }


def _used(dumps: pl.DataFrame) -> pl.DataFrame:
    """Return the flight-recorder dumps of a rank; without any, its logs; without those, what RAS said of it."""
    own = dumps.filter(pl.col("kind") != "service")
    recorders = own.filter(pl.col("kind") == "recorder")
    found = recorders if recorders.height else own if own.height else dumps
    return found.sort("source")


def _starts(dumps: pl.DataFrame, records: pl.DataFrame) -> pl.DataFrame:
    """Add the earliest launch in each dump, and the `start` of the process it is of.

    Dumps that share a record (its number and its launch) are of one start: copies, or taken one after the other.
    """
    if dumps.height == 1:
        oldest = pl.lit(records["created_unix_ns"].min(), pl.Int64)
        return dumps.with_columns(oldest_unix_ns=oldest, start=pl.lit(0, pl.Int64))
    launches = records.group_by("dump").agg(oldest_unix_ns=pl.col("created_unix_ns").min())
    dumps = dumps.join(launches, on="dump", how="left", maintain_order="left")
    starts: list[pl.DataFrame] = []
    numbers = []
    for source in dumps["source"].to_list():
        own = records.filter(source=source).select("record", "created_unix_ns").drop_nulls()
        shared = (
            at for at, known in enumerate(starts) if not own.join(known, on=["record", "created_unix_ns"]).is_empty()
        )
        number = next(shared, len(starts))
        if number == len(starts):
            starts.append(own)
        else:
            starts[number] = pl.concat([starts[number], own])
        numbers.append(number)
    return dumps.with_columns(start=pl.Series(numbers, dtype=pl.Int64))


def _groups(groups: pl.DataFrame, dump: str, others: Sequence[str]) -> pl.DataFrame:
    """Return the rank's groups as one dump has them; what that does not say is taken from other kinds of sources."""
    source = pl.col("source").fill_null("")
    # the source that lists the ranks counts; contradictions are told apart
    mine = groups.filter(~source.is_in(list(others))).sort(
        "group", source != dump, pl.col("ranks").is_null(), pl.col("desc").is_null(), maintain_order=True
    )
    mine = mine.group_by("rank", "group", maintain_order=True).agg(pl.col("desc", "ranks").drop_nulls().first())
    ranks = [rank_text(ranks) if ranks is not None else None for ranks in mine["ranks"].to_list()]
    return mine.with_columns(ranks=pl.Series(ranks, dtype=pl.String), dump=pl.lit(dump)).sort("group")


def _ras(table: Callable[..., pl.DataFrame], dumps: pl.DataFrame) -> pl.DataFrame:
    asked = dumps.filter(kind="service").select("source", "file_unix_ns").drop_nulls()
    facts = table("log_facts").with_columns(pl.col(pl.Categorical).cast(pl.String))
    return rascounts.counts(facts, dict(asked.iter_rows()))


def _kept(records: pl.DataFrame) -> pl.DataFrame:
    """Keep the oldest records in flight and the newest finished ones of each group and kind."""
    lane = ["group", "is_p2p"]
    place = pl.col("number").rank("dense").over([*lane, "in_flight"]).cast(pl.Int64) - 1
    back = (-pl.col("number")).rank("dense").over([*lane, "in_flight"]).cast(pl.Int64) - 1
    numbered = records.with_columns(place=place, _back=back, _nth=pl.int_range(pl.len()).over([*lane, "in_flight"]))
    flying = pl.col("in_flight") & (pl.col("place") < _OLDEST_KEPT) & (pl.col("_nth") < _P2P_KEPT)
    finished = ~pl.col("in_flight") & (pl.col("_back") < _NEWEST_KEPT) & (pl.col("place") >= 0)
    last = pl.col("record") == pl.col("record").max()
    return numbered.filter((flying | finished | last).fill_null(False)).drop(
        "_back", "_nth", "seq", "p2p_seq", "finished", "source"
    )


def _launches(records: pl.DataFrame) -> pl.DataFrame:
    """Return when the newest collectives of each group were launched."""
    told = records.filter(~pl.col("is_p2p"), pl.col("group").is_not_null()).drop_nulls(["number", "created_unix_ns"])
    newest = pl.col("number") > pl.col("number").max().over("group") - _LAUNCHES_KEPT
    columns = ("rank", "dump", "group", "number", "created_unix_ns")
    return told.filter(newest).select(columns).unique(["group", "number"], keep="first", maintain_order=True)


def _lanes(records: pl.DataFrame) -> pl.DataFrame:
    """Return how far the rank has come in each group, collectives apart from sends and receives."""
    flying = pl.col("in_flight")
    return (
        records.drop_nulls("number")
        .group_by("rank", "dump", "group", "is_p2p")
        .agg(
            pl.col("number").filter(flying).min().alias("oldest"),
            pl.col("record")
            .filter(flying & (pl.col("number") == pl.col("number").filter(flying).min()))
            .min()
            .alias("order"),
            pl.col("number").max().alias("newest"),
            pl.col("number").filter("finished").max().alias("done"),
            (pl.col("is_p2p").any() | (pl.col("p2p_seq").fill_null(0) > 0).any()).alias("mixes"),
            flying.sum().cast(pl.Int64).alias("flights"),
        )
        .sort("group", "is_p2p")
    )


def _status(status: pl.DataFrame, groups: pl.DataFrame) -> pl.DataFrame:
    """Return the rank's counters with the group they belong to, told by its records or by the order of creation."""
    known = dict(status.drop_nulls("group").select("local_id", "group").iter_rows())
    # a log beside the dump names communicators by other ids than the dump does its groups
    names_in_order = [name for name in groups["group"].to_list() if name.isdecimal()]
    ordered = by_order(status["local_id"].drop_nulls().to_list(), names_in_order) if status.height else None
    agrees = all(ordered.get(local) == name for local, name in known.items()) if ordered and known else None
    by_place = [ordered.get(local) if ordered and local else None for local in status["local_id"].to_list()]
    told = status["group"].to_list()
    descriptions = dict(groups.select("group", "desc").iter_rows())
    names = [a or b for a, b in zip(told, by_place, strict=True)]
    return status.with_columns(
        group=pl.Series(names, dtype=pl.String),
        basis=pl.Series(
            ["records" if a else "order" if b else None for a, b in zip(told, by_place, strict=True)], dtype=pl.String
        ),
        desc=pl.Series([descriptions.get(name) for name in names], dtype=pl.String),
        order_agrees=pl.lit(agrees, dtype=pl.Boolean),
    ).sort("local_id", "group", "source")
