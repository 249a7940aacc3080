r"""Where each step's time goes: seven buckets that sum to the step exactly.

A step of a rank is a window of GPU time: from the first kernel launched in the step to the first kernel launched in
the next one. Everything that runs on the GPU inside the window counts, whatever launched it. Each instant of the
window goes to the first of these that holds:

1. compute: a compute kernel runs, on any stream.
2. A communication kernel runs. Each is split once, in its own rank's clock, into waiting for other ranks [start, w)
   and moving data [w, end). Some communication moves: exposed_comm. Else one that waits belongs to the pipeline:
   pipeline_bubble. Else: sync_wait. A communication that could not be matched with those of the other ranks counts as
   moving from start to end; where that holds for all of them, waiting is not told apart and its two shares are null.
3. memcpy: only copies or memsets run.
4. Nothing runs, dry since x, the latest end of any activity so far. Where the join knows that the next pipeline slot's
   input had not been sent: pipeline_bubble. Else from x to min(start of the next activity, end of its launch call),
   if that call began after x: host_bound, the GPU was dry because the host had not asked for anything. The rest, and
   gaps before activity without a launch in the file: idle. The next activity is the one with the earliest start; of
   several that start together the longest; an activity of zero duration ends a gap and begins the next.

Beside the buckets: comm_total = |∪ communication|, overlap = |communication ∩ compute|,
exposed_total = |communication \ compute|, so overlap + exposed_total = comm_total. All in integer ns.

Shares are sums over all steps of all ranks, divided by the sum of the windows. Step time of the run = median over
ranks of the window of one step; p50 and p99 are over steps, linearly interpolated. The last step of a trace ends with
the last activity it launched (open_end): it is in the sums, but not in p50 and p99 when another step exists.
mean_ns of a bucket is per step of a rank, rounded so that the buckets still sum to the mean step.

Source: tracetool's own definition. Exposed time is a set difference of unions, as in HolisticTraceAnalysis 0.5.0
(temporal breakdown) and TraceLens (gpu_timeline); the split of waiting and moving follows StragglerAnalysis.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import polars as pl

from tracetool import intervals
from tracetool.concerned import all_recorded, concerned
from tracetool.dry import host_stretches, split
from tracetool.figures import apportion, milliseconds, percent, quantile_ns, severity, share
from tracetool.results import SAVING_SCHEMA, Chart, Finding, Headline, Result, Value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracetool.registry import RankView, RunView
    from tracetool.results import Confidence, Severity
    from tracetool.settings import Settings
    from tracetool.tables import Tables

TITLE: Final = "Where a step goes"
NEEDS: Final = ("gpu",)

BUCKETS: Final = ("compute", "exposed_comm", "sync_wait", "pipeline_bubble", "memcpy", "host_bound", "idle")
NS: Final = tuple(f"{bucket}_ns" for bucket in BUCKETS)
PER_RANK_STEP: Final = (
    "rank", "step", "open_end", "window_ns", *NS, "comm_total_ns", "overlap_ns", "exposed_total_ns",
)  # fmt: skip
_LAYER_BUCKETS: Final = {
    0: "compute", 1: "exposed_comm", 2: "pipeline_bubble", 3: "sync_wait", 4: "memcpy", 5: "pipeline_bubble",
    6: "host_bound", -1: "idle",
}  # fmt: skip
_Bucket: Final = pl.Enum(BUCKETS)
_WAIT_BUCKETS: Final = ("sync_wait", "pipeline_bubble")


def per_rank(rank: RankView, facts: Tables, _settings: Settings) -> Tables:
    """Return `rows` (one a step: the buckets), `longest` (the longest stretch of each bucket) and `told`."""
    windows = (
        rank.table("steps", ["rank", "step", "start_ns", "end_ns", "open_end", "basis"])
        .filter(pl.col("basis") != "cpu")
        .sort("start_ns", "end_ns", maintain_order=True)
    )
    gpu = (
        rank.table("gpu", ["event", "start_ns", "dur_ns", "kind", "launch_start_ns", "launch_end_ns"])
        .with_columns(end_ns=pl.col("start_ns") + pl.col("dur_ns"))
        .sort(["start_ns", "dur_ns", "event"], descending=[False, True, False])
    )
    compute = _spans(gpu.filter(pl.col("kind") == "compute"))
    comm = split(gpu.filter(pl.col("kind") == "comm"), facts.get("waits"))
    waiting = comm.select("start_ns", pl.col("moves_ns").alias("end_ns"), "pipeline")
    layers = [
        compute,
        comm.select(pl.col("moves_ns").alias("start_ns"), "end_ns"),
        _spans(waiting.filter("pipeline")),
        _spans(waiting.filter(~pl.col("pipeline"))),
        _spans(gpu.filter(pl.col("kind").is_in(["memcpy", "memset"]))),
        _spans(facts["bubbles"]) if "bubbles" in facts else compute.clear(),
        host_stretches(gpu),
    ]
    cut = intervals.cover(windows.select("start_ns", "end_ns"), layers).with_columns(
        ns=pl.col("end_ns") - pl.col("start_ns"),
        bucket=pl.col("layer").replace_strict(_LAYER_BUCKETS, return_dtype=_Bucket),
    )
    islands = intervals.union(_spans(comm))
    rows = (
        windows.with_row_index("window")
        .with_columns(
            pl.col("window").cast(pl.Int64),
            window_ns=pl.col("end_ns") - pl.col("start_ns"),
            comm_total_ns=intervals.covered(windows, islands),
            overlap_ns=intervals.covered(windows, intervals.intersect(islands, intervals.union(compute))),
        )
        .join(_sums(cut), on="window", how="left", maintain_order="left")
        .with_columns(pl.col(NS).fill_null(0), exposed_total_ns=pl.col("comm_total_ns") - pl.col("overlap_ns"))
        .select(*PER_RANK_STEP, "start_ns")
    )
    longest = (
        cut.sort(["window", "bucket", "ns", "start_ns"], descending=[False, False, True, False])
        .unique(["window", "bucket"], keep="first", maintain_order=True)
        .join(windows.with_row_index("window").select(pl.col("window").cast(pl.Int64), "rank", "step"), on="window")
        .sort("window", "bucket")
        .select("rank", "step", "bucket", pl.col("start_ns").alias("at_ns"), "ns")
    )
    told = pl.DataFrame(
        {
            "rank": pl.Series([rank.rank], dtype=pl.Int32),
            "comms": [comm.height],
            "comm_ns": [comm["dur_ns"].sum()],
            "told_ns": [comm.filter("told")["dur_ns"].sum()],
            "unlaunched_idle_ns": [_unlaunched(cut, gpu)],
        }
    )
    return {"rows": rows, "longest": longest, "told": told}


def _unlaunched(cut: pl.DataFrame, gpu: pl.DataFrame) -> int:
    """Return the idle ns before activity whose launch is not in the file."""
    following = gpu.unique("start_ns", keep="first", maintain_order=True).select("start_ns", "launch_end_ns")
    idle = cut.filter(pl.col("bucket") == "idle").select("end_ns", "ns").sort("end_ns")
    found = idle.join_asof(following, left_on="end_ns", right_on="start_ns", strategy="forward", coalesce=False)
    return int(found.filter(pl.col("start_ns").is_not_null() & pl.col("launch_end_ns").is_null())["ns"].sum())


def _spans(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.select("start_ns", "end_ns")


def _sums(cut: pl.DataFrame) -> pl.DataFrame:
    """Return one row a window: `window` and the ns of each bucket."""
    return (
        cut.group_by("window")
        .agg(pl.col("ns").filter(pl.col("bucket") == bucket).sum().alias(f"{bucket}_ns") for bucket in BUCKETS)
        .with_columns(pl.col("window").cast(pl.Int64))
    )


def analyze(parts: Tables, run: RunView, _settings: Settings) -> Result:
    """Put the ranks' rows together: sums, shares, step times, charts and what they say."""
    rows = parts["rows"].sort("rank", "start_ns", "step", maintain_order=True).select(PER_RANK_STEP)
    total = {bucket: int(rows[f"{bucket}_ns"].sum()) for bucket in BUCKETS}
    window = int(rows["window_ns"].sum())
    if not rows.height or not window:
        return Result(status="skipped", reason="no step holds any GPU activity; `--steps none` takes the whole trace.")
    times = step_times(rows)
    told, comm = int(parts["told"]["told_ns"].sum()), int(parts["told"]["comm_ns"].sum())
    apart = told > 0 or comm == 0
    shares = {
        bucket: None if bucket in _WAIT_BUCKETS and not apart else share(ns, window) for bucket, ns in total.items()
    }
    orphans = run.quality.filter(pl.col("topic") == "orphans")
    compared = times.filter("compared")["step_ns"]
    p50, p99 = quantile_ns(compared, 0.5), quantile_ns(compared, 0.99)
    metrics: dict[str, Value] = {
        **{f"{bucket}_share": value for bucket, value in shares.items()},
        "step_ns_p50": p50,
        "step_ns_p99": p99,
        "steps_compared": compared.len(),
        "rank_steps": rows.height,
        "ranks": rows["rank"].n_unique(),
        "waiting_told_share": share(told, comm),
        "orphans": int(orphans["count"].sum()),
    }
    mean = dict(zip(BUCKETS, apportion([total[b] for b in BUCKETS], rows.height), strict=True))
    ranks = rows.group_by("rank").agg(pl.len().alias("steps"), pl.col("window_ns", *NS).sum()).sort("rank")
    tables = {
        "per_rank_step": rows,
        "buckets": pl.DataFrame(
            {
                "bucket": BUCKETS,
                "total_ns": [total[b] for b in BUCKETS],
                "mean_ns": [mean[b] for b in BUCKETS],
                "share": pl.Series([shares[b] for b in BUCKETS], dtype=pl.Float64),
            }
        ),
        "mean_step": pl.DataFrame({"of": ["mean step"], **{f"{b}_ns": [mean[b]] for b in BUCKETS}}),
        "ranks": ranks,
        "steps": times,
        "longest": parts["longest"].sort("rank", "step", "bucket", "at_ns"),
    }
    return Result(
        metrics=metrics,
        headline=_headline(metrics, times, rows),
        tables=tables,
        charts=_charts(tables),
        findings=_findings(
            tables, shares, int(parts["told"]["unlaunched_idle_ns"].sum()), apart=apart, complete=all_recorded(run)
        ),
        notes=_notes(rows, run, orphans, told_share=share(told, comm)),
    )


