r"""How much communication runs beside compute, and how much of it the step has to wait for.

Inside each step's window, on unions of intervals over all streams of a rank, in integer ns:

comm = |∪ communication kernels|, overlap = |communication ∩ compute|, exposed = |communication \ compute|;
overlap + exposed = comm. Copies belong to neither side. A row with role `all` holds every communication; where the
join knows the role of each group (dp, fsdp, tp, sp, pp, ep, cp, other) one more row for each role that communicates in
the step holds the union over that role's groups. Roles may run at the same time, so their rows need not sum to `all`.

overlap_share = Σ overlap ÷ Σ comm and exposed_share_of_step = Σ exposed ÷ Σ window, over all steps of all ranks.
Exposed time holds waiting for other ranks as well as moving data; `budget` tells the two apart where the join can.

Table `ops` looks at single kernels: ns is the sum of their durations, overlap_ns the part of it in which this rank
computes, so two kernels at the same time count twice there.

Source: the overlap of HolisticTraceAnalysis 0.5.0 (comm_comp_overlap), |∪comm ∩ ∪compute| ÷ |∪comm|, equal to it to
the ns; there the last step is left out, here every step counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import polars as pl

from tracetool import intervals
from tracetool.concerned import all_recorded, concerned
from tracetool.figures import milliseconds, percent, severity, share
from tracetool.results import SAVING_SCHEMA, Chart, Finding, Headline, Result, Value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracetool.registry import RankView, RunView
    from tracetool.settings import Settings
    from tracetool.tables import Tables

TITLE: Final = "Communication beside compute"
NEEDS: Final = ("comm",)

ALL: Final = "all"
PER_RANK_STEP: Final = ("rank", "step", "role", "comm_ns", "overlap_ns", "exposed_ns")
HIDEABLE: Final = ("dp", "fsdp")
"""Roles whose communication can run beside the compute of the same step; that of the others is waited for by design."""
_TOLD: Final = ("symmetric", "arrival", "slots", "partial")


def per_rank(rank: RankView, facts: Tables, _settings: Settings) -> Tables:
    """Return `rows` (one a step and role) and `ops` (one an operation of a group)."""
    windows = (
        rank.table("steps", ["rank", "step", "start_ns", "end_ns", "basis"])
        .filter(pl.col("basis") != "cpu")
        .sort("start_ns", "end_ns", maintain_order=True)
    )
    gpu = rank.table("gpu", ["event", "start_ns", "dur_ns", "kind"]).with_columns(
        end_ns=pl.col("start_ns") + pl.col("dur_ns")
    )
    compute = intervals.union(gpu.filter(pl.col("kind") == "compute"))
    comm = with_roles(gpu.filter(pl.col("kind") == "comm"), facts.get("waits"))
    rows = [_row(windows, comm, compute, ALL)]
    for role in sorted(comm["role"].drop_nulls().unique().to_list()):
        found = _row(windows, comm.filter(pl.col("role") == role), compute, role)
        rows.append(found.filter(pl.col("comm_ns") > 0))
    told = comm.group_by("role").agg(ns=pl.col("dur_ns").sum(), told_ns=pl.col("dur_ns").filter("told").sum())
    return {"rows": pl.concat(rows), "ops": _ops(rank, comm, compute), "told": told.sort("role")}


def with_roles(comm: pl.DataFrame, waits: pl.DataFrame | None) -> pl.DataFrame:
    """Add `role` (null before the join), `moves_ns`, where waiting ends, clamped to the communication, and `told`.

    `comm` has event, start_ns, end_ns; row order is kept.
    """
    if waits is None:
        return comm.with_columns(moves_ns=pl.col("start_ns"), role=pl.lit(None, pl.String), told=pl.lit(False))
    known = waits.select("event", "wait_end_ns", "basis", pl.col("role").cast(pl.String))
    return comm.join(
        known.unique("event", keep="first", maintain_order=True), on="event", how="left", maintain_order="left"
    ).with_columns(
        moves_ns=pl.col("wait_end_ns").fill_null(pl.col("start_ns")).clip(pl.col("start_ns"), pl.col("end_ns")),
        told=(pl.col("wait_end_ns").is_not_null() & pl.col("basis").is_in(_TOLD)).fill_null(False),
    )


def _row(windows: pl.DataFrame, comm: pl.DataFrame, compute: pl.DataFrame, role: str) -> pl.DataFrame:
    """Return the windows with what these communications do in them; at_ns is the first exposed instant."""
    islands = intervals.union(comm)
    moving = intervals.union(comm.select(pl.col("moves_ns").alias("start_ns"), "end_ns"))
    exposed = intervals.subtract(moving, compute)
    first = (
        intervals.cover(windows, [exposed])
        .filter(pl.col("layer") == 0)
        .group_by("window")
        .agg(at_ns=pl.col("start_ns").min())
    )
    return (
        windows.with_row_index("window")
        .join(first, on="window", how="left", maintain_order="left")
        .with_columns(
            role=pl.lit(role, pl.String),
            window_ns=pl.col("end_ns") - pl.col("start_ns"),
            comm_ns=intervals.covered(windows, islands),
            overlap_ns=intervals.covered(windows, intervals.intersect(islands, compute)),
            moving_exposed_ns=intervals.covered(windows, exposed),
        )
        .with_columns(exposed_ns=pl.col("comm_ns") - pl.col("overlap_ns"))
        .select(*PER_RANK_STEP, "start_ns", "window_ns", "moving_exposed_ns", "at_ns")
    )


def _ops(rank: RankView, comm: pl.DataFrame, compute: pl.DataFrame) -> pl.DataFrame:
    """Return sums over single kernels by role, operation and group."""
    named = rank.table("comms", ["rank", "event", "op", "group", "group_desc", "group_size"])
    return (
        comm.with_columns(
            overlap_ns=intervals.covered(comm, compute),
            moving_exposed_ns=pl.col("end_ns")
            - pl.col("moves_ns")
            - intervals.covered(comm.select(pl.col("moves_ns").alias("start_ns"), "end_ns"), compute),
        )
        .join(named, on="event", how="left", maintain_order="left")
        .with_columns(pl.col("op", "group", "group_desc").cast(pl.String), rank=pl.lit(rank.rank, pl.Int32))
        .group_by("rank", "role", "op", "group", "group_desc", "group_size")
        .agg(pl.col("overlap_ns", "moving_exposed_ns").sum(), count=pl.len().cast(pl.Int64), ns=pl.col("dur_ns").sum())
        .sort("rank", "role", "op", "group", "group_desc", "group_size")
    )


def analyze(parts: Tables, run: RunView, _settings: Settings) -> Result:
    """Put the ranks' rows together: shares of the run, by role too, and by operation."""
    rows = parts["rows"].sort("rank", "start_ns", "role", "step", maintain_order=True)
    whole = rows.filter(pl.col("role") == ALL)
    comm, window = int(whole["comm_ns"].sum()), int(whole["window_ns"].sum())
    if not comm:
        return Result(status="skipped", reason="no communication kernel runs inside the steps.")
    metrics: dict[str, Value] = {
        "overlap_share": share(int(whole["overlap_ns"].sum()), comm),
        "exposed_share_of_step": share(int(whole["exposed_ns"].sum()), window),
        "comm_share_of_step": share(comm, window),
    }
    roles = [role for role in sorted(rows["role"].unique().to_list()) if role != ALL]
    for role in roles:
        mine = rows.filter(pl.col("role") == role)
        metrics[f"overlap_share_{role}"] = share(int(mine["overlap_ns"].sum()), int(mine["comm_ns"].sum()))
        metrics[f"exposed_share_of_step_{role}"] = share(int(mine["exposed_ns"].sum()), window)
    tables = {
        "per_rank_step": rows.select(PER_RANK_STEP),
        "roles": _roles(rows, window),
        "ops": _by_op(parts["ops"]),
        "ranks": whole.group_by("rank").agg(pl.col("overlap_ns", "exposed_ns", "comm_ns").sum()).sort("rank"),
    }
    notes = []
    if not roles:
        notes.append("Roles of the groups (dp, tp, pp, …) are not known here, so communication is shown as a whole.")
    covering = (
        f"of communication in {_count(whole.height, 'step window')} on {_count(whole['rank'].n_unique(), 'rank')}"
    )
    return Result(
        metrics=metrics,
        headline=[Headline("Communication overlapped", metrics["overlap_share"], "share", 30, covering)],
        tables=tables,
        charts=_charts(tables),
        findings=_findings(rows, tables["ops"], parts["told"], window, roles, complete=all_recorded(run)),
        notes=notes,
    )


