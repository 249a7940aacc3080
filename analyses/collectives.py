"""Collectives: what moves over which group, how long it waits and how fast it goes.

One row of `groups` is one operation of one size over one group. count: matched instances (where nothing could be
matched, communications). wait_ns: what members spent waiting for others, summed over members. transfer_ns: the time in
which data moved, summed over instances: for all_reduce, all_gather, reduce_scatter, all_to_all and barrier the
shortest stay of any member (no common clock needed), for others end − last arrival.

    algbw = S ÷ transfer, busbw = algbw × factor        GB/s, GB = 1e9

S: total bytes, the larger of what a rank puts in and gets out (of members that differ, the largest). Factors:
all_reduce 2(n − 1)/n; all_gather, reduce_scatter, all_to_all, gather, scatter (n − 1)/n; broadcast, reduce, send and
receive 1 (nccl-tests, doc/PERFORMANCE.md). An all_to_all with uneven parts counts with its largest member's bytes.

share_of_line_rate: busbw ÷ what the wires allow one GPU in one direction: the device's links inside a host; across
hosts the NICs (`--nic-gbs`, one NIC for each GPU) of a host × [(n − 1)/n] ÷ [(N − 1)/N], at most the links.
share_of_nccl: busbw ÷ what NCCL's own model expects of the links. share_of_ceiling: busbw ÷ what nccl-tests measured
for that operation and size (`--nccl-tests`). Where members are missing or nothing was matched the shortest duration
still holds waiting: bandwidths are lower bounds and marked so.

`links`: every communicator (of sends and receives: every pair of ranks) beside its peers, which carry the same
operation and size for the same role over as many ranks and hosts; ratio = its transfer time ÷ the peers' median. Slow:
a quarter longer or more, in most steps, its fastest transfer included. Slow ones that share one pair of hosts or one
rank, where no healthy one does, are put down to that link or NIC. Links without peers cannot be judged.

`instances`: the worst. excess_ns: transfer beyond the median of its operation and size in the group; outlier: three
times the median or more. last_rank: the member that waited least, which the others waited for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import polars as pl

from tracetool import hardware, slowlinks
from tracetool.figures import milliseconds, severity, share
from tracetool.grouprates import host_names, rates
from tracetool.join.groups import grid
from tracetool.join.price import step_time_ns
from tracetool.ratenotes import link_notes, rate_notes
from tracetool.results import SAVING_SCHEMA, Chart, Finding, Headline, Result, Value, Where

if TYPE_CHECKING:
    from tracetool.registry import RankView, RunView
    from tracetool.settings import Settings
    from tracetool.tables import Tables

TITLE: Final = "Collectives and links"
NEEDS: Final = ("comm",)
INSTEAD: Final = "recorded"

_INSTANCES_SHOWN: Final = 200
_CLOCK_SHARE: Final = 10
_OUTLIER: Final = 3
"""An instance is an outlier when its data moved this many times longer than usual."""
_TOLD: Final = ("symmetric", "arrival", "slots", "partial")


def per_rank(rank: RankView, facts: Tables, _settings: Settings) -> Tables:
    """Return `rows` (one a step: time of its communications, waiting and moving) and `nameless` (without a group)."""
    comms = rank.table("comms", ["rank", "event", "op", "group", "bytes", "step", "dur_ns", "start_ns"])
    known = facts.get("waits", pl.DataFrame(schema={"event": pl.Int64, "wait_end_ns": pl.Int64, "basis": pl.String}))
    split = comms.join(
        known.select("event", "wait_end_ns", "basis").unique("event", keep="first", maintain_order=True),
        on="event",
        how="left",
        maintain_order="left",
    ).with_columns(
        told=(pl.col("wait_end_ns").is_not_null() & pl.col("basis").is_in(_TOLD)).fill_null(value=False),
        wait_ns=pl.col("wait_end_ns") - pl.col("start_ns"),
    )
    rows = (
        split.filter(pl.col("step").is_not_null())
        .group_by("rank", "step")
        .agg(
            count=pl.len().cast(pl.Int64),
            comm_ns=pl.col("dur_ns").sum(),
            wait_ns=pl.col("wait_ns").filter("told").sum(),
            move_ns=(pl.col("dur_ns") - pl.col("wait_ns")).filter("told").sum(),
            untold_ns=pl.col("dur_ns").filter(~pl.col("told")).sum(),
        )
        .sort("rank", "step")
    )
    nameless = (
        split.filter(pl.col("group").is_null() & pl.col("basis").is_null())
        .group_by("rank", pl.col("op").cast(pl.String))
        .agg(count=pl.len().cast(pl.Int64), ns=pl.col("dur_ns").sum())
        .sort("rank", "op")
    )
    return {"rows": rows, "nameless": nameless}


def analyze(parts: Tables, run: RunView, settings: Settings) -> Result:
    """Put groups, links and worst instances together, and name links that are slower than their peers."""
    sums, groups = run.joined.get("collective_sums"), run.joined.get("groups")
    rows = parts["rows"].sort("rank", "step")
    if sums is None or groups is None or not groups.height:
        return Result(
            status="skipped",
            reason="the communications carry no process group. Record with PyTorch 2.4 or later, which writes the "
            "group of every NCCL kernel; in Nsight traces, record NVTX of NCCL 2.28 or later.",
        )
    host_of = _hosts(run)
    table = rates(
        sums,
        groups,
        host_of,
        device=_device(run),
        curve=run.joined.get("bandwidth_curve"),
        nic_gbs=settings.nic_gbs,
    )
    cells = _cells(sums, groups, host_of)
    certain = _certain(cells, run.joined["clocks"])
    links, lost = slowlinks.compare(certain)
    shown = _links(links, groups, host_of)
    worst = _worst(run.joined["collective_worst"], groups)
    findings = _findings(shown, lost, run)
    comm, untold = int(rows["comm_ns"].sum()), int(rows["untold_ns"].sum())
    sizes = grid(groups)
    judged = shown.filter(pl.col("ratio").is_not_null())
    metrics: dict[str, Value] = {
        "groups": groups.height,
        "instances": int(sums["instances"].sum()),
        "matched_share": share(comm - untold, comm),
        "wait_share_of_comm": share(int(rows["wait_ns"].sum()), comm - untold),
        "slow_links": len(findings) if judged.height else None,
        "links_judged": judged.height,
        "outliers": int(worst["outlier"].sum()),
        "outliers_lost_ns": int(worst.filter("outlier")["excess_ns"].sum()),
        **{f"grid_{role}": size for role, size in sizes.items()},
    }
    for role in sorted(set(table["role"].to_list())):
        mine = table.filter((pl.col("role") == role) & pl.col("busbw_gbs").is_not_null() & ~pl.col("lower_bound"))
        spent = int(mine["transfer_ns"].sum())
        moved = float((mine["busbw_gbs"] * mine["transfer_ns"]).sum())
        metrics[f"busbw_gbs_{role}"] = moved / spent if spent else None
    heat = rows.select("rank", "step", "count", "comm_ns", "wait_ns", "move_ns", "untold_ns")
    return Result(
        metrics=metrics,
        headline=_headline(sizes, groups, metrics),
        tables={"groups": table, "links": shown, "instances": _shown(worst), "per_rank_step": heat},
        findings=findings,
        charts=_charts(table, heat),
        notes=_notes(
            groups,
            worst=worst,
            nameless=parts["nameless"],
            run=run,
            sizes=sizes,
            rates=[
                *rate_notes(table, _device(run), settings.nic_gbs),
                *link_notes(shown.height, judged.height, _pairs(cells) - _pairs(certain)),
            ],
        ),
    )


def _hosts(run: RunView) -> dict[int, str]:
    """Return the host of every rank whose host is known, not assumed."""
    hosts = run.joined["hosts"].filter(~pl.col("assumed"))
    return dict(hosts.select("rank", "host").iter_rows())


def _device(run: RunView) -> hardware.Device | None:
    """Return the device of the run when all its ranks have the same known one."""
    names = run.ranks.select("device_name", "device_memory_bytes").unique().sort("device_name").rows()
    found = [device for name, memory in names if (device := hardware.find(name, memory))]
    same = len({device.key for device in found}) == 1 and len(found) == len(names)
    return found[0] if same else None


def _cells(sums: pl.DataFrame, groups: pl.DataFrame, host_of: dict[int, str]) -> pl.DataFrame:
    """Return what slowlinks.compare wants: instances with all members present, on which data really moved."""
    spread: dict[int, int | None] = {
        row["group_id"]: len(host_names(row["ranks"], row["size"], host_of)) or None
        for row in groups.select("group_id", "ranks", "size").iter_rows(named=True)
    }
    host = pl.col("low_rank", "high_rank").replace_strict(host_of, default=None, return_dtype=pl.String)
    pair = pl.col("low_rank").is_not_null()
    return (
        sums.filter((pl.col("partial") == 0) & (pl.col("transfer_ns") > 0) & pl.col("bytes").is_not_null())
        .filter(pl.col("op") != "barrier")
        .join(groups.select("group_id", "role", "size"), on="group_id", how="left", maintain_order="left")
        .with_columns(
            host.name.suffix("_host"),
            hosts=pl.col("group_id").replace_strict(spread, default=None, return_dtype=pl.Int64),
        )
        .with_columns(
            size=pl.when(pair).then(2).otherwise("size"),
            hosts=pl.when(pair)
            .then((pl.col("low_rank_host") != pl.col("high_rank_host")).cast(pl.Int64) + 1)
            .otherwise("hosts"),
        )
    )


def _certain(cells: pl.DataFrame, clocks: pl.DataFrame) -> pl.DataFrame:
    """Leave out sends and receives between hosts whose clocks are not known to a tenth of the transfer.

    Their transfer begins with the last arrival, brought from one clock into the other.
    """
    error = clocks.select("rank", error=pl.max_horizontal("half_width_ns", "residual_p95_ns").fill_null(0))
    low = error.select(low_rank="rank", low_error="error")
    high = error.select(high_rank="rank", high_error="error")
    known = cells.join(low, on="low_rank", how="left", maintain_order="left").join(
        high, on="high_rank", how="left", maintain_order="left"
    )
    one_clock = pl.col("low_rank").is_null() | (pl.col("hosts") == 1).fill_null(value=False)
    worst = pl.max_horizontal("low_error", "high_error").fill_null(0)
    return known.filter(one_clock | (_CLOCK_SHARE * worst < pl.col("transfer_p50_ns"))).drop("low_error", "high_error")


def _pairs(cells: pl.DataFrame) -> int:
    """Return how many pairs of ranks send and receive."""
    return cells.filter(pl.col("low_rank").is_not_null()).select(slowlinks.LINK).n_unique()


def _links(links: pl.DataFrame, groups: pl.DataFrame, host_of: dict[int, str]) -> pl.DataFrame:
    """Return table `links`: one row a communicator or pair of ranks, the slowest beside its peers first."""
    about = {row["group_id"]: row for row in groups.iter_rows(named=True)}
    rows: list[dict[str, Any]] = []
    for row in links.iter_rows(named=True):
        group = about[row["group_id"]]
        pair = row["low_rank"] is not None
        ranks = [row["low_rank"], row["high_rank"]] if pair else group["ranks"]
        rows.append(
            {
                "group": group["group"],
                "role": row["role"],
                "ranks": ranks,
                "host_names": list(host_names(ranks, 2 if pair else group["size"], host_of)),
                **{name: row[name] for name in _LINK_COLUMNS if name in row},
                "group_id": row["group_id"],
            }
        )
    return pl.DataFrame(rows, schema=_LINKS_SCHEMA).sort(
        ["slow", "ratio", "group_id", "ranks"], descending=[True, True, False, False], nulls_last=True
    )


_LINK_COLUMNS: Final = (
    "op", "instances", "transfer_ns", "peers", "compared_ns", "expected_ns", "ratio", "steps", "slow_steps", "slow",
)  # fmt: skip
_LINKS_SCHEMA: Final[dict[str, pl.DataType | type[pl.DataType]]] = {
    "group": pl.String, "role": pl.String, "ranks": pl.List(pl.Int32), "host_names": pl.List(pl.String),
    "op": pl.String, "instances": pl.Int64, "transfer_ns": pl.Int64, "peers": pl.Int64, "compared_ns": pl.Int64,
    "expected_ns": pl.Int64, "ratio": pl.Float64, "steps": pl.Int64, "slow_steps": pl.Int64, "slow": pl.Boolean,
    "group_id": pl.Int32,
}  # fmt: skip


def _worst(worst: pl.DataFrame, groups: pl.DataFrame) -> pl.DataFrame:
    """Return the instances with the longest waits and transfers with their group's name, the longest wait first."""
    usual = pl.col("transfer_ns") - pl.col("excess_ns")
    return (
        worst.join(groups.select("group_id", "group", "role", "ranks"), on="group_id", how="left")
        .with_columns(outlier=(pl.col("transfer_ns") >= _OUTLIER * usual) & (usual > 0))
        .sort("wait_ns", "group_id", "instance", descending=[True, False, False])
        .select(
            "group", "ranks", "role", "op", "bytes", "step", "members", "wait_ns", "transfer_ns", "excess_ns",
            "outlier", "last_rank", "start_ns", "instance",
        )
    )  # fmt: skip


