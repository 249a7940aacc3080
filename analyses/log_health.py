"""How NCCL set itself up, as its log says: what one rank or host has and the others do not.

Compared between the ranks and hosts of one run, never with a norm: the transport of each connection (NET/IB with or
without GDRDMA, NET/Socket, SHM, P2P), the number and rate of NICs of each host, the collective channels of each
rank, NCCL's version, and the time of each phase of communicator creation (`Init timings`, the largest of a rank's
communicators). What differs on a minority is a finding; what all share is a table. Warnings of NCCL and ranks that
RAS misses are told as they stand. Sources: NCCL_DEBUG=INFO lines and `ncclras`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import polars as pl

from tracetool.join.hangstate import rank_text
from tracetool.results import Finding, Headline, Result, Where, no_saving, skipped

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracetool.registry import RankView, RunView
    from tracetool.settings import Settings
    from tracetool.tables import Tables

TITLE = "Communication setup"
NEEDS = ("log_facts",)

_SLOW_INIT: Final = 2.0
"""A rank's creation time above this many medians is told."""
_SLOW_INIT_NS: Final = 10_000_000_000
_WARNINGS: Final = 50


def per_rank(rank: RankView, facts: Tables, settings: Settings) -> Tables:  # noqa: ARG001 - the contract's signature
    """Return the rank's facts, each once."""
    table = rank.table("log_facts")
    if table.is_empty():
        return {}
    table = table.with_columns(pl.col(pl.Categorical).cast(pl.String))
    return {
        "log_facts": table.select("rank", "host", "topic", "group", "name", "value", "number", "peer").unique(
            maintain_order=True
        )
    }


def analyze(parts: Tables, run: RunView, settings: Settings) -> Result:  # noqa: ARG001 - the contract's signature
    """Compare hosts and ranks."""
    if "log_facts" not in parts or parts["log_facts"].is_empty():
        return skipped("no line of NCCL's log tells of the setup.")
    facts = parts["log_facts"]
    host_of = dict(facts.select("rank", "host").drop_nulls().unique("rank", keep="first", maintain_order=True).rows())
    hosts = _hosts(facts)
    ranks = _ranks(facts)
    phases = _phases(facts)
    warnings = _warnings(facts)
    ras = facts.filter(pl.col("topic") == "ras", pl.col("name") == "missing").select("rank", "host", "value")
    findings = [
        *_host_findings(hosts),
        *_rank_findings(ranks),
        *_local_findings(facts, host_of),
        *_init_findings(phases),
        *_ras_findings(ras),
    ]
    total = facts.filter(pl.col("topic") == "init_phase", pl.col("name") == "total_ns")["number"].max()
    return Result(
        headline=[Headline("Communicator creation", total, "ns", 60)] if isinstance(total, int) else [],
        metrics={
            "hosts": hosts.height,
            "versions": ranks["version"].n_unique() if ranks["version"].null_count() < ranks.height else None,
            "init_total_ns_max": total if isinstance(total, int) else None,
            "warnings": warnings.height,
            "ras_missing": ras.height,
        },
        tables={"hosts": hosts, "ranks": ranks, "init_phases": phases, "warnings": warnings, "ras_missing": ras},
        findings=findings,
    )


def _hosts(facts: pl.DataFrame) -> pl.DataFrame:
    """Return one row a host: NICs, their rate, and the transports its ranks use."""
    topic = pl.col("topic")
    via = (topic == "transport") & pl.col("value").is_not_null()
    net = via & pl.col("value").str.starts_with("NET/")
    return (
        facts.drop_nulls("host")
        .group_by("host")
        .agg(
            pl.col("rank").unique().sort().alias("_ranks"),
            pl.max_horizontal(
                pl.col("name").filter(topic == "nic").n_unique(),
                pl.col("number").filter((topic == "net") & (pl.col("name") == "nics")).max().fill_null(0),
            )
            .cast(pl.Int64)
            .alias("nics"),
            pl.col("number").filter(topic == "nic").min().alias("nic_mbps_min"),
            net.any().alias("net"),
            (net & pl.col("value").str.starts_with("NET/Socket")).any().alias("socket"),
            (net & pl.col("value").str.contains("GDRDMA", literal=True)).any().alias("gdr"),
            (via & (pl.col("name") == "SHM")).any().alias("shm"),
            (via & (pl.col("name") == "P2P")).any().alias("p2p"),
        )
        .sort("host")
        .with_columns(
            pl.col("_ranks").map_elements(rank_text, return_dtype=pl.String).alias("ranks"),
            pl.when(pl.col("nics") > 0).then("nics").alias("nics"),
        )
        .drop("_ranks")
    )


