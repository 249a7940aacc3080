"""Why the GPU ran dry: host-bound time by what the host was doing, launch latency, and work queued ahead.

host_bound is the bucket of `budget`: nothing runs on the GPU since x, and the call that launches the next activity
began after x; the stretch ends with that call or with the activity's start. Each instant of it goes to the first that
holds, looking at the threads of the process that launch GPU work:

1. checkpoint: one saves a checkpoint.
2. dataloader: one waits for the data loader.
3. garbage_collection: a range named so runs on any thread (Python's collector is recorded only on request).
4. profiler: the profiler's own overhead is recorded, on any thread.
5. sync: the last synchronising call (…Synchronize, blocking copies) before the launch ended at x or later, or at most
   SKEW_NS before: the host had waited until the queue was empty. The whole rest of the stretch goes to it.
6. allocation: cudaMalloc, cudaFree and their kin run.
7. launch_call: another API call runs, the launch included.
8. operator: an operator runs.
9. python: nothing recorded runs: Python, garbage collection, or the thread did not get the CPU.
The nine sum to host_bound exactly, in integer ns.

Table `sync_calls` lists every synchronising call of the trace by name and caller, the innermost operator or range
around it: blocked_ns = Σ durations, host_bound_ns = the part of 5 that followed it.

Launch latency = max(0, start on the GPU − start of the launch call). launch_latency_ns_p50 and _p99 are over all
activity with a launch, waiting in the queue included; dry_launch_latency_ns_p50 and _p99 only over activity that ended
a host-bound stretch, which is the price of one launch on an empty queue. Rounded as in `kernels`.
Queue depth: +1 at the start of a launch call, −1 when its activity starts. queue_depth_mean = Σ of waiting inside the
windows ÷ Σ of the windows, so it is weighted by time, not by changes; table `queue` has the mean of each of QUEUE_BINS
equal stretches of a rank's trace.

Source: tracetool's own definition; the queue as in HolisticTraceAnalysis 0.5.0 (get_queue_length_time_series), there
averaged over changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import polars as pl

from tracetool import intervals
from tracetool.concerned import concerned
from tracetool.figures import milliseconds, percent, severity, share
from tracetool.histogram import histogram, quantiles
from tracetool.results import SAVING_SCHEMA, Chart, Finding, Headline, Result, Value

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tracetool.registry import RankView, RunView
    from tracetool.settings import Settings
    from tracetool.tables import Tables

TITLE: Final = "Host"
NEEDS: Final = ("gpu", "launches")

CAUSES: Final = (
    "checkpoint", "dataloader", "garbage_collection", "profiler", "sync", "allocation", "launch_call", "operator",
    "python",
)  # fmt: skip
SKEW_NS: Final = 10_000
"""How much earlier than the end of GPU work a synchronising call may seem to return: the two clocks differ a little."""
QUEUE_BINS: Final = 120
MAX_PAIRS: Final = 4_000
MAX_CALLS: Final = 200
_SYNC: Final = (
    r"^(?:cuda|hip|cu|mtia)\w*Synchronize(?:_\w+)?$|^(?:cuda|hip)Memcpy(?:2D|3D|(?:To|From)Symbol)?$"
    r"|^hipMemcpyWithStream$|^cuMemcpy(?:HtoD|DtoH|DtoD)(?:_v2)?$"
)
_ALLOCATION: Final = (
    r"^(?:cuda|hip)(?:Malloc|Free|HostAlloc|HostRegister|MallocHost|FreeHost)\w*$"
    r"|^cuMem(?:Alloc|Free|Create|Map|Unmap|Release)\w*$"
)
_COLLECTION: Final = r"(?i)^(?:python )?gc(?:[ .:_#-].*)?$|garbage[ _-]?collect"
_Cause: Final = pl.Enum(CAUSES)


def per_rank(rank: RankView, _facts: Tables, _settings: Settings) -> Tables:
    """Return `rows` (cause and ns by step), `calls` (synchronising calls), `latency` histograms and `queue`."""
    windows = (
        rank.table("steps", ["rank", "step", "start_ns", "end_ns", "basis"])
        .filter(pl.col("basis") != "cpu")
        .sort("start_ns", "end_ns", maintain_order=True)
    )
    gpu = (
        rank.table("gpu", ["event", "start_ns", "dur_ns", "launch", "launch_start_ns", "launch_end_ns"])
        .with_columns(end_ns=pl.col("start_ns") + pl.col("dur_ns"))
        .sort(["start_ns", "dur_ns", "event"], descending=[False, True, False])
    )
    cpu = _cpu(rank, gpu["launch"])
    stretches = _stretches(gpu, cpu)
    segments = _segments(windows, stretches, cpu)
    here = pl.lit(rank.rank, pl.Int32).alias("rank")
    rows = (
        segments.sort(["window", "cause", "ns", "start_ns"], descending=[False, False, True, False])
        .group_by("window", "cause")
        .agg(pl.col("ns").sum(), at_ns=pl.col("start_ns").first())
        .join(windows.with_row_index("window").select(pl.col("window").cast(pl.Int64), "rank", "step"), on="window")
        .sort("window", "cause")
        .select("rank", "step", "cause", "at_ns", "ns")
    )
    launched = gpu.filter(pl.col("launch_start_ns").is_not_null())
    latency = launched.select("event", key=pl.lit(0), dur_ns=(pl.col("start_ns") - pl.col("launch_start_ns")).clip(0))
    dry = latency.join(stretches.select("event"), on="event", how="semi").with_columns(key=pl.lit(1))
    counted, bits = histogram(pl.concat([latency, dry]).select("key", "dur_ns"), MAX_PAIRS)
    waiting = launched.select(pl.col("launch_start_ns").alias("start_ns"), pl.col("start_ns").alias("end_ns"))
    waiting = waiting.filter(pl.col("end_ns") > pl.col("start_ns"))
    return {
        "rows": rows,
        "calls": _calls(cpu, segments).with_columns(here),
        "latency": counted.with_columns(pl.lit(bits, pl.Int32).alias("bits"), here),
        "queue": _queue(windows, waiting).with_columns(here),
        "windows": windows.select(
            "rank", "step", window_ns=pl.col("end_ns") - pl.col("start_ns"), queued_ns=_inside(windows, waiting)
        ),
    }


def _cpu(rank: RankView, launches: pl.Series) -> pl.DataFrame:
    """Return CPU ranges and calls in the order of `events`; `launches` says whether their thread launches GPU work."""
    links = rank.table("links", ["phase", "parent"])
    events = rank.table("events", ["event", "track", "start_ns", "dur_ns", "category", "name"]).hstack(links)
    threads = events["track"].gather(launches.drop_nulls()).unique()
    return events.filter(pl.col("category").is_in(["cpu_op", "annotation", "runtime", "overhead", "other"])).select(
        "event",
        "start_ns",
        (pl.col("start_ns") + pl.col("dur_ns")).alias("end_ns"),
        pl.col("track").is_in(threads.implode()).alias("launches"),
        "category",
        "name",
        "phase",
        "parent",
    )


def _named(frame: pl.DataFrame, pattern: str) -> pl.DataFrame:
    """Keep the rows whose name contains the pattern; each distinct name is looked at once."""
    names = frame["name"].unique()
    return frame.filter(pl.col("name").is_in(names.filter(names.cast(pl.String).str.contains(pattern)).implode()))


def _syncs(cpu: pl.DataFrame) -> pl.DataFrame:
    return _named(cpu.filter(pl.col("category") == "runtime"), _SYNC)


def _stretches(gpu: pl.DataFrame, cpu: pl.DataFrame) -> pl.DataFrame:
    """Return the host-bound stretches: start_ns (x), end_ns, event that ends it, sync.

    `sync` is the synchronising call that had emptied the queue, null when it was another cause. Sorted by start.
    """
    dry = pl.col("end_ns").cum_max().shift(1)
    found = (
        gpu.with_columns(dry=dry)
        .filter((pl.col("start_ns") > pl.col("dry")) & (pl.col("launch_start_ns") > pl.col("dry")))
        .select(
            "event",
            "launch_start_ns",
            end_ns=pl.min_horizontal("start_ns", "launch_end_ns"),
            start_ns=pl.col("dry"),
        )
        .sort("launch_start_ns", "start_ns")
    )
    syncs = _syncs(cpu).filter("launches").select(sync="event", called_ns="start_ns", returned_ns="end_ns")
    return (
        found.join_asof(
            syncs.sort("called_ns", "sync"), left_on="launch_start_ns", right_on="called_ns", allow_exact_matches=False
        )
        .with_columns(sync=pl.when(pl.col("returned_ns") >= pl.col("start_ns") - SKEW_NS).then("sync"))
        .select("start_ns", "end_ns", "event", "sync")
        .sort("start_ns", "end_ns")
    )


def _segments(windows: pl.DataFrame, stretches: pl.DataFrame, cpu: pl.DataFrame) -> pl.DataFrame:
    """Cut the stretches inside the windows by cause: window, cause, start_ns, ns, sync."""
    inside = intervals.cover(windows, [stretches]).filter(pl.col("layer") == 0).sort("start_ns", "window")
    inside = inside.select(pl.col("window").cast(pl.Int64), "start_ns", "end_ns").join_asof(
        stretches.select("start_ns", "sync"), on="start_ns"
    )
    threads = cpu.filter("launches")
    calls = threads.filter(pl.col("category") == "runtime")
    layers = {
        "checkpoint": threads.filter(pl.col("phase") == "checkpoint"),
        "dataloader": threads.filter(pl.col("phase") == "dataloader"),
        "garbage_collection": _named(cpu.filter(pl.col("category") != "runtime"), _COLLECTION),
        "profiler": cpu.filter(pl.col("category") == "overhead"),
        "sync": inside.filter(pl.col("sync").is_not_null()),
        "allocation": _named(calls, _ALLOCATION),
        "launch_call": calls,
        "operator": threads.filter(pl.col("category") == "cpu_op"),
    }
    order = [cause for cause in CAUSES if cause in layers]
    cut = intervals.cover(inside, [layers[cause] for cause in order])
    row = cut["window"].to_numpy()
    return cut.select(
        window=inside["window"].gather(row),
        cause=pl.col("layer").replace_strict({-1: "python", **dict(enumerate(order))}, return_dtype=_Cause),
        start_ns="start_ns",
        ns=pl.col("end_ns") - pl.col("start_ns"),
        sync=pl.when(pl.col("layer") == order.index("sync")).then(inside["sync"].gather(row)),
    )


def _calls(cpu: pl.DataFrame, segments: pl.DataFrame) -> pl.DataFrame:
    """Return the synchronising calls by name and caller: how often, how long, and what host-bound time followed."""
    around = cpu.select(pl.col("event").alias("parent"), pl.col("name").alias("caller"))
    caused = segments.drop_nulls("sync").group_by("sync").agg(host_bound_ns=pl.col("ns").sum())
    return (
        _syncs(cpu)
        .join(around, on="parent", how="left")
        .join(caused, left_on="event", right_on="sync", how="left")
        .with_columns(pl.col("name", "caller").cast(pl.String))
        # a step's range is a caller as good as none: one row, not one a step
        .with_columns(pl.col("caller").str.replace(r"^ProfilerStep#\d+$", "ProfilerStep"))
        .group_by("name", "caller")
        .agg(
            calls=pl.len().cast(pl.Int64),
            blocked_ns=(pl.col("end_ns") - pl.col("start_ns")).sum(),
            host_bound_ns=pl.col("host_bound_ns").sum().fill_null(0),
        )
        .sort(["host_bound_ns", "blocked_ns", "name", "caller"], descending=[True, True, False, False])
        .head(MAX_CALLS)
    )


def _inside(windows: pl.DataFrame, waiting: pl.DataFrame) -> pl.Series:
    """Return for each window the Σ of the parts of the waiting intervals inside it, ns (multiplicity counts)."""
    start, end = (windows[column].to_numpy() for column in intervals.ENDS)
    return pl.Series("queued_ns", integral(waiting, end) - integral(waiting, start), dtype=pl.Int64)


def integral(waiting: pl.DataFrame, at: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return ∫ depth up to each time: Σ over the intervals of how much of them lies before it, ns."""
    total = np.zeros(len(at), np.int64)
    for column, sign in (("start_ns", 1), ("end_ns", -1)):
        edge = np.sort(waiting[column].to_numpy())
        passed = np.searchsorted(edge, at, side="right")
        before = np.concatenate([np.zeros(1, np.int64), np.cumsum(edge - (edge[0] if len(edge) else 0))])
        total += sign * (passed * (at - (edge[0] if len(edge) else 0)) - before[passed])
    return total


