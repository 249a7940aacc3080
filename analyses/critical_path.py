"""What the length of a step hangs on: the chain of work and transfers that, were any of it longer, would lengthen it.

All ranks are replayed as one graph (tracetool/join/job.py): stretches of work on streams, launches, the host's waits,
and communications that end for nobody before all have come. In a replay every start is the latest of its causes. The
critical path goes back from the last activity: to what it followed on its stream, to the launch, to what its stream
waited for; from a communication to the member that came last. So it covers the replayed time without a gap, and the
pieces of a step sum to the step exactly, in integer ns.

bucket of a piece: compute; exposed_comm (a transfer, after its last member has come: waiting is never on the path, what
was waited for is); memcpy; host_bound (the host's own time up to a launch); idle (before the first activity). op:
phase of compute, role and operation of a communication. Shortening a piece saves at most its length: another chain may
be nearly as long (see the what-ifs of `stragglers`).

`chain`: the slowest step, cut where the path goes from one rank to another, and over what. `kernels`: the longest
kernels of the path's compute pieces. What one stream waits for on another is inferred from times where the trace does
not record it.
replay_error = replayed step ÷ measured step − 1.

Source: arXiv 2505.05713 (replay) and HolisticTraceAnalysis 0.5.0 (critical path of one rank); across ranks tracetool's
own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import polars as pl

from tracetool.errors import TracetoolError
from tracetool.figures import percent, share
from tracetool.join.job import ERROR_LIMIT, Job
from tracetool.join.path import critical_path
from tracetool.join.segments import COMM, COMPUTE, PHASES
from tracetool.results import Chart, Headline, Result, Value

if TYPE_CHECKING:
    from tracetool.registry import RankView, RunView
    from tracetool.settings import Settings
    from tracetool.tables import Tables

TITLE: Final = "Critical path"
NEEDS: Final = ("gpu", "comm")

BUCKETS: Final = ("compute", "exposed_comm", "memcpy", "host_bound", "idle")
_KERNELS_A_STEP: Final = 300
_KERNELS_SHOWN: Final = 40
_PIECES_SHOWN: Final = 2_000
_CHAIN_SHOWN: Final = 300


def per_rank(rank: RankView, _facts: Tables, _settings: Settings) -> Tables:
    """Return `kernels`: the longest compute kernels of each step (rank, step, event, name, start_ns, dur_ns)."""
    kernels = (
        rank.table("gpu", ["event", "step", "kind", "name", "start_ns", "dur_ns"])
        .filter((pl.col("kind") == "compute") & pl.col("step").is_not_null())
        .with_columns(pl.col("name").cast(pl.String), rank=pl.lit(rank.rank, pl.Int32))
        .sort("step", "dur_ns", "event", descending=[False, True, False])
        .group_by("step", maintain_order=True)
        .head(_KERNELS_A_STEP)
    )
    return {"kernels": kernels.select("rank", "step", "event", "name", "start_ns", "dur_ns")}


def analyze(parts: Tables, run: RunView, _settings: Settings) -> Result:
    """Find the path of every step and say what it is made of."""
    try:
        job = Job.of(run.joined, fewest=1)
    except TracetoolError as error:
        return Result(status="skipped", reason=f"{error}.")
    if job is None or not job.nodes.height:
        return Result(status="skipped", reason="no communications could be joined, so there is nothing to replay.")
    path = critical_path(job)
    nodes = (
        job.nodes.rename({"node": "local"})
        .with_row_index("node")
        .select(
            pl.col("node").cast(pl.Int64),
            "kind",
            "phase",
            "group_id",
            "op",
            "event",
            own_start_ns="start_ns",
            own_end_ns="end_ns",
        )
    )
    roles = job.groups.select("group_id", "role", "group")
    pieces = (
        path.join(nodes, on="node", how="left", maintain_order="left")
        .join(roles, on="group_id", how="left", maintain_order="left")
        .with_columns(ns=pl.col("end_ns") - pl.col("start_ns"), op=_op())
    )
    total = int(pieces["ns"].sum())
    of_bucket = {b: int(pieces.filter(pl.col("bucket") == b)["ns"].sum()) for b in BUCKETS}
    steps = pieces.group_by("step").agg(
        pl.col("ns").sum().alias("step_ns"),
        *(pl.col("ns").filter(pl.col("bucket") == bucket).sum().alias(f"{bucket}_ns") for bucket in BUCKETS),
    )
    steps = steps.sort("step", nulls_last=True)
    slowest = steps.sort("step_ns", "step", descending=[True, False])["step"][0] if steps.height else None
    shown = pieces.filter(pl.col("step").eq_missing(pl.lit(slowest, pl.Int32)))
    ranks = _shares(pieces, "rank", total)
    metrics: dict[str, Value] = {
        **{f"{bucket}_share": share(ns, total) for bucket, ns in of_bucket.items()},
        "path_ns_per_step": round(total / max(1, steps.height)),
        "replay_error": job.error,
        "ranks_on_path": ranks.height,
        "slowest_step": slowest,
    }
    tables = {
        "steps": steps,
        "buckets": _shares(pieces, "bucket", total),
        "ops": _shares(pieces, "op", total),
        "ranks": ranks,
        "chain": _chain(shown).head(_CHAIN_SHOWN),
        "path": shown.select("rank", "bucket", "op", "group", "start_ns", "ns", "event").head(_PIECES_SHOWN),
        "kernels": _kernels(parts["kernels"], pieces),
    }
    return Result(
        metrics=metrics,
        headline=_headline(metrics, ranks.height, len(job.ranks)),
        tables=tables,
        charts=_charts(),
        notes=_notes(job),
    )


def _op() -> pl.Expr:
    """Name what a piece does: phase of compute, role and operation of a communication, else its bucket."""
    phase = pl.col("phase").replace_strict(dict(enumerate(PHASES)), default="other", return_dtype=pl.String)
    moved = (pl.col("kind") == COMM) & (pl.col("bucket") == "exposed_comm")
    return (
        pl.when((pl.col("kind") == COMPUTE) & (pl.col("bucket") == "compute"))
        .then(pl.format("compute {}", phase))
        .when(moved)
        .then(pl.format("{} {}", pl.col("role").fill_null("unmatched"), pl.col("op")))
        .otherwise(pl.col("bucket"))
    )


def _shares(pieces: pl.DataFrame, by: str, total: int) -> pl.DataFrame:
    """Return ns of the path and its share by one column, the largest first."""
    return (
        pieces.group_by(by)
        .agg(pl.col("ns").sum())
        .with_columns(share=pl.col("ns") / max(1, total))
        .sort("ns", by, descending=[True, False])
    )


def _chain(shown: pl.DataFrame) -> pl.DataFrame:
    """Return the path of one step, cut where it changes ranks, in order of time; `over`: what took it to this rank."""
    changes = (pl.col("rank") != pl.col("rank").shift(1)).fill_null(True)
    return (
        shown.with_columns(part=changes.cum_sum(), over=pl.when(changes).then("op"))
        .group_by("part", maintain_order=True)
        .agg(
            pl.col("rank").first(),
            pl.col("start_ns").first(),
            pl.col("ns").sum(),
            *(pl.col("ns").filter(pl.col("bucket") == b).sum().alias(f"{b}_ns") for b in BUCKETS),
            pl.col("over").first(),
        )
        .drop("part")
    )


def _kernels(kernels: pl.DataFrame, pieces: pl.DataFrame) -> pl.DataFrame:
    """Return the longest kernels that lie in compute pieces of the path, by name: count, ns, and the longest one."""
    spans = (
        pieces.filter(pl.col("bucket") == "compute")
        .select("rank", "own_start_ns", "own_end_ns")
        .unique()
        .sort("rank", "own_start_ns", "own_end_ns")
    )
    inside = (
        kernels.sort("rank", "start_ns")
        .join_asof(
            spans, left_on="start_ns", right_on="own_start_ns", by="rank", strategy="backward", check_sortedness=False
        )
        .filter(pl.col("start_ns") + pl.col("dur_ns") <= pl.col("own_end_ns"))
    )
    return (
        inside.sort("dur_ns", "rank", "event", descending=[True, False, False])
        .group_by("name", maintain_order=True)
        .agg(
            count=pl.len().cast(pl.Int64),
            ns=pl.col("dur_ns").sum(),
            longest_ns=pl.col("dur_ns").first(),
            rank=pl.col("rank").first(),
            event=pl.col("event").first(),
        )
        .sort("ns", "name", descending=[True, False])
        .head(_KERNELS_SHOWN)
    )


def _headline(metrics: dict[str, Value], on_path: int, ranks: int) -> list[Headline]:
    compute, comm = metrics["compute_share"], metrics["exposed_comm_share"]
    return [
        Headline("Computing on the critical path", compute, "share", 50, f"it runs over {on_path} of {ranks} ranks"),
        Headline("Transfers on the critical path", comm, "share", 51, "hiding more than these gains nothing"),
    ]


def _charts() -> list[Chart]:
    return [
        Chart(
            "stack", "What each step hangs on", "steps", label="step", y=tuple(f"{bucket}_ns" for bucket in BUCKETS),
            note="The critical path of each step; the parts sum to the replayed step.", options={"max_rows": 40},
        ),
        Chart(
            "bars", "Where the critical path runs", "ranks", label="rank", y=("ns",),
            note="Time of the critical path of all steps that lies on each rank.", options={"max_rows": 32},
        ),
        Chart(
            "stack", "Whom the slowest step waited for", "chain", label="rank",
            y=tuple(f"{bucket}_ns" for bucket in BUCKETS), options={"max_rows": 40},
            note="Its critical path, one bar a stay on a rank, in order of time; the table says what led there.",
        ),
    ]  # fmt: skip


def _notes(job: Job) -> list[str]:
    off = f"The path is of the replay, which is off by {100 * job.error:+.2f} % of the measured step"
    notes = [f"{off}; {job.stream_waits}."]
    if len(job.ranks) == 1:
        notes.append("Of one rank alone: how long it waited for others counts as transfer.")
    elif job.untold > 0:
        notes.append(
            f"{percent(job.untold)} of communication time could not be matched: there the path stays on its rank."
        )
    if abs(job.error) > ERROR_LIMIT:
        notes.append("The replay is not close enough to the measured run to lean on: read shares as rough.")
    return notes
