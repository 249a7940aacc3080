"""Roofline: what each operator and shape could reach on this device, what it reached, and the time in between.

For each matrix product, convolution and attention, by shape and number format:
* FLOPs: executed, half of causal attention (fused kernels skip the rest); bytes: every operand and result moved once,
  matmul size·(M·K + K·N + M·N). Real traffic is at least that, so the intensity = FLOPs ÷ bytes is an upper bound;
  operands that stay in a cache can exceed the memory roof.
* t_compute = FLOPs ÷ dense peak of the format, t_memory = bytes ÷ memory bandwidth; attainable time is the larger.
  Ridge = peak ÷ bandwidth: an intensity above it is bound by compute, below it by memory. Bound by latency: less than
  a tenth of both roofs is reached and a call lasts under 10 µs.
* achieved TFLOP/s = FLOPs ÷ GPU time of all that the operator launched, GB/s = bytes ÷ the same time.
* share of attainable = attainable time ÷ that time; time lost = that time − attainable time, at least 0.

Roofs are data-sheet figures, which no kernel reaches; where the best measured product is known its share is said
beside. So the time lost is a bound: a fix saves at most this much.

--what-if-device shows the same operators under another device's roofs: on it they take at least the attainable time
(floor). `saved` compares that floor with the measured time, so it is a bound as well; nothing else of the step changes.

Source: Williams, Waterman, Patterson, Roofline, CACM 52(4), 2009. Peaks and bandwidths: tracetool/hardware.json.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import polars as pl

from tracetool import hardware
from tracetool.concerned import concerned
from tracetool.figures import milliseconds, percent, share
from tracetool.mfu.rank_flops import OP_KEYS, rank_flops
from tracetool.mfu.roofs import attainable, bounded_share, by_bound, by_shape, roofs_of, what_if
from tracetool.needs import NEEDS as ALL_NEEDS
from tracetool.results import SAVING_SCHEMA, Chart, Finding, Headline, Result, Value, skipped

if TYPE_CHECKING:
    from tracetool.registry import RankView, RunView
    from tracetool.settings import Settings
    from tracetool.tables import Tables

TITLE: Final = "Roofline"
NEEDS: Final = ("gpu",)

MAX_PER_RANK: Final = 100
MAX_ROWS: Final = 200
MAX_FINDINGS: Final = 3


def per_rank(rank: RankView, _facts: Tables, settings: Settings) -> Tables:
    """Return `calls` by step, operator and shape: count, FLOPs, bytes and GPU time; the longest shapes of the rank."""
    calls = rank_flops(rank, settings).calls.with_columns(op="name")
    summed = calls.group_by("step", *OP_KEYS).agg(
        count=pl.len().cast(pl.Int64),
        flops=pl.col("causal").sum(),
        moved_bytes=pl.col("moved_bytes").sum(),
        kernel_ns=pl.col("kernel_ns").fill_null(0).sum(),
        flags=pl.col("flags").list.join(", ").max(),
    )
    largest = (
        summed.group_by(OP_KEYS)
        .agg(total=pl.col("kernel_ns").sum())
        .sort("total", *OP_KEYS, descending=[True] + [False] * len(OP_KEYS))
        .head(MAX_PER_RANK)
    )
    kept = summed.join(largest.drop("total"), on=list(OP_KEYS), how="semi").sort("step", *OP_KEYS)
    return {
        "calls": kept.select(pl.lit(rank.rank, pl.Int32).alias("rank"), pl.all()),
        "left_out": pl.DataFrame(
            {"kernel_ns": [int(summed["kernel_ns"].sum()) - int(kept["kernel_ns"].sum())]},
            schema={"kernel_ns": pl.Int64},
        ),
    }


def analyze(parts: Tables, run: RunView, settings: Settings) -> Result:
    """Set the ranks' operators against the roofs of their devices."""
    calls = parts["calls"].filter(pl.col("kernel_ns") > 0)
    other, refusal = _other(settings.what_if_device)
    if calls.is_empty():
        return skipped(f"no matrix product with known shapes launched a kernel. {ALL_NEEDS['shapes'].hint}")
    devices = {
        rank: hardware.find(name, memory)
        for rank, name, memory in run.ranks.select("rank", "device_name", "device_memory_bytes")
        .sort("rank")
        .iter_rows()
    }
    timed = attainable(calls, roofs_of(devices, calls, settings.peak_tflops))
    ops = by_shape(timed)
    metrics = _metrics(timed, ops, run)
    tables = {"ops": ops.head(MAX_ROWS), "bounds": by_bound(ops)}
    notes = _notes(devices, run, settings, ops, int(parts["left_out"]["kernel_ns"].sum()))
    if refusal:
        notes.append(refusal)
    if other is not None:
        tables["what_if"] = what_if(ops.head(MAX_ROWS), other)
        metrics |= _what_if_metrics(tables["what_if"], run)
        notes.append(
            f"What-if {other.name}: floors are attainable times under its data-sheet roofs, a bound; everything but "
            "these operators stays as it was."
        )
    device = next((device for device in devices.values() if device), None)
    return Result(
        headline=[
            Headline(
                "Matrix products reach",
                metrics["share_of_attainable"],
                "share",
                40,
                "of what the data sheet allows" + (", at most" if bounded_share(ops) else ""),
            )
        ],
        metrics=metrics,
        tables=tables,
        findings=_findings(timed, tables["ops"], run),
        charts=_charts(device, settings.peak_tflops, ops),
        notes=notes,
    )