def _ranks(facts: pl.DataFrame) -> pl.DataFrame:
    """Return one row a rank: version, channels, network, creation time."""
    topic, name = pl.col("topic"), pl.col("name")
    return (
        facts.group_by("rank")
        .agg(
            pl.col("host").drop_nulls().first(),
            pl.col("value").filter(topic == "version").first().alias("version"),
            pl.col("number").filter(name == "coll_channels").max().alias("coll_channels"),
            pl.col("value").filter(name == "network").first().alias("network"),
            pl.col("number").filter((topic == "init_phase") & (name == "total_ns")).max().alias("init_ns"),
        )
        .sort("rank")
    )


def _phases(facts: pl.DataFrame) -> pl.DataFrame:
    """Return one row a phase of communicator creation: median and worst rank."""
    rows = facts.filter(pl.col("topic") == "init_phase").group_by("name", "rank").agg(pl.col("number").max())
    return (
        rows.drop_nulls("number")
        .sort("name", "number", "rank", descending=[False, True, False])
        .group_by("name", maintain_order=True)
        .agg(
            pl.len().cast(pl.Int64).alias("ranks"),
            pl.col("number").median().round().cast(pl.Int64).alias("median_ns"),
            pl.col("number").first().alias("max_ns"),
            pl.col("rank").first().alias("worst_rank"),
        )
        .with_columns(phase=pl.col("name").str.strip_suffix("_ns"))
        .select("phase", "ranks", "median_ns", "max_ns", "worst_rank")
        .sort("max_ns", "phase", descending=[True, False])
    )


def _warnings(facts: pl.DataFrame) -> pl.DataFrame:
    """Return NCCL's warnings, those of most ranks first."""
    return (
        facts.filter(pl.col("topic") == "warning")
        .group_by("value")
        .agg(pl.col("rank").unique().sort().alias("_ranks"))
        .with_columns(
            count=pl.col("_ranks").list.len().cast(pl.Int64),
            ranks=pl.col("_ranks").map_elements(rank_text, return_dtype=pl.String),
        )
        .sort("count", "value", descending=[True, False])
        .select("count", "ranks", warning="value")
        .head(_WARNINGS)
    )


# ---- findings ----


def _finding(key: str, title: str, detail: str, advice: str, *, ranks: Sequence[int], info: bool = False) -> Finding:
    return Finding(
        id=f"log_health.{key}",
        analysis="log_health",
        severity="info" if info else "warning",
        title=title,
        detail=detail,
        advice=advice,
        confidence="high",
        confidence_why="The log says so; the others' logs say otherwise.",
        saving=no_saving(),
        where=Where(ranks=tuple(ranks)),
    )


def _members(hosts: pl.DataFrame, facts: Sequence[str]) -> str:
    return ", ".join(facts[:3]) + (f" and {hosts.height - 3} more" if hosts.height > 3 else "")  # noqa: PLR2004 - as shown


def _host_findings(hosts: pl.DataFrame) -> list[Finding]:
    """Tell hosts that lack what most hosts have."""
    found = []
    using = hosts.filter("net")
    most = hosts["nics"].max()
    questions = (
        (
            "gdr",
            using.filter(~pl.col("gdr")),
            using,
            "reach the network without GPUDirect RDMA (no GDRDMA in `via NET`)",
            "Load nvidia-peermem (or use DMA-BUF) and compare NCCL_NET_GDR_LEVEL on these hosts.",
        ),
        (
            "socket",
            using.filter("socket"),
            using,
            "use sockets instead of InfiniBand or RoCE",
            "Check ibstat and NCCL_IB_HCA on these hosts: their NICs were not found.",
        ),
        (
            "nics",
            hosts.filter(pl.col("nics") < pl.lit(most)),
            hosts.drop_nulls("nics"),
            f"have fewer than the {most!s} NICs of the others",
            "Check the missing NICs: ibstat, lspci, NCCL_IB_HCA.",
        ),
        (
            "nic_rate",
            hosts.filter(pl.col("nic_mbps_min") < pl.lit(hosts["nic_mbps_min"].max())),
            hosts.drop_nulls("nic_mbps_min"),
            "have a slower NIC than the others",
            "Check the link rate: ibstat, cable, port, switch.",
        ),
        (
            "shm",
            hosts.filter(pl.col("shm") & ~pl.col("p2p")),
            hosts.filter(pl.col("shm") | pl.col("p2p")),
            "move data between GPUs through host memory (SHM, no P2P)",
            "Check NVLink, PCIe ACS and NCCL_P2P_LEVEL on these hosts.",
        ),
    )
    for key, worse, compared, says, advice in questions:
        if 0 < worse.height * 2 < compared.height or (worse.height == 1 and compared.height == 2):  # noqa: PLR2004 - a pair
            names = _members(worse, worse["host"].to_list())
            told = f"{worse.height} of {compared.height} hosts; ranks {', '.join(worse['ranks'].to_list()[:8])}."
            found.append(_finding(key, f"{names} {says}", told, advice, ranks=()))
    return found