def _roles(rows: pl.DataFrame, window: int) -> pl.DataFrame:
    """Return one row a role, `all` first: sums over all steps of all ranks, and their shares."""
    return (
        rows.group_by("role")
        .agg(pl.col("comm_ns", "overlap_ns", "exposed_ns").sum())
        .with_columns(
            overlap_share=pl.when(pl.col("comm_ns") > 0).then(pl.col("overlap_ns") / pl.col("comm_ns")),
            exposed_share_of_step=pl.col("exposed_ns") / window,
        )
        .sort(pl.col("role") != ALL, "role")
    )


def _by_op(ops: pl.DataFrame) -> pl.DataFrame:
    """Return sums over all ranks by role, operation and group description, the most exposed first."""
    keys = ["role", "op", "group_desc", "group_size"]
    return (
        ops.group_by(keys)
        .agg(pl.col("count", "ns", "overlap_ns", "moving_exposed_ns").sum())
        .with_columns(exposed_ns=pl.col("ns") - pl.col("overlap_ns"))
        .sort("exposed_ns", *keys, descending=[True, *[False] * len(keys)])
    )


def _charts(tables: Tables) -> list[Chart]:
    charts = [
        Chart(
            "bars", "Exposed part of communication by role", "roles", label="role", y=("exposed_ns", "comm_ns"),
            note="The full bar is communication, the dark part what no compute hides.",
        )
    ]  # fmt: skip
    if tables["ranks"].height > 1:
        charts.append(
            Chart(
                "stack", "Communication by rank", "ranks", label="rank", y=("overlap_ns", "exposed_ns"),
                note="Overlapped and exposed communication of each rank; the parts sum to its communication.",
                options={"max_rows": 64},
            )
        )  # fmt: skip
    return charts


