"""Communication as NCCL recorded it: bandwidths, slow links and who launches last, without any trace of the GPU.

Sources: NCCL Inspector (durations and bytes of each operation), flight-recorder dumps (launch times; durations where
TORCH_NCCL_ENABLE_TIMING was set). One row of `bandwidth` is one operation of one size over one communicator.
transfer_ns: for all_reduce, all_gather, reduce_scatter and all_to_all that every member recorded, the shortest
duration of any member, which holds no waiting; median over instances. algbw = S ÷ transfer, busbw = algbw × factor
(nccl-tests, doc/PERFORMANCE.md; GB = 1e9), beside what nccl-tests measured for that size. Where members are missing, or
the operation is none of these, durations hold waiting: rows marked lower_bound, and never compared.

`links`: each communicator beside its peers, which carry the same operation and size under the same name over as many
ranks and hosts; ratio and the rule for slow are those of tracetool/slowlinks.py.

`arrivals`: who launches last (lateness: its launch minus the first member's), over collectives that all members
recorded. clock_error_ns is 0 where all its groups stay on one host; else hosts are taken to agree within 10 ms, and
lateness below that names nobody. Neither does a rank that is last in less than 80 % of its operations, or by less than
5 % of the time between them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import polars as pl

from tracetool import bandwidth, slowlinks
from tracetool.commwords import LOCAL_GROUP
from tracetool.figures import milliseconds, share
from tracetool.join.hangstate import rank_text, ranks_of
from tracetool.results import Chart, Finding, Headline, Result, Where, no_saving, skipped

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tracetool.registry import RankView, RunView
    from tracetool.settings import Settings
    from tracetool.tables import Tables

TITLE: Final = "Communication as NCCL recorded it"
NEEDS: Final = ("recorded",)

_SYMMETRIC: Final = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")
_NEWEST: Final = 256
"""Operations kept of each rank, communicator, operation and size, the newest."""
_ROWS: Final = 500
_CLOCK_ERROR_NS: Final = 10_000_000
_LAST_SHARE: Final = 0.8
_LATE_SHARE: Final = 0.05
_FEWEST: Final = 10


def per_rank(rank: RankView, facts: Tables, settings: Settings) -> Tables:  # noqa: ARG001 - the contract's signature
    """Return the newest operations: with durations (`timed`) and with launch times (`launched`), and the groups."""
    text = pl.col(pl.Categorical).cast(pl.String)
    columns = ("rank", "group", "seq", "is_p2p", "op", "bytes", "duration_ns", "created_unix_ns", "in_flight", "record")
    rows = rank.table("collectives", columns).with_columns(text).filter(~pl.col("is_p2p"), pl.col("op") != "coalesced")
    rows = rows.filter(~pl.col("group").str.starts_with(LOCAL_GROUP))  # of others, who knows which
    rows = rows.drop_nulls(["group", "seq"]).sort("record", maintain_order=True)
    kind = ["group", "op", "bytes"]
    back = pl.int_range(pl.len(), 0, -1)
    timed = rows.filter(pl.col("duration_ns") > 0, pl.col("bytes") > 0)
    groups = rank.table("process_groups").select("rank", "group", "desc", "ranks", "size")
    return {
        "timed": timed.filter(back.over(kind) <= _NEWEST)
        .select("rank", *kind, "seq", "duration_ns")
        .unique(["group", "op", "seq"], keep="last", maintain_order=True),
        "counts": timed.group_by("rank", *kind).agg(pl.len().cast(pl.Int64).alias("count")).sort(*kind),
        "launched": rows.filter(pl.col("created_unix_ns") > 0)
        .unique(["group", "seq"], keep="first", maintain_order=True)
        .filter(back.over("group") <= _NEWEST)
        .select("rank", "group", "seq", at="created_unix_ns"),
        "names": groups.sort("group", pl.col("ranks").is_null(), pl.col("size").is_null(), maintain_order=True).unique(
            "group", keep="first", maintain_order=True
        ),
    }


def analyze(parts: Tables, run: RunView, settings: Settings) -> Result:  # noqa: ARG001 - the contract's signature
    """Put the ranks' records together."""
    if not parts or not (parts["timed"].height or parts["launched"].height):
        return skipped("no record has a duration or a launch time: NCCL Inspector or the flight recorder writes them.")
    host_of = _hosts(run)
    members = _members(parts)
    rates = _instances(parts["timed"], members)
    table = _bandwidth(rates, parts["counts"], run.joined.get("bandwidth_curve"))
    links = _links(rates, host_of)
    arrivals = _arrivals(parts["launched"], members, host_of)
    judged = links.drop_nulls("ratio").height
    traced = bool(run.features.get("comm"))
    findings = [] if traced else [*_link_findings(links), *_late_findings(arrivals)]
    notes = []
    if traced:
        notes.append("Traces of the GPU are there too: what is slow or late is judged by them, in collectives.")
    if links.height > judged:
        notes.append(f"{links.height - judged} of {links.height} communicators have no peers and cannot be judged.")
    if arrivals.height and arrivals["clock_error_ns"].max():
        notes.append("Groups span hosts: their clocks are taken to agree within 10 ms.")
    if table.height and table["lower_bound"].any():
        notes.append(
            "Rows marked lower_bound hold waiting: not all members recorded the operation, or it is one-sided."
        )
    best = table.filter(~pl.col("lower_bound"))["busbw_gbs"].drop_nulls().max()
    return Result(
        headline=[Headline("Bus bandwidth recorded", best, "gbs", 61, "best communicator and size")]
        if isinstance(best, float)
        else [],
        metrics={
            "operations": int(parts["counts"]["count"].sum()),
            "busbw_gbs_max": best if isinstance(best, float) else None,
            "slow_links": int(links["slow"].sum()) if judged else None,
            "links_judged": judged,
            "last_rank": int(arrivals["rank"][0]) if arrivals.height and arrivals["named"][0] else None,
        },
        tables={"bandwidth": table.head(_ROWS), "links": links.head(_ROWS), "arrivals": arrivals.head(_ROWS)},
        findings=findings,
        charts=_charts(table, arrivals),
        notes=notes,
    )