def _shown(worst: pl.DataFrame) -> pl.DataFrame:
    """Return the instances to show: those with the longest waits, and the outliers that lost most."""
    outliers = worst.filter("outlier").sort("excess_ns", "group", "instance", descending=[True, False, False])
    both = pl.concat([outliers.head(_INSTANCES_SHOWN // 4), worst]).unique(maintain_order=True).head(_INSTANCES_SHOWN)
    return both.sort("wait_ns", "group", "ranks", "instance", descending=[True, False, False, False])


def _findings(links: pl.DataFrame, lost: pl.DataFrame, run: RunView) -> list[Finding]:
    """Return one finding a link, NIC or group that is slower than its peers; none on a healthy run."""
    numbered = links.with_row_index("row")
    rows = list(numbered.iter_rows(named=True))
    places = [slowlinks.Place(frozenset(r["ranks"]), frozenset(r["host_names"]), slow=r["slow"]) for r in rows]
    steps = run.steps.select("rank", "step", at_ns="start_ns")
    step_ns = step_time_ns(run.steps)
    found = []
    for culprit in slowlinks.locate(places):
        mine = [rows[number] for number in culprit.members]
        saving = _saving(mine, lost, steps)
        per_step = saving.group_by("step", "rank").agg(pl.col("ns").sum()).group_by("step").agg(pl.col("ns").max())
        part = int(per_step["ns"].sum()) / max(1, steps["step"].n_unique()) / step_ns if step_ns else None
        ratio = sum(r["compared_ns"] for r in mine) / sum(r["expected_ns"] for r in mine)
        fewest = min(r["peers"] for r in mine)
        name, what = _named(culprit, mine)
        found.append(
            Finding(
                id=f"collectives.slow_link.{name}",
                analysis="collectives",
                severity=severity(part, 0.01, 0.10),
                title=f"{what} moves data {ratio:.2g} times slower than its peers",
                detail=f"Transfers of {len(mine)} communicator{'s' if len(mine) > 1 else ''} took "
                f"{milliseconds(sum(r['compared_ns'] for r in mine))} where the peers' median gives "
                f"{milliseconds(sum(r['expected_ns'] for r in mine))}; waiting for others is not in it.",
                advice="Compare the link's counters, cabling and speed with a healthy one (nvidia-smi nvlink -s, "
                "ibstat, ethtool), look for a NIC without GPU Direct in NCCL_DEBUG=INFO, and run nccl-tests on these "
                "ranks alone.",
                confidence="medium" if fewest < 2 else "high",  # noqa: PLR2004 - one peer cannot outvote
                confidence_why=f"compared with {fewest} peer{'s' if fewest > 1 else ''} that carry the same operation "
                "and size; measured on matched instances",
                saving=saving,
                evidence=(("links", tuple(sorted(r["row"] for r in mine))),),
                where=Where(ranks=culprit.ranks, steps=tuple(sorted(set(saving["step"].drop_nulls().to_list())))),
            )
        )
    return found


def _named(culprit: slowlinks.Culprit, mine: list[dict[str, Any]]) -> tuple[str, str]:
    """Return the key and the words for a culprit."""
    ranks = ", ".join(map(str, culprit.ranks[:8])) + (", …" if len(culprit.ranks) > 8 else "")  # noqa: PLR2004 - readable
    if culprit.kind == "hosts":
        return "-".join(("hosts", *culprit.hosts)), f"The link between hosts {' and '.join(culprit.hosts)}"
    if culprit.kind == "nic":
        return f"nic-{ranks}", f"The NIC of rank {ranks}"
    first = mine[0]
    across = f" between hosts {' and '.join(culprit.hosts)}" if len(culprit.hosts) == 2 else ""  # noqa: PLR2004 - a pair
    pair = f"-{culprit.ranks[0]}-{culprit.ranks[-1]}" if first["op"] == "send_recv" else ""
    return f"group-{first['group_id']}{pair}", f"{first['role']} group {first['group']} (ranks {ranks}){across}"


def _saving(mine: list[dict[str, Any]], lost: pl.DataFrame, steps: pl.DataFrame) -> pl.DataFrame:
    """Return what every member would save in each slow step, at the start of the step."""
    parts = []
    for row in mine:
        pair = row["op"] == "send_recv" and row["ranks"]
        low, high = (min(row["ranks"]), max(row["ranks"])) if pair else (None, None)
        here = lost.filter(
            (pl.col("group_id") == row["group_id"])
            & pl.col("low_rank").eq_missing(pl.lit(low, pl.Int32))
            & pl.col("high_rank").eq_missing(pl.lit(high, pl.Int32))
        )
        parts.append(here.join(pl.DataFrame({"rank": row["ranks"]}, schema={"rank": pl.Int32}), how="cross"))
    if not parts:
        return pl.DataFrame(schema=SAVING_SCHEMA)
    return (
        pl.concat(parts)
        .join(steps, on=["rank", "step"], how="inner", nulls_equal=True)
        .group_by("rank", "step", "at_ns")
        .agg(ns=pl.col("lost_ns").sum())
        .select(pl.col(name).cast(dtype) for name, dtype in SAVING_SCHEMA.items())
        .sort("rank", "step", "at_ns")
    )


def _headline(sizes: dict[str, int], groups: pl.DataFrame, metrics: dict[str, Value]) -> list[Headline]:
    found = []
    if sizes:
        text = " × ".join(f"{role} {size}" for role, size in sizes.items())
        named = set(groups.filter(pl.col("role") != "other")["role_source"].to_list())
        source = " and ".join(_SOURCES[name] for name in sorted(named))
        found.append(Headline("Parallel grid", text, "text", 32, f"by {source}"))
    found.append(
        Headline("Communication spent waiting", metrics["wait_share_of_comm"], "share", 31, "of matched communication")
    )
    return found


_SOURCES: Final = {"description": "the groups' names", "operations": "what is sent over them"}


def _charts(table: pl.DataFrame, heat: pl.DataFrame) -> list[Chart]:
    charts = []
    if table["busbw_gbs"].is_not_null().any():
        charts.append(
            Chart(
                "scatter", "Bus bandwidth by size", "groups", x="bytes", y=("busbw_gbs",), series="role", size="count",
                unit="gbs", note="One dot an operation of one size over one group; waiting is not in it.",
                options={"log": True, "x_unit": "bytes"},
            )
        )  # fmt: skip
    if heat["rank"].n_unique() > 1 and heat["wait_ns"].sum():
        charts.append(
            Chart(
                "heat", "Waiting for other ranks, by rank and step", "per_rank_step", label="rank", x="step",
                y=("wait_ns",), note="Sum over a rank's communications of the time before data moved. The one that "
                "all wait for is the pale row.",
            )
        )  # fmt: skip
    return charts


def _notes(
    groups: pl.DataFrame,
    *,
    worst: pl.DataFrame,
    nameless: pl.DataFrame,
    run: RunView,
    sizes: dict[str, int],
    rates: list[str],
) -> list[str]:
    notes = []
    told = groups.filter(pl.col("role") != "other").group_by("role", "role_source").len().sort("role", "role_source")
    if told.height:
        parts = [f"{role} by {_SOURCES[source]} ({count} groups)" for role, source, count in told.iter_rows()]
        notes.append(f"Roles: {', '.join(parts)}.")
    if others := groups.filter(pl.col("role") == "other").height:
        notes.append(f"{others} groups have no plain role by name or use: other.")
    product = 1
    for role, size in sizes.items():
        product *= size if role in ("dp", "tp", "pp", "cp") or (role == "fsdp" and "dp" not in sizes) else 1
    if sizes and run.world_size and product != run.world_size:
        notes.append(f"The dimensions found multiply to {product} of {run.world_size} ranks: some are not known.")
    notes += rates
    if worst.height > _INSTANCES_SHOWN:
        notes.append(
            f"instances: {_INSTANCES_SHOWN} of {worst.height} kept, those with the longest waits and the outliers that "
            "lost most (kept are, of each group, the 300 with the longest waits and the 300 whose transfers exceed the "
            "median most)."
        )
    if nameless.height:
        notes.append(
            f"{int(nameless['count'].sum())} communications carry no group "
            f"({milliseconds(int(nameless['ns'].sum()))}): they are in no row of `groups`."
        )
    return notes
