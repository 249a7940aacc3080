"""Hand-made reports for the tests of everything that renders one."""

from __future__ import annotations

import math

import numpy as np
import polars as pl

from tracetool.document import Report
from tracetool.registry import RunView
from tracetool.results import Chart, Finding, Headline, Result, Where, no_saving, skipped
from tracetool.tables import frame

HOSTILE = "</script><img src=x onerror=alert(1)>"
LONG = "void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_relu_bf16_256x128_32x3_tn_align8>(Params) variant 7"


def view(ranks: int = 4, world: int | None = None, *, complete: bool = True) -> RunView:
    """Return a run of some ranks with three steps each."""
    numbers = list(range(ranks))
    sources = frame(
        "sources",
        {
            "path": [f"rank{n}.json" for n in numbers], "format": ["kineto"] * ranks, "bytes": [1000] * ranks,
            "events": [12_345] * ranks, "dropped": [0] * ranks, "repaired": [0] * ranks,
            "complete": [complete or n > 0 for n in numbers],
            "notes": [["rank assumed" if n == 0 else HOSTILE] for n in numbers],
        },
    ).with_columns(ranks=pl.Series([[n] for n in numbers], dtype=pl.List(pl.Int32)))  # fmt: skip
    steps = [(n, k) for n in numbers for k in range(3)]
    return RunView(
        path="traces/llama-70b-run-17/",
        ranks=frame(
            "ranks",
            {
                "rank": numbers, "format": ["kineto"] * ranks, "device_name": ["NVIDIA H100 80GB HBM3"] * ranks,
                "base_unix_ns": [1_763_647_320_000_000_000] * ranks,
            },
        ),
        sources=sources,
        steps=frame(
            "steps",
            {
                "rank": [n for n, _ in steps], "step": [k for _, k in steps],
                "start_ns": [k * 4_000_000 for _, k in steps], "end_ns": [(k + 1) * 4_000_000 for _, k in steps],
                "open_end": [k == 2 for _, k in steps], "basis": ["gpu"] * len(steps),
            },
        ),
        quality=frame("quality", {"rank": [0], "topic": ["orphans"], "count": [17], "ns": [81_234], "note": [HOSTILE]}),
        world_size=world,
        features={},
        joined={},
    )  # fmt: skip


def finding(number: int, *, ns: int | None = None, severity: str = "warning", **more: object) -> Finding:
    """Return a finding, priced as a bound when `ns` is given."""
    given: dict[str, object] = {
        "id": f"cause.{number}", "analysis": "budget", "severity": severity,
        "title": f"Reduce-scatter {number} is not hidden behind compute",
        "detail": "571 ms exposed of 902 ms communication; 72 % of it is ReduceScatter in the backward pass.",
        "advice": "Enable overlap of the tensor-parallel reduce-scatter.", "confidence": "medium",
        "confidence_why": "one rank only", "saving": no_saving(), "recoverable_ns_per_step": ns,
        "recoverable_share": None if ns is None else ns / 4e9, "price_basis": None if ns is None else "bound",
        "where": Where(ranks=(0, 1, 2, 3, 7), steps=(1, 2), window_ns=(5, 9)), "evidence": (("mean_step", (0,)),),
    }  # fmt: skip
    return Finding(**(given | more))  # type: ignore[arg-type]  # a keyword table is the point of the helper