# ---- groups and hosts ----


def _hosts(run: RunView) -> dict[int, str]:
    """Return the host of each rank whose host is known, not assumed."""
    told = run.joined.get("hosts")
    if told is not None:
        return dict(told.filter(~pl.col("assumed")).select("rank", "host").iter_rows())
    return dict(run.ranks.drop_nulls("host").select("rank", "host").iter_rows())


def _members(parts: Tables) -> pl.DataFrame:
    """Return which communicator each rank means by a name: rank, group, group_id, desc, ranks, size.

    A communicator is its name and its ranks. Where they are not listed, they are those that recorded it.
    """
    used = pl.concat([parts[name].select("rank", "group") for name in ("timed", "launched")]).unique()
    rows = used.join(parts["names"], on=["rank", "group"], how="left")
    seen = rows.group_by("group").agg(pl.col("rank").sort().alias("seen"), pl.col("desc").drop_nulls().min())
    rows = rows.drop("desc").join(seen, on="group")
    rows = rows.with_columns(ranks=pl.coalesce(pl.col("ranks").list.sort(), "seen"))
    rows = rows.with_columns(size=pl.coalesce("size", pl.col("ranks").list.len().cast(pl.Int32)))
    keys = rows.select("group", "ranks").unique().sort("group", "ranks").with_row_index("group_id")
    return (
        rows.join(keys.with_columns(pl.col("group_id").cast(pl.Int32)), on=["group", "ranks"])
        .select("rank", "group", "group_id", "desc", "ranks", "size")
        .sort("group_id", "rank")
    )