def _other(name: str | None) -> tuple[hardware.Device | None, str]:
    """Return the device of --what-if-device, or why there is none, with similar names."""
    device = hardware.find(name)
    if name is None or device is not None:
        return device, ""
    names = hardware.similar(name) or [known.name for known in hardware.known()]
    return None, f'--what-if-device "{name}" is not known and left out; known are, for example, {", ".join(names)}.'


def _metrics(timed: pl.DataFrame, ops: pl.DataFrame, run: RunView) -> dict[str, Value]:
    known = ops.filter(pl.col("bound").is_not_null())
    total, lost = int(known["kernel_ns"].sum()), int(known["lost_ns"].sum())
    steps = max(run.steps.height, 1)
    shares = {
        f"{bound}_bound_share": share(int(known.filter(pl.col("bound") == bound)["kernel_ns"].sum()), total)
        for bound in ("compute", "memory", "latency")
    }
    main = timed.sort("flops", "peak_dtype", descending=[True, False])
    peak, bandwidth = main["peak"][0], main["bandwidth"][0]
    return {
        "share_of_attainable": share(int(known["attainable_ns"].sum()), total),
        **shares,
        "lost_ns_per_step": lost // steps if total else None,
        "kernel_ns_per_step": int(ops["kernel_ns"].sum()) // steps,
        "peak_tflops": None if peak is None else peak / 1e12,
        "memory_gbs": None if bandwidth is None else bandwidth / 1e9,
        "ridge_flop_per_byte": peak / bandwidth if peak and bandwidth else None,
    }


def _what_if_metrics(table: pl.DataFrame, run: RunView) -> dict[str, Value]:
    known = table.filter(pl.col("floor_ns").is_not_null())
    steps, window = max(run.steps.height, 1), int((run.steps["end_ns"] - run.steps["start_ns"]).sum())
    saved = int(known["saved_at_most_ns"].sum())
    return {
        "what_if_saved_at_most_ns_per_step": saved // steps if known.height else None,
        "what_if_saved_at_most_share": share(saved, window) if known.height else None,
        "what_if_floor_ns_per_step": int(known["floor_ns"].sum()) // steps if known.height else None,
    }


# ---- words ----


def _notes(
    devices: dict[int, hardware.Device | None], run: RunView, settings: Settings, ops: pl.DataFrame, left_out: int
) -> list[str]:
    notes = ["Roofs are data-sheet figures and bytes the least that must move: time lost is a bound, not a promise."]
    unknown = sorted({rank for rank, device in devices.items() if device is None})
    if unknown:
        names = sorted({str(n or "") for n in run.ranks.filter(pl.col("rank").is_in(unknown))["device_name"].to_list()})
        spelled = " or ".join(f'"{name}"' for name in names)
        notes.append(f"Device {spelled} is not known: TFLOP/s and GB/s without roofs.")
    if settings.peak_tflops:
        notes.append(f"Peak given: {settings.peak_tflops:g} TFLOP/s for every number format; bandwidth by device name.")
    bounded = bounded_share(ops)
    if bounded:
        notes.append(
            f"Attention whose mask or lengths the trace does not tell ({percent(bounded)} of the time; NVTX ranges "
            "never do) is counted in full: its FLOPs, intensity, rates and share of attainable are upper bounds, its "
            "time lost is a lower bound."
        )
    if left_out:
        notes.append(
            f"Small shapes beyond the {MAX_PER_RANK} longest of a rank ({milliseconds(left_out)}) are left out."
        )
    if ops.height > MAX_ROWS:
        notes.append(f"The table shows the {MAX_ROWS} shapes that lose the most of {ops.height}.")
    return notes


