"""Which kernels the GPU spends its time in, by name, kind and phase.

A row is one (name, kind, phase) over all ranks: count, total_ns = Σ durations, share = total_ns ÷ Σ durations of all
GPU activity, mean, min, max, and p50 and p99 over its single calls, linearly interpolated between the two nearest and
rounded to ns. Kernels at the same time count twice in sums, so total_ns may exceed the step; `budget` counts time once.
All activity of the trace counts; with `--steps` that which starts inside the chosen steps. Phase is the part of
training that launched it (null: its launch is not in the file).

count, total_ns, mean_ns, min_ns and max_ns are exact. p50 and p99 come from each rank's histogram of durations, never
from means of ranks. A rank hands over at most 20 000 (row, duration) pairs; one with more keeps only the leading
binary digits of durations, 12 at first and then fewer until they fit; quantile_error_share says how far off p50 and
p99 may be then (0: exact).

short_name is the name without return type, namespaces, template and call arguments, with the functor that tells
element-wise kernels apart; name is what the tracer wrote.

Where the tracer recorded a replay of a CUDA graph as one row (Nsight Systems by default), its kernels are not there:
graph_replays counts such rows, graph_share is |∪ replays| ÷ |∪ GPU activity|, summed over ranks.

Source: statistics from single durations, where HolisticTraceAnalysis 0.5.0 (get_gpu_kernel_breakdown) shows
mean = min = max for kernels beyond its number of names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import polars as pl

from tracetool import intervals
from tracetool.concerned import concerned
from tracetool.figures import milliseconds, percent, severity, share
from tracetool.histogram import histogram, quantiles
from tracetool.kernelname import short_name
from tracetool.results import SAVING_SCHEMA, Chart, Finding, Headline, Result, Value, no_saving

if TYPE_CHECKING:
    from tracetool.registry import RankView, RunView
    from tracetool.settings import Settings
    from tracetool.tables import Tables

TITLE: Final = "Kernels"
NEEDS: Final = ("gpu",)

MAX_PAIRS: Final = 20_000
"""(row, duration) pairs a rank may hand over before durations are rounded."""
MAX_ROWS: Final = 500
_KEYS: Final = ("name", "kind", "phase")
_GRAPH_LIMIT: Final = 0.02
"""Share of GPU time in graph replays from which a finding is a warning: figures then miss that much."""
_FULL_PRECISION: Final = r"(?i)(^|_)sgemm(_|$)"
_ELEMENTWISE: Final = r"(?i)elementwise|_functor|Functor<|CatArray|fill_kernel|copy_kernel"
_FUSED: Final = r"(?i)multi_tensor_apply|fused|triton|inductor|reduce_kernel|_reduce_"
"""Names that look element-wise but are fused already, or reduce."""
_TEXTS: Final = {
    "full_precision": (
        _FULL_PRECISION,
        "Matrix multiplications run in full fp32, without tensor cores",
        "Train in bf16 (torch.autocast), or allow TF32: torch.set_float32_matmul_precision('high').",
        "the kernel names say sgemm; tensor cores at least halve their time on devices that have them",
        (0.10, 0.40),
    ),
    "elementwise": (
        _ELEMENTWISE,
        "Element-wise kernels read and write memory one operation at a time",
        "Fuse them with torch.compile, or use fused optimizers and norms.",
        "judged by name; fusing pairs halves their traffic, longer chains save more",
        (0.50, 0.80),
    ),
}


def per_rank(rank: RankView, _facts: Tables, settings: Settings) -> Tables:
    """Return `keys` (exact sums by name, kind, phase), `durations` (their histogram), `savings` by step, `graphs`."""
    gpu = rank.table("gpu", ["event", "name", "kind", "phase", "start_ns", "dur_ns"])
    windows = rank.table("steps", ["rank", "step", "start_ns", "end_ns", "basis"]).sort("start_ns", "end_ns")
    windows = windows.filter(pl.col("basis") != "cpu")
    if settings.steps is not None:
        gpu = _starting_inside(gpu, windows)
    keys = (
        gpu.group_by(_KEYS)
        .agg(
            count=pl.len().cast(pl.Int64),
            total_ns=pl.col("dur_ns").sum(),
            min_ns=pl.col("dur_ns").min(),
            max_ns=pl.col("dur_ns").max(),
        )
        .sort(pl.col("name").cast(pl.String), "kind", "phase")
        .with_row_index("key")
        .with_columns(rank=pl.lit(rank.rank, pl.Int32))
    )
    numbered = gpu.join(keys.select("key", *_KEYS), on=list(_KEYS), nulls_equal=True).select("key", "dur_ns")
    durations, bits = histogram(numbered, MAX_PAIRS)
    return {
        "keys": keys.with_columns(pl.lit(bits, pl.Int32).alias("bits")),
        "durations": durations.with_columns(rank=pl.lit(rank.rank, pl.Int32)),
        "savings": pl.concat([_saving(windows, gpu, cause, text[0]) for cause, text in _TEXTS.items()]),
        "graphs": _graphs(rank, gpu),
    }


def _graphs(rank: RankView, gpu: pl.DataFrame) -> pl.DataFrame:
    """Return (rank, replays, graph_ns, busy_ns): replays of graphs whose kernels were not recorded."""
    rows = rank.table("events", ["event", "category"]).filter(pl.col("category") == "graph").select("event")
    replays = gpu.join(rows, on="event", how="semi")
    lengths = [intervals.length(intervals.spans(part)) for part in (replays, gpu)]
    return pl.DataFrame(
        {"rank": [rank.rank], "replays": [replays.height], "graph_ns": lengths[:1], "busy_ns": lengths[1:]},
        schema={"rank": pl.Int32, "replays": pl.Int64, "graph_ns": pl.Int64, "busy_ns": pl.Int64},
    )


def _starting_inside(gpu: pl.DataFrame, windows: pl.DataFrame) -> pl.DataFrame:
    """Keep the activities that start inside a window."""
    at = gpu.select("start_ns", (pl.col("start_ns") + 1).alias("end_ns"))
    return gpu.filter(intervals.covered(at, windows) > 0)


def _fits(cause: str, pattern: str) -> pl.Expr:
    """Return whether a kernel's name fits a cause."""
    name = pl.col("name").cast(pl.String)
    fits = name.str.contains(pattern)
    return fits & ~name.str.contains(_FUSED) if cause == "elementwise" else fits


