"""GPU and CPU time of each part of training, and of every range that the user or a framework named.

Parts (source `phase`): forward, backward, recompute (a forward run again for activation checkpointing), optimizer,
dataloader, checkpoint (saving). What belongs to which is decided where work is launched, on the CPU: by the autograd
engine's ranges, `Optimizer.step#…`, `enumerate(DataLoader)#…` and the like; without them by ranges named after a
phase. Ranges (source `annotation`): every user or framework annotation by its name, step annotations of vLLM and
SGLang included; ranges that are steps themselves are left out.

gpu_ns = |∪ GPU activity launched inside|, where launched inside means that the launch call starts inside the range, on
any thread of the process; for a part: that the launch call belongs to it. Times of parts may run at the same time on
several streams, so they need not sum to the step. Activity whose launch is not in the file belongs to none. gpu_ns is
null where the trace has no GPU activity with a launch.
cpu_ns = |∪ CPU ranges| over all threads; of a part: of its outermost operators, ranges and calls on each thread, less
what inside them belongs to another part (recompute inside backward).
step is the one that launched the activity (parts) or in whose range the annotation starts; null outside steps.
gpu_share is Σ gpu_ns over the steps of all ranks ÷ Σ of their windows, ns_per_step the mean over these steps,
rounded; neither holds what was launched outside steps. All in integer ns.

Annotations are cut to the MAX_NAMES names with most time; the notes say how many are left out.

Where annotations nest, table `paths` has a row for each path of names (`forward / layer 3 / mlp`; step ranges and
operators between them do not count): calls, cpu_ns and gpu_ns as above over all steps and ranks; projected_ns = Σ over
its ranges of the span from first start to last end of the GPU operations launched inside on the range's own thread,
which is what nsys shows as NVTX GPU projection, idle time between them included; operations is their number. null:
nothing was launched there. The MAX_PATHS paths with most time of each rank.

Source: tracetool's own definition; the rule for backward and recompute is that of the derived column `phase`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import polars as pl

from tracetool import intervals
from tracetool import parts as training
from tracetool.figures import share
from tracetool.rangepaths import paths, projections
from tracetool.results import Chart, Result

if TYPE_CHECKING:
    from tracetool.registry import RankView, RunView
    from tracetool.results import Value
    from tracetool.settings import Settings
    from tracetool.tables import Tables

TITLE: Final = "Phases and annotations"
NEEDS: Final = ("events",)

PARTS: Final = ("forward", "backward", "recompute", "optimizer", "dataloader", "checkpoint")
MAX_NAMES: Final = 100
"""Annotation names a rank hands over."""
MAX_PATHS: Final = 300
"""Paths a rank hands over, and rows of their table."""
MAX_ROWS: Final = 20_000
"""Rows of annotations in the table; fewer names when there are many ranks and steps."""
PAIRS_AT_ONCE: Final = 4_000_000
"""(range, activity) pairs held in memory at a time."""
PROFILER_STEP: Final = r"^ProfilerStep#\d+$"
PATHS: Final = ("path", "depth", "calls", "gpu_ns", "cpu_ns", "projected_ns", "operations")
PHASES: Final = ("phase", "rank", "step", "gpu_ns", "cpu_ns", "source", "calls")
_CPU: Final = ("cpu_op", "annotation", "runtime")
_END: Final = (pl.col("start_ns") + pl.col("dur_ns")).alias("end_ns")


def per_rank(rank: RankView, _facts: Tables, settings: Settings) -> Tables:
    """Return `rows`: one a part or annotation name, and step; `paths`; `left_out`: how many names, paths were cut."""
    steps = rank.table("steps", ["step", "range_start_ns", "range_end_ns"])
    gpu = rank.table("gpu", ["start_ns", "dur_ns", "launch", "launch_start_ns", "step", "phase"]).filter(
        pl.col("launch_start_ns").is_not_null()
    )
    gpu = gpu.with_columns(pl.col("phase").cast(pl.String), end_ns=pl.col("start_ns") + pl.col("dur_ns"))
    cpu = rank.table("events", ["event", "track", "start_ns", "dur_ns", "category", "name"]).hstack(
        rank.table("links", ["parent", "step", "phase"])
    )
    chosen = _is_annotation(cpu, steps)
    by_path, paths_left_out = _paths(cpu, chosen, gpu, settings)
    annotations, left_out = _annotations(cpu.filter(chosen))
    of_parts = training.changes(cpu).filter(pl.col("category").is_in(_CPU))
    gpu_ns = pl.concat([_gpu_of_parts(gpu), gpu_of_ranges(annotations, gpu)])
    cpu_ns = pl.concat([_cpu_of_parts(of_parts), _cpu_of_ranges(annotations)])
    if not gpu.height:
        gpu_ns = gpu_ns.with_columns(gpu_ns=pl.lit(None, pl.Int64))
    keys = ["source", "phase", "step"]
    rows = cpu_ns.join(gpu_ns, on=keys, how="full", coalesce=True, nulls_equal=True).with_columns(
        pl.col("cpu_ns", "calls").fill_null(0),
        gpu_ns=pl.col("gpu_ns").fill_null(0) if gpu.height else pl.col("gpu_ns"),
        rank=pl.lit(rank.rank, pl.Int32),
    )
    if settings.steps is not None:
        rows = rows.filter(pl.col("step").is_in(settings.steps))
    return {
        "rows": rows.select(PHASES).sort("source", "phase", "step"),
        "paths": by_path.with_columns(rank=pl.lit(rank.rank, pl.Int32)),
        "left_out": pl.DataFrame({"names": [left_out], "paths": [paths_left_out]}),
    }


def _paths(cpu: pl.DataFrame, chosen: pl.Series, gpu: pl.DataFrame, settings: Settings) -> tuple[pl.DataFrame, int]:
    """Return table `paths` of a rank, most time first, and how many were cut; no row where no annotations nest."""
    found = paths(cpu["name"], cpu["parent"].fill_null(-1).to_numpy(), chosen.to_numpy())
    ranges = cpu[found.rows].select("track", "step", "start_ns", _END, number=pl.Series(found.number))
    if settings.steps is not None:
        ranges = ranges.filter(pl.col("step").is_in(settings.steps))
    texts = found.texts.with_row_index("number").with_columns(pl.col("number").cast(pl.Int64))
    if not texts["depth"].sum():
        ranges = ranges.clear()
    most = (
        ranges.group_by("number")
        .agg(calls=pl.len().cast(pl.Int64), dur_ns=(pl.col("end_ns") - pl.col("start_ns")).sum())
        .join(texts, on="number")
        .sort(["dur_ns", "path"], descending=[True, False])
    )
    kept = most.head(MAX_PATHS)
    ordered = ranges.join(kept.select("number", phase="path"), on="number").sort("phase", "start_ns", "end_ns", "track")
    launched = gpu.with_columns(launch_track=cpu["track"].gather(gpu["launch"], null_on_oob=True))
    projected = (
        ordered.select("phase")
        .hstack(projections(ordered, launched))
        .group_by("phase")
        .agg(
            projected_ns=pl.when(pl.col("projected_ns").count() > 0).then(pl.col("projected_ns").sum()),
            operations=pl.col("operations").sum(),
        )
    )
    whole = ordered.with_columns(step=pl.lit(None, pl.Int32))
    table = kept.select("depth", "calls", phase="path")
    for part in (_measure(whole, "", "cpu_ns"), gpu_of_ranges(whole, gpu)):
        table = table.join(part.drop("source", "step"), on="phase", how="left", maintain_order="left")
    table = table.join(projected, on="phase", how="left", maintain_order="left").rename({"phase": "path"})
    nothing = pl.lit(0 if gpu.height else None, pl.Int64)
    filled = table.with_columns(pl.col("cpu_ns").fill_null(0), gpu_ns=pl.coalesce("gpu_ns", nothing))
    return filled.select(PATHS), most.height - kept.height


def _is_annotation(cpu: pl.DataFrame, steps: pl.DataFrame) -> pl.Series:
    """Say of each event whether it is an annotation and no step range."""
    of_steps = steps.select(start_ns="range_start_ns", end_ns="range_end_ns").drop_nulls().unique()
    ranges = cpu.select("category", "name", "start_ns", _END).with_row_index("row")
    ranges = ranges.filter(pl.col("category") == "annotation").join(of_steps, on=["start_ns", "end_ns"], how="anti")
    ranges = ranges.filter(~pl.col("name").cast(pl.String).str.contains(PROFILER_STEP))
    chosen = np.zeros(cpu.height, np.bool_)
    chosen[ranges["row"].to_numpy()] = True
    return pl.Series(chosen)


def _annotations(ranges: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """Return the ranges (phase = their name, step, start_ns, end_ns) of the names with most time; how many were cut."""
    names = (
        ranges.group_by("name")
        .agg(pl.col("dur_ns").sum())
        .sort(pl.col("dur_ns"), pl.col("name").cast(pl.String), descending=[True, False])
    )
    kept = names.head(MAX_NAMES).select("name").with_row_index("order")
    found = (
        ranges.join(kept, on="name")
        .sort("order", "start_ns", "event")
        .select(phase=pl.col("name").cast(pl.String), step="step", start_ns="start_ns", end_ns=_END)
    )
    return found, names.height - kept.height


def _gpu_of_parts(gpu: pl.DataFrame) -> pl.DataFrame:
    return _measure(gpu.filter(pl.col("phase").is_in(PARTS)), "phase", "gpu_ns")


def _measure(spans: pl.DataFrame, source: str, column: str) -> pl.DataFrame:
    """Return the ns covered by each (phase, step)."""
    found = intervals.length(spans.select("phase", "step", "start_ns", "end_ns"), ("phase", "step"))
    return found.select(pl.lit(source).alias("source"), "phase", "step", pl.col("ns").alias(column))


def gpu_of_ranges(ranges: pl.DataFrame, gpu: pl.DataFrame) -> pl.DataFrame:
    """Return (source, phase, step, gpu_ns): the GPU time launched inside the ranges of each name and step.

    `ranges` has phase, step, start_ns, end_ns with the ranges of one name together; `gpu` has launch_start_ns,
    start_ns, end_ns. Pairs are made name by name, so that memory is bounded however deep ranges nest.
    """
    ordered = gpu.sort("launch_start_ns", "start_ns", "end_ns")
    launched = ordered["launch_start_ns"].to_numpy()
    first = np.searchsorted(launched, ranges["start_ns"].to_numpy(), side="left")
    count = np.maximum(np.searchsorted(launched, ranges["end_ns"].to_numpy(), side="left") - first, 0)
    chunk = np.cumsum(count) // PAIRS_AT_ONCE
    found = [
        _measure(
            ordered.clear().select(pl.lit("").alias("phase"), "step", "start_ns", "end_ns"), "annotation", "gpu_ns"
        )
    ]
    # a name that falls into two chunks would be measured in two parts: give it the chunk of its first range
    numbered = ranges.with_columns(first=first, count=count, chunk=chunk)
    numbered = numbered.with_columns(pl.col("chunk").first().over("phase"))
    for part in numbered.partition_by("chunk", maintain_order=True):
        many = part["count"].to_numpy()
        row = np.repeat(np.arange(part.height), many)
        offset = np.arange(len(row)) - np.repeat(np.cumsum(many) - many, many)
        pairs = (
            part[row]
            .select("phase", "step")
            .hstack(ordered[part["first"].to_numpy()[row] + offset].select("start_ns", "end_ns"))
        )
        found.append(_measure(pairs, "annotation", "gpu_ns"))
    return pl.concat(found)


def _cpu_of_parts(cpu: pl.DataFrame) -> pl.DataFrame:
    """Return cpu_ns and the number of outermost ranges of each part and step."""
    outermost, _ = training.edges(cpu, PARTS)
    calls = outermost.group_by("phase", "step").agg(calls=pl.len().cast(pl.Int64))
    found = _measure(training.spans(cpu, PARTS), "phase", "cpu_ns")
    return (
        calls.join(found, on=["phase", "step"], how="left", nulls_equal=True)
        .with_columns(pl.col("cpu_ns").fill_null(0), source=pl.lit("phase"))
        .select("source", "phase", "step", "cpu_ns", "calls")
    )


def _cpu_of_ranges(ranges: pl.DataFrame) -> pl.DataFrame:
    calls = ranges.group_by("phase", "step").agg(calls=pl.len().cast(pl.Int64))
    return _measure(ranges, "annotation", "cpu_ns").join(calls, on=["phase", "step"], nulls_equal=True)


def analyze(parts: Tables, run: RunView, _settings: Settings) -> Result:
    """Put the ranks together: the rows, their sums and shares of step time."""
    rows = parts["rows"]
    if not rows.height:
        return Result(
            status="skipped",
            reason="no part of training was recognised and no annotation recorded. "
            "Record with ProfilerActivity.CPU and name parts with torch.profiler.record_function('forward').",
        )
    known = {part: i for i, part in enumerate(PARTS)}
    sums = _sums(rows)
    of_parts = sums.filter(pl.col("source") == "phase").sort(pl.col("phase").replace_strict(known, default=len(PARTS)))
    of_ranges = sums.filter(pl.col("source") == "annotation").sort(
        ["gpu_ns", "cpu_ns", "phase"], descending=[True, True, False], nulls_last=True
    )
    table, cut = _capped(rows, of_ranges["phase"].to_list())
    metrics = {**_metrics(rows, run.steps), "annotations": of_ranges.height}
    notes = []
    if absent := [part for part in PARTS if part not in of_parts["phase"].to_list()]:
        notes.append(f"Not found in the traces, so null: {', '.join(absent)}.")
    if (parts["left_out"]["names"] > 0).any():
        notes.append(f"On each rank only the {MAX_NAMES} annotation names with most time are kept.")
    if (parts["left_out"]["paths"] > 0).any():
        notes.append(f"On each rank only the {MAX_PATHS} paths of annotations with most time are kept.")
    if cut:
        notes.append(f"The table by rank and step leaves out {cut} annotation names with less time; sums hold them.")
    if rows["gpu_ns"].null_count() == rows.height:
        notes.append("No GPU activity with a launch was recorded: gpu_ns is null.")
    shown = "cpu_ns" if rows["gpu_ns"].null_count() == rows.height else "gpu_ns"
    charts = []
    if of_parts.height:
        note = f"Σ over steps and ranks of {shown}; parts may run at the same time."
        charts.append(Chart("bars", "Time by part of training", "parts", label="phase", y=(shown,), note=note))
    if of_ranges.height:
        note = f"Σ over steps and ranks of {shown}; ranges may be nested."
        options = {"max_rows": 20}
        charts.append(
            Chart("bars", "Time by annotation", "annotations", label="phase", y=(shown,), note=note, options=options)
        )
    tables = {"phases": table, "parts": of_parts.drop("source"), "annotations": of_ranges.drop("source")}
    if parts["paths"].height:
        tables["paths"] = _paths_of_all(parts["paths"])
    return Result(
        metrics=metrics,
        tables=tables,
        charts=charts,
        notes=notes,
    )


def _metrics(rows: pl.DataFrame, steps: pl.DataFrame) -> dict[str, Value]:
    """Return share of the windows and mean ns a step of each part, null where it was not found."""
    window = int((steps["end_ns"] - steps["start_ns"]).sum())
    inside = rows.filter(pl.col("source") == "phase")
    if not steps["step"].has_nulls():
        inside = inside.filter(pl.col("step").is_not_null())
    metrics: dict[str, Value] = {}
    for part in PARTS:
        mine = inside.filter(pl.col("phase") == part)
        gpu = int(mine["gpu_ns"].sum()) if mine["gpu_ns"].count() else None
        cpu = int(mine["cpu_ns"].sum()) if mine.height else None
        metrics[f"{part}_gpu_share"] = None if gpu is None else share(gpu, window)
        for column, ns in (("gpu", gpu), ("cpu", cpu)):
            metrics[f"{part}_{column}_ns_per_step"] = (
                None if ns is None or not steps.height else round(ns / steps.height)
            )
    return metrics


def _sums(rows: pl.DataFrame) -> pl.DataFrame:
    """Return sums over ranks and steps by part or name; a sum of nulls is null."""
    gpu = pl.when(pl.col("gpu_ns").is_not_null().any()).then(pl.col("gpu_ns").sum())
    return rows.group_by("source", "phase").agg(
        pl.col("calls").sum(), gpu_ns=gpu, cpu_ns=pl.col("cpu_ns").sum(), ranks=pl.col("rank").n_unique()
    )


def _paths_of_all(rows: pl.DataFrame) -> pl.DataFrame:
    """Return sums over ranks by path, most GPU time first; a sum of nulls is null."""
    sums = [
        pl.when(pl.col(name).is_not_null().any()).then(pl.col(name).sum()).alias(name)
        for name in ("gpu_ns", "projected_ns", "operations")
    ]
    return (
        rows.group_by("path")
        .agg(pl.col("depth").min(), pl.col("calls", "cpu_ns").sum(), *sums, ranks=pl.col("rank").n_unique())
        .sort(["gpu_ns", "cpu_ns", "path"], descending=[True, True, False], nulls_last=True)
        .head(MAX_PATHS)
        .select(*PATHS, "ranks")
    )


def _capped(rows: pl.DataFrame, names: list[str]) -> tuple[pl.DataFrame, int]:
    """Return the rows sorted, with as many of the named annotations, in their order, as MAX_ROWS allows."""
    each = max(1, rows.select("rank", "step").unique().height)
    kept = names[: max(10, MAX_ROWS // each)]
    table = rows.filter((pl.col("source") == "phase") | pl.col("phase").is_in(kept))
    order = {name: i for i, name in enumerate((*PARTS, *kept))}
    place = pl.col("phase").replace_strict(order, return_dtype=pl.Int64)
    ordered = table.sort("rank", "step", pl.col("source") != "phase", place, "phase").select(PHASES)
    return ordered, len(names) - len(kept)