def step_times(rows: pl.DataFrame) -> pl.DataFrame:
    """Return one row a step: median, min and max over ranks of its window, and whether it enters p50 and p99.

    `rows` is per_rank_step. A step enters when its end is known on some rank; only the ranks where it is count. When
    no step of the run has a known end, all enter.
    """
    known = pl.lit(True) if rows["open_end"].all() else pl.col("open_end").not_()
    window = pl.col("window_ns")
    return (
        rows.group_by("step")
        .agg(
            ranks=pl.len(),
            step_ns=pl.coalesce(window.filter(known).median(), window.median()).round().cast(pl.Int64),
            min_ns=window.min(),
            max_ns=window.max(),
            compared=known.any(),
        )
        .sort("step")
    )


def _headline(metrics: dict[str, Value], times: pl.DataFrame, rows: pl.DataFrame) -> list[Headline]:
    steps, ranks = times.filter("compared").height, rows["rank"].n_unique()
    over = f"median over {_count(ranks, 'rank')}; {_count(steps, 'step')}"
    if rows["step"].null_count() == rows.height:
        over = f"one window, no steps; {_count(ranks, 'rank')}"
    found = [Headline("Step time p50", metrics["step_ns_p50"], "ns", 10, over)]
    if steps > 1:
        found.append(Headline("Step time p99", metrics["step_ns_p99"], "ns", 11, f"over {steps} steps"))
    covering = f"of {_count(rows.height, 'step window')} on {_count(ranks, 'rank')}"
    found.append(Headline("Computing", metrics["compute_share"], "share", 20, covering))
    if rows["comm_total_ns"].sum():
        waiting = "" if metrics["sync_wait_share"] is not None else "; holds waiting for other ranks too"
        found.append(
            Headline("Exposed communication", metrics["exposed_comm_share"], "share", 21, f"{covering}{waiting}")
        )
    found.append(Headline("Host-bound", metrics["host_bound_share"], "share", 22, covering))
    return found


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _charts(tables: Tables) -> list[Chart]:
    charts = [
        Chart(
            "stack", "Where a step goes", "mean_step", label="of", y=NS,
            note="The mean step of a rank, cut into seven parts that sum to it.", options={"first_screen": True},
        )
    ]  # fmt: skip
    if tables["ranks"].height > 1:
        charts.append(
            Chart(
                "stack", "Where each rank's time goes", "ranks", label="rank", y=NS,
                note="All steps of a rank together; the parts sum to its windows.", options={"max_rows": 64},
            )
        )  # fmt: skip
        if tables["steps"].height > 1:
            charts.append(
                Chart(
                    "heat", "Step time by rank and step", "per_rank_step", label="rank", x="step", y=("window_ns",),
                    note="Length of each step's window on each rank.",
                )
            )  # fmt: skip
    return charts