def _queue(windows: pl.DataFrame, waiting: pl.DataFrame) -> pl.DataFrame:
    """Return the mean depth of equal stretches of the rank's trace, times from its first window."""
    schema = {"start_ns": pl.Int64, "dur_ns": pl.Int64, "queued_ns": pl.Int64}
    if not windows.height:
        return pl.DataFrame(schema=schema)
    first, last = int(windows["start_ns"].to_numpy().min()), int(windows["end_ns"].to_numpy().max())
    width = max(1, -(-(last - first) // QUEUE_BINS))
    edges = np.minimum(np.arange(first, last + width, width, dtype=np.int64), last)
    queued = np.diff(integral(waiting, edges))
    found = pl.DataFrame({"start_ns": edges[:-1] - first, "dur_ns": np.diff(edges), "queued_ns": queued}, schema=schema)
    return found.filter(pl.col("dur_ns") > 0)


def analyze(parts: Tables, run: RunView, _settings: Settings) -> Result:
    """Put the ranks together: causes, calls, latency, queue."""
    windows = parts["windows"]
    window = int(windows["window_ns"].sum())
    if not window:
        return Result(status="skipped", reason="no step holds any GPU activity; `--steps none` takes the whole trace.")
    rows = parts["rows"]
    total = {c: int(rows.filter(pl.col("cause") == c)["ns"].sum()) for c in CAUSES}
    bound = sum(total.values())
    causes = pl.DataFrame(
        {
            "cause": CAUSES,
            "ns": list(total.values()),
            "share_of_host_bound": pl.Series([share(ns, bound) for ns in total.values()], dtype=pl.Float64),
            "share_of_step": pl.Series([share(ns, window) for ns in total.values()], dtype=pl.Float64),
        }
    )
    per_step = _per_step(rows, windows)
    calls = (
        parts["calls"]
        .group_by("name", "caller")
        .agg(pl.col("calls", "blocked_ns", "host_bound_ns").sum(), ranks=pl.col("rank").n_unique())
        .sort(["host_bound_ns", "blocked_ns", "name", "caller"], descending=[True, True, False, False])
        .head(MAX_CALLS)
    )
    latency = {key: (p50, p99) for key, p50, p99 in quantiles(parts["latency"], "key").iter_rows()}
    metrics: dict[str, Value] = {
        "host_bound_share": share(bound, window),
        **{f"{cause}_share": share(ns, window) for cause, ns in total.items()},
        **{f"launch_latency_ns_p{q}": latency.get(0, (None, None))[i] for i, q in enumerate((50, 99))},
        **{f"dry_launch_latency_ns_p{q}": latency.get(1, (None, None))[i] for i, q in enumerate((50, 99))},
        "queue_depth_mean": share(int(windows["queued_ns"].sum()), window),
        "sync_calls": int(calls["calls"].sum()),
        "sync_blocked_ns": int(calls["blocked_ns"].sum()),
    }
    queue = parts["queue"].with_columns(depth_mean=pl.col("queued_ns") / pl.col("dur_ns")).sort("rank", "start_ns")
    tables = {
        "causes": causes,
        "per_rank_step": per_step,
        "sync_calls": calls,
        "queue": queue.select("rank", "start_ns", "dur_ns", "depth_mean"),
        "longest": rows.sort("rank", "step", "cause", "at_ns"),
    }
    charts = [
        Chart(
            "bars", "Host-bound time by cause", "causes", label="cause", y=("ns",),
            note="Σ over all steps of all ranks; the parts sum to host_bound of the budget.",
        ),
        Chart(
            "line", "Work queued ahead of the GPU", "queue", x="start_ns", y=("depth_mean",), series="rank",
            unit="count", note="Mean number of launched activities that have not started; near 0 the GPU runs dry.",
            options={"x_unit": "ns"},
        ),
    ]  # fmt: skip
    note = f"p50, queue empty; mean queue depth {metrics['queue_depth_mean']:.1f}"
    return Result(
        metrics=metrics,
        headline=[Headline("Launch latency", metrics["dry_launch_latency_ns_p50"], "ns", 40, note)],
        tables=tables,
        charts=charts,
        findings=_findings(total, tables, windows),
        notes=_notes(run, parts["latency"]),
    )


def _per_step(rows: pl.DataFrame, windows: pl.DataFrame) -> pl.DataFrame:
    """Return one row a rank and step: host_bound_ns and the ns of each cause."""
    sums = rows.group_by("rank", "step").agg(
        pl.col("ns").sum().alias("host_bound_ns"),
        *(pl.col("ns").filter(pl.col("cause") == cause).sum().alias(f"{cause}_ns") for cause in CAUSES),
    )
    keys = ["rank", "step"]
    joined = windows.select(keys).join(sums, on=keys, how="left", nulls_equal=True, maintain_order="left")
    return joined.with_columns(pl.exclude(keys).fill_null(0))


def _notes(run: RunView, latency: pl.DataFrame) -> list[str]:
    notes = ["Python's garbage collector is in `python` unless the trace names it."]
    slow = [
        name for name in ("with_stack", "record_shapes", "profile_memory") if run.ranks[name].fill_null(False).any()
    ]
    if slow:
        notes.append(
            f"Recorded with {' and '.join(slow)}: they slow the host down, so host-bound time is larger than without "
            "the profiler."
        )
    if bits := [int(b) for b in latency["bits"].unique() if b]:
        notes.append(f"Latencies were rounded to hand them over: quantiles are within {percent(2.0 ** -min(bits))}.")
    return notes


_TEXTS: Final = {
    "checkpoint": (
        ("checkpoint",), (0.05, 0.20), "The GPU waits while a checkpoint is saved",
        "Save asynchronously (torch.distributed.checkpoint.async_save) or less often.",
        "the launching thread was inside a range that saves a checkpoint",
    ),
    "dataloader": (
        ("dataloader",), (0.05, 0.20), "The GPU waits for the data loader",
        "Raise num_workers and prefetch_factor, set pin_memory=True, move preprocessing out of the step.",
        "the launching thread was inside the data loader's range",
    ),
    "garbage_collection": (
        ("garbage_collection",), (0.02, 0.10), "The GPU waits for Python's garbage collector",
        "Call gc.disable() or gc.freeze() after warm-up and gc.collect() every some hundred steps, on all ranks.",
        "a range named after the collector was recorded",
    ),
    "sync": (
        ("sync",), (0.05, 0.20), "Synchronising calls empty the GPU's queue",
        "Take .item(), .cpu(), .tolist(), boolean masks and synchronize() out of the step, or read values a step late.",
        "the launching thread had returned from a synchronising call when the GPU was dry",
    ),
    "allocation": (
        ("allocation",), (0.05, 0.20), "The GPU waits while memory is allocated or freed",
        "Set PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True, keep sizes constant, leave more memory free.",
        "allocation calls ran while the GPU was dry",
    ),
    "launch": (
        ("launch_call", "operator"), (0.10, 0.30), "The host launches work more slowly than the GPU runs it",
        "Use torch.compile(mode='reduce-overhead') or CUDA graphs, fuse small operators, raise the micro-batch size.",
        "the GPU was dry and the next launch came late; the profiler itself slows launches down",
    ),
    "python": (
        ("python",), (0.10, 0.30), "The GPU waits while the host runs Python and launches nothing",
        "Name ranges with record_function to see what runs in the longest stretches; move it out of the step.",
        "no operator or runtime call was recorded while the GPU was dry; the profiler slows Python down",
    ),
}  # fmt: skip


def _worst(tables: Tables, windows: pl.DataFrame, causes: tuple[str, ...]) -> tuple[float, int]:
    """Return the largest share of its own step time that a rank loses to these causes, and that rank."""
    lost = tables["per_rank_step"].select("rank", ns=pl.sum_horizontal(f"{cause}_ns" for cause in causes))
    own = windows.group_by("rank").agg(pl.col("window_ns").sum()).filter(pl.col("window_ns") > 0)
    shares = own.join(lost.group_by("rank").agg(pl.col("ns").sum()), on="rank").select(
        "rank", share=pl.col("ns") / pl.col("window_ns")
    )
    rank, part = shares.sort(["share", "rank"], descending=[True, False]).row(0)
    return part, rank


def _findings(total: dict[str, int], tables: Tables, windows: pl.DataFrame) -> list[Finding]:
    """Return one finding a cause that something can be done about.

    It is as grave as it is on the rank that loses most: the others wait for that one.
    """
    found = []
    window = int(windows["window_ns"].sum())
    longest = tables["longest"].with_row_index("row")
    for name, (causes, limits, title, advice, why) in _TEXTS.items():
        ns = sum(total[cause] for cause in causes)
        if not ns:
            continue
        part, rank = _worst(tables, windows, causes)
        mine = longest.filter(pl.col("cause").is_in(causes)).sort(["ns", "row"], descending=[True, False])
        detail = (
            f"On average {percent(share(ns, window))} of a rank's step, {milliseconds(ns)} over all ranks and steps"
        )
        detail += f"; {percent(part)} on rank {rank}, the most." if windows["rank"].n_unique() > 1 else "."
        evidence = [("longest", tuple(mine["row"].head(5).to_list()))]
        if name == "sync":
            top = tables["sync_calls"].row(0, named=True)
            detail += f" Most follows {top['name']} in {top['caller'] or 'no named range'} ({top['calls']} "
            detail += "call)." if top["calls"] == 1 else "calls)."
            evidence.insert(0, ("sync_calls", (0,)))
        found.append(
            Finding(
                id=f"host.{name}", analysis="host", severity=severity(part, *limits), title=title, detail=detail,
                advice=advice, confidence="medium" if name in {"launch", "python"} else "high", confidence_why=why,
                saving=mine.select(pl.col(n).cast(t) for n, t in SAVING_SCHEMA.items()).sort("rank", "step", "at_ns"),
                evidence=tuple(evidence), where=concerned(mine, windows["rank"].n_unique()),
            )
        )  # fmt: skip
    return found