def _rank_findings(ranks: pl.DataFrame) -> list[Finding]:
    """Tell ranks whose version or channels differ from the most frequent ones."""
    found = []
    for column, what, advice in (
        ("version", "another NCCL version", "Install one NCCL version everywhere."),
        (
            "coll_channels",
            "another number of channels",
            "Compare topology files and NCCL_MIN/MAX_NCHANNELS on these hosts.",
        ),
    ):
        known = ranks.drop_nulls(column)
        counts = known.group_by(column).len().sort("len", column, descending=[True, False])
        if counts.height > 1:
            usual = counts[column][0]
            odd = known.filter(pl.col(column) != usual)
            title = f"Ranks {rank_text(odd['rank'])} have {what}"
            values = ", ".join(str(value) for value in odd[column].unique().sort().to_list())
            found.append(_finding(column, title, f"{values} instead of {usual}.", advice, ranks=odd["rank"].to_list()))
    return found


def _local_findings(facts: pl.DataFrame, host_of: dict[int, str]) -> list[Finding]:
    """Tell ranks that reach a rank of their own host over the network.

    A connection names its ends by their place in a communicator, which is the rank only where there is one.
    """
    created = facts.filter(pl.col("topic") == "init").group_by("rank").agg(pl.col("group").n_unique())
    if created.is_empty() or created.filter(pl.col("group") > 1).height:
        return []
    via = facts.filter(
        pl.col("topic") == "transport", pl.col("value").str.starts_with("NET/"), pl.col("peer").is_not_null()
    )
    pairs = [(rank, peer) for rank, peer in via.select("rank", "peer").rows() if rank != peer]
    local = sorted({rank for rank, peer in pairs if rank in host_of and host_of[rank] == host_of.get(peer)})
    if not local:
        return []
    return [
        _finding(
            "net_inside_host",
            f"Ranks {rank_text(local)} reach ranks of their own host over the network",
            "Their connections inside the host are `via NET`, not P2P.",
            "Check NVLink and NCCL_P2P_DISABLE; rail-optimised networks (PXN) do this on purpose between hosts only.",
            ranks=local,
        )
    ]


def _init_findings(phases: pl.DataFrame) -> list[Finding]:
    """Tell a rank whose communicator creation took far longer than the median."""
    total = phases.filter(pl.col("phase") == "total").rows(named=True)
    if not total or total[0]["max_ns"] < max(_SLOW_INIT_NS, _SLOW_INIT * total[0]["median_ns"]):
        return []
    row = total[0]
    worst = phases.filter(pl.col("phase") != "total", pl.col("worst_rank") == row["worst_rank"])
    phase = f", most of it in {worst['phase'][0]}" if worst.height else ""
    detail = f"{row['max_ns'] / 1e9:.1f} s against a median of {row['median_ns'] / 1e9:.1f} s{phase}."
    title = f"Rank {row['worst_rank']} created its communicators slowly"
    advice = "Look at its host at start: file system, DNS, CPU."
    return [_finding("init", title, detail, advice, ranks=[row["worst_rank"]], info=True)]


def _ras_findings(ras: pl.DataFrame) -> list[Finding]:
    if ras.is_empty():
        return []
    states = ", ".join(sorted({str(value) for value in ras["value"].to_list()}))
    title = f"RAS misses ranks {rank_text(ras['rank'])}"
    return [
        _finding("ras", title, f"They are {states}.", "Look at these processes first.", ranks=ras["rank"].to_list())
    ]