def _notes(rows: pl.DataFrame, run: RunView, orphans: pl.DataFrame, *, told_share: float | None) -> list[str]:
    notes = []
    if told_share == 0:
        notes.append(
            "Waiting could not be told apart from moving data: communication of the other ranks was not available or "
            "not matched. exposed_comm holds both; sync_wait and pipeline_bubble are "
            + ("of no meaning" if rows["pipeline_bubble_ns"].sum() else "0")
            + " in the rows so that they sum, and null as shares."
        )
    elif told_share is not None and told_share < 1:
        groups = run.joined.get("groups")
        piped = groups is not None and (groups["role"] == "pp").any()
        notes.append(
            f"Waiting is known for {percent(told_share)} of communication time; of the rest, "
            + ("sends and receives between pipeline stages count as waiting, " if piped else "")
            + "what could not be matched counts as moving data."
        )
    if (count := int(orphans["count"].sum())) > 0:
        notes.append(
            f"{count} GPU {'activity' if count == 1 else 'activities'} on {_count(orphans.height, 'rank')} without a "
            f"launch in the file ({milliseconds(int(orphans['ns'].sum()))}): the time counts in the window it is in, "
            "gaps before it are idle."
        )
    open_ends = rows.filter("open_end").height
    if 0 < open_ends < rows.height:
        notes.append(
            "Nothing recorded marks where a rank's last step ends, so it is cut at the last activity launched in it: "
            f"{_count(open_ends, 'such step')} {'counts' if open_ends == 1 else 'count'} in the sums and shares, but "
            "not in p50 and p99."
        )
    slow = [
        name
        for name, column in (("with_stack", "with_stack"), ("record_shapes", "record_shapes"))
        if run.ranks[column].fill_null(False).any()
    ]
    if slow:
        notes.append(
            f"Recorded with {' and '.join(slow)}: they slow the host down, so host_bound and step time are larger than "
            "without the profiler."
        )
    return notes