def _instances(timed: pl.DataFrame, members: pl.DataFrame) -> pl.DataFrame:
    """Return one row an instance: its shortest duration, and whether all members recorded it."""
    key = ["group_id", "op", "bytes", "seq"]
    return (
        timed.join(members, on=["rank", "group"])
        .group_by(key)
        .agg(
            pl.col("duration_ns").min().alias("transfer_ns"),
            pl.len().cast(pl.Int32).alias("told"),
            pl.col("group", "desc", "ranks", "size").first(),
        )
        .with_columns(whole=(pl.col("told") == pl.col("size")) & pl.col("op").is_in(_SYMMETRIC))
        .sort(key)
    )


# ---- tables ----


def _bandwidth(rates: pl.DataFrame, counts: pl.DataFrame, curve: pl.DataFrame | None) -> pl.DataFrame:
    """Return table `bandwidth`, the largest transfers first."""
    recorded = counts.group_by("group", "op", "bytes").agg(pl.col("count").max())
    key = ["group_id", "group", "desc", "size", "op", "bytes"]
    grouped = (
        rates.group_by(key)
        .agg(
            pl.col("ranks").first(),
            pl.col("transfer_ns").median().round().cast(pl.Int64),
            pl.col("told").max().alias("ranks_told"),
            pl.len().cast(pl.Int64).alias("instances"),
            pl.col("whole").sum().cast(pl.Int64).alias("whole"),
        )
        .join(recorded, on=["group", "op", "bytes"], how="left")
        .sort(key)
    )
    rows: list[dict[str, Any]] = []
    for row in grouped.iter_rows(named=True):
        algbw = bandwidth.gbs(row["bytes"], row["transfer_ns"])
        factor = bandwidth.bus_factor(row["op"], row["size"])
        busbw = algbw * factor if algbw is not None and factor is not None else None
        ceiling = bandwidth.ceiling_gbs(curve, row["op"], row["bytes"]) if curve is not None else None
        rows.append(
            {
                **{name: row[name] for name in ("group", "desc", "size", "op", "bytes", "count", "transfer_ns")},
                "ranks": rank_text(row["ranks"]),
                "algbw_gbs": algbw,
                "busbw_gbs": busbw,
                "ceiling_gbs": ceiling,
                "share_of_ceiling": busbw / ceiling if busbw is not None and ceiling else None,
                "ranks_told": row["ranks_told"],
                "whole_share": share(row["whole"], row["instances"]),
                "lower_bound": row["whole"] < row["instances"],
            }
        )
    return pl.DataFrame(rows, schema=_BANDWIDTH).sort(
        "bytes", "group", "ranks", "op", descending=[True, False, False, False]
    )


_BANDWIDTH: Final = {
    "group": pl.String, "desc": pl.String, "ranks": pl.String, "op": pl.String, "size": pl.Int64, "bytes": pl.Int64,
    "count": pl.Int64, "transfer_ns": pl.Int64, "algbw_gbs": pl.Float64, "busbw_gbs": pl.Float64,
    "ceiling_gbs": pl.Float64, "share_of_ceiling": pl.Float64, "ranks_told": pl.Int64, "whole_share": pl.Float64,
    "lower_bound": pl.Boolean,
}  # fmt: skip