def _findings(
    rows: pl.DataFrame, ops: pl.DataFrame, told: pl.DataFrame, window: int, roles: Sequence[str], *, complete: bool
) -> list[Finding]:
    """Return one finding a role whose data moves while nothing computes; waiting is not this question's.

    Where waiting is not told apart, exposed time may be another rank's doing: it takes more to be a warning, and it is
    never critical.
    """
    found = []
    for role in roles or [ALL]:
        mine = rows.filter((pl.col("role") == role) & (pl.col("moving_exposed_ns") > 0))
        moving = int(mine["moving_exposed_ns"].sum())
        part = share(moving, window)
        if not part:
            continue
        of_role = ops.with_row_index("row").filter((pl.col("role") == role) if roles else pl.lit(True))
        of_role = of_role.sort("moving_exposed_ns", "row", descending=[True, False]).head(5)
        top = of_role.row(0, named=True)
        mine_told = told.filter(pl.col("role") == role) if roles else told
        sure = 2 * int(mine_told["told_ns"].sum()) > int(mine_told["ns"].sum())
        grave = severity(part, 0.10, 0.30) if sure else severity(part, 0.20, 2.0)
        saving = mine.select("rank", "step", "at_ns", pl.col("moving_exposed_ns").alias("ns"))
        found.append(
            Finding(
                id=f"overlap.exposed.{role}",
                analysis="overlap",
                severity=grave if role in HIDEABLE else "info",
                title=f"{'Communication' if role == ALL else f'{role} communication'} runs with no compute beside it"
                + ("" if sure else "; waiting for other ranks cannot be told apart"),
                detail=f"On average {percent(part)} of a rank's step, {milliseconds(moving)} over all ranks and steps "
                f"({'moving data, waiting left out' if sure else 'holds waiting for other ranks'}); most of it "
                f"{top['op'] or 'of unknown kind'} ({_count(top['count'], 'kernel')}, "
                f"{milliseconds(top['moving_exposed_ns'])}).",
                advice=_advice(role, complete=complete),
                confidence="high" if sure else "low",
                confidence_why="measured on matched communication, waiting for other ranks left out"
                if sure
                else "waiting for other ranks could not be told apart, so less may be recoverable",
                saving=saving.select(pl.col(n).cast(t) for n, t in SAVING_SCHEMA.items()).sort("rank", "step", "at_ns"),
                evidence=(("ops", tuple(of_role["row"].to_list())),),
                where=concerned(saving, rows["rank"].n_unique()),
            )
        )
    return found


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _advice(role: str, *, complete: bool) -> str:
    """Return what usually hides the communication of a role."""
    known = {
        "dp": "Send gradients in buckets during the backward pass (DDP bucket_cap_mb, gradient_as_bucket_view, "
        "no_sync while accumulating).",
        "fsdp": "Prefetch the next layer (forward_prefetch, backward_prefetch), reshard less often, or shard within "
        "the node only.",
        "tp": "Use sequence parallelism with overlapped (async) tensor parallelism, or a smaller tensor-parallel "
        "group.",
        "pp": "Use more micro-batches or an interleaved schedule, and send while the next micro-batch computes.",
        "ep": "Overlap dispatch and combine with the shared expert or another micro-batch.",
        "cp": "Overlap the exchange of keys and values with attention over the blocks at hand (ring attention).",
    }
    if complete:
        return known.get(
            role, "See the question collectives for the groups that carry it, and hide those behind compute."
        )
    return known.get(role, "With all ranks looked at it can be told which group it is and how much of it is waiting.")