def budget(ranks: int = 4) -> Result:
    """Return a budget: the bar of the first screen, one bar a rank, a heat map."""
    parts = {"compute_ns": 2_410_000_000, "exposed_comm_ns": 571_000_000, "sync_wait_ns": 331_000_000,
             "pipeline_bubble_ns": 498_000_000, "memcpy_ns": 62_000_000, "host_bound_ns": 148_000_000,
             "idle_ns": 100_000_000}  # fmt: skip
    mean = pl.DataFrame({"of": ["mean step"]} | {name: [ns] for name, ns in parts.items()})
    by_rank = pl.DataFrame(
        {"rank": range(ranks)} | {n: [ns + r * 1_000_003 for r in range(ranks)] for n, ns in parts.items()}
    )
    noise = np.random.default_rng(7).normal(4.12e9, 2e7, (ranks, 60)).astype(np.int64)
    noise[ranks // 2] += 400_000_000
    noise[:, 20] += 700_000_000
    cells = pl.DataFrame(
        {"rank": np.repeat(np.arange(ranks), 60), "step": np.tile(np.arange(60), ranks), "window_ns": noise.ravel()}
    )
    return Result(
        headline=[
            Headline("Step time, median", 4_120_000_000, "ns", 10, "3 steps, 4 ranks"),
            Headline("Step time, p99", 4_480_000_000, "ns", 11),
            Headline("Computing", 0.585, "share", 20),
            Headline("Exposed communication", None, "share", 21, "waiting could not be told apart"),
        ],
        metrics={"compute_share": 0.585, "step_ns_p50": 4_120_000_000, "exposed_comm_share": None, "odd": math.nan,
                 "culprits": (1, 2, 3)},
        tables={"mean_step": mean, "ranks": by_rank, "per_rank_step": cells},
        charts=[
            Chart("stack", "Where a step goes", "mean_step", label="of", y=tuple(parts),
                  note="Mean step of 4 ranks.", options={"first_screen": True}),
            Chart("stack", "Where each rank's time goes", "ranks", label="rank", y=tuple(parts), note="All steps."),
            Chart("heat", "Step time by rank and step", "per_rank_step", label="rank", x="step", y=("window_ns",),
                  note="Length of each step."),
        ],
        notes=["Waiting is told apart for 3 of 4 ranks."],
    )  # fmt: skip


def kernels() -> Result:
    """Return bars with names that try to break out."""
    table = pl.DataFrame(
        {
            "name": [LONG, HOSTILE, "ядро 🔥 kernel", "plain|pipe `tick` *star*"],
            "total_ns": [910_000_000, 500_000_000, 20_000, 5],
            "whole_ns": [1_000_000_000, 500_000_000, None, 5],
            "count": [12_000, 40, 1, 0],
            "gpu_share": [0.61, 0.333, None, math.inf],
            "kind": pl.Series(["compute", "comm", "memcpy", None], dtype=pl.Enum(["compute", "comm", "memcpy"])),
            "on": [[0, 1, 2, 3], [5], [], None],
        },
        schema_overrides={"on": pl.List(pl.Int32)},
    )
    return Result(
        tables={"kernels": table},
        charts=[Chart("bars", "Longest kernels", "kernels", label="name", y=("total_ns", "whole_ns"))],
    )


def pictures() -> Result:
    """Return one chart of every kind that budget and kernels lack."""
    rng = np.random.default_rng(3)
    ops = pl.DataFrame(
        {"op": [f"gemm {i}" for i in range(80)], "flop_per_byte": 10 ** rng.uniform(-0.5, 3.2, 80),
         "achieved_tflops": 10 ** rng.uniform(0, 2.9, 80), "total_ns": rng.integers(1000, 10**8, 80),
         "bound": ["memory" if i % 3 else "compute" for i in range(80)]}
    )  # fmt: skip
    growth = pl.DataFrame(
        {"at_ns": np.arange(200) * 1_000_000, "allocated_bytes": (np.sin(np.arange(200) / 9) + 2) * 2e10,
         "reserved_bytes": np.full(200, 7e10)}
    )  # fmt: skip
    slots = []
    for stage in range(4):
        for m in range(8):
            slots.append((stage, (stage + m) * 10, 8, "forward", str(m)))
            slots.append((stage, 118 + (3 - stage) * 14 + m * 18, 15, "backward", str(m)))
        slots.append((stage, (stage + 8) * 10, 20, "pipeline_bubble", ""))
    gantt = pl.DataFrame(slots, schema=["stage", "start_us", "dur_us", "phase", "microbatch"], orient="row")
    gantt = gantt.with_columns(start_ns=pl.col("start_us") * 1000, dur_ns=pl.col("dur_us") * 1000)
    ladder = pl.DataFrame({"part": ["schedule", "stage imbalance", "jitter", "rest", "bubble"],
                           "ns": [300_000, 120_000, 40_000, -30_000, 430_000]})  # fmt: skip
    return Result(
        headline=[Headline("MFU", 0.382, "share", 0, "causal")],
        metrics={"mfu": 0.382},
        tables={"ops": ops, "memory": growth, "slots": gantt, "ladder": ladder,
                "range": pl.DataFrame({"mfu": [0.382], "low": [0.36], "high": [0.43]})},
        charts=[
            Chart("bullet", "MFU", "range", y=("mfu", "low", "high"), unit="share"),
            Chart("scatter", "Roofline", "ops", label="op", x="flop_per_byte", y=("achieved_tflops",),
                  series="bound", size="total_ns", unit="tflops", note="Dots are operators, area is time.",
                  options={"log": True, "roof_tflops": 989.4, "roof_gbs": 3350}),
            Chart("line", "Memory over time", "memory", x="at_ns", y=("allocated_bytes", "reserved_bytes"),
                  unit="bytes", options={"x_unit": "ns"}),
            Chart("gantt", "Pipeline schedule", "slots", label="stage", x="start_ns", y=("dur_ns",), series="phase",
                  note="Hatched: bubble; number: micro-batch.", options={"text": "microbatch"}),
            Chart("waterfall", "What the bubble is made of", "ladder", label="part", y=("ns",)),
            Chart("bars", "Broken", "ops", label="nowhere", y=("total_ns",)),
        ],
    )  # fmt: skip


def timeline(ranks: int = 4, slices: int = 2_000, names: int = 40) -> Result:
    """Return a timeline of `slices` slices on `ranks` rows."""
    rng = np.random.default_rng(11)
    each = slices // ranks
    durs = rng.gamma(1.2, 30_000, (ranks, each)).astype(np.int64) + 900
    gaps = rng.exponential(6_000, (ranks, each)).astype(np.int64)
    starts = np.cumsum(durs + gaps, axis=1) - durs
    kind = rng.integers(0, names, (ranks, each)).ravel()
    words = np.array([f"kernel_{i}_{LONG[:50]}" for i in range(names - 1)] + [HOSTILE])
    table = pl.DataFrame(
        {"lane": np.repeat(np.array([f"rank {n} stream 7" for n in range(ranks)]), each), "start_ns": starts.ravel(),
         "dur_ns": durs.ravel(), "name": words[kind], "kind": np.array(["compute", "comm", "memcpy"])[kind % 3]}
    )  # fmt: skip
    return Result(
        tables={"slices": table},
        charts=[
            Chart("timeline", "GPU activity", "slices", label="lane", x="start_ns", y=("dur_ns",), series="kind",
                  note="Rows are streams.", options={"text": "name"})
        ],
    )  # fmt: skip


def report(ranks: int = 4, slices: int = 2_000, **more: object) -> Report:
    """Return a report with every kind of section, state and chart."""
    results = {
        "budget": budget(ranks), "kernels": kernels(), "mfu": pictures(), "timeline": timeline(ranks, slices),
        "memory": skipped("no memory events in the traces. Record with torch.profiler.profile(profile_memory=True)."),
        "clocks": Result(status="error", reason=f"ValueError: {HOSTILE}"),
    }  # fmt: skip
    given: dict[str, object] = {
        "run": view(ranks, ranks + 1),
        "results": results,
        "findings": (
            finding(1, ns=410_000_000, severity="critical"), finding(2, ns=298_000_000, title=HOSTILE),
            finding(3, severity="info"),
        ),
        "titles": {"budget": "Time budget", "kernels": "Kernels", "mfu": "MFU and roofline", "timeline": "Timeline",
                   "memory": "Memory", "clocks": "Clocks"},
        "definitions": {"budget": "Each instant goes to the first that holds:\n\n1. `compute`: a kernel runs.\n2. comm"
                        f"\n\nSums to the window. {HOSTILE}"},
        "command": "tracetool report traces/llama-70b-run-17/ --steps 3-5",
        "version": "0.1.0",
    }  # fmt: skip
    return Report(**(given | more))  # type: ignore[arg-type]  # a keyword table is the point of the helper