def _findings(timed: pl.DataFrame, ops: pl.DataFrame, run: RunView) -> list[Finding]:
    """Return one finding an operator and bound, for its shapes that each lose a thousandth of the steps or more."""
    window = int((run.steps["end_ns"] - run.steps["start_ns"]).sum())
    worth = ops.with_row_index("row").filter(pl.col("lost_ns").is_not_null() & (pl.col("lost_ns") * 1000 >= window))
    starts = run.steps.select("rank", "step", at_ns="start_ns")
    found = []
    for op, bound in worth.select("op", "bound").unique(maintain_order=True).head(MAX_FINDINGS).iter_rows():
        rows = worth.filter((pl.col("op") == op) & (pl.col("bound") == bound))
        mine = timed.join(rows.select(OP_KEYS), on=list(OP_KEYS), how="semi", nulls_equal=True)
        lost = mine.group_by("rank", "step").agg(ns=pl.col("lost_ns").sum())
        saving = lost.join(starts, on=["rank", "step"], nulls_equal=True).select(
            pl.col(name).cast(dtype) for name, dtype in SAVING_SCHEMA.items()
        )
        found.append(_finding(rows, saving.sort("rank", "at_ns"), window, run.ranks.height))
    return found


_ADVICE: Final = {
    "memory": "Fuse it with its neighbours or batch more rows, so that operands are read less often.",
    "latency": "Batch or group these short calls, or capture them in a graph: launch and ramp-up dominate.",
}
LARGE: Final = 512
"""From this size on a dimension no longer keeps a product from the compute roof."""
ALIGNED: Final = 64


def _compute_advice(shape: str) -> str:
    """Return what can be done about a product bound by compute: its dimensions decide."""
    sizes = [int(size) for size in re.findall(r"\d+", shape)]
    if any(size % ALIGNED for size in sizes if size >= ALIGNED):
        return f"Align its sizes: pad the dimensions that are no multiples of {ALIGNED}."
    if any(size < LARGE for size in sizes):
        return "Give it larger sizes: batch more rows or group products; or use a narrower number format."
    return (
        "Its sizes are large and aligned: compare clocks and power limits with other ranks, the version of the matrix "
        "library, and what communication runs beside it."
    )


def _finding(rows: pl.DataFrame, saving: pl.DataFrame, window: int, ranks: int) -> Finding:
    """Return the finding about these shapes of one operator, the one that loses most first."""
    row = rows.row(0, named=True)
    bound, lost = row["bound"], int(rows["lost_ns"].sum())
    reached = share(int(rows["attainable_ns"].sum()), int(rows["kernel_ns"].sum()))
    worst = "; ".join(
        f"{one['shape']} ({one['dtype']}) {percent(one['share_of_attainable'])}, {one['count']:,} "
        f"{'call' if one['count'] == 1 else 'calls'}, {one['tflops']:.4g} TFLOP/s, {one['gbs']:.4g} GB/s"
        for one in rows.head(3).iter_rows(named=True)
    )
    several = f"{rows.height} shapes, the worst " if rows.height > 1 else ""
    return Finding(
        id="roofline." + re.sub(r"[^a-z0-9]+", "_", f"{row['op']} {bound}".lower()).strip("_"),
        analysis="roofline",
        severity="info",
        title=f"{row['op']} reaches {percent(reached)} of the roofline, bound by {bound}",
        detail=f"{several}{worst}. On average {percent(share(lost, window))} of a rank's step lies above the roof.",
        advice=_compute_advice(row["shape"]) if bound == "compute" else _ADVICE[bound],
        confidence="low",
        confidence_why="no kernel reaches the data-sheet roofs; the gap is exact, how much of it can be had is not",
        saving=saving,
        evidence=(("ops", tuple(rows["row"].to_list())),),
        where=concerned(saving, ranks),
    )


def _charts(device: hardware.Device | None, given: float | None, ops: pl.DataFrame) -> list[Chart]:
    dtype = str(ops.sort("flops", "peak_dtype", descending=[True, False])["peak_dtype"][0])
    peak = given or (device.tflops.get(dtype) if device else None)
    roofs: dict[str, float] = {}
    if peak is not None:
        roofs["roof_tflops"] = float(peak)
    if device is not None and device.memory_gbs is not None:
        roofs["roof_gbs"] = float(device.memory_gbs)
    return [
        Chart(
            "scatter",
            "Achieved against intensity",
            "ops",
            label="op",
            x="intensity",
            y=("tflops",),
            series="bound",
            size="kernel_ns",
            unit="tflops",
            note=f"Each operator and shape under the roofs of peak ({dtype}) and memory bandwidth; area is GPU time.",
            options={"log": True, "x_unit": "FLOP/byte", "text": "shape", **roofs},
        ),
        Chart(
            "bars",
            "Time lost to the roofline",
            "ops",
            label="op",
            y=("lost_ns", "kernel_ns"),
            note="GPU time above attainable, of all GPU time of the shape.",
            options={"max_rows": 12, "text": "shape"},
        ),
    ]
