"""The hang verdict from NCCL's RAS alone, where no rank left a dump or a log.

RAS counts launches, per rank, communicator and operation, and says nothing of completion. A collective can be
complete only when all members have launched it: so what some launched beyond the smallest count of their communicator
is in flight, and the ranks with that smallest count have not launched it. A running job looks the same for a moment,
which is why one answer alone is low confidence, and counts that grow from one answer to the next are no hang.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import polars as pl

from tracetool.join.diagnose import Diagnosis
from tracetool.join.hangstate import rank_text

if TYPE_CHECKING:
    from collections.abc import Mapping

COUNTS = {
    "rank": pl.Int32, "group": pl.String, "op": pl.String, "launched": pl.Int64, "first_launched": pl.Int64,
    "answers": pl.Int64, "missing": pl.String,
}  # fmt: skip
_PREFIX = "launched."


@dataclass(frozen=True)
class Answers:
    """What RAS said of the whole run."""

    totals: pl.DataFrame
    """rank, group, launched: collectives of any kind."""
    missing: Mapping[int, str]
    """Rank that does not answer → dead, unresponsive or missing."""
    grew: bool
    """A count was larger in a later answer."""
    repeated: bool
    """Every count was asked for more than once."""


def counts(facts: pl.DataFrame, asked_unix_ns: Mapping[str, int]) -> pl.DataFrame:
    """Return one rank's COUNTS from its log_facts; `asked_unix_ns` tells the time of each source."""
    at = pl.col("source").replace_strict(dict(asked_unix_ns), default=0, return_dtype=pl.Int64)
    ras = facts.filter(pl.col("topic") == "ras").sort(at, "source", "line")
    launched = (
        ras.filter(pl.col("name").str.starts_with(_PREFIX), pl.col("number").is_not_null())
        .group_by("rank", "group", "name")
        .agg(
            pl.col("number").last().alias("launched"),
            pl.col("number").first().alias("first_launched"),
            pl.len().cast(pl.Int64).alias("answers"),
        )
        .with_columns(op=pl.col("name").str.strip_prefix(_PREFIX))
    )
    missing = (
        ras.filter(pl.col("name") == "missing")
        .group_by("rank", "group")
        .agg(pl.col("value").last().alias("missing"), pl.len().cast(pl.Int64).alias("answers"))
    )
    both = pl.concat([launched.drop("name"), missing], how="diagonal")
    return both.select(
        pl.col(name).cast(dtype) if name in both.columns else pl.lit(None, dtype).alias(name)
        for name, dtype in COUNTS.items()
    ).sort("group", "op", nulls_last=True)


def answers(table: pl.DataFrame) -> Answers:
    """Bring all ranks' COUNTS together."""
    told = table.drop_nulls("launched")
    return Answers(
        totals=told.group_by("rank", "group").agg(pl.col("launched").sum()).sort("group", "rank"),
        missing=dict(
            table.drop_nulls("missing").sort("rank", "missing").select("rank", "missing").unique("rank", keep="first",
                maintain_order=True).iter_rows()
        ),
        grew=bool((told["launched"] > told["first_launched"]).any()),
        repeated=told.height > 0 and bool((told["answers"] > 1).all()),
    )  # fmt: skip


def as_counters(parts: Mapping[str, pl.DataFrame], said: Answers) -> dict[str, pl.DataFrame]:
    """Return the post-mortem's small tables with RAS' counts in the place of a watchdog's counters and records."""
    smallest = said.totals.with_columns(done=pl.col("launched").min().over("group"))
    ahead = smallest.filter(pl.col("launched") > pl.col("done")).with_columns(number=pl.col("done") + 1)
    kinds = (
        parts["ras"]
        .drop_nulls("launched")
        .with_columns(beyond=pl.col("launched") - pl.col("launched").min().over("group", "op"))
    )
    called = (
        kinds.filter(pl.col("beyond") > 0)
        .sort("group", "beyond", "op", descending=[False, True, False])
        .group_by("group", maintain_order=True)
        .agg(pl.col("op").first(), several=pl.col("op").n_unique() > 1)
        # which of several kinds came first is not told
        .with_columns(op=pl.when(~pl.col("several")).then("op"))
    )
    records = ahead.join(called, on="group", how="left").select(
        pl.col("rank"), pl.lit("", pl.String).alias("source"), pl.lit(0, pl.Int64).alias("record"), pl.col("group"),
        pl.col("number"), pl.lit(value=False).alias("is_p2p"), pl.col("op").fill_null("a collective"),
        pl.lit("", pl.String).alias("name"), pl.lit(value=True).alias("in_flight"), pl.lit(0, pl.Int64).alias("place"),
    )  # fmt: skip
    status = smallest.select(
        pl.col("rank"), pl.lit("", pl.String).alias("source"), pl.col("group").alias("local_id"), pl.col("group"),
        pl.col("launched").alias("last_enqueued"), pl.lit(None, pl.Int64).alias("last_started"),
        pl.col("done").alias("last_completed"), pl.lit(None, pl.String).alias("status"),
        pl.lit("records").alias("basis"), pl.lit(None, pl.String).alias("desc"),
        pl.lit(None, pl.Boolean).alias("order_agrees"),
    )  # fmt: skip
    present = pl.col("rank").is_in(said.totals["rank"].unique().to_list())
    return {
        **parts,
        "dumps": parts["dumps"].filter(present),
        "ops": pl.concat([parts["ops"].clear(), records], how="diagonal"),
        "lanes": parts["lanes"].clear(),
        "status": status,
    }


def judge(verdict: Diagnosis, said: Answers) -> Diagnosis:
    """Say how far a verdict from counts alone can be trusted, and name the ranks that do not answer."""
    if said.grew:
        why = ("RAS was asked more than once, and in between ranks went on launching.",)
        return Diagnosis("none", (), "medium", why, None, ())
    gone = tuple(sorted(said.missing))
    if gone:
        dead = [rank for rank in gone if said.missing[rank] == "dead"]
        states = ", ".join(sorted(set(said.missing.values())))
        why = (f"RAS says of rank{'s' if len(gone) > 1 else ''} {rank_text(gone)}: {states}.",)
        sure = len(dead) == len(gone)
        return replace(verdict, cause="no_dump", culprits=gone, confidence="medium" if sure else "low", why=why)
    if not verdict.edges:
        return replace(verdict, confidence="medium")
    if len(verdict.culprits) * 2 > said.totals["rank"].n_unique():
        most = "They are more than half of all ranks: none can be named."
        return replace(verdict, cause="unknown", culprits=(), confidence="low", why=(*verdict.why, most))
    if said.repeated:
        return replace(verdict, confidence="medium", why=(*verdict.why, "A second answer of RAS had the same counts."))
    once = "RAS was asked once: a running job may look the same for a moment. Ask again."
    return replace(verdict, confidence="low", why=(*verdict.why, once))