def _findings(
    tables: Tables, shares: dict[str, float | None], unlaunched_ns: int, *, apart: bool, complete: bool
) -> Sequence[Finding]:
    """Return what this question alone can say; communication, host and pipeline have questions of their own."""
    found = []
    if shares["memcpy"]:
        found.append(
            _finding(
                tables, "memcpy", shares["memcpy"], severity(shares["memcpy"], 0.05, 0.25),
                title="Copies run while nothing computes",
                advice="Copy from pinned memory with non_blocking=True on a stream of its own, ahead of its use, and "
                "keep .item(), .cpu() and checkpoints out of the step.",
                confidence="high", why="copies and memsets alone on the GPU, measured to the ns",
            )
        )  # fmt: skip
    if shares["idle"]:
        found.append(_idle(tables, shares["idle"], unlaunched_ns, apart=apart, complete=complete))
    if shares["sync_wait"]:
        found.append(
            _finding(
                tables, "sync_wait", shares["sync_wait"], "info",
                title="Ranks wait in collectives for others to arrive",
                advice="See the questions stragglers, for who arrives last and why, and collectives, for the calls "
                "that wait longest; balance the work of the ranks.",
                confidence="medium", why="waiting is cut from matched communication; who causes it is not told here",
            )
        )  # fmt: skip
    return found