def _links(rates: pl.DataFrame, host_of: Mapping[int, str]) -> pl.DataFrame:
    """Return each communicator beside its peers, the slowest first."""
    places = {
        group: (ranks, sorted({host_of[rank] for rank in ranks}) if host_of.keys() >= set(ranks) else [])
        for group, ranks in rates.select("group_id", "ranks").unique("group_id").iter_rows()
    }
    cells = (
        rates.filter("whole")
        .with_columns(
            role=pl.col("desc").fill_null(""),
            hosts=pl.col("group_id").replace_strict(
                {group: len(hosts) or None for group, (_, hosts) in places.items()}, default=None, return_dtype=pl.Int64
            ),
            low_rank=pl.lit(None, pl.Int32),
            high_rank=pl.lit(None, pl.Int32),
            step=pl.lit(0, pl.Int32),
        )
        .group_by(*slowlinks.LINK, *slowlinks.KIND, "step")
        .agg(
            pl.len().cast(pl.Int64).alias("instances"),
            pl.col("transfer_ns").sum(),
            pl.col("transfer_ns").median().round().cast(pl.Int64).alias("transfer_p50_ns"),
            pl.col("transfer_ns").min().alias("transfer_min_ns"),
        )
        .sort(*slowlinks.LINK, *slowlinks.KIND)
    )
    links, _ = slowlinks.compare(cells)
    names = rates.select("group_id", "group").unique().sort("group_id")
    found = links.join(names, on="group_id", how="left")
    ids = found["group_id"].to_list()
    return (
        found.with_columns(
            ranks=pl.Series([rank_text(places[group][0]) for group in ids], dtype=pl.String),
            host_names=pl.Series([places[group][1] for group in ids], dtype=pl.List(pl.String)),
        )
        .select("group", "role", "ranks", "host_names", "op", "size", "instances", "transfer_ns", "peers",
                "expected_ns", "ratio", "slow", "group_id")
        .sort("slow", "ratio", "group_id", descending=[True, True, False], nulls_last=True)
    )  # fmt: skip


def _arrivals(launched: pl.DataFrame, members: pl.DataFrame, host_of: Mapping[int, str]) -> pl.DataFrame:
    """Return who launches last and by how much, the most frequent last one first."""
    key = ["group_id", "seq"]
    rows = (
        launched.join(members, on=["rank", "group"])
        .filter((pl.col("size") > 1) & (pl.len().over(key) == pl.col("size")))
        .sort(*key, "at", "rank")
        .with_columns(
            lateness_ns=pl.col("at") - pl.col("at").first().over(key),
            last=pl.col("rank") == pl.col("rank").last().over(key),
            far=pl.col("group_id").is_in(_spanning(members, host_of)),
        )
    )
    pace = (
        rows.sort("rank", "group_id", "seq")
        .with_columns(between=pl.col("at").diff().over("rank", "group_id"))
        .group_by("rank")
        .agg(pl.col("between").median().round().cast(pl.Int64).alias("interval_ns"))
    )
    return (
        rows.group_by("rank")
        .agg(
            pl.len().cast(pl.Int64).alias("operations"),
            pl.col("last").sum().cast(pl.Int64),
            pl.col("lateness_ns").median().round().cast(pl.Int64).alias("lateness_p50_ns"),
            pl.when(pl.col("far").any()).then(_CLOCK_ERROR_NS).otherwise(0).cast(pl.Int64).alias("clock_error_ns"),
        )
        .join(pace, on="rank", how="left")
        .with_columns(last_share=pl.col("last") / pl.col("operations"))
        .with_columns(
            named=(
                (pl.col("operations") >= _FEWEST)
                & (pl.col("last_share") >= _LAST_SHARE)
                & (pl.col("lateness_p50_ns") > pl.col("clock_error_ns"))
                & (pl.col("lateness_p50_ns") > _LATE_SHARE * pl.col("interval_ns"))
            ).fill_null(value=False)
        )
        .select("rank", "operations", "last", "last_share", "lateness_p50_ns", "interval_ns", "clock_error_ns", "named")
        .sort("named", "last", "rank", descending=[True, True, False])
    )


def _spanning(members: pl.DataFrame, host_of: Mapping[int, str]) -> list[int]:
    """Return the communicators that are on several hosts, or on hosts that are not all known.

    Without any known host the run is taken for one host only when it has no more ranks than a host has GPUs (8).
    """
    everyone = members["rank"].unique()
    small = not host_of and everyone.len() <= 8  # noqa: PLR2004 - as documented
    found = []
    for group, ranks in members.select("group_id", "ranks").unique("group_id").sort("group_id").iter_rows():
        hosts = {host_of.get(rank) for rank in ranks}
        if not small and (len(hosts) > 1 or None in hosts):
            found.append(group)
    return found


# ---- findings ----


