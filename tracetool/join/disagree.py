"""Where two sources of one rank contradict each other: dump, log, RAS, Kineto or Nsight traces.

Compared are what both state: the last operation completed in a group, the members of a group, the operation at a
number of a group, and the host. Nothing is resolved here: a contradiction is a row and a sentence. Dumps and logs are
written at different moments, so counters may differ without anything being wrong; the sentence then says both values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import polars as pl

from tracetool.join.hangstate import rank_text

if TYPE_CHECKING:
    from collections.abc import Callable

TOLD: Final = {
    "rank": pl.Int32, "topic": pl.String, "group": pl.String, "number": pl.Int64, "source": pl.String,
    "value": pl.String,
}  # fmt: skip
_CONTRADICTIONS: Final = {
    "ranks": pl.String, "count": pl.Int64, "topic": pl.String, "group": pl.String, "number": pl.Int64,
    "said": pl.String,
}  # fmt: skip
_NOT_COMPARED: Final = ("coalesced", "barrier", "unknown")
_SENTENCES: Final = 6
_NEWEST: Final = 4096
"""Operations of a group compared, the newest."""


def told(table: Callable[..., pl.DataFrame]) -> pl.DataFrame:
    """Return what the sources of one rank state about the same things, only where they state different values.

    `table` returns the rank's tables by name, and only some columns when given. One row a statement, TOLD; sorted by
    all columns.
    """
    text = pl.col(pl.Categorical).cast(pl.String)
    dumps = table("dumps").with_columns(text)
    if dumps.height < 2 and table("ranks").height < 2:  # noqa: PLR2004 - one source cannot contradict itself
        return pl.DataFrame(schema=TOLD)
    kinds = dict(dumps.select("source", "kind").iter_rows())
    newest = dumps.filter(kind="recorder").sort("newest_unix_ns", "file_unix_ns", "source").tail(1)["source"].to_list()
    used = [source for source, kind in kinds.items() if kind != "recorder" or source in newest]
    kind = pl.col("source").replace_strict(kinds, default="log", return_dtype=pl.String)
    kind = kind.replace({"recorder": "dump", "service": "RAS"})
    status = table("group_status").with_columns(text).filter(pl.col("source").is_in(used))
    counters = status.drop_nulls("group").select(
        "rank", "group", topic=pl.lit("last completed"), source=kind, value=pl.col("last_completed").cast(pl.String)
    )
    groups = table("process_groups").drop_nulls("ranks").select("rank", "group", "ranks").with_row_index("at")
    members = groups.select(
        "rank", "group", topic=pl.lit("members"), source=pl.lit("a source"),
        value=pl.Series([rank_text(ranks) for ranks in groups["ranks"].to_list()], dtype=pl.String),
    )  # fmt: skip
    # an address is no name: it can be compared with nothing
    ranks = table("ranks").filter(~pl.col("host").str.contains(r"^[0-9.]+$|:"))
    hosts = ranks.select(
        "rank", topic=pl.lit("host"), source="format", value=pl.col("host").str.split(".").list.first()
    )
    both = pl.concat([counters, members, hosts, _operations(table, used, kind)], how="diagonal")
    rows = both.select(
        pl.col(name).cast(dtype) if name in both.columns else pl.lit(None, dtype).alias(name)
        for name, dtype in TOLD.items()
    ).unique()
    key = ["topic", "group", "number"]
    return rows.filter(pl.col("value").n_unique().over(key) > 1).sort(*TOLD, nulls_last=True)


def _operations(table: Callable[..., pl.DataFrame], used: list[str], kind: pl.Expr) -> pl.DataFrame:
    """Return the operation at each number of each group, from dumps, timeouts of logs and traces with numbers."""
    text = pl.col(pl.Categorical).cast(pl.String)
    comms = table("comms", ("rank", "group", "seq", "op")).with_columns(text)
    if comms.is_empty() and len(used) < 2:  # noqa: PLR2004 - one source cannot contradict itself
        return pl.DataFrame(schema=TOLD)
    columns = ("rank", "source", "group", "seq", "is_p2p", "op", "backend", "in_flight")
    records = table("collectives", columns).with_columns(text).filter(pl.col("source").is_in(used))
    # gloo records a reduce_scatter as an all_reduce; a COLL line's count is not torch's number
    records = records.filter(~pl.col("is_p2p"), pl.col("backend").ne_missing("gloo"), pl.col("in_flight").is_not_null())
    recorded = records.select("rank", "group", number="seq", source=kind, value="op")
    traced = comms.select("rank", "group", number="seq", source=pl.lit("trace"), value="op")
    rows = pl.concat([recorded, traced], how="vertical_relaxed").drop_nulls(["group", "number", "value"])
    return rows.filter(
        ~pl.col("value").is_in([*_NOT_COMPARED, "send", "recv", "send_recv"]),
        pl.col("number") > pl.col("number").max().over("group") - _NEWEST,
    ).with_columns(topic=pl.lit("operation"))


def contradictions(rows: pl.DataFrame) -> pl.DataFrame:
    """Return one row a contradiction, with all ranks whose sources contradict each other alike."""
    if rows.is_empty():
        return pl.DataFrame(schema=_CONTRADICTIONS)
    said = (
        rows.with_columns(one=pl.col("source") + ": " + pl.col("value"))
        .group_by("rank", "topic", "group", "number")
        .agg(pl.col("one").unique().sort().str.join("; ").alias("said"))
    )
    alike = said.group_by("topic", "group", "number", "said").agg(pl.col("rank").unique().sort())
    return (
        alike.with_columns(
            ranks=pl.Series([rank_text(ranks) for ranks in alike["rank"].to_list()], dtype=pl.String),
            count=pl.col("rank").list.len().cast(pl.Int64),
            first=pl.col("rank").list.first(),
        )
        .sort("topic", "group", "number", "first", "said", nulls_last=True)
        .select(*_CONTRADICTIONS)
    )


def sentences(table: pl.DataFrame) -> list[str]:
    """Return what the reader is told of `contradictions`, at most seven sentences."""
    found = []
    for row in table.head(_SENTENCES).iter_rows(named=True):
        number = f" at {row['number']}" if row["number"] is not None else ""
        place = f" of group {row['group']}{number}" if row["group"] is not None else ""
        who = f"rank {row['ranks']}" if row["count"] == 1 else f"ranks {row['ranks']}"
        found.append(f"Sources of {who} disagree on the {row['topic']}{place} ({row['said']}).")
    if table.height > _SENTENCES:
        found.append(f"{table.height - _SENTENCES} more contradictions between sources stand in the table.")
    return found