def _idle(tables: Tables, part: float, unlaunched_ns: int, *, apart: bool, complete: bool) -> Finding:
    """Return the finding about idle time: what the trace says of the work that ends the gaps decides its words.

    It is a warning at most: what launched work waits for is not in a trace.
    """
    total = int(tables["per_rank_step"]["idle_ns"].sum())
    lost = 2 * unlaunched_ns > total
    if lost:
        title = "The GPU is idle before work whose launch is not in the file"
        advice = "Record CPU activity too and start recording a step earlier, so that the launches are in the file."
        why = "without the launch, a late host and work that waits look the same"
    else:
        title = "The GPU is idle although its next work was launched: most likely it waits for an event"
        advice = "Look at what the first kernel after the longest gaps may wait for: an event of another stream, a "
        advice += "host callback, a pipeline neighbour"
        advice += "." if complete else "; with all ranks looked at these can be told apart."
        why = "the trace does not say what launched work waits for"
        if not apart:
            why = "waiting for other ranks is not told apart, and a pipeline bubble looks the same"
    return _finding(
        tables, "idle", part, "warning" if apart and not lost and severity(part, 0.15, 0.40) != "info" else "info",
        title=title, advice=advice, confidence="low", why=why,
        more=f" {percent(share(unlaunched_ns, total))} of the idle time precedes work without a launch in the file."
        if unlaunched_ns else "",
    )  # fmt: skip


def _finding(
    tables: Tables,
    bucket: str,
    part: float,
    grave: Severity,
    *,
    title: str,
    advice: str,
    confidence: Confidence,
    why: str,
    more: str = "",
) -> Finding:
    longest = tables["longest"].with_row_index("row").filter(pl.col("bucket") == bucket)
    saving = (
        tables["per_rank_step"]
        .select("rank", "step", ns=f"{bucket}_ns")
        .filter(pl.col("ns") > 0)
        .join(longest.select("rank", "step", "at_ns"), on=["rank", "step"], nulls_equal=True)
        .select(pl.col(name).cast(dtype) for name, dtype in SAVING_SCHEMA.items())
        .sort("rank", "step", "at_ns")
    )
    worst = longest.sort(["ns", "rank", "at_ns"], descending=[True, False, False]).head(5)
    first = worst.row(0, named=True)
    return Finding(
        id=f"budget.{bucket}",
        analysis="budget",
        severity=grave,
        title=title,
        detail=f"On average {percent(part)} of a rank's step; the longest stretch is {milliseconds(first['ns'])} "
        f"on rank {first['rank']}" + (f" in step {first['step']}." if first["step"] is not None else ".") + more,
        advice=advice,
        confidence=confidence,
        confidence_why=why,
        saving=saving,
        evidence=(("longest", tuple(worst["row"].to_list())),),
        where=concerned(saving, tables["ranks"].height),
    )