def _link_findings(links: pl.DataFrame) -> list[Finding]:
    """Return one finding a slow link, NIC or communicator; none where nothing is slow."""
    rows = list(links.with_row_index("row").iter_rows(named=True))
    members = [frozenset(ranks_of(row["ranks"])) for row in rows]
    places = [
        slowlinks.Place(ranks, frozenset(row["host_names"]), slow=row["slow"])
        for ranks, row in zip(members, rows, strict=True)
    ]
    found = []
    for culprit in slowlinks.locate(places):
        mine = [rows[number] for number in culprit.members]
        ratio = sum(row["transfer_ns"] for row in mine) / max(1, sum(row["expected_ns"] or 0 for row in mine))
        fewest = min(row["peers"] for row in mine)
        ranks = rank_text(culprit.ranks)
        name = {"nic": f"The NIC of rank {ranks}", "hosts": f"The link between {' and '.join(culprit.hosts)}"}
        what = name.get(culprit.kind, f"Group {mine[0]['group']} (ranks {ranks})")
        found.append(
            Finding(
                id=f"recorded.slow_link.{culprit.kind}-{mine[0]['group_id']}",
                analysis="recorded",
                severity="warning",
                title=f"{what} moves data {ratio:.2g} times slower than its peers",
                detail=f"Over {sum(row['instances'] for row in mine)} recorded operations; the shortest duration of "
                "any member counts, so waiting for a late rank is not in it.",
                advice="Compare the link's counters, cabling and speed with a healthy one (ibstat, ethtool, nvidia-smi "
                "nvlink -s), and run nccl-tests on these ranks alone.",
                confidence="medium" if fewest < 2 else "high",  # noqa: PLR2004 - one peer cannot outvote
                confidence_why=f"compared with {fewest} communicators that carry the same operation and size",
                saving=no_saving(),
                evidence=(("links", tuple(sorted(row["row"] for row in mine))),),
                where=Where(ranks=tuple(culprit.ranks)),
            )
        )
    return found


def _late_findings(arrivals: pl.DataFrame) -> list[Finding]:
    """Return a finding for each rank that launches last nearly always, by more than clocks may be wrong."""
    found = []
    for number, row in enumerate(arrivals.iter_rows(named=True)):
        if not row["named"]:
            continue
        across = row["clock_error_ns"] > 0
        found.append(
            Finding(
                id=f"recorded.launches_last.{row['rank']}",
                analysis="recorded",
                severity="warning",
                title=f"Rank {row['rank']} launches last: the others wait for it",
                detail=f"It was last in {row['last']} of {row['operations']} collectives, by "
                f"{milliseconds(row['lateness_p50_ns'])} (median) of {milliseconds(row['interval_ns'])} between them.",
                advice="Trace this rank and a peer with torch.profiler: a slow GPU, data loader, or CPU makes it late.",
                confidence="medium" if across else "high",
                confidence_why="a constant error of its host's clock would look the same"
                if across
                else "one clock: all its groups stay on its host",
                saving=no_saving(),
                evidence=(("arrivals", (number,)),),
                where=Where(ranks=(row["rank"],)),
            )
        )
    return found


def _charts(table: pl.DataFrame, arrivals: pl.DataFrame) -> list[Chart]:
    charts = []
    if table["busbw_gbs"].is_not_null().any():
        note = "One dot an operation of one size over one communicator, as NCCL timed it."
        options: dict[str, str | int | float | bool] = {"log": True, "x_unit": "bytes"}
        charts.append(
            Chart("scatter", "Bus bandwidth by size", "bandwidth", x="bytes", y=("busbw_gbs",), series="op",
                  size="count", unit="gbs", note=note, options=options)
        )  # fmt: skip
    if arrivals.height:
        note = "In how many collectives a rank launched last, of all it took part in."
        charts.append(
            Chart("bars", "Who launches last", "arrivals", "rank", y=("last", "operations"), unit="count", note=note)
        )
    return charts