def _saving(windows: pl.DataFrame, gpu: pl.DataFrame, cause: str, pattern: str) -> pl.DataFrame:
    """Return half of the time, by step, in which compute kernels run whose names fit the pattern."""
    fits = gpu.filter((pl.col("kind") == "compute") & _fits(cause, pattern))
    busy = intervals.union(intervals.spans(fits))
    first = intervals.cover(windows, [busy]).filter(pl.col("layer") == 0)
    first = first.group_by("window").agg(at_ns=pl.col("start_ns").min())
    return (
        windows.with_row_index("window")
        .with_columns(ns=intervals.covered(windows, busy) // 2, window_ns=pl.col("end_ns") - pl.col("start_ns"))
        .join(first, on="window", how="left", maintain_order="left")
        .select("rank", "step", "at_ns", "ns", "window_ns", cause=pl.lit(cause))
    )


def analyze(parts: Tables, _run: RunView, _settings: Settings) -> Result:
    """Put the ranks together by name, kind and phase."""
    keys = parts["keys"].with_columns(pl.col("name").cast(pl.String))
    total = int(keys["total_ns"].sum())
    rows = (
        keys.group_by(_KEYS)
        .agg(
            pl.col("count", "total_ns").sum(),
            pl.col("min_ns").min(),
            pl.col("max_ns").max(),
            ranks=pl.col("rank").n_unique(),
        )
        .sort(["total_ns", *_KEYS], descending=[True, False, False, False])
        .with_row_index("row")
    )
    if not rows.height:
        return Result(status="skipped", reason="no GPU activity starts inside the chosen steps.")
    numbers = rows.select("row", *_KEYS).join(keys.select("rank", "key", *_KEYS), on=list(_KEYS), nulls_equal=True)
    counted = parts["durations"].join(numbers.select("rank", "key", "row"), on=["rank", "key"])
    shown = (
        rows.head(MAX_ROWS)
        .join(quantiles(counted, "row"), on="row", how="left", maintain_order="left")
        .with_columns(
            share=pl.col("total_ns") / max(total, 1),
            mean_ns=(pl.col("total_ns") / pl.col("count")).round().cast(pl.Int64),
            # the middle of a bin lies inside what was measured
            p50_ns=pl.col("p50_ns").clip("min_ns", "max_ns"),
            p99_ns=pl.col("p99_ns").clip("min_ns", "max_ns"),
            short_name=pl.col("name").map_elements(short_name, return_dtype=pl.String),
        )
        .select(
            "short_name", "kind", "phase", "count", "total_ns", "share", "mean_ns", "p50_ns", "p99_ns", "min_ns",
            "max_ns", "ranks", "name",
        )
    )  # fmt: skip
    kinds = keys.group_by("kind", "phase").agg(pl.col("count", "total_ns").sum()).sort("kind", "phase")
    graphs = parts["graphs"]
    in_graphs = share(int(graphs["graph_ns"].sum()), int(graphs["busy_ns"].sum()))
    error = max((0.0 if bits == 0 else 2.0**-bits for bits in keys["bits"].unique().to_list()), default=0.0)
    metrics: dict[str, Value] = {
        "activities": int(keys["count"].sum()),
        "kernels": int(keys.filter(pl.col("kind").is_in(["compute", "comm"]))["count"].sum()),
        "names": keys["name"].n_unique(),
        "busy_sum_ns": total,
        "top_kernel_share": share(int(rows["total_ns"][0]), total),
        "quantile_error_share": error,
        "graph_replays": int(graphs["replays"].sum()),
        "graph_share": in_graphs,
    }
    notes = []
    if rows.height > MAX_ROWS:
        rest = rows.slice(MAX_ROWS)
        notes.append(
            f"The table holds the {MAX_ROWS} rows with most time; {rest.height} more with {rest['count'].sum()} calls "
            f"hold {percent(share(int(rest['total_ns'].sum()), total))} of GPU time."
        )
    if error:
        notes.append(f"Durations were rounded to hand them over: p50 and p99 are within {percent(error)}.")
    top = shown.row(0, named=True)
    return Result(
        metrics=metrics,
        headline=[Headline("Largest kernel", top["share"], "share", 60, f"of GPU time: {top['short_name']}")],
        tables={"kernels": shown, "kinds": kinds},
        charts=[
            Chart(
                "bars", "Kernels with most time", "kernels", label="short_name", y=("total_ns",),
                note="Sum of durations over all ranks.", options={"max_rows": 20},
            )
        ],
        findings=[*_graph_findings(graphs, in_graphs, shown), *_findings(parts["savings"], shown)],
        notes=notes,
    )  # fmt: skip


def _graph_findings(graphs: pl.DataFrame, part: float | None, shown: pl.DataFrame) -> list[Finding]:
    """Say what cannot be told where replays of CUDA graphs were recorded as a whole, and how to record them."""
    replays = int(graphs["replays"].sum())
    if not replays:
        return []
    rows = shown.with_row_index("row").filter(pl.col("name").str.starts_with("CUDA graph "))["row"].head(5).to_list()
    return [
        Finding(
            id="kernels.graph_replays",
            analysis="kernels",
            severity="warning" if part is not None and part >= _GRAPH_LIMIT else "info",
            title="CUDA graphs were recorded as a whole: their kernels are not in the trace",
            detail=f"{replays:,} {'replay holds' if replays == 1 else 'replays hold'} {percent(part)} of GPU time and "
            f"{'counts' if replays == 1 else 'count'} as compute. Communication inside "
            "them is not seen: overlap and exposed communication miss it, MFU misses their FLOPs or their coverage.",
            advice="Record with nsys profile --cuda-graph-trace=node (it costs more while recording).",
            confidence="high",
            confidence_why="the export has a row for each replay and none for its kernels",
            saving=no_saving(),
            evidence=(("kernels", tuple(rows)),) if rows else (),
        )
    ]


def _findings(savings: pl.DataFrame, shown: pl.DataFrame) -> list[Finding]:
    """Return what names alone tell: full-precision matrix multiplications, element-wise kernels."""
    found = []
    for cause, (pattern, title, advice, why, limits) in _TEXTS.items():
        mine = savings.filter(pl.col("cause") == cause)
        part = share(2 * int(mine["ns"].sum()), int(mine["window_ns"].sum()))
        fits = shown.with_row_index("row").filter((pl.col("kind") == "compute") & _fits(cause, pattern))
        if not part or not fits.height:
            continue
        first = fits.row(0, named=True)
        saving = mine.filter(pl.col("ns") > 0)
        found.append(
            Finding(
                id=f"kernels.{cause}",
                analysis="kernels",
                severity=severity(part, *limits),
                title=title,
                detail=f"On average {percent(part)} of a rank's step; first {first['short_name']} with "
                f"{first['count']:,} "
                f"{'call' if first['count'] == 1 else 'calls'} and "
                f"{milliseconds(first['total_ns'])}. Half of their time is taken as what a change could save.",
                advice=advice,
                confidence="medium" if cause == "full_precision" else "low",
                confidence_why=why,
                saving=saving.select(pl.col(n).cast(t) for n, t in SAVING_SCHEMA.items()).sort("rank", "step", "at_ns"),
                evidence=(("kernels", tuple(fits["row"].head(5).to_list())),),
                where=concerned(saving, savings["rank"].n_unique()),
            )
        )
    return found
